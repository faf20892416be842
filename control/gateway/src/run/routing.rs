//! Publishes the kernel's routes and neighbours to the workers.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::Result;
use nomagic_core::frame::{PortId, Wanted};
use nomagic_core::routes::{InternalPort, ReversePath, Routes};
use nomagic_core::rss::Rss;
use nomagic_xsk::{Condition, Edge};

use crate::config::{Config, Pattern};
use crate::net::internal::{self, VethPair};
use crate::net::{Mirror, ResolveOutcome};

/// Maximum number of neighbours refreshed at a time.
const STALE_MAX: usize = 256;

/// The mirror of the kernel's routing state, and the routes published from it.
pub struct Routing {
    pub mirror: Mirror,
    /// Interface names in the order of their [`PortId`]s; the last one is the edge's end of the internal pair.
    pub ports: Vec<String>,
    internal: InternalPort,
    /// The kernel's end of the internal pair.
    kernel_side: String,
    generation: u64,
    /// The ports' RSS configuration in the published routes.
    rss: Vec<Option<Arc<Rss>>>,
    /// The ports whose answers from behind the kernel are captured, in the published routes.
    answers_seen: Vec<bool>,
    /// How the ports compare sources, in the published routes.
    reverse_paths: Vec<ReversePath>,
    /// An MTU that the kernel refused to the internal pair.
    mtu_refused: Option<u32>,
    /// What of the published routes goes through the kernel.
    problems: Vec<String>,
    /// The routes published last.
    pub in_force: Arc<Routes>,
}

impl Routing {
    /// Builds the edge's first routes, without redirect ports, which are attached later.
    pub fn new(config: &Config, mut mirror: Mirror, pair: &VethPair) -> Routing {
        let ports: Vec<String> = config.interfaces.iter().map(ToString::to_string).chain([pair.edge.name.clone()]).collect();
        let internal = InternalPort { port: PortId(config.interfaces.len() as u16), kernel_mac: pair.kernel.mac };
        let rss = ports.iter().map(|_| None).collect();
        let generation = 1;
        let in_force = Arc::new(mirror.routes(generation, &ports, &BTreeSet::new(), Some(internal)));
        Routing {
            mirror,
            ports,
            internal,
            kernel_side: pair.kernel.name.clone(),
            generation,
            rss,
            answers_seen: Vec::new(),
            reverse_paths: Vec::new(),
            mtu_refused: None,
            problems: Vec::new(),
            in_force,
        }
    }

    /// What of the kernel's routing goes through the kernel, in words.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }

    /// Returns the interfaces that match the patterns, without the gateway's own.
    pub fn redirect_interfaces(&self, patterns: &[Pattern]) -> BTreeSet<String> {
        let own = |name: &str| name == "lo" || name == self.kernel_side || self.ports.iter().any(|p| p == name);
        let fits = |name: &str| !own(name) && patterns.iter().any(|p| p.matches(name));
        self.mirror.interfaces().map(|(name, _)| name).filter(|name| fits(name)).map(str::to_owned).collect()
    }

    /// Gives the internal pair the largest MTU of all ports and redirect ports: whatever they receive may go through it.
    pub fn follow_mtu(&mut self, redirects: &BTreeSet<String>) {
        let ends = [self.kernel_side.as_str(), self.ports.last().map_or("", String::as_str)];
        let mtu = |name: &str| self.mirror.mtu(name);
        let outside = self.ports.iter().chain(redirects).map(String::as_str).filter(|name| !ends.contains(name));
        let Some(wanted) = outside.filter_map(mtu).max() else { return };
        let fits = ends.iter().filter_map(|name| mtu(name)).all(|now| now >= wanted);
        if fits || self.mtu_refused == Some(wanted) {
            return;
        }
        match internal::set_mtu(&internal::PairNames::default(), wanted) {
            Ok(()) => tracing::info!("{} and {} have an MTU of {wanted} now, as the largest of the ports", ends[0], ends[1]),
            Err(e) => {
                tracing::warn!(
                    "interface {}: cannot set the MTU to {wanted}, the largest of the ports and redirect ports, so larger packets for the kernel \
                     and for pods of this node are lost: {e}. Lower that MTU, or restart nomagic",
                    ends[0]
                );
                self.mtu_refused = Some(wanted);
            }
        }
    }

    /// Publishes the routes if they, the captured interfaces, the ports' RSS or their `rp_filter` have changed.
    pub fn publish(&mut self, edge: &mut Edge) {
        let generation = self.generation + 1;
        let captured = edge.redirects().iter().filter(|r| r.condition == Condition::Bound).map(|r| r.ifindex).collect();
        let (rss, answers_seen, internal) = (edge.rss(), edge.answers_seen(), Some(self.internal));
        let reverse_paths = self.mirror.reverse_paths(&self.ports);
        let routes = if rss == self.rss && answers_seen == self.answers_seen && reverse_paths == self.reverse_paths {
            self.mirror.routes_if_changed(generation, &self.ports, &captured, internal)
        } else {
            Some(self.mirror.routes(generation, &self.ports, &captured, internal))
        };
        if let Some(routes) = routes {
            self.generation = generation;
            let routes = routes.with_rss(rss.iter().cloned()).with_answers_seen(answers_seen.iter().copied());
            self.in_force = Arc::new(routes.with_reverse_path(reverse_paths.iter().copied()));
            edge.publish_routes(self.in_force.clone());
            let problems = self.mirror.left_to_kernel();
            problems.iter().filter(|problem| !self.problems.contains(problem)).for_each(|problem| tracing::warn!("{problem}"));
            self.problems = problems;
            (self.rss, self.answers_seen, self.reverse_paths) = (rss, answers_seen, reverse_paths);
        }
    }

    /// Makes the kernel resolve a neighbour.
    pub fn resolve(&mut self, wanted: &Wanted) {
        match self.mirror.resolve_neighbour(&self.ports, wanted) {
            Ok(ResolveOutcome::Resolving | ResolveOutcome::Recent) => {}
            Ok(ResolveOutcome::Limited | ResolveOutcome::NoPort) => {
                tracing::debug!("neighbour {} not resolved: over the limit, or no port", wanted.addr);
            }
            Err(e) => tracing::warn!("neighbour {}: {e}", wanted.addr),
        }
    }

    /// Refreshes stale neighbours.
    pub fn keep_neighbours_alive(&mut self) {
        for wanted in self.mirror.stale(&self.ports, STALE_MAX) {
            self.resolve(&wanted);
        }
    }

    /// Waits for the kernel's next change.
    pub async fn changed(&mut self) -> Result<()> {
        Ok(self.mirror.changed().await?)
    }
}
