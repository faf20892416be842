//! Pods on the gateway node, as clients, backends or both, behind interfaces created and deleted at run time. Needs root.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use nomagic_api::XdpMode;
use nomagic_core::reason::Reason;
use nomagic_testbed::peers::{PodOptions, download, start_pod, upload};
use nomagic_testbed::rig::{CLIENT_V4, CLIENT_V6, GATEWAY_V4, GATEWAY_V6, Netns, PODS, Scene, cable};

use crate::common::local_pod::LocalPod;
use crate::common::*;

const LONG: Duration = Duration::from_secs(20);
const V4: &str = "10.109.35.24:80";
const V6: &str = "[fd00:10:109::24]:80";
const UDP: &str = "10.109.35.24:53";

/// The scene's Service on these endpoints: `(IPv4, IPv6)`.
fn service(endpoints: &[(&str, &str)]) -> String {
    let mut text = manifests(&[Svc {
        name: "nginx",
        spec: "clusterIP: 10.109.35.24\nclusterIPs: [10.109.35.24, 'fd00:10:109::24']\nipFamilies: [IPv4, IPv6]",
        status: "",
        ports: &[("http", "TCP", 80, 0), ("echo", "UDP", 53, 0)],
        pods: &[],
    }]);
    for (family, of) in [("IPv4", 0), ("IPv6", 1)] {
        let addresses = endpoints.iter().map(|e| if of == 0 { e.0 } else { e.1 });
        let list: Vec<String> = addresses.map(|a| format!("{{addresses: ['{a}'], conditions: {{ready: true}}}}")).collect();
        text += &format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: e-{of}, namespace: default, labels: {{kubernetes.io/service-name: nginx}}}}\naddressType: {family}\nendpoints: [{}]\nports: [{{name: http, protocol: TCP, port: 80}}, {{name: echo, protocol: UDP, port: 53}}]\n",
            list.join(", ")
        );
    }
    text
}

fn remote() -> Vec<(String, String)> {
    PODS.iter().map(|p| (p.v4.to_string(), p.v6.to_string())).collect()
}

fn as_str(endpoints: &[(String, String)]) -> Vec<(&str, &str)> {
    endpoints.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect()
}

fn captured(g: &Gateway, interface: &str) -> bool {
    g.status().redirect_ports.iter().any(|p| p.name == interface && p.bound)
}

/// Checks TCP and UDP connections to the Service in both families. `seen` are the client addresses that the pods must see.
fn check(g: &Gateway, from: &Netns, seen: Option<[IpAddr; 2]>) {
    for (to, family) in [(V4, 0), (V6, 1)] {
        let report = g.http(from, to, 20);
        assert_eq!((report.answered(), report.failed()), (20, 0), "{to}: {report:?}");
        if let Some(seen) = seen {
            assert_eq!(report.clients_seen.keys().collect::<Vec<_>>(), [&seen[family]], "{to}");
        }
    }
    assert_eq!(g.udp(from, UDP, 20).failed(), 0);
    let to: SocketAddr = V4.parse().unwrap();
    let both = move || async move { (upload(to, 3_000_000, LONG).await, download(to, 3_000_000, LONG).await) };
    let (up, down) = from.block_on(both).unwrap();
    up.unwrap();
    down.unwrap();
}

const EXTRA: &str = "redirectInterfaces: ['cali*']\nworkers: 2\npackets: {ringSize: 512}";

#[test]
fn a_local_pod_as_client_and_as_backend() {
    let scene = Scene::new("local").expect("a scene (needs root)");
    let (one, two) = (LocalPod::new(&scene, "cali", 1), LocalPod::new(&scene, "cali", 2));
    let own = |pod: &LocalPod| [pod.v4.parse().unwrap(), pod.v6.parse().unwrap()];
    let remote = remote();
    let mut g = Gateway::start_in(scene, EXTRA, &service(&as_str(&remote)));
    assert!(captured(&g, "cali1") && captured(&g, "cali2"));
    // A local client, remote pods: they see the client itself.
    check(&g, &one.ns, Some(own(&one)));
    // A remote client, a local pod: it sees the client itself.
    g.apply(&service(&[(&one.v4, &one.v6)]));
    check(&g, &g.scene.client, Some([CLIENT_V4.into(), CLIENT_V6.into()]));
    // Both local.
    check(&g, &two.ns, Some(own(&two)));
    // Hairpin: the pod itself, which sees the gateway.
    check(&g, &one.ns, Some([GATEWAY_V4.into(), GATEWAY_V6.into()]));
    assert_eq!(g.reason(Reason::NextHopKernel), 0);
    g.print_frames();
    // nomagic receives no other traffic: pod to pod, pod to client, client to pod.
    let received = g.count(|c| c.frames.received.packets);
    let direct = format!("{}:80", two.v4);
    assert_eq!(g.http(&one.ns, &direct, 10).failed() + g.http(&g.scene.client, &direct, 10).failed(), 0);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(g.count(|c| c.frames.received.packets), received, "pods' own traffic is untouched");
    // A Service without endpoints rejects local pods at once, too.
    g.apply(&service(&[]));
    let report = g.http(&one.ns, V4, 2);
    assert_eq!((report.answered(), report.failed()), (0, 2));
    assert!(report.failures.keys().all(|f| f.contains("refused")), "{report:?}");
    g.print_frames();
}

