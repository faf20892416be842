//! The watch of an API server, with all kinds of faults.

use std::time::Duration;

use nomagic::config::{Config, Kubernetes};
use nomagic_api::WatchState;
use nomagic_fake_apiserver::{End, FakeApiServer, Gone, Identity, Resource, Streaming};
use serde_json::json;

use crate::common::watching::*;

/// Requests for Services that contain a text, without those for the server's version.
fn asked(server: &FakeApiServer, part: &str) -> Vec<String> {
    let requests = server.take_requests().into_iter();
    requests.filter(|r| r.contains("/services?") && r.contains(part) && !r.ends_with("limit=1")).collect()
}

fn filled(services: usize) -> FakeApiServer {
    let server = server();
    (0..services).for_each(|i| {
        server.put(service(&format!("s{i}"))).unwrap();
    });
    server
}

#[test]
fn lists_then_watches_with_selectors() {
    let s = filled(2);
    s.put(slice("s0-1", "s0", &["10.1.0.1"])).unwrap();
    let mut headless = service("headless");
    headless["spec"]["clusterIP"] = json!("None");
    s.put(headless).unwrap();
    s.put(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "another"}})).unwrap();
    let mut w = TestWatch::listed(&s);
    assert_eq!((w.services(), w.endpoints("s0")), (vec!["s0".to_owned(), "s1".to_owned()], 1));
    assert!(w.index.node("another").is_none());
    s.put(service("s2")).unwrap();
    s.put(slice("s0-1", "s0", &["10.1.0.1", "10.1.0.2"])).unwrap();
    assert!(s.delete(Resource::Services, "default", "s1"));
    w.until("three events", |w| w.services() == ["s0", "s2"] && w.endpoints("s0") == 2);
    let mut labelled = service("s0");
    labelled["metadata"]["labels"] = json!({"service.kubernetes.io/service-proxy-name": "other"});
    s.put(labelled).unwrap();
    let given_away = |w: &TestWatch| w.index.services().find(|s| s.key.name == "s0").is_some_and(|s| s.ignored.is_some());
    w.until("a Service given to another proxy, which stays known", given_away);
    assert_eq!(w.services(), ["s0", "s2"]);
    s.put(service("s0")).unwrap();
    w.until("the Service taken back", |w| !given_away(w));
    assert_eq!((w.of("Service").state, w.of("Service").lists), (WatchState::Connected, 1));
    let requests = s.take_requests();
    assert!(requests.iter().any(|r| r.contains("/services?") && r.contains("fieldSelector=spec.clusterIP%21%3DNone")), "{requests:#?}");
    assert!(!requests.iter().any(|r| r.contains("service-proxy-name")), "{requests:#?}");
    assert!(requests.iter().any(|r| r.contains("metadata.name%3Dgw")), "{requests:#?}");
    drop(w);
}

#[test]
fn complete_only_after_services_and_slices_are_listed() {
    let s = filled(1);
    s.set_silent(true);
    let mut w = TestWatch::start(target(by_url(&s)));
    w.for_a_while(Duration::from_millis(300));
    assert!(!w.feed.complete());
    assert!(w.feed.missing().contains("Services") && w.feed.missing().contains("EndpointSlices"), "{}", w.feed.missing());
    s.set_silent(false);
    w.until("the lists", |w| w.feed.complete());
}

#[test]
fn servers_without_streaming_lists_are_listed_in_pages() {
    for streaming in [Streaming::Invalid, Streaming::ErrorInStream] {
        let s = filled(8);
        s.set_streaming(streaming);
        let w = TestWatch::listed(&s);
        assert_eq!(w.services().len(), 8);
        let pages = asked(&s, "limit=3");
        assert_eq!(pages.len(), 3, "{streaming:?}: {pages:#?}");
        assert!(pages[1].contains("continue="));
    }
    let s = filled(8);
    TestWatch::listed(&s);
    let requests = asked(&s, "");
    assert_eq!(requests.len(), 1, "a streaming list continues as the watch: {requests:#?}");
}

