//! Reading the kernel's tables once and following them.

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
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage as Message};

use super::NetError;
use super::ask::{Asked, Asker};
use super::decode;
use super::socket::{Heard, Notifications, Requests};
use super::state::{Effect, LeftOut, Limits, NetState};
use super::view::Inputs;

/// Changes that come within this time after the first one are published together.
const DEBOUNCE: Duration = Duration::from_millis(5);
/// After an interface or address went, the kernel may still be dropping routes while they are read: they are read once more.
const READ_AGAIN_AFTER: Duration = Duration::from_millis(200);
/// Datagrams read in one go, before the runtime gets its turn.
const DATAGRAMS_MAX: u32 = 256;
/// Neighbours that are let go in one go.
const GIVEN_UP_MAX: usize = 256;
/// Netlink multicast groups: links, neighbours, IPv4 addresses, IPv4 routes, IPv6 addresses, IPv6 routes.
const GROUPS: [u32; 6] = [
    libc::RTNLGRP_LINK,
    libc::RTNLGRP_NEIGH,
    libc::RTNLGRP_IPV4_IFADDR,
    libc::RTNLGRP_IPV4_ROUTE,
    libc::RTNLGRP_IPV6_IFADDR,
    libc::RTNLGRP_IPV6_ROUTE,
];

/// What happened since the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MirrorCounters {
    /// Notifications heard.
    pub notifications: u64,
    /// Times that notifications were lost and everything was read again.
    pub overruns: u64,
    /// Times that the route tables were read again.
    pub route_reads: u64,
    /// Messages that could not be parsed.
    pub malformed: u64,
    /// Neighbours that had no room in the dataplane's table when it was last built.
    pub next_hops_missing: u64,
    /// What was left out of the mirror, by reason.
    pub left_out: LeftOut,
}

/// Follows links, addresses, routes and neighbours of the network namespace it was started in.
pub struct Mirror {
    requests: Requests,
    notifications: Notifications,
    state: NetState,
    asker: Asker,
    counters: MirrorCounters,
    todo: Todo,
    /// What the last published table was built from.
    published: Option<(Inputs, Option<InternalPort>)>,
}

/// What has to be done when the debounce time is over.
#[derive(Default)]
struct Todo {
    /// The end of the debounce time; `None`: nothing to do.
    due: Option<Instant>,
    changed: bool,
    read_routes: bool,
    read_all: bool,
    /// The route tables will be read once more at this time.
    read_again: Option<Instant>,
    /// Neighbours that the kernel has given up.
    given_up: Vec<(u32, IpAddr)>,
}

impl Mirror {
    /// Subscribes and reads everything. Needs a tokio runtime; lives in the calling thread's network namespace.
    pub fn start(limits: Limits) -> Result<Mirror, NetError> {
        // Subscribed first, so that nothing falls between reading and following.
        let notifications = Notifications::open(&GROUPS, limits.waiting_bytes)?;
        let mut mirror = Mirror {
            requests: Requests::open()?,
            notifications,
            state: NetState::new(limits),
            asker: Asker::default(),
            counters: MirrorCounters::default(),
            todo: Todo::default(),
            published: None,
        };
        mirror.read_all()?;
        Ok(mirror)
    }

    /// Waits until something may have changed, 5 ms after the first notification. Cancel-safe.
    ///
    /// # Errors
    /// Only when a netlink socket fails for good; the mirror is then out of date and must be started anew.
    pub async fn changed(&mut self) -> Result<(), NetError> {
        loop {
            let wake = [self.todo.due, self.todo.read_again].into_iter().flatten().min();
            match wake {
                None => self.notifications.wait().await,
                Some(at) => tokio::select! {
                    () = self.notifications.wait() => {}
                    () = tokio::time::sleep_until(at.into()) => {}
                },
            }
            if !self.hear(Instant::now())? {
                tokio::task::yield_now().await;
            }
            if self.settle(Instant::now())? {
                return Ok(());
            }
        }
    }

    /// The dataplane's table for these ports (interface names in the order of their `PortId`s), unless it is the one that was
    /// last returned. `captured`: see [`NetState::inputs`].
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

    /// The dataplane's table for these ports, changed or not.
    pub fn routes(&mut self, generation: u64, ports: &[String], captured: &BTreeSet<u32>, internal: Option<InternalPort>) -> Routes {
        self.published = None;
        self.routes_if_changed(generation, ports, captured, internal).unwrap_or_default()
    }

    /// All interfaces: names and indices.
    pub fn interfaces(&self) -> impl Iterator<Item = (&str, u32)> {
        self.state.links.values().map(|l| (l.name.as_str(), l.index))
    }

    /// Makes the kernel resolve a neighbour of a port and keep it alive. At most once a second each, and 1,024 a second in all.
    pub fn ask(&mut self, ports: &[String], wanted: &Wanted) -> Result<Asked, NetError> {
        let name = ports.get(usize::from(wanted.port.0));
        let Some(link) = name.and_then(|n| self.state.link_named(n)).map(|l| l.index) else { return Ok(Asked::NoPort) };
        self.asker.ask(&mut self.requests, (link, wanted.addr), Instant::now())
    }