/// Sets the MTU of both ends of a pod's cable.
fn set_mtu(gw: &Netns, pod: &LocalPod, mtu: u32) {
    pod.ns.ip(&format!("link set eth0 mtu {mtu}")).unwrap();
    gw.ip(&format!("link set {} mtu {mtu}", pod.host_side)).unwrap();
}

#[test]
fn local_pods_may_have_a_larger_mtu_than_the_ports() {
    let scene = Scene::new("lmtu").expect("a scene (needs root)");
    let (one, two) = (LocalPod::new(&scene, "cali", 1), LocalPod::new(&scene, "cali", 2));
    [&one, &two].into_iter().for_each(|pod| set_mtu(&scene.gw, pod, 9_000));
    let g = Gateway::start_in(scene, EXTRA, &service(&[(&one.v4, &one.v6)]));
    let internal_mtu = |wanted: u32| {
        let has = || g.scene.gw.ip("link show nm0").unwrap().contains(&format!(" mtu {wanted} "));
        wait_for(&format!("an MTU of {wanted} of the internal pair"), LONG, has);
    };
    internal_mtu(9_000);
    check(&g, &two.ns, Some([two.v4.parse().unwrap(), two.v6.parse().unwrap()]));
    check(&g, &g.scene.client, None);
    assert!(g.status().redirect_ports.iter().all(|port| port.bound && port.xdp_mode == XdpMode::Native), "{}", g.account());
    // While it runs.
    set_mtu(&g.scene.gw, &one, 12_000);
    set_mtu(&g.scene.gw, &two, 12_000);
    internal_mtu(12_000);
    check(&g, &two.ns, None);
    g.print_frames();
}

#[test]
fn pods_are_created_and_deleted() {
    let scene = Scene::new("coming").expect("a scene (needs root)");
    let remote = remote();
    let g = Gateway::start_in(scene, EXTRA, &service(&as_str(&remote)));
    let pod = LocalPod::new(&g.scene, "cali", 3);
    wait_for("the new pod's interface to be captured", LONG, || captured(&g, &pod.host_side));
    check(&g, &pod.ns, None);
    // Its interface is deleted and recreated with the same name.
    g.scene.gw.ip("link delete cali3").unwrap();
    wait_for("the interface to be forgotten", LONG, || !captured(&g, "cali3"));
    LocalPod::cable(&g.scene, &pod.ns, &pod.host_side, &pod.v4, &pod.v6);
    wait_for("the interface to be captured again", LONG, || captured(&g, "cali3"));
    check(&g, &pod.ns, None);
    g.print_frames();
}

/// Endpoints behind the kernel: a pod whose interface no pattern matches, and a server on the node's own network.
#[test]
fn endpoints_behind_the_kernel_see_their_clients() {
    let scene = Scene::new("hidden").expect("a scene (needs root)");
    let (hidden, client_pod) = (LocalPod::new(&scene, "dark", 4), LocalPod::new(&scene, "cali", 6));
    let _node = start_pod(&scene.gw, PodOptions::new("node")).unwrap();
    let mut g = Gateway::start_in(scene, EXTRA, &service(&[(&hidden.v4, &hidden.v6)]));
    assert!(!captured(&g, "dark4") && captured(&g, "cali6"));
    let internal: [IpAddr; 2] = ["169.254.78.78".parse().unwrap(), "fd4e:6f6d:6167::78".parse().unwrap()];
    for endpoint in [(hidden.v4.as_str(), hidden.v6.as_str()), ("10.0.0.1", "fd00:a::1")] {
        g.apply(&service(&[endpoint]));
        check(&g, &g.scene.client, Some([CLIENT_V4.into(), CLIENT_V6.into()]));
        check(&g, &client_pod.ns, Some([client_pod.v4.parse().unwrap(), client_pod.v6.parse().unwrap()]));
        // Answers to the node itself leave by no interface.
        check(&g, &g.scene.gw, Some(internal));
    }
    let answers = g.status().answers;
    assert!(answers.taken > 0 && answers.dropped == 0 && answers.unseen_ports.is_empty(), "{answers:?}");
    g.print_frames();

    // What is not an answer of a carried connection passes: the node's own connections, and its server's direct ones.
    let received = g.count(|c| c.frames.received.packets);
    let direct = g.http(&g.scene.client, "10.0.0.1:80", 20);
    assert_eq!((direct.answered(), direct.clients_seen.keys().collect::<Vec<_>>()), (20, vec![&CLIENT_V4.into()]));
    assert_eq!((g.count(|c| c.frames.received.packets), g.status().answers.taken), (received, answers.taken));
}

