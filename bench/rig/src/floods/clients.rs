//! Honest clients: newcomers at a steady rate, and established connections in steady use.

use std::cell::RefCell;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::servers::{LAST, MORE, QUESTION};
use crate::compare::workload::{TCP_PORT, UDP_PORT, cluster_ip};

/// A try that takes longer has failed.
pub const LIMIT: Duration = Duration::from_secs(1);
/// Established connections, and how often each is used.
const ESTABLISHED: usize = 20;
const USED_EVERY: Duration = Duration::from_millis(20);
/// Newcomers start in groups of this distance.
const TICK: Duration = Duration::from_millis(5);
/// Connections at the same time when the sustained rate is measured.
const CONCURRENCY: usize = 64;

/// Tries of one kind.
#[derive(Clone, Debug)]
pub struct Tries {
    pub tried: u64,
    pub failed: u64,
    /// Microseconds of those that succeeded.
    pub took_us: Histogram<u64>,
}

impl Tries {
    fn new() -> Result<Tries> {
        Ok(Tries { tried: 0, failed: 0, took_us: Histogram::new(3).context("a histogram")? })
    }

    fn add(&mut self, took: Option<Duration>) {
        self.tried += 1;
        match took {
            // Cannot fail: the histogram grows.
            Some(took) => drop(self.took_us.record(took.as_micros() as u64)),
            None => self.failed += 1,
        }
    }

    /// The share that succeeded.
    pub fn succeeded(&self) -> f64 {
        (self.tried - self.failed) as f64 / self.tried.max(1) as f64
    }
}

/// What honest clients saw.
#[derive(Clone, Debug)]
pub struct Seen {
    pub newcomers: Tries,
    pub established: Tries,
}

/// Whose clients, and how many newcomers a second.
#[derive(Clone, Copy, Debug)]
pub struct Clients {
    pub source: Ipv4Addr,
    pub udp: bool,
    pub newcomers_per_s: f64,
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start a tokio runtime")
}

/// Established connections, from before a flood.
pub struct Established {
    runtime: tokio::runtime::Runtime,
    streams: Vec<TcpStream>,
}

impl Established {
    /// Call it on a thread in the clients' namespace, before the flood.
    pub fn open(source: Ipv4Addr) -> Result<Established> {
        let runtime = runtime()?;
        let streams = runtime.block_on(async {
            let mut streams = Vec::new();
            for _ in 0..ESTABLISHED {
                let mut stream = connect(source).await.context("a connection before the flood failed")?;
                ensure!(ask(&mut stream).await, "a connection before the flood carried nothing");
                streams.push(stream);
            }
            Ok(streams)
        })?;
        Ok(Established { runtime, streams })
    }

    /// Uses these connections and opens others for a time.
    pub fn run_with(self, clients: Clients, duration: Duration) -> Result<Seen> {
        let Established { runtime, streams } = self;
        let seen = Rc::new(RefCell::new(Seen { newcomers: Tries::new()?, established: Tries::new()? }));
        let local = LocalSet::new();
        let end = Instant::now() + duration;
        local.block_on(&runtime, async {
            let mut tasks = JoinSet::new();
            for stream in streams {
                tasks.spawn_local(use_until(stream, end, seen.clone()));
            }
            start_newcomers(clients, end, &seen, &mut tasks).await;
            while let Some(done) = tasks.join_next().await {
                done.context("a client panicked")?;
            }
            anyhow::Ok(())
        })?;
        let seen = seen.borrow().clone();
        Ok(seen)
    }
}

/// One request at a time; a connection that fails is not opened again, and its remaining requests have failed.
async fn use_until(mut stream: TcpStream, end: Instant, seen: Rc<RefCell<Seen>>) {
    let mut ticks = interval(USED_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut broken = false;
    while Instant::now() < end {
        ticks.tick().await;
        let began = Instant::now();
        broken |= !matches!(timeout(LIMIT, ask(&mut stream)).await, Ok(true));
        seen.borrow_mut().established.add((!broken).then(|| began.elapsed()));
    }
}

/// Starts newcomers at their rate.
async fn start_newcomers(clients: Clients, end: Instant, seen: &Rc<RefCell<Seen>>, tasks: &mut JoinSet<()>) {
    let (start, mut started) = (Instant::now(), 0);
    let mut ticks = interval(TICK);
    while Instant::now() < end {
        ticks.tick().await;
        let due = (start.elapsed().as_secs_f64() * clients.newcomers_per_s) as u64;
        for _ in started..due {
            let seen = seen.clone();
            tasks.spawn_local(async move {
                let began = Instant::now();
                let done =
                    if clients.udp { timeout(LIMIT, question(clients.source)).await } else { timeout(LIMIT, visit(clients.source)).await };
                seen.borrow_mut().newcomers.add(matches!(done, Ok(Ok(()))).then(|| began.elapsed()));
            });
        }
        started = due;
    }
}

async fn connect(source: Ipv4Addr) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(source.into(), 0))?;
    Ok(socket.connect(SocketAddr::new(cluster_ip(0).into(), TCP_PORT)).await?)
}

/// A request on a connection that goes on.
async fn ask(stream: &mut TcpStream) -> bool {
    let mut answer = [0; 1];
    stream.write_all(&[MORE]).await.is_ok() && stream.read_exact(&mut answer).await.is_ok() && answer[0] == MORE
}

/// A connection with one request.
async fn visit(source: Ipv4Addr) -> Result<()> {
    let mut stream = connect(source).await?;
    stream.write_all(&[LAST]).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    ensure!(answer == [LAST], "unexpected answer");
    Ok(())
}

/// One question, as a resolver's: asked once.
async fn question(source: Ipv4Addr) -> Result<()> {
    let socket = UdpSocket::bind((source, 0)).await?;
    socket.connect((cluster_ip(0), UDP_PORT)).await?;
    socket.send(QUESTION).await?;
    let mut answer = [0; 64];
    let len = socket.recv(&mut answer).await?;
    ensure!(&answer[..len] == QUESTION, "unexpected answer");
    Ok(())
}

/// Connections a second that clients and subject sustain when each ends before the next begins.
pub fn sustained_per_s(source: Ipv4Addr, duration: Duration) -> Result<f64> {
    let local = LocalSet::new();
    let done = Rc::new(RefCell::new(0u64));
    let start = Instant::now();
    local.block_on(&runtime()?, async {
        let mut tasks = JoinSet::new();
        for _ in 0..CONCURRENCY {
            let done = done.clone();
            tasks.spawn_local(async move {
                while start.elapsed() < duration {
                    if matches!(timeout(LIMIT, visit(source)).await, Ok(Ok(()))) {
                        *done.borrow_mut() += 1;
                    }
                }
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.context("a client panicked")?;
        }
        anyhow::Ok(())
    })?;
    let per_s = *done.borrow() as f64 / start.elapsed().as_secs_f64();
    Ok(per_s)
}
