//! The ports' part of nomagic's own metrics: interfaces, their XDP programs, their sockets.

use nomagic_xsk::{Condition, EdgeStatus, PortStatus, XdpCounters, XskStatistics};

use super::exposition::Kind::{Counter, Gauge};
use super::{Exposition, Row};

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
        for (outcome, n) in outcomes(xdp) {
            out.sample(name, &[("port", port), ("outcome", outcome)], n);
        }
    }

    let statistics: [Row<XskStatistics, u64>; 6] = [
        ("rx_dropped", "Received frames lost for other reasons than the following.", |s| s.rx_dropped),
        ("rx_ring_full", "Received frames lost because the receive ring was full.", |s| s.rx_ring_full),
        ("rx_fill_ring_empty", "Times that the fill ring was found empty.", |s| s.rx_fill_ring_empty),
        ("rx_invalid_descriptors", "Bad descriptors on the fill ring.", |s| s.rx_invalid_descs),
        ("tx_invalid_descriptors", "Bad descriptors on the transmit ring.", |s| s.tx_invalid_descs),
        ("tx_ring_empty", "Times that the transmit ring was found empty.", |s| s.tx_ring_empty),
    ];
    for (what, help, value) in statistics {
        let name = format!("nomagic_xsk_{what}_total");
        out.begin(&name, Counter, help);
        for port in &edge.ports {
            for (queue, socket) in port.sockets.iter().enumerate() {
                out.sample(&name, &[("port", &port.info.name), ("queue", &queue.to_string())], value(socket));
            }
        }
    }
}

fn outcomes(x: &XdpCounters) -> [(&'static str, u64); 12] {
    [
        ("taken", x.taken),
        ("pass_not_ours", x.pass_not_ours),
        ("pass_not_ip", x.pass_not_ip),
        ("pass_fragment", x.pass_fragment),
        ("pass_icmp", x.pass_icmp),
        ("pass_other_protocol", x.pass_other_protocol),
        ("pass_unreadable", x.pass_unreadable),
        ("pass_never_started", x.pass_never_started),
        ("failed_open", x.failed_open),
        ("dropped_no_socket", x.dropped_no_socket),
        ("dropped_stale", x.dropped_stale),
        ("failed_closed", x.failed_closed),
    ]
}
