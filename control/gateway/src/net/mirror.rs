//! Mirrors the kernel's tables: dumps them once, then follows notifications.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use nomagic_core::frame::Wanted;
use nomagic_core::routes::{InternalPort, Routes};
use nomagic_core::tuple::Prefix;
use rtnetlink::packet_core::NLM_F_REPLACE;
use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::packet_route::neighbour::NeighbourMessage;
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::packet_route::rule::RuleMessage;
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage as Message};

use super::NetError;
use super::decode;
use super::resolver::{NeighbourResolver, ResolveOutcome};
use super::socket::{Notification, Notifications, Requests};
use super::state::{Effect, MirrorLimits, NetState, Unmirrored};
use super::view::RouteInputs;

/// Changes within this time after the first one are published together.
const DEBOUNCE: Duration = Duration::from_millis(5);
/// Delay of a second dump after an interface or address was removed: the kernel may still be deleting routes during the first one.
const SECOND_READ_DELAY: Duration = Duration::from_millis(200);
/// Maximum number of datagrams read before the task yields.
const DATAGRAMS_MAX: u32 = 256;
/// Maximum number of failed neighbours handled at a time.
const FAILED_MAX: usize = 256;
/// Netlink multicast groups: links, neighbours, IPv4 addresses, IPv4 routes, IPv6 addresses, IPv6 routes, rules of
/// both, next hop objects.
const GROUPS: [u32; 9] = [
    libc::RTNLGRP_LINK,
    libc::RTNLGRP_NEIGH,
    libc::RTNLGRP_IPV4_IFADDR,
    libc::RTNLGRP_IPV4_ROUTE,
    libc::RTNLGRP_IPV6_IFADDR,
    libc::RTNLGRP_IPV6_ROUTE,
    libc::RTNLGRP_IPV4_RULE,
    libc::RTNLGRP_IPV6_RULE,
    libc::RTNLGRP_NEXTHOP,
];

/// Counters since the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MirrorCounters {
    /// Notifications received.
    pub notifications: u64,
    /// Overruns: notifications were lost and all tables were read again.
    pub overruns: u64,
    /// Dumps of the route tables.
    pub route_reads: u64,
    /// Messages that could not be parsed.
    pub malformed: u64,
    /// Neighbours beyond the capacity of the latest table.
    pub next_hops_missing: u64,
    /// Entries that are not mirrored, by reason.
    pub left_out: Unmirrored,
}

/// A mirror of links, addresses, routes and neighbours of the network namespace in which it was started.
pub struct Mirror {
    requests: Requests,
    notifications: Notifications,
    state: NetState,
    resolver: NeighbourResolver,
    counters: MirrorCounters,
    pending: PendingWork,
    /// The inputs of the latest table.
    published: Option<(RouteInputs, Option<InternalPort>)>,
}

/// Work to do after the debounce time.
#[derive(Default)]
struct PendingWork {
    /// End of the debounce time; `None`: no work.
    due: Option<Instant>,
    changed: bool,
    read_rules: bool,
    read_routes: bool,
    read_all: bool,
    /// Time of the second dump of the route tables.
    second_read: Option<Instant>,
    /// Neighbours in state FAILED.
    failed: Vec<(u32, IpAddr)>,
}

impl Mirror {
    /// Subscribes to notifications and dumps all tables. Needs a tokio runtime; works in the calling thread's network namespace.
    pub fn start(limits: MirrorLimits) -> Result<Mirror, NetError> {
        // Subscribes first, so that no change between dump and subscription is missed.
        let notifications = Notifications::open(&GROUPS, limits.receive_buffer_bytes)?;
        let mut mirror = Mirror {
            requests: Requests::open()?,
            notifications,
            state: NetState::new(limits),
            resolver: NeighbourResolver::default(),
            counters: MirrorCounters::default(),
            pending: PendingWork::default(),
            published: None,
        };
        mirror.read_all()?;
        Ok(mirror)
    }

    /// Waits until the tables may have changed, 5 ms after the first notification. Cancel-safe.
    ///
    /// # Errors
    /// When a netlink socket fails; the mirror is then out of date and must be restarted.
    pub async fn changed(&mut self) -> Result<(), NetError> {
        loop {
            let wake = [self.pending.due, self.pending.second_read].into_iter().flatten().min();
            match wake {
                None => self.notifications.wait().await,
                Some(at) => tokio::select! {
                    () = self.notifications.wait() => {}
                    () = tokio::time::sleep_until(at.into()) => {}
                },
            }
            if !self.receive(Instant::now())? {
                tokio::task::yield_now().await;
            }
            if self.settle(Instant::now())? {
                return Ok(());
            }
        }
    }

