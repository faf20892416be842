//! A gateway under continuous traffic while its objects change at the API server, and while that server has faults: no connection to an
//! unchanged Service fails, none reaches a removed endpoint, and all new objects work.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use nomagic_core::reason::Reason;
use nomagic_fake_apiserver::{End, FakeApiServer, Gone, Resource, Streaming};
use nomagic_testbed::rig::PODS;
use serde_json::{Value, json};

use crate::common::api_gateway::*;
use crate::common::{Gateway, wait_for};

/// The clients are in the "pod ranges" and keep their addresses; the pods as clients are not and take SNAT.
const CONFIG: &str = "clusterCIDRs: [10.0.0.0/24, 'fd00:a::/64']\nnodePortAddresses: []";
const STEADY_V4: &str = "10.109.0.1";
const STEADY_V6: &str = "[fd00:10:109::1]";
const CHANGED: &str = "10.109.0.2";
const OTHER: &str = "10.109.0.3:80";

fn ports() -> Value {
    json!([{"name": "http", "port": 80}, {"name": "echo", "port": 53, "protocol": "UDP"}])
}

fn dual_stack(name: &str, last: u8) -> Value {
    let ips = [format!("10.109.0.{last}"), format!("fd00:10:109::{last}")];
    service(name, json!({"clusterIP": ips[0], "clusterIPs": ips, "ports": ports()}))
}

fn put(api: &FakeApiServer, object: Value) {
    api.put(object).expect("an object that the server takes");
}

fn put_pods(api: &FakeApiServer, service: &str, pods: &[usize]) {
    slices(service, pods).into_iter().for_each(|s| put(api, s));
}

fn node(zone: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "gw", "labels": {"topology.kubernetes.io/zone": zone}}})
}

fn range(name: &str, cidrs: &[&str]) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": name}, "spec": {"cidrs": cidrs}})
}

fn first_objects(api: &FakeApiServer) {
    put(api, node("a"));
    put(api, range("kubernetes", &["10.96.0.0/12", "fd00:10:109::/64"]));
    for (name, last) in [("steady", 1), ("changed", 2)] {
        put(api, dual_stack(name, last));
        put_pods(api, name, &[0, 1, 2]);
    }
}

/// The period in which connections to the changed Service may reach only these pods.
struct Period {
    from: Instant,
    until: Option<Instant>,
    pods: BTreeSet<String>,
}

/// Reasons of frames that are rejected, or dropped silently on purpose.
const REFUSALS: [Reason; 5] =
    [Reason::NoEndpoints, Reason::NoLocalEndpoints, Reason::SourceRange, Reason::UnusedServicePort, Reason::UnallocatedServiceAddress];

/// The gateway's counters of frames not forwarded. Any other loss is the kernel's or the rig's.
struct Losses {
    /// Rejected or dropped on purpose.
    refused: u64,
    /// Lost, by place.
    lost: BTreeMap<String, u64>,
}

impl Losses {
    fn read(g: &Gateway) -> Losses {
        let status = g.status();
        let counts = &status.totals.counts;
        let refused = REFUSALS.iter().map(|r| counts.reasons.drop[*r]).sum();
        let dropped = counts.frames.dropped.packets.checked_sub(refused);
        let mut lost = BTreeMap::from([("workers".to_owned(), dropped.expect("rejects count as drops"))]);
        for port in &status.ports {
            lost.insert(format!("{} XDP", port.name), port.xdp.dropped);
            for (s, socket) in port.sockets.iter().enumerate() {
                for (what, n) in [("rx_dropped", socket.rx_dropped), ("rx_ring_full", socket.rx_ring_full)] {
                    lost.insert(format!("{} socket {s} {what}", port.name), n);
                }
            }
        }
        Losses { refused, lost }
    }
}

/// A gateway under traffic.
struct TrafficTest {
    g: Gateway,
    api: FakeApiServer,
    steady: Vec<Load>,
    changed: Vec<Load>,
    periods: Vec<Period>,
}

