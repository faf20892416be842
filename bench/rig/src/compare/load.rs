//! Latency and CPU time at a share of a subject's zero-loss rate.

use std::time::Duration;

use anyhow::Result;

use super::counter::histogram;
use super::cpu::{CpuTicks, TICKS_PER_SECOND};
use super::subject::Cpus;
use super::test_bed::TestBed;
use super::trial::Trial;
use super::trial_runner::TrialRunner;
use crate::pktgen::report::Latency;
use crate::results::{CpuRow, CpuTime, LatencyRow, Outcome};

/// Percent of the zero-loss rate.
pub const LOADS: [u32; 3] = [10, 50, 90];
/// The load, in percent, at which CPU time is measured.
const CPU_LOAD: u32 = 90;

/// Latency at each load, and CPU time at the highest, of a subject whose zero-loss rate is `rate_pps`.
pub fn under_load(
    runner: &mut TrialRunner,
    bed: &mut TestBed<'_>,
    rate_pps: f64,
    duration: Duration,
    cpus: Cpus,
) -> Result<(Vec<LatencyRow>, CpuRow)> {
    let subject = bed.running.subject.id.clone();
    let mut rows = Vec::new();
    let mut cpu = CpuRow { subject: subject.clone(), offered_pps: 0.0, per_packet: Outcome::NotMeasured("no load was tried".into()) };
    for load_percent in LOADS {
        let pps = (rate_pps * f64::from(load_percent) / 100.0) as u64;
        let before = bed.counter.latencies()?;
        let trial = runner.trial(&mut bed.path(), Some(pps.max(1)), duration)?;
        let counted = histogram(&before, &bed.counter.latencies()?);
        let latency_us = match counted.len() {
            0 => Outcome::NotMeasured("no frame arrived".into()),
            _ => Outcome::Measured(Latency::of(&counted)),
        };
        rows.push(LatencyRow { subject: subject.clone(), load_percent, offered_pps: trial.offered_pps(), latency_us });
        if load_percent == CPU_LOAD {
            cpu.offered_pps = trial.offered_pps();
            cpu.per_packet = per_packet(&trial, cpus);
        }
    }
    Ok((rows, cpu))
}

fn per_packet(trial: &Trial, cpus: Cpus) -> Outcome<CpuTime> {
    let of = |cpu: u32| trial.usage.cpus.get(cpu as usize).copied();
    let (Some(lb), Some(generator)) = (of(cpus.lb), of(cpus.generator)) else {
        return Outcome::NotMeasured("/proc/stat does not name both CPUs".into());
    };
    // The readings include the preparation of the trial; all of that CPU time is charged to its frames.
    let ns = |ticks: u64| ticks as f64 / TICKS_PER_SECOND * 1e9 / trial.entered.max(1) as f64;
    let CpuTicks { user, system, idle, interrupts, steal } = lb;
    let busy = user + system + interrupts;
    Outcome::Measured(CpuTime {
        lb_user_ns: ns(user),
        lb_system_ns: ns(system),
        lb_softirq_ns: ns(interrupts),
        generator_softirq_ns: ns(generator.interrupts),
        lb_busy_share: busy as f64 / (busy + idle + steal).max(1) as f64,
    })
}
