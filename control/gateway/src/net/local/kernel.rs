//! Applies a plan to the kernel.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nomagic_core::tuple::Prefix;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use rtnetlink::packet_route::RouteNetlinkMessage as Message;
use rtnetlink::packet_route::route::{RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType};
use rtnetlink::packet_route::rule::RuleMessage;

use super::plan::{LocalAction, LocalPlan};
use super::rules::{PolicyRule, RuleEffect, family, is_nomagics};
use super::{MOVED_PREFERENCE, OWN_PREFERENCE, OWN_TABLE, PROTOCOL, SERVICES_PREFERENCE, SERVICES_TABLE};
use crate::net::NetError;
use crate::net::decode;
use crate::net::socket::Requests;

/// Numbers of changes made to the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RouteChanges {
    /// Routes and rules that were added or replaced.
    pub added: usize,
    /// Routes and rules that were removed.
    pub removed: usize,
}

/// A route in one of nomagic's tables.
#[derive(Clone, PartialEq, Eq, Debug)]
struct LocalRoute {
    action: LocalAction,
    /// Interface and preferred source of a route into the internal port.
    link: u32,
    source: Option<IpAddr>,
}

/// Wanted routes by table and destination.
type WantedRoutes = BTreeMap<(u32, Prefix), LocalRoute>;
/// The kernel's routes, with their messages.
type KernelRoutes = BTreeMap<(u32, Prefix), (LocalRoute, RouteMessage)>;

/// The kernel's rules of a family that concern nomagic.
#[derive(Default)]
struct ExistingRules {
    /// nomagic's rules, with their messages.
    nomagic: Vec<(Option<PolicyRule>, RuleMessage)>,
    /// Preferences of foreign rules that look up the `local` table for all packets, with their messages.
    local: Vec<(u32, RuleMessage)>,
}

impl ExistingRules {
    fn has(&self, rule: &PolicyRule) -> bool {
        self.nomagic.iter().any(|(current, _)| current.as_ref() == Some(rule))
    }

    /// The lowest preference of a foreign rule for the `local` table.
    fn first_local(&self) -> Option<u32> {
        self.local.iter().map(|(preference, _)| *preference).min()
    }

    /// The preference of the rule for the `local` table; 0 if nomagic has moved it.
    fn local_preference(&self) -> u32 {
        self.first_local().unwrap_or_default()
    }
}

/// The routes and rules of this network namespace.
pub struct LocalRoutes {
    requests: Requests,
}

impl LocalRoutes {
    /// Opens a netlink socket. Changes nothing.
    pub fn open() -> Result<LocalRoutes, NetError> {
        Ok(LocalRoutes { requests: Requests::open_strict()? })
    }

    /// Brings nomagic's routes and rules in line with the plan. `internal`: interface index of the internal port. Existing entries stay
    /// untouched; a second call restores entries that others have removed.
    ///
    /// # Errors
    /// When the kernel refuses, or another program uses one of the tables. Earlier changes stay.
    pub fn apply(&mut self, plan: &LocalPlan, internal: u32) -> Result<RouteChanges, NetError> {
        let mut changes = RouteChanges::default();
        for v6 in [false, true] {
            self.apply_family(plan, internal, v6, &mut changes)?;
        }
        Ok(changes)
    }

    /// Removes all routes and rules, and moves the kernel's rule for the `local` table back to preference 0.
    pub fn clear(&mut self) -> Result<RouteChanges, NetError> {
        self.apply(&LocalPlan::default(), 0)
    }

