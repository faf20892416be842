//! Making the kernel have what the plan says.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nomagic_core::tuple::Prefix;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use rtnetlink::packet_route::RouteNetlinkMessage as Message;
use rtnetlink::packet_route::route::{RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType};
use rtnetlink::packet_route::rule::RuleMessage;

use super::plan::{Plan, Way};
use super::rules::{Rule, family, is_ours};
use super::{MOVED_PREFERENCE, OWN_PREFERENCE, OWN_TABLE, PROTOCOL, SERVICES_PREFERENCE, SERVICES_TABLE};
use crate::net::NetError;
use crate::net::decode;
use crate::net::socket::Requests;

/// What was changed in the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Changes {
    /// Routes and rules that were added or replaced.
    pub added: usize,
    /// Routes and rules that were removed.
    pub removed: usize,
}

/// A route of one of our tables.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Facts {
    way: Way,
    /// The interface and the preferred source, of a route into the internal port.
    link: u32,
    source: Option<IpAddr>,
}

/// By table and destination.
type Routes = BTreeMap<(u32, Prefix), Facts>;
/// The same as the kernel has them, with their messages.
type Present = BTreeMap<(u32, Prefix), (Facts, RouteMessage)>;

/// The kernel's rules of a family that matter here.
#[derive(Default)]
struct Found {
    /// Ours, with their messages.
    ours: Vec<(Option<Rule>, RuleMessage)>,
    /// Preferences of rules of others that lead everything to the `local` table, with their messages.
    local: Vec<(u32, RuleMessage)>,
}

/// The routes and rules of this network namespace.
pub struct LocalRoutes {
    requests: Requests,
}

impl LocalRoutes {
    /// Opens a socket; nothing is changed yet.
    pub fn open() -> Result<LocalRoutes, NetError> {
        Ok(LocalRoutes { requests: Requests::open_strict()? })
    }

    /// Makes the kernel have exactly these routes and rules, `internal` being the index of the internal port's interface. What is there already
    /// stays untouched; calling it again repairs what others have removed.
    ///
    /// # Errors
    /// When the kernel refuses, or somebody else uses one of the tables. What was done before stays done.
    pub fn apply(&mut self, plan: &Plan, internal: u32) -> Result<Changes, NetError> {
        let mut changes = Changes::default();
        for v6 in [false, true] {
            self.apply_family(plan, internal, v6, &mut changes)?;
        }
        Ok(changes)
    }

    /// Removes all of it, and puts the kernel's rule for the `local` table back to where it belongs.
    pub fn clear(&mut self) -> Result<Changes, NetError> {
        self.apply(&Plan::default(), 0)
    }

    fn apply_family(&mut self, plan: &Plan, internal: u32, v6: bool, changes: &mut Changes) -> Result<(), NetError> {
        let wanted = wanted_routes(plan, internal, v6);
        let Some(found) = self.read_rules(v6)? else { return Ok(()) };
        let mut present = Present::new();
        for table in [SERVICES_TABLE, OWN_TABLE] {
            present.extend(self.read_routes(v6, table)?);
        }
        for ((table, prefix), facts) in &wanted {
            if present.get(&(*table, *prefix)).is_none_or(|(there, _)| there != facts) {
                self.add_route(*table, *prefix, facts)?;
                changes.added += 1;
            }
        }
        // Before rules of ours go where the `local` table was asked first, it gets a place behind them; it never goes without.
        let own: Vec<Rule> = plan.own.iter().filter(|o| o.addr.is_ipv6() == v6).map(Rule::own).collect();
        let first = found.local.iter().map(|(preference, _)| *preference).min();
        let moved = !own.is_empty() && first.is_none_or(|preference| preference <= OWN_PREFERENCE);
        let local_at = if moved { MOVED_PREFERENCE } else { first.unwrap_or_default() };
        let mut rules: Vec<Rule> = moved.then(|| Rule::local(v6, MOVED_PREFERENCE)).into_iter().chain(own).collect();
        if wanted.keys().any(|(table, _)| *table == SERVICES_TABLE) {
            rules.push(Rule::services(v6, SERVICES_PREFERENCE.max(local_at)));
        }
        for rule in rules.iter().filter(|rule| !found.ours.iter().any(|(there, _)| there.as_ref() == Some(rule))) {
            self.add_rule(rule, PROTOCOL.into())?;
            changes.added += 1;
        }
        if moved {
            for (_, message) in found.local.iter().filter(|(preference, _)| *preference <= OWN_PREFERENCE) {
                self.remove_rule(message)?;
            }
        } else if first.is_none() {
            self.add_rule(&Rule::local(v6, 0), RouteProtocol::Kernel)?;
        }
        for (rule, message) in &found.ours {
            if rule.as_ref().is_none_or(|rule| !rules.contains(rule)) {
                self.remove_rule(message)?;
                changes.removed += 1;
            }
        }
        for (_, message) in present.iter().filter(|(key, _)| !wanted.contains_key(key)).map(|(_, found)| found) {
            let what = || format!("remove a route from table {SERVICES_TABLE} or {OWN_TABLE}");
            gone(self.requests.request(what, Message::DelRoute(message.clone()), 0))?;
            changes.removed += 1;
        }
        Ok(())
    }

