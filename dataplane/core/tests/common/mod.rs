//! A small world for packet tests: a Service table, routes, a connection table, and etherparse as the second opinion on every frame.
#![allow(dead_code)]

pub mod harness;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
#[cfg(not(loom))]
use std::sync::atomic::AtomicU64;

use arrayvec::ArrayVec;
use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
#[cfg(loom)]
use loom::sync::atomic::AtomicU64;
use nomagic_core::conntrack::Conntrack;
use nomagic_core::counters::{Counters, FrameCounts};
use nomagic_core::filter::ReplyFilter;
use nomagic_core::frame::{Frame, Outputs, PortId, Verdict};
use nomagic_core::pipeline::{Context, WorkerState, process, sweep};
use nomagic_core::routes::{InternalPort, Leg, Neighbour, Port, Route, RouteKind, Routes};
use nomagic_core::services::{Action, AddressKind, Backend, Frontend, Pool, ServicePort, Services, SnatRange};
use nomagic_core::tuple::{HashSeed, Proto, Tuple};

/// Port of the clients, of the pods, and the internal one.
pub const CLIENTS: PortId = PortId(0);
pub const PODS: PortId = PortId(1);
pub const INTERNAL: PortId = PortId(2);
pub const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 1, 1];
pub const PORT_MACS: [[u8; 6]; 3] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 3]];
pub const KERNEL_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

pub fn ip(s: &str) -> IpAddr {
    s.parse().unwrap()
}

pub fn backend(addr: &str, port: u16) -> Backend {
    Backend { addr: ip(addr), port, weight: 1, stats: 1 }
}

pub fn route(prefix: &str, kind: RouteKind) -> Route {
    Route { prefix: prefix.parse().unwrap(), metric: 0, kind }
}

pub fn on_link(port: PortId) -> RouteKind {
    RouteKind::Unicast(vec![Leg { port: Some(port), captured: false, gateway: None, weight: 1 }])
}

/// A route to pods on this node, behind interfaces that are redirect ports (or not).
pub fn local_pods(captured: bool) -> RouteKind {
    RouteKind::Unicast(vec![Leg { port: None, captured, gateway: None, weight: 1 }])
}

/// MAC address of a neighbour of the test world.
pub fn mac_of(addr: &str) -> [u8; 6] {
    match ip(addr) {
        IpAddr::V4(a) => [2, 4, a.octets()[0], a.octets()[1], a.octets()[2], a.octets()[3]],
        IpAddr::V6(a) => [2, 6, a.octets()[12], a.octets()[13], a.octets()[14], a.octets()[15]],
    }
}

pub const NEIGHBOURS: [(PortId, &str); 9] = [
    (CLIENTS, "10.0.0.2"),
    (CLIENTS, "fd00:a::2"),
    (PODS, "192.168.1.1"),
    (PODS, "192.168.1.2"),
    (PODS, "192.168.1.3"),
    (PODS, "192.168.1.4"),
    (PODS, "fd00:b::1"),
    (PODS, "fd00:b::2"),
    (CLIENTS, "10.0.0.254"),
];