#[test]
fn compacted_pages_are_replaced_by_an_unpaged_list() {
    let s = filled(7);
    s.set_streaming(Streaming::Invalid);
    // Slow, so that the version is compacted before the last page.
    s.set_slow(Some(Duration::from_millis(30)));
    let mut w = TestWatch::start(target(by_url(&s)));
    let mut seen = Vec::new();
    w.until("the first page", |_| {
        seen.extend(s.take_requests());
        seen.iter().any(|r: &String| r.contains("/services?") && r.contains("limit=3"))
    });
    s.put(service("s7")).unwrap();
    s.compact();
    w.until("all Services", |w| w.services().len() == 8);
    s.set_slow(None);
    let whole = asked(&s, "").into_iter().filter(|r| !r.contains("watch") && !r.contains("limit")).count();
    assert_eq!(whole, 1);
    assert!(w.of("Service").faults >= 1 && w.of("Service").lists == 1);
}

#[test]
fn a_broken_connection_resumes_without_a_list() {
    let s = filled(2);
    let mut w = TestWatch::listed(&s);
    for how in [End::Cut, End::Orderly] {
        let faults = w.of("Service").faults;
        s.take_requests();
        s.end_watches(how);
        if how == End::Cut {
            w.until("the fault", |w| w.of("Service").faults > faults);
        }
        s.put(service(&format!("after-{how:?}").to_lowercase())).unwrap();
        w.until("an event after the break", |w| w.services().contains(&format!("after-{how:?}").to_lowercase()));
        assert_eq!((w.of("Service").state, w.of("Service").lists), (WatchState::Connected, 1));
        assert!(asked(&s, "").iter().all(|r| r.contains("watch=true") && !r.contains("sendInitialEvents")));
    }
}

#[test]
fn a_compacted_version_leads_to_a_new_list_that_replaces_everything() {
    for gone in [Gone::InStream, Gone::Status] {
        let mut s = filled(3);
        s.set_gone(gone);
        let mut w = TestWatch::listed(&s);
        s.stop();
        w.until("the fault", |w| w.of("Service").state == WatchState::Away);
        assert!(w.error("Service").contains("refused") || w.error("Service").contains("broke"), "{}", w.error("Service"));
        assert!(s.delete(Resource::Services, "default", "s1"));
        s.put(service("new")).unwrap();
        s.compact();
        assert_eq!(w.services().len(), 3, "known objects stay");
        s.resume().unwrap();
        w.until("the new list", |w| w.services() == ["new", "s0", "s2"]);
        assert_eq!(w.of("Service").lists, 2, "{gone:?}");
    }
}

#[test]
fn a_server_restored_from_an_older_state_is_listed_again() {
    let s = filled(20);
    let mut w = TestWatch::listed(&s);
    let addr = s.url().strip_prefix("http://").unwrap().parse().unwrap();
    drop(s);
    w.until("the fault", |w| w.of("Service").state == WatchState::Away);
    let restored = FakeApiServer::start(addr, None).unwrap();
    restored.put(service("old")).unwrap();
    w.until("the older state", |w| w.services() == ["old"]);
}

#[test]
fn invalid_data_in_the_stream_leads_to_a_new_list() {
    let s = filled(1);
    let mut w = TestWatch::listed(&s);
    for (n, line) in (2..).zip([
        "{\"type\": nonsense",
        "{}",
        "[1]",
        "{\"type\":\"ADDED\",\"object\":{}}",
        "{\"type\":\"SINGS\",\"object\":{\"metadata\":{\"resourceVersion\":\"1\"}}}",
        "\u{fffd}",
    ]) {
        s.send_garbage(line);
        w.until(line, |w| w.of("Service").lists == n);
    }
    s.put(service("s1")).unwrap();
    w.until("life afterwards", |w| w.services() == ["s0", "s1"]);
}

#[test]
fn a_silent_server_times_out_and_a_quiet_one_does_not() {
    let s = filled(1);
    let mut w = TestWatch::listed(&s);
    w.for_a_while(Duration::from_millis(2_000));
    assert_eq!((w.of("Service").faults, w.of("Service").state), (0, WatchState::Connected), "bookmarks prevent the timeout");
    s.set_silent(true);
    w.until("silence to be noticed", |w| w.of("Service").state == WatchState::Away);
    assert!(w.error("Service").contains("no data from"), "{}", w.error("Service"));
    assert_eq!(w.services(), ["s0"]);
    s.set_silent(false);
    w.until("the server to be back", |w| w.of("Service").state == WatchState::Connected);
    assert_eq!(w.of("Service").lists, 1);
}

