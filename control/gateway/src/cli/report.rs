//! `nomagic report`: a file for a bug report.

use std::fs::OpenOptions;
use std::io::{self, BufWriter};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use super::{output, state_paths};
use crate::config::Config;
use crate::report::{self, Subject};

/// `nomagic report`
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nomagic report
  nomagic report --replace-addresses --out /tmp/report.tar
  nomagic report --config /etc/nomagic/nomagic.yaml

The file is a tar archive of at most 32 MiB: version, status, problems, Services, numbers of flows, the configuration (without the hash seed,
tokens and keys), kernel and sysctls, interfaces, routes, rules, neighbours, addresses, pinned BPF objects, the newest log lines.
manifest.txt in it says what each part is, what was cut, and what could not be had. No gateway needs to run. Read it before you pass it on:
names of Services and nodes are in it, and addresses unless they are replaced. A stand-in for an address is the same in the whole report, and
cannot be computed from the address.

Exit codes: 0 written, 1 failure, 2 invalid arguments. For a gateway in another network namespace, run it with `ip netns exec`.")]
pub(super) struct ReportArgs {
    /// The file to write; it must not exist [default: nomagic-report-DATE.tar]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Replace IP and MAC addresses by stand-ins: IPv4 in 198.18.0.0/15, IPv6 in 2001:db8::/32.
    #[arg(long)]
    replace_addresses: bool,
    #[command(flatten)]
    state_dir: ReportStateArgs,
}

/// Selects a gateway, which need not run.
#[derive(Debug, clap::Args)]
struct ReportStateArgs {
    /// The gateway's state directory [default: the configuration's, or /run/nomagic].
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// The gateway's configuration file [default: that of the running gateway].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Collects and writes the report.
pub(super) fn run(args: &ReportArgs) -> Result<()> {
    let ReportStateArgs { state_dir, config } = &args.state_dir;
    // A configuration that cannot be read is a part of the report.
    let configured = || config.as_deref().and_then(|path| Config::load(path).ok()).map(|config| config.state_dir);
    let state_dir = state_dir.clone().or_else(configured).map_or_else(|| state_paths::state_dir(None, None), Ok)?;
    let path = args.out.clone().unwrap_or_else(|| format!("nomagic-report-{}.tar", stamp()).into());
    // Before the work: nobody wants to wait for a file that exists. Others may not read it.
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
    let file = match file {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => bail!("{} exists: name another file with --out", path.display()),
        file => file.with_context(|| format!("cannot create {}", path.display()))?,
    };
    let written =
        report::collect(&Subject { state_dir, config: config.clone(), replace_addresses: args.replace_addresses }).and_then(|bundle| {
            bundle.write(BufWriter::new(&file)).with_context(|| format!("cannot write {}", path.display()))?;
            file.sync_all()?;
            Ok(bundle)
        });
    let bundle = written.inspect_err(|_| drop(std::fs::remove_file(&path)))?;
    let mut text = format!("wrote {}", path.display());
    for (name, why) in bundle.incomplete() {
        text += &format!("\n{name}: {}", why.escape_debug());
    }
    if !args.replace_addresses {
        text += "\nIt has the real addresses; --replace-addresses replaces them.";
    }
    output::print(&text).map_err(Into::into)
}

/// The time as `20261201-133745`, UTC.
fn stamp() -> String {
    let now = jiff::Timestamp::now();
    now.to_string().chars().filter(char::is_ascii_digit).take(14).enumerate().fold(String::new(), |mut text, (i, digit)| {
        if i == 8 {
            text.push('-');
        }
        text.push(digit);
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stamp_is_date_and_time() {
        let stamp = stamp();
        assert!(stamp.len() == 15 && stamp.as_bytes()[8] == b'-' && stamp.starts_with("20"), "{stamp}");
    }
}
