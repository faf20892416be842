//! Explains in words what happens to the first packet of a flow, and why.
//!
//! The packet runs through the packet path itself, with a scratch connection table; an observer records each decision. Only what the packet
//! path does not know is looked up separately: the names of addresses outside the service table, and the reasons why endpoints are left
//! out.

pub mod flow;
mod live;
mod names;
mod scratch;
pub mod state;
mod today;
mod trace;
mod unserved;
mod words;

use std::collections::BTreeMap;

use nomagic_api::explain::{Answer, Verdict};
use nomagic_core::capture::takes;
use nomagic_core::conntrack::{Direction, Remembered};
use nomagic_core::deny::{self, DenyList};
use nomagic_core::frame;
use nomagic_core::reason::Reason;
use nomagic_core::reject;
use nomagic_core::routes::Routes;
use nomagic_core::services::{AddressKind, ClientClass, Decision, Frontend, Matched, OnlyHere, ServicePort, Services, SnatCause, Source};
use nomagic_core::tuple::{Prefix, Proto, Tuple, words_addr};

use crate::compile::endpoints::{self, Class, Selection};
use crate::compile::{Compiled, HealthCheck};
use crate::index::Index;
use crate::objects::addr::socket;
use crate::objects::{NamespacedName, Service, ServicePortSpec, TrafficPolicy};
use crate::settings::Settings;
pub use flow::parse_flow;
use live::Copied;
pub use live::LiveState;
use names::Names;
use scratch::Scratch;
use trace::Trace;
use unserved::Unserved;

/// Describes the slices that nearly have endpoints for a Service port without any. It looks at all slices.
pub(crate) fn nearby_endpoints(index: &Index, service: &Service, port: &ServicePortSpec, v6: bool) -> Vec<String> {
    words::nearby::endpoints(index, service, port, v6)
}

/// A compiled table and the inputs needed to explain it.
pub struct Explainer<'e> {
    index: &'e Index,
    settings: &'e Settings,
    services: &'e Services,
    health_checks: &'e BTreeMap<u16, HealthCheck>,
    names: Names,
    routes: Routes,
    live: Option<LiveState<'e>>,
    denied: Option<&'e DenyList>,
    /// The settings' seed is a stand-in for the gateway's.
    seed_unknown: bool,
}

/// The source that the packet path has chosen, if it has.
type ChosenSource = Option<Result<Source, Reason>>;

/// The matched address with the objects behind it.
struct Match<'e> {
    frontend: &'e Frontend,
    service: &'e Service,
    port: &'e ServicePortSpec,
    client: ClientClass,
    /// The class whose endpoints the traffic policy selects.
    class: Class,
    selection: Selection<'e>,
}

impl<'e> Explainer<'e> {
    /// Explains a compiled table with the objects and settings it was compiled from.
    pub fn new(index: &'e Index, settings: &'e Settings, compiled: &'e Compiled) -> Explainer<'e> {
        Explainer::of_parts(index, settings, &compiled.services, &compiled.health_checks)
    }

    /// Like [`Explainer::new`], from the parts of a compiled table that a gateway keeps.
    pub fn of_parts(
        index: &'e Index,
        settings: &'e Settings,
        services: &'e Services,
        health_checks: &'e BTreeMap<u16, HealthCheck>,
    ) -> Explainer<'e> {
        let (names, routes) = (Names::of(index), scratch::routes_everywhere());
        Explainer { index, settings, services, health_checks, names, routes, live: None, denied: None, seed_unknown: false }
    }

