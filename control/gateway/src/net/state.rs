//! The mirrored tables. Pure: applies messages and returns their effect.
//!
//! Most notifications are applied as they arrive. Where a notification is incomplete (which of several equal routes was replaced, which
//! routes were deleted silently with an interface), [`Effect::ReadRoutes`] demands a dump of the route tables.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use nomagic_core::routes::{Mac, NEXT_HOPS_MAX};
use rtnetlink::packet_route::RouteNetlinkMessage as Message;
use rtnetlink::packet_route::route::RouteMessage;

use super::decode::{self, KernelLink, KernelNeighbour, OwnAddress, RouteAction, RouteKey, Skipped};
use super::rules::KernelRule;

/// Limits of the mirrored tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MirrorLimits {
    /// Routes, all tables and both families together.
    pub routes_max: usize,
    /// Usable neighbours of all interfaces.
    pub neighbours_max: usize,
    /// Interfaces.
    pub links_max: usize,
    /// Receive buffer for notifications (capped by net.core.rmem_max); after an overrun all tables are read again.
    pub receive_buffer_bytes: u32,
}

impl Default for MirrorLimits {
    fn default() -> MirrorLimits {
        MirrorLimits { routes_max: 1_000_000, neighbours_max: NEXT_HOPS_MAX, links_max: 65_536, receive_buffer_bytes: 4 << 20 }
    }
}

/// The effect of a message.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Effect {
    /// None on the mirrored tables.
    Nothing,
    /// The tables may have changed.
    Changed,
    /// The rules must be read again.
    ReadRules,
    /// The rules and the route tables must be read again.
    ReadRoutes,
}

/// Numbers of entries that are not mirrored, by reason.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Unmirrored {
    /// Routes beyond [`MirrorLimits::routes_max`].
    pub routes: u64,
    /// Neighbours beyond [`MirrorLimits::neighbours_max`].
    pub neighbours: u64,
    /// Interfaces beyond [`MirrorLimits::links_max`].
    pub links: u64,
    /// Routes of unknown types.
    pub unsupported: u64,
}

/// A usable neighbour.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Resolved {
    pub(super) mac: Mac,
    pub(super) stale: bool,
}

/// Links, own addresses, routes and neighbours of one network namespace.
#[derive(Debug, Default)]
pub struct NetState {
    limits: MirrorLimits,
    pub(super) links: BTreeMap<u32, KernelLink>,
    pub(super) addresses: BTreeSet<OwnAddress>,
    /// In the kernel's order.
    pub(super) rules: Vec<KernelRule>,
    /// Of several actions under one key the kernel uses the first.
    pub(super) routes: BTreeMap<RouteKey, Vec<RouteAction>>,
    pub(super) neighbours: HashMap<(u32, IpAddr), Resolved>,
    /// Entries not mirrored since the start.
    pub left_out: Unmirrored,
    /// A route exceeded the limit: the tables are read again when another one is deleted.
    routes_missing: bool,
}

impl NetState {
    /// An empty state.
    pub fn new(limits: MirrorLimits) -> NetState {
        NetState { limits, ..NetState::default() }
    }

    /// Applies one notification; `replaces` is the header's `NLM_F_REPLACE`.
    pub fn apply(&mut self, message: &Message, replaces: bool) -> Effect {
        match message {
            Message::NewLink(m) => decode::link(m).map_or(Effect::Nothing, |link| self.set_link(link)),
            Message::DelLink(m) => decode::link(m).map_or(Effect::Nothing, |link| self.remove_link(link.index)),
            Message::NewAddress(m) => decode::own_address(m).map_or(Effect::Nothing, |a| self.set_address(a)),
            Message::DelAddress(m) => decode::own_address(m).map_or(Effect::Nothing, |a| self.remove_address(&a)),
            Message::NewRoute(m) => self.decode_route(m).map_or(Effect::Nothing, |(key, action)| self.set_route(key, action, replaces)),
            Message::DelRoute(m) => self.decode_route(m).map_or(Effect::Nothing, |(key, action)| self.remove_route(&key, &action)),
            Message::NewRule(_) | Message::DelRule(_) => Effect::ReadRules,
            Message::NewNeighbour(m) => decode::neighbour(m).map_or(Effect::Nothing, |n| self.set_neighbour(&n)),
            Message::DelNeighbour(m) => {
                decode::neighbour(m).map_or(Effect::Nothing, |n| self.set_neighbour(&KernelNeighbour { mac: None, ..n }))
            }
            _ => Effect::Nothing,
        }
    }

