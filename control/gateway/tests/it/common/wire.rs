//! Sends packets as frames through the core's `process`. The verdict for a flow's first packet must agree with `explain`.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU32, AtomicU64};

use arrayvec::ArrayVec;
use etherparse::{IpNumber, NetHeaders, PacketBuilder, PacketHeaders, TransportHeader};
use nomagic_core::conntrack::Conntrack;
use nomagic_core::counters::Counters;
use nomagic_core::filter::{BUCKET_SLOTS, ReplyFilter, ReplyKey};
use nomagic_core::frame::{Frame, Outputs, PortId, Verdict};
use nomagic_core::pipeline::{Context, WorkerState, process};
use nomagic_core::reason::Reason;
use nomagic_core::routes::{InternalPort, Leg, Neighbour, Port, Route, RouteKind, Routes};
use nomagic_core::services::Services;
use nomagic_core::tuple::{Proto, Tuple};
use serde_json::Value;

const START: usize = 256;
const INTERNAL: PortId = PortId(2);
const KERNEL_MAC: [u8; 6] = [8; 6];

/// Routes everything through port 1 and one gateway per family.
fn routes() -> Routes {
    let port = |i| Port { mac: [2, 0, 0, 0, 0, i], mtu: 1500, up: true };
    let gateways: [IpAddr; 2] = ["198.18.0.1".parse().unwrap(), "fe80::1".parse().unwrap()];
    let all = ["0.0.0.0/0", "::/0"].map(|p| p.parse().unwrap());
    let route = |(prefix, gateway): (_, &IpAddr)| {
        let leg = Leg { port: Some(PortId(1)), captured: false, gateway: Some(*gateway), weight: 1, mtu: None };
        Route { prefix, metric: 0, kind: RouteKind::Unicast(vec![leg]) }
    };
    let neighbours = gateways.map(|addr| Neighbour { port: PortId(1), addr, mac: [2; 6] });
    let internal = Some(InternalPort { port: INTERNAL, kernel_mac: KERNEL_MAC });
    Routes::build(1, (0..3).map(port).collect(), internal, all.into_iter().zip(&gateways).map(route).collect(), &neighbours).0
}

/// TCP flags of a connection's first packet, and of a later one.
pub const SYN: u8 = 2;
pub const ACK: u8 = 16;

fn frame_of(t: &Tuple, tcp_flags: u8) -> Vec<u8> {
    let b = PacketBuilder::ethernet2([4; 6], [2; 6]);
    let b = match (t.src_addr(), t.dst_addr()) {
        (IpAddr::V4(s), IpAddr::V4(d)) => b.ipv4(s.octets(), d.octets(), 64),
        (IpAddr::V6(s), IpAddr::V6(d)) => b.ipv6(s.octets(), d.octets(), 64),
        _ => unreachable!("one family"),
    };
    let mut out = Vec::new();
    match t.proto {
        Proto::Tcp => {
            let tcp = b.tcp(t.sport, t.dport, 1, 1000);
            let tcp = if tcp_flags == SYN { tcp.syn() } else { tcp.ack(1) };
            tcp.write(&mut out, b"hello").unwrap();
        }
        Proto::Udp => b.udp(t.sport, t.dport).write(&mut out, b"hello").unwrap(),
        // INIT: ports, tag, no checksum (left to the NIC), the chunk's type and length.
        Proto::Sctp => {
            let rest = [0, 0, 0, 7, 0, 0, 0, 0, 1, 0, 0, 4];
            let sctp = [&t.sport.to_be_bytes()[..], &t.dport.to_be_bytes(), &rest].concat();
            b.write(&mut out, IpNumber::SCTP, &sctp).unwrap();
        }
    }
    out
}

/// `(source, destination)` of a frame, parsed by etherparse.
fn ends(frame: &[u8]) -> (SocketAddr, SocketAddr) {
    let headers = PacketHeaders::from_ethernet_slice(frame).unwrap();
    let (src, dst): (IpAddr, IpAddr) = match headers.net.unwrap() {
        NetHeaders::Ipv4(h, _) => (h.source.into(), h.destination.into()),
        NetHeaders::Ipv6(h, _) => (h.source.into(), h.destination.into()),
        other => panic!("{other:?}"),
    };
    let (sport, dport) = match headers.transport {
        Some(TransportHeader::Tcp(h)) => (h.source_port, h.destination_port),
        Some(TransportHeader::Udp(h)) => (h.source_port, h.destination_port),
        // SCTP, which etherparse leaves as payload.
        None => {
            let p = headers.payload.slice();
            (u16::from_be_bytes([p[0], p[1]]), u16::from_be_bytes([p[2], p[3]]))
        }
        other => panic!("{other:?}"),
    };
    ((src, sport).into(), (dst, dport).into())
}

