//! The deny list of a gateway: the union of the configuration, a file and commands. Pure, but for reading the file.
//!
//! Where there are more prefixes than [`DENY_PREFIXES_MAX`], the configuration has priority, then commands, then the file's lines in their order:
//! in a flood, what an operator types must count.

mod file;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use nomagic_api::deny::{Deny, DenyEntry, DenySource};
use nomagic_core::deny::{DENY_PREFIXES_MAX, DenyList};
use nomagic_core::tuple::Prefix;
use nomagic_table::objects::addr::{parse_cidr, parse_ip};
use nomagic_xsk::{Denied, NO_END_NS};

use crate::config::DenyConfig;
use file::DenyFile;

/// Limits of the time of a command, seconds.
pub const FOR_S_MIN: u64 = 1;
pub const FOR_S_MAX: u64 = 30 * 24 * 3_600;
/// What a denied prefix looks like.
pub const PREFIX: &str = "a CIDR or an address, such as 192.0.2.0/24 or 2001:db8::7";

/// Parses a prefix like the configuration's CIDRs: host bits are cleared, a bare address is a prefix of its own.
pub fn parse_prefix(text: &str) -> Option<Prefix> {
    parse_cidr(text).or_else(|| parse_ip(text).map(Prefix::host))
}

/// Why a prefix is denied.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct Origin {
    configuration: bool,
    file: bool,
    /// The end of the command, CLOCK_MONOTONIC in ns, or [`NO_END_NS`].
    command_until_ns: Option<u64>,
}

impl Origin {
    fn sources(&self) -> Vec<DenySource> {
        let all = [
            (self.configuration, DenySource::Configuration),
            (self.file, DenySource::File),
            (self.command_until_ns.is_some(), DenySource::Command),
        ];
        all.into_iter().filter(|(is, _)| *is).map(|(_, source)| source).collect()
    }
}

/// The sources of the deny list, and their union.
#[derive(Debug, Default)]
pub struct DenySources {
    configured: Vec<Prefix>,
    file: Option<DenyFile>,
    /// By prefix, the end.
    commands: BTreeMap<Prefix, u64>,
    union: HashMap<Prefix, Origin>,
    /// Commands of an earlier process for which the configuration has left no room.
    commands_left_out: usize,
    /// The lines of the file for which there is no room.
    left_out: Vec<usize>,
}

impl DenySources {
    /// Reads the file, if one is configured. `earlier` is what the gateway's previous process has denied: commands continue, and prefixes of
    /// unknown origin stand in for a file that cannot be read.
    pub fn open(config: &DenyConfig, earlier: &Denied) -> DenySources {
        let configured: BTreeSet<Prefix> = config.prefixes.iter().copied().collect();
        let unexplained = || earlier.iter().filter(|(p, until_ns)| until_ns.is_none() && !configured.contains(*p)).map(|(p, _)| *p);
        let file = config.file.as_ref().map(|path| DenyFile::open(path, unexplained()));
        let commands = earlier.iter().filter_map(|(prefix, until_ns)| Some((*prefix, (*until_ns)?))).collect();
        let mut sources = DenySources { configured: configured.into_iter().collect(), file, commands, ..DenySources::default() };
        sources.rebuild_union();
        sources
    }

    /// Reads the file again if it has changed, or `always`. Returns whether the list may have changed.
    pub fn reload(&mut self, always: bool) -> bool {
        let changed = self.file.as_mut().is_some_and(|file| file.reload(always));
        if changed {
            self.rebuild_union();
        }
        changed
    }

    /// Denies a prefix by command until a time, or until [`NO_END_NS`]. Only the last command about a prefix counts.
    ///
    /// # Errors
    /// If there is no room for it, even without the file.
    pub fn add(&mut self, prefix: Prefix, until_ns: u64) -> Result<(), String> {
        let others = |known: &Prefix| *known == prefix || self.commands.contains_key(known);
        let more = self.configured.iter().filter(|known| !others(known)).count();
        if !self.commands.contains_key(&prefix) && self.commands.len() + more >= DENY_PREFIXES_MAX {
            return Err(format!(
                "the deny list is full: it has room for {DENY_PREFIXES_MAX} prefixes. Remove some with `nomagic deny remove`, or replace several \
                 prefixes by a shorter one that contains them"
            ));
        }
        self.commands.insert(prefix, until_ns);
        self.rebuild_union();
        Ok(())
    }

    /// Takes a command back.
    ///
    /// # Errors
    /// If there is none about this prefix. The message says how to remove the prefix.
    pub fn remove(&mut self, prefix: &Prefix) -> Result<(), String> {
        if self.commands.remove(prefix).is_some() {
            self.rebuild_union();
            return Ok(());
        }
        let origin = self.union.get(prefix).copied().unwrap_or_default();
        let file = self.file.as_ref().map_or(String::new(), |file| file.path().display().to_string());
        Err(match (origin.configuration, origin.file) {
            (true, _) => {
                format!("{prefix} was not denied by command, but by the configuration: remove it from deny.prefixes and restart nomagic")
            }
            (false, true) if self.file.as_ref().is_some_and(DenyFile::is_missing) => format!(
                "{prefix} is kept from an earlier run, because deny.file {file} cannot be read: create the file without this prefix (it may be empty)"
            ),
            (false, true) => format!("{prefix} was not denied by command, but by the file {file}: remove its line there"),
            (false, false) => format!("{prefix} is not in the deny list; `nomagic deny list` shows what is"),
        })
    }

