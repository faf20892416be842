//! The rules and routes for the node's own connections, next to those of other programs. Needs root.

use std::collections::BTreeSet;
use std::net::IpAddr;

use nomagic::net::local::{LocalPlan, LocalRoutes, PlanInputs, PlanLimits, RouteChanges};
use nomagic::net::{Mirror, NetError, internal};
use nomagic_core::capture::FilterRules;
use nomagic_core::tuple::Proto;
use nomagic_testbed::rig::Netns;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A namespace with the internal port and an address of each family, and its index.
fn node(tag: &str) -> (Netns, u32) {
    let ns = Netns::new(tag).expect("a namespace (needs root)");
    for words in ["link set lo up", "addr add 10.0.0.1/32 dev lo", "addr add fd00::1/128 dev lo nodad"] {
        ns.ip(words).unwrap();
    }
    let index = ns.run(|| internal::ensure(&internal::PairNames::default(), 1500)).unwrap().unwrap().kernel.ifindex;
    (ns, index)
}

fn plan(cidrs: &[&str], services: &[(&str, u16)]) -> LocalPlan {
    let rules = FilterRules {
        service_cidrs: cidrs.iter().map(|c| c.parse().unwrap()).collect(),
        services: services.iter().map(|(a, port)| (ip(a), *port, Proto::Udp)).collect(),
        ..FilterRules::default()
    };
    let own = BTreeSet::from([ip("10.0.0.1"), ip("fd00::1")]);
    let sources = [Some(ip("10.0.0.1")), Some(ip("fd00::1"))];
    LocalPlan::new(
        &PlanInputs {
            rules: &rules,
            own: &own,
            sources,
            foreign: &BTreeSet::new(),
            own_cluster_ips: &BTreeSet::new(),
            own_addresses: true,
        },
        &PlanLimits::default(),
    )
}

fn apply(ns: &Netns, plan: &LocalPlan, index: u32) -> Result<RouteChanges, NetError> {
    ns.run(|| LocalRoutes::open().and_then(|mut routes| routes.apply(plan, index))).unwrap()
}

fn rules(ns: &Netns) -> String {
    ns.ip("rule show").unwrap() + &ns.ip("-6 rule show").unwrap()
}

#[test]
fn applying_is_idempotent_and_clearing_restores_the_rules() {
    let (ns, index) = node("lrsame");
    let before = rules(&ns);
    let all = plan(&["10.96.0.0/12", "fd00:96::/64"], &[("10.0.0.1", 30_000), ("fd00::1", 30_000), ("203.0.113.7", 53)]);
    // By family: a route and a rule for each of the two tables and one rule for the local table; one external address.
    assert_eq!(apply(&ns, &all, index).unwrap(), RouteChanges { added: 11, removed: 0 });
    assert_eq!(apply(&ns, &all, index).unwrap(), RouteChanges::default());
    let text = rules(&ns);
    assert!(text.contains("70:\tfrom all to 10.0.0.1 iif lo ipproto udp dport 30000 lookup 28270"), "{text}");
    assert!(!text.contains("0:\tfrom all lookup local\n32") && text.matches("71:\tfrom all lookup local").count() == 2, "{text}");
    let way = ns.ip("route get 10.100.0.1").unwrap();
    assert!(way.contains("dev nm0 table 28269 src 10.0.0.1"), "{way}");
    // A smaller plan, then none.
    let fewer = plan(&["10.96.0.0/12"], &[]);
    assert_eq!(apply(&ns, &fewer, index).unwrap(), RouteChanges { added: 0, removed: 9 });
    assert!(rules(&ns).starts_with("0:\tfrom all lookup local\n"), "{}", rules(&ns));
    assert_eq!(ns.run(|| LocalRoutes::open().unwrap().clear()).unwrap().unwrap(), RouteChanges { added: 0, removed: 2 });
    assert_eq!(rules(&ns), before);
}

#[test]
fn a_local_rule_moved_by_others_keeps_its_preference() {
    // As with VRFs, and with a preference between nomagic's rules.
    for (preference, services_at) in ["32765", "100"].iter().zip(["32765:\tfrom all iif lo lookup 28269", "110:\tfrom all iif lo"]) {
        let (ns, index) = node(&format!("lrvrf{preference}"));
        for family in ["", "-6 "] {
            ns.ip(&format!("{family}rule add pref {preference} lookup local")).unwrap();
            ns.ip(&format!("{family}rule del pref 0")).unwrap();
        }
        let before = rules(&ns);
        apply(&ns, &plan(&["10.96.0.0/12"], &[("10.0.0.1", 30_000)]), index).unwrap();
        let text = rules(&ns);
        assert!(text.contains(services_at) && text.contains("70:") && !text.contains("71:"), "{text}");
        let local = text.find(&format!("{preference}:\tfrom all lookup local")).expect("the rule");
        assert!(local < text.find("lookup 28269").unwrap(), "the node's own addresses come first: {text}");
        ns.run(|| LocalRoutes::open().unwrap().clear()).unwrap().unwrap();
        assert_eq!(rules(&ns), before);
    }
}

