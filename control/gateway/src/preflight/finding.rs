//! The result of a check, and the report of all of them.

use std::fmt;

use serde::Serialize;

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Ok,
    Warning,
    /// nomagic does not work, or not as intended.
    Missing,
    /// The fact could not be read.
    Unknown,
}

impl State {
    fn word(self) -> &'static str {
        match self {
            State::Ok => "ok",
            State::Warning => "warning",
            State::Missing => "missing",
            State::Unknown => "unknown",
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Finding {
    /// `None` for the machine.
    pub interface: Option<String>,
    pub name: &'static str,
    pub state: State,
    /// The fact, or why it could not be read.
    pub found: String,
    pub wanted: String,
    /// A command or a sentence; `None` with [`State::Ok`].
    pub remedy: Option<String>,
}

/// All findings, those about the machine first.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Report {
    pub missing: usize,
    pub warnings: usize,
    pub unknown: usize,
    pub ok: usize,
    pub findings: Vec<Finding>,
}

impl Report {
    pub fn new(findings: Vec<Finding>) -> Report {
        let count = |state| findings.iter().filter(|f| f.state == state).count();
        let (missing, warnings) = (count(State::Missing), count(State::Warning));
        Report { missing, warnings, unknown: count(State::Unknown), ok: count(State::Ok), findings }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = None;
        for finding in &self.findings {
            if shown != Some(&finding.interface) {
                writeln!(f, "{}", finding.interface.as_deref().unwrap_or("this machine"))?;
                shown = Some(&finding.interface);
            }
            write!(f, "  {:<8} {:<18} {}", finding.state.word(), finding.name, finding.found)?;
            if finding.state != State::Ok {
                write!(f, "  (wanted: {})", finding.wanted)?;
            }
            writeln!(f)?;
            if let Some(remedy) = &finding.remedy {
                writeln!(f, "           -> {remedy}")?;
            }
        }
        let Report { missing, warnings, unknown, ok, .. } = self;
        write!(f, "{missing} missing, {warnings} warnings, {unknown} unknown, {ok} ok")
    }
}
