//! Shared by all rows: frames that rotate as in a UMEM, Services, routes, tables full of connections, keys to draw.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use arrayvec::ArrayVec;
use etherparse::PacketBuilder;
use nomagic_core::conntrack::Conntrack;
use nomagic_core::counters::Counters;
use nomagic_core::filter::{ReplyFilter, ReplyKey};
use nomagic_core::frame::{BATCH_MAX, Frame, Outputs, PortId, Verdict};
use nomagic_core::pipeline::{Context, WorkerState, process};
use nomagic_core::reason::Reason;
use nomagic_core::routes::{Leg, Neighbour, Port, Route, RouteKind, Routes};
use nomagic_core::rss::{Kinds, Rss};
use nomagic_core::services::{Action, AddressKind, Backend, Frontend, Limits, Pool, ServicePort, Services, SnatRange};
use nomagic_core::tuple::{HashSeed, Proto, Tuple, splitmix64};
use nomagic_sys::memory;

/// Number of rotating frames; their headers are written before the clock starts, a chunk at a time.
pub const FRAMES: usize = 4_096;
pub const FRAME_BYTES: usize = 2_048;
const START: usize = 256;
/// Bytes of every packet; a header is a copy of them.
pub const HEADER: usize = 64;
const V4_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
const V4_REJECTED: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 9);
const V6_SERVICE: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 1);
const BACKENDS: u8 = 100;
/// The ports that lead to clients and to backends.
pub const CLIENTS: PortId = PortId(0);
pub const BACKENDS_PORT: PortId = PortId(1);

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum PacketKind {
    Dnat,
    DnatV6,
    Snat,
    Reject,
}

/// Packet memory and the rest of a worker.
pub struct Rig {
    buffers: Vec<u8>,
    pub routes: Routes,
    pub counters: Counters,
    pub worker: WorkerState,
    pub random: u64,
    /// The port that the frames come in by: clients' packets by the first, backends' by the second.
    pub port: PortId,
}

impl Rig {
    pub fn new() -> Rig {
        Rig {
            buffers: vec![0; FRAMES * FRAME_BYTES],
            routes: routes(),
            counters: Counters::new(256),
            worker: WorkerState::new(0),
            random: 1,
            port: CLIENTS,
        }
    }

    /// Writes a header into every frame.
    pub fn write_headers(&mut self, mut header: impl FnMut(&mut u64) -> [u8; HEADER]) {
        for buffer in self.buffers.chunks_exact_mut(FRAME_BYTES) {
            buffer[START..START + HEADER].copy_from_slice(&header(&mut self.random));
        }
    }

    /// A copy of the current headers.
    pub fn headers(&mut self) -> impl Iterator<Item = &mut [u8]> {
        self.buffers.chunks_exact_mut(FRAME_BYTES).map(|b| &mut b[START..START + HEADER])
    }

    /// Passes the first frames to `work`, a batch at a time, and returns the time.
    pub fn time_batches(&mut self, frames: usize, mut work: impl FnMut(&mut RigParts<'_>, &mut [Frame<'_>])) -> Duration {
        let port = self.port;
        let mut parts = RigParts { routes: &self.routes, counters: &self.counters, worker: &mut self.worker };
        let start = Instant::now();
        for chunk in self.buffers[..frames * FRAME_BYTES].chunks_mut(BATCH_MAX * FRAME_BYTES) {
            let mut batch: ArrayVec<Frame<'_>, BATCH_MAX> = ArrayVec::new();
            for buffer in chunk.chunks_exact_mut(FRAME_BYTES) {
                batch.push(Frame::new(buffer, START, HEADER, port, 0));
            }
            work(&mut parts, &mut batch);
        }
        start.elapsed()
    }

    /// The least that any table costs: one prefetched random line of its memory and one written header, in nanoseconds a packet.
    pub fn floor(&mut self, memory: &[AtomicU64], header: &[u8; HEADER]) -> f64 {
        let lines = (memory.len() / 8) as u32;
        let (mut random, mut sum) = (self.random, 0u64);
        let took = self.time_batches(FRAMES, |_, batch| {
            let mut places = [0usize; BATCH_MAX];
            for place in &mut places {
                let r = splitmix64(&mut random);
                *place = nomagic_core::tuple::fast_range(r as u32, lines) as usize * 8;
                nomagic_core::prefetch::prefetch(&memory[*place]);
            }
            for (frame, place) in batch.iter_mut().zip(places) {
                sum = sum.wrapping_add(memory[place].load(std::sync::atomic::Ordering::Relaxed));
                frame.head_mut().copy_from_slice(header);
            }
        });
        self.random = random;
        std::hint::black_box(sum);
        took.as_nanos() as f64 / FRAMES as f64
    }
}

/// A worker's state besides its frames.
pub struct RigParts<'p> {
    pub routes: &'p Routes,
    pub counters: &'p Counters,
    pub worker: &'p mut WorkerState,
}