/// Routes of the test world: clients in 10.0.0.0/24 and fd00:a::/64, pods in 192.168.0.0/16 and fd00:b::/64, pods on this node in
/// 172.31.0.0/16 and fd00:c::/64; what is in 172.16.0.0/12 lies behind the kernel and out of the filter's sight.
pub fn routes(generation: u64) -> Routes {
    let ports = PORT_MACS.iter().map(|&mac| Port { mac, mtu: 1500, up: true }).collect();
    let elsewhere = RouteKind::Unicast(vec![Leg { port: None, captured: false, gateway: None, weight: 1 }]);
    let routes = vec![
        route("10.0.0.0/24", on_link(CLIENTS)),
        route("fd00:a::/64", on_link(CLIENTS)),
        route("192.168.0.0/16", on_link(PODS)),
        route("fd00:b::/64", on_link(PODS)),
        route("192.168.77.0/24", RouteKind::Unreachable),
        route("172.16.0.0/12", elsewhere),
        route("172.31.0.0/16", local_pods(true)),
        route("fd00:c::/64", local_pods(true)),
        route("10.0.0.1/32", RouteKind::Local),
        route(
            "203.0.113.0/24",
            RouteKind::Unicast(vec![Leg { port: Some(CLIENTS), captured: false, gateway: Some(ip("10.0.0.254")), weight: 1 }]),
        ),
    ];
    let neighbours: Vec<Neighbour> = NEIGHBOURS.iter().map(|&(port, addr)| Neighbour { port, addr: ip(addr), mac: mac_of(addr) }).collect();
    let internal = Some(InternalPort { port: INTERNAL, kernel_mac: KERNEL_MAC });
    Routes::build(generation, ports, internal, routes, &neighbours).0
}

/// Adds a Service port with one address. `snat`: for every client.
pub fn add_service(services: &mut Services, addr: &str, port: u16, proto: Proto, backends: &[Backend], snat: bool) {
    let pool = Arc::new(Pool::new(backends.to_vec(), &services.seed).expect("backends"));
    add_action(services, addr, port, proto, Action::Forward { pool, snat });
}

/// Adds a Service port whose clients all meet the same action.
pub fn add_action(services: &mut Services, addr: &str, port: u16, proto: Proto, action: Action) {
    let name = format!("s{}", services.ports);
    services.ports += 1;
    let owner = Arc::new(ServicePort { namespace: "test".into(), name, port_name: String::new(), port, proto, affinity: None });
    let (pod, node) = (action.clone(), action.clone());
    let frontend = Frontend { port: owner, kind: AddressKind::ClusterIp, pod, node, external: action, source_ranges: None };
    services.cluster_ips.insert(ip(addr), 1);
    services.add_frontend(ip(addr), port, proto, frontend).expect("free address");
}

/// Changes all addresses of a table.
pub fn change(services: &mut Services, mut change: impl FnMut(&mut Frontend)) {
    let all: Vec<_> = services.frontends().map(|(addr, port, proto, f)| (addr, port, proto, f.clone())).collect();
    for (addr, port, proto, mut frontend) in all {
        change(&mut frontend);
        services.set_frontend(addr, port, proto, Some(frontend));
    }
}

/// Gives all pools other backends.
pub fn change_backends(services: &mut Services, mut change_pool: impl FnMut(&[Backend]) -> Vec<Backend>) {
    let seed = services.seed;
    change(services, |frontend| {
        for action in [&mut frontend.pod, &mut frontend.node, &mut frontend.external] {
            if let Action::Forward { pool, .. } = action {
                *pool = Arc::new(Pool::new(change_pool(&pool.backends), &seed).expect("backends"));
            }
        }
    });
}

/// The Services of the test world: 10.96.0.1 DNAT only, 10.96.0.2 with SNAT, and the same in fd00:96::.
pub fn services() -> Services {
    let mut s = Services::empty(HashSeed::new(1));
    s.snat = SnatRange {
        v4: Some(ip("10.0.0.1")),
        v6: Some(ip("fd00:a::1")),
        port_first: 61_000,
        port_last: 61_999,
        share_percent: 0,
        internal_v4: Some(ip("169.254.78.78")),
        internal_v6: Some(ip("fd4e:6f6d:6167::78")),
    };
    s.service_cidrs = vec!["10.96.0.0/16".parse().unwrap()];
    let v4: Vec<Backend> = (1..=3).map(|i| backend(&format!("192.168.1.{i}"), 8080)).collect();
    let v6: Vec<Backend> = (1..=2).map(|i| backend(&format!("fd00:b::{i}"), 8080)).collect();
    for proto in [Proto::Tcp, Proto::Udp, Proto::Sctp] {
        for (snat, last) in [(false, 1), (true, 2)] {
            add_service(&mut s, &format!("10.96.0.{last}"), 80, proto, &v4, snat);
            add_service(&mut s, &format!("fd00:96::{last}"), 80, proto, &v6, snat);
        }
    }
    s
}

