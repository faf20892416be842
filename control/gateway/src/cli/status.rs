//! `nomagic status`

use anyhow::{Context, Result, bail};
use nomagic_api::Status;
use nomagic_api::socket::{Request, Response};

use super::{StateArgs, StatusFormat, output, state_paths};
use crate::run::socket::{self, NoAnswer};
use crate::status::page::{Sections, SortBy, page};

/// The exit code of a gateway that cannot carry, also because it does not run.
const NOT_READY: u8 = 3;

/// `nomagic status`
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nomagic status
  nomagic status --ready && echo 'this gateway carries Services'
  nomagic status --problems
  nomagic status --service default/nginx --sort flows
  nomagic status --format json

Exit codes: 0 ready, 3 not ready or no nomagic runs, 1 another failure, 2 invalid arguments. It is ready if all ports are bound and have a
carrier, all workers are alive, the latest tables are in force, and it does not drain. /readyz says the same.")]
pub(super) struct StatusArgs {
    #[command(flatten)]
    state: StateArgs,
    /// Output format.
    #[arg(long, value_enum, default_value = "text")]
    format: StatusFormat,
    /// Show only whether the gateway is ready, or why not.
    #[arg(long, conflicts_with_all = ["problems", "service"])]
    ready: bool,
    /// Show only whether the gateway is ready, and the problems.
    #[arg(long, conflicts_with = "service")]
    problems: bool,
    /// Show only one Service: its problems, ports and backends.
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = service)]
    service: Option<(String, String)>,
    /// The order of the backends in text.
    #[arg(long, value_enum, default_value = "name")]
    sort: SortBy,
}

/// Reads `namespace/name`.
pub(super) fn service(text: &str) -> Result<(String, String), String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => Ok((namespace.into(), name.into())),
        _ => Err("not a namespace and a name, such as default/nginx".into()),
    }
}

/// Prints the status. Returns the exit code.
pub(super) fn run(args: &StatusArgs) -> Result<u8> {
    let state_dir = state_paths::state_dir(args.state.state_dir.clone(), args.state.config.as_deref())?;
    let answer = match socket::ask(&state_dir, &Request::Status {}) {
        Err(e) if e.is::<NoAnswer>() => {
            output::print_error(&format!("{e:#}"));
            return Ok(NOT_READY);
        }
        answer => answer?,
    };
    let Response::Status(status) = answer else { bail!("unexpected response from the gateway: not a status") };
    output::print(text(&status, args)?.trim_end())?;
    Ok(if status.not_ready.is_empty() { 0 } else { NOT_READY })
}

fn text(status: &Status, args: &StatusArgs) -> Result<String> {
    let shown = chosen(status, args);
    match args.format {
        StatusFormat::Json => serde_json::to_string(&shown).context("the status cannot be written as JSON"),
        StatusFormat::Text => Ok(page(&shown, sections(args), args.sort)),
    }
}

fn sections(args: &StatusArgs) -> Sections<'_> {
    match &args.service {
        Some((namespace, name)) => Sections::Service(namespace, name),
        None if args.problems => Sections::Problems,
        None => Sections::All,
    }
}

/// The chosen part of the status, for JSON too.
fn chosen(status: &Status, args: &StatusArgs) -> Status {
    let ready = Status { ready: status.ready, not_ready: status.not_ready.clone(), draining: status.draining, ..Status::default() };
    if args.ready {
        return ready;
    }
    let mut services = nomagic_api::Services { problems: status.services.problems.clone(), ..nomagic_api::Services::default() };
    if args.problems {
        return Status { services, ..ready };
    }
    let Some((namespace, name)) = &args.service else { return status.clone() };
    services.problems.retain(|problem| problem.contains(&format!("{namespace}/{name}")));
    let targets = status.targets.iter().filter(|t| (&t.namespace, &t.service) == (namespace, name)).cloned().collect();
    let service_ports = status.service_ports.iter().filter(|p| (&p.namespace, &p.service) == (namespace, name)).cloned().collect();
    Status { services, targets, service_ports, workers: status.workers.clone(), ..ready }
}
