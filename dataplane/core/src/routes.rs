//! Routing: longest prefix match, neighbours, next hops.
//!
//! The control plane mirrors the kernel's routes and neighbours into a [`Routes`] and publishes it whole; nothing is
//! configured twice. Flows cache a next hop together with the generation it was resolved under.

mod leads_back;
mod next_hop;
mod policy;
mod reverse_path;
mod table;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use crate::frame::{NextHopId, PortId, Wanted};
use crate::hash::{WordMap, WordSet};
use crate::reason::Reason;
use crate::rss::Rss;
use crate::tuple::{Prefix, Proto, addr_words, fast_range, mask_addr, words_addr};

pub use next_hop::{NextHop, Resolution};
pub use policy::{Input, PortSpan, RouteQuery, Rule, RuleAction};
pub use reverse_path::ReversePath;
use table::{Found, Table};

/// A MAC address.
pub type Mac = [u8; 6];

/// What the core must know of a port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Port {
    /// Its own MAC address.
    pub mac: Mac,
    /// Its MTU: bytes of an IP packet.
    pub mtu: u32,
    /// Carrier and administratively up. Frames to a port that is down are dropped by name.
    pub up: bool,
}

/// The internal port: frames sent out of `port` arrive at the kernel's end of the veth pair.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InternalPort {
    /// nm1, the dataplane's end.
    pub port: PortId,
    /// MAC address of nm0, the kernel's end.
    pub kernel_mac: Mac,
}

/// What a route does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RouteKind {
    /// Through one of these legs; several legs (multipath) are chosen by the flow's hash.
    Unicast(Vec<Leg>),
    /// An address of this node.
    Local,
    /// Dropped, and the sender is told that the host is unreachable.
    Unreachable,
    /// Dropped, and the sender is told that this is prohibited.
    Prohibit,
    /// Dropped in silence.
    Blackhole,
    /// This table does not decide: the next rule does.
    Throw,
    /// Only the kernel can choose among the routes of this prefix.
    Kernel,
}

/// One leg of a unicast route.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Leg {
    /// The port; `None`: an interface that is not the dataplane's, so the kernel must send.
    pub port: Option<PortId>,
    /// For an interface behind the kernel: it has the filter, so answers that arrive there or leave by it are captured.
    pub captured: bool,
    /// The gateway; `None`: the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// Relative weight, at least 1.
    pub weight: u16,
    /// The route's own MTU, bytes of an IP packet; `None`: the port's.
    pub mtu: Option<u16>,
}

/// A route of one of the kernel's tables.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Route {
    /// Destinations.
    pub prefix: Prefix,
    /// Among routes of one prefix the smallest metric wins.
    pub metric: u32,
    /// What it does.
    pub kind: RouteKind,
}

/// The routes of a family.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Policy {
    /// The tables that the rules name by index.
    pub tables: Vec<Vec<Route>>,
    /// The rules in their order; none: the first table decides alone.
    pub rules: Vec<Rule>,
}

/// A resolved neighbour.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Neighbour {
    /// The port that leads to it.
    pub port: PortId,
    /// Its address.
    pub addr: IpAddr,
    /// Its MAC address.
    pub mac: Mac,
}

/// Routes, neighbours and next hops of one moment. Immutable once published.
#[derive(Debug, Default)]
pub struct Routes {
    /// Raised with each publication; flows compare its low 12 bits.
    pub generation: u64,
    /// The way back to the kernel.
    pub internal: Option<InternalPort>,
    ports: Vec<Port>,
    /// By port; `None` where it is unknown or all packets reach one worker.
    rss: Vec<Option<Arc<Rss>>>,
    /// By port: whether packets that the kernel sends out of it are captured if they are answers. The internal port stands for all interfaces
    /// behind it that have the filter. Empty where nothing is known.
    sees_answers: Vec<bool>,
    /// By port. Empty: no source is compared with the routes to it.
    reverse_path: Vec<ReversePath>,
    /// The tables, by family. Without rules, only the first one counts.
    tables: [Vec<Table>; 2],
    /// The rules that select tables, by family.
    rules: [Vec<Rule>; 2],
    /// What is this node's own, by family and prefix length.
    local: [Vec<(u8, WordSet<IpAddr>)>; 2],
    /// Place 0 is never used.
    hops: Vec<NextHop>,
    neighbours: WordMap<(PortId, IpAddr), NextHopId>,
    /// The same with the MTU of a route.
    by_mtu: WordMap<(PortId, IpAddr, u16), NextHopId>,
    /// The kernel's end of the internal port.
    kernel: NextHopId,
}

/// Most ports: flows have 7 bits for the port that their packets come in by, and 0 means none.
pub const PORTS_MAX: usize = (1 << 7) - 1;

