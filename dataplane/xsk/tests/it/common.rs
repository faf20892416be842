//! A client, a gateway and a pod in network namespaces, and an edge on the gateway.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nomagic_core::capture::FilterRules;
use nomagic_core::counters::WorkerCounts;
use nomagic_core::frame::PortId;
use nomagic_core::hash::WordSet;
use nomagic_core::routes::{InternalPort, Leg, Neighbour, Port, Route, RouteKind, Routes};
use nomagic_core::services::{Action, AddressKind, Backend, Frontend, Limits, Pool, ServicePort, Services};
use nomagic_core::tuple::{HashSeed, Proto};
use nomagic_testbed::rig;
use nomagic_xsk::{Edge, EdgeConfig, EdgeStatus, Idle, InterfaceName, InternalPair, Link, RingSize, WorkerCount};

/// A network namespace of the testbed whose failures panic.
pub struct Netns(rig::Netns);

impl Netns {
    pub fn new(tag: &str) -> Netns {
        Netns(rig::Netns::new(tag).unwrap())
    }

    pub fn name(&self) -> &str {
        self.0.name()
    }

    pub fn ip(&self, words: &str) {
        self.0.ip(words).unwrap();
    }

    /// Runs a closure on a thread in the namespace.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.0.run(work).unwrap()
    }

    pub fn spawn<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<anyhow::Result<T>> {
        self.0.thread(work).unwrap()
    }

    pub fn link(&self, name: &str) -> Link {
        self.run(|| Link::query(name).unwrap())
    }

    /// Frames received and sent by an interface, as counted by the kernel.
    pub fn packets(&self, interface: &str) -> (u64, u64) {
        let counters = self.0.link_counters(interface).unwrap();
        (counters.rx_packets, counters.tx_packets)
    }
}

