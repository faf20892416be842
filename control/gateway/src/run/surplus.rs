//! Removal of XDP filter rules that neither the tables nor any connection need. A separate thread searches the connection table, which may
//! have millions of entries.

use std::thread::JoinHandle;

use nomagic_core::capture::FilterRules;
use nomagic_core::conntrack::Conntrack;
use nomagic_core::unused::Unused;

use super::tables::CompiledTables;

/// The search for unneeded filter rules.
#[derive(Debug, Default)]
pub struct Surplus {
    search: Option<RunningSearch>,
}

#[derive(Debug)]
struct RunningSearch {
    thread: JoinHandle<Unused>,
    /// Rules needed again since the search began: they may have connections that it has not seen.
    reopened: FilterRules,
}

impl Surplus {
    /// Starts a search if there may be unneeded rules and no search is running. `known` are the filter's rules.
    pub fn start_search(&mut self, tables: &mut CompiledTables, known: &FilterRules, table: Conntrack<'static>) {
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
            Ok(thread) => self.search = Some(RunningSearch { thread, reopened: FilterRules::default() }),
            Err(e) => tracing::warn!("unneeded rules of the XDP filter stay for now: cannot start the thread nm-surplus: {e}"),
        }
    }

    /// Excludes rules that come into force from the result of a running search.
    pub fn opened(&mut self, rules: &FilterRules) {
        if let Some(search) = &mut self.search {
            search.reopened.extend(rules.clone());
        }
    }

    /// Returns the rules that a finished search has found to be removable.
    pub fn found(&mut self) -> Unused {
        let Some(search) = self.search.take_if(|search| search.thread.is_finished()) else { return Unused::default() };
        let unused = search.thread.join().unwrap_or_else(|_| {
            tracing::error!("{PANICKED}; no rules are removed, and the search starts again");
            Unused::default()
        });
        unused.without(&search.reopened)
    }
}

const PANICKED: &str = "the thread nm-surplus, which searches unneeded rules of the XDP filter, has panicked: see its message above";

impl Drop for Surplus {
    /// Joins the thread, so that nothing reads the connection table afterwards.
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

    #[test]
    fn rules_opened_during_a_search_stay() {
        let words: Vec<AtomicU64> = (0..Conntrack::words_needed(8)).map(|_| AtomicU64::new(0)).collect();
        let table = Conntrack::format(words.leak(), 8, 1, [0, 0]).unwrap();
        let ip: IpAddr = "203.0.113.7".parse().unwrap();
        let (cidr, other) = ("10.96.0.0/16".parse().unwrap(), "10.97.0.0/16".parse().unwrap());
        let all = FilterRules {
            services: [(ip, 80, Proto::Tcp), (ip, 81, Proto::Tcp)].into(),
            addresses: ["10.96.0.1".parse().unwrap(), "10.96.0.2".parse().unwrap()].into(),
            service_cidrs: [cidr, other].into(),
        };
        let again = FilterRules { services: [(ip, 80, Proto::Tcp)].into(), service_cidrs: [cidr].into(), ..FilterRules::default() };
        let later = FilterRules { addresses: ["10.96.0.1".parse().unwrap()].into(), ..FilterRules::default() };

        let mut surplus = Surplus::default();
        // Rules opened before the search are not excluded.
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
        };
        assert_eq!(finish(&mut surplus), left);
        surplus.begin(all.clone(), table);
        assert_eq!(finish(&mut surplus), all, "exclusions end with the search");
    }
}