/// Most neighbours: flows have 14 bits for a next hop; 0 means none, and one is the kernel.
pub const NEXT_HOPS_MAX: usize = (1 << 14) - 2;

impl Routes {
    /// Builds a table of routes without rules. Returns how many neighbours were left out: those beyond [`NEXT_HOPS_MAX`], and those of unknown ports.
    pub fn build(
        generation: u64,
        ports: Vec<Port>,
        internal: Option<InternalPort>,
        routes: Vec<Route>,
        neighbours: &[Neighbour],
    ) -> (Routes, usize) {
        let (v6, v4): (Vec<Route>, Vec<Route>) = routes.into_iter().partition(|route| route.prefix.addr().is_ipv6());
        let plain = |routes| Policy { tables: vec![routes], rules: Vec::new() };
        Routes::with_policies(generation, ports, internal, [plain(v4), plain(v6)], neighbours)
    }

    /// Builds the routes of IPv4 and IPv6. Returns the same as [`Routes::build`].
    pub fn with_policies(
        generation: u64,
        ports: Vec<Port>,
        internal: Option<InternalPort>,
        policies: [Policy; 2],
        neighbours: &[Neighbour],
    ) -> (Routes, usize) {
        let none = NextHop { port: PortId::NONE, link: [0; 12], mtu: 0 };
        let mut table = Routes { generation, internal, ports, hops: vec![none], ..Routes::default() };
        let mut mtus = BTreeSet::new();
        for (family, policy) in policies.into_iter().enumerate() {
            for route in policy.tables.iter().flatten() {
                if route.kind == RouteKind::Local {
                    table.add_local(&route.prefix);
                }
                let legs = if let RouteKind::Unicast(legs) = &route.kind { &legs[..] } else { &[] };
                mtus.extend(legs.iter().filter_map(|leg| Some((leg.port?, leg.mtu?))));
            }
            table.tables[family] = policy.tables.into_iter().map(Table::new).collect();
            table.rules[family] = policy.rules;
        }
        if let Some((internal, port)) = internal.and_then(|i| Some((i, table.ports.get(usize::from(i.port.0))?))) {
            table.kernel = NextHopId(table.hops.len() as u16);
            table.hops.push(NextHop::new(internal.port, port, internal.kernel_mac));
        }
        let left_out = table.add_neighbours(neighbours, &mtus);
        (table, left_out)
    }

    /// Adds a next hop for each neighbour, and then one for each MTU that a route by its port has. Returns how many neighbours were left out.
    /// The MTU of a port, as far as packets can use it.
    pub fn mtu_of(&self, port: PortId) -> u16 {
        self.ports.get(usize::from(port.0)).map_or(u16::MAX, |port| u16::try_from(port.mtu).unwrap_or(u16::MAX))
    }

    fn add_neighbours(&mut self, neighbours: &[Neighbour], mtus: &BTreeSet<(PortId, u16)>) -> usize {
        let (before, mut left_out) = (self.hops.len(), 0);
        for n in neighbours {
            let Some(port) = self.ports.get(usize::from(n.port.0)) else {
                left_out += 1;
                continue;
            };
            if self.hops.len() - before >= NEXT_HOPS_MAX {
                left_out += 1;
                continue;
            }
            self.neighbours.insert((n.port, n.addr), NextHopId(self.hops.len() as u16));
            self.hops.push(NextHop::new(n.port, port, n.mac));
        }
        for n in neighbours {
            for &(_, mtu) in mtus.range((n.port, 0)..=(n.port, u16::MAX)) {
                let Some(port) = self.ports.get(usize::from(n.port.0)).filter(|_| self.hops.len() - before < NEXT_HOPS_MAX) else {
                    continue;
                };
                self.by_mtu.insert((n.port, n.addr, mtu), NextHopId(self.hops.len() as u16));
                self.hops.push(NextHop::new(n.port, port, n.mac).with_mtu(mtu));
            }
        }
        left_out
    }

    fn add_local(&mut self, prefix: &Prefix) {
        let (addr, len) = (prefix.addr(), prefix.prefix_len());
        let family = &mut self.local[usize::from(addr.is_ipv6())];
        if let Some((_, nets)) = family.iter_mut().find(|(l, _)| *l == len) {
            nets.insert(addr);
        } else {
            family.push((len, WordSet::from_iter([addr])));
        }
    }

    /// Whether an address is one of this node's own: the kernel's `local` table has it.
    pub fn is_local(&self, addr: IpAddr) -> bool {
        self.local[usize::from(addr.is_ipv6())].iter().any(|(len, nets)| nets.contains(&mask_addr(addr, *len)))
    }

