//! Workers create connections while endpoints change and the reconciler walks the same connection table.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nomagic::config::Config;
use nomagic::reconcile::Reconciler;
use nomagic_core::conntrack::{Conntrack, Flow, Phase};
use nomagic_core::filter::ReplyFilter;
use nomagic_core::pipeline::end_connection;
use nomagic_core::services::Services;
use nomagic_core::tuple::{Proto, Tuple, splitmix64};
use nomagic_table::compile::serving::Serving;
use nomagic_table::compile::{Compiler, TARGETS_MAX};
use nomagic_table::index::Index;
use serde_json::json;

use crate::common::CpuLock;
use crate::common::replay;
use crate::common::wire::{ACK, PacketOutcome, SYN, Wire, reply_filter};

const CAPACITY: u32 = 1 << 16;
/// TCP connections that only prolong a walk.
const BALLAST: u32 = 40_000;
const WORKERS: u16 = 2;
const CLIENTS: u64 = 200;
const ROUNDS: u64 = 120;

/// The tables that control has published, and the tables that each worker uses.
struct PublishedTables {
    current: Mutex<(u64, Arc<(Services, Serving)>)>,
    applied: [AtomicU64; WORKERS as usize],
    stop: AtomicBool,
}

/// Stops the workers on drop, also if the test fails.
struct StopOnDrop<'p>(&'p PublishedTables);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, SeqCst);
    }
}

/// Endpoints by bits of a number, behind an address without and a cluster IP with SNAT, in both families.
fn objects(endpoints: u64) -> Index {
    let service = |name: &str, v4: &str, v6: &str| {
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "n"},
            "spec": {"type": "NodePort", "clusterIP": v4, "clusterIPs": [v4, v6], "ipFamilies": ["IPv4", "IPv6"],
                "ports": [{"protocol": "UDP", "port": 53, "nodePort": 30053}]},
        })
    };
    let slice = |family: &str, prefix: &str| {
        let chosen = (0..8).filter(|bit| endpoints >> bit & 1 == 1);
        let list: Vec<_> = chosen.map(|bit| json!({"addresses": [format!("{prefix}{}", bit + 1)]})).collect();
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
            "metadata": {"name": family.to_lowercase(), "namespace": "n", "labels": {"kubernetes.io/service-name": "dns"}},
            "endpoints": list, "ports": [{"protocol": "UDP", "port": 5353}],
        })
    };
    let list = [service("dns", "10.96.0.1", "fd00:96::1"), slice("IPv4", "10.1.0."), slice("IPv6", "fd00:1::")];
    replay::index(&serde_json::Value::from(list.to_vec()))
}

/// A client's packet: to a cluster IP from a pod (its address is kept), or to a node port (it is not).
fn packet(random: &mut u64, worker: u16) -> Tuple {
    let (n, kind) = (splitmix64(random) % CLIENTS, splitmix64(random) % 3);
    // Clients belong to one worker, so no other worker creates its flows.
    let sport = 1_024 + (n as u16) * WORKERS + worker;
    let (from, to, port) = match kind {
        0 => ("10.1.9.9", "10.96.0.1", 53),
        1 => ("fd00:1::9:9", "fd00:96::1", 53),
        _ => ("198.51.100.1", "10.0.0.1", 30_053),
    };
    Tuple::new(Proto::Udp, from.parse().unwrap(), sport, to.parse().unwrap(), port).unwrap()
}

fn serves(serving: &Serving, table: Conntrack<'_>, tuple: &Tuple) -> Option<Flow> {
    let hit = table.lookup(tuple, table.hash(tuple))?;
    table.flow(&hit).filter(|flow| serving.rule().keeps(flow))
}

/// Sends packets until stopped; returns their number.
fn work(number: u16, published: &PublishedTables, table: Conntrack<'static>, filter: ReplyFilter<'static>) -> u64 {
    let (mut wire, mut random, mut sent) = (Wire::new(number, table, Some(filter)), u64::from(number), 0);
    while !published.stop.load(SeqCst) {
        let (sequence, tables) = published.current.lock().unwrap().clone();
        published.applied[usize::from(number)].store(sequence, SeqCst);
        for _ in 0..16 {
            let tuple = packet(&mut random, number);
            let PacketOutcome::Forwarded(_, backend) = wire.send(&tables.0, &tuple, ACK) else { panic!("{tuple} is not forwarded") };
            let known = serves(&tables.1, table, &tuple);
            let created = wire.counters.conntrack.created.get();
            // The tables in use keep this flow, so it must exist until others are published.
            let again = wire.send(&tables.0, &tuple, ACK);
            let opened = wire.counters.conntrack.created.get() - created;
            if known.is_some() && published.current.lock().unwrap().0 == sequence {
                assert_eq!(opened, 0, "{tuple} -> {backend} was ended by an older table: {again:?}");
            }
            sent += 2;
        }
    }
    sent
}