pub fn sh(command: &str) {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The three namespaces with cables and addresses. Dropping it removes the state directory.
pub struct Scene {
    pub client: Netns,
    pub gateway: Netns,
    pub pod: Netns,
    pub state: PathBuf,
}

pub const CLIENT: &str = "10.1.0.2";
pub const GATEWAY: &str = "10.1.0.1";
pub const POD: &str = "192.168.0.2";
pub const SERVICE: &str = "10.109.35.24";
pub const CLIENT6: &str = "fd01::2";
pub const POD6: &str = "fd02::2";
pub const SERVICE6: &str = "fd00:10::24";

impl Scene {
    pub fn new() -> Scene {
        let (client, gateway, pod) = (Netns::new("c"), Netns::new("g"), Netns::new("p"));
        gateway.ip(&format!("link add gc type veth peer name c0 netns {}", client.name()));
        gateway.ip(&format!("link add gp type veth peer name p0 netns {}", pod.name()));
        gateway.ip("link add nm0 type veth peer name nm1");
        for (key, value) in [
            ("net.ipv4.ip_forward", "1"),
            ("net.ipv4.conf.all.rp_filter", "0"),
            ("net.ipv4.conf.nm0.rp_filter", "2"),
            ("net.ipv4.conf.nm0.accept_local", "1"),
        ] {
            gateway.0.sysctl(key, value).unwrap();
        }
        for (ns, name, v4, v6) in [
            (&client, "c0", "10.1.0.2/24", "fd01::2/64"),
            (&gateway, "gc", "10.1.0.1/24", "fd01::1/64"),
            (&gateway, "gp", "192.168.0.1/24", "fd02::1/64"),
            (&pod, "p0", "192.168.0.2/24", "fd02::2/64"),
            // Any address will do. Without one, reverse path filtering drops all packets received on nm0, even in loose mode.
            (&gateway, "nm0", "169.254.77.1/32", "fd77::1/128"),
        ] {
            ns.ip(&format!("addr add {v4} dev {name}"));
            ns.ip(&format!("addr add {v6} dev {name} nodad"));
            ns.ip(&format!("link set {name} up"));
        }
        gateway.ip("link set nm1 up");
        client.ip("route add default via 10.1.0.1");
        client.ip("-6 route add default via fd01::1");
        pod.ip("route add default via 192.168.0.1");
        pod.ip("-6 route add default via fd02::1");
        let state = std::env::temp_dir().join(gateway.name());
        Scene { client, gateway, pod, state }
    }

    /// Two queues to the client, an echo server, and a configuration for two workers with small rings.
    pub fn two_workers() -> (Scene, EdgeConfig) {
        let scene = Scene::new();
        scene.client_queues(2);
        scene.echo();
        let config = EdgeConfig { workers: WorkerCount::from_static(2), ring_size: RingSize::from_static(64), ..scene.config() };
        (scene, config)
    }

    pub fn config(&self) -> EdgeConfig {
        let mut config = EdgeConfig::new(&self.state, ["gc", "gp"].map(InterfaceName::from_static).into());
        let [kernel_side, edge_side] = ["nm0", "nm1"].map(InterfaceName::from_static);
        config.internal = Some(InternalPair { kernel_side, edge_side, addresses: [None; 2] });
        config.ring_size = RingSize::from_static(512);
        config.conntrack_capacity = 4096;
        config.reply_buckets = 1024;
        config.targets_max = 16;
        config.idle = Idle::Sleep { after_us: 100 };
        config
    }

    /// Starts an edge in the gateway, with routes, without Services, and with neighbours if requested.
    pub fn start(&self, config: EdgeConfig, neighbours: bool) -> Edge {
        let mut edge = self.gateway.run(move || Edge::start(config, services(0, &[]), Arc::new(Routes::default())).unwrap());
        edge.publish_routes(Arc::new(self.routes(&edge, 1, neighbours)));
        assert!(edge.wait_applied(Duration::from_secs(5)).is_some());
        edge
    }

    pub fn routes(&self, edge: &Edge, generation: u64, neighbours: bool) -> Routes {
        let ports = edge.ports().iter().map(|p| Port { mac: p.mac, mtu: p.mtu, up: true }).collect();
        let internal = InternalPort { port: PortId(2), kernel_mac: self.gateway.link("nm0").mac };
        let on =
            |port: u16| RouteKind::Unicast(vec![Leg { port: Some(PortId(port)), captured: false, gateway: None, weight: 1, mtu: None }]);
        let route = |prefix: &str, kind| Route { prefix: prefix.parse().unwrap(), metric: 0, kind };
        let routes = vec![
            route("10.1.0.0/24", on(0)),
            route("fd01::/64", on(0)),
            route("192.168.0.0/24", on(1)),
            route("fd02::/64", on(1)),
            route("10.1.0.1/32", RouteKind::Local),
        ];
        let (client, pod) = (self.client.link("c0").mac, self.pod.link("p0").mac);
        let mut known: Vec<Neighbour> = [(0, CLIENT, client), (0, CLIENT6, client), (1, POD, pod), (1, POD6, pod)]
            .map(|(p, a, mac)| Neighbour { port: PortId(p), addr: ip(a), mac })
            .into();
        known.truncate(if neighbours { 4 } else { 2 });
        Routes::build(generation, ports, Some(internal), routes, &known).0
    }

    /// Publishes the Service on both addresses, TCP and UDP, with the pod as its backend, and widens the filter.
    pub fn serve(&self, edge: &mut Edge) {
        let mut rules = FilterRules::default();
        let mut entries = Vec::new();
        for (service, pod) in [(SERVICE, POD), (SERVICE6, POD6)] {
            for proto in [Proto::Tcp, Proto::Udp] {
                rules.services.insert((ip(service), 80, proto));
                entries.push((ip(service), 80, proto, ip(pod), 8080));
            }
        }
        edge.publish_services(services(1, &entries));
        widen(edge, &rules);
    }

    /// UDP and TCP echo servers in the pod, on both families.
    pub fn echo(&self) {
        for addr in [POD, POD6] {
            let at = SocketAddr::new(ip(addr), 8080);
            let (udp, tcp) = self.pod.run(move || (UdpSocket::bind(at).unwrap(), TcpListener::bind(at).unwrap()));
            std::thread::spawn(move || serve_udp(udp));
            std::thread::spawn(move || serve_tcp(tcp));
        }
    }

    /// Sends a UDP datagram; true if the answer arrives in time.
    pub fn ask(&self, to: &str, port: u16, patience: Duration) -> bool {
        self.ask_by_flows(to, port, 1, patience)
    }

    /// The same over several flows. All sockets stay open until the end, so that each gets a different port.
    pub fn ask_by_flows(&self, to: &str, port: u16, flows: usize, patience: Duration) -> bool {
        let to = SocketAddr::new(ip(to), port);
        self.client.run(move || {
            let any: SocketAddr = if to.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" }.parse().unwrap();
            let sockets: Vec<UdpSocket> = (0..flows).map(|_| UdpSocket::bind(any).unwrap()).collect();
            sockets.iter().all(|socket| {
                socket.set_read_timeout(Some(patience)).unwrap();
                let mut answer = [0; 64];
                socket.send_to(b"are you there?", to).is_ok() && matches!(socket.recv_from(&mut answer), Ok((14, from)) if from == to)
            })
        })
    }

    /// Sends a body over TCP and compares the echo.
    pub fn transfer(&self, to: &str, bytes: usize) {
        let to = SocketAddr::new(ip(to), 80);
        self.client.run(move || {
            let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5)).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            let body: Vec<u8> = (0..bytes).map(|i| (i * 7 + i / 251) as u8).collect();
            let mut writer = stream.try_clone().unwrap();
            let sent = body.clone();
            let writing = std::thread::spawn(move || {
                writer.write_all(&sent).unwrap();
                writer.shutdown(std::net::Shutdown::Write).unwrap();
            });
            let mut back = Vec::new();
            stream.read_to_end(&mut back).unwrap();
            writing.join().unwrap();
            assert!(back == body, "{} of {} bytes were echoed", back.len(), body.len());
        });
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = nomagic_xsk::cleanup(&self.state);
        let _ = fs::remove_dir_all(&self.state);
    }
}

