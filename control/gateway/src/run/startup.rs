//! The stages of the start, in the order of [`super::Gateway::start`].

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use nomagic_api::Status;
use nomagic_api::socket::{Request, Response};
use nomagic_table::settings::Settings;
use nomagic_xsk::{Edge, InterfaceName, Link, OnFailure};
use tokio::sync::mpsc;

use super::edge::edge_config;
use super::http::Http;
use super::pods::PodRanges;
use super::routing::Routing;
use super::signals::{SignalRequest, Signals};
use super::socket::Responder;
use super::supervisor::Supervisor;
use super::tables::{CompiledTables, NodeAddresses};
use crate::config::Config;
use crate::kubeproxy::DropIn;
use crate::net::internal::VethPair;
use crate::net::local::LocalRoutes;
use crate::net::{Mirror, MirrorLimits, NetError, internal, node};
use crate::reconcile::Reconciler;
use crate::seed::Seed;
use crate::status;

/// Open files that the largest gateway needs: some sockets for each of 10,000 health checks, and everything else.
const OPEN_FILES: u64 = 65_536;

/// Applies a kube-proxy configuration. If no interfaces are configured, selects those that carry the node's addresses or the kernel's
/// routes to pods. Needs a tokio runtime.
pub fn complete_config(config: &mut Config, drop_in: &DropIn) -> Result<()> {
    let mirror = Mirror::start(MirrorLimits::default())?;
    let present = mirror.local_addresses();
    drop_in.apply(config, &present);
    if config.interfaces.is_empty() {
        let names = internal::PairNames::default();
        let own = config.settings(&present).node.ips;
        let found = mirror.serving_interfaces(&own, &config.cluster_cidrs, &[&names.kernel, &names.edge]);
        config.interfaces = found.into_iter().map(InterfaceName::try_from).collect::<Result<_, _>>()?;
        tracing::info!("interfaces selected by the node's addresses and its routes to pods: {}", config.interfaces.join(", "));
    }
    if config.interfaces.is_empty() {
        bail!("no interface that is up has an address of this node or a route to pods: name one with --interface");
    }
    Ok(())
}

/// Raises the limit of open files: the HTTP servers' connections, the health checks' sockets and the ports' sockets have separate limits, and
/// together they may exceed the usual soft limit of 1,024.
pub fn raise_limits() {
    let files_max = nomagic_sys::process::raise_open_files(OPEN_FILES);
    if files_max < OPEN_FILES {
        tracing::debug!("the hard limit of open files is {files_max}, fewer than {OPEN_FILES}");
    }
}

/// Creates the internal pair with the ports' largest MTU.
pub fn make_internal_pair(config: &Config) -> Result<VethPair> {
    let links = config.interfaces.iter().map(|name| Link::query(name)).collect::<Result<Vec<_>, _>>()?;
    let mtu = links.iter().map(|l| l.mtu).max().unwrap_or(1500);
    let pair = internal::ensure(&internal::PairNames::default(), mtu)?;
    if let Err(e) = nomagic_xsk::prepare_kernel_side(&pair.kernel.name) {
        tracing::warn!(
            "interface {}: cannot set checksum offload and GRO, so onFailure: pass drops the node's own connections: {e}",
            pair.kernel.name
        );
    }
    Ok(pair)
}

/// Lets nomagic's own connections to the API server pass the routes and rules for Services, before the first one: those of an earlier process
/// may lead the server's address to a pod.
pub fn keep_api_server_reachable(config: &Config) {
    if config.kubernetes.is_none() {
        return;
    }
    if let Err(e) = LocalRoutes::open().and_then(|mut routes| routes.add_bypass()) {
        tracing::warn!("cannot add the routing rules that keep the API server reachable whatever addresses Services claim: {e}");
    }
}

/// Opens the source of objects, without waiting for them.
pub fn open_tables(config: &Config, seed: Option<Seed>, mirror: &mut Mirror, http: &Http) -> Result<CompiledTables> {
    let mut tables = CompiledTables::open(config, seed, NodeAddresses::read(mirror))?;
    http.follow_node(&tables);
    tables.follow_pods(PodRanges::read(config, mirror));
    Ok(tables)
}

