//! `nomagic-bench bulk`: large TCP transfers through nomagic, beside the kernel's routing and its DNAT.
//!
//! A client downloads from three pods through a gateway, over veth pairs, with 1,500 and with 9,000 bytes of MTU. Between veth pairs the kernel
//! passes segments of up to 64 KB on in one piece (TSO), but not to an interface with an XDP program: so its routing is measured without TSO, too.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use nomagic_testbed::columns;
use nomagic_testbed::demo::default_nomagic;
use nomagic_testbed::gateway::{GatewayProcess, NGINX_V4, write_files};
use nomagic_testbed::rig::{PODS, Scene, Undo, clean_on_signals, remove_leftovers, require_root, undo_later};
use serde::Serialize;

use crate::results::write_json;

const EXAMPLES: &str = "\
Examples:
  All of it (four minutes):
    nomagic-bench bulk
  One connection, jumbo frames only:
    nomagic-bench bulk --mtu 9000 --connections 1

Everything happens between network namespaces of this machine, over veth pairs, and is removed afterwards. No result is a network card's figure.";

const PORT: u16 = 80;
const BLOCK: usize = 1 << 18;
/// What a connection may take to begin, or to carry nothing.
const LIMIT: Duration = Duration::from_secs(5);
/// The rates settle meanwhile.
const WARM_UP: Duration = Duration::from_millis(500);

/// `nomagic-bench bulk`.
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub struct BulkArgs {
    /// The nomagic program [default: next to this one]
    #[arg(long)]
    nomagic: Option<PathBuf>,
    /// File for the results
    #[arg(long, default_value = "target/bulk.json")]
    out: PathBuf,
    /// MTUs of all links
    #[arg(long, value_delimiter = ',', default_values_t = [1_500, 9_000])]
    mtu: Vec<u32>,
    /// Connections at a time
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8])]
    connections: Vec<u32>,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Measurements of each kind, interleaved; the median counts
    #[arg(long, default_value_t = 3)]
    rounds: u32,
}

/// What forwards.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
enum Subject {
    /// The kernel, to the pod's own address.
    Routing,
    /// The same, with packets no longer than the MTU.
    RoutingWithoutTso,
    /// The kernel, to the Service, with nftables.
    Nftables,
    Nomagic,
}

const SUBJECTS: [Subject; 4] = [Subject::Routing, Subject::Nftables, Subject::RoutingWithoutTso, Subject::Nomagic];

impl Subject {
    fn title(self) -> &'static str {
        match self {
            Subject::Routing => "kernel, routing alone",
            Subject::RoutingWithoutTso => "kernel, routing alone, without TSO",
            Subject::Nftables => "kernel, nftables DNAT",
            Subject::Nomagic => "nomagic",
        }
    }
}

/// One figure.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    mtu: u32,
    connections: u32,
    subject: Subject,
    /// Payload, Gbit/s, of each round.
    rounds_gbps: Vec<f64>,
    median_gbps: f64,
}

impl BulkArgs {
    /// Measures, prints the table and writes the results.
    pub fn run(&self) -> Result<()> {
        require_root()?;
        clean_on_signals()?;
        ensure!(self.seconds.is_finite() && (0.5..=600.0).contains(&self.seconds), "--seconds {}: give 0.5 to 600", self.seconds);
        ensure!((1..=100).contains(&self.rounds), "--rounds {}: give 1 to 100", self.rounds);
        ensure!(self.mtu.iter().all(|mtu| (1_280..=30_000).contains(mtu)), "--mtu: give 1280 to 30000");
        ensure!(self.connections.iter().all(|n| (1..=256).contains(n)), "--connections: give 1 to 256");
        let nomagic = self.nomagic.clone().unwrap_or_else(default_nomagic);
        ensure!(nomagic.exists(), "{} does not exist: build it (`make build`), or name nomagic with --nomagic", nomagic.display());
        remove_leftovers();
        let mut rows = Vec::new();
        for mtu in &self.mtu {
            rows.extend(self.measure(&nomagic, *mtu)?);
        }
        write_json(&self.out, &rows)?;
        println!("{}", table(&rows));
        println!("results: {}", self.out.display());
        Ok(())
    }

