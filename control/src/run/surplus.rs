//! Rules of the XDP filter that nothing needs any more. Whether a connection still does is found out on a thread of its own: the connection
//! table may hold millions.

use std::collections::HashSet;
use std::net::IpAddr;
use std::thread::JoinHandle;

use nomagic_core::conntrack::Conntrack;
use nomagic_core::tuple::{Proto, words_addr};
use nomagic_xsk::FilterRules;

use super::tables::Tables;

/// The search for such rules.
#[derive(Debug, Default)]
pub struct Surplus {
    search: Option<Search>,
}

#[derive(Debug)]
struct Search {
    thread: JoinHandle<FilterRules>,
    /// [`Tables::openings`] when it began: rules that were needed again meanwhile may have connections again.
    openings: u64,
}

impl Surplus {
    /// Begins to search where there may be something. `known`: what the filter has.
    pub fn look(&mut self, tables: &mut Tables, known: &FilterRules, table: Conntrack<'static>) {
        if self.search.is_some() {
            return;
        }
        let surplus = tables.surplus(known);
        if surplus.is_empty() {
            return;
        }
        let openings = tables.openings();
        match std::thread::Builder::new().name("nm-surplus".into()).spawn(move || unused(surplus, table)) {
            Ok(thread) => self.search = Some(Search { thread, openings }),
            Err(e) => tracing::warn!("rules of the XDP filter that are not needed stay for now: no thread: {e}"),
        }
    }

    /// What a finished search has found, and may go.
    pub fn found(&mut self, tables: &Tables) -> FilterRules {
        match self.search.take_if(|search| search.thread.is_finished()) {
            Some(search) if search.openings == tables.openings() => search.thread.join().unwrap_or_default(),
            _ => FilterRules::default(),
        }
    }
}

impl Drop for Surplus {
    /// Afterwards nobody reads the connection table.
    fn drop(&mut self) {
        if self.search.take().is_some_and(|search| search.thread.join().is_err()) {
            tracing::error!("the search for rules that are not needed had panicked");
        }
    }
}

/// Of these rules, those without a connection: one that lost its rule would go on past this dataplane.
pub fn unused(mut rules: FilterRules, table: Conntrack<'_>) -> FilterRules {
    let mut used: HashSet<(IpAddr, u16, Proto)> = HashSet::new();
    let mut sources: HashSet<(IpAddr, u16)> = HashSet::new();
    table.for_each(|_, flow| {
        used.insert((words_addr(flow.service, flow.v6), flow.service_port, flow.proto));
        if flow.source != flow.client {
            sources.insert((words_addr(flow.source, flow.v6), flow.source_port));
        }
    });
    let addresses: HashSet<IpAddr> = used.iter().map(|(addr, ..)| *addr).collect();
    rules.services.retain(|service| !used.contains(service));
    rules.addresses.retain(|addr| !addresses.contains(addr));
    rules.service_cidrs.retain(|prefix| !addresses.iter().any(|a| prefix.contains(*a)));
    rules.snat.retain(|(addr, first, last)| !sources.iter().any(|(a, port)| a == addr && (first..=last).contains(&port)));
    rules
}
