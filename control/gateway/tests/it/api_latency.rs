//! Measures the time from a change at the API server to the first packet that uses it.
//!
//! `cargo test --release -p nomagic --test it api_latency -- --nocapture` prints it; `NOMAGIC_CHANGES=1000` measures more changes (100 unless set).
//!
//! The clock starts just before the fake API server takes the object and stops when the first datagram is read at the new endpoint. In
//! between are the watch event, reading, compiling, publishing to the workers, and up to one interval of the client, which sends a
//! datagram from a new source every 0.2 ms. All of it happens on one machine, with one clock.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use nomagic_fake_apiserver::FakeApiServer;
use nomagic_testbed::rig::{Netns, PODS};
use serde_json::{Value, json};

use crate::common::Gateway;
use crate::common::api_gateway;
use crate::common::api_gateway::start;

/// The pods' UDP port.
const PORT: u16 = 7_000;
/// The Service whose endpoint is replaced.
const MOVED: Ipv4Addr = Ipv4Addr::new(10, 109, 0, 7);
/// Interval between the client's datagrams.
const INTERVAL: Duration = Duration::from_micros(200);
/// Number of client addresses from 10.0.0.100 on. With all ports they provide new sources for minutes.
const SOURCES: u8 = 40;
/// A change that takes longer fails the test.
const LOST: Duration = Duration::from_secs(5);

/// A thread and the flag that stops it.
struct StoppableThread(Arc<AtomicBool>, Option<JoinHandle<anyhow::Result<()>>>);

impl StoppableThread {
    fn start(netns: &Netns, work: impl FnOnce(&AtomicBool) + Send + 'static) -> StoppableThread {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        StoppableThread(stop, Some(netns.thread(move || work(&stopped)).expect("a thread")))
    }
}

impl Drop for StoppableThread {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
        // Joined, because the thread uses what is dropped next.
        let ended = self.1.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || matches!(ended, Some(Ok(Ok(())))), "a sender or receiver failed");
    }
}

/// Arrival of each pod's first datagram since the last reset, ns after `base`; 0: none.
#[derive(Default)]
struct Arrivals([AtomicU64; 3]);

fn receive(netns: &Netns, pod: usize, arrivals: Arc<Arrivals>, base: Instant) -> StoppableThread {
    let socket = netns.run(|| UdpSocket::bind((PODS[pod].v4, PORT)).unwrap()).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    StoppableThread::start(netns, move |stop| {
        let mut buf = [0; 64];
        while !stop.load(Ordering::Relaxed) {
            if socket.recv(&mut buf).is_ok() {
                let now = base.elapsed().as_nanos() as u64;
                let _ = arrivals.0[pod].compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
            }
        }
    })
}

/// Sends a datagram every [`INTERVAL`], each from a new source, to the current address in `target`.
fn send(netns: &Netns, target: Arc<AtomicU64>) -> StoppableThread {
    for i in 0..SOURCES {
        netns.ip(&format!("addr add 10.0.0.{}/24 dev eth0", 100 + i)).unwrap();
    }
    StoppableThread::start(netns, move |stop| {
        let (mut sent, mut next) = (0u32, Instant::now());
        while !stop.load(Ordering::Relaxed) {
            let source = SocketAddrV4::new(
                Ipv4Addr::new(10, 0, 0, 100 + (sent % u32::from(SOURCES)) as u8),
                2_000 + (sent / u32::from(SOURCES)) as u16,
            );
            let to = SocketAddr::from((Ipv4Addr::from(target.load(Ordering::Relaxed) as u32), PORT));
            // Ignore ICMP errors for earlier datagrams.
            let _ = UdpSocket::bind(source).expect("a new source").send_to(b"x", to);
            sent += 1;
            assert!(sent < 60_000 * u32::from(SOURCES), "no sources are left");
            next = Instant::now().max(next + INTERVAL);
            std::thread::sleep(next - Instant::now().min(next));
        }
    })
}

fn service(name: &str, ip: Ipv4Addr, port: Value) -> Value {
    api_gateway::service(name, json!({"clusterIP": ip.to_string(), "ports": [port]}))
}

fn slice(service: &str, addresses: &[Ipv4Addr], port: Value) -> Value {
    let endpoints: Vec<Value> = addresses.iter().map(|a| json!({"addresses": [a.to_string()]})).collect();
    let mut slice = api_gateway::slice(service, false, endpoints);
    slice["ports"] = json!([port]);
    slice
}

fn udp() -> Value {
    json!({"name": "", "port": PORT, "protocol": "UDP"})
}

/// Creates Services with ten endpoints each and without traffic.
fn background(api: &FakeApiServer, services: u32) {
    let port = || json!({"name": "", "port": 80, "protocol": "TCP"});
    for i in 0..services {
        let name = format!("background-{i}");
        api.put(service(&name, Ipv4Addr::from(0x0a6e_0000 + i + 1), port())).unwrap();
        let addresses: Vec<_> = (0..10).map(|j| Ipv4Addr::from(0xac10_0000 + i * 10 + j + 1)).collect();
        api.put(slice(&name, &addresses, port())).unwrap();
    }
}

