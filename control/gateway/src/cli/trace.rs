//! `nomagic trace`: what happens to flows and packets, while it happens.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use nomagic_api::events::{Event, EventFilter, EventType, EventsFrom, EventsPage};
use nomagic_api::flows::{FlowFilter, FlowState};
use nomagic_api::socket::{Request, Response};
use nomagic_api::taps::{TapRequest, TappedPacket};

use super::filter_args::{FilterArgs, until_closed};
use super::output::printable;
use super::tapping::{Tapping, until_end};
use super::{StateArgs, StatusFormat, state_paths};
use crate::events::EventSelection;
use crate::run::socket;

/// Pause between two looks of `--follow`.
const PAUSE: Duration = Duration::from_millis(100);
/// Events that are shown without `--follow` and `--last`.
const LAST: usize = 20;
/// Bytes of a packet in `--packets --format json`.
const SNAP_LEN: u32 = 128;

/// `nomagic trace`
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  The last 20 events:
    nomagic trace
  What happens to a Service's connections from now on:
    nomagic trace --follow --service default/nginx
  Why packets of a client are dropped or rejected:
    nomagic trace --follow --client 10.0.0.9 --type dropped --type rejected
  Why a packet goes where it goes, step by step:
    nomagic trace --packets --service default/nginx --count 5
  One JSON object for each event:
    nomagic trace --last 1000 --format json

Events are new, changed and ended flows, and packets that are rejected, dropped, held, left to the kernel, or ICMP errors about a flow. Each worker
keeps its last 4,096 events. Packets of established flows are none; --packets shows them as well, at most --rate a second.
Exit codes: 0 done, 1 failure or no gateway answers, 2 invalid arguments.")]
pub(super) struct TraceArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// Events of this type, repeatable: new, changed, ended, rejected, dropped, held, kernel or icmp_error.
    #[arg(long = "type", value_name = "TYPE", conflicts_with = "packets")]
    types: Vec<EventType>,
    /// Events with this reason, such as no_endpoints.
    #[arg(long, value_name = "REASON", conflicts_with = "packets")]
    reason: Option<String>,
    /// Events of flows in this state, such as ESTABLISHED.
    #[arg(long, conflicts_with = "packets")]
    state: Option<FlowState>,
    /// Show this many of the last events [default: 20, with --follow none].
    #[arg(long, value_name = "N", conflicts_with = "packets")]
    last: Option<usize>,
    /// Go on with new events until interrupted.
    #[arg(long, short, conflicts_with = "packets")]
    follow: bool,
    /// Show each packet with the decisions about it, from now on.
    #[arg(long)]
    packets: bool,
    /// Packets that are shown in a second at the most.
    #[arg(long, value_name = "N", default_value_t = 10, requires = "packets", value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rate: u32,
    /// End after this many events or packets.
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// End after this many seconds.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    duration: Option<u64>,
    #[command(flatten)]
    state_dir: StateArgs,
    /// Output format; json: one object a line.
    #[arg(long, value_enum, default_value = "text")]
    format: StatusFormat,
}

/// Runs the command. Returns the exit code.
pub(super) fn run(args: &TraceArgs) -> Result<u8> {
    let parsed = args.filter.filter(args.state).and_then(|flow| {
        let filter = EventFilter { flow, types: args.types.clone(), reason: args.reason.clone() };
        EventSelection::parse(&filter)?;
        Ok(filter)
    });
    let filter = match parsed {
        Ok(filter) => filter,
        Err(e) => {
            super::output::print_error(&e);
            return Ok(2);
        }
    };
    let state_dir = state_paths::state_dir(args.state_dir.state_dir.clone(), args.state_dir.config.as_deref())?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    let done = match args.packets {
        true => show_packets(args, filter.flow, &state_dir, &mut out),
        false => show_events(args, &filter, &state_dir, &mut out),
    };
    until_closed(done.map(|()| 0))
}

