//! `nomagic-bench observed`: what observing costs the traffic, beside the same gateway that nobody observes.
//!
//! One gateway with 1,000 Services and a table of a million flows. In each round the rates without loss are searched without and with each
//! observer, trial by trial in turn; an observer runs only in its own trials. It shares the generator's CPU, as the gateway's control thread does: with
//! SCHED_IDLE, so that it takes nothing from the generator. What the control thread does for it counts.

use std::path::{Path as FilePath, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use nomagic_testbed::columns;
use nomagic_testbed::demo::default_nomagic;
use nomagic_testbed::rig::{Undo, clean_on_signals, remove_leftovers, require_root, undo_later};
use serde::Serialize;

use crate::compare::cli::pin;
use crate::compare::counter::Counter;
use crate::compare::policy::SUBJECTS;
use crate::compare::rates::Plan;
use crate::compare::run::NEW_FLOWS_EVERY;
use crate::compare::subject::{Cpus, Running, Setup};
use crate::compare::test_bed::{Mix, generator};
use crate::compare::topology::{Ends, long_backlog};
use crate::compare::trial::Path;
use crate::compare::trial_runner::{Strictness, TrialRunner};
use crate::compare::workload;
use crate::ndr::search::Search;
use crate::results::{Estimate, SubjectKind, write_json};

const EXAMPLES: &str = "\
Examples:
  All of it (eight minutes):
    nomagic-bench observed
  One observer:
    nomagic-bench observed --observers capture

Everything happens between network namespaces of this machine, over veth pairs, and is removed afterwards. No result is a network card's figure.";

const SERVICES: u32 = 1_000;
/// The one that is captured.
const CAPTURED: u32 = 500;
/// Connections that the table holds, and those that it is filled with.
const CAPACITY: u32 = 4 << 20;
const FILL: u32 = 1 << 20;
const FILL_PPS: u64 = 250_000;
/// An observer begins so long before its trial.
const AHEAD: Duration = Duration::from_millis(150);
const START_PPS: u64 = 500_000;

/// `nomagic-bench observed`.
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub struct ObservedArgs {
    /// The nomagic program [default: next to this one]
    #[arg(long)]
    nomagic: Option<PathBuf>,
    /// File for the results
    #[arg(long, default_value = "target/observed.json")]
    out: PathBuf,
    /// Observers to measure
    #[arg(long, value_delimiter = ',', default_values_t = [Observer::Trace, Observer::Flows, Observer::Capture], value_enum)]
    observers: Vec<Observer>,
    /// Rounds
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Milliseconds of one trial
    #[arg(long, default_value_t = 150, value_parser = clap::value_parser!(u64).range(50..=60_000))]
    trial_ms: u64,
    /// Flows of the traffic, to all Services; one frame in ten opens a further one
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    flows: u32,
    /// The gateway's CPU
    #[arg(long, default_value_t = 0)]
    lb_cpu: u32,
    /// The generator's and the observers' CPU
    #[arg(long, default_value_t = 1)]
    generator_cpu: u32,
    /// Measure even on a busy machine. For testing the rig only; the results are meaningless
    #[arg(long)]
    accept_noise: bool,
}

/// What observes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, clap::ValueEnum)]
#[serde(rename_all = "camelCase")]
enum Observer {
    /// `nomagic trace --follow`, all events
    Trace,
    /// `nomagic flows --count --by service`, a walk through a million flows
    Flows,
    /// `nomagic capture` of one Service
    Capture,
}

impl std::fmt::Display for Observer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Observer::Trace => "trace",
            Observer::Flows => "flows",
            Observer::Capture => "capture",
        })
    }
}

impl Observer {
    fn title(self) -> &'static str {
        match self {
            Observer::Trace => "trace --follow, all events",
            Observer::Flows => "flows --count --by service, 1 M flows",
            Observer::Capture => "capture of 1 of 1,000 Services",
        }
    }

    fn args(self) -> Vec<String> {
        let words: &[&str] = match self {
            Observer::Trace => &["trace", "--follow", "--format", "json"],
            Observer::Flows => &["flows", "--count", "--by", "service", "--watch", "0.1"],
            Observer::Capture => &["capture", "--write", "/dev/null", "--service"],
        };
        let service = (self == Observer::Capture).then(|| format!("bench/{}", workload::name(CAPTURED)));
        words.iter().map(|word| (*word).to_owned()).chain(service).collect()
    }
}

/// An observer at work. Ended when dropped.
struct AtWork(Child);

impl Drop for AtWork {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The rates with one observer, or with none.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    /// `None`: nobody observes.
    observer: Option<Observer>,
    /// Frames a second without loss, by round.
    zero_loss_pps: Vec<f64>,
    /// A search ended because the generator could not send more.
    generator_limited: bool,
    /// Its rates over those of the same rounds without an observer.
    ratio: Option<String>,
}

impl ObservedArgs {
    /// Measures, prints the table and writes the results.
    pub fn run(&self) -> Result<()> {
        require_root()?;
        clean_on_signals()?;
        ensure!(self.lb_cpu != self.generator_cpu, "--lb-cpu and --generator-cpu must differ");
        let nomagic = self.nomagic.clone().unwrap_or_else(default_nomagic);
        ensure!(nomagic.exists(), "{} does not exist: build it (`make build`), or name nomagic with --nomagic", nomagic.display());
        remove_leftovers();
        let mut rows = self.measure(&nomagic)?;
        let plain = rows[0].zero_loss_pps.clone();
        // Where the generator was the limit, its rate was measured and not the gateway's.
        for row in rows.iter_mut().skip(1).filter(|row| !row.generator_limited) {
            let ratios: Vec<f64> = row.zero_loss_pps.iter().zip(&plain).map(|(observed, plain)| observed / plain).collect();
            row.ratio = Estimate::of(&ratios).map(|estimate| format!("{estimate:.3}"));
        }
        write_json(&self.out, &rows)?;
        println!("{}", table(&rows));
        println!("results: {}", self.out.display());
        Ok(())
    }