    /// `None`: the kernel does not have this family.
    fn read_rules(&mut self, v6: bool) -> Result<Option<Found>, NetError> {
        let mut request = RuleMessage::default();
        request.header.family = family(v6);
        let dump = match self.requests.dump("read the rules", Message::GetRule(request)) {
            Err(NetError::Refused { source, .. }) if matches!(source.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP)) => {
                return Ok(None);
            }
            other => other?,
        };
        let mut found = Found::default();
        for message in dump.messages {
            let Message::NewRule(message) = message else { continue };
            // A kernel without rules of the family answers with all that it has.
            if message.header.family != family(v6) {
                continue;
            }
            let rule = Rule::read(&message);
            if is_ours(&message) {
                found.ours.push((rule, message));
            } else if let Some(rule) = rule
                && rule == Rule::local(v6, rule.preference)
            {
                found.local.push((rule.preference, message));
            }
        }
        Ok(Some(found))
    }

    fn read_routes(&mut self, v6: bool, table: u32) -> Result<Present, NetError> {
        let mut request = RouteMessage::default();
        request.header.address_family = family(v6);
        request.attributes.push(RouteAttribute::Table(table));
        let dump = match self.requests.dump("read the routes", Message::GetRoute(request)) {
            // A table that nobody has put anything into.
            Err(NetError::Refused { source, .. }) if source.raw_os_error() == Some(libc::ENOENT) => return Ok(Present::new()),
            other => other?,
        };
        let mut routes = Present::new();
        for message in dump.messages {
            let Message::NewRoute(message) = message else { continue };
            if !message.attributes.contains(&RouteAttribute::Table(table)) || message.header.address_family != family(v6) {
                continue;
            }
            if u8::from(message.header.protocol) != PROTOCOL {
                return Err(NetError::TableTaken(table));
            }
            if let Some((prefix, facts)) = read_route(&message) {
                routes.insert((table, prefix), (facts, message));
            }
        }
        Ok(routes)
    }

    fn add_route(&mut self, table: u32, prefix: Prefix, facts: &Facts) -> Result<(), NetError> {
        let what = || format!("route {prefix} to interface {} in table {table}", facts.link);
        let message = route_message(table, prefix, facts);
        self.requests.request(what, Message::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE)
    }

    fn add_rule(&mut self, rule: &Rule, protocol: RouteProtocol) -> Result<(), NetError> {
        let what = || format!("add a rule of preference {} for table {}", rule.preference, rule.table);
        let message = Message::NewRule(rule.message(protocol));
        match self.requests.request(what, message, NLM_F_CREATE | NLM_F_EXCL) {
            Err(NetError::Refused { source, .. }) if source.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            other => other,
        }
    }

    fn remove_rule(&mut self, message: &RuleMessage) -> Result<(), NetError> {
        gone(self.requests.request(|| "remove a rule".into(), Message::DelRule(message.clone()), 0))
    }
}

/// What is gone already is what was wanted.
fn gone(result: Result<(), NetError>) -> Result<(), NetError> {
    match result {
        Err(NetError::Refused { source, .. }) if matches!(source.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => Ok(()),
        other => other,
    }
}

fn wanted_routes(plan: &Plan, internal: u32, v6: bool) -> Routes {
    let source = plan.sources[usize::from(v6)];
    let facts = |way: Way| match way {
        Way::Internal => Facts { way, link: internal, source },
        Way::Next => Facts { way, link: 0, source: None },
    };
    let of_family = plan.routes.iter().filter(|(prefix, _)| prefix.addr().is_ipv6() == v6);
    let mut routes: Routes = of_family.map(|(prefix, way)| ((SERVICES_TABLE, *prefix), facts(*way))).collect();
    if plan.own.iter().any(|own| own.addr.is_ipv6() == v6) {
        routes.insert((OWN_TABLE, everywhere(v6)), facts(Way::Internal));
    }
    routes
}

fn everywhere(v6: bool) -> Prefix {
    let any: IpAddr = if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    Prefix::new(any, 0).unwrap_or(Prefix::host(any))
}

fn route_message(table: u32, prefix: Prefix, facts: &Facts) -> RouteMessage {
    let v6 = prefix.addr().is_ipv6();
    let mut message = RouteMessage::default();
    message.header.address_family = family(v6);
    message.header.destination_prefix_length = prefix.prefix_len();
    message.header.table = RouteHeader::RT_TABLE_UNSPEC;
    message.header.protocol = PROTOCOL.into();
    message.header.scope = if v6 || facts.way == Way::Next { RouteScope::Universe } else { RouteScope::Link };
    message.header.kind = if facts.way == Way::Next { RouteType::Throw } else { RouteType::Unicast };
    message.attributes = vec![RouteAttribute::Table(table)];
    if prefix.prefix_len() > 0 {
        message.attributes.push(RouteAttribute::Destination(decode::route_address(prefix.addr())));
    }
    if facts.way == Way::Internal {
        message.attributes.push(RouteAttribute::Oif(facts.link));
        message.attributes.extend(facts.source.map(|source| RouteAttribute::PrefSource(decode::route_address(source))));
    }
    message
}

fn read_route(message: &RouteMessage) -> Option<(Prefix, Facts)> {
    let header = &message.header;
    let mut addr = everywhere(header.address_family == family(true)).addr();
    let way = if header.kind == RouteType::Throw { Way::Next } else { Way::Internal };
    let mut facts = Facts { way, link: 0, source: None };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(to) => addr = decode::ip(to)?,
            RouteAttribute::Oif(link) if way == Way::Internal => facts.link = *link,
            RouteAttribute::PrefSource(source) => facts.source = decode::ip(source),
            _ => {}
        }
    }
    Some((Prefix::new(addr, header.destination_prefix_length)?, facts))
}
