//! Echo requests (`ping`), and their answers.

use super::HEADER_LEN;
use crate::checksum::{apply, delta};
use crate::frame::Frame;
use crate::parse::{Ip, Packet};
use crate::tuple::{Proto, Tuple};
use crate::wire::{Field, icmp, icmpv6, ipv4, ipv6};

/// TTL and hop limit of an answer.
const TTL: u8 = 64;

/// A whole echo request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EchoRequest {
    /// Its packet, as if it were UDP without ports.
    pub packet: Packet,
}

impl EchoRequest {
    /// Reads an ICMP message of this type; `ip` is its packet.
    pub(super) fn read(kind: u8, message: &[u8], ip: &Ip) -> Option<EchoRequest> {
        let wanted = if ip.v6 { icmpv6::ECHO_REQUEST } else { icmp::ECHO_REQUEST };
        let sound = kind == wanted && icmp::field::CODE.get(message)? == [0] && message.len() >= HEADER_LEN;
        let tuple = Tuple { src: ip.src, dst: ip.dst, sport: 0, dport: 0, proto: Proto::Udp, v6: ip.v6 };
        let (l3, l4, l4_len) = (ip.l3 as u16, ip.l4 as u16, ip.l4_len as u16);
        let packet = Packet { tuple, l3, l4, l4_len, covered_len: 0, tcp_flags: 0, ttl: ip.ttl, fragment: None };
        sound.then_some(EchoRequest { packet })
    }

    /// Whether nothing is between IP header and message. A host would have to answer IP options, too.
    pub fn is_plain(&self) -> bool {
        let header_len = if self.packet.tuple.v6 { ipv6::HEADER_LEN } else { ipv4::HEADER_LEN };
        usize::from(self.packet.l4 - self.packet.l3) == header_len
    }

    /// Makes the request in `frame` its answer, but for the link. The payload stays, and so does a wrong checksum.
    pub fn answer(&self, frame: &mut Frame<'_>) {
        let (l3, l4) = (usize::from(self.packet.l3), usize::from(self.packet.l4));
        let head = frame.head_mut();
        if self.packet.tuple.v6 {
            swap(head, ipv6::field::SOURCE.after(l3), ipv6::field::DESTINATION.after(l3));
            ipv6::field::HOP_LIMIT.after(l3).write(head, [TTL]);
            set_type(head, l4, icmpv6::ECHO_REQUEST, icmpv6::ECHO_REPLY);
        } else {
            swap(head, ipv4::field::SOURCE.after(l3), ipv4::field::DESTINATION.after(l3));
            let ttl = ipv4::field::TTL.after(l3);
            let changed = delta(u64::from(ttl.u8(head)) << 8, u64::from(TTL) << 8);
            ttl.write(head, [TTL]);
            update(head, ipv4::field::CHECKSUM.after(l3), changed);
            set_type(head, l4, icmp::ECHO_REQUEST, icmp::ECHO_REPLY);
        }
    }
}

fn swap<const N: usize>(data: &mut [u8], a: Field<N>, b: Field<N>) {
    let (first, second) = (a.read(data), b.read(data));
    a.write(data, second);
    b.write(data, first);
}

/// The pseudo header of ICMPv6 sums to the same when its addresses change places.
fn set_type(data: &mut [u8], l4: usize, before: u8, after: u8) {
    icmp::field::TYPE.after(l4).write(data, [after]);
    update(data, icmp::field::CHECKSUM.after(l4), delta(u64::from(before) << 8, u64::from(after) << 8));
}

fn update(data: &mut [u8], field: Field<2>, changed: u16) {
    let checksum = apply(field.u16(data), changed);
    field.write(data, checksum.to_be_bytes());
}
