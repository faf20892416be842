//! The command line of `nomagic-bench compare`.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use nomagic_testbed::demo::default_nomagic;
use nomagic_testbed::rig::{Undo, clean_on_signals, remove_leftovers, require_root, undo_later};

use super::cost::costs;
use super::figures::figures;
use super::manifest::manifest;
use super::policy::{Part, Policy, SUBJECTS};
use super::rates::Plan;
use super::run::Run;
use super::subject::{Cpus, FLOWS_MAX, Running, Setup, subject, thousands};
use super::test_bed::TestBed;
use super::topology::{Ends, conntrack_max, long_backlog};
use super::trial_runner::{Strictness, TrialRunner, Watched};
use super::workload::QUEUE_FRAMES;
use crate::report::text;
use crate::results::{Napi, Results, Rig, RigKind, Subject, SubjectKind, write_json};

const EXAMPLES: &str = "\
Examples:
  All of it, with a page to look at:
    nomagic-bench compare --out results.json && nomagic-bench report results.json
  A first, inexact look within two minutes:
    nomagic-bench compare --rounds 3 --trial-ms 100
  Rates only, on other CPUs:
    nomagic-bench compare --lb-cpu 3 --generator-cpu 2 --parts none

Everything happens between network namespaces of this machine, over veth pairs, and is removed afterwards. net.core.netdev_max_backlog, which has no
namespace, is 8192 during the run and restored afterwards. No result is a network card's figure.";

/// `nomagic-bench compare`.
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub struct CompareArgs {
    /// The nomagic program [default: next to this one]
    #[arg(long)]
    nomagic: Option<PathBuf>,
    /// File for the results
    #[arg(long, default_value = "target/compare.json")]
    out: PathBuf,
    /// Rounds in which the subjects take turns, trial by trial: nomagic and the no-work loop in every round, one rule
    /// set of each kind and routing in every second, the others in every tenth
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Milliseconds of one trial of the rates
    #[arg(long, default_value_t = 150, value_parser = clap::value_parser!(u64).range(50..=60_000))]
    trial_ms: u64,
    /// The load balancer's CPU
    #[arg(long, default_value_t = 0)]
    lb_cpu: u32,
    /// The generator's CPU
    #[arg(long, default_value_t = 1)]
    generator_cpu: u32,
    /// Flows of the traffic
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    flows: u32,
    /// Subjects, such as nomagic-1, no-work, nftables-1000, iptables-10000, routing [default: all of them]
    #[arg(long, value_delimiter = ',')]
    subjects: Vec<String>,
    /// What to measure besides the rates [default: everything]; `none` for nothing
    #[arg(long, value_delimiter = ',')]
    parts: Vec<String>,
    /// Results of `cargo bench --bench micro -- --json FILE`, for the costs by table size
    #[arg(long)]
    micro: Option<PathBuf>,
    /// Measure even on a busy machine. For testing the rig only; the results are meaningless
    #[arg(long)]
    accept_noise: bool,
}

impl CompareArgs {
    fn parts(&self) -> Result<Vec<Part>> {
        match &self.parts[..] {
            [] => Ok(Part::value_variants().to_vec()),
            [none] if none == "none" => Ok(Vec::new()),
            words => words.iter().map(|w| Part::from_str(w, false).map_err(|e| anyhow::anyhow!("--parts: {e}"))).collect(),
        }
    }

    fn policies(&self) -> Result<Vec<Policy>> {
        let id = |p: &Policy| subject(p.kind, p.services).id;
        if let Some(unknown) = self.subjects.iter().find(|name| SUBJECTS.iter().all(|p| id(p) != **name)) {
            bail!("--subjects {unknown}: choose from {}", SUBJECTS.iter().map(id).collect::<Vec<_>>().join(", "));
        }
        Ok(SUBJECTS.into_iter().filter(|p| self.subjects.is_empty() || self.subjects.contains(&id(p))).collect())
    }

    /// The `nomagic` program; the API server for tests is next to it.
    fn nomagic(&self) -> Result<PathBuf> {
        let nomagic = self.nomagic.clone().unwrap_or_else(default_nomagic);
        for program in [nomagic.clone(), nomagic.with_file_name("nomagic-fake-apiserver")] {
            ensure!(program.exists(), "{} does not exist: build it (`make build`), or name nomagic with --nomagic", program.display());
        }
        Ok(nomagic)
    }

    /// Runs the comparison, prints its table and writes the results.
    pub fn run(&self) -> Result<()> {
        require_root()?;
        clean_on_signals()?;
        let (nomagic, parts, policies) = (self.nomagic()?, self.parts()?, self.policies()?);
        ensure!(self.lb_cpu != self.generator_cpu, "--lb-cpu and --generator-cpu must differ");
        let table_cost = self.micro.as_deref().map(costs).transpose()?.unwrap_or_default();
        remove_leftovers();
        let results = Results { table_cost, ..self.measure(&nomagic, parts, policies)? };
        let results = Results { figures: figures(&results), ..results };
        write_json(&self.out, &results)?;
        println!("{}\n\n{}", text::figures(&results), text::summary(&results));
        println!("results: {} (`nomagic-bench report {0}` makes a page of them)", self.out.display());
        Ok(())
    }