    /// Adds how the ports spread received packets over the workers, in the order of the ports. Ports whose packets all reach one worker are
    /// dropped: they leave no choice.
    pub fn with_rss(mut self, rss: impl IntoIterator<Item = Option<Arc<Rss>>>) -> Routes {
        self.rss = rss.into_iter().map(|rss| rss.filter(|r| r.divides())).collect();
        self
    }

    /// Adds, in the order of the ports, out of which of them answers are captured that the kernel sends.
    pub fn with_answers_seen(mut self, seen: impl IntoIterator<Item = bool>) -> Routes {
        self.sees_answers = seen.into_iter().collect();
        self
    }

    /// How a port spreads received packets over the workers.
    #[inline]
    pub fn rss(&self, port: PortId) -> Option<&Rss> {
        self.rss.get(usize::from(port.0))?.as_deref()
    }

    /// A port.
    pub fn port(&self, id: PortId) -> Option<&Port> {
        self.ports.get(usize::from(id.0))
    }

    /// The next hop with an id of this generation.
    #[inline(always)]
    pub fn hop(&self, id: NextHopId) -> Option<&NextHop> {
        if id.0 == 0 { None } else { self.hop_or_none(id) }
    }

    /// Like [`Routes::hop`], but id 0 returns a hop with MTU 0, which fits no packet.
    #[inline(always)]
    pub fn hop_or_none(&self, id: NextHopId) -> Option<&NextHop> {
        self.hops.get(usize::from(id.0))
    }

    /// The next hop into the kernel's forwarding, for rewritten packets whose route is through no port of the dataplane.
    pub fn kernel_hop(&self) -> Option<(NextHop, NextHopId)> {
        self.hop(self.kernel).map(|hop| (*hop, self.kernel))
    }

    /// Resolves a destination, for a packet of which nothing else is known. `hash` spreads flows over multipath routes.
    pub fn resolve(&self, dst: IpAddr, hash: u64) -> Resolution {
        let (dst, v6) = addr_words(dst);
        let query = RouteQuery { src: [0; 2], dst, v6, port: PortId::NONE, proto: Proto::Tcp, sport: 0, dport: 0 };
        self.resolve_with(&query, || hash).0
    }

    /// Resolves the way of a packet; also whether the result holds for all packets to its destination. `hash` is called only for multipath routes.
    pub fn resolve_with(&self, query: &RouteQuery, hash: impl FnOnce() -> u64) -> (Resolution, bool) {
        let (dst, rules) = (words_addr(query.dst, query.v6), &self.rules[usize::from(query.v6)]);
        let kind = match self.decide(query, dst, rules) {
            Ok(kind) => kind,
            Err(resolution) => return (resolution, rules.is_empty()),
        };
        let (resolution, one_way) = self.by_kind(kind, dst, hash);
        (resolution, one_way && rules.is_empty())
    }

    /// The route that the rules lead to.
    fn decide(&self, query: &RouteQuery, dst: IpAddr, rules: &[Rule]) -> Result<&RouteKind, Resolution> {
        let tables = &self.tables[usize::from(query.v6)];
        let no_route = Resolution::Nowhere(Reason::NoRoute);
        let Some(last) = rules.len().checked_sub(1) else {
            return tables.first().and_then(|table| table.lookup(dst)).map(|found| found.kind).ok_or(no_route);
        };
        let internal = self.internal.map(|internal| internal.port);
        let mut place = 0;
        while place <= last {
            let rule = &rules[place];
            place += 1;
            match rule.selects(query, internal) {
                Some(false) => continue,
                // Answers come in by the ports, where replies are captured.
                None => return Err(Resolution::Kernel { captured: true }),
                Some(true) => {}
            }
            match rule.action {
                RuleAction::Lookup { table, suppressed } => match tables.get(table).and_then(|table| table.lookup(dst)) {
                    None | Some(Found { kind: RouteKind::Throw, .. }) => {}
                    Some(Found { len, kind: RouteKind::Unicast(_) | RouteKind::Local, .. })
                        if suppressed.is_some_and(|most| len <= most) => {}
                    Some(found) => return Ok(found.kind),
                },
                // Only forwards, so this ends.
                RuleAction::GoTo(target) => place = target.max(place),
                RuleAction::Unreachable => return Err(no_route),
                RuleAction::Prohibit => return Ok(&RouteKind::Prohibit),
                RuleAction::Blackhole => return Ok(&RouteKind::Blackhole),
                RuleAction::Kernel => return Ok(&RouteKind::Kernel),
            }
        }
        Err(no_route)
    }