    /// Ends the commands whose time is over, and returns their prefixes.
    pub fn expire(&mut self, now_ns: u64) -> Vec<Prefix> {
        let over: Vec<Prefix> = self.commands.iter().filter(|(_, until_ns)| **until_ns <= now_ns).map(|(prefix, _)| *prefix).collect();
        if !over.is_empty() {
            self.commands.retain(|_, until_ns| *until_ns > now_ns);
            self.rebuild_union();
        }
        over
    }

    fn rebuild_union(&mut self) {
        let mut union: HashMap<Prefix, Origin> = HashMap::new();
        let mut mark = |prefix: &Prefix, mark: &dyn Fn(&mut Origin)| {
            let fits = union.len() < DENY_PREFIXES_MAX || union.contains_key(prefix);
            if fits {
                mark(union.entry(*prefix).or_default());
            }
            fits
        };
        // At most a list of the configuration file: they always fit.
        for prefix in &self.configured {
            mark(prefix, &|origin| origin.configuration = true);
        }
        let fit =
            self.commands.iter().filter(|(prefix, until_ns)| mark(prefix, &|origin| origin.command_until_ns = Some(**until_ns))).count();
        self.commands_left_out = self.commands.len() - fit;
        let lines = self.file.iter().flat_map(DenyFile::lines);
        self.left_out = lines.filter(|(_, prefix)| !mark(prefix, &|origin| origin.file = true)).map(|(line, _)| *line).collect();
        self.union = union;
    }

    /// What the XDP filter must deny.
    pub fn denied(&self) -> Denied {
        self.union.iter().map(|(prefix, origin)| (*prefix, origin.command_until_ns)).collect()
    }

    /// The same, for `explain` from files.
    pub fn list(&self) -> DenyList {
        self.union.keys().copied().collect()
    }

    /// Why a prefix is denied; empty: it is not.
    pub fn sources_of(&self, prefix: &Prefix) -> Vec<DenySource> {
        self.union.get(prefix).map_or(Vec::new(), Origin::sources)
    }

    /// The whole list, sorted. `packets` gives what a prefix has dropped.
    pub fn entries(&self, now_ns: u64, mut packets: impl FnMut(&Prefix) -> u64) -> Vec<DenyEntry> {
        let mut sorted: Vec<(&Prefix, &Origin)> = self.union.iter().collect();
        sorted.sort_unstable_by_key(|(prefix, _)| **prefix);
        let entry = |(prefix, origin): (&Prefix, &Origin)| DenyEntry {
            prefix: prefix.to_string(),
            sources: origin.sources(),
            expires_in_s: origin.command_until_ns.filter(|until_ns| *until_ns != NO_END_NS).map(|until_ns| seconds_until(until_ns, now_ns)),
            packets: packets(prefix),
        };
        sorted.into_iter().map(entry).collect()
    }

    /// The list's size.
    pub fn size(&self) -> Deny {
        let of = |is: fn(&Origin) -> bool| self.union.values().filter(|origin| is(origin)).count();
        Deny {
            prefixes: self.union.len(),
            prefixes_max: DENY_PREFIXES_MAX,
            of_configuration: of(|origin| origin.configuration),
            of_file: of(|origin| origin.file),
            of_command: of(|origin| origin.command_until_ns.is_some()),
        }
    }

    /// What keeps prefixes from being denied.
    pub fn problems(&self) -> Vec<String> {
        let mut problems: Vec<String> = self.file.iter().flat_map(|file| file.problems().iter().cloned()).collect();
        if let (Some(file), [first, .., last] | [first @ last]) = (&self.file, &self.left_out[..]) {
            problems.push(format!(
                "deny.file: {}: {} prefixes do not fit, in lines {first} to {last}: the deny list has room for {DENY_PREFIXES_MAX} in all. \
                 Join neighbouring prefixes to shorter ones",
                file.path().display(),
                self.left_out.len()
            ));
        }
        if self.commands_left_out > 0 {
            problems.push(format!(
                "deny list: {} prefixes denied by command do not fit: there is room for {DENY_PREFIXES_MAX} in all, and the configuration \
                 has priority",
                self.commands_left_out
            ));
        }
        problems
    }
}

/// Rounded up: a command that has not ended yet does not end in 0 s.
fn seconds_until(until_ns: u64, now_ns: u64) -> u64 {
    until_ns.saturating_sub(now_ns).div_ceil(1_000_000_000)
}

#[cfg(test)]
mod tests;