/// Everything `process` needs.
pub struct World {
    pub now_ms: u64,
    pub services: Services,
    pub routes: Routes,
    pub counters: Counters,
    pub worker: WorkerState,
    pub table_words: Vec<AtomicU64>,
    pub filter_words: Vec<AtomicU32>,
    pub capacity: u32,
    formatted: bool,
}

/// What became of one frame.
pub struct Done {
    pub verdict: Verdict,
    /// The frame afterwards.
    pub bytes: Vec<u8>,
    /// Frames that were made.
    pub made: Vec<Vec<u8>>,
}

impl World {
    pub fn new(services: Services, capacity: u32) -> World {
        World {
            now_ms: 1_000,
            services,
            routes: routes(1),
            counters: Counters::new(8),
            worker: WorkerState::new(0),
            table_words: (0..Conntrack::words_needed(capacity)).map(|_| AtomicU64::new(0)).collect(),
            filter_words: (0..1024).map(|_| AtomicU32::new(0)).collect(),
            capacity,
            formatted: false,
        }
    }

    /// Runs `f` with a context over this world.
    pub fn with<R>(&mut self, f: impl FnOnce(&mut Context<'_>) -> R) -> R {
        // The table lives in its words: formatted once, viewed anew each time through the same header.
        let table = if self.formatted {
            Conntrack::attach(&self.table_words).expect("formatted before")
        } else {
            self.formatted = true;
            Conntrack::format(&self.table_words, self.capacity, 99, [0, 0]).expect("room")
        };
        let mut ctx = Context {
            now_ms: self.now_ms,
            services: &self.services,
            routes: &self.routes,
            table,
            filter: ReplyFilter::new(&self.filter_words, 7),
            counters: &self.counters,
            worker: &mut self.worker,
        };
        f(&mut ctx)
    }

    /// What became of all frames; the reasons say the same.
    pub fn reconciled(&self) -> FrameCounts {
        let (frames, reasons) = (self.counters.frames.read(), self.counters.reasons.read());
        assert_eq!(frames.kernel.packets, reasons.kernel.total(), "left to the kernel: {reasons:?}");
        assert_eq!(frames.dropped.packets, reasons.drop.total(), "dropped: {reasons:?}");
        frames
    }

    pub fn run(&mut self, port: PortId, bytes: &[u8]) -> Done {
        self.run_segments(port, bytes, &[])
    }

    pub fn run_segments(&mut self, port: PortId, bytes: &[u8], tail: &[&[u8]]) -> Done {
        let (mut buf, mut spare_buf) = (vec![0u8; 4096], vec![0u8; 2048]);
        buf[256..256 + bytes.len()].copy_from_slice(bytes);
        let mut verdicts = ArrayVec::new();
        let mut out = Outputs::default();
        out.spare.push(Frame::new(&mut spare_buf, 0, 0, PortId(0), 0));
        let mut frames = [Frame::new(&mut buf, 256, bytes.len(), port, 1).with_tail(tail)];
        self.with(|ctx| process(ctx, &mut frames, &mut verdicts, &mut out));
        let bytes = frames[0].head().to_vec();
        let made = out.made.iter().map(|(f, ..)| f.head().to_vec()).collect();
        Done { verdict: verdicts[0], bytes, made }
    }

    pub fn sweep_all(&mut self) {
        self.with(|ctx| sweep(ctx, u32::MAX));
    }

    pub fn live(&mut self) -> u64 {
        self.with(|ctx| ctx.table.live())
    }

    pub fn announced(&self) -> usize {
        ReplyFilter::new(&self.filter_words, 7).unwrap().len()
    }
}

/// A packet as a test describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spec {
    pub proto: Proto,
    pub src: SocketAddr,
    pub dst: SocketAddr,
    pub flags: u8,
    pub ttl: u8,
    pub payload: usize,
}

