//! Compiles objects into the service table and the XDP filter's rules.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use nomagic_api::services::{ServiceFilter, ServicesPage};
use nomagic_api::{ApiWatch, SeedSource};
use nomagic_core::capture::FilterRules;
use nomagic_core::services::Services;

use super::compiling::{Compiling, Order, Outcome};
use super::findings::{Findings, SETTLED_AFTER};
use super::http::TableUpdate;
use super::pods::PodRanges;
use super::source::ObjectSource;
use super::startup;
use crate::config::Config;
use crate::net::Mirror;
use crate::observe::health::Moment;
use crate::seed::{self, Seed};
use crate::services::ServiceSource;
use nomagic_table::compile::serving::Serving;
use nomagic_table::compile::{Compiler, CountedPort, PortKey, TARGETS_MAX};
use nomagic_table::explain::Explainer;
use nomagic_table::findings::set_aside;
use nomagic_table::index::Index;
use nomagic_table::listing::Listing;
use nomagic_table::problem::Problem;
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
    compiling: Compiling,
    /// Objects or settings have changed since the compilation began that is running: when that was noticed first.
    behind: Option<Moment>,
    /// Manifests were read for the next table.
    new_manifests: bool,
    services: Arc<Services>,
    serving: Serving,
    /// This node's pods, if they are detected by interfaces.
    pods: PodRanges,
    findings: Findings,
    /// Problems of the objects, as of the last table.
    of_objects: Vec<Problem>,
    problems: Vec<String>,
    update: TableUpdate,
    /// Rules that the XDP filter needs and does not have yet.
    opened: FilterRules,
    /// The XDP filter may have unneeded rules. Initially true: an earlier process may have left some.
    closed: bool,
}

/// What [`CompiledTables::changed`] has waited for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Changed {
    Nothing,
    /// Call [`CompiledTables::compile`].
    Objects,
    /// There is a new table.
    Table,
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
        let compiling = Compiling::new(Compiler::new(TARGETS_MAX));
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
            compiling,
            behind: None,
            new_manifests: false,
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

    /// Waits until objects have changed, or a large change is compiled. Cancel-safe.
    ///
    /// # Errors
    /// If the watch or the compiler has ended for good.
    pub async fn changed(&mut self) -> Result<Changed> {
        tokio::select! {
            outcome = self.compiling.outcome() => {
                self.take(outcome?);
                Ok(Changed::Table)
            }
            changed = self.source.changed(&mut self.index) => {
                let changed = changed?;
                self.new_manifests |= changed && self.source.is_files();
                Ok(if changed { Changed::Objects } else { Changed::Nothing })
            }
        }
    }

    /// Reads the manifests if they have changed, or if `always`; [`CompiledTables::changed`] tells the end.
    pub fn reload(&mut self, always: bool) {
        self.source.poll(always);
    }

    /// Updates the addresses of this node's pods; `None` if they are not detected by interfaces. Returns true if there is a new table.
    pub fn follow_pods(&mut self, pods: Option<PodRanges>) -> bool {
        let Some(pods) = pods.filter(|pods| *pods != self.pods) else { return false };
        self.config.cluster_cidrs.clone_from(&pods.ranges);
        self.pods = pods;
        self.services.generation > 0 && self.compile()
    }

    /// Updates this node's addresses in the kernel, and those of the API server. Returns true if there is a new table.
    pub fn follow_addresses(&mut self, addresses: NodeAddresses) -> bool {
        let servers = self.source.server_addresses();
        if self.addresses == addresses && self.servers == servers {
            return false;
        }
        (self.addresses, self.servers) = (addresses, servers);
        self.services.generation > 0 && self.settings() != self.settings && self.compile()
    }

    /// Derives the settings from the configuration, the current objects and the kernel's own ports.
    pub fn settings(&self) -> Settings {
        let mut settings = self.config.settings_for(&self.addresses.usable, &self.index);
        settings.kernel_ips.extend(&self.addresses.all);
        settings.api_servers.extend(self.source.server_addresses());
        settings.incomplete = self.source.incomplete();
        if let Some(seed) = self.seed {
            settings.seed = seed.hash_seed();
        }
        settings.snat.excluded = startup::node_ports(&settings).unwrap_or_else(|e| {
            tracing::error!("the node's own connections may clash with connections with SNAT: {e}");
            None
        });
        settings
    }

    /// Compiles the first table, which everything waits for.
    pub fn compile_first(&mut self) {
        let order = self.order();
        if let Some(outcome) = self.compiling.here(&self.index, order) {
            self.take(outcome);
        }
    }

    /// Compiles the changed objects. True: there is a new table. A large change takes longer, and [`CompiledTables::changed`] tells its end; what
    /// changes meanwhile waits.
    pub fn compile(&mut self) -> bool {
        if self.compiling.is_away() {
            self.behind.get_or_insert_with(Moment::now);
            return false;
        }
        let order = self.order();
        let unchanged_settings = order.settings == self.settings;
        match self.compiling.start(&self.index, order, unchanged_settings) {
            Some(outcome) => self.take(outcome),
            None => return false,
        }
        true
    }

    /// Whether something has changed since the compilation of the latest table began.
    pub fn is_behind(&self) -> bool {
        self.behind.is_some()
    }

    fn order(&mut self) -> Order {
        let noticed = self.behind.take().unwrap_or_else(Moment::now);
        Order { settings: self.settings(), touched: self.index.take_touched(), noticed }
    }

    /// Takes a new table over.
    fn take(&mut self, outcome: Outcome) {
        let Outcome { compiled, settings, changes, noticed, concerned, index } = outcome;
        self.settings = settings;
        self.update.compiled(changes, &compiled, noticed);
        self.opened.extend(compiled.opened);
        self.closed |= compiled.closed;
        self.services = Arc::new(compiled.services);
        self.serving.follow(index.as_ref().unwrap_or(&self.index), &concerned);
        self.findings.touched(concerned, Instant::now());
        self.of_objects = self.source.problems().into_iter().chain(&compiled.problems).cloned().collect();
        self.examine();
        self.report();
    }

    /// Whether the latest table is the first one with manifests that were read again. True once.
    pub fn has_new_manifests(&mut self) -> bool {
        self.behind.is_none() && std::mem::take(&mut self.new_manifests)
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
        let said = self.of_objects.iter().chain(self.findings.problems()).map(ToString::to_string);
        let problems = said.chain(self.pods.problem()).collect();
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

    /// Describes Services, see [`ServiceSource::page`].
    ///
    /// # Errors
    /// If the request has a wrong form, or names a Service that does not exist.
    pub fn list_services(&self, filter: &ServiceFilter, from: Option<&str>) -> Result<ServicesPage, String> {
        let listing = Listing { index: &self.index, settings: &self.settings, table: &self.services };
        ServiceSource { listing, problems: &self.of_objects, findings: &self.findings }.page(filter, from)
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
        self.compiling.targets()
    }

    /// The Service ports of the table, with their numbers of backends and of refused packets.
    pub fn ports(&self) -> impl Iterator<Item = CountedPort<'_>> {
        self.compiling.ports()
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
mod tests;
