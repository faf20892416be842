//! The content of the status page.

use super::*;
use crate::status::collect::{edge_status, waiting};
use crate::status::readiness::tests::port;
use nomagic_api::{Carried, KindWatch, SeedSource, ServicePort, Target, Worker};
use nomagic_core::counters::{Volume, XdpCounts};
use nomagic_core::rss::{Kinds, Rss as RssTable};
use nomagic_core::services::PortLimits;
use nomagic_core::tuple::Proto;
use nomagic_xsk::{AnswerCounts, Condition, EdgeStatus, LinkState, PortInfo, PortStatus, RssError};

fn edge(ports: Vec<PortStatus>) -> EdgeStatus {
    EdgeStatus {
        workers: vec![],
        ports,
        redirects: vec![],
        redirects_xdp: XdpCounts::default(),
        answers: AnswerCounts::default(),
        pools: vec![],
        flows_live: 3,
        flows_capacity: 64,
        replies_announced: 1,
        source_ports: 900,
        source_ports_fullest: 500,
        source_port_shares: PortLimits { client: 100, service: 300 },
        replies_capacity: 128,
        services_generation: 1,
        services_applied: true,
        routes_generation: 1,
        routes_applied: false,
    }
}

/// A status in which every optional part of the page appears.
fn status() -> Status {
    let mut status = edge_status(edge(vec![]), 1);
    status.not_ready = vec!["not every worker uses the latest routes yet".into()];
    status.workers = vec![Worker::default()];
    status.hash_seed_source = Some(SeedSource::Random);
    (status.snat.ports, status.snat.client_share_max, status.snat.service_share_max) = (1_000, 250, 900);
    let counts = &mut status.totals.counts;
    counts.frames.received = Volume { packets: 12, bytes: 0 };
    counts.frames.kernel = Volume { packets: 4, bytes: 0 };
    counts.reasons.kernel[Reason::NotOurs] = 4;
    counts.reasons.drop[Reason::SnatPortsExhausted] = 7;
    counts.reasons.drop[Reason::SnatShare] = 2;
    counts.path.rejects_suppressed[Class::Unreachable] = 3;
    counts.conntrack.mid_stream = 1;
    counts.conntrack.evicted[EvictionRank::IdleUdp] = 5;
    counts.conntrack.snat_reclaimed[EvictionRank::Closed] = 8;
    status.targets = vec![Target {
        namespace: "default".into(),
        service: "nginx".into(),
        port_name: "http".into(),
        port: Some(80),
        protocol: "TCP".into(),
        backend: "192.168.0.2:8080".into(),
        carried: Carried {
            flows: 2,
            to_backend: Volume { packets: 10, bytes: 0 },
            to_client: Volume { packets: 9, bytes: 0 },
            ..Carried::default()
        },
    }];
    status.services.problems = vec!["Service a/b: spec.ports[0]: no".into(), "Node gw: no".into()];
    status.service_ports = vec![
        ServicePort { namespace: "a".into(), service: "b".into(), port: 7, protocol: "UDP".into(), rejected: 5, ..ServicePort::default() },
        ServicePort {
            namespace: "default".into(),
            service: "nginx".into(),
            port: 80,
            protocol: "TCP".into(),
            backends: 2,
            dropped: 4,
            ..ServicePort::default()
        },
    ];
    status
}

#[test]
fn a_port_shows_whether_its_rss_is_known() {
    let known = RssTable::new(&[7; 40], &[0; 128], &[0], Kinds::default().with(Proto::Tcp, false)).unwrap();
    for (rss, words) in [(Ok(known.into()), "1 queue(s), RSS of 128 entries"), (Err(RssError::Unsupported), "1 queue(s), RSS unknown")] {
        let info = PortInfo { rss, ..port(Condition::Bound, LinkState::NoCarrier) };
        let mut status = edge_status(edge(vec![PortStatus { info, xdp: XdpCounts::default(), sockets: Vec::new() }]), 0);
        status.workers = vec![Worker::default()];
        let page = page(&status, Sections::All, SortBy::Name);
        assert!(page.contains(words) && page.contains("eth0  no carrier"), "{page}");
    }
}

