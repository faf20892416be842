//! Compiles objects into the service table and the XDP filter's rules.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use nomagic_api::{ApiWatch, SeedSource};
use nomagic_core::capture::FilterRules;
use nomagic_core::services::Services;

use super::findings::{Findings, SETTLED_AFTER};
use super::http::TableUpdate;
use super::pods::PodRanges;
use super::source::ObjectSource;
use super::startup;
use crate::config::Config;
use crate::net::Mirror;
use crate::observe::health::Moment;
use crate::seed::{self, Seed};
use nomagic_table::changes::Changes;
use nomagic_table::compile::serving::Serving;
use nomagic_table::compile::{Compiler, CountedPort, PortKey, TARGETS_MAX};
use nomagic_table::explain::Explainer;
use nomagic_table::findings::set_aside;
use nomagic_table::index::Index;
use nomagic_table::settings::Settings;

/// Maximum number of problems logged one by one; the rest is counted.
const PROBLEMS_SHOWN_MAX: usize = 100;

/// The objects and the tables compiled from them.
pub struct CompiledTables {
    config: Config,
    /// The seed of the hash; `None` until [`CompiledTables::choose_seed`], if the configuration does not set it.
    seed: Option<Seed>,
    /// The kernel's addresses of this node.
    addresses: NodeAddresses,
    /// The addresses of the API server, literal or resolved.
    servers: Vec<SocketAddr>,
    source: ObjectSource,
    index: Index,
    settings: Settings,
    compiler: Compiler,
    services: Arc<Services>,
    serving: Serving,
    /// This node's pods, if they are detected by interfaces.
    pods: PodRanges,
    findings: Findings,
    /// Problems of the objects, as of the last table.
    of_objects: Vec<String>,
    problems: Vec<String>,
    update: TableUpdate,
    /// Rules that the XDP filter needs and does not have yet.
    opened: FilterRules,
    /// The XDP filter may have unneeded rules. Initially true: an earlier process may have left some.
    closed: bool,
}

/// This node's addresses in the kernel.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct NodeAddresses {
    /// Those that Services may use, see [`crate::net::node::local_addresses`].
    pub usable: Vec<IpAddr>,
    /// All of them.
    pub all: BTreeSet<IpAddr>,
}

impl NodeAddresses {
    /// What the kernel has now.
    pub fn read(mirror: &Mirror) -> NodeAddresses {
        NodeAddresses { usable: mirror.local_addresses(), all: mirror.own_addresses().collect() }
    }
}

impl CompiledTables {
    /// Opens the source of objects without compiling. `seed` is the hash seed that the configuration sets, if it does.
    pub fn open(config: &Config, seed: Option<Seed>, addresses: NodeAddresses) -> Result<CompiledTables> {
        let mut index = Index::default();
        let source = ObjectSource::open(config, seed.is_none(), &mut index)?;
        let settings = config.settings_for(&addresses.usable, &index);
        let services = Arc::new(Services::empty(settings.seed));
        let compiler = Compiler::new(TARGETS_MAX);
        let (config, problems, update) = (config.clone(), Vec::new(), TableUpdate::new());
        let findings = if config.manifests.is_some() { Findings::of_files() } else { Findings::of_api_server(SETTLED_AFTER) };
        let (serving, pods, opened) = (Serving::default(), PodRanges::default(), FilterRules::default());
        Ok(CompiledTables {
            config,
            seed,
            addresses,
            servers: Vec::new(),
            source,
            index,
            settings,
            compiler,
            services,
            serving,
            pods,
            findings,
            of_objects: Vec::new(),
            problems,
            update,
            opened,
            closed: true,
        })
    }

    /// Reports whether enough objects are known to compile.
    pub fn complete(&self) -> bool {
        self.source.complete()
    }

    /// Describes the objects that are still missing.
    pub fn missing(&self) -> String {
        self.source.missing()
    }

    /// Chooses the hash seed, if the configuration does not set it. Call it before the first table is compiled, when the objects are complete.
    pub fn choose_seed(&mut self) -> Result<()> {
        let seed = match self.seed {
            Some(seed) => seed,
            None => seed::by_default(self.source.cluster_uid(), &self.config.state_dir)?,
        };
        tracing::info!("hash seed: {}", seed.source());
        self.seed = Some(seed);
        Ok(())
    }

    /// Where the hash seed comes from; `None`: it is not chosen yet.
    pub fn seed_source(&self) -> Option<SeedSource> {
        self.seed.map(|seed| seed.source())
    }

    /// Waits until the API server has changed the objects; call [`CompiledTables::compile`] then. Cancel-safe.
    pub async fn changed(&mut self) -> Result<bool> {
        self.source.changed(&mut self.index).await
    }

