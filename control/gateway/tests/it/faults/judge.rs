//! What a start with a fault came to.

use std::io;
use std::process::ExitStatus;

use super::errors::remedies;
use super::record::Fault;

/// A fault, and what is wrong with what came of it.
#[derive(Debug)]
pub struct Trial {
    pub fault: Fault,
    /// How the start ended; `None`: it became ready, or hung.
    pub ended: Option<ExitStatus>,
    pub said: String,
    pub problems: Vec<String>,
}

impl Trial {
    /// Judges a start that became ready.
    pub fn judge_ready(&mut self) {
        if self.said.contains("panicked") {
            self.problems.push("it became ready, but something panicked".into());
        }
    }

    /// Judges what a start said that did not become ready.
    pub fn judge_end(&mut self, status: ExitStatus) {
        self.ended = Some(status);
        match status.code() {
            Some(1 | 2) => {}
            _ => self.problems.push(format!("it ended with {status}")),
        }
        let errors: Vec<&str> = self.said.lines().filter_map(|l| l.strip_prefix("error: ")).collect();
        let [error] = errors[..] else {
            return self.problems.push(format!("{} lines begin with `error: `", errors.len()));
        };
        if !remedies(self.fault.error).iter().any(|words| error.contains(words)) {
            let problem = format!("no remedy ({}): {error}", remedies(self.fault.error).join(" | "));
            self.problems.push(problem);
        }
        for bad in ["Os {", "panicked"] {
            if self.said.contains(bad) {
                self.problems.push(format!("it said `{bad}`"));
            }
        }
    }
}

/// The faults with what came of them, and the output of those that failed.
pub fn print(trials: &[Trial]) {
    for t in trials {
        let end = t.ended.map_or("ready".to_owned(), |s| s.code().map_or(s.to_string(), |code| format!("exit {code}")));
        println!("{:9?} {:24} {end:8} {}", t.fault.before, io::Error::from_raw_os_error(t.fault.error).kind().to_string(), t.fault.site);
    }
    for t in trials.iter().filter(|t| !t.problems.is_empty()) {
        let Fault { before, site, error, .. } = &t.fault;
        println!("\nFAILED {before:?}: {site}: {}", io::Error::from_raw_os_error(*error));
        t.problems.iter().for_each(|problem| println!("  {problem}"));
        t.said.lines().for_each(|line| println!("    {line}"));
    }
}