    fn measure(&self, nomagic: &Path, mtu: u32) -> Result<Vec<Row>> {
        let dir = std::env::temp_dir().join(format!("nm-bulk-{}-{mtu}", std::process::id()));
        std::fs::create_dir(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let _dir = undo_later(Undo::Directory(dir.clone()));
        let scene = Scene::new("bulk")?;
        scene.set_mtu(mtu)?;
        for (netns, pod) in scene.pods.iter().zip(PODS) {
            let listener = netns.run(|| TcpListener::bind((pod.v4, PORT)))?.with_context(|| format!("cannot listen on {}", pod.v4))?;
            std::thread::spawn(move || serve(&listener));
        }
        let empty = |subject, connections| Row { mtu, connections, subject, rounds_gbps: Vec::new(), median_gbps: 0.0 };
        let mut rows: Vec<Row> =
            self.connections.iter().flat_map(|connections| SUBJECTS.map(|subject| empty(subject, *connections))).collect();
        for round in 1..=self.rounds {
            for subject in SUBJECTS {
                let _running = start(subject, &scene, nomagic, &dir)?;
                for row in rows.iter_mut().filter(|row| row.subject == subject) {
                    let gbps = self.transfer(&scene, subject, row.connections)?;
                    eprintln!("MTU {mtu}, round {round}, {}, {} at a time: {gbps:.2} Gbit/s", subject.title(), row.connections);
                    row.rounds_gbps.push(gbps);
                }
            }
        }
        for row in &mut rows {
            row.rounds_gbps.sort_by(f64::total_cmp);
            row.median_gbps = row.rounds_gbps[row.rounds_gbps.len() / 2];
        }
        Ok(rows)
    }

    /// Downloads over so many connections, and returns the rate of all.
    fn transfer(&self, scene: &Scene, subject: Subject, connections: u32) -> Result<f64> {
        let to = |n: u32| -> SocketAddr {
            let address: Ipv4Addr =
                if matches!(subject, Subject::Routing | Subject::RoutingWithoutTso) { PODS[n as usize % PODS.len()].v4 } else { NGINX_V4 };
            (address, PORT).into()
        };
        let streams =
            scene.client.run(|| (0..connections).map(|n| TcpStream::connect_timeout(&to(n), LIMIT)).collect::<Result<Vec<_>, _>>())?;
        let streams = streams.with_context(|| format!("{}: cannot connect", subject.title()))?;
        let begins = Instant::now() + WARM_UP;
        let ends = begins + Duration::from_secs_f64(self.seconds);
        let readers: Vec<JoinHandle<Result<u64>>> =
            streams.into_iter().map(|stream| std::thread::spawn(move || read(stream, begins, ends))).collect();
        let mut bytes = 0;
        for reader in readers {
            bytes += reader.join().map_err(|_| anyhow::anyhow!("a client panicked; its message is above"))??;
        }
        Ok(bytes as f64 * 8.0 / 1e9 / self.seconds)
    }
}

/// Runs while a subject is measured, and is undone afterwards.
#[expect(dead_code, reason = "held for its end")]
enum Running<'s> {
    Kernel,
    WithoutTso(WithoutTso<'s>),
    Rules(Rules<'s>),
    Nomagic(GatewayProcess),
}

fn start<'s>(subject: Subject, scene: &'s Scene, nomagic: &Path, dir: &Path) -> Result<Running<'s>> {
    Ok(match subject {
        Subject::Routing => Running::Kernel,
        Subject::RoutingWithoutTso => Running::WithoutTso(WithoutTso::set(scene)?),
        Subject::Nftables => Running::Rules(Rules::add(scene)?),
        Subject::Nomagic => {
            let (config, state_dir) = write_files(dir)?;
            Running::Nomagic(GatewayProcess::start(&scene.gw, nomagic, &config, &state_dir)?)
        }
    })
}

/// The pods cut what they send to the MTU. On again when dropped.
struct WithoutTso<'s>(&'s Scene);

impl WithoutTso<'_> {
    fn set(scene: &Scene) -> Result<WithoutTso<'_>> {
        scene.pods.iter().try_for_each(|pod| pod.exec("ethtool", &["-K", "eth0", "tso", "off", "gso", "off"]).map(drop))?;
        Ok(WithoutTso(scene))
    }
}

impl Drop for WithoutTso<'_> {
    fn drop(&mut self) {
        for pod in &self.0.pods {
            let _ = pod.exec("ethtool", &["-K", "eth0", "tso", "on", "gso", "on"]);
        }
    }
}

/// The Service by nftables. Deleted when dropped.
struct Rules<'s>(&'s Scene);

impl Rules<'_> {
    fn add(scene: &Scene) -> Result<Rules<'_>> {
        let pods: Vec<String> = PODS.iter().enumerate().map(|(n, pod)| format!("{n} : {}", pod.v4)).collect();
        let dnat = format!("ip daddr {NGINX_V4} tcp dport {PORT} dnat to numgen inc mod {} map {{ {} }}", pods.len(), pods.join(", "));
        let rules = format!(
            "table ip bulk {{\n chain before {{ type nat hook prerouting priority dstnat; {dnat}\n }}\n \
             chain after {{ type nat hook postrouting priority srcnat; ct status dnat masquerade\n }}\n}}\n"
        );
        scene.gw.exec("nft", &[&rules])?;
        Ok(Rules(scene))
    }
}

impl Drop for Rules<'_> {
    fn drop(&mut self) {
        let _ = self.0.gw.exec("nft", &["delete table ip bulk"]);
    }
}

/// Sends on each connection until its client closes it.
fn serve(listener: &TcpListener) {
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { return };
        std::thread::spawn(move || {
            let block = vec![0; BLOCK];
            while stream.write_all(&block).is_ok() {}
        });
    }
}

/// Reads until the end, and counts from the beginning on.
fn read(mut stream: TcpStream, begins: Instant, ends: Instant) -> Result<u64> {
    stream.set_read_timeout(Some(LIMIT)).context("cannot set a time limit")?;
    let (mut block, mut bytes) = (vec![0; BLOCK], 0);
    loop {
        let n = stream.read(&mut block).context("a transfer stands still")?;
        ensure!(n > 0, "a server closed a connection");
        let now = Instant::now();
        if now >= ends {
            return Ok(bytes);
        }
        bytes += if now >= begins { n as u64 } else { 0 };
    }
}

/// The rows in columns.
fn table(rows: &[Row]) -> String {
    let head = ["MTU", "connections", "", "Gbit/s", "least", "most"].map(str::to_owned).to_vec();
    let lines = rows.iter().map(|row| {
        let [least, most] = [row.rounds_gbps.first(), row.rounds_gbps.last()].map(|rate| rate.copied().unwrap_or_default());
        let numbers = [row.median_gbps, least, most].map(|rate| format!("{rate:.2}"));
        [row.mtu.to_string(), row.connections.to_string(), row.subject.title().to_owned()].into_iter().chain(numbers).collect()
    });
    columns::columns(std::iter::once(head).chain(lines), &[0, 1, 3, 4, 5])
}