/// Runs a batch through the pipeline. Returns the number of forwarded frames.
#[inline(always)]
pub fn run(filled: &Filled, parts: &mut RigParts<'_>, batch: &mut [Frame<'_>]) -> usize {
    let mut verdicts = ArrayVec::new();
    let mut ctx = Context {
        now_ms: 1_000,
        services: &filled.services,
        routes: parts.routes,
        table: filled.table,
        filter: Some(filled.filter),
        counters: parts.counters,
        worker: parts.worker,
    };
    process(&mut ctx, batch, &mut verdicts, &mut Outputs::default());
    verdicts.iter().filter(|v| matches!(v, Verdict::Forward(..))).count()
}

/// A connection table with `flows` confirmed connections, at a load of 75 % or less.
pub struct Filled {
    pub kind: PacketKind,
    pub flows: u32,
    pub words: &'static [AtomicU64],
    pub table: Conntrack<'static>,
    pub services: Services,
    pub filter: ReplyFilter<'static>,
    template: [u8; HEADER],
}

impl Filled {
    /// An empty table for so many.
    pub fn empty(kind: PacketKind, flows: u32) -> Filled {
        let capacity = (u64::from(flows) * 4 / 3).max(1_024) as u32;
        let words = memory::anonymous(Conntrack::words_needed(capacity)).expect("memory for the table");
        let table = Conntrack::format(words, capacity, 5, [0, 0]).expect("room for the table");
        let places = (flows as usize * 4).next_power_of_two().max(1_024);
        let [announced, owners] = [0, 1].map(|_| memory::anonymous32(places).expect("memory for the reply filter"));
        let filter = ReplyFilter::new(announced, owners, ReplyKey([3, 4])).expect("whole buckets");
        Filled { kind, flows, words, table, services: services(kind), filter, template: template(kind) }
    }

    /// A table full of connections that both sides have confirmed.
    pub fn new(kind: PacketKind, flows: u32, rig: &mut Rig) -> Filled {
        let filled = Filled::empty(kind, flows);
        if kind == PacketKind::Reject {
            return filled;
        }
        let mut opened = 0;
        while opened < flows {
            let frames = FRAMES.min((flows - opened) as usize);
            let first_packets = |rig: &mut Rig| {
                let mut next = opened;
                rig.write_headers(|_| {
                    next += 1;
                    filled.header(next - 1)
                });
            };
            let (mut forwarded, mut answered) = (0, 0);
            first_packets(rig);
            rig.time_batches(frames, |parts, batch| forwarded += run(&filled, parts, batch));
            rig.headers().for_each(turn_round);
            rig.port = BACKENDS_PORT;
            rig.time_batches(frames, |parts, batch| answered += run(&filled, parts, batch));
            rig.port = CLIENTS;
            // The client sends again: only now the connection is confirmed, and its packets change nothing any more.
            first_packets(rig);
            rig.time_batches(frames, |parts, batch| {
                run(&filled, parts, batch);
            });
            // A full bucket of the reply filter is a named drop.
            let lost = 2 * frames - forwarded - answered;
            assert!(lost * 1_000 < frames, "{lost} of {frames} connections were not opened");
            opened += frames as u32;
        }
        filled
    }

    /// The first packet of connection `i`.
    pub fn header(&self, i: u32) -> [u8; HEADER] {
        let mut header = self.template;
        let port = (1_024 + (i & 0x3fff) as u16).to_be_bytes();
        if self.kind == PacketKind::DnatV6 {
            header[34..38].copy_from_slice(&(i >> 14).to_be_bytes());
            header[54..56].copy_from_slice(&port);
        } else {
            header[26..30].copy_from_slice(&(0x0b00_0000 + (i >> 14)).to_be_bytes());
            header[34..36].copy_from_slice(&port);
        }
        header
    }

    /// The key of connection `i`.
    pub fn tuple(&self, i: u32) -> Tuple {
        let src = Ipv4Addr::from(0x0b00_0000 + (i >> 14));
        Tuple::new(Proto::Udp, src.into(), 1_024 + (i & 0x3fff) as u16, V4_SERVICE.into(), 80).expect("one family")
    }

    /// A packet of the backend of connection `i`.
    pub fn reply_header(&self, i: u32) -> [u8; HEADER] {
        let key = self.tuple(i);
        let mut header = self.template;
        if let Some(hit) = self.table.lookup(&key, self.table.hash(&key)) {
            let reply = hit.new.reversed();
            header[26..30].copy_from_slice(&(reply.src[1] as u32).to_be_bytes());
            header[30..34].copy_from_slice(&(reply.dst[1] as u32).to_be_bytes());
            header[34..36].copy_from_slice(&reply.sport.to_be_bytes());
            header[36..38].copy_from_slice(&reply.dport.to_be_bytes());
        }
        header
    }

    pub fn template(&self) -> &[u8; HEADER] {
        &self.template
    }
}

