//! ICMP errors about packets that have arrived, as hosts and routers send them, and damaged ones.

use std::net::IpAddr;

use nomagic_core_fixtures::{fragments, ones_sum};

use super::generate::Random;
use super::packet::{Ends, Form, IPV4_LEN, IPV6_LEN, Id, Role, Special, addresses, pseudo_header};
use nomagic_core::tuple::Proto;

/// What an error quotes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum QuoteForm {
    Whole,
    /// The IP header and eight bytes.
    EightBytes,
    /// The IP header and the ports.
    Ports,
    /// A part of the IP header.
    CutInHeader,
    WrongSourcePort,
    WrongDestinationPort,
    WrongSource,
    WrongDestination,
    /// As some routers do.
    WrongIpChecksum,
    WrongTransportChecksum,
    WrongSequence,
    WrongLength,
    /// A fragment that has no ports; of IPv6 it is the whole packet.
    LaterFragment,
}

/// An ICMP error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ErrorForm {
    pub kind: u8,
    pub code: u8,
    pub rest: [u8; 4],
    pub quote: QuoteForm,
    /// From a router in between; else from the packet's receiver.
    pub by_router: bool,
    pub right_checksum: bool,
    pub ttl: u8,
    /// The error is itself fragmented.
    pub in_pieces: bool,
}

const ICMP_LEN: usize = 8;
/// An error has at most this many bytes.
const V4_MAX: usize = 576;
const V6_MAX: usize = 1_280;

impl ErrorForm {
    pub fn random(random: &mut Random, v6: bool) -> ErrorForm {
        let (kind, codes): (u8, usize) = match v6 {
            true => random.one(&[(1, 7), (1, 7), (2, 1), (3, 2), (4, 3), (100, 1), (0, 1), (5, 1)]),
            false => random.one(&[(3, 16), (3, 16), (11, 2), (12, 3), (4, 1), (5, 4)]),
        };
        let code = random.below(codes) as u8;
        let quote = match random.below(2) {
            0 => QuoteForm::Whole,
            _ => random.one(&[
                QuoteForm::EightBytes,
                QuoteForm::EightBytes,
                QuoteForm::EightBytes,
                QuoteForm::Ports,
                QuoteForm::CutInHeader,
                QuoteForm::WrongSourcePort,
                QuoteForm::WrongDestinationPort,
                QuoteForm::WrongSource,
                QuoteForm::WrongDestination,
                QuoteForm::WrongIpChecksum,
                QuoteForm::WrongTransportChecksum,
                QuoteForm::WrongSequence,
                QuoteForm::WrongLength,
                QuoteForm::LaterFragment,
            ]),
        };
        // An MTU, a pointer or nothing.
        let rest = match (kind, code, v6) {
            (3, 4, false) | (2, _, true) => [0, 0, 5, random.below(200) as u8],
            (12, _, false) => [8, 0, 0, 0],
            (4, _, true) => [0, 0, 0, 6],
            _ => [0; 4],
        };
        let by_router = random.below(2) == 0;
        let (right_checksum, in_pieces) = (random.below(20) > 0, random.below(30) == 0);
        ErrorForm { kind, code, rest, quote, by_router, right_checksum, ttl: random.one(&[64, 64, 64, 64, 64, 64, 2, 1]), in_pieces }
    }

    /// The packet with the error about `arrived`, from this router if it is by one.
    pub fn packet(&self, arrived: &[u8], router: IpAddr, id: Id) -> Vec<u8> {
        let (receiver, sender) = {
            let (src, dst) = addresses(arrived);
            (dst, src)
        };
        let v6 = receiver.is_ipv6();
        let from = if self.by_router { router } else { receiver };
        let quote = self.quoted(arrived);
        let mut message = [&[self.kind, self.code, 0, 0][..], &self.rest, &quote].concat();
        let protocol = if v6 { 58 } else { 1 };
        let pseudo = if v6 { pseudo_header(from, sender, protocol, message.len()) } else { Vec::new() };
        let sum = !ones_sum(&[&pseudo, &message[..]].concat()) ^ if self.right_checksum { 0 } else { 0x1234 };
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        // The header of a datagram without payload, which the message replaces.
        let form =
            Form { role: Role::Opens, special: Special::Nothing, ttl: self.ttl, tos: 0, dont_fragment: false, payload: message.len() - 8 };
        let mut packet = form.packet(Proto::Udp, &Ends { src: (from, 0), dst: (sender, 0) }, id);
        let header = if v6 { IPV6_LEN } else { IPV4_LEN };
        packet.truncate(header);
        if v6 {
            packet[6] = protocol;
        } else {
            packet[9] = protocol;
            packet[10..12].fill(0);
            let sum = !ones_sum(&packet);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        [packet, message].concat()
    }

    fn quoted(&self, arrived: &[u8]) -> Vec<u8> {
        let v6 = arrived[0] >> 4 == 6;
        let (header, max) = if v6 { (IPV6_LEN, V6_MAX) } else { (IPV4_LEN, V4_MAX) };
        let mut quote = arrived[..arrived.len().min(max - header - ICMP_LEN)].to_vec();
        let protocol = arrived[if v6 { 6 } else { 9 }];
        match self.quote {
            QuoteForm::LaterFragment if !v6 => quote[7] |= 0x20,
            QuoteForm::Whole | QuoteForm::LaterFragment => {}
            QuoteForm::EightBytes => quote.truncate(header + 8),
            QuoteForm::Ports => quote.truncate(header + 4),
            QuoteForm::CutInHeader => quote.truncate(header - 6),
            // Below all ports of SNAT, which could be those of another connection.
            QuoteForm::WrongSourcePort => quote[header] = 0,
            QuoteForm::WrongDestinationPort => quote[header + 2] ^= 0x11,
            QuoteForm::WrongSource => quote[if v6 { 23 } else { 15 }] ^= 0x40,
            QuoteForm::WrongDestination => quote[if v6 { 39 } else { 19 }] ^= 0x40,
            QuoteForm::WrongIpChecksum if !v6 => add(&mut quote[10..12]),
            QuoteForm::WrongTransportChecksum | QuoteForm::WrongIpChecksum => {
                let at = header + if protocol == 6 { 16 } else { 6 };
                add(&mut quote[at..at + 2]);
            }
            QuoteForm::WrongSequence => quote[header + 4] ^= 0x55,
            QuoteForm::WrongLength => quote[if v6 { 4 } else { 2 }] ^= 0x40,
        }
        quote
    }

    /// The frames of an error.
    pub fn frames(&self, packet: &[u8], link: &[u8], id: Id) -> Vec<Vec<u8>> {
        let frame = [link, packet].concat();
        if self.in_pieces { fragments(&frame, 24, id) } else { vec![frame] }
    }
}

/// Changes a checksum by ones' complement, so that the difference does not depend on the number.
fn add(field: &mut [u8]) {
    let sum = ones_sum(&[&*field, &[0x33, 0]].concat());
    field.copy_from_slice(&sum.to_be_bytes());
}