    /// Builds the dataplane's table for these ports (interface names by `PortId`), unless it equals the one returned last. `captured`: see [`NetState::inputs`].
    pub fn routes_if_changed(
        &mut self,
        generation: u64,
        ports: &[String],
        captured: &BTreeSet<u32>,
        internal: Option<InternalPort>,
    ) -> Option<Routes> {
        let inputs = self.state.inputs(ports, captured);
        if self.published.as_ref().is_some_and(|(last, port)| *last == inputs && *port == internal) {
            return None;
        }
        let (routes, missing) = inputs.build(generation, internal);
        self.counters.next_hops_missing = missing as u64;
        self.published = Some((inputs, internal));
        Some(routes)
    }

    /// Builds the dataplane's table for these ports, changed or not.
    pub fn routes(&mut self, generation: u64, ports: &[String], captured: &BTreeSet<u32>, internal: Option<InternalPort>) -> Routes {
        self.published = None;
        self.routes_if_changed(generation, ports, captured, internal).unwrap_or_default()
    }

    /// An interface's MTU, bytes.
    pub fn mtu(&self, name: &str) -> Option<u32> {
        self.state.links.values().find(|link| link.name == name).map(|link| link.mtu)
    }

    /// All interfaces: names and indices.
    pub fn interfaces(&self) -> impl Iterator<Item = (&str, u32)> {
        self.state.links.values().map(|l| (l.name.as_str(), l.index))
    }

    /// Makes the kernel resolve a neighbour of a port and keep it resolved. At most one request a second for each neighbour, 1,024 in all.
    pub fn resolve_neighbour(&mut self, ports: &[String], wanted: &Wanted) -> Result<ResolveOutcome, NetError> {
        let name = ports.get(usize::from(wanted.port.0));
        let Some(link) = name.and_then(|n| self.state.link_named(n)).map(|l| l.index) else { return Ok(ResolveOutcome::NoPort) };
        self.resolver.resolve(&mut self.requests, (link, wanted.addr), Instant::now())
    }

    /// At most `max` stale neighbours of these ports. A request to resolve one makes the kernel confirm it.
    pub fn stale(&self, ports: &[String], max: usize) -> Vec<Wanted> {
        self.state.stale(ports, max)
    }

    /// Whether an interface belongs to a bridge, a bond or a VRF.
    pub(super) fn has_master(&self, name: &str) -> bool {
        self.state.link_named(name).is_some_and(|link| link.master.is_some())
    }

    /// The index of an interface, if it exists.
    pub fn ifindex(&self, name: &str) -> Option<u32> {
        self.state.link_named(name).map(|l| l.index)
    }

    /// This node's own addresses, see [`super::node::local_addresses`].
    pub fn local_addresses(&self) -> Vec<IpAddr> {
        super::node::usable(&self.state)
    }

