//! Connections from the gateway node itself to Services, with real sockets in its namespace. Needs root.

use std::net::SocketAddr;
use std::time::Duration;

use nomagic_core::reason::Reason;
use nomagic_fake_apiserver::FakeApiServer;
use nomagic_testbed::peers::{PodOptions, download, start_pod, udp_echo, upload};
use nomagic_testbed::rig::{GATEWAY_V4, GATEWAY_V6, Netns, Scene};

use crate::common::local_pod::LocalPod;
use crate::common::*;

const LONG: Duration = Duration::from_secs(20);
const OWN: &str = "localTraffic: {ownAddresses: true}\nclusterCIDRs: [192.168.0.0/16, 'fd00:192::/64', 172.31.0.0/16, 'fd00:31::/64']\nredirectInterfaces: ['cali*']\nworkers: 2\npackets: {ringSize: 512}";
/// The Service's addresses: cluster IPs inside and outside the ServiceCIDRs, external and load balancer IPs, one of them the node's own.
const CLUSTER: [&str; 2] = ["10.109.35.30", "[fd00:10:109::30]"];
const OUTSIDE: [&str; 4] = ["203.0.113.7", "[fd00:77::7]", "198.51.100.9", "[fd00:78::9]"];
const ASSIGNED: [&str; 2] = ["203.0.113.8", "[fd00:77::8]"];
/// The node's own addresses.
const NODE: [&str; 2] = ["10.0.0.1", "[fd00:a::1]"];

/// A Service with all kinds of addresses and these endpoints: `(IPv4, IPv6)`.
fn web(endpoints: &[(&str, &str)]) -> String {
    let mut text = manifests(&[Svc {
        name: "web",
        spec: "type: LoadBalancer\nclusterIP: 10.109.35.30\nclusterIPs: [10.109.35.30, 'fd00:10:109::30']\nipFamilies: [IPv4, IPv6]\nexternalTrafficPolicy: Cluster\nexternalIPs: [203.0.113.7, 203.0.113.8, 'fd00:77::7', 'fd00:77::8']",
        status: "status: {loadBalancer: {ingress: [{ip: 198.51.100.9}, {ip: 'fd00:78::9'}]}}",
        ports: &[("http", "TCP", 80, 30_080), ("echo", "UDP", 53, 30_053)],
        pods: &[],
    }]);
    for (family, of) in [("IPv4", 0), ("IPv6", 1)] {
        let list: Vec<String> = endpoints
            .iter()
            .map(|e| format!("{{addresses: ['{}'], conditions: {{ready: true}}}}", if of == 0 { e.0 } else { e.1 }))
            .collect();
        text += &format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: w-{of}, namespace: default, labels: {{kubernetes.io/service-name: web}}}}\naddressType: {family}\nendpoints: [{}]\nports: [{{name: http, protocol: TCP, port: 80}}, {{name: echo, protocol: UDP, port: 53}}]\n",
            list.join(", ")
        );
    }
    text
}

fn remote() -> Vec<(String, String)> {
    nomagic_testbed::rig::PODS.iter().map(|p| (p.v4.to_string(), p.v6.to_string())).collect()
}

fn as_str(endpoints: &[(String, String)]) -> Vec<(&str, &str)> {
    endpoints.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect()
}

fn scene(tag: &str) -> Scene {
    let scene = Scene::new(tag).expect("a scene (needs root)");
    scene.gw.ip("addr add 203.0.113.8/32 dev lo").unwrap();
    scene.gw.ip("addr add fd00:77::8/128 dev lo nodad").unwrap();
    scene
}

/// Every address and port by which the node reaches the Service: `(HTTP, UDP echo)`.
fn ways() -> Vec<(String, String)> {
    let plain = CLUSTER.iter().chain(&OUTSIDE).chain(&ASSIGNED).map(|a| (format!("{a}:80"), format!("{a}:53")));
    plain.chain(NODE.map(|a| (format!("{a}:30080"), format!("{a}:30053")))).collect()
}

/// Checks HTTP and UDP from the node through all of [`ways`]. At most `pods` pods may answer each.
fn all_answer(g: &Gateway, pods: usize) {
    for (http, udp) in ways() {
        let report = g.http(&g.scene.gw, &http, 12);
        assert_eq!((report.answered(), report.failed()), (12, 0), "{http}: {report:?}");
        assert!(report.per_pod.len() <= pods, "{http}: {report:?}");
        let report = g.udp(&g.scene.gw, &udp, 12);
        assert_eq!((report.answered(), report.failed()), (12, 0), "{udp}: {report:?}");
    }
}

