//! Pages of Services.

use std::collections::BTreeSet;
use std::time::Instant;

use nomagic_table::compile::{Compiled, Compiler, TARGETS_MAX};
use nomagic_table::index::Index;
use nomagic_table::objects::read;
use nomagic_table::problem::Origin;
use nomagic_table::settings::Settings;
use serde_json::json;

use super::*;
use crate::config::Config;

/// Objects as a gateway has them.
struct World {
    index: Index,
    settings: Settings,
    compiled: Compiled,
    problems: Vec<Problem>,
    findings: Findings,
}

fn world(objects: impl IntoIterator<Item = (Kind, serde_json::Value)>) -> World {
    let mut problems = Vec::new();
    let mut index = Index::default();
    for (kind, value) in objects {
        match read(kind, value, &Origin::default()) {
            Ok(object) => drop(index.apply(object)),
            Err(unread) => problems.push(unread.problem),
        }
    }
    let settings = Config::default().settings_for(&[], &index);
    let compiled = Compiler::new(TARGETS_MAX).compile(&index, &settings);
    let unread: BTreeSet<String> = problems.iter().map(|p| p.object.clone()).collect();
    problems.extend(compiled.problems.iter().cloned());
    let mut findings = Findings::of_files();
    findings.examine(&index, &settings.node, &unread, Instant::now());
    World { index, settings, compiled, problems, findings }
}

impl World {
    fn page(&self, filter: &ServiceFilter, from: Option<&str>) -> Result<ServicesPage, String> {
        let listing = Listing { index: &self.index, settings: &self.settings, table: &self.compiled.services };
        ServiceSource { listing, problems: &self.problems, findings: &self.findings }.page(filter, from)
    }

    /// The names of all pages, and how many pages there are.
    fn all(&self, filter: &ServiceFilter) -> (Vec<String>, usize) {
        let (mut names, mut pages, mut from) = (Vec::new(), 0, None::<String>);
        loop {
            let page = self.page(filter, from.as_deref()).unwrap();
            assert!(page.services.len() <= SERVICES_MAX);
            pages += 1;
            names.extend(page.services.iter().map(Service::key));
            match page.next {
                Some(next) => from = Some(next),
                None => return (names, pages),
            }
        }
    }
}

fn service(namespace: &str, name: &str, ip: u32) -> (Kind, serde_json::Value) {
    let ip = std::net::Ipv4Addr::from_bits(0x0a60_0000 + ip).to_string();
    let spec = json!({"clusterIP": ip, "ports": [{"name": "http", "port": 80}]});
    (Kind::Service, json!({"metadata": {"name": name, "namespace": namespace}, "spec": spec}))
}

fn slice(namespace: &str, of: &str, endpoints: usize) -> (Kind, serde_json::Value) {
    let metadata = json!({"name": format!("{of}-1"), "namespace": namespace, "labels": {"kubernetes.io/service-name": of}});
    let endpoints: Vec<_> = (0..endpoints).map(|i| json!({"addresses": [format!("10.1.{}.{}", i / 250, i % 250 + 1)]})).collect();
    let ports = json!([{"name": "http", "port": 8080}]);
    (Kind::EndpointSlice, json!({"metadata": metadata, "addressType": "IPv4", "ports": ports, "endpoints": endpoints}))
}

#[test]
fn pages_together_have_every_service_once() {
    let services = (1..=1_000).map(|i| service(if i % 2 == 0 { "a" } else { "b" }, &format!("s{i:04}"), i));
    let world = world(services.chain([slice("b", "s0001", 1)]));
    let (names, pages) = world.all(&ServiceFilter::default());
    assert!(names.len() == 1_000 && names.is_sorted(), "{}", names.len());
    assert_eq!(pages, 1_000usize.div_ceil(SERVICES_MAX));
    let (of_a, _) = world.all(&ServiceFilter { namespace: Some("a".into()), ..ServiceFilter::default() });
    assert!(of_a.len() == 500 && of_a.iter().all(|name| name.starts_with("a/")));
    assert_eq!(world.all(&ServiceFilter { namespace: Some("none".into()), ..ServiceFilter::default() }), (vec![], 1));
    // All but one have no endpoints.
    let (troubled, _) = world.all(&ServiceFilter { problems: true, ..ServiceFilter::default() });
    assert_eq!((troubled.len(), troubled.contains(&"b/s0001".into())), (999, false));
    // A cursor may name what does not exist, but not what is no name.
    let page = world.page(&ServiceFilter::default(), Some("b/s0998z")).unwrap();
    assert_eq!(page.services.iter().map(Service::key).collect::<Vec<_>>(), ["b/s0999"]);
    for bad in ["", "b", "/x", "a/b/c"] {
        assert!(world.page(&ServiceFilter::default(), Some(bad)).unwrap_err().contains("not a namespace and a name"), "{bad}");
    }
}

#[test]
fn pages_end_early_where_there_is_much_to_look_at() {
    let objects = (1..=60).flat_map(|i| [service("a", &format!("s{i:02}"), i), slice("a", &format!("s{i:02}"), 900)]);
    let world = world(objects);
    let first = world.page(&ServiceFilter::default(), None).unwrap();
    let endpoints: usize = first.services.iter().flat_map(|s| &s.ports).map(|p| p.backends.len()).sum();
    assert!(endpoints <= WORK_MAX + 900 && first.next.is_some(), "{endpoints}");
    assert_eq!(world.all(&ServiceFilter::default()).0.len(), 60);
}

#[test]
fn what_could_not_be_read_and_what_does_not_exist_is_listed() {
    let unreadable = (Kind::Service, json!({"metadata": {"name": "broken", "namespace": "a"}, "spec": 7}));
    let nameless = (Kind::Service, json!({"metadata": {"name": "x\u{1b}[31m", "namespace": "a"}, "spec": {"ports": []}}));
    let mut bad = slice("a", "web", 1);
    bad.1["endpoints"][0]["addresses"][0] = json!("127.0.0.1");
    let world = world([service("a", "web", 1), bad, unreadable, nameless, slice("a", "wep", 1)]);
    let page = world.page(&ServiceFilter::default(), None).unwrap();
    let states: Vec<(String, ServiceState)> = page.services.iter().map(|s| (s.key(), s.state)).collect();
    let expected = [("a/broken", ServiceState::Unreadable), ("a/web", ServiceState::NoEndpoints), ("a/wep", ServiceState::Missing)];
    assert_eq!(states, expected.map(|(name, state)| (name.to_owned(), state)));
    let said = |i: usize| page.services[i].problems.join("|") + &page.services[i].near_misses.join("|");
    assert!(said(0).contains("spec"), "{}", said(0));
    assert!(said(1).contains("EndpointSlice a/web-1: endpoints[0].addresses[0]: \"127.0.0.1\" is a loopback address"), "{}", said(1));
    assert!(said(2).contains("there is no Service a/wep (there is a/web)"), "{}", said(2));

    let only = |name: &str| world.page(&ServiceFilter { service: Some(name.into()), ..ServiceFilter::default() }, None);
    assert_eq!(only("a/wep").unwrap().services[0].state, ServiceState::Missing);
    let web = only("a/web").unwrap();
    assert!(web.clients.is_some_and(|clients| clients.outside[0].is_some()) && web.next.is_none());
    assert!(only("a/wob").unwrap_err().contains("no Service a/wob (there is a/web)"));
    assert!(only("web").unwrap_err().contains("not a namespace and a name"));
}

#[test]
fn a_page_of_an_empty_table_is_empty() {
    let world = world([]);
    assert_eq!(world.page(&ServiceFilter::default(), None), Ok(ServicesPage::default()));
}
