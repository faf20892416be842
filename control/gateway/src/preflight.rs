//! What a machine lacks to run nomagic: checks as a table, read once, nothing changed.
//!
//! [`checks`] has the table: where a fact is found, what it should be, and the remedy. A [`host`] answers, in tests a fake one.

pub mod checks;
pub mod finding;
pub mod host;

#[cfg(test)]
mod tests;

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use nomagic_xsk::{InterfaceName, WorkerCount};

use checks::{INTERFACE, MACHINE, Target};
use finding::Report;
use host::Host;

const INTERFACES_MAX: usize = 16;

const EXAMPLES: &str = "\
Examples:
  A gateway with two interfaces and four workers:
    nomagic preflight --interface eth1 --interface eth2 --workers 4
  The machine alone, as JSON:
    nomagic preflight --format json

It changes nothing. `missing`: nomagic does not work, or not as intended; `warning`: it is slower; `unknown`: the fact could not be read. Each comes with a
remedy. The exit code is 1 if anything is missing. For interfaces of another network namespace run it by `ip netns exec`.";

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Format {
    Text,
    Json,
}

#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub struct PreflightArgs {
    /// Interface that nomagic will take (repeatable)
    #[arg(long = "interface", value_name = "NAME")]
    interfaces: Vec<InterfaceName>,
    /// Number of nomagic's workers
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=i64::from(WorkerCount::MAX)))]
    workers: u32,
    /// Output format
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

impl PreflightArgs {
    /// Checks the machine and prints the findings. False if anything is missing.
    pub fn run(&self, host: &dyn Host) -> Result<bool> {
        let report = self.report(host)?;
        match self.format {
            Format::Text => println!("{report}"),
            Format::Json => println!("{}", serde_json::to_string_pretty(&report)?),
        }
        Ok(report.missing == 0)
    }

    pub fn report(&self, host: &dyn Host) -> Result<Report> {
        let n = self.interfaces.len();
        ensure!(n <= INTERFACES_MAX, "--interface: {n} interfaces; give at most {INTERFACES_MAX}");
        let machine = Target { interface: "", workers: self.workers };
        let mut findings: Vec<_> = MACHINE.iter().map(|check| check.run(host, &machine)).collect();
        for interface in &self.interfaces {
            let target = Target { interface, workers: self.workers };
            findings.extend(INTERFACE.iter().map(|check| check.run(host, &target)));
        }
        Ok(Report::new(findings))
    }
}
