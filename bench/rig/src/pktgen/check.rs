//! The sink's verdict on each frame.

use hdrhistogram::Histogram;

use super::payload::Payload;
use super::template::{ETH_LEN, fold};

/// The sink remembers so many frames of a flow before the latest one, to tell late frames from duplicates.
pub const WINDOW: u32 = 64;
/// The longest latency, in nanoseconds; longer ones count as this.
const LATENCY_MAX_NS: u64 = 60_000_000_000;
const LATENCY_DIGITS: u8 = 3;

/// Counts of a run's frames at the sink. Every frame is in `received`, and in exactly one of `in_order`, `reordered`, `duplicated`,
/// `too_late`, `corrupt`, `foreign`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize)]
pub struct SinkCounts {
    pub received: u64,
    /// Bytes of them, without FCS.
    pub bytes: u64,
    /// The next frame of its flow, or the first one after a gap.
    pub in_order: u64,
    /// Overtaken by later frames of its flow (RFC 4737).
    pub reordered: u64,
    pub duplicated: u64,
    /// More than [`WINDOW`] frames of its flow late: reordered or duplicated, which cannot be told.
    pub too_late: u64,
    /// A checksum or a length is wrong, or the flow does not exist.
    pub corrupt: u64,
    pub foreign: u64,
}

impl SinkCounts {
    /// Different frames of this run that arrived.
    pub fn unique(&self) -> u64 {
        self.in_order + self.reordered + self.too_late
    }
}

/// The latest frames of a flow.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    latest: u32,
    /// Bit n: `latest - n` has been seen. 0: nothing has been seen.
    window: u64,
}

#[derive(Clone, Debug)]
pub struct Checker {
    run: u16,
    flows: Vec<Seen>,
    counts: SinkCounts,
    latency_ns: Histogram<u32>,
}

impl Checker {
    pub fn new(run: u16, flows: u32) -> Checker {
        let latency_ns = Histogram::new_with_bounds(1, LATENCY_MAX_NS, LATENCY_DIGITS).expect("the bounds and digits are fixed and valid");
        Checker { run, flows: vec![Seen::default(); flows as usize], counts: SinkCounts::default(), latency_ns }
    }

    /// Checks one frame, without FCS, received at `now_ns`.
    pub fn observe(&mut self, frame: &[u8], now_ns: u64) {
        self.counts.received += 1;
        self.counts.bytes += frame.len() as u64;
        let Some(payload) = payload_of(frame) else {
            self.counts.corrupt += 1;
            return;
        };
        if payload.run != self.run {
            self.counts.foreign += 1;
            return;
        }
        let Some(seen) = self.flows.get_mut(payload.flow as usize) else {
            self.counts.corrupt += 1;
            return;
        };
        *seen.place(payload.sequence, &mut self.counts) += 1;
        self.latency_ns.saturating_record(now_ns.saturating_sub(payload.sent_ns).max(1));
    }

    pub fn counts(&self) -> SinkCounts {
        self.counts
    }

    /// Latency of all frames of this run, in nanoseconds.
    pub fn latency_ns(&self) -> &Histogram<u32> {
        &self.latency_ns
    }

    /// Flows with at least one frame.
    pub fn flows_seen(&self) -> u64 {
        self.flows.iter().filter(|f| f.window != 0).count() as u64
    }
}

impl Seen {
    /// Records a sequence number and returns its counter.
    fn place<'c>(&mut self, sequence: u32, counts: &'c mut SinkCounts) -> &'c mut u64 {
        // Serial number arithmetic (RFC 1982): sequence numbers wrap.
        let ahead = sequence.wrapping_sub(self.latest).cast_signed();
        if self.window == 0 || ahead > 0 {
            let shift = if self.window == 0 { WINDOW } else { ahead.unsigned_abs() };
            self.window = self.window.checked_shl(shift).unwrap_or(0) | 1;
            self.latest = sequence;
            return &mut counts.in_order;
        }
        let behind = ahead.unsigned_abs();
        if behind >= WINDOW {
            return &mut counts.too_late;
        }
        let bit = 1 << behind;
        if self.window & bit != 0 {
            return &mut counts.duplicated;
        }
        self.window |= bit;
        &mut counts.reordered
    }
}

/// The payload header of a frame whose lengths and checksums are right.
fn payload_of(frame: &[u8]) -> Option<Payload> {
    let u16_at = |at: usize| Some(u16::from_be_bytes([*frame.get(at)?, *frame.get(at + 1)?]));
    let (l4, addresses, protocol, l4_len) = match (u16_at(12)?, *frame.get(ETH_LEN)?) {
        (0x0800, 0x45) => {
            if fold(sum(frame.get(ETH_LEN..ETH_LEN + 20)?)) != 0 {
                return None;
            }
            (34, 26..34, frame[23], usize::from(u16_at(16)?).checked_sub(20)?)
        }
        (0x86dd, version) if version >> 4 == 6 => (54, 22..54, *frame.get(20)?, usize::from(u16_at(18)?)),
        _ => return None,
    };
    let segment = frame.get(l4..l4 + l4_len)?;
    let header = match protocol {
        17 if segment.len() >= 8 && u16_at(l4 + 4)? as usize == l4_len => 8,
        6 if segment.len() >= 20 && segment[12] >> 4 == 5 => 20,
        _ => return None,
    };
    let total = sum(frame.get(addresses)?) + u64::from(protocol) + l4_len as u64 + sum(segment);
    // A UDP checksum of 0 means none; the generator always writes one.
    if fold(total) != 0 || protocol == 17 && u16_at(l4 + 6)? == 0 {
        return None;
    }
    Payload::read(&segment[header..])
}

/// The sum of the 16-bit words, partly folded; an odd last byte is the upper half of a word.
fn sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    let mut sum: u64 = words.iter().map(|w| u64::from(u32::from_be_bytes(*w))).sum();
    for (byte, shift) in rest.iter().zip([24, 16, 8]) {
        sum += u64::from(*byte) << shift;
    }
    sum
}

#[cfg(test)]
mod tests;
