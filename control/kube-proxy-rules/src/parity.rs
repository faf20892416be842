//! Holds the rules against nomagic's table: every address and port that either of them names, for senders in pods, outside and on the
//! node itself.

mod expect;
mod judge;
mod senders;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use nomagic_api::explain::Verdict;
use nomagic_core::services::{AddressKind, ServicePort, Services};
use nomagic_core::tuple::{Proto, Tuple};

use crate::compare::{Difference, compare};
use crate::decision::Decision;
use crate::model::{RulePlace, Ruleset};
use crate::packet::{Node, Packet};
pub use expect::expected;
pub use judge::Judgement;
use senders::Senders;
pub use senders::origin;

/// Maximum number of findings that are kept; the others are counted.
const FINDINGS_MAX: usize = 10_000;

/// After so many packets for which the search was limited no more are asked: each takes long.
const LIMITED_MAX: usize = 32;

/// What the objects say about an endpoint of a Service port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Standing {
    /// No EndpointSlice of the Service has it.
    Unknown,
    /// It has a place in a slice, and gets no connections here.
    LeftOut {
        /// In words, without a period.
        why: String,
        /// Whether only its node is the cause, with the node's name.
        other_node: Option<String>,
    },
    /// Connections may go to it.
    Usable {
        /// It runs on this node.
        local: bool,
    },
}

/// What nomagic knows besides its table.
pub trait Objects {
    fn standing(&self, port: &ServicePort, to: SocketAddr) -> Standing;
    /// Whether a Service has this node port, on whichever addresses it may be served.
    fn has_node_port(&self, port: u16, proto: Proto) -> bool;
}

/// nomagic's side.
pub struct Table<'t> {
    pub services: &'t Services,
    pub node: &'t Node,
    /// The node's address of each family that its own packets have.
    pub primary: &'t [IpAddr],
    pub objects: &'t dyn Objects,
}

/// Everything that was compared.
#[derive(Clone, Default, Debug)]
pub struct Report {
    /// Addresses with ports.
    pub destinations: usize,
    /// Packets that were followed through both.
    pub packets: usize,
    pub findings: Vec<Finding>,
    /// Findings beyond the limit.
    pub more: usize,
    /// Addresses with ports that were not asked about, because the rules are too many or lead in circles.
    pub not_asked: usize,
    /// Rules in which something is not known.
    pub unknown: Vec<RulePlace>,
}

/// One address and port at which both do not do the same, or at which it cannot be told.
#[derive(Clone, PartialEq, Debug)]
pub struct Finding {
    pub to: SocketAddr,
    pub proto: Proto,
    /// `namespace/name`
    pub service: Option<String>,
    /// For which senders.
    pub senders: Vec<String>,
    pub differences: Vec<Difference>,
    pub judgement: Judgement,
    /// Who is right, as far as it can be told, in sentences.
    pub words: String,
    /// The node on which the rules would be right.
    pub other_node: Option<String>,
    /// See [`Decision::limited`].
    pub limited: bool,
}

impl Report {
    /// Number of addresses with ports at which both differ.
    pub fn differing(&self) -> usize {
        let differs = self.findings.iter().filter(|finding| finding.judgement == Judgement::Differs);
        differs.map(|finding| (finding.to, finding.proto)).collect::<BTreeSet<_>>().len() + self.more
    }

    /// Number of findings at which it cannot be told.
    pub fn undecided(&self) -> usize {
        self.findings.iter().filter(|finding| finding.judgement == Judgement::CannotTell).count() + self.not_asked
    }

    /// The other node whose rules these seem to be, with the number of findings that say so.
    pub fn other_node(&self) -> Option<(String, usize)> {
        judge::other_node(&self.findings)
    }
}

