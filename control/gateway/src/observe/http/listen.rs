//! Listening sockets and their accept loop.
//!
//! The loop is our own because `axum::serve` has no limits on the number of connections, the time for the request head and the total
//! time of a request.

use std::io;
use std::net::{SocketAddr, TcpListener as Listener};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpStream};

use super::clients::{CameBy, Clients, ServerKind};
use super::stream::{ClientStream, reset};
use crate::connections::{Permit, Turn};

/// File descriptors that connections leave to the rest of the process.
const DESCRIPTORS_KEPT: u64 = 16;
/// Time limit for a client to send the request head.
const HEAD_MAX: Duration = Duration::from_secs(1);
/// Time limit for a connection, which carries one request and its response; the same as Prometheus' scrape timeout.
const CONNECTION_MAX: Duration = Duration::from_secs(10);
/// Maximum length of the request head, and size of the write buffer.
const BUFFER_BYTES: usize = 16 << 10;
/// Maximum number of request headers.
const HEADERS_MAX: usize = 64;
/// Maximum number of connections not accepted yet. The kernel's own limit, `net.core.somaxconn`, is 4,096 as well.
const BACKLOG: i32 = 4_096;
/// Bytes that the kernel buffers for a connection in each direction. A client that does not read leaves at most this much behind.
const KERNEL_BUFFER_BYTES: usize = 128 << 10;
/// The interface of the host's connections to itself.
const LOOPBACK: &[u8] = b"lo";
/// Interval between attempts to listen on an address; the same as kube-proxy's.
const RETRY_EVERY: Duration = Duration::from_secs(5);
/// Pause after `accept` fails and no connection can make room.
const PAUSE: Duration = Duration::from_millis(10);

/// The sockets of one address.
#[derive(Debug)]
pub(super) struct Sockets {
    all: Listener,
    /// Accepts what arrives on the loopback interface: the node's own connections do not share a queue with all others.
    node: Option<Listener>,
}