#[test]
fn a_slow_server_is_not_a_fault() {
    let s = filled(5);
    s.set_slow(Some(Duration::from_millis(20)));
    let w = TestWatch::listed(&s);
    assert_eq!((w.services().len(), w.of("Service").faults), (5, 0));
}

#[test]
fn refused_requests_are_retried_with_backoff() {
    for (code, word) in [(500, "500"), (429, "overloaded"), (401, "token"), (403, "RBAC")] {
        let s = filled(1);
        s.set_streaming(Streaming::Invalid);
        s.fail_next(20, code);
        let mut w = TestWatch::start(target(by_url(&s)));
        w.until("the refusal", |w| w.error("Service").contains(word));
        w.until("the list", |w| w.feed.complete() && w.services() == ["s0"]);
    }
}

#[test]
fn a_server_that_ends_every_watch_at_once_is_not_flooded() {
    let s = filled(1);
    s.set_bookmark_interval(Duration::from_secs(60));
    let mut w = TestWatch::listed(&s);
    s.take_requests();
    let end = std::time::Instant::now() + Duration::from_secs(2);
    while std::time::Instant::now() < end {
        s.end_watches(End::Orderly);
        w.for_a_while(Duration::from_millis(5));
    }
    let requests = asked(&s, "watch=true").len();
    assert!((5..40).contains(&requests), "{requests} watches in two seconds with pauses of up to 200 ms");
}

#[test]
fn a_bad_object_does_not_affect_the_others() {
    let s = filled(2);
    let bad = |name: &str| json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {"ports": 7}});
    s.put(bad("bad")).unwrap();
    for streaming in [Streaming::Served, Streaming::Invalid] {
        s.set_streaming(streaming);
        let w = TestWatch::listed(&s);
        assert_eq!(w.services(), ["s0", "s1"]);
        let problems: Vec<String> = w.feed.problems().map(ToString::to_string).collect();
        assert!(problems.len() == 1 && problems[0].starts_with("Service default/bad: spec.ports: "), "{problems:?}");
    }
    let mut w = TestWatch::listed(&s);
    s.put(bad("s0")).unwrap();
    w.until("the second problem", |w| w.feed.problems().count() == 2);
    assert_eq!(w.services(), ["s0", "s1"], "the last readable version stays");
    s.compact();
    s.send_garbage("x");
    w.until("a new list", |w| w.of("Service").lists == 2);
    assert_eq!(w.services(), ["s0", "s1"], "also over a new list");
    s.put(service("bad")).unwrap();
    assert!(s.delete(Resource::Services, "default", "s0"));
    w.until("all problems gone", |w| w.feed.problems().count() == 0 && w.services() == ["bad", "s1"]);
}

#[test]
fn objects_are_limited() {
    let s = filled(3);
    let limited = |max| nomagic::watch::WatchTarget { objects_max: max, ..target(by_url(&s)) };
    let mut w = TestWatch::start(limited(2));
    w.until("the limit", |w| w.error("Service").contains("more than 2 Services"));
    assert!(w.services().is_empty());
    let mut w = TestWatch::start(limited(3));
    w.until("the lists", |w| w.feed.complete());
    s.put(service("s3")).unwrap();
    w.until("one too many", |w| w.feed.problems().any(|p| p.to_string().contains("Service default/s3: 3 Services are allowed")));
    assert_eq!(w.services().len(), 3);
    assert!(s.delete(Resource::Services, "default", "s0"));
    s.put(service("s3")).unwrap();
    w.until("room again", |w| w.services() == ["s1", "s2", "s3"] && w.feed.problems().count() == 0);
}

