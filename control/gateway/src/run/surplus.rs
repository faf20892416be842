//! Rules of the XDP filter that nothing needs any more. Whether a connection still does is found out on a thread of its own: the connection
//! table may hold millions.

use std::thread::JoinHandle;

use nomagic_core::capture::FilterRules;
use nomagic_core::conntrack::Conntrack;
use nomagic_core::unused::Unused;

use super::tables::Tables;

/// The search for such rules.
#[derive(Debug, Default)]
pub struct Surplus {
    search: Option<Search>,
}

#[derive(Debug)]
struct Search {
    thread: JoinHandle<Unused>,
    /// Rules that were needed again while it ran: they may have connections that it has not seen.
    reopened: FilterRules,
}

impl Surplus {
    /// Begins to search where there may be something. `known`: what the filter has.
    pub fn look(&mut self, tables: &mut Tables, known: &FilterRules, table: Conntrack<'static>) {
        if self.search.is_some() {
            return;
        }
        let surplus = tables.surplus(known);
        if !surplus.is_empty() {
            self.begin(surplus, table);
        }
    }

    fn begin(&mut self, surplus: FilterRules, table: Conntrack<'static>) {
        match std::thread::Builder::new().name("nm-surplus".into()).spawn(move || Unused::of(surplus, table)) {
            Ok(thread) => self.search = Some(Search { thread, reopened: FilterRules::default() }),
            Err(e) => tracing::warn!("rules of the XDP filter that are not needed stay for now: no thread: {e}"),
        }
    }

    /// These rules are put in force: a search that began before leaves them alone.
    pub fn opened(&mut self, rules: &FilterRules) {
        if let Some(search) = &mut self.search {
            search.reopened.extend(rules.clone());
        }
    }

    /// What a finished search has found, and may go.
    pub fn found(&mut self) -> Unused {
        let Some(search) = self.search.take_if(|search| search.thread.is_finished()) else { return Unused::default() };
        let unused = search.thread.join().unwrap_or_else(|_| {
            tracing::error!("{PANICKED}; nothing is removed, and the search begins anew");
            Unused::default()
        });
        unused.without(&search.reopened)
    }
}

const PANICKED: &str =
    "the thread nm-surplus, which looks for rules of the XDP filter that are not needed, has panicked: see its message above";

impl Drop for Surplus {
    /// Afterwards nobody reads the connection table.
    fn drop(&mut self) {
        if self.search.take().is_some_and(|search| search.thread.join().is_err()) {
            tracing::error!("{PANICKED}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nomagic_core::tuple::Proto;
    use std::net::IpAddr;
    use std::sync::atomic::AtomicU64;
    use std::time::{Duration, Instant};

    fn finish(surplus: &mut Surplus) -> FilterRules {
        let end = Instant::now() + Duration::from_secs(10);
        while surplus.search.as_ref().is_some_and(|search| !search.thread.is_finished()) {
            assert!(Instant::now() < end, "a search of an empty table");
            std::thread::sleep(Duration::from_millis(1));
        }
        surplus.found().rules().clone()
    }

    /// Whenever a rule is opened while there is a search, the search does not close it, but the others.
    #[test]
    fn what_is_opened_during_a_search_stays() {
        let words: Vec<AtomicU64> = (0..Conntrack::words_needed(8)).map(|_| AtomicU64::new(0)).collect();
        let table = Conntrack::format(words.leak(), 8, 1, [0, 0]).unwrap();
        let ip: IpAddr = "203.0.113.7".parse().unwrap();
        let (cidr, other) = ("10.96.0.0/16".parse().unwrap(), "10.97.0.0/16".parse().unwrap());
        let all = FilterRules {
            services: [(ip, 80, Proto::Tcp), (ip, 81, Proto::Tcp)].into(),
            addresses: ["10.96.0.1".parse().unwrap(), "10.96.0.2".parse().unwrap()].into(),
            service_cidrs: [cidr, other].into(),
            snat: [(ip, 1, 9)].into(),
        };
        let again = FilterRules { services: [(ip, 80, Proto::Tcp)].into(), service_cidrs: [cidr].into(), ..FilterRules::default() };
        let later = FilterRules { addresses: ["10.96.0.1".parse().unwrap()].into(), ..FilterRules::default() };

        let mut surplus = Surplus::default();
        // Before a search there is nothing to keep from it.
        surplus.opened(&all);
        surplus.begin(all.clone(), table);
        assert_eq!(finish(&mut surplus), all);
        assert!(surplus.found().rules().is_empty(), "once");

        surplus.begin(all.clone(), table);
        surplus.opened(&again);
        surplus.opened(&FilterRules::default());
        surplus.opened(&later);
        let left = FilterRules {
            services: [(ip, 81, Proto::Tcp)].into(),
            addresses: ["10.96.0.2".parse().unwrap()].into(),
            service_cidrs: [other].into(),
            snat: all.snat.clone(),
        };
        assert_eq!(finish(&mut surplus), left);
        surplus.begin(all.clone(), table);
        assert_eq!(finish(&mut surplus), all, "the next search knows nothing of it");
    }
}
