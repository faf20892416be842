use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use nomagic_core::conntrack::{Flow as TableFlow, Phase, Timeouts};
use nomagic_core::services::{Action, AddressKind, Backend, Frontend, Limits, Pool};
use nomagic_core::tuple::{HashSeed, addr_words};

use super::*;

const SERVICE: &str = "10.96.0.1";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// `default/web:http` at port 80.
fn services() -> Services {
    let seed = HashSeed::new(1);
    let mut table = Services::empty(seed);
    let backends = vec![Backend { addr: ip("10.1.0.1"), port: 8080, weight: 1, stats: 1 }];
    let action = Action::Forward { pool: Arc::new(Pool::new(backends, &seed).unwrap()), snat: false };
    let port = ServicePort {
        namespace: "default".into(),
        name: "web".into(),
        port_name: "http".into(),
        port: 80,
        proto: Proto::Tcp,
        affinity: None,
        limits: Limits::default(),
        refused: Arc::default(),
    };
    let (pod, node) = (action.clone(), action.clone());
    let frontend = Frontend { port: Arc::new(port), kind: AddressKind::ClusterIp, pod, node, external: action, source_ranges: None };
    table.add_frontend(ip(SERVICE), 80, Proto::Tcp, frontend).unwrap();
    table
}

fn table(flows: u32) -> Conntrack<'static> {
    let words: Vec<AtomicU64> = (0..Conntrack::words_needed(flows)).map(|_| AtomicU64::new(0)).collect();
    Conntrack::format(words.leak(), flows, 1, [0, 0]).unwrap()
}

/// Opens a flow of this client at a time.
fn open(table: Conntrack<'_>, client: &str, port: u16, backend: &str, snat: bool, now_ms: u64) {
    let words = |text: &str| addr_words(ip(text)).0;
    let mut flow = TableFlow {
        proto: Proto::Tcp,
        v6: false,
        announced: false,
        client: words(client),
        client_port: port,
        service: words(SERVICE),
        service_port: 80,
        backend: words(backend),
        backend_port: 8080,
        source: words(if snat { "10.0.0.1" } else { client }),
        source_port: if snat { 61_000 } else { port },
        stats: 1,
        counted: None,
    };
    let hash = table.hash(&flow.original());
    let ports = std::iter::once(flow.source_port);
    let pending = table.reserve(&mut flow, hash, Phase::first(Proto::Tcp, 2), now_ms, ports).unwrap();
    table.commit(pending).unwrap();
}

fn page(table: Conntrack<'_>, filter: &FlowFilter, count_by: Option<CountBy>, now_ms: u64) -> FlowsPage {
    let idle = Timeouts::default().table();
    FlowSource { table, services: &services(), idle: &idle, now_ms }.page(&Selection::parse(filter).unwrap(), count_by, 0)
}

#[test]
fn flows_are_shown_with_service_endpoint_state_and_times() {
    let table = table(64);
    open(table, "10.2.0.1", 40_000, "10.1.0.1", false, 1_000);
    open(table, "10.2.0.2", 40_000, "10.1.0.2", true, 3_000);
    let seen = page(table, &FlowFilter::default(), None, 4_000);
    assert_eq!((seen.matched, seen.next, seen.flows.len()), (2, None, 2));
    let Flow { schema, proto, client, destination, service, backend, snat, state, idle_ms, expires_in_ms } = seen.flows[0].clone();
    assert_eq!((schema, &*proto, &*client, &*destination), (FLOW_SCHEMA, "TCP", "10.2.0.1:40000", "10.96.0.1:80"));
    assert_eq!((service.as_deref(), &*backend, snat, state), (Some("default/web:http"), "10.1.0.1:8080", None, FlowState::SynSent));
    assert_eq!((idle_ms, expires_in_ms), (3_000, Timeouts::default().syn_sent_ms - 3_000));
    assert_eq!(seen.flows[1].snat.as_deref(), Some("10.0.0.1:61000"));
    // One whose time is over is none, though it is still in the table.
    let later = page(table, &FlowFilter::default(), None, 2_000 + Timeouts::default().syn_sent_ms);
    assert_eq!((later.matched, table.live()), (1, 2));
}

