//! The header of the payload: the generator writes it behind the L4 header, and the sink reads it.
//!
//! ```text
//!  0      2          6              10                      18
//!  | 'nm' | run,flow |  sequence    |  sent at, ns          |  zeros ...
//! ```
//!
//! All big-endian. A 64-byte Ethernet frame with IPv4 and UDP has room for eighteen bytes. The upper 12 bits of
//! `run,flow` are the run, so that a late frame of an earlier run is recognised; the sequence number counts within
//! the flow.

/// Bytes of the header.
pub const PAYLOAD_LEN: usize = 18;
/// Its first two bytes: `nm`.
pub const PAYLOAD_MAGIC: u16 = 0x6e6d;
pub const FLOW_BITS: u32 = 20;
pub const RUN_MAX: u16 = 0xfff;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Payload {
    /// The run, up to [`RUN_MAX`].
    pub run: u16,
    /// The flow, below 2^[`FLOW_BITS`].
    pub flow: u32,
    /// The frame's number within its flow, from 0; wraps.
    pub sequence: u32,
    /// Time of writing, CLOCK_MONOTONIC in nanoseconds.
    pub sent_ns: u64,
}

impl Payload {
    /// Writes the header; `out` must have [`PAYLOAD_LEN`] bytes.
    pub fn write(&self, out: &mut [u8]) {
        out[0..2].copy_from_slice(&PAYLOAD_MAGIC.to_be_bytes());
        out[2..6].copy_from_slice(&(u32::from(self.run) << FLOW_BITS | self.flow).to_be_bytes());
        out[6..10].copy_from_slice(&self.sequence.to_be_bytes());
        out[10..18].copy_from_slice(&self.sent_ns.to_be_bytes());
    }

    /// Reads a header; `None` when it is too short or begins with something else.
    pub fn read(bytes: &[u8]) -> Option<Payload> {
        let bytes: &[u8; PAYLOAD_LEN] = bytes.first_chunk()?;
        let u32_at = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        if u16::from_be_bytes([bytes[0], bytes[1]]) != PAYLOAD_MAGIC {
            return None;
        }
        Some(Payload {
            run: (u32_at(2) >> FLOW_BITS) as u16,
            flow: u32_at(2) & ((1 << FLOW_BITS) - 1),
            sequence: u32_at(6),
            sent_ns: u64::from(u32_at(10)) << 32 | u64::from(u32_at(14)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let payload = Payload { run: RUN_MAX, flow: (1 << FLOW_BITS) - 1, sequence: u32::MAX - 1, sent_ns: 0x0123_4567_89ab_cdef };
        let mut bytes = [0; PAYLOAD_LEN + 1];
        payload.write(&mut bytes);
        assert_eq!(Payload::read(&bytes), Some(payload));
        assert_eq!(Payload::read(&bytes[..PAYLOAD_LEN - 1]), None);
        bytes[0] ^= 1;
        assert_eq!(Payload::read(&bytes), None);
    }
}
