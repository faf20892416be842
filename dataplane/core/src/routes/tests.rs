use super::*;

fn ip(s: &str) -> IpAddr {
    s.parse().unwrap()
}

fn leg(port: u16, gateway: Option<&str>) -> Leg {
    Leg { port: Some(PortId(port)), captured: false, gateway: gateway.map(ip), weight: 1, mtu: None }
}

fn route(prefix: &str, metric: u32, kind: RouteKind) -> Route {
    Route { prefix: prefix.parse().unwrap(), metric, kind }
}

fn ports() -> Vec<Port> {
    (0..2).map(|i| Port { mac: [2, 0, 0, 0, 0, i], mtu: 1500, up: true }).collect()
}

#[test]
fn longest_prefix_then_metric_then_neighbour() {
    let routes = vec![
        route("0.0.0.0/0", 0, RouteKind::Unicast(vec![leg(0, Some("10.0.0.1"))])),
        route("192.168.0.0/16", 5, RouteKind::Unicast(vec![leg(0, None)])),
        route("192.168.0.0/16", 1, RouteKind::Unicast(vec![leg(1, None)])),
        route("192.168.7.0/24", 0, RouteKind::Unreachable),
        route("192.168.0.9/32", 0, RouteKind::Local),
        route("fd00::/64", 0, RouteKind::Unicast(vec![leg(1, Some("fe80::1"))])),
        route("172.31.0.0/16", 0, RouteKind::Unicast(vec![Leg { port: None, captured: true, gateway: None, weight: 1, mtu: None }])),
        route("172.16.0.0/12", 0, RouteKind::Unicast(vec![Leg { port: None, captured: false, gateway: None, weight: 1, mtu: None }])),
    ];
    let neighbours = [
        Neighbour { port: PortId(1), addr: ip("192.168.0.2"), mac: [2; 6] },
        Neighbour { port: PortId(0), addr: ip("10.0.0.1"), mac: [3; 6] },
        Neighbour { port: PortId(1), addr: ip("fe80::1"), mac: [4; 6] },
        Neighbour { port: PortId(9), addr: ip("10.0.0.9"), mac: [5; 6] },
    ];
    let (r, left_out) = Routes::build(1, ports(), None, routes, &neighbours);
    assert_eq!(left_out, 1, "a neighbour of a port that does not exist");
    let mac = |way| match way {
        Resolution::Hop(id) => r.hop(id).map(|h| (h.port.0, h.dst_mac()[0])),
        _ => None,
    };
    assert_eq!(mac(r.resolve(ip("192.168.0.2"), 0)), Some((1, 2)));
    assert_eq!(mac(r.resolve(ip("8.8.8.8"), 0)), Some((0, 3)));
    assert_eq!(mac(r.resolve(ip("fd00::77"), 0)), Some((1, 4)));
    assert_eq!(r.resolve(ip("192.168.0.3"), 0), Resolution::Ask(Wanted { port: PortId(1), addr: ip("192.168.0.3") }));
    assert_eq!(r.resolve(ip("192.168.7.1"), 0), Resolution::Nowhere(Reason::Unreachable));
    assert_eq!(r.resolve(ip("192.168.0.9"), 0), Resolution::Kernel { captured: false });
    assert_eq!(r.resolve(ip("172.16.3.3"), 0), Resolution::Kernel { captured: false });
    assert_eq!(r.resolve(ip("172.31.3.3"), 0), Resolution::Kernel { captured: true });
    assert_eq!(["192.168.0.9", "192.168.0.8", "::192.168.0.9"].map(|addr| r.is_local(ip(addr))), [true, false, false]);
    let r = r.with_answers_seen([false, true]);
    let seen = ["10.9.9.9", "192.168.0.2", "172.31.3.3", "172.16.3.3", "192.168.0.9", "192.168.7.1", "fd00::77", "fd01::1"];
    assert_eq!(seen.map(|client| r.sees_answers_to(ip(client))), [false, true, false, false, false, false, true, false]);
    assert_eq!(r.kernel_hop(), None, "without an internal port");
    assert_eq!(r.resolve(ip("fd01::1"), 0), Resolution::Nowhere(Reason::NoRoute));
    assert_eq!(r.hop(NextHopId(0)), None);
    assert_eq!(r.hop(NextHopId(999)), None);
}

