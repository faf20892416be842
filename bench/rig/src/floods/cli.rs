//! The command line of `nomagic-bench floods`.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use nomagic_testbed::columns;
use nomagic_testbed::demo::default_nomagic;
use nomagic_testbed::rig::{Undo, clean_on_signals, remove_leftovers, require_root, undo_later};
use nomagic_xsk::Link;
use serde::Serialize;

use super::clients::{Clients, Established, Seen, sustained_per_s};
use super::kind::Kind;
use super::sender::Sender;
use super::{path, servers};
use crate::compare::cli::pin;
use crate::compare::policy::SUBJECTS;
use crate::compare::subject::{Cpus, FLOWS_MAX, Running, Setup, thousands};
use crate::compare::topology::{Ends, conntrack_max, long_backlog};
use crate::pktgen::template::Macs;
use crate::results::{SubjectKind, write_json};

const EXAMPLES: &str = "\
Examples:
  All floods, through nomagic and through nftables, with tables for 65,536 and for 262,144 connections:
    nomagic-bench floods --out floods.json
  One flood, at a rate of your own:
    nomagic-bench floods --kinds none,syn --rate 100000 --capacity 65536

Everything happens between network namespaces of this machine, over veth pairs, and is removed afterwards. net.netfilter.nf_conntrack_max and
net.core.netdev_max_backlog, which have no namespace, are restored afterwards. Clients, servers and the flood share one CPU; the subject has the other one. No result is
a network card's figure.";

/// Ten times the sustained rate of new connections, of which 99 % are forged: so many forged ones for each that is sustained.
const FORGED: f64 = 9.9;
/// Honest newcomers for each connection that is sustained.
const HONEST: f64 = 0.1;
/// The rate is lower where endpoints work for forged frames, too: for answered questions, whose server shares the clients' CPU, and for sources
/// that the gateway has replaced.
const ANSWERED_MAX: u64 = 30_000;
/// How many times the flood could fill the table before the clients are measured, and the most time for that.
const TABLE_FILLS: f64 = 1.2;
const FILL_MAX: Duration = Duration::from_secs(15);

/// `nomagic-bench floods`.
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub struct FloodsArgs {
    /// The nomagic program [default: next to this one]
    #[arg(long)]
    nomagic: Option<PathBuf>,
    /// File for the results
    #[arg(long, default_value = "target/floods.json")]
    out: PathBuf,
    /// Floods to send
    #[arg(long, value_delimiter = ',', default_values_t = [Kind::None, Kind::Syn, Kind::Handshake, Kind::SynSnat, Kind::OneClient, Kind::Question, Kind::Scan], value_enum)]
    kinds: Vec<Kind>,
    /// Connections that the tables of both subjects hold
    #[arg(long, value_delimiter = ',', default_values_t = [65_536, FLOWS_MAX])]
    capacity: Vec<u32>,
    /// Forged frames a second [default: 9.9 times the connections a second that clients sustain without a flood; at most
    /// 30,000 where endpoints answer the forged frames]
    #[arg(long)]
    rate: Option<u64>,
    /// Seconds for which clients are watched
    #[arg(long, default_value_t = 8.0)]
    seconds: f64,
    /// Let endpoints answer all forged frames. Their TCP stack works on the subject's CPU, and is measured with it
    #[arg(long)]
    endpoints_answer: bool,
    /// The subject's CPU
    #[arg(long, default_value_t = 0)]
    lb_cpu: u32,
    /// The CPU of clients, servers and flood
    #[arg(long, default_value_t = 1)]
    generator_cpu: u32,
}

/// One flood through one subject.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    pub subject: String,
    pub capacity: u32,
    pub flood: Kind,
    /// Forged frames a second.
    pub flood_pps: f64,
    pub newcomers_per_s: f64,
    /// Share that got their answer within a second.
    pub newcomers: f64,
    pub newcomers_p99_ms: f64,
    /// Share of the requests on established connections that were answered within a second.
    pub established: f64,
}

impl FloodsArgs {
    /// Runs the floods, prints their table and writes the results.
    pub fn run(&self) -> Result<()> {
        require_root()?;
        clean_on_signals()?;
        ensure!(self.seconds.is_finite() && (0.5..=600.0).contains(&self.seconds), "--seconds {}: give 0.5 to 600", self.seconds);
        ensure!(self.lb_cpu != self.generator_cpu, "--lb-cpu and --generator-cpu must differ");
        ensure!(self.capacity.iter().all(|n| (1_024..=16_777_216).contains(n)), "--capacity: give 1,024 to 16,777,216");
        remove_leftovers();
        let mut rows = Vec::new();
        for capacity in &self.capacity {
            rows.extend(self.measure(*capacity)?);
        }
        write_json(&self.out, &rows)?;
        println!("{}", table(&rows));
        println!("results: {}", self.out.display());
        Ok(())
    }

