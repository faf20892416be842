//! `nomagic deny`: the deny list of the running gateway.

use std::path::Path;

use anyhow::{Result, bail};
use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};
use nomagic_api::deny::{DenyChange, DenyEntry, DenyReport};
use nomagic_api::socket::{Request, Response};
use nomagic_core::tuple::Prefix;

use super::{StateArgs, StatusFormat, output, state_paths};
use crate::config::timeouts::{duration_ms, is_idle_time};
use crate::deny::{PREFIX, parse_prefix};
use crate::run::socket;

/// `nomagic deny`
#[derive(Debug, clap::Subcommand)]
#[command(after_help = "Examples:
  nomagic deny add 192.0.2.0/24 --for 10m
  nomagic deny list
  nomagic deny remove 192.0.2.0/24

Exit codes: 0 done, 1 failure or no gateway answers, 2 invalid arguments.")]
pub(super) enum DenyCommand {
    /// Drop packets to Services from these sources, also those of open connections. Survives a restart of the process, not a reboot.
    Add {
        /// A CIDR or an address.
        #[arg(value_name = "PREFIX", value_parser = prefix)]
        prefix: Prefix,
        /// For how long: 1s to 720h, such as 10m [default: until it is removed].
        #[arg(long = "for", value_name = "TIME", value_parser = seconds)]
        for_s: Option<u64>,
        #[command(flatten)]
        state: StateArgs,
    },
    /// Remove a prefix that `add` denied. To remove a prefix of the configuration or of deny.file, edit that file.
    Remove {
        /// A CIDR or an address, as `list` shows it.
        #[arg(value_name = "PREFIX", value_parser = prefix)]
        prefix: Prefix,
        #[command(flatten)]
        state: StateArgs,
    },
    /// Show the whole list: prefix, sources, end, dropped packets.
    List {
        #[command(flatten)]
        state: StateArgs,
        /// Output format.
        #[arg(long, value_enum, default_value = "text")]
        format: StatusFormat,
    },
}

fn prefix(text: &str) -> Result<Prefix, String> {
    parse_prefix(text).ok_or_else(|| format!("not {PREFIX}"))
}

fn seconds(text: &str) -> Result<u64, String> {
    let ms = duration_ms(text).filter(|ms| is_idle_time(*ms));
    ms.map(|ms| ms / 1_000).ok_or_else(|| "not a duration from 1s to 720h, such as 90s, 10m or 1h30m".into())
}

/// Runs the command and prints its outcome.
pub(super) fn run(command: DenyCommand) -> Result<()> {
    match command {
        DenyCommand::Add { prefix, for_s, state } => {
            let change = change(&dir(state)?, &Request::DenyAdd { prefix: prefix.to_string(), for_s })?;
            output::print(&format!("{} is denied{}", change.prefix, for_s.map_or(String::new(), |s| format!(" for {s} s"))))?;
        }
        DenyCommand::Remove { prefix, state } => {
            let change = change(&dir(state)?, &Request::DenyRemove { prefix: prefix.to_string() })?;
            output::print(&removed(&change))?;
        }
        DenyCommand::List { state, format } => {
            let Response::DenyReport(report) = socket::ask(&dir(state)?, &Request::DenyList {})? else {
                bail!("unexpected response from the gateway: not a deny list")
            };
            output::print(&if format == StatusFormat::Json { serde_json::to_string(&report)? } else { page(&report) })?;
        }
    }
    Ok(())
}

fn dir(state: StateArgs) -> Result<std::path::PathBuf> {
    state_paths::state_dir(state.state_dir, state.config.as_deref())
}

fn change(state_dir: &Path, request: &Request) -> Result<DenyChange> {
    match socket::ask(state_dir, request)? {
        Response::DenyChange(change) => Ok(change),
        _ => bail!("unexpected response from the gateway: not a change of the deny list"),
    }
}

fn removed(change: &DenyChange) -> String {
    match &change.sources[..] {
        [] => format!("{} is no longer denied", change.prefix),
        sources => format!("{} is no longer denied by command, but still by: {}", change.prefix, joined(sources)),
    }
}

fn joined(sources: &[nomagic_api::deny::DenySource]) -> String {
    sources.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn page(report: &DenyReport) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(["prefix", "denied by", "for another", "packets dropped"]);
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if index >= 2 {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    for DenyEntry { prefix, sources, expires_in_s, packets } in &report.entries {
        let end = expires_in_s.map_or(String::new(), |s| format!("{s} s"));
        table.add_row([prefix.clone(), joined(sources), end, packets.to_string()]);
    }
    let list = match report.entries.len() {
        0 => "nothing is denied".to_owned(),
        n => format!("{}\n{n} of at most {} prefixes", table.trim_fmt(), report.entries_max),
    };
    report.problems.iter().fold(list, |page, problem| page + "\nproblem: " + problem)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nomagic_api::deny::DenySource;

    #[test]
    fn arguments_are_checked() {
        assert_eq!(prefix("10.1.2.3/8").unwrap().to_string(), "10.0.0.0/8");
        assert!(prefix("10.0.0.0/33").unwrap_err().starts_with("not a CIDR or an address, such as "));
        assert_eq!((seconds("10m"), seconds("1h30m"), seconds("1.5s")), (Ok(600), Ok(5_400), Ok(1)));
        for bad in ["", "10", "0s", "-1s", "500ms", "721h", "forever"] {
            assert!(seconds(bad).unwrap_err().contains("from 1s to 720h"), "{bad}");
        }
    }

    #[test]
    fn the_list_as_text() {
        let entry = |prefix: &str, sources: &[DenySource], expires_in_s, packets| DenyEntry {
            prefix: prefix.into(),
            sources: sources.into(),
            expires_in_s,
            packets,
        };
        let entries = vec![
            entry("192.0.2.0/24", &[DenySource::Configuration, DenySource::Command], Some(599), 12),
            entry("2001:db8::/32", &[DenySource::File], None, 0),
        ];
        let mut report = DenyReport { entries, entries_max: 65_536, problems: vec!["deny.file: x: line 3".into()] };
        let expected = [
            "prefix         denied by               for another  packets dropped",
            "192.0.2.0/24   configuration, command        599 s               12",
            "2001:db8::/32  file                                               0",
            "2 of at most 65536 prefixes",
            "problem: deny.file: x: line 3",
        ];
        assert_eq!(page(&report).lines().map(str::trim_end).collect::<Vec<_>>(), expected);
        report.entries.clear();
        assert_eq!(page(&report), "nothing is denied\nproblem: deny.file: x: line 3");
        let change = |sources: &[DenySource]| removed(&DenyChange { prefix: "::/0".into(), sources: sources.into() });
        assert_eq!(change(&[]), "::/0 is no longer denied");
        assert_eq!(change(&[DenySource::File]), "::/0 is no longer denied by command, but still by: file");
    }
}
