//! What a packet costs in memory, without sockets: `make bench`.
//!
//! Rows are measured in turn, many rounds, medians are shown. Every row restores the headers it changed (a 128-byte copy from a template that
//! is in cache), and so does the floor: a prefetched random read of one 64-byte line in memory of the table's size plus that header write.

use std::hint::black_box;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use arrayvec::ArrayVec;
use etherparse::PacketBuilder;
use nomagic_core::conntrack::Conntrack;
use nomagic_core::counters::Counters;
use nomagic_core::filter::ReplyFilter;
use nomagic_core::frame::{BATCH_MAX, Frame, Outputs, PortId, Verdict};
use nomagic_core::pipeline::{Context, WorkerState, process};
use nomagic_core::prefetch::prefetch;
use nomagic_core::routes::{Leg, Neighbour, Port, Route, RouteKind, Routes};
use nomagic_core::services::{Action, AddressKind, Backend, Frontend, Pool, ServicePort, Services, SnatRange};
use nomagic_core::tuple::{HashSeed, Proto, splitmix64};

/// Frames that rotate, as in a UMEM.
const FRAMES: usize = 4_096;
const FRAME_BYTES: usize = 2_048;
const START: usize = 256;
const HEADER: usize = 64;
const ROUNDS: usize = 15;
const PACKETS_A_ROUND: usize = 1 << 17;
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
const REJECTED: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 9);

fn services(snat: bool) -> Services {
    let mut s = Services::empty(HashSeed::new(1));
    let backends = (0..100).map(|i| Backend { addr: [192, 168, 0, 10 + i].into(), port: 8080, weight: 1, stats: u32::from(i) }).collect();
    s.pools.push(Arc::new(Pool::new(backends, &s.seed).expect("backends")));
    s.snat = SnatRange { v4: Some([10, 0, 0, 1].into()), v6: None, port_first: 1_024, port_last: 65_535, ..Default::default() };
    s.ports.push(ServicePort { namespace: "bench".into(), name: "bench".into(), port_name: String::new(), port: 80, proto: Proto::Udp });
    for (addr, action) in
        [(SERVICE, Action::Forward { pool: 0, snat }), (REJECTED, Action::Reject(nomagic_core::reason::Reason::NoEndpoints))]
    {
        let frontend =
            Frontend { service_port: 0, kind: AddressKind::ClusterIp, pod: action, node: action, external: action, source_ranges: None };
        s.add_frontend(addr.into(), 80, Proto::Udp, frontend).expect("free");
    }
    s
}

fn routes() -> Routes {
    let port = Port { mac: [2; 6], mtu: 1500, up: true };
    let leg = |port| RouteKind::Unicast(vec![Leg { port: Some(PortId(port)), captured: false, gateway: None, weight: 1 }]);
    let neighbours: Vec<Neighbour> =
        (0..100).map(|i| Neighbour { port: PortId(1), addr: [192, 168, 0, 10 + i].into(), mac: [2, 0, 0, 0, 1, i] }).collect();
    let route = Route { prefix: "192.168.0.0/16".parse().expect("a prefix"), metric: 0, kind: leg(1) };
    Routes::build(1, vec![port.clone(), port], None, vec![route], &neighbours).0
}

/// The client of flow `i`.
fn client(i: u32) -> (Ipv4Addr, u16) {
    (Ipv4Addr::from(0x0b00_0000 + (i >> 14)), 1_024 + (i & 0x3fff) as u16)
}

fn template(to: Ipv4Addr) -> [u8; HEADER] {
    let mut out = Vec::new();
    PacketBuilder::ethernet2([1; 6], [2; 6])
        .ipv4([11, 0, 0, 1], to.octets(), 64)
        .udp(1_024, 80)
        .write(&mut out, &[7; HEADER - 42])
        .expect("fits");
    out[40..42].fill(0);
    let mut header = [0; HEADER];
    header.copy_from_slice(&out[..HEADER]);
    header
}

