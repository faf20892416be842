//! From manifests to the tables in force, and to what the XDP filter takes.

use std::collections::HashSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Result, anyhow};
use nomagic_core::conntrack::Conntrack;
use nomagic_core::services::Services;
use nomagic_core::tuple::{Proto, words_addr};
use nomagic_xsk::FilterRules;

use super::http::News;
use crate::compile::{Compiler, PortKey, Settings, TARGETS_MAX, filter_rules};
use crate::health::Moment;
use crate::index::Index;
use crate::manifests::{self, Fingerprint, Loaded};

/// Problems shown one by one at the most; the rest is counted.
const PROBLEMS_SHOWN_MAX: usize = 100;

/// The objects, compiled.
pub struct Tables {
    path: PathBuf,
    settings: Settings,
    compiler: Compiler,
    fingerprint: Fingerprint,
    loaded: Loaded,
    services: Arc<Services>,
    problems: Vec<String>,
    news: News,
    /// The path could not be read when it was last looked at.
    missing: bool,
}

impl Tables {
    /// Reads and compiles the manifests for the first time.
    pub fn load(path: PathBuf, settings: Settings) -> Result<Tables> {
        let fingerprint = manifests::fingerprint(&path);
        let loaded = manifests::load(&path, None).map_err(|problem| anyhow!("{problem}"))?;
        let services = Arc::new(Services::empty(settings.seed));
        let compiler = Compiler::new(TARGETS_MAX);
        let (problems, news) = (Vec::new(), News::new());
        let mut tables = Tables { path, settings, compiler, fingerprint, loaded, services, problems, news, missing: false };
        tables.compile(Moment::now());
        Ok(tables)
    }

    /// Reads the manifests again if they have changed (or `always`). True when there is a new table.
    pub fn reload(&mut self, always: bool) -> bool {
        // Taken first: a change while reading is seen the next time.
        let fingerprint = manifests::fingerprint(&self.path);
        if !always && fingerprint == self.fingerprint {
            return false;
        }
        self.fingerprint = fingerprint;
        let noticed = Moment::now();
        match manifests::load(&self.path, Some(&self.loaded)) {
            Ok(loaded) => self.loaded = loaded,
            Err(problem) => {
                if !std::mem::replace(&mut self.missing, true) {
                    tracing::warn!("{problem}; the objects that were read before stay in force");
                }
                return false;
            }
        }
        self.missing = false;
        self.compile(noticed);
        true
    }

    fn compile(&mut self, noticed: Moment) {
        let index = Index::of(self.loaded.objects.iter().cloned());
        let compiled = self.compiler.compile(&index, &self.settings);
        self.services = Arc::new(compiled.services);
        self.problems = self.loaded.problems.iter().chain(&compiled.problems).map(ToString::to_string).collect();
        self.news.compiled(index, compiled.names, noticed);
        self.problems.iter().take(PROBLEMS_SHOWN_MAX).for_each(|p| tracing::warn!("{p}"));
        if self.problems.len() > PROBLEMS_SHOWN_MAX {
            tracing::warn!("{} more problems; `nomagic status` lists them all", self.problems.len() - PROBLEMS_SHOWN_MAX);
        }
    }

    /// The table in force.
    pub fn services(&self) -> Arc<Services> {
        self.services.clone()
    }

    /// What they follow from besides the objects.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What the last compilation means to those who watch.
    pub fn news(&self) -> &News {
        &self.news
    }

    /// The pairs of a Service port and a backend that have counters: `(place, Service port, address, port)`.
    pub fn targets(&self) -> impl Iterator<Item = (u32, &PortKey, IpAddr, u16)> {
        self.compiler.targets()
    }

    /// What is wrong with the objects in force.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }

    /// What the XDP filter must take for this table.
    pub fn filter_rules(&self) -> FilterRules {
        let rules = filter_rules(&self.services);
        FilterRules {
            services: rules.exact.into_iter().collect(),
            addresses: rules.addresses.into_iter().collect(),
            service_cidrs: rules.prefixes.into_iter().collect(),
            snat: rules.snat.into_iter().collect(),
        }
    }