/// 3 MB each way.
fn bodies(g: &Gateway, to: &str) {
    let to: SocketAddr = to.parse().unwrap();
    let both = move || async move { (upload(to, 3_000_000, LONG).await, download(to, 3_000_000, LONG).await) };
    let (up, down) = g.scene.gw.block_on(both).unwrap();
    up.unwrap();
    down.unwrap();
}

/// Changes the node's ephemeral port range: a socket with an earlier UDP connection's port would continue that connection.
fn other_ports(g: &Gateway, range: u32) {
    let first = 10_000 + range * 5_000;
    g.scene.gw.sysctl("net.ipv4.ip_local_port_range", &format!("{first} {}", first + 4_999)).unwrap();
}

/// The kernel's complete routing state.
fn kernel_state(gw: &Netns) -> [String; 4] {
    ["rule show", "-6 rule show", "route show table all", "-6 route show table all"].map(|words| gw.ip(words).unwrap())
}

#[test]
fn the_node_reaches_services_through_all_addresses() {
    let scene = scene("lt");
    let before = kernel_state(&scene.gw);
    let remote = remote();
    let mut g = Gateway::start_in(scene, OWN, &web(&as_str(&remote)));
    all_answer(&g, 3);
    for (to, seen) in [("10.109.35.30:80", GATEWAY_V4.into()), ("[fd00:10:109::30]:80", std::net::IpAddr::from(GATEWAY_V6))] {
        let report = g.http(&g.scene.gw, to, 10);
        assert_eq!(report.clients_seen.keys().collect::<Vec<_>>(), [&seen], "the node is not a pod: SNAT");
        bodies(&g, to);
    }
    bodies(&g, "10.0.0.1:30080");
    // A datagram in fragments, both ways.
    let to: SocketAddr = "10.109.35.30:53".parse().unwrap();
    g.scene.gw.block_on(move || async move { udp_echo(to, &[7; 3_000], LONG).await }).unwrap().unwrap();
    // Other clients and pods are not affected.
    for from in [&g.scene.client, &g.scene.pods[0]] {
        assert_eq!(g.http(from, "203.0.113.8:80", 5).failed() + g.http(from, "10.0.0.1:30080", 5).failed(), 0);
    }
    // The node's own servers on ports next to and between node ports.
    let own = start_pod(&g.scene.gw, PodOptions { http_port: 30_070, udp_port: 30_071, ..PodOptions::new("own") }).unwrap();
    for to in ["10.0.0.1:30070", "[fd00:a::1]:30070", "203.0.113.8:30070", "127.0.0.1:30070"] {
        assert_eq!(g.http(&g.scene.gw, to, 5).per_pod.get("own"), Some(&5), "{to}");
    }
    drop(own);
    // Without endpoints, new connections are rejected at once. Existing UDP connections of a Service without endpoints are kept.
    other_ports(&g, 1);
    g.apply(&web(&[]));
    for (http, udp) in ways() {
        let report = g.http(&g.scene.gw, &http, 2);
        assert!(report.failed() == 2 && report.failures.keys().all(|f| f.contains("refused")), "{http}: {report:?}");
        let report = g.udp(&g.scene.gw, &udp, 2);
        assert!(report.failed() == 2 && report.failures.keys().all(|f| f.contains("refused")), "{udp}: {report:?}");
    }
    let report = g.http(&g.scene.gw, "10.109.35.30:81", 2);
    assert!(report.failures.keys().all(|f| f.contains("refused")), "an unused port of a cluster IP: {report:?}");
    g.print_frames();

    g.process.terminate(Duration::from_secs(5)).unwrap();
    assert_ne!(kernel_state(&g.scene.gw), before, "pinned: onFailure applies to the node's connections, too");
    g.scene.gw.exec(NOMAGIC, &["cleanup", "--state-dir", &g.state_dir().to_string_lossy()]).unwrap();
    assert_eq!(kernel_state(&g.scene.gw), before);
}