#[test]
fn marked_packets_pass_the_rules_for_services() {
    let (ns, index) = node("lrmark");
    for words in [
        "link add up0 type veth peer name up1",
        "link set up0 up",
        "link set up1 up",
        "addr add 192.0.2.1/24 dev up0",
        "route add default via 192.0.2.254",
    ] {
        ns.ip(words).unwrap();
    }
    let before = rules(&ns);
    let add = || ns.run(|| LocalRoutes::open().unwrap().add_bypass()).unwrap().unwrap();
    add();
    let bypass = rules(&ns);
    add();
    assert_eq!(rules(&ns), bypass);
    assert_eq!(bypass.matches("fwmark 0x4e").count(), 6, "{bypass}");
    assert!(bypass.contains("69:\tfrom all fwmark 0x4e iif lo goto 111") && !bypass.contains("unresolved"), "{bypass}");
    let all = LocalPlan { bypass: true, ..plan(&["10.96.0.0/12", "fd00:96::/64"], &[("10.0.0.1", 30_000)]) };
    apply(&ns, &all, index).unwrap();
    assert_eq!(apply(&ns, &all, index).unwrap(), RouteChanges::default());
    for (to, unmarked, marked) in [
        ("10.100.0.1", "dev nm0 table 28269", "via 192.0.2.254 dev up0"),
        ("10.0.0.1 ipproto udp dport 30000", "dev nm0 table 28270", "local 10.0.0.1 dev lo"),
    ] {
        let way = |mark: &str| ns.ip(&format!("route get {to} {mark}")).unwrap();
        assert!(way("").contains(unmarked) && way("mark 78").contains(marked), "{} {}", way(""), way("mark 78"));
    }
    // A smaller plan keeps the bypass; one without it, and clearing, remove it.
    apply(&ns, &LocalPlan { bypass: true, ..LocalPlan::default() }, index).unwrap();
    assert_eq!(rules(&ns), bypass);
    assert_eq!(ns.run(|| LocalRoutes::open().unwrap().clear()).unwrap().unwrap(), RouteChanges { added: 0, removed: 6 });
    assert_eq!(rules(&ns), before);
}

#[test]
fn pod_ranges_and_kernel_routes() {
    let (ns, index) = node("lrpods");
    for words in [
        "link add cali1 type veth peer name p1",
        "link add cali2 type veth peer name p2",
        "link set cali1 up",
        "link set p1 up",
        "link set cali2 up",
        "link set p2 up",
        "route add 172.31.0.1 dev cali1",
        "route add 172.31.0.1 dev p2 metric 9",
        "route add 172.31.3.0/24 dev cali1 metric 9",
        "-6 route add fd00:31::1 dev cali1",
        "route add 172.31.1.0/24 dev p1",
        "route add 172.31.2.0/24 nexthop dev cali1 nexthop dev p1",
        "route add 172.31.3.0/24 nexthop dev cali1 nexthop dev cali2",
        "route add blackhole 172.31.4.0/24",
        "route add default dev cali1",
        "route add 172.31.5.0/24 dev nm0",
    ] {
        ns.ip(words).unwrap();
    }
    let (pods, kept) = ns
        .block_on(|| async move {
            let mirror = Mirror::start(nomagic::net::MirrorLimits::default()).unwrap();
            let cali = |name: &str| name.starts_with("cali");
            let kept: Vec<String> = mirror.unicast_parts(&"172.16.0.0/12".parse().unwrap(), index).map(|p| p.to_string()).collect();
            (mirror.ranges_behind(cali), kept)
        })
        .unwrap();
    assert_eq!(pods.iter().map(ToString::to_string).collect::<Vec<_>>(), ["172.31.0.1/32", "172.31.3.0/24", "fd00:31::1/128"]);
    assert!(
        kept.contains(&"172.31.1.0/24".to_owned()) && !kept.iter().any(|p| p.starts_with("172.31.4") || p.starts_with("172.31.5")),
        "{kept:?}"
    );
}

#[test]
fn foreign_tables_and_rules_are_not_touched() {
    let (ns, index) = node("lrtaken");
    for words in [
        "rule add pref 70 to 10.0.0.1 iif lo ipproto udp dport 30000 lookup 200",
        "rule add pref 71 fwmark 1 lookup local",
        "rule add pref 110 iif lo lookup 201",
        "route add 10.96.0.0/12 dev lo",
    ] {
        ns.ip(words).unwrap();
    }
    let before = (rules(&ns), ns.ip("route show table all").unwrap());
    apply(&ns, &plan(&["10.96.0.0/12"], &[("10.0.0.1", 30_000)]), index).unwrap();
    ns.run(|| LocalRoutes::open().unwrap().clear()).unwrap().unwrap();
    assert_eq!((rules(&ns), ns.ip("route show table all").unwrap()), before);
    ns.ip("route add 192.0.2.0/24 dev lo table 28269").unwrap();
    let error = apply(&ns, &plan(&["10.96.0.0/12"], &[]), index).unwrap_err();
    assert!(matches!(error, NetError::TableTaken(28_269)) && error.to_string().contains("ip route show table 28269"), "{error}");
    assert!(ns.ip("route show table 28269").unwrap().contains("192.0.2.0/24"));
}
