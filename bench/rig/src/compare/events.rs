//! What events of [`super::policy`] do to a subject.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::change;
use super::churn::{Disturbed, churn_row, disturbed};
use super::counter::Counter;
use super::policy::ChurnEvent;
use super::rates::{Plan, rate_now};
use super::subject::{Running, Setup};
use super::test_bed::TestBed;
use super::trial::Path;
use super::trial_runner::TrialRunner;
use super::workload::{ENDPOINTS_EACH, endpoint};
use crate::results::{ChurnRow, SubjectKind};

/// How long a reload may take to reach packets: a client of an API server that goes away repeatedly waits longer each time.
const RELOAD_LIMIT: Duration = Duration::from_secs(50);
/// Services whose endpoints are replaced in one trial, from this one on.
const FIRST_REPLACED: u32 = 20;
const REPLACED: u32 = 10;
const BETWEEN_REPLACEMENTS: Duration = Duration::from_millis(50);

/// Measures all events of a subject, at half of its zero-loss rate. `known_pps` is where the search for that begins.
pub fn measure(
    runner: &mut TrialRunner,
    bed: &mut TestBed<'_>,
    events: &[ChurnEvent],
    setup: &Setup<'_>,
    plan: &Plan,
    known_pps: f64,
) -> Result<Vec<ChurnRow>> {
    let pps = (rate_now(runner, &mut bed.path(), plan, known_pps)? / 2.0).max(1.0) as u64;
    let mut rows = Vec::new();
    for event in events {
        let trials = (0..event.trials()).map(|n| trial(runner, bed, *event, setup, pps, n)).collect::<Result<Vec<_>>>()?;
        let subject = &bed.running.subject;
        rows.push(churn_row(&subject.id, &event.name(subject.services), &trials));
    }
    Ok(rows)
}

fn trial(runner: &mut TrialRunner, bed: &mut TestBed<'_>, event: ChurnEvent, setup: &Setup<'_>, pps: u64, n: u32) -> Result<Disturbed> {
    let TestBed { running, counter, generator } = bed;
    let generation = (n + 1) % 2;
    // Flows that the kernel knows stay with their endpoint; nomagic moves those of endpoints that are gone.
    let moves_flows = event == ChurnEvent::Reload && running.subject.kind == SubjectKind::Nomagic;
    counter.watch(false, moves_flows.then(|| endpoint(0, 0, generation)..=endpoint(0, ENDPOINTS_EACH - 1, generation)))?;
    let mut path = Path { generator, counter, gateway: &running.topology.gateway };
    let done = disturbed(runner, &mut path, pps, event.traffic(), |began| match event {
        ChurnEvent::EndpointsReplaced => replace_endpoints(running, began),
        ChurnEvent::Reload => {
            began();
            change::reload(running, setup, generation)?;
            if moves_flows { wait_for_reload(running, counter) } else { Ok(()) }
        }
        ChurnEvent::Restart => {
            began();
            running.restart(setup)
        }
    })?;
    running.pids().into_iter().for_each(|pid| runner.also_own(pid));
    counter.watch(false, None)?;
    Ok(done)
}

fn replace_endpoints(running: &Running, began: &dyn Fn()) -> Result<()> {
    for n in 0..REPLACED {
        began();
        change::change_one(running, FIRST_REPLACED + n, 1)?;
        std::thread::sleep(BETWEEN_REPLACEMENTS);
    }
    Ok(())
}

/// Waits for the first frame to a new endpoint: from then on the new table is in force.
fn wait_for_reload(running: &Running, counter: &Counter) -> Result<()> {
    let end = Instant::now() + RELOAD_LIMIT;
    while counter.first_ns()?.is_none() {
        ensure!(
            Instant::now() < end,
            "{}: no packet followed the new table within {} s of a reload; it wrote:\n{}",
            running.subject.label,
            RELOAD_LIMIT.as_secs(),
            running.output()
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