/// One row: a table, and packets for it.
struct Row {
    name: String,
    services: Services,
    table_words: Vec<AtomicU64>,
    capacity: u32,
    /// Flows that packets are drawn from; 0: every packet opens a new one.
    flows: u32,
    template: [u8; HEADER],
    next_new: u32,
    random: u64,
    ns: Vec<f64>,
}

struct Shared {
    frames: Vec<u8>,
    routes: Routes,
    counters: Counters,
    filter: Vec<AtomicU32>,
    worker: WorkerState,
}

impl Row {
    fn new(name: &str, snat: bool, flows: u32, capacity: u32, to: Ipv4Addr) -> Row {
        let table_words: Vec<AtomicU64> = (0..Conntrack::words_needed(capacity)).map(|_| AtomicU64::new(0)).collect();
        Conntrack::format(&table_words, capacity, 5, [0, 0]).expect("room");
        Row {
            name: name.into(),
            services: services(snat),
            table_words,
            capacity,
            flows,
            template: template(to),
            next_new: 0,
            random: 1,
            ns: Vec::new(),
        }
    }

    /// Runs packets through `process` in batches; nanoseconds a packet.
    fn round(&mut self, shared: &mut Shared, packets: usize, expect_forward: bool, flow_of: &mut dyn FnMut(&mut u64) -> u32) -> f64 {
        let table = Conntrack::attach(&self.table_words).expect("formatted");
        let filter = ReplyFilter::new(&shared.filter, 3);
        let mut verdicts = ArrayVec::new();
        let (mut at, mut forwarded) = (0, 0);
        let mut spare = vec![[0u8; FRAME_BYTES]; 4];
        let start = Instant::now();
        for _ in 0..packets / BATCH_MAX {
            let chunk = &mut shared.frames[at * FRAME_BYTES..(at + BATCH_MAX) * FRAME_BYTES];
            at = (at + BATCH_MAX) % FRAMES;
            let mut frames: ArrayVec<Frame<'_>, BATCH_MAX> = ArrayVec::new();
            for buffer in chunk.chunks_exact_mut(FRAME_BYTES) {
                write_header(&self.template, flow_of(&mut self.random), &mut buffer[START..START + HEADER]);
                frames.push(Frame::new(buffer, START, HEADER, PortId(0), 0));
            }
            let mut out = Outputs::default();
            out.spare.extend(spare.iter_mut().map(|s| Frame::new(s, 0, 0, PortId(0), 0)));
            let mut ctx = Context {
                now_ms: 1_000,
                services: &self.services,
                routes: &shared.routes,
                table,
                filter,
                counters: &shared.counters,
                worker: &mut shared.worker,
            };
            process(&mut ctx, &mut frames, &mut verdicts, &mut out);
            forwarded += verdicts.iter().filter(|v| matches!(v, Verdict::Forward(..))).count();
        }
        let ns = start.elapsed().as_nanos() as f64 / packets as f64;
        assert_eq!(forwarded > 0, expect_forward, "{}: {forwarded} of {packets} forwarded", self.name);
        ns
    }

    fn measure(&mut self, shared: &mut Shared) {
        let flows = self.flows;
        let reject = self.template[30..34] == REJECTED.octets();
        let ns = if flows == 0 {
            // Each round opens as many new flows as half the table holds, then empties it.
            let packets = (self.capacity / 2) as usize / BATCH_MAX * BATCH_MAX;
            let base = std::cell::Cell::new(self.next_new);
            let ns = self.round(shared, packets, true, &mut |_| base.replace(base.get() + 1));
            self.next_new = base.get() % (1 << 26);
            Conntrack::format(&self.table_words, self.capacity, 5, [0, 0]).expect("room");
            shared.filter.iter().for_each(|w| w.store(0, Ordering::Relaxed));
            ns
        } else {
            self.round(shared, PACKETS_A_ROUND, !reject, &mut |r| ((splitmix64(r) >> 32) as u32) % flows)
        };
        self.ns.push(ns);
    }

