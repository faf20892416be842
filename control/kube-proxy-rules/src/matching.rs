//! What a rule can ask about a packet.

use std::net::IpAddr;

use nomagic_core::tuple::{Proto, Tuple, words_addr};

use crate::model::SetId;

/// Bits of a connection's state, as the kernel numbers them.
pub(crate) mod state {
    pub const INVALID: u32 = 1;
    pub const ESTABLISHED: u32 = 2;
    pub const RELATED: u32 = 4;
    pub const NEW: u32 = 8;
    pub const UNTRACKED: u32 = 64;
    /// Not states, but tested like them.
    pub const SNAT: u32 = 1 << 16;
    pub const DNAT: u32 = 1 << 17;

    /// The bit with this name, in any case of letters.
    pub fn parse(name: &str) -> Option<u32> {
        Some(match name.to_ascii_lowercase().as_str() {
            "invalid" => INVALID,
            "established" => ESTABLISHED,
            "related" => RELATED,
            "new" => NEW,
            "untracked" => UNTRACKED,
            "snat" => SNAT,
            "dnat" => DNAT,
            _ => return None,
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Side {
    Source,
    Destination,
}

/// A field of a packet that has a number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Field {
    Address {
        side: Side,
        v6: bool,
    },
    /// The protocol if the rule names one: `tcp dport`.
    Port {
        side: Side,
        of: Option<u8>,
    },
    Protocol,
    /// NFPROTO_IPV4 is 2, NFPROTO_IPV6 10.
    Family,
    Mark,
    State,
}

/// A range of numbers, both ends included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Span {
    pub first: u128,
    pub last: u128,
}

impl Span {
    pub(crate) fn one(value: u128) -> Span {
        Span { first: value, last: value }
    }

    pub(crate) fn contains(&self, value: u128) -> bool {
        (self.first..=self.last).contains(&value)
    }

    /// The addresses of a prefix. `None`: longer than the family's addresses.
    pub(crate) fn prefix(address: IpAddr, length: u8) -> Option<Span> {
        let bits: u8 = if address.is_ipv6() { 128 } else { 32 };
        let free = u32::from(bits.checked_sub(length)?);
        let host = if free == 128 { u128::MAX } else { (1_u128 << free) - 1 };
        let first = number(address) & !host;
        Some(Span { first, last: first | host })
    }
}

/// An address as a number.
pub(crate) fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => u128::from(u32::from(a)),
        IpAddr::V6(a) => u128::from(a),
    }
}

/// The inverse of [`number`].
pub(crate) fn address(number: u128, v6: bool) -> IpAddr {
    words_addr([(number >> 64) as u64, number as u64], v6)
}

#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Test {
    /// One field against spans.
    Field {
        field: Field,
        not: bool,
        spans: Vec<Span>,
    },
    /// Fields together against a set.
    InSet {
        key: Vec<Field>,
        not: bool,
        set: SetId,
    },
    /// `mark & mask == value`
    Mark {
        mask: u32,
        value: u32,
        not: bool,
    },
    /// Any of these bits.
    State {
        bits: u32,
        not: bool,
    },
    /// The address is one of this node's.
    Local {
        side: Side,
        not: bool,
    },
    /// By chance, with this probability.
    Chance(f64),
    /// The client was here in the last seconds (session affinity).
    Recent {
        name: String,
        seconds: Option<u32>,
    },
    /// The interface by which the packet comes or goes.
    Interface {
        incoming: bool,
        name: String,
        not: bool,
    },
    /// For every first packet the same.
    Constant {
        text: String,
        holds: bool,
    },
    Unknown(String),
}

/// A packet on its way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fields {
    pub tuple: Tuple,
    pub mark: u32,
    pub dnat: bool,
}

impl Fields {
    /// The value of a field, or `None` if this packet has none.
    pub(crate) fn get(&self, field: Field) -> Option<u128> {
        let tuple = &self.tuple;
        Some(match field {
            Field::Address { v6, .. } if v6 != tuple.v6 => return None,
            Field::Address { side: Side::Source, .. } => number(tuple.src_addr()),
            Field::Address { side: Side::Destination, .. } => number(tuple.dst_addr()),
            Field::Port { of: Some(proto), .. } if proto != tuple.proto as u8 => return None,
            Field::Port { side: Side::Source, .. } => tuple.sport.into(),
            Field::Port { side: Side::Destination, .. } => tuple.dport.into(),
            Field::Protocol => (tuple.proto as u8).into(),
            Field::Family => {
                if tuple.v6 {
                    10
                } else {
                    2
                }
            }
            Field::Mark => self.mark.into(),
            Field::State => state::NEW.into(),
        })
    }

    pub(crate) fn key(&self, fields: &[Field]) -> Option<Vec<u128>> {
        fields.iter().map(|field| self.get(*field)).collect()
    }

    /// The bits that [`Test::State`] looks at. The packet is the first one of its connection.
    pub(crate) fn state(&self) -> u32 {
        state::NEW | if self.dnat { state::DNAT } else { 0 }
    }
}

/// The number of a protocol by name or number.
pub(crate) fn protocol_number(text: &str) -> Option<u8> {
    Some(match text.to_ascii_lowercase().as_str() {
        "tcp" => Proto::Tcp as u8,
        "udp" => Proto::Udp as u8,
        "sctp" => Proto::Sctp as u8,
        "icmp" => 1,
        "igmp" => 2,
        "ipencap" | "ipip" => 4,
        "dccp" => 33,
        "gre" => 47,
        "esp" => 50,
        "ah" => 51,
        "icmpv6" | "ipv6-icmp" => 58,
        "ospf" => 89,
        "vrrp" => 112,
        "udplite" => 136,
        other => other.parse().ok()?,
    })
}
