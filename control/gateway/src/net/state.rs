//! The mirrored tables, as pure state: messages in, what changed out.
//!
//! Most notifications are applied as they come. Where the kernel tells only half (which of several equal routes was replaced,
//! what went away silently with an interface) [`Effect::ReadRoutes`] asks for the route tables to be read again instead of
//! guessing.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use nomagic_core::routes::{Mac, NEXT_HOPS_MAX};
use rtnetlink::packet_route::RouteNetlinkMessage as Message;
use rtnetlink::packet_route::route::RouteMessage;

use super::decode::{self, Action, KernelNeighbour, Link, OwnAddress, RouteKey, Skipped};

/// Limits of the mirrored tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Routes, main and local tables and both families together.
    pub routes_max: usize,
    /// Usable neighbours of all interfaces.
    pub neighbours_max: usize,
    /// Interfaces.
    pub links_max: usize,
    /// Bytes of notifications that may wait (capped by net.core.rmem_max); beyond, everything is read again.
    pub waiting_bytes: u32,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { routes_max: 1_000_000, neighbours_max: NEXT_HOPS_MAX, links_max: 65_536, waiting_bytes: 4 << 20 }
    }
}

/// What a message did.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Effect {
    /// Nothing that matters here.
    Nothing,
    /// The view may be another one now.
    Changed,
    /// The route tables must be read again to be sure.
    ReadRoutes,
}

/// What was left out, by reason.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LeftOut {
    /// Routes beyond [`Limits::routes_max`].
    pub routes: u64,
    /// Neighbours beyond [`Limits::neighbours_max`].
    pub neighbours: u64,
    /// Interfaces beyond [`Limits::links_max`].
    pub links: u64,
    /// Routes for some packets only (by TOS or source), which a table by destination cannot express.
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
    limits: Limits,
    pub(super) links: BTreeMap<u32, Link>,
    pub(super) addresses: BTreeSet<OwnAddress>,
    /// Several actions under one key: the kernel uses the first.
    pub(super) routes: BTreeMap<RouteKey, Vec<Action>>,
    pub(super) neighbours: HashMap<(u32, IpAddr), Resolved>,
    /// What was left out since the start.
    pub left_out: LeftOut,
    /// A route had no room: when one goes, the tables are read again.
    routes_missing: bool,
}

impl NetState {
    /// An empty state.
    pub fn new(limits: Limits) -> NetState {
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
            Message::NewNeighbour(m) => decode::neighbour(m).map_or(Effect::Nothing, |n| self.set_neighbour(&n)),
            Message::DelNeighbour(m) => {
                decode::neighbour(m).map_or(Effect::Nothing, |n| self.set_neighbour(&KernelNeighbour { mac: None, ..n }))
            }
            _ => Effect::Nothing,
        }
    }

    /// Takes a complete listing of the route tables in place of what was known.
    pub fn replace_routes<'m>(&mut self, messages: impl IntoIterator<Item = &'m Message>) -> Effect {
        let mut routes: BTreeMap<RouteKey, Vec<Action>> = BTreeMap::new();
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

    /// Forgets links, addresses and neighbours, for a complete listing that follows.
    pub fn forget_all_but_routes(&mut self) {
        self.links.clear();
        self.addresses.clear();
        self.neighbours.clear();
    }

    fn decode_route(&mut self, message: &RouteMessage) -> Option<(RouteKey, Action)> {
        decode::route(message).inspect_err(|skipped| self.left_out.unsupported += u64::from(*skipped == Skipped::Unsupported)).ok()
    }

    fn set_link(&mut self, link: Link) -> Effect {
        let known = self.links.get(&link.index);
        if known == Some(&link) {
            return Effect::Nothing;
        }
        if known.is_none() && self.links.len() >= self.limits.links_max {
            self.left_out.links += 1;
            return Effect::Nothing;
        }
        // The kernel drops routes of an interface that goes down, or marks them dead, without a word.
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
        // Routes that preferred this source address go silently.
        if self.addresses.len() == before { Effect::Nothing } else { Effect::ReadRoutes }
    }

    fn set_route(&mut self, key: RouteKey, action: Action, replaces: bool) -> Effect {
        let full = self.routes.len() >= self.limits.routes_max;
        match self.routes.get_mut(&key).map(Vec::as_mut_slice) {
            Some([only]) if *only == action => Effect::Nothing,
            Some([only]) if replaces => {
                *only = action;
                Effect::Changed
            }
            // Before or behind the known one, or in place of which: the message does not say.
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

    fn remove_route(&mut self, key: &RouteKey, action: &Action) -> Effect {
        match self.routes.get(key).map(Vec::as_slice) {
            None => Effect::Nothing,
            Some([only]) if same_way(only, action) => {
                self.routes.remove(key);
                if self.routes_missing { Effect::ReadRoutes } else { Effect::Changed }
            }
            Some(_) => Effect::ReadRoutes,
        }
    }

    fn set_neighbour(&mut self, told: &KernelNeighbour) -> Effect {
        let key = (told.link, told.addr);
        let Some(mac) = told.mac else {
            return if self.neighbours.remove(&key).is_some() { Effect::Changed } else { Effect::Nothing };
        };
        if self.neighbours.len() >= self.limits.neighbours_max && !self.neighbours.contains_key(&key) {
            self.left_out.neighbours += 1;
            return Effect::Nothing;
        }
        let before = self.neighbours.insert(key, Resolved { mac, stale: told.stale });
        // Going stale and being confirmed again is daily life and changes nothing for frames.
        if before.is_some_and(|b| b.mac == mac) { Effect::Nothing } else { Effect::Changed }
    }
}

/// Whether two actions are one route, whatever the state of its interfaces.
fn same_way(a: &Action, b: &Action) -> bool {
    match (a, b) {
        (Action::Unicast(a), Action::Unicast(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a.link, a.gateway) == (b.link, b.gateway))
        }
        _ => a == b,
    }
}
