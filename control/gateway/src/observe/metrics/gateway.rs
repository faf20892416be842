//! nomagic's own metrics: plain values of one moment, and their text.

use nomagic_core::reason::Reason;
use nomagic_xsk::{EdgeStatus, Volume, WorkerStatus};

use super::exposition::Kind::{Counter, Gauge};
use super::flows::Flows;
use super::ports;
use super::reconciler::Reconciled;
use super::targets::Targets;
use super::{Exposition, Row};

/// The gateway at one moment.
#[derive(Clone, Debug)]
pub struct Sample {
    /// The edge.
    pub edge: EdgeStatus,
    /// Frames by reason, sums over all workers, in the order of [`Reason::ALL`].
    pub reasons: Vec<u64>,
    /// What happened in the connection table.
    pub flows: Flows,
    /// Events for the API server, by what became of them.
    pub events: [(&'static str, u64); 5],
    /// Connections ended because their endpoint is gone.
    pub reconciled: Reconciled,
    /// Rejects that could not be sent.
    pub made_suppressed: u64,
    /// Source ports towards one endpoint.
    pub snat_ports: u64,
    /// The most of them that one client or Service may hold.
    pub snat_share_max: u64,
    /// Workers that are alive.
    pub workers_alive: u64,
    /// Why the gateway is not ready; empty: it is.
    pub not_ready: Vec<String>,
    /// Service ports.
    pub service_ports: u64,
    /// Problems of the objects in force.
    pub problems: u64,
    /// What Services' backends carried.
    pub targets: Targets,
}

/// What becomes of frames with this reason.
fn is_drop(reason: Reason) -> bool {
    !is_kernel(reason) && reason != Reason::NeighbourPending
}

/// These leave a frame to the kernel, never drop it.
fn is_kernel(reason: Reason) -> bool {
    use Reason::{Fragment, Icmp, Ipv6Routing, NoFlow, NodePortDisabled, NotIp, NotOurs, OtherProtocol};
    matches!(reason, NotIp | NotOurs | NoFlow | Icmp | Fragment | Ipv6Routing | OtherProtocol | NodePortDisabled)
}

impl Sample {
    /// As text.
    pub fn write(&self, out: &mut Exposition) {
        out.begin("nomagic_build_info", Gauge, "Always 1; the version is a label.");
        out.sample("nomagic_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
        let ready = u8::from(self.not_ready.is_empty());
        out.single("nomagic_ready", Gauge, "1 when all tables are in force, all ports bound and all workers alive.", ready);
        out.single("nomagic_workers_alive", Gauge, "Workers that are alive.", self.workers_alive);
        out.single("nomagic_workers", Gauge, "Workers that there should be.", self.edge.workers.len());
        self.write_frames(out);
        self.write_workers(out);
        self.write_tables(out);
        self.reconciled.write(out);
        ports::write(&self.edge, out);
        self.targets.write(out);
    }

    fn write_frames(&self, out: &mut Exposition) {
        let counts = || Reason::ALL.iter().copied().zip(self.reasons.iter().copied());
        let name = "nomagic_frames_dropped_total";
        out.begin(name, Counter, "Frames dropped or rejected, by reason; `nomagic status` has a sentence for each.");
        for (reason, n) in counts().filter(|(r, _)| is_drop(*r)) {
            out.sample(name, &[("reason", reason.label())], n);
        }
        let name = "nomagic_frames_left_to_kernel_total";
        out.begin(name, Counter, "Frames given back to the kernel, by reason.");
        for (reason, n) in counts().filter(|(r, _)| is_kernel(*r)) {
            out.sample(name, &[("reason", reason.label())], n);
        }
        let help = "Rejects that could not be sent (rate limit or no spare frame).";
        out.single("nomagic_rejects_suppressed_total", Counter, help, self.made_suppressed);
        let held = self.edge.workers.iter().map(|w| w.held_now).sum::<u64>();
        out.single("nomagic_frames_held", Gauge, "Frames that wait for a neighbour now.", held);
        let name = "nomagic_pool_frames";
        out.begin(name, Gauge, "Where the packet memory's frames are, by pool.");
        for (pool, f) in self.edge.frames.iter().enumerate() {
            let places = [("free", f.free), ("fill", f.fill), ("tx", f.tx), ("held", f.held), ("in_hand", f.in_hand)];
            for (place, n) in places {
                out.sample(name, &[("pool", &pool.to_string()), ("place", place)], n);
            }
            // Below zero for the one moment in which one worker has counted it and the other has not.
            out.sample(name, &[("pool", &pool.to_string()), ("place", "handed_over")], f.away);
        }
    }

    fn write_workers(&self, out: &mut Exposition) {
        let mut each = |name: &str, kind, help: &str, value: &dyn Fn(&WorkerStatus) -> f64| {
            out.begin(name, kind, help);
            self.edge.workers.iter().for_each(|w| out.sample(name, &[("worker", &w.id.to_string())], value(w)));
        };
        let age = |w: &WorkerStatus| w.heartbeat_age_ns as f64 / 1e9;
        each("nomagic_worker_alive", Gauge, "1 while the worker's thread runs.", &|w| f64::from(u8::from(w.alive)));
        each("nomagic_worker_heartbeat_age_seconds", Gauge, "Since the worker last showed that it is alive.", &age);
        each("nomagic_worker_rounds_total", Counter, "Rounds of the worker's loop.", &|w| w.rounds as f64);
        each("nomagic_worker_sleeps_total", Counter, "Times that the worker slept for want of frames.", &|w| w.sleeps as f64);
        let volumes: [Row<WorkerStatus, Volume>; 7] = [
            ("received", "given to the packet path", |w| w.received),
            ("forwarded", "forwarded", |w| w.forwarded),
            ("kernel", "given back to the kernel", |w| w.kernel),
            ("dropped", "dropped", |w| w.dropped),
            ("made", "made (rejects, ICMP errors)", |w| w.made),
            ("copied", "copied between packet memories", |w| w.copied),
            ("handed_over", "handed over to the worker that owns the way on", |w| w.handed_over),
        ];
        for (what, words, volume) in volumes {
            let frames = |w: &WorkerStatus| volume(w).packets as f64;
            let bytes = |w: &WorkerStatus| volume(w).bytes as f64;
            each(&format!("nomagic_worker_{what}_frames_total"), Counter, &format!("Frames {words}."), &frames);
            each(&format!("nomagic_worker_{what}_bytes_total"), Counter, &format!("Bytes of frames {words}."), &bytes);
        }
        let failed = |w: &WorkerStatus| (w.transmit.busy + w.transmit.no_buffers + w.transmit.down + w.transmit.other) as f64;
        each("nomagic_worker_send_calls_total", Counter, "Calls of sendto().", &|w| w.transmit.calls as f64);
        each("nomagic_worker_send_errors_total", Counter, "Calls of sendto() that failed; what is left is sent again.", &failed);
        each("nomagic_worker_neighbours_asked_total", Counter, "Neighbours asked for.", &|w| w.neighbours_asked as f64);
    }

    fn write_tables(&self, out: &mut Exposition) {
        let e = &self.edge;
        out.single("nomagic_flows", Gauge, "Connections known.", e.flows_live);
        out.single("nomagic_flows_capacity", Gauge, "Connections at the most.", e.flows_capacity);
        self.flows.write(out);
        out.single("nomagic_announced_replies", Gauge, "Replies announced to the XDP filter.", e.replies_announced);
        out.single("nomagic_announced_replies_capacity", Gauge, "Announced replies at the most.", e.replies_capacity);
        out.single("nomagic_snat_connections", Gauge, "Connections with a source port of the gateway's.", e.source_ports);
        out.single("nomagic_snat_ports", Gauge, "Source ports that there are towards one endpoint.", self.snat_ports);
        let help = "The most source ports in use towards one endpoint. Connections refused for want of one are among nomagic_frames_dropped_total: snat_ports_exhausted, snat_share.";
        out.single("nomagic_snat_ports_fullest_endpoint", Gauge, help, e.source_ports_fullest);
        let help = "The most source ports that one client or one Service holds towards one endpoint.";
        out.single("nomagic_snat_ports_largest_share", Gauge, help, e.source_ports_largest);
        let help = "The most source ports that one client or one Service may hold towards one endpoint.";
        out.single("nomagic_snat_ports_share_max", Gauge, help, self.snat_share_max);
        out.single("nomagic_service_ports", Gauge, "Service ports in force.", self.service_ports);
        out.single("nomagic_object_problems", Gauge, "Problems of the objects in force; `nomagic status` lists them.", self.problems);
        let name = "nomagic_events_total";
        out.begin(name, Counter, "Events for the API server, by what became of them.");
        self.events.iter().for_each(|(outcome, n)| out.sample(name, &[("outcome", outcome)], n));
        let tables = [("services", e.services_generation, e.services_applied), ("routes", e.routes_generation, e.routes_applied)];
        out.begin("nomagic_table_generation", Gauge, "Generation of the table published last.");
        tables.iter().for_each(|(t, generation, _)| out.sample("nomagic_table_generation", &[("table", t)], generation));
        out.begin("nomagic_table_applied", Gauge, "1 when every worker uses the table published last.");
        tables.iter().for_each(|(t, _, applied)| out.sample("nomagic_table_applied", &[("table", t)], u8::from(*applied)));
    }
}
