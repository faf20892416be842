//! `nomagic log`

use anyhow::{Result, bail};
use nomagic_api::socket::{Request, Response};

use super::{StateArgs, output, state_paths};
use crate::log::LogLevel;
use crate::run::socket;

/// `nomagic log`
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nomagic log debug
  nomagic log

It lasts until the process ends: `log.level` in the configuration and the environment variable NOMAGIC_LOG set what the next one logs.
Exit codes: 0 done, 1 failure or no gateway answers, 2 invalid arguments.")]
pub(super) struct LogArgs {
    /// error, warn, info, debug or trace [default: show the level].
    #[arg(value_name = "LEVEL", value_parser = LogLevel::parse)]
    level: Option<LogLevel>,
    #[command(flatten)]
    state: StateArgs,
}

pub(super) fn run(args: &LogArgs) -> Result<()> {
    let state_dir = state_paths::state_dir(args.state.state_dir.clone(), args.state.config.as_deref())?;
    let level = args.level.map(|level| level.name().to_owned());
    let Response::Log { level } = socket::ask(&state_dir, &Request::Log { level })? else {
        bail!("unexpected response from the gateway: not a log level")
    };
    output::print(&level)?;
    Ok(())
}
