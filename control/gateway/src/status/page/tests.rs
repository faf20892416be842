//! What is said for people, and when.

use super::*;
use crate::status::collect::{edge_part, waiting};
use nomagic_api::{Carried, KindWatch, Target, Worker};
use nomagic_core::counters::{Volume, XdpCounts};
use nomagic_core::frame::PortId;
use nomagic_core::rss::{Kinds, Rss as RssTable};
use nomagic_core::tuple::Proto;
use nomagic_xsk::{Condition, EdgeStatus, PortInfo, PortStatus, RssError};

fn edge(ports: Vec<PortStatus>) -> EdgeStatus {
    EdgeStatus {
        workers: vec![],
        ports,
        redirects: vec![],
        redirects_xdp: XdpCounts::default(),
        pools: vec![],
        flows_live: 3,
        flows_capacity: 64,
        replies_announced: 1,
        source_ports: 900,
        source_ports_fullest: 500,
        source_ports_largest: 300,
        replies_capacity: 128,
        services_generation: 1,
        services_applied: true,
        routes_generation: 1,
        routes_applied: false,
    }
}

/// A gateway with a worker and one of whatever there can be.
fn status() -> Status {
    let mut status = edge_part(edge(vec![]), 1);
    status.workers = vec![Worker::default()];
    (status.snat.ports, status.snat.share_max) = (1_000, 450);
    let counts = &mut status.totals.counts;
    counts.frames.received = Volume { packets: 12, bytes: 0 };
    counts.frames.kernel = Volume { packets: 4, bytes: 0 };
    counts.reasons.kernel[Reason::NotOurs] = 4;
    counts.reasons.drop[Reason::SnatPortsExhausted] = 7;
    counts.reasons.drop[Reason::SnatShare] = 2;
    counts.conntrack.mid_stream = 1;
    counts.conntrack.evicted[EvictionRank::IdleUdp] = 5;
    status.targets = vec![Target {
        namespace: "default".into(),
        service: "nginx".into(),
        port_name: "http".into(),
        port: Some(80),
        protocol: "TCP".into(),
        backend: "192.168.0.2:8080".into(),
        carried: Carried { flows: 2, to_backend: Volume { packets: 10, bytes: 0 }, to_client: Volume { packets: 9, bytes: 0 } },
    }];
    status.services.problems = vec!["Service a/b: spec.ports[0]: no".into()];
    status
}

#[test]
fn a_port_says_whether_the_queues_of_answers_are_told_beforehand() {
    let known = RssTable::new(&[7; 40], &[0; 128], &[0], Kinds::default().with(Proto::Tcp, false)).unwrap();
    for (rss, words) in [(Ok(known.into()), "1 queue(s), RSS of 128 entries"), (Err(RssError::NotTold), "1 queue(s), RSS unknown")] {
        let info = PortInfo {
            id: PortId(0),
            name: "eth0".into(),
            ifindex: 2,
            mac: [2; 6],
            mtu: 1500,
            native: true,
            zero_copy: false,
            queues: 1,
            owners: vec![0],
            condition: Condition::Bound,
            rebinds: 0,
            rss,
        };
        let mut status = edge_part(edge(vec![PortStatus { info, xdp: XdpCounts::default(), sockets: Vec::new() }]), 0);
        status.workers = vec![Worker::default()];
        let page = page(&status);
        assert!(page.contains(words), "{page}");
    }
}

#[test]
fn a_gateway_that_waits_says_for_what() {
    let kind = |kind: &str, state, for_s, objects, heard_s_ago, error: &str| KindWatch {
        kind: kind.into(),
        state,
        for_s,
        listed: false,
        objects,
        heard_s_ago,
        lists: 0,
        events: 0,
        faults: 0,
        error: Some(error.into()),
    };
    let kinds = vec![
        kind("Service", WatchState::Connected, 5, 2, Some(1), "an old story"),
        kind("EndpointSlice", WatchState::Away, 3, 0, None, "refused"),
    ];
    let text = page(&waiting("not listed yet: EndpointSlices".into(), Some(ApiWatch { server: "https://a".into(), kinds }), 7));
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines,
        [
            "NOT READY: not listed yet: EndpointSlices",
            "objects from https://a",
            "  Service              2  connected for 5 s, heard 1 s ago",
            "  EndpointSlice        0  away for 3 s, never heard of: refused",
        ]
    );
}

#[test]
fn the_page_says_what_happened_in_aligned_columns() {
    let text = page(&status());
    for line in [
        "NOT READY: not every worker uses the latest routes yet",
        "connections: 3 of 64; reply filter entries: 1 of 128",
        "  created 0 (1 mid-stream); ended: idle 0, replaced by a new SYN 0, endpoint gone 0; survived a forged RST 0",
        "  evicted when full: closed 0, half-open 0, idle UDP 5",
        "SNAT ports: 900 in use; towards the fullest endpoint 500 of 1000 (50 %), 300 of at most 450 for one client or Service; refused: 7 as all \
         were taken, 2 as a share was used up",
        "received by workers          12",
        "  returned to the kernel      4",
        "    not_ours                  4  no Service has this address, port and protocol",
        "default/nginx:80/TCP  192.168.0.2:8080      2          10          9",
        "problem: Service a/b: spec.ports[0]: no",
    ] {
        assert!(text.lines().any(|l| l == line), "{line}\nin\n{text}");
    }
    assert!(text.lines().all(|l| l == l.trim_end()), "no blanks at the ends of lines\n{text}");
}