pub const SYN: u8 = 2;
pub const SYN_ACK: u8 = 0x12;
pub const ACK: u8 = 0x10;
pub const FIN_ACK: u8 = 0x11;
pub const RST: u8 = 4;

/// `spec("tcp", "10.0.0.2:1000", "10.96.0.1:80", SYN)`.
pub fn spec(proto: &str, src: &str, dst: &str, flags: u8) -> Spec {
    let proto = if proto == "tcp" { Proto::Tcp } else { Proto::Udp };
    Spec { proto, src: src.parse().unwrap(), dst: dst.parse().unwrap(), flags, ttl: 64, payload: 32 }
}

impl Spec {
    pub fn tuple(&self) -> Tuple {
        Tuple::new(self.proto, self.src.ip(), self.src.port(), self.dst.ip(), self.dst.port()).unwrap()
    }

    /// The frame, built by etherparse with complete checksums.
    pub fn frame(&self) -> Vec<u8> {
        let b = PacketBuilder::ethernet2(CLIENT_MAC, PORT_MACS[0]);
        let b = match (self.src.ip(), self.dst.ip()) {
            (IpAddr::V4(s), IpAddr::V4(d)) => b.ipv4(s.octets(), d.octets(), self.ttl),
            (IpAddr::V6(s), IpAddr::V6(d)) => b.ipv6(s.octets(), d.octets(), self.ttl),
            _ => panic!("mixed families"),
        };
        let payload: Vec<u8> = (0..self.payload).map(|i| i as u8).collect();
        let mut out = Vec::new();
        if self.proto == Proto::Udp {
            b.udp(self.src.port(), self.dst.port()).write(&mut out, &payload).unwrap();
            return out;
        }
        let mut tcp = b.tcp(self.src.port(), self.dst.port(), 7, 1024);
        for (bit, set) in [(SYN, 0), (ACK, 1), (1, 2), (RST, 3)] {
            if self.flags & bit != 0 {
                tcp = match set {
                    0 => tcp.syn(),
                    1 => tcp.ack(9),
                    2 => tcp.fin(),
                    _ => tcp.rst(),
                };
            }
        }
        tcp.write(&mut out, &payload).unwrap();
        out
    }
}

/// What etherparse reads in a frame; checksums are recomputed in full and must hold.
#[derive(Debug, PartialEq, Eq)]
pub struct Seen {
    pub src_mac: [u8; 6],
    pub dst_mac: [u8; 6],
    pub tuple: Tuple,
    pub ttl: u8,
    pub payload: Vec<u8>,
}

