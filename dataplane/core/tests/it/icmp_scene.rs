//! Flows of every kind, and a packet of each direction, for errors about them.

use std::net::IpAddr;
use std::sync::atomic::Ordering::Relaxed;

use nomagic_core::frame::{PortId, Verdict};
use nomagic_core::tuple::Proto;
use nomagic_core_fixtures::*;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Nat {
    Dnat,
    Snat,
    /// Client and endpoint are one pod.
    Hairpin,
}

pub const NATS: [Nat; 3] = [Nat::Dnat, Nat::Snat, Nat::Hairpin];
pub const PROTOS: [Proto; 3] = [Proto::Tcp, Proto::Udp, Proto::Sctp];

/// Types and codes: unreachable (net, host, protocol, port, too big, prohibited), time exceeded, parameter problem.
pub const V4: [(u8, u8); 11] = [(3, 0), (3, 1), (3, 2), (3, 3), (3, 4), (3, 9), (3, 10), (3, 13), (11, 0), (11, 1), (12, 0)];
/// Unreachable (no route, prohibited, address, port, policy), too big, time exceeded, parameter problem.
pub const V6: [(u8, u8); 11] = [(1, 0), (1, 1), (1, 3), (1, 4), (1, 5), (2, 0), (3, 0), (3, 1), (4, 0), (4, 1), (4, 2)];

/// A packet of a flow, as its sender has sent it and as it came out, and where errors about it come from and go to.
pub struct Way {
    pub sent: Vec<u8>,
    pub went: Vec<u8>,
    /// The port that leads to its receiver.
    pub beyond: PortId,
    /// The port that leads to its sender, and that neighbour.
    pub back: PortId,
    pub sender: IpAddr,
    /// What its sender takes for the receiver, and whether that is another address than the receiver's.
    pub receiver: IpAddr,
    pub hidden: bool,
    /// A router on the way.
    pub router: IpAddr,
}

pub struct Scene {
    pub w: World,
    /// The client's packet, and the endpoint's.
    pub ways: [Way; 2],
    pub v6: bool,
}

pub fn addr(packet: &[u8], v6: bool, destination: bool) -> IpAddr {
    let at = if v6 { 22 + 16 * usize::from(destination) } else { 26 + 4 * usize::from(destination) };
    if v6 { <[u8; 16]>::try_from(&packet[at..at + 16]).unwrap().into() } else { <[u8; 4]>::try_from(&packet[at..at + 4]).unwrap().into() }
}

pub fn port(packet: &[u8], v6: bool, destination: bool) -> u16 {
    let at = if v6 { 54 } else { 34 } + 2 * usize::from(destination);
    u16::from_be_bytes([packet[at], packet[at + 1]])
}

pub fn socket(addr: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(addr, port).to_string()
}

/// A packet of a flow that is open: a segment, a datagram, a chunk of data.
pub fn data(proto: Proto, src: &str, dst: &str, sequence: u32, acknowledgment: u32) -> Vec<u8> {
    match proto {
        Proto::Tcp => Spec { sequence, acknowledgment, payload: 600, ..spec("tcp", src, dst, ACK) }.frame(),
        Proto::Udp => Spec { payload: 600, ..spec("udp", src, dst, 0) }.frame(),
        Proto::Sctp => sctp_frame(src, dst, 0, 600),
    }
}

pub fn world(v6: bool) -> World {
    let mut s = services();
    for proto in PROTOS {
        let (addr, pod) = if v6 { ("fd00:96::9", "fd00:b::1") } else { ("10.96.0.9", "192.168.1.1") };
        add_service(&mut s, addr, 80, proto, &[backend(pod, 8080)], true);
    }
    World::new(s, 256)
}

