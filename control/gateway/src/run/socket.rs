//! The control socket: a Unix socket in the state directory. See [`nomagic_api::socket`] for what is said there.

use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as Client;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nomagic_api::socket::{self, ANSWER_MAX, REQUEST_MAX, Request, Response};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// Clients at a time, from the first byte of their request to the last one of their answer; more are turned away.
const CLIENTS_MAX: usize = 16;
/// How long a client may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where the socket is.
pub fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("control.sock")
}

/// The listening end; the socket file goes away with it.
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ControlSocket {
    /// Listens. A socket file that nobody listens on any more is replaced.
    ///
    /// # Errors
    /// When another process answers there: two gateways on one state directory.
    pub fn open(state_dir: &Path) -> Result<ControlSocket> {
        std::fs::create_dir_all(state_dir).with_context(|| format!("cannot create the state directory {}", state_dir.display()))?;
        let path = path(state_dir);
        if somebody_listens(state_dir) {
            bail!("another nomagic runs with the state directory {}: end it first, or set another stateDir", state_dir.display());
        }
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e).with_context(|| format!("cannot replace {}", path.display())),
            _ => {}
        }
        let listener = UnixListener::bind(&path).with_context(|| format!("cannot listen on {}", path.display()))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        Ok(ControlSocket { listener, path })
    }

    /// Takes requests on a task of its own; each comes with whom to answer. What is no request is answered here.
    pub fn serve(self) -> mpsc::Receiver<(Request, Answer)> {
        let (sender, receiver) = mpsc::channel(CLIENTS_MAX);
        let clients = Arc::new(Semaphore::new(CLIENTS_MAX));
        tokio::task::spawn_local(async move {
            while !sender.is_closed() {
                let Ok((stream, _)) = self.listener.accept().await else {
                    // Out of descriptors, for instance: no reason to spin.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                };
                let sender = sender.clone();
                let Ok(client) = clients.clone().try_acquire_owned() else {
                    // One write of a short line to a fresh socket: it does not wait.
                    let refusal = socket::reply(Err(format!("{CLIENTS_MAX} clients are being answered already")));
                    let _ = stream.try_write(refusal.as_bytes());
                    continue;
                };
                tokio::task::spawn_local(async move {
                    if let Ok(Some((line, stream))) = tokio::time::timeout(PATIENCE, read_line(stream)).await {
                        let answer = Answer { stream, _client: client };
                        match line.and_then(|line| Request::parse(&line)) {
                            // Cannot be full: there is room for as many as there are clients.
                            Ok(request) => drop(sender.try_send((request, answer))),
                            Err(error) => answer.send(Err(error)),
                        }
                    }
                });
            }
        });
        receiver
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The first line; `Err` if it is too long. `None`: the client has gone, or what it sent is no text.
async fn read_line(stream: UnixStream) -> Option<(Result<String, String>, OwnedWriteHalf)> {
    let mut line = String::new();
    let (read, write) = stream.into_split();
    tokio::io::BufReader::new(read.take(REQUEST_MAX)).read_line(&mut line).await.ok()?;
    let too_long = line.len() as u64 == REQUEST_MAX && !line.ends_with('\n');
    Some((if too_long { Err(format!("the request is longer than {REQUEST_MAX} bytes")) } else { Ok(line) }, write))
}

/// A client that waits.
pub struct Answer {
    stream: OwnedWriteHalf,
    _client: OwnedSemaphorePermit,
}

impl Answer {
    /// Sends the answer in the background; a client that does not read it is given up.
    pub fn send(mut self, outcome: Result<Response, String>) {
        tokio::task::spawn_local(async move {
            let _ = tokio::time::timeout(PATIENCE, self.stream.write_all(socket::reply(outcome).as_bytes())).await;
        });
    }
}

/// Whether a process runs with this state directory, of whichever version.
pub fn somebody_listens(state_dir: &Path) -> bool {
    Client::connect(path(state_dir)).is_ok()
}

/// Asks the process that runs with this state directory.
pub fn ask(state_dir: &Path, request: &Request) -> Result<Response> {
    let path = path(state_dir);
    let mut stream = Client::connect(&path)
        .with_context(|| format!("no nomagic answers on {} (is it running? --state-dir names another one)", path.display()))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(request.line().as_bytes()).context("cannot ask")?;
    let mut answer = String::new();
    BufReader::new(stream.take(ANSWER_MAX)).read_to_string(&mut answer).context("no whole answer")?;
    if answer.is_empty() {
        bail!("nomagic did not answer");
    }
    socket::parse_reply(&answer).map_err(|e| anyhow!(e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nomagic_api::Status;

    /// Sends this and reads what comes back.
    fn say(state_dir: &Path, words: &[u8]) -> String {
        let mut stream = Client::connect(path(state_dir)).unwrap();
        stream.set_read_timeout(Some(2 * PATIENCE)).unwrap();
        stream.write_all(words).unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer
    }

    /// Serves a directory while `clients` runs on another thread; every request is answered by a status of this uptime.
    fn serve(uptime_s: u64, clients: impl FnOnce(&Path) + Send + 'static) {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let mut requests = ControlSocket::open(dir.path()).unwrap().serve();
            let state_dir = dir.path().to_owned();
            let mut clients = tokio::task::spawn_blocking(move || clients(&state_dir));
            loop {
                tokio::select! {
                    Some((Request::Status {}, answer)) = requests.recv() => {
                        answer.send(Ok(Response::Status(Box::new(Status { uptime_s, ..Status::default() }))));
                    }
                    done = &mut clients => return done.unwrap(),
                }
            }
        });
    }

    #[test]
    fn a_request_is_answered_and_what_is_none_is_told_why() {
        serve(7, |dir| {
            let Response::Status(status) = ask(dir, &Request::Status {}).unwrap() else { panic!("not a status") };
            assert_eq!(status.uptime_s, 7);
            assert!(somebody_listens(dir));
            let again = ControlSocket::open(dir).err().expect("one gateway a directory");
            assert!(again.to_string().contains("another nomagic runs"), "{again}");
            for (line, words) in [
                (&b"status\n"[..], "not a request"),
                (b"{\"version\":1,\"request\":{\"trace\":{}}}\n", "unknown request `trace`; known: status"),
                (&[b' '; 5_000], "longer than 4096 bytes"),
            ] {
                let answer = say(dir, line);
                assert!(answer.ends_with("}\n") && answer.contains(words), "{answer}");
            }
            // A line without an end, and one that is no text: nobody waits for the rest of it.
            assert_eq!(say(dir, b"\xff\xfe\n"), "");
        });
    }

    #[test]
    fn clients_are_few_and_have_little_time() {
        serve(7, |dir| {
            let connect = || Client::connect(path(dir)).unwrap();
            let silent: Vec<Client> = (0..CLIENTS_MAX).map(|_| connect()).collect();
            let refused = say(dir, b"");
            assert!(refused.contains("16 clients are being answered already"), "{refused}");
            // Those that say nothing lose their places.
            let start = std::time::Instant::now();
            for mut stream in silent {
                stream.set_read_timeout(Some(2 * PATIENCE)).unwrap();
                assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0);
            }
            assert!(start.elapsed() > PATIENCE / 2, "{:?}", start.elapsed());
            assert!(ask(dir, &Request::Status {}).is_ok());
        });
    }
}
