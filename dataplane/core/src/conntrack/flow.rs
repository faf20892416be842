//! One connection in 128 bytes: sixteen words, the first eight for every packet, the other eight for IPv6 addresses.
//!
//! ```text
//! line 0   state    generation << 32 | FREE, PENDING, LIVE, DYING
//!          seen     milliseconds
//!          ports    original key's (client << 16 | service) | reply key's (backend << 16 | source) << 32
//!          meta     protocol | family << 8 | announced << 9 | L3 delta << 16 | L4 delta << 32
//!          v4 a     client << 32 | service
//!          v4 b     backend << 32 | source
//!          hops     original 26 bits | reply 26 bits | slot generation 12 bits
//!          target   statistics place | phase << 32 | slot generation << 40
//! line 1   client, service, backend, source: two words each (IPv6)
//! ```
//!
//! A direction's part of a word is found by a shift, not by a branch. What a packet becomes is the other direction's key, turned round.
//!
//! `hops` and `target` change while the flow is live. They carry the slot's generation, so that a worker which was interrupted while the
//! slot went to another connection cannot change that one: its compare-and-swap fails. A late write to `seen` does no harm.

use super::phase::Phase;
use crate::checksum::{addr_sum, delta};
use crate::sync::{AtomicU64, Ordering::Relaxed};
use crate::tuple::{AddrWords, Proto, Tuple};

/// Words of a flow.
pub(super) const FLOW_WORDS: usize = 16;
pub(super) const STATE: usize = 0;
pub(super) const SEEN: usize = 1;
pub(super) const PORTS: usize = 2;
const META: usize = 3;
const V4_A: usize = 4;
const V4_B: usize = 5;
pub(super) const HOPS: usize = 6;
pub(super) const TARGET: usize = 7;
const V6: usize = 8;
const META_V6: u64 = 1 << 8;
const META_ANNOUNCED: u64 = 1 << 9;

/// Which way a packet of a connection goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// Client to Service.
    Original = 0,
    /// Backend to client.
    Reply = 1,
}

/// A connection: who talks to whom, and what that becomes.
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
    /// The Service's address that the client knows.
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

    /// Whether the backend sees another address than the client's.
    pub fn replaces_source(&self) -> bool {
        self.source != self.client
    }

    #[inline]
    fn tuple(&self, src: AddrWords, sport: u16, dst: AddrWords, dport: u16) -> Tuple {
        Tuple { src, dst, sport, dport, proto: self.proto, v6: self.v6 }
    }

    /// What the rewrite of an original packet adds to the IPv4 header's and to the transport's checksum. Replies: the complements.
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

/// The `target` word.
#[inline]
pub(super) fn target_word(stats: u32, phase: Phase, generation: u64) -> u64 {
    u64::from(stats) | (u64::from(phase.bits()) << 32) | (generation << 40)
}

/// Bits of a direction's half of `hops`: 14 of the next hop, 12 of the route generation.
pub(super) const HOP_BITS: u32 = 26;

/// The `hops` word of a flow that has resolved nothing yet.
pub(super) fn hops_empty(generation: u64) -> u64 {
    generation << (2 * HOP_BITS)
}

/// A flow's words.
#[derive(Clone, Copy)]
pub(super) struct Slot<'r>(pub(super) &'r [AtomicU64; FLOW_WORDS]);

