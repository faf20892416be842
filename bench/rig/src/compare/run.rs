//! The order of a comparison: rates in rounds, then everything that is a part of those rates.

use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::bed::{Bed, Judge, Mix, generator};
use super::churn::{churn_row, disturbed, flood, programming};
use super::connections::{Seen, Servers, direct_cable};
use super::counter::Counter;
use super::load::under_load;
use super::rates::{Entrant, Found, Plan, Schedule, rate_now, round, rounds};
use super::subject::{Cpus, Setup, thousands};
use super::trial::Way;
use super::workload::{ENDPOINTS_EACH, endpoint};
use super::{change, cli::Part};
use crate::results::{ChurnRow, ConnectionRow, Results, SubjectKind, Traffic};

/// One frame in so many opens a flow in the traffic with new flows.
pub const NEW_FLOWS_EVERY: u32 = 10;
/// Rounds of that traffic.
const NEW_FLOW_ROUNDS: u32 = 2;
/// Rounds of real connections.
const CONNECTION_ROUNDS: usize = 3;
/// Changes of which the way to the packets is timed: of nomagic, and of those who need seconds for one.
const CHANGES: [u32; 2] = [10, 3];

/// Reloads, an even number, so that all is as it was afterwards.
const RELOADS: u32 = 2;
/// How long a reload may take to reach packets: clients of an API server that goes away again and again wait longer each time.
const RELOAD_LIMIT: Duration = Duration::from_secs(50);

