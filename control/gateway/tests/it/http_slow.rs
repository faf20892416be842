//! Slow clients: whatever they do with their connections, and however many there are, other clients are answered at once. The last tests need
//! root.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use nomagic::observe::health::Moment;
use nomagic::observe::http::Server;
use nomagic::observe::metrics::gateway::Sample;
use nomagic_api::Target;
use nomagic_testbed::rig::{Netns, Scene};

use crate::common::plain_http::{get, get_from, request};
use crate::common::prometheus::Page;
use crate::common::slow_clients::{ALL, Slow, SlowClients};
use crate::common::*;
use crate::http::{sample, scrape, server, tokio_runtime};

/// Time limit for a normal client, and the number of probes in a row. Three failures in a row restart a gateway.
const PATIENCE: Duration = Duration::from_secs(2);
const PROBES: usize = 6;
/// Maximum concurrent connections to the health server of this node, of other hosts, and of one other address.
const NODE_MAX: f64 = 64.0;
const OTHERS_MAX: f64 = 256.0;
const ADDRESS_MAX: f64 = 64.0;

/// Sends requests one after another and checks that each response arrives in time.
fn probe(what: &str, mut ask: impl FnMut() -> Option<u16>) {
    let mut slowest = Duration::ZERO;
    for n in 1..=PROBES {
        let start = Instant::now();
        let status = ask();
        let took = start.elapsed();
        slowest = slowest.max(took);
        assert!(status == Some(200) && took < PATIENCE, "{what}: probe {n} of {PROBES}: {status:?} after {took:?}");
        std::thread::sleep(Duration::from_millis(200));
    }
    println!("{what}: {PROBES} probes, the slowest after {slowest:?}");
}

#[test]
fn slow_clients_of_every_kind_delay_no_other_client() {
    let _cpus = CpuLock::take();
    let (mut server, health, metrics) = server(20, "");
    server.in_force(Moment::now(), Default::default());
    for kind in ALL {
        // Even from the normal client's own address.
        let slow = SlowClients::start(None, health, 1_000, &[kind], &[]);
        slow.wait_for(1_000);
        probe(&format!("1,000 x {kind:?}"), || get(health, "/livez").ok().map(|answer| answer.status));
    }
    // All kinds from many addresses.
    let sources: Vec<IpAddr> = (1..=200).map(|n| [127, 9, 9, n].into()).collect();
    let slow = SlowClients::start(None, health, 1_000, &ALL, &sources);
    slow.wait_for(1_000);
    probe("1,000 of 200 addresses", || get(health, "/livez").ok().map(|answer| answer.status));
    let page = scrape(&mut server, metrics, sample());
    let labels = [("server", "health"), ("peers", "node")];
    assert!(page.value("nomagic_server_connections", &labels) <= NODE_MAX);
    let accepted = page.value("nomagic_server_connections_accepted_total", &labels);
    assert!(accepted >= 9_000.0, "{accepted}");
    let cut = |reason| page.value("nomagic_server_connections_cut_total", &[labels[0], labels[1], ("reason", reason)]);
    assert!(cut("displaced") >= 5_000.0, "{}", cut("displaced"));
    assert_eq!(cut("refused"), 0.0);
    drop(slow);
}

#[test]
fn a_slow_head_ends_after_a_second() {
    let (mut server, health, metrics) = server(21, "");
    // Too few to displace each other.
    for kind in [Slow::Silent, Slow::OneByte, Slow::HeadLines] {
        let slow = SlowClients::start(None, health, 10, &[kind], &[]);
        std::thread::sleep(Duration::from_millis(3_600));
        let connected = slow.connected();
        assert!((30..=40).contains(&connected), "{kind:?}: 10 connections a second or so: {connected}");
    }
    let page = scrape(&mut server, metrics, sample());
    let cut = |reason| page.value("nomagic_server_connections_cut_total", &[("server", "health"), ("peers", "node"), ("reason", reason)]);
    assert!(cut("timed_out") >= 60.0 && cut("displaced") == 0.0, "{} {}", cut("timed_out"), cut("displaced"));
}

/// Answers `/metrics` from another thread, for as long as the test runs.
fn play_control_loop(mut server: Server, page: impl Fn() -> Sample + Send + 'static) {
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            while let Some(scrape) = server.next_scrape().await {
                let _ = scrape.send(page());
            }
        });
    });
}

