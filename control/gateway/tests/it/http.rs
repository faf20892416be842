//! The HTTP servers over real sockets on loopback: health, metrics, and kube-proxy's cases of `healthCheckNodePort`.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use nomagic::config::Config;
use nomagic::connections::Counts;
use nomagic::manifests;
use nomagic::observe::events::Recorder;
use nomagic::observe::health::Moment;
use nomagic::observe::http::{Listeners, Server, addresses};
use nomagic::observe::metrics::gateway::Sample;
use nomagic::observe::metrics::reconciler::Reconciled;
use nomagic::observe::metrics::servers::ServerCounts;
use nomagic_api::{Carried, Conntrack, Replies, Services, Snat, Status, Table, Target, Totals, Worker, WorkerLatency};
use nomagic_core::conntrack::EvictionRank;
use nomagic_core::counters::{FrameCounts, SendError, Volume, WorkerCounts, XdpCounts};
use nomagic_core::reason::{Disposition, Reason};
use nomagic_table::changes::Changes;
use nomagic_table::compile::{Compiled, Compiler, TARGETS_MAX};
use nomagic_table::index::Index;
use nomagic_table::objects::NamespacedName;
use nomagic_table::settings::Settings;
use serde_json::{Value, json};

use crate::common::plain_http::{get, request};
use crate::common::prometheus;

/// A loopback address of this process, because tests run concurrently.
fn own_address(last: u8) -> IpAddr {
    let [.., high, low] = std::process::id().to_be_bytes();
    [127, 64 | (high & 63), low.max(1), last].into()
}

/// A server; `extra`: configuration.
pub fn server(last: u8, extra: &str) -> (Server, SocketAddr, SocketAddr) {
    let ip = own_address(last);
    let text = format!("healthzBindAddress: {ip}\nmetricsBindAddress: {ip}\n{extra}");
    let config = Config::parse(&text, Path::new("nomagic.yaml")).unwrap();
    let server = Server::start(Listeners::open(&config, &Recorder::off()).unwrap(), Recorder::off()).unwrap();
    (server, SocketAddr::new(ip, 10_256), SocketAddr::new(ip, 10_249))
}

fn cases() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/cases/kubeproxy-stateful.yaml");
    serde_saphyr::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// The defaults' configuration with a case's node.
fn settings(file: &Value, case: &Value) -> Settings {
    let mut config = file["defaults"]["config"].clone();
    config["node"]["name"] = case["node"]["name"].clone();
    Config::parse(&config.to_string(), Path::new("case")).unwrap().settings(&[])
}

fn compile(objects: &Value, settings: &Settings) -> Compiled {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("objects.yaml");
    std::fs::write(&file, json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string()).unwrap();
    let loaded = manifests::load(&file, None).unwrap();
    assert!(loaded.problems.is_empty(), "{:?}", loaded.problems);
    Compiler::new(TARGETS_MAX).compile(&Index::of(loaded.objects), settings)
}

