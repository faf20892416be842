//! Lowers the maximum segment size that a SYN announces (RFC 9293, section 3.7.1), for ways on which path MTU discovery fails.

use crate::checksum::{apply, delta};
use crate::frame::Frame;
use crate::parse::Packet;
use crate::rewrite::{checksum_of, is_partial};
use crate::tuple::Proto;
use crate::wire::{Field, ipv4, ipv6, tcp};

/// The end of the options, one without a length, and that of the maximum segment size with its length.
const END: u8 = 0;
const NOP: u8 = 1;
const MSS: u8 = 2;
const MSS_LEN: u8 = 4;

/// What becomes of the maximum segment size in SYNs and SYN+ACKs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum SegmentSize {
    /// It stays.
    #[default]
    Keep,
    /// At most what fits into the MTUs of the packet's way on and of the interface that it came in by.
    Clamp,
    /// At most so many bytes.
    AtMost(u16),
}

impl SegmentSize {
    /// Lowers the size in a SYN whose packets can have `mtu` bytes on both sides of this gateway. A SYN that announces none stays: its sender is sent
    /// the smallest segments anyway. True when it was changed.
    #[inline]
    pub(crate) fn lower(self, frame: &mut Frame<'_>, packet: &Packet, mtu: u16) -> bool {
        self != SegmentSize::Keep && packet.tuple.proto == Proto::Tcp && packet.tcp_flags & tcp::SYN != 0 && self.change(frame, packet, mtu)
    }

    fn change(self, frame: &mut Frame<'_>, packet: &Packet, mtu: u16) -> bool {
        let headers = tcp::HEADER_LEN + if packet.tuple.v6 { ipv6::HEADER_LEN } else { ipv4::HEADER_LEN };
        let most = if let SegmentSize::AtMost(most) = self { most } else { mtu.saturating_sub(headers as u16) };
        let l4 = usize::from(packet.l4);
        let Some(at) = frame.head().get(l4..).and_then(find) else { return false };
        let (size, checksum) = (Field::<2>::at(at).after(l4), checksum_of(Proto::Tcp as u8).after(l4));
        let (before, sum) = (size.u16(frame.head()), checksum.u16(frame.head()));
        if before <= most {
            return false;
        }
        let partial = is_partial(packet, sum);
        let head = frame.head_mut();
        size.write(head, most.to_be_bytes());
        // A checksum that the sender left to its NIC covers no options yet. At an odd place the halves of the number are in different words.
        if !partial {
            let word = |n: u16| u64::from(if at.is_multiple_of(2) { n } else { n.swap_bytes() });
            checksum.write(head, apply(sum, delta(word(before), word(most))).to_be_bytes());
        }
        true
    }
}

/// Where the size is in a TCP header.
fn find(header: &[u8]) -> Option<usize> {
    let [offset] = tcp::field::DATA_OFFSET.get(header)?;
    let options = header.get(..tcp::header_len(offset))?;
    let mut at = tcp::HEADER_LEN;
    loop {
        match *options.get(at)? {
            END => return None,
            NOP => at += 1,
            kind => {
                let len = *options.get(at + 1)?;
                if kind == MSS && len == MSS_LEN {
                    return options.get(at + 2..at + 4).map(|_| at + 2);
                }
                at += usize::from(len.max(2));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A TCP header with these options.
    fn header(options: &[u8]) -> Vec<u8> {
        let mut header = vec![0; tcp::HEADER_LEN];
        header.extend(options);
        header[12] = (header.len() as u8 / 4) << 4;
        header
    }

    #[test]
    fn the_option_is_found_wherever_it_is() {
        let table: [(&[u8], Option<usize>); 9] = [
            (&[2, 4, 5, 0xb4], Some(22)),
            (&[1, 2, 4, 5, 0xb4, 1, 1, 0], Some(23)),
            (&[4, 2, 8, 10, 0, 0, 0, 0, 0, 0, 0, 0, 2, 4, 5, 0xb4], Some(34)),
            (&[], None),
            (&[0, 2, 4, 5, 0xb4, 0, 0, 0], None),
            (&[2, 3, 5, 0xb4], None),
            (&[1, 1, 2, 4], None),
            (&[3, 0, 2, 4, 5, 0xb4, 0, 0], Some(24)),
            (&[3, 255, 7, 2], None),
        ];
        for (options, expected) in table {
            assert_eq!(find(&header(options)), expected, "{options:?}");
            // Cut short.
            let whole = header(options);
            (0..whole.len()).for_each(|len| assert_eq!(find(&whole[..len]), None));
        }
    }
}
