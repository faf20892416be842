//! Keeps the XDP filter's deny list equal to its sources, and answers `nomagic deny`.

use nomagic_api::deny::{Deny, DenyChange, DenyReport};
use nomagic_core::deny::{DENY_PREFIXES_MAX, DenyList};
use nomagic_core::tuple::Prefix;
use nomagic_sys::time::monotonic_ns;
use nomagic_xsk::{Edge, NO_END_NS};

use crate::config::DenyConfig;
use crate::deny::{DenySources, FOR_S_MAX, FOR_S_MIN, PREFIX, parse_prefix};

const SECOND_NS: u64 = 1_000_000_000;

/// The deny list of a running gateway.
pub struct DenyControl {
    sources: DenySources,
    /// What the filter denies, for `explain`.
    in_force: DenyList,
    /// Why the filter does not have the latest list; it is tried again.
    fault: Option<String>,
    logged: Vec<String>,
}

impl DenyControl {
    /// Puts the configured list in force. Commands of an earlier process continue.
    pub fn start(config: &DenyConfig, edge: &mut Edge) -> DenyControl {
        let sources = DenySources::open(config, edge.denied());
        let mut control = DenyControl { sources, in_force: DenyList::default(), fault: None, logged: Vec::new() };
        control.put_in_force(edge);
        control
    }

    /// Re-reads the file if it has changed, or `always`; ends commands whose time is over; tries again what has failed.
    pub fn tend(&mut self, edge: &mut Edge, always: bool) {
        let over = self.sources.expire(monotonic_ns());
        over.iter().for_each(|prefix| tracing::info!("deny list: the time of the command for {prefix} has ended"));
        if self.sources.reload(always) || !over.is_empty() || self.fault.is_some() {
            self.put_in_force(edge);
        }
    }

    fn put_in_force(&mut self, edge: &mut Edge) {
        self.fault = edge.deny(&self.sources.denied()).err().map(|e| format!("deny list: cannot update the XDP filter: {e}"));
        self.in_force = edge.denied().keys().copied().collect();
        let problems = self.problems();
        problems.iter().filter(|problem| !self.logged.contains(problem)).for_each(|problem| tracing::error!("{problem}"));
        self.logged = problems;
        tracing::debug!(prefixes = self.in_force.len(), "deny list in force");
    }

    /// What keeps prefixes from being denied.
    pub fn problems(&self) -> Vec<String> {
        self.sources.problems().into_iter().chain(self.fault.clone()).collect()
    }

    /// What the filter denies.
    pub fn in_force(&self) -> &DenyList {
        &self.in_force
    }

    pub fn size(&self) -> Deny {
        self.sources.size()
    }

    /// Denies a prefix for a time, or until it is removed.
    pub fn add(&mut self, edge: &mut Edge, text: &str, for_s: Option<u64>) -> Result<DenyChange, String> {
        let prefix = parse(text)?;
        let until_ns = match for_s {
            None => NO_END_NS,
            Some(s @ FOR_S_MIN..=FOR_S_MAX) => monotonic_ns() + s * SECOND_NS,
            Some(s) => return Err(format!("{s} s: a prefix is denied for {FOR_S_MIN} s to {FOR_S_MAX} s, or without an end")),
        };
        self.sources.add(prefix, until_ns)?;
        let time = for_s.map_or(String::new(), |s| format!(" for {s} s"));
        tracing::info!("deny list: {prefix} is denied by command{time}");
        self.changed(edge, prefix)
    }

    /// Takes a command back.
    pub fn remove(&mut self, edge: &mut Edge, text: &str) -> Result<DenyChange, String> {
        let prefix = parse(text)?;
        self.sources.remove(&prefix)?;
        tracing::info!("deny list: {prefix} is no longer denied by command");
        self.changed(edge, prefix)
    }

    fn changed(&mut self, edge: &mut Edge, prefix: Prefix) -> Result<DenyChange, String> {
        self.put_in_force(edge);
        match &self.fault {
            Some(fault) => {
                Err(format!("{fault}. The change is kept, and nomagic tries again twice a second: check with `nomagic deny list`"))
            }
            None => Ok(DenyChange { prefix: prefix.to_string(), sources: self.sources.sources_of(&prefix) }),
        }
    }

    /// The list with what each prefix has dropped.
    pub fn report(&self, edge: &Edge) -> Result<DenyReport, String> {
        let mut fault = None;
        let packets = |prefix: &Prefix| {
            edge.packets_denied(prefix).unwrap_or_else(|e| {
                fault = Some(e.to_string());
                0
            })
        };
        let entries = self.sources.entries(monotonic_ns(), packets);
        match fault {
            Some(fault) => Err(fault),
            None => Ok(DenyReport { entries, entries_max: DENY_PREFIXES_MAX, problems: self.problems() }),
        }
    }
}

fn parse(text: &str) -> Result<Prefix, String> {
    parse_prefix(text).ok_or_else(|| format!("{text:?} is not {PREFIX}"))
}