fn serve_udp(socket: UdpSocket) {
    let mut buffer = vec![0; 65_536];
    while let Ok((n, from)) = socket.recv_from(&mut buffer) {
        let _ = socket.send_to(&buffer[..n], from);
    }
}

fn serve_tcp(listener: TcpListener) {
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { return };
        std::thread::spawn(move || {
            let mut writer = stream.try_clone().unwrap();
            let _ = std::io::copy(&mut stream, &mut writer);
            let _ = writer.shutdown(std::net::Shutdown::Write);
        });
    }
}

/// A service table: (address, port, protocol, backend, its port).
pub fn services(generation: u64, entries: &[(IpAddr, u16, Proto, IpAddr, u16)]) -> Arc<Services> {
    let seed = HashSeed::new(1);
    let mut table = Services::empty(seed);
    table.generation = generation;
    for (stats, (addr, port, proto, backend, backend_port)) in (1..).zip(entries) {
        let backends = vec![Backend { addr: *backend, port: *backend_port, weight: 1, stats }];
        let action = Action::Forward { pool: Arc::new(Pool::new(backends, &seed).unwrap()), snat: false };
        let owner = ServicePort {
            namespace: "d".into(),
            name: "s".into(),
            port_name: String::new(),
            port: *port,
            proto: *proto,
            affinity: None,
            limits: Limits::default(),
            refused: Arc::default(),
        };
        table.ports += 1;
        let (pod, node) = (action.clone(), action.clone());
        let frontend = Frontend { port: Arc::new(owner), kind: AddressKind::ClusterIp, pod, node, external: action, source_ranges: None };
        table.add_frontend(*addr, *port, *proto, frontend).unwrap();
    }
    Arc::new(table)
}

