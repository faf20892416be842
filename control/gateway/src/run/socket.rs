//! The control socket: a Unix socket in the state directory. A client sends one line and gets one answer.

use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as Client;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

/// Bytes of a request at the most.
const REQUEST_MAX: u64 = 4_096;
/// Requests that wait at the most; more are turned away.
const REQUESTS_MAX: usize = 16;
/// Bytes of an answer at the most.
const ANSWER_MAX: u64 = 256 << 20;
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
        if Client::connect(&path).is_ok() {
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

    /// Takes requests on a task of its own; each comes with whom to answer. Broken clients are passed over.
    pub fn serve(self) -> mpsc::Receiver<(String, Answer)> {
        let (sender, receiver) = mpsc::channel(REQUESTS_MAX);
        tokio::task::spawn_local(async move {
            while !sender.is_closed() {
                let Ok((stream, _)) = self.listener.accept().await else {
                    // Out of descriptors, for instance: no reason to spin.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                };
                let sender = sender.clone();
                tokio::task::spawn_local(async move {
                    if let Ok(Some(request)) = tokio::time::timeout(PATIENCE, read_line(stream)).await {
                        drop(sender.try_send(request));
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

async fn read_line(stream: UnixStream) -> Option<(String, Answer)> {
    let mut line = String::new();
    let (read, write) = stream.into_split();
    tokio::io::BufReader::new(read.take(REQUEST_MAX)).read_line(&mut line).await.ok()?;
    Some((line.trim().to_owned(), Answer(write)))
}

/// A client that waits.
pub struct Answer(tokio::net::unix::OwnedWriteHalf);

impl Answer {
    /// Sends the answer in the background; a client that does not read it is given up.
    pub fn send(mut self, text: String) {
        tokio::task::spawn_local(async move {
            let _ = tokio::time::timeout(PATIENCE, self.0.write_all(text.as_bytes())).await;
        });
    }
}

/// Asks the process that runs with this state directory.
pub fn ask(state_dir: &Path, request: &str) -> Result<String> {
    let path = path(state_dir);
    let mut stream = Client::connect(&path)
        .with_context(|| format!("no nomagic answers on {} (is it running? --state-dir names another one)", path.display()))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("{request}\n").as_bytes()).context("cannot ask")?;
    let mut answer = String::new();
    BufReader::new(stream.take(ANSWER_MAX)).read_to_string(&mut answer).context("no whole answer")?;
    if answer.is_empty() {
        bail!("nomagic did not answer to `{request}`");
    }
    Ok(answer)
}
