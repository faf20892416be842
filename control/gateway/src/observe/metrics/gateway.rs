//! nomagic's own metrics, written from a status snapshot.

use nomagic_api::{Status, Worker};
use nomagic_core::counters::{Series, WorkerCounts};

use super::counts::{self, CounterRow};
use super::exposition::MetricType::{Counter, Gauge, Histogram};
use super::reconciler::Reconciled;
use super::servers::ServerCounts;
use super::{Exposition, ports, service_ports, targets};

/// A snapshot of the gateway.
#[derive(Clone, Debug)]
pub struct Sample {
    pub status: Status,
    /// Events for the API server, by outcome.
    pub events: [(&'static str, u64); 5],
    /// Connections ended because their endpoint was removed.
    pub reconciled: Reconciled,
    /// The control socket's clients.
    pub control_socket: ServerCounts,
}

impl Sample {
    pub fn write(&self, out: &mut Exposition) {
        let status = &self.status;
        out.begin("nomagic_build_info", Gauge, "Always 1; the version is a label.");
        out.sample("nomagic_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
        out.single(
            "nomagic_ready",
            Gauge,
            "1 when it can carry: all tables are in force, all ports bound and with a carrier, all workers alive, and it does not drain.",
            u8::from(status.ready),
        );
        out.single("nomagic_workers_alive", Gauge, "Workers that are alive.", status.workers_alive);
        out.single("nomagic_workers", Gauge, "Workers configured.", status.workers.len());
        write_frames(status, out);
        write_workers(&status.workers, out);
        write_connections(status, out);
        self.write_tables(out);
        self.reconciled.write(out);
        ports::write(status, out);
        targets::write(status, out);
        service_ports::write(status, out);
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
        out.begin(name, Counter, "Events for the API server, by outcome.");
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
    counts::write(out, &[CounterRow::new([], |f| totals.counts.reasons.each(f))]);
    counts::write(out, &[CounterRow::new([], |f| totals.counts.path.each(f))]);
    counts::write(out, &[CounterRow::new([], |f| totals.counts.conntrack.each(f))]);
    out.single("nomagic_frames_held", Gauge, "Frames waiting for a neighbour or for another fragment.", totals.held_now);
    let name = "nomagic_pool_frames";
    out.begin(name, Gauge, "UMEM frames by pool and place.");
    for (pool, f) in status.pools.iter().enumerate() {
        let places = [("free", f.free), ("fill", f.fill), ("tx", f.tx), ("held", f.held), ("in_hand", f.in_hand)];
        for (place, n) in places {
            out.sample(name, &[("pool", &pool.to_string()), ("place", place)], n);
        }
        // Briefly negative between the receiving worker's count and the sending worker's.
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
    each("nomagic_worker_heartbeat_age_seconds", "Time since the worker's last heartbeat.", &age);
    let rows = |list: fn(&WorkerCounts, &mut dyn FnMut(Series, u64))| -> Vec<CounterRow> {
        workers.iter().map(|w| CounterRow::new([("worker", w.id.to_string())], |f| list(&w.counts, f))).collect()
    };
    counts::write(out, &rows(|c, f| c.frames.each(f)));
    counts::write(out, &rows(|c, f| c.io.each(f)));
    counts::write(out, &rows(|c, f| c.sends.each(f)));
    counts::write(out, &rows(|c, f| c.neighbours.each(f)));
    write_latency(workers, out);
}

fn write_latency(workers: &[Worker], out: &mut Exposition) {
    let name = "nomagic_worker_latency_seconds";
    out.begin(name, Histogram, "How long frames stay in a worker, from receive to send; one frame in 1,024.");
    for worker in workers {
        let (id, latency) = (worker.id.to_string(), &worker.latency);
        let bucket = format!("{name}_bucket");
        for (bound_ns, samples) in &latency.within {
            out.sample(&bucket, &[("worker", &id), ("le", &(*bound_ns as f64 / 1e9).to_string())], *samples);
        }
        out.sample(&bucket, &[("worker", &id), ("le", "+Inf")], latency.samples);
        out.sample(&format!("{name}_sum"), &[("worker", &id)], latency.sum_ns as f64 / 1e9);
        out.sample(&format!("{name}_count"), &[("worker", &id)], latency.samples);
    }
}

fn write_connections(status: &Status, out: &mut Exposition) {
    let (conntrack, replies, snat) = (&status.conntrack, &status.replies, &status.snat);
    out.single("nomagic_flows", Gauge, "Connections in the connection table.", conntrack.live);
    out.single("nomagic_flows_capacity", Gauge, "Capacity of the connection table.", conntrack.capacity);
    out.single("nomagic_announced_replies", Gauge, "Replies announced to the XDP filter.", replies.announced);
    out.single("nomagic_announced_replies_capacity", Gauge, "Capacity of the reply filter.", replies.capacity);
    out.single("nomagic_snat_connections", Gauge, "Connections with SNAT.", snat.connections);
    out.single("nomagic_snat_ports", Gauge, "SNAT source ports available towards one endpoint.", snat.ports);
    let help = "Largest number of source ports in use towards one endpoint. Connections rejected without a free one count in nomagic_frames_dropped_total: snat_ports_exhausted, snat_share.";
    out.single("nomagic_snat_ports_fullest_endpoint", Gauge, help, snat.fullest_endpoint);
    let shares =
        [("client", snat.largest_client_share, snat.client_share_max), ("service", snat.largest_service_share, snat.service_share_max)];
    let help = "Largest number of source ports that one holder, a client or a Service, holds towards one endpoint.";
    out.begin("nomagic_snat_ports_largest_share", Gauge, help);
    shares.iter().for_each(|(holder, largest, _)| out.sample("nomagic_snat_ports_largest_share", &[("holder", holder)], largest));
    let help = "Maximum number of source ports for one holder, a client or a Service, towards one endpoint.";
    out.begin("nomagic_snat_ports_share_max", Gauge, help);
    shares.iter().for_each(|(holder, _, most)| out.sample("nomagic_snat_ports_share_max", &[("holder", holder)], most));
}