/// An ingress controller on the node's own network, behind a Service that is to keep its clients' addresses.
const INGRESS: &str = "apiVersion: v1
kind: Service
metadata: {name: ingress, namespace: default}
spec:
  type: LoadBalancer
  clusterIP: 10.96.1.9
  externalTrafficPolicy: Local
  ports: [{name: http, port: 80, nodePort: 30090}]
status: {loadBalancer: {ingress: [{ip: 198.51.100.9}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: ingress-1, namespace: default, labels: {kubernetes.io/service-name: ingress}}
addressType: IPv4
ports: [{name: http, port: 80}]
endpoints: [{addresses: [10.0.0.1], nodeName: gw}]
";

#[test]
fn policy_local_keeps_the_clients_address_for_an_endpoint_on_the_nodes_network() {
    let scene = Scene::new("ingress").expect("a scene (needs root)");
    let _node = start_pod(&scene.gw, PodOptions::new("node")).unwrap();
    let g = Gateway::start_in(scene, EXTRA, INGRESS);
    for to in ["198.51.100.9:80", "10.0.0.1:30090"] {
        let report = g.http(&g.scene.client, to, 20);
        assert_eq!((report.answered(), report.failed()), (20, 0), "{to}: {report:?}");
        assert_eq!(report.clients_seen.keys().collect::<Vec<_>>(), [&IpAddr::from(CLIENT_V4)], "{to}");
    }
    assert!(g.status().services.problems.is_empty());
    g.print_frames();
}

#[test]
fn after_kill_9_local_pods_reach_the_kernel() {
    let scene = Scene::new("lkill").expect("a scene (needs root)");
    let pod = LocalPod::new(&scene, "cali", 5);
    let remote = remote();
    let mut g = Gateway::start_in(scene, EXTRA, &service(&as_str(&remote)));
    check(&g, &pod.ns, None);
    // Stands in for a kernel proxy: the Service's address on the node, with a server.
    g.scene.gw.ip("addr add 10.109.35.24/32 dev lo").unwrap();
    let server = start_pod(&g.scene.gw, PodOptions::new("kernel")).unwrap();
    g.kill();
    wait_for("the pod's frames to be passed", LONG, || g.http(&pod.ns, V4, 1).per_pod.contains_key("kernel"));
    drop(server);
    g.scene.gw.ip("addr del 10.109.35.24/32 dev lo").unwrap();
    // A new process takes over the pinned programs, also those for answers.
    g.restart();
    assert!(captured(&g, "cali5"));
    check(&g, &pod.ns, None);
    let _node = start_pod(&g.scene.gw, PodOptions::new("node")).unwrap();
    g.apply(&service(&[("10.0.0.1", "fd00:a::1")]));
    check(&g, &pod.ns, Some([pod.v4.parse().unwrap(), pod.v6.parse().unwrap()]));
    g.print_frames();
}

/// Pods on a bridge of the node, as many CNIs have them: what pods send to other networks is addressed to the bridge, not to their cable's end,
/// and what they send to each other is addressed to the other pod.
#[test]
fn pods_on_a_bridge_reach_services_and_each_other_by_services() {
    // With and without the bridge itself among the redirect ports, the pod sees the client, or an address that leads back here.
    for (tag, patterns, client) in [("bridge-p", "'cali*'", "169.254.78.78"), ("bridge-a", "'cali*', cni0", "172.31.9.2")] {
        let scene = Scene::new(tag).expect("a scene (needs root)");
        scene.gw.ip("link add cni0 type bridge stp_state 0 forward_delay 0").unwrap();
        scene.gw.ip("addr add 172.31.9.1/24 dev cni0").unwrap();
        scene.gw.ip("link set cni0 up").unwrap();
        let pods = [2, 3].map(|number| {
            let (ns, host_side) = (Netns::new(&format!("bp{number}")).unwrap(), format!("cali{number}"));
            cable(&ns, "eth0", &scene.gw, &host_side, 1).unwrap();
            scene.gw.ip(&format!("link set {host_side} master cni0")).unwrap();
            ns.ip(&format!("addr add 172.31.9.{number}/24 dev eth0")).unwrap();
            ns.ip("route add default via 172.31.9.1").unwrap();
            ns
        });
        let _server = start_pod(&pods[1], PodOptions::new("neighbour")).unwrap();
        let extra = format!("redirectInterfaces: [{patterns}]");
        let mut g = Gateway::start_in(scene, &extra, &service(&as_str(&remote())));
        assert!(captured(&g, "cali2") && captured(&g, "cali3"));
        let report = g.http(&pods[0], V4, 20);
        assert_eq!((report.answered(), report.failed()), (20, 0), "remote pods: {report:?}");
        g.apply(&service(&[("172.31.9.3", "fd00:31::9")]));
        let report = g.http(&pods[0], V4, 20);
        assert_eq!((report.answered(), report.failed()), (20, 0), "{patterns}: {report:?}");
        assert_eq!(report.clients_seen.keys().collect::<Vec<_>>(), [&client.parse::<IpAddr>().unwrap()], "{patterns}");
        g.print_frames();
    }
}
