//! From objects to the tables in force, and to what the XDP filter takes.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use anyhow::Result;
use nomagic_api::ApiWatch;
use nomagic_core::capture::FilterRules;
use nomagic_core::services::{Services, SnatRange};

use super::http::News;
use super::pods::PodRanges;
use super::source::Source;
use crate::config::Config;
use crate::net::node;
use crate::observe::health::Moment;
use nomagic_table::changes::Changes;
use nomagic_table::compile::serving::Serving;
use nomagic_table::compile::{Compiler, PortKey, TARGETS_MAX};
use nomagic_table::explain::Explainer;
use nomagic_table::index::Index;
use nomagic_table::settings::Settings;

/// Problems shown one by one at the most; the rest is counted.
const PROBLEMS_SHOWN_MAX: usize = 100;

/// The objects, compiled.
pub struct Tables {
    config: Config,
    /// The kernel's addresses of this node.
    present: Vec<IpAddr>,
    source: Source,
    index: Index,
    settings: Settings,
    compiler: Compiler,
    services: Arc<Services>,
    serving: Serving,
    /// Where pods are, when they are told by interfaces.
    pods: PodRanges,
    problems: Vec<String>,
    news: News,
    /// What the XDP filter must take and was not told yet.
    opened: FilterRules,
    /// The XDP filter may have rules that are not needed any more. An earlier process may have left some, too.
    closed: bool,
}

impl Tables {
    /// Opens the source of objects. Nothing is compiled yet. `present`: the kernel's addresses of this node.
    pub fn open(config: &Config, present: Vec<IpAddr>) -> Result<Tables> {
        let mut index = Index::default();
        let source = Source::open(config, &mut index)?;
        let settings = config.settings_for(&present, &index);
        let services = Arc::new(Services::empty(settings.seed));
        let compiler = Compiler::new(TARGETS_MAX);
        let (config, problems, news) = (config.clone(), Vec::new(), News::new());
        let (serving, pods, opened) = (Serving::default(), PodRanges::default(), FilterRules::default());
        Ok(Tables { config, present, source, index, settings, compiler, services, serving, pods, problems, news, opened, closed: true })
    }

    /// Whether enough is known to compile.
    pub fn complete(&self) -> bool {
        self.source.complete()
    }

    /// What is still waited for, in words.
    pub fn missing(&self) -> String {
        self.source.missing()
    }

    /// Waits until an API server has told something new: then [`Tables::compile`]. Cancel-safe.
    pub async fn changed(&mut self) -> Result<bool> {
        self.source.changed(&mut self.index).await
    }

    /// Looks at the manifests, and compiles if they have changed (or `always`). True when there is a new table.
    pub fn reload(&mut self, always: bool) -> bool {
        let changed = self.source.look(always, &mut self.index);
        if changed {
            self.compile();
        }
        changed
    }

    /// Pods of this node are at these addresses now (`None`: nobody asks). True when there is a new table.
    pub fn follow_pods(&mut self, pods: Option<PodRanges>) -> bool {
        let Some(pods) = pods.filter(|pods| *pods != self.pods) else { return false };
        self.config.cluster_cidrs.clone_from(&pods.ranges);
        self.pods = pods;
        let compiled = self.services.generation > 0;
        if compiled {
            self.compile();
        }
        compiled
    }

    /// The settings that follow from configuration and objects now.
    pub fn settings(&self) -> Settings {
        self.config.settings_for(&self.present, &self.index)
    }