    /// Adds the rules by which nomagic's own marked connections pass its other rules, also those that an earlier process left. Removes nothing.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn add_bypass(&mut self) -> Result<(), NetError> {
        for v6 in [false, true] {
            let Some(existing) = self.read_rules(v6)? else { continue };
            for rule in PolicyRule::bypass(v6, services_preference(existing.local_preference()) + 1) {
                if !existing.has(&rule) {
                    self.add_rule(&rule, PROTOCOL.into())?;
                }
            }
        }
        Ok(())
    }

    /// Adds before it removes, so that no connection is without its route or rule meanwhile.
    fn apply_family(&mut self, plan: &LocalPlan, internal: u32, v6: bool, changes: &mut RouteChanges) -> Result<(), NetError> {
        let wanted = wanted_routes(plan, internal, v6);
        let Some(existing) = self.read_rules(v6)? else { return Ok(()) };
        let mut present = KernelRoutes::new();
        for table in [SERVICES_TABLE, OWN_TABLE] {
            present.extend(self.read_routes(v6, table)?);
        }
        for ((table, prefix), route) in &wanted {
            if present.get(&(*table, *prefix)).is_none_or(|(current, _)| current != route) {
                self.add_route(*table, *prefix, route)?;
                changes.added += 1;
            }
        }
        let has_services = wanted.keys().any(|(table, _)| *table == SERVICES_TABLE);
        self.apply_rules(plan, v6, &existing, has_services, changes)?;
        for (_, message) in present.iter().filter(|(key, _)| !wanted.contains_key(key)).map(|(_, route)| route) {
            let what = || format!("remove a route from table {SERVICES_TABLE} or {OWN_TABLE}");
            ignore_missing(self.requests.request(what, Message::DelRoute(message.clone()), 0))?;
            changes.removed += 1;
        }
        Ok(())
    }

    fn apply_rules(
        &mut self,
        plan: &LocalPlan,
        v6: bool,
        existing: &ExistingRules,
        has_services: bool,
        changes: &mut RouteChanges,
    ) -> Result<(), NetError> {
        // Rules for own ports must precede the rule for the `local` table. It is added at its new place before it is removed from the old one.
        let own: Vec<PolicyRule> = plan.own.iter().filter(|o| o.addr.is_ipv6() == v6).map(PolicyRule::own).collect();
        let first = existing.first_local();
        let moved = !own.is_empty() && first.is_none_or(|preference| preference <= OWN_PREFERENCE);
        let local_preference = if moved { MOVED_PREFERENCE } else { first.unwrap_or_default() };
        let mut rules: Vec<PolicyRule> = moved.then(|| PolicyRule::local(v6, MOVED_PREFERENCE)).into_iter().chain(own).collect();
        let services = services_preference(local_preference);
        if has_services {
            rules.push(PolicyRule::services(v6, services));
        }
        if plan.bypass {
            rules.extend(PolicyRule::bypass(v6, services + 1));
        }
        for rule in rules.iter().filter(|rule| !existing.has(rule)) {
            self.add_rule(rule, PROTOCOL.into())?;
            changes.added += 1;
        }
        if moved {
            for (_, message) in existing.local.iter().filter(|(preference, _)| *preference <= OWN_PREFERENCE) {
                self.remove_rule(message)?;
            }
        } else if first.is_none() {
            self.add_rule(&PolicyRule::local(v6, 0), RouteProtocol::Kernel)?;
        }
        for (rule, message) in &existing.nomagic {
            if rule.as_ref().is_none_or(|rule| !rules.contains(rule)) {
                self.remove_rule(message)?;
                changes.removed += 1;
            }
        }
        Ok(())
    }

    /// `None`: the kernel does not support this family.
    fn read_rules(&mut self, v6: bool) -> Result<Option<ExistingRules>, NetError> {
        let mut request = RuleMessage::default();
        request.header.family = family(v6);
        let dump = match self.requests.dump("read the rules", Message::GetRule(request)) {
            Err(NetError::Refused { source, .. }) if matches!(source.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP)) => {
                return Ok(None);
            }
            other => other?,
        };
        let mut rules = ExistingRules::default();
        for message in dump.messages {
            let Message::NewRule(message) = message else { continue };
            // A kernel without rules for the family sends those of all families.
            if message.header.family != family(v6) {
                continue;
            }
            let rule = PolicyRule::decode(&message);
            if is_nomagics(&message) {
                rules.nomagic.push((rule, message));
            } else if let Some(rule) = rule
                && rule == PolicyRule::local(v6, rule.preference)
            {
                rules.local.push((rule.preference, message));
            }
        }
        Ok(Some(rules))
    }

    fn read_routes(&mut self, v6: bool, table: u32) -> Result<KernelRoutes, NetError> {
        let mut request = RouteMessage::default();
        request.header.address_family = family(v6);
        request.attributes.push(RouteAttribute::Table(table));
        let dump = match self.requests.dump("read the routes", Message::GetRoute(request)) {
            // The table does not exist yet.
            Err(NetError::Refused { source, .. }) if source.raw_os_error() == Some(libc::ENOENT) => return Ok(KernelRoutes::new()),
            other => other?,
        };
        let mut routes = KernelRoutes::new();
        for message in dump.messages {
            let Message::NewRoute(message) = message else { continue };
            if !message.attributes.contains(&RouteAttribute::Table(table)) || message.header.address_family != family(v6) {
                continue;
            }
            if u8::from(message.header.protocol) != PROTOCOL {
                return Err(NetError::TableTaken(table));
            }
            if let Some((prefix, route)) = read_route(&message) {
                routes.insert((table, prefix), (route, message));
            }
        }
        Ok(routes)
    }

    fn add_route(&mut self, table: u32, prefix: Prefix, route: &LocalRoute) -> Result<(), NetError> {
        let what = || format!("route {prefix} to interface {} in table {table}", route.link);
        let message = route_message(table, prefix, route);
        self.requests.request(what, Message::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE)
    }

    fn add_rule(&mut self, rule: &PolicyRule, protocol: RouteProtocol) -> Result<(), NetError> {
        let what = || match rule.effect {
            RuleEffect::Lookup(table) => format!("add a rule of preference {} for table {table}", rule.preference),
            RuleEffect::Goto(_) | RuleEffect::Nothing => format!("add a rule of preference {}", rule.preference),
        };
        let message = Message::NewRule(rule.message(protocol));
        match self.requests.request(what, message, NLM_F_CREATE | NLM_F_EXCL) {
            Err(NetError::Refused { source, .. }) if source.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            other => other,
        }
    }

    fn remove_rule(&mut self, message: &RuleMessage) -> Result<(), NetError> {
        ignore_missing(self.requests.request(|| "remove a rule".into(), Message::DelRule(message.clone()), 0))
    }
}

