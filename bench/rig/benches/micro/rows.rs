//! Rows of whole packets, and of the table alone next to the obvious alternatives.

use std::collections::HashMap;
use std::hint::black_box;
use std::rc::Rc;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use arrayvec::ArrayVec;
use dashmap::DashMap;
use nomagic_core::conntrack::{Conntrack, Flow, Phase, Prefetched};
use nomagic_core::frame::BATCH_MAX;
use nomagic_core::tuple::{Proto, Tuple, splitmix64};

use super::rig::{BACKENDS_PORT, CLIENTS, FRAMES, Filled, HEADER, PacketKind, Rig, eight_workers, run};

/// A measurement in rounds, in nanoseconds each.
pub trait Row {
    fn round(&mut self, rig: &mut Rig) -> f64;

    /// The floor with the same footprint, in the same round.
    fn floor(&mut self, _rig: &mut Rig) -> Option<f64> {
        None
    }
}

#[derive(Clone)]
pub enum Draw {
    Uniform,
    /// Ranks by Zipf's law with exponent 1, drawn beforehand.
    Zipf(Rc<Vec<u32>>),
}

impl Draw {
    pub fn zipf(flows: u32, random: &mut u64) -> Draw {
        let mut sums = Vec::with_capacity(flows as usize);
        let mut sum = 0.0;
        for rank in 1..=flows {
            sum += 1.0 / f64::from(rank);
            sums.push(sum);
        }
        let mut draw = || {
            let ticket = (splitmix64(random) >> 11) as f64 / (1u64 << 53) as f64 * sum;
            // Ranks are scattered over the table, as arrival order would.
            (sums.partition_point(|&s| s < ticket) as u32).wrapping_mul(0x9e37_79b1) % flows
        };
        Draw::Zipf(Rc::new((0..1 << 18).map(|_| draw()).collect()))
    }

    pub fn pick(&self, flows: u32, random: &mut u64) -> u32 {
        let r = splitmix64(random);
        match self {
            Draw::Uniform => nomagic_core::tuple::fast_range(r as u32, flows),
            Draw::Zipf(ranks) => ranks[r as usize % ranks.len()],
        }
    }
}

/// Packets of known connections, or rejected packets.
pub struct Known {
    pub filled: Rc<Filled>,
    pub draw: Draw,
    pub reply: bool,
}

/// Chunks of frames in a round.
const CHUNKS: usize = 16;

impl Row for Known {
    fn round(&mut self, rig: &mut Rig) -> f64 {
        let (mut ns, mut forwarded) = (0, 0);
        let f = &*self.filled;
        for _ in 0..CHUNKS {
            rig.write_headers(|random| {
                let flow = self.draw.pick(f.flows, random);
                if self.reply { f.reply_header(flow) } else { f.header(flow) }
            });
            rig.port = if self.reply { BACKENDS_PORT } else { CLIENTS };
            ns += rig.time_batches(FRAMES, |parts, batch| forwarded += run(f, parts, batch)).as_nanos();
            rig.port = CLIENTS;
        }
        let expected = if f.kind == PacketKind::Reject { 0 } else { CHUNKS * FRAMES };
        assert!(forwarded <= expected && forwarded >= expected - expected / 100, "{forwarded} of {expected} went on");
        ns as f64 / (CHUNKS * FRAMES) as f64
    }

    fn floor(&mut self, rig: &mut Rig) -> Option<f64> {
        // Only the used part of the table.
        let used = self.filled.words.len().min((self.filled.flows as usize * 16 * 160 / 128).max(8));
        let runs = (0..CHUNKS).map(|_| rig.floor(&self.filled.words[..used], self.filled.template()));
        Some(runs.sum::<f64>() / CHUNKS as f64)
    }
}

/// Packets that open connections until the table is half full; then it is emptied.
pub struct Opening {
    filled: Filled,
    next: u32,
}

impl Opening {
    pub fn new(kind: PacketKind) -> Opening {
        Opening { filled: Filled::empty(kind, 1 << 17), next: 0 }
    }
}

impl Row for Opening {
    fn round(&mut self, rig: &mut Rig) -> f64 {
        let (mut ns, mut forwarded) = (0, 0);
        let f = &self.filled;
        for _ in 0..CHUNKS {
            let next = &mut self.next;
            rig.write_headers(|_| {
                *next += 1;
                f.header(*next % (1 << 24))
            });
            ns += rig.time_batches(FRAMES, |parts, batch| forwarded += run(f, parts, batch)).as_nanos();
        }
        assert!(forwarded >= CHUNKS * FRAMES * 99 / 100, "{forwarded} were opened");
        empty(f);
        f.filter.clear();
        ns as f64 / (CHUNKS * FRAMES) as f64
    }

    fn floor(&mut self, rig: &mut Rig) -> Option<f64> {
        Some(rig.floor(self.filled.words, self.filled.template()))
    }
}

/// The same on a port whose queues belong to eight workers: the source port must bring answers back to this worker.
pub struct OpeningAtHome(pub Opening);

impl Row for OpeningAtHome {
    fn round(&mut self, rig: &mut Rig) -> f64 {
        rig.routes = std::mem::take(&mut rig.routes).with_rss([None, Some(Arc::new(eight_workers()))]);
        let ns = self.0.round(rig);
        rig.routes = std::mem::take(&mut rig.routes).with_rss([]);
        ns
    }

