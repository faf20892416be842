//! From the edge and the tables to a [`Status`].

use std::path::Path;

use nomagic_api::{
    ApiWatch, Beyond, Conntrack, Pool, Port, RedirectPort, Replies, Rss, Services as ServicesStatus, Snat, Status, Table, TakenOver,
    Target, Totals, Worker, XdpMode,
};
use nomagic_core::services::{Services, SnatRange};
use nomagic_xsk::{Condition, Edge, EdgeError, EdgeStatus, FrameAccount, PortStatus, RedirectStatus, WorkerStatus};

use crate::observe::metrics::reconciler::Reconciled;

/// What control adds to the edge's own account.
pub struct Control<'a> {
    /// The service table in force.
    pub services: &'a Services,
    /// Connections ended because their endpoint is gone.
    pub reconciled: &'a Reconciled,
    /// Problems of the objects in force, as shown in the log.
    pub problems: Vec<String>,
    /// The watch of an API server.
    pub api: Option<ApiWatch>,
    /// Seconds since the start.
    pub uptime_s: u64,
    /// Where the connection table is, if in a file.
    pub table_file: Option<&'a Path>,
    /// What backends carried.
    pub targets: (Vec<Target>, Beyond),
}

/// The status of a gateway that waits for its first objects.
pub fn waiting(missing: String, api: Option<ApiWatch>, uptime_s: u64) -> Status {
    Status { not_ready: vec![missing], uptime_s, api, ..Status::default() }
}

/// The whole status.
pub fn collect(edge: &Edge, control: Control<'_>) -> Result<Status, EdgeError> {
    let taken_over = edge.taken_over().map(|r| TakenOver {
        connections: r.connections,
        not_whole: r.not_whole,
        unwanted: r.unwanted,
        detached: r.detached,
    });
    let status = edge_part(edge.status()?, edge.workers_alive().0);
    Ok(with_control(status, control, taken_over))
}

/// What the edge says about itself.
pub fn edge_part(edge: EdgeStatus, alive: usize) -> Status {
    let not_ready = not_ready(&edge, alive);
    Status {
        ready: not_ready.is_empty(),
        not_ready,
        workers_alive: alive,
        totals: Totals { held_now: edge.workers.iter().map(|w| w.held_now).sum(), counts: edge.totals() },
        conntrack: Conntrack { live: edge.flows_live, capacity: edge.flows_capacity, ..Conntrack::default() },
        snat: Snat {
            connections: edge.source_ports,
            fullest_endpoint: edge.source_ports_fullest,
            largest_share: edge.source_ports_largest,
            ..Snat::default()
        },
        replies: Replies { announced: edge.replies_announced, capacity: edge.replies_capacity },
        redirect_xdp: edge.redirects_xdp.into(),
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

fn with_control(status: Status, control: Control<'_>, taken_over: Option<TakenOver>) -> Status {
    let ports = source_ports(&control.services.snat);
    let (targets, targets_beyond) = control.targets;
    Status {
        uptime_s: control.uptime_s,
        api: control.api,
        conntrack: Conntrack {
            file: control.table_file.map(Path::to_owned),
            taken_over,
            endpoint_gone: control.reconciled.ended.iter().sum(),
            walks: control.reconciled.walks,
            ..status.conntrack
        },
        snat: Snat { ports, share_max: control.services.snat.holder_max().min(ports), ..status.snat },
        services: ServicesStatus {
            table: status.services.table,
            ports: control.services.ports,
            addresses: control.services.frontend_count(),
            problems: control.problems,
        },
        targets,
        targets_beyond,
        ..status
    }
}

/// Why a gateway is not ready. Ready means: the tables are in force in every worker, the XDP programs are attached, every queue is bound
/// and its owner alive.
fn not_ready(edge: &EdgeStatus, alive: usize) -> Vec<String> {
    let mut reasons = Vec::new();
    if alive < edge.workers.len() {
        reasons.push(format!("{} of {} workers are dead or stuck", edge.workers.len() - alive, edge.workers.len()));
    }
    let lost = edge.ports.iter().filter(|p| p.info.condition != Condition::Bound);
    reasons.extend(lost.map(|p| format!("port {} is {}", p.info.name, p.info.condition)));
    for (what, applied) in [("service table", edge.services_applied), ("routes", edge.routes_applied)] {
        if !applied {
            reasons.push(format!("not every worker uses the latest {what} yet"));
        }
    }
    reasons
}

/// Source ports that there are towards one endpoint.
fn source_ports(range: &SnatRange) -> u64 {
    (u64::from(range.port_last) + 1).saturating_sub(u64::from(range.port_first))
}

fn worker(w: WorkerStatus) -> Worker {
    Worker { id: w.id, alive: w.alive, heartbeat_age_ns: w.heartbeat_age_ns, held_now: w.held_now, counts: w.counts }
}

fn pool(f: &FrameAccount) -> Pool {
    Pool { total: f.total, free: f.free, fill: f.fill, tx: f.tx, held: f.held, in_hand: f.in_hand, handed_over: f.away }
}

fn mode(native: bool) -> XdpMode {
    if native { XdpMode::Native } else { XdpMode::Generic }
}

fn port(p: PortStatus) -> Port {
    let PortStatus { info, xdp, sockets } = p;
    Port {
        name: info.name,
        ifindex: info.ifindex,
        mtu: info.mtu,
        queues: info.queues,
        owners: info.owners,
        bound: info.condition == Condition::Bound,
        condition: info.condition.to_string(),
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
