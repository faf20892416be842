//! `nomagic capture`: packets before and after the rewrite, for Wireshark.

mod pcapng;

use std::fs::OpenOptions;
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use nomagic_api::taps::{LASTS_MAX_S, TapRequest};

use super::filter_args::{FilterArgs, until_closed};
use super::tapping::{Tapping, until_end};
use super::{StateArgs, state_paths};
use pcapng::Writer;

/// `nomagic capture`
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  A Service's packets, live in Wireshark:
    nomagic capture --service default/nginx | wireshark -k -i -
  From a pod:
    kubectl exec -n nomagic ds/nomagic -- nomagic capture --service default/nginx | wireshark -k -i -
  100 packets of a client into a file:
    nomagic capture --client 10.0.0.9 --count 100 --write client.pcapng

Each packet is written as it came in (interface `received`) and as it went on (interface `sent`), with a comment: verdict, reason, Service, backend,
SNAT, worker and ports. `sent` also has the answers to refused packets. Captured packets leave the fast path; others pay for the filter.
Exit codes: 0 done, 1 failure or no gateway answers, 2 invalid arguments.")]
pub(super) struct CaptureArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// Write to this file [default: standard output].
    #[arg(long, short, value_name = "FILE")]
    write: Option<PathBuf>,
    /// Bytes of each packet that are kept.
    #[arg(long, value_name = "BYTES", default_value_t = 2_048, value_parser = clap::value_parser!(u32).range(1..=65_535))]
    snap_len: u32,
    /// Packets that are captured in a second at the most.
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: u32,
    /// End after this many packets.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// End after this many seconds.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    duration: Option<u64>,
    #[command(flatten)]
    state_dir: StateArgs,
}

/// Runs the command. Returns the exit code.
pub(super) fn run(args: &CaptureArgs) -> Result<u8> {
    let filter = match args.filter.filter(None) {
        Ok(filter) => filter,
        Err(e) => {
            super::output::print_error(&e);
            return Ok(2);
        }
    };
    let out: Box<dyn Write> = match &args.write {
        Some(path) => {
            // Packets are root's, as the tap is.
            let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
            Box::new(file.with_context(|| format!("cannot write {}", path.display()))?)
        }
        None if io::stdout().is_terminal() => {
            bail!("standard output is a terminal: name a file with --write, or pipe into `wireshark -k -i -`")
        }
        None => Box::new(io::stdout().lock()),
    };
    let state_dir = state_paths::state_dir(args.state_dir.state_dir.clone(), args.state_dir.config.as_deref())?;
    let lasts_s = args.duration.unwrap_or(LASTS_MAX_S);
    let tapping = Tapping::open(&state_dir, TapRequest { filter, snap_len: args.snap_len, packets_per_s: args.rate, lasts_s })?;
    until_closed(capture(args, &tapping, out).map(|()| 0))
}

fn capture(args: &CaptureArgs, tapping: &Tapping, out: Box<dyn Write>) -> Result<()> {
    let mut writer = Writer::new(io::BufWriter::new(out), args.snap_len)?;
    writer.flush()?;
    let counts = until_end(tapping, args.count, |packets| {
        packets.iter().try_for_each(|packet| writer.write(packet))?;
        // Whoever reads along sees each page at once, and an interrupted capture is whole.
        writer.flush()
    })?;
    counts.tell("captured");
    Ok(())
}
