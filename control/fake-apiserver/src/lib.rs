//! A small Kubernetes API server for tests. It serves Services, EndpointSlices, Nodes, ServiceCIDRs, Events and Namespaces with list and watch like
//! the real server (selectors, pages, bookmarks, streaming lists, compaction), and produces on demand every fault that a client must handle.
//!
//! It runs on its own thread and is controlled through [`FakeApiServer`]. Not implemented: admission, validation (except of Events), other
//! kinds, protobuf, creation timestamps (objects are served as they were put).
#![forbid(unsafe_code)]

mod events;
mod faults;
mod list;
mod listener;
mod query;
mod resources;
mod response;
mod selector;
mod server;
mod state;
mod store;
mod tls;
mod watch;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use tokio::sync::oneshot;

pub use faults::{End, Gone, Streaming};
use listener::Connections;
pub use resources::Resource;
use state::SharedState;
pub use store::{HISTORY_MAX, OBJECT_BYTES_MAX, OBJECTS_MAX};
pub use tls::Identity;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// A socket with this address that does not listen yet.
fn reserve(addr: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&addr.into())?;
    Ok(socket)
}

/// A running server. Dropping it stops the server.
pub struct FakeApiServer {
    shared: Arc<SharedState>,
    addr: SocketAddr,
    identity: Option<Identity>,
    running: Option<ServerThread>,
    /// Keeps the port while the server is stopped: bound, so that no connection gets it as its own, but not listening.
    reserved: Option<Socket>,
}

struct ServerThread {
    stop: oneshot::Sender<()>,
    /// Its own network namespace has the address, so it reserves it at its end.
    thread: JoinHandle<Option<Socket>>,
}

impl FakeApiServer {
    /// Starts a server on an address (port 0: any free port) in the calling thread's network namespace. With an identity it accepts TLS only.
    pub fn start(addr: SocketAddr, identity: Option<Identity>) -> Result<FakeApiServer> {
        let mut server = FakeApiServer { shared: SharedState::new(), addr, identity, running: None, reserved: None };
        server.resume()?;
        Ok(server)
    }

