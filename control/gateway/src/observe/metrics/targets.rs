//! What each pair of a Service port and a backend carried; see [`crate::status::TARGETS_SHOWN_MAX`] for the bound on their number.

use nomagic_api::{Beyond, Carried, Status};

use super::exposition::Kind::{Counter, Gauge};
use super::{Exposition, Row};

/// The name under which pairs beyond the limit count; no Service can be called so.
pub const OTHERS: &str = "_others";

/// The pairs' part of nomagic's own metrics.
pub(super) fn write(status: &Status, out: &mut Exposition) {
    let beyond = &status.targets_beyond;
    let help = "Pairs of a Service port and a backend without series of their own: they count under the Service _others.";
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

/// Values by direction.
type Values = Vec<(Option<&'static str>, u64)>;

fn metrics() -> [Row<Carried, Values>; 3] {
    [
        ("nomagic_backend_connections_total", "Connections opened, by Service port and backend.", |c| vec![(None, c.flows)]),
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
    use nomagic_api::Target;
    use nomagic_core::counters::Volume;

    #[test]
    fn pairs_have_series_and_those_beyond_the_limit_one_together() {
        let target = |backend: &str, flows| Target {
            namespace: "n".into(),
            service: "s".into(),
            port_name: "http".into(),
            port: Some(80),
            protocol: "TCP".into(),
            backend: backend.into(),
            carried: Carried { flows, to_backend: Volume { packets: 2, bytes: 100 }, ..Carried::default() },
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
        assert_eq!(text.lines().filter(|l| !l.starts_with('#')).count(), 1 + 5 * 3);
        let pair = "{namespace=\"n\",service=\"s\",port=\"http\",protocol=\"TCP\",backend=\"10.0.0.1:80\"";
        for line in [
            "nomagic_backends_without_series 7".to_owned(),
            format!("nomagic_backend_connections_total{pair}}} 1"),
            format!("nomagic_backend_bytes_total{pair},direction=\"to_backend\"}} 100"),
            format!(
                "nomagic_backend_connections_total{{namespace=\"{0}\",service=\"{0}\",port=\"{0}\",protocol=\"{0}\",backend=\"{0}\"}} 3",
                OTHERS
            ),
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\nin\n{text}");
        }
    }
}