impl Slot<'_> {
    #[inline]
    pub(super) fn word(&self, i: usize) -> u64 {
        self.0[i].load(Relaxed)
    }

    /// Writes everything but the state, the ports and the deltas. The slot must be the caller's alone (pending).
    pub(super) fn write(&self, flow: &Flow, phase: Phase, now_ms: u64) {
        let put = |i: usize, v: u64| self.0[i].store(v, Relaxed);
        put(SEEN, now_ms);
        let generation = self.word(STATE) >> 32;
        put(HOPS, hops_empty(generation));
        put(TARGET, target_word(flow.stats, phase, generation));
        put(V4_A, (flow.client[1] << 32) | (flow.service[1] & 0xffff_ffff));
        put(V4_B, (flow.backend[1] << 32) | (flow.source[1] & 0xffff_ffff));
        if flow.v6 {
            for (i, addr) in [flow.client, flow.service, flow.backend, flow.source].into_iter().enumerate() {
                put(V6 + 2 * i, addr[0]);
                put(V6 + 2 * i + 1, addr[1]);
            }
        }
        self.write_meta(flow, 0, 0);
    }

    /// Writes the ports, again when another source port is tried: with these and what [`Slot::write`] has written the keys are complete.
    pub(super) fn write_ports(&self, flow: &Flow) {
        let word = u64::from(pair(flow.client_port, flow.service_port)) | (u64::from(pair(flow.backend_port, flow.source_port)) << 32);
        self.0[PORTS].store(word, Relaxed);
    }

    /// Writes what the rewrite needs beside the keys, when the ports are settled.
    pub(super) fn write_deltas(&self, flow: &Flow) {
        let (l3, l4) = flow.deltas();
        self.write_meta(flow, l3, l4);
    }

    fn write_meta(&self, flow: &Flow, l3: u16, l4: u16) {
        let v6 = if flow.v6 { META_V6 } else { 0 };
        let announced = if flow.announced { META_ANNOUNCED } else { 0 };
        let flags = u64::from(flow.proto as u8) | v6 | announced;
        self.0[META].store(flags | (u64::from(l3) << 16) | (u64::from(l4) << 32), Relaxed);
    }

    /// The flow as it is in memory; only meaningful while the state does not change (the caller checks).
    pub(super) fn read(&self) -> Flow {
        let meta = self.word(META);
        let ports = self.word(PORTS);
        let v6 = meta & META_V6 != 0;
        let addrs: [AddrWords; 4] = if v6 {
            std::array::from_fn(|i| self.v6_addr(i))
        } else {
            let (a, b) = (self.word(V4_A), self.word(V4_B));
            [[0, a >> 32], [0, a & 0xffff_ffff], [0, b >> 32], [0, b & 0xffff_ffff]]
        };
        Flow {
            proto: Proto::from_ip_number(meta as u8).unwrap_or(Proto::Tcp),
            v6,
            announced: meta & META_ANNOUNCED != 0,
            client: addrs[0],
            client_port: (ports >> 16) as u16,
            service: addrs[1],
            service_port: ports as u16,
            backend: addrs[2],
            backend_port: (ports >> 48) as u16,
            source: addrs[3],
            source_port: (ports >> 32) as u16,
            stats: self.word(TARGET) as u32,
        }
    }

    /// What a packet with this key is to become, and its checksum deltas: no more words than that takes.
    #[inline(always)]
    pub(super) fn rewritten(&self, key: &Tuple, direction: Direction) -> (Tuple, Deltas) {
        let (meta, ports) = (self.word(META), self.word(PORTS));
        let other = 1 - direction as usize;
        let (src, dst) = if key.v6 {
            let base = V6 + 4 * other;
            ([self.word(base + 2), self.word(base + 3)], [self.word(base), self.word(base + 1)])
        } else {
            let word = self.word(V4_A + other);
            ([0, word & 0xffff_ffff], [0, word >> 32])
        };
        let ports = (ports >> (32 * other)) as u32;
        let (sport, dport) = (ports as u16, (ports >> 16) as u16);
        // A reply's deltas are the complements.
        let flip = (direction as u16).wrapping_neg();
        let deltas = Deltas { l3: (meta >> 16) as u16 ^ flip, l4: (meta >> 32) as u16 ^ flip };
        (Tuple { src, dst, sport, dport, ..*key }, deltas)
    }

    #[inline]
    fn v6_addr(&self, i: usize) -> AddrWords {
        [self.word(V6 + 2 * i), self.word(V6 + 2 * i + 1)]
    }

    /// Whether this flow has the tuple as its key in this direction.
    #[inline(always)]
    pub(super) fn has_key(&self, tuple: &Tuple, direction: Direction) -> bool {
        let at = direction as usize;
        let kind = self.word(META) & (META_V6 | 0xff) ^ (tuple.proto as u64 | (u64::from(tuple.v6) << 8));
        let ports = (self.word(PORTS) >> (32 * at)) as u32 ^ pair(tuple.sport, tuple.dport);
        let addrs = if tuple.v6 {
            let base = V6 + 4 * at;
            let words = [tuple.src[0], tuple.src[1], tuple.dst[0], tuple.dst[1]];
            (0..4).fold(0, |d, i| d | (self.word(base + i) ^ words[i]))
        } else {
            self.word(V4_A + at) ^ ((tuple.src[1] << 32) | (tuple.dst[1] & 0xffff_ffff))
        };
        kind | u64::from(ports) | addrs == 0
    }
}

/// Two ports as they are in a packet.
#[inline(always)]
fn pair(first: u16, second: u16) -> u32 {
    (u32::from(first) << 16) | u32::from(second)
}
