//! Packets that Services refused, by Service port.

use nomagic_api::{ServicePort, Status};

use super::exposition::MetricType::{Counter, Gauge};
use super::{Exposition, MetricDef};

pub(super) fn write(status: &Status, out: &mut Exposition) {
    let empty = status.service_ports.iter().filter(|p| p.backends == 0).count() as u64;
    out.single("nomagic_service_ports_without_backends", Gauge, "Service ports that have no backends.", empty);
    for (name, help, value) in metrics() {
        out.begin(name, Counter, help);
        for p in status.service_ports.iter().filter(|p| p.rejected + p.dropped > 0) {
            let (port, protocol) = (p.port_name.as_str(), p.protocol.as_str());
            out.sample(name, &[("namespace", &p.namespace), ("service", &p.service), ("port", port), ("protocol", protocol)], value(p));
        }
    }
}

fn metrics() -> [MetricDef<ServicePort, u64>; 2] {
    [
        (
            "nomagic_service_rejected_total",
            "Packets that a Service rejected for want of endpoints (their sender was told, within limits), by Service port.",
            |p| p.rejected,
        ),
        (
            "nomagic_service_dropped_total",
            "Packets of new connections to a Service that were dropped (policy, source range, limits, no SNAT port), by Service port.",
            |p| p.dropped,
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_that_refused_nothing_have_no_series() {
        let port = |service: &str, backends, rejected, dropped| ServicePort {
            namespace: "n".into(),
            service: service.into(),
            port_name: "http".into(),
            port: 80,
            protocol: "TCP".into(),
            backends,
            rejected,
            dropped,
        };
        let status = Status { service_ports: vec![port("a", 0, 0, 0), port("b", 1, 2, 3)], ..Status::default() };
        let mut out = Exposition::default();
        write(&status, &mut out);
        let text = out.finish();
        let lines: Vec<&str> = text.lines().filter(|l| !l.starts_with('#')).collect();
        assert_eq!(
            lines,
            [
                "nomagic_service_ports_without_backends 1",
                "nomagic_service_rejected_total{namespace=\"n\",service=\"b\",port=\"http\",protocol=\"TCP\"} 2",
                "nomagic_service_dropped_total{namespace=\"n\",service=\"b\",port=\"http\",protocol=\"TCP\"} 3",
            ]
        );
    }
}
