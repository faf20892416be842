//! One trial: frames at a rate for a time through a gateway, and the number that arrived.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nomagic_sys::time::monotonic_ns;
use nomagic_testbed::rig::Netns;

use super::counter::{Counter, KINDS};
use super::cpu::{Reading, Usage};
use crate::pktgen::program::{LiveProgram, State};

/// A delayed generator catches up with at most one millisecond of frames, as the other generators do.
const BEHIND_MAX_NS: u64 = 1_000_000;
/// Nanoseconds of one run of the program, until it has been measured.
const RUN_NS_FIRST: f64 = 200.0;
/// The most runs of one call.
const RUNS_MAX: f64 = (1u64 << 31) as f64;
/// A trial is long enough from this share of the requested time on; otherwise one more call is made, up to this many.
const LONG_ENOUGH: f64 = 0.7;
const CALLS_MAX: u32 = 8;
/// Frames may arrive so long after the last one was sent.
const QUIET: Duration = Duration::from_millis(25);

#[derive(Clone, PartialEq, Debug)]
pub struct Trial {
    /// The requested rate, in frames a second.
    pub wanted_pps: u64,
    /// Frames of all kinds that reached the subject's interface. Frames that the generator's cable dropped are not
    /// included: its queue has 256 places, and is emptied on the generator's CPU.
    pub entered: u64,
    pub arrived: [u64; KINDS],
    /// Seconds from the first frame to the last.
    pub elapsed_s: f64,
    /// When the generator was sending, in nanoseconds of CLOCK_MONOTONIC: it pauses between its calls.
    pub sending: Vec<(u64, u64)>,
    pub usage: Usage,
}

impl Trial {
    /// Frames a second that reached the subject.
    pub fn offered_pps(&self) -> f64 {
        self.entered as f64 / self.elapsed_s.max(1e-9)
    }

    /// Frames of all kinds that reached the subject and did not arrive at the counter.
    pub fn lost(&self) -> u64 {
        self.entered.saturating_sub(self.arrived.iter().sum())
    }

    pub fn loss_share(&self) -> f64 {
        self.lost() as f64 / self.entered.max(1) as f64
    }
}

/// Frames that a generator has sent, in how many seconds, and when.
#[derive(Default)]
struct Sent {
    frames: u64,
    elapsed_s: f64,
    sending: Vec<(u64, u64)>,
}

/// The generator of a topology, on a thread in the generator's namespace and on the generator's CPU.
pub struct Generator {
    program: LiveProgram,
    run_ns: f64,
}

impl Generator {
    /// The program must have been loaded on the calling thread.
    pub fn new(program: LiveProgram) -> Generator {
        Generator { program, run_ns: RUN_NS_FIRST }
    }

    /// Sends for a time at a rate, or as fast as possible.
    fn send(&mut self, pps: Option<u64>, duration: Duration) -> Result<Sent> {
        let Sent { mut frames, mut elapsed_s, mut sending } = Sent::default();
        for _ in 0..CALLS_MAX {
            let before = self.program.state()?;
            let left_s = duration.as_secs_f64() - elapsed_s;
            let mut state = State { paced: 1, start_ns: 0, due: 0, next: 0, duration_ns: (left_s * 1e9) as u64, limit: u64::MAX, ..before };
            state.pace(pps, BEHIND_MAX_NS);
            self.program.set(&state)?;
            let runs = (left_s * 1e9 * 1.02 / self.run_ns).clamp(1.0, RUNS_MAX);
            self.program.call(runs as u32)?;
            let end_ns = monotonic_ns();
            let after = self.program.state()?;
            self.run_ns = (end_ns.saturating_sub(after.start_ns) as f64 / runs).max(1.0);
            frames += after.frames - before.frames;
            elapsed_s += after.last_ns.saturating_sub(after.start_ns) as f64 / 1e9;
            sending.push((after.start_ns, after.last_ns));
            if elapsed_s >= duration.as_secs_f64() * LONG_ENOUGH {
                break;
            }
        }
        Ok(Sent { frames, elapsed_s, sending })
    }
}

/// The path of a trial: generator, gateway, counter.
pub struct Path<'w> {
    pub generator: &'w mut Generator,
    /// At the far end.
    pub counter: &'w Counter,
    pub gateway: &'w Netns,
}

/// One trial. `own` are the processes of the rig.
pub fn trial(path: &mut Path<'_>, pps: Option<u64>, duration: Duration, own: &HashSet<u32>) -> Result<Trial> {
    let Path { generator, counter, gateway } = path;
    ensure!(!duration.is_zero(), "a trial must have a duration");
    let proc = std::path::Path::new("/proc");
    let (before, entered_before) = (counter.read()?, entered(gateway)?);
    let cpu_before = Reading::take(proc)?;
    let Sent { frames: sent, elapsed_s, sending } = generator.send(pps, duration)?;
    let cpu_after = Reading::take(proc)?;
    let arrived = drained(counter, &before, sent).context("waiting for the last frames")?;
    let entered = entered(gateway)?.wrapping_sub(entered_before).min(sent);
    Ok(Trial { wanted_pps: pps.unwrap_or(0), entered, arrived, elapsed_s, sending, usage: Usage::between(&cpu_before, &cpu_after, own) })
}

/// Frames that a gateway's interface towards the generator has received.
fn entered(gateway: &Netns) -> Result<u64> {
    let table = gateway.run(|| std::fs::read_to_string("/proc/thread-self/net/dev"))?.context("cannot read /proc/thread-self/net/dev")?;
    let row = table.lines().find_map(|l| l.trim_start().strip_prefix("cl0:"));
    // Bytes, packets, ...: proc_net_dev(5).
    row.and_then(|r| r.split_whitespace().nth(1)?.parse().ok()).context("/proc/net/dev names no cl0")
}

/// Frames that arrived since `before`, when all have or no more arrive.
fn drained(counter: &Counter, before: &[(u64, u64); KINDS], sent: u64) -> Result<[u64; KINDS]> {
    let (mut last, mut since) = ([0; KINDS], Instant::now());
    loop {
        let now = counter.read()?;
        let arrived = std::array::from_fn(|kind| now[kind].0 - before[kind].0);
        if arrived != last {
            (last, since) = (arrived, Instant::now());
        }
        if arrived.iter().sum::<u64>() >= sent || since.elapsed() > QUIET {
            return Ok(arrived);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
