//! One flow in 128 bytes: sixteen words. Every packet needs the first eight; the other eight hold IPv6 addresses.
//!
//! ```text
//! line 0   state    generation << 32 | counted client << 8 | FREE, PENDING, LIVE, DYING
//!          seen     milliseconds
//!          original L4 delta << 48 | client port << 32 | service port << 16 | protocol << 8 | ingress << 1 | family
//!          reply    L3 delta << 48 | backend port << 32 | source port << 16 | protocol << 8 | ingress << 1 | family
//!          v4 a     client << 32 | service
//!          v4 b     backend << 32 | source
//!          hops     original 26 bits | slot generation 6 bits | reply 26 bits | slot generation 6 bits
//!          target   statistics place | phase << 32 | announced << 40 | created << 41 | slot generation << 52
//! line 1   client, service, backend, source: two words each (IPv6)
//! ```
//!
//! A direction's word is selected by index, without a branch. A rewritten packet has the other direction's key, with source and destination
//! swapped. Ports, protocol and family of a key are laid out as in [`Tuple::meta`], so they compare in one step.
//!
//! The ingress ports, `hops` and `target` change while the flow is live. An ingress port is changed by compare-and-swap of its key's word, so
//! only if the slot still holds a flow with this key. The other two words carry the slot's generation: the compare-and-swap of a worker that was
//! interrupted fails once the slot holds another flow. A late write to `seen` does no harm.

use super::clients::{CountedClient, counted_of};
use super::direction::Direction;
use super::phase::{Phase, STREAM_AGE_MS};
use crate::checksum::{addr_sum, delta};
use crate::sync::{AtomicU64, Ordering::Relaxed, overwrite};
use crate::tuple::{AddrWords, INGRESS_MASK, Key, META_BITS, Proto, Tuple, meta_parts};

/// Words of a flow.
pub(super) const FLOW_WORDS: usize = 16;
pub(super) const STATE: usize = 0;
pub(super) const SEEN: usize = 1;
/// Ports, protocol and family of the original key; the reply's follow. While a slot is free it holds the free list's link.
pub(super) const KEYS: usize = 2;
const V4_A: usize = 4;
const V4_B: usize = 5;
pub(super) const HOPS: usize = 6;
pub(super) const TARGET: usize = 7;
const V6: usize = 8;
/// Where a key's word carries a checksum delta, see [`crate::tuple::META_BITS`].
const DELTA_AT: u32 = META_BITS;
const ANNOUNCED: u64 = 1 << 40;
const PHASE_AT: u32 = 32;
const PHASE_MASK: u64 = 0xff << PHASE_AT;
const CREATED_AT: u32 = 41;
const CREATED_MASK: u64 = (1 << 11) - 1;
const GENERATION_AT: u32 = 52;
/// Resolution of a flow's creation time, milliseconds.
const CREATED_STEP_MS: u64 = 125;

/// A flow: its endpoints before and after the rewrite.
///
/// Original packets: `client -> service` become `source -> backend`; replies the other way. Without SNAT, `source` is the client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flow {
    /// Protocol.
    pub proto: Proto,
    /// True for IPv6.
    pub v6: bool,
    /// Whether the reply is announced to the XDP filter and must be withdrawn at the end.
    pub announced: bool,
    /// The client's address.
    pub client: AddrWords,
    /// The client's port.
    pub client_port: u16,
    /// The Service's address, to which the client sends.
    pub service: AddrWords,
    /// The Service's port.
    pub service_port: u16,
    /// The backend's address.
    pub backend: AddrWords,
    /// The backend's port.
    pub backend_port: u16,
    /// The address that the backend sees as its peer.
    pub source: AddrWords,
    /// The port that the backend sees.
    pub source_port: u16,
    /// Place of its statistics, see [`crate::services::Backend::stats`].
    pub stats: u32,
    /// Its client, if its Service limits the flows of each client: see [`Clients`](super::Clients).
    pub counted: Option<CountedClient>,
}

impl Flow {
    /// The client's packets as they arrive.
    pub fn original(&self) -> Tuple {
        self.tuple(self.client, self.client_port, self.service, self.service_port)
    }

    /// The backend's packets as they arrive.
    pub fn reply(&self) -> Tuple {
        self.tuple(self.backend, self.backend_port, self.source, self.source_port)
    }

    /// Whether the backend sees another source address than the client's.
    pub fn replaces_source(&self) -> bool {
        self.source != self.client
    }

    /// Whether the client addresses the endpoint itself: no rule for a Service captures its packets, so they are announced as the replies are.
    pub fn is_direct(&self) -> bool {
        self.service_port == self.backend_port && self.service == self.backend
    }

    #[inline]
    fn tuple(&self, src: AddrWords, sport: u16, dst: AddrWords, dport: u16) -> Tuple {
        Tuple { src, dst, sport, dport, proto: self.proto, v6: self.v6 }
    }

