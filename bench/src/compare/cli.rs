//! The words of `nomagic-bench compare`.

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::bed::{Bed, Judge, Strictness};
use super::lane::Ends;
use super::rates::{Plan, rounds};
use super::subject::{Cpus, Running, Setup, subject};
use crate::demo::default_nomagic;
use crate::results::SubjectKind;
use crate::rig::{Undo, clean_on_signals, remove_leftovers, require_root, undo_later};

const EXAMPLES: &str = "\
Examples:
  All of it, with a page to look at:
    nomagic-bench compare --out results.json && nomagic-bench report results.json
  A first look within two minutes, without the claim that it is exact:
    nomagic-bench compare --rounds 3 --trial-ms 100
  Only what carries packets, with other CPUs:
    nomagic-bench compare --lb-cpu 3 --generator-cpu 2 --only rates

Everything happens between network namespaces on this machine, over veth pairs, and is gone afterwards. Nothing measured there is a network card's figure.";

/// `nomagic-bench compare`.
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub struct CompareArgs {
    /// The nomagic program [default: beside this one]
    #[arg(long)]
    nomagic: Option<PathBuf>,
    /// Rounds in which the subjects take turns
    #[arg(long, default_value_t = 10)]
    rounds: u32,
    /// Milliseconds of one trial
    #[arg(long, default_value_t = 300)]
    trial_ms: u64,
    /// The load balancer's CPU
    #[arg(long, default_value_t = 0)]
    lb_cpu: u32,
    /// The generator's CPU
    #[arg(long, default_value_t = 1)]
    generator_cpu: u32,
    /// Flows of the traffic
    #[arg(long, default_value_t = 10_000)]
    flows: u32,
    /// Subjects, such as nomagic-1, no-work, nftables-1000, iptables-10000, routing [default: all of them]
    #[arg(long, value_delimiter = ',')]
    subjects: Vec<String>,
    /// Measures although others use the CPUs: for trying the rig out, the figures mean nothing
    #[arg(long)]
    accept_noise: bool,
}

/// All subjects of a full comparison.
const SUBJECTS: [(SubjectKind, u32); 14] = [
    (SubjectKind::Nomagic, 1),
    (SubjectKind::NoWork, 1),
    (SubjectKind::Nftables, 1),
    (SubjectKind::Iptables, 1),
    (SubjectKind::Nomagic, 10_000),
    (SubjectKind::Routing, 0),
    (SubjectKind::Nomagic, 100),
    (SubjectKind::Nftables, 100),
    (SubjectKind::Iptables, 100),
    (SubjectKind::Nomagic, 1_000),
    (SubjectKind::Nftables, 1_000),
    (SubjectKind::Iptables, 1_000),
    (SubjectKind::Nftables, 10_000),
    (SubjectKind::Iptables, 10_000),
];

impl CompareArgs {
    /// Runs the comparison.
    pub fn run(&self) -> Result<()> {
        require_root()?;
        clean_on_signals()?;
        let nomagic = self.nomagic.clone().unwrap_or_else(default_nomagic);
        ensure!(nomagic.exists(), "{} does not exist: build it (`make build`), or name it with --nomagic", nomagic.display());
        ensure!(self.lb_cpu != self.generator_cpu, "--lb-cpu and --generator-cpu must differ");
        remove_leftovers();
        let start = Instant::now();
        let say = |text: &str| eprintln!("[{:6.1} s] {text}", start.elapsed().as_secs_f32());
        let cpus = Cpus { lb: self.lb_cpu, generator: self.generator_cpu };
        pin(cpus.generator)?;
        let dir = tempfile::Builder::new().prefix("nomagic-compare-").tempdir().context("cannot create a temporary directory")?.keep();
        let _dir = undo_later(Undo::Directory(dir.clone()));
        let bench = std::env::current_exe().context("cannot find this program's own file")?;
        let ends = Ends::new()?;
        let setup = Setup { ends: &ends, cpus, nomagic: &nomagic, bench: &bench, dir: &dir };
        let mut running = Vec::new();
        for (n, (kind, services)) in SUBJECTS.into_iter().enumerate() {
            let subject = subject(kind, services);
            if self.subjects.is_empty() || self.subjects.contains(&subject.id) {
                running.push(Running::start(&setup, n, subject)?);
            }
        }
        if running.is_empty() {
            bail!("--subjects names none of {}", SUBJECTS.map(|(kind, n)| subject(kind, n).id).join(", "));
        }
        say(&format!("{} subjects are ready", running.len()));
        let strictness = if self.accept_noise { Strictness::Accept } else { Strictness::Refuse };
        let mut judge = Judge::new(running.iter().filter_map(|r| r.process.as_ref()).map(crate::rig::Process::pid), strictness);
        let plan = Plan::new(Duration::from_millis(self.trial_ms), self.rounds);
        ends.generator.run(|| -> Result<()> {
            let mut beds = running.iter().map(|r| Bed::new(&ends, r, self.flows)).collect::<Result<Vec<_>>>()?;
            let found = rounds(&mut judge, &mut beds, &plan, |_| true, say)?;
            println!("{found:#?}");
            println!("{:?}", judge.watched);
            Ok(())
        })??;
        Ok(())
    }
}

/// Keeps this thread and all that it starts on a CPU.
fn pin(cpu: u32) -> Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    ensure!((cpu as usize) < rustix::thread::CpuSet::MAX_CPU, "CPU {cpu} does not exist");
    set.set(cpu as usize);
    rustix::thread::sched_setaffinity(None, &set).with_context(|| format!("cannot use CPU {cpu}"))
}
