//! `nomagic flows`: the flows that the running gateway carries.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::ValueEnum;
use nomagic_api::flows::{self, Flow, FlowFilter, FlowState, FlowsPage};
use nomagic_api::socket::{Request, Response};

use super::filter_args::{FilterArgs, until_closed};
use super::output::printable;
use super::{StateArgs, state_paths};
use crate::run::socket;

/// Seconds between two looks of `--watch`.
const WATCH_S: f64 = 2.0;
/// Moves the cursor of a terminal to its start and clears it.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// `nomagic flows`
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  All flows of a Service:
    nomagic flows --service default/nginx
  How its connections are spread over the backends:
    nomagic flows --service default/nginx --count --by backend
  Half-open connections of a network, again and again:
    nomagic flows --client 10.0.0.0/8 --state SYN_SENT --watch
  One JSON object for each flow:
    nomagic flows --format json
  End the connections of a client:
    nomagic flows end --client 10.0.0.9

A flow is shown as it was when its entry was read; the table is read in parts, beside the workers.
Exit codes: 0 done, 1 failure or no gateway answers, 2 invalid arguments.")]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct FlowsArgs {
    #[command(subcommand)]
    command: Option<FlowsCommand>,
    #[command(flatten)]
    filter: FilterArgs,
    /// A state, such as ESTABLISHED.
    #[arg(long)]
    state: Option<FlowState>,
    /// Show numbers of flows instead of flows.
    #[arg(long)]
    count: bool,
    /// What to count by [default: all together].
    #[arg(long, value_enum, requires = "count")]
    by: Option<CountBy>,
    /// Show so many flows at the most.
    #[arg(long, value_name = "N", conflicts_with = "count")]
    limit: Option<u64>,
    /// Look again every two seconds, or as often as given, until interrupted.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2")]
    watch: Option<f64>,
    #[command(flatten)]
    state_dir: StateArgs,
    /// Output format; json: one object a line.
    #[arg(long, value_enum, default_value = "text")]
    format: super::StatusFormat,
}

#[derive(Debug, clap::Subcommand)]
enum FlowsCommand {
    /// End flows: their next packets are those of unknown connections.
    #[command(after_help = "Examples:
  nomagic flows end --client 10.0.0.9
  nomagic flows end --service default/nginx --backend 172.16.0.5
  nomagic flows end --all

Nobody is told. The next packet of a connection without SNAT opens a flow again, perhaps to another endpoint, which resets it; one with SNAT is
reset by nomagic. A UDP client's next packet opens a new flow.
Exit codes: 0 done, 1 failure or no gateway answers, 2 invalid arguments.")]
    End(EndArgs),
}

#[derive(Debug, clap::Args)]
struct EndArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// A state, such as ESTABLISHED.
    #[arg(long)]
    state: Option<FlowState>,
    /// End all flows that fit, also if no filter is given.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    state_dir: StateArgs,
}

