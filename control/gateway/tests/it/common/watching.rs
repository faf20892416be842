//! A watch of the fake API server, driven step by step.

use std::time::{Duration, Instant};

use nomagic::config::Kubernetes;
use nomagic::watch::{self, Feed, WatchTarget, WatchTimeouts};
use nomagic_api::{ApiWatch, KindWatch};
use nomagic_fake_apiserver::FakeApiServer;
use nomagic_table::index::Index;
use nomagic_table::objects::NamespacedName;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

/// Time limit for expected changes.
pub const SOON: Duration = Duration::from_secs(20);

/// A feed and its index.
pub struct TestWatch {
    pub feed: Feed,
    pub index: Index,
    runtime: Runtime,
}

/// A server without TLS and with frequent bookmarks.
pub fn server() -> FakeApiServer {
    let server = FakeApiServer::start("127.0.0.1:0".parse().unwrap(), None).unwrap();
    server.set_bookmark_interval(Duration::from_millis(100));
    server
}

/// The configuration for a server's URL.
pub fn by_url(server: &FakeApiServer) -> Kubernetes {
    Kubernetes::Url { url: server.url().parse().unwrap(), ca_file: None, token_file: None }
}

/// What to watch, with short timeouts.
pub fn target(server: Kubernetes) -> WatchTarget {
    let timeouts = WatchTimeouts {
        answer: Duration::from_millis(1_500),
        silence: Duration::from_millis(800),
        list: Duration::from_secs(10),
        pause_min: Duration::from_millis(20),
        pause_max: Duration::from_millis(200),
    };
    WatchTarget { timeouts, page: 3, ..WatchTarget::new(server, "gw".into()) }
}

impl TestWatch {
    pub fn start(target: WatchTarget) -> TestWatch {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        TestWatch { feed: watch::start(target).unwrap(), index: Index::default(), runtime }
    }

    /// Watches a server and waits for the first lists.
    pub fn listed(server: &FakeApiServer) -> TestWatch {
        TestWatch::completed(target(by_url(server)))
    }

    /// Like `listed`, and reads the cluster's UID.
    pub fn identified(server: &FakeApiServer) -> TestWatch {
        TestWatch::completed(WatchTarget { read_cluster_uid: true, ..target(by_url(server)) })
    }

    fn completed(target: WatchTarget) -> TestWatch {
        let mut watched = TestWatch::start(target);
        watched.until("the first lists", |w| w.feed.complete());
        watched
    }

    /// Applies messages until a condition holds.
    pub fn until(&mut self, what: &str, mut holds: impl FnMut(&TestWatch) -> bool) {
        let end = Instant::now() + SOON;
        while !holds(self) {
            assert!(Instant::now() < end, "waited {SOON:?} for {what}: {:#?}", self.status());
            self.step(Duration::from_millis(50));
        }
    }

    /// Applies messages for some time.
    pub fn for_a_while(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.step(Duration::from_millis(20));
        }
    }

    fn step(&mut self, limit: Duration) {
        let (feed, index) = (&mut self.feed, &mut self.index);
        let told = self.runtime.block_on(async { tokio::time::timeout(limit, feed.changed(index)).await });
        if let Ok(result) = told {
            result.unwrap();
        }
    }

    pub fn status(&self) -> ApiWatch {
        self.feed.status(&self.index)
    }

    /// The status of the watch of one kind.
    pub fn of(&self, kind: &str) -> KindWatch {
        let status = self.status();
        status.kinds.iter().find(|k| k.kind == kind).unwrap_or_else(|| panic!("no {kind} in {status:?}")).clone()
    }

    /// The latest error of a kind.
    pub fn error(&self, kind: &str) -> String {
        self.of(kind).error.unwrap_or_default()
    }

    /// The names of the known Services.
    pub fn services(&self) -> Vec<String> {
        self.index.services().filter(|s| !s.stands_in()).map(|s| s.key.name.clone()).collect()
    }

    /// The number of endpoints of a Service.
    pub fn endpoints(&self, service: &str) -> usize {
        let key = NamespacedName { namespace: "default".into(), name: service.into() };
        self.index.slices_of(&key).map(|s| s.endpoints.len()).sum()
    }
}

pub fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"},
        "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]},
    })
}

pub fn slice(name: &str, of: &str, addresses: &[&str]) -> Value {
    let endpoints: Vec<Value> = addresses.iter().map(|a| json!({"addresses": [a]})).collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": name, "namespace": "default", "labels": {"kubernetes.io/service-name": of}},
        "endpoints": endpoints, "ports": [{"port": 80}],
    })
}
