//! nomagic, or the kernel's NAT in its place, between a client and an endpoint that only send what the test sends.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use nomagic_core::tuple::Proto;
use nomagic_sys::packet_socket::PacketSocket;
use nomagic_testbed::rig::{CLIENT_V4, CLIENT_V6, Netns, PODS, Scene};

use super::generate::Side;
use super::packet::{Ends, Form, Role, Special};
use super::seen::ip_packet;
use crate::common::kernel_nat::load_rules;
use crate::common::*;

/// MTU of the endpoints' link.
pub const ENDPOINT_MTU: usize = 1_400;
/// MTU of the route to some of the clients.
pub const NARROW_MTU: usize = 1_320;
/// Without SNAT, and with it.
const CLUSTER_IPS: [&str; 2] = ["10.109.35.24", "fd00:10:109::24"];
const LB_IPS: [&str; 2] = ["203.0.113.10", "2001:db8:1b::10"];
/// What `masquerade` chooses at the endpoints' side.
const SNAT: [&str; 2] = ["192.168.0.1", "fd00:192::1"];
/// Service ports, and those of the endpoint.
const PORTS: [(Proto, &str, u16, u16); 3] =
    [(Proto::Tcp, "tcp", 80, 8_080), (Proto::Udp, "udp", 53, 5_353), (Proto::Sctp, "sctp", 3_868, 13_868)];
/// The client of the markers.
const MARKER: (Ipv4Addr, u16) = (Ipv4Addr::new(172, 31, 255, 254), 9);
const PATIENCE: Duration = Duration::from_secs(5);

/// The Service's address and port.
pub fn service(v6: bool, snat: bool, proto: Proto) -> (IpAddr, u16) {
    let addrs = if snat { LB_IPS } else { CLUSTER_IPS };
    let port = PORTS.iter().find(|port| port.0 == proto).expect("all protocols").2;
    (addrs[usize::from(v6)].parse().unwrap(), port)
}

/// A router beyond the gateway, on this side.
pub fn router(v6: bool, side: Side) -> IpAddr {
    let addrs = match side {
        Side::Client => ["172.20.0.9", "fd00:c0:ffff::9"],
        Side::Endpoint => ["192.168.0.99", "fd00:192::99"],
    };
    addrs[usize::from(v6)].parse().unwrap()
}

/// Whether the gateway has this address.
pub fn is_gateways(addr: IpAddr) -> bool {
    ["10.0.0.1", "192.168.0.1", "fd00:a::1", "fd00:192::1"].iter().any(|own| addr == own.parse::<IpAddr>().unwrap())
}

fn manifest() -> String {
    let [v4, v6] = CLUSTER_IPS;
    let ports: Vec<_> = PORTS.map(|(_, name, port, _)| (name, name.to_uppercase(), port)).into_iter().collect();
    let ports: Vec<_> = ports.iter().map(|(name, proto, port)| (*name, proto.as_str(), *port, 0)).collect();
    let spec = format!(
        "type: LoadBalancer\nallocateLoadBalancerNodePorts: false\nclusterIP: {v4}\nclusterIPs: [{v4}, '{v6}']\nipFamilies: [IPv4, IPv6]"
    );
    let status = format!("status: {{loadBalancer: {{ingress: [{{ip: {}}}, {{ip: '{}'}}]}}}}", LB_IPS[0], LB_IPS[1]);
    let text = manifests(&[Svc { name: "differs", spec: &spec, status: &status, ports: &ports, pods: &[0] }]);
    // The endpoint's ports.
    let (service, slices) = text.split_at(text.find("---\napiVersion: discovery").expect("slices"));
    let slices = PORTS
        .iter()
        .fold(slices.to_owned(), |text, (.., port, target)| text.replace(&format!("port: {port}}}"), &format!("port: {target}}}")));
    format!("{service}{slices}")
}

/// Rules as kube-proxy writes them: DNAT, a mark where the source is replaced, and nothing that conntrack calls invalid.
fn rules() -> String {
    let mut text = String::new();
    for (i, family) in ["ip", "ip6"].into_iter().enumerate() {
        let pod = if i == 0 { PODS[0].v4.to_string() } else { format!("[{}]", PODS[0].v6) };
        let dnat: String = PORTS
            .iter()
            .flat_map(|(_, name, port, target)| {
                [
                    format!("  {family} daddr {} {name} dport {port} dnat to {pod}:{target}\n", CLUSTER_IPS[i]),
                    format!("  {family} daddr {} {name} dport {port} meta mark set 0x4000 dnat to {pod}:{target}\n", LB_IPS[i]),
                ]
            })
            .collect();
        text += &format!(
            "table {family} t {{\n chain pre {{\n  type nat hook prerouting priority -100;\n{dnat} }}\n \
             chain post {{\n  type nat hook postrouting priority 100;\n  meta mark & 0x4000 == 0x4000 masquerade fully-random\n }}\n \
             chain refuse {{\n  type filter hook forward priority 0;\n  ct state invalid drop\n }}\n}}\n"
        );
    }
    text
}