fn show_events(args: &TraceArgs, filter: &EventFilter, state_dir: &Path, out: &mut impl Write) -> Result<()> {
    let ends = args.duration.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let mut left = args.count.unwrap_or(u64::MAX);
    let mut next = match args.last.or((!args.follow).then_some(LAST)) {
        None => page(state_dir, filter, EventsFrom::Newest)?.next,
        Some(last) => {
            let (events, next) = kept(state_dir, filter, last)?;
            for event in events {
                show_event(args, &event, &mut left, out)?;
            }
            next
        }
    };
    out.flush()?;
    while args.follow && left > 0 && ends.is_none_or(|ends| Instant::now() < ends) {
        let page = page(state_dir, filter, EventsFrom::Cursor(next))?;
        for event in &page.events {
            show_event(args, event, &mut left, out)?;
        }
        if page.missed > 0 {
            out.flush()?;
            eprintln!("{} events were overwritten before they were read", page.missed);
        }
        out.flush()?;
        next = page.next;
        std::thread::sleep(if page.more { PAUSE / 10 } else { PAUSE });
    }
    Ok(())
}

/// The last of the events that are kept, and where to go on.
pub(crate) fn kept(state_dir: &Path, filter: &EventFilter, last: usize) -> Result<(VecDeque<Event>, Vec<u64>)> {
    let (mut events, mut from, mut pages): (Vec<Event>, _, usize) = (Vec::new(), EventsFrom::Oldest, 0);
    loop {
        let EventsPage { events: found, next, more, .. } = page(state_dir, filter, from)?;
        events.extend(found);
        // Pages are sorted one by one.
        events.sort_by(|a, b| a.time.cmp(&b.time));
        events.drain(..events.len().saturating_sub(last));
        pages += 1;
        // So many pages hold all events that were kept at the beginning: new ones may come faster than they are read.
        if !more || pages > next.len() {
            return Ok((events.into(), next));
        }
        from = EventsFrom::Cursor(next);
    }
}

fn page(state_dir: &Path, filter: &EventFilter, from: EventsFrom) -> Result<EventsPage> {
    match socket::ask(state_dir, &Request::Events { filter: filter.clone(), from })? {
        Response::Events(page) => Ok(page),
        _ => bail!("unexpected response from the gateway: not events"),
    }
}

fn show_event(args: &TraceArgs, event: &Event, left: &mut u64, out: &mut impl Write) -> Result<()> {
    if *left == 0 {
        return Ok(());
    }
    *left -= 1;
    match args.format {
        StatusFormat::Json => writeln!(out, "{}", serde_json::to_string(event)?)?,
        StatusFormat::Text => writeln!(out, "{}", printable(&text(event)))?,
    }
    Ok(())
}

fn text(event: &Event) -> String {
    let worker = event.worker.map_or("-".into(), |worker| worker.to_string());
    let ends = match (&event.proto, &event.source, &event.destination) {
        (Some(proto), Some(source), Some(destination)) => format!("{proto} {source} -> {destination}"),
        _ => format!("{} bytes", event.bytes),
    };
    let service = event.service.as_deref().map_or(String::new(), |service| format!("  {service}"));
    format!("{}  {worker:>2}  {:<10}  {ends}{service}  {}", event.time, event.kind, event.text)
}

fn show_packets(args: &TraceArgs, filter: FlowFilter, state_dir: &Path, out: &mut impl Write) -> Result<()> {
    let lasts_s = args.duration.unwrap_or(nomagic_api::taps::LASTS_MAX_S);
    let tapping = Tapping::open(state_dir, TapRequest { filter, snap_len: SNAP_LEN, packets_per_s: args.rate, lasts_s })?;
    let counts = until_end(&tapping, args.count, |packets| {
        for packet in packets {
            match args.format {
                StatusFormat::Json => writeln!(out, "{}", serde_json::to_string(packet)?)?,
                StatusFormat::Text => write_steps(packet, out)?,
            }
        }
        Ok(out.flush()?)
    })?;
    counts.tell("shown");
    Ok(())
}

fn write_steps(packet: &TappedPacket, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "{}  {}", packet.time, packet.verdict)?;
    for (at, step) in packet.steps.iter().enumerate() {
        writeln!(out, "  {}. {}", at + 1, printable(step))?;
    }
    writeln!(out)
}
