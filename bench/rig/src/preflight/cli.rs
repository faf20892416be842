//! The words of `nomagic-bench preflight`.

use anyhow::{Context, Result, ensure};
use clap::Args;
use std::fs::File;

use super::checks;
use super::cpus::CpuSet;
use super::facts::{Machine, Role, Wanted};
use super::finding::Report;
use super::host::ThisHost;
use super::nic::Nic;
use crate::format::Format;
use crate::pktgen::interface::Place;
use nomagic_testbed::rig::enter_netns;

/// As in nomagic's configuration.
const WORKERS_MAX: u32 = 64;
/// Interfaces that are looked at.
const INTERFACES_MAX: usize = 16;

const EXAMPLES: &str = "\
Examples:
  A gateway with two ports and four workers:
    nomagic-bench preflight --interface eth1 --interface eth2 --workers 4 --cpus 2-5
  The box that makes the traffic, its ports in a namespace; as JSON:
    nomagic-bench preflight --role generator --interface eth1@gen --interface eth2@gen --workers 2 --cpus 2,3 --format json
  The machine alone:
    nomagic-bench preflight

It changes nothing, and takes half a second. `missing`: it does not work, or the figures say nothing; `warning`: they are worse, or differ from run to
run; `unknown`: it could not be found out. Each comes with a command to copy. The exit code is 1 if anything is missing. bench/rigs/two-machines.md has
the whole way.";

/// `nomagic-bench preflight`.
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub struct PreflightArgs {
    /// Interface to measure on, INTERFACE or INTERFACE@NETNS (repeatable)
    #[arg(long = "interface")]
    interfaces: Vec<Place>,
    /// nomagic's workers, or the generator's threads
    #[arg(long, default_value_t = 1)]
    workers: u32,
    /// Their CPUs, such as 2,3 or 2-5
    #[arg(long, default_value = "")]
    cpus: CpuSet,
    /// What the machine is for
    #[arg(long, value_enum, default_value_t = Role::Gateway)]
    role: Role,
    /// Huge pages of 2 MiB that must be free
    #[arg(long, default_value_t = 0)]
    huge_pages: u64,
    /// How the result is written
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

impl PreflightArgs {
    fn wanted(&self) -> Result<Wanted> {
        ensure!((1..=WORKERS_MAX).contains(&self.workers), "--workers {}: give 1 to {WORKERS_MAX}", self.workers);
        let n = self.interfaces.len();
        ensure!(n <= INTERFACES_MAX, "--interface: {n} of them; give {INTERFACES_MAX} at the most");
        Ok(Wanted { workers: self.workers, cpus: self.cpus.clone(), role: self.role, huge_pages: self.huge_pages })
    }

    /// Looks, prints, and says whether nothing is missing.
    pub fn run(&self) -> Result<bool> {
        let wanted = self.wanted()?;
        let machine = Machine::gather(&ThisHost, &wanted);
        let mut findings = checks::machine(&wanted, &machine);
        for place in &self.interfaces {
            findings.extend(checks::nic(&wanted, &machine, &look_at(place)?));
        }
        let report = Report::new(self.role.name(), findings);
        self.format.print(&report)?;
        Ok(report.missing == 0)
    }
}

/// On a thread of its own in the interface's namespace: programs and /proc/sys/net follow the thread.
fn look_at(place: &Place) -> Result<Nic> {
    std::thread::scope(|scope| {
        let look = scope.spawn(|| -> Result<Nic> {
            if let Some(netns) = &place.netns {
                let path = std::path::Path::new("/run/netns").join(netns);
                let file = File::open(&path).with_context(|| format!("{place}: cannot open {} (`ip netns list`)", path.display()))?;
                enter_netns(&file).with_context(|| format!("{place}: cannot enter the namespace (root?)"))?;
            }
            Ok(Nic { netns: place.netns.clone(), ..Nic::gather(&ThisHost, &place.name) })
        });
        look.join().map_err(|_| anyhow::anyhow!("looking at {place} failed"))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: PreflightArgs,
    }

    fn wanted(words: &str) -> Result<Wanted> {
        Cli::try_parse_from(format!("preflight {words}").split_whitespace())?.args.wanted()
    }

    #[test]
    fn the_help_s_examples_are_accepted() {
        let lines: Vec<&str> = EXAMPLES.lines().filter_map(|l| l.trim().strip_prefix("nomagic-bench preflight")).collect();
        assert_eq!(lines.len(), 3);
        let read: Vec<Wanted> = lines.iter().map(|l| wanted(l).unwrap_or_else(|e| panic!("{l}: {e:#}"))).collect();
        assert_eq!((read[0].workers, read[0].cpus.to_string().as_str(), read[0].role), (4, "2-5", Role::Gateway));
        assert_eq!((read[1].workers, read[1].role, read[2].cpus.is_empty()), (2, Role::Generator, true));
    }

    #[test]
    fn what_makes_no_sense_is_said() {
        for (words, said) in [
            ("--workers 0", "1 to 64"),
            ("--workers 65", "1 to 64"),
            ("--cpus x", "2,3 or 2-5"),
            ("--interface a/b", "INTERFACE"),
            ("--role router", "router"),
            (&"--interface eth0 ".repeat(17), "16 at the most"),
        ] {
            let error = format!("{:#}", wanted(words).unwrap_err());
            assert!(error.contains(said), "{words}: {error}");
        }
    }
}