    /// The rules that the filter has and this table does not need, and whose last connection has ended: a connection that lost its rule
    /// would go on past this dataplane.
    pub fn removable(&self, known: &FilterRules, table: Conntrack<'_>) -> FilterRules {
        let mut surplus = known.without(&self.filter_rules());
        if surplus.is_empty() {
            return surplus;
        }
        let mut used: HashSet<(IpAddr, u16, Proto)> = HashSet::new();
        let mut sources: HashSet<(IpAddr, u16)> = HashSet::new();
        table.for_each(|_, flow| {
            used.insert((words_addr(flow.service, flow.v6), flow.service_port, flow.proto));
            if flow.source != flow.client {
                sources.insert((words_addr(flow.source, flow.v6), flow.source_port));
            }
        });
        let addresses: HashSet<IpAddr> = used.iter().map(|(addr, ..)| *addr).collect();
        surplus.services.retain(|service| !used.contains(service));
        surplus.addresses.retain(|addr| !addresses.contains(addr));
        surplus.service_cidrs.retain(|prefix| !addresses.iter().any(|a| prefix.contains(*a)));
        surplus.snat.retain(|(addr, first, last)| !sources.iter().any(|(a, port)| a == addr && (first..=last).contains(&port)));
        surplus
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use nomagic_core::conntrack::{Flow, Phase};
    use nomagic_core::tuple::addr_words;
    use std::sync::atomic::AtomicU64;

    fn manifest(port: u16) -> String {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec: {{clusterIP: 10.96.0.1, externalIPs: [203.0.113.7], ports: [{{port: {port}}}]}}\n"
        )
    }

    fn tables(dir: &std::path::Path) -> Tables {
        std::fs::write(dir.join("m.yaml"), manifest(80)).unwrap();
        let settings = Config::default().settings(&["10.0.0.1".parse().unwrap()]);
        Tables::load(dir.join("m.yaml"), settings).unwrap()
    }

    #[test]
    fn a_changed_file_is_a_new_table_and_a_missing_one_leaves_the_old() {
        let dir = tempfile::tempdir().unwrap();
        let mut t = tables(dir.path());
        assert_eq!((t.services().generation, t.services().ports[0].port), (1, 80));
        assert!(!t.reload(false));
        std::fs::write(dir.path().join("m.yaml"), manifest(8081)).unwrap();
        assert!(t.reload(false) && !t.reload(false));
        assert_eq!((t.services().generation, t.services().ports[0].port), (2, 8081));
        std::fs::remove_file(dir.path().join("m.yaml")).unwrap();
        assert!(!t.reload(false) && !t.reload(true));
        assert_eq!(t.services().ports[0].port, 8081);
        std::fs::write(dir.path().join("m.yaml"), manifest(8082)).unwrap();
        assert!(t.reload(false));
        assert!(Tables::load(dir.path().join("none.yaml"), Config::default().settings(&[])).is_err());
    }

    #[test]
    fn rules_go_after_the_last_connection() {
        let dir = tempfile::tempdir().unwrap();
        let mut t = tables(dir.path());
        let known = t.filter_rules();
        assert!(known.services.contains(&("203.0.113.7".parse().unwrap(), 80, Proto::Tcp)));
        std::fs::write(dir.path().join("m.yaml"), manifest(8081)).unwrap();
        t.reload(false);

        let words: Vec<AtomicU64> = (0..Conntrack::words_needed(8)).map(|_| AtomicU64::new(0)).collect();
        let table = Conntrack::format(&words, 8, 1, [0, 0]).unwrap();
        let addr = |a: &str| addr_words(a.parse().unwrap()).0;
        let mut flow = Flow {
            proto: Proto::Tcp,
            v6: false,
            announced: false,
            client: addr("10.0.0.9"),
            client_port: 1000,
            service: addr("203.0.113.7"),
            service_port: 80,
            backend: addr("192.168.0.1"),
            backend_port: 80,
            source: addr("10.0.0.1"),
            source_port: 61_000,
            stats: 0,
        };
        let (hash, phase) = (table.hash(&flow.original()), Phase::first(Proto::Tcp, 2));
        let pending = table.reserve(&mut flow, hash, phase, 0, std::iter::once(61_000)).unwrap();
        let hit = table.commit(pending).unwrap();
        assert!(t.removable(&known, table).is_empty(), "a connection is alive");
        assert!(table.end(&hit).is_some());
        let gone = t.removable(&known, table);
        assert_eq!((gone.services.len(), gone.addresses.len(), gone.snat.len()), (1, 0, 0));
        assert!(t.removable(&t.filter_rules(), table).is_empty());
    }
}
