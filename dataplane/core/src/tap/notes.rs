//! What was decided about one packet, kept beyond the tables that it was decided with.

use std::net::IpAddr;
use std::sync::Arc;

use crate::backend::Backend;
use crate::conntrack::{Direction, Hit, PhaseKind, Remembered};
use crate::observe::{FlowFate, Observer};
use crate::parse::Packet;
use crate::reason::Reason;
use crate::reject::Answer;
use crate::routes::Resolution;
use crate::services::{AddressKind, ClientClass, Decision, Matched, ServicePort, SnatCause, Source};
use crate::tuple::Tuple;

/// The decisions about a packet. `None`: that decision was not made.
#[derive(Clone, Default, Debug)]
pub struct Notes {
    /// The packet as it came in.
    pub packet: Option<Tuple>,
    /// Its TCP flags.
    pub tcp_flags: u8,
    /// The flow that it belongs to: the phase before the packet, when the flow was last seen, and what becomes of the flow.
    pub known: Option<(PhaseKind, u64, FlowFate)>,
    /// The packet as it goes on, by the known flow or the new one.
    pub rewritten: Option<Tuple>,
    /// The endpoint has sent it.
    pub is_reply: bool,
    /// What was known of the client, if the Service has session affinity.
    pub remembered: Option<Remembered>,
    /// What the table of Services says about a new flow.
    pub decided: Option<Decided>,
    /// The way on.
    pub next_hop: Option<Resolution>,
    /// The source address of a new flow, or why it has none.
    pub source: Option<Result<Source, Reason>>,
    /// Answers come back only to the address that the kernel routes to the internal port.
    pub needs_internal: bool,
    /// A new flow was created.
    pub opened: bool,
    /// Its sender is told so, unless limits forbid it.
    pub rejected: Option<(Reason, Answer, bool)>,
}

/// What the table of Services says.
#[derive(Clone, Debug)]
pub struct Decided {
    /// The Service port, the kind of its address and where the client is.
    pub matched: Option<(Arc<ServicePort>, AddressKind, ClientClass)>,
    /// What follows.
    pub outcome: Outcome,
}

/// What follows from the table of Services.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// The packet goes to this backend.
    Forward {
        /// The chosen one.
        backend: Backend,
        /// Number of candidates.
        candidates: usize,
        /// Slot of the Maglev table.
        slot: u32,
        /// Why the source is replaced, if it is.
        snat: Option<SnatCause>,
    },
    /// The packet is refused.
    Reject(Reason),
    /// The packet is dropped in silence.
    Drop(Reason),
    /// The packet is no Service's.
    Pass(Reason),
}

impl Decided {
    fn of(decision: &Decision<'_>) -> Decided {
        let named = |matched: &Matched<'_>| (matched.frontend.port.clone(), matched.frontend.kind, matched.client);
        let (matched, outcome) = match decision {
            Decision::Pass(reason) => (None, Outcome::Pass(*reason)),
            Decision::Reject(matched, reason) => (matched.as_ref().map(named), Outcome::Reject(*reason)),
            Decision::Drop(matched, reason) => (matched.as_ref().map(named), Outcome::Drop(*reason)),
            Decision::Forward { matched, pool, slot, backend, snat } => {
                let (candidates, backend) = (pool.backends.len(), (*backend).clone());
                (Some(named(matched)), Outcome::Forward { backend, candidates, slot: *slot, snat: *snat })
            }
        };
        Decided { matched, outcome }
    }
}

impl Notes {
    /// The endpoint of the flow, or the one that was chosen for a flow that could not be opened.
    pub fn endpoint(&self) -> Option<(IpAddr, u16)> {
        let chosen = || match &self.decided.as_ref()?.outcome {
            Outcome::Forward { backend, .. } => Some((backend.addr, backend.port)),
            Outcome::Reject(_) | Outcome::Drop(_) | Outcome::Pass(_) => None,
        };
        self.flow().map(|(_, new)| (new.dst_addr(), new.dport)).or_else(chosen)
    }

    /// The client's packet as it came in and as the endpoint gets it, by the known flow or the new one.
    pub fn flow(&self) -> Option<(Tuple, Tuple)> {
        let (packet, new) = (self.packet?, self.rewritten?);
        Some(if self.is_reply { (new.reversed(), packet.reversed()) } else { (packet, new) })
    }
}

impl Notes {
    fn follow(&mut self, hit: &Hit) {
        self.rewritten = Some(hit.new);
        self.is_reply = hit.direction == Direction::Reply;
    }
}

impl<'c> Observer<'c> for Notes {
    fn parsed(&mut self, packet: &Packet) {
        self.packet = Some(packet.tuple);
        self.tcp_flags = packet.tcp_flags;
    }

    fn known_flow(&mut self, hit: &Hit, fate: FlowFate) {
        self.known = Some((hit.phase.kind(), hit.seen_ms, fate));
        if fate == FlowFate::Continues {
            self.follow(hit);
        }
    }

    fn affinity(&mut self, remembered: Remembered) {
        self.remembered = Some(remembered);
    }

    fn service(&mut self, decision: &Decision<'c>) {
        self.decided = Some(Decided::of(decision));
    }

    fn next_hop(&mut self, _: &Tuple, resolution: &Resolution) {
        self.next_hop = Some(*resolution);
    }

    fn source(&mut self, source: Result<Source, Reason>, needs_internal: bool) {
        (self.source, self.needs_internal) = (Some(source), needs_internal);
    }

    fn opened(&mut self, hit: &Hit) {
        self.opened = true;
        self.follow(hit);
    }

    fn rejected(&mut self, reason: Reason, answer: Answer, sent: bool) {
        self.rejected = Some((reason, answer, sent));
    }
}