    /// Also considers the state of a gateway that uses this table: known flows, remembered clients, routes and source ports.
    pub fn with_state(self, live: LiveState<'e>) -> Explainer<'e> {
        Explainer { live: Some(live), ..self }
    }

    /// Also considers a deny list.
    pub fn with_denied(self, denied: &'e DenyList) -> Explainer<'e> {
        Explainer { denied: Some(denied), ..self }
    }

    /// Answers for a gateway with the same objects whose seed is not known. The settings' seed must be 0, the one that the answers name.
    pub fn with_unknown_seed(self) -> Explainer<'e> {
        Explainer { seed_unknown: true, ..self }
    }

    /// Explains the first packet of a flow. `flow` is the question's text.
    pub fn answer(&self, flow: &str, tuple: &Tuple) -> Answer {
        self.answer_for(flow, tuple, false)
    }

    /// Like [`Explainer::answer`], as if the gateway did not know the flow.
    pub fn answer_as_new(&self, flow: &str, tuple: &Tuple) -> Answer {
        self.answer_for(flow, tuple, true)
    }

    fn answer_for(&self, flow: &str, tuple: &Tuple, as_new: bool) -> Answer {
        // Such a packet is never on a wire; the packet path would only drop it for its addresses.
        let mut answer = match tuple.dst_addr().is_loopback() {
            true => self.passed(Answer::new(flow, Verdict::Pass).because(Reason::NotOurs), Reason::NotOurs, None, tuple),
            false => {
                let live = self.live.as_ref();
                let scratch = Scratch { services: self.services, routes: live.map_or(&self.routes, |live| live.routes), live, as_new };
                scratch.observe(tuple, |trace, copied| self.filtered(flow, tuple, trace, copied))
            }
        };
        answer.steps.insert(0, words::arrival(tuple));
        answer
    }

    /// Describes what the XDP filter does with a packet of a denied source; all others reach the packet path, or the kernel.
    fn filtered(&self, flow: &str, tuple: &Tuple, trace: &Trace<'_>, copied: &Copied) -> Answer {
        let Some(prefix) = self.denied_by(tuple) else { return self.describe(flow, tuple, trace, copied) };
        if trace.known.is_some() || takes(self.services, tuple) || trace.reason() == Some(Reason::UnusedExternalPort) {
            let mut answer = Answer::new(flow, Verdict::Drop);
            answer.reason = Some(deny::OUTCOME.into());
            answer.steps.push(words::denied(tuple, &prefix, trace.known.is_some()));
            return answer;
        }
        let mut answer = self.describe(flow, tuple, trace, copied);
        answer.steps.push(words::denied_elsewhere(tuple, &prefix));
        answer
    }

    /// The denied prefix of a packet's source. The node's own packets do not come by a port where the filter compares sources.
    fn denied_by(&self, tuple: &Tuple) -> Option<Prefix> {
        let source = tuple.src_addr();
        self.denied?.longest_match(source).filter(|_| !self.settings.node.ips.contains(&source))
    }

    /// Describes the observed decisions.
    fn describe(&self, flow: &str, tuple: &Tuple, trace: &Trace<'_>, copied: &Copied) -> Answer {
        let verdict = match trace.verdict {
            Some(frame::Verdict::Forward(..) | frame::Verdict::Fragment(..)) => Verdict::Forward,
            Some(frame::Verdict::Hold(_)) => Verdict::Hold,
            Some(frame::Verdict::Kernel(_)) => Verdict::Pass,
            _ if trace.told.is_some() => Verdict::Reject,
            _ => Verdict::Drop,
        };
        let mut answer = Answer::new(flow, verdict);
        answer.reason = trace.reason().map(|reason| reason.label().into());
        if let (Some(live), Some((hit, fate)), Some(flow)) = (&self.live, &trace.known, &copied.flow) {
            let (known, sentences) = self.known_flow(live, flow, hit, *fate);
            answer.known_flow = Some(Box::new(known));
            answer.steps.extend(sentences);
        }
        match &trace.decision {
            Some(decision @ Decision::Forward { matched, pool, backend, .. }) => {
                answer.backends = pool.backends.iter().map(|b| socket(b.addr, b.port)).collect();
                answer.certain = !self.seed_unknown || pool.backends.len() == 1;
                let source = if verdict == Verdict::Hold { self.source_once_resolved(tuple) } else { trace.source };
                if matches!(verdict, Verdict::Forward | Verdict::Hold) {
                    answer.chosen = Some(socket(backend.addr, backend.port));
                    answer.snat = trace::replaced_source(source, tuple.v6);
                }
                if let Some(found) = self.find(matched, tuple) {
                    self.describe_match(&mut answer, &found, tuple);
                    answer.steps.extend(words::limits::sentences(&found, tuple.v6, copied.client_flows));
                    self.describe_choice(&mut answer, &found, decision, tuple, (trace, copied, source));
                }
                answer
            }
            Some(Decision::Reject(matched, reason) | Decision::Drop(matched, reason)) => {
                self.refused(answer, matched.as_ref(), (*reason, trace.told), tuple)
            }
            Some(Decision::Pass(reason)) => self.passed(answer, *reason, trace.reason().map(|reason| (reason, trace.told)), tuple),
            None => self.known(answer, tuple, trace, copied),
        }
    }

    /// The source that a held packet will get: the packet path chooses it only when the next hop is known.
    fn source_once_resolved(&self, tuple: &Tuple) -> ChosenSource {
        let scratch = Scratch { services: self.services, routes: &self.routes, live: self.live.as_ref(), as_new: true };
        scratch.decide(tuple, |trace| trace.source)
    }

    /// Describes a packet without a Service decision: it belongs to a known flow, or is dropped before any decision.
    fn known(&self, mut answer: Answer, tuple: &Tuple, trace: &Trace<'_>, copied: &Copied) -> Answer {
        if let (Some((hit, _)), Some(flow)) = (&trace.known, &copied.flow) {
            let services = self.services;
            if let Some(frontend) = services.frontend(words_addr(flow.service, flow.v6), flow.service_port, flow.proto) {
                answer.service = Some(format!("{}/{}", frontend.port.namespace, frontend.port.name));
                answer.port = Some(frontend.port.port);
                answer.address = Some(frontend.kind.label().into());
            }
            if hit.direction == Direction::Original && matches!(answer.verdict, Verdict::Forward | Verdict::Hold) {
                answer.chosen = Some(socket(hit.new.dst_addr(), hit.new.dport));
                answer.snat = flow.replaces_source().then(|| hit.new.src_addr());
            }
            answer.steps.push(words::live::known_rewrite(tuple, hit));
            self.describe_next_hop(&mut answer, trace);
        }
        answer.steps.extend(trace.reason().map(|r| words::refusal(r, trace.told)));
        answer
    }

    fn describe_next_hop(&self, answer: &mut Answer, trace: &Trace<'_>) {
        if let (Some(live), Some(resolution)) = (&self.live, &trace.next_hop) {
            answer.steps.extend(words::live::next_hop(live, resolution));
        }
    }

    fn find<'m>(&'m self, matched: &Matched<'m>, tuple: &Tuple) -> Option<Match<'m>> {
        let Matched { frontend, client } = *matched;
        let ServicePort { namespace, name, port_name, proto, .. } = &*frontend.port;
        let service = self.index.service(&NamespacedName { namespace: namespace.clone(), name: name.clone() })?;
        let port = service.ports.iter().find(|p| (&p.name, p.proto) == (port_name, *proto))?;
        let node = &self.settings.node;
        let selection =
            endpoints::select(endpoints::candidates(&endpoints::Members::of(self.index, &service.key), port, tuple.v6, node), node);
        let local = match frontend.kind {
            AddressKind::ClusterIp => service.internal_policy == TrafficPolicy::Local,
            _ => service.external_policy == TrafficPolicy::Local && client == ClientClass::External,
        };
        Some(Match { frontend, service, port, client, class: if local { Class::Local } else { Class::Cluster }, selection })
    }

    /// Fills in the Service and describes everything up to the candidates.
    fn describe_match(&self, answer: &mut Answer, found: &Match<'_>, tuple: &Tuple) {
        answer.service = Some(found.service.key.to_string());
        answer.port = Some(found.port.port);
        answer.address = Some(found.frontend.kind.label().into());
        answer.steps.push(words::address(found, tuple));
        answer.steps.push(words::client(self.settings, found.client, tuple));
        if let Some(ranges) = &found.frontend.source_ranges {
            answer.steps.push(words::source_ranges(ranges.prefixes(), tuple.src_addr()));
            if answer.reason.as_deref() == Some(Reason::SourceRange.label()) {
                return;
            }
        } else {
            answer.steps.extend(words::nearby::open_family(found, tuple.v6));
        }
        answer.steps.push(words::policy(found, &self.settings.node.name));
        answer.steps.extend(words::topology(found, &self.settings.node));
        answer.steps.push(words::candidates(found));
        if found.selection.candidates.is_empty() {
            answer.steps.extend(words::nearby::endpoints(self.index, found.service, found.port, tuple.v6));
        }
        let unusable = self.index.slices_of(&found.service.key).filter(|s| s.v6 == tuple.v6).flat_map(|s| &s.unusable);
        answer.steps.extend(words::left_out(found, unusable, &self.settings.node.name));
        answer.steps.extend(found.service.affinity_timeout_s.map(|timeout_s| words::affinity(timeout_s, self.live.is_some())));
    }

    /// Describes the chosen endpoint and the rewriting.
    fn describe_choice(
        &self,
        answer: &mut Answer,
        found: &Match<'_>,
        decision: &Decision<'_>,
        tuple: &Tuple,
        (trace, copied, source): (&Trace<'_>, &Copied, ChosenSource),
    ) {
        let Decision::Forward { pool, slot, backend, snat, .. } = decision else { return };
        let kept = trace.remembered == Some(Remembered::Kept);
        if let (Some(_), Some(_)) = (&self.live, trace.remembered) {
            answer.steps.push(match copied.remembered {
                Some((identity, age_s)) => words::live::remembered(age_s, pool.by_identity(identity), kept),
                None => words::live::NOBODY_REMEMBERS.into(),
            });
        }
        if !kept {
            answer.steps.push(match self.seed_unknown {
                true => words::choice_by_unknown_seed(tuple, *slot, pool),
                false => words::choice(tuple, *slot, pool),
            });
        }
        answer.steps.push(words::destination(tuple, backend));
        self.describe_next_hop(answer, trace);
        self.describe_source(answer, found, *snat, tuple, (trace, copied, source));
        // The routes decide, which only a running gateway knows.
        let own = self.settings.kernel_ips.contains(&backend.addr) || self.settings.node.ips.contains(&backend.addr);
        if own && self.live.is_none() && source == Some(Ok(Source::Client)) {
            answer.steps.push(words::OWN_ENDPOINT.into());
        }
        match trace.reason() {
            // `describe_source` has described it.
            Some(Reason::SnatAddressMissing) => {}
            Some(reason) => answer.steps.push(words::refusal(reason, trace.told)),
            None if answer.verdict == Verdict::Hold => answer.steps.push(words::live::HELD.into()),
            None => answer.steps.push(words::reply(tuple, backend, answer.snat)),
        }
    }

    fn describe_source(
        &self,
        answer: &mut Answer,
        found: &Match<'_>,
        cause: Option<SnatCause>,
        tuple: &Tuple,
        (trace, copied, source): (&Trace<'_>, &Copied, ChosenSource),
    ) {
        let why = match cause {
            _ if trace.needs_internal => words::live::WHY_INTERNAL.into(),
            Some(cause) => words::why_source_changes(found, cause, self.settings.masquerade_all),
            None => String::new(),
        };
        match source {
            Some(Ok(Source::Client)) => answer.steps.push(words::source_stays(found)),
            Some(Ok(Source::Replaced(words))) => {
                let address = words_addr(words, tuple.v6);
                answer.steps.push(words::source_changes(self.settings, tuple, address, &why));
                answer.steps.extend(copied.ports_in_use.map(|n| words::live::ports_in_use(&self.services.snat, n)));
            }
            Some(Err(Reason::SnatAddressMissing)) => answer.steps.push(words::source_cannot_change(tuple, &why)),
            Some(Err(_)) | None => {}
        }
        if copied.full && trace.opened.is_some() {
            answer.steps.push(words::live::TABLE_FULL.into());
        }
    }

    fn refused(
        &self,
        mut answer: Answer,
        matched: Option<&Matched<'_>>,
        (reason, told): (Reason, Option<reject::Answer>),
        tuple: &Tuple,
    ) -> Answer {
        if let Some(found) = matched.and_then(|matched| self.find(matched, tuple)) {
            self.describe_match(&mut answer, &found, tuple);
        } else if let Some(key) = self.names.cluster_ips.get(&tuple.dst_addr()) {
            answer.service = Some(key.to_string());
            answer.address = Some(AddressKind::ClusterIp.label().into());
            answer.steps.push(words::other_port(self.index.service(key).map(|s| &**s), key, tuple));
        } else if let Some(unserved) = Unserved::find(self.index, tuple, false) {
            answer.service = Some(unserved.service.key.to_string());
            answer.steps.push(unserved.sentence(tuple));
        } else {
            answer.steps.push(words::unallocated(self.settings, tuple.dst_addr()));
        }
        answer.steps.push(words::refusal(reason, told));
        answer
    }

    /// Describes a packet that is not for a Service. `dropped` is the reason if it does not even reach the kernel.
    fn passed(&self, mut answer: Answer, reason: Reason, dropped: Option<(Reason, Option<reject::Answer>)>, tuple: &Tuple) -> Answer {
        let dst = tuple.dst_addr();
        let outcome = match (answer.verdict, dropped) {
            (Verdict::Drop | Verdict::Reject, Some((why, told))) => words::refusal(why, told),
            _ => words::PASSED.into(),
        };
        let own = self.settings.node.ips.contains(&dst);
        if own
            && answer.verdict == Verdict::Pass
            && tuple.proto == Proto::Tcp
            && let Some(check) = self.health_checks.get(&tuple.dport)
        {
            (answer.verdict, answer.reason) = (Verdict::Local, None);
            answer.service = Some(check.service.to_string());
            answer.steps.push(words::health_check(check, tuple));
            return answer;
        }
        let node_port = self.names.node_ports.get(&(tuple.dport, tuple.proto, tuple.v6)).filter(|_| own || dst.is_loopback());
        let found = node_port.and_then(|(key, place)| self.index.service(key).and_then(|s| Some((s, s.ports.get(*place)?))));
        if let Some((service, port)) = found {
            answer.service = Some(service.key.to_string());
            answer.port = Some(port.port);
            answer.address = Some(AddressKind::NodePort.label().into());
            answer.steps.push(words::node_port_elsewhere(self.settings, &service.key, tuple));
            answer.steps.push(outcome);
            return answer;
        }
        if let (Some(OnlyHere::Outer), Some(key)) = (self.services.only_here(dst), self.names.outer.get(&dst)) {
            answer.service = Some(key.to_string());
            answer.steps.push(words::outer::other_port(self.index.service(key).map(|s| &**s), key, tuple));
            answer.steps.push(words::outer::way(self.services, answer.verdict, self.live.is_some()));
            answer.steps.push(outcome);
            return answer;
        }
        let proxied: Option<&NamespacedName> = self.names.proxied.get(&dst);
        let unserved = Unserved::find(self.index, tuple, own || dst.is_loopback());
        answer.steps.push(match (reason, proxied, unserved) {
            (_, Some(key), _) => words::proxied(key, dst),
            (_, _, Some(unserved)) => {
                answer.service = Some(unserved.service.key.to_string());
                unserved.sentence(tuple)
            }
            (Reason::NoFlow, ..) => words::snat_reply(tuple),
            _ if self.settings.incomplete && !own && self.services.in_service_range(dst) => words::perhaps_unread(self.settings, dst),
            _ => words::not_ours(tuple, own),
        });
        answer.steps.push(outcome);
        answer
    }
}

#[cfg(test)]
mod tests;