    fn fill(&mut self, shared: &mut Shared) {
        let next = std::cell::Cell::new(0);
        let packets = (self.flows as usize).next_multiple_of(BATCH_MAX);
        let flows = self.flows;
        self.round(shared, packets, true, &mut |_| next.replace(next.get() + 1) % flows);
    }
}

/// Restores a frame's header for flow `i`. The IPv4 checksum is left as the template's: it is carried by difference, not verified.
fn write_header(template: &[u8; HEADER], i: u32, out: &mut [u8]) {
    let (addr, port) = client(i);
    out.copy_from_slice(template);
    out[26..30].copy_from_slice(&addr.octets());
    out[34..36].copy_from_slice(&port.to_be_bytes());
}

/// The least that any table can cost: one prefetched random line of memory, one header written.
fn floor(memory: &[AtomicU64], frames: &mut [u8], header: &[u8; HEADER]) -> f64 {
    let lines = memory.len() / 8;
    let (mut random, mut at, mut sum) = (9u64, 0, 0u64);
    let start = Instant::now();
    for _ in 0..PACKETS_A_ROUND / BATCH_MAX {
        let mut places = [0usize; BATCH_MAX];
        for (i, place) in places.iter_mut().enumerate() {
            let r = splitmix64(&mut random);
            *place = (r as usize % lines) * 8;
            let frame = at + i;
            write_header(header, (r >> 40) as u32, &mut frames[frame * FRAME_BYTES + START..][..HEADER]);
            prefetch(&memory[*place]);
        }
        at = (at + BATCH_MAX) % FRAMES;
        sum += places.iter().map(|&p| memory[p].load(Ordering::Relaxed)).sum::<u64>();
    }
    black_box(sum);
    start.elapsed().as_nanos() as f64 / PACKETS_A_ROUND as f64
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

fn main() {
    // cargo passes --bench; anything else is a filter on the rows' names.
    let filter = std::env::args().skip(1).find(|a| !a.starts_with("--")).unwrap_or_default();
    let mut shared = Shared {
        frames: vec![0; FRAMES * FRAME_BYTES],
        routes: routes(),
        counters: Counters::new(128),
        filter: (0..1 << 21).map(|_| AtomicU32::new(0)).collect(),
        worker: WorkerState::new(0),
    };
    let mut rows = vec![
        Row::new("known flow, DNAT, 1 k flows", false, 1_000, 1 << 16, SERVICE),
        Row::new("known flow, DNAT, 64 k flows", false, 65_536, 1 << 17, SERVICE),
        Row::new("known flow, DNAT, 1 M flows", false, 1 << 20, 1_500_000, SERVICE),
        Row::new("known flow, SNAT, 64 k flows", true, 65_536, 1 << 17, SERVICE),
        Row::new("new flow, DNAT", false, 0, 1 << 17, SERVICE),
        Row::new("new flow, SNAT", true, 0, 1 << 17, SERVICE),
        Row::new("reject", false, 1_000, 1 << 10, REJECTED),
    ];
    rows.retain(|r| r.name.contains(&filter));
    for row in &mut rows {
        let reject = row.template[30..34] == REJECTED.octets();
        if row.flows > 0 && !reject {
            row.fill(&mut shared);
        }
    }
    let mut floors: Vec<Vec<f64>> = vec![Vec::new(); rows.len()];
    for round in 0..ROUNDS {
        eprint!("\rround {} of {ROUNDS}", round + 1);
        for (row, floors) in rows.iter_mut().zip(&mut floors) {
            row.measure(&mut shared);
            floors.push(floor(&row.table_words, &mut shared.frames, &row.template));
        }
    }
    eprintln!();
    println!("{:<32} {:>10} {:>10} {:>8}", "per packet", "ns", "floor ns", "ratio");
    for (row, floors) in rows.iter().zip(&floors) {
        let (ns, floor) = (median(&row.ns), median(floors));
        println!("{:<32} {ns:>10.1} {floor:>10.1} {:>8.2}", row.name, ns / floor);
    }
}
