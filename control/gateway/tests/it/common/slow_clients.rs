//! Clients that keep their connections for as long as possible, and connect again when a connection ends.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nomagic_testbed::rig::Netns;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;

/// The behaviour of such a client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Slow {
    /// Sends nothing.
    Silent,
    /// Sends a byte of a request head each 900 ms.
    OneByte,
    /// Sends a line of an endless request head each 900 ms.
    HeadLines,
    /// Requests this path and reads nothing.
    NoReading(&'static str),
    /// Requests this path and reads a byte each 900 ms.
    OneByteRead(&'static str),
    /// Sends a hundred requests at once and reads nothing.
    Pipelining,
    /// Announces a long body and sends a byte of it each 900 ms.
    Body,
    /// Sends part of a request head and closes its half of the connection.
    HalfClosed,
}

pub const ALL: [Slow; 8] = [
    Slow::Silent,
    Slow::OneByte,
    Slow::HeadLines,
    Slow::NoReading("/healthz"),
    Slow::OneByteRead("/healthz"),
    Slow::Pipelining,
    Slow::Body,
    Slow::HalfClosed,
];

const PERIOD: Duration = Duration::from_millis(900);
const AGAIN_AFTER: Duration = Duration::from_millis(50);

/// Running slow clients. Dropping it stops them.
pub struct SlowClients {
    stop: watch::Sender<()>,
    connected: Arc<AtomicU64>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl SlowClients {
    /// Starts `count` clients with the `kinds` in turn, from the `sources` in turn (none: chosen by the kernel).
    pub fn start(netns: Option<&Netns>, at: SocketAddr, count: usize, kinds: &[Slow], sources: &[IpAddr]) -> SlowClients {
        nomagic_sys::process::raise_open_files(65_536);
        let ((stop, stopped), connected) = (watch::channel(()), Arc::new(AtomicU64::new(0)));
        let (kinds, sources, counter) = (kinds.to_vec(), sources.to_vec(), connected.clone());
        let run = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                for n in 0..count {
                    let source = (!sources.is_empty()).then(|| sources[n / kinds.len() % sources.len()]);
                    tokio::spawn(one(at, source, kinds[n % kinds.len()], counter.clone()));
                }
                let mut stopped = stopped;
                let _ = stopped.changed().await;
            });
        };
        let thread = match netns {
            Some(netns) => {
                let inside = netns.thread(run).unwrap();
                std::thread::spawn(move || inside.join().unwrap().unwrap())
            }
            None => std::thread::spawn(run),
        };
        SlowClients { stop, connected, thread: Some(thread) }
    }

    /// Waits for this number of connections, and a second more, so that the time limit of the first ones has passed.
    pub fn wait_for(&self, connections: u64) {
        super::wait_for("slow connections", Duration::from_secs(30), || self.connected() >= connections);
        std::thread::sleep(Duration::from_millis(1_200));
    }

    /// The number of connections so far.
    pub fn connected(&self) -> u64 {
        self.connected.load(Ordering::Relaxed)
    }
}

impl Drop for SlowClients {
    fn drop(&mut self) {
        drop(std::mem::replace(&mut self.stop, watch::channel(()).0));
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

async fn one(at: SocketAddr, source: Option<IpAddr>, kind: Slow, connected: Arc<AtomicU64>) {
    loop {
        if let Ok(Ok(stream)) = tokio::time::timeout(Duration::from_secs(10), connect(at, source)).await {
            connected.fetch_add(1, Ordering::Relaxed);
            let _ = keep(stream, kind).await;
        }
        tokio::time::sleep(AGAIN_AFTER).await;
    }
}

async fn connect(at: SocketAddr, source: Option<IpAddr>) -> std::io::Result<TcpStream> {
    let socket = if at.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(source) = source {
        socket.bind(SocketAddr::new(source, 0))?;
    }
    // Unread data fills this buffer.
    socket.set_recv_buffer_size(4_096)?;
    socket.connect(at).await
}

/// Keeps the connection until the server ends it.
async fn keep(mut stream: TcpStream, kind: Slow) -> std::io::Result<()> {
    let ask = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
    match kind {
        Slow::Silent => until_ended(&mut stream).await,
        Slow::OneByte => drip(stream, "GET /healthz HTTP/1.1\r\nHost: ", b"x").await,
        Slow::HeadLines => drip(stream, "GET /healthz HTTP/1.1\r\nHost: x\r\n", b"X-a: b\r\n").await,
        Slow::Body => drip(stream, "POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n", b"x").await,
        Slow::NoReading(path) => hold(stream, &ask(path)).await,
        Slow::Pipelining => hold(stream, &ask("/healthz").repeat(100)).await,
        Slow::OneByteRead(path) => {
            stream.write_all(ask(path).as_bytes()).await?;
            while stream.read(&mut [0]).await? > 0 {
                tokio::time::sleep(PERIOD).await;
            }
            Ok(())
        }
        Slow::HalfClosed => {
            stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n").await?;
            stream.shutdown().await?;
            until_ended(&mut stream).await
        }
    }
}

async fn until_ended(stream: &mut TcpStream) -> std::io::Result<()> {
    while stream.read(&mut [0; 64]).await? > 0 {}
    Ok(())
}

/// Sends `first`, and then `piece` from time to time.
async fn drip(mut stream: TcpStream, first: &str, piece: &[u8]) -> std::io::Result<()> {
    stream.write_all(first.as_bytes()).await?;
    while tokio::time::timeout(PERIOD, until_ended(&mut stream)).await.is_err() {
        stream.write_all(piece).await?;
    }
    Ok(())
}

/// Sends `words` and reads nothing, until the kernel reports that the connection was reset.
async fn hold(mut stream: TcpStream, words: &str) -> std::io::Result<()> {
    stream.write_all(words.as_bytes()).await?;
    loop {
        tokio::time::sleep(PERIOD).await;
        stream.write_all(b"\r\n").await?;
    }
}
