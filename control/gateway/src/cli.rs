//! The command line.

mod capture;
mod check;
mod cleanup;
mod completions;
pub mod config_args;
mod deny;
mod drain;
pub mod explain;
mod filter_args;
mod flows;
mod log;
pub(crate) mod output;
mod report;
mod run;
pub(crate) mod services;
mod state_paths;
mod status;
mod tapping;
mod top;
pub(crate) mod trace;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::error::ConfigError;
use crate::log::{BadLevel, LogFormat, LogLevel};
use crate::preflight::PreflightArgs;
use crate::preflight::host::ThisHost;

/// A Kubernetes Service load balancer for gateway nodes: kube-proxy's job in userspace, over AF_XDP.
#[derive(Debug, Parser)]
#[command(name = "nomagic", version, after_help = EXAMPLES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "Examples:
  nomagic run --config /etc/nomagic/nomagic.yaml
  nomagic run --kube-proxy-config /var/lib/kube-proxy/config.conf --manifests services.yaml
  nomagic explain --config nomagic.yaml 'tcp 192.168.0.5:40000 -> 10.109.35.24:80'
  nomagic status --format json
  nomagic flows --service default/nginx --count --by backend
  nomagic trace --follow --service default/nginx
  nomagic capture --service default/nginx | wireshark -k -i -
  nomagic top --service default/nginx
  nomagic services --problems
  nomagic deny add 192.0.2.0/24 --for 10m
  nomagic check --config /etc/nomagic/nomagic.yaml
  nomagic check kube-proxy --config /etc/nomagic/nomagic.yaml --manifests objects.yaml
  nomagic preflight --interface eth0 --workers 2
  nomagic report --replace-addresses
  nomagic cleanup

The environment variable NOMAGIC_LOG sets the log level: error, warn, info (default), debug, trace. `nomagic log` changes it.";

/// Selects a gateway by its state directory.
#[derive(Debug, Args)]
struct StateArgs {
    /// The gateway's state directory [default: the configuration's, or /run/nomagic].
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// The gateway's configuration file, from which the state directory and the connection table's file are read.
    #[arg(long, value_name = "FILE", conflicts_with = "state_dir")]
    config: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum StatusFormat {
    /// Text with aligned columns.
    Text,
    /// One JSON object.
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a gateway on this node until SIGTERM. SIGHUP re-reads the manifests and `deny.file`.
    Run(run::RunArgs),
    /// Show state and counters of the running gateway.
    Status(status::StatusArgs),
    /// Show the flows that the running gateway carries.
    Flows(flows::FlowsArgs),
    /// Show what happens to flows and packets, while it happens: new, ended, rejected, dropped, and why.
    Trace(trace::TraceArgs),
    /// Capture packets before and after the rewrite, for Wireshark.
    Capture(capture::CaptureArgs),
    /// Watch the running gateway: rates by Service, backends, clients, reasons, workers, tables.
    Top(top::TopArgs),
    /// Show the Services that the running gateway knows, with addresses, endpoints and problems.
    Services(services::ServicesArgs),
    /// Check configuration, manifests and machine without starting anything.
    Check(check::CheckArgs),
    /// Tell load balancers to leave, and carry on meanwhile.
    Drain(drain::DrainArgs),
    /// Show or change the running gateway's log level.
    Log(log::LogArgs),
    /// Drop packets to Services from some sources: change or show the running gateway's deny list.
    #[command(subcommand)]
    Deny(deny::DenyCommand),
    /// Remove everything that outlives the process: XDP programs and maps, routes and rules, the internal port, the control socket, the
    /// hash seed, the connection table.
    Cleanup(cleanup::CleanupArgs),
    /// Explain how nomagic handles a packet, without touching the network.
    Explain(explain::ExplainArgs),
    /// Write a file for a bug report: state, configuration, kernel, interfaces, routes, logs.
    Report(report::ReportArgs),
    /// Write a script that lets a shell complete commands and arguments.
    Completions(completions::CompletionsArgs),
    /// Check whether this machine is ready for a gateway. Changes nothing.
    Preflight(PreflightArgs),
}

/// Parses the command line and runs the command. Exit codes: 0 success, 1 failure, 2 invalid input (like clap's own); `status` has one more.
pub fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Run(args) => return coded(|| done(run::run_gateway(&args))),
        Command::Status(args) => return gateway(|| status::run(&args)),
        Command::Flows(args) => return gateway(|| flows::run(&args)),
        Command::Trace(args) => return gateway(|| trace::run(&args)),
        Command::Capture(args) => return gateway(|| capture::run(&args)),
        Command::Top(args) => return gateway(|| top::run(&args)),
        Command::Services(args) => return gateway(|| services::run(&args)),
        Command::Deny(command) => return gateway(|| done(deny::run(command))),
        Command::Check(args) => return gateway(|| check::run(&args)),
        Command::Drain(args) => return gateway(|| done(drain::run(&args))),
        Command::Log(args) => return gateway(|| done(log::run(&args))),
        Command::Cleanup(args) => return gateway(|| done(cleanup::run(&args))),
        Command::Report(args) => return gateway(|| done(report::run(&args))),
        Command::Completions(args) => return gateway(|| completions::run(&args)),
        Command::Preflight(args) => return preflight(&args),
        Command::Explain(args) => {
            let mut out = io::BufWriter::new(io::stdout().lock());
            explain::run(&args, &mut io::stdin().lock(), &mut out, &mut io::stderr().lock())
        }
    };
    match outcome {
        Ok(code) => ExitCode::from(code),
        // The reader of the output has closed its end.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(e) => {
            output::print_error(&e.to_string());
            ExitCode::FAILURE
        }
    }
}

