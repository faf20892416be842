//! What happens to the first packet of a flow, and why, in words.
//!
//! The packet goes through the packet path itself, with a connection table of its own; an observer hears each decision. Only what the packet
//! path cannot know is looked up besides: the names of addresses that are not in the service table, and why endpoints are left out.

pub mod flow;
mod live;
mod names;
mod scratch;
mod story;
mod words;

use std::collections::BTreeMap;

use nomagic_api::explain::{Answer, Verdict};
use nomagic_core::conntrack::{Direction, Remembered};
use nomagic_core::frame;
use nomagic_core::reason::Reason;
use nomagic_core::routes::Routes;
use nomagic_core::services::{AddressKind, ClientClass, Decision, Frontend, Matched, ServicePort, Services, SnatCause, Source};
use nomagic_core::tuple::{Proto, Tuple, words_addr};

use crate::compile::endpoints::{self, Class, Selection};
use crate::compile::{Compiled, HealthCheck};
use crate::index::Index;
use crate::objects::addr::socket;
use crate::objects::{Key, Policy, Port, Service};
use crate::settings::Settings;
pub use flow::parse_flow;
use live::Copied;
pub use live::LiveState;
use names::Names;
use scratch::Scratch;
use story::Story;

/// A compiled table with everything that is needed to talk about it.
pub struct Explainer<'e> {
    index: &'e Index,
    settings: &'e Settings,
    services: &'e Services,
    health_checks: &'e BTreeMap<u16, HealthCheck>,
    names: Names,
    routes: Routes,
    live: Option<LiveState<'e>>,
}

/// The matched address with the objects behind it.
struct Match<'e> {
    frontend: &'e Frontend,
    service: &'e Service,
    port: &'e Port,
    client: ClientClass,
    /// Whose endpoints the traffic policy asks for.
    class: Class,
    selection: Selection<'e>,
}

impl<'e> Explainer<'e> {
    /// Explains a table by the objects and settings that it was compiled from.
    pub fn new(index: &'e Index, settings: &'e Settings, compiled: &'e Compiled) -> Explainer<'e> {
        Explainer::of_parts(index, settings, &compiled.services, &compiled.health_checks)
    }

    /// As [`Explainer::new`], for a gateway, which keeps these parts of the table only.
    pub fn of_parts(
        index: &'e Index,
        settings: &'e Settings,
        services: &'e Services,
        health_checks: &'e BTreeMap<u16, HealthCheck>,
    ) -> Explainer<'e> {
        Explainer { index, settings, services, health_checks, names: Names::of(index), routes: scratch::routes_everywhere(), live: None }
    }

