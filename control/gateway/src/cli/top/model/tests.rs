//! Answers in, rows out.

use std::collections::BTreeMap;

use nomagic_api::flows::{CountBy, FlowFilter};
use nomagic_api::{Carried, Conntrack, Pool, Replies, ServicePort, Snat, StatusPort, Target, Worker, XdpMode};
use nomagic_core::counters::{SocketCounts, Volume, WorkerCounts};
use nomagic_core::reason::Reason;

use super::super::walk::Query;
use super::table::Cell;
use super::*;

const SECOND: u64 = 1_000_000_000;

fn target(service: &str, port: u16, backend: &str, packets: u64) -> Target {
    let carried = Carried {
        flows: packets / 10,
        to_backend: Volume { packets, bytes: 100 * packets },
        to_client: Volume { packets: packets / 2, bytes: 1_000 * packets },
        ..Carried::default()
    };
    let (namespace, service) = service.split_once('/').unwrap();
    Target {
        namespace: namespace.into(),
        service: service.into(),
        port_name: "http".into(),
        port: Some(port),
        protocol: "TCP".into(),
        backend: backend.into(),
        carried,
    }
}

fn refusing(service: &str, backends: usize, rejected: u64, dropped: u64) -> ServicePort {
    let (namespace, service) = service.split_once('/').unwrap();
    ServicePort {
        namespace: namespace.into(),
        service: service.into(),
        port_name: "http".into(),
        port: 80,
        protocol: "TCP".into(),
        backends,
        rejected,
        dropped,
    }
}

/// A gateway that has carried this many packets for each of its targets.
pub fn status(uptime_s: u64, packets: u64) -> Status {
    let mut counts = WorkerCounts::default();
    counts.frames.received = Volume { packets: 4 * packets, bytes: 400 * packets };
    counts.reasons.drop[Reason::NoEndpoints] = packets / 4;
    counts.io.busy_ns = packets * 1_000_000;
    let sockets = vec![SocketCounts { rx_ring_full: packets, ..SocketCounts::default() }, SocketCounts::default()];
    let mut status = Status {
        ready: true,
        uptime_s,
        workers_alive: 1,
        workers: vec![Worker { id: 1, alive: true, held_now: 2, counts: counts.clone(), ..Worker::default() }],
        conntrack: Conntrack { live: 500 + packets, capacity: 10_000, ..Conntrack::default() },
        replies: Replies { announced: 5, capacity: 1_000 },
        snat: Snat { ports: 0, ..Snat::default() },
        pools: vec![Pool { total: 4_096, free: 4_000, fill: 90, tx: 6, ..Pool::default() }],
        targets: vec![
            target("default/nginx", 80, "10.1.0.1:80", packets),
            target("default/nginx", 80, "10.1.0.2:80", 2 * packets),
            target("shop/web", 8080, "10.1.0.3:80", packets),
        ],
        service_ports: vec![refusing("default/gone", 0, packets, 0), refusing("shop/web", 1, 0, packets / 2)],
        ports: vec![StatusPort {
            name: "eth0".into(),
            ifindex: 2,
            mtu: 1_500,
            queues: 2,
            owners: vec![1, 0],
            bound: true,
            condition: "bound".into(),
            link: nomagic_api::PortLink::Up,
            rebinds: 0,
            xdp_mode: XdpMode::Native,
            zero_copy: false,
            rss: nomagic_api::Rss::Unknown { because: "veth".into() },
            xdp: nomagic_api::Xdp::default(),
            sockets,
        }],
        ..Status::default()
    };
    status.totals.counts = counts;
    status
}

/// Two answers with two seconds between them: 100 packets more for each target.
fn model() -> Model {
    let mut model = Model::default();
    model.take_status(status(100, 1_000), 10 * SECOND);
    model.take_status(status(102, 1_100), 12 * SECOND);
    model
}

fn table(model: &Model, view: View) -> Table {
    match model.body(&Place::new(view), 80) {
        Body::Table(table) => table,
        Body::Text(lines) => panic!("{lines:?}"),
    }
}

/// The value of a row in the column with this name in JSON.
fn cell<'t>(table: &'t Table, row: &str, column: &str) -> &'t Cell {
    let place = table.columns.iter().position(|c| c.key == column).unwrap();
    &table.rows.iter().find(|r| r.key == row).unwrap_or_else(|| panic!("{row}: {table:?}")).cells[place]
}

#[test]
fn services_have_the_rates_of_all_their_backends() {
    let services = table(&model(), View::Services);
    let keys: Vec<&str> = services.rows.iter().map(|row| row.key.as_str()).collect();
    assert_eq!(keys, ["default/nginx", "shop/web", "default/gone"]);
    // 300 packets to the backends and 150 to clients in two seconds.
    for (column, value) in [
        ("packets_per_s", Cell::Rate(Some(225.0))),
        ("bytes_per_s", Cell::Rate(Some(165_000.0))),
        ("new_flows_per_s", Cell::Rate(Some(15.0))),
        ("drops_per_s", Cell::Rate(Some(0.0))),
        ("backends", Cell::Count(2)),
        ("packets_to_backends_per_s", Cell::Rate(Some(150.0))),
    ] {
        assert_eq!(cell(&services, "default/nginx", column), &value, "{column}");
    }
    assert_eq!(cell(&services, "shop/web", "drops_per_s"), &Cell::Rate(Some(25.0)));
    assert_eq!(cell(&services, "default/gone", "drops_per_s"), &Cell::Rate(Some(50.0)));
    assert_eq!(cell(&services, "default/gone", "packets_per_s"), &Cell::Rate(Some(0.0)));
    assert!(services.rows[2].is_alarm && !services.rows[0].is_alarm, "{services:?}");
}

