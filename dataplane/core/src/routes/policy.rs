//! Policy routing: the kernel's rules, each of which selects packets for a table (`ip rule`).
//!
//! A packet is routed as the kernel would route it after DNAT and before SNAT. A rule whose selectors cannot be evaluated here leaves the packets that
//! it may select to the kernel.

use crate::frame::PortId;
use crate::tuple::{AddrWords, Prefix, Proto, Tuple, words_addr};

/// What a packet is routed by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RouteQuery {
    /// The source as received: SNAT comes after routing.
    pub src: AddrWords,
    /// The destination after DNAT.
    pub dst: AddrWords,
    /// IPv6.
    pub v6: bool,
    /// The port that it came in by.
    pub port: PortId,
    /// The transport protocol.
    pub proto: Proto,
    /// The source port as received.
    pub sport: u16,
    /// The destination port after DNAT.
    pub dport: u16,
}

impl RouteQuery {
    /// The query for a packet with this tuple, received by this port, that goes on as `new`.
    pub fn new(received: &Tuple, port: PortId, new: &Tuple) -> RouteQuery {
        RouteQuery { src: received.src, dst: new.dst, v6: new.v6, port, proto: new.proto, sport: received.sport, dport: new.dport }
    }
}

/// The interface by which packets must come in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Input {
    /// Any interface.
    Any,
    /// A port of the dataplane.
    Port(PortId),
    /// Another interface. Only packets that come in by the internal port may have come by it: what sent them there is not known.
    Elsewhere,
}

/// An inclusive range of transport ports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PortSpan {
    /// The lowest port.
    pub first: u16,
    /// The highest port.
    pub last: u16,
}

impl PortSpan {
    fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

/// What a rule does with the packets that it selects.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RuleAction {
    /// Looks them up in this table (an index). Routes with prefixes this long or shorter do not count (`suppress_prefixlength`). Without a route the
    /// next rule decides.
    Lookup {
        /// The index of the table.
        table: usize,
        /// The longest length that does not count.
        suppressed: Option<u8>,
    },
    /// Goes on at the rule with this index, which comes later.
    GoTo(usize),
    /// Drops them as if there were no route: the kernel gives the same error.
    Unreachable,
    /// Drops them, and tells the sender that this is prohibited.
    Prohibit,
    /// Drops them in silence.
    Blackhole,
    /// Leaves them to the kernel.
    Kernel,
}

/// A routing rule. Every selector must fit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rule {
    /// Sources.
    pub from: Option<Prefix>,
    /// Destinations.
    pub to: Option<Prefix>,
    /// The interface that packets come in by.
    pub input: Input,
    /// The transport protocol.
    pub proto: Option<Proto>,
    /// Source ports.
    pub sports: Option<PortSpan>,
    /// Destination ports.
    pub dports: Option<PortSpan>,
    /// Has selectors that cannot be evaluated here (`tos`, `tun_id`, ...).
    pub opaque: bool,
    /// Selects the packets that do not fit.
    pub invert: bool,
    /// What becomes of the packets.
    pub action: RuleAction,
}

impl Rule {
    /// The rule that selects everything.
    pub fn all(action: RuleAction) -> Rule {
        let (from, to, proto, sports, dports) = (None, None, None, None, None);
        Rule { from, to, input: Input::Any, proto, sports, dports, opaque: false, invert: false, action }
    }

    /// Whether it selects all packets whatever they are.
    pub fn is_for_all(&self) -> bool {
        *self == Rule::all(self.action)
    }

    /// Whether it selects a packet; `None`: only the kernel knows. `internal` is the internal port.
    pub(super) fn selects(&self, query: &RouteQuery, internal: Option<PortId>) -> Option<bool> {
        let within = |prefix: &Option<Prefix>, words| prefix.is_none_or(|prefix| prefix.contains(words_addr(words, query.v6)));
        let spans = |span: &Option<PortSpan>, port| span.is_none_or(|span| span.contains(port));
        let fits = within(&self.from, query.src)
            && within(&self.to, query.dst)
            && self.proto.is_none_or(|proto| proto == query.proto)
            && spans(&self.sports, query.sport)
            && spans(&self.dports, query.dport);
        let known = match self.input {
            _ if !fits => Some(false),
            _ if self.opaque => None,
            Input::Any => Some(true),
            Input::Port(port) => Some(port == query.port),
            Input::Elsewhere if internal == Some(query.port) => None,
            Input::Elsewhere => Some(false),
        };
        known.map(|selects| selects != self.invert)
    }
}
