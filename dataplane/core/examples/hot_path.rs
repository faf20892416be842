//! Ordinary packets of known connections and nothing else, or first packets of new ones, a given number of batches: for counting instructions.
//!
//! The difference between two runs is what the batches cost; setting up costs the same in both.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64};

use arrayvec::ArrayVec;
use nomagic_core::conntrack::Conntrack;
use nomagic_core::counters::Counters;
use nomagic_core::filter::{ReplyFilter, ReplyKey};
use nomagic_core::frame::{BATCH_MAX, Frame, Outputs, PortId, Verdict};
use nomagic_core::pipeline::{Context, WorkerState, process};
use nomagic_core::routes::{Leg, Neighbour, Port, Route, RouteKind, Routes};
use nomagic_core::services::{Action, AddressKind, Backend, Frontend, Limits, Pool, ServicePort, Services};
use nomagic_core::tuple::{HashSeed, Proto};

const FLOWS: usize = 1_024;
const FRAME_BYTES: usize = 2_048;
const START: usize = 256;
/// Words of a cache line pair: where a region must begin.
const ALIGN: usize = 16;

fn main() {
    let mut args = std::env::args().skip(1);
    let batches: usize = args.next().and_then(|n| n.parse().ok()).expect("usage: hot_path BATCHES [v6] [new]");
    let (v6, new) = args.fold((false, false), |(v6, new), a| (v6 | (a == "v6"), new | (a == "new")));
    let (services, routes, counters) = (services(), routes(), Counters::new(16));
    let flows = if new { FLOWS.max(batches * BATCH_MAX) } else { FLOWS };
    let words: Vec<AtomicU64> = (0..Conntrack::words_needed(2 * flows as u32) + ALIGN).map(|_| AtomicU64::new(0)).collect();
    let skip = words.as_ptr().align_offset(ALIGN * 8);
    let table = Conntrack::format(&words[skip..], 2 * flows as u32, 1, [0, 0]).expect("room");
    let [announced, owners] = [0, 1].map(|_| (0..(4 * flows).next_power_of_two()).map(|_| AtomicU32::new(0)).collect::<Vec<_>>());
    let mut worker = WorkerState::new(0);
    let mut frames = vec![0; BATCH_MAX * FRAME_BYTES];
    let mut run = |first: usize, now_ms: u64| {
        for (i, buffer) in frames.chunks_exact_mut(FRAME_BYTES).enumerate() {
            let header = packet((first + i) % flows, v6);
            buffer[START..START + header.len()].copy_from_slice(&header);
        }
        let mut batch: ArrayVec<Frame<'_>, BATCH_MAX> =
            frames.chunks_exact_mut(FRAME_BYTES).map(|b| Frame::new(b, START, 64, PortId(0), 0)).collect();
        let mut verdicts = ArrayVec::new();
        let (services, routes, counters, worker) = (&services, &routes, &counters, &mut worker);
        let filter = ReplyFilter::new(&announced, &owners, ReplyKey([1, 2]));
        let mut ctx = Context { now_ms, services, routes, table, filter, counters, worker };
        process(&mut ctx, &mut batch, &mut verdicts, &mut Outputs::default());
        assert!(verdicts.iter().all(|v| matches!(v, Verdict::Forward(..))), "{verdicts:?}");
    };
    if !new {
        (0..FLOWS / BATCH_MAX).for_each(|batch| run(batch * BATCH_MAX, 1_000));
    }
    (0..batches).for_each(|batch| run(batch * BATCH_MAX, 1_001));
}

fn services() -> Services {
    let mut s = Services::empty(HashSeed::new(1));
    let backend = |addr: &str, stats| Backend { addr: addr.parse().expect("an address"), port: 8080, weight: 1, stats };
    let port = Arc::new(ServicePort {
        namespace: "n".into(),
        name: "s".into(),
        port_name: String::new(),
        port: 80,
        proto: Proto::Udp,
        affinity: None,
        limits: Limits::default(),
        refused: Arc::default(),
    });
    for (addr, backends) in [("10.96.0.1", ["192.168.0.1", "192.168.0.2"]), ("fd00:96::1", ["fd01::1", "fd01::2"])] {
        let backends = vec![backend(backends[0], 1), backend(backends[1], 2)];
        let action = Action::Forward { pool: Arc::new(Pool::new(backends, &s.seed).expect("backends")), snat: false };
        let (port, pod, node) = (port.clone(), action.clone(), action.clone());
        let frontend = Frontend { port, kind: AddressKind::ClusterIp, pod, node, external: action, source_ranges: None };
        s.add_frontend(addr.parse().expect("an address"), 80, Proto::Udp, frontend).expect("free");
    }
    s
}

fn routes() -> Routes {
    let port = Port { mac: [2; 6], mtu: 1500, up: true };
    let neighbour = |addr: &str| Neighbour { port: PortId(1), addr: addr.parse().expect("an address"), mac: [4; 6] };
    let neighbours = ["192.168.0.1", "192.168.0.2", "fd01::1", "fd01::2"].map(neighbour);
    let leg = Leg { port: Some(PortId(1)), captured: false, gateway: None, weight: 1, mtu: None };
    let route = |prefix: &str| Route { prefix: prefix.parse().expect("a prefix"), metric: 0, kind: RouteKind::Unicast(vec![leg.clone()]) };
    Routes::build(1, vec![port.clone(), port], None, vec![route("192.168.0.0/16"), route("fd01::/64")], &neighbours).0
}

fn packet(flow: usize, v6: bool) -> Vec<u8> {
    let (client, port) = (1 + flow / FLOWS, 1_024 + (flow % FLOWS) as u16);
    let mut out = Vec::with_capacity(64);
    let ethernet = etherparse::PacketBuilder::ethernet2([1; 6], [2; 6]);
    let udp = if v6 {
        let service: std::net::Ipv6Addr = "fd00:96::1".parse().expect("an address");
        ethernet.ipv6(std::net::Ipv6Addr::from((0xfd02_u128 << 112) + client as u128).octets(), service.octets(), 64)
    } else {
        ethernet.ipv4([11, 0, (client >> 8) as u8, client as u8], Ipv4Addr::new(10, 96, 0, 1).octets(), 64)
    };
    let payload = if v6 { 2 } else { 22 };
    udp.udp(port, 80).write(&mut out, &[7; 22][..payload]).expect("fits");
    out
}
