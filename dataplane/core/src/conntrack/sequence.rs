//! The sequence numbers that a TCP flow has seen: what a spoofer cannot know.
//!
//! One word for each flow, of two numbers. The word is written on the slow path only, and, for backends' segments, when the fast path writes
//! the last-seen time:
//!
//! ```text
//! SynReceived, PickedUpReply   first number that the backend sent << 32 | number after its last one
//! other phases                 next number of the client << 32 | next number of the backend
//! ```
//!
//! In the first case a client proves that it is there by an acknowledgment within that range. In the second, an RST or a FIN must fit the
//! numbers. They are taken from backends' segments, which arrive by the port that leads to the backend: a client's own claims could be
//! forged. They lag behind by what passes within [`SEEN_RESOLUTION_MS`](super::SEEN_RESOLUTION_MS) on the fast path, so an RST or a FIN that does not fit
//! may still be real: see [`Phase::after`]. ICMP errors are compared as well, but change nothing.

use super::flow::STATE;
use super::phase::{Phase, PhaseKind};
use super::region::Region;
use super::{Direction, Hit};
use crate::parse::TcpNumbers;
use crate::sync::Ordering::{Acquire, Relaxed};
use crate::tuple::Proto;
use crate::wire::tcp;

/// A client's RST or FIN fits within this many bytes after the last acknowledged one: one guess in 65,536.
const CLIENT_WINDOW: u32 = 1 << 16;
/// The same for a backend's RST. Backends send more than clients between two updates, and their segments are harder to forge.
const BACKEND_WINDOW: u32 = 1 << 20;

/// A segment that an ICMP error quotes lies at most this many bytes before the last number that was noted: more are not under way
/// unacknowledged, as hosts limit their windows.
const UNACKNOWLEDGED: u32 = 1 << 26;
/// And less than this many after it: 16 Gb/s for the 256 ms between two notes. One guess in seven fits; the host that gets the error compares
/// exactly.
const AHEAD: u32 = 1 << 29;

/// The next sequence numbers of both sides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NextNumbers {
    /// The client's.
    pub client: u32,
    /// The backend's.
    pub backend: u32,
}

/// Both numbers of a flow's word.
#[derive(Clone, Copy)]
struct Word {
    upper: u32,
    lower: u32,
}

impl Word {
    fn of(bits: u64) -> Word {
        Word { upper: (bits >> 32) as u32, lower: bits as u32 }
    }

    /// Whether a number is in the range of what the backend sent.
    fn covers(self, number: u32) -> bool {
        number.wrapping_sub(self.upper) <= self.lower.wrapping_sub(self.upper)
    }

    fn bits(self) -> u64 {
        (u64::from(self.upper) << 32) | u64::from(self.lower)
    }
}

/// Whether the word holds the range of numbers that the backend sent.
fn holds_range(phase: Phase) -> bool {
    matches!(phase.kind(), PhaseKind::SynReceived | PhaseKind::PickedUpReply)
}

/// The later of two numbers, modulo 2^32 (RFC 9293, section 3.4).
fn later(a: u32, b: u32) -> u32 {
    if b.wrapping_sub(a).cast_signed() > 0 { b } else { a }
}

/// The sequence numbers of a table's flows: see [`Conntrack::sequences`](super::Conntrack::sequences).
#[derive(Clone, Copy)]
pub struct Sequences<'t, 'r> {
    pub(super) region: &'t Region<'r>,
}

impl Sequences<'_, '_> {
    /// The phase after a packet. `numbers` are those of a TCP segment, else `None`.
    pub fn phase_after(&self, hit: &Hit, tcp_flags: u8, numbers: Option<&TcpNumbers>, now_ms: u64) -> Phase {
        let proven = match numbers {
            Some(numbers) => proves(Word::of(self.region.sequence(hit.slot).load(Relaxed)), hit, tcp_flags, numbers),
            // SCTP has verification tags, which nothing here looks at; for UDP nothing can be proven.
            None => hit.direction == Direction::Reply,
        };
        hit.phase_by_age(now_ms).after(hit.direction, tcp_flags, proven)
    }

    /// Remembers the numbers of a segment that led a flow to `phase`, unless nothing changes and the last ones are not older than
    /// `resolution_ms`: the fast path takes such a segment without a look at its numbers.
    pub fn remember(&self, hit: &Hit, tcp_flags: u8, phase: Phase, numbers: &TcpNumbers, (now_ms, resolution_ms): (u64, u64)) {
        let unchanged = phase == hit.phase && hit.phase.settled(hit.direction);
        if unchanged && now_ms.wrapping_sub(hit.seen_ms) < resolution_ms {
            return;
        }
        self.change(hit.slot, hit.state, |word| next(word, hit, tcp_flags, phase, numbers));
    }

    /// Remembers the numbers of an established flow's reply; the flow by [`Hit::place`].
    pub fn refresh(&self, slot: u32, state: u64, numbers: &TcpNumbers) {
        self.change(slot, state, |word| next_numbers(word, numbers));
    }