    /// Checksum deltas of an original packet's rewrite, for the IPv4 and the transport header. Replies need the complements.
    pub fn deltas(&self) -> (u16, u16) {
        let (old, new) = (addr_sum(self.client) + addr_sum(self.service), addr_sum(self.source) + addr_sum(self.backend));
        let old_ports = u64::from(self.client_port) + u64::from(self.service_port);
        let new_ports = u64::from(self.source_port) + u64::from(self.backend_port);
        (delta(old, new), delta(old + old_ports, new + new_ports))
    }
}

/// The checksum deltas of one direction, ready to apply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Deltas {
    /// For the IPv4 header.
    pub l3: u16,
    /// For the transport header.
    pub l4: u16,
}

/// The rewrite of a flow's packet.
pub(super) struct Rewritten {
    pub new: Tuple,
    /// Both ports as they are in a packet.
    pub new_ports: u32,
    pub deltas: Deltas,
}

/// The `target` word.
#[inline]
fn target_word(flow: &Flow, phase: Phase, created: u64, generation: u64) -> u64 {
    let announced = if flow.announced { ANNOUNCED } else { 0 };
    u64::from(flow.stats) | (u64::from(phase.bits()) << PHASE_AT) | announced | (created << CREATED_AT) | (generation << GENERATION_AT)
}

/// A creation time as stored in `target`: the low bits of its step number, which wrap every four minutes.
#[inline(always)]
pub(super) fn created_at(now_ms: u64) -> u64 {
    (now_ms / CREATED_STEP_MS) & CREATED_MASK
}

/// The time of creation in a `target` word.
pub(super) fn created_of(target: u64) -> u64 {
    (target >> CREATED_AT) & CREATED_MASK
}

/// Whether a flow is more than [`STREAM_AGE_MS`] old, at most a step late. After a wrap, a flow that was unanswered for minutes may look
/// new for two seconds.
pub(super) fn is_old(target: u64, now_ms: u64) -> bool {
    created_at(now_ms).wrapping_sub(created_of(target)) & CREATED_MASK > STREAM_AGE_MS / CREATED_STEP_MS
}

/// A flow's record holds its time of creation modulo this.
pub const AGE_MODULUS_MS: u64 = (CREATED_MASK + 1) * CREATED_STEP_MS;

/// The age of the flow of a `target` word, modulo [`AGE_MODULUS_MS`].
pub(super) fn age_remainder_ms(target: u64, now_ms: u64) -> u64 {
    (created_at(now_ms).wrapping_sub(created_of(target)) & CREATED_MASK) * CREATED_STEP_MS
}

/// One generation in a `target` word.
pub(super) const TARGET_GENERATION_ONE: u64 = 1 << GENERATION_AT;

/// A `target` word with another phase.
pub(super) fn with_phase(target: u64, phase: Phase) -> u64 {
    (target & !PHASE_MASK) | (u64::from(phase.bits()) << PHASE_AT)
}

/// A `target` word with another time of creation.
pub(super) fn with_created(target: u64, created: u64) -> u64 {
    (target & !(CREATED_MASK << CREATED_AT)) | (created << CREATED_AT)
}

/// The phase in a `target` word.
#[inline(always)]
pub(super) fn phase_of(target: u64) -> Phase {
    Phase::from_bits((target >> PHASE_AT) as u8)
}

/// A direction's part of its half of `hops`: 14 bits of the next hop, 12 of the route generation.
pub(super) const HOP_MASK: u64 = (1 << 26) - 1;
/// Both.
pub(super) const HOPS_MASK: u64 = HOP_MASK | (HOP_MASK << 32);

/// The `hops` word of a flow without cached next hops.
#[inline]
pub(super) fn hops_empty(generation: u64) -> u64 {
    ((generation & 0x3f) << 26) | ((generation & 0xfc0) << 52)
}

/// A flow's words.
#[derive(Clone, Copy)]
pub(super) struct Slot<'r>(pub(super) &'r [AtomicU64; FLOW_WORDS]);

