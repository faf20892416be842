//! An event as words.
//!
//! ```text
//! 0  milliseconds
//! 1  kind | detail << 8 | detail << 16 | flags << 24 | protocol << 32 | port << 48
//! 2  bytes
//! 3  packet's ports | rewritten packet's ports << 32
//! 4  IPv4: packet's source << 32 | destination      IPv6: packet's source, two words
//! 5  IPv4: rewritten source << 32 | destination
//! 6  IPv6: packet's destination, rewritten source, rewritten destination
//! ```
//! An IPv4 event, with its sequence number, is within one cache line.

use super::{EndCause, Event, EventKind, HeldFor, Told};
use crate::conntrack::PhaseKind;
use crate::frame::PortId;
use crate::reason::Reason;
use crate::tuple::{AddrWords, Proto, Tuple};

pub(super) const RECORD_WORDS: usize = 12;
pub(super) type Words = [u64; RECORD_WORDS];

const V4_USED: usize = 6;
const HAS_PACKET: u64 = 1;
const HAS_REWRITTEN: u64 = 2;
const IS_V6: u64 = 4;

/// Writes an event; returns the number of words used.
pub(super) fn encode(event: &Event, words: &mut Words) -> usize {
    let (kind, a, b) = kind_bytes(event.kind);
    let tuple = event.packet.or(event.rewritten);
    let v6 = tuple.is_some_and(|tuple| tuple.v6);
    let flag = |is: bool, flag: u64| if is { flag } else { 0 };
    let flags = flag(event.packet.is_some(), HAS_PACKET) | flag(event.rewritten.is_some(), HAS_REWRITTEN) | flag(v6, IS_V6);
    let proto = tuple.map_or(0, |tuple| tuple.proto as u8);
    words[0] = event.at_ms;
    words[1] = u64::from(kind)
        | (u64::from(a) << 8)
        | (u64::from(b) << 16)
        | (flags << 24)
        | (u64::from(proto) << 32)
        | (u64::from(event.port.0) << 48);
    words[2] = u64::from(event.bytes);
    let ports = |tuple: &Option<Tuple>| tuple.map_or(0, |t| (u64::from(t.sport) << 16) | u64::from(t.dport));
    words[3] = ports(&event.packet) | (ports(&event.rewritten) << 32);
    let addrs = |tuple: &Option<Tuple>| tuple.map_or(([0; 2], [0; 2]), |t| (t.src, t.dst));
    let ((src, dst), (new_src, new_dst)) = (addrs(&event.packet), addrs(&event.rewritten));
    if !v6 {
        words[4] = (src[1] << 32) | (dst[1] & 0xffff_ffff);
        words[5] = (new_src[1] << 32) | (new_dst[1] & 0xffff_ffff);
        return V4_USED;
    }
    for (at, addr) in [src, dst, new_src, new_dst].into_iter().enumerate() {
        words[4 + 2 * at..6 + 2 * at].copy_from_slice(&addr);
    }
    RECORD_WORDS
}

/// Reads an event; `None`: the words are none.
pub(super) fn decode(words: &Words) -> Option<Event> {
    let [kind, a, b, flags, proto, ..] = words[1].to_le_bytes();
    let flags = u64::from(flags);
    let v6 = flags & IS_V6 != 0;
    let tuple = |has: u64, ports: u32, src: AddrWords, dst: AddrWords| {
        let proto = (flags & has != 0).then(|| Proto::from_ip_number(proto)).flatten()?;
        Some(Tuple { src, dst, sport: (ports >> 16) as u16, dport: ports as u16, proto, v6 })
    };
    let [src, dst, new_src, new_dst]: [AddrWords; 4] = if v6 {
        std::array::from_fn(|at| [words[4 + 2 * at], words[5 + 2 * at]])
    } else {
        [[0, words[4] >> 32], [0, words[4] & 0xffff_ffff], [0, words[5] >> 32], [0, words[5] & 0xffff_ffff]]
    };
    Some(Event {
        at_ms: words[0],
        kind: kind_of(kind, a, b)?,
        packet: tuple(HAS_PACKET, words[3] as u32, src, dst),
        rewritten: tuple(HAS_REWRITTEN, (words[3] >> 32) as u32, new_src, new_dst),
        port: PortId((words[1] >> 48) as u16),
        bytes: words[2] as u32,
    })
}

const NEW: u8 = 1;
const CHANGED: u8 = 2;
const ENDED: u8 = 3;
const REJECTED: u8 = 4;
const DROPPED: u8 = 5;
const HELD: u8 = 6;
const KERNEL: u8 = 7;
const ICMP_ERROR: u8 = 8;
/// In a rejected packet's second detail: the answer was sent.
const SENT: u8 = 0x80;

fn kind_bytes(kind: EventKind) -> (u8, u8, u8) {
    match kind {
        EventKind::New(phase) => (NEW, phase as u8, 0),
        EventKind::Changed(phase) => (CHANGED, phase as u8, 0),
        EventKind::Ended(cause, phase) => (ENDED, phase as u8, cause as u8),
        EventKind::Rejected { reason, told, sent } => (REJECTED, reason as u8, told as u8 | if sent { SENT } else { 0 }),
        EventKind::Dropped(reason) => (DROPPED, reason as u8, 0),
        EventKind::Held(held_for) => (HELD, held_for as u8, 0),
        EventKind::Kernel(reason) => (KERNEL, reason as u8, 0),
        EventKind::IcmpError => (ICMP_ERROR, 0, 0),
    }
}

fn kind_of(kind: u8, a: u8, b: u8) -> Option<EventKind> {
    let phase = || PhaseKind::from_number(a);
    let reason = || Reason::ALL.get(usize::from(a)).copied();
    Some(match kind {
        NEW => EventKind::New(phase()?),
        CHANGED => EventKind::Changed(phase()?),
        ENDED => EventKind::Ended(EndCause::ALL.get(usize::from(b)).copied()?, phase()?),
        REJECTED => {
            let told = [Told::Icmp, Told::Reset, Told::Abort].get(usize::from(b & !SENT)).copied()?;
            EventKind::Rejected { reason: reason()?, told, sent: b & SENT != 0 }
        }
        DROPPED => EventKind::Dropped(reason()?),
        HELD => EventKind::Held([HeldFor::Neighbour, HeldFor::Fragments].get(usize::from(a)).copied()?),
        KERNEL => EventKind::Kernel(reason()?),
        ICMP_ERROR => EventKind::IcmpError,
        _ => return None,
    })
}