    fn measure(&self, capacity: u32) -> Result<Vec<Row>> {
        let start = Instant::now();
        let say = |text: &str| eprintln!("[{:6.1} s] {text}", start.elapsed().as_secs_f32());
        let nomagic = self.nomagic.clone().unwrap_or_else(default_nomagic);
        ensure!(nomagic.exists(), "{} does not exist: build it (`make build`), or name nomagic with --nomagic", nomagic.display());
        let dir = std::env::temp_dir().join(format!("nm-floods-{}-{capacity}", std::process::id()));
        std::fs::create_dir(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let _dir = undo_later(Undo::Directory(dir.clone()));
        let bench = std::env::current_exe().context("cannot find this program's own file")?;
        let _backlog = long_backlog()?;
        let ends = Ends::new()?;
        let cpus = Cpus { lb: self.lb_cpu, generator: self.generator_cpu };
        let setup = Setup { ends: &ends, cpus, nomagic: &nomagic, bench: &bench, dir: &dir, flows_max: capacity };
        pin(cpus.generator)?;
        say(&format!("starting nomagic and nftables, tables for {} connections", thousands(capacity)));
        let wanted = SUBJECTS.iter().filter(|p| p.services == 1 && matches!(p.kind, SubjectKind::Nomagic | SubjectKind::Nftables));
        let running = wanted.enumerate().map(|(n, policy)| Running::start(&setup, n, *policy)).collect::<Result<Vec<_>>>()?;
        let _conntrack_max = conntrack_max(capacity)?;
        for netns in [&ends.sink, &ends.generator] {
            netns.sysctl("net.ipv4.conf.all.rp_filter", "0")?;
            netns.sysctl("net.ipv4.conf.default.rp_filter", "0")?;
        }
        let _servers = servers::start(&ends)?;
        for one in running.iter().filter(|_| !self.endpoints_answer) {
            path::spare_endpoints(&ends, &one.topology)?;
        }
        let mut sustained = None;
        let mut rows = Vec::new();
        for kind in &self.kinds {
            for one in &running {
                path::open(&ends, &one.topology)?;
                let rate = match sustained {
                    Some(rate) => rate,
                    None => *sustained.insert(ends.generator.run(|| sustained_per_s(path::INSIDE, Duration::from_secs(2)))??),
                };
                let row = ends.generator.run(|| self.row(one, capacity, *kind, rate))??;
                say(&format!(
                    "{}, {}: newcomers {}, established {}",
                    one.subject.id,
                    kind.title(),
                    percent(row.newcomers),
                    percent(row.established)
                ));
                rows.push(row);
            }
        }
        Ok(rows)
    }

    /// One flood through one subject. Call it on a thread in the clients' namespace.
    fn row(&self, running: &Running, capacity: u32, kind: Kind, sustained: f64) -> Result<Row> {
        let link = Link::query(&running.topology.generator).with_context(|| running.topology.generator.clone())?;
        let macs = Macs { src: running.topology.generator_mac, dst: running.topology.gateway_mac };
        let most = if kind.is_answered() || self.endpoints_answer { ANSWERED_MAX } else { u64::MAX };
        let rate = self.rate.unwrap_or(((sustained * FORGED) as u64).min(most));
        let source = if kind.is_outside() { path::OUTSIDE } else { path::INSIDE };
        let established = Established::open(source)?;
        let clients = Clients { source, udp: kind.is_udp(), newcomers_per_s: sustained * HONEST };
        let sender = if kind == Kind::None { None } else { Some(Sender::start(link.ifindex, kind, macs, rate)?) };
        if sender.is_some() {
            std::thread::sleep(Duration::from_secs_f64(f64::from(capacity) * TABLE_FILLS / rate.max(1) as f64).min(FILL_MAX));
        }
        let (before, began) = (sender.as_ref().map_or(0, Sender::sent), Instant::now());
        let Seen { newcomers, established } = established.run_with(clients, Duration::from_secs_f64(self.seconds))?;
        let sent = sender.as_ref().map_or(0, Sender::sent) - before;
        let flood_pps = sent as f64 / began.elapsed().as_secs_f64();
        drop(sender);
        Ok(Row {
            subject: running.subject.id.clone(),
            capacity,
            flood: kind,
            flood_pps,
            newcomers_per_s: clients.newcomers_per_s,
            newcomers: newcomers.succeeded(),
            newcomers_p99_ms: newcomers.took_us.value_at_quantile(0.99) as f64 / 1e3,
            established: established.succeeded(),
        })
    }
}

fn percent(share: f64) -> String {
    format!("{:.2} %", share * 100.0)
}

/// The rows in columns.
fn table(rows: &[Row]) -> String {
    let head = ["flood", "subject", "table", "forged/s", "newcomers/s", "newcomers", "p99", "established"].map(str::to_owned).to_vec();
    let lines = rows.iter().map(|r| {
        vec![
            r.flood.title().to_owned(),
            r.subject.clone(),
            thousands(r.capacity),
            thousands(r.flood_pps as u32),
            thousands(r.newcomers_per_s as u32),
            percent(r.newcomers),
            format!("{:.1} ms", r.newcomers_p99_ms),
            percent(r.established),
        ]
    });
    columns::columns(std::iter::once(head).chain(lines), &[2, 3, 4, 5, 6, 7])
}