#[test]
fn backends_of_one_service_lead_to_their_flows() {
    let backends = table(&model(), View::Backends(Some("default/nginx".into())));
    assert_eq!(backends.rows.len(), 2);
    assert_eq!(backends.rows[0].cells[..3], [Cell::Text("80/TCP".into()), Cell::Text("10.1.0.2:80".into()), Cell::Rate(Some(150.0))]);
    let Some(View::Flows(filter)) = &backends.rows[0].opens else { panic!("{backends:?}") };
    let fits = (filter.service.as_deref(), filter.backend.as_deref(), filter.proto.as_deref());
    assert_eq!(fits, (Some("default/nginx"), Some("10.1.0.2:80"), Some("TCP")));
    let all = table(&model(), View::Backends(None));
    assert_eq!((all.rows.len(), &all.rows[0].cells[0]), (3, &Cell::Text("default/nginx:80/TCP".into())));
    let gone = table(&model(), View::Backends(Some("default/gone".into())));
    assert_eq!((gone.rows.len(), gone.notes.join("|").as_str()), (0, "80/TCP: no backends, rejects 50 packets/s, drops 0 packets/s"));
}

#[test]
fn without_two_answers_there_are_no_rates() {
    let mut model = Model::default();
    model.take_status(status(100, 1_000), SECOND);
    assert!(!model.has_rates());
    assert_eq!(cell(&table(&model, View::Services), "default/nginx", "packets_per_s"), &Cell::Rate(None));
    // A backend that is new may have counters of an earlier one.
    let mut more = status(101, 1_000);
    more.targets.push(target("shop/web", 8080, "10.1.0.9:80", 77));
    model.take_status(more, 2 * SECOND);
    let backends = table(&model, View::Backends(Some("shop/web".into())));
    assert_eq!(cell(&backends, "shop/web:8080/TCP 10.1.0.9:80", "packets_per_s"), &Cell::Rate(None));
    assert_eq!(cell(&backends, "shop/web:8080/TCP 10.1.0.3:80", "packets_per_s"), &Cell::Rate(Some(0.0)));
}

#[test]
fn a_restart_is_said_and_has_no_negative_rates() {
    let mut model = model();
    assert_eq!(model.notice(12 * SECOND), None);
    model.take_status(status(1, 8), 14 * SECOND);
    assert!(!model.has_rates());
    assert_eq!(cell(&table(&model, View::Services), "default/nginx", "packets_per_s"), &Cell::Rate(None));
    assert_eq!(cell(&table(&model, View::Reasons), "dropped no_endpoints", "frames_per_s"), &Cell::Rate(None));
    let notice = model.notice(17 * SECOND).unwrap();
    assert!(notice.starts_with("the gateway has started again, 3 s ago"), "{notice}");
    model.take_status(status(2, 18), 15 * SECOND);
    assert_eq!(cell(&table(&model, View::Services), "shop/web", "packets_to_backends_per_s"), &Cell::Rate(Some(10.0)));
    assert_eq!(model.notice(90 * SECOND), None, "it is not said for ever");
}

#[test]
fn a_restart_between_two_answers_shows_although_the_uptime_grew() {
    let mut model = Model::default();
    model.take_status(status(3, 1_000), SECOND);
    model.take_status(status(20, 1_000), 60 * SECOND);
    assert!(!model.has_rates());
    // Seconds are counted in whole ones.
    model.take_status(status(20, 1_000), 61 * SECOND + SECOND / 2);
    assert!(model.has_rates());
}

#[test]
fn counters_that_are_corrected_downwards_do_not_make_negative_rates() {
    let mut model = model();
    model.take_status(status(103, 1_090), 13 * SECOND);
    assert_eq!(cell(&table(&model, View::Services), "default/nginx", "packets_per_s"), &Cell::Rate(Some(0.0)));
}

#[test]
fn silence_is_said_until_an_answer_comes() {
    let mut model = model();
    model.take_silence("no nomagic answers".into(), 13 * SECOND);
    model.take_silence("no nomagic answers".into(), 14 * SECOND);
    let notice = model.notice(20 * SECOND).unwrap();
    assert_eq!(notice, "NO ANSWER for 7 s, still trying: no nomagic answers");
    assert_eq!(table(&model, View::Services).rows.len(), 3, "what was known stays");
    model.take_status(Status { not_ready: vec!["port eth0 is down".into()], ready: false, ..status(110, 1_100) }, 21 * SECOND);
    assert_eq!(model.notice(21 * SECOND).unwrap(), "NOT READY: port eth0 is down");
}

