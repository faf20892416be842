//! The control socket: a Unix socket in the state directory. [`nomagic_api::socket`] describes the protocol.

use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream as Client;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nomagic_api::socket::{self, ANSWER_MAX, REQUEST_MAX, Request, Response};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

use super::lock::StateLock;
use crate::config::SocketGroup;
use crate::connections::{Limits, Peer, Permit, Permits, Turn};

/// Maximum concurrent clients, counted from accept to the end of the response. A further one displaces a client that neither sends its request
/// nor reads.
const CLIENTS_MAX: usize = 16;
/// Maximum concurrent clients of one process.
const PROCESS_CLIENTS_MAX: usize = 8;
/// Time limit for a client's request, for writing the response, and for a reply from the gateway.
const SOCKET_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after `accept` fails.
const PAUSE: Duration = Duration::from_millis(10);

/// The answer to a member of the readers' group.
const ONLY_ROOT: &str = "only root may do this: the group of the control socket (socketGroup) may only read";

/// The path of the socket.
pub fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("control.sock")
}

/// The listening socket. Dropping it removes the socket file.
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
    /// The user of this process.
    owner: u32,
    permits: Arc<Permits>,
    /// Held as long as it listens.
    _lock: StateLock,
}

impl ControlSocket {
    /// Listens. Replaces the socket file of a process that has ended. Members of the group `readers` may send requests that only read.
    ///
    /// # Errors
    /// If another process listens there: two gateways cannot share a state directory.
    pub fn open(state_dir: &Path, readers: Option<&SocketGroup>) -> Result<ControlSocket> {
        nomagic_sys::directory::make(state_dir).with_context(|| format!("cannot create the state directory {}", state_dir.display()))?;
        let lock = StateLock::take(state_dir)?.with_context(|| format!("the state directory {} was removed", state_dir.display()))?;
        let path = path(state_dir);
        // One of a version without the lock.
        if is_running(state_dir) {
            bail!("another nomagic runs with the state directory {}: stop it first, or set another stateDir", state_dir.display());
        }
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e).with_context(|| format!("cannot replace {}", path.display())),
            _ => {}
        }
        let listener = UnixListener::bind(&path).with_context(|| format!("cannot listen on {}", path.display()))?;
        // Traffic does not depend on it, so a failure is no reason to stop.
        let is_shared = readers
            .is_some_and(|group| share(&path, group).inspect_err(|e| tracing::warn!("{} stays root's: {e}", path.display())).is_ok());
        let mode = if is_shared { 0o660 } else { 0o600 };
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))?;
        let owner = std::fs::metadata(&path)?.uid();
        let permits = Permits::new(Limits { connections_max: CLIENTS_MAX, peer_connections_max: PROCESS_CLIENTS_MAX });
        Ok(ControlSocket { listener, path, owner, permits, _lock: lock })
    }

    /// The clients' permits, with their counts.
    pub fn permits(&self) -> Arc<Permits> {
        self.permits.clone()
    }

    /// Accepts requests on a separate task and returns them with their responders. Invalid requests are answered by the task.
    pub fn serve(self) -> mpsc::Receiver<(Request, Responder)> {
        let (sender, receiver) = mpsc::channel(CLIENTS_MAX);
        tokio::task::spawn_local(async move {
            while !sender.is_closed() {
                let Ok((stream, _)) = self.listener.accept().await else {
                    // If, for instance, no descriptor is free, one client makes room. The pause prevents spinning.
                    self.permits.count_accept_failure();
                    self.permits.withdraw_one();
                    tokio::time::sleep(PAUSE).await;
                    continue;
                };
                let peer = stream.peer_cred().ok();
                let process = peer.and_then(|peer| peer.pid());
                let may_change = peer.is_some_and(|peer| peer.uid() == 0 || peer.uid() == self.owner);
                let peer = if may_change { Peer::Process(process) } else { Peer::Readers };
                if let Some(permit) = self.permits.acquire(peer) {
                    tokio::task::spawn_local(take(stream, permit, may_change, sender.clone()));
                } else {
                    // A short line always fits the buffer of a new socket.
                    let refusal =
                        socket::reply(Err(format!("too many clients: the limit is {CLIENTS_MAX} ({PROCESS_CLIENTS_MAX} of one process)")));
                    let _ = stream.try_write(refusal.as_bytes());
                }
                // A client displaced by this one ends before the next one is accepted.
                tokio::task::yield_now().await;
            }
        });
        receiver
    }
}

/// Gives the socket to a group.
///
/// # Errors
/// What to do: without CAP_CHOWN a process may choose among its own groups only.
fn share(path: &Path, group: &SocketGroup) -> Result<(), String> {
    let group = group.number()?;
    std::os::unix::fs::chown(path, None, Some(group)).map_err(|e| {
        format!(
            "socketGroup: it cannot be given to group {group}: {e}. Make that a supplementary group of this process (SupplementaryGroups= of the unit, \
             supplementalGroups of the pod)"
        )
    })
}