    /// Compiles what has changed.
    pub fn compile(&mut self) {
        let noticed = Moment::now();
        let mut settings = self.settings();
        if self.services.generation > 0 && settings.snat != self.settings.snat {
            settings.snat = self.new_sources(&settings);
        }
        self.settings = settings;
        let touched = self.index.take_touched();
        let compiled = self.compiler.recompile(&self.index, &self.settings, &touched);
        self.news.compiled(Changes::of(&touched, &self.index), &compiled, noticed);
        self.opened.extend(compiled.opened);
        self.closed |= compiled.closed;
        self.services = Arc::new(compiled.services);
        self.serving.follow(&self.index, &touched.services_concerned(&self.index));
        let of_objects = self.source.problems().into_iter().chain(&compiled.problems).map(ToString::to_string);
        let problems = of_objects.chain(self.pods.problem()).collect();
        let said: BTreeSet<String> = std::mem::replace(&mut self.problems, problems).into_iter().collect();
        let new: Vec<&String> = self.problems.iter().filter(|p| !said.contains(*p)).collect();
        new.iter().take(PROBLEMS_SHOWN_MAX).for_each(|p| tracing::warn!("{p}"));
        if new.len() > PROBLEMS_SHOWN_MAX {
            tracing::warn!("{} more problems; `nomagic status` lists them all", new.len() - PROBLEMS_SHOWN_MAX);
        }
    }

    /// The node's addresses have changed while running, and with them the sources of SNAT: taken over if their ports are free.
    fn new_sources(&self, new: &Settings) -> SnatRange {
        let range = &new.snat;
        let own: Vec<IpAddr> = [range.v4, range.v6].into_iter().flatten().filter(|a| new.node.ips.contains(a)).collect();
        match node::check_snat_range(&own, range.port_first, range.port_last) {
            Ok(()) => range.clone(),
            Err(e) => {
                tracing::error!("the sources of SNAT stay as they were: {e}");
                self.settings.snat.clone()
            }
        }
    }