impl TrafficTest {
    fn start(tag: &str) -> TrafficTest {
        let (g, api) = start(tag, CONFIG, first_objects);
        let (client, pod) = (&g.scene.client, &g.scene.pods[2]);
        let steady = vec![
            Load::start(client, false, &format!("{STEADY_V4}:80")),
            Load::start(client, false, &format!("{STEADY_V6}:80")),
            Load::start(client, true, &format!("{STEADY_V4}:53")),
            Load::start(client, true, &format!("{STEADY_V6}:53")),
            Load::start(pod, false, &format!("{STEADY_V4}:80")),
            Load::start(pod, true, &format!("{STEADY_V6}:53")),
        ];
        let changed = vec![Load::start(client, false, &format!("{CHANGED}:80")), Load::start(client, true, &format!("{CHANGED}:53"))];
        TrafficTest { g, api, steady, changed, periods: Vec::new() }
    }

    /// Waits until these are the changed Service's pods, and lets traffic run for a moment.
    fn only(&mut self, pods: &[usize]) {
        wait_for_pods(&self.g, "changed", pods);
        let pods = pods.iter().map(|&p| PODS[p].name.to_owned()).collect();
        self.periods.push(Period { from: Instant::now(), until: None, pods });
        std::thread::sleep(Duration::from_millis(150));
    }

    /// The pods are about to change.
    fn before(&mut self) {
        if let Some(last) = self.periods.last_mut() {
            last.until.get_or_insert(Instant::now());
        }
    }

    fn set_pods(&mut self, pods: &[usize]) {
        self.before();
        put_pods(&self.api, "changed", pods);
    }

    /// Ends the traffic and checks every connection.
    fn finish(self) {
        let (mut tries, mut slow) = (0, 0);
        let account = || self.g.account();
        for load in self.steady {
            let (what, all) = load.finish();
            let failed: Vec<_> = all.iter().filter(|t| !matches!(t.seen, AttemptOutcome::Pod(_))).collect();
            println!("{what}: {} connections, {} failed", all.len(), failed.len());
            assert!(failed.is_empty(), "{what}: {failed:?}\n{}", account());
            assert!(all.len() > 100, "{what}: only {}\n{}", all.len(), account());
            slow += all.iter().filter(|t| t.end - t.start > Duration::from_millis(900)).count();
            tries += all.len();
        }
        let Losses { refused, lost } = Losses::read(&self.g);
        println!("{slow} of them took long enough for a datagram to be sent again; refused: {refused}, lost by the gateway: {lost:?}");
        println!("{}", account());
        assert!(slow <= 5 + tries / 2_000, "{slow} of {tries}\n{}", account());
        assert!(
            slow == 0 || lost.values().all(|n| *n == 0),
            "{slow} were answered late, and it was the gateway that lost something: {lost:?}\n{}",
            account()
        );
        assert!(refused > 0, "connections to deleted Services were refused\n{}", account());
        let (mut confined, mut per_pod) = (0, BTreeMap::<String, u32>::new());
        for load in self.changed {
            let (what, all) = load.finish();
            for t in &all {
                let AttemptOutcome::Pod(pod) = &t.seen else {
                    panic!("{what}: {t:?}: all its pods live, whatever the slices say\n{}", account())
                };
                *per_pod.entry(pod.clone()).or_default() += 1;
                for p in self.periods.iter().filter(|p| t.start >= p.from && p.until.is_none_or(|until| t.end <= until)) {
                    assert!(p.pods.contains(pod), "{what}: {pod} answered while the endpoints in force were {:?}", p.pods);
                    confined += 1;
                }
            }
            tries += all.len();
        }
        println!("{tries} connections in all; {confined} to the changed Service in {} steady periods: {per_pod:?}", self.periods.len());
        assert!(confined > 100 && per_pod.len() == 3, "{confined} {per_pod:?}");
        self.g.assert_accounts_close();
        assert_eq!(self.g.status().services.problems, [] as [String; 0]);
    }
}

/// Removes and adds endpoints one by one, by their presence in the slice or by their condition.
fn endpoints_up_and_down(t: &mut TrafficTest) {
    for pods in [&[0, 1][..], &[0], &[1], &[1, 2], &[2], &[0, 2], &[0, 1, 2]] {
        t.set_pods(pods);
        t.only(pods);
    }
    for ready in [&[1, 2][..], &[2], &[0, 1, 2]] {
        t.before();
        for v6 in [false, true] {
            let endpoints = (0..3).map(|p| endpoint(p, v6, ready.contains(&p))).collect();
            put(&t.api, slice("changed", v6, endpoints));
        }
        t.only(ready);
    }
}

