//! Reads the workers' events for `nomagic trace`: in pages, beside the workers, which it does not stop.

use std::net::IpAddr;
use std::sync::Arc;

use nomagic_api::events::{EVENT_SCHEMA, EVENTS_MAX, Event, EventFilter, EventType, EventsFrom, EventsPage};
use nomagic_core::events::{self as core, EndCause, EventKind, EventRing, HeldFor, Told};
use nomagic_core::frame::PortId;
use nomagic_core::reason::Reason;
use nomagic_core::services::Services;
use nomagic_core::tuple::Tuple;
use nomagic_table::objects::addr;

use crate::clock::WallClock;
use crate::flows::{Selection, service_name, state_of};

/// A filter that can be applied.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct EventSelection {
    flow: Selection,
    types: Vec<EventType>,
    reason: Option<Reason>,
}

impl EventSelection {
    /// Reads a filter.
    ///
    /// # Errors
    /// The field, and what it may be.
    pub fn parse(filter: &EventFilter) -> Result<EventSelection, String> {
        let reason = |label: &str| {
            let known = Reason::ALL.iter().find(|reason| reason.label() == label).copied();
            known.ok_or_else(|| {
                format!("reason `{}`: no such reason; `nomagic status` and the metrics have their names", label.escape_debug())
            })
        };
        let reason = filter.reason.as_deref().map(reason).transpose()?;
        Ok(EventSelection { flow: Selection::parse(&filter.flow)?, types: filter.types.clone(), reason })
    }
}

/// What a page is read from.
pub struct EventSource<'s> {
    /// The workers' rings, and those of the control plane.
    pub rings: &'s [Arc<EventRing>],
    /// Number of the workers' rings.
    pub workers: usize,
    /// The table of Services in force, for their names.
    pub services: &'s Services,
    /// Names of the ports.
    pub ports: &'s [String],
    pub clock: WallClock,
}

impl EventSource<'_> {
    /// Reads at most [`EVENTS_MAX`] events, and shows those that fit.
    pub fn page(&self, selection: &EventSelection, from: &EventsFrom) -> EventsPage {
        let mut page = EventsPage::default();
        let mut found: Vec<(u64, Event)> = Vec::new();
        let share = (EVENTS_MAX / self.rings.len().max(1)).max(1);
        for (at, ring) in self.rings.iter().enumerate() {
            let start = match from {
                EventsFrom::Oldest => 0,
                EventsFrom::Newest => ring.end(),
                EventsFrom::Cursor(next) => next.get(at).copied().unwrap_or(0),
            };
            let worker = (at < self.workers).then_some(at as u32);
            let seen =
                ring.read(start, share, |event| found.extend(self.shown(selection, worker, &event).map(|shown| (event.at_ms, shown))));
            page.next.push(seen.next);
            // Of a ring that is read from its beginning nobody has missed anything.
            page.missed += if *from == EventsFrom::Oldest { 0 } else { seen.missed };
            page.more |= seen.next < ring.end();
        }
        found.sort_by_key(|(at_ms, _)| *at_ms);
        page.events = found.into_iter().map(|(_, event)| event).collect();
        page
    }

    /// `None`: it does not fit.
    fn shown(&self, selection: &EventSelection, worker: Option<u32>, event: &core::Event) -> Option<Event> {
        let words = Words::of(event.kind);
        let fits = (selection.types.is_empty() || selection.types.contains(&words.kind))
            && selection.reason.is_none_or(|reason| words.reason == Some(reason));
        let (packet, rewritten) = (event.packet.as_ref(), event.rewritten.as_ref());
        let service = packet.and_then(|t| self.services.frontend(t.dst_addr(), t.dport, t.proto)).map(|frontend| &*frontend.port);
        let state = words.phase.map(state_of);
        if !fits || !selection.flow.fits_packet(packet, rewritten, service, state) {
            return None;
        }
        let ends = |t: &Tuple| (addr::socket(t.src_addr(), t.sport), addr::socket(t.dst_addr(), t.dport));
        let (source, destination) = packet.map(ends).unzip();
        let snat = rewritten.zip(packet).filter(|(new, old)| (new.src, new.sport) != (old.src, old.sport)).map(|(new, _)| ends(new).0);
        let mut shown = Event {
            schema: EVENT_SCHEMA,
            time: self.clock.time(event.at_ms * 1_000_000),
            worker,
            kind: words.kind,
            proto: packet.map(|t| t.proto.name().to_owned()),
            source,
            destination,
            service: service.map(service_name),
            backend: rewritten.map(|new| ends(new).1),
            snat,
            state,
            cause: words.cause.map(|cause| cause_name(cause).to_owned()),
            reason: words.reason.map(|reason| reason.label().to_owned()),
            answer: words.answer.map(|(told, _)| told_name(told).to_owned()),
            answered: words.answer.map(|(_, sent)| sent),
            interface: (event.port != PortId::NONE).then(|| self.ports.get(usize::from(event.port.0)).cloned()).flatten(),
            bytes: event.bytes,
            text: String::new(),
        };
        shown.text = text(event.kind, &shown);
        Some(shown)
    }
}