#[test]
fn a_port_that_is_down_leads_nowhere() {
    let mut down = ports();
    down[0].up = false;
    let routes = vec![route("10.0.0.0/8", 0, RouteKind::Unicast(vec![leg(0, None)]))];
    let (r, _) = Routes::build(1, down, None, routes, &[]);
    assert_eq!(r.resolve(ip("10.0.0.1"), 0), Resolution::Nowhere(Reason::PortDown));
}

#[test]
fn multipath_follows_weights() {
    let legs = vec![
        Leg { port: Some(PortId(0)), captured: false, gateway: Some(ip("10.0.0.1")), weight: 3, mtu: None },
        Leg { port: Some(PortId(1)), captured: false, gateway: Some(ip("10.0.0.2")), weight: 1, mtu: None },
    ];
    let mut counts = [0u32; 2];
    let mut state = 1;
    for _ in 0..4_000 {
        let hash = crate::tuple::splitmix64(&mut state);
        counts[usize::from(pick_leg(&legs, hash).unwrap().port.unwrap().0)] += 1;
    }
    assert!((2_850..3_150).contains(&counts[0]), "{counts:?}");
}

fn table(routes: &[(&str, RouteKind)]) -> Vec<Route> {
    routes.iter().map(|(prefix, kind)| route(prefix, 0, kind.clone())).collect()
}

fn by(port: u16) -> RouteKind {
    RouteKind::Unicast(vec![leg(port, None)])
}

/// A UDP packet that came in by port 0.
fn query(src: &str, dst: &str) -> RouteQuery {
    let ((src, v6), (dst, _)) = (addr_words(ip(src)), addr_words(ip(dst)));
    RouteQuery { src, dst, v6, port: PortId(0), proto: Proto::Udp, sport: 1_000, dport: 53 }
}

fn with_rules(rules: Vec<Rule>) -> Routes {
    let tables = vec![
        table(&[("10.0.0.0/8", by(0)), ("0.0.0.0/0", by(0))]),
        table(&[
            ("10.0.0.0/8", by(1)),
            ("10.3.0.0/16", RouteKind::Throw),
            ("10.4.0.0/16", RouteKind::Prohibit),
            ("10.6.0.0/16", RouteKind::Kernel),
        ]),
    ];
    let policy = Policy { tables, rules };
    let internal = Some(InternalPort { port: PortId(1), kernel_mac: [9; 6] });
    Routes::with_policies(1, ports(), internal, [policy, Policy::default()], &[]).0
}

fn lookup(table: usize) -> RuleAction {
    RuleAction::Lookup { table, suppressed: None }
}

/// The port that a packet goes out by, `"kernel"`, or the reason why it goes nowhere.
fn way(routes: &Routes, query: &RouteQuery) -> String {
    let (resolution, for_all) = routes.resolve_with(query, || 0);
    assert!(!for_all, "with rules an answer holds for one packet");
    match resolution {
        Resolution::Ask(wanted) => wanted.port.0.to_string(),
        Resolution::Kernel { .. } => "kernel".into(),
        Resolution::Nowhere(reason) => reason.label().into(),
        Resolution::Hop(_) => unreachable!("no neighbours are known"),
    }
}