/// Creates and deletes a Service repeatedly, each time with another address.
fn created_deleted_and_created_again(t: &TrafficTest) {
    for round in 0..3 {
        let addr = format!("10.109.1.{round}");
        put(&t.api, service("again", json!({"clusterIP": addr, "ports": ports()})));
        put_pods(&t.api, "again", &[round]);
        answered(&t.g, false, &format!("{addr}:80"));
        answered(&t.g, true, &format!("{addr}:53"));
        assert!(t.api.delete(Resource::Services, "default", "again"));
        assert_eq!(unanswered(&t.g, false, &format!("{addr}:80")), AttemptOutcome::Silent, "an unallocated address of a service range");
    }
}

fn types_and_ports_change(t: &TrafficTest) {
    let (node_port, balancer) = ("10.0.0.1:30080", "198.51.100.9:80");
    let spec = |kind: &str, port: u16, node_port: Option<u16>| {
        let mut spec = json!({"type": kind, "clusterIP": "10.109.0.3", "ports": [{"name": "http", "port": port}]});
        if let Some(n) = node_port {
            spec["ports"][0]["nodePort"] = json!(n);
        }
        service("other", spec)
    };
    put_pods(&t.api, "other", &[0, 1]);
    put(&t.api, spec("ClusterIP", 80, None));
    answered(&t.g, false, OTHER);
    unanswered(&t.g, false, node_port);
    put(&t.api, spec("NodePort", 80, Some(30_080)));
    answered(&t.g, false, node_port);
    answered(&t.g, false, OTHER);
    let mut balanced = spec("LoadBalancer", 80, Some(30_080));
    balanced["status"] = json!({"loadBalancer": {"ingress": [{"ip": "198.51.100.9"}]}});
    put(&t.api, balanced);
    for to in [balancer, node_port, OTHER] {
        answered(&t.g, false, to);
    }
    put(&t.api, spec("NodePort", 80, Some(30_081)));
    unanswered(&t.g, false, balancer);
    unanswered(&t.g, false, node_port);
    answered(&t.g, false, "10.0.0.1:30081");
    put(&t.api, spec("ClusterIP", 8080, None));
    unanswered(&t.g, false, "10.0.0.1:30081");
    answered(&t.g, false, "10.109.0.3:8080");
    assert_eq!(unanswered(&t.g, false, OTHER), AttemptOutcome::Refused, "a port that the cluster IP no longer has");
    put(&t.api, service("other", json!({"type": "ExternalName", "externalName": "other.example"})));
    unanswered(&t.g, false, "10.109.0.3:8080");
    put(&t.api, spec("ClusterIP", 80, None));
    answered(&t.g, false, OTHER);
}

fn labels_change(t: &TrafficTest) {
    let plain = service("other", json!({"clusterIP": "10.109.0.3", "ports": ports()}));
    let mut others = plain.clone();
    others["metadata"]["labels"] = json!({"service.kubernetes.io/service-proxy-name": "another"});
    for _ in 0..2 {
        put(&t.api, others.clone());
        unanswered(&t.g, false, OTHER);
        put(&t.api, plain.clone());
        answered(&t.g, false, OTHER);
        for mut slice in slices("other", &[0, 1]) {
            slice["metadata"]["labels"]["service.kubernetes.io/headless"] = json!("");
            put(&t.api, slice);
        }
        assert_eq!(unanswered(&t.g, false, OTHER), AttemptOutcome::Refused, "no slice, no endpoint");
        put_pods(&t.api, "other", &[0, 1]);
        answered(&t.g, false, OTHER);
    }
}