/// Widens the filter once the workers use the published tables.
pub fn widen(edge: &mut Edge, rules: &FilterRules) {
    edge.wait_applied(Duration::from_secs(5)).expect("the workers are alive").widen_filter(rules, &WordSet::default()).unwrap();
}

/// The status once no frame moves, with the accounts checked.
pub fn settled(edge: &Edge) -> EdgeStatus {
    std::thread::sleep(Duration::from_millis(250));
    let status = edge.status().unwrap();
    for worker in &status.workers {
        assert!(worker.pools.iter().all(|f| f.closes()), "{:?}", worker.pools);
        assert!(worker.counts.io.handed_in.packets >= worker.counts.io.handed_failed.packets);
        assert!(worker.counts.closes(), "the accounts close, and every frame that was not forwarded has one reason: {worker:?}");
        assert_eq!(worker.held_now, worker.counts.frames.held.packets - worker.counts.frames.released.packets);
    }
    let taken: u64 = status.ports.iter().map(|p| p.xdp.taken).sum();
    let lost: u64 = status.ports.iter().flat_map(|p| &p.sockets).map(|s| s.rx_dropped + s.rx_ring_full).sum();
    let received: u64 = status.workers.iter().map(|w| w.counts.frames.received.packets).sum();
    assert!(received + lost <= taken, "received {received}, lost {lost}, taken {taken}");
    status
}

/// Waits until a condition holds.
pub fn until(what: &str, limit: Duration, mut so: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < limit, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
    start.elapsed()
}

impl Scene {
    /// Replaces the cable to the client by one with this many queues in each direction.
    pub fn client_queues(&self, queues: u32) {
        self.gateway.ip("link delete gc");
        self.cable_client(queues);
    }

    /// Creates the cable to the client.
    pub fn cable_client(&self, queues: u32) {
        let count = format!("numrxqueues {queues} numtxqueues {queues}");
        self.gateway.ip(&format!("link add gc {count} type veth peer name c0 netns {} {count}", self.client.name()));
        for (ns, name, v4, v6) in [(&self.gateway, "gc", "10.1.0.1/24", "fd01::1/64"), (&self.client, "c0", "10.1.0.2/24", "fd01::2/64")] {
            ns.ip(&format!("addr add {v4} dev {name}"));
            ns.ip(&format!("addr add {v6} dev {name} nodad"));
            ns.ip(&format!("link set {name} up"));
        }
        self.client.ip("route add default via 10.1.0.1");
        self.client.ip("-6 route add default via fd01::1");
    }

    /// Sends `rounds` datagrams from each of `sockets` sockets, each after the answer to the previous one. Returns the number of answers.
    pub fn ping_pong(&self, sockets: usize, rounds: usize) -> usize {
        let threads: Vec<JoinHandle<anyhow::Result<usize>>> = (0..sockets)
            .map(|_| {
                self.client.spawn(move || {
                    let socket = UdpSocket::bind("10.1.0.2:0").unwrap();
                    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                    let answered = |i: &usize| {
                        let body = i.to_be_bytes();
                        let mut answer = [0; 64];
                        socket.send_to(&body, (SERVICE, 80)).is_ok()
                            && matches!(socket.recv_from(&mut answer), Ok((n, _)) if answer[..n] == body)
                    };
                    (0..rounds).filter(answered).count()
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap().unwrap()).sum()
    }
}

/// Prints the frame accounts of all workers once no frame moves: every frame is accounted for, none is in transit.
pub fn print_frames(what: &str, edge: &Edge) {
    let status = settled(edge);
    for (pool, frames) in status.pools.iter().enumerate() {
        println!("{what}: pool {pool}: {frames:?}");
        assert!(frames.closes() && frames.away == 0, "{frames:?}");
    }
}

/// The sum of a counter over all workers.
pub fn total(status: &EdgeStatus, of: impl Fn(&WorkerCounts) -> u64) -> u64 {
    status.workers.iter().map(|w| of(&w.counts)).sum()
}