    /// Reads changed manifests (all of them if `always`) and compiles. Returns true if there is a new table.
    pub fn reload(&mut self, always: bool) -> bool {
        let changed = self.source.poll(always, &mut self.index);
        if changed {
            self.compile();
        }
        changed
    }

    /// Updates the addresses of this node's pods; `None` if they are not detected by interfaces. Returns true if there is a new table.
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

    /// Updates this node's addresses in the kernel, and those of the API server. Returns true if there is a new table.
    pub fn follow_addresses(&mut self, addresses: NodeAddresses) -> bool {
        let servers = self.source.server_addresses();
        if self.addresses == addresses && self.servers == servers {
            return false;
        }
        (self.addresses, self.servers) = (addresses, servers);
        let changed = self.services.generation > 0 && self.settings() != self.settings;
        if changed {
            self.compile();
        }
        changed
    }

    /// Derives the settings from the configuration, the current objects and the kernel's own ports.
    pub fn settings(&self) -> Settings {
        let mut settings = self.config.settings_for(&self.addresses.usable, &self.index);
        settings.kernel_ips.extend(&self.addresses.all);
        settings.api_servers.extend(self.source.server_addresses());
        if let Some(seed) = self.seed {
            settings.seed = seed.hash_seed();
        }
        settings.snat.excluded = startup::node_ports(&settings).unwrap_or_else(|e| {
            tracing::error!("the node's own connections may clash with connections with SNAT: {e}");
            None
        });
        settings
    }

    /// Compiles the changed objects.
    pub fn compile(&mut self) {
        let noticed = Moment::now();
        self.settings = self.settings();
        let touched = self.index.take_touched();
        let compiled = self.compiler.recompile(&self.index, &self.settings, &touched);
        self.update.compiled(Changes::of(&touched, &self.index), &compiled, noticed);
        self.opened.extend(compiled.opened);
        self.closed |= compiled.closed;
        self.services = Arc::new(compiled.services);
        let concerned = touched.services_concerned(&self.index);
        self.serving.follow(&self.index, &concerned);
        self.findings.touched(concerned, Instant::now());
        self.of_objects = self.source.problems().into_iter().chain(&compiled.problems).map(ToString::to_string).collect();
        self.examine();
        self.report();
    }

    /// Examines Services that have been left alone for a while.
    pub fn tend(&mut self) {
        if self.examine() {
            self.report();
        }
    }

    /// Returns true if there are other findings than before.
    fn examine(&mut self) -> bool {
        let unread = self.source.problems().into_iter().map(|p| p.object.clone()).collect();
        self.findings.examine(&self.index, &self.settings.node, &unread, Instant::now())
    }

    /// Logs new problems.
    fn report(&mut self) {
        let findings = self.findings.problems().map(ToString::to_string);
        let problems = self.of_objects.iter().cloned().chain(findings).chain(self.pods.problem()).collect();
        let logged: BTreeSet<String> = std::mem::replace(&mut self.problems, problems).into_iter().collect();
        let new: Vec<&String> = self.problems.iter().filter(|p| !logged.contains(*p)).collect();
        new.iter().take(PROBLEMS_SHOWN_MAX).for_each(|p| tracing::warn!("{p}"));
        if new.len() > PROBLEMS_SHOWN_MAX {
            tracing::warn!("{} more problems; `nomagic status` lists them all", new.len() - PROBLEMS_SHOWN_MAX);
        }
    }