/// Waits until enough objects are known for a first table, and answers status requests meanwhile. Returns false on a signal to stop.
pub async fn wait_for_objects(
    tables: &mut CompiledTables,
    http: &Http,
    supervisor: &mut Supervisor,
    requests: &mut mpsc::Receiver<(Request, Responder)>,
    signals: &mut Signals,
) -> Result<bool> {
    let started = Instant::now();
    if !tables.complete() {
        tracing::info!("waiting for objects: {}", tables.missing());
    }
    while !tables.complete() {
        http.set_ready(vec![tables.missing()]);
        supervisor.waiting(&tables.missing());
        tokio::select! {
            changed = tables.changed() => drop(changed?),
            Some((request, responder)) = requests.recv() => responder.send(match request {
                Request::Status {} => {
                    let status = status::waiting(tables.missing(), tables.source_status(), started.elapsed().as_secs());
                    Ok(Response::Status(Box::new(Status { hash_seed_source: tables.seed_source(), ..status })))
                }
                Request::Log { level } => super::answers::follow_log(level.as_deref()),
                Request::Drain { .. } => Err("nomagic is still starting: it is not ready, so there is nothing to drain".into()),
                Request::Explain { .. }
                | Request::Flows { .. }
                | Request::Services { .. }
                | Request::FlowsEnd { .. }
                | Request::Events { .. }
                | Request::TapOpen(_)
                | Request::TapRead { .. }
                | Request::TapClose { .. } => Err(format!("there is no table yet: {}", tables.missing())),
                Request::DenyAdd { .. } | Request::DenyRemove { .. } | Request::DenyList {} => Err(format!(
                    "nomagic is still starting and waits for: {}. Try again when `nomagic status` says ready. Prefixes that an earlier process \
                     denied stay denied",
                    tables.missing()
                )),
            }),
            request = signals.next() => if request == SignalRequest::Stop {
                return Ok(false);
            },
        }
    }
    Ok(true)
}

/// With `detachOnExit`, removes the interfaces, routes and rules of a gateway that stops before its edge has started.
pub fn undo(config: &Config) -> Result<()> {
    if config.detach_on_exit {
        LocalRoutes::open()?.clear()?;
        internal::remove(&internal::PairNames::default())?;
    }
    Ok(())
}

/// Checks that the node's own connections leave ports for SNAT, and routes the internal addresses to the internal port. `present` are the
/// node's addresses in the kernel.
pub fn prepare_sources(settings: &Settings, present: &[IpAddr], pair: &VethPair) -> Result<()> {
    let snat = &settings.snat;
    node_ports(settings)?;
    for addr in [snat.internal_v4, snat.internal_v6].into_iter().flatten() {
        // A configured address that the kernel does not have cannot be a source.
        let own = settings.node.primary.iter().copied().find(|own| own.is_ipv6() == addr.is_ipv6() && present.contains(own));
        internal::route(&pair.kernel, addr, own)?;
    }
    Ok(())
}

/// The ports that SNAT leaves to the node's own connections; none if its sources are not the node's addresses.
///
/// # Errors
/// If these are all ports.
pub fn node_ports(settings: &Settings) -> Result<Option<RangeInclusive<u16>>, NetError> {
    let snat = &settings.snat;
    if !snat.v4.iter().chain(&snat.v6).any(|addr| settings.node.ips.contains(addr)) {
        return Ok(None);
    }
    node::ports_of_the_node(snat.port_first, snat.port_last)
}

/// Starts the workers with the first tables, then drops the capabilities that are no longer needed. Threads started later inherit the
/// rest. Returns the failure policy, too.
pub fn start_edge(config: &Config, tables: &CompiledTables, routing: &Routing) -> Result<(Edge, OnFailure)> {
    let edge_config = edge_config(config, &internal::PairNames::default());
    let on_failure = edge_config.on_failure;
    let edge = Edge::start(edge_config, tables.services(), routing.in_force.clone())?;
    if let Err(e) = nomagic_sys::capabilities::keep_what_is_needed() {
        tracing::warn!("cannot drop capabilities that are no longer needed: {e}");
    }
    Ok((edge, on_failure))
}

/// Starts the thread that ends UDP connections to removed endpoints.
pub fn start_reconciler(edge: &Edge) -> Result<Reconciler> {
    Reconciler::start(edge.table(), edge.replies()).context(
        "cannot start the thread nm-reconcile, which ends UDP connections to removed endpoints: check the limits of threads and memory \
         (pids.max and memory.max of the cgroup, `ulimit -u`)",
    )
}
