//! Session affinity, and shares of the source ports.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::AtomicU64;

use nomagic_core::conntrack::{Conntrack, Sticky};
use nomagic_core::frame::{NextHopId, Verdict};
use nomagic_core::reason::Reason;
use nomagic_core::services::Affinity;
use nomagic_core::tuple::Proto;
use nomagic_core_fixtures::*;

/// A world whose first Service port keeps its clients' endpoints.
fn sticky_world(timeout_s: u32) -> World {
    let mut s = services();
    change(&mut s, |frontend| {
        let p = std::sync::Arc::make_mut(&mut frontend.port);
        p.affinity = Some(Affinity::new(&p.namespace, &p.name, &p.port_name, p.proto, timeout_s));
    });
    World::new(s, 1_024)
}

/// Where a new connection from this client port goes.
fn backend_of(w: &mut World, proto: &str, client: &str) -> IpAddr {
    let service = if client.starts_with('[') { "[fd00:96::1]:80" } else { "10.96.0.1:80" };
    let done = w.run(CLIENTS, &spec(proto, client, service, SYN).frame());
    assert!(matches!(done.verdict, Verdict::Forward(..)), "{:?}", done.verdict);
    read(&done.bytes).unwrap().tuple.dst_addr()
}

fn backends(w: &mut World, client: &str, ports: std::ops::Range<u16>) -> BTreeSet<IpAddr> {
    ports.map(|port| backend_of(w, "tcp", &format!("{client}:{port}"))).collect()
}

#[test]
fn a_clients_connections_go_to_one_endpoint_until_its_time_is_over() {
    let mut w = sticky_world(100);
    for client in ["10.0.0.2", "[fd00:a::2]"] {
        assert_eq!(backends(&mut w, client, 1_000..1_020).len(), 1, "{client}");
    }
    let first = backend_of(&mut w, "tcp", "10.0.0.2:2000");
    // Each new connection starts the time again.
    for port in 2_001..2_004 {
        w.now_ms += 99_000;
        assert_eq!(backend_of(&mut w, "tcp", &format!("10.0.0.2:{port}")), first);
    }
    // After it any endpoint may be chosen, and in many tries one other is.
    let mut seen = BTreeSet::new();
    for port in 3_000..3_020 {
        w.now_ms += 101_000;
        seen.insert(backend_of(&mut w, "tcp", &format!("10.0.0.2:{port}")));
    }
    assert!(seen.len() > 1, "{seen:?}");
    assert!(backends(&mut World::new(services(), 256), "10.0.0.2", 1_000..1_020).len() > 1, "without affinity they spread");
}

#[test]
fn an_endpoint_that_is_gone_is_forgotten() {
    let mut w = sticky_world(10_800);
    let first = backend_of(&mut w, "tcp", "10.0.0.2:1000");
    change_backends(&mut w.services, |backends| backends.iter().filter(|b| b.addr != first).cloned().collect());
    let second = backends(&mut w, "10.0.0.2", 2_000..2_020);
    assert!(second.len() == 1 && !second.contains(&first), "{first} then {second:?}");
}

#[test]
fn workers_that_choose_for_one_client_at_once_agree() {
    let words: Vec<AtomicU64> = (0..Conntrack::words_needed(1 << 14)).map(|_| AtomicU64::new(0)).collect();
    let table = Conntrack::format(&words, 1 << 14, 1, [0, 0]).unwrap();
    for client in 0..2_000u64 {
        let sticky = Sticky { id: 7, client: [0, client], v6: false, timeout_s: 100 };
        let start = std::sync::Barrier::new(2);
        let agreed: Vec<u64> = std::thread::scope(|scope| {
            let choose = |chosen: u64| {
                let (start, sticky) = (&start, &sticky);
                scope.spawn(move || {
                    start.wait();
                    table.affinity().stick(sticky, 1_000, |identity| identity == 11 || identity == 22, chosen).0
                })
            };
            [choose(11), choose(22)].map(|t| t.join().unwrap()).into()
        });
        assert_eq!(agreed[0], agreed[1], "client {client}");
    }
}

#[test]
fn a_full_bucket_forgets_the_client_that_was_away_longest() {
    let words: Vec<AtomicU64> = (0..Conntrack::words_needed(16)).map(|_| AtomicU64::new(0)).collect();
    // One bucket of four.
    let table = Conntrack::format(&words, 16, 1, [0, 0]).unwrap();
    let ask = |client: u64, now_s: u64, chosen| {
        table.affinity().stick(&Sticky { id: 1, client: [0, client], v6: false, timeout_s: 1_000 }, now_s * 1_000, |i| i < 100, chosen).0
    };
    for client in 1..=4 {
        assert_eq!(ask(client, client, client), client);
    }
    assert_eq!(ask(1, 10, 99), 1, "used again");
    assert_eq!(ask(5, 11, 5), 5, "takes the place of client 2");
    assert_eq!([ask(1, 12, 99), ask(3, 12, 99), ask(4, 12, 99), ask(5, 12, 99)], [1, 3, 4, 5]);
    assert_eq!(ask(2, 13, 98), 98);
}

#[test]
fn nobody_takes_the_last_source_ports() {
    let mut s = services();
    // 100 ports towards each endpoint, of which one client may hold 60.
    (s.snat.port_last, s.snat.share_percent) = (61_099, 60);
    change_backends(&mut s, |backends| backends[..1].to_vec());
    add_service(&mut s, "10.96.0.3", 80, Proto::Tcp, &[backend("192.168.1.1", 8080)], true);
    let mut w = World::new(s, 4_096);
    let open = |w: &mut World, client: &str, service: &str| match w.connect(&spec("tcp", client, service, SYN)) {
        Ok(_) => Verdict::Forward(PODS, NextHopId(0)),
        Err(verdict) => verdict,
    };
    for port in 0..60 {
        let verdict = open(&mut w, &format!("10.0.0.2:{}", 1_000 + port), "10.96.0.2:80");
        assert!(matches!(verdict, Verdict::Forward(..)), "{port}: {verdict:?}");
    }
    assert_eq!(open(&mut w, "10.0.0.2:2000", "10.96.0.2:80"), Verdict::Drop(Reason::SnatShare), "the client's share");
    assert_eq!(open(&mut w, "10.0.0.3:2000", "10.96.0.2:80"), Verdict::Drop(Reason::SnatShare), "the Service's share");
    assert!(matches!(open(&mut w, "10.0.0.3:2000", "10.96.0.3:80"), Verdict::Forward(..)), "another client of another Service");
    let ports = w.with(|ctx| {
        (ctx.table.snat_ports().in_use(), ctx.table.snat_ports().largest_shares().service, ctx.table.snat_ports().fullest_endpoint())
    });
    assert_eq!(ports, (61, 60, 61));
    // What ends gives its port back.
    w.now_ms += 100_000_000;
    w.sweep_all();
    assert_eq!(w.with(|ctx| (ctx.table.snat_ports().in_use(), ctx.table.snat_ports().largest_shares().service)), (0, 0));
    assert!(matches!(open(&mut w, "10.0.0.2:2000", "10.96.0.2:80"), Verdict::Forward(..)));
}
