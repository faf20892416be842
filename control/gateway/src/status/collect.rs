//! Collects a [`Status`] from the edge and the control loop.

use std::path::Path;

use nomagic_api::deny::Deny;
use nomagic_api::{
    Answers, ApiWatch, Beyond, Conntrack, Pool, PortLink, RedirectPort, Replies, Rss, SeedSource, ServicePort, Services as ServicesStatus,
    Snat, Status, StatusPort, Table, TakenOver, Target, Totals, Worker, WorkerLatency, XdpMode,
};
use nomagic_core::services::Services;
use nomagic_xsk::{Condition, Edge, EdgeError, EdgeStatus, FrameAccount, Latency, LinkState, PortStatus, RedirectStatus, WorkerStatus};

use crate::observe::metrics::reconciler::Reconciled;

/// The control loop's part of the status.
pub struct ControlStatus<'a> {
    /// The published service table.
    pub services: &'a Services,
    /// The size of the deny list.
    pub deny: Deny,
    /// Connections ended because their endpoint was removed.
    pub reconciled: &'a Reconciled,
    /// Problems of the current objects, as logged.
    pub problems: Vec<String>,
    /// Why the gateway cannot carry, see [`super::readiness`].
    pub not_ready: Vec<String>,
    /// What is set aside by design: a line for each reason.
    pub set_aside: Vec<String>,
    /// Where the seed of the hash comes from.
    pub hash_seed_source: Option<SeedSource>,
    /// The state of the API server watch, if any.
    pub api: Option<ApiWatch>,
    pub uptime_s: u64,
    /// The file of the connection table, if any.
    pub table_file: Option<&'a Path>,
    /// Traffic of backends.
    pub targets: (Vec<Target>, Beyond),
    /// Service ports that need attention, and how many more there are.
    pub service_ports: (Vec<ServicePort>, u64),
}

/// The status of a gateway that waits for its first objects. `missing` is the reason.
pub fn waiting(missing: String, api: Option<ApiWatch>, uptime_s: u64) -> Status {
    Status { not_ready: vec![missing], uptime_s, api, ..Status::default() }
}

/// The complete status.
pub fn collect(edge: &Edge, control: ControlStatus<'_>) -> Result<Status, EdgeError> {
    let taken_over = edge.taken_over().map(|r| TakenOver {
        connections: r.connections,
        not_whole: r.not_whole,
        unwanted: r.unwanted,
        detached: r.detached,
    });
    let status = edge_status(edge.status()?, edge.workers_alive().0);
    Ok(with_control(status, control, taken_over))
}

/// The edge's part of the status.
pub fn edge_status(edge: EdgeStatus, alive: usize) -> Status {
    Status {
        workers_alive: alive,
        totals: Totals { held_now: edge.workers.iter().map(|w| w.held_now).sum(), counts: edge.totals() },
        conntrack: Conntrack { live: edge.flows_live, capacity: edge.flows_capacity, ..Conntrack::default() },
        snat: Snat {
            connections: edge.source_ports,
            fullest_endpoint: edge.source_ports_fullest,
            largest_client_share: edge.source_port_shares.client,
            largest_service_share: edge.source_port_shares.service,
            ..Snat::default()
        },
        replies: Replies { announced: edge.replies_announced, capacity: edge.replies_capacity },
        redirect_xdp: edge.redirects_xdp.into(),
        answers: Answers { taken: edge.answers.taken, dropped: edge.answers.dropped, unseen_ports: edge.answers.unseen_ports },
        services: ServicesStatus {
            table: Table { generation: edge.services_generation, applied: edge.services_applied },
            ..ServicesStatus::default()
        },
        routes: Table { generation: edge.routes_generation, applied: edge.routes_applied },
        workers: edge.workers.into_iter().map(worker).collect(),
        pools: edge.pools.iter().map(pool).collect(),
        ports: edge.ports.into_iter().map(port).collect(),
        redirect_ports: edge.redirects.into_iter().map(redirect_port).collect(),
        ..Status::default()
    }
}

fn with_control(status: Status, control: ControlStatus<'_>, taken_over: Option<TakenOver>) -> Status {
    let (ports, limits) = (u64::from(control.services.snat.ports().len()), control.services.snat.limits());
    let (targets, targets_beyond) = control.targets;
    let (service_ports, service_ports_beyond) = control.service_ports;
    Status {
        ready: control.not_ready.is_empty(),
        not_ready: control.not_ready,
        uptime_s: control.uptime_s,
        hash_seed_source: control.hash_seed_source,
        api: control.api,
        conntrack: Conntrack {
            file: control.table_file.map(Path::to_owned),
            taken_over,
            endpoint_gone: control.reconciled.ended.iter().sum(),
            walks: control.reconciled.walks,
            ..status.conntrack
        },
        snat: Snat { ports, client_share_max: limits.client.min(ports), service_share_max: limits.service.min(ports), ..status.snat },
        deny: control.deny,
        services: ServicesStatus {
            table: status.services.table,
            ports: control.services.ports,
            addresses: control.services.frontend_count(),
            problems: control.problems,
            set_aside: control.set_aside,
        },
        targets,
        targets_beyond,
        service_ports,
        service_ports_beyond,
        ..status
    }
}

fn worker(w: WorkerStatus) -> Worker {
    let latency = latency(&w.latency);
    Worker { id: w.id, alive: w.alive, heartbeat_age_ns: w.heartbeat_age_ns, held_now: w.held_now, latency, counts: w.counts }
}

fn latency(l: &Latency) -> WorkerLatency {
    let Latency { samples, sum_ns, p50_ns, p99_ns, p999_ns, max_ns, within } = l;
    let within = Latency::BOUNDS_NS.into_iter().zip(within.iter().copied()).collect();
    WorkerLatency { samples: *samples, sum_ns: *sum_ns, p50_ns: *p50_ns, p99_ns: *p99_ns, p999_ns: *p999_ns, max_ns: *max_ns, within }
}

fn pool(f: &FrameAccount) -> Pool {
    Pool { total: f.total, free: f.free, fill: f.fill, tx: f.tx, held: f.held, in_hand: f.in_hand, handed_over: f.away }
}

fn mode(native: bool) -> XdpMode {
    if native { XdpMode::Native } else { XdpMode::Generic }
}

fn port(p: PortStatus) -> StatusPort {
    let PortStatus { info, xdp, sockets } = p;
    StatusPort {
        name: info.name,
        ifindex: info.ifindex,
        mtu: info.mtu,
        queues: info.queues,
        owners: info.owners,
        bound: info.condition == Condition::Bound,
        condition: info.condition.to_string(),
        link: match info.link {
            LinkState::Up => PortLink::Up,
            LinkState::Down => PortLink::Down,
            LinkState::NoCarrier => PortLink::NoCarrier,
        },
        rebinds: info.rebinds,
        xdp_mode: mode(info.native),
        zero_copy: info.zero_copy,
        rss: match info.rss {
            Ok(rss) => Rss::Predicted { entries: rss.entries() },
            Err(because) => Rss::Unknown { because: because.to_string() },
        },
        xdp: xdp.into(),
        sockets,
    }
}

fn redirect_port(r: RedirectStatus) -> RedirectPort {
    RedirectPort {
        name: r.name,
        ifindex: r.ifindex,
        xdp_mode: mode(r.native),
        bound: r.condition == Condition::Bound,
        condition: r.condition.to_string(),
    }
}
