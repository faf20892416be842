//! Translates kube-proxy's configuration file, `KubeProxyConfiguration` (kubeproxy.config.k8s.io/v1alpha1, as of Kubernetes 1.36), into a
//! [`DropIn`]. Pure.
//!
//! A field without an equivalent in nomagic gives a warning with its position and the reason. Values of a wrong type are errors. Unknown
//! fields are warnings, not errors: kube-proxy decodes this version leniently when strict decoding fails
//! (cmd/kube-proxy/app/options.go, loadConfig), so a file that kube-proxy accepts must not stop nomagic. A duplicate field is an error,
//! because the intended value is ambiguous.

mod document;
mod fields;
mod translate;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use nomagic_core::tuple::Prefix;
use nomagic_table::objects::addr;
use nomagic_table::settings::NodePortAddresses;

use crate::config::error::ConfigError;
use crate::config::{Config, DetectLocal, Kubernetes, LocalTrafficConfig, read_text};

/// The settings from kube-proxy's configuration file that nomagic supports.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DropIn {
    /// The kubeconfig file as written: relative to the working directory, like kube-proxy's. `None`: the in-cluster configuration.
    pub kubeconfig: Option<PathBuf>,
    /// The Node object's name; `None`: the host name.
    pub node_name: Option<String>,
    /// The node's primary address of its family. Takes precedence over the Node object.
    pub primary: Option<IpAddr>,
    /// Exit when binding one of the two addresses below fails.
    pub bind_address_hard_fail: bool,
    /// The listen address of `/healthz` and `/livez`.
    pub healthz_bind_address: SocketAddr,
    /// The listen address of `/metrics` and `/proxyMode`.
    pub metrics_bind_address: SocketAddr,
    /// How local pods are recognised.
    pub detect_local: DetectLocal,
    /// Pod ranges, at most one per family.
    pub cluster_cidrs: Vec<Prefix>,
    /// SNAT every connection to a cluster IP.
    pub masquerade_all: bool,
    /// `localhostNodePorts`: has no effect; only `explain` reports it.
    pub localhost_node_ports: bool,
    /// The node's addresses that serve node ports.
    pub node_port_addresses: NodePortAddresses,
    /// A change that is not applied after twice this time makes the node unhealthy.
    pub sync_period_ms: u64,
    /// Idle timeouts that the file sets.
    pub idle: IdleTimeouts,
    /// Fields without effect, in the file's order.
    pub warnings: Vec<Warning>,
}

/// Idle timeouts; `None`: nomagic's default.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct IdleTimeouts {
    /// TCP: handshake complete.
    pub tcp_established_ms: Option<u64>,
    /// TCP: FIN from one side acknowledged by the other.
    pub tcp_close_wait_ms: Option<u64>,
    /// UDP: one request, or one request and its reply.
    pub udp_ms: Option<u64>,
    /// UDP: two-way traffic for more than 2 s.
    pub udp_stream_ms: Option<u64>,
}

/// A field of the file that has no effect in nomagic.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Warning {
    pub file: PathBuf,
    /// Line and column, 1-based.
    pub at: (u64, u64),
    /// The field's path, such as `ipvs.scheduler`.
    pub field: String,
    /// Why it has no effect.
    pub message: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: {}: {}", self.file.display(), self.at.0, self.at.1, self.field, self.message)
    }
}

impl DropIn {
    pub fn load(path: &Path) -> Result<DropIn, ConfigError> {
        DropIn::parse(&read_text(path)?, path)
    }

    /// Parses YAML or JSON; `path` is used in messages only.
    pub fn parse(text: &str, path: &Path) -> Result<DropIn, ConfigError> {
        translate::translate(document::Document::read(text, path)?)
    }

    /// Applies the settings to nomagic's own configuration. `discovered` are this node's addresses in the kernel: a family without a
    /// `bindAddress` uses the first of them as its primary address.
    ///
    /// This is the only code that maps the translation to [`Config`].
    pub fn apply(&self, config: &mut Config, discovered: &[IpAddr]) {
        if self.node_name.is_some() {
            config.node.name.clone_from(&self.node_name);
        }
        // `--manifests` replaces the API server.
        if config.manifests.is_none() {
            config.kubernetes = Some(match &self.kubeconfig {
                Some(path) => Kubernetes::Kubeconfig { path: path.clone(), context: None },
                None => Kubernetes::InCluster,
            });
        }
        if let Some(primary) = self.primary {
            config.node.bind_address = Some(primary);
            let other = |ip: &IpAddr| ip.is_ipv6() != primary.is_ipv6() && addr::fault(*ip).is_none();
            config.node.primary_ips = [primary].into_iter().chain(discovered.iter().copied().find(other)).collect();
            config.node.primary_ips.sort();
        }
        config.healthz_bind_address = Some(self.healthz_bind_address);
        config.metrics_bind_address = Some(self.metrics_bind_address);
        config.bind_address_hard_fail = self.bind_address_hard_fail;
        config.sync_period_ms = u32::try_from(self.sync_period_ms).unwrap_or(u32::MAX);
        config.cluster_cidrs.clone_from(&self.cluster_cidrs);
        config.detect_local = self.detect_local.clone();
        // Pods' packets must be redirected where they enter the node.
        if let DetectLocal::Interfaces(patterns) = &self.detect_local {
            config.redirect_interfaces.clone_from(patterns);
        }
        config.masquerade_all = self.masquerade_all;
        // kube-proxy also serves the node's own connections.
        config.local_traffic = LocalTrafficConfig { services: true, own_addresses: true };
        config.localhost_node_ports = self.localhost_node_ports;
        config.node_port_addresses = self.node_port_addresses.clone();
        let timeouts = &mut config.conntrack.timeouts;
        for (given, timeout) in [
            (self.idle.tcp_established_ms, &mut timeouts.tcp_established),
            (self.idle.tcp_close_wait_ms, &mut timeouts.tcp_close_wait),
            (self.idle.udp_ms, &mut timeouts.udp),
            (self.idle.udp_stream_ms, &mut timeouts.udp_stream),
        ] {
            *timeout = given.unwrap_or(*timeout);
        }
    }
}

#[cfg(test)]
mod tests;
