//! What flows are about: Services, routes and hosts, in several states.

use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use nomagic_core::frame::PortId;
use nomagic_core::reason::Reason;
use nomagic_core::routes::{InternalPort, Leg, Neighbour, Port, Route, RouteKind, Routes};
use nomagic_core::services::{Action, Affinity, ClientLimit, ConnectionsPerClient, Limits, ServicePort, Services, TcpReject};
use nomagic_core::tuple::{PrefixSet, Proto};
use nomagic_core_fixtures::{
    CLIENTS, INTERNAL, KERNEL_MAC, NEIGHBOURS, PODS, PORT_MACS, add_action, add_service, backend, change, change_backends, ip, local_pods,
    mac_of, on_link, route, services,
};

pub const PROTOS: [Proto; 3] = [Proto::Tcp, Proto::Udp, Proto::Sctp];

/// Services, by the last number of their address: with DNAT only, with SNAT, behind the kernel and in sight of the filter, behind it and out of
/// sight, with affinity, with an endpoint that is a client, without a neighbour, unreachable, rejecting, dropping; an address of the node, an
/// unallocated one.
pub const SERVICES: [&str; 12] = ["1", "2", "1", "2", "3", "4", "5", "6", "7", "8", "9", "99"];

/// Clients of both families, and the ports that they come in by: on the link; without a known neighbour; behind a gateway; a pod; a pod of this
/// node; forged.
pub const CLIENTS_V4: [(PortId, &str); 6] = [
    (CLIENTS, "10.0.0.2"),
    (CLIENTS, "10.0.0.77"),
    (CLIENTS, "203.0.113.9"),
    (PODS, "192.168.1.4"),
    (INTERNAL, "172.31.0.5"),
    (CLIENTS, "192.168.1.1"),
];
pub const CLIENTS_V6: [(PortId, &str); 6] = [
    (CLIENTS, "fd00:a::2"),
    (CLIENTS, "fd00:a::77"),
    (CLIENTS, "fd00:a::3"),
    (PODS, "fd00:b::4"),
    (INTERNAL, "fd00:c::5"),
    (CLIENTS, "fd00:b::1"),
];

/// Number of states of the service table.
pub const SERVICE_STATES: usize = 7;
/// Number of states of the routes.
pub const ROUTE_STATES: usize = 7;

static STATES: LazyLock<Vec<Services>> = LazyLock::new(|| (0..SERVICE_STATES).map(state).collect());

/// The service table in a state; each is compiled once.
pub fn services_in(state: usize) -> Services {
    STATES[state % SERVICE_STATES].clone()
}

fn both(last: &str) -> [String; 2] {
    [format!("10.96.0.{last}"), format!("fd00:96::{last}")]
}

fn base() -> Services {
    let mut s = services();
    let targets = [("3", "172.31.0.9", "fd00:c::9"), ("6", "192.168.1.4", "fd00:b::4"), ("7", "192.168.9.9", "fd00:b::99")];
    for proto in PROTOS {
        for (last, v4, v6) in targets {
            for (addr, target) in both(last).iter().zip([v4, v6]) {
                add_service(&mut s, addr, 80, proto, &[backend(target, 8080)], false);
            }
        }
        // These two have no counterpart in IPv6.
        add_service(&mut s, "10.96.0.4", 80, proto, &[backend("172.16.9.9", 8080)], false);
        add_service(&mut s, "10.96.0.9", 80, proto, &[backend("192.168.77.1", 8080)], false);
        for addr in both("8") {
            add_action(&mut s, &addr, 80, proto, Action::Reject(Reason::NoEndpoints));
        }
        let pods: Vec<_> = (1..=4).map(|i| backend(&format!("192.168.1.{i}"), 8080)).collect();
        add_service(&mut s, "10.96.0.5", 80, proto, &pods, true);
        let affinity = |port: &ServicePort| Affinity::new("test", &port.name, "", proto, 60);
        let Some(mut frontend) = s.frontend(ip("10.96.0.5"), 80, proto).cloned() else { continue };
        frontend.port = Arc::new(ServicePort { affinity: Some(affinity(&frontend.port)), ..(*frontend.port).clone() });
        s.set_frontend(ip("10.96.0.5"), 80, proto, Some(frontend));
    }
    s.node_ips = [ip("10.0.0.1")].into_iter().collect();
    s
}

