//! The running gateway's answers to the control socket's requests.

use std::sync::{Arc, PoisonError};

use anyhow::Result;
use nomagic_api::events::{EventFilter, EventsFrom, EventsPage};
use nomagic_api::flows::{CountBy, FlowFilter};
use nomagic_api::socket::{Request, Response};
use nomagic_api::taps::TapPage;
use nomagic_api::{Status, explain};
use nomagic_core::conntrack::Timeouts;
use nomagic_core::counters::Counters;
use nomagic_core::events::EventRing;
use nomagic_sys::time::monotonic_ns;
use nomagic_table::explain::{LiveState, parse_flow};

use super::RunningGateway;
use super::edge::outer_problem;
use super::socket::Responder;
use crate::clock::WallClock;
use crate::events::{EventSelection, EventSource};
use crate::flows::{FlowSource, Selection};
use crate::log::{self, LogLevel};
use crate::status;
use crate::taps::TapNames;

/// Changes the log level, if one is named. Answers with the level now.
pub(super) fn follow_log(level: Option<&str>) -> Result<Response, String> {
    if let Some(level) = level {
        let level = LogLevel::parse(level)?;
        log::set_level(level)?;
        tracing::info!("the log level is {} now", level.name());
    }
    Ok(Response::Log { level: log::level().name().to_owned() })
}

impl RunningGateway {
    pub(super) fn answer(&mut self, request: &Request, responder: Responder) {
        let answer = match request {
            Request::Flows { filter, count_by, from } => return self.read_flows(filter, *count_by, *from, responder),
            Request::Events { filter, from } => self.read_events(filter, from).map(Response::Events),
            Request::TapOpen(tap) => self.taps.open(&self.edge, tap).map(|id| Response::TapOpen { id }),
            Request::TapRead { id } => self.read_tap(*id).map(Response::TapRead),
            Request::TapClose { id } => {
                self.taps.close(*id);
                Ok(Response::TapClose {})
            }
            Request::FlowsEnd { filter, from, all } => return self.end_flows(filter, *from, *all, responder),
            Request::Services { filter, from } => self.tables.list_services(filter, from.as_deref()).map(Response::Services),
            Request::Explain { flow, as_new } => self.explain(flow, *as_new).map(|answer| Response::Explain(Box::new(answer))),
            Request::DenyAdd { prefix, for_s } => self.deny.add(&mut self.edge, prefix, *for_s).map(Response::DenyChange),
            Request::DenyRemove { prefix } => self.deny.remove(&mut self.edge, prefix).map(Response::DenyChange),
            Request::Drain { on } => self.set_draining(*on).map(|()| Response::Drain { on: *on }),
            Request::Log { level } => follow_log(level.as_deref()),
            Request::DenyList {} => self.deny.report(&self.edge).map(Response::DenyReport),
            Request::Status {} => self.status().map(|status| Response::Status(Box::new(status))).map_err(|e| format!("{e:#}")),
        };
        responder.send(answer);
    }

    /// Reads a part of the connection table on another thread: it may be large.
    fn read_flows(&self, filter: &FlowFilter, count_by: Option<CountBy>, from: u32, responder: Responder) {
        let selection = match Selection::parse(filter) {
            Ok(selection) => selection,
            Err(e) => return responder.send(Err(e)),
        };
        let (table, services) = (self.edge.table(), self.tables.services());
        let idle = Timeouts::from(self.config.conntrack.timeouts).table();
        let page = tokio::task::spawn_blocking(move || {
            let source = FlowSource { table, services: &services, idle: &idle, now_ms: monotonic_ns() / 1_000_000 };
            source.page(&selection, count_by, from)
        });
        tokio::task::spawn_local(async move {
            responder.send(page.await.map(Response::Flows).map_err(|e| format!("the flows could not be read: {e}")));
        });
    }