/// Opens a listening socket. With `only_v6`, `[::]` does not accept IPv4, which has a separate socket.
pub(super) fn open(at: SocketAddr, only_v6: bool) -> io::Result<Listener> {
    let socket = socket(at, only_v6)?;
    socket.bind(&at.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Opens a listening socket, and a second one for the node's own connections.
pub(super) fn open_for_node_too(at: SocketAddr) -> io::Result<Sockets> {
    let all = open(at, false)?;
    // A loopback address receives from the loopback interface only.
    let node = if at.ip().is_loopback() { None } else { Some(open_for_node(&all, at)) };
    let node = node.transpose().unwrap_or_else(|e| {
        tracing::warn!("no separate socket on {at} for the node's own connections, so they share a queue with all others: {e}");
        None
    });
    Ok(Sockets { all, node })
}

fn open_for_node(all: &Listener, at: SocketAddr) -> io::Result<Listener> {
    let (all, node) = (SockRef::from(all), socket(at, false)?);
    node.bind_device(Some(LOOPBACK))?;
    // Two sockets can listen on one address only if both have SO_REUSEPORT set. It was not set when the first one was bound, so an address in
    // use by another process was noticed; and it is cleared at once, so no other process can take the address.
    node.set_reuse_port(true)?;
    all.set_reuse_port(true)?;
    let opened = node.bind(&at.into()).and_then(|()| node.listen(BACKLOG));
    all.set_reuse_port(false)?;
    node.set_reuse_port(false)?;
    opened?;
    Ok(node.into())
}

/// Creates a socket, not bound yet. Accepted connections inherit its limits.
fn socket(at: SocketAddr, only_v6: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, Some(Protocol::TCP))?;
    if at.is_ipv6() {
        socket.set_only_v6(only_v6)?;
    }
    // Lets a restarted process listen while old connections are in TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.set_send_buffer_size(KERNEL_BUFFER_BYTES)?;
    socket.set_recv_buffer_size(KERNEL_BUFFER_BYTES)?;
    // After the connection is closed here, the kernel sends the rest of the response. This limits the time if the client does not read.
    socket.set_tcp_user_timeout(Some(CONNECTION_MAX))?;
    Ok(socket)
}

/// A server: its routes and its clients.
#[derive(Clone)]
pub(super) struct Server {
    pub(super) router: Router,
    pub(super) clients: Arc<Clients>,
    pub(super) kind: ServerKind,
}

impl Server {
    /// Serves on both sockets until the task is aborted.
    pub(super) async fn serve_both(self, sockets: Sockets) {
        let all = self.clone().serve(sockets.all, CameBy::Any);
        match sockets.node {
            Some(node) => drop(tokio::join!(all, self.serve(node, CameBy::Loopback))),
            None => all.await,
        }
    }

    /// Retries to listen on an address until it succeeds, then serves like [`Server::serve_both`].
    pub(super) async fn serve_once_free(self, what: &'static str, at: SocketAddr) {
        let sockets = loop {
            tokio::time::sleep(RETRY_EVERY).await;
            if let Ok(sockets) = open_for_node_too(at) {
                break sockets;
            }
        };
        tracing::info!("{what} is now served on {at}");
        self.serve_both(sockets).await;
    }

    /// Serves on a socket until the task is aborted.
    pub(super) async fn serve(self, listener: Listener, came_by: CameBy) {
        let listener = match TcpListener::from_std(listener) {
            Ok(listener) => listener,
            Err(e) => return tracing::error!("cannot register an HTTP socket with the runtime: {e}"),
        };
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => {
                    if leaves_too_few_descriptors(&stream) && self.clients.make_room(self.kind) {
                        tokio::task::yield_now().await;
                    }
                    match self.clients.admit(self.kind, &stream, peer, came_by) {
                        Some(permit) => drop(tokio::spawn(serve_connection(stream, self.router.clone(), permit))),
                        None => reset(&stream),
                    }
                    // A connection displaced by this one ends before the next one is accepted, which bounds the number of descriptors.
                    tokio::task::yield_now().await;
                }
                Err(e) if is_of_one_connection(&e) => {}
                // The connection that makes room ends before the next attempt.
                Err(e) if is_shortage(&e) && self.clients.make_room(self.kind) => tokio::task::yield_now().await,
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }
}

/// Reports whether `accept` failed for one connection only, so that the next one may succeed: accept(2) lists the errors of a new socket that
/// Linux passes on.
fn is_of_one_connection(e: &io::Error) -> bool {
    use libc::{ECONNABORTED, EHOSTDOWN, EHOSTUNREACH, ENETDOWN, ENETUNREACH, ENONET, ENOPROTOOPT, EOPNOTSUPP, EPERM, EPROTO};
    let codes = [ECONNABORTED, EHOSTDOWN, EHOSTUNREACH, ENETDOWN, ENETUNREACH, ENONET, ENOPROTOOPT, EOPNOTSUPP, EPERM, EPROTO];
    e.raw_os_error().is_some_and(|code| codes.contains(&code))
}

/// Reports whether a connection took one of the last file descriptors, which the rest of the process needs: to read the kernel's counters for
/// `/metrics`, for example. Descriptors are numbered from the lowest free one on.
fn leaves_too_few_descriptors(stream: &TcpStream) -> bool {
    let number = u64::try_from(stream.as_raw_fd()).unwrap_or(0);
    number + DESCRIPTORS_KEPT >= nomagic_sys::process::open_files_max()
}

/// Reports whether `accept` failed for lack of file descriptors or memory, which other connections hold.
fn is_shortage(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}

/// Answers one request. Ends the connection earlier if its client is too slow or its permit is withdrawn.
async fn serve_connection(stream: TcpStream, router: Router, mut permit: Permit) {
    let (turns, pages) = (permit.turns(), TowerToHyperService::new(router));
    let stream = ClientStream::new(stream, turns.clone());
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        turns.set(Turn::Server);
        let (response, turns) = (pages.call(request), turns.clone());
        async move {
            let response = response.await;
            turns.set(Turn::Client);
            response
        }
    });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_MAX)
        .keep_alive(false)
        .max_buf_size(BUFFER_BYTES)
        .max_headers(HEADERS_MAX)
        .title_case_headers(true)
        .serve_connection(TokioIo::new(stream), service);
    let too_slow = tokio::select! {
        ended = &mut connection => match ended {
            Err(e) if e.is_timeout() => true,
            // Answered, or aborted by the client, which is not reported.
            _ => return,
        },
        () = tokio::time::sleep(CONNECTION_MAX) => true,
        () = permit.withdrawn() => false,
    };
    if too_slow {
        permit.count_timed_out();
    }
    connection.into_parts().io.into_inner().reset();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_broke_is_not_a_process_out_of_descriptors() {
        let kinds = |code| [is_of_one_connection, is_shortage].map(|is| is(&io::Error::from_raw_os_error(code)));
        for (code, expected) in [
            (libc::ECONNABORTED, [true, false]),
            (libc::EPROTO, [true, false]),
            (libc::EMFILE, [false, true]),
            (libc::ENOMEM, [false, true]),
            (libc::EBADF, [false, false]),
        ] {
            assert_eq!(kinds(code), expected, "{code}");
        }
    }

    #[test]
    fn an_address_is_listened_on_by_one_process_with_two_sockets() {
        let at = open(SocketAddr::from(([0, 0, 0, 0], 0)), false).unwrap().local_addr().unwrap();
        let sockets = open_for_node_too(at).unwrap();
        let node = sockets.node.as_ref().expect("a socket for the node");
        let again = open_for_node_too(at).expect_err("the address is taken");
        assert_eq!(again.kind(), io::ErrorKind::AddrInUse);
        // The node's own connections come to its own socket, by whichever of its addresses.
        for to in ["127.0.0.1", "127.0.0.9"] {
            let _client = std::net::TcpStream::connect((to, at.port())).unwrap();
            std::thread::sleep(Duration::from_millis(50));
            assert!(node.accept().is_ok(), "{to}");
            assert_eq!(sockets.all.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        }
        drop(sockets);
        assert!(open_for_node_too(at).unwrap().node.is_some(), "a restart finds the address free");
    }
}