    /// Explains the compiled table.
    pub fn explainer(&self) -> Explainer<'_> {
        Explainer::of_parts(&self.index, &self.settings, &self.services, self.news.health_checks())
    }

    /// How the watch of an API server fares; none without one.
    pub fn source_status(&self) -> Option<ApiWatch> {
        self.source.status(&self.index)
    }

    /// The table in force.
    pub fn services(&self) -> Arc<Services> {
        self.services.clone()
    }

    /// The endpoints that UDP connections may stay with.
    pub fn serving(&self) -> &Serving {
        &self.serving
    }

    /// What it follows from besides the objects.
    pub fn settings_in_force(&self) -> &Settings {
        &self.settings
    }

    /// Whether load balancers may count on this node, as its Node object says. Files need not hold one.
    pub fn node_eligible(&self) -> bool {
        self.index.node(&self.settings.node.name).map_or(self.config.manifests.is_some(), |node| node.eligible)
    }

    /// What the last compilation means to those who watch.
    pub fn news(&self) -> &News {
        &self.news
    }

    /// The pairs of a Service port and a backend that have counters: `(place, Service port, address, port)`.
    pub fn targets(&self) -> impl Iterator<Item = (u32, &PortKey, IpAddr, u16)> {
        self.compiler.targets()
    }

    /// The number of a Service port, unless it has gone meanwhile.
    pub fn port_number(&self, key: &PortKey) -> Option<u16> {
        let ports = &self.index.service(&key.service)?.ports;
        ports.iter().find(|p| p.name == key.port_name && p.proto == key.proto).map(|p| p.port)
    }

    /// What is wrong with the objects in force, and with what else the table follows from.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }

    /// What the XDP filter must take and was not told yet.
    pub fn opened(&self) -> &FilterRules {
        &self.opened
    }

    /// The XDP filter takes what it must. True when that was something new.
    pub fn in_force(&mut self) -> bool {
        let new = !std::mem::take(&mut self.opened).is_empty();
        // What took a while to come into force may have been closed by a later table, and looked for in the filter, before.
        self.closed |= new;
        new
    }

    /// The rules that the filter has and this table does not need; when nothing can have changed since there were none, there are none.
    pub fn surplus(&mut self, known: &FilterRules) -> FilterRules {
        let surplus = if self.closed { known.not_needed_by(&self.services) } else { FilterRules::default() };
        self.closed = !surplus.is_empty();
        surplus
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nomagic_core::conntrack::{Conntrack, Flow, Phase};
    use nomagic_core::tuple::{Prefix, Proto, addr_words};
    use nomagic_core::unused::Unused;
    use std::sync::atomic::AtomicU64;

    fn manifest(port: u16) -> String {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec: {{clusterIP: 10.96.0.1, externalIPs: [203.0.113.7], ports: [{{port: {port}}}]}}\n"
        )
    }

    fn tables(dir: &std::path::Path) -> Tables {
        std::fs::write(dir.join("m.yaml"), manifest(80)).unwrap();
        let mut tables = open(dir.join("m.yaml")).unwrap();
        tables.compile();
        tables
    }

    /// The port of the Service's cluster IP.
    fn served(t: &Tables) -> u16 {
        t.services().frontends().find(|(ip, ..)| *ip == IpAddr::from([10, 96, 0, 1])).unwrap().1
    }

    fn open(manifests: std::path::PathBuf) -> Result<Tables> {
        let config = Config { manifests: Some(manifests), ..Config::default() };
        Tables::open(&config, vec!["10.0.0.1".parse().unwrap()])
    }

    #[test]
    fn a_changed_file_is_a_new_table_and_a_missing_one_leaves_the_old() {
        let dir = tempfile::tempdir().unwrap();
        let mut t = tables(dir.path());
        assert_eq!((t.services().generation, served(&t)), (1, 80));
        assert!(!t.reload(false));
        std::fs::write(dir.path().join("m.yaml"), manifest(8081)).unwrap();
        assert!(t.reload(false) && !t.reload(false));
        assert_eq!((t.services().generation, served(&t)), (2, 8081));
        std::fs::remove_file(dir.path().join("m.yaml")).unwrap();
        assert!(!t.reload(false) && !t.reload(true));
        assert_eq!(served(&t), 8081);
        std::fs::write(dir.path().join("m.yaml"), manifest(8082)).unwrap();
        assert!(t.reload(false));
        assert!(open(dir.path().join("none.yaml")).is_err());
    }

    #[test]
    fn pods_that_have_no_room_are_a_problem_until_they_have_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut t = tables(dir.path());
        let pod: IpAddr = "10.1.0.7".parse().unwrap();
        let pods = |left_out| Some(PodRanges { ranges: vec![Prefix::host(pod)], left_out });
        assert!(t.follow_pods(pods(3)) && !t.follow_pods(pods(3)), "what has not changed is not said again");
        assert!(t.problems().len() == 1 && t.problems()[0].starts_with("detectLocal: "), "{:?}", t.problems());
        assert!(t.services().pod_ips.contains(&pod));
        assert!(t.follow_pods(pods(0)) && t.problems().is_empty());
        assert!(!t.follow_pods(None) && t.services().pod_ips.contains(&pod));
    }

    #[test]
    fn rules_go_after_the_last_connection() {
        let dir = tempfile::tempdir().unwrap();
        let mut t = tables(dir.path());
        let known = t.opened().clone();
        assert!(t.in_force() && !t.in_force());
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
        assert_eq!(t.surplus(&known).len(), 1);
        assert!(Unused::of(t.surplus(&known), table).rules().is_empty(), "a connection is alive");
        assert!(table.end(&hit).is_some());
        let gone = Unused::of(t.surplus(&known), table);
        let gone = gone.rules();
        assert_eq!((gone.services.len(), gone.addresses.len(), gone.snat.len()), (1, 0, 0));
        let new = t.opened().clone();
        assert_eq!((new.services.len(), new.addresses.len(), new.snat.len()), (1, 0, 0), "only what is new");
        assert!(t.surplus(&FilterRules { services: new.services, ..FilterRules::default() }).is_empty());
        assert!(t.surplus(&known).is_empty(), "there is nothing until something changes");
        assert!(t.in_force());
        assert_eq!(t.surplus(&known).len(), 1, "what was closed before it came into force is found");
    }
}
