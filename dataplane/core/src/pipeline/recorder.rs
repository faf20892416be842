//! Records what the slow path does as events.

use std::sync::Arc;

use crate::conntrack::{Flow, Hit, Phase};
use crate::events::{EndCause, Event, EventKind, EventRing, HeldFor, ends};
use crate::frame::{Frame, PortId, Verdict, Wait};
use crate::reason::Reason;
use crate::reject::Answer;
use crate::tuple::Tuple;

/// A worker's recorder. Without a ring it records nothing.
#[derive(Default, Debug)]
pub(super) struct Recorder {
    ring: Option<Arc<EventRing>>,
    /// The packet that is decided about.
    packet: Option<Tuple>,
    /// The client's packet as the backend gets it, if the packet belongs to a known flow.
    rewritten: Option<Tuple>,
    /// Its end is recorded already, as more than a verdict tells.
    is_told: bool,
}

impl Recorder {
    pub fn new(ring: Arc<EventRing>) -> Recorder {
        Recorder { ring: Some(ring), ..Recorder::default() }
    }

    /// The next frame.
    #[inline]
    pub fn begin(&mut self) {
        self.packet = None;
        self.rewritten = None;
        self.is_told = false;
    }

    /// The frame's packet: for a later fragment without ports, for an ICMP error the quoted one.
    #[inline]
    pub fn read(&mut self, packet: &Tuple) {
        self.packet = Some(*packet);
    }

    /// The packet, with this tuple, belongs to this flow.
    #[inline]
    pub fn belongs(&mut self, packet: &Tuple, hit: &Hit) {
        let (original, rewritten) = ends(packet, hit);
        (self.packet, self.rewritten) = (Some(original), Some(rewritten));
    }

    #[inline]
    fn record(&self, event: impl FnOnce() -> Event) {
        if let Some(ring) = &self.ring {
            ring.record(&event());
        }
    }

    /// The flow that this packet belongs to was created or has changed.
    pub fn flow(&self, now_ms: u64, frame: &Frame<'_>, packet_of: (&Tuple, &Hit), kind: EventKind) {
        self.record(|| Event::of_hit(now_ms, kind, packet_of, (frame.port, frame.total_len())));
    }

    pub fn ended(&self, now_ms: u64, flow: &Flow, cause: EndCause, phase: Phase) {
        self.record(|| Event::of_flow(now_ms, EventKind::Ended(cause, phase.kind()), flow));
    }

    pub fn rejected(&mut self, now_ms: u64, frame: &Frame<'_>, reason: Reason, answer: Answer, sent: bool) {
        self.is_told = true;
        self.packet(now_ms, frame, EventKind::Rejected { reason, told: answer.into(), sent });
    }

    pub fn packet(&self, now_ms: u64, frame: &Frame<'_>, kind: EventKind) {
        self.record(|| self.event(now_ms, kind, (frame.port, frame.total_len())));
    }

    fn event(&self, now_ms: u64, kind: EventKind, frame: (PortId, usize)) -> Event {
        Event { rewritten: self.rewritten, ..Event::of_packet(now_ms, kind, self.packet, frame) }
    }

    /// The verdict about a frame. One that is held again is not recorded again.
    pub fn judged(&self, now_ms: u64, (port, bytes, resubmitted): (PortId, usize, bool), verdict: &Verdict) {
        let kind = match *verdict {
            Verdict::Drop(reason) if !self.is_told => EventKind::Dropped(reason),
            Verdict::Kernel(reason) => EventKind::Kernel(reason),
            Verdict::Hold(wait) if !resubmitted => EventKind::Held(match wait {
                Wait::Neighbour(_) => HeldFor::Neighbour,
                Wait::Fragments(_) => HeldFor::Fragments,
            }),
            Verdict::Drop(_) | Verdict::Hold(_) | Verdict::Forward(..) | Verdict::Fragment(..) => return,
        };
        self.record(|| self.event(now_ms, kind, (port, bytes)));
    }
}