/// Waits until the first frame that the counter looks for has come.
fn seen(counter: &Counter) -> Result<()> {
    let end = Instant::now() + RELOAD_LIMIT;
    while counter.first_ns()?.is_none() {
        ensure!(Instant::now() < end, "after a reload no packet followed the new table within {} s", RELOAD_LIMIT.as_secs());
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// What a run needs beside its subjects.
pub struct Run<'r> {
    /// Ends, CPUs, programs.
    pub setup: &'r Setup<'r>,
    /// Which CPUs.
    pub cpus: Cpus,
    /// How rates are measured.
    pub plan: Plan,
    /// Flows of the traffic.
    pub flows: u32,
    /// What is measured beside rates.
    pub parts: Vec<Part>,
    /// Progress.
    pub say: &'r (dyn Fn(&str) + Sync),
}

/// Ratios that are made: subject over subject.
const RATIOS: [(&str, &str); 6] = [
    ("nomagic-1", "no-work"),
    ("nomagic-1", "nftables-1"),
    ("nomagic-1", "iptables-1"),
    ("nomagic-1", "routing"),
    ("nomagic-10000", "nomagic-1"),
    ("nomagic-10000", "nftables-10000"),
];

/// Rounds in which a subject takes part: every one when a ratio is wanted that is near 1, every second one for the other ratios, and few without any.
fn schedule(id: &str) -> Schedule {
    let (every, half_percent_every) = match id {
        "nomagic-1" | "no-work" | "nomagic-10000" => (1, 10),
        "nftables-1" | "iptables-1" | "routing" => (2, 10),
        _ => (10, u32::MAX),
    };
    Schedule { every, half_percent_every }
}

/// Subjects whose load, connections and floods are looked at.
fn of_interest(id: &str) -> bool {
    matches!(id, "nomagic-1" | "no-work" | "nftables-1" | "iptables-1" | "routing" | "nomagic-10000")
}

impl Run<'_> {
    fn wants(&self, part: Part) -> bool {
        self.parts.contains(&part)
    }

    /// Measures everything into `rows`. On a thread in the generator's namespace.
    pub fn all(&self, judge: &mut Judge, beds: &mut [Bed<'_>], rows: &mut Results) -> Result<()> {
        let found = rounds(judge, beds, &self.plan, schedule, self.say)?;
        self.rate_rows(rows, &found, Traffic::Established);
        let rate = |id: &str| found.get(id).and_then(Found::rate).unwrap_or(0.0);
        for bed in beds.iter_mut().filter(|b| self.wants(Part::Load) && of_interest(&b.running.subject.id)) {
            (self.say)(&format!("latency and CPU time: {}", bed.running.subject.label));
            let known_pps = rate(&bed.running.subject.id);
            let pps = rate_now(judge, &mut bed.way(), &self.plan, known_pps)?;
            let (latencies, cpu) = under_load(judge, bed, pps, Duration::from_millis(1000), self.cpus)?;
            rows.latencies.extend(latencies);
            rows.cpu.push(cpu);
        }
        if self.wants(Part::NewFlows) {
            self.new_flows(judge, beds, rows)?;
        }
        if self.wants(Part::Connections) {
            rows.connections = self.connections(beds)?;
        }
        if self.wants(Part::Churn) {
            for bed in beds.iter_mut() {
                rows.churn.extend(self.churn(judge, bed, rate(&bed.running.subject.id))?);
            }
            for bed in beds.iter_mut().filter(|b| b.running.subject.services >= 1_000) {
                (self.say)(&format!("programming latency: {}", bed.running.subject.label));
                rows.programming.push(programming(
                    judge,
                    bed.running,
                    &mut bed.counter,
                    CHANGES[usize::from(bed.running.subject.kind != SubjectKind::Nomagic)],
                )?);
            }
        }
        if self.wants(Part::Flood) {
            // The last one: full connection tables stay full for a while.
            for bed in beds.iter_mut() {
                let subject = &bed.running.subject;
                if subject.services != 1 || subject.kind == SubjectKind::NoWork {
                    continue;
                }
                (self.say)(&format!("SYN flood: {}", subject.label));
                let Bed { running, counter, generator } = bed;
                rows.flood.push(flood(judge, running, generator, counter, &self.plan, rate(&running.subject.id), self.flows)?);
            }
        }
        Ok(())
    }

    fn rate_rows(&self, rows: &mut Results, found: &BTreeMap<String, Found>, traffic: Traffic) {
        rows.rates.extend(found.iter().map(|(id, f)| f.row(id, traffic)));
        for (subject, over) in RATIOS {
            if let (Some(a), Some(b)) = (found.get(subject), found.get(over)) {
                rows.ratios.push(a.over(b, (subject, over), traffic));
            }
        }
    }

    /// Flows to all Services in turn, and one frame in ten opens one: here the number of Services counts, for caches and for those who search rules.
    fn new_flows(&self, judge: &mut Judge, beds: &[Bed<'_>], rows: &mut Results) -> Result<()> {
        let mut lanes = Vec::new();
        for Bed { running, counter, .. } in beds.iter() {
            let subject = &running.subject;
            let by_rules = matches!(subject.kind, SubjectKind::Nomagic | SubjectKind::Nftables | SubjectKind::Iptables);
            if by_rules && matches!(subject.services, 1 | 10_000) {
                lanes.push((*running, counter, generator(running, self.flows, Mix::NewFlows(NEW_FLOWS_EVERY))?, Found::default()));
            }
        }
        for number in 0..NEW_FLOW_ROUNDS {
            (self.say)(&format!("one frame in {NEW_FLOWS_EVERY} opens a flow: round {} of {NEW_FLOW_ROUNDS}", number + 1));
            let mut entrants: Vec<Entrant<'_, '_>> = Vec::new();
            for (running, counter, generator, found) in &mut lanes {
                let way = Way { generator, counter, gateway: &running.lane.gateway };
                entrants.push(Entrant { subject: &running.subject, way, found, both: false });
            }
            round(judge, &self.plan, number, &mut entrants)?;
        }
        let found = lanes.into_iter().map(|(running, .., found)| (running.subject.id.clone(), found)).collect();
        self.rate_rows(rows, &found, Traffic::NewFlows);
        Ok(())
    }

    fn connections(&self, beds: &[Bed<'_>]) -> Result<Vec<ConnectionRow>> {
        let ends = self.setup.ends;
        let servers = Servers::start(ends)?;
        direct_cable(ends, beds.len())?;
        let time = Duration::from_millis(1000);
        let mut direct = Seen::default();
        let lanes = || {
            beds.iter().enumerate().filter(|(_, b)| {
                let s = &b.running.subject;
                s.services == 1 && s.kind != SubjectKind::NoWork
            })
        };
        let mut seen: BTreeMap<String, Seen> = BTreeMap::new();
        for round in 0..CONNECTION_ROUNDS {
            (self.say)(&format!("connections of real sockets: round {} of {CONNECTION_ROUNDS}", round + 1));
            direct.direct(time)?;
            for (n, bed) in lanes() {
                let seen = seen.entry(bed.running.subject.id.clone()).or_default();
                seen.round(ends, n, &bed.running.lane, time).with_context(|| bed.running.subject.label.clone())?;
            }
        }
        drop(servers);
        let mut rows: Vec<ConnectionRow> = seen.iter().map(|(id, s)| s.row(id, &direct)).collect();
        rows.push(direct.row("direct", &direct));
        Ok(rows)
    }

    /// What a subject's changes cost those who send through it, at half of its zero-loss rate.
    fn churn(&self, judge: &mut Judge, bed: &mut Bed<'_>, known_pps: f64) -> Result<Vec<ChurnRow>> {
        let Bed { running, counter, generator } = bed;
        let gateway = &running.lane.gateway;
        let subject = &running.subject;
        let nomagic = subject.kind == SubjectKind::Nomagic;
        let changes = match subject.kind {
            SubjectKind::Nomagic => matches!(subject.services, 1 | 1_000 | 10_000),
            SubjectKind::Nftables | SubjectKind::Iptables => subject.services == 1_000,
            _ => false,
        };
        let mut rows = Vec::new();
        if !changes || known_pps <= 0.0 {
            return Ok(rows);
        }
        (self.say)(&format!("changes under load: {}", subject.label));
        let rate_pps = rate_now(judge, &mut Way { generator, counter, gateway }, &self.plan, known_pps)?;
        let pps = (rate_pps / 2.0).max(1.0) as u64;
        if subject.services == 1_000 {
            let one_by_one = |told: &dyn Fn()| {
                for n in 0..10 {
                    told();
                    change::change_one(running, 20 + n, 1)?;
                    std::thread::sleep(Duration::from_millis(50));
                }
                Ok(())
            };
            let trial = disturbed(judge, &mut Way { generator, counter, gateway }, pps, Duration::from_millis(2500), one_by_one)?;
            rows.push(churn_row(&subject.id, "one Service's endpoints replaced", &[trial]));
        }
        // Rules of 10,000 Services keep the kernel busy for a minute: it is asked for 1,000.
        if subject.services == 1_000 || (subject.services == 10_000 && nomagic) {
            let mut trials = Vec::new();
            for n in 0..RELOADS {
                let generation = (n + 1) % 2;
                let new = endpoint(0, 0, generation)..=endpoint(0, ENDPOINTS_EACH - 1, generation);
                counter.watch(false, nomagic.then_some(new))?;
                let reload = |told: &dyn Fn()| {
                    told();
                    change::reload(running, self.setup, generation)?;
                    // Flows of endpoints that are gone go to new ones: then the new table is in force. Flows that the kernel knows stay where they are.
                    if nomagic { seen(counter).with_context(|| format!("{} wrote:\n{}", subject.label, running.said())) } else { Ok(()) }
                };
                trials.push(disturbed(judge, &mut Way { generator, counter, gateway }, pps, Duration::from_secs(3), reload)?);
                running.pids().into_iter().for_each(|pid| judge.also_own(pid));
            }
            counter.watch(false, None)?;
            rows.push(churn_row(&subject.id, &format!("{} Services reloaded", thousands(subject.services)), &trials));
        } else if subject.services == 1 && nomagic {
            let mut trials = Vec::new();
            for _ in 0..3 {
                let restart = |told: &dyn Fn()| {
                    told();
                    running.restart(self.setup)
                };
                trials.push(disturbed(judge, &mut Way { generator, counter, gateway }, pps, Duration::from_millis(2500), restart)?);
                running.pids().into_iter().for_each(|pid| judge.also_own(pid));
            }
            rows.push(churn_row(&subject.id, "the process restarted", &trials));
        }
        Ok(rows)
    }
}