    /// All addresses of this node, including link-local and loopback ones.
    pub fn own_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.state.addresses.iter().map(|a| a.addr)
    }

    /// What of the kernel's routing is left to the kernel, in words.
    pub fn left_to_kernel(&self) -> Vec<String> {
        self.state.left_to_kernel()
    }

    /// See [`NetState::ranges_behind`].
    pub fn ranges_behind(&self, fits: impl Fn(&str) -> bool) -> Vec<Prefix> {
        self.state.ranges_behind(fits)
    }

    /// See [`NetState::unicast_parts`].
    pub fn unicast_parts<'s>(&'s self, range: &Prefix, internal: u32) -> impl Iterator<Item = Prefix> + use<'s> {
        self.state.unicast_parts(range, internal)
    }

    /// The default interfaces, see [`NetState::serving_interfaces`].
    pub fn serving_interfaces(&self, own: &[IpAddr], pods: &[Prefix], without: &[&str]) -> Vec<String> {
        self.state.serving_interfaces(own, pods, without)
    }

    /// Counters since the start.
    pub fn counters(&self) -> MirrorCounters {
        MirrorCounters { left_out: self.state.left_out, ..self.counters }
    }

    /// Applies received notifications. False when more are left in the socket.
    fn receive(&mut self, now: Instant) -> Result<bool, NetError> {
        let Mirror { notifications, state, counters, pending, resolver, .. } = self;
        notifications.drain(DATAGRAMS_MAX, |notification| match notification {
            Notification::Malformed => counters.malformed += 1,
            Notification::Overrun => {
                counters.overruns += 1;
                pending.read_all(now);
            }
            // The kernel does not tell which routes it changes or deletes with a next hop object.
            Notification::NextHop => {
                counters.notifications += 1;
                pending.add(Effect::ReadRoutes, now);
            }
            Notification::Message(message, flags) => {
                counters.notifications += 1;
                match &message {
                    Message::NewNeighbour(m) => pending.neighbour_failed(decode::neighbour(m).filter(|n| n.failed)),
                    Message::DelNeighbour(m) => decode::neighbour(m).iter().for_each(|n| resolver.removed((n.link, n.addr))),
                    Message::DelLink(m) => resolver.link_removed(m.header.index),
                    _ => {}
                }
                let effect = state.apply(&message, flags & NLM_F_REPLACE != 0);
                pending.add(effect, now);
            }
        })
    }

    /// Does the pending work that is due. True when the tables may have changed.
    fn settle(&mut self, now: Instant) -> Result<bool, NetError> {
        for key in std::mem::take(&mut self.pending.failed) {
            self.resolver.failed(&mut self.requests, key)?;
        }
        if self.pending.second_read.is_some_and(|at| at <= now) {
            self.pending.second_read = None;
            if self.read_routes()? == Effect::Changed {
                self.pending.add(Effect::Changed, now);
            }
        }
        if self.pending.due.is_none_or(|due| due > now) {
            return Ok(false);
        }
        let pending = std::mem::take(&mut self.pending);
        self.pending.second_read = pending.second_read;
        if pending.read_all {
            self.read_all()?;
        } else if pending.read_routes {
            self.pending.second_read = Some(now + SECOND_READ_DELAY);
            return Ok(self.read_routes()? == Effect::Changed || pending.changed);
        } else if pending.read_rules {
            self.read_rules()?;
        }
        Ok(pending.changed || pending.read_all)
    }

    fn read_all(&mut self) -> Result<(), NetError> {
        let listings = [
            ("read the interfaces", Message::GetLink(LinkMessage::default())),
            ("read the addresses", Message::GetAddress(AddressMessage::default())),
            ("read the neighbours", Message::GetNeighbour(NeighbourMessage::default())),
        ];
        self.state.clear_all_but_routes();
        for (what, request) in listings {
            let dump = self.requests.dump(what, request)?;
            self.counters.malformed += dump.malformed;
            for message in &dump.messages {
                self.state.apply(message, false);
            }
        }
        self.read_routes().map(drop)
    }

    fn read_routes(&mut self) -> Result<Effect, NetError> {
        let mut found = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            let dump = self.requests.dump("read the routes", Message::GetRoute(request))?;
            self.counters.malformed += dump.malformed;
            found.extend(dump.messages);
        }
        self.counters.route_reads += 1;
        let rules = self.read_rules()?;
        Ok(self.state.replace_routes(&found).max(rules))
    }

    fn read_rules(&mut self) -> Result<Effect, NetError> {
        let mut found = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RuleMessage::default();
            request.header.family = family;
            match self.requests.dump("read the rules", Message::GetRule(request)) {
                Ok(dump) => {
                    self.counters.malformed += dump.malformed;
                    found.extend(dump.messages);
                }
                // A kernel without policy routing, or without this family.
                Err(NetError::Refused { source, .. }) if matches!(source.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP)) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(self.state.replace_rules(&found))
    }
}

impl PendingWork {
    fn add(&mut self, effect: Effect, now: Instant) {
        if effect == Effect::Nothing {
            return;
        }
        self.changed = true;
        self.read_rules |= effect == Effect::ReadRules;
        self.read_routes |= effect == Effect::ReadRoutes;
        self.due.get_or_insert(now + DEBOUNCE);
    }

    fn read_all(&mut self, now: Instant) {
        self.read_all = true;
        self.due.get_or_insert(now + DEBOUNCE);
    }

    fn neighbour_failed(&mut self, failed: Option<decode::KernelNeighbour>) {
        if let Some(n) = failed
            && self.failed.len() < FAILED_MAX
        {
            self.failed.push((n.link, n.addr));
        }
    }
}