#[test]
fn workers_show_their_load_and_the_rings_of_their_queues() {
    let workers = table(&model(), View::Workers);
    for (column, value) in [
        ("packets_per_s", Cell::Rate(Some(200.0))),
        // 100 ms of two seconds.
        ("busy", Cell::Share(Some(0.05))),
        ("held", Cell::Count(2)),
        ("rx_ring_full_per_s", Cell::Rate(Some(50.0))),
        ("drops_per_s", Cell::Rate(Some(0.0))),
    ] {
        assert_eq!(cell(&workers, "00001", column), &value, "{column}");
    }
    assert_eq!(workers.notes, ["packet buffers: 4000 free, 90 to receive into, 6 being sent, 0 held, 0 in hand, of 4096"]);
}

#[test]
fn reasons_have_rates_and_sentences() {
    let reasons = table(&model(), View::Reasons);
    assert_eq!(cell(&reasons, "dropped no_endpoints", "frames_per_s"), &Cell::Rate(Some(12.5)));
    assert_eq!(cell(&reasons, "dropped no_endpoints", "text"), &Cell::Text(Reason::NoEndpoints.text().into()));
    assert_eq!(reasons.rows.len(), 1, "only reasons that occurred");
}

#[test]
fn tables_that_grow_have_a_forecast() {
    let mut model = Model::default();
    (0..=20).for_each(|s| model.take_status(status(100 + s, 10 * s), s * SECOND));
    let tables = table(&model, View::Tables);
    // 700 of 10,000, 10 more a second.
    let forecast = &tables.rows.iter().find(|row| row.key == "connections").unwrap().cells;
    assert_eq!(forecast[1..4], [Cell::Count(700), Cell::Count(10_000), Cell::Share(Some(0.07))]);
    assert_eq!(forecast[5], Cell::Text("full in 16 min at this rate".into()));
    assert_eq!(cell(&tables, "reply filter entries", "forecast"), &Cell::Text(String::new()));
    assert!(tables.rows.iter().all(|row| !row.key.starts_with("SNAT")), "there is no SNAT: {tables:?}");
}

fn walk(groups: &[(&str, u64)], progress: Progress) -> Walk {
    let groups: BTreeMap<String, u64> = groups.iter().map(|(group, flows)| ((*group).into(), *flows)).collect();
    let query = Query { filter: FlowFilter::default(), count_by: Some(CountBy::Client) };
    Walk { matched: groups.values().sum(), groups, progress, ..Walk::new(query) }
}

#[test]
fn clients_show_what_was_seen_of_the_table() {
    let mut model = model();
    assert_eq!(table(&model, View::Clients(None)).notes, ["reading the connection table"]);
    model.take_walk(walk(&[("10.0.0.1", 3)], Progress::UpTo(2_000)), 13 * SECOND);
    let part = table(&model, View::Clients(None));
    assert_eq!(part.notes, ["only a part of the table was seen so far: 2000 of 10000 slots"]);
    model.take_walk(walk(&[("10.0.0.1", 30), ("10.0.0.2", 10)], Progress::Whole), 14 * SECOND);
    let whole = table(&model, View::Clients(None));
    assert_eq!((whole.notes.len(), cell(&whole, "10.0.0.1", "share")), (0, &Cell::Share(Some(0.75))));
    assert_eq!(cell(&whole, "10.0.0.1", "change_per_s"), &Cell::Change(None));
    // While it is read again, the last complete numbers stay.
    model.take_walk(walk(&[("10.0.0.1", 1)], Progress::UpTo(4_000)), 15 * SECOND);
    let again = table(&model, View::Clients(None));
    assert_eq!(again.notes, ["the table is being read again: 4000 of 10000 slots"]);
    assert_eq!(cell(&again, "10.0.0.1", "flows"), &Cell::Count(30));
    model.take_walk(walk(&[("10.0.0.1", 20)], Progress::Whole), 16 * SECOND);
    assert_eq!(cell(&table(&model, View::Clients(None)), "10.0.0.1", "change_per_s"), &Cell::Change(Some(-5.0)));
    // Those of a Service are another question.
    assert_eq!(table(&model, View::Clients(Some("a/b".into()))).rows.len(), 0);
    model.take_refusal("the gateway has no such request".into());
    assert_eq!(table(&model, View::Clients(None)).notes, ["the gateway has no such request"]);
}

#[test]
fn an_explanation_is_of_the_flow_that_is_shown() {
    let mut model = model();
    let place = Place::new(View::Explain("tcp a -> b".into()));
    assert_eq!(model.body(&place, 80), Body::Text(vec!["asking the gateway".into()]));
    model.take_explanation("tcp other -> b".into(), vec!["other".into()]);
    assert_eq!(model.body(&place, 80), Body::Text(vec!["asking the gateway".into()]));
    model.take_explanation("tcp a -> b".into(), vec!["  1. one two three".into()]);
    assert_eq!(model.body(&place, 12), Body::Text(vec!["  1. one two".into(), "     three".into()]));
}
