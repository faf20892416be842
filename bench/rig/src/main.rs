//! nomagic's benchmarks: the traffic generator, the comparison with its peers, the report.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use nomagic_bench::compare::cli::CompareArgs;
use nomagic_bench::compare::no_work::NoWorkArgs;
use nomagic_bench::ndr::NdrArgs;
use nomagic_bench::pktgen::PktgenArgs;
use nomagic_bench::preflight::PreflightArgs;
use nomagic_bench::preflight::host::ThisHost;
use nomagic_bench::report::ReportArgs;
use nomagic_bench::xdp_features::xdp_features;

#[derive(Parser)]
#[command(about = "nomagic's benchmarks: the traffic generator, the comparison with its peers, the report", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Generates traffic and checks what arrives: rate, loss, order, latency
    Pktgen(Box<PktgenArgs>),
    /// Searches the highest rate without loss, and with 0.5 % of it
    Ndr(Box<NdrArgs>),
    /// nomagic beside its peers: rates, latency, CPU time, churn, floods
    Compare(CompareArgs),
    /// nomagic's AF_XDP code with an empty packet path, the peer of the comparison
    NoWork(NoWorkArgs),
    /// Says what is missing on this machine before one measures there; changes nothing
    Preflight(PreflightArgs),
    /// Shows the results of a comparison: as a page, as text, as JSON, beside another run's
    Report(ReportArgs),
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("nomagic-bench: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Pktgen(args) => args.run(),
        Command::Ndr(args) => args.run(),
        Command::Compare(args) => args.run(),
        Command::NoWork(args) => args.run(),
        // The report names what is missing.
        Command::Preflight(args) => std::process::exit(i32::from(!args.run(&ThisHost { xdp_features })?)),
        Command::Report(args) => args.run(),
    }
}
