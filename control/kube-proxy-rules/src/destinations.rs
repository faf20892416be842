//! The addresses and ports that the rules name: what a comparison has to ask about.

use std::collections::BTreeSet;
use std::net::IpAddr;

use nomagic_core::tuple::Proto;

use crate::matching::{Field, Side, Span, Test, address};
use crate::model::{Part, Ruleset};

/// An address and port to which kube-proxy's rules lead packets, or at which they refuse them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Destination {
    /// `None`: a node port, on every address that the rules allow.
    pub address: Option<IpAddr>,
    pub v6: bool,
    pub port: u16,
    pub proto: Proto,
}

impl Ruleset {
    /// All destinations that kube-proxy's chains name by address and port, or by port alone, and that lead somewhere.
    pub fn destinations(&self) -> BTreeSet<Destination> {
        let mut found = BTreeSet::new();
        for (id, chain) in self.chains.iter().enumerate() {
            let table = &self.tables[chain.table];
            if table.ignored || !self.is_kube_proxys(id) {
                continue;
            }
            for rule in &chain.rules {
                for part in &rule.parts {
                    let Part::Lookup { key, map } = part else { continue };
                    for (spans, element) in self.sets[*map].elements() {
                        if element.action.is_some() {
                            found.extend(destination(key.iter().copied().zip(spans), table.family.v6));
                        }
                    }
                }
                // Of iptables: the chains that packets of a new connection meet first.
                if table.iptables && matches!(chain.name.as_str(), "KUBE-SERVICES" | "KUBE-NODEPORTS" | "KUBE-EXTERNAL-SERVICES") {
                    let tests = rule.parts.iter().filter_map(|part| match part {
                        Part::Test(Test::Field { field, not: false, spans }) if spans.len() == 1 => Some((*field, spans[0])),
                        _ => None,
                    });
                    let health = rule.comment.as_deref().is_some_and(|comment| comment.ends_with("health check node port"));
                    found.extend(destination(tests, table.family.v6).filter(|_| !health));
                }
            }
        }
        found
    }
}

/// Of the fields that a rule or an element fixes.
fn destination(fields: impl Iterator<Item = (Field, Span)>, v6: bool) -> Option<Destination> {
    let (mut to, mut port, mut proto) = (None, None, None);
    for (field, span) in fields {
        let one = span.first == span.last;
        match field {
            Field::Address { side: Side::Destination, v6 } if one => to = Some(address(span.first, v6)),
            Field::Port { side: Side::Destination, .. } if one => port = u16::try_from(span.first).ok(),
            Field::Protocol if one => proto = u8::try_from(span.first).ok().and_then(Proto::from_ip_number),
            // The range of loopback addresses, of node ports on them: the rule without the range follows.
            _ => return None,
        }
    }
    Some(Destination { address: to, v6, port: port?, proto: proto? })
}
