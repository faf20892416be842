//! Connections of real sockets: connect, request, answer, close.
//!
//! Clients are in the generator's namespace, servers in the sink's, all on the generator's CPU; the subject has its
//! CPU to itself. A run without a load balancer shows what clients and servers manage alone: a subject that gets
//! close to it was not the bottleneck.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nomagic_testbed::rig::{Netns, cable};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::rates::GENERATOR_FACTOR;
use super::topology::{Ends, GATEWAY, ROUTERS, Topology};
use super::workload::{ENDPOINTS_EACH, TCP_PORT, cluster_ip, endpoint};
use crate::results::{ConnectionRow, Estimate, Outcome};
use crate::servers::ServerThread;

const CONCURRENCY: usize = 64;
const PATIENCE: Duration = Duration::from_secs(2);
const REQUEST: &[u8] = b"?";
const ANSWER: &[u8] = b"!";

/// Gives the sink's namespace the endpoints' addresses, and serves on all of them.
pub fn serve(ends: &Ends) -> Result<ServerThread> {
    for netns in [&ends.sink, &ends.generator] {
        netns.sysctl("net.ipv4.conf.all.rp_filter", "0")?;
        netns.sysctl("net.ipv4.conf.default.rp_filter", "0")?;
    }
    for n in 0..ENDPOINTS_EACH {
        ends.sink.ip(&format!("addr add {}/32 dev lo", endpoint(0, n, 0)))?;
    }
    ServerThread::start(&ends.sink, || async {
        let listener = TcpListener::bind(("0.0.0.0", TCP_PORT)).await.context("cannot listen")?;
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream));
            }
        });
        Ok(())
    })
}

/// Answers and closes first, so that TIME_WAIT is on the server's side.
async fn answer(mut stream: TcpStream) {
    let mut request = [0; 16];
    if matches!(stream.read(&mut request).await, Ok(n) if n > 0) && stream.write_all(ANSWER).await.is_ok() {
        let _ = stream.shutdown().await;
        // Wait until the client has closed too.
        let _ = stream.read(&mut request).await;
    }
}

async fn connection(to: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect(to).await?;
    stream.write_all(REQUEST).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    anyhow::ensure!(answer == ANSWER, "unexpected answer");
    Ok(())
}

/// Connections a second for a time, and how many failed. Call it on a thread in the generator's namespace.
fn connect(to: SocketAddr, duration: Duration) -> Result<(f64, u64)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start a tokio runtime")?;
    let (done, failed) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let start = Instant::now();
    runtime.block_on(async {
        let client = |done: Arc<AtomicU64>, failed: Arc<AtomicU64>| async move {
            while start.elapsed() < duration {
                match tokio::time::timeout(PATIENCE, connection(to)).await {
                    Ok(Ok(())) => done.fetch_add(1, Relaxed),
                    _ => failed.fetch_add(1, Relaxed),
                };
            }
        };
        let clients: Vec<_> = (0..CONCURRENCY).map(|_| tokio::spawn(client(done.clone(), failed.clone()))).collect();
        for client in clients {
            client.await.context("a client panicked")?;
        }
        anyhow::Ok(())
    })?;
    Ok((done.load(Relaxed) as f64 / start.elapsed().as_secs_f64(), failed.load(Relaxed)))
}

/// The client's address of a topology.
fn client(n: usize) -> String {
    format!("172.20.250.{}", n + 1)
}

/// A cable from the clients to the servers, without anything between.
pub fn direct_cable(ends: &Ends, n: usize) -> Result<()> {
    cable(&ends.generator, "direct0", &ends.sink, "direct1", 1)?;
    let mac = |netns: &Netns, name: &str| netns.link_mac(name).map(|m| m.map(|b| format!("{b:02x}")).join(":"));
    let (ours, theirs) = (mac(&ends.generator, "direct0")?, mac(&ends.sink, "direct1")?);
    route(&ends.generator, "direct0", &client(n), &endpoint(0, 0, 0).to_string(), ROUTERS[1], &theirs)?;
    route_back(&ends.sink, "direct1", &client(n), ROUTERS[0], &ours)
}