struct LatencyBench {
    /// Dropped first, because they use the namespaces' addresses.
    _threads: Vec<StoppableThread>,
    g: Gateway,
    api: FakeApiServer,
    arrivals: Arc<Arrivals>,
    target: Arc<AtomicU64>,
    base: Instant,
}

impl LatencyBench {
    fn start(tag: &str, services: u32) -> LatencyBench {
        let (g, api) = start(tag, "", |api| {
            background(api, services);
            api.put(service("moved", MOVED, udp())).unwrap();
            api.put(slice("moved", &[PODS[0].v4], udp())).unwrap();
        });
        for pod in PODS {
            g.scene.gw.exec("ping", &["-c", "1", "-W", "2", &pod.v4.to_string()]).unwrap();
        }
        let (arrivals, base) = (Arc::new(Arrivals::default()), Instant::now());
        let target = Arc::new(AtomicU64::new(u64::from(u32::from(MOVED))));
        let mut threads: Vec<StoppableThread> = (0..3).map(|p| receive(&g.scene.pods[p], p, arrivals.clone(), base)).collect();
        threads.push(send(&g.scene.client, target.clone()));
        let bench = LatencyBench { _threads: threads, g, api, arrivals, target, base };
        bench.arrival(0, 0);
        bench
    }

    /// Waits for the first datagram at a pod and returns the time since `since` (ns after the base), microseconds.
    fn arrival(&self, pod: usize, since: u64) -> u64 {
        let end = Instant::now() + LOST;
        loop {
            match self.arrivals.0[pod].load(Ordering::Relaxed) {
                0 => assert!(Instant::now() < end, "no datagram at {} within {LOST:?}", PODS[pod].name),
                at => return at.saturating_sub(since) / 1_000,
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Makes a change and returns the time until datagrams arrive at a new pod, microseconds.
    fn measure(&self, pod: usize, pause: Duration, change: impl FnOnce(&FakeApiServer)) -> u64 {
        // No earlier datagram is in flight, and the previous table is in force.
        std::thread::sleep(pause);
        self.arrivals.0[pod].store(0, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(3));
        assert_eq!(self.arrivals.0[pod].load(Ordering::Relaxed), 0, "a datagram at {} before the change", PODS[pod].name);
        let since = self.base.elapsed().as_nanos() as u64;
        change(&self.api);
        self.arrival(pod, since)
    }

    fn endpoints_replaced(&self, changes: u32) -> Histogram<u64> {
        let mut times = histogram();
        for i in 0..changes {
            let pod = (i as usize + 1) % 3;
            times += self.measure(pod, pause(i), |api| {
                api.put(slice("moved", &[PODS[pod].v4], udp())).unwrap();
            });
        }
        times
    }

    fn services_created(&self, changes: u32) -> Histogram<u64> {
        let mut times = histogram();
        for i in 0..changes {
            let (name, ip, pod) = (format!("new-{i}"), Ipv4Addr::from(0x0a70_0000 + i + 1), i as usize % 3);
            self.target.store(u64::from(u32::from(ip)), Ordering::Relaxed);
            times += self.measure(pod, pause(i), |api| {
                api.put(service(&name, ip, udp())).unwrap();
                api.put(slice(&name, &[PODS[pod].v4], udp())).unwrap();
            });
        }
        times
    }
}

/// A histogram of microseconds, up to a minute.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000, 3).unwrap()
}

/// The pause before a change: varied, so that changes do not align with the gateway's timers.
fn pause(i: u32) -> Duration {
    Duration::from_millis(30 + u64::from(i * 7 % 23))
}

fn machine() -> String {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|l| l.strip_prefix("model name")?.split_once(": ")).map_or("unknown CPU", |(_, m)| m).to_owned();
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{model}, {cores} cores (the client, the pods and the API server run on them too), Linux {}, veth in namespaces", kernel.trim())
}

#[test]
fn latency_of_changes() {
    let changes: u32 = std::env::var("NOMAGIC_CHANGES").map_or(100, |n| n.parse().expect("NOMAGIC_CHANGES: a number"));
    let mut table = format!("{}\nfrom the API server's change to the first datagram at the endpoint\n\n", machine());
    let _ = writeln!(table, "{:<28}{:>24}{:>10}{:>12}{:>12}{:>12}", "change", "other Services", "measured", "p50", "p99", "max");
    for (tag, services) in [("lat10", 10), ("lat2k", 2_000)] {
        let bench = LatencyBench::start(tag, services);
        for (what, times) in
            [("an endpoint replaced", bench.endpoints_replaced(changes)), ("a Service created", bench.services_created(changes))]
        {
            let ms = |us: u64| format!("{:.2} ms", us as f64 / 1_000.0);
            let (p50, p99) = (times.value_at_quantile(0.5), times.value_at_quantile(0.99));
            let others = format!("{services} x 10 endpoints");
            let _ = writeln!(table, "{what:<28}{others:>24}{:>10}{:>12}{:>12}{:>12}", times.len(), ms(p50), ms(p99), ms(times.max()));
            assert_eq!(times.len(), u64::from(changes), "every change arrived");
        }
        bench.g.assert_accounts_close();
    }
    println!("{table}");
}
