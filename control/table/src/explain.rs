//! What happens to a packet, and why: the compiled table asked the way the packet path asks it, answered in words.

pub mod flow;
mod names;
mod words;

use std::net::IpAddr;

use nomagic_core::reason::Reason;
use nomagic_core::services::{AddressKind, ClientClass, Decision, Frontend, ServicePort, SnatCause};
use nomagic_core::tuple::{Proto, Tuple};
use serde::Serialize;

use crate::compile::Compiled;
use crate::compile::endpoints::{self, Class, Selection};
use crate::index::Index;
use crate::objects::addr::socket;
use crate::objects::{Key, Policy, Port, Service};
use crate::settings::Settings;
pub use flow::parse_flow;
use names::Names;

/// What becomes of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Sent to a backend.
    Forward,
    /// Answered with ICMP port unreachable, or with a TCP reset.
    Reject,
    /// Silence.
    Drop,
    /// For the health check server of the proxy itself.
    Local,
    /// Not nomagic's business: the kernel goes on with it.
    Pass,
}

/// The answer about one flow; the fields are those of the JSON output, in its order.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Answer {
    /// The question, as it was put.
    pub flow: String,
    /// What becomes of the packet.
    pub verdict: Verdict,
    /// Why, as the metric label; `null` when it is forwarded.
    pub reason: Option<&'static str>,
    /// `namespace/name`
    pub service: Option<String>,
    /// The Service's port.
    pub port: Option<u16>,
    /// `clusterIP`, `nodePort`, `externalIP` or `loadBalancerIP`.
    pub address: Option<&'static str>,
    /// All candidates.
    pub backends: Vec<String>,
    /// The one that this flow gets.
    pub chosen: Option<String>,
    /// The address that replaces the client's, if it is replaced. Its port is chosen at run time.
    pub snat: Option<IpAddr>,
    /// The story in words.
    pub steps: Vec<String>,
}

/// A compiled table with everything that is needed to talk about it.
pub struct Explainer<'e> {
    index: &'e Index,
    settings: &'e Settings,
    compiled: &'e Compiled,
    names: Names,
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

impl Answer {
    fn new(flow: &str, verdict: Verdict) -> Answer {
        Answer {
            flow: flow.into(),
            verdict,
            reason: None,
            service: None,
            port: None,
            address: None,
            backends: Vec::new(),
            chosen: None,
            snat: None,
            steps: Vec::new(),
        }
    }

    fn because(mut self, reason: Reason) -> Answer {
        self.reason = Some(reason.label());
        self
    }
}

