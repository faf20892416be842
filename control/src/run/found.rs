//! What a kube-proxy's configuration leaves to be found out: the node's addresses, the interfaces.

use anyhow::{Result, bail};

use crate::config::Config;
use crate::kubeproxy::DropIn;
use crate::net::{Limits, Mirror, internal};

/// Applies a kube-proxy's file; interfaces that nobody has named are those on which the kernel has the node's addresses and its routes to
/// pods at this moment. Needs a tokio runtime.
pub fn complete(config: &mut Config, drop_in: &DropIn) -> Result<()> {
    let mirror = Mirror::start(Limits::default())?;
    let present = mirror.local_addresses();
    drop_in.apply(config, &present);
    if config.interfaces.is_empty() {
        let names = internal::Names::default();
        let own = config.settings(&present).node.ips;
        config.interfaces = mirror.serving_interfaces(&own, &config.cluster_cidrs, &[&names.kernel, &names.edge]);
        tracing::info!("interfaces found by the node's addresses and its routes to pods: {}", config.interfaces.join(", "));
    }
    if config.interfaces.is_empty() {
        bail!("no interface that is up has an address of this node or a route to pods: name one with --interface");
    }
    Ok(())
}
