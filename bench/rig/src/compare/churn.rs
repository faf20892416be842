//! Frames lost while tables change, the time until packets follow a change, and the effect of a SYN flood on established flows.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nomagic_sys::time::monotonic_ns;

use super::change::{change_one, how};
use super::counter::Counter;
use super::rates::{Plan, rate_now};
use super::subject::Running;
use super::test_bed::{Mix, generator};
use super::trial::{Generator, Path, Trial};
use super::trial_runner::TrialRunner;
use super::workload::{ENDPOINTS_EACH, endpoint};
use crate::results::{ChurnRow, Estimate, FloodRow, Outcome, ProgrammingRow, median};

const INTERVAL: Duration = Duration::from_millis(10);
/// The most places of a timeline.
const INTERVALS_MAX: usize = 6_000;
const BEFORE: Duration = Duration::from_millis(300);
/// The length of one trial during an event, and the time limit of an event.
const PIECE: Duration = Duration::from_millis(500);
const EVENT_LIMIT: Duration = Duration::from_secs(60);
/// Frames a second that probe for a change, each of a new flow.
const LOOK_PPS: u64 = 4_000;
/// How long a change may take to reach packets.
const CHANGE_LIMIT: Duration = Duration::from_secs(20);
/// Number and length of the floods; the first one fills the connection table.
const FLOODS: u32 = 5;
const FLOOD: Duration = Duration::from_secs(1);
/// Frames a second while flows are established in both directions.
const MEET_PPS: u64 = 40_000;

/// A trial with events.
pub struct Disturbed {
    pub trial: Trial,
    /// Frames that arrived in each [`INTERVAL`]; the generator's pauses are left out.
    pub timeline: Vec<u64>,
    pub event_at: Vec<u32>,
}

/// Sends at a rate for a time while `event` runs on another thread and calls its argument at each event.
pub fn disturbed(
    runner: &mut TrialRunner,
    path: &mut Path<'_>,
    pps: u64,
    duration: Duration,
    event: impl FnOnce(&dyn Fn()) -> Result<()> + Send,
) -> Result<Disturbed> {
    let (ended, began) = (&AtomicBool::new(false), Mutex::new(Vec::new()));
    let counter = path.counter;
    let (trial, samples, outcome) = std::thread::scope(|scope| {
        let sampler = scope.spawn(move || sample(counter, ended));
        let changer = scope.spawn(|| {
            std::thread::sleep(BEFORE);
            event(&|| began.lock().unwrap_or_else(PoisonError::into_inner).push(monotonic_ns()))
        });
        // Changing tables takes CPU time too, so the trial is not refused for it.
        let trial = until_done(runner, path, pps, duration, &|| changer.is_finished());
        let outcome = changer.join();
        ended.store(true, Relaxed);
        (trial, sampler.join(), outcome)
    });
    let panicked = |_| anyhow::anyhow!("a thread of the comparison panicked; its message is above");
    outcome.map_err(panicked)??;
    let (trial, samples) = (trial?, samples.map_err(panicked)??);
    let (timeline, event_at) = timeline(&samples, &trial.sending, &began.into_inner().unwrap_or_else(PoisonError::into_inner));
    Ok(Disturbed { trial, timeline, event_at })
}

/// The frames of each interval in which the generator never paused, and the places at which events began. `samples`:
/// the end of each interval and its frames.
fn timeline(samples: &[(u64, u64)], sending: &[(u64, u64)], events: &[u64]) -> (Vec<u64>, Vec<u32>) {
    let interval_ns = INTERVAL.as_nanos() as u64;
    let kept: Vec<&(u64, u64)> =
        samples.iter().filter(|(end, _)| sending.iter().any(|(from, to)| *from + interval_ns <= *end && end <= to)).collect();
    let place = |event: &u64| kept.partition_point(|(end, _)| end < event) as u32;
    (kept.iter().map(|(_, n)| *n).collect(), events.iter().map(place).collect())
}

/// Sends in trials of [`PIECE`] for a time and until `done`; the sum counts as one trial.
fn until_done(runner: &mut TrialRunner, path: &mut Path<'_>, pps: u64, duration: Duration, done: &dyn Fn() -> bool) -> Result<Trial> {
    let start = Instant::now();
    let mut all = runner.disturbed(path, pps, PIECE)?;
    while start.elapsed() < duration || (!done() && start.elapsed() < EVENT_LIMIT) {
        let piece = runner.disturbed(path, pps, PIECE)?;
        all.entered += piece.entered;
        all.elapsed_s += piece.elapsed_s;
        all.sending.extend(piece.sending);
        all.arrived.iter_mut().zip(piece.arrived).for_each(|(sum, n)| *sum += n);
    }
    Ok(all)
}

fn sample(counter: &Counter, ended: &AtomicBool) -> Result<Vec<(u64, u64)>> {
    let (mut samples, mut next) = (Vec::new(), Instant::now() + INTERVAL);
    let mut before = counter.read()?[0].0;
    while !ended.load(Relaxed) && samples.len() < INTERVALS_MAX {
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
        next += INTERVAL;
        let now = counter.read()?[0].0;
        samples.push((monotonic_ns(), now - before));
        before = now;
    }
    Ok(samples)
}