    /// With the state of a gateway that uses this table: known flows, remembered clients, routes and source ports count as well.
    pub fn with_state(self, live: LiveState<'e>) -> Explainer<'e> {
        Explainer { live: Some(live), ..self }
    }

    /// What becomes of the first packet of a flow. `flow` is the question's text.
    pub fn answer(&self, flow: &str, tuple: &Tuple) -> Answer {
        // Never on a wire: the packet path would only find fault with the addresses.
        let mut answer = match tuple.dst_addr().is_loopback() {
            true => self.passed(Answer::new(flow, Verdict::Pass).because(Reason::NotOurs), Reason::NotOurs, None, tuple),
            false => {
                let live = self.live.as_ref();
                let scratch = Scratch { services: self.services, routes: live.map_or(&self.routes, |live| live.routes), live };
                scratch.observe(tuple, |story, copied| self.tell(flow, tuple, story, copied))
            }
        };
        answer.steps.insert(0, words::arrival(tuple));
        answer
    }

    /// Tells what was heard about the packet.
    fn tell(&self, flow: &str, tuple: &Tuple, story: &Story<'_>, copied: &Copied) -> Answer {
        let verdict = match story.verdict {
            Some(frame::Verdict::Forward(..)) => Verdict::Forward,
            Some(frame::Verdict::Hold(_)) => Verdict::Hold,
            Some(frame::Verdict::Kernel(_)) => Verdict::Pass,
            _ if story.rejected => Verdict::Reject,
            _ => Verdict::Drop,
        };
        let mut answer = Answer::new(flow, verdict);
        answer.reason = story.reason().map(|reason| reason.label().into());
        if let (Some(live), Some((hit, fate)), Some(flow)) = (&self.live, &story.known, &copied.flow) {
            answer.steps.push(words::live::known_flow(live, flow, hit, *fate));
        }
        match &story.decision {
            Some(decision @ Decision::Forward { matched, pool, backend, .. }) => {
                answer.backends = pool.backends.iter().map(|b| socket(b.addr, b.port)).collect();
                if matches!(verdict, Verdict::Forward | Verdict::Hold) {
                    answer.chosen = Some(socket(backend.addr, backend.port));
                    answer.snat = story.replaced_source(tuple.v6);
                }
                if let Some(found) = self.find(matched, tuple) {
                    self.tell_match(&mut answer, &found, tuple);
                    self.tell_choice(&mut answer, &found, decision, tuple, (story, copied));
                }
                answer
            }
            Some(Decision::Reject(matched, reason) | Decision::Drop(matched, reason)) => {
                self.refused(answer, matched.as_ref(), *reason, tuple)
            }
            Some(Decision::Pass(reason)) => self.passed(answer, *reason, story.reason(), tuple),
            None => self.known(answer, tuple, story, copied),
        }
    }

    /// A packet that no Service decides about: it belongs to a known flow, or nobody would send it.
    fn known(&self, mut answer: Answer, tuple: &Tuple, story: &Story<'_>, copied: &Copied) -> Answer {
        if let (Some((hit, _)), Some(flow)) = (&story.known, &copied.flow) {
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
            self.tell_next_hop(&mut answer, story);
        }
        answer.steps.extend(story.reason().map(|r| words::refusal(answer.verdict, r, tuple.proto, self.settings.tcp_reject)));
        answer
    }

    fn tell_next_hop(&self, answer: &mut Answer, story: &Story<'_>) {
        if let (Some(live), Some(resolution)) = (&self.live, &story.next_hop) {
            answer.steps.extend(words::live::next_hop(live, resolution));
        }
    }

    fn find<'m>(&'m self, matched: &Matched<'m>, tuple: &Tuple) -> Option<Match<'m>> {
        let Matched { frontend, client } = *matched;
        let ServicePort { namespace, name, port_name, proto, .. } = &*frontend.port;
        let service = self.index.service(&Key { namespace: namespace.clone(), name: name.clone() })?;
        let port = service.ports.iter().find(|p| (&p.name, p.proto) == (port_name, *proto))?;
        let node = &self.settings.node;
        let selection = endpoints::select(endpoints::candidates(self.index, &service.key, port, tuple.v6, node), node);
        let local = match frontend.kind {
            AddressKind::ClusterIp => service.internal_policy == Policy::Local,
            _ => service.external_policy == Policy::Local && client == ClientClass::External,
        };
        Some(Match { frontend, service, port, client, class: if local { Class::Local } else { Class::Cluster }, selection })
    }

    /// Fills in the Service and tells everything up to the candidates.
    fn tell_match(&self, answer: &mut Answer, found: &Match<'_>, tuple: &Tuple) {
        answer.service = Some(found.service.key.to_string());
        answer.port = Some(found.port.port);
        answer.address = Some(found.frontend.kind.label().into());
        answer.steps.push(words::address(found, tuple));
        answer.steps.push(words::client(self.settings, found.client, tuple));
        if let Some(ranges) = &found.frontend.source_ranges {
            answer.steps.push(words::source_ranges(ranges, tuple.src_addr()));
            if answer.reason.as_deref() == Some(Reason::SourceRange.label()) {
                return;
            }
        }
        answer.steps.push(words::policy(found, &self.settings.node.name));
        answer.steps.extend(words::topology(found, &self.settings.node));
        answer.steps.push(words::candidates(found));
        let unusable = self.index.slices_of(&found.service.key).filter(|s| s.v6 == tuple.v6).flat_map(|s| &s.unusable);
        answer.steps.extend(words::left_out(found, unusable));
        answer.steps.extend(found.service.affinity_timeout_s.map(|timeout_s| words::affinity(timeout_s, self.live.is_some())));
    }

    /// Tells which endpoint is chosen and how the packet is rewritten.
    fn tell_choice(
        &self,
        answer: &mut Answer,
        found: &Match<'_>,
        decision: &Decision<'_>,
        tuple: &Tuple,
        (story, copied): (&Story<'_>, &Copied),
    ) {
        let Decision::Forward { pool, slot, backend, snat, .. } = decision else { return };
        let kept = story.remembered == Some(Remembered::Kept);
        if let (Some(_), Some(_)) = (&self.live, story.remembered) {
            answer.steps.push(match copied.remembered {
                Some((identity, age_s)) => words::live::remembered(age_s, pool.by_identity(identity), kept),
                None => words::live::NOBODY_REMEMBERS.into(),
            });
        }
        if !kept {
            answer.steps.push(words::choice(tuple, *slot, pool));
        }
        answer.steps.push(words::destination(tuple, backend));
        self.tell_next_hop(answer, story);
        self.tell_source(answer, found, *snat, tuple, (story, copied));
        match story.reason() {
            // Said already.
            Some(Reason::SnatAddressMissing) => {}
            Some(reason) => answer.steps.push(words::refusal(answer.verdict, reason, tuple.proto, self.settings.tcp_reject)),
            None if answer.verdict == Verdict::Hold => answer.steps.push(words::live::HELD.into()),
            None => answer.steps.push(words::reply(tuple, backend, answer.snat)),
        }
    }

    fn tell_source(
        &self,
        answer: &mut Answer,
        found: &Match<'_>,
        cause: Option<SnatCause>,
        tuple: &Tuple,
        (story, copied): (&Story<'_>, &Copied),
    ) {
        let why = match cause {
            _ if story.needs_internal => words::live::WHY_INTERNAL.into(),
            Some(cause) => words::why_source_changes(found, cause, self.settings.masquerade_all),
            None => String::new(),
        };
        match story.source {
            Some(Ok(Source::Client)) => answer.steps.push(words::source_stays(found)),
            Some(Ok(Source::Replaced(words))) => {
                let address = words_addr(words, tuple.v6);
                answer.steps.push(words::source_changes(self.settings, tuple, address, &why));
                answer.steps.extend(copied.ports_in_use.map(|n| words::live::ports_in_use(&self.services.snat, n)));
            }
            Some(Err(Reason::SnatAddressMissing)) => answer.steps.push(words::source_cannot_change(tuple, &why)),
            Some(Err(_)) | None => {}
        }
        if copied.full && story.opened.is_some() {
            answer.steps.push(words::live::TABLE_FULL.into());
        }
    }

    fn refused(&self, mut answer: Answer, matched: Option<&Matched<'_>>, reason: Reason, tuple: &Tuple) -> Answer {
        if let Some(found) = matched.and_then(|matched| self.find(matched, tuple)) {
            self.tell_match(&mut answer, &found, tuple);
        } else if let Some(key) = self.names.cluster_ips.get(&tuple.dst_addr()) {
            answer.service = Some(key.to_string());
            answer.address = Some(AddressKind::ClusterIp.label().into());
            answer.steps.push(words::other_port(self.index.service(key).map(|s| &**s), key, tuple));
        } else {
            answer.steps.push(words::unallocated(self.settings, tuple.dst_addr()));
        }
        answer.steps.push(words::refusal(answer.verdict, reason, tuple.proto, self.settings.tcp_reject));
        answer
    }

    /// A packet that is not for a Service. `dropped`: why it does not even reach the kernel, when the verdict says so.
    fn passed(&self, mut answer: Answer, reason: Reason, dropped: Option<Reason>, tuple: &Tuple) -> Answer {
        let dst = tuple.dst_addr();
        let outcome = match (answer.verdict, dropped) {
            (Verdict::Drop, Some(why)) => words::refusal(Verdict::Drop, why, tuple.proto, self.settings.tcp_reject),
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
        let proxied: Option<&Key> = self.names.proxied.get(&dst);
        answer.steps.push(match (reason, proxied) {
            (_, Some(key)) => words::proxied(key, dst),
            (Reason::NoFlow, _) => words::snat_reply(tuple),
            _ => words::not_ours(tuple, own),
        });
        answer.steps.push(outcome);
        answer
    }
}

#[cfg(test)]
mod tests;