    /// What a route does with packets to a destination; also whether it does so for all of them.
    fn by_kind(&self, kind: &RouteKind, dst: IpAddr, hash: impl FnOnce() -> u64) -> (Resolution, bool) {
        let legs = match kind {
            RouteKind::Unicast(legs) => legs,
            // Answers of this node itself arrive at no interface.
            RouteKind::Local => return (Resolution::Kernel { captured: false }, true),
            RouteKind::Kernel => return (Resolution::Kernel { captured: true }, true),
            RouteKind::Unreachable => return (Resolution::Nowhere(Reason::Unreachable), true),
            RouteKind::Prohibit => return (Resolution::Nowhere(Reason::RouteProhibited), true),
            RouteKind::Blackhole => return (Resolution::Nowhere(Reason::RouteBlackhole), true),
            RouteKind::Throw => return (Resolution::Nowhere(Reason::NoRoute), true),
        };
        match &legs[..] {
            [] => (Resolution::Nowhere(Reason::NoRoute), true),
            [leg] => (self.by_leg(leg, dst), true),
            legs => (pick_leg(legs, hash()).map_or(Resolution::Nowhere(Reason::NoRoute), |leg| self.by_leg(leg, dst)), false),
        }
    }

    /// Whether the way of a packet may depend on the port that it comes in by.
    pub fn depends_on_port(&self, v6: bool) -> bool {
        self.rules[usize::from(v6)].iter().any(|rule| rule.input != Input::Any)
    }

    /// What each table says about a destination.
    fn all_kinds(&self, dst: IpAddr) -> impl Iterator<Item = &RouteKind> {
        let tables = &self.tables[usize::from(dst.is_ipv6())];
        tables.iter().filter_map(move |table| table.lookup(dst)).map(|found| found.kind)
    }

    /// Whether a port leads to this destination: the port of one of its route's legs, or the internal port for what lies behind the kernel.
    /// Answers come in by such a port. With rules: of any table's route, since which one depends on the packet.
    pub fn leads_by(&self, dst: IpAddr, port: PortId) -> bool {
        let internal = self.internal.is_some_and(|internal| internal.port == port);
        self.all_kinds(dst).any(|kind| match kind {
            RouteKind::Unicast(legs) => legs.iter().any(|leg| leg.port.map_or(internal, |leg| leg == port)),
            RouteKind::Local => internal,
            RouteKind::Kernel => true,
            RouteKind::Unreachable | RouteKind::Prohibit | RouteKind::Blackhole | RouteKind::Throw => false,
        })
    }

    /// A port that leads to this destination, and so receives its answers: see [`Routes::leads_by`].
    pub fn port_towards(&self, dst: IpAddr) -> Option<PortId> {
        let internal = self.internal.map(|internal| internal.port);
        self.all_kinds(dst).find_map(|kind| match kind {
            RouteKind::Unicast(legs) => legs.first()?.port.or(internal),
            RouteKind::Local | RouteKind::Kernel => internal,
            RouteKind::Unreachable | RouteKind::Prohibit | RouteKind::Blackhole | RouteKind::Throw => None,
        })
    }

    /// Whether answers to this client are captured on their way out, whatever endpoint behind the kernel sends them: each leg of its route is
    /// looked at. Never for an address of this node, which answers reach by no interface.
    pub fn sees_answers_to(&self, client: IpAddr) -> bool {
        let seen_at = |port: PortId| self.sees_answers.get(usize::from(port.0)).is_some_and(|seen| *seen);
        let behind = self.internal.is_some_and(|internal| seen_at(internal.port));
        let seen = |leg: &Leg| leg.port.map_or_else(|| leg.captured && behind, seen_at);
        // With rules, any table may decide about an answer.
        let mut kinds = self.all_kinds(client).peekable();
        kinds.peek().is_some() && kinds.all(|kind| matches!(kind, RouteKind::Unicast(legs) if !legs.is_empty() && legs.iter().all(seen)))
    }

    fn by_leg(&self, leg: &Leg, dst: IpAddr) -> Resolution {
        let Some(port) = leg.port else { return Resolution::Kernel { captured: leg.captured } };
        if !self.port(port).is_some_and(|p| p.up) {
            return Resolution::Nowhere(Reason::PortDown);
        }
        let addr = leg.gateway.unwrap_or(dst);
        let with_mtu = leg.mtu.and_then(|mtu| self.by_mtu.get(&(port, addr, mtu)));
        match with_mtu.or_else(|| self.neighbours.get(&(port, addr))) {
            Some(id) => Resolution::Hop(*id),
            None => Resolution::Ask(Wanted { port, addr }),
        }
    }
}

/// Chooses among the legs of a multipath route in proportion to their weights.
fn pick_leg(legs: &[Leg], hash: u64) -> Option<&Leg> {
    let total: u32 = legs.iter().map(|l| u32::from(l.weight.max(1))).sum();
    let mut ticket = fast_range(hash as u32, total);
    legs.iter().find(|l| {
        let weight = u32::from(l.weight.max(1));
        let hit = ticket < weight;
        ticket = ticket.saturating_sub(weight);
        hit
    })
}

#[cfg(test)]
mod tests;