#[test]
fn rules_select_tables_by_each_selector() {
    let from = |prefix: &str| Rule { from: Some(prefix.parse().unwrap()), ..Rule::all(lookup(1)) };
    let span = |first, last| Some(PortSpan { first, last });
    let internal = RouteQuery { port: PortId(1), ..query("10.1.1.1", "10.2.2.2") };
    let cases = [
        (Rule::all(lookup(1)), "1", "1"),
        (from("10.1.0.0/16"), "1", "1"),
        (from("10.9.0.0/16"), "0", "0"),
        (Rule { invert: true, ..from("10.9.0.0/16") }, "1", "1"),
        (Rule { to: Some("10.2.2.2/32".parse().unwrap()), ..Rule::all(lookup(1)) }, "1", "1"),
        (Rule { to: Some("10.2.2.3/32".parse().unwrap()), ..Rule::all(lookup(1)) }, "0", "0"),
        (Rule { input: Input::Port(PortId(0)), ..Rule::all(lookup(1)) }, "1", "0"),
        (Rule { input: Input::Elsewhere, ..Rule::all(lookup(1)) }, "0", "kernel"),
        (Rule { proto: Some(Proto::Udp), ..Rule::all(lookup(1)) }, "1", "1"),
        (Rule { proto: Some(Proto::Tcp), ..Rule::all(lookup(1)) }, "0", "0"),
        (Rule { sports: span(1_000, 1_000), dports: span(50, 60), ..Rule::all(lookup(1)) }, "1", "1"),
        (Rule { dports: span(54, 60), ..Rule::all(lookup(1)) }, "0", "0"),
        (Rule { opaque: true, ..from("10.1.0.0/16") }, "kernel", "kernel"),
        (Rule { opaque: true, ..from("10.9.0.0/16") }, "0", "0"),
        (Rule { opaque: true, invert: true, ..from("10.9.0.0/16") }, "1", "1"),
        (Rule::all(RuleAction::Unreachable), "no_route", "no_route"),
        (Rule::all(RuleAction::Prohibit), "route_prohibited", "route_prohibited"),
        (Rule::all(RuleAction::Blackhole), "route_blackhole", "route_blackhole"),
        (Rule::all(RuleAction::Kernel), "kernel", "kernel"),
    ];
    for (rule, outside, inside) in cases {
        let routes = with_rules(vec![rule.clone(), Rule::all(lookup(0))]);
        assert_eq!(way(&routes, &query("10.1.1.1", "10.2.2.2")), outside, "{rule:?}");
        assert_eq!(way(&routes, &internal), inside, "by the internal port: {rule:?}");
        assert_eq!(routes.depends_on_port(false), rule.input != Input::Any);
    }
}

#[test]
fn what_a_table_does_not_decide_the_next_rule_does() {
    let routes = with_rules(vec![Rule::all(lookup(1)), Rule::all(lookup(0))]);
    let to = |dst| way(&routes, &query("10.1.1.1", dst));
    assert_eq!(["10.2.2.2", "10.3.2.2", "10.4.2.2", "10.6.2.2", "9.9.9.9"].map(to), ["1", "0", "route_prohibited", "kernel", "0"]);
    assert!(routes.leads_by(ip("10.2.2.2"), PortId(0)) && routes.leads_by(ip("10.2.2.2"), PortId(1)), "either table may decide");
    // Without its routes up to this length.
    let suppressed = |most| {
        let rule = Rule::all(RuleAction::Lookup { table: 1, suppressed: Some(most) });
        let routes = with_rules(vec![rule, Rule::all(lookup(0))]);
        ["10.2.2.2", "10.4.2.2"].map(|dst| way(&routes, &query("10.1.1.1", dst)))
    };
    assert_eq!(suppressed(7), ["1", "route_prohibited"]);
    assert_eq!(suppressed(16), ["0", "route_prohibited"], "an error counts whatever its length");
    let none = with_rules(vec![Rule { from: Some("10.9.0.0/16".parse().unwrap()), ..Rule::all(lookup(0)) }]);
    assert_eq!(way(&none, &query("10.1.1.1", "10.2.2.2")), "no_route");
    let passes = with_rules(vec![Rule::all(RuleAction::GoTo(2)), Rule::all(RuleAction::Blackhole), Rule::all(lookup(1))]);
    assert_eq!(way(&passes, &query("10.1.1.1", "10.2.2.2")), "1");
}

#[test]
fn a_routes_own_mtu_has_a_next_hop_of_its_own() {
    let kind = |mtu| RouteKind::Unicast(vec![Leg { mtu, ..leg(0, Some("10.0.0.1")) }]);
    let routes = table(&[("10.1.0.0/16", kind(None)), ("10.2.0.0/16", kind(Some(1_400))), ("10.3.0.0/16", kind(Some(9_000)))]);
    let neighbours = [Neighbour { port: PortId(0), addr: ip("10.0.0.1"), mac: [3; 6] }];
    let (routes, left_out) = Routes::build(1, ports(), None, routes, &neighbours);
    let mtu = |dst| match routes.resolve(ip(dst), 0) {
        Resolution::Hop(id) => routes.hop(id).map(|hop| (hop.mtu, hop.dst_mac()[0])),
        _ => None,
    };
    assert_eq!(["10.1.1.1", "10.2.1.1", "10.3.1.1"].map(mtu), [Some((1_500, 3)), Some((1_400, 3)), Some((1_500, 3))]);
    assert_eq!(left_out, 0);
}