/// Fills slots with TCP connections.
fn ballast(table: Conntrack<'_>) {
    for n in 0..BALLAST {
        let addr = |first: u64| [0, (first << 24) + u64::from(n)];
        let mut flow = Flow {
            proto: Proto::Tcp,
            v6: false,
            announced: false,
            client: addr(100),
            client_port: 1,
            service: [0, 0x0a60_0001],
            service_port: 53,
            backend: addr(101),
            backend_port: 1,
            source: addr(100),
            source_port: 1,
            stats: 0,
            counted: None,
        };
        let (hash, phase) = (table.hash(&flow.original()), Phase::first(Proto::Tcp, SYN));
        let pending = table.reserve(&mut flow, hash, phase, 1, std::iter::once(1)).unwrap();
        table.commit(pending).unwrap();
    }
}

fn wait(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < end, "waited for {what}");
        std::thread::yield_now();
    }
}

#[test]
#[expect(clippy::too_many_lines, reason = "threads that share one scene")]
fn only_connections_allowed_by_the_newest_table_stay() {
    let _cpus = CpuLock::take();
    let words: Vec<AtomicU64> = (0..Conntrack::words_needed(CAPACITY)).map(|_| AtomicU64::new(0)).collect();
    let table = Conntrack::format(words.leak(), CAPACITY, 1, [0, 0]).unwrap();
    let filter = reply_filter(1 << 12);
    ballast(table);

    let text =
        "{node: {name: here, ips: [10.0.0.1, 'fd00::1']}, clusterCIDRs: [10.1.0.0/16, 'fd00:1::/64'], snat: {addresses: [10.0.0.1]}}";
    let settings = Config::parse(text, std::path::Path::new("test")).unwrap().settings(&[]);
    let mut compiler = Compiler::new(TARGETS_MAX);
    let mut tables = |endpoints: u64, before: &Serving| {
        let index = objects(endpoints);
        Arc::new((compiler.compile(&index, &settings).services, replay::serving(&index, before, &mut BTreeSet::new())))
    };
    let mut reconciler = Reconciler::start(table, filter).unwrap();
    let mut latest = tables(255, &Serving::default());
    let published = PublishedTables {
        current: Mutex::new((1, latest.clone())),
        applied: [const { AtomicU64::new(0) }; WORKERS as usize],
        stop: AtomicBool::new(false),
    };
    reconciler.follow(&latest.1);

    let (mut looked_at, mut random) = (0, 42);
    let sent: u64 = std::thread::scope(|scope| {
        let published = &published;
        let _stop = StopOnDrop(published);
        let workers: Vec<_> = (0..WORKERS).map(|n| scope.spawn(move || work(n, published, table, filter))).collect();
        for round in 2..ROUNDS {
            let next = tables(1 + splitmix64(&mut random) % 255, &latest.1);
            // Sometimes interrupt the previous walk.
            let patient = round % 3 == 0;
            latest = next;
            reconciler.hold();
            *published.current.lock().unwrap() = (round, latest.clone());
            if workers.iter().any(std::thread::ScopedJoinHandle::is_finished) {
                break;
            }
            wait("the workers", || {
                published.applied.iter().all(|a| a.load(SeqCst) >= round) || workers.iter().any(std::thread::ScopedJoinHandle::is_finished)
            });
            reconciler.follow(&latest.1);
            if patient {
                let rule = latest.1.rule();
                let mut stale = || {
                    let mut stale = 0;
                    table.for_each(|_, flow| {
                        stale += u64::from(!rule.keeps(flow));
                        looked_at += 1;
                    });
                    stale
                };
                wait("what has to go", || stale() == 0);
                assert_eq!(stale(), 0, "round {round}: opened again");
            }
        }
        published.stop.store(true, SeqCst);
        workers.into_iter().map(|w| w.join().unwrap()).sum()
    });
    let done = reconciler.done();
    drop(reconciler);
    println!("{sent} packets, {} walks that ended {:?} connections, {looked_at} looked at afterwards", done.walks, done.ended);
    assert!(done.ended.iter().all(|n| *n > 100) && done.walks > 30 && looked_at > u64::from(BALLAST));

    // The remaining connections end once, and no entry is left.
    table.for_each(|hit, _| assert!(end_connection(table, Some(filter), hit) && !end_connection(table, Some(filter), hit)));
    assert_eq!(
        (
            table.live(),
            filter.len(),
            table.snat_ports().in_use(),
            table.snat_ports().largest_shares().service,
            table.snat_ports().fullest_endpoint()
        ),
        (0, 0, 0, 0, 0)
    );
}