    /// Neighbours of these ports that were not confirmed for a while, at most `max`. Asking for them makes the kernel confirm them.
    pub fn stale(&self, ports: &[String], max: usize) -> Vec<Wanted> {
        self.state.stale(ports, max)
    }

    /// The index of an interface, if it exists.
    pub fn ifindex(&self, name: &str) -> Option<u32> {
        self.state.link_named(name).map(|l| l.index)
    }

    /// This node's own addresses, see [`super::node::local_addresses`].
    pub fn local_addresses(&self) -> Vec<IpAddr> {
        super::node::usable(&self.state)
    }

    /// All addresses of this node, those for one link or host only included.
    pub fn own_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.state.addresses.iter().map(|a| a.addr)
    }

    /// See [`NetState::ranges_behind`].
    pub fn ranges_behind(&self, fits: impl Fn(&str) -> bool) -> Vec<Prefix> {
        self.state.ranges_behind(fits)
    }

    /// See [`NetState::unicast_parts`].
    pub fn unicast_parts<'s>(&'s self, range: &Prefix, internal: u32) -> impl Iterator<Item = Prefix> + use<'s> {
        self.state.unicast_parts(range, internal)
    }

    /// The interfaces on which this node serves Services by default, see [`NetState::serving_interfaces`].
    pub fn serving_interfaces(&self, own: &[IpAddr], pods: &[Prefix], without: &[&str]) -> Vec<String> {
        self.state.serving_interfaces(own, pods, without)
    }

    /// What happened since the start.
    pub fn counters(&self) -> MirrorCounters {
        MirrorCounters { left_out: self.state.left_out, ..self.counters }
    }

    /// Takes in what the socket has. False when more is left in it.
    fn hear(&mut self, now: Instant) -> Result<bool, NetError> {
        let Mirror { notifications, state, counters, todo, asker, .. } = self;
        notifications.drain(DATAGRAMS_MAX, |heard| match heard {
            Heard::Malformed => counters.malformed += 1,
            Heard::Overrun => {
                counters.overruns += 1;
                todo.read_all(now);
            }
            Heard::Message(message, flags) => {
                counters.notifications += 1;
                match &message {
                    Message::NewNeighbour(m) => todo.neighbour_failed(decode::neighbour(m).filter(|n| n.failed)),
                    Message::DelNeighbour(m) => decode::neighbour(m).iter().for_each(|n| asker.removed((n.link, n.addr))),
                    Message::DelLink(m) => asker.link_gone(m.header.index),
                    _ => {}
                }
                let effect = state.apply(&message, flags & NLM_F_REPLACE != 0);
                todo.note(effect, now);
            }
        })
    }

    /// Does what is due. True when the view may have changed.
    fn settle(&mut self, now: Instant) -> Result<bool, NetError> {
        for key in std::mem::take(&mut self.todo.given_up) {
            self.asker.gave_up(&mut self.requests, key)?;
        }
        if self.todo.read_again.is_some_and(|at| at <= now) {
            self.todo.read_again = None;
            if self.read_routes()? == Effect::Changed {
                self.todo.note(Effect::Changed, now);
            }
        }
        if self.todo.due.is_none_or(|due| due > now) {
            return Ok(false);
        }
        let todo = std::mem::take(&mut self.todo);
        self.todo.read_again = todo.read_again;
        if todo.read_all {
            self.read_all()?;
        } else if todo.read_routes {
            self.todo.read_again = Some(now + READ_AGAIN_AFTER);
            return Ok(self.read_routes()? == Effect::Changed || todo.changed);
        }
        Ok(todo.changed || todo.read_all)
    }

    fn read_all(&mut self) -> Result<(), NetError> {
        let listings = [
            ("read the interfaces", Message::GetLink(LinkMessage::default())),
            ("read the addresses", Message::GetAddress(AddressMessage::default())),
            ("read the neighbours", Message::GetNeighbour(NeighbourMessage::default())),
        ];
        self.state.forget_all_but_routes();
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
        Ok(self.state.replace_routes(&found))
    }
}

impl Todo {
    fn note(&mut self, effect: Effect, now: Instant) {
        if effect == Effect::Nothing {
            return;
        }
        self.changed = true;
        self.read_routes |= effect == Effect::ReadRoutes;
        self.due.get_or_insert(now + DEBOUNCE);
    }

    fn read_all(&mut self, now: Instant) {
        self.read_all = true;
        self.due.get_or_insert(now + DEBOUNCE);
    }

    fn neighbour_failed(&mut self, failed: Option<decode::KernelNeighbour>) {
        if let Some(n) = failed
            && self.given_up.len() < GIVEN_UP_MAX
        {
            self.given_up.push((n.link, n.addr));
        }
    }
}