impl<'e> Explainer<'e> {
    /// Explains a table by the objects and settings that it was compiled from.
    pub fn new(index: &'e Index, settings: &'e Settings, compiled: &'e Compiled) -> Explainer<'e> {
        Explainer { index, settings, compiled, names: Names::of(index) }
    }

    /// What becomes of the first packet of a connection. `flow` is the question's text.
    pub fn answer(&self, flow: &str, tuple: &Tuple) -> Answer {
        let mut answer = match self.compiled.services.decide(tuple) {
            Decision::Forward { frontend, pool, slot, backend, snat } => {
                let found = self.find(frontend, tuple);
                let address = self.settings.snat.addr(tuple.v6);
                let mut answer = match (snat, address) {
                    // The packet path refuses what it has no address for.
                    (Some(_), None) => Answer::new(flow, Verdict::Drop).because(Reason::SnatAddressMissing),
                    _ => Answer::new(flow, Verdict::Forward),
                };
                answer.backends = pool.backends.iter().map(|b| socket(b.addr, b.port)).collect();
                if answer.verdict == Verdict::Forward {
                    answer.chosen = Some(socket(backend.addr, backend.port));
                    answer.snat = snat.and(address);
                }
                if let Some(found) = found {
                    self.tell_match(&mut answer, &found, tuple);
                    answer.steps.push(words::choice(tuple, slot, pool, backend));
                    self.tell_rewrite(&mut answer, &found, tuple, backend, snat);
                }
                answer
            }
            Decision::Reject(frontend, reason) => self.refused(Answer::new(flow, Verdict::Reject), frontend, reason, tuple),
            Decision::Drop(frontend, reason) => self.refused(Answer::new(flow, Verdict::Drop), frontend, reason, tuple),
            Decision::Pass(reason) => self.passed(flow, reason, tuple),
        };
        answer.steps.insert(0, words::arrival(tuple));
        answer
    }

    fn find(&self, frontend: &'e Frontend, tuple: &Tuple) -> Option<Match<'e>> {
        let ServicePort { namespace, name, port_name, proto, .. } = &*frontend.port;
        let service = self.index.service(&Key { namespace: namespace.clone(), name: name.clone() })?;
        let port = service.ports.iter().find(|p| (&p.name, p.proto) == (port_name, *proto))?;
        let client = self.compiled.services.client_class(tuple.src_addr());
        let node = &self.settings.node;
        let selection = endpoints::select(endpoints::candidates(self.index, &service.key, port, tuple.v6, node), node);
        let local = match frontend.kind {
            AddressKind::ClusterIp => service.internal_policy == Policy::Local,
            _ => service.external_policy == Policy::Local && client == ClientClass::External,
        };
        Some(Match { frontend, service, port, client, class: if local { Class::Local } else { Class::Cluster }, selection })
    }

    /// Fills in the Service and tells everything up to the candidates.
    fn tell_match(&self, answer: &mut Answer, found: &Match<'e>, tuple: &Tuple) {
        answer.service = Some(found.service.key.to_string());
        answer.port = Some(found.port.port);
        answer.address = Some(found.frontend.kind.label());
        answer.steps.push(words::address(found, tuple));
        answer.steps.push(words::client(self.settings, found.client, tuple));
        if let Some(ranges) = &found.frontend.source_ranges {
            answer.steps.push(words::source_ranges(ranges, tuple.src_addr()));
            if answer.reason == Some(Reason::SourceRange.label()) {
                return;
            }
        }
        answer.steps.push(words::policy(found, &self.settings.node.name));
        answer.steps.extend(words::topology(found, &self.settings.node));
        answer.steps.push(words::candidates(found));
        let unusable = self.index.slices_of(&found.service.key).filter(|s| s.v6 == tuple.v6).flat_map(|s| &s.unusable);
        answer.steps.extend(words::left_out(found, unusable));
        answer.steps.extend(found.service.affinity_timeout_s.map(words::affinity));
    }

    fn tell_rewrite(
        &self,
        answer: &mut Answer,
        found: &Match<'e>,
        tuple: &Tuple,
        backend: &nomagic_core::services::Backend,
        snat: Option<SnatCause>,
    ) {
        answer.steps.push(words::destination(tuple, backend));
        match (snat, answer.snat) {
            (None, _) => answer.steps.push(words::source_stays(found)),
            (Some(cause), Some(address)) => {
                let why = words::why_source_changes(found, cause, self.settings.masquerade_all);
                answer.steps.push(words::source_changes(self.settings, tuple, address, &why));
            }
            (Some(cause), None) => {
                let why = words::why_source_changes(found, cause, self.settings.masquerade_all);
                return answer.steps.push(words::source_cannot_change(tuple, &why));
            }
        }
        answer.steps.push(words::reply(tuple, backend, answer.snat));
    }

    fn refused(&self, mut answer: Answer, frontend: Option<&'e Frontend>, reason: Reason, tuple: &Tuple) -> Answer {
        answer = answer.because(reason);
        if let Some(found) = frontend.and_then(|f| self.find(f, tuple)) {
            self.tell_match(&mut answer, &found, tuple);
        } else if let Some(key) = self.names.cluster_ips.get(&tuple.dst_addr()) {
            answer.service = Some(key.to_string());
            answer.address = Some(AddressKind::ClusterIp.label());
            answer.steps.push(words::other_port(self.index.service(key).map(|s| &**s), key, tuple));
        } else {
            answer.steps.push(words::unallocated(self.settings, tuple.dst_addr()));
        }
        answer.steps.push(words::refusal(answer.verdict, reason, tuple.proto, self.settings.tcp_reject));
        answer
    }

    fn passed(&self, flow: &str, reason: Reason, tuple: &Tuple) -> Answer {
        let dst = tuple.dst_addr();
        let own = self.settings.node.ips.contains(&dst);
        if own
            && tuple.proto == Proto::Tcp
            && let Some(check) = self.compiled.health_checks.get(&tuple.dport)
        {
            let mut answer = Answer::new(flow, Verdict::Local);
            answer.service = Some(check.service.to_string());
            answer.steps.push(words::health_check(check, tuple));
            return answer;
        }
        let node_port = self.names.node_ports.get(&(tuple.dport, tuple.proto, tuple.v6)).filter(|_| own || dst.is_loopback());
        let found = node_port.and_then(|(key, place)| self.index.service(key).and_then(|s| Some((s, s.ports.get(*place)?))));
        if let Some((service, port)) = found {
            let mut answer = Answer::new(flow, Verdict::Pass).because(reason);
            answer.service = Some(service.key.to_string());
            answer.port = Some(port.port);
            answer.address = Some(AddressKind::NodePort.label());
            answer.steps.push(words::node_port_elsewhere(self.settings, &service.key, tuple));
            answer.steps.push(words::PASSED.into());
            return answer;
        }
        let mut answer = Answer::new(flow, Verdict::Pass).because(reason);
        let proxied: Option<&Key> = self.names.proxied.get(&dst);
        answer.steps.push(match (reason, proxied) {
            (_, Some(key)) => words::proxied(key, dst),
            (Reason::NoFlow, _) => words::snat_reply(tuple),
            _ => words::not_ours(tuple, own),
        });
        answer.steps.push(words::PASSED.into());
        answer
    }
}