/// The outcome of a packet.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum PacketOutcome {
    /// Forwarded, with this source and destination.
    Forwarded(SocketAddr, SocketAddr),
    Kernel(Reason),
    /// Rejected with a reply to the sender.
    Rejected(Reason),
    Dropped(Reason),
}

/// A reply filter of this many buckets, leaked because the reconciler thread needs 'static.
pub fn reply_filter(buckets: usize) -> ReplyFilter<'static> {
    let [words, owners] = [0, 1].map(|_| (0..buckets * BUCKET_SLOTS).map(|_| AtomicU32::new(0)).collect::<Vec<_>>().leak());
    ReplyFilter::new(words, owners, ReplyKey([7, 8])).expect("a power of two")
}

/// A worker with a connection table.
pub struct Wire<'t> {
    pub table: Conntrack<'t>,
    pub filter: Option<ReplyFilter<'t>>,
    pub counters: Counters,
    pub now_ms: u64,
    routes: Routes,
    worker: WorkerState,
}

impl<'t> Wire<'t> {
    pub fn new(number: u16, table: Conntrack<'t>, filter: Option<ReplyFilter<'t>>) -> Wire<'t> {
        Wire { table, filter, counters: Counters::new(1), now_ms: 1, routes: routes(), worker: WorkerState::new(number) }
    }

    /// Sends one packet through the packet path.
    pub fn send(&mut self, services: &Services, tuple: &Tuple, tcp_flags: u8) -> PacketOutcome {
        let mut sent = frame_of(tuple, tcp_flags);
        // The node's own packets arrive at the internal port, addressed to the kernel's end. From other ports its addresses are refused, and so is
        // the Service's: a node that has the address of the load balancer may send from it.
        let src = tuple.src_addr();
        let from_node = services.node_ips.contains(&src) || services.snat.is_own(src) || src == tuple.dst_addr();
        let port = if from_node { INTERNAL } else { PortId(0) };
        if from_node {
            sent[..6].copy_from_slice(&KERNEL_MAC);
        }
        let (mut buffer, mut spare) = (vec![0u8; 2048], vec![0u8; 2048]);
        buffer[START..START + sent.len()].copy_from_slice(&sent);
        let mut frames = [Frame::new(&mut buffer, START, sent.len(), port, 0)];
        let (mut verdicts, mut out) = (ArrayVec::new(), Outputs::default());
        out.spare.push(Frame::new(&mut spare, 0, 0, PortId(0), 0));
        let Wire { table, filter, counters, now_ms, routes, worker } = self;
        let mut context = Context { now_ms: *now_ms, services, routes, table: *table, filter: *filter, counters, worker };
        process(&mut context, &mut frames, &mut verdicts, &mut out);
        match verdicts[0] {
            Verdict::Forward(..) => {
                let (src, dst) = ends(frames[0].head());
                PacketOutcome::Forwarded(src, dst)
            }
            Verdict::Kernel(reason) => PacketOutcome::Kernel(reason),
            Verdict::Drop(reason) if out.made.is_empty() => PacketOutcome::Dropped(reason),
            Verdict::Drop(reason) => PacketOutcome::Rejected(reason),
            Verdict::Fragment(..) => panic!("a packet as short as these fits"),
            Verdict::Hold(wanted) => panic!("all neighbours are known: {wanted:?}"),
        }
    }
}

/// The difference between `explain`'s answer and the frame's outcome. `None`: they agree, or such a packet cannot arrive.
pub fn disagreement(services: &Services, tuple: &Tuple, answer: &Value) -> Option<String> {
    if tuple.src_addr().is_loopback() || tuple.dst_addr().is_loopback() {
        return None;
    }
    let words: Vec<AtomicU64> = (0..Conntrack::words_needed(4)).map(|_| AtomicU64::new(0)).collect();
    let went = Wire::new(0, Conntrack::format(&words, 4, 1, [0, 0]).unwrap(), None).send(services, tuple, SYN);
    let said = answer["verdict"].as_str().unwrap_or_default();
    let agrees = match went {
        PacketOutcome::Forwarded(src, dst) => {
            let client = SocketAddr::new(tuple.src_addr(), tuple.sport);
            let source_agrees = match answer["snat"].as_str() {
                Some(own) => src.ip().to_string() == own,
                None => src == client,
            };
            said == "forward" && answer["chosen"] == dst.to_string() && source_agrees
        }
        PacketOutcome::Kernel(_) => matches!(said, "pass" | "local"),
        PacketOutcome::Rejected(reason) => said == "reject" && answer["reason"] == reason.label(),
        PacketOutcome::Dropped(reason) => said == "drop" && answer["reason"] == reason.label(),
    };
    (!agrees).then(|| format!("{tuple}: explain says {answer}, the frame met {went:?}"))
}
