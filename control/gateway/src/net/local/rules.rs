//! Encodes and decodes policy routing rules.

use std::net::IpAddr;

use nomagic_core::tuple::{Prefix, Proto};
use rtnetlink::packet_core::{DefaultNla, Nla};
use rtnetlink::packet_route::route::{RouteHeader, RouteProtocol};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage, RulePortRange};
use rtnetlink::packet_route::{AddressFamily, IpProtocol};

use super::plan::OwnPorts;
use super::{BYPASS_MARK, BYPASS_PREFERENCES, OWN_PREFERENCE, OWN_TABLE, PROTOCOL, SERVICES_TABLE};

/// What a rule does with a packet.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum RuleEffect {
    /// Looks up this table, and continues with the next rule if it has no route.
    Lookup(u32),
    /// Continues with the rule of this preference.
    Goto(u32),
    /// Continues with the next rule.
    Nothing,
}

/// A rule, with the selectors that nomagic uses.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct PolicyRule {
    pub(super) v6: bool,
    pub(super) preference: u32,
    pub(super) effect: RuleEffect,
    /// `iif lo`: only for packets that this node itself sends.
    pub(super) from_node: bool,
    pub(super) to: Option<Prefix>,
    pub(super) proto: Option<Proto>,
    pub(super) ports: Option<(u16, u16)>,
    /// The firewall mark, all bits of it.
    pub(super) mark: Option<u32>,
}

impl PolicyRule {
    /// This node's packets look up the table of Services.
    pub(super) fn services(v6: bool, preference: u32) -> PolicyRule {
        PolicyRule { from_node: true, ..PolicyRule::plain(v6, preference, SERVICES_TABLE) }
    }

    /// This node's packets to these ports on its own addresses look up the table for them.
    pub(super) fn own(ports: &OwnPorts) -> PolicyRule {
        PolicyRule {
            from_node: true,
            to: Some(Prefix::host(ports.addr)),
            proto: Some(ports.proto),
            ports: Some((ports.first, ports.last)),
            ..PolicyRule::plain(ports.addr.is_ipv6(), OWN_PREFERENCE, OWN_TABLE)
        }
    }

    /// Marked packets of this node pass all rules between the preference of the first one and that of the last one, which is `end`.
    pub(super) fn bypass(v6: bool, end: u32) -> [PolicyRule; 3] {
        let [local, jump] = BYPASS_PREFERENCES;
        // The jump passes the rule for the `local` table too, wherever that is.
        let of = |preference, effect| PolicyRule {
            from_node: true,
            mark: Some(BYPASS_MARK),
            effect,
            ..PolicyRule::plain(v6, preference, libc::RT_TABLE_LOCAL.into())
        };
        [of(local, RuleEffect::Lookup(libc::RT_TABLE_LOCAL.into())), of(jump, RuleEffect::Goto(end)), of(end, RuleEffect::Nothing)]
    }

    /// The kernel's rule for the `local` table.
    pub(super) fn local(v6: bool, preference: u32) -> PolicyRule {
        PolicyRule::plain(v6, preference, libc::RT_TABLE_LOCAL.into())
    }

    fn plain(v6: bool, preference: u32, table: u32) -> PolicyRule {
        PolicyRule { v6, preference, effect: RuleEffect::Lookup(table), from_node: false, to: None, proto: None, ports: None, mark: None }
    }

