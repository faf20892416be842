//! The ports' part of nomagic's own metrics: interfaces, their XDP programs, their sockets.

use nomagic_api::{Port, Status, XdpMode};
use nomagic_core::counters::SocketCounts;

use super::Exposition;
use super::counts::{self, Row};
use super::exposition::Kind::{Counter, Gauge};

/// The name that stands for all redirect ports; longer than an interface's may be.
const REDIRECTS: &str = "(redirect ports)";

/// Everything about ports.
pub(super) fn write(status: &Status, out: &mut Exposition) {
    let mut each = |name: &str, kind, help: &str, value: &dyn Fn(&Port) -> u64| {
        out.begin(name, kind, help);
        status.ports.iter().for_each(|p| out.sample(name, &[("port", &p.name)], value(p)));
    };
    let bound = |p: &Port| u64::from(p.bound);
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

    let sockets = status.ports.iter().flat_map(|port| port.sockets.iter().enumerate().map(move |(queue, socket)| (port, queue, socket)));
    let row = |(port, queue, socket): (&Port, usize, &SocketCounts)| {
        Row::new([("port", port.name.clone()), ("queue", queue.to_string())], |f| socket.each(f))
    };
    counts::write(out, &sockets.map(row).collect::<Vec<_>>());
}