/// The exit code of a command that either succeeds or fails.
fn done(outcome: anyhow::Result<()>) -> anyhow::Result<u8> {
    outcome.map(|()| 0)
}

/// Runs a command with logs on standard error. Returns its exit code.
fn gateway(work: impl FnOnce() -> anyhow::Result<u8>) -> ExitCode {
    coded(|| {
        crate::log::start(LogLevel::default(), LogFormat::default())?;
        work()
    })
}

/// Runs a command. Returns its exit code.
fn coded(work: impl FnOnce() -> anyhow::Result<u8>) -> ExitCode {
    match work() {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            output::print_error(&output::sentence(&e));
            ExitCode::from(if e.is::<ConfigError>() || e.is::<BadLevel>() { 2 } else { 1 })
        }
    }
}

/// The exit code is 1 if the report contains a missing item.
fn preflight(args: &PreflightArgs) -> ExitCode {
    match args.run(&ThisHost) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            output::print_error(&format!("{e:#}"));
            ExitCode::from(2)
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use nomagic_xsk::InterfaceName;

    use super::*;

    fn run_args(words: &str) -> Result<run::RunArgs, String> {
        match Cli::try_parse_from(["nomagic", "run"].into_iter().chain(words.split_whitespace())) {
            Ok(Cli { command: Command::Run(args) }) => Ok(args),
            Ok(other) => panic!("{other:?}"),
            Err(e) => Err(e.to_string()),
        }
    }

    #[test]
    fn exactly_one_configuration_file() {
        Cli::command().debug_assert();
        let args = run_args("--kube-proxy-config a --interface eth0 --interface eth1 --manifests m --state-dir s").unwrap();
        assert_eq!(
            (args.interfaces, args.config.path()),
            (["eth0", "eth1"].map(InterfaceName::from_static).into(), std::path::Path::new("a"))
        );
        assert!(run_args("").unwrap_err().contains("--config <FILE>|--kube-proxy-config <FILE>"));
        assert!(run_args("--config a --kube-proxy-config b").unwrap_err().contains("cannot be used with"));
        assert_eq!(run_args("--config a --node-name gw-1").unwrap().node_name.as_deref(), Some("gw-1"));
        assert!(run_args("--config a --node-name=").unwrap_err().contains("a Node's name"));
        for bad in ["lo", "a/b", "0123456789abcdef", ""] {
            assert!(run_args(&format!("--config a --interface={bad}")).is_err(), "{bad}");
        }
    }
}