    /// The next sequence numbers of an established TCP connection, or of a half-closed one.
    pub(super) fn established(&self, hit: &Hit) -> Option<NextNumbers> {
        let open = matches!(hit.phase.kind(), PhaseKind::Established | PhaseKind::CloseWait) && !hit.phase.is_doubtful();
        // Most flows that end are not open: their word stays out of the cache.
        (open && hit.new.proto == Proto::Tcp).then(|| {
            let Word { upper: client, lower: backend } = Word::of(self.region.sequence(hit.slot).load(Relaxed));
            NextNumbers { client, backend }
        })
    }

    /// Whether the connection may have sent a segment with this number, against `hit`'s direction: false only where the word tells otherwise
    /// (RFC 5927, section 4.1).
    pub fn may_have_sent(&self, hit: &Hit, sequence: u32) -> bool {
        use PhaseKind::*;
        let word = Word::of(self.region.sequence(hit.slot).load(Relaxed));
        let by_backend = hit.direction == Direction::Original;
        let near = |next: u32| sequence.wrapping_sub(next.wrapping_sub(UNACKNOWLEDGED)) < UNACKNOWLEDGED + AHEAD;
        match hit.phase.kind() {
            _ if hit.new.proto != Proto::Tcp => true,
            // `upper` is the number after the SYN.
            SynReceived | PickedUpReply if by_backend => {
                let first = word.upper.wrapping_sub(1);
                sequence.wrapping_sub(first) <= word.lower.wrapping_sub(first)
            }
            Established | FinWait | CloseWait | LastAck | TimeWait if by_backend => near(word.lower),
            // After a FIN that did not fit, `upper` is what that claimed.
            Established | FinWait | CloseWait | LastAck | TimeWait => hit.phase.is_doubtful() || near(word.upper),
            _ => true,
        }
    }

    fn change(&self, slot: u32, state: u64, next: impl FnOnce(Word) -> Word) {
        let word = self.region.sequence(slot);
        let old = word.load(Relaxed);
        let new = next(Word::of(old)).bits();
        // Checked after the word was read: if the slot holds another flow by now, that one has changed the word, or will set it anew.
        if new != old && self.region.slot(slot).0[STATE].load(Acquire) == state {
            let _ = word.compare_exchange(old, new, Relaxed, Relaxed);
        }
    }
}

/// Whether a segment's numbers prove what its flags say. See the module's documentation.
fn proves(word: Word, hit: &Hit, tcp_flags: u8, numbers: &TcpNumbers) -> bool {
    let Word { upper, lower } = word;
    let fits = |number: u32, next: u32, window: u32| number.wrapping_sub(next) < window;
    match hit.direction {
        Direction::Original if holds_range(hit.phase) => numbers.acknowledgment.is_some_and(|number| word.covers(number)),
        // Of a FIN the last number counts: a retransmission may hold more data than the last segment did.
        Direction::Original if tcp_flags & tcp::FIN != 0 => fits(numbers.end.wrapping_sub(1), upper, CLIENT_WINDOW),
        Direction::Original if tcp_flags & tcp::RST != 0 => fits(numbers.sequence, upper, CLIENT_WINDOW),
        Direction::Original => !hit.phase.is_doubtful() || numbers.end == upper,
        Direction::Reply if tcp_flags & tcp::RST != 0 => holds_range(hit.phase) || fits(numbers.sequence, lower, BACKEND_WINDOW),
        // After a FIN that did not fit, `upper` is its end.
        Direction::Reply => !hit.phase.is_doubtful() || numbers.acknowledgment == Some(upper),
    }
}

/// The word after a segment.
fn next(word: Word, hit: &Hit, tcp_flags: u8, phase: Phase, numbers: &TcpNumbers) -> Word {
    let Word { upper, lower } = word;
    let (from_client, opens) = (hit.direction == Direction::Original, tcp_flags & tcp::SYN != 0);
    match (holds_range(phase), holds_range(hit.phase)) {
        (true, _) if from_client => word,
        (true, true) if numbers.end == upper => word,
        (true, _) if opens => Word { upper: numbers.sequence.wrapping_add(1), lower: numbers.end },
        // More of what the backend sends. A segment elsewhere replaces the range: backends with SYN cookies may answer two SYNs with two
        // numbers, and the client has confirmed the other one.
        (true, true) if word.covers(numbers.sequence) => Word { upper, lower: later(lower, numbers.end) },
        (true, _) => Word { upper: numbers.sequence, lower: numbers.end },
        (false, true) if from_client => Word { upper: numbers.end, lower },
        (false, true) => next_numbers(word, numbers),
        // A FIN that does not fit: its end, for the backend's acknowledgment.
        _ if from_client => {
            if phase.is_doubtful() && tcp_flags & tcp::FIN != 0 {
                Word { upper: numbers.end, lower }
            } else {
                word
            }
        }
        _ if tcp_flags & tcp::RST != 0 || phase.is_doubtful() => word,
        _ => next_numbers(word, numbers),
    }
}

/// The next numbers of both sides, by a backend's segment.
fn next_numbers(word: Word, numbers: &TcpNumbers) -> Word {
    Word { upper: numbers.acknowledgment.unwrap_or(word.upper), lower: numbers.end }
}