/// One that translates, with a client's and an endpoint's end.
pub struct World {
    pub name: &'static str,
    gateway: Result<Gateway, Scene>,
    /// By side.
    ends: [End; 2],
    markers: u16,
    buffer: Vec<u8>,
}

struct End {
    socket: PacketSocket,
    link: Vec<u8>,
}

impl World {
    /// The kernel's NAT.
    pub fn kernel() -> World {
        let scene = prepared("nd-k");
        load_rules(&scene, &rules());
        for (key, value) in [
            ("net.netfilter.nf_conntrack_frag6_high_thresh", "67108864"),
            ("net.ipv4.ipfrag_high_thresh", "67108864"),
            ("net.netfilter.nf_conntrack_frag6_timeout", "4"),
        ] {
            scene.gw.sysctl(key, value).unwrap();
        }
        World::with("the kernel", Err(scene))
    }

    pub fn nomagic() -> World {
        let scene = prepared("nd-n");
        let extra = format!("workers: 1\nsnat: {{addresses: [{}, '{}']}}", SNAT[0], SNAT[1]);
        World::with("nomagic", Ok(Gateway::start_in(scene, &extra, &manifest())))
    }

    fn with(name: &'static str, gateway: Result<Gateway, Scene>) -> World {
        let scene = gateway.as_ref().map_or_else(|scene| scene, |gateway| &gateway.scene);
        let ends = [(&scene.client, "cl0"), (&scene.pods[0], "pods0")].map(|(ns, port)| {
            let index = ns.ip("-o link show dev eth0").unwrap().split(':').next().unwrap().trim().parse().unwrap();
            let socket = ns.run(move || PacketSocket::open_capture(index)).unwrap().expect("a packet socket");
            End { socket, link: [scene.gw.link_mac(port).unwrap(), ns.link_mac("eth0").unwrap()].concat() }
        });
        let mut world = World { name, gateway, ends, markers: 0, buffer: vec![0; 65_536] };
        // The bridge learns where the endpoint is.
        world.flush();
        world.flush();
        world
    }

    pub fn gateway(&self) -> Option<&Gateway> {
        self.gateway.as_ref().ok()
    }

    /// The Ethernet header of what this side sends.
    pub fn link(&self, side: Side, v6: bool) -> Vec<u8> {
        [&self.ends[side as usize].link[..], if v6 { &[0x86, 0xdd] } else { &[0x08, 0x00] }].concat()
    }

    pub fn send(&self, side: Side, frame: &[u8]) {
        self.ends[side as usize].socket.send(frame).unwrap_or_else(|e| panic!("{} bytes from {side:?}: {e}", frame.len()));
    }

    /// Waits until all that was sent has gone through, and returns the IP packets that have arrived at both ends. Marked packets go to the endpoint, back,
    /// and there again: what was made for a frame that one of them follows is sent before the next one.
    pub fn flush(&mut self) -> [Vec<Vec<u8>>; 2] {
        let mut arrived = [Vec::new(), Vec::new()];
        let (service, endpoint) = (service(false, false, Proto::Udp), (IpAddr::from(PODS[0].v4), 5_353));
        let client = (IpAddr::from(MARKER.0), MARKER.1);
        for from in [Side::Client, Side::Endpoint, Side::Client] {
            let ends = if from == Side::Client { Ends { src: client, dst: service } } else { Ends { src: endpoint, dst: client } };
            self.markers = self.markers % 60_000 + 1;
            let payload = usize::from(self.markers % 100);
            let form = Form { role: Role::Opens, special: Special::Nothing, ttl: 64, tos: 0, dont_fragment: false, payload };
            let packet = form.packet(Proto::Udp, &ends, self.markers);
            self.send(from, &[self.link(from, false), packet].concat());
            self.receive_until(from.other(), client, &mut arrived);
        }
        arrived
    }

    /// Reads both ends until the next marker has come to this side.
    fn receive_until(&mut self, marked: Side, client: (IpAddr, u16), arrived: &mut [Vec<Vec<u8>>; 2]) {
        let end = Instant::now() + PATIENCE;
        let mut found = false;
        while !found {
            assert!(Instant::now() < end, "{}: no marker came to {marked:?}; {}", self.name, self.account());
            for side in [Side::Client, Side::Endpoint] {
                while let Some(len) = self.ends[side as usize].socket.receive(&mut self.buffer).expect("a capture") {
                    let Some(packet) = ip_packet(&self.buffer[..len]) else { continue };
                    let (src, dst) = super::packet::addresses(packet);
                    if src == client.0 || dst == client.0 {
                        found |= side == marked && packet[4..6] == self.markers.to_be_bytes();
                    } else {
                        arrived[side as usize].push(packet.to_vec());
                    }
                }
            }
            std::thread::yield_now();
        }
    }

