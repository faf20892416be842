//! Reads the connection table for `nomagic flows`: in pages, beside the workers, which it does not stop. Each flow is read as it was at one moment.

use std::collections::btree_map::Entry;
use std::net::IpAddr;

use nomagic_api::flows::{CountBy, FLOW_SCHEMA, FLOWS_MAX, Flow, FlowFilter, FlowState, FlowsPage, GROUPS_MAX, SLOTS_MAX};
use nomagic_core::conntrack::{self, Conntrack, Hit, IdleTimes};
use nomagic_core::events::{EndCause, Event, EventKind, EventRing};
use nomagic_core::filter::ReplyFilter;
use nomagic_core::pipeline::take_out;
use nomagic_core::services::{ServicePort, Services};
use nomagic_core::tap::PacketFilter;
use nomagic_core::tuple::{Prefix, Proto, Tuple};
pub use nomagic_table::explain::state::of as state_of;
use nomagic_table::objects::addr;

use crate::deny::{PREFIX, parse_prefix};

/// Slots between two looks at the page's size.
const BATCH_SLOTS: u32 = 256;

/// A filter that can be applied.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Selection {
    /// Namespace and name.
    service: Option<(String, String)>,
    backend: Option<(Prefix, Option<u16>)>,
    client: Option<Prefix>,
    port: Option<u16>,
    proto: Option<Proto>,
    state: Option<FlowState>,
}

impl Selection {
    /// Reads a filter.
    ///
    /// # Errors
    /// The field, and what it may be.
    pub fn parse(filter: &FlowFilter) -> Result<Selection, String> {
        let FlowFilter { service, backend, client, port, proto, state } = filter;
        let prefix = |text: &str| parse_prefix(text).ok_or_else(|| format!("client `{}`: not {PREFIX}", text.escape_debug()));
        Ok(Selection {
            service: service.as_deref().map(parse_service).transpose()?,
            backend: backend.as_deref().map(parse_backend).transpose()?,
            client: client.as_deref().map(prefix).transpose()?,
            port: *port,
            proto: proto.as_deref().map(parse_proto).transpose()?,
            state: *state,
        })
    }

    fn fits(&self, seen: &Seen<'_>) -> bool {
        let Seen { flow, client, backend, state, service, .. } = seen;
        let ends = ((*client, flow.client_port), (*backend, flow.backend_port));
        self.fits_state(Some(*state)) && self.fits_ends(&flow.original(), &[ends.0], &[ends.1]) && self.fits_service(*service)
    }

    /// Whether a client's packet fits that has one of these clients and endpoints.
    pub fn fits_ends(&self, packet: &Tuple, clients: &[(IpAddr, u16)], backends: &[(IpAddr, u16)]) -> bool {
        let is_backend = |(prefix, wanted): (Prefix, Option<u16>)| {
            backends.iter().any(|(addr, port)| prefix.contains(*addr) && wanted.is_none_or(|wanted| wanted == *port))
        };
        self.proto.is_none_or(|proto| proto == packet.proto)
            && self.port.is_none_or(|port| port == packet.dport)
            && self.client.is_none_or(|prefix| clients.iter().any(|(addr, _)| prefix.contains(*addr)))
            && self.backend.is_none_or(is_backend)
    }

    pub fn fits_service(&self, service: Option<&ServicePort>) -> bool {
        let wanted = self.service.as_ref();
        wanted.is_none_or(|(namespace, name)| service.is_some_and(|owner| owner.namespace == *namespace && owner.name == *name))
    }

    pub fn fits_state(&self, state: Option<FlowState>) -> bool {
        self.state.is_none_or(|wanted| state == Some(wanted))
    }

    /// The packets of the flows that fit; their states are not looked at.
    pub fn packets(&self) -> PacketFilter {
        let Selection { service, backend, client, port, proto, state: _ } = self.clone();
        PacketFilter { service, backend, client, port, proto }
    }
}

/// Reads `namespace/name`.
pub(crate) fn parse_service(text: &str) -> Result<(String, String), String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => Ok((namespace.into(), name.into())),
        _ => Err(format!("service `{}`: not a namespace and a name, such as default/nginx", text.escape_debug())),
    }
}

fn parse_backend(text: &str) -> Result<(Prefix, Option<u16>), String> {
    if let Ok(socket) = text.parse::<std::net::SocketAddr>() {
        return Ok((Prefix::host(socket.ip()), Some(socket.port())));
    }
    let words = || format!("backend `{}`: not {PREFIX}, nor an address with a port, such as 192.0.2.7:80", text.escape_debug());
    parse_prefix(text).map(|prefix| (prefix, None)).ok_or_else(words)
}

fn parse_proto(text: &str) -> Result<Proto, String> {
    let known = [Proto::Tcp, Proto::Udp, Proto::Sctp].into_iter().find(|proto| proto.name().eq_ignore_ascii_case(text));
    known.ok_or_else(|| format!("protocol `{}`: not TCP, UDP or SCTP", text.escape_debug()))
}

