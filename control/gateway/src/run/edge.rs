//! What the configuration means for the edge, and how the edge's questions reach the control loop.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use nomagic_core::frame::Wanted;
use nomagic_xsk::{Edge, EdgeConfig, Idle, InternalPair, OnFailure, REPLY_BUCKETS_MAX};
use tokio::sync::mpsc;

use crate::config::{self, Config};
use crate::net::internal;

/// Questions about neighbours on their way to the control thread.
const WANTED_QUEUE: usize = 1_024;

/// Signs of a kernel proxy: a command that lists rules, and what kube-proxy's rules are called in it.
const KERNEL_PROXIES: [(&str, &[&str], &str, &str); 4] = [
    ("nft", &["list", "tables"], "kube-proxy", "kube-proxy's nftables table found"),
    ("iptables-save", &["-t", "nat"], "KUBE-SERVICES", "kube-proxy's iptables chains found"),
    ("ip6tables-save", &["-t", "nat"], "KUBE-SERVICES", "kube-proxy's ip6tables chains found"),
    ("ip", &["-br", "link", "show", "kube-ipvs0"], "kube-ipvs0", "kube-proxy's IPVS interface found"),
];

/// The edge's configuration.
pub fn edge_config(config: &Config, names: &internal::Names) -> EdgeConfig {
    let workers = &config.workers;
    let grace = Duration::from_millis(u64::from(config.grace_ms));
    let defaults = EdgeConfig::new(config.state_dir.clone(), config.interfaces.clone());
    EdgeConfig {
        internal: Some(InternalPair {
            kernel_side: names.kernel.clone(),
            edge_side: names.edge.clone(),
            addresses: [false, true].map(|v6| config.snat.internal_addresses.iter().copied().find(|a| a.is_ipv6() == v6)),
        }),
        conntrack_capacity: config.conntrack.capacity,
        conntrack_file: config.conntrack.file.clone(),
        conntrack_huge_pages: config.conntrack.huge_pages,
        timeouts: config.conntrack.timeouts.into(),
        ring_size: config.packets.ring_size,
        frame_size: config.packets.frame_size,
        headroom: config.packets.headroom,
        huge_pages: config.packets.huge_pages,
        // An eighth full when every connection is announced: a bucket of 16 that is full is then one in a thousand million. Those in a full one are refused
        // each time that they try again, so at a quarter, one in 200,000, clients notice.
        reply_buckets: (config.conntrack.capacity / 2).next_power_of_two().clamp(64, REPLY_BUCKETS_MAX),
        idle: match workers.idle {
            config::Idle::Spin => Idle::Spin,
            config::Idle::Sleep => defaults.idle,
        },
        workers: workers.count,
        cpus: workers.cpus.iter().map(|&cpu| usize::from(cpu)).collect(),
        fresh: defaults.fresh.min(grace),
        grace,
        on_failure: on_failure(config.on_failure),
        targets_max: nomagic_table::compile::TARGETS_MAX as usize,
        ..defaults
    }
}

fn on_failure(configured: config::OnFailure) -> OnFailure {
    match configured {
        config::OnFailure::Pass => OnFailure::Pass,
        config::OnFailure::Drop => OnFailure::Drop,
        config::OnFailure::Auto => {
            let (found, choice) = match find_kernel_proxy() {
                Some(rules) => (rules, OnFailure::Pass),
                None => ("no kernel proxy found".into(), OnFailure::Drop),
            };
            tracing::info!("onFailure: auto: {found}: {choice:?} after the grace period");
            choice
        }
    }
}

/// The first sign of a kernel proxy (kube-proxy in iptables, nftables or IPVS mode), in words: with one, passing frames to the kernel
/// when nomagic fails is better than dropping them. Tools that are not installed find nothing.
fn find_kernel_proxy() -> Option<String> {
    KERNEL_PROXIES.iter().find_map(|(program, args, sign, words)| {
        let output = Command::new(program).args(*args).output().ok()?;
        let seen = output.status.success() && String::from_utf8_lossy(&output.stdout).contains(sign);
        seen.then(|| (*words).to_owned())
    })
}

/// Brings the workers' questions into the control loop, on a thread that ends with the edge.
pub fn forward_wanted(edge: &Edge) -> Result<mpsc::Receiver<Wanted>> {
    let (sender, receiver) = mpsc::channel(WANTED_QUEUE);
    let wanted = edge.wanted().clone();
    std::thread::Builder::new()
        .name("nm-wanted".into())
        .spawn(move || {
            // When control does not keep up the question is dropped: it is repeated while frames ask for it.
            wanted.iter().take_while(|_| !sender.is_closed()).for_each(|w| {
                let _ = sender.try_send(w);
            });
        })
        .context("cannot start a thread")?;
    Ok(receiver)
}
