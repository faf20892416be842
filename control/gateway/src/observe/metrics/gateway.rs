//! nomagic's own metrics: the status of one moment as text.

use nomagic_api::{Status, Worker};
use nomagic_core::counters::{Series, WorkerCounts};

use super::counts::{self, Row};
use super::exposition::Kind::{Counter, Gauge};
use super::reconciler::Reconciled;
use super::{Exposition, ports, targets};

/// The gateway at one moment.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Its status.
    pub status: Status,
    /// Events for the API server, by what became of them.
    pub events: [(&'static str, u64); 5],
    /// Connections ended because their endpoint is gone.
    pub reconciled: Reconciled,
}

impl Sample {
    /// As text.
    pub fn write(&self, out: &mut Exposition) {
        let status = &self.status;
        out.begin("nomagic_build_info", Gauge, "Always 1; the version is a label.");
        out.sample("nomagic_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
        out.single(
            "nomagic_ready",
            Gauge,
            "1 when all tables are in force, all ports bound and all workers alive.",
            u8::from(status.ready),
        );
        out.single("nomagic_workers_alive", Gauge, "Workers that are alive.", status.workers_alive);
        out.single("nomagic_workers", Gauge, "Workers that there should be.", status.workers.len());
        write_frames(status, out);
        write_workers(&status.workers, out);
        write_connections(status, out);
        self.write_tables(out);
        self.reconciled.write(out);
        ports::write(status, out);
        targets::write(status, out);
    }

    fn write_tables(&self, out: &mut Exposition) {
        let status = &self.status;
        out.single("nomagic_service_ports", Gauge, "Service ports in force.", status.services.ports);
        out.single(
            "nomagic_object_problems",
            Gauge,
            "Problems of the objects in force; `nomagic status` lists them.",
            status.services.problems.len(),
        );
        let name = "nomagic_events_total";
        out.begin(name, Counter, "Events for the API server, by what became of them.");
        self.events.iter().for_each(|(outcome, n)| out.sample(name, &[("outcome", outcome)], n));
        let tables = [("services", &status.services.table), ("routes", &status.routes)];
        out.begin("nomagic_table_generation", Gauge, "Generation of the table published last.");
        tables.iter().for_each(|(t, table)| out.sample("nomagic_table_generation", &[("table", t)], table.generation));
        out.begin("nomagic_table_applied", Gauge, "1 when every worker uses the table published last.");
        tables.iter().for_each(|(t, table)| out.sample("nomagic_table_applied", &[("table", t)], u8::from(table.applied)));
    }
}

fn write_frames(status: &Status, out: &mut Exposition) {
    let totals = &status.totals;
    counts::write(out, &[Row::new([], |f| totals.counts.reasons.each(f))]);
    counts::write(out, &[Row::new([], |f| totals.counts.path.each(f))]);
    counts::write(out, &[Row::new([], |f| totals.counts.conntrack.each(f))]);
    out.single("nomagic_frames_held", Gauge, "Frames that wait for a neighbour now.", totals.held_now);
    let name = "nomagic_pool_frames";
    out.begin(name, Gauge, "Where the packet memory's frames are, by pool.");
    for (pool, f) in status.pools.iter().enumerate() {
        let places = [("free", f.free), ("fill", f.fill), ("tx", f.tx), ("held", f.held), ("in_hand", f.in_hand)];
        for (place, n) in places {
            out.sample(name, &[("pool", &pool.to_string()), ("place", place)], n);
        }
        // Below zero for the one moment in which one worker has counted it and the other has not.
        out.sample(name, &[("pool", &pool.to_string()), ("place", "handed_over")], f.handed_over);
    }
}

fn write_workers(workers: &[Worker], out: &mut Exposition) {
    let mut each = |name: &str, help: &str, value: &dyn Fn(&Worker) -> f64| {
        out.begin(name, Gauge, help);
        workers.iter().for_each(|w| out.sample(name, &[("worker", &w.id.to_string())], value(w)));
    };
    let age = |w: &Worker| w.heartbeat_age_ns as f64 / 1e9;
    each("nomagic_worker_alive", "1 while the worker's thread runs.", &|w| f64::from(u8::from(w.alive)));
    each("nomagic_worker_heartbeat_age_seconds", "Since the worker last showed that it is alive.", &age);
    let rows = |list: fn(&WorkerCounts, &mut dyn FnMut(Series, u64))| -> Vec<Row> {
        workers.iter().map(|w| Row::new([("worker", w.id.to_string())], |f| list(&w.counts, f))).collect()
    };
    counts::write(out, &rows(|c, f| c.frames.each(f)));
    counts::write(out, &rows(|c, f| c.io.each(f)));
    counts::write(out, &rows(|c, f| c.sends.each(f)));
    counts::write(out, &rows(|c, f| c.neighbours.each(f)));
}

fn write_connections(status: &Status, out: &mut Exposition) {
    let (conntrack, replies, snat) = (&status.conntrack, &status.replies, &status.snat);
    out.single("nomagic_flows", Gauge, "Connections known.", conntrack.live);
    out.single("nomagic_flows_capacity", Gauge, "Connections at the most.", conntrack.capacity);
    out.single("nomagic_announced_replies", Gauge, "Replies announced to the XDP filter.", replies.announced);
    out.single("nomagic_announced_replies_capacity", Gauge, "Announced replies at the most.", replies.capacity);
    out.single("nomagic_snat_connections", Gauge, "Connections with a source port of the gateway's.", snat.connections);
    out.single("nomagic_snat_ports", Gauge, "Source ports that there are towards one endpoint.", snat.ports);
    let help = "The most source ports in use towards one endpoint. Connections refused for want of one are among nomagic_frames_dropped_total: snat_ports_exhausted, snat_share.";
    out.single("nomagic_snat_ports_fullest_endpoint", Gauge, help, snat.fullest_endpoint);
    let help = "The most source ports that one client or one Service holds towards one endpoint.";
    out.single("nomagic_snat_ports_largest_share", Gauge, help, snat.largest_share);
    let help = "The most source ports that one client or one Service may hold towards one endpoint.";
    out.single("nomagic_snat_ports_share_max", Gauge, help, snat.share_max);
}
