//! The stages of a start, in the order in which [`super::Gateway::start`] takes them.

use std::net::IpAddr;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use nomagic_api::socket::{Request, Response};
use nomagic_table::settings::Settings;
use nomagic_xsk::{Edge, InterfaceName, Link};
use tokio::sync::mpsc;

use super::edge::edge_config;
use super::http::Http;
use super::pods::PodRanges;
use super::routing::Routing;
use super::signals::{Asked, Signals};
use super::socket::Answer;
use super::tables::Tables;
use crate::config::Config;
use crate::kubeproxy::DropIn;
use crate::net::internal::Pair;
use crate::net::local::LocalRoutes;
use crate::net::{Limits, Mirror, internal, node};
use crate::reconcile::Reconciler;
use crate::status;

/// Applies a kube-proxy's file; interfaces that nobody has named are those on which the kernel has the node's addresses and its routes to
/// pods at this moment. Needs a tokio runtime.
pub fn complete_config(config: &mut Config, drop_in: &DropIn) -> Result<()> {
    let mirror = Mirror::start(Limits::default())?;
    let present = mirror.local_addresses();
    drop_in.apply(config, &present);
    if config.interfaces.is_empty() {
        let names = internal::Names::default();
        let own = config.settings(&present).node.ips;
        let found = mirror.serving_interfaces(&own, &config.cluster_cidrs, &[&names.kernel, &names.edge]);
        config.interfaces = found.into_iter().map(InterfaceName::try_from).collect::<Result<_, _>>()?;
        tracing::info!("interfaces found by the node's addresses and its routes to pods: {}", config.interfaces.join(", "));
    }
    if config.interfaces.is_empty() {
        bail!("no interface that is up has an address of this node or a route to pods: name one with --interface");
    }
    Ok(())
}

/// The internal pair, with the largest MTU of the ports.
pub fn make_internal_pair(config: &Config) -> Result<Pair> {
    let links = config.interfaces.iter().map(|name| Link::query(name)).collect::<Result<Vec<_>, _>>()?;
    let mtu = links.iter().map(|l| l.mtu).max().unwrap_or(1500);
    let pair = internal::ensure(&internal::Names::default(), mtu)?;
    if let Err(e) = nomagic_xsk::prepare_kernel_side(&pair.kernel.name) {
        tracing::warn!(
            "interface {}: checksums and GRO could not be set, so onFailure: pass drops the node's own connections: {e}",
            pair.kernel.name
        );
    }
    Ok(pair)
}

/// The source of objects, before they are known.
pub fn open_tables(config: &Config, mirror: &mut Mirror, http: &Http) -> Result<Tables> {
    let mut tables = Tables::open(config, mirror.local_addresses())?;
    http.follow_node(&tables);
    tables.follow_pods(PodRanges::read(config, mirror));
    Ok(tables)
}

/// Waits until enough objects are known to program a table; requests for the status are answered meanwhile. False: asked to end.
pub async fn wait_for_objects(
    tables: &mut Tables,
    requests: &mut mpsc::Receiver<(Request, Answer)>,
    signals: &mut Signals,
    started: Instant,
) -> Result<bool> {
    if !tables.complete() {
        tracing::info!("waiting for objects: {}", tables.missing());
    }
    while !tables.complete() {
        tokio::select! {
            changed = tables.changed() => drop(changed?),
            Some((request, answer)) = requests.recv() => answer.send(match request {
                Request::Status {} => {
                    let status = status::waiting(tables.missing(), tables.source_status(), started.elapsed().as_secs());
                    Ok(Response::Status(Box::new(status)))
                }
                Request::Explain { .. } => Err(format!("there is no table yet: {}", tables.missing())),
            }),
            asked = signals.next() => if asked == Asked::ToEnd {
                return Ok(false);
            },
        }
    }
    Ok(true)
}

/// Removes what a gateway that has carried nothing has made, if it is to remove anything.
pub fn undo(config: &Config) -> Result<()> {
    if config.detach_on_exit {
        LocalRoutes::open()?.clear()?;
        internal::remove(&internal::Names::default())?;
    }
    Ok(())
}

/// Checks that the kernel leaves the SNAT ports alone, and routes the internal addresses to the internal port. `present`: the kernel's
/// addresses of this node.
pub fn prepare_sources(settings: &Settings, present: &[IpAddr], pair: &Pair) -> Result<()> {
    let snat = &settings.snat;
    let own: Vec<_> = [snat.v4, snat.v6].into_iter().flatten().filter(|a| settings.node.ips.contains(a)).collect();
    node::check_snat_range(&own, snat.port_first, snat.port_last)?;
    for addr in [snat.internal_v4, snat.internal_v6].into_iter().flatten() {
        // An own address that is only configured cannot be a source.
        let own = settings.node.primary.iter().copied().find(|own| own.is_ipv6() == addr.is_ipv6() && present.contains(own));
        internal::route(&pair.kernel, addr, own)?;
    }
    Ok(())
}

/// Starts the workers with the first tables, then gives up the capabilities that nothing needs any more. Threads started from here on
/// inherit what is left.
pub fn start_edge(config: &Config, tables: &Tables, routing: &Routing) -> Result<Edge> {
    let edge = Edge::start(edge_config(config, &internal::Names::default()), tables.services(), routing.in_force.clone())?;
    if let Err(e) = nomagic_sys::capabilities::keep_what_is_needed() {
        tracing::warn!("capabilities that are no longer needed could not be given up: {e}");
    }
    Ok(edge)
}

/// Starts the thread that ends UDP connections to endpoints that are gone.
pub fn start_reconciler(edge: &Edge) -> Result<Reconciler> {
    Reconciler::start(edge.table(), edge.replies()).context(
        "the thread nm-reconcile, which ends UDP connections to endpoints that are gone, cannot be started: see the limits of threads and of \
         memory (pids.max and memory.max of the cgroup, `ulimit -u`)",
    )
}