/// Reads a client's request, unless the client is too slow or its permit is withdrawn.
async fn take(stream: UnixStream, mut permit: Permit, may_change: bool, sender: mpsc::Sender<(Request, Responder)>) {
    let read = tokio::select! {
        read = tokio::time::timeout(SOCKET_TIMEOUT, read_line(stream)) => read,
        () = permit.withdrawn() => return,
    };
    let Ok(read) = read else { return permit.count_timed_out() };
    let Some((line, stream)) = read else { return };
    permit.turns().set(Turn::Server);
    let responder = Responder { stream, permit };
    match line.and_then(|line| Request::parse(&line)) {
        Ok(request) if !may_change && !request.is_read_only() => responder.send(Err(ONLY_ROOT.into())),
        // The channel cannot be full: its capacity is the maximum number of clients, and clients waiting for a response are not displaced.
        Ok(request) => drop(sender.try_send((request, responder))),
        Err(error) => responder.send(Err(error)),
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Reads the first line; `Err` if it is too long. Returns `None` if the client has disconnected or the line is not UTF-8.
async fn read_line(stream: UnixStream) -> Option<(Result<String, String>, OwnedWriteHalf)> {
    let mut line = String::new();
    let (read, write) = stream.into_split();
    tokio::io::BufReader::new(read.take(REQUEST_MAX)).read_line(&mut line).await.ok()?;
    let too_long = line.len() as u64 == REQUEST_MAX && !line.ends_with('\n');
    Some((if too_long { Err(format!("the request is longer than {REQUEST_MAX} bytes")) } else { Ok(line) }, write))
}

/// Answers one client's request.
pub struct Responder {
    stream: OwnedWriteHalf,
    permit: Permit,
}

impl Responder {
    /// Sends the response in the background. Gives up if the client does not read it in time.
    pub fn send(self, outcome: Result<Response, String>) {
        let Responder { mut stream, mut permit } = self;
        permit.turns().set(Turn::Client);
        tokio::task::spawn_local(async move {
            let line = socket::reply(outcome);
            tokio::select! {
                sent = tokio::time::timeout(SOCKET_TIMEOUT, stream.write_all(line.as_bytes())) => if sent.is_err() {
                    permit.count_timed_out();
                },
                () = permit.withdrawn() => {}
            }
        });
    }
}

/// Reports whether a nomagic of any version listens in this state directory, also one that is stopped.
pub fn is_running(state_dir: &Path) -> bool {
    use socket2::{Domain, SockAddr, Socket, Type};
    let connect = || {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        // If it accepts nobody, a blocking call would wait for ever.
        socket.set_nonblocking(true)?;
        socket.connect(&SockAddr::unix(path(state_dir))?)
    };
    match connect() {
        Ok(()) => true,
        Err(e) => e.kind() == io::ErrorKind::WouldBlock,
    }
}

/// No nomagic listens on the socket, or it does not answer in time.
#[derive(Debug, thiserror::Error)]
#[error("no nomagic answers on {} (is it running? --state-dir selects another directory)", path.display())]
pub struct NoAnswer {
    path: PathBuf,
    source: io::Error,
}

/// Sends a request to the nomagic that runs with this state directory.
///
/// # Errors
/// [`NoAnswer`] if none runs; what the gateway refuses; system errors.
pub fn ask(state_dir: &Path, request: &Request) -> Result<Response> {
    let path = path(state_dir);
    let mut stream = Client::connect(&path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => anyhow!(NoAnswer { path: path.clone(), source }),
        _ => anyhow!(source).context(format!("cannot connect to {}", path.display())),
    })?;
    stream.set_read_timeout(Some(SOCKET_TIMEOUT))?;
    let sent = stream.write_all(request.line().as_bytes());
    let mut answer = String::new();
    let read = BufReader::new(stream.take(ANSWER_MAX)).read_to_string(&mut answer);
    // The request of a rejected client is not read: sending it fails, or the kernel resets the connection after the rejection.
    if !answer.ends_with('\n') {
        sent.context("cannot send the request")?;
        read.map_err(|source| match source.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => anyhow!(NoAnswer { path, source }),
            _ => anyhow!(source).context("cannot read the response"),
        })?;
    }
    if answer.is_empty() {
        bail!("nomagic did not answer");
    }
    socket::parse_reply(&answer).map_err(|e| anyhow!(e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nomagic_api::Status;

    /// Sends bytes and reads the response.
    fn exchange(state_dir: &Path, bytes: &[u8]) -> String {
        let mut stream = Client::connect(path(state_dir)).unwrap();
        stream.set_read_timeout(Some(2 * SOCKET_TIMEOUT)).unwrap();
        // Fails if the client was rejected before.
        let _ = stream.write_all(bytes);
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer
    }

    /// Serves a state directory while `clients` runs on another thread. Every request is answered with a status of this uptime that is longer
    /// than the kernel's buffer for a client that does not read.
    fn serve(uptime_s: u64, clients: impl FnOnce(&Path) + Send + 'static) {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let mut requests = ControlSocket::open(dir.path(), None).unwrap().serve();
            let state_dir = dir.path().to_owned();
            let mut clients = tokio::task::spawn_blocking(move || clients(&state_dir));
            loop {
                tokio::select! {
                    Some((Request::Status {}, responder)) = requests.recv() => {
                        let not_ready = vec!["x".repeat(1 << 20)];
                        responder.send(Ok(Response::Status(Box::new(Status { uptime_s, not_ready, ..Status::default() }))));
                    }
                    done = &mut clients => return done.unwrap(),
                }
            }
        });
    }

    #[test]
    fn requests_are_answered_and_invalid_ones_rejected_with_a_reason() {
        serve(7, |dir| {
            let Response::Status(status) = ask(dir, &Request::Status {}).unwrap() else { panic!("not a status") };
            assert_eq!(status.uptime_s, 7);
            assert!(is_running(dir));
            let again = ControlSocket::open(dir, None).err().expect("one gateway per directory");
            assert!(again.to_string().contains("another nomagic runs"), "{again}");
            for (line, words) in [
                (&b"status\n"[..], "not a request"),
                (b"{\"version\":1,\"request\":{\"trace\":{}}}\n", "unknown request `trace`; known: status"),
                (&[b' '; 5_000], "longer than 4096 bytes"),
            ] {
                let answer = exchange(dir, line);
                assert!(answer.ends_with("}\n") && answer.contains(words), "{answer}");
            }
            // A line that is not UTF-8 closes the connection.
            assert_eq!(exchange(dir, b"\xff\xfe\n"), "");
        });
    }

    #[test]
    fn number_and_time_of_clients_are_limited() {
        serve(7, |dir| {
            let connect = || Client::connect(path(dir)).unwrap();
            let silent: Vec<Client> = (0..PROCESS_CLIENTS_MAX).map(|_| connect()).collect();
            // Silent clients time out.
            let start = std::time::Instant::now();
            for mut stream in silent {
                stream.set_read_timeout(Some(2 * SOCKET_TIMEOUT)).unwrap();
                assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0);
            }
            assert!(start.elapsed() > SOCKET_TIMEOUT / 2, "{:?}", start.elapsed());
            ask(dir, &Request::Status {}).unwrap();
        });
    }

    /// Slow clients do not delay others, however many there are.
    #[test]
    fn slow_clients_are_displaced_by_one_with_a_request() {
        serve(7, |dir| {
            let mut slow: Vec<Client> = Vec::new();
            for n in 0..100 {
                let mut stream = Client::connect(path(dir)).unwrap();
                // Some are silent, some send part of a request, some request a long response and do not read it.
                let words = [&b""[..], b"{\"version\":1,", b"{\"version\":1,\"request\":{\"status\":{}}}\n"][n % 3];
                // The connection may have ended already.
                let _ = stream.write_all(words);
                slow.push(stream);
            }
            for _ in 0..6 {
                let start = std::time::Instant::now();
                ask(dir, &Request::Status {}).unwrap();
                assert!(start.elapsed() < SOCKET_TIMEOUT / 5, "{:?}", start.elapsed());
            }
            let mut ended = 0;
            for stream in &mut slow {
                stream.set_nonblocking(true).unwrap();
                let mut bytes = [0; 4_096];
                while matches!(stream.read(&mut bytes), Ok(n) if n > 0) {}
                ended += usize::from(stream.read(&mut bytes).is_ok());
            }
            assert!(ended >= 100 - PROCESS_CLIENTS_MAX, "{ended} of 100 were ended");
        });
    }

    #[test]
    fn a_client_waiting_for_its_response_is_not_displaced() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let socket = ControlSocket::open(dir.path(), None).unwrap();
            let permits = socket.permits();
            let mut requests = socket.serve();
            let asks = |n: usize| {
                let state_dir = dir.path().to_owned();
                let clients = (0..n).map(move |_| {
                    let state_dir = state_dir.clone();
                    tokio::task::spawn_blocking(move || exchange(&state_dir, Request::Status {}.line().as_bytes()))
                });
                clients.collect::<Vec<_>>()
            };
            let waiting = asks(PROCESS_CLIENTS_MAX);
            let mut taken = Vec::new();
            for _ in 0..PROCESS_CLIENTS_MAX {
                taken.push(requests.recv().await.unwrap().1);
            }
            let refused = asks(1).pop().unwrap().await.unwrap();
            assert!(refused.contains("too many clients: the limit is 16 (8 of one process)"), "{refused}");
            for _ in 0..50 {
                let state_dir = dir.path().to_owned();
                let asked = tokio::task::spawn_blocking(move || ask(&state_dir, &Request::Status {})).await.unwrap();
                let error = format!("{:#}", asked.expect_err("no permit is free"));
                assert!(error.contains("too many clients"), "{error}");
            }
            taken.into_iter().for_each(|responder: Responder| responder.send(Ok(Response::Status(Box::default()))));
            for client in waiting {
                let answer = client.await.unwrap();
                assert!(answer.contains("\"response\""), "{answer}");
            }
            assert_eq!((permits.counts().refused, permits.counts().displaced), (51, 0));
        });
    }
}
