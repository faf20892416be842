//! The command line of `nomagic-bench ndr`.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use nomagic_testbed::rig::remove_leftovers;
use signal_hook::consts::{SIGINT, SIGTERM};

use super::measure::{Task, measure};
use super::search::Method;
use crate::pktgen::PktgenArgs;
use crate::pktgen::interface::Place;

const EXAMPLES: &str = "\
Examples:
  Through a gateway between the namespaces client and fabric, to a Service:
    nomagic-bench ndr --tx eth0@client --rx gw0@fabric --dst-mac 02:00:00:00:00:01 --to 10.109.35.53:53 --backend live --count-only
  As in RFC 2544: trials of 60 s, one search, no loss (hours):
    nomagic-bench ndr --tx eth0@a --rx eth0@b --size 64 --trial 60 --repeat 1 --loss 0
  On a rig of network cards, with a loop cable as the baseline:
    nomagic-bench ndr --tx eth2 --rx eth3 --baseline-tx eth4 --baseline-rx eth5 --allow-host-interface

How it searches: a trial sends at one rate and counts the frames that arrive. It tries rates around the last result (at first: half of the generator's highest
rate), then between the highest rate that held and the lowest that did not, until these are --precision apart. With RFC 2544 one lost frame decides, and
results follow the host's hiccups. Here a rate holds when the majority of --tries trials meets the goal; the search is repeated; the report shows the median
with its interval, and the rate with 0.5 % loss, which hiccups hardly change. The baseline is the same search over a cable without a device: a result above
two thirds of it counts as not measured.";

/// `nomagic-bench ndr`.
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub struct NdrArgs {
    #[command(flatten)]
    pktgen: PktgenArgs,
    /// Seconds of one trial
    #[arg(long, default_value_t = 1.0)]
    trial: f64,
    /// Number of searches
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repeat: u32,
    /// Allowed loss in percent (repeatable)
    #[arg(long, default_values_t = [0.0, 0.5])]
    loss: Vec<f64>,
    /// Trials of a rate; the majority decides, so the number is odd
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=99))]
    tries: u32,
    /// Percent between the highest rate that held and the lowest that did not
    #[arg(long, default_value_t = 1.0)]
    precision: f64,
    /// Interface that sends the baseline's frames [default: one end of a new veth pair]
    #[arg(long, requires = "baseline_rx")]
    baseline_tx: Option<Place>,
    /// Interface that receives them
    #[arg(long, requires = "baseline_tx")]
    baseline_rx: Option<Place>,
}

impl NdrArgs {
    pub fn task(&self) -> Result<Task> {
        let options = self.pktgen.options()?;
        ensure!(options.rate.is_none() && options.count.is_none(), "ndr searches the rate: --rate and --count make no sense");
        ensure!(options.rx.is_some(), "--rx must name the receiving interface");
        ensure!(self.trial.is_finite() && (0.05..=3600.0).contains(&self.trial), "--trial {}: give 0.05 to 3600 seconds", self.trial);
        ensure!(
            self.loss.iter().all(|l| (0.0..=50.0).contains(l)) && self.loss.len() <= 8,
            "--loss: give at most eight of 0 to 50 percent"
        );
        ensure!((0.1..=20.0).contains(&self.precision), "--precision {}: give 0.1 to 20 percent", self.precision);
        ensure!(self.tries % 2 == 1, "--tries {}: give an odd number, for a majority", self.tries);
        let method = Method { precision: self.precision / 100.0, tries: self.tries, step: 1.1, hopeless: 0.05, rates_max: 60 };
        Ok(Task {
            options,
            trial: Duration::from_secs_f64(self.trial),
            repeat: self.repeat,
            goals: self.loss.iter().map(|l| l / 100.0).collect(),
            method,
            baseline: self.baseline_tx.clone().zip(self.baseline_rx.clone()),
        })
    }

    pub fn run(&self) -> Result<()> {
        let task = self.task()?;
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            signal_hook::flag::register(signal, stop.clone()).context("cannot watch signals")?;
        }
        remove_leftovers();
        let start = Instant::now();
        let report = measure(&task, &stop, &mut |text| eprintln!("[{:6.1} s] {text}", start.elapsed().as_secs_f32()))?;
        self.pktgen.format().print(&report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: NdrArgs,
    }

    fn task(words: &str) -> Result<Task> {
        Cli::try_parse_from(format!("ndr {words}").split_whitespace())?.args.task()
    }

    #[test]
    fn the_help_s_examples_are_accepted() {
        let lines: Vec<&str> = EXAMPLES.lines().filter_map(|l| l.trim().strip_prefix("nomagic-bench ndr ")).collect();
        assert_eq!(lines.len(), 3);
        for line in lines {
            task(line).unwrap_or_else(|e| panic!("{line}: {e:#}"));
        }
    }

    #[test]
    fn what_makes_no_sense_is_said() {
        for (words, said) in [
            ("--tx a --rx b --rate 5", "--rate and --count make no sense"),
            ("--tx a --dst-mac 02:00:00:00:00:01", "--rx"),
            ("--tx a --rx b --tries 2", "odd"),
            ("--tx a --rx b --trial 0", "--trial"),
            ("--tx a --rx b --loss 99", "--loss"),
            ("--tx a --rx b --precision 0", "--precision"),
            ("--tx a --rx b --baseline-tx c", "--baseline-rx"),
        ] {
            let error = task(words).unwrap_err().to_string();
            assert!(error.contains(said), "{words}: {error}");
        }
    }
}
