//! How soon a watch follows again after an outage, and what a server that is away must bear meanwhile. With the timeouts of the product.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use nomagic::config::Kubernetes;
use nomagic::watch::WatchTarget;
use nomagic_api::WatchState;
use nomagic_fake_apiserver::{End, FakeApiServer, Streaming};

use crate::common::CpuLock;
use crate::common::watching::*;

/// Long enough for pauses that double to exceed [`FOLLOWS_WITHIN`].
const OUTAGE: Duration = Duration::from_secs(7);
/// After the server's return.
const FOLLOWS_WITHIN: Duration = Duration::from_secs(2);
const GATEWAYS: usize = 25;

/// The product's timeouts.
fn default_target(server: Kubernetes) -> WatchTarget {
    WatchTarget::new(server, "gw".into())
}

fn gateways(server: &FakeApiServer, count: usize) -> Vec<TestWatch> {
    let mut watches: Vec<TestWatch> = (0..count).map(|_| TestWatch::start(default_target(by_url(server)))).collect();
    watches.iter_mut().for_each(|w| w.until("the first lists", |w| w.feed.complete()));
    watches
}

/// Waits until all of them know a Service, and checks that it took no longer than allowed.
fn all_hear(watches: &mut [TestWatch], service: &str, within: Duration) {
    let start = Instant::now();
    watches.iter_mut().for_each(|w| w.until(service, |w| w.services().contains(&service.to_owned())));
    let took = start.elapsed();
    assert!(took <= within, "{} gateways heard of {service} after {took:?}: {:#?}", watches.len(), watches[0].status());
}

#[test]
fn all_gateways_follow_soon_after_an_outage_also_with_a_compacted_version() {
    let _cpus = CpuLock::take();
    let mut s = server();
    s.put(service("s0")).unwrap();
    let mut watches = gateways(&s, GATEWAYS);
    for compacted in [false, true] {
        s.stop();
        let back = Instant::now() + OUTAGE;
        watches.iter_mut().for_each(|w| w.until("the fault", |w| w.of("Service").state == WatchState::Away));
        std::thread::sleep(back.saturating_duration_since(Instant::now()));
        let name = format!("compacted-{compacted}");
        s.put(service(&name)).unwrap();
        if compacted {
            s.compact();
        }
        s.take_requests();
        s.resume().unwrap();
        all_hear(&mut watches, &name, FOLLOWS_WITHIN);
        let asked = s.take_requests().len();
        // By kind: the version and a watch, and with a compacted version a streaming list.
        assert!(asked <= GATEWAYS * 4 * 4, "{asked} requests of {GATEWAYS} gateways");
    }
}

#[test]
fn a_server_that_closes_every_connection_gets_about_one_a_second() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let connections = Arc::new(AtomicUsize::new(0));
    let count = connections.clone();
    std::thread::spawn(move || {
        for _connection in listener.incoming() {
            count.fetch_add(1, Relaxed);
        }
    });
    let mut w = TestWatch::start(default_target(Kubernetes::Url { url: url.parse().unwrap(), ca_file: None, token_file: None }));
    w.for_a_while(Duration::from_secs(5));
    let seen = connections.load(Relaxed);
    // One of each kind at first, then after at least 0.125, 0.25, 0.5, 0.5 s and so on.
    assert!((8..=4 + 3 + 9).contains(&seen), "{seen} connections in 5 s: {:#?}", w.status());
}

#[test]
fn a_server_whose_watches_always_end_with_410_is_not_flooded_with_lists() {
    let s = server();
    s.put(service("s0")).unwrap();
    s.set_streaming(Streaming::Invalid);
    s.set_watches_gone(true);
    let mut w = TestWatch::start(default_target(by_url(&s)));
    w.until("the first lists", |w| w.feed.complete());
    w.for_a_while(Duration::from_secs(5));
    let lists = w.of("Service").lists;
    assert!((3..=7).contains(&lists), "{lists} lists of Services in 5 s: {:#?}", w.status());
    s.set_watches_gone(false);
    s.put(service("s1")).unwrap();
    all_hear(&mut [w], "s1", Duration::from_secs(10));
}

#[test]
fn a_new_token_is_tried_within_a_second() {
    let s = server();
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    std::fs::write(&token, "first").unwrap();
    s.set_token(Some("first"));
    let by_token = Kubernetes::Url { url: s.url().parse().unwrap(), ca_file: None, token_file: Some(token.clone()) };
    let mut w = TestWatch::start(default_target(by_token));
    w.until("the first lists", |w| w.feed.complete());
    s.set_token(Some("second"));
    s.end_watches(End::Cut);
    w.until("the refusal", |w| w.error("Service").contains("401"));
    w.for_a_while(OUTAGE);
    s.put(service("s1")).unwrap();
    std::fs::write(&token, "second").unwrap();
    all_hear(&mut [w], "s1", Duration::from_secs(1));
}

#[test]
fn a_restored_role_and_an_end_of_overload_are_noticed_soon() {
    let s = server();
    for (code, name) in [(403, "role"), (503, "load"), (500, "etcd")] {
        let mut watches = gateways(&s, 3);
        s.fail_always(Some(code));
        s.end_watches(End::Cut);
        watches.iter_mut().for_each(|w| w.until("the refusal", |w| w.error("Service").contains(&code.to_string())));
        s.take_requests();
        watches.iter_mut().for_each(|w| w.for_a_while(OUTAGE / 3));
        let asked = s.take_requests().into_iter().filter(|r| r.contains("/services?")).count();
        assert!(asked <= 3 * (6 + 14), "{asked} requests for Services of 3 gateways in {OUTAGE:?} with {code}");
        s.put(service(name)).unwrap();
        s.fail_always(None);
        all_hear(&mut watches, name, FOLLOWS_WITHIN);
    }
}

fn many_changes(server: &FakeApiServer) {
    for _ in 0..50 {
        server.put(service("both")).unwrap();
    }
}

/// The server accepts the watches and says nothing more; neither an error nor an end would tell.
#[test]
fn an_older_state_of_the_server_is_found_and_listed() {
    let mut s = server();
    let old = s.put(service("old")).unwrap();
    s.put(service("both")).unwrap();
    let mut w = TestWatch::listed(&s);
    s.put(service("new")).unwrap();
    many_changes(&s);
    w.until("the new objects", |w| w.services() == ["both", "new", "old"]);
    // With a restart, as etcd's restore demands: found when the watches come back.
    s.stop();
    assert!(s.go_back(old + 1));
    s.resume().unwrap();
    w.until("the older state", |w| w.services() == ["both", "old"]);
    assert_eq!((w.of("Service").lists, w.of("Service").state), (2, WatchState::Connected), "{:#?}", w.status());
    // Behind an open watch: found when it is quiet for too long, since the server sends no bookmarks any more.
    many_changes(&s);
    s.put(service("lost")).unwrap();
    w.until("an object", |w| w.services().contains(&"lost".to_owned()));
    assert!(s.go_back(old));
    w.until("the oldest state", |w| w.services() == ["old"]);
    s.put(service("next")).unwrap();
    w.until("a change in it", |w| w.services() == ["next", "old"]);
}