    fn measure(&self, nomagic: &FilePath) -> Result<Vec<Row>> {
        let cpus = Cpus { lb: self.lb_cpu, generator: self.generator_cpu };
        let dir = std::env::temp_dir().join(format!("nm-observed-{}", std::process::id()));
        std::fs::create_dir(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let _dir = undo_later(Undo::Directory(dir.clone()));
        let bench = std::env::current_exe().context("cannot find this program's own file")?;
        let _backlog = long_backlog()?;
        let ends = Ends::new()?;
        let setup = Setup { ends: &ends, cpus, nomagic, bench: &bench, dir: &dir, flows_max: CAPACITY };
        pin(cpus.generator)?;
        let policy = SUBJECTS.into_iter().find(|p| p.kind == SubjectKind::Nomagic && p.services == SERVICES);
        let running = Running::start(&setup, 0, policy.context("there is no nomagic with 1,000 Services")?)?;
        let strictness = if self.accept_noise { Strictness::Accept } else { Strictness::Refuse };
        let mut runner = TrialRunner::new(running.pids(), strictness);
        let state_dir = running.dir.join("state");
        let start = |observer: Observer| spawn(nomagic, observer, &state_dir);
        let rows = ends.generator.run(|| self.rounds(&mut runner, &ends, &running, &start))??;
        Ok(rows)
    }

    fn rounds(
        &self,
        runner: &mut TrialRunner,
        ends: &Ends,
        running: &Running,
        start: &dyn Fn(Observer) -> Result<AtWork>,
    ) -> Result<Vec<Row>> {
        let plan = Plan::new(Duration::from_millis(self.trial_ms), self.rounds);
        let counter = Counter::open(ends, &running.topology.sink)?;
        let mut traffic = generator(running, self.flows, Mix::NewFlows(NEW_FLOWS_EVERY))?;
        let mut filler = generator(running, 1, Mix::Looking(0))?;
        let row = |observer| Row { observer, zero_loss_pps: Vec::new(), generator_limited: false, ratio: None };
        let mut rows: Vec<Row> = std::iter::once(None).chain(self.observers.iter().copied().map(Some)).map(row).collect();
        let began = Instant::now();
        for round in 1..=self.rounds {
            let gateway = &running.topology.gateway;
            let fill = Duration::from_secs_f64(f64::from(FILL) / FILL_PPS as f64);
            runner.trial(&mut Path { generator: &mut filler, counter: &counter, gateway }, Some(FILL_PPS), fill)?;
            let mut path = Path { generator: &mut traffic, counter: &counter, gateway };
            let ceiling = runner.trial(&mut path, None, plan.trial)?.offered_pps() as u64;
            let mut searches = Vec::with_capacity(rows.len());
            for row in &rows {
                let first = row.zero_loss_pps.last().map_or(START_PPS, |pps| *pps as u64);
                searches.push(Search::new(&plan.method, 0.0, first, ceiling)?);
            }
            while searches.iter().any(|search| search.rate().is_some()) {
                for (search, row) in searches.iter_mut().zip(&rows) {
                    let Some(pps) = search.rate() else { continue };
                    let at_work = row.observer.map(start).transpose()?;
                    if let Some(AtWork(child)) = &at_work {
                        runner.also_own(child.id());
                        std::thread::sleep(AHEAD);
                    }
                    search.record(runner.shoot(&mut path, pps, plan.trial)?);
                }
            }
            for (search, row) in searches.iter().zip(&mut rows) {
                let found = search.found();
                row.zero_loss_pps.push(found.pps as f64);
                row.generator_limited |= found.generator_limited;
            }
            let rates: Vec<String> = rows.iter().map(|row| format!("{:.0}k", row.zero_loss_pps.last().unwrap_or(&0.0) / 1e3)).collect();
            eprintln!("[{:6.1} s] round {round} of {}: {}", began.elapsed().as_secs_f32(), self.rounds, rates.join(" "));
        }
        Ok(rows)
    }
}

fn spawn(nomagic: &FilePath, observer: Observer, state_dir: &FilePath) -> Result<AtWork> {
    // The generator, on the same CPU, goes first: what is measured is the gateway's part. The observer reads when there is time.
    let mut command = Command::new("chrt");
    command.args(["--idle", "0"]).arg(nomagic).args(observer.args()).arg("--state-dir").arg(state_dir);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Ok(AtWork(command.spawn().with_context(|| format!("cannot start nomagic {observer}"))?))
}

fn table(rows: &[Row]) -> String {
    let head = ["observer", "zero loss", "95 % interval", "over none", "generator"].map(str::to_owned).to_vec();
    let shown = rows.iter().map(|row| {
        let estimate = Estimate::of(&row.zero_loss_pps).unwrap_or(Estimate::single(0.0));
        vec![
            row.observer.map_or("none", Observer::title).to_owned(),
            if row.generator_limited { "not measured".into() } else { format!("{:.0} kpps", estimate.median / 1e3) },
            if row.generator_limited { String::new() } else { format!("{:.0} to {:.0}", estimate.low / 1e3, estimate.high / 1e3) },
            row.ratio.clone().unwrap_or_default(),
            if row.generator_limited { "was the limit in some round" } else { "" }.to_owned(),
        ]
    });
    columns::columns(std::iter::once(head).chain(shown), &[1, 2, 3])
}
