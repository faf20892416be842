//! A gateway with a kubeconfig and the fake API server in its own namespace, and clients that record the outcome of each attempt.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nomagic_fake_apiserver::FakeApiServer;
use nomagic_testbed::rig::{Netns, PODS, Scene};
use serde_json::{Value, json};

use super::{Gateway, config, wait_for};

/// Time limit until a change is in force after the API server was unreachable.
pub const IN_FORCE: Duration = Duration::from_secs(30);

/// Starts a gateway with an API server that `prepare` fills with objects. `extra` are further configuration lines.
pub fn start(tag: &str, extra: &str, prepare: impl FnOnce(&FakeApiServer)) -> (Gateway, FakeApiServer) {
    let scene = Scene::new(tag).expect("a scene (needs root)");
    let api = scene.gw.run(|| FakeApiServer::start("127.0.0.1:0".parse().unwrap(), None)).unwrap().unwrap();
    api.set_bookmark_interval(Duration::from_secs(1));
    prepare(&api);
    let dir = tempfile::tempdir().unwrap();
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": api.url()}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
    });
    let file = dir.path().join("kubeconfig");
    std::fs::write(&file, kubeconfig.to_string()).unwrap();
    let config =
        config(dir.path(), extra).replace("manifests: manifests.yaml", &format!("kubernetes: {{kubeconfig: '{}'}}", file.display()));
    let mut g = Gateway::begin(scene, dir, &config);
    g.wait_until_ready();
    (g, api)
}

/// A Service of namespace `default`.
pub fn service(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"}, "spec": spec})
}

/// A slice of a Service with these endpoints, for ports "http" (80) and "echo" (53/UDP).
pub fn slice(service: &str, v6: bool, endpoints: Vec<Value>) -> Value {
    let (family, suffix) = if v6 { ("IPv6", "v6") } else { ("IPv4", "v4") };
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
        "metadata": {"name": format!("{service}-{suffix}"), "namespace": "default", "labels": {"kubernetes.io/service-name": service}},
        "endpoints": endpoints,
        "ports": [{"name": "http", "protocol": "TCP", "port": 80}, {"name": "echo", "protocol": "UDP", "port": 53}],
    })
}

/// One of the scene's pods as an endpoint.
pub fn endpoint(pod: usize, v6: bool, ready: bool) -> Value {
    let addr: IpAddr = if v6 { PODS[pod].v6.into() } else { PODS[pod].v4.into() };
    json!({"addresses": [addr.to_string()], "conditions": {"ready": ready, "serving": ready}})
}

/// Both slices of a dual-stack Service over these pods.
pub fn slices(service: &str, pods: &[usize]) -> [Value; 2] {
    [false, true].map(|v6| slice(service, v6, pods.iter().map(|&p| endpoint(p, v6, true)).collect()))
}

/// The outcome of an attempt.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum AttemptOutcome {
    /// This pod answered.
    Pod(String),
    /// Refused at once.
    Refused,
    /// No response.
    Silent,
    /// Anything else.
    Other(String),
}

impl AttemptOutcome {
    fn of(error: &std::io::Error) -> AttemptOutcome {
        match error.kind() {
            ErrorKind::ConnectionRefused => AttemptOutcome::Refused,
            ErrorKind::TimedOut | ErrorKind::WouldBlock => AttemptOutcome::Silent,
            _ => AttemptOutcome::Other(error.to_string()),
        }
    }
}

/// Opens one connection from the calling thread's namespace: TCP with an HTTP request, or a datagram and its echo, from a new socket.
pub fn try_once(udp: bool, to: SocketAddr, limit: Duration) -> AttemptOutcome {
    let tried = if udp { datagram(to, limit) } else { request(to, limit) };
    match tried {
        Ok(pod) => AttemptOutcome::Pod(pod),
        Err(e) => AttemptOutcome::of(&e),
    }
}

fn request(to: SocketAddr, limit: Duration) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    let body: Value = serde_json::from_str(body).map_err(|e| std::io::Error::other(format!("{e} in {answer:?}")))?;
    Ok(body["pod"].as_str().unwrap_or_default().to_owned())
}

/// Maximum number of times that a client sends its datagram.
const DATAGRAMS: u32 = 3;

fn datagram(to: SocketAddr, limit: Duration) -> std::io::Result<String> {
    let any: IpAddr = if to.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let socket = new_source(any)?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(limit / DATAGRAMS))?;
    let mut buf = [0; 512];
    // Retransmits like a resolver: on a busy machine the kernel may drop a datagram.
    for sent in 1..=DATAGRAMS {
        socket.send(b"x")?;
        match socket.recv(&mut buf) {
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) && sent < DATAGRAMS => {}
            received => return Ok(String::from_utf8_lossy(&buf[..received?]).split('|').next().unwrap_or_default().to_owned()),
        }
    }
    Err(ErrorKind::TimedOut.into())
}

