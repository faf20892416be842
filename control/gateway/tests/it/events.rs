//! Events sent to the fake API server: their content, and the limits on their cost.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::{Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

use nomagic::config::Config;
use nomagic::observe::events::{Event, Pace, QUEUE_MAX, Recorder};
use nomagic::observe::http::{Listeners, Server};
use nomagic_fake_apiserver::{FakeApiServer, Resource};
use nomagic_table::compile::HealthCheck;
use nomagic_table::objects::NamespacedName;
use serde_json::Value;

use crate::common::watching::{SOON, by_url, server};

/// The log of all tests in this file.
static LOG: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct Log;

impl Write for Log {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        LOG.lock().unwrap_or_else(PoisonError::into_inner).extend(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The number of log lines with these words.
fn logged(words: &[&str]) -> usize {
    let log = LOG.lock().unwrap_or_else(PoisonError::into_inner).clone();
    String::from_utf8(log).unwrap().lines().filter(|line| words.iter().all(|w| line.contains(w))).count()
}

fn recorder(server: &FakeApiServer) -> Recorder {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| tracing_subscriber::fmt().with_ansi(false).with_writer(|| Log).init());
    let pace = Pace {
        attempts: 200,
        pause_min: Duration::from_millis(10),
        pause_max: Duration::from_millis(100),
        answer: Duration::from_millis(500),
        ..Pace::default()
    };
    Recorder::start_at(by_url(server), "gw".into(), pace).unwrap()
}

fn count(recorder: &Recorder, outcome: &str) -> u64 {
    recorder.counts().into_iter().find(|(name, _)| *name == outcome).unwrap().1
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let end = Instant::now() + SOON;
    while !holds() {
        assert!(Instant::now() < end, "waited {SOON:?} for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The events with a reason.
fn of(server: &FakeApiServer, reason: &str) -> Vec<Value> {
    server.events().into_iter().filter(|e| e["reason"] == reason).collect()
}

fn own_address(last: u8) -> IpAddr {
    let [.., high, low] = std::process::id().to_be_bytes();
    [127, 192 | (high & 63), low.max(1), last].into()
}

#[test]
fn an_event_arrives_once() {
    let (api, started) = (server(), Event::starting("gw"));
    let recorder = recorder(&api);
    (0..3).for_each(|_| recorder.record(started.clone()));
    recorder.record_here(|node| Event::no_metrics(node, "taken"));
    recorder.flush(SOON);
    assert_eq!(recorder.counts(), [("sent", 2), ("failed", 0), ("repeated", 2), ("rate_limited", 0), ("queue_full", 0)]);
    let [event] = &of(&api, "Starting")[..] else { panic!("{:?}", api.events()) };
    assert_eq!(
        (&event["type"], &event["action"], &event["reportingController"]),
        (&"Normal".into(), &"StartKubeProxy".into(), &"nomagic".into())
    );
    assert_eq!((&event["regarding"]["kind"], &event["regarding"]["name"]), (&"Node".into(), &"gw".into()));
    assert_eq!(of(&api, "FailedToStartMetricServer")[0]["note"], "taken");
    let posts = api.take_requests();
    assert_eq!(posts, vec!["POST /apis/events.k8s.io/v1/namespaces/default/events"; 2]);
}

#[test]
fn a_rejection_is_logged_once_and_not_retried() {
    let api = server();
    api.set_forbidden(&[Resource::Events]);
    let recorder = recorder(&api);
    (0..5).for_each(|i| recorder.record(Event::no_metrics("gw", &format!("for reason {i}"))));
    recorder.flush(SOON);
    assert_eq!((count(&recorder, "failed"), api.take_requests().len()), (5, 5), "no second attempt");
    assert_eq!(logged(&[&api.url(), "403", "deploy/base/cluster-role.yaml"]), 1);
    assert_eq!(logged(&[&api.url()]), 1);
    // Sending continues when it is allowed; the next rejection is logged again.
    api.set_forbidden(&[]);
    recorder.record(Event::starting("gw"));
    recorder.flush(SOON);
    assert_eq!(count(&recorder, "sent"), 1);
    api.set_forbidden(&[Resource::Events]);
    recorder.record(Event::no_healthz("gw", "taken"));
    recorder.flush(SOON);
    assert_eq!(logged(&[&api.url(), "403"]), 2);
}

#[test]
fn events_are_delivered_after_the_server_returns() {
    let mut api = server();
    let recorder = recorder(&api);
    api.stop();
    recorder.record(Event::starting("gw"));
    until("the fault", || logged(&[&api.url(), "cannot send events"]) == 1);
    api.resume().unwrap();
    api.fail_next(2, 500);
    until("the event", || !api.events().is_empty());
    recorder.flush(SOON);
    assert_eq!((count(&recorder, "sent"), api.events().len()), (1, 1));
}

#[test]
fn a_silent_server_blocks_nothing() {
    let api = server();
    api.set_silent(true);
    let recorder = recorder(&api);
    let start = Instant::now();
    (0..QUEUE_MAX + 20).for_each(|i| recorder.record(Event::no_metrics("gw", &i.to_string())));
    assert!(start.elapsed() < Duration::from_millis(300), "{:?}", start.elapsed());
    // At most one event has left the queue.
    assert!((19..=20).contains(&count(&recorder, "queue_full")), "{:?}", recorder.counts());
    let start = Instant::now();
    recorder.flush(Duration::from_millis(100));
    assert!(start.elapsed() < Duration::from_secs(1));
    api.set_silent(false);
    let burst = u64::from(Pace::default().burst);
    until("the burst, and no more", || count(&recorder, "sent") == burst && count(&recorder, "rate_limited") >= QUEUE_MAX as u64 - burst);
}

#[test]
fn listen_failures_are_recorded() {
    let (api, ip) = (server(), own_address(1));
    let recorder = recorder(&api);
    let [health, metrics, check] = [10_256, 10_249, 30_007].map(|port| TcpListener::bind((ip, port)).unwrap());
    let config = Config::parse(&format!("healthzBindAddress: {ip}\nmetricsBindAddress: {ip}\n"), Path::new("c")).unwrap();
    let mut server = Server::start(Listeners::open(&config, &recorder).unwrap(), recorder.clone()).unwrap();
    let service = NamespacedName { namespace: "shop".into(), name: "web".into() };
    let wanted = [(30_007, HealthCheck { service, local_endpoints: 1 })].into();
    // Retried repeatedly, recorded once.
    (0..3).for_each(|_| server.follow_checks(&wanted, &BTreeSet::from([ip])));
    recorder.flush(SOON);
    assert_eq!(recorder.counts()[..3], [("sent", 3), ("failed", 0), ("repeated", 0)]);
    for (reason, listener, field) in
        [("FailedToStartProxierHealthcheck", health, "healthzBindAddress"), ("FailedToStartMetricServer", metrics, "metricsBindAddress")]
    {
        let note = of(&api, reason)[0]["note"].as_str().unwrap().to_owned();
        let at: SocketAddr = listener.local_addr().unwrap();
        assert!(note.starts_with(field) && note.contains(&at.to_string()) && note.contains("already in use"), "{note}");
    }
    let event = &of(&api, "FailedToStartServiceHealthcheck")[0];
    assert_eq!((&event["metadata"]["namespace"], &event["regarding"]["kind"]), (&"shop".into(), &"Service".into()));
    let note = event["note"].as_str().unwrap();
    assert!(
        note.starts_with("node gw failed to start healthcheck \"shop/web\" on port 30007: ") && note.contains("already in use"),
        "{note}"
    );
    drop(check);
}

#[test]
fn a_failing_process_sends_its_event_before_it_exits() {
    let (api, ip) = (server(), own_address(2));
    let _held = TcpListener::bind((ip, 10_256)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let text = format!(
        "node: {{name: gw}}\ninterfaces: [none0]\nkubernetes: {{url: '{}'}}\nstateDir: {}\nhealthzBindAddress: {ip}\nmetricsBindAddress: ''\nbindAddressHardFail: true\n",
        api.url(),
        dir.path().join("state").display()
    );
    let file = dir.path().join("nomagic.yaml");
    std::fs::write(&file, text).unwrap();
    let run = |extra: &[&str]| {
        let out = std::process::Command::new(env!("CARGO_BIN_EXE_nomagic")).arg("run").arg("--config").arg(&file).args(extra).output();
        let out = out.unwrap();
        assert_eq!(out.status.code(), Some(1), "{}", String::from_utf8_lossy(&out.stderr));
    };
    run(&[]);
    run(&["--node-name", "gw-2"]);
    let nodes = of(&api, "FailedToStartProxierHealthcheck").iter().map(|e| e["regarding"]["name"].as_str().unwrap().to_owned()).collect();
    assert_eq!(BTreeSet::from(["gw".to_owned(), "gw-2".to_owned()]), nodes, "{:?}", api.events());
}
