//! The kernel's routing rules (`ip rule`), as far as they concern packets that the node forwards.
//!
//! A forwarded packet comes in by an interface, is not bound to one on its way out, and has no firewall mark here: netfilter never sees it. Selectors
//! that cannot be evaluated (TOS, tunnel ids, flow labels ...) make a rule opaque: the kernel gets the packets that the rule may select.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use nomagic_core::frame::PortId;
use nomagic_core::routes::{Input, PortSpan, Rule, RuleAction};
use nomagic_core::tuple::{Prefix, Proto};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::rule::{RuleAction as KernelAction, RuleAttribute, RuleFlags, RuleMessage, RulePortRange};

use super::decode::KernelTable;
use super::local::PROTOCOL;

/// A rule, in the order of the kernel's dump.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct KernelRule {
    pub(super) v6: bool,
    pub(super) priority: u32,
    /// `action` holds no table, but a placeholder.
    rule: Rule,
    /// The name of the interface that packets must come in by.
    iif: Option<String>,
    effect: Effect,
    /// Looks up the table of the VRF that the packet came in by.
    vrf: bool,
    /// Its selectors fit no forwarded packet.
    impossible: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Effect {
    Lookup { table: KernelTable, suppressed: Option<u8> },
    GoTo(u32),
    Nothing,
    Fixed(RuleAction),
}

/// The interfaces that rules refer to.
pub(super) struct RuleLinks<'l> {
    /// The ports by interface name.
    pub(super) ports: HashMap<&'l str, PortId>,
    /// The tables of the VRFs that ports belong to.
    pub(super) vrfs: Vec<(PortId, u32)>,
}

/// The rules of a family in the dataplane's form, without the tables.
pub(super) struct FamilyRules {
    pub(super) rules: Vec<Rule>,
    /// The tables, by the index that [`RuleAction::Lookup`] has.
    pub(super) tables: Vec<KernelTable>,
}

impl KernelRule {
    /// Decodes a rule. `None` for nomagic's own ones for packets that the node itself sends, and for other families.
    pub(super) fn decode(message: &RuleMessage) -> Option<KernelRule> {
        let header = &message.header;
        let v6 = match header.family {
            AddressFamily::Inet => false,
            AddressFamily::Inet6 => true,
            _ => return None,
        };
        let mut found = KernelRule {
            v6,
            priority: 0,
            rule: Rule::all(RuleAction::Kernel),
            iif: None,
            effect: Effect::Nothing,
            vrf: false,
            impossible: false,
        };
        found.rule.invert = header.flags.contains(RuleFlags::Invert);
        found.rule.opaque = header.tos != 0;
        let (mut table, mut suppressed, mut target) = (u32::from(header.table), None, None);
        let (mut mark, mut mask, mut own) = (0, u32::MAX, false);
        for attribute in &message.attributes {
            match attribute {
                RuleAttribute::Protocol(p) => own = u8::from(*p) == PROTOCOL,
                RuleAttribute::Priority(n) => found.priority = *n,
                RuleAttribute::Table(n) => table = *n,
                RuleAttribute::Goto(n) => target = Some(*n),
                // -1 (as u32): not set.
                RuleAttribute::SuppressPrefixLen(n) => suppressed = u8::try_from(*n).ok(),
                RuleAttribute::FwMark(n) => mark = *n,
                RuleAttribute::FwMask(n) => mask = *n,
                other => found.add_selector(other, (header.src_len, header.dst_len)),
            }
        }
        found.impossible |= mark & mask != 0;
        if own && found.iif.is_some() {
            return None;
        }
        found.effect = match header.action {
            KernelAction::ToTable => Effect::Lookup { table: KernelTable::from_id(table), suppressed },
            KernelAction::Goto => target.map_or(Effect::Nothing, Effect::GoTo),
            KernelAction::Nop => Effect::Nothing,
            KernelAction::Unreachable => Effect::Fixed(RuleAction::Unreachable),
            KernelAction::Prohibit => Effect::Fixed(RuleAction::Prohibit),
            KernelAction::Blackhole => Effect::Fixed(RuleAction::Blackhole),
            _ => Effect::Fixed(RuleAction::Kernel),
        };
        Some(found)
    }