#[test]
fn backends_on_the_node_itself() {
    let scene = scene("lt-own");
    let (pod, hidden) = (LocalPod::new(&scene, "cali", 11), LocalPod::new(&scene, "dark", 12));
    let mut g = Gateway::start_in(scene, OWN, &web(&[(&pod.v4, &pod.v6)]));
    all_answer(&g, 1);
    bodies(&g, "10.109.35.30:80");
    // An interface that no pattern matches.
    other_ports(&g, 1);
    g.apply(&web(&[(&hidden.v4, &hidden.v6)]));
    all_answer(&g, 1);
    // Hairpin: the node to itself.
    let node = start_pod(&g.scene.gw, PodOptions::new("node")).unwrap();
    other_ports(&g, 2);
    g.apply(&web(&[("10.0.0.1", "fd00:a::1")]));
    all_answer(&g, 1);
    bodies(&g, "[fd00:10:109::30]:80");
    let report = g.http(&g.scene.gw, "10.109.35.30:80", 4);
    assert_eq!(report.per_pod.get("node"), Some(&4), "{report:?}");
    // Local pods still work as clients.
    assert_eq!(g.http(&pod.ns, "10.109.35.30:80", 5).failed(), 0);
    assert_eq!(g.reason(Reason::NextHopKernel), 0);
    g.print_frames();
    drop(node);
}

#[test]
fn strict_reverse_paths_and_without_own_addresses() {
    let scene = scene("lt-rp");
    scene.gw.sysctl("net.ipv4.conf.all.rp_filter", "1").unwrap();
    scene.gw.sysctl("net.ipv4.conf.default.rp_filter", "1").unwrap();
    let (before, remote) = (scene.gw.ip("rule show").unwrap(), remote());
    let g = Gateway::start_in(scene, "", &web(&as_str(&remote)));
    for to in ["10.109.35.30:80", "[fd00:10:109::30]:80", "203.0.113.7:80", "198.51.100.9:80"] {
        let report = g.http(&g.scene.gw, to, 10);
        assert_eq!((report.answered(), report.failed()), (10, 0), "{to}: {report:?}");
    }
    let rules = g.scene.gw.ip("rule show").unwrap();
    assert_eq!(rules.lines().count(), before.lines().count() + 1, "{rules}");
    assert!(rules.starts_with("0:\tfrom all lookup local"), "the kernel's own rules stay where they are: {rules}");
    assert_eq!(g.http(&g.scene.gw, "10.0.0.1:30080", 2).answered(), 0);
}

#[test]
fn other_traffic_uses_the_kernels_routes() {
    let scene = scene("lt-way");
    // The kernel routes 203.0.113.7 to the client, and one part of the Service range elsewhere.
    for addr in ["203.0.113.7", "10.110.0.7"] {
        scene.client.ip(&format!("addr add {addr}/32 dev lo")).unwrap();
    }
    scene.gw.ip("route add 203.0.113.0/24 via 10.0.0.2").unwrap();
    scene.gw.ip("route add 10.110.0.0/24 via 10.0.0.2").unwrap();
    // Policy routing by source, which matches as soon as a connection has a source, and a foreign rule with its table.
    scene.gw.ip("rule add pref 1000 from 10.0.0.1 lookup 100").unwrap();
    scene.gw.ip("route add default via 10.0.0.2 table 100").unwrap();
    // It counts for the node's packets to endpoints as well, which the kernel would route after DNAT.
    scene.gw.ip("route add 192.168.0.0/16 dev pods0 table 100").unwrap();
    let before = kernel_state(&scene.gw);
    let elsewhere = start_pod(&scene.client, PodOptions { http_port: 8080, udp_port: 8053, ..PodOptions::new("elsewhere") }).unwrap();
    let remote = remote();
    let mut g = Gateway::start_in(scene, OWN, &web(&as_str(&remote)));
    for to in ["203.0.113.7:80", "10.109.35.30:80"] {
        assert_eq!(g.http(&g.scene.gw, to, 5).failed(), 0, "{to}");
    }
    for to in ["203.0.113.7:8080", "10.110.0.7:8080"] {
        let report = g.http(&g.scene.gw, to, 5);
        assert_eq!(report.per_pod.get("elsewhere"), Some(&5), "{to}: {report:?}");
    }
    g.scene.gw.exec("ping", &["-c1", "-W2", "203.0.113.7"]).unwrap();
    // Entries removed by others are restored soon.
    g.scene.gw.ip("rule del pref 110").unwrap();
    g.scene.gw.ip("route flush table 28269").unwrap();
    wait_for("the rule to be repaired", LONG, || g.scene.gw.ip("rule show").unwrap().contains("110:\tfrom all iif lo lookup 28269"));
    assert_eq!(g.http(&g.scene.gw, "10.109.35.30:80", 5).failed(), 0);

    // The process is killed; after the grace period the node behaves as if nomagic were not running.
    g.kill();
    let passed = |g: &Gateway| g.http(&g.scene.gw, "203.0.113.7:8080", 1).per_pod.contains_key("elsewhere");
    wait_for("the node's own connections to be passed", LONG, || passed(&g));
    let report = g.http(&g.scene.gw, "203.0.113.7:80", 1);
    assert!(report.failures.keys().all(|f| f.contains("refused")), "by the client's kernel: {report:?}");
    // The next process takes over the remaining routes and rules.
    g.restart();
    assert_eq!(g.http(&g.scene.gw, "203.0.113.7:80", 5).failed() + g.http(&g.scene.gw, "10.0.0.1:30080", 5).failed(), 0);
    g.kill();
    g.scene.gw.exec(NOMAGIC, &["cleanup", "--state-dir", &g.state_dir().to_string_lossy()]).unwrap();
    assert_eq!(kernel_state(&g.scene.gw), before);
    assert!(passed(&g));
    drop(elsewhere);
}