    /// Explains the compiled table.
    pub fn explainer(&self) -> Explainer<'_> {
        Explainer::of_parts(&self.index, &self.settings, &self.services, self.update.health_checks())
    }

    /// The state of the API server's watch; `None` for manifests.
    pub fn source_status(&self) -> Option<ApiWatch> {
        self.source.status(&self.index)
    }

    /// The table compiled last.
    pub fn services(&self) -> Arc<Services> {
        self.services.clone()
    }

    /// The endpoints that existing UDP connections may keep using.
    pub fn serving(&self) -> &Serving {
        &self.serving
    }

    /// The settings of the table compiled last.
    pub fn settings_in_force(&self) -> &Settings {
        &self.settings
    }

    /// Reports whether load balancers may use this node, by its Node object. With manifests, a missing Node object counts as eligible.
    pub fn node_eligible(&self) -> bool {
        self.index.node(&self.settings.node.name).map_or(self.config.manifests.is_some(), |node| node.eligible)
    }

    /// Reports whether the Node object says that this node is about to be deleted.
    pub fn node_leaving(&self) -> bool {
        self.index.node(&self.settings.node.name).is_some_and(|node| !node.eligible)
    }

    pub fn last_update(&self) -> &TableUpdate {
        &self.update
    }

    /// The pairs of a Service port and a backend that have counters: `(index, Service port, address, port)`.
    pub fn targets(&self) -> impl Iterator<Item = (u32, &PortKey, IpAddr, u16)> {
        self.compiler.targets()
    }

    /// The Service ports of the table, with their numbers of backends and of refused packets.
    pub fn ports(&self) -> impl Iterator<Item = CountedPort<'_>> {
        self.compiler.ports()
    }

    /// The number of a Service port; `None` if it no longer exists.
    pub fn port_number(&self, key: &PortKey) -> Option<u16> {
        let ports = &self.index.service(&key.service)?.ports;
        ports.iter().find(|p| p.name == key.port_name && p.proto == key.proto).map(|p| p.port)
    }

    /// What is set aside by design: a line for each reason.
    pub fn set_aside(&self) -> Vec<String> {
        set_aside(&self.index, self.findings.all_services())
    }

    /// Problems of the objects and the other inputs of the table, as messages.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }

    /// Rules that the XDP filter needs and does not have yet.
    pub fn opened(&self) -> &FilterRules {
        &self.opened
    }

    /// Records that the XDP filter has all rules. Returns true if some were new.
    pub fn in_force(&mut self) -> bool {
        let new = !std::mem::take(&mut self.opened).is_empty();
        // A later table may have closed these rules, and a search may have run, before the filter had them: search again.
        self.closed |= new;
        new
    }

    /// The filter's rules that this table does not need. Skips the search if nothing was closed since it last found none.
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

    fn tables(dir: &std::path::Path) -> CompiledTables {
        std::fs::write(dir.join("m.yaml"), manifest(80)).unwrap();
        let mut tables = open(dir.join("m.yaml")).unwrap();
        tables.compile();
        tables
    }

    /// The port served on the Service's cluster IP.
    fn served(t: &CompiledTables) -> u16 {
        t.services().frontends().find(|(ip, ..)| *ip == IpAddr::from([10, 96, 0, 1])).unwrap().1
    }

    fn open(manifests: std::path::PathBuf) -> Result<CompiledTables> {
        let config = Config { manifests: Some(manifests), ..Config::default() };
        let addresses = NodeAddresses { usable: vec!["10.0.0.1".parse().unwrap()], ..NodeAddresses::default() };
        CompiledTables::open(&config, Some(Seed::configured(0)), addresses)
    }

    #[test]
    fn a_changed_file_makes_a_new_table_and_a_missing_file_keeps_the_old_one() {
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
    fn pods_beyond_the_limit_are_a_problem() {
        let dir = tempfile::tempdir().unwrap();
        let mut t = tables(dir.path());
        let pod: IpAddr = "10.1.0.7".parse().unwrap();
        let pods = |left_out| Some(PodRanges { ranges: vec![Prefix::host(pod)], left_out });
        assert!(t.follow_pods(pods(3)) && !t.follow_pods(pods(3)), "unchanged pods make no new table");
        assert!(t.problems().len() == 1 && t.problems()[0].starts_with("detectLocal: "), "{:?}", t.problems());
        assert!(t.services().pod_ips.contains(&pod));
        assert!(t.follow_pods(pods(0)) && t.problems().is_empty());
        assert!(!t.follow_pods(None) && t.services().pod_ips.contains(&pod));
    }

    #[test]
    fn rules_are_removed_after_the_last_connection() {
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
            counted: None,
        };
        let (hash, phase) = (table.hash(&flow.original()), Phase::first(Proto::Tcp, 2));
        let pending = table.reserve(&mut flow, hash, phase, 0, std::iter::once(61_000)).unwrap();
        let hit = table.commit(pending).unwrap();
        assert_eq!(t.surplus(&known).len(), 1);
        assert!(Unused::of(t.surplus(&known), table).rules().is_empty(), "a connection is live");
        assert!(table.end(&hit).is_some());
        let gone = Unused::of(t.surplus(&known), table);
        let gone = gone.rules();
        assert_eq!((gone.services.len(), gone.len()), (1, 1));
        let new = t.opened().clone();
        assert_eq!((new.services.len(), new.len()), (1, 1), "only new rules");
        assert!(t.surplus(&FilterRules { services: new.services, ..FilterRules::default() }).is_empty());
        assert!(t.surplus(&known).is_empty(), "none until something changes");
        assert!(t.in_force());
        assert_eq!(t.surplus(&known).len(), 1, "rules closed before they came into force are found");
    }
}