    fn floor(&mut self, rig: &mut Rig) -> Option<f64> {
        self.0.floor(rig)
    }
}

fn empty(filled: &Filled) {
    Conntrack::format(filled.words, filled.table.capacity(), 5, [0, 0]).expect("room for the table");
}

pub enum Lookup {
    Ours,
    /// `Mutex<HashMap>`, the simplest choice.
    Locked(Mutex<HashMap<Tuple, [u64; 8]>>),
    /// The concurrent map of most programs.
    Dash(DashMap<Tuple, [u64; 8]>),
}

impl Lookup {
    pub fn locked(flows: &Filled) -> Lookup {
        Lookup::Locked(Mutex::new((0..flows.flows).map(|i| (flows.tuple(i), [u64::from(i); 8])).collect()))
    }

    pub fn dash(flows: &Filled) -> Lookup {
        Lookup::Dash((0..flows.flows).map(|i| (flows.tuple(i), [u64::from(i); 8])).collect())
    }
}

pub struct Find {
    pub filled: Rc<Filled>,
    pub draw: Draw,
    pub miss: bool,
    pub table: Lookup,
}

impl Row for Find {
    fn round(&mut self, rig: &mut Rig) -> f64 {
        let f = &*self.filled;
        let (mut ns, mut found) = (0, 0);
        let mut keys = Vec::with_capacity(FRAMES);
        for _ in 0..CHUNKS {
            keys.clear();
            keys.extend((0..FRAMES).map(|_| {
                let mut key = f.tuple(self.draw.pick(f.flows, &mut rig.random));
                key.dport += u16::from(self.miss);
                key
            }));
            let start = Instant::now();
            for batch in keys.chunks_exact(BATCH_MAX) {
                found += match &self.table {
                    Lookup::Ours => ours(f.table, batch),
                    Lookup::Locked(map) => batch.iter().filter(|k| map.lock().expect("no panic").get(k).is_some_and(|v| v[1] > 0)).count(),
                    Lookup::Dash(map) => batch.iter().filter(|k| map.get(k).is_some_and(|v| v[1] > 0)).count(),
                };
            }
            ns += start.elapsed().as_nanos();
        }
        assert_eq!(found > 0, !self.miss, "found {found}");
        ns as f64 / (CHUNKS * FRAMES) as f64
    }
}

fn ours(table: Conntrack<'_>, batch: &[Tuple]) -> usize {
    let mut prefetched = [Prefetched::default(); BATCH_MAX];
    for (prefetched, key) in prefetched.iter_mut().zip(batch) {
        *prefetched = table.prefetch_index(table.hash(key), key.v6);
    }
    let mut second: ArrayVec<u8, BATCH_MAX> = ArrayVec::new();
    for (i, prefetched) in prefetched.iter_mut().enumerate() {
        if !table.prefetch_flow(prefetched) {
            second.push(i as u8);
        }
    }
    second.iter().for_each(|i| table.prefetch_second(&mut prefetched[usize::from(*i)]));
    let hits = batch.iter().zip(prefetched).filter(|(key, prefetched)| {
        table
            .lookup_prefetched(prefetched, &key.key(), key.v6)
            .or_else(|| table.lookup(key, prefetched.hash))
            .is_some_and(|hit| hit.new.sport > 0)
    });
    hits.count()
}

/// Connections created and removed in the table alone.
pub struct Turnover {
    pub filled: Filled,
    /// Measure removal instead of creation.
    pub expire: bool,
}

impl Row for Turnover {
    fn round(&mut self, _rig: &mut Rig) -> f64 {
        let (f, table) = (&self.filled, self.filled.table);
        let mut flows: Vec<Flow> = (0..f.flows).map(|i| flow(&f.tuple(i), i)).collect();
        let start = Instant::now();
        for flow in &mut flows {
            let key = flow.original();
            let phase = Phase::first(Proto::Udp, 0);
            let pending = table.reserve(flow, table.hash(&key), phase, 0, std::iter::once(key.sport)).expect("room");
            let _ = black_box(table.commit(pending));
        }
        let insert = start.elapsed();
        let start = Instant::now();
        let mut ended = 0u32;
        table.sweep(table.capacity(), 1, |_| true, |_, _, _| ended += 1);
        let expire = start.elapsed();
        assert_eq!(ended, f.flows);
        empty(f);
        let took = if self.expire { expire } else { insert };
        took.as_nanos() as f64 / f64::from(f.flows)
    }
}

fn flow(key: &Tuple, i: u32) -> Flow {
    Flow {
        proto: key.proto,
        v6: key.v6,
        announced: false,
        client: key.src,
        client_port: key.sport,
        service: key.dst,
        service_port: key.dport,
        backend: [0, 0xc0a8_000a + u64::from(i % 100)],
        backend_port: 8080,
        source: key.src,
        source_port: key.sport,
        stats: 0,
        counted: None,
    }
}

/// The floor of rows without a table.
pub fn small_floor(rig: &mut Rig, words: &[AtomicU64], header: &[u8; HEADER]) -> f64 {
    rig.floor(&words[..words.len().min(1 << 14)], header)
}
