//! What a check has found, and how all of it is written: as a table and as JSON.

use serde::Serialize;
use std::fmt;

/// How a check came out.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Ok,
    /// It works, and the figures are worse or differ more from run to run.
    Warning,
    /// It does not work, or the figures say nothing.
    Missing,
    /// Nobody could be asked: a file or a program is not there, or says nothing of it.
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

/// The result of one check.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Finding {
    /// The interface that it is about; `None` for the machine.
    pub interface: Option<String>,
    /// What was looked at.
    pub name: &'static str,
    /// How it came out.
    pub state: State,
    /// What is there.
    pub found: String,
    /// What should be there.
    pub wanted: String,
    /// A command or a sentence that says how to get there. None with [`State::Ok`].
    pub remedy: Option<String>,
}

impl Finding {
    /// A finding about the machine without a remedy.
    pub fn new(name: &'static str, state: State, found: impl Into<String>, wanted: impl Into<String>) -> Finding {
        Finding { interface: None, name, state, found: found.into(), wanted: wanted.into(), remedy: None }
    }

    /// [`State::Ok`] if it is as wanted, else the other state.
    pub fn judged(name: &'static str, good: bool, otherwise: State, found: impl Into<String>, wanted: impl Into<String>) -> Finding {
        Finding::new(name, if good { State::Ok } else { otherwise }, found, wanted)
    }

    /// Nobody could be asked, for this reason.
    pub fn unknown(name: &'static str, why: impl Into<String>, wanted: impl Into<String>) -> Finding {
        Finding::new(name, State::Unknown, why, wanted)
    }

    /// Says how to get there; what is fine needs no remedy.
    pub fn remedy(mut self, remedy: impl Into<String>) -> Finding {
        if self.state != State::Ok {
            self.remedy = Some(remedy.into());
        }
        self
    }
}

/// All findings.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Report {
    /// `gateway` or `generator`.
    pub role: &'static str,
    /// How many are missing, warnings, unknown and fine.
    pub missing: usize,
    #[expect(missing_docs, reason = "see above")]
    pub warnings: usize,
    #[expect(missing_docs, reason = "see above")]
    pub unknown: usize,
    #[expect(missing_docs, reason = "see above")]
    pub ok: usize,
    /// The findings, those about the machine first.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Counts them.
    pub fn new(role: &'static str, findings: Vec<Finding>) -> Report {
        let count = |state| findings.iter().filter(|f| f.state == state).count();
        let (missing, warnings) = (count(State::Missing), count(State::Warning));
        Report { role, missing, warnings, unknown: count(State::Unknown), ok: count(State::Ok), findings }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut about = None;
        for finding in &self.findings {
            if about != Some(&finding.interface) {
                writeln!(f, "{}", finding.interface.as_deref().unwrap_or("this machine"))?;
                about = Some(&finding.interface);
            }
            write!(f, "  {:<8} {:<20} {}", finding.state.word(), finding.name, finding.found)?;
            if finding.state != State::Ok {
                write!(f, "  (wanted: {})", finding.wanted)?;
            }
            writeln!(f)?;
            if let Some(remedy) = &finding.remedy {
                writeln!(f, "           -> {remedy}")?;
            }
        }
        let Report { missing, warnings, unknown, ok, .. } = self;
        write!(f, "as a {}: {missing} missing, {warnings} warnings, {unknown} unknown, {ok} ok", self.role)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_count_group_and_name_the_remedy() {
        let mut nic = Finding::unknown("speed", "the driver does not tell", "10 Gbit/s or more").remedy("ethtool eth0");
        nic.interface = Some("eth0".into());
        let findings = vec![
            Finding::judged("kernel", true, State::Missing, "6.18", "5.18").remedy("never shown"),
            Finding::judged("JIT", false, State::Missing, "off", "on").remedy("sysctl -w net.core.bpf_jit_enable=1"),
            nic,
        ];
        let report = Report::new("gateway", findings);
        assert_eq!((report.ok, report.missing, report.warnings, report.unknown), (1, 1, 0, 1));
        let text = report.to_string();
        assert!(text.contains("missing  JIT                  off  (wanted: on)\n           -> sysctl -w"), "{text}");
        assert!(text.contains("\neth0\n  unknown  speed") && !text.contains("never shown"), "{text}");
        assert!(text.ends_with("1 missing, 0 warnings, 1 unknown, 1 ok"), "{text}");
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["findings"][1]["state"], "missing");
        assert_eq!(json["findings"][2]["interface"], "eth0");
        assert!(json["findings"][0]["remedy"].is_null());
    }
}
