//! The result of a check, and the report of all results.

use std::fmt;

use serde::Serialize;

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckState {
    Ok,
    Warning,
    /// nomagic does not work, or not as intended.
    Missing,
    /// The fact could not be read.
    Unknown,
}

impl CheckState {
    fn word(self) -> &'static str {
        match self {
            CheckState::Ok => "ok",
            CheckState::Warning => "warning",
            CheckState::Missing => "missing",
            CheckState::Unknown => "unknown",
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Finding {
    /// `None` for the machine.
    pub interface: Option<String>,
    pub name: &'static str,
    pub state: CheckState,
    /// The fact, or why it could not be read.
    pub found: String,
    pub wanted: String,
    /// A command or a sentence; `None` with [`CheckState::Ok`].
    pub remedy: Option<String>,
}

/// All findings, those about the machine first.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct PreflightReport {
    pub missing: usize,
    pub warnings: usize,
    pub unknown: usize,
    pub ok: usize,
    pub findings: Vec<Finding>,
}

impl PreflightReport {
    pub fn new(findings: Vec<Finding>) -> PreflightReport {
        let count = |state| findings.iter().filter(|f| f.state == state).count();
        let (missing, warnings) = (count(CheckState::Missing), count(CheckState::Warning));
        PreflightReport { missing, warnings, unknown: count(CheckState::Unknown), ok: count(CheckState::Ok), findings }
    }
}

impl fmt::Display for PreflightReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = None;
        for finding in &self.findings {
            if shown != Some(&finding.interface) {
                writeln!(f, "{}", finding.interface.as_deref().unwrap_or("this machine"))?;
                shown = Some(&finding.interface);
            }
            write!(f, "  {:<8} {:<18} {}", finding.state.word(), finding.name, finding.found)?;
            if finding.state != CheckState::Ok {
                write!(f, "  (wanted: {})", finding.wanted)?;
            }
            writeln!(f)?;
            if let Some(remedy) = &finding.remedy {
                writeln!(f, "           -> {remedy}")?;
            }
        }
        let PreflightReport { missing, warnings, unknown, ok, .. } = self;
        write!(f, "{missing} missing, {warnings} warnings, {unknown} unknown, {ok} ok")
    }
}