fn the_node_moves_and_a_range_is_added(t: &mut TrafficTest) {
    t.before();
    for v6 in [false, true] {
        let hinted = |p: usize, zone: &str| {
            let mut e = endpoint(p, v6, true);
            e["hints"] = json!({"forZones": [{"name": zone}]});
            e
        };
        put(&t.api, slice("changed", v6, vec![hinted(0, "a"), hinted(1, "b"), hinted(2, "b")]));
    }
    t.only(&[0]);
    for (zone, pods) in [("b", &[1, 2][..]), ("c", &[0, 1, 2]), ("a", &[0])] {
        t.before();
        put(&t.api, node(zone));
        t.only(pods);
    }
    t.set_pods(&[0, 1, 2]);
    t.only(&[0, 1, 2]);

    // By the counter: the kernel, which has no route, tells one client so five times and is then silent for a while, too.
    let dropped = |t: &TrafficTest| {
        let answer = seen(&t.g, false, "10.200.0.9:80", Duration::from_millis(200));
        (t.g.reason(Reason::UnallocatedServiceAddress), answer)
    };
    let before = t.g.reason(Reason::UnallocatedServiceAddress);
    assert_eq!(dropped(t).0, before, "not a Service address: {}", t.g.account());
    put(&t.api, range("more", &["10.200.0.0/16"]));
    wait_for("the new range", IN_FORCE, || dropped(t).0 > before);
    assert_eq!(dropped(t).1, AttemptOutcome::Silent, "{}", t.g.account());
    put(&t.api, service("ranged", json!({"clusterIP": "10.200.0.1", "ports": ports()})));
    put_pods(&t.api, "ranged", &[1]);
    answered(&t.g, false, "10.200.0.1:80");
}

/// The API server's faults during changes.
const FAULTS: [&str; 7] = ["away", "compacted", "compacted, HTTP 410", "silent", "no streaming lists", "errors", "garbage"];

fn begin_fault(api: &mut FakeApiServer, fault: &str) {
    match fault {
        "away" => api.stop(),
        "compacted" | "compacted, HTTP 410" => {
            api.set_gone(if fault == "compacted" { Gone::InStream } else { Gone::Status });
            api.set_silent(true);
            api.end_watches(End::Cut);
        }
        "silent" => api.set_silent(true),
        "no streaming lists" => {
            api.set_streaming(Streaming::ErrorInStream);
            api.compact();
            api.end_watches(End::Cut);
        }
        "errors" => {
            api.fail_next(12, 500);
            api.end_watches(End::Orderly);
        }
        _ => api.send_garbage("{\"type\": \"ADDED\", \"object\": {\"kind\""),
    }
}

fn end_fault(t: &mut TrafficTest, fault: &str) {
    match fault {
        "away" => t.g.scene.gw.run(|| t.api.resume()).unwrap().unwrap(),
        "compacted" | "compacted, HTTP 410" => {
            t.api.compact();
            t.api.set_silent(false);
        }
        "silent" => t.api.set_silent(false),
        "no streaming lists" => t.api.set_streaming(Streaming::Served),
        _ => {}
    }
}

/// Changes endpoints, creates and deletes Services while the server has a fault; once it recovers, all changes come into force.
fn changes_during_faults(t: &mut TrafficTest) {
    for (i, fault) in FAULTS.into_iter().enumerate() {
        let (start, pods) = (Instant::now(), [i % 3, (i + 1) % 3]);
        begin_fault(&mut t.api, fault);
        t.set_pods(&pods);
        put(&t.api, service(&format!("during-{i}"), json!({"clusterIP": format!("10.109.2.{i}"), "ports": ports()})));
        put_pods(&t.api, &format!("during-{i}"), &[i % 3]);
        if i > 0 {
            assert!(t.api.delete(Resource::Services, "default", &format!("during-{}", i - 1)));
        }
        std::thread::sleep(Duration::from_millis(500));
        end_fault(t, fault);
        t.only(&pods);
        answered(&t.g, false, &format!("10.109.2.{i}:80"));
        if i > 0 {
            assert_eq!(unanswered(&t.g, false, &format!("10.109.2.{}:80", i - 1)), AttemptOutcome::Silent);
        }
        println!("{fault}: all changes in force after {:.1} s", start.elapsed().as_secs_f32());
        // A watch this old resets the backoff.
        std::thread::sleep(Duration::from_millis(5_200));
    }
}

#[test]
fn objects_change_under_traffic() {
    let mut t = TrafficTest::start("apichg");
    endpoints_up_and_down(&mut t);
    created_deleted_and_created_again(&t);
    types_and_ports_change(&t);
    labels_change(&t);
    the_node_moves_and_a_range_is_added(&mut t);
    t.finish();
}

#[test]
fn the_api_server_fails_under_traffic() {
    let mut t = TrafficTest::start("apiflt");
    changes_during_faults(&mut t);
    t.finish();
}