/// Compares the rules with the table.
pub fn check(table: &Table<'_>, rules: &Ruleset) -> Report {
    let mut report = Report { unknown: rules.unknown(), ..Report::default() };
    let destinations = destinations(table, rules);
    report.destinations = destinations.len();
    let senders = Senders::of(table, rules);
    let mut limited = 0;
    for (to, proto) in destinations {
        if limited >= LIMITED_MAX {
            report.not_asked += 1;
            continue;
        }
        let mut at: Vec<Finding> = Vec::new();
        for sender in senders.for_destination(table, to, proto) {
            let Some(tuple) = Tuple::new(proto, sender.address, sender.port, to.ip(), to.port()) else { continue };
            report.packets += 1;
            let packet = Packet { tuple, origin: sender.origin };
            let Some(finding) = check_packet(table, rules, &packet) else { continue };
            limited += usize::from(finding.limited);
            // Senders for whom the same is said share a finding.
            let same = |known: &&mut Finding| {
                known.differences == finding.differences && known.judgement == finding.judgement && known.words == finding.words
            };
            match at.iter_mut().find(same) {
                Some(known) => known.senders.push(sender.name),
                None => at.push(Finding { senders: vec![sender.name], ..finding }),
            }
        }
        let room = FINDINGS_MAX.saturating_sub(report.findings.len());
        report.more += at.len().saturating_sub(room);
        report.findings.extend(at.into_iter().take(room));
    }
    report
}

/// The addresses and ports that the table or the rules name, of the families that the rules have.
fn destinations(table: &Table<'_>, rules: &Ruleset) -> BTreeSet<(SocketAddr, Proto)> {
    let of_table = table.services.frontends().map(|(address, port, proto, _)| (SocketAddr::new(address, port), proto));
    let mut found: BTreeSet<(SocketAddr, Proto)> = of_table.collect();
    for destination in rules.destinations() {
        let own = table.node.addresses.iter().filter(|address| destination.address.is_none() && address.is_ipv6() == destination.v6);
        let addresses = destination.address.iter().chain(own);
        found.extend(addresses.map(|address| (SocketAddr::new(*address, destination.port), destination.proto)));
    }
    let [v4, v6] = [false, true].map(|v6| rules.has_kube_proxy(v6));
    found.retain(|(to, _)| if to.is_ipv6() { v6 } else { v4 });
    found
}

/// Follows a packet through both. `None`: both do the same, and it is certain.
pub fn check_packet(table: &Table<'_>, rules: &Ruleset, packet: &Packet) -> Option<Finding> {
    let decision = rules.follow(packet, table.node);
    let expected = expected(table.services, &packet.tuple);
    let mut differences = compare(&decision, &expected.outcome, packet.tuple.src_addr());
    // The table does not say whether the node's kernel has the packet answered by a health check server.
    differences.retain(|difference| !matches!(difference, Difference::Hairpin(_)) || expected.outcome.verdict == Verdict::Forward);
    if differences.is_empty() && decision.certain {
        return None;
    }
    let frontend = table.services.frontend(packet.tuple.dst_addr(), packet.tuple.dport, packet.tuple.proto);
    let service = frontend.map(|frontend| format!("{}/{}", frontend.port.namespace, frontend.port.name));
    let case = judge::Case {
        table,
        rules,
        packet,
        decision: &decision,
        expected: &expected,
        port: frontend.map(|frontend| &*frontend.port),
        kind: frontend.map(|frontend| frontend.kind),
    };
    let (judgement, words) = case.judge(&differences);
    let other_node = case.other_node(&differences);
    let to = SocketAddr::new(packet.tuple.dst_addr(), packet.tuple.dport);
    let service = service.or_else(|| decision.service.clone());
    Some(Finding {
        to,
        proto: packet.tuple.proto,
        service,
        senders: Vec::new(),
        differences,
        judgement,
        words,
        other_node,
        limited: decision.limited,
    })
}

/// Whether clients outside use an address of this kind.
fn is_external(kind: AddressKind) -> bool {
    matches!(kind, AddressKind::ExternalIp | AddressKind::LoadBalancer)
}

/// The rule that decided last, for findings without an endpoint.
fn last_rule(decision: &Decision) -> Option<&RulePlace> {
    decision.steps.iter().rev().find_map(|step| step.place.as_ref())
}
