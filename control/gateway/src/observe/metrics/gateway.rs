//! nomagic's own metrics: plain values of one moment, and their text.

use nomagic_core::counters::{Series, WorkerCounts};
use nomagic_xsk::{EdgeStatus, WorkerStatus};

use super::Exposition;
use super::counts::{self, Row};
use super::exposition::Kind::{Counter, Gauge};
use super::ports;
use super::reconciler::Reconciled;
use super::targets::Targets;

/// The gateway at one moment.
#[derive(Clone, Debug)]
pub struct Sample {
    /// The edge.
    pub edge: EdgeStatus,
    /// Events for the API server, by what became of them.
    pub events: [(&'static str, u64); 5],
    /// Connections ended because their endpoint is gone.
    pub reconciled: Reconciled,
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
        let totals = self.edge.totals();
        counts::write(out, &[Row::new([], |f| totals.reasons.each(f))]);
        counts::write(out, &[Row::new([], |f| totals.path.each(f))]);
        counts::write(out, &[Row::new([], |f| totals.conntrack.each(f))]);
        let held = self.edge.workers.iter().map(|w| w.held_now).sum::<u64>();
        out.single("nomagic_frames_held", Gauge, "Frames that wait for a neighbour now.", held);
        let name = "nomagic_pool_frames";
        out.begin(name, Gauge, "Where the packet memory's frames are, by pool.");
        for (pool, f) in self.edge.pools.iter().enumerate() {
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
        let rows = |list: fn(&WorkerCounts, &mut dyn FnMut(Series, u64))| -> Vec<Row> {
            self.edge.workers.iter().map(|w| Row::new([("worker", w.id.to_string())], |f| list(&w.counts, f))).collect()
        };
        counts::write(out, &rows(|c, f| c.frames.each(f)));
        counts::write(out, &rows(|c, f| c.io.each(f)));
        counts::write(out, &rows(|c, f| c.sends.each(f)));
        counts::write(out, &rows(|c, f| c.neighbours.each(f)));
    }

    fn write_tables(&self, out: &mut Exposition) {
        let e = &self.edge;
        out.single("nomagic_flows", Gauge, "Connections known.", e.flows_live);
        out.single("nomagic_flows_capacity", Gauge, "Connections at the most.", e.flows_capacity);
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
