//! The JSON format of the status.

use super::*;
use nomagic_core::counters::{SocketCounts, XdpCounts};
use nomagic_core::reason::Reason;
use serde_json::{Value, json};

fn status() -> Status {
    let mut status =
        Status { ready: true, uptime_s: 7, hash_seed_source: Some(SeedSource::Cluster), workers_alive: 1, ..Status::default() };
    let counts = &mut status.totals.counts;
    counts.frames.received = Volume { packets: 3, bytes: 180 };
    counts.conntrack.created = 2;
    counts.reasons.drop[Reason::NoEndpoints] = 1;
    counts.reasons.kernel[Reason::NotOurs] = 4;
    status.workers = vec![Worker { id: 0, alive: true, counts: counts.clone(), ..Worker::default() }];
    status.api = Some(ApiWatch {
        server: "https://a".into(),
        kinds: vec![KindWatch {
            kind: "Service".into(),
            state: WatchState::Away,
            for_s: 3,
            listed: true,
            objects: 2,
            heard_s_ago: None,
            lists: 1,
            events: 0,
            faults: 1,
            error: Some("refused".into()),
        }],
    });
    status.ports = vec![StatusPort {
        name: "eth0".into(),
        ifindex: 2,
        mtu: 1500,
        queues: 1,
        owners: vec![0],
        bound: true,
        condition: "bound".into(),
        link: PortLink::Up,
        rebinds: 0,
        xdp_mode: XdpMode::Native,
        zero_copy: false,
        rss: Rss::Unknown { because: "the driver does not support the query".into() },
        xdp: XdpCounts { taken: 5, pass_icmp: 1, ..XdpCounts::default() }.into(),
        sockets: vec![SocketCounts::default()],
    }];
    status
}

#[test]
fn a_status_round_trips() {
    let written = serde_json::to_string(&status()).unwrap();
    assert_eq!(serde_json::from_str::<Status>(&written).unwrap(), status());
}

#[test]
fn well_known_keys_are_stable() {
    let json = serde_json::to_value(status()).unwrap();
    for (pointer, value) in [
        ("/schema", json!(1)),
        ("/ready", json!(true)),
        ("/hash_seed_source", json!("cluster")),
        ("/totals/received/packets", json!(3)),
        ("/totals/conntrack/created", json!(2)),
        ("/totals/conntrack/evicted/closed", json!(0)),
        ("/totals/reasons/drop/no_endpoints", json!(1)),
        ("/totals/reasons/kernel/not_ours", json!(4)),
        ("/totals/reasons/kernel/no_endpoints", Value::Null),
        ("/workers/0/received/bytes", json!(180)),
        ("/ports/0/xdp/received", json!(6)),
        ("/ports/0/xdp/taken", json!(5)),
        ("/ports/0/xdp_mode", json!("native")),
        ("/ports/0/rss/because", json!("the driver does not support the query")),
        ("/api/kinds/0/state", json!("away")),
        ("/conntrack/taken_over", Value::Null),
    ] {
        assert_eq!(json.pointer(pointer).unwrap_or(&Value::Null), &value, "{pointer}");
    }
}

#[test]
fn unknown_fields_are_ignored_and_missing_ones_are_empty() {
    let short = json!({ "schema": 1, "ready": true, "novelty": {}, "totals": { "reasons": { "drop": { "newer_reason": 9 } } } });
    let read: Status = serde_json::from_value(short).unwrap();
    assert_eq!(read, Status { ready: true, ..Status::default() });
    assert_eq!(read.totals.counts.reasons.drop.total(), 0);
    assert!(serde_json::from_value::<Status>(json!({ "ready": "yes" })).is_err(), "a field of the wrong type is an error");
}

#[test]
fn a_service_port_is_written_as_namespace_name_port_and_protocol() {
    let target = Target {
        namespace: "shop".into(),
        service: "web".into(),
        port_name: "http".into(),
        port: Some(80),
        protocol: "TCP".into(),
        backend: "10.1.0.1:8080".into(),
        carried: Carried::default(),
    };
    assert_eq!(target.service_port(), "shop/web:80/TCP");
    assert_eq!(Target { port: None, ..target }.service_port(), "shop/web:http/TCP");
}
