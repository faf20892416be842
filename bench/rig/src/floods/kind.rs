//! The floods: which forged frames anybody on the clients' side can send.

use std::net::Ipv4Addr;

use clap::ValueEnum;
use etherparse::PacketBuilder;
use serde::Serialize;

use crate::compare::workload::{TCP_PORT, UDP_PORT, cluster_ip};
use crate::pktgen::template::Macs;

/// Forged sources inside of the cluster's range: packets keep them. The honest clients' addresses are not among them.
const INSIDE: Ipv4Addr = Ipv4Addr::new(172, 20, 0, 0);
const INSIDE_ADDRESSES: u64 = 200 << 8;
/// The range of these.
pub const FORGED_INSIDE: &str = "172.20.0.0-172.20.200.255";
/// Forged sources inside that endpoints answer.
const ANSWERED: Ipv4Addr = Ipv4Addr::new(172, 20, 201, 0);
const ANSWERED_ADDRESSES: u64 = 48 << 8;
/// Forged sources outside: connections get a source port of the gateway's.
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);
const OUTSIDE_ADDRESSES: u64 = 200 << 8;
/// The lowest forged source port.
const PORT_MIN: u64 = 1_024;
/// The port range of the scan: no Service has these.
const SCANNED: u64 = 20_000;
const TTL: u8 = 64;
const WINDOW: u16 = 64_240;

/// A flood.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// No flood: what the clients manage alone
    None,
    /// TCP SYNs, each from another forged source
    Syn,
    /// SYN, ACK with a guessed number, FIN: a forged handshake from each source
    Handshake,
    /// SYNs from forged sources outside of the cluster: each takes a source port of the gateway's
    SynSnat,
    /// SYNs from one real client outside of the cluster, from all of its ports
    OneClient,
    /// UDP questions, each from another forged source; all are answered
    Question,
    /// TCP and UDP to ports that no Service has
    Scan,
}

impl Kind {
    /// Whether the honest clients of this flood come from outside of the cluster.
    pub fn is_outside(self) -> bool {
        matches!(self, Kind::SynSnat | Kind::OneClient)
    }

    /// Whether endpoints get and answer the forged frames.
    pub fn is_answered(self) -> bool {
        self.is_outside() || self.is_udp()
    }

    /// Whether the honest newcomers ask by UDP.
    pub fn is_udp(self) -> bool {
        self == Kind::Question
    }

    /// The title of its row.
    pub fn title(self) -> &'static str {
        match self {
            Kind::None => "no flood",
            Kind::Syn => "forged SYNs",
            Kind::Handshake => "forged handshakes",
            Kind::SynSnat => "forged SYNs, SNAT",
            Kind::OneClient => "SYNs of one client, SNAT",
            Kind::Question => "forged UDP questions",
            Kind::Scan => "port scan",
        }
    }

    /// The `n`-th frame of the flood.
    pub fn frame(self, n: u64, macs: &Macs) -> Vec<u8> {
        let inside = |n| source(INSIDE, INSIDE_ADDRESSES, n);
        let outside = |n| source(OUTSIDE, OUTSIDE_ADDRESSES, n);
        let service = cluster_ip(0);
        match self {
            Kind::None => Vec::new(),
            Kind::Syn => tcp(macs, inside(n), (service, TCP_PORT), Segment::Syn),
            Kind::Handshake => tcp(macs, inside(n / 3), (service, TCP_PORT), [Segment::Syn, Segment::Ack, Segment::Fin][(n % 3) as usize]),
            Kind::SynSnat => tcp(macs, outside(n), (service, TCP_PORT), Segment::Syn),
            Kind::OneClient => tcp(macs, source(OUTSIDE, 1, n), (service, TCP_PORT), Segment::Syn),
            Kind::Question => udp(macs, source(ANSWERED, ANSWERED_ADDRESSES, n), (service, UDP_PORT)),
            Kind::Scan => {
                let port = (SCANNED + n / 2 % SCANNED) as u16;
                if n.is_multiple_of(2) {
                    udp(macs, inside(n), (service, port))
                } else {
                    tcp(macs, inside(n), (service, port), Segment::Syn)
                }
            }
        }
    }
}

#[derive(Clone, Copy)]
enum Segment {
    Syn,
    Ack,
    Fin,
}

/// The `n`-th source: all addresses with one port, then the next port, in an order that looks random.
fn source(base: Ipv4Addr, addresses: u64, n: u64) -> (Ipv4Addr, u16) {
    let ports = u64::from(u16::MAX) + 1 - PORT_MIN;
    let (address, port) = (n % addresses, n / addresses % ports);
    let mixed = (port + address.wrapping_mul(0x9e37_79b9_7f4a_7c15) % ports) % ports;
    (Ipv4Addr::from_bits(base.to_bits() + 1 + address as u32), (PORT_MIN + mixed) as u16)
}

fn tcp(macs: &Macs, (src, sport): (Ipv4Addr, u16), (dst, dport): (Ipv4Addr, u16), segment: Segment) -> Vec<u8> {
    // A spoofer cannot know the endpoint's number: its guess is a constant.
    const GUESS: u32 = 0x1234_5678;
    let tcp = PacketBuilder::ethernet2(macs.src, macs.dst).ipv4(src.octets(), dst.octets(), TTL).tcp(sport, dport, 1_000, WINDOW);
    let tcp = match segment {
        Segment::Syn => tcp.syn(),
        Segment::Ack => tcp.ack(GUESS),
        Segment::Fin => tcp.fin().ack(GUESS),
    };
    let mut frame = Vec::with_capacity(tcp.size(0));
    tcp.write(&mut frame, &[]).expect("a vector takes every frame");
    frame
}

fn udp(macs: &Macs, (src, sport): (Ipv4Addr, u16), (dst, dport): (Ipv4Addr, u16)) -> Vec<u8> {
    let udp = PacketBuilder::ethernet2(macs.src, macs.dst).ipv4(src.octets(), dst.octets(), TTL).udp(sport, dport);
    let question = super::servers::QUESTION;
    let mut frame = Vec::with_capacity(udp.size(question.len()));
    udp.write(&mut frame, question).expect("a vector takes every frame");
    frame
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn sources_differ_and_are_no_honest_clients() {
        let all: HashSet<_> = (0..300_000).map(|n| source(INSIDE, INSIDE_ADDRESSES, n)).collect();
        assert_eq!(all.len(), 300_000);
        assert!(all.iter().all(|(ip, port)| ip.octets()[2] <= 200 && u64::from(*port) >= PORT_MIN));
        let one: HashSet<_> = (0..64_512).map(|n| source(OUTSIDE, 1, n)).collect();
        assert_eq!(one.len(), 64_512, "one client has all ports");
    }

    #[test]
    fn frames_are_sound() {
        let macs = Macs { src: [2; 6], dst: [4; 6] };
        for kind in Kind::value_variants().iter().filter(|kind| **kind != Kind::None) {
            for n in 0..6 {
                let frame = kind.frame(n, &macs);
                let sliced = etherparse::SlicedPacket::from_ethernet(&frame).unwrap();
                assert!(sliced.transport.is_some(), "{kind:?}");
            }
        }
    }
}