impl Slot<'_> {
    #[inline]
    pub(super) fn word(&self, i: usize) -> u64 {
        self.0[i].load(Relaxed)
    }

    /// Writes everything but the state and the ports. The caller must own the slot (pending).
    pub(super) fn write(&self, flow: &Flow, phase: Phase, seen_ms: u64, created: u64) {
        let put = |i: usize, v: u64| self.0[i].store(v, Relaxed);
        put(SEEN, seen_ms);
        let generation = self.word(STATE) >> 32;
        overwrite(&self.0[HOPS], hops_empty(generation));
        overwrite(&self.0[TARGET], target_word(flow, phase, created, generation));
        put(V4_A, (flow.client[1] << 32) | (flow.service[1] & 0xffff_ffff));
        put(V4_B, (flow.backend[1] << 32) | (flow.source[1] & 0xffff_ffff));
        if flow.v6 {
            for (i, addr) in [flow.client, flow.service, flow.backend, flow.source].into_iter().enumerate() {
                put(V6 + 2 * i, addr[0]);
                put(V6 + 2 * i + 1, addr[1]);
            }
        }
    }

    /// Writes the ports, once for each source port tried. Together with [`Slot::write`] this completes the keys.
    pub(super) fn write_ports(&self, flow: &Flow) {
        let (l3, l4) = flow.deltas();
        self.0[KEYS].store(flow.original().meta() | (u64::from(l4) << DELTA_AT), Relaxed);
        self.0[KEYS + 1].store(flow.reply().meta() | (u64::from(l3) << DELTA_AT), Relaxed);
    }

    /// Whether these words can be a flow: both keys have the same family and the same protocol, one that Services can name.
    pub(super) fn is_flow(&self) -> bool {
        let [kind, other] = [KEYS, KEYS + 1].map(|at| (self.word(at) & !INGRESS_MASK) as u16);
        kind == other && Proto::from_ip_number((kind >> 8) as u8).is_some()
    }

    /// The flow as it is in memory; only meaningful while the state does not change (the caller checks).
    pub(super) fn read(&self) -> Flow {
        let (original, reply) = (meta_parts(self.word(KEYS)), meta_parts(self.word(KEYS + 1)));
        let addrs: [AddrWords; 4] = if original.v6 {
            std::array::from_fn(|i| self.v6_addr(i))
        } else {
            let (a, b) = (self.word(V4_A), self.word(V4_B));
            [[0, a >> 32], [0, a & 0xffff_ffff], [0, b >> 32], [0, b & 0xffff_ffff]]
        };
        let target = self.word(TARGET);
        Flow {
            proto: original.proto,
            v6: original.v6,
            announced: target & ANNOUNCED != 0,
            client: addrs[0],
            client_port: original.sport,
            service: addrs[1],
            service_port: original.dport,
            backend: addrs[2],
            backend_port: reply.sport,
            source: addrs[3],
            source_port: reply.dport,
            stats: target as u32,
            counted: counted_of(self.word(STATE)),
        }
    }

    /// The rewrite of a packet of this family and direction. Reads no more words than needed.
    #[inline(always)]
    pub(super) fn rewritten(&self, v6: bool, direction: Direction) -> Rewritten {
        let (original, reply) = (self.word(KEYS), self.word(KEYS + 1));
        let other = 1 - direction as usize;
        let (src, dst) = if v6 {
            let base = V6 + 4 * other;
            ([self.word(base + 2), self.word(base + 3)], [self.word(base), self.word(base + 1)])
        } else {
            let word = self.word(V4_A + other);
            ([0, word & 0xffff_ffff], [0, word >> 32])
        };
        let becomes = std::hint::select_unpredictable(direction == Direction::Original, reply, original);
        let new_ports = ((becomes >> 16) as u32).rotate_left(16);
        // A reply's deltas are the complements.
        let flip = (direction as u16).wrapping_neg();
        let deltas = Deltas { l3: (reply >> DELTA_AT) as u16 ^ flip, l4: (original >> DELTA_AT) as u16 ^ flip };
        let (sport, dport) = ((new_ports >> 16) as u16, new_ports as u16);
        Rewritten { new: Tuple { src, dst, sport, dport, v6, ..meta_parts(becomes) }, new_ports, deltas }
    }

    pub(super) fn is_v6(&self) -> bool {
        self.word(KEYS) & 1 == 1
    }

    #[inline]
    fn v6_addr(&self, i: usize) -> AddrWords {
        [self.word(V6 + 2 * i), self.word(V6 + 2 * i + 1)]
    }

    /// Whether this flow has this key in this direction. `v6` is what the key says.
    #[inline(always)]
    pub(super) fn has_key(&self, key: &Key, v6: bool, direction: Direction) -> bool {
        self.matches(key, v6, direction, !INGRESS_MASK)
    }

    /// The same for a key that carries an [`ingress_mark`](crate::tuple::ingress_mark): the direction's packets were last seen to come in by that port.
    #[inline(always)]
    pub(super) fn has_marked_key(&self, key: &Key, v6: bool, direction: Direction) -> bool {
        self.matches(key, v6, direction, !0)
    }

    #[inline(always)]
    fn matches(&self, key: &Key, v6: bool, direction: Direction, mask: u64) -> bool {
        let at = direction as usize;
        // The delta is shifted out.
        let meta = ((self.word(KEYS + at) ^ key.meta) & mask) << (64 - META_BITS);
        let addrs = if v6 {
            let base = V6 + 4 * at;
            (0..4).fold(0, |d, i| d | (self.word(base + i) ^ key.addrs[i]))
        } else {
            self.word(V4_A + at) ^ key.addrs[0]
        };
        meta | addrs == 0
    }
}
