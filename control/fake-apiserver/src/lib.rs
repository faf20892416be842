//! A small Kubernetes API server for tests: Services, EndpointSlices, Nodes, ServiceCIDRs and Events with list and watch as the real server has
//! them (selectors, pages, bookmarks, streaming lists, compaction), and every fault that a client has to live with, on demand.
//!
//! It runs on a thread of its own and is steered through its handle. What it lacks: admission, validation (but of Events), other kinds, protobuf. It does
//! not make up creation times: what is put is what is served.
#![forbid(unsafe_code)]

mod answer;
mod events;
mod faults;
mod list;
mod listener;
mod query;
mod resources;
mod selector;
mod server;
mod store;
mod tls;
mod watch;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use serde_json::Value;
use tokio::sync::oneshot;

pub use faults::{End, Gone, Streaming};
pub use resources::Resource;
pub use store::{HISTORY_MAX, OBJECT_BYTES_MAX, OBJECTS_MAX};
pub use tls::Identity;

use listener::Connections;
use server::Shared;

/// A running server. Ends when dropped.
pub struct FakeApiServer {
    shared: Arc<Shared>,
    addr: SocketAddr,
    identity: Option<Identity>,
    running: Option<Running>,
}

struct Running {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl FakeApiServer {
    /// Starts on an address (port 0: any free one) of the calling thread's network namespace. With an identity it speaks TLS only.
    pub fn start(addr: SocketAddr, identity: Option<Identity>) -> Result<FakeApiServer> {
        let mut server = FakeApiServer { shared: Shared::new(), addr, identity, running: None };
        server.resume()?;
        Ok(server)
    }

    /// `http://127.0.0.1:34567`, or `https://...`.
    pub fn url(&self) -> String {
        let scheme = if self.identity.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.addr)
    }

    /// Ends all connections and refuses new ones. The objects stay.
    pub fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            let _ = running.stop.send(());
            let _ = running.thread.join();
        }
    }

    /// Listens again after [`FakeApiServer::stop`], on the same address.
    pub fn resume(&mut self) -> Result<()> {
        self.stop();
        let listener = TcpListener::bind(self.addr).with_context(|| format!("cannot listen on {}", self.addr))?;
        listener.set_nonblocking(true)?;
        self.addr = listener.local_addr()?;
        let (stop, stopped) = oneshot::channel();
        let (shared, identity) = (self.shared.clone(), self.identity.clone());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start a runtime")?;
        let work = move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = stopped => {}
                    _ = serve(listener, identity, shared) => {}
                }
            });
        };
        let thread = std::thread::Builder::new().name("fake-apiserver".into()).spawn(work).context("cannot start a thread")?;
        self.running = Some(Running { stop, thread });
        Ok(())
    }

    /// Creates or replaces an object; returns its version.
    pub fn put(&self, object: Value) -> Result<u64> {
        self.shared.change(|s| s.store.put(object)).map_err(|e| anyhow!(e))
    }

    /// Creates or replaces all objects of a YAML text: documents, and `List`s of them.
    pub fn put_yaml(&self, text: &str) -> Result<()> {
        for document in format!("\n{text}").split("\n---") {
            let value: Value = serde_saphyr::from_str(document).context("not YAML")?;
            match value.get("items").and_then(Value::as_array) {
                Some(items) => items.iter().try_for_each(|item| self.put(item.clone()).map(drop))?,
                None if value.is_null() => {}
                None => drop(self.put(value)?),
            }
        }
        Ok(())
    }

    /// Deletes an object; `namespace` is "" for those that have none. False: it was not there.
    pub fn delete(&self, resource: Resource, namespace: &str, name: &str) -> bool {
        self.shared.change(|s| s.store.delete(&(resource, namespace.into(), name.into()))).is_some()
    }

    /// The version of the last change.
    pub fn version(&self) -> u64 {
        self.shared.state().store.version()
    }

    /// Forgets all history: older versions are 410 Gone from now on.
    pub fn compact(&self) {
        self.shared.change(|s| s.store.compact());
    }

    /// Versions go on from here, if they are not there already; older ones are 410 Gone.
    pub fn begin_at(&self, version: u64) {
        self.shared.change(|s| s.store.begin_at(version));
    }

    /// How often clients get bookmarks; 60 s unless set. Watches that run take it over with their next bookmark.
    pub fn set_bookmark_every(&self, every: Duration) {
        self.shared.change(|s| s.bookmark_every = every);
    }

    /// Accepts only this bearer token from now on; `None`: everybody. Watches that run go on, as on the real server.
    pub fn set_token(&self, token: Option<&str>) {
        self.shared.change(|s| s.token = token.map(str::to_owned));
    }

    /// The next `count` requests are answered with this HTTP status.
    pub fn fail_next(&self, count: usize, status: u16) {
        self.shared.change(|s| s.faults.order(count, status));
    }

    /// Answers nothing and sends nothing, without closing anything, until it is switched off.
    pub fn set_silent(&self, silent: bool) {
        self.shared.change(|s| s.faults.silent = silent);
    }

    /// Sends 64 bytes at a time with this pause before each.
    pub fn set_slow(&self, pause: Option<Duration>) {
        self.shared.change(|s| s.faults.slow = pause);
    }

    /// How streaming lists are answered.
    pub fn set_streaming(&self, streaming: Streaming) {
        self.shared.change(|s| s.faults.streaming = streaming);
    }

    /// How versions that are too old are answered.
    pub fn set_gone(&self, gone: Gone) {
        self.shared.change(|s| s.faults.gone = gone);
    }

    /// Answers 404 for these kinds, as a server does that is too old for them.
    pub fn set_unknown(&self, kinds: &[Resource]) {
        self.shared.change(|s| s.faults.unknown = kinds.to_vec());
    }

    /// Answers 403 for these kinds, as RBAC does.
    pub fn set_forbidden(&self, kinds: &[Resource]) {
        self.shared.change(|s| s.faults.forbidden = kinds.to_vec());
    }

    /// The Events that clients have created, in the order of their names.
    pub fn events(&self) -> Vec<Value> {
        let state = self.shared.state();
        let events = state.store.at(Resource::Events, state.store.version()).unwrap_or_default();
        events.into_values().map(|event| (*event).clone()).collect()
    }

    /// Ends all watches that run.
    pub fn end_watches(&self, how: End) {
        self.shared.change(|s| {
            s.faults.epoch += 1;
            s.faults.end = Some(how);
        });
    }

    /// Sends a line of any text to all watches that run.
    pub fn send_garbage(&self, line: &str) {
        self.shared.change(|s| s.faults.garbage = (s.faults.garbage.0 + 1, line.to_owned()));
    }

    /// The last requests (10,000 at the most): `GET /api/v1/services?limit=500`. Forgets them.
    pub fn take_requests(&self) -> Vec<String> {
        self.shared.change(|s| s.requests.drain(..).collect())
    }
}

impl Drop for FakeApiServer {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn serve(listener: TcpListener, identity: Option<Identity>, shared: Arc<Shared>) -> Result<()> {
    let connections = Connections::accept(tokio::net::TcpListener::from_std(listener)?, identity)?;
    let router = axum::Router::new().fallback(server::answer).with_state(shared);
    axum::serve(connections, router).await?;
    Ok(())
}
