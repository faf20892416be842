//! Encodes and decodes policy routing rules.

use std::net::IpAddr;

use nomagic_core::tuple::{Prefix, Proto};
use rtnetlink::packet_core::{DefaultNla, Nla};
use rtnetlink::packet_route::route::{RouteHeader, RouteProtocol};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage, RulePortRange};
use rtnetlink::packet_route::{AddressFamily, IpProtocol};

use super::plan::OwnPorts;
use super::{OWN_PREFERENCE, OWN_TABLE, PROTOCOL, SERVICES_TABLE};

/// A rule, with the selectors that nomagic uses.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Rule {
    pub(super) v6: bool,
    pub(super) preference: u32,
    pub(super) table: u32,
    /// `iif lo`: only for packets that this node itself sends.
    pub(super) from_node: bool,
    pub(super) to: Option<Prefix>,
    pub(super) proto: Option<Proto>,
    pub(super) ports: Option<(u16, u16)>,
}

impl Rule {
    /// Packets of this node look up the table of Services.
    pub(super) fn services(v6: bool, preference: u32) -> Rule {
        Rule { from_node: true, ..Rule::plain(v6, preference, SERVICES_TABLE) }
    }

    /// Packets of this node to these ports on its own addresses look up the other table.
    pub(super) fn own(ports: &OwnPorts) -> Rule {
        Rule {
            from_node: true,
            to: Some(Prefix::host(ports.addr)),
            proto: Some(ports.proto),
            ports: Some((ports.first, ports.last)),
            ..Rule::plain(ports.addr.is_ipv6(), OWN_PREFERENCE, OWN_TABLE)
        }
    }

    /// The kernel's rule for the `local` table.
    pub(super) fn local(v6: bool, preference: u32) -> Rule {
        Rule::plain(v6, preference, libc::RT_TABLE_LOCAL.into())
    }

    fn plain(v6: bool, preference: u32, table: u32) -> Rule {
        Rule { v6, preference, table, from_node: false, to: None, proto: None, ports: None }
    }

    /// Encodes the rule with a protocol number: nomagic's or the kernel's.
    pub(super) fn message(&self, protocol: RouteProtocol) -> RuleMessage {
        let mut message = RuleMessage::default();
        message.header.family = family(self.v6);
        message.header.action = RuleAction::ToTable;
        // Larger table numbers are in the attribute only.
        message.header.table = u8::try_from(self.table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
        message.attributes =
            vec![RuleAttribute::Priority(self.preference), RuleAttribute::Table(self.table), RuleAttribute::Protocol(protocol)];
        if self.from_node {
            message.attributes.push(RuleAttribute::Iifname("lo".into()));
        }
        if let Some(to) = self.to {
            message.header.dst_len = to.prefix_len();
            message.attributes.push(RuleAttribute::Destination(to.addr()));
        }
        message.attributes.extend(self.proto.map(|proto| RuleAttribute::IpProtocol(IpProtocol::from(proto as u8))));
        let range = |(start, end)| RuleAttribute::DestinationPortRange(RulePortRange { start, end });
        message.attributes.extend(self.ports.map(range));
        message
    }

    /// Decodes a rule. `None`: it has selectors or an action that nomagic never uses.
    pub(super) fn decode(message: &RuleMessage) -> Option<Rule> {
        let header = &message.header;
        let v6 = match header.family {
            AddressFamily::Inet => false,
            AddressFamily::Inet6 => true,
            _ => return None,
        };
        if header.action != RuleAction::ToTable || header.src_len != 0 || header.tos != 0 || header.flags.contains(RuleFlags::Invert) {
            return None;
        }
        let mut rule = Rule::plain(v6, 0, header.table.into());
        let mut to: Option<IpAddr> = None;
        for attribute in &message.attributes {
            match attribute {
                RuleAttribute::Priority(preference) => rule.preference = *preference,
                RuleAttribute::Table(table) => rule.table = *table,
                RuleAttribute::Iifname(name) if name == "lo" => rule.from_node = true,
                RuleAttribute::Destination(addr) => to = Some(*addr),
                RuleAttribute::IpProtocol(proto) => rule.proto = Some(Proto::from_ip_number(u8::from(*proto))?),
                RuleAttribute::DestinationPortRange(range) => rule.ports = Some((range.start, range.end)),
                RuleAttribute::Other(other) if is_full_mask(other) => {}
                // Attributes of every rule that select nothing.
                RuleAttribute::Protocol(_)
                | RuleAttribute::SuppressPrefixLen(u32::MAX)
                | RuleAttribute::SuppressIfGroup(u32::MAX)
                | RuleAttribute::L3MDev(false) => {}
                _ => return None,
            }
        }
        if header.dst_len > 0 {
            rule.to = Some(Prefix::new(to?, header.dst_len)?);
        }
        Some(rule)
    }
}

/// Since Linux 6.15 ports have a mask, by default a full one.
fn is_full_mask(attribute: &DefaultNla) -> bool {
    const FRA_DPORT_MASK: u16 = 29;
    let mut mask = [0; 2];
    let read = attribute.kind() == FRA_DPORT_MASK && attribute.value_len() == mask.len();
    if read {
        attribute.emit_value(&mut mask);
    }
    read && matches!(u16::from_ne_bytes(mask), 0 | u16::MAX)
}

/// Whether a rule has nomagic's protocol number.
pub(super) fn is_nomagics(message: &RuleMessage) -> bool {
    message.attributes.iter().any(|a| matches!(a, RuleAttribute::Protocol(p) if u8::from(*p) == PROTOCOL))
}

pub(super) fn family(v6: bool) -> AddressFamily {
    if v6 { AddressFamily::Inet6 } else { AddressFamily::Inet }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_as_they_are_written() {
        let own = |addr: &str| OwnPorts { addr: addr.parse().unwrap(), proto: Proto::Udp, first: 30_000, last: 30_009 };
        for rule in [Rule::services(false, 110), Rule::own(&own("10.0.0.1")), Rule::own(&own("fd00::1")), Rule::local(true, 71)] {
            let message = rule.message(PROTOCOL.into());
            assert!(is_nomagics(&message));
            assert_eq!(Rule::decode(&message), Some(rule));
        }
        assert!(!is_nomagics(&Rule::local(false, 0).message(RouteProtocol::Kernel)));
    }

    #[test]
    fn rules_that_ask_for_more_are_not_taken_for_ours() {
        for more in [
            RuleAttribute::FwMark(1),
            RuleAttribute::Oifname("eth0".into()),
            RuleAttribute::Iifname("eth0".into()),
            RuleAttribute::L3MDev(true),
            RuleAttribute::SuppressPrefixLen(0),
        ] {
            let mut message = Rule::local(false, 0).message(RouteProtocol::Kernel);
            message.attributes.push(more.clone());
            assert_eq!(Rule::decode(&message), None, "{more:?}");
        }
        let mut inverted = Rule::local(false, 0).message(RouteProtocol::Kernel);
        inverted.header.flags = RuleFlags::Invert;
        assert_eq!(Rule::decode(&inverted), None);
    }
}
