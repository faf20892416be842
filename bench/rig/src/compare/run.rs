//! The order of a comparison: rates in rounds, then all measurements at a share of those rates.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};

use super::churn::{flood, programming};
use super::connections::{Seen, direct_cable, serve};
use super::events;
use super::load::under_load;
use super::policy::{Part, Policy, RATIOS};
use super::rates::{Entrant, Plan, RateSearch, rate_now, round, rounds};
use super::subject::{Cpus, Setup};
use super::test_bed::{Mix, TestBed, generator};
use super::trial::Path;
use super::trial_runner::TrialRunner;
use crate::results::{ConnectionRow, Results, Traffic};

/// One frame in so many opens a flow in the traffic with new flows.
pub const NEW_FLOWS_EVERY: u32 = 10;
const NEW_FLOW_ROUNDS: u32 = 2;
const CONNECTION_ROUNDS: usize = 3;
/// The length of a trial of load and of a round of connections.
const TRIAL: Duration = Duration::from_millis(1000);

/// What a run needs besides its subjects.
pub struct Run<'r> {
    pub setup: &'r Setup<'r>,
    pub cpus: Cpus,
    pub plan: Plan,
    pub flows: u32,
    pub parts: Vec<Part>,
    pub say: &'r (dyn Fn(&str) + Sync),
}