    fn add_selector(&mut self, attribute: &RuleAttribute, (src_len, dst_len): (u8, u8)) {
        let span = |range: &RulePortRange| Some(PortSpan { first: range.start, last: range.end });
        let prefix = |addr: &IpAddr, len| Prefix::new(*addr, len);
        match attribute {
            RuleAttribute::Source(addr) => self.rule.from = prefix(addr, src_len),
            RuleAttribute::Destination(addr) => self.rule.to = prefix(addr, dst_len),
            RuleAttribute::Iifname(name) => self.iif = Some(name.clone()),
            RuleAttribute::Oifname(_) => self.impossible = true,
            RuleAttribute::L3MDev(vrf) => self.vrf = *vrf,
            // Forwarded packets count as root's.
            RuleAttribute::UidRange(range) => self.impossible |= range.start > 0,
            RuleAttribute::IpProtocol(proto) => match Proto::from_ip_number(u8::from(*proto)) {
                Some(proto) => self.rule.proto = Some(proto),
                None => self.impossible = true,
            },
            RuleAttribute::SourcePortRange(range) => self.rule.sports = span(range),
            RuleAttribute::DestinationPortRange(range) => self.rule.dports = span(range),
            // Realms select nothing.
            RuleAttribute::Realm(_) => {}
            _ => self.rule.opaque = true,
        }
    }

    /// A name for problems, if packets that it may select are left to the kernel.
    pub(super) fn left_to_kernel(&self) -> Option<String> {
        let opaque = self.rule.opaque && !self.impossible || self.effect == Effect::Fixed(RuleAction::Kernel);
        opaque.then(|| format!("`ip {}rule` {}", if self.v6 { "-6 " } else { "" }, self.priority))
    }

    /// The selectors in the dataplane's form, once for each port of a VRF if it is about those.
    fn selectors(&self, links: &RuleLinks<'_>) -> Vec<(Rule, Option<u32>)> {
        let rule = match (self.impossible, self.rule.invert) {
            (true, false) => return Vec::new(),
            (true, true) => return vec![(Rule::all(RuleAction::Kernel), None)],
            (false, _) => &self.rule,
        };
        let input = match &self.iif {
            None => Input::Any,
            Some(name) => links.ports.get(name.as_str()).map_or(Input::Elsewhere, |port| Input::Port(*port)),
        };
        if !self.vrf {
            return vec![(Rule { input, ..rule.clone() }, None)];
        }
        let of = |(port, table): &(PortId, u32)| (Rule { input: Input::Port(*port), ..rule.clone() }, Some(*table));
        links.vrfs.iter().map(of).collect()
    }
}

impl FamilyRules {
    /// The rules of a family. `None`: they are the kernel's own, and one table of local and main suffices. `has_routes`: whether a table has any.
    pub(super) fn of(
        kernel: &[KernelRule],
        v6: bool,
        links: &RuleLinks<'_>,
        has_routes: impl Fn(KernelTable) -> bool,
    ) -> Option<FamilyRules> {
        let mut found = FamilyRules { rules: Vec::new(), tables: Vec::new() };
        // The place of the first rule at or after a priority.
        let mut places: BTreeMap<u32, usize> = BTreeMap::new();
        let mut jumps = Vec::new();
        for rule in kernel.iter().filter(|rule| rule.v6 == v6) {
            places.entry(rule.priority).or_insert(found.rules.len());
            for (selectors, vrf_table) in rule.selectors(links) {
                let action = match (rule.effect, vrf_table) {
                    (_, Some(table)) => RuleAction::Lookup { table: found.table(KernelTable::from_id(table)), suppressed: None },
                    (Effect::Lookup { table, suppressed }, None) => RuleAction::Lookup { table: found.table(table), suppressed },
                    (Effect::Fixed(action), None) => action,
                    (Effect::GoTo(target), None) => {
                        jumps.push((found.rules.len(), target));
                        RuleAction::Kernel
                    }
                    (Effect::Nothing, None) => continue,
                };
                found.rules.push(Rule { action, ..selectors });
            }
        }
        for (place, target) in jumps {
            let end = found.rules.len();
            // A target that does not exist: the next rule decides.
            let goes_to =
                if places.contains_key(&target) { places.range(target..).next().map_or(end, |(_, place)| *place) } else { place + 1 };
            found.rules[place].action = RuleAction::GoTo(goes_to);
        }
        (!found.rules.is_empty() && !found.is_plain(has_routes)).then_some(found)
    }

    fn table(&mut self, table: KernelTable) -> usize {
        self.tables.iter().position(|known| *known == table).unwrap_or_else(|| {
            self.tables.push(table);
            self.tables.len() - 1
        })
    }

    /// Local, main, and perhaps tables without routes, for all packets.
    fn is_plain(&self, has_routes: impl Fn(KernelTable) -> bool) -> bool {
        let mut looked_up = self.rules.iter().map(|rule| match rule.action {
            RuleAction::Lookup { table, suppressed: None } if rule.is_for_all() => self.tables.get(table),
            _ => None,
        });
        looked_up.next() == Some(Some(&KernelTable::Local))
            && looked_up.next() == Some(Some(&KernelTable::Main))
            && looked_up.all(|table| table.is_some_and(|table| !has_routes(*table)))
    }
}