/// What a page is read from.
pub struct FlowSource<'s> {
    pub table: Conntrack<'s>,
    /// The table of Services in force, for their names.
    pub services: &'s Services,
    pub idle: &'s IdleTimes,
    /// Milliseconds of CLOCK_MONOTONIC.
    pub now_ms: u64,
}

/// A flow, with what of it is looked at.
struct Seen<'s> {
    flow: &'s conntrack::Flow,
    service: Option<&'s ServicePort>,
    client: IpAddr,
    backend: IpAddr,
    state: FlowState,
    idle_ms: u64,
    expires_in_ms: u64,
}

impl FlowSource<'_> {
    /// Reads the table from slot `from` on: until its end, until the page is full, or [`SLOTS_MAX`] slots.
    pub fn page(&self, selection: &Selection, count_by: Option<CountBy>, from: u32) -> FlowsPage {
        let mut page = FlowsPage::default();
        let end = self.table.slots_used();
        let stop = end.min(from.saturating_add(SLOTS_MAX));
        let mut at = from.min(end);
        while at < stop && page.flows.len() < FLOWS_MAX {
            let batch = at..stop.min(at + BATCH_SLOTS);
            at = batch.end;
            self.table.walk(batch, |hit, flow| {
                let Some(seen) = self.look(hit, flow).filter(|seen| selection.fits(seen)) else { return };
                page.matched += 1;
                match count_by {
                    Some(by) => count(&mut page, seen.group(by)),
                    None => page.flows.push(seen.shown()),
                }
            });
        }
        page.next = (at < end).then_some(at);
        page
    }

    /// Ends the flows that fit, from slot `from` on, at most [`SLOTS_MAX`] slots, and records that in `events`, where no other thread may
    /// record meanwhile. Returns their number, and the slot to go on at.
    pub fn end(&self, selection: &Selection, replies: ReplyFilter<'_>, events: &EventRing, from: u32) -> (u64, Option<u32>) {
        let end = self.table.slots_used();
        let stop = end.min(from.saturating_add(SLOTS_MAX));
        let mut ended = 0;
        self.table.walk(from.min(end)..stop, |hit, flow| {
            if !self.look(hit, flow).is_some_and(|seen| selection.fits(&seen)) {
                return;
            }
            if let Some(flow) = take_out(self.table, Some(replies), hit) {
                ended += 1;
                events.record(&Event::of_flow(self.now_ms, EventKind::Ended(EndCause::Command, hit.phase.kind()), &flow));
            }
        });
        (ended, (stop < end).then_some(stop))
    }

    /// `None`: its time is over.
    fn look<'f>(&'f self, hit: &Hit, flow: &'f conntrack::Flow) -> Option<Seen<'f>> {
        let idle_ms = self.now_ms.saturating_sub(hit.seen_ms);
        let expires_in_ms = self.idle.of(hit.phase).checked_sub(idle_ms).filter(|left| *left > 0)?;
        let (original, reply) = (flow.original(), flow.reply());
        let frontend = self.services.frontend(original.dst_addr(), flow.service_port, flow.proto);
        let service = frontend.filter(|_| !flow.is_direct()).map(|frontend| &*frontend.port);
        let state = state_of(hit.phase.kind());
        Some(Seen { flow, service, client: original.src_addr(), backend: reply.src_addr(), state, idle_ms, expires_in_ms })
    }
}

impl Seen<'_> {
    fn group(&self, by: CountBy) -> String {
        match by {
            CountBy::Service => self.service_name().unwrap_or_else(|| "none".into()),
            CountBy::Backend => addr::socket(self.backend, self.flow.backend_port),
            CountBy::Client => self.client.to_string(),
            CountBy::State => self.state.to_string(),
        }
    }

    fn service_name(&self) -> Option<String> {
        self.service.map(service_name)
    }

    fn shown(&self) -> Flow {
        let flow = self.flow;
        let (original, reply) = (flow.original(), flow.reply());
        let snat =
            (flow.replaces_source() || flow.source_port != flow.client_port).then(|| addr::socket(reply.dst_addr(), flow.source_port));
        Flow {
            schema: FLOW_SCHEMA,
            proto: flow.proto.name().to_owned(),
            client: addr::socket(self.client, flow.client_port),
            destination: addr::socket(original.dst_addr(), flow.service_port),
            service: self.service_name(),
            backend: addr::socket(self.backend, flow.backend_port),
            snat,
            state: self.state,
            idle_ms: self.idle_ms,
            expires_in_ms: self.expires_in_ms,
        }
    }
}

/// `namespace/name:port name`
pub fn service_name(owner: &ServicePort) -> String {
    match owner.port_name.as_str() {
        "" => format!("{}/{}", owner.namespace, owner.name),
        port => format!("{}/{}:{port}", owner.namespace, owner.name),
    }
}

/// Counts a flow in its group, or beside the groups if there are too many.
fn count(page: &mut FlowsPage, group: String) {
    let is_full = page.groups.len() >= GROUPS_MAX;
    match page.groups.entry(group) {
        Entry::Occupied(mut flows) => *flows.get_mut() += 1,
        Entry::Vacant(place) if !is_full => {
            place.insert(1);
        }
        Entry::Vacant(_) => page.other += 1,
    }
}

#[cfg(test)]
mod tests;