/// The preference of the rule for Service addresses: not before that of the `local` table.
fn services_preference(local_preference: u32) -> u32 {
    SERVICES_PREFERENCE.max(local_preference)
}

/// An entry that no longer exists counts as removed.
fn ignore_missing(result: Result<(), NetError>) -> Result<(), NetError> {
    match result {
        Err(NetError::Refused { source, .. }) if matches!(source.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => Ok(()),
        other => other,
    }
}

fn wanted_routes(plan: &LocalPlan, internal: u32, v6: bool) -> WantedRoutes {
    let source = plan.sources[usize::from(v6)];
    let route = |action: LocalAction| match action {
        LocalAction::Internal => LocalRoute { action, link: internal, source },
        LocalAction::Throw => LocalRoute { action, link: 0, source: None },
    };
    let of_family = plan.routes.iter().filter(|(prefix, _)| prefix.addr().is_ipv6() == v6);
    let mut routes: WantedRoutes = of_family.map(|(prefix, action)| ((SERVICES_TABLE, *prefix), route(*action))).collect();
    if plan.own.iter().any(|own| own.addr.is_ipv6() == v6) {
        routes.insert((OWN_TABLE, everywhere(v6)), route(LocalAction::Internal));
    }
    routes
}

fn everywhere(v6: bool) -> Prefix {
    let any: IpAddr = if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    Prefix::new(any, 0).unwrap_or(Prefix::host(any))
}

fn route_message(table: u32, prefix: Prefix, route: &LocalRoute) -> RouteMessage {
    let v6 = prefix.addr().is_ipv6();
    let mut message = RouteMessage::default();
    message.header.address_family = family(v6);
    message.header.destination_prefix_length = prefix.prefix_len();
    message.header.table = RouteHeader::RT_TABLE_UNSPEC;
    message.header.protocol = PROTOCOL.into();
    message.header.scope = if v6 || route.action == LocalAction::Throw { RouteScope::Universe } else { RouteScope::Link };
    message.header.kind = if route.action == LocalAction::Throw { RouteType::Throw } else { RouteType::Unicast };
    message.attributes = vec![RouteAttribute::Table(table)];
    if prefix.prefix_len() > 0 {
        message.attributes.push(RouteAttribute::Destination(decode::route_address(prefix.addr())));
    }
    if route.action == LocalAction::Internal {
        message.attributes.push(RouteAttribute::Oif(route.link));
        message.attributes.extend(route.source.map(|source| RouteAttribute::PrefSource(decode::route_address(source))));
    }
    message
}

fn read_route(message: &RouteMessage) -> Option<(Prefix, LocalRoute)> {
    let header = &message.header;
    let mut addr = everywhere(header.address_family == family(true)).addr();
    let action = if header.kind == RouteType::Throw { LocalAction::Throw } else { LocalAction::Internal };
    let mut route = LocalRoute { action, link: 0, source: None };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(to) => addr = decode::ip(to)?,
            RouteAttribute::Oif(link) if action == LocalAction::Internal => route.link = *link,
            RouteAttribute::PrefSource(source) => route.source = decode::ip(source),
            _ => {}
        }
    }
    Some((Prefix::new(addr, header.destination_prefix_length)?, route))
}