    /// Replaces the route tables with a complete dump.
    pub fn replace_routes<'m>(&mut self, messages: impl IntoIterator<Item = &'m Message>) -> Effect {
        let mut routes: BTreeMap<RouteKey, Vec<RouteAction>> = BTreeMap::new();
        let mut count = 0;
        self.routes_missing = false;
        for message in messages {
            let Message::NewRoute(message) = message else { continue };
            let Some((key, action)) = self.decode_route(message) else { continue };
            if count == self.limits.routes_max {
                self.routes_missing = true;
                self.left_out.routes += 1;
                continue;
            }
            count += 1;
            routes.entry(key).or_default().push(action);
        }
        let changed = routes != self.routes;
        self.routes = routes;
        if changed { Effect::Changed } else { Effect::Nothing }
    }

    /// Replaces the rules with a complete dump.
    pub fn replace_rules<'m>(&mut self, messages: impl IntoIterator<Item = &'m Message>) -> Effect {
        let rule = |message: &Message| if let Message::NewRule(rule) = message { KernelRule::decode(rule) } else { None };
        let rules: Vec<KernelRule> = messages.into_iter().filter_map(rule).collect();
        let changed = rules != self.rules;
        self.rules = rules;
        if changed { Effect::Changed } else { Effect::Nothing }
    }

    /// Clears links, addresses and neighbours before a complete dump.
    pub fn clear_all_but_routes(&mut self) {
        self.links.clear();
        self.addresses.clear();
        self.neighbours.clear();
    }

    fn decode_route(&mut self, message: &RouteMessage) -> Option<(RouteKey, RouteAction)> {
        decode::route(message).inspect_err(|skipped| self.left_out.unsupported += u64::from(*skipped == Skipped::Unsupported)).ok()
    }

    fn set_link(&mut self, link: KernelLink) -> Effect {
        let known = self.links.get(&link.index);
        if known == Some(&link) {
            return Effect::Nothing;
        }
        if known.is_none() && self.links.len() >= self.limits.links_max {
            self.left_out.links += 1;
            return Effect::Nothing;
        }
        // The kernel deletes routes of an interface that goes down, or marks them dead, without a notification.
        let silent = known.is_some_and(|k| (k.admin_up, k.carrier) != (link.admin_up, link.carrier));
        self.links.insert(link.index, link);
        if silent { Effect::ReadRoutes } else { Effect::Changed }
    }

    fn remove_link(&mut self, index: u32) -> Effect {
        if self.links.remove(&index).is_none() {
            return Effect::Nothing;
        }
        self.neighbours.retain(|(link, _), _| *link != index);
        self.addresses.retain(|a| a.link != index);
        Effect::ReadRoutes
    }

    fn set_address(&mut self, address: OwnAddress) -> Effect {
        if self.addresses.contains(&address) {
            return Effect::Nothing;
        }
        self.addresses.retain(|a| (a.link, a.addr) != (address.link, address.addr));
        self.addresses.insert(address);
        Effect::Changed
    }

    fn remove_address(&mut self, address: &OwnAddress) -> Effect {
        let before = self.addresses.len();
        self.addresses.retain(|a| (a.link, a.addr) != (address.link, address.addr));
        // The kernel deletes routes with this preferred source without a notification.
        if self.addresses.len() == before { Effect::Nothing } else { Effect::ReadRoutes }
    }

    fn set_route(&mut self, key: RouteKey, action: RouteAction, replaces: bool) -> Effect {
        let full = self.routes.len() >= self.limits.routes_max;
        match self.routes.get_mut(&key).map(Vec::as_mut_slice) {
            Some([only]) if *only == action => Effect::Nothing,
            Some([only]) if replaces => {
                *only = action;
                Effect::Changed
            }
            // The message has neither the position among several actions nor the replaced one.
            Some(_) => Effect::ReadRoutes,
            None if full => {
                self.routes_missing = true;
                self.left_out.routes += 1;
                Effect::Nothing
            }
            None => {
                self.routes.insert(key, vec![action]);
                Effect::Changed
            }
        }
    }

    fn remove_route(&mut self, key: &RouteKey, action: &RouteAction) -> Effect {
        match self.routes.get(key).map(Vec::as_slice) {
            None => Effect::Nothing,
            Some([only]) if same_route(only, action) => {
                self.routes.remove(key);
                if self.routes_missing { Effect::ReadRoutes } else { Effect::Changed }
            }
            Some(_) => Effect::ReadRoutes,
        }
    }

    fn set_neighbour(&mut self, neighbour: &KernelNeighbour) -> Effect {
        let key = (neighbour.link, neighbour.addr);
        let Some(mac) = neighbour.mac else {
            return if self.neighbours.remove(&key).is_some() { Effect::Changed } else { Effect::Nothing };
        };
        if self.neighbours.len() >= self.limits.neighbours_max && !self.neighbours.contains_key(&key) {
            self.left_out.neighbours += 1;
            return Effect::Nothing;
        }
        let before = self.neighbours.insert(key, Resolved { mac, stale: neighbour.stale });
        // A neighbour regularly becomes stale and is confirmed; this does not change the dataplane's table.
        if before.is_some_and(|b| b.mac == mac) { Effect::Nothing } else { Effect::Changed }
    }
}

/// Whether two actions are of one route, ignoring the state of its interfaces.
fn same_route(a: &RouteAction, b: &RouteAction) -> bool {
    match (a, b) {
        (RouteAction::Unicast(a), RouteAction::Unicast(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a.link, a.gateway) == (b.link, b.gateway))
        }
        _ => a == b,
    }
}
