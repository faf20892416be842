//! Checks whether a machine can run nomagic. Changes nothing.
//!
//! `checks` contains the table of checks: the source of a fact, its expected value and the remedy. A `Host` supplies the facts; tests use
//! a fake host.

mod checks;
mod finding;
pub(crate) mod host;

#[cfg(test)]
mod tests;

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use nomagic_xsk::{InterfaceName, WorkerCount};

use crate::cli::output;
use crate::config::Config;
use checks::{CheckTarget, INTERFACE, MACHINE};
use finding::PreflightReport;
use host::Host;

const INTERFACES_MAX: usize = 64;

const EXAMPLES: &str = "\
Examples:
  A gateway with two interfaces and four workers:
    nomagic preflight --interface eth1 --interface eth2 --workers 4
  What a configuration needs:
    nomagic preflight --config /etc/nomagic/nomagic.yaml
  The machine alone, as JSON:
    nomagic preflight --format json

It changes nothing. `missing`: nomagic does not work, or not as intended; `warning`: it is slower; `unknown`: the fact could not be read. Each has a remedy. The
exit code is 1 if anything is missing. For interfaces in another network namespace, run it with `ip netns exec`.";

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum ReportFormat {
    Text,
    Json,
}

#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub struct PreflightArgs {
    /// The gateway's configuration file: interfaces, workers, packet memory and SNAT ports [default: the defaults of each field]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Interface that nomagic will take over (repeatable) [default: the configuration's]
    #[arg(long = "interface", value_name = "NAME")]
    interfaces: Vec<InterfaceName>,
    /// Number of workers [default: the configuration's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(WorkerCount::MAX)))]
    workers: Option<u32>,
    /// Output format
    #[arg(long, value_enum, default_value_t = ReportFormat::Text)]
    format: ReportFormat,
}

impl PreflightArgs {
    /// Checks the machine and prints the findings. Returns false if anything is missing.
    pub fn run(&self, host: &dyn Host) -> Result<bool> {
        let report = self.report(host)?;
        output::print(&match self.format {
            ReportFormat::Text => report.to_string(),
            ReportFormat::Json => serde_json::to_string_pretty(&report)?,
        })?;
        Ok(report.missing == 0)
    }

    pub fn report(&self, host: &dyn Host) -> Result<PreflightReport> {
        let config = self.config.as_deref().map_or_else(|| Ok(Config::default()), Config::load)?;
        let interfaces = if self.interfaces.is_empty() { &config.interfaces } else { &self.interfaces };
        let n = interfaces.len();
        ensure!(n <= INTERFACES_MAX, "--interface: {n} interfaces; give at most {INTERFACES_MAX}");
        let workers = self.workers.unwrap_or_else(|| config.workers.count.get());
        Ok(check_machine(host, &config, interfaces, workers))
    }
}

/// Checks the machine for this configuration with these interfaces and workers.
pub fn check_machine(host: &dyn Host, config: &Config, interfaces: &[InterfaceName], workers: u32) -> PreflightReport {
    let machine = CheckTarget { interface: "", workers, config };
    let mut findings: Vec<_> = MACHINE.iter().map(|check| check.run(host, &machine)).collect();
    for interface in interfaces {
        let target = CheckTarget { interface, ..machine };
        findings.extend(INTERFACE.iter().map(|check| check.run(host, &target)));
    }
    PreflightReport::new(findings)
}
