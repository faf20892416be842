//! A watch of the fake API server, driven by hand.

use std::time::{Duration, Instant};

use nomagic::config::Kubernetes;
use nomagic::watch::{self, Feed, Patience, Target};
use nomagic_api::{ApiWatch, KindWatch};
use nomagic_fake_apiserver::FakeApiServer;
use nomagic_table::index::Index;
use nomagic_table::objects::Key;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

/// How long anything that is expected may take.
pub const SOON: Duration = Duration::from_secs(20);

/// A feed and the index that it fills.
pub struct Watched {
    pub feed: Feed,
    pub index: Index,
    runtime: Runtime,
}

/// A server without TLS whose bookmarks come often.
pub fn server() -> FakeApiServer {
    let server = FakeApiServer::start("127.0.0.1:0".parse().unwrap(), None).unwrap();
    server.set_bookmark_interval(Duration::from_millis(100));
    server
}

/// Where a server is, as configured.
pub fn by_url(server: &FakeApiServer) -> Kubernetes {
    Kubernetes::Url { url: server.url().parse().unwrap(), ca_file: None, token_file: None }
}

/// What to watch, with little patience.
pub fn target(server: Kubernetes) -> Target {
    let patience = Patience {
        answer: Duration::from_millis(1_500),
        silence: Duration::from_millis(800),
        list: Duration::from_secs(10),
        pause_min: Duration::from_millis(20),
        pause_max: Duration::from_millis(200),
    };
    Target { patience, page: 3, ..Target::new(server, "gw".into()) }
}

impl Watched {
    pub fn start(target: Target) -> Watched {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Watched { feed: watch::start(target).unwrap(), index: Index::default(), runtime }
    }

    /// Watches a server, until everything was listed once.
    pub fn listed(server: &FakeApiServer) -> Watched {
        let mut watched = Watched::start(target(by_url(server)));
        watched.until("the first lists", |w| w.feed.complete());
        watched
    }

    /// Applies what is told until something holds.
    pub fn until(&mut self, what: &str, mut holds: impl FnMut(&Watched) -> bool) {
        let end = Instant::now() + SOON;
        while !holds(self) {
            assert!(Instant::now() < end, "waited {SOON:?} for {what}: {:#?}", self.status());
            self.step(Duration::from_millis(50));
        }
    }

    /// Applies what is told for some time.
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

    /// How the watch of one kind fares.
    pub fn of(&self, kind: &str) -> KindWatch {
        let status = self.status();
        status.kinds.iter().find(|k| k.kind == kind).unwrap_or_else(|| panic!("no {kind} in {status:?}")).clone()
    }

    /// Why a kind is away.
    pub fn error(&self, kind: &str) -> String {
        self.of(kind).error.unwrap_or_default()
    }

    /// The names of the Services that are known.
    pub fn services(&self) -> Vec<String> {
        self.index.services().map(|s| s.key.name.clone()).collect()
    }

    /// The number of endpoints of a Service.
    pub fn endpoints(&self, service: &str) -> usize {
        let key = Key { namespace: "default".into(), name: service.into() };
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
