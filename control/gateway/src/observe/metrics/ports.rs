//! Metrics of ports: interfaces, XDP programs and AF_XDP sockets.

use nomagic_api::deny::Deny;
use nomagic_api::{Status, StatusPort, XdpMode};
use nomagic_core::counters::SocketCounts;

use super::Exposition;
use super::counts::{self, CounterRow};
use super::exposition::MetricType::{Counter, Gauge};

/// The `port` label of all redirect ports together. Too long for an interface name, so it cannot collide.
const REDIRECTS: &str = "(redirect ports)";

pub(super) fn write(status: &Status, out: &mut Exposition) {
    let mut each = |name: &str, kind, help: &str, value: &dyn Fn(&StatusPort) -> u64| {
        out.begin(name, kind, help);
        status.ports.iter().for_each(|p| out.sample(name, &[("port", &p.name)], value(p)));
    };
    let bound = |p: &StatusPort| u64::from(p.bound);
    each("nomagic_port_bound", Gauge, "1 when the port's XDP program is attached and all its queues are bound.", &bound);
    each("nomagic_port_rebinds_total", Counter, "Times that the port was bound again.", &|p| p.rebinds);
    each("nomagic_port_queues", Gauge, "Receive queues of the port.", &|p| u64::from(p.queues));
    each("nomagic_port_zero_copy", Gauge, "1 when the port's sockets are zero-copy.", &|p| u64::from(p.zero_copy));
    each("nomagic_port_native_xdp", Gauge, "1 when XDP runs in the port's driver.", &|p| u64::from(p.xdp_mode == XdpMode::Native));

    let name = "nomagic_xdp_frames_total";
    out.begin(name, Counter, "Frames seen by the XDP program, by port and outcome; redirect ports are counted together.");
    for (port, xdp) in status.ports.iter().map(|p| (p.name.as_str(), &p.xdp)).chain([(REDIRECTS, &status.redirect_xdp)]) {
        for (outcome, n) in xdp.counts.iter() {
            out.sample(name, &[("port", port), ("outcome", outcome)], n);
        }
    }

    let name = "nomagic_answers_total";
    out.begin(
        name,
        Counter,
        "Answers of endpoints behind the kernel, captured where they leave a port, and those dropped because no worker takes them.",
    );
    for (outcome, n) in [("taken", status.answers.taken), ("dropped", status.answers.dropped)] {
        out.sample(name, &[("outcome", outcome)], n);
    }

    let sockets = status.ports.iter().flat_map(|port| port.sockets.iter().enumerate().map(move |(queue, socket)| (port, queue, socket)));
    let row = |(port, queue, socket): (&StatusPort, usize, &SocketCounts)| {
        CounterRow::new([("port", port.name.clone()), ("queue", queue.to_string())], |f| socket.each(f))
    };
    counts::write(out, &sockets.map(row).collect::<Vec<_>>());
    write_deny(&status.deny, out);
}

/// The deny list's size; each port counts what it drops.
fn write_deny(deny: &Deny, out: &mut Exposition) {
    out.single("nomagic_deny_prefixes", Gauge, "Prefixes in the deny list.", deny.prefixes);
    out.single("nomagic_deny_prefixes_max", Gauge, "Maximum number of prefixes in the deny list.", deny.prefixes_max);
    let name = "nomagic_deny_prefixes_by_source";
    out.begin(name, Gauge, "Prefixes in the deny list by source; one of several sources counts for each.");
    let sources = [("configuration", deny.of_configuration), ("file", deny.of_file), ("command", deny.of_command)];
    sources.into_iter().for_each(|(source, n)| out.sample(name, &[("source", source)], n));
}
