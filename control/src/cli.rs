//! The command line.

use std::io;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::explain;

/// A Kubernetes Service load balancer for gateway nodes, over AF_XDP.
#[derive(Debug, Parser)]
#[command(name = "nomagic", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say what happens to a packet, and why, without touching the network.
    Explain(explain::command::Args),
}

/// Runs what the command line says. Exit codes: 0 good, 1 failure, 2 bad input (clap's own is 2 as well).
pub fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Explain(args) => {
            let mut out = io::BufWriter::new(io::stdout().lock());
            explain::command::run(&args, &mut io::stdin().lock(), &mut out, &mut io::stderr().lock())
        }
    };
    match outcome {
        Ok(code) => ExitCode::from(code),
        // Whoever reads the answers has seen enough.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}
