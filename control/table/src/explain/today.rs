//! What a known flow's age and endpoint mean now: since when it exists, as far as its record tells, and where a new connection with the same
//! addresses and ports would go.

use std::net::IpAddr;

use nomagic_api::explain::{FlowFate as Fate, KnownFlow};
use nomagic_core::conntrack::{AGE_MODULUS_MS, Flow, Hit, Remembered};
use nomagic_core::observe::FlowFate;
use nomagic_core::reason::Reason;
use nomagic_core::services::{Backend, Decision, Matched};
use nomagic_core::tuple::words_addr;

use super::live::LiveState;
use super::scratch::Scratch;
use super::trace::Trace;
use super::{Explainer, state, words};
use crate::objects::addr::socket;

/// Where a new connection would go.
pub(super) struct Today {
    /// The endpoint; `None`: to none.
    pub(super) endpoint: Option<String>,
    /// Why it is not the flow's; `None`: it is.
    pub(super) otherwise: Option<String>,
    /// What chooses it: the client's affinity, not its hash.
    pub(super) by_affinity: bool,
}

/// A flow's age: what is known of it for certain, or the remainder by [`AGE_MODULUS_MS`].
fn age_ms(live: &LiveState<'_>, hit: &Hit) -> Option<u64> {
    // A flow is not younger than its last packet (to a step of its times), and not older than the boot: tables do not survive that.
    let idle_ms = live.now_ms.saturating_sub(hit.seen_ms).saturating_sub(500);
    let ages = (0..).map(|wraps| hit.age_remainder_ms(live.now_ms) + wraps * AGE_MODULUS_MS);
    let mut possible = ages.skip_while(|age| *age < idle_ms).take_while(|age| *age <= live.now_ms);
    let first = possible.next()?;
    possible.next().is_none().then_some(first)
}

impl Explainer<'_> {
    /// Describes a flow that the gateway knows. Returns its fields and the sentences.
    pub(super) fn known_flow(&self, live: &LiveState<'_>, flow: &Flow, hit: &Hit, fate: FlowFate) -> (KnownFlow, Vec<String>) {
        let (idle_ms, timeout_ms) = (live.now_ms.saturating_sub(hit.seen_ms), live.timeouts.table().of(hit.phase));
        let age_remainder_ms = hit.age_remainder_ms(live.now_ms);
        let mut known = KnownFlow {
            state: state::of(hit.phase.kind()),
            fate: match fate {
                FlowFate::Continues => Fate::Continues,
                FlowFate::TimedOut => Fate::TimedOut,
                FlowFate::Replaced => Fate::Replaced,
            },
            backend: socket(words_addr(flow.backend, flow.v6), flow.backend_port),
            idle_ms,
            expires_in_ms: timeout_ms.saturating_sub(idle_ms),
            age_ms: age_ms(live, hit),
            age_remainder_ms,
            age_modulus_ms: AGE_MODULUS_MS,
            new_one_goes_to: None,
            goes_elsewhere_because: None,
        };
        let mut sentences = vec![words::live::known_flow(live, flow, hit, fate)];
        sentences.push(words::live::age(known.age_ms, age_remainder_ms));
        if fate != FlowFate::Continues {
            return (known, sentences);
        }
        if flow.is_direct() {
            sentences.push(words::live::DIRECT.into());
            return (known, sentences);
        }
        let today = self.today(live, flow);
        sentences.push(words::live::today(&known.backend, &today));
        (known.new_one_goes_to, known.goes_elsewhere_because) = (today.endpoint, today.otherwise);
        (known, sentences)
    }

    /// What the table in force does with a new connection in the flow's place.
    fn today(&self, live: &LiveState<'_>, flow: &Flow) -> Today {
        let scratch = Scratch { services: self.services, routes: live.routes, live: Some(live), as_new: true };
        scratch.decide(&flow.original(), |trace| self.compare(flow, trace))
    }

    fn compare(&self, flow: &Flow, trace: &Trace<'_>) -> Today {
        let nowhere = |why: String| Today { endpoint: None, otherwise: Some(why), by_affinity: false };
        let (addr, port) = (words_addr(flow.backend, flow.v6), flow.backend_port);
        match &trace.decision {
            Some(Decision::Forward { matched, pool, backend, .. }) => {
                let by_affinity = trace.remembered == Some(Remembered::Kept);
                let is_own = |b: &Backend| (b.addr, b.port) == (addr, port);
                let otherwise = (!is_own(backend)).then(|| match pool.backends.iter().any(is_own) {
                    true if by_affinity => "the client's session affinity names another endpoint now".to_owned(),
                    true => words::live::other_slot(matched.frontend.port.affinity.is_some()),
                    false => self.no_candidate(matched, flow, (addr, port)),
                });
                Today { endpoint: Some(socket(backend.addr, backend.port)), otherwise, by_affinity }
            }
            Some(Decision::Reject(Some(matched), reason) | Decision::Drop(Some(matched), reason)) => {
                let gone = self.no_candidate(matched, flow, (addr, port));
                nowhere(if *reason == Reason::SourceRange { reason.text().to_owned() } else { format!("{}; {gone}", reason.text()) })
            }
            Some(Decision::Reject(None, reason) | Decision::Drop(None, reason)) => nowhere(reason.text().to_owned()),
            Some(Decision::Pass(_)) => nowhere("no Service has the address and port any more".to_owned()),
            None => nowhere(trace.reason().map_or("no Service is asked", Reason::text).to_owned()),
        }
    }

    /// Why an endpoint is no candidate of a Service port.
    fn no_candidate(&self, matched: &Matched<'_>, flow: &Flow, (addr, port): (IpAddr, u16)) -> String {
        let unknown = || "the endpoint is no longer one of the Service port's".to_owned();
        let Some(found) = self.find(matched, &flow.original()) else { return unknown() };
        let excluded = found.selection.left_out(found.class).find(|(c, _)| (c.endpoint.addr, c.port) == (addr, port));
        match excluded {
            Some((_, why)) => format!("the endpoint gets no new connections: {}", why.text()),
            None => unknown(),
        }
    }
}