#[test]
fn optional_kinds_block_nothing() {
    let s = filled(1);
    s.set_unknown(&[Resource::ServiceCidrs, Resource::Nodes]);
    let mut w = TestWatch::listed(&s);
    assert!(w.error("ServiceCIDR").contains("does not support this kind"), "{}", w.error("ServiceCIDR"));
    s.set_unknown(&[]);
    s.put(json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "k"}, "spec": {"cidrs": ["10.96.0.0/12"]}})).unwrap();
    s.put(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "gw", "labels": {"topology.kubernetes.io/zone": "a"}}})).unwrap();
    let zone = |w: &TestWatch| w.index.node("gw").and_then(|n| n.zone.clone());
    w.until("the node", |w| zone(w).as_deref() == Some("a") && w.index.service_cidrs().count() == 1);
    s.put(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "gw", "labels": {"topology.kubernetes.io/zone": "b"}}})).unwrap();
    w.until("the new zone", |w| zone(w).as_deref() == Some("b"));
}

/// A server with TLS, with its CA in a file.
fn with_tls(dir: &std::path::Path, names: &[&str]) -> (FakeApiServer, std::path::PathBuf) {
    let identity = Identity::new(names).unwrap();
    let ca = dir.join("ca.pem");
    std::fs::write(&ca, &identity.ca_pem).unwrap();
    let server = FakeApiServer::start("127.0.0.1:0".parse().unwrap(), Some(identity)).unwrap();
    server.set_bookmark_interval(Duration::from_millis(100));
    server.put(service("s0")).unwrap();
    (server, ca)
}

#[test]
fn tls_faults_name_the_cause() {
    let dir = tempfile::tempdir().unwrap();
    let (s, ca) = with_tls(dir.path(), &["127.0.0.1"]);
    let url = |ca: Option<std::path::PathBuf>, url: String| Kubernetes::Url { url: url.parse().unwrap(), ca_file: ca, token_file: None };
    let mut good = TestWatch::start(target(url(Some(ca.clone()), s.url())));
    good.until("the lists", |w| w.feed.complete() && w.services() == ["s0"]);
    let other = tempfile::tempdir().unwrap();
    let (elsewhere, other_ca) = with_tls(other.path(), &["kubernetes.example"]);
    let plain = server();
    let empty = dir.path().join("empty.pem");
    std::fs::write(&empty, "nothing").unwrap();
    for (target_url, word) in [
        (url(Some(other_ca.clone()), s.url()), "set caFile"),
        (url(Some(other_ca), elsewhere.url()), "other names"),
        (url(None, s.url()), "set caFile"),
        (url(Some(ca), plain.url().replace("http", "https")), "TLS"),
        (url(Some(empty), s.url()), "no PEM certificate"),
        (url(Some(dir.path().join("none.pem")), s.url()), "none.pem"),
    ] {
        let mut w = TestWatch::start(target(target_url.clone()));
        w.until(&format!("{target_url}: {word}"), |w| w.error("Service").contains(word));
    }
}

#[test]
fn a_rotated_token_is_read_again_without_a_new_list() {
    let dir = tempfile::tempdir().unwrap();
    let (s, ca) = with_tls(dir.path(), &["127.0.0.1"]);
    let token = dir.path().join("token");
    std::fs::write(&token, "first").unwrap();
    s.set_token(Some("first"));
    let by_token = Kubernetes::Url { url: s.url().parse().unwrap(), ca_file: Some(ca), token_file: Some(token.clone()) };
    let mut w = TestWatch::start(target(by_token));
    w.until("the lists", |w| w.feed.complete() && w.services() == ["s0"]);
    s.set_token(Some("second"));
    s.end_watches(End::Cut);
    w.until("the refusal", |w| w.error("Service").contains("401"));
    assert_eq!(w.services(), ["s0"]);
    std::fs::write(&token, "second").unwrap();
    s.put(service("s1")).unwrap();
    w.until("the new token", |w| w.services() == ["s0", "s1"]);
    assert_eq!(w.of("Service").lists, 1);
}

