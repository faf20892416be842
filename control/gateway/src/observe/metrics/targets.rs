//! Traffic by pair of Service port and backend; [`crate::status::TARGETS_SHOWN_MAX`] bounds their number.

use nomagic_api::{Beyond, Carried, Status, Target};

use super::exposition::MetricType::{Counter, Gauge};
use super::{Exposition, MetricDef};

/// Label value of pairs beyond the limit, counted together. Not a valid Service name, so it cannot collide.
const OTHERS: &str = "_others";

/// Label value of the sum over a Service port's backends.
const ALL: &str = "_all";

/// Adds up the backends of each Service port, in place of a series for each. `targets` are sorted by Service port.
pub fn sum_backends(targets: Vec<Target>) -> Vec<Target> {
    let mut sums: Vec<Target> = Vec::new();
    for t in targets {
        let port = |t: &Target| (t.namespace.clone(), t.service.clone(), t.port_name.clone(), t.protocol.clone());
        match sums.last_mut().filter(|sum| port(sum) == port(&t)) {
            Some(sum) => sum.carried.add(&t.carried),
            None => sums.push(Target { backend: ALL.into(), ..t }),
        }
    }
    sums
}

pub(super) fn write(status: &Status, out: &mut Exposition) {
    let beyond = &status.targets_beyond;
    let help = "Pairs of a Service port and a backend without separate series; they are counted under the Service _others.";
    out.single("nomagic_backends_without_series", Gauge, help, beyond.targets);
    for (name, help, values) in metrics() {
        out.begin(name, Counter, help);
        for t in &status.targets {
            write_values(out, name, [&t.namespace, &t.service, &t.port_name, &t.protocol, &t.backend], values(&t.carried));
        }
        if *beyond != Beyond::default() {
            write_values(out, name, [OTHERS; 5], values(&beyond.carried));
        }
    }
}

fn write_values(out: &mut Exposition, name: &str, pair: [&str; 5], values: Values) {
    let pair = ["namespace", "service", "port", "protocol", "backend"].into_iter().zip(pair);
    for (direction, value) in values {
        let labels: Vec<_> = pair.clone().chain(direction.map(|d| ("direction", d))).collect();
        out.sample(name, &labels, value);
    }
}

/// Values by direction label.
type Values = Vec<(Option<&'static str>, u64)>;

fn metrics() -> [MetricDef<Carried, Values>; 6] {
    [
        ("nomagic_backend_connections_total", "Connections created, by Service port and backend.", |c| vec![(None, c.flows)]),
        (
            "nomagic_backend_snat_refused_total",
            "Connections refused because there was no SNAT port for them (all taken, or a share used up), by Service port and backend.",
            |c| vec![(None, c.snat_refused)],
        ),
        (
            "nomagic_backend_rate_limited_total",
            "New connections refused by the limit of connections a second, by Service port and by the backend that they would have had.",
            |c| vec![(None, c.rate_limited)],
        ),
        (
            "nomagic_backend_client_limited_total",
            "New connections refused by the limit of connections of one client, by Service port and by the backend that they would have had.",
            |c| vec![(None, c.client_limited)],
        ),
        ("nomagic_backend_frames_total", "Frames carried, by Service port and backend.", |c| {
            vec![(Some("to_backend"), c.to_backend.packets), (Some("to_client"), c.to_client.packets)]
        }),
        ("nomagic_backend_bytes_total", "Bytes of frames carried, by Service port and backend.", |c| {
            vec![(Some("to_backend"), c.to_backend.bytes), (Some("to_client"), c.to_client.bytes)]
        }),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use nomagic_core::counters::Volume;

    #[test]
    fn backends_of_a_service_port_are_added_up() {
        let target = |service: &str, backend: &str, flows, bytes| Target {
            namespace: "n".into(),
            service: service.into(),
            port_name: "http".into(),
            port: Some(80),
            protocol: "TCP".into(),
            backend: backend.into(),
            carried: Carried { flows, to_client: Volume { packets: 1, bytes }, ..Carried::default() },
        };
        let sums = sum_backends(vec![target("a", "1", 1, 10), target("a", "2", 2, 20), target("b", "1", 4, 40)]);
        let shown: Vec<_> =
            sums.iter().map(|t| (t.service.as_str(), t.backend.as_str(), t.carried.flows, t.carried.to_client.bytes)).collect();
        assert_eq!(shown, [("a", "_all", 3, 30), ("b", "_all", 4, 40)]);
    }

    #[test]
    fn pairs_beyond_the_limit_share_one_series() {
        let target = |backend: &str, flows| Target {
            namespace: "n".into(),
            service: "s".into(),
            port_name: "http".into(),
            port: Some(80),
            protocol: "TCP".into(),
            backend: backend.into(),
            carried: Carried {
                flows,
                rate_limited: 5,
                client_limited: 6,
                to_backend: Volume { packets: 2, bytes: 100 },
                ..Carried::default()
            },
        };
        let mut status = Status { targets: vec![target("10.0.0.1:80", 1), target("10.0.0.2:80", 4)], ..Status::default() };
        let text = |status: &Status| {
            let mut out = Exposition::default();
            write(status, &mut out);
            out.finish()
        };
        let others = format!("=\"{OTHERS}\"");
        assert!(!text(&status).contains(&others));
        status.targets_beyond = Beyond { targets: 7, carried: Carried { flows: 3, ..Carried::default() } };
        let text = text(&status);
        assert!(text.contains(&others));
        assert_eq!(text.lines().filter(|l| !l.starts_with('#')).count(), 1 + 8 * 3);
        let pair = "{namespace=\"n\",service=\"s\",port=\"http\",protocol=\"TCP\",backend=\"10.0.0.1:80\"";
        for line in [
            "nomagic_backends_without_series 7".to_owned(),
            format!("nomagic_backend_connections_total{pair}}} 1"),
            format!("nomagic_backend_rate_limited_total{pair}}} 5"),
            format!("nomagic_backend_client_limited_total{pair}}} 6"),
            format!("nomagic_backend_bytes_total{pair},direction=\"to_backend\"}} 100"),
            format!(
                "nomagic_backend_connections_total{{namespace=\"{OTHERS}\",service=\"{OTHERS}\",port=\"{OTHERS}\",protocol=\"{OTHERS}\",backend=\"{OTHERS}\"}} 3"
            ),
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\nin\n{text}");
        }
    }
}
