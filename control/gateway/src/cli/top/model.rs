//! What the screen shows, from what the gateway has answered. Pure: answers and times come in, rows go out.
//!
//! Rates are differences of two answers, divided by the time between them.

pub mod gateway;
pub mod history;
pub mod samples;
pub mod services;
pub mod table;
pub mod tuples;

use nomagic_api::Status;

use super::keys::{Place, View};
use super::text;
use super::walk::{Progress, Question, Walk};
use history::History;
use samples::Samples;
use table::Table;

/// What a view shows below its title.
#[derive(Clone, PartialEq, Debug)]
pub enum Body {
    Table(Table),
    Text(Vec<String>),
}

impl Body {
    /// The number of its rows or lines.
    pub fn len(&self) -> usize {
        match self {
            Body::Table(table) => table.rows.len(),
            Body::Text(lines) => lines.len(),
        }
    }
}

/// Something does not work.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Failure {
    since_ns: u64,
    text: String,
}

/// What is known.
#[derive(Default, Debug)]
pub struct Model {
    samples: Samples,
    history: History,
    /// When the answers showed that the gateway had started again.
    restarted_ns: Option<u64>,
    /// No answers since then.
    silence: Option<Failure>,
    /// The newest part of the walk that goes on.
    walk: Option<Walk>,
    /// The last complete one, when it was, and the numbers of the one before.
    whole: Option<tuples::Whole>,
    /// What could not be listed or explained, and why.
    refused: Option<String>,
    /// A flow and what the gateway does with it.
    explained: Option<(String, Vec<String>)>,
}

/// How long a restart is said.
const RESTART_SHOWN_NS: u64 = 60_000_000_000;

impl Model {
    pub fn take_status(&mut self, status: Status, at_ns: u64) {
        self.silence = None;
        if self.samples.take(status, at_ns) {
            self.restarted_ns = Some(at_ns);
            self.history.clear();
            self.whole = None;
        }
        if let Some(status) = self.samples.status() {
            self.history.push(at_ns, status);
        }
    }

    pub fn take_walk(&mut self, walk: Walk, at_ns: u64) {
        self.refused = None;
        if !matches!(walk.progress, Progress::UpTo(_)) {
            let before = self.whole.take().filter(|whole| whole.walk.query == walk.query);
            self.whole = Some(tuples::Whole::new(walk.clone(), at_ns, before));
        }
        self.walk = Some(walk);
    }

    pub fn take_explanation(&mut self, flow: String, lines: Vec<String>) {
        self.refused = None;
        self.explained = Some((flow, lines));
    }

    /// The gateway refuses to list or to explain.
    pub fn take_refusal(&mut self, why: String) {
        self.refused = Some(why);
    }

    /// The gateway does not answer.
    pub fn take_silence(&mut self, why: String, at_ns: u64) {
        let since_ns = self.silence.as_ref().map_or(at_ns, |failure| failure.since_ns);
        self.silence = Some(Failure { since_ns, text: why });
    }

    /// The view has changed: what was asked for the one before is no answer to it.
    pub fn forget_refusal(&mut self) {
        self.refused = None;
    }

    /// Whether there are rates.
    pub fn has_rates(&self) -> bool {
        self.samples.has_rates()
    }

    pub fn status(&self) -> Option<&Status> {
        self.samples.status()
    }

    pub fn samples(&self) -> &Samples {
        &self.samples
    }

    /// The view's rows or lines. A text is broken into lines of this width.
    pub fn body(&self, place: &Place, width: usize) -> Body {
        let samples = &self.samples;
        let table = match &place.view {
            View::Services => services::services(samples, place),
            View::Backends(service) => services::backends(samples, place, service.as_deref()),
            View::Clients(service) => tuples::clients(self.shown_walk(place), service.as_deref(), place),
            View::Flows(filter) => tuples::flows(self.shown_walk(place), filter, place),
            View::Reasons => gateway::reasons(samples, place),
            View::Workers => gateway::workers(samples, place),
            View::Tables => gateway::tables(samples, &self.history, place),
            View::Explain(flow) => return Body::Text(self.explanation(flow, width)),
        };
        Body::Table(table)
    }

    fn explanation(&self, flow: &str, width: usize) -> Vec<String> {
        let lines = match (&self.explained, &self.refused) {
            (_, Some(refused)) => vec![refused.clone()],
            (Some((explained, lines)), _) if explained == flow => lines.clone(),
            _ => vec!["asking the gateway".to_owned()],
        };
        lines.iter().flat_map(|line| text::wrap(line, width, 5)).collect()
    }

    /// What is known of the flows that the place's view is about.
    fn shown_walk(&self, place: &Place) -> tuples::Shown<'_> {
        let query = Question::of(&place.view).and_then(|question| question.query().cloned());
        let fits = |walk: &Walk| Some(&walk.query) == query.as_ref();
        tuples::Shown {
            part: self.walk.as_ref().filter(|walk| fits(walk)),
            whole: self.whole.as_ref().filter(|whole| fits(&whole.walk)),
            refused: self.refused.as_deref(),
            capacity: self.status().map_or(0, |status| status.conntrack.capacity),
        }
    }

    /// What must be known before anything else: that there are no answers, a restart, why the gateway is not ready.
    pub fn notice(&self, now_ns: u64) -> Option<String> {
        let ago = |at_ns: u64| text::duration(now_ns.saturating_sub(at_ns) as f64 / 1e9);
        if let Some(Failure { since_ns, text }) = &self.silence {
            return Some(format!("NO ANSWER for {}, still trying: {text}", ago(*since_ns)));
        }
        if let Some(at_ns) = self.restarted_ns.filter(|at_ns| now_ns.saturating_sub(*at_ns) < RESTART_SHOWN_NS) {
            return Some(format!("the gateway has started again, {} ago: rates begin anew", ago(at_ns)));
        }
        let status = self.status()?;
        if !status.not_ready.is_empty() {
            return Some(format!("NOT READY: {}", status.not_ready.join("; ")));
        }
        match status.services.problems.len() {
            0 => None,
            1 => Some("1 problem: `nomagic status --problems` shows it".into()),
            n => Some(format!("{n} problems: `nomagic status --problems` shows them")),
        }
    }
}

#[cfg(test)]
pub mod tests;