/// Routes the clients to the first Service through a topology, and the servers back.
pub fn use_lane(ends: &Ends, n: usize, topology: &Topology) -> Result<()> {
    let text = |mac: [u8; 6]| mac.map(|b| format!("{b:02x}")).join(":");
    route(&ends.generator, &topology.generator, &client(n), &cluster_ip(0).to_string(), GATEWAY[0], &text(topology.gateway_mac))?;
    route_back(&ends.sink, &topology.sink, &client(n), GATEWAY[1], &text(topology.gateway.link_mac("pods0")?))
}

fn route(netns: &Netns, interface: &str, from: &str, to: &str, via: &str, mac: &str) -> Result<()> {
    netns.ip(&format!("addr replace {from}/32 dev {interface}"))?;
    netns.ip(&format!("neigh replace {via} lladdr {mac} dev {interface} nud permanent"))?;
    netns.ip(&format!("route replace {to}/32 via {via} dev {interface} onlink src {from}")).map(drop)
}

fn route_back(netns: &Netns, interface: &str, to: &str, via: &str, mac: &str) -> Result<()> {
    netns.ip(&format!("neigh replace {via} lladdr {mac} dev {interface} nud permanent"))?;
    netns.ip(&format!("route replace {to}/32 via {via} dev {interface} onlink")).map(drop)
}

/// Connections a second of each round.
#[derive(Clone, Default, Debug)]
pub struct Seen {
    per_second: Vec<f64>,
    failed: u64,
}

impl Seen {
    /// One more round through a topology.
    pub fn round(&mut self, ends: &Ends, n: usize, topology: &Topology, duration: Duration) -> Result<()> {
        use_lane(ends, n, topology)?;
        self.connect(SocketAddr::new(cluster_ip(0).into(), TCP_PORT), duration)
    }

    /// One more round without a load balancer.
    pub fn direct(&mut self, duration: Duration) -> Result<()> {
        self.connect(SocketAddr::new(endpoint(0, 0, 0).into(), TCP_PORT), duration)
    }

    fn connect(&mut self, to: SocketAddr, duration: Duration) -> Result<()> {
        let (per_second, failed) = connect(to, duration)?;
        self.per_second.push(per_second);
        self.failed += failed;
        Ok(())
    }

    /// The row of the results. A value counts if clients and servers alone manage [`GENERATOR_FACTOR`] times as many.
    pub fn row(&self, subject: &str, direct: &Seen) -> ConnectionRow {
        let seen_per_second = Estimate::of(&self.per_second).unwrap_or(Estimate::single(0.0));
        let without = crate::results::median(&direct.per_second);
        let factor = without / seen_per_second.median.max(1e-9);
        let per_second = match () {
            () if seen_per_second.median <= 0.0 => Outcome::NotMeasured("no connection succeeded".into()),
            () if factor < GENERATOR_FACTOR => Outcome::NotMeasured(format!(
                "clients and servers alone manage only {factor:.2} times as many ({without:.0} a second), less than {GENERATOR_FACTOR}"
            )),
            () => Outcome::Measured(seen_per_second),
        };
        ConnectionRow { subject: subject.into(), per_second, seen_per_second, failed: self.failed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clients_limit_is_not_measured() {
        let seen = |v: &[f64]| Seen { per_second: v.to_vec(), failed: 0 };
        let direct = seen(&[15_000.0, 15_100.0, 14_900.0]);
        assert!(seen(&[10_000.0; 3]).row("x", &direct).per_second.value().is_some());
        let close = seen(&[10_100.0; 3]).row("x", &direct);
        assert!(matches!(&close.per_second, Outcome::NotMeasured(why) if why.contains("1.49 times as many (15000 a second)")), "{close:?}");
        assert!(matches!(seen(&[0.0]).row("x", &direct).per_second, Outcome::NotMeasured(why) if why.contains("no connection")));
    }
}