    /// `http://127.0.0.1:34567`, or `https://...`.
    pub fn url(&self) -> String {
        let scheme = if self.identity.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.addr)
    }

    /// Closes all connections and refuses new ones. Keeps the objects.
    pub fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            let _ = running.stop.send(());
            self.reserved = running.thread.join().ok().flatten();
        }
    }

    /// Listens again after [`FakeApiServer::stop`], on the same address.
    pub fn resume(&mut self) -> Result<()> {
        self.stop();
        let socket = self.reserved.take().map_or_else(|| reserve(self.addr), Ok);
        let listening = socket.and_then(|socket| socket.listen(BACKLOG).map(|()| TcpListener::from(socket)));
        let listener = listening.with_context(|| format!("cannot listen on {}", self.addr))?;
        listener.set_nonblocking(true)?;
        self.addr = listener.local_addr()?;
        let (stop, stopped) = oneshot::channel();
        let (shared, identity, addr) = (self.shared.clone(), self.identity.clone(), self.addr);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start a runtime")?;
        let work = move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = stopped => {}
                    _ = serve(listener, identity, shared) => {}
                }
            });
            reserve(addr).ok()
        };
        let thread = std::thread::Builder::new().name("fake-apiserver".into()).spawn(work).context("cannot start a thread")?;
        self.running = Some(ServerThread { stop, thread });
        Ok(())
    }

    /// Creates or replaces an object. Returns its resource version.
    pub fn put(&self, object: Value) -> Result<u64> {
        self.shared.change(|s| s.store.put(object)).map_err(|e| anyhow!(e))
    }

    /// Creates or replaces all objects of a YAML stream, including those in `List` objects.
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

    /// Creates the Namespace kube-system with this UID, or replaces it. Every real cluster has one with a UID of its own.
    pub fn put_kube_system(&self, uid: &str) -> Result<u64> {
        self.put(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kube-system", "uid": uid}}))
    }

    /// Deletes an object; `namespace` is "" for cluster-scoped kinds. False: no such object.
    pub fn delete(&self, resource: Resource, namespace: &str, name: &str) -> bool {
        self.shared.change(|s| s.store.delete(&(resource, namespace.into(), name.into()))).is_some()
    }

    /// The resource version of the last change.
    pub fn version(&self) -> u64 {
        self.shared.state().store.version()
    }

    /// Discards the history: requests for older versions get 410 Gone from now on.
    pub fn compact(&self) {
        self.shared.change(|s| s.store.compact());
    }

    /// Raises the resource version to at least this one; older versions get 410 Gone.
    pub fn begin_at(&self, version: u64) {
        self.shared.change(|s| s.store.begin_at(version));
    }

    /// Restores the objects and the version at an older version, like an etcd that is restored from a backup. From then on, watches from a
    /// version in the future are accepted and hear nothing until then. Open watches stay open. False: the version is compacted or in the
    /// future.
    pub fn go_back(&self, version: u64) -> bool {
        self.shared.change(|s| {
            s.faults.future_watches = true;
            s.store.go_back(version)
        })
    }

    /// Sets the interval between bookmarks (default 60 s). Open watches use it after their next bookmark.
    pub fn set_bookmark_interval(&self, interval: Duration) {
        self.shared.change(|s| s.bookmark_interval = interval);
    }

    /// Requires this bearer token from now on; `None`: no token is required. Open watches continue, as on the real server.
    pub fn set_token(&self, token: Option<&str>) {
        self.shared.change(|s| s.token = token.map(str::to_owned));
    }

    /// Fails the next `count` requests with this HTTP status.
    pub fn fail_next(&self, count: usize, status: u16) {
        self.shared.change(|s| s.faults.queue_failures(count, status));
    }

    /// Fails all requests with this HTTP status, after those of [`FakeApiServer::fail_next`]; `None`: none.
    pub fn fail_always(&self, status: Option<u16>) {
        self.shared.change(|s| s.faults.failure = status);
    }

    /// While true, every watch from a version fails as from a compacted one.
    pub fn set_watches_gone(&self, gone: bool) {
        self.shared.change(|s| s.faults.watches_gone = gone);
    }

    /// While true, sends no responses and no watch events, and keeps all connections open.
    pub fn set_silent(&self, silent: bool) {
        self.shared.change(|s| s.faults.silent = silent);
    }

    /// Sends bodies in chunks of 64 bytes with this pause before each chunk.
    pub fn set_slow(&self, pause: Option<Duration>) {
        self.shared.change(|s| s.faults.slow = pause);
    }

    /// Sets how requests for streaming lists are handled.
    pub fn set_streaming(&self, streaming: Streaming) {
        self.shared.change(|s| s.faults.streaming = streaming);
    }

    /// Sets how requests for compacted versions fail.
    pub fn set_gone(&self, gone: Gone) {
        self.shared.change(|s| s.faults.gone = gone);
    }

    /// Responds with 404 for these kinds, like a server that is too old for them.
    pub fn set_unknown(&self, kinds: &[Resource]) {
        self.shared.change(|s| s.faults.unknown = kinds.to_vec());
    }

    /// Responds with 403 for these kinds, like a server whose RBAC rules forbid them.
    pub fn set_forbidden(&self, kinds: &[Resource]) {
        self.shared.change(|s| s.faults.forbidden = kinds.to_vec());
    }

    /// Sends no responses to requests for these kinds, and keeps their connections open.
    pub fn set_unanswered(&self, kinds: &[Resource]) {
        self.shared.change(|s| s.faults.unanswered = kinds.to_vec());
    }

    /// The Events that clients have created, sorted by name.
    pub fn events(&self) -> Vec<Value> {
        let state = self.shared.state();
        let events = state.store.at(Resource::Events, state.store.version()).unwrap_or_default();
        events.into_values().map(|event| (*event).clone()).collect()
    }

    /// Ends all open watches.
    pub fn end_watches(&self, how: End) {
        self.shared.change(|s| {
            s.faults.epoch += 1;
            s.faults.end = Some(how);
        });
    }

    /// Sends an arbitrary line to all open watches.
    pub fn send_garbage(&self, line: &str) {
        self.shared.change(|s| s.faults.garbage = (s.faults.garbage.0 + 1, line.to_owned()));
    }

    /// Takes the request log (at most the latest 10,000), such as `GET /api/v1/services?limit=500`.
    pub fn take_requests(&self) -> Vec<String> {
        self.shared.change(|s| s.requests.drain(..).collect())
    }
}

impl Drop for FakeApiServer {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn serve(listener: TcpListener, identity: Option<Identity>, shared: Arc<SharedState>) -> Result<()> {
    let connections = Connections::accept(tokio::net::TcpListener::from_std(listener)?, identity)?;
    let router = axum::Router::new().fallback(server::handle).with_state(shared);
    axum::serve(connections, router).await?;
    Ok(())
}