/// Trials of one event as a row. Blocked time is lost frames over the offered rate.
pub fn churn_row(subject: &str, event: &str, trials: &[Disturbed]) -> ChurnRow {
    let blocked = |d: &Disturbed| d.trial.lost() as f64 / d.trial.offered_pps().max(1.0) * 1e3 / d.event_at.len().max(1) as f64;
    let values: Vec<f64> = trials.iter().map(blocked).collect();
    let offered: Vec<f64> = trials.iter().map(|d| d.trial.offered_pps()).collect();
    let worst = trials.iter().max_by_key(|d| d.trial.lost());
    ChurnRow {
        subject: subject.into(),
        event: event.into(),
        offered_pps: median(&offered),
        events: trials.iter().map(|d| d.event_at.len() as u32).sum(),
        lost: trials.iter().map(|d| d.trial.lost()).sum(),
        blocked_ms: Estimate::of(&values).map_or_else(|| Outcome::NotMeasured("no event took place".into()), Outcome::Measured),
        timeline: worst.map(|d| d.timeline.clone()).unwrap_or_default(),
        interval_ms: INTERVAL.as_secs_f64() * 1e3,
        event_at: worst.map(|d| d.event_at.clone()).unwrap_or_default(),
    }
}

/// The time from a change of a Service's endpoints to the first packet to one of the new ones.
pub fn programming(runner: &mut TrialRunner, running: &Running, counter: &mut Counter, changes: u32) -> Result<ProgrammingRow> {
    let mut values = Vec::new();
    for n in 0..changes.min(running.subject.services) {
        // Not the first Service: it has a second port.
        let service = if running.subject.services > changes { n + 1 } else { n };
        counter.watch(false, Some(endpoint(service, 0, 1)..=endpoint(service, ENDPOINTS_EACH - 1, 1)))?;
        let mut generator = generator(running, 1, Mix::Looking(service))?;
        let told_ns = Mutex::new(None);
        let outcome = std::thread::scope(|scope| {
            let changer = scope.spawn(|| {
                std::thread::sleep(BEFORE);
                *told_ns.lock().unwrap_or_else(PoisonError::into_inner) = Some(monotonic_ns());
                change_one(running, service, 1)
            });
            let end = Instant::now() + CHANGE_LIMIT;
            while counter.first_ns()?.is_none() && Instant::now() < end {
                runner.disturbed(
                    &mut Path { generator: &mut generator, counter, gateway: &running.topology.gateway },
                    LOOK_PPS,
                    Duration::from_millis(100),
                )?;
            }
            changer.join().map_err(|_| anyhow::anyhow!("a thread of the comparison panicked; its message is above"))?
        });
        outcome.with_context(|| format!("{}: changing Service {service}", running.subject.label))?;
        let told = told_ns.into_inner().unwrap_or_else(PoisonError::into_inner);
        let first = counter.first_ns()?;
        let (Some(told), Some(first)) = (told, first) else {
            let why = format!("packets did not follow within {} s", CHANGE_LIMIT.as_secs());
            return Ok(ProgrammingRow {
                subject: running.subject.id.clone(),
                how: how(running.subject.kind).into(),
                ms: Outcome::NotMeasured(why),
            });
        };
        values.push(first.saturating_sub(told) as f64 / 1e6);
        counter.watch(false, None)?;
        change_one(running, service, 0)?;
    }
    let ms = Estimate::of(&values).map_or_else(|| Outcome::NotMeasured("it has no Services".into()), Outcome::Measured);
    Ok(ProgrammingRow { subject: running.subject.id.clone(), how: how(running.subject.kind).into(), ms })
}

/// Established flows at half of the zero-loss rate, together with half as many SYNs.
pub fn flood(
    runner: &mut TrialRunner,
    running: &Running,
    established: &mut Generator,
    counter: &mut Counter,
    plan: &Plan,
    known_pps: f64,
    flows: u32,
) -> Result<FloodRow> {
    const MIX: Mix = Mix::Flood { established: 2, syns: 1 };
    // Establish flows in both directions first: tables evict one-way flows before others.
    counter.watch(true, None)?;
    let gateway = &running.topology.gateway;
    let met = runner.trial(
        &mut Path { generator: established, counter, gateway },
        Some(MEET_PPS),
        Duration::from_secs_f64(f64::from(flows) * 2.0 / MEET_PPS as f64),
    );
    std::thread::sleep(Duration::from_millis(50));
    counter.watch(false, None)?;
    ensure!(
        met?.arrived[0] > u64::from(flows),
        "{}: fewer frames arrived than there are flows, so some are not established. Is the machine busy? Try again when it is quiet",
        running.subject.label
    );
    let mut mixed = generator(running, flows, MIX)?;
    let (mut goodputs, mut offered, mut syns) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..FLOODS {
        let rate_pps = rate_now(runner, &mut Path { generator: established, counter, gateway }, plan, known_pps)?;
        let pps = Some((rate_pps * 0.75).max(1.0) as u64);
        let trial = runner.trial(&mut Path { generator: &mut mixed, counter, gateway }, pps, FLOOD)?;
        let known = trial.entered as f64 * 2.0 / 3.0;
        goodputs.push((trial.arrived[0] as f64 / known.max(1.0)).min(1.0));
        offered.push(known / trial.elapsed_s);
        syns.push(known / 2.0 / trial.elapsed_s);
    }
    Ok(FloodRow {
        subject: running.subject.id.clone(),
        offered_pps: median(&offered),
        flood_pps: median(&syns),
        goodput: Estimate::of(&goodputs).map_or_else(|| Outcome::NotMeasured("no flood was sent".into()), Outcome::Measured),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generator_s_pauses_are_not_the_subject_s() {
        let ms = |n: u64| n * 1_000_000;
        // Sends for 30 ms, pauses for 25, sends for 30.
        let samples: Vec<(u64, u64)> = (1..=9).map(|n| (ms(n * 10), n)).collect();
        let (timeline, event_at) = timeline(&samples, &[(ms(0), ms(30)), (ms(55), ms(85))], &[ms(15), ms(40), ms(75)]);
        assert_eq!((timeline, event_at), (vec![1, 2, 3, 7, 8], vec![1, 3, 4]));
    }
}