/// Opens a flow, and sends a packet in each direction.
pub fn scene(v6: bool, nat: Nat, proto: Proto) -> Scene {
    let mut w = world(v6);
    let last = match nat {
        Nat::Dnat => 1,
        Nat::Snat => 2,
        Nat::Hairpin => 9,
    };
    let (client, port_in) = match (nat, v6) {
        (Nat::Hairpin, false) => ("192.168.1.1:40000", PODS),
        (Nat::Hairpin, true) => ("[fd00:b::1]:40000", PODS),
        (_, false) => ("10.0.0.2:40000", CLIENTS),
        (_, true) => ("[fd00:a::2]:40000", CLIENTS),
    };
    let service = if v6 { format!("[fd00:96::{last}]:80") } else { format!("10.96.0.{last}:80") };
    let opening = match proto {
        Proto::Tcp => Spec { payload: 0, sequence: 999, ..spec("tcp", client, &service, SYN) }.frame(),
        Proto::Udp => spec("udp", client, &service, 0).frame(),
        Proto::Sctp => sctp_frame(client, &service, 1, 16),
    };
    let first = w.run(port_in, &opening);
    assert!(matches!(first.verdict, Verdict::Forward(..)), "{:?}", first.verdict);
    let (endpoint, source) =
        (socket(addr(&first.bytes, v6, true), 8080), socket(addr(&first.bytes, v6, false), port(&first.bytes, v6, false)));
    let answer = match proto {
        Proto::Tcp => Spec { payload: 0, sequence: 4_999, acknowledgment: 1_000, ..spec("tcp", &endpoint, &source, SYN_ACK) }.frame(),
        Proto::Udp => spec("udp", &endpoint, &source, 0).frame(),
        Proto::Sctp => sctp_frame(&endpoint, &source, 2, 16),
    };
    assert!(matches!(w.run(PODS, &answer).verdict, Verdict::Forward(..)));
    let (request, reply) = (data(proto, client, &service, 1_000, 5_000), data(proto, &endpoint, &source, 5_000, 1_600));
    let mut out = |port, packet: &[u8]| {
        let done = w.run(port, packet);
        assert!(matches!(done.verdict, Verdict::Forward(..)), "{:?}", done.verdict);
        done.bytes
    };
    let (request_out, reply_out) = (out(port_in, &request), out(PODS, &reply));
    let of = |packet: &[u8], destination| addr(packet, v6, destination);
    let router_of = |port| {
        ip(match (port, v6) {
            (PODS, false) => "192.168.9.9",
            (PODS, true) => "fd00:b::99",
            (_, false) => "10.0.0.254",
            (_, true) => "fd00:a::fe",
        })
    };
    let way = |sent: Vec<u8>, went: Vec<u8>, beyond, back| Way {
        sender: of(&sent, false),
        receiver: of(&sent, true),
        hidden: of(&sent, true) != of(&went, true),
        router: router_of(beyond),
        sent,
        went,
        beyond,
        back,
    };
    Scene { w, ways: [way(request, request_out, PODS, port_in), way(reply, reply_out, port_in, PODS)], v6 }
}

impl Way {
    /// The quoted packet's receiver, as it calls itself.
    pub fn far(&self, v6: bool) -> IpAddr {
        addr(&self.went, v6, true)
    }

    /// An error about this packet from `from`, with this many bytes of its transport header and payload.
    pub fn error(&self, v6: bool, from: IpAddr, (kind, code): (u8, u8), quoted: usize) -> (IcmpSpec, Vec<u8>) {
        let header = if v6 { 40 } else { 20 };
        let quote = &self.went[14..(14 + header + quoted).min(self.went.len())];
        let rest = if matches!((v6, kind, code), (false, 3, 4) | (true, 2, _)) { [0, 0, 5, 0x78] } else { [0; 4] };
        let spec = IcmpSpec { from, to: addr(&self.went, v6, false), kind, code, rest };
        (spec, spec.frame(quote))
    }

    /// The packet as its sender sent it, one hop later.
    pub fn as_sent(&self, v6: bool) -> Vec<u8> {
        let mut packet = self.sent.clone();
        packet[if v6 { 21 } else { 22 }] -= 1;
        if !v6 {
            assert!(set_ipv4_checksum(&mut packet, 14));
        }
        packet[14..].to_vec()
    }
}

/// What is in the table, word by word.
pub fn table(w: &World) -> Vec<u64> {
    w.table_words.iter().map(|word| word.load(Relaxed)).collect()
}

/// Scenes of a family, with a name each.
pub fn all(mut visit: impl FnMut(Scene)) {
    for v6 in [false, true] {
        for nat in NATS {
            PROTOS.into_iter().for_each(|proto| visit(scene(v6, nat, proto)));
        }
    }
}

/// Runs an error, which changes nothing.
pub fn verdict_of(s: &mut Scene, port: PortId, frame: &[u8]) -> Verdict {
    let before = table(&s.w);
    let done = s.w.run(port, frame);
    assert_eq!(table(&s.w), before, "an error changes nothing in the table");
    if let Verdict::Drop(_) = done.verdict {
        assert_eq!(done.bytes, frame, "a dropped frame is not touched");
    }
    done.verdict
}