    /// Starts all subjects, measures, and removes everything again.
    fn measure(&self, nomagic: &Path, parts: Vec<Part>, policies: Vec<Policy>) -> Result<Results> {
        let (start, started) = (Instant::now(), SystemTime::now());
        let say = |text: &str| eprintln!("[{:6.1} s] {text}", start.elapsed().as_secs_f32());
        let cpus = Cpus { lb: self.lb_cpu, generator: self.generator_cpu };
        let dir = std::env::temp_dir().join(format!("nm-compare-{}-0", std::process::id()));
        std::fs::create_dir(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let _dir = undo_later(Undo::Directory(dir.clone()));
        let bench = std::env::current_exe().context("cannot find this program's own file")?;
        let _backlog = long_backlog()?;
        let ends = Ends::new()?;
        let setup = Setup { ends: &ends, cpus, nomagic, bench: &bench, dir: &dir, flows_max: FLOWS_MAX };
        say(&format!("starting {} subjects; the kernel needs most of a minute for the rules of 10,000 Services", policies.len()));
        // This thread and all processes it starts run on the generator's CPU.
        pin(cpus.generator)?;
        let tracked = policies.iter().any(|p| matches!(p.kind, SubjectKind::Nftables | SubjectKind::Iptables));
        let running = start_all(&setup, policies)?;
        let _conntrack_max = tracked.then(|| conntrack_max(FLOWS_MAX)).transpose()?;
        say("all of them are ready");
        let strictness = if self.accept_noise { Strictness::Accept } else { Strictness::Refuse };
        let mut runner = TrialRunner::new(running.iter().flat_map(Running::pids), strictness);
        let plan = Plan::new(Duration::from_millis(self.trial_ms), self.rounds);
        let run = Run { setup: &setup, cpus, plan, flows: self.flows, parts, say: &say };
        let mut subjects: Vec<Subject> = running.iter().map(|r| r.subject.clone()).collect();
        subjects.push(subject(SubjectKind::Direct, 0));
        let mut results = Results::new(rig(self, &plan, &Watched::default(), cpus), subjects);
        ends.generator.run(|| -> Result<()> {
            let mut beds = running.iter().map(|r| TestBed::new(&ends, r, self.flows)).collect::<Result<Vec<_>>>()?;
            run.all(&mut runner, &mut beds, &mut results)
        })??;
        results.manifest = manifest(started, start.elapsed(), "native XDP, copy (nomagic and the no-work loop)");
        results.rig = rig(self, &plan, &runner.watched, cpus);
        say("cleaning up");
        drop((running, ends));
        Ok(results)
    }
}

/// Starts all subjects. The kernel takes long for large rule sets and holds up RCU meanwhile, which delays the others: those come last.
fn start_all(setup: &Setup<'_>, policies: Vec<Policy>) -> Result<Vec<Running>> {
    let slow = |p: &Policy| p.kind == SubjectKind::Nftables && p.services >= 10_000;
    let mut order: Vec<(usize, Policy)> = policies.into_iter().enumerate().collect();
    order.sort_by_key(|(n, p)| (slow(p), *n));
    let mut all = order.into_iter().map(|(n, policy)| Ok((n, Running::start(setup, n, policy)?))).collect::<Result<Vec<_>>>()?;
    all.sort_by_key(|(n, _)| *n);
    Ok(all.into_iter().map(|(_, running)| running).collect())
}

fn rig(args: &CompareArgs, plan: &Plan, watched: &Watched, cpus: Cpus) -> Rig {
    let napi = |interface: &str, cpu: u32, why: &str| Napi { interface: interface.into(), cpu, why: why.into() };
    Rig {
        kind: RigKind::Veth,
        description: format!(
            "BPF live frames into a veth pair, the subject in a network namespace between two veth pairs, a counting tc program at the far \
                      end. 64-byte UDP frames over IPv4; DNAT only, no source NAT. Established flows all go to the first Service: the same frames for every \
                      subject. With new flows, traffic goes to all Services in turn. All subjects are up all the time and take turns, trial by trial. {} frames may \
                      wait for each: in the rings of AF_XDP (nomagic's `packets.ringSize`), in the kernel's backlog (net.core.netdev_max_backlog).",
            thousands(QUEUE_FRAMES)
        ),
        lb_cpu: cpus.lb,
        generator_cpu: cpus.generator,
        napi: vec![
            napi(
                "cl0, towards the generator, of nomagic and the no-work loop",
                cpus.generator,
                "veth's NAPI runs where frames are put into the cable: it runs the XDP filter and copies frames to the AF_XDP socket. CPU time of softirqs \
                 there is counted as the subject's",
            ),
            napi(
                "cl0 of the kernel peers",
                cpus.generator,
                "the same NAPI (by GRO) makes socket buffers and hands them to the other CPU (receive packet steering). CPU time of softirqs there is \
                 counted as the subject's",
            ),
            napi(
                "cl0's packets in the kernel peers",
                cpus.lb,
                "the backlog that packets are steered to: conntrack, rules, routing and sending",
            ),
            napi(
                "the sink's, of all subjects",
                cpus.lb,
                "frames come in where they were sent: counting and dropping them is on the subject's CPU, the same for all of them",
            ),
        ],
        frame_bytes: 64,
        flows: args.flows,
        trial_s: plan.trial.as_secs_f64(),
        rounds: plan.rounds,
        steal_share_max: watched.steal_share_max,
        foreign_share_max: watched.foreign_share_max,
        trials_repeated: watched.repeated,
        trials: watched.trials,
    }
}

/// Pins this thread and the processes that it starts to a CPU.
pub fn pin(cpu: u32) -> Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    ensure!((cpu as usize) < rustix::thread::CpuSet::MAX_CPU, "CPU {cpu} does not exist");
    set.set(cpu as usize);
    rustix::thread::sched_setaffinity(None, &set).with_context(|| format!("cannot use CPU {cpu}"))
}