/// Turns a forwarded packet into its answer. Checksums are updated by difference, so they need not be right.
fn turn_round(header: &mut [u8]) {
    let (addr, len, ports) = if header[12..14] == [0x86, 0xdd] { (22, 16, 54) } else { (26, 4, 34) };
    let (src, dst) = header[addr..addr + 2 * len].split_at_mut(len);
    src.swap_with_slice(dst);
    let (sport, dport) = header[ports..ports + 4].split_at_mut(2);
    sport.swap_with_slice(dport);
}

fn services(kind: PacketKind) -> Services {
    let mut s = Services::empty(HashSeed::new(1));
    let pool = Arc::new(Pool::new(backends(kind == PacketKind::DnatV6, BACKENDS), &s.seed).expect("backends"));
    s.snat = SnatRange { v4: vec![[10, 0, 0, 1].into()], port_first: 1_024, port_last: 65_535, ..SnatRange::default() };
    let port = Arc::new(ServicePort {
        namespace: "bench".into(),
        name: "bench".into(),
        port_name: String::new(),
        port: 80,
        proto: Proto::Udp,
        affinity: None,
        limits: Limits::default(),
        refused: Arc::default(),
    });
    let forward = Action::Forward { pool, snat: kind == PacketKind::Snat };
    let addrs: [(IpAddr, Action); 3] =
        [(V4_SERVICE.into(), forward.clone()), (V6_SERVICE.into(), forward), (V4_REJECTED.into(), Action::Reject(Reason::NoEndpoints))];
    for (addr, action) in addrs {
        let (port, pod, node) = (port.clone(), action.clone(), action.clone());
        let frontend = Frontend { port, kind: AddressKind::ClusterIp, pod, node, external: action, source_ranges: None };
        s.add_frontend(addr, 80, Proto::Udp, frontend).expect("free");
    }
    s
}

pub fn backends(v6: bool, n: u8) -> Vec<Backend> {
    (0..n).map(|i| Backend { addr: backend(v6, i), port: 8080, weight: 1, stats: u32::from(i) }).collect()
}

fn backend(v6: bool, i: u8) -> IpAddr {
    if v6 { Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, 10 + u16::from(i)).into() } else { Ipv4Addr::new(192, 168, 0, 10 + i).into() }
}

/// A NIC's queues, one each for eight workers.
pub fn eight_workers() -> Rss {
    let key: [u8; 40] = std::array::from_fn(|i| (i as u8 + 1).wrapping_mul(167));
    let queues: Vec<u32> = (0..128).map(|entry| entry % 8).collect();
    let kinds = Kinds::default().with(Proto::Udp, false).with(Proto::Udp, true);
    Rss::new(&key, &queues, &[0, 1, 2, 3, 4, 5, 6, 7], kinds).expect("usable")
}

fn routes() -> Routes {
    let port = Port { mac: [2; 6], mtu: 1500, up: true };
    let leg = |port, gateway| RouteKind::Unicast(vec![Leg { port: Some(PortId(port)), captured: false, gateway, weight: 1, mtu: None }]);
    let mut neighbours: Vec<Neighbour> = [false, true]
        .into_iter()
        .flat_map(|v6| (0..BACKENDS).map(move |i| Neighbour { port: PortId(1), addr: backend(v6, i), mac: [2, 0, 0, 0, 1, i] }))
        .collect();
    let gateways: [IpAddr; 2] = [[10, 0, 0, 254].into(), Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1).into()];
    neighbours.extend(gateways.map(|addr| Neighbour { port: PortId(0), addr, mac: [6; 6] }));
    let routes = [
        ("192.168.0.0/16", leg(1, None)),
        ("fd01::/64", leg(1, None)),
        ("0.0.0.0/0", leg(0, Some(gateways[0]))),
        ("::/0", leg(0, Some(gateways[1]))),
    ];
    let routes = routes.map(|(prefix, kind)| Route { prefix: prefix.parse().expect("a prefix"), metric: 0, kind });
    Routes::build(1, vec![port.clone(), port], None, routes.into(), &neighbours).0
}

fn template(kind: PacketKind) -> [u8; HEADER] {
    let mut out = Vec::new();
    let ethernet = PacketBuilder::ethernet2([1; 6], [2; 6]);
    let udp = match kind {
        PacketKind::DnatV6 => {
            ethernet.ipv6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).octets(), V6_SERVICE.octets(), 64).udp(1_024, 80)
        }
        PacketKind::Reject => ethernet.ipv4([11, 0, 0, 1], V4_REJECTED.octets(), 64).udp(1_024, 80),
        PacketKind::Dnat | PacketKind::Snat => ethernet.ipv4([11, 0, 0, 1], V4_SERVICE.octets(), 64).udp(1_024, 80),
    };
    let headers = if kind == PacketKind::DnatV6 { 62 } else { 42 };
    udp.write(&mut out, &[7; HEADER][..HEADER - headers]).expect("fits");
    out.try_into().expect("64 bytes")
}
