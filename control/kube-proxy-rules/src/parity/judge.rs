//! Who is right where both differ, as far as it can be told.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use nomagic_api::explain::Verdict;
use nomagic_core::reason::Reason;
use nomagic_core::services::{AddressKind, ServicePort};

use super::expect::TableAnswer;
use super::{Finding, Standing, Table, is_external, last_rule};
use crate::compare::Difference;
use crate::decision::Decision;
use crate::model::{RulePlace, Ruleset};
use crate::packet::{Origin, Packet};

/// What a finding means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Judgement {
    /// Both do not do the same.
    Differs,
    /// Both differ as kube-proxy's two modes differ; nomagic does as the nftables mode.
    ModesDiffer,
    /// A rule that is not known may decide.
    CannotTell,
}

pub(super) struct Case<'c> {
    pub table: &'c Table<'c>,
    pub rules: &'c Ruleset,
    pub packet: &'c Packet,
    pub decision: &'c Decision,
    pub expected: &'c TableAnswer,
    pub port: Option<&'c ServicePort>,
    pub kind: Option<AddressKind>,
}

impl Case<'_> {
    pub(super) fn judge(&self, differences: &[Difference]) -> (Judgement, String) {
        if !self.decision.certain {
            let places: Vec<String> = self.decision.unknown.iter().map(ToString::to_string).collect();
            let which = if places.is_empty() { "there are too many rules, or they lead in circles".into() } else { places.join(", ") };
            return (Judgement::CannotTell, format!("It cannot be told what the rules do: {which}."));
        }
        if let Some(words) = self.mode_difference(differences) {
            return (Judgement::ModesDiffer, words.into());
        }
        let foreign = self.foreign(differences);
        if !foreign.is_empty() {
            let places: Vec<String> = foreign.iter().map(ToString::to_string).collect();
            let words = "A rule that is not kube-proxy's decides here, and nomagic does not know it";
            return (Judgement::Differs, format!("{words}: {}.", places.join(", ")));
        }
        // What is said of the endpoints that only the rules have is enough.
        let stale = differences.iter().any(|difference| matches!(difference, Difference::Stale(_)));
        let worth = differences.iter().filter(|difference| !(stale && matches!(difference, Difference::Missing(_))));
        let words: Vec<String> = worth.map(|difference| self.words(difference)).collect();
        (Judgement::Differs, words.join(" "))
    }

    /// The rules of others that explain the differences.
    fn foreign(&self, differences: &[Difference]) -> &[RulePlace] {
        let of_source = |difference: &Difference| {
            matches!(difference, Difference::Masqueraded(_) | Difference::NotMasqueraded(_) | Difference::Hairpin(_))
        };
        match differences.iter().all(of_source) {
            true => &self.decision.foreign_sources,
            false => &self.decision.foreign,
        }
    }

    /// How kube-proxy's iptables mode differs from its nftables mode.
    fn mode_difference(&self, differences: &[Difference]) -> Option<&'static str> {
        let [Difference::Verdict { rules, expected }] = differences else { return None };
        if !self.rules.is_iptables(self.packet.tuple.v6) {
            return None;
        }
        match (rules, expected, self.expected.reason) {
            (Verdict::Reject, Verdict::Drop, Some(Reason::SourceRange)) => Some(
                "kube-proxy's iptables mode rejects clients outside of the source ranges of a Service without endpoints; its nftables mode, and nomagic, drop them.",
            ),
            (Verdict::Pass, Verdict::Reject | Verdict::Drop, Some(Reason::NoEndpoints | Reason::NoLocalEndpoints))
                if self.packet.origin == Origin::Node && self.kind.is_some_and(is_external) =>
            {
                Some(
                    "kube-proxy's iptables mode does not refuse the node's own packets to external addresses of a Service without endpoints; its nftables mode, and nomagic, do.",
                )
            }
            (Verdict::Pass, Verdict::Reject | Verdict::Drop, Some(Reason::UnusedServicePort | Reason::UnallocatedServiceAddress)) => Some(
                "kube-proxy's iptables mode leaves unused ports and addresses of the Service range alone; its nftables mode, and nomagic, refuse them.",
            ),
            (Verdict::Reject | Verdict::Drop, Verdict::Pass, _) if self.kind.is_none() && self.port_is_elsewhere() => Some(
                "kube-proxy's iptables mode refuses node ports without endpoints on every address of the node; its nftables mode, and nomagic, only on those that nodePortAddresses allow.",
            ),
            _ => None,
        }
    }

    /// Whether the packet is for a node port of a Service, which the table does not serve at this address.
    fn port_is_elsewhere(&self) -> bool {
        let tuple = &self.packet.tuple;
        self.table.node.is_local(tuple.dst_addr()) && self.table.objects.has_node_port(tuple.dport, tuple.proto)
    }

    fn words(&self, difference: &Difference) -> String {
        match difference {
            Difference::Verdict { rules, expected } => self.verdict(*rules, *expected),
            Difference::Stale(all) => self.endpoint(all.first().copied()),
            Difference::Missing(_) if self.decision.others.is_empty() => {
                "The objects have them: the rules are older, or of another node.".into()
            }
            Difference::Missing(_) => "The objects have them: a rule for them is missing or leads nowhere.".into(),
            Difference::OtherPort { .. } => "The rules are older than the Service or its EndpointSlices, or the objects are.".into(),
            Difference::Masqueraded(_) => {
                "The endpoints would see another source after the cut-over: compare masqueradeAll, clusterCIDR and externalTrafficPolicy.".into()
            }
            Difference::NotMasqueraded(_) => {
                "The endpoints would see another source after the cut-over: compare masqueradeAll, clusterCIDR and externalTrafficPolicy, or a \
                 rule that marks the packet is missing."
                    .into()
            }
            Difference::Hairpin(_) => "The endpoint would answer itself directly: the rule for it is missing.".into(),
            Difference::Shares(_) => "The table spreads evenly: probabilities or numbers of the rules are damaged.".into(),
            Difference::Lost(..) => "The rules are damaged: the last alternative is missing.".into(),
            Difference::Affinity { rules: None, .. } => "The rules are older than the Service, or their affinity was lost.".into(),
            Difference::Affinity { .. } => "The rules are older than the Service, or the objects are.".into(),
        }
    }

    fn verdict(&self, rules: Verdict, expected: Verdict) -> String {
        let refuses = last_rule(self.decision).filter(|_| rules != Verdict::Forward);
        let rule = refuses.map_or(String::new(), |place| format!(" It was decided by {place}."));
        match (rules, expected) {
            (Verdict::Pass, Verdict::Forward) if self.kind == Some(AddressKind::NodePort) => {
                "The rules do not have this node port: they are older, or their nodePortAddresses differ.".into()
            }
            (Verdict::Pass, Verdict::Forward) => "The rules do not have this address and port: they are older than the Service.".into(),
            (Verdict::Forward, Verdict::Pass) if self.port_is_elsewhere() => {
                "nomagic does not serve this node port at this address: nodePortAddresses differ.".into()
            }
            (Verdict::Forward | Verdict::Reject | Verdict::Drop, Verdict::Pass | Verdict::Drop | Verdict::Reject)
                if self.kind.is_none() =>
            {
                format!("No Service of the objects has this address and port: the rules are older, or the objects are incomplete.{rule}")
            }
            (Verdict::Forward, _) => {
                let first = self.decision.backends.first().map(|backend| backend.to);
                let why = self.expected.reason.map_or(String::new(), |reason| format!("The table refuses: {}. ", reason.text()));
                format!("{why}{}", self.endpoint(first))
            }
            (Verdict::Reject | Verdict::Drop, Verdict::Forward) => {
                format!("The objects have endpoints: the rules are older, or of another node, or their source ranges differ.{rule}")
            }
            (Verdict::Pass, Verdict::Reject | Verdict::Drop) => {
                let why = self.expected.reason.map_or("", |reason| reason.text());
                format!("The table refuses ({why}), and no rule does: it is missing, or the rules are older.")
            }
            _ => format!("The rules refuse otherwise than the table.{rule}"),
        }
    }

    /// The node for which the rules would be right: the one of all endpoints that only the rules have.
    pub(super) fn other_node(&self, differences: &[Difference]) -> Option<String> {
        let only_rules: Vec<SocketAddr> = match differences.iter().find(|difference| !matches!(difference, Difference::Missing(_)))? {
            Difference::Stale(all) => all.clone(),
            Difference::Verdict { rules: Verdict::Forward, expected: Verdict::Drop } => {
                self.decision.backends.iter().map(|b| b.to).collect()
            }
            _ => return None,
        };
        let mut nodes = only_rules.into_iter().map(|to| match self.table.objects.standing(self.port?, to) {
            Standing::LeftOut { other_node, .. } => other_node,
            _ => None,
        });
        let first = nodes.next()??;
        nodes.all(|node| node.as_ref() == Some(&first)).then_some(first)
    }

    /// What the objects say about an endpoint that only the rules have.
    fn endpoint(&self, to: Option<SocketAddr>) -> String {
        let (Some(to), Some(port)) = (to, self.port) else {
            return "The rules are older than the objects, or the objects are incomplete.".into();
        };
        match self.table.objects.standing(port, to) {
            Standing::Unknown => format!("No EndpointSlice of the Service has {to}: the rules are stale, or the objects are older."),
            Standing::LeftOut { other_node: Some(node), .. } => {
                format!("{to} runs on node {node}, and the traffic policy is Local: these look like that node's rules.")
            }
            Standing::LeftOut { why, .. } => format!("The objects have {to}, but {why}: the rules are stale, or another node's."),
            Standing::Usable { .. } => format!("{to} is an endpoint of the Service, but this sender should not reach it."),
        }
    }
}

/// The node that most findings name.
pub(super) fn other_node(findings: &[Finding]) -> Option<(String, usize)> {
    let mut named: BTreeMap<&str, usize> = BTreeMap::new();
    for node in findings.iter().filter_map(|finding| finding.other_node.as_deref()) {
        *named.entry(node).or_default() += 1;
    }
    named.into_iter().max_by_key(|(_, count)| *count).map(|(node, count)| (node.to_owned(), count))
}
