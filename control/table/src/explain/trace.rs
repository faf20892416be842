//! Records the packet path's decisions about one packet, for `explain`.

use std::net::IpAddr;

use nomagic_core::conntrack::{Hit, Remembered};
use nomagic_core::frame::Verdict;
use nomagic_core::observe::{FlowFate, Observer};
use nomagic_core::reason::Reason;
use nomagic_core::reject::Answer;
use nomagic_core::routes::Resolution;
use nomagic_core::services::{Decision, Source};
use nomagic_core::tuple::{Tuple, words_addr};

/// The decisions. `None`: the packet path did not make that decision.
#[derive(Default)]
pub(super) struct Trace<'c> {
    /// The packet's known flow, and what happens to the flow.
    pub known: Option<(Hit, FlowFate)>,
    pub remembered: Option<Remembered>,
    pub decision: Option<Decision<'c>>,
    pub next_hop: Option<Resolution>,
    pub source: Option<Result<Source, Reason>>,
    /// Replies come back only to the internal address.
    pub needs_internal: bool,
    /// The flow that was created.
    pub opened: Option<Hit>,
    /// The response to the sender.
    pub told: Option<Answer>,
    pub verdict: Option<Verdict>,
}

/// The address that replaces the client's.
pub(super) fn replaced_source(source: Option<Result<Source, Reason>>, v6: bool) -> Option<IpAddr> {
    match source {
        Some(Ok(Source::Replaced(words))) => Some(words_addr(words, v6)),
        Some(Ok(Source::Client) | Err(_)) | None => None,
    }
}

impl Trace<'_> {
    /// The reason of the verdict.
    pub fn reason(&self) -> Option<Reason> {
        match self.verdict {
            Some(Verdict::Kernel(reason) | Verdict::Drop(reason)) => Some(reason),
            Some(Verdict::Forward(..) | Verdict::Fragment(..) | Verdict::Hold(_)) | None => None,
        }
    }
}

impl<'c> Observer<'c> for Trace<'c> {
    fn known_flow(&mut self, hit: &Hit, fate: FlowFate) {
        self.known = Some((*hit, fate));
    }

    fn affinity(&mut self, remembered: Remembered) {
        self.remembered = Some(remembered);
    }

    fn service(&mut self, decision: &Decision<'c>) {
        self.decision = Some(*decision);
    }

    fn next_hop(&mut self, _: &Tuple, resolution: &Resolution) {
        self.next_hop = Some(*resolution);
    }

    fn source(&mut self, source: Result<Source, Reason>, needs_internal: bool) {
        self.source = Some(source);
        self.needs_internal = needs_internal;
    }

    fn opened(&mut self, hit: &Hit) {
        self.opened = Some(*hit);
    }

    fn rejected(&mut self, _: Reason, answer: Answer, _: bool) {
        self.told = Some(answer);
    }

    fn verdict(&mut self, verdict: &Verdict) {
        self.verdict = Some(*verdict);
    }
}