#[test]
fn addresses_change_at_run_time() {
    let scene = scene("lt-api");
    let before = kernel_state(&scene.gw);
    let api = scene.gw.run(|| FakeApiServer::start("127.0.0.1:0".parse().unwrap(), None)).unwrap().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let text =
        config(dir.path(), OWN).replace("manifests: manifests.yaml", &format!("kubernetes: {{url: '{}'}}\ndetachOnExit: true", api.url()));
    let mut g = Gateway::begin(scene, dir, &text);
    g.wait_until_ready();
    let remote = remote();
    let objects = web(&as_str(&remote));
    api.put_yaml(&objects).unwrap();
    let answers = |g: &Gateway, to: &str| g.http(&g.scene.gw, to, 1).answered() == 1;
    for to in ["10.109.35.30:80", "203.0.113.7:80", "198.51.100.9:80", "[fd00:77::7]:80", "203.0.113.8:80", "10.0.0.1:30080"] {
        wait_for(&format!("{to} to answer"), LONG, || answers(&g, to));
    }
    // An address is added to the node and removed again.
    g.scene.gw.ip("addr add 203.0.113.7/32 dev lo").unwrap();
    wait_for("the address to be the node's", LONG, || {
        g.scene.gw.ip("rule show").unwrap().contains("to 203.0.113.7 iif lo ipproto tcp dport 80")
    });
    assert!(answers(&g, "203.0.113.7:80"));
    g.scene.gw.ip("addr del 203.0.113.7/32 dev lo").unwrap();
    wait_for("the address to be gone", LONG, || !g.scene.gw.ip("rule show").unwrap().contains("to 203.0.113.7 "));
    wait_for("it to answer as before", LONG, || answers(&g, "203.0.113.7:80"));
    // A Service loses its addresses: its connection continues, and its routes stay until that ends.
    let (mut stream, pod) = g.scene.gw.run(|| keep_alive("203.0.113.7:80".parse().unwrap())).unwrap();
    let less = objects.replace("externalIPs: [203.0.113.7, ", "externalIPs: [").replace(", {ip: 'fd00:78::9'}", "");
    api.put_yaml(&less).unwrap();
    let routed = |g: &Gateway, family: &str, addr: &str| g.scene.gw.ip(&format!("{family} route show table 28269")).unwrap().contains(addr);
    wait_for("the unused address's route to go", LONG, || !routed(&g, "-6", "fd00:78::9"));
    assert!(routed(&g, "-4", "203.0.113.7"), "a connection still uses it");
    assert_eq!(ask(&mut stream), pod);
    drop(stream);
    // With detachOnExit nothing is left.
    g.process.terminate(Duration::from_secs(5)).unwrap();
    assert_eq!(kernel_state(&g.scene.gw), before);
}

#[test]
fn unneeded_entries_of_an_earlier_process_are_removed() {
    let scene = scene("lt-off");
    let before = kernel_state(&scene.gw);
    let remote = remote();
    let mut g = Gateway::start_in(scene, OWN, &web(&as_str(&remote)));
    assert_eq!(g.http(&g.scene.gw, "10.0.0.1:30080", 3).failed(), 0);
    g.kill();
    let off = config(g.dir.path(), "localTraffic: {services: false}");
    std::fs::write(g.config_path(), off).unwrap();
    g.restart();
    for (i, words) in ["rule show", "-6 rule show"].iter().enumerate() {
        assert_eq!(g.scene.gw.ip(words).unwrap(), before[i]);
    }
    assert!(!g.scene.gw.ip("route show table all").unwrap().contains("28269"));
    assert_eq!(g.http(&g.scene.client, "10.109.35.30:80", 3).failed(), 0);
}