#[test]
fn a_waiting_gateway_shows_the_reason() {
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
        kind("Service", WatchState::Connected, 5, 2, Some(1), "an earlier error"),
        kind("EndpointSlice", WatchState::Away, 3, 0, None, "refused"),
    ];
    let text = page(
        &waiting("not listed yet: EndpointSlices".into(), Some(ApiWatch { server: "https://a".into(), kinds }), 7),
        Sections::All,
        SortBy::Name,
    );
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines,
        [
            "NOT READY: not listed yet: EndpointSlices",
            "objects from https://a",
            "  Service              2  connected for 5 s, heard 1 s ago",
            "  EndpointSlice        0  away for 3 s, no response yet: refused",
        ]
    );
}

#[test]
fn the_page_has_aligned_columns() {
    let text = page(&status(), Sections::All, SortBy::Name);
    for line in [
        "NOT READY: not every worker uses the latest routes yet",
        "hash seed: random (kept in the state directory; every gateway has its own)",
        "connections: 3 of 64; reply filter entries: 1 of 128",
        "  created 0 (1 mid-stream); ended: idle 0, replaced by a new SYN 0, endpoint gone 0; survived a forged RST 0",
        "  evicted when full: closed 0, unconfirmed 0, doubtful 0, idle UDP 5",
        "SNAT ports: 900 in use; towards the fullest endpoint 500 of 1000 (50 %), for one client 100 of at most 250, for one \
         Service 300 of at most 900; reclaimed 8; refused: 7 (no free port), 2 (share used up)",
        "received by workers          12",
        "  returned to the kernel      4",
        "    not_ours                  4  no Service has this address, port and protocol",
        "  not sent: unreachable       3  over a limit of rejects, or never answered",
        "default/nginx:80/TCP  192.168.0.2:8080      2          10          9",
        "problem: Service a/b: spec.ports[0]: no",
        "a/b:7/UDP                    0         5        0  no backends",
        "default/nginx:80/TCP         2         0        4",
    ] {
        assert!(text.lines().any(|l| l == line), "{line}\nin\n{text}");
    }
    assert!(text.lines().all(|l| l == l.trim_end()), "trailing blanks\n{text}");
}

#[test]
fn problems_come_first_and_parts_can_be_chosen() {
    let status = status();
    let of = |sections| page(&status, sections, SortBy::Name);
    let all = of(Sections::All);
    assert_eq!(all.lines().skip(1).take(2).collect::<Vec<_>>(), ["problem: Node gw: no", "problem: Service a/b: spec.ports[0]: no"]);
    assert_eq!(of(Sections::Problems), all.lines().take(3).map(|l| format!("{l}\n")).collect::<String>());
    let service = of(Sections::Service("a", "b"));
    assert!(service.contains("problem: Service a/b") && service.contains("a/b:7/UDP"), "{service}");
    assert!(!service.contains("nginx") && !service.contains("Node gw") && !service.contains("connections:"), "{service}");
    let service = of(Sections::Service("default", "nginx"));
    assert!(service.contains("192.168.0.2:8080") && !service.contains("a/b"), "{service}");
}

#[test]
fn backends_are_sorted_by_traffic() {
    let mut status = status();
    let target = |backend: &str, flows, packets| Target {
        backend: backend.into(),
        carried: Carried { flows, to_client: Volume { packets, bytes: 0 }, ..Carried::default() },
        ..status.targets[0].clone()
    };
    status.targets = vec![target("one", 1, 30), target("two", 2, 10), target("three", 1, 20)];
    let order = |sort| {
        let text = page(&status, Sections::All, sort);
        let mut at: Vec<(usize, &str)> =
            ["one", "two", "three"].iter().map(|name| (text.find(&format!("  {name} ")).unwrap(), *name)).collect();
        at.sort_unstable();
        at.into_iter().map(|(_, name)| name).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(order(SortBy::Name), "one two three");
    assert_eq!(order(SortBy::Flows), "two one three");
    assert_eq!(order(SortBy::Packets), "one three two");
}
