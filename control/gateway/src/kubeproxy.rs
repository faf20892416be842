//! A kube-proxy's configuration file taken over: `KubeProxyConfiguration` (kubeproxy.config.k8s.io/v1alpha1, as of Kubernetes 1.36) in,
//! [`DropIn`] out. Pure.
//!
//! What means something here is translated; what does not is a warning that names the field, its place and the reason. Values of a wrong
//! type are errors. Unknown fields are warnings, not errors: kube-proxy decodes this version leniently when strict decoding fails
//! (cmd/kube-proxy/app/options.go, loadConfig), so a file that it starts with must not stop nomagic. A field that stands twice is an
//! error: which of the two was meant nobody can tell.

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

/// What a kube-proxy's configuration file asks of nomagic.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DropIn {
    /// The kubeconfig file, as written (relative to the working directory, as for kube-proxy); `None`: the cluster of this pod.
    pub kubeconfig: Option<PathBuf>,
    /// The Node object's name; `None`: the host's.
    pub node_name: Option<String>,
    /// The node's primary address of its family, whatever the Node object says.
    pub primary: Option<IpAddr>,
    /// End when one of the two addresses below cannot be listened on.
    pub bind_address_hard_fail: bool,
    /// Where `/healthz` and `/livez` are served.
    pub healthz_bind_address: SocketAddr,
    /// Where `/metrics` and `/proxyMode` are served.
    pub metrics_bind_address: SocketAddr,
    /// By what pods are told from other clients.
    pub detect_local: DetectLocal,
    /// Pod ranges, at most one a family.
    pub cluster_cidrs: Vec<Prefix>,
    /// Replace the client's address on every connection to a cluster IP.
    pub masquerade_all: bool,
    /// `localhostNodePorts`, which only `explain` mentions.
    pub localhost_node_ports: bool,
    /// On which of the node's addresses node ports answer.
    pub node_port_addresses: NodePortAddresses,
    /// A change that is not in force after twice this time makes the node unhealthy. Milliseconds.
    pub sync_period_ms: u64,
    /// Idle times of connections, where the file sets them.
    pub idle: IdleTimes,
    /// What is in the file and means nothing here, in the file's order.
    pub warnings: Vec<Warning>,
}

/// Idle times in milliseconds; `None`: nomagic's default stays.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct IdleTimes {
    /// TCP: both have agreed.
    pub tcp_established_ms: Option<u64>,
    /// TCP: the endpoint is done and the client is not.
    pub tcp_close_wait_ms: Option<u64>,
    /// UDP: a question, with or without its answer.
    pub udp_ms: Option<u64>,
    /// UDP: answered, and still carrying packets after 2 s.
    pub udp_stream_ms: Option<u64>,
}

/// Something in the file that nomagic does not do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Warning {
    /// The file.
    pub file: PathBuf,
    /// Line and column, from 1.
    pub at: (u64, u64),
    /// The field, as `ipvs.scheduler`.
    pub field: String,
    /// Why it means nothing here.
    pub message: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: {}: {}", self.file.display(), self.at.0, self.at.1, self.field, self.message)
    }
}

impl DropIn {
    /// Reads a file.
    pub fn load(path: &Path) -> Result<DropIn, ConfigError> {
        DropIn::parse(&read_text(path)?, path)
    }

    /// Reads the text of a file, YAML or JSON; `path` is for messages.
    pub fn parse(text: &str, path: &Path) -> Result<DropIn, ConfigError> {
        translate::translate(document::Document::read(text, path)?)
    }

    /// Puts what the file says into nomagic's own configuration. `discovered`: the kernel's addresses of this node, of which a family
    /// without a `bindAddress` has the first as its primary one.
    ///
    /// This is the one place where the translation meets [`Config`].
    pub fn apply(&self, config: &mut Config, discovered: &[IpAddr]) {
        if self.node_name.is_some() {
            config.node.name.clone_from(&self.node_name);
        }
        // Objects from files were asked for on the command line.
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
        // Where pods are, their packets must be met.
        if let DetectLocal::Interfaces(patterns) = &self.detect_local {
            config.redirect_interfaces.clone_from(patterns);
        }
        config.masquerade_all = self.masquerade_all;
        // As a kube-proxy, which is there for the node's own connections, too.
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