fn refused(at: SocketAddr) -> bool {
    let end = Instant::now() + Duration::from_secs(2);
    while Instant::now() < end {
        if TcpStream::connect(at).is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused) {
            return true;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    false
}

#[test]
fn health_check_cases() {
    let (file, ip) = (cases(), own_address(1));
    let (mut server, ..) = server(1, "");
    let mut probes = 0;
    for case in file["healthCheckCases"].as_array().unwrap() {
        let settings = settings(&file, case);
        for (number, step) in case["steps"].as_array().unwrap().iter().enumerate() {
            let names = compile(&step["objects"], &settings);
            server.in_force(Moment::now(), names.no_local_endpoints);
            server.follow_checks(&names.health_checks, &BTreeSet::from([ip]));
            assert!(server.problems().is_empty(), "{:?}", server.problems());
            if step["proxyHealthy"] == false {
                let now = Moment::now();
                let steady = now.steady.checked_sub(Duration::from_secs(61)).expect("a machine that runs for a minute");
                server.queued(&Changes::default(), Moment { steady, ..now });
            }
            for probe in step["probes"].as_array().unwrap() {
                let (at, expect) = (SocketAddr::new(ip, probe["port"].as_u64().unwrap() as u16), &probe["expect"]);
                let place = format!("{} step {number} port {}", case["id"], at.port());
                probes += 1;
                if expect["status"] == "refused" {
                    assert!(refused(at), "{place}");
                    continue;
                }
                let answer = get(at, "/any/path").unwrap();
                assert_eq!(json!(answer.status), expect["status"], "{place}");
                assert_eq!(serde_json::from_str::<Value>(&answer.body).unwrap(), expect["body"], "{place}");
                for (name, value) in expect["headers"].as_object().unwrap() {
                    assert_eq!(json!(answer.headers[&name.to_ascii_lowercase()]), *value, "{place} {name}");
                    assert!(answer.head.contains(&format!("{name}: ")), "{name} as kube-proxy writes it: {}", answer.head);
                }
            }
        }
    }
    println!("healthCheckCases: {} cases with {probes} probes ran", file["healthCheckCases"].as_array().unwrap().len());
    assert!(probes >= 9, "{probes}");
}

#[test]
fn a_health_checks_body_equals_kube_proxys() {
    let ip = own_address(2);
    let (mut server, ..) = server(2, "");
    let check = nomagic_table::compile::HealthCheck {
        service: NamespacedName { namespace: "ns1".into(), name: "svc1".into() },
        local_endpoints: 2,
    };
    server.follow_checks(&[(30_000, check)].into(), &BTreeSet::from([ip]));
    let answer = request(SocketAddr::new(ip, 30_000), "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").unwrap();
    let body = "{\n\t\"service\": {\n\t\t\"namespace\": \"ns1\",\n\t\t\"name\": \"svc1\"\n\t},\n\t\"localEndpoints\": 2,\n\t\"serviceProxyHealthy\": true\n}";
    assert_eq!((answer.status, answer.body.as_str()), (200, body));
}

#[test]
fn a_port_in_use_affects_only_its_service() {
    let ip = own_address(3);
    let (mut server, ..) = server(3, "");
    let held = TcpListener::bind((ip, 30_007)).unwrap();
    let check = |name: &str| nomagic_table::compile::HealthCheck {
        service: NamespacedName { namespace: "n".into(), name: name.into() },
        local_endpoints: 1,
    };
    let wanted = [(30_006, check("a")), (30_007, check("b")), (30_008, check("c"))].into();
    let all = BTreeSet::from([ip]);
    server.follow_checks(&wanted, &all);
    let [problem] = server.problems() else { panic!("{:?}", server.problems()) };
    assert!(
        problem.starts_with(&format!("Service n/b: spec.healthCheckNodePort: cannot listen on {ip}:30007: Address already in use")),
        "{problem}"
    );
    assert_eq!([30_006, 30_008].map(|port| get(SocketAddr::new(ip, port), "/").unwrap().status), [200, 200]);
    drop(held);
    server.follow_checks(&wanted, &all);
    assert!(server.problems().is_empty(), "{:?}", server.problems());
    assert_eq!(get(SocketAddr::new(ip, 30_007), "/").unwrap().status, 200);
    server.follow_checks(&[].into(), &all);
    assert!([30_006, 30_007, 30_008].iter().all(|&port| refused(SocketAddr::new(ip, port))));
}

#[test]
fn health_checks_listen_on_the_node_ports_addresses() {
    let settings = |text: &str| {
        let node = "node: {ips: [10.0.0.1, 192.168.0.1, 'fd00::1'], primaryIPs: [10.0.0.1, 'fd00::1']}";
        Config::parse(&format!("{node}\n{text}"), Path::new("c")).unwrap().settings(&[])
    };
    let listen = |text: &str| addresses(&settings(text)).iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(listen(""), ["10.0.0.1", "fd00::1"]);
    assert_eq!(listen("nodePortAddresses: []"), ["0.0.0.0", "::"]);
    assert_eq!(listen("nodePortAddresses: [192.168.0.0/16]"), ["192.168.0.1", "::"]);
    assert_eq!(listen("nodePortAddresses: ['fd00::/16', 10.0.0.0/8]"), ["10.0.0.1", "fd00::1"]);
}

#[test]
fn both_families_unrestricted_are_two_sockets() {
    let (mut server, ..) = server(4, "");
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let check =
        nomagic_table::compile::HealthCheck { service: NamespacedName { namespace: "n".into(), name: "a".into() }, local_endpoints: 0 };
    server.follow_checks(&[(free, check)].into(), &["0.0.0.0", "::"].map(|a| a.parse().unwrap()).into());
    assert!(server.problems().is_empty(), "{:?}", server.problems());
    assert_eq!(get(SocketAddr::from(([127, 0, 0, 1], free)), "/").unwrap().status, 503);
    if let Ok(answer) = get(SocketAddr::new("::1".parse().unwrap(), free), "/") {
        assert_eq!(answer.headers["x-load-balancing-endpoint-weight"], "0");
    }
}

#[test]
fn healthz_and_livez() {
    let (server, health, metrics) = server(5, "");
    let now = Moment::now();
    server.in_force(now, Default::default());
    let codes = || ["/healthz", "/livez"].map(|path| get(health, path).unwrap().status);
    assert_eq!(codes(), [200, 200]);
    server.set_node_eligible(false);
    assert_eq!(codes(), [503, 200]);
    server.set_node_eligible(true);
    server.queued(&Changes::default(), Moment { steady: now.steady.checked_sub(Duration::from_secs(60)).unwrap(), ..now });
    assert_eq!(codes(), [503, 503]);
    server.in_force(Moment::now(), Default::default());
    let answer = get(health, "/healthz").unwrap();
    assert_eq!(
        (answer.headers["content-type"].as_str(), answer.headers["x-content-type-options"].as_str()),
        ("application/json", "nosniff")
    );
    let body: Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!((&body["healthy"], &body["nodeEligible"], body["lastUpdated"] == body["currentTime"]), (&json!(true), &json!(true), true));
    assert_eq!(get(health, "/").unwrap().status, 404);
    let slis = prometheus::parse(&get(metrics, "/metrics/slis").unwrap().body);
    let total = |name, kind, status| slis.value("kubernetes_healthchecks_total", &[("name", name), ("type", kind), ("status", status)]);
    assert_eq!([total("sync-ipv4", "healthz", "success"), total("sync-ipv6", "livez", "error")], [3.0, 1.0]);
    assert_eq!([total("node-eligible", "healthz", "error"), slis.sum("kubernetes_healthcheck", &[("type", "healthz")])], [1.0, 3.0]);
}

#[test]
fn clients_are_bounded_in_number_time_and_size() {
    let (server, health, _) = server(6, "");
    let start = Instant::now();
    // More silent clients than the limit.
    let mut silent: Vec<TcpStream> = (0..80).map(|_| TcpStream::connect(health).unwrap()).collect();
    silent[79].write_all(b"GET /healthz HT").unwrap();
    let answer = get(health, "/healthz").unwrap();
    assert_eq!(answer.status, 200);
    assert!(start.elapsed() < Duration::from_secs(1), "a newcomer does not wait for slow clients: {:?}", start.elapsed());
    // The oldest connection was ended for it; the youngest may be silent for a second. Neither gets a response.
    for (n, times) in [(0, Duration::ZERO..Duration::from_secs(1)), (79, Duration::from_millis(900)..Duration::from_secs(4))] {
        silent[n].set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let ended = silent[n].read(&mut [0; 64]);
        assert!(matches!(&ended, Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset), "{n}: {ended:?}");
        assert!(times.contains(&start.elapsed()), "{n}: {:?}", start.elapsed());
    }
    // A request head without end.
    let endless = format!("GET /healthz HTTP/1.1\r\nX: {}\r\n\r\n", "y".repeat(100_000));
    assert!(request(health, &endless).map_or(true, |answer| answer.status >= 400));
    let headers: String = (0..200).map(|i| format!("H{i}: 1\r\n")).collect();
    assert!(request(health, &format!("GET /healthz HTTP/1.1\r\n{headers}\r\n")).map_or(true, |answer| answer.status >= 400));
    assert!(request(health, "\0\0\0 garbage\r\n\r\n").map_or(true, |answer| answer.status >= 400));
    assert_eq!(get(health, "/livez").unwrap().status, 200);
    drop(server);
    assert!(refused(health), "the servers end");
}

#[test]
fn an_address_in_use() {
    let ip = own_address(7);
    let held = TcpListener::bind((ip, 10_256)).unwrap();
    let text = format!("healthzBindAddress: {ip}\nmetricsBindAddress: ''\n");
    let parse = |extra: &str| Config::parse(&format!("{text}{extra}"), Path::new("c")).unwrap();
    let error = format!("{:#}", Listeners::open(&parse("bindAddressHardFail: true"), &Recorder::off()).unwrap_err());
    assert!(error.starts_with(&format!("healthzBindAddress: cannot serve /healthz on {ip}:10256: Address already in use")), "{error}");
    let server = Server::start(Listeners::open(&parse(""), &Recorder::off()).unwrap(), Recorder::off()).unwrap();
    drop(held);
    let end = Instant::now() + Duration::from_secs(15);
    while get(SocketAddr::new(ip, 10_256), "/livez").map_or(0, |a| a.status) != 200 {
        assert!(Instant::now() < end, "listened on once it is free");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(refused(SocketAddr::new(ip, 10_249)), "off");
    drop(server);
}

#[test]
fn metric_cases() {
    let (file, mut ran) = (cases(), 0);
    let (mut server, _, metrics) = server(8, "");
    for case in file["metricCases"].as_array().unwrap() {
        let names = compile(&case["objects"], &settings(&file, case));
        server.in_force(Moment::now(), names.no_local_endpoints);
        let page = scrape(&mut server, metrics, sample());
        for policy in ["internal", "external"] {
            let labels = [("ip_family", "IPv4"), ("traffic_policy", policy)];
            let value = page.value("kubeproxy_sync_proxy_rules_no_local_endpoints_total", &labels);
            assert_eq!(Some(value), case["expect"][policy].as_f64(), "{} {policy}", case["id"]);
        }
        ran += 1;
    }
    println!("metricCases: {ran} cases ran");
    assert!(ran >= 3);
}

/// Requests `/metrics` and, as the control loop, answers with a sample.
pub fn scrape(server: &mut Server, at: SocketAddr, sample: Sample) -> prometheus::Page {
    let client = std::thread::spawn(move || get(at, "/metrics").unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(server.next_scrape()).unwrap().send(sample).unwrap();
    let answer = client.join().unwrap();
    assert_eq!((answer.status, answer.headers["content-type"].as_str()), (200, "text/plain; version=0.0.4; charset=utf-8"));
    prometheus::parse(&answer.body)
}

/// A sample with one worker and hostile names.
pub fn sample() -> Sample {
    let volume = |packets| Volume { packets, bytes: packets * 100 };
    let mut counts = WorkerCounts::default();
    counts.frames = FrameCounts { received: volume(10), forwarded: volume(7), kernel: volume(1), dropped: volume(2), ..counts.frames };
    (counts.io.rounds, counts.io.sleeps, counts.sends.calls, counts.neighbours.asked) = (1 << 60, 3, 5, 1);
    (counts.conntrack.created, counts.conntrack.revived) = (2, 7);
    counts.conntrack.evicted[EvictionRank::Unconfirmed] = 5;
    counts.sends.errors[SendError::Busy] = 1;
    for reason in Reason::ALL {
        let n = reason.index() as u64;
        (counts.reasons.drop[*reason], counts.reasons.kernel[*reason], counts.reasons.handed[*reason]) = (n, 100 + n, 200 + n);
    }
    let latency = WorkerLatency { samples: 9, sum_ns: 90_000, within: vec![(1_000, 2), (4_000, 8)], ..WorkerLatency::default() };
    let table = |generation, applied| Table { generation, applied };
    let status = Status {
        ready: false,
        not_ready: vec!["not every worker uses the latest routes yet".into()],
        workers_alive: 1,
        totals: Totals { held_now: 0, counts: counts.clone() },
        workers: vec![Worker { id: 0, alive: true, heartbeat_age_ns: 2_500_000, held_now: 0, latency, counts }],
        conntrack: Conntrack { live: 3, capacity: 1_024, ..Conntrack::default() },
        snat: Snat {
            connections: 2,
            fullest_endpoint: 2,
            largest_client_share: 1,
            largest_service_share: 2,
            ports: 36_280,
            client_share_max: 9_070,
            service_share_max: 32_652,
        },
        replies: Replies { announced: 1, capacity: 64 },
        redirect_xdp: XdpCounts { taken: 4, ..XdpCounts::default() }.into(),
        services: Services { table: table(9, true), ports: 1, addresses: 1, problems: vec!["one".into(), "two".into()], set_aside: vec![] },
        routes: table(1, false),
        targets: vec![Target {
            namespace: "n\\".into(),
            service: "s\"} 1\n".into(),
            port_name: String::new(),
            port: Some(53),
            protocol: "UDP".into(),
            backend: "[fd00::1]:53".into(),
            carried: Carried { flows: 5, snat_refused: 8, rate_limited: 2, client_limited: 3, to_backend: volume(6), to_client: volume(4) },
        }],
        ..Status::default()
    };
    let mut reconciled = Reconciled::default();
    reconciled.add([7, 8], Some(Duration::from_micros(1_500)));
    let events = [("sent", 3), ("failed", 0), ("repeated", 1), ("rate_limited", 0), ("queue_full", 0)];
    let counts = Counts { connected: 1, accepted: 31, displaced: 5, refused: 4, timed_out: 3, accept_failures: 2 };
    Sample { status, events, reconciled, control_socket: ServerCounts { server: "control_socket", peers: "processes", counts } }
}

#[test]
fn the_metrics_server() {
    let (mut server, health, metrics) = server(9, "");
    server.in_force(Moment::now(), Default::default());
    assert_eq!(["/healthz", "/livez", "/livez"].map(|path| get(health, path).unwrap().status), [200; 3]);
    let answer = |path| get(metrics, path).unwrap();
    assert_eq!((answer("/healthz").body.as_str(), answer("/proxyMode").body.as_str(), answer("/nothing").status), ("ok", "nftables", 404));

    let page = scrape(&mut server, metrics, sample());
    for (name, labels, value) in [
        ("nomagic_ready", &[][..], 0.0),
        ("nomagic_flows", &[], 3.0),
        ("nomagic_flows_capacity", &[], 1_024.0),
        ("nomagic_flows_evicted_total", &[("rank", "unconfirmed")], 5.0),
        ("nomagic_flows_revived_total", &[], 7.0),
        ("nomagic_events_total", &[("outcome", "sent")], 3.0),
        ("nomagic_snat_ports", &[], 36_280.0),
        ("nomagic_snat_ports_fullest_endpoint", &[], 2.0),
        ("nomagic_snat_ports_largest_share", &[("holder", "client")], 1.0),
        ("nomagic_worker_heartbeat_age_seconds", &[("worker", "0")], 0.0025),
        ("nomagic_worker_forwarded_bytes_total", &[("worker", "0")], 700.0),
        ("nomagic_worker_latency_seconds_bucket", &[("worker", "0"), ("le", "0.000004")], 8.0),
        ("nomagic_worker_latency_seconds_bucket", &[("worker", "0"), ("le", "+Inf")], 9.0),
        ("nomagic_worker_latency_seconds_sum", &[("worker", "0")], 0.00009),
        ("nomagic_worker_send_errors_total", &[("worker", "0"), ("error", "busy")], 1.0),
        ("nomagic_table_applied", &[("table", "routes")], 0.0),
        ("nomagic_xdp_frames_total", &[("port", "(redirect ports)"), ("outcome", "taken")], 4.0),
        ("nomagic_backends_without_series", &[], 0.0),
        ("kubeproxy_conntrack_reconciler_deleted_entries_total", &[("ip_family", "IPv6")], 8.0),
        ("kubeproxy_conntrack_reconciler_sync_duration_seconds_bucket", &[("ip_family", "IPv4"), ("le", "0.001")], 0.0),
        ("kubeproxy_conntrack_reconciler_sync_duration_seconds_bucket", &[("ip_family", "IPv4"), ("le", "0.002")], 1.0),
        ("kubeproxy_proxy_healthz_total", &[("code", "200")], 1.0),
        ("kubeproxy_proxy_livez_total", &[("code", "200")], 2.0),
        ("kubeproxy_proxy_livez_total", &[("code", "503")], 0.0),
        ("nomagic_server_connections", &[("server", "metrics"), ("peers", "node")], 1.0),
        ("nomagic_server_connections_accepted_total", &[("server", "health"), ("peers", "node")], 3.0),
        ("nomagic_server_connections_accepted_total", &[("server", "health"), ("peers", "others")], 0.0),
        ("nomagic_server_connections_accepted_total", &[("server", "control_socket"), ("peers", "processes")], 31.0),
        ("nomagic_server_connections_cut_total", &[("server", "control_socket"), ("peers", "processes"), ("reason", "displaced")], 5.0),
        ("nomagic_server_connections_cut_total", &[("server", "control_socket"), ("peers", "processes"), ("reason", "refused")], 4.0),
        ("nomagic_server_connections_cut_total", &[("server", "control_socket"), ("peers", "processes"), ("reason", "timed_out")], 3.0),
        ("nomagic_server_accept_failures_total", &[("server", "control_socket")], 2.0),
        ("nomagic_server_accept_failures_total", &[("server", "health")], 0.0),
    ] {
        assert_eq!(page.value(name, labels), value, "{name}");
    }
    let hostile = [("namespace", "n\\"), ("service", "s\"} 1\n"), ("port", ""), ("protocol", "UDP"), ("backend", "[fd00::1]:53")];
    assert_eq!(page.value("nomagic_backend_connections_total", &hostile), 5.0);
    assert_eq!(["rate", "client"].map(|limit| page.value(&format!("nomagic_backend_{limit}_limited_total"), &hostile)), [2.0, 3.0]);
    assert_eq!(page.value("nomagic_backend_bytes_total", &[&hostile[..], &[("direction", "to_client")]].concat()), 400.0);
    // A reason has a series for each of its possible dispositions, and no other.
    for reason in Reason::ALL {
        let labels = [("reason", reason.label())];
        let n = reason.index() as f64;
        let left = if reason.dispositions().contains(&Disposition::Kernel) { 100.0 + n } else { 0.0 };
        let sums =
            ["dropped", "left_to_kernel", "lost_after_handover"].map(|what| page.sum(&format!("nomagic_frames_{what}_total"), &labels));
        assert_eq!(sums, [n, left, 200.0 + n], "{labels:?}");
    }
}

pub fn tokio_runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}