/// Ends flows and says how many.
fn end(args: &EndArgs) -> Result<u8> {
    let filter = args.filter.filter(args.state).and_then(|filter| match filter == FlowFilter::default() && !args.all {
        true => Err("no filter is given: --all ends all flows".into()),
        false => Ok(filter),
    });
    let filter = match filter {
        Ok(filter) => filter,
        Err(e) => {
            super::output::print_error(&e);
            return Ok(2);
        }
    };
    let state_dir = state_paths::state_dir(args.state_dir.state_dir.clone(), args.state_dir.config.as_deref())?;
    let (mut all, mut from) = (0, 0);
    loop {
        let request = Request::FlowsEnd { filter: filter.clone(), from, all: args.all };
        let Response::FlowsEnd { ended, next } = socket::ask(&state_dir, &request)? else {
            bail!("unexpected response from the gateway: not ended flows")
        };
        all += ended;
        match next {
            Some(next) => from = next,
            None => break,
        }
    }
    println!("{all} flows ended");
    Ok(0)
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum CountBy {
    Service,
    Backend,
    Client,
    State,
}

impl From<CountBy> for flows::CountBy {
    fn from(by: CountBy) -> flows::CountBy {
        match by {
            CountBy::Service => flows::CountBy::Service,
            CountBy::Backend => flows::CountBy::Backend,
            CountBy::Client => flows::CountBy::Client,
            CountBy::State => flows::CountBy::State,
        }
    }
}

/// Runs the command and prints its outcome. Returns the exit code.
pub(super) fn run(args: &FlowsArgs) -> Result<u8> {
    if let Some(FlowsCommand::End(args)) = &args.command {
        return end(args);
    }
    let filter = match args.filter.filter(args.state) {
        Ok(filter) => filter,
        Err(e) => {
            super::output::print_error(&e);
            return Ok(2);
        }
    };
    let every = args.watch.map(|seconds| if seconds.is_finite() { seconds.clamp(0.1, 3_600.0) } else { WATCH_S });
    let state_dir = state_paths::state_dir(args.state_dir.state_dir.clone(), args.state_dir.config.as_deref())?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    let shown = loop {
        let shown = show_once(args, &filter, &state_dir, &mut out, every.is_some());
        match (shown, every) {
            (Ok(()), Some(seconds)) => std::thread::sleep(Duration::from_secs_f64(seconds)),
            (shown, _) => break shown,
        }
    };
    until_closed(shown.map(|()| 0))
}

fn show_once(args: &FlowsArgs, filter: &FlowFilter, state_dir: &Path, out: &mut impl Write, again: bool) -> Result<()> {
    if again && io::stdout().is_terminal() {
        write!(out, "{CLEAR}")?;
    }
    show(args, filter, state_dir, out)?;
    Ok(out.flush()?)
}

fn show(args: &FlowsArgs, filter: &FlowFilter, state_dir: &Path, out: &mut impl Write) -> Result<()> {
    if args.count {
        return show_counts(args, filter, state_dir, out);
    }
    let is_json = args.format == super::StatusFormat::Json;
    let (mut from, mut left) = (0, args.limit.unwrap_or(u64::MAX));
    if !is_json {
        writeln!(out, "{}", line(["proto", "client", "destination", "service", "backend", "state", "idle", "ends in", "snat"]))?;
    }
    loop {
        let page = page(state_dir, filter, None, from)?;
        for flow in page.flows {
            if left == 0 {
                return Ok(());
            }
            left -= 1;
            match is_json {
                true => writeln!(out, "{}", serde_json::to_string(&flow)?)?,
                false => writeln!(out, "{}", printable(&text(&flow)))?,
            }
        }
        match page.next {
            Some(next) => from = next,
            None => return Ok(()),
        }
    }
}

fn show_counts(args: &FlowsArgs, filter: &FlowFilter, state_dir: &Path, out: &mut impl Write) -> Result<()> {
    let by = args.by.map(flows::CountBy::from);
    let (mut groups, mut other, mut all, mut from) = (BTreeMap::<String, u64>::new(), 0, 0, 0);
    loop {
        let page = page(state_dir, filter, Some(by.unwrap_or(flows::CountBy::State)), from)?;
        page.groups.into_iter().for_each(|(group, flows)| *groups.entry(group).or_default() += flows);
        (other, all) = (other + page.other, all + page.matched);
        match page.next {
            Some(next) => from = next,
            None => break,
        }
    }
    if by.is_none() {
        groups.clear();
        other = 0;
    }
    if args.format == super::StatusFormat::Json {
        let json = serde_json::json!({ "schema": flows::FLOW_SCHEMA, "flows": all, "groups": groups, "other": other });
        return Ok(writeln!(out, "{json}")?);
    }
    let mut sorted: Vec<(String, u64)> = groups.into_iter().collect();
    sorted.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    for (group, flows) in sorted {
        writeln!(out, "{flows:>10}  {}", printable(&group))?;
    }
    if other > 0 {
        writeln!(out, "{other:>10}  of other groups")?;
    }
    Ok(writeln!(out, "{all:>10}  in total")?)
}

fn page(state_dir: &Path, filter: &FlowFilter, count_by: Option<flows::CountBy>, from: u32) -> Result<FlowsPage> {
    match socket::ask(state_dir, &Request::Flows { filter: filter.clone(), count_by, from })? {
        Response::Flows(page) => Ok(page),
        _ => bail!("unexpected response from the gateway: not flows"),
    }
}

fn text(flow: &Flow) -> String {
    let seconds = |ms: u64| format!("{} s", ms / 1_000);
    let service = flow.service.as_deref().unwrap_or("-");
    line([
        &flow.proto,
        &flow.client,
        &flow.destination,
        service,
        &flow.backend,
        flow.state.name(),
        &seconds(flow.idle_ms),
        &seconds(flow.expires_in_ms),
        flow.snat.as_deref().unwrap_or(""),
    ])
}

/// Columns of fixed width: the lines are written as they come.
fn line(words: [&str; 9]) -> String {
    let [proto, client, destination, service, backend, state, idle, ends, snat] = words;
    let text = format!("{proto:<5} {client:<22} {destination:<22} {service:<28} {backend:<22} {state:<11} {idle:>6} {ends:>8}  {snat}");
    text.trim_end().to_owned()
}
