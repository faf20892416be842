//! The command line.

mod cleanup;
pub mod config_args;
pub mod explain;
mod place;
mod run;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::error::ConfigError;
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
  nomagic preflight --interface eth0 --workers 2
  nomagic cleanup

NOMAGIC_LOG sets the log level of `run`: error, warn, info (default), debug.";

/// Which nomagic is meant.
#[derive(Debug, Args)]
struct Place {
    /// Its state directory [default: the configuration's, or /run/nomagic].
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Its configuration file, for what it says of the state directory and the connection table's file.
    #[arg(long, value_name = "FILE", conflicts_with = "state_dir")]
    config: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Format {
    /// Tables for people.
    Text,
    /// One JSON object.
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Carry Services on this node until SIGTERM. SIGHUP re-reads the manifests.
    Run(run::Args),
    /// Show counters and state of the nomagic that runs here.
    Status {
        #[command(flatten)]
        place: Place,
        /// For people or for scripts.
        #[arg(long, value_enum, default_value = "text")]
        format: Format,
    },
    /// Remove what outlives the process: XDP programs and maps, the internal port, the control socket, the connection table.
    Cleanup {
        #[command(flatten)]
        place: Place,
    },
    /// Say what happens to a packet, and why, without touching the network.
    Explain(explain::Args),
    /// Check whether this machine is ready for a gateway; changes nothing.
    Preflight(PreflightArgs),
}

/// Runs what the command line says. Exit codes: 0 good, 1 failure, 2 bad input (clap's own is 2 as well).
pub fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Run(args) => return gateway(|| run::run_gateway(&args)),
        Command::Status { place, format } => return gateway(|| status(place, format)),
        Command::Cleanup { place } => return gateway(|| cleanup(place)),
        Command::Preflight(args) => return preflight(&args),
        Command::Explain(args) => {
            let mut out = io::BufWriter::new(io::stdout().lock());
            explain::run(&args, &mut io::stdin().lock(), &mut out, &mut io::stderr().lock())
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

/// Runs what concerns a gateway, with logs on standard error.
fn gateway(work: impl FnOnce() -> anyhow::Result<()>) -> ExitCode {
    // kube tells of each failed attempt; the watch tells of it once.
    let filter = tracing_subscriber::EnvFilter::try_from_env("NOMAGIC_LOG").unwrap_or_else(|_| "info,kube_client=off".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).init();
    match work() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::from(if e.is::<ConfigError>() { 2 } else { 1 })
        }
    }
}

/// The exit code is 1 when anything is missing; the report has named it.
fn preflight(args: &PreflightArgs) -> ExitCode {
    match args.run(&ThisHost) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::from(2)
        }
    }
}

fn status(place: Place, format: Format) -> anyhow::Result<()> {
    let state_dir = place::state_dir(place.state_dir, place.config.as_deref())?;
    println!("{}", run::status(&state_dir, format == Format::Json)?.trim_end());
    Ok(())
}

fn cleanup(place: Place) -> anyhow::Result<()> {
    let state_dir = place::state_dir(place.state_dir, place.config.as_deref())?;
    let removed = cleanup::cleanup(&state_dir, &place::table_file(&state_dir, place.config.as_deref())?)?;
    if removed.is_empty() {
        println!("nothing was there to remove");
    } else {
        println!("removed {}", removed.join(", "));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use nomagic_xsk::InterfaceName;

    use super::*;

    fn run_args(words: &str) -> Result<run::Args, String> {
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