    /// Encodes the rule with a protocol number: nomagic's or the kernel's.
    pub(super) fn message(&self, protocol: RouteProtocol) -> RuleMessage {
        let mut message = RuleMessage::default();
        message.header.family = family(self.v6);
        message.attributes = vec![RuleAttribute::Priority(self.preference), RuleAttribute::Protocol(protocol)];
        match self.effect {
            RuleEffect::Lookup(table) => {
                message.header.action = RuleAction::ToTable;
                // Larger table numbers are in the attribute only.
                message.header.table = u8::try_from(table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
                message.attributes.push(RuleAttribute::Table(table));
            }
            RuleEffect::Goto(preference) => {
                message.header.action = RuleAction::Goto;
                message.attributes.push(RuleAttribute::Goto(preference));
            }
            RuleEffect::Nothing => message.header.action = RuleAction::Nop,
        }
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
        message.attributes.extend(self.mark.into_iter().flat_map(|mark| [RuleAttribute::FwMark(mark), RuleAttribute::FwMask(u32::MAX)]));
        message
    }

    /// Decodes a rule. `None`: it has selectors or an action that nomagic never uses.
    pub(super) fn decode(message: &RuleMessage) -> Option<PolicyRule> {
        let header = &message.header;
        let v6 = match header.family {
            AddressFamily::Inet => false,
            AddressFamily::Inet6 => true,
            _ => return None,
        };
        let acts = matches!(header.action, RuleAction::ToTable | RuleAction::Goto | RuleAction::Nop);
        if !acts || header.src_len != 0 || header.tos != 0 || header.flags.contains(RuleFlags::Invert) {
            return None;
        }
        let mut rule = PolicyRule::plain(v6, 0, header.table.into());
        let (mut to, mut table, mut target): (Option<IpAddr>, u32, u32) = (None, header.table.into(), 0);
        for attribute in &message.attributes {
            match attribute {
                RuleAttribute::Priority(preference) => rule.preference = *preference,
                RuleAttribute::Table(number) => table = *number,
                RuleAttribute::Goto(preference) => target = *preference,
                RuleAttribute::FwMark(mark) => rule.mark = Some(*mark),
                RuleAttribute::Iifname(name) if name == "lo" => rule.from_node = true,
                RuleAttribute::Destination(addr) => to = Some(*addr),
                RuleAttribute::IpProtocol(proto) => rule.proto = Some(Proto::from_ip_number(u8::from(*proto))?),
                RuleAttribute::DestinationPortRange(range) => rule.ports = Some((range.start, range.end)),
                RuleAttribute::Other(other) if is_full_mask(other) => {}
                // Attributes of every rule that select nothing.
                RuleAttribute::Protocol(_)
                | RuleAttribute::FwMask(u32::MAX)
                | RuleAttribute::SuppressPrefixLen(u32::MAX)
                | RuleAttribute::SuppressIfGroup(u32::MAX)
                | RuleAttribute::L3MDev(false) => {}
                _ => return None,
            }
        }
        rule.effect = match header.action {
            RuleAction::Goto => RuleEffect::Goto(target),
            RuleAction::Nop => RuleEffect::Nothing,
            _ => RuleEffect::Lookup(table),
        };
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
    fn encoded_rules_decode_to_themselves() {
        let own = |addr: &str| OwnPorts { addr: addr.parse().unwrap(), proto: Proto::Udp, first: 30_000, last: 30_009 };
        for rule in [
            PolicyRule::services(false, 110),
            PolicyRule::own(&own("10.0.0.1")),
            PolicyRule::own(&own("fd00::1")),
            PolicyRule::local(true, 71),
        ]
        .into_iter()
        .chain(PolicyRule::bypass(false, 111))
        .chain(PolicyRule::bypass(true, 32_766))
        {
            let message = rule.message(PROTOCOL.into());
            assert!(is_nomagics(&message));
            assert_eq!(PolicyRule::decode(&message), Some(rule));
        }
        assert!(!is_nomagics(&PolicyRule::local(false, 0).message(RouteProtocol::Kernel)));
    }

    #[test]
    fn rules_with_other_selectors_are_not_decoded() {
        for more in [
            RuleAttribute::FwMask(1),
            RuleAttribute::Oifname("eth0".into()),
            RuleAttribute::Iifname("eth0".into()),
            RuleAttribute::L3MDev(true),
            RuleAttribute::SuppressPrefixLen(0),
        ] {
            let mut message = PolicyRule::local(false, 0).message(RouteProtocol::Kernel);
            message.attributes.push(more.clone());
            assert_eq!(PolicyRule::decode(&message), None, "{more:?}");
        }
        let mut inverted = PolicyRule::local(false, 0).message(RouteProtocol::Kernel);
        inverted.header.flags = RuleFlags::Invert;
        assert_eq!(PolicyRule::decode(&inverted), None);
    }
}