/// Reads a frame with etherparse, or says what is wrong with it.
pub fn read(bytes: &[u8]) -> Result<Seen, String> {
    let p = SlicedPacket::from_ethernet(bytes).map_err(|e| e.to_string())?;
    let mac = |i: usize| -> [u8; 6] { bytes[i..i + 6].try_into().unwrap() };
    let (src, dst, ttl): (IpAddr, IpAddr, u8) = match p.net.as_ref().ok_or("no IP")? {
        NetSlice::Ipv4(v4) => {
            let h = v4.header().to_header();
            if h.calc_header_checksum() != h.header_checksum {
                return Err(format!("IPv4 header checksum {:04x}, should be {:04x}", h.header_checksum, h.calc_header_checksum()));
            }
            (h.source.into(), h.destination.into(), h.time_to_live)
        }
        NetSlice::Ipv6(v6) => {
            let h = v6.header().to_header();
            (h.source.into(), h.destination.into(), h.hop_limit)
        }
        _ => return Err("no IP".into()),
    };
    let (proto, sport, dport, field, expected, payload) = match p.transport.as_ref().ok_or("no transport")? {
        TransportSlice::Tcp(t) => {
            let (h, payload) = (t.to_header(), t.payload());
            let expected = match (src, dst) {
                (IpAddr::V4(s), IpAddr::V4(d)) => h.calc_checksum_ipv4_raw(s.octets(), d.octets(), payload),
                (IpAddr::V6(s), IpAddr::V6(d)) => h.calc_checksum_ipv6_raw(s.octets(), d.octets(), payload),
                _ => unreachable!(),
            };
            (Proto::Tcp, h.source_port, h.destination_port, h.checksum, expected.map_err(|e| e.to_string())?, payload.to_vec())
        }
        TransportSlice::Udp(u) => {
            let (h, payload) = (u.to_header(), u.payload());
            let expected = match (src, dst) {
                (IpAddr::V4(s), IpAddr::V4(d)) => h.calc_checksum_ipv4_raw(s.octets(), d.octets(), payload),
                (IpAddr::V6(s), IpAddr::V6(d)) => h.calc_checksum_ipv6_raw(s.octets(), d.octets(), payload),
                _ => unreachable!(),
            };
            let expected = if h.checksum == 0 && src.is_ipv4() { 0 } else { expected.map_err(|e| e.to_string())? };
            (Proto::Udp, h.source_port, h.destination_port, h.checksum, expected, payload.to_vec())
        }
        _ => return Err("another transport".into()),
    };
    if field != expected {
        return Err(format!("{proto} checksum {field:04x}, should be {expected:04x}"));
    }
    let tuple = Tuple::new(proto, src, sport, dst, dport).ok_or("mixed families")?;
    Ok(Seen { src_mac: mac(6), dst_mac: mac(0), tuple, ttl, payload })
}

/// Puts the sum of the pseudo header where the checksum belongs, as a local sender with checksum offload does.
pub fn make_partial(frame: &mut [u8], spec: &Spec) {
    let (l4, at) = (if spec.src.is_ipv4() { 34 } else { 54 }, if spec.proto == Proto::Tcp { 16 } else { 6 });
    let l4_len = (frame.len() - l4) as u16;
    let t = spec.tuple();
    let sum = nomagic_core::checksum::fold(nomagic_core::checksum::pseudo_sum(t.src, t.dst, t.proto as u8, l4_len));
    frame[l4 + at..l4 + at + 2].copy_from_slice(&sum.to_be_bytes());
}

/// An SCTP packet over IPv4 whose first chunk is of this type, with a bit-by-bit CRC32c: a second opinion on the one that is used.
pub fn sctp_frame(src: &str, dst: &str, chunk: u8, payload: usize) -> Vec<u8> {
    let (src, dst): (SocketAddr, SocketAddr) = (src.parse().unwrap(), dst.parse().unwrap());
    let (IpAddr::V4(s), IpAddr::V4(d)) = (src.ip(), dst.ip()) else { panic!("IPv4") };
    let mut sctp = [&src.port().to_be_bytes()[..], &dst.port().to_be_bytes(), &7u32.to_be_bytes(), &[0; 4]].concat();
    sctp.extend([chunk, 0]);
    sctp.extend((payload as u16 + 4).to_be_bytes());
    sctp.extend((0..payload).map(|i| i as u8));
    let crc = naive_crc32c(&sctp);
    sctp[8..12].copy_from_slice(&crc.to_le_bytes());
    let mut out = Vec::new();
    PacketBuilder::ethernet2(CLIENT_MAC, PORT_MACS[0])
        .ipv4(s.octets(), d.octets(), 64)
        .write(&mut out, etherparse::IpNumber::SCTP, &sctp)
        .unwrap();
    out
}

/// CRC32c by its polynomial, bit by bit (RFC 3385).
pub fn naive_crc32c(data: &[u8]) -> u32 {
    !data.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 })
    })
}