fn state(state: usize) -> Services {
    let mut s = base();
    match state {
        // Four source ports, of which one client may hold half. Three connections of a client to each Service.
        1 => {
            change(&mut s, |frontend| {
                let port = &*frontend.port;
                let per_client = ConnectionsPerClient::new(3).map(|most| ClientLimit::new(most, &port.namespace, &port.name));
                let limits = Limits { per_client, ..Limits::default() };
                frontend.port = Arc::new(ServicePort { limits, ..port.clone() });
            });
            (s.snat.port_first, s.snat.port_last) = (61_000, 61_003);
            (s.snat.share_percent, s.snat.client_share_percent) = (75, 50);
        }
        // Resets instead of ICMP and after the idle time, two source addresses, sixteen ports.
        2 => {
            s.tcp_reject = TcpReject::Reset;
            s.reset_idle = true;
            s.snat.v4.push(ip("10.0.0.3"));
            (s.snat.port_first, s.snat.port_last) = (61_000, 61_015);
        }
        // Other endpoints.
        3 => change_backends(&mut s, |old| match old.len() {
            3 => (2..=4).map(|i| backend(&format!("192.168.1.{i}"), 8080)).collect(),
            _ => old.to_vec(),
        }),
        // No endpoints, and no source addresses.
        4 => {
            change(&mut s, |frontend| frontend.external = Action::Reject(Reason::NoEndpoints));
            (s.snat.v4, s.snat.v6) = (vec![], vec![]);
        }
        // Pods are known, some clients are not wanted, SNAT for all.
        5 => {
            s.set_pods(&["192.168.0.0/16".parse().expect("a prefix")]);
            change(&mut s, |frontend| {
                frontend.source_ranges = Some(PrefixSet::new(["10.0.0.2/31", "fd00:a::/64"].map(|p| p.parse().expect("a prefix"))).into());
                if let Action::Forward { snat, .. } = &mut frontend.external {
                    *snat = true;
                }
            });
        }
        // Silence, and no source ports.
        6 => {
            change(&mut s, |frontend| frontend.pod = Action::Drop(Reason::NoLocalEndpoints));
            (s.snat.port_first, s.snat.port_last) = (2, 1);
        }
        _ => {}
    }
    s.generation = state as u64;
    s
}

/// The routes in a state.
pub fn routes_in(state: usize, generation: u64) -> Routes {
    let state = state % ROUTE_STATES;
    let mtu = if state == 1 { 600 } else { 1_500 };
    // The pods' port is down.
    let up = |port: usize| state != 2 || PortId(port as u16) != PODS;
    let ports = PORT_MACS.iter().enumerate().map(|(i, &mac)| Port { mac, mtu, up: up(i) }).collect();
    let leg = |port, gateway: Option<&str>| Leg { port, captured: false, gateway: gateway.map(ip), weight: 1, mtu: None };
    let pods = |port: PortId| match state {
        3 => RouteKind::Unicast(vec![leg(Some(PODS), None), leg(Some(CLIENTS), None)]),
        // They have moved.
        4 => on_link(CLIENTS),
        _ => on_link(port),
    };
    let elsewhere = RouteKind::Unicast(vec![leg(None, None)]);
    let mut routes = vec![
        route("10.0.0.0/24", on_link(CLIENTS)),
        route("fd00:a::/64", on_link(CLIENTS)),
        route("192.168.0.0/16", pods(PODS)),
        route("fd00:b::/64", pods(PODS)),
        route("192.168.77.0/24", RouteKind::Unreachable),
        route("172.16.0.0/12", elsewhere),
        route("172.31.0.0/16", local_pods(state != 5)),
        route("fd00:c::/64", local_pods(state != 5)),
        route("10.0.0.1/32", RouteKind::Local),
        route("203.0.113.0/24", RouteKind::Unicast(vec![leg(Some(CLIENTS), Some("10.0.0.254"))])),
    ];
    routes.retain(|route: &Route| state != 6 || route.prefix.addr() != ip("10.0.0.0"));
    let on = |port| if state == 4 { CLIENTS } else { port };
    let neighbours: Vec<Neighbour> =
        NEIGHBOURS.iter().map(|&(port, addr)| Neighbour { port: on(port), addr: ip(addr), mac: mac_of(addr) }).collect();
    let internal = (state != 6).then_some(InternalPort { port: INTERNAL, kernel_mac: KERNEL_MAC });
    Routes::build(generation, ports, internal, routes, &neighbours).0
}

/// The address of a Service.
pub fn service(number: usize, v6: bool) -> IpAddr {
    let last = SERVICES[number % SERVICES.len()];
    let [v4_addr, v6_addr] = both(last);
    ip(if v6 { &v6_addr } else { &v4_addr })
}

/// A client: the port that its frames come in by, and its address.
pub fn client(number: usize, v6: bool) -> (PortId, IpAddr) {
    let (port, addr) = if v6 { CLIENTS_V6[number % 6] } else { CLIENTS_V4[number % 6] };
    (port, ip(addr))
}
