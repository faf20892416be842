//! nomagic's benchmarks: the traffic generator, the comparison with its peers, the report.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use nomagic_bench::bulk::BulkArgs;
use nomagic_bench::compare::cli::CompareArgs;
use nomagic_bench::compare::no_work::NoWorkArgs;
use nomagic_bench::floods::cli::FloodsArgs;
use nomagic_bench::ndr::NdrArgs;
use nomagic_bench::observed::ObservedArgs;
use nomagic_bench::pktgen::PktgenArgs;
use nomagic_bench::report::ReportArgs;

#[derive(Parser)]
#[command(about = "nomagic's benchmarks: the traffic generator, the comparison with its peers, the report", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Generate traffic and check the frames that arrive: rate, loss, order, latency
    Pktgen(Box<PktgenArgs>),
    /// Search the highest rate without loss, and with 0.5 % loss
    Ndr(Box<NdrArgs>),
    /// Compare nomagic with its peers: rates, latency, CPU time, churn, floods
    Compare(CompareArgs),
    /// Flood a Service with forged frames, and measure which share of honest clients is served
    Floods(FloodsArgs),
    /// Measure large TCP transfers, beside the kernel's routing and its DNAT
    Bulk(BulkArgs),
    /// Measure what trace, flows and capture cost the traffic
    Observed(ObservedArgs),
    /// Run nomagic's AF_XDP code with an empty packet path, a peer of the comparison
    NoWork(NoWorkArgs),
    /// Show the results of a comparison as a page, text or JSON, or compare two runs
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
        Command::Floods(args) => args.run(),
        Command::Bulk(args) => args.run(),
        Command::Observed(args) => args.run(),
        Command::NoWork(args) => args.run(),
        Command::Report(args) => args.run(),
    }
}