/// A socket with a port not used before: a known source would continue its connection to the same pod.
fn new_source(any: IpAddr) -> std::io::Result<UdpSocket> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    for _ in 0..100 {
        let port = 1_024 + (NEXT.fetch_add(1, Ordering::Relaxed) % 64_000) as u16;
        match UdpSocket::bind((any, port)) {
            Err(e) if e.kind() == ErrorKind::AddrInUse => {}
            bound => return bound,
        }
    }
    Err(std::io::Error::other("100 ports in a row are taken"))
}

/// An attempt with its times.
#[derive(Debug)]
pub struct Try {
    pub start: Instant,
    pub end: Instant,
    pub seen: AttemptOutcome,
}

/// A client that connects repeatedly until it is stopped.
pub struct Load {
    pub what: String,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<anyhow::Result<Vec<Try>>>,
}

/// Maximum number of attempts that a load records.
const TRIES_MAX: usize = 200_000;

impl Load {
    /// Opens one new connection after another, with a short pause.
    pub fn start(from: &Netns, udp: bool, to: &str) -> Load {
        let to: SocketAddr = to.parse().expect("an address");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let work = move || {
            let mut tries = Vec::new();
            while !stopped.load(Ordering::Relaxed) && tries.len() < TRIES_MAX {
                let start = Instant::now();
                let seen = try_once(udp, to, Duration::from_secs(3));
                tries.push(Try { start, end: Instant::now(), seen });
                std::thread::sleep(Duration::from_millis(4));
            }
            tries
        };
        let proto = if udp { "UDP" } else { "TCP" };
        Load { what: format!("{proto} from {} to {to}", from.name()), stop, thread: from.thread(work).expect("a thread") }
    }

    pub fn finish(self) -> (String, Vec<Try>) {
        self.stop.store(true, Ordering::Relaxed);
        (self.what, self.thread.join().expect("a load").expect("a namespace"))
    }
}

/// The endpoints (IPv4, port 80) that a Service's port has in the table in force.
pub fn in_force(g: &Gateway, service: &str) -> BTreeSet<String> {
    let status = g.status();
    let of_service = status.targets.into_iter().filter(|t| t.service_port() == format!("default/{service}:80/TCP"));
    of_service.map(|t| t.backend).filter(|b| b.starts_with("192.168.")).collect()
}

/// Waits until exactly these pods are a Service's endpoints.
pub fn wait_for_pods(g: &Gateway, service: &str, pods: &[usize]) {
    let wanted: BTreeSet<String> = pods.iter().map(|&i| format!("{}:80", PODS[i].v4)).collect();
    wait_for(&format!("{wanted:?} to be the endpoints of {service}"), IN_FORCE, || in_force(g, service) == wanted);
}

/// What the client sees at an address.
pub fn seen(g: &Gateway, udp: bool, to: &str, limit: Duration) -> AttemptOutcome {
    let to: SocketAddr = to.parse().expect("an address");
    g.scene.client.run(move || try_once(udp, to, limit)).unwrap()
}

/// Waits until the client gets an answer from an address, and checks that ten more connections succeed.
pub fn answered(g: &Gateway, udp: bool, to: &str) {
    let pod = |limit| matches!(seen(g, udp, to, limit), AttemptOutcome::Pod(_));
    wait_for(&format!("an answer at {to}"), IN_FORCE, || pod(Duration::from_millis(300)));
    (0..10).for_each(|i| assert!(pod(Duration::from_secs(3)), "connection {i} to {to}, which worked before"));
}

/// Waits until the client gets no answer from an address, and checks that it stays so. Returns the outcome that the client sees.
pub fn unanswered(g: &Gateway, udp: bool, to: &str) -> AttemptOutcome {
    let pod = |s: &AttemptOutcome| matches!(s, AttemptOutcome::Pod(_));
    wait_for(&format!("no answer at {to}"), IN_FORCE, || !pod(&seen(g, udp, to, Duration::from_millis(200))));
    let last: Vec<AttemptOutcome> = (0..3).map(|_| seen(g, udp, to, Duration::from_millis(200))).collect();
    assert!(!last.iter().any(pod), "{to} was gone and came back: {last:?}");
    last.into_iter().next_back().expect("three tries")
}