    /// Ends flows on another thread, as [`RunningGateway::read_flows`] reads them.
    fn end_flows(&self, filter: &FlowFilter, from: u32, all: bool, responder: Responder) {
        if !all && *filter == FlowFilter::default() {
            return responder.send(Err("no filter: `all` ends all flows".into()));
        }
        let selection = match Selection::parse(filter) {
            Ok(selection) => selection,
            Err(e) => return responder.send(Err(e)),
        };
        let (table, replies, services) = (self.edge.table(), self.edge.replies(), self.tables.services());
        let (events, one_at_a_time) = self.commanded.clone();
        let idle = Timeouts::from(self.config.conntrack.timeouts).table();
        let done = tokio::task::spawn_blocking(move || {
            let source = FlowSource { table, services: &services, idle: &idle, now_ms: monotonic_ns() / 1_000_000 };
            let _turn = one_at_a_time.lock().unwrap_or_else(PoisonError::into_inner);
            source.end(&selection, replies, &events, from)
        });
        tokio::task::spawn_local(async move {
            let done = done.await.map(|(ended, next)| Response::FlowsEnd { ended, next });
            responder.send(done.map_err(|e| format!("the flows could not be ended: {e}")));
        });
    }

    fn read_events(&self, filter: &EventFilter, from: &EventsFrom) -> Result<EventsPage, String> {
        let selection = EventSelection::parse(filter)?;
        let (rings, services, clock) = (self.event_rings(), self.tables.services(), WallClock::now());
        let workers = self.edge.workers_alive().1;
        Ok(EventSource { rings: &rings, workers, services: &services, ports: &self.routing.ports, clock }.page(&selection, from))
    }

    /// The workers' rings, and those of the control plane.
    fn event_rings(&self) -> Vec<Arc<EventRing>> {
        let mut rings = self.edge.events();
        rings.push(self.reconciler.events());
        rings.push(self.commanded.0.clone());
        rings
    }

    fn read_tap(&mut self, id: u64) -> Result<TapPage, String> {
        let (services, routing) = (self.tables.services(), &self.routing);
        let names = TapNames { services: &services, routes: &routing.in_force, ports: &routing.ports, clock: WallClock::now() };
        self.taps.read(id, &names)
    }

    /// Reads the live tables without changing them: the packet runs through the packet path with a scratch connection table that has copies
    /// of the entries that matter.
    fn explain(&self, flow: &str, as_new: bool) -> Result<explain::Answer, String> {
        let tuple = parse_flow(flow)?;
        let live = LiveState {
            table: self.edge.table(),
            routes: &self.routing.in_force,
            ports: &self.routing.ports,
            timeouts: self.config.conntrack.timeouts.into(),
            now_ms: monotonic_ns() / 1_000_000,
        };
        let explainer = self.tables.explainer().with_state(live).with_denied(self.deny.in_force());
        Ok(if as_new { explainer.answer_as_new(flow.trim(), &tuple) } else { explainer.answer(flow.trim(), &tuple) })
    }

    pub(super) fn status(&mut self) -> Result<Status> {
        self.follow_readiness();
        let services = self.tables.services();
        let mut own = self.local.problems();
        own.extend(self.reconciler.problem().map(str::to_owned));
        own.extend(self.deny.problems());
        own.extend_from_slice(self.routing.problems());
        own.extend(self.table_file_problem.clone());
        own.extend(outer_problem(self.edge.outer_left_out()));
        let (tables, edge) = (&self.tables, &self.edge);
        let counters: Vec<&Counters> = (0..edge.workers_alive().1).filter_map(|worker| edge.counters(worker)).collect();
        let control = status::ControlStatus {
            services: &services,
            deny: self.deny.size(),
            reconciled: &self.reconciler.done(),
            not_ready: self.ready.reasons().to_vec(),
            problems: [tables.problems(), self.http.problems(), &own].concat(),
            set_aside: tables.set_aside(),
            hash_seed_source: tables.seed_source(),
            api: tables.source_status(),
            uptime_s: self.started.elapsed().as_secs(),
            table_file: self.config.conntrack.file.as_deref(),
            service_ports: status::service_ports(tables.ports(), |key| tables.port_number(key)),
            targets: self.targets.read(tables.targets(), |key| tables.port_number(key), &counters),
        };
        Ok(Status { draining: self.drain.is_on(), ..status::collect(edge, control)? })
    }
}
