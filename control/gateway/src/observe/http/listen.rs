//! Listening sockets, and serving one connection after another on them with limits on everything a client decides about.

use std::io;
use std::net::{SocketAddr, TcpListener as Listener};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// How long a client may take to send its request's head.
const HEAD_MAX: Duration = Duration::from_secs(5);
/// How long a connection may last: one request and its answer.
const CONNECTION_MAX: Duration = Duration::from_secs(30);
/// Bytes of a request's head at the most, and of a piece of an answer.
const BUFFER_BYTES: usize = 16 << 10;
/// Headers of a request at the most.
const HEADERS_MAX: usize = 64;
/// Connections that wait to be accepted, at the most.
const BACKLOG: i32 = 128;
/// How often an address that could not be listened on is tried again: kube-proxy's time.
const RETRY_EVERY: Duration = Duration::from_secs(5);
/// A pause when nothing can be accepted (out of descriptors, for instance).
const PAUSE: Duration = Duration::from_millis(100);

/// A socket that listens. `only_v6`: `[::]` leaves IPv4 to a socket of its own.
pub(super) fn open(at: SocketAddr, only_v6: bool) -> io::Result<Listener> {
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, Some(Protocol::TCP))?;
    if at.is_ipv6() {
        socket.set_only_v6(only_v6)?;
    }
    // As everywhere on Unix: a restart does not wait for old connections' TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&at.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Serves on a socket until the task is aborted. `permits`: how many connections there may be at a time; the next one waits.
pub(super) async fn serve(listener: Listener, router: Router, permits: Arc<Semaphore>) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(e) => return tracing::error!("an HTTP socket is of no use: {e}"),
    };
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        let router = router.clone();
        tokio::spawn(async move {
            answer(stream, router).await;
            drop(permit);
        });
    }
}

/// The same, and first listens again and again until it can.
pub(super) async fn serve_once_free(what: &'static str, at: SocketAddr, router: Router, permits: Arc<Semaphore>) {
    let listener = loop {
        tokio::time::sleep(RETRY_EVERY).await;
        if let Ok(listener) = open(at, false) {
            break listener;
        }
    };
    tracing::info!("{what} is answered on {at} now");
    serve(listener, router, permits).await;
}

async fn answer(stream: TcpStream, router: Router) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_MAX)
        .keep_alive(false)
        .max_buf_size(BUFFER_BYTES)
        .max_headers(HEADERS_MAX)
        .title_case_headers(true)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    // A client that breaks off or takes too long is its own loss.
    let _ = tokio::time::timeout(CONNECTION_MAX, connection).await;
}