/// What is looked at of an event's kind.
struct Words {
    kind: EventType,
    phase: Option<nomagic_core::conntrack::PhaseKind>,
    cause: Option<EndCause>,
    reason: Option<Reason>,
    answer: Option<(Told, bool)>,
}

impl Words {
    fn of(kind: EventKind) -> Words {
        let plain = |kind| Words { kind, phase: None, cause: None, reason: None, answer: None };
        match kind {
            EventKind::New(phase) => Words { phase: Some(phase), ..plain(EventType::New) },
            EventKind::Changed(phase) => Words { phase: Some(phase), ..plain(EventType::Changed) },
            EventKind::Ended(cause, phase) => Words { phase: Some(phase), cause: Some(cause), ..plain(EventType::Ended) },
            EventKind::Rejected { reason, told, sent } => {
                Words { reason: Some(reason), answer: Some((told, sent)), ..plain(EventType::Rejected) }
            }
            EventKind::Dropped(reason) => Words { reason: Some(reason), ..plain(EventType::Dropped) },
            EventKind::Held(_) => plain(EventType::Held),
            EventKind::Kernel(reason) => Words { reason: Some(reason), ..plain(EventType::Kernel) },
            EventKind::IcmpError => plain(EventType::IcmpError),
        }
    }
}

fn cause_name(cause: EndCause) -> &'static str {
    match cause {
        EndCause::TimedOut => "timed_out",
        EndCause::Replaced => "replaced",
        EndCause::Evicted => "evicted",
        EndCause::PortReclaimed => "port_reclaimed",
        EndCause::EndpointGone => "endpoint_gone",
        EndCause::Command => "command",
    }
}

fn told_name(told: Told) -> &'static str {
    match told {
        Told::Icmp => "icmp",
        Told::Reset => "reset",
        Told::Abort => "abort",
    }
}

/// An event in words.
fn text(kind: EventKind, shown: &Event) -> String {
    let to = || shown.backend.as_deref().map_or(String::new(), |backend| format!(" to {backend}"));
    let from = || shown.snat.as_deref().map_or(String::new(), |snat| format!(" from {snat}"));
    let state = shown.state.map_or("", |state| state.name());
    match kind {
        EventKind::New(_) => format!("new flow{}{}, {state}", to(), from()),
        EventKind::Changed(_) => format!("flow{} is {state}", to()),
        EventKind::Ended(cause, _) => format!("flow{} ended in {state}: {}", to(), cause_text(cause)),
        EventKind::Rejected { reason, told, sent } => {
            let answer = match told {
                Told::Icmp => "an ICMP error",
                Told::Reset => "a TCP reset",
                Told::Abort => "an SCTP ABORT",
            };
            let said = if sent {
                format!("the sender gets {answer}")
            } else {
                format!("the sender does not get {answer} (a limit, or such a packet is never answered)")
            };
            format!("rejected, {said}: {}", reason.text())
        }
        EventKind::Dropped(reason) => format!("dropped: {}", reason.text()),
        EventKind::Held(HeldFor::Neighbour) => "held until the next hop's MAC address is known".into(),
        EventKind::Held(HeldFor::Fragments) => "held until the other fragments of its datagram are there".into(),
        EventKind::Kernel(reason) => format!("left to the kernel: {}", reason.text()),
        EventKind::IcmpError => "an ICMP error about this flow was translated and sent on".into(),
    }
}

fn cause_text(cause: EndCause) -> &'static str {
    match cause {
        EndCause::TimedOut => "no packet came in the time that this state has",
        EndCause::Replaced => "its client opens a new connection from the same port",
        EndCause::Evicted => "the connection table is full, and a new flow needs the place",
        EndCause::PortReclaimed => "a new flow needs its source port",
        EndCause::EndpointGone => "its endpoint no longer serves",
        EndCause::Command => "by command",
    }
}

impl Selection {
    /// Whether a packet, or the flow of one, fits. What belongs to no flow may go either way: its client and endpoint may be either end.
    fn fits_packet(
        &self,
        packet: Option<&Tuple>,
        rewritten: Option<&Tuple>,
        service: Option<&nomagic_core::services::ServicePort>,
        state: Option<nomagic_api::flows::FlowState>,
    ) -> bool {
        let Some(packet) = packet else { return *self == Selection::default() };
        let ends = |of: &Tuple| [(of.src_addr(), of.sport), (of.dst_addr(), of.dport)];
        let [source, destination] = ends(packet);
        let clients: &[(IpAddr, u16)] = if rewritten.is_some() { &[source] } else { &[source, destination] };
        let backends = rewritten.map_or(vec![source, destination], |new| vec![ends(new)[1]]);
        self.fits_ends(packet, clients, &backends) && self.fits_service(service) && self.fits_state(state)
    }
}

#[cfg(test)]
mod tests;
