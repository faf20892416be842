//! What a gateway finds out before it takes frames: the interfaces that a kube-proxy's file leaves open, the first objects, a kernel proxy.

use std::process::Command;
use std::time::Instant;

use anyhow::{Result, bail};
use nomagic_api::socket::{Request, Response};
use nomagic_xsk::InterfaceName;
use tokio::sync::mpsc;

use super::signals::{Asked, Signals};
use super::socket::Answer;
use super::tables::Tables;
use crate::config::Config;
use crate::kubeproxy::DropIn;
use crate::net::{Limits, Mirror, internal};
use crate::status;

/// Signs of a kernel proxy: a command that lists rules, and what kube-proxy's rules are called in it.
const KERNEL_PROXIES: [(&str, &[&str], &str, &str); 4] = [
    ("nft", &["list", "tables"], "kube-proxy", "kube-proxy's nftables table found"),
    ("iptables-save", &["-t", "nat"], "KUBE-SERVICES", "kube-proxy's iptables chains found"),
    ("ip6tables-save", &["-t", "nat"], "KUBE-SERVICES", "kube-proxy's ip6tables chains found"),
    ("ip", &["-br", "link", "show", "kube-ipvs0"], "kube-ipvs0", "kube-proxy's IPVS interface found"),
];

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
            Some((Request::Status {}, answer)) = requests.recv() => {
                let status = status::waiting(tables.missing(), tables.source_status(), started.elapsed().as_secs());
                answer.send(Ok(Response::Status(Box::new(status))));
            }
            asked = signals.next() => if asked == Asked::ToEnd {
                return Ok(false);
            },
        }
    }
    Ok(true)
}

/// The first sign of a kernel proxy (kube-proxy in iptables, nftables or IPVS mode), in words: with one, passing frames to the kernel
/// when nomagic fails is better than dropping them. Tools that are not installed find nothing.
pub fn find_kernel_proxy() -> Option<String> {
    KERNEL_PROXIES.iter().find_map(|(program, args, sign, words)| {
        let output = Command::new(program).args(*args).output().ok()?;
        let seen = output.status.success() && String::from_utf8_lossy(&output.stdout).contains(sign);
        seen.then(|| (*words).to_owned())
    })
}
