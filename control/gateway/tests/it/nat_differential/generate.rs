//! Conversations by a seed: what client and endpoint send each other, and what is wrong with it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nomagic_core::tuple::{Proto, splitmix64};

use super::errors::ErrorForm;
use super::packet::{Cut, Damage, Form, Id, Role, Special, Stray};
use super::world::{ENDPOINT_MTU, NARROW_MTU};

pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, n: usize) -> usize {
        (splitmix64(&mut self.0) % n as u64) as usize
    }

    pub fn one<T: Clone>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())].clone()
    }

    /// True in so many of a hundred cases.
    fn percent(&mut self, n: usize) -> bool {
        self.below(100) < n
    }

    fn shuffled(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            order.swap(i, self.below(i + 1));
        }
        order
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    Client,
    Endpoint,
}

impl Side {
    pub fn other(self) -> Side {
        if self == Side::Client { Side::Endpoint } else { Side::Client }
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum What {
    Packet(Form),
    /// An ICMP error about the last packet that has arrived there.
    Error(ErrorForm),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Step {
    pub from: Side,
    pub what: What,
}

/// Most packets of a conversation.
pub const STEPS_MAX: usize = 4;

/// A client of its own that talks with the Service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Conversation {
    pub id: Id,
    pub proto: Proto,
    /// By the address with SNAT.
    pub snat: bool,
    pub client: (IpAddr, u16),
    /// The route to the client has a smaller MTU.
    pub narrow: bool,
    pub steps: Vec<Step>,
}

impl Conversation {
    pub fn v6(&self) -> bool {
        self.client.0.is_ipv6()
    }

    /// The MTU of the way on from this side.
    fn mtu_from(&self, side: Side) -> usize {
        match side {
            Side::Client => ENDPOINT_MTU,
            Side::Endpoint if self.narrow => NARROW_MTU,
            Side::Endpoint => 1_500,
        }
    }

    /// The `number`th one.
    pub fn random(random: &mut Random, number: usize) -> Conversation {
        let v6 = random.percent(50);
        let proto = random.one(&[Proto::Tcp, Proto::Tcp, Proto::Udp, Proto::Udp, Proto::Sctp]);
        let narrow = random.percent(25);
        let mut conversation = Conversation {
            // No identification is 0, which some senders write where it does not matter.
            id: 1 + (number % 65_000) as Id,
            proto,
            snat: random.percent(50),
            client: (client_addr(v6, narrow, number), 2_000 + random.below(60_000) as u16),
            narrow,
            steps: Vec::new(),
        };
        let way = random.below(100);
        let packet = |from, form| Step { from, what: What::Packet(form) };
        let error = |random: &mut Random, from| Step { from, what: What::Error(ErrorForm::random(random, v6)) };
        conversation.steps = match way {
            0..30 => vec![packet(Side::Client, conversation.special(random, Role::Opens, Side::Client))],
            30..36 if proto != Proto::Udp => {
                let role = Role::Stray(random.one(&[Stray::Data, Stray::Reset, Stray::Fin, Stray::SynAck]));
                vec![packet(Side::Client, Form::plain(random, role))]
            }
            _ => vec![packet(Side::Client, Form::plain(random, Role::Opens))],
        };
        match way {
            36..56 => {
                let form = conversation.special(random, Role::Answers, Side::Endpoint);
                conversation.steps.push(packet(Side::Endpoint, form));
            }
            56..76 => conversation.steps.push(error(random, Side::Endpoint)),
            76..100 => {
                conversation.steps.push(packet(Side::Endpoint, Form::plain(random, Role::Answers)));
                match way {
                    76..86 => conversation.steps.push(error(random, Side::Client)),
                    86..96 => {
                        let form = conversation.special(random, Role::Continues, Side::Client);
                        conversation.steps.push(packet(Side::Client, form));
                    }
                    _ => {
                        conversation.steps.push(packet(Side::Client, Form::plain(random, Role::Continues)));
                        conversation.steps.push(error(random, Side::Endpoint));
                    }
                }
            }
            _ => {}
        }
        conversation
    }

    /// A packet with one thing that is special.
    fn special(&self, random: &mut Random, role: Role, from: Side) -> Form {
        let v6 = self.v6();
        let mtu = self.mtu_from(from);
        let own = if from == Side::Client { 1_500 } else { ENDPOINT_MTU };
        let mut form = Form::plain(random, role);
        form.special = match random.below(100) {
            0..12 => Special::Nothing,
            12..24 => Special::Length(random.one(&[mtu - 1, mtu, mtu + 1, own, own - 1]).min(own)),
            24..30 => {
                form.ttl = random.one(&[0, 1, 2]);
                Special::Hops
            }
            30..47 if v6 => extensions(random),
            30..47 => options(random),
            47..52 if self.proto == Proto::Udp => Special::NoChecksum,
            47..62 => {
                // Shorter than the longest TCP header.
                form.payload %= 32;
                Special::Damage(self.damage(random))
            }
            62..68 => Special::Trailer(1 + random.below(40)),
            68.. => {
                // At least two fragments.
                form.payload = 1_504 + 4 * random.below(950);
                if random.percent(3) {
                    form.ttl = 1;
                }
                // A fragment may be fragmented again.
                form.dont_fragment = false;
                let mtu = if random.percent(5) { own } else { mtu.min(own) };
                fragments(random, v6, form.payload, mtu)
            }
        };
        form
    }

    fn damage(&self, random: &mut Random) -> Damage {
        let mut kinds = vec![
            Damage::TransportChecksum,
            Damage::TransportChecksum,
            Damage::Version,
            Damage::IpLenBeyondFrame,
            Damage::IpLenCutsTransport,
        ];
        match self.proto {
            Proto::Udp => kinds.extend([Damage::UdpLenBeyondPacket, Damage::UdpLenShort]),
            Proto::Tcp => kinds.extend([Damage::TcpOffsetBeyondPacket, Damage::TcpOffsetTooSmall]),
            Proto::Sctp => {}
        }
        if !self.v6() {
            kinds.extend([Damage::Ipv4Checksum, Damage::HeaderLen]);
        }
        random.one(&kinds)
    }
}

impl Form {
    /// A packet without anything special.
    fn plain(random: &mut Random, role: Role) -> Form {
        let (ttl, tos, dont_fragment) = (random.one(&[64, 64, 33, 255, 2]), random.below(256) as u8, random.percent(50));
        Form { role, special: Special::Nothing, ttl, tos, dont_fragment, payload: 4 * random.below(80) }
    }
}

fn client_addr(v6: bool, narrow: bool, number: usize) -> IpAddr {
    let half = u32::from(narrow);
    let number = number as u32 + 10;
    match v6 {
        // A prefix of 64 bits each: limits go by that.
        true => Ipv6Addr::from(((0xfd00_00c0_u128 + u128::from(half)) << 96) | (u128::from(number) << 64) | 2).into(),
        // 172.16.0.0/13 and 172.24.0.0/13.
        false => Ipv4Addr::from(0xac10_0000 | half << 19 | number).into(),
    }
}

/// IPv4 options as hosts send them, and some that cannot be read.
fn options(random: &mut Random) -> Special {
    let all: [(&'static str, &[u8]); 12] = [
        ("nop", &[1, 1, 1, 1]),
        ("nop to the end", &[1; 40]),
        ("end", &[0, 0, 0, 0]),
        ("record route", &[7, 11, 4, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
        ("record route, full", &[7, 7, 8, 10, 9, 8, 7, 1]),
        ("timestamp", &[68, 12, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        ("router alert", &[148, 4, 0, 0]),
        ("unknown", &[0x5e, 4, 1, 2]),
        ("length 0", &[7, 0, 4, 0]),
        ("length 1", &[0x5e, 1, 4, 0]),
        ("beyond the header", &[7, 39, 4, 0]),
        ("source route", &[131, 7, 4, 10, 0, 0, 1, 0]),
    ];
    let (name, bytes) = random.one(&all);
    Special::Options(name, bytes.to_vec())
}

/// IPv6 extension headers in the order of RFC 8200, and others.
fn extensions(random: &mut Random) -> Special {
    let padding = |units: usize| [&[units as u8, 1, (units * 8 + 4) as u8][..], &vec![0; units * 8 + 4]].concat();
    let (hop_by_hop, destination) = (0, 60);
    let (name, headers): (_, Vec<(u8, Vec<u8>)>) = match random.below(7) {
        0 => ("hop by hop", vec![(hop_by_hop, padding(0))]),
        1 => ("router alert", vec![(hop_by_hop, vec![0, 5, 2, 0, 0, 1, 0])]),
        2 => ("destination options", vec![(destination, padding(random.below(4)))]),
        3 => ("both", vec![(hop_by_hop, padding(0)), (destination, padding(0))]),
        4 => ("many", (0..2 + random.below(11)).map(|_| (destination, padding(0))).collect()),
        5 => ("atomic fragment", vec![(44, vec![0, 0, 0, 1, 2, 3, 4])]),
        _ => ("unknown option", vec![(hop_by_hop, vec![0, 0x9e, 4, 0, 0, 0, 0])]),
    };
    Special::Extensions(name, headers)
}

fn fragments(random: &mut Random, v6: bool, payload: usize, mtu: usize) -> Special {
    let cut = match random.below(30) {
        0..14 => Cut::Whole,
        14..18 => Cut::Twice,
        18..21 => Cut::Overlaps,
        21..24 => Cut::Contained,
        24..28 => Cut::Small,
        // Fragments of these wait until they are given up, and a sender has room for 128.
        28 => Cut::Tiny,
        _ => Cut::Missing,
    };
    let size = match (v6, &cut) {
        (true, Cut::Small) => 8 * (64 + random.below(80)),
        // From the smallest MTU on.
        (true, _) => 8 * (154 + random.below(((mtu - 48) / 8).saturating_sub(154) + 1)),
        (false, Cut::Small) => 8 * (12 + random.below(20)),
        (false, _) => 8 * (26 + random.below((mtu - 20) / 8 - 25)),
    };
    // At least of this many bytes.
    let pieces = (payload + 8).div_ceil(size) + 2;
    Special::Fragments { cut, size, order: random.shuffled(pieces) }
}