#[test]
fn a_token_file_may_end_with_a_line_end_and_must_not_be_empty() {
    let dir = tempfile::tempdir().unwrap();
    let (s, _) = with_tls(dir.path(), &["127.0.0.1"]);
    s.set_token(Some("secret"));
    let kubeconfig = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: here\ncontexts: [{{name: here, context: {{cluster: c, user: u}}}}]\n\
         clusters: [{{name: c, cluster: {{server: '{}', certificate-authority: ca.pem}}}}]\nusers: [{{name: u, user: {{tokenFile: token}}}}]\n",
        s.url()
    );
    std::fs::write(dir.path().join("k.conf"), kubeconfig).unwrap();
    let token = dir.path().join("token");
    let by_url =
        Kubernetes::Url { url: s.url().parse().unwrap(), ca_file: Some(dir.path().join("ca.pem")), token_file: Some(token.clone()) };
    for server in [by_url, Kubernetes::Kubeconfig { path: dir.path().join("k.conf"), context: None }] {
        std::fs::write(&token, "").unwrap();
        let mut w = TestWatch::start(target(server));
        w.until("the empty file", |w| w.error("Service").contains("token: the file is empty"));
        assert!(!w.error("Service").contains("RBAC"), "{}", w.error("Service"));
        std::fs::write(&token, "secret\n").unwrap();
        w.until("the lists", |w| w.feed.complete() && w.services() == ["s0"]);
    }
}

#[test]
fn kubeconfig_files() {
    let dir = tempfile::tempdir().unwrap();
    let (s, _) = with_tls(dir.path(), &["127.0.0.1"]);
    s.set_token(Some("secret"));
    let kubeconfig = |token: &str| {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: here\ncontexts: [{{name: here, context: {{cluster: c, user: u}}}}]\n\
             clusters: [{{name: c, cluster: {{server: '{}', certificate-authority: ca.pem}}}}]\nusers: [{{name: u, user: {{token: {token}}}}}]\n",
            s.url()
        )
    };
    std::fs::write(dir.path().join("k.conf"), kubeconfig("wrong")).unwrap();
    std::fs::write(dir.path().join("nomagic.yaml"), "kubernetes: {kubeconfig: k.conf}").unwrap();
    let config = Config::load(&dir.path().join("nomagic.yaml")).unwrap();
    let mut w = TestWatch::start(target(config.kubernetes.unwrap()));
    w.until("the refusal", |w| w.error("Service").contains("401"));
    std::fs::write(dir.path().join("k.conf"), kubeconfig("secret")).unwrap();
    w.until("the lists", |w| w.feed.complete() && w.services() == ["s0"]);
    for (target_url, word) in [
        (Kubernetes::Kubeconfig { path: dir.path().join("none"), context: None }, "none"),
        (Kubernetes::Kubeconfig { path: dir.path().join("k.conf"), context: Some("elsewhere".into()) }, "elsewhere"),
        (Kubernetes::InCluster, "inCluster"),
    ] {
        let mut w = TestWatch::start(target(target_url));
        w.until(word, |w| w.error("Service").contains(word));
    }
}

/// 5,000 Services with 50,000 endpoints: a list of each kind, and then a single change.
#[test]
fn a_large_cluster() {
    let s = server();
    for i in 0..5_000 {
        let addresses: Vec<String> = (0..10).map(|e| format!("10.{}.{}.{}", 1 + i / 256, i % 256, 1 + e)).collect();
        s.put(service(&format!("s{i}"))).unwrap();
        s.put(slice(&format!("s{i}-1"), &format!("s{i}"), &addresses.iter().map(String::as_str).collect::<Vec<_>>())).unwrap();
    }
    for streaming in [Streaming::Served, Streaming::Invalid] {
        s.set_streaming(streaming);
        let start = std::time::Instant::now();
        let mut w = TestWatch::start(nomagic::watch::WatchTarget { page: 500, ..target(by_url(&s)) });
        w.until("the lists", |w| w.feed.complete());
        println!("{streaming:?}: 10,000 objects in {:?}", start.elapsed());
        assert_eq!((w.services().len(), w.endpoints("s4999")), (5_000, 10));
        let start = std::time::Instant::now();
        s.put(slice("s7-1", "s7", &["10.1.7.1"])).unwrap();
        w.until("one change", |w| w.endpoints("s7") == 1);
        println!("{streaming:?}: one change in {:?}", start.elapsed());
        s.put(slice("s7-1", "s7", &["10.1.7.1", "10.1.7.2"])).unwrap();
    }
}