impl Run<'_> {
    /// Measures everything into `rows`. Call it on a thread in the generator's namespace.
    pub fn all(&self, runner: &mut TrialRunner, beds: &mut [TestBed<'_>], rows: &mut Results) -> Result<()> {
        let found = rounds(runner, beds, &self.plan, self.say)?;
        self.rate_rows(rows, &found, Traffic::Established);
        let rates: BTreeMap<String, f64> = found.into_iter().map(|(id, f)| (id, f.rate().unwrap_or(0.0))).collect();
        type Measure<'r> = fn(&Run<'r>, &mut TrialRunner, &mut [TestBed<'_>], &BTreeMap<String, f64>, &mut Results) -> Result<()>;
        // Floods are the last: full connection tables stay full for a while.
        let parts: [(Part, Measure<'_>); 5] = [
            (Part::Load, Run::load),
            (Part::NewFlows, Run::new_flows),
            (Part::Connections, Run::connections),
            (Part::Churn, Run::churn),
            (Part::Flood, Run::floods),
        ];
        for (part, measure) in parts {
            if self.parts.contains(&part) {
                measure(self, runner, beds, &rates, rows)?;
            }
        }
        Ok(())
    }

    /// The subjects of a measurement, each announced as its turn comes.
    fn of<'b, 'r>(
        &self,
        beds: &'b mut [TestBed<'r>],
        what: &'static str,
        takes_part: impl Fn(&Policy) -> bool + 'b,
    ) -> impl Iterator<Item = &'b mut TestBed<'r>> {
        let beds = beds.iter_mut().filter(move |b| takes_part(&b.running.policy));
        beds.inspect(move |b| (self.say)(&format!("{what}: {}", b.running.subject.label)))
    }

    fn rate_rows(&self, rows: &mut Results, found: &BTreeMap<String, RateSearch>, traffic: Traffic) {
        rows.rates.extend(found.iter().map(|(id, f)| f.row(id, traffic)));
        for (subject, over) in RATIOS {
            if let (Some(a), Some(b)) = (found.get(subject), found.get(over)) {
                rows.ratios.push(a.over(b, (subject, over), traffic));
            }
        }
    }

    fn load(&self, runner: &mut TrialRunner, beds: &mut [TestBed<'_>], rates: &BTreeMap<String, f64>, rows: &mut Results) -> Result<()> {
        for bed in self.of(beds, "latency and CPU time", |p| p.load) {
            let known_pps = rates[&bed.running.subject.id];
            let pps = rate_now(runner, &mut bed.path(), &self.plan, known_pps)?;
            let (latencies, cpu) = under_load(runner, bed, pps, TRIAL, self.cpus)?;
            rows.latencies.extend(latencies);
            rows.cpu.push(cpu);
        }
        Ok(())
    }

    /// Flows to all Services in turn, and one frame in ten opens one: here the number of Services matters, for caches
    /// and for linear rule sets.
    fn new_flows(&self, runner: &mut TrialRunner, beds: &mut [TestBed<'_>], _: &BTreeMap<String, f64>, rows: &mut Results) -> Result<()> {
        let mut searches = Vec::new();
        for TestBed { running, counter, .. } in beds.iter().filter(|b| b.running.policy.new_flows) {
            searches.push((*running, counter, generator(running, self.flows, Mix::NewFlows(NEW_FLOWS_EVERY))?, RateSearch::default()));
        }
        for number in 0..NEW_FLOW_ROUNDS {
            (self.say)(&format!("one frame in {NEW_FLOWS_EVERY} opens a flow: round {} of {NEW_FLOW_ROUNDS}", number + 1));
            let mut entrants: Vec<Entrant<'_, '_>> = Vec::new();
            for (running, counter, generator, found) in &mut searches {
                let path = Path { generator, counter, gateway: &running.topology.gateway };
                entrants.push(Entrant { subject: &running.subject, path, found, both: false });
            }
            round(runner, &self.plan, number, &mut entrants)?;
        }
        let found = searches.into_iter().map(|(running, .., found)| (running.subject.id.clone(), found)).collect();
        self.rate_rows(rows, &found, Traffic::NewFlows);
        Ok(())
    }

    fn connections(&self, _: &mut TrialRunner, beds: &mut [TestBed<'_>], _: &BTreeMap<String, f64>, rows: &mut Results) -> Result<()> {
        let ends = self.setup.ends;
        let servers = serve(ends)?;
        direct_cable(ends, beds.len())?;
        let mut direct = Seen::default();
        let mut seen: BTreeMap<String, Seen> = BTreeMap::new();
        for round in 0..CONNECTION_ROUNDS {
            (self.say)(&format!("connections of real sockets: round {} of {CONNECTION_ROUNDS}", round + 1));
            direct.direct(TRIAL)?;
            for (n, bed) in beds.iter().enumerate().filter(|(_, b)| b.running.policy.connections) {
                let seen = seen.entry(bed.running.subject.id.clone()).or_default();
                seen.round(ends, n, &bed.running.topology, TRIAL).with_context(|| bed.running.subject.label.clone())?;
            }
        }
        drop(servers);
        let of_subjects: Vec<ConnectionRow> = seen.iter().map(|(id, s)| s.row(id, &direct)).collect();
        rows.connections.extend(of_subjects);
        rows.connections.push(direct.row("direct", &direct));
        Ok(())
    }

    /// Loss while tables change, and the time until packets follow a change.
    fn churn(&self, runner: &mut TrialRunner, beds: &mut [TestBed<'_>], rates: &BTreeMap<String, f64>, rows: &mut Results) -> Result<()> {
        let has_rate = |id: &str| rates[id] > 0.0;
        for bed in self.of(beds, "changes under load", |p| !p.events.is_empty()).filter(|b| has_rate(&b.running.subject.id)) {
            let (events, known_pps) = (bed.running.policy.events, rates[&bed.running.subject.id]);
            rows.churn.extend(events::measure(runner, bed, events, self.setup, &self.plan, known_pps)?);
        }
        for bed in self.of(beds, "programming latency", |p| p.changes > 0) {
            rows.programming.push(programming(runner, bed.running, &mut bed.counter, bed.running.policy.changes)?);
        }
        Ok(())
    }

    fn floods(&self, runner: &mut TrialRunner, beds: &mut [TestBed<'_>], rates: &BTreeMap<String, f64>, rows: &mut Results) -> Result<()> {
        for TestBed { running, counter, generator } in self.of(beds, "SYN flood", |p| p.flood) {
            rows.flood.push(flood(runner, running, generator, counter, &self.plan, rates[&running.subject.id], self.flows)?);
        }
        Ok(())
    }
}
