//! `nomagic drain`

use anyhow::{Result, bail};
use nomagic_api::socket::{Request, Response};

use super::{StateArgs, output, state_paths};
use crate::run::socket;

/// `nomagic drain`
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nomagic drain                     # /readyz and /healthz fail: load balancers leave, connections go on
  nomagic status                    # wait until `created` no longer grows
  nomagic drain --undo

New connections are served as before until the process ends. It lasts until --undo, a reboot or `nomagic cleanup`, also over restarts.
Exit codes: 0 done, 1 failure or no gateway answers, 2 invalid arguments.")]
pub(super) struct DrainArgs {
    /// Be ready again.
    #[arg(long)]
    undo: bool,
    #[command(flatten)]
    state: StateArgs,
}

pub(super) fn run(args: &DrainArgs) -> Result<()> {
    let state_dir = state_paths::state_dir(args.state.state_dir.clone(), args.state.config.as_deref())?;
    let Response::Drain { on } = socket::ask(&state_dir, &Request::Drain { on: !args.undo })? else {
        bail!("unexpected response from the gateway: not about draining")
    };
    output::print(if on { "this gateway drains: it says that it is not ready, and carries on" } else { "this gateway no longer drains" })?;
    Ok(())
}
