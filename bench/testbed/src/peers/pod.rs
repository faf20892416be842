//! A pod: an HTTP/1.1 server and a UDP echo that report their own name and the client's address.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use axum::Router;
use axum::extract::{ConnectInfo, DefaultBodyLimit, RawQuery, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use serde_json::json;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::oneshot;

use super::blob::{blob, fnv1a};
use crate::rig::Netns;

/// The largest body in either direction, in bytes.
const BODY_MAX: usize = 64 << 20;

/// How a pod listens. Both sockets take IPv4 and IPv6.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PodOptions {
    pub name: String,
    /// TCP port of the HTTP server.
    pub http_port: u16,
    pub udp_port: u16,
}

impl PodOptions {
    /// HTTP on port 80, UDP echo on port 53.
    pub fn new(name: &str) -> PodOptions {
        PodOptions { name: name.to_owned(), http_port: 80, udp_port: 53 }
    }
}

/// Serves until the future is dropped; `ready` is called when both sockets are bound.
///
/// - `GET /`: `{"pod": name, "client": "addr:port"}`
/// - `GET /blob?bytes=N`: deterministic bytes, see [`blob`]
/// - `POST /sink`: `{"pod", "client", "bytes", "fnv1a", "blob": whether the body is blob(bytes)}`
/// - a UDP datagram: `name|client addr:port|payload`
pub async fn serve_pod(options: PodOptions, ready: impl FnOnce()) -> Result<()> {
    let any = IpAddr::from(Ipv6Addr::UNSPECIFIED);
    let tcp =
        TcpListener::bind((any, options.http_port)).await.with_context(|| format!("cannot listen on TCP port {}", options.http_port))?;
    let udp = UdpSocket::bind((any, options.udp_port)).await.with_context(|| format!("cannot bind UDP port {}", options.udp_port))?;
    ready();
    let name: Arc<str> = options.name.into();
    let app = Router::new()
        .route("/", get(hello))
        .route("/blob", get(send_blob))
        .route("/sink", post(sink))
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .with_state(name.clone())
        .into_make_service_with_connect_info::<SocketAddr>();
    tokio::select! {
        ended = axum::serve(tcp, app) => ended.context("the HTTP server ended"),
        ended = echo(&udp, &name) => ended.context("the UDP echo ended"),
    }
}

async fn hello(State(pod): State<Arc<str>>, ConnectInfo(client): ConnectInfo<SocketAddr>) -> String {
    json!({ "pod": &*pod, "client": plain(client).to_string() }).to_string()
}

async fn send_blob(RawQuery(query): RawQuery) -> Result<Vec<u8>, StatusCode> {
    let bytes = query.as_deref().and_then(|q| q.strip_prefix("bytes=")?.parse().ok());
    let bytes: usize = bytes.ok_or(StatusCode::BAD_REQUEST)?;
    if bytes > BODY_MAX { Err(StatusCode::PAYLOAD_TOO_LARGE) } else { Ok(blob(bytes)) }
}

async fn sink(State(pod): State<Arc<str>>, ConnectInfo(client): ConnectInfo<SocketAddr>, body: axum::body::Bytes) -> String {
    let same = blob(body.len()) == body;
    let hash = format!("{:016x}", fnv1a(&body));
    json!({ "pod": &*pod, "client": plain(client).to_string(), "bytes": body.len(), "fnv1a": hash, "blob": same }).to_string()
}

async fn echo(socket: &UdpSocket, name: &str) -> Result<()> {
    let mut buf = vec![0u8; 65_536];
    loop {
        // Errors of single datagrams (a client is gone, a port unreachable) do not end the server.
        let Ok((len, client)) = socket.recv_from(&mut buf).await else {
            tokio::time::sleep(Duration::from_millis(1)).await;
            continue;
        };
        let mut answer = format!("{name}|{}|", plain(client)).into_bytes();
        answer.extend_from_slice(&buf[..len]);
        let _ = socket.send_to(&answer, client).await;
    }
}

/// Converts an IPv4-mapped address, as seen by a dual-stack socket, to plain IPv4.
fn plain(client: SocketAddr) -> SocketAddr {
    SocketAddr::new(client.ip().to_canonical(), client.port())
}

/// A pod on a thread of this process; stops when dropped.
#[derive(Debug)]
pub struct PodThread {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<Result<()>>>>,
}

/// Starts a pod on a thread inside a namespace and waits until it listens.
pub fn start_pod(netns: &Netns, options: PodOptions) -> Result<PodThread> {
    let (stop, stopped) = oneshot::channel::<()>();
    let (up, is_up) = std::sync::mpsc::channel::<()>();
    let title = format!("{} in {}", options.name, netns.name());
    let thread = netns.thread(move || -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start a tokio runtime")?;
        runtime.block_on(async {
            tokio::select! {
                ended = serve_pod(options, || drop(up)) => ended,
                _ = stopped => Ok(()),
            }
        })
    })?;
    let mut pod = PodThread { stop: Some(stop), thread: Some(thread) };
    // The sender is dropped when the pod is up, and also when it failed: then its thread has ended or is about to.
    if is_up.recv_timeout(Duration::from_secs(10)).is_err_and(|e| e == std::sync::mpsc::RecvTimeoutError::Timeout) {
        return Err(anyhow!("pod {title} did not start within 10 s"));
    }
    std::thread::sleep(Duration::from_millis(2));
    if pod.thread.as_ref().is_some_and(JoinHandle::is_finished) {
        pod.join().with_context(|| format!("pod {title}"))?;
    }
    Ok(pod)
}

impl PodThread {
    /// Stops it and returns how it ended.
    pub fn stop(mut self) -> Result<()> {
        self.join()
    }

    fn join(&mut self) -> Result<()> {
        drop(self.stop.take());
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(ended)) => ended.and_then(|result| result),
            Some(Err(_)) => Err(anyhow!("the pod's thread panicked")),
            None => Ok(()),
        }
    }
}

impl Drop for PodThread {
    fn drop(&mut self) {
        if let Err(e) = self.join() {
            eprintln!("pod: {e:#}");
        }
    }
}