#[test]
fn readers_of_a_long_page_are_bounded_in_time_and_in_number() {
    let _cpus = CpuLock::take();
    let (server, _, metrics) = server(22, "");
    play_control_loop(server, || {
        let mut long = sample();
        let target = |n: usize| Target { service: format!("s{n:0500}"), ..long.status.targets[0].clone() };
        long.status.targets = (0..800).map(target).collect();
        long
    });
    let length = get(metrics, "/metrics").unwrap().body.len();
    assert!(length > 2 << 20, "longer than what kernels keep: {length}");
    let page = || prometheus::parse(&get(metrics, "/metrics").unwrap().body);
    let labels = [("server", "metrics"), ("peers", "node")];
    let cut = |page: &Page, reason| page.value("nomagic_server_connections_cut_total", &[labels[0], labels[1], ("reason", reason)]);
    // A few keep their connections for ten seconds.
    let start = Instant::now();
    let few = SlowClients::start(None, metrics, 4, &[Slow::NoReading("/metrics"), Slow::OneByteRead("/metrics")], &[]);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(page().value("nomagic_server_connections", &labels), 5.0, "they and this scrape");
    while cut(&page(), "timed_out") < 4.0 {
        assert!(start.elapsed() < Duration::from_secs(14), "given up after ten seconds");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(start.elapsed() > Duration::from_secs(9), "{:?}", start.elapsed());
    drop(few);
    // Many displace each other, but do not displace a client with another address.
    let sources = [[127, 9, 8, 1].into(), [127, 9, 8, 2].into()];
    let many = SlowClients::start(None, metrics, 300, &[Slow::NoReading("/metrics"), Slow::OneByteRead("/metrics")], &sources);
    many.wait_for(300);
    probe("300 that do not read /metrics", || get(metrics, "/metrics").ok().map(|answer| answer.status));
    let last = page();
    assert!(cut(&last, "displaced") > 100.0, "{}", cut(&last, "displaced"));
    assert!(last.value("nomagic_server_connections", &labels) <= NODE_MAX);
    drop(many);
}

/// Prometheus requests to keep the connection; the response says that it ends.
#[test]
fn a_response_to_keep_alive_says_that_the_connection_ends() {
    let (server, _, metrics) = server(23, "");
    play_control_loop(server, sample);
    for _ in 0..3 {
        let answer = request(metrics, "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\n\r\n").unwrap();
        assert_eq!((answer.status, answer.headers["connection"].as_str()), (200, "close"));
        assert_eq!(answer.headers["content-length"], answer.body.len().to_string());
        prometheus::parse(&answer.body);
    }
    let answer = request(metrics, "GET /proxyMode HTTP/1.0\r\n\r\n").unwrap();
    assert_eq!((answer.status, answer.body.as_str()), (200, "nftables"));
}

#[test]
fn scrapes_time_out_if_the_control_loop_does_not_answer() {
    let (mut server, _, metrics) = server(10, "");
    let start = Instant::now();
    let clients: Vec<_> = (0..6).map(|_| std::thread::spawn(move || get(metrics, "/metrics").unwrap())).collect();
    let answers: Vec<_> = clients.into_iter().map(|c| c.join().unwrap()).collect();
    assert!(answers.iter().all(|a| a.status == 503 && a.body == "the control loop does not answer\n"), "{answers:?}");
    assert!(start.elapsed() < Duration::from_secs(9));
    // Scrapes that have timed out are not passed to the control loop.
    let (client, runtime) = (std::thread::spawn(move || get(metrics, "/metrics").unwrap()), tokio_runtime());
    runtime.block_on(server.next_scrape()).unwrap().send(sample()).unwrap();
    assert_eq!(client.join().unwrap().status, 200);
    drop(server);
}

/// Endless scrapes take neither the control loop's time nor the turn of other clients.
#[test]
fn concurrent_scrapes_share_a_page_and_pages_are_limited() {
    let _cpus = CpuLock::take();
    let (mut server, _, metrics) = server(11, "");
    let start = Instant::now();
    let clients: Vec<_> = (0..10)
        .map(|_| {
            std::thread::spawn(move || {
                let mut answers = 0_u64;
                while start.elapsed() < Duration::from_secs(3) {
                    assert_eq!(get(metrics, "/metrics").unwrap().status, 200);
                    answers += 1;
                }
                answers
            })
        })
        .collect();
    let mut samples = 0;
    tokio_runtime().block_on(async {
        while let Ok(scrape) = tokio::time::timeout(Duration::from_secs(1), server.next_scrape()).await {
            samples += 1;
            scrape.unwrap().send(sample()).unwrap();
        }
    });
    let answers: u64 = clients.into_iter().map(|c| c.join().unwrap()).sum();
    println!("{answers} scrapes, {samples} samples");
    assert!(answers > 200, "{answers}");
    assert!((30..=60).contains(&samples), "20 at once and 10 a second: {samples}");
}

const NODE_PORT: u16 = 31_999;
const CHECKED: &str = "
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec:
  type: LoadBalancer
  clusterIP: 10.109.35.40
  externalTrafficPolicy: Local
  healthCheckNodePort: 31999
  ports: [{name: http, port: 80}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: default, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints: [{addresses: ['192.168.235.129'], nodeName: gw}]
ports: [{name: http, port: 80}]
";

/// A gateway; its client has several addresses.
fn gateway(tag: &str) -> Gateway {
    let scene = Scene::new(tag).expect("a scene (needs root)");
    for address in ["10.0.0.7/24", "10.0.0.9/24"] {
        scene.client.ip(&format!("addr add {address} dev eth0")).unwrap();
    }
    for n in 10..20 {
        scene.client.ip(&format!("addr add fd00:a::{n}/64 dev eth0 nodad")).unwrap();
    }
    Gateway::start_in(scene, "", &(nginx(&[0, 1]) + CHECKED))
}

fn status_of(netns: &Netns, at: &str, source: Option<&str>, path: &'static str) -> Option<u16> {
    let at: SocketAddr = at.parse().unwrap();
    let source = source.map(|source| source.parse().unwrap());
    netns.run(move || get_from(source, at, path)).unwrap().ok().map(|answer| answer.status)
}

fn metrics(g: &Gateway) -> Page {
    let at = SocketAddr::from(([127, 0, 0, 1], 10_249));
    prometheus::parse(&g.scene.gw.run(move || get(at, "/metrics")).unwrap().unwrap().body)
}

#[test]
fn a_thousand_slow_connections_from_outside_starve_no_health_check() {
    let g = gateway("slow");
    let sources: Vec<IpAddr> = ["10.0.0.2", "10.0.0.7"].map(|a| a.parse().unwrap()).into();
    for count in [150, 1_000] {
        let slow = SlowClients::start(Some(&g.scene.client), "10.0.0.1:10256".parse().unwrap(), count, &ALL, &sources);
        slow.wait_for(count as u64);
        // The kubelet uses the node's address.
        for at in ["10.0.0.1:10256", "127.0.0.1:10256"] {
            probe(&format!("{count} slow, /livez on {at}"), || status_of(&g.scene.gw, at, None, "/livez"));
        }
        probe(&format!("{count} slow, /healthz for another host"), || {
            status_of(&g.scene.client, "10.0.0.1:10256", Some("10.0.0.9"), "/healthz")
        });
        drop(slow);
        let at = format!("10.0.0.1:{NODE_PORT}");
        let slow = SlowClients::start(Some(&g.scene.client), at.parse().unwrap(), count, &ALL, &sources);
        slow.wait_for(count as u64);
        probe(&format!("{count} slow, healthCheckNodePort"), || status_of(&g.scene.client, &at, Some("10.0.0.9"), "/"));
        probe(&format!("{count} slow, healthCheckNodePort from the node"), || status_of(&g.scene.gw, &at, None, "/"));
    }
    let page = metrics(&g);
    for server in ["health", "health_check_node_port"] {
        let of =
            |peers, reason| page.value("nomagic_server_connections_cut_total", &[("server", server), ("peers", peers), ("reason", reason)]);
        assert!(of("others", "displaced") > 1_000.0, "{server}: {}", of("others", "displaced"));
        assert_eq!([of("node", "displaced"), of("node", "timed_out")], [0.0; 2], "{server}");
        assert!(page.value("nomagic_server_connections", &[("server", server), ("peers", "others")]) <= OTHERS_MAX);
    }
}

#[test]
fn one_address_or_ipv6_prefix_has_a_part_of_the_connections() {
    let g = gateway("slow6");
    let sources: Vec<IpAddr> = (10..20).map(|n| format!("fd00:a::{n}").parse().unwrap()).collect();
    let at = format!("[fd00:a::1]:{NODE_PORT}").parse().unwrap();
    let _slow = SlowClients::start(Some(&g.scene.client), at, 500, &[Slow::Silent], &sources);
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(100));
        let page = metrics(&g);
        let connections = page.value("nomagic_server_connections", &[("server", "health_check_node_port"), ("peers", "others")]);
        assert!(connections <= ADDRESS_MAX, "{connections}");
    }
}