    /// Checks that no limit has decided, and no frame is lost.
    pub fn check(&self) {
        use nomagic_core::icmp::ErrorClass;
        use nomagic_core::reason::Reason;
        use nomagic_core::reject::Class;
        assert_eq!(self.lost(), 0, "{}: the captures lost frames", self.name);
        let Some(gateway) = self.gateway() else { return };
        let counts = gateway.status().totals.counts;
        let suppressed = [Class::TimeExceeded, Class::Unreachable, Class::Reset].map(|class| counts.path.rejects_suppressed[class]);
        assert_eq!(suppressed, [0; 3], "{}", self.account());
        let limits =
            [Reason::IcmpLimit, Reason::FragmentHoldFull, Reason::HoldFull, Reason::TxFull, Reason::PoolEmpty, Reason::ConntrackFull];
        assert_eq!(limits.map(|reason| gateway.reason(reason)), [0; 6], "{}", self.account());
        let translated = [ErrorClass::Confirmed, ErrorClass::Answered, ErrorClass::Unconfirmed].map(|class| counts.path.icmp_errors[class]);
        println!("ICMP errors about confirmed, answered and unconfirmed flows: {translated:?}");
        gateway.print_frames();
    }

    /// What the captures have lost.
    pub fn lost(&self) -> u32 {
        self.ends.iter().map(|end| end.socket.lost().expect("statistics")).sum()
    }

    pub fn account(&self) -> String {
        self.gateway().map_or_else(|| "the kernel counted nothing".into(), Gateway::account)
    }
}

/// The scene with deaf ends, static neighbours, small MTUs and without the kernel's limits of ICMP errors.
fn prepared(tag: &str) -> Scene {
    let scene = Scene::new(tag).expect("a scene (needs root)");
    let gw = &scene.gw;
    for (key, value) in [
        ("net.ipv4.conf.all.rp_filter", "0"),
        ("net.ipv4.conf.cl0.rp_filter", "0"),
        ("net.ipv4.conf.pods0.rp_filter", "0"),
        ("net.ipv4.conf.all.send_redirects", "0"),
        ("net.ipv4.conf.cl0.send_redirects", "0"),
        ("net.ipv4.conf.pods0.send_redirects", "0"),
        ("net.ipv4.conf.all.accept_redirects", "0"),
        ("net.ipv4.conf.cl0.accept_redirects", "0"),
        ("net.ipv4.conf.pods0.accept_redirects", "0"),
        // Seconds. As short as nomagic's, so that what is missing shows in a short run.
        ("net.ipv4.ipfrag_time", "4"),
        ("net.ipv6.ip6frag_time", "4"),
        ("net.ipv4.icmp_ratelimit", "0"),
        ("net.ipv4.icmp_ratemask", "0"),
        ("net.ipv6.icmp.ratelimit", "0"),
        ("net.ipv4.icmp_msgs_per_sec", "1000000"),
        ("net.ipv4.icmp_msgs_burst", "1000000"),
    ] {
        gw.sysctl(key, value).unwrap_or_else(|e| panic!("{key}: {e:#}"));
    }
    let lines = |ns: &Netns, lines: &[String]| lines.iter().for_each(|line| drop(ns.ip(line).unwrap()));
    for (ns, port, v4, v6) in [(&scene.client, "cl0", CLIENT_V4, CLIENT_V6), (&scene.pods[0], "pods0", PODS[0].v4, PODS[0].v6)] {
        let mac = ns.link_mac("eth0").unwrap().map(|byte| format!("{byte:02x}")).join(":");
        lines(gw, &[v4.to_string(), v6.to_string()].map(|addr| format!("neigh replace {addr} lladdr {mac} dev {port} nud permanent")));
        ns.sysctl("net.ipv6.conf.eth0.disable_ipv6", "1").unwrap();
        lines(ns, &["addr flush dev eth0".into()]);
    }
    lines(gw, &[format!("link set pods0 mtu {ENDPOINT_MTU}")]);
    let ways = [("172.16.0.0/13", CLIENT_V4.to_string()), ("fd00:c0::/32", CLIENT_V6.to_string())];
    let narrow = [("172.24.0.0/13", CLIENT_V4.to_string()), ("fd00:c1::/32", CLIENT_V6.to_string())];
    lines(gw, &ways.map(|(prefix, via)| format!("route add {prefix} via {via}")));
    lines(gw, &narrow.map(|(prefix, via)| format!("route add {prefix} via {via} mtu lock {NARROW_MTU}")));
    // The node of a cluster has no route to them either.
    lines(
        gw,
        &["10.96.0.0/12", "203.0.113.0/24", "fd00:10:109::/64", "2001:db8:1b::/64"].map(|prefix| format!("route add blackhole {prefix}")),
    );
    scene
}

/// Whether this is the SNAT address.
pub fn is_snat(addr: IpAddr) -> bool {
    SNAT.iter().any(|own| addr == own.parse::<IpAddr>().unwrap())
}

/// The endpoint's address.
pub fn endpoint(v6: bool) -> IpAddr {
    if v6 { Ipv6Addr::into(PODS[0].v6) } else { Ipv4Addr::into(PODS[0].v4) }
}