#[test]
fn each_field_of_a_filter_selects() {
    let table = table(64);
    open(table, "10.2.0.1", 40_000, "10.1.0.1", false, 1_000);
    open(table, "10.3.0.1", 40_000, "10.1.0.2", false, 1_000);
    let text = |text: &str| Some(text.to_owned());
    let cases = [
        (FlowFilter { service: text("default/web"), ..FlowFilter::default() }, 2),
        (FlowFilter { service: text("default/we"), ..FlowFilter::default() }, 0),
        (FlowFilter { backend: text("10.1.0.1"), ..FlowFilter::default() }, 1),
        (FlowFilter { backend: text("10.1.0.1:8080"), ..FlowFilter::default() }, 1),
        (FlowFilter { backend: text("10.1.0.1:80"), ..FlowFilter::default() }, 0),
        (FlowFilter { backend: text("10.1.0.0/16"), ..FlowFilter::default() }, 2),
        (FlowFilter { client: text("10.2.0.0/16"), ..FlowFilter::default() }, 1),
        (FlowFilter { port: Some(80), ..FlowFilter::default() }, 2),
        (FlowFilter { port: Some(8080), ..FlowFilter::default() }, 0),
        (FlowFilter { proto: text("tcp"), ..FlowFilter::default() }, 2),
        (FlowFilter { proto: text("UDP"), ..FlowFilter::default() }, 0),
        (FlowFilter { state: Some(FlowState::SynSent), client: text("10.3.0.1"), ..FlowFilter::default() }, 1),
        (FlowFilter { state: Some(FlowState::Established), ..FlowFilter::default() }, 0),
    ];
    for (filter, wanted) in cases {
        assert_eq!(page(table, &filter, None, 1_000).matched, wanted, "{filter:?}");
    }
    let bad = |filter: FlowFilter| Selection::parse(&filter).unwrap_err();
    assert!(bad(FlowFilter { service: text("web"), ..FlowFilter::default() }).contains("service `web`: not a namespace and a name"));
    assert!(bad(FlowFilter { backend: text("x"), ..FlowFilter::default() }).contains("backend `x`"));
    assert!(bad(FlowFilter { client: text("10.0.0.0/40"), ..FlowFilter::default() }).contains("client `10.0.0.0/40`"));
    assert!(bad(FlowFilter { proto: text("icmp"), ..FlowFilter::default() }).contains("not TCP, UDP or SCTP"));
}

#[test]
fn pages_follow_each_other_and_groups_are_counted() {
    let flows = FLOWS_MAX as u32 + 1_000;
    let table = table(flows);
    (0..flows).for_each(|n| open(table, "10.2.0.1", (n + 1_000) as u16, if n % 4 == 0 { "10.1.0.1" } else { "10.1.0.2" }, false, 1_000));
    let (idle, services, selection) = (Timeouts::default().table(), services(), Selection::default());
    let source = FlowSource { table, services: &services, idle: &idle, now_ms: 1_000 };
    let (mut clients, mut from, mut pages) = (std::collections::BTreeSet::new(), 0, 0);
    loop {
        let page = source.page(&selection, None, from);
        assert!(page.flows.len() < FLOWS_MAX + BATCH_SLOTS as usize);
        clients.extend(page.flows.into_iter().map(|flow| flow.client));
        pages += 1;
        match page.next {
            Some(next) => from = next,
            None => break,
        }
    }
    assert_eq!((clients.len(), pages), (flows as usize, 2));
    assert_eq!(source.page(&selection, None, u32::MAX), FlowsPage::default(), "beyond the end");
    let groups = |by| source.page(&selection, Some(by), 0).groups.into_iter().collect::<Vec<_>>();
    let named = |name: &str, flows: u32| (name.to_owned(), u64::from(flows));
    assert_eq!(groups(CountBy::Backend), [named("10.1.0.1:8080", flows / 4), named("10.1.0.2:8080", flows - flows / 4)]);
    assert_eq!(groups(CountBy::Service), [named("default/web:http", flows)]);
    assert_eq!(groups(CountBy::State), [named("SYN_SENT", flows)]);
    assert_eq!(groups(CountBy::Client), [named("10.2.0.1", flows)]);
}

#[test]
fn too_many_groups_are_added_up() {
    let mut page = FlowsPage::default();
    (0..GROUPS_MAX + 10).for_each(|n| count(&mut page, n.to_string()));
    count(&mut page, "7".into());
    assert_eq!((page.groups.len(), page.other, page.groups["7"]), (GROUPS_MAX, 10, 2));
}