/// Without a free descriptor no connection can be accepted, so slow connections are ended to free theirs.
#[test]
fn slow_connections_are_ended_when_no_descriptor_is_free() {
    let g = gateway("slowfd");
    let pid = g.process.pid();
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    // Descriptors are numbered from the lowest free one on.
    let limit = open + 40;
    nomagic_testbed::rig::run("prlimit", &["--pid", &pid.to_string(), &format!("--nofile={limit}:")]).expect("prlimit");
    let sources: Vec<IpAddr> = ["10.0.0.2", "10.0.0.7"].map(|a| a.parse().unwrap()).into();
    let slow = SlowClients::start(Some(&g.scene.client), "10.0.0.1:10256".parse().unwrap(), 200, &[Slow::Silent], &sources);
    slow.wait_for(50);
    probe("out of descriptors, /livez on the node", || status_of(&g.scene.gw, "10.0.0.1:10256", None, "/livez"));
    probe("out of descriptors, healthCheckNodePort", || {
        status_of(&g.scene.client, &format!("10.0.0.1:{NODE_PORT}"), Some("10.0.0.9"), "/")
    });
    // A scrape reads files: it needs descriptors of its own, which are free again when the slow clients are gone.
    drop(slow);
    let open_files = || std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    wait_for("the connections to end", Duration::from_secs(15), || open_files() <= open + 2);
    assert!(metrics(&g).value("nomagic_server_accept_failures_total", &[("server", "health")]) > 0.0);
}
