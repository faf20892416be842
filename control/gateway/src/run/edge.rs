//! Derives the edge's configuration, and forwards the workers' neighbour requests to the control loop.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use nomagic_core::frame::Wanted;
use nomagic_xsk::{ADDRESSES_MAX, Edge, EdgeConfig, Idle, InternalPair, OnFailure, REPLY_BUCKETS_MAX};
use tokio::sync::mpsc;

use crate::config::{self, Config};
use crate::net::internal;

/// Maximum number of neighbour requests queued for the control thread.
const WANTED_QUEUE: usize = 1_024;

/// How to detect a kernel proxy: command, arguments, text to find in the output, log message.
const KERNEL_PROXIES: [(&str, &[&str], &str, &str); 4] = [
    ("nft", &["list", "tables"], "kube-proxy", "kube-proxy's nftables table found"),
    ("iptables-save", &["-t", "nat"], "KUBE-SERVICES", "kube-proxy's iptables chains found"),
    ("ip6tables-save", &["-t", "nat"], "KUBE-SERVICES", "kube-proxy's ip6tables chains found"),
    ("ip", &["-br", "link", "show", "kube-ipvs0"], "kube-ipvs0", "kube-proxy's IPVS interface found"),
];

/// The edge's configuration.
pub fn edge_config(config: &Config, names: &internal::PairNames) -> EdgeConfig {
    let workers = &config.workers;
    let grace = Duration::from_millis(u64::from(config.grace_ms));
    let defaults = EdgeConfig::new(config.state_dir.clone(), config.interfaces.clone());
    EdgeConfig {
        internal: Some(InternalPair {
            kernel_side: names.kernel.clone(),
            edge_side: names.edge.clone(),
            addresses: [false, true].map(|v6| config.snat.internal_addresses.iter().copied().find(|a| a.is_ipv6() == v6)),
        }),
        mac_addresses: config.mac_addresses.clone(),
        vlans: config.vlans.clone(),
        conntrack_capacity: config.conntrack.capacity,
        conntrack_file: config.conntrack.file.clone(),
        conntrack_huge_pages: config.conntrack.huge_pages,
        timeouts: config.conntrack.timeouts.into(),
        ring_size: config.packets.ring_size,
        frame_size: config.packets.frame_size,
        headroom: config.packets.headroom,
        huge_pages: config.packets.huge_pages,
        // At most one eighth full, since every connection is announced: then one bucket of 16 in 2 * 10^9 overflows. At one quarter it would be
        // one in 200,000, and a new connection is rejected if all 16 in its bucket are established.
        reply_buckets: (config.conntrack.capacity / 2).next_power_of_two().clamp(64, REPLY_BUCKETS_MAX),
        idle: match workers.idle {
            config::WorkerIdle::Spin => Idle::Spin,
            config::WorkerIdle::Sleep => defaults.idle,
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

fn on_failure(configured: config::FailurePolicy) -> OnFailure {
    match configured {
        config::FailurePolicy::Pass => OnFailure::Pass,
        config::FailurePolicy::Drop => OnFailure::Drop,
        config::FailurePolicy::Auto => {
            let (found, choice) = match find_kernel_proxy() {
                Some(rules) => (rules, OnFailure::Pass),
                None => ("no kernel proxy found".into(), OnFailure::Drop),
            };
            tracing::info!("onFailure: auto: {found}: {choice:?} after the grace period");
            choice
        }
    }
}

/// Looks for a kernel proxy (kube-proxy in iptables, nftables or IPVS mode) and returns the log message for the first one found. With a
/// kernel proxy, passing frames to the kernel when nomagic fails is better than dropping them. Tools that are not installed are skipped.
fn find_kernel_proxy() -> Option<String> {
    KERNEL_PROXIES.iter().find_map(|(program, args, sign, words)| {
        let output = Command::new(program).args(*args).output().ok()?;
        let seen = output.status.success() && String::from_utf8_lossy(&output.stdout).contains(sign);
        seen.then(|| (*words).to_owned())
    })
}

/// The problem of load balancer and external IPs that the XDP filter has no room for.
pub fn outer_problem(left_out: usize) -> Option<String> {
    let text = format!(
        "unusedPorts: the XDP filter has no room for {left_out} load balancer and external IPs beside the cluster IPs (at most {ADDRESSES_MAX} \
         addresses): the kernel gets packets for their unused ports, and pings. Add an `unreachable` route for the pool of load balancer addresses"
    );
    (left_out > 0).then_some(text)
}

/// Forwards the workers' neighbour requests to the control loop, on a thread that ends with the edge.
pub fn forward_wanted(edge: &Edge) -> Result<mpsc::Receiver<Wanted>> {
    let (sender, receiver) = mpsc::channel(WANTED_QUEUE);
    let wanted = edge.wanted().clone();
    std::thread::Builder::new()
        .name("nm-wanted".into())
        .spawn(move || {
            // A request that does not fit the queue is dropped; workers repeat it while frames need the neighbour.
            wanted.iter().take_while(|_| !sender.is_closed()).for_each(|w| {
                let _ = sender.try_send(w);
            });
        })
        .context("cannot start the thread nm-wanted")?;
    Ok(receiver)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_without_room_are_a_problem() {
        assert_eq!(outer_problem(0), None);
        assert!(outer_problem(7).is_some_and(|text| text.contains("no room for 7 load balancer") && text.contains("at most 131072")));
    }
}
