//! The ports' part of nomagic's own metrics: interfaces, their XDP programs, their sockets.

use nomagic_core::counters::SocketCounts;
use nomagic_xsk::{Condition, EdgeStatus, PortStatus};

use super::Exposition;
use super::counts::{self, Row};
use super::exposition::Kind::{Counter, Gauge};

/// The name that stands for all redirect ports; longer than an interface's may be.
const REDIRECTS: &str = "(redirect ports)";

/// Everything about ports.
pub(super) fn write(edge: &EdgeStatus, out: &mut Exposition) {
    let mut each = |name: &str, kind, help: &str, value: &dyn Fn(&PortStatus) -> u64| {
        out.begin(name, kind, help);
        edge.ports.iter().for_each(|p| out.sample(name, &[("port", &p.info.name)], value(p)));
    };
    let bound = |p: &PortStatus| u64::from(p.info.condition == Condition::Bound);
    each("nomagic_port_bound", Gauge, "1 when the port's XDP program is attached and all its queues are bound.", &bound);
    each("nomagic_port_rebinds_total", Counter, "Times that the port was bound again.", &|p| p.info.rebinds);
    each("nomagic_port_queues", Gauge, "Receive queues of the port.", &|p| u64::from(p.info.queues));
    each("nomagic_port_zero_copy", Gauge, "1 when the port's sockets are zero-copy.", &|p| u64::from(p.info.zero_copy));
    each("nomagic_port_native_xdp", Gauge, "1 when XDP runs in the port's driver.", &|p| u64::from(p.info.native));

    let name = "nomagic_xdp_frames_total";
    out.begin(name, Counter, "Frames seen by the XDP program, by port and outcome; redirect ports are counted together.");
    for (port, xdp) in edge.ports.iter().map(|p| (p.info.name.as_str(), &p.xdp)).chain([(REDIRECTS, &edge.redirects_xdp)]) {
        for (outcome, n) in xdp.iter() {
            out.sample(name, &[("port", port), ("outcome", outcome)], n);
        }
    }

    let sockets = edge.ports.iter().flat_map(|port| port.sockets.iter().enumerate().map(move |(queue, socket)| (port, queue, socket)));
    let row = |(port, queue, socket): (&PortStatus, usize, &SocketCounts)| {
        Row::new([("port", port.info.name.clone()), ("queue", queue.to_string())], |f| socket.each(f))
    };
    counts::write(out, &sockets.map(row).collect::<Vec<_>>());
}
