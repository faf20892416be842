//! The configuration file: YAML, every field documented here and in `deploy/example/nomagic.yaml`.
//!
//! Fields are read into their final types at once ([`values`]); a fault is reported with its file, line, column, the field's name and
//! what is allowed. Unknown fields are errors: a misspelt option must not be a silent default.

mod detect_local;
pub mod error;
pub mod kubernetes;
mod listen;
pub mod packets;
pub mod patterns;
mod settings;
pub mod timeouts;
pub(crate) mod tree;
pub mod values;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use nomagic_core::tuple::Prefix;
use nomagic_table::settings::NodePortAddresses;
use serde::Deserialize;

pub use detect_local::DetectLocal;
use error::ConfigError;
pub use kubernetes::Kubernetes;
use nomagic_xsk::InterfaceName;
pub use packets::PacketsConfig;
pub use patterns::Pattern;
pub use timeouts::TimeoutsConfig;
pub use values::{Idle, OnFailure, PortRange, Reject, Workers};

/// Largest configuration file, bytes.
const FILE_MAX: u64 = 1 << 20;

/// Everything that `nomagic run` and `nomagic explain` are told.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Config {
    /// Who this node is.
    pub node: NodeConfig,
    /// Pod ranges. Clients in here count as pods; without a range of a family, pods of that family cannot be told apart.
    #[serde(rename = "clusterCIDRs", deserialize_with = "values::cidrs")]
    pub cluster_cidrs: Vec<Prefix>,
    /// By what pods are told from other clients; in this file always by ranges.
    #[serde(skip)]
    pub detect_local: DetectLocal,
    /// Ranges of cluster IPs. Addresses in here that no Service has are answered with silence.
    #[serde(rename = "serviceCIDRs", deserialize_with = "values::cidrs")]
    pub service_cidrs: Vec<Prefix>,
    /// Replace the client's address on every connection to a cluster IP, also for pods.
    pub masquerade_all: bool,
    /// Accepted for kube-proxy's sake. Packets to 127.0.0.1 never leave the node, so nomagic never sees them, and `explain` says so.
    pub localhost_node_ports: bool,
    /// On which of the node's addresses node ports answer: `primary` (default), or CIDRs; `[]` is every address of the node.
    #[serde(deserialize_with = "values::node_port_addresses")]
    pub node_port_addresses: NodePortAddresses,
    /// Network interfaces to take over, by name. `explain` needs none.
    #[serde(deserialize_with = "values::interfaces")]
    pub interfaces: Vec<InterfaceName>,
    /// Interfaces of this node that come and go (the host's ends of pods' cables, tunnels), by pattern: `*` is any text, `?` any character.
    /// Pods behind them reach Services, and Services them, over the kernel.
    #[serde(deserialize_with = "patterns::patterns")]
    pub redirect_interfaces: Vec<Pattern>,
    /// Kubernetes YAML: a file, or a directory of `*.yaml`, `*.yml`, `*.json`. Relative to the configuration file.
    pub manifests: Option<PathBuf>,
    /// The API server to watch, instead of `manifests`.
    pub kubernetes: Option<Kubernetes>,
    /// Source NAT.
    pub snat: SnatConfig,
    /// Threads: a number, or `{count, cpus, idle}`.
    pub workers: Workers,
    /// The memory that packets are received into.
    pub packets: PacketsConfig,
    /// Connections that this node itself opens to Services.
    pub local_traffic: LocalTrafficConfig,
    /// The connection table.
    pub conntrack: ConntrackConfig,
    /// The hash that chooses backends.
    pub hash: HashConfig,
    /// How clients of a Service without endpoints, or of a port that it does not have, are told: `icmp` (default, as kube-proxy does), or
    /// `tcpReset` for TCP.
    pub reject: Reject,
    /// What the XDP program does with Services' packets when no worker has been alive for longer than `graceMs`.
    pub on_failure: OnFailure,
    /// Take the XDP program off the interfaces when the process ends in an orderly way.
    pub detach_on_exit: bool,
    /// Where pins and state live.
    pub state_dir: PathBuf,
    /// Where `/healthz` and `/livez` are answered; `""`: nowhere. A missing port is 10256. Default: 0.0.0.0:10256.
    #[serde(deserialize_with = "listen::healthz")]
    pub healthz_bind_address: Option<SocketAddr>,
    /// Where `/metrics` is answered; `""`: nowhere. A missing port is 10249. Default: 127.0.0.1:10249.
    #[serde(deserialize_with = "listen::metrics")]
    pub metrics_bind_address: Option<SocketAddr>,
    /// End when one of the two cannot be listened on. Default: false, it is tried again every five seconds.
    pub bind_address_hard_fail: bool,
    /// A change of the objects that is not in force after twice this time makes the node unhealthy. Milliseconds, 1,000 to 3,600,000.
    #[serde(deserialize_with = "values::sync_period_ms")]
    pub sync_period_ms: u32,
    /// How long Services' packets are dropped after the workers stopped, before `onFailure` applies. Milliseconds, 100 to 60,000.
    #[serde(deserialize_with = "values::grace_ms")]
    pub grace_ms: u32,
}

/// Who this node is.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct NodeConfig {
    /// The Node object's name. Default: the host name in lower case.
    #[serde(deserialize_with = "values::node_name")]
    pub name: Option<String>,
    /// All of the node's addresses. Default: found out when running; `primaryIPs` for `explain`.
    #[serde(deserialize_with = "values::ips")]
    pub ips: Vec<IpAddr>,
    /// The node's InternalIPs, one a family. Default: the first of `ips` of each family.
    #[serde(rename = "primaryIPs", deserialize_with = "values::ip_per_family")]
    pub primary_ips: Vec<IpAddr>,
    /// The primary address of its family before all others: a kube-proxy's `bindAddress`.
    #[serde(skip)]
    pub bind_address: Option<IpAddr>,
    /// The Node object's labels; `topology.kubernetes.io/zone` is the one that counts.
    pub labels: BTreeMap<String, String>,
}

/// Source NAT.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct SnatConfig {
    /// Addresses that replace clients' addresses, one a family. Default: the node's primary addresses.
    #[serde(deserialize_with = "values::ip_per_family")]
    pub addresses: Vec<IpAddr>,
    /// Source ports, `FIRST-LAST`. Must not overlap the kernel's own ip_local_port_range. Default: 61000-65535.
    pub ports: PortRange,
    /// The most of the ports towards one endpoint that one client or one Service may hold, percent, 1 to 100. Default: 90, so that nobody
    /// takes the last ones.
    #[serde(deserialize_with = "values::percent")]
    pub share: u8,
    /// Addresses that replace clients' addresses towards endpoints on this node whose answers would not come by nomagic (host network,
    /// interfaces that it does not look at), one a family. Routed to the internal port. Default: 169.254.78.78, fd4e:6f6d:6167::78.
    #[serde(deserialize_with = "values::ip_per_family")]
    pub internal_addresses: Vec<IpAddr>,
}

impl Default for SnatConfig {
    fn default() -> SnatConfig {
        let internal_addresses =
            vec![Ipv4Addr::new(169, 254, 78, 78).into(), Ipv6Addr::new(0xfd4e, 0x6f6d, 0x6167, 0, 0, 0, 0, 0x78).into()];
        SnatConfig { addresses: Vec::new(), ports: PortRange::default(), share: 90, internal_addresses }
    }
}

/// Connections that this node itself opens to Services.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct LocalTrafficConfig {
    /// To addresses that only Services have: routes and a rule lead them to the internal port. Default: true.
    pub services: bool,
    /// To node ports and other Services' ports on addresses of the node itself: the rule for the kernel's `local` table is moved from preference 0
    /// to 71, and rules for these ports stand before it. Default: false, with a kube-proxy's file true.
    pub own_addresses: bool,
}

impl Default for LocalTrafficConfig {
    fn default() -> LocalTrafficConfig {
        LocalTrafficConfig { services: true, own_addresses: false }
    }
}

/// The connection table.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct ConntrackConfig {
    /// Connections at the most, 1,024 to 67,108,864. Default: 1,048,576.
    #[serde(deserialize_with = "values::capacity")]
    pub capacity: u32,
    /// The file of the table, with which the next process goes on: an absolute path, in a tmpfs or a hugetlbfs. Default: none, the table
    /// ends with the process.
    #[serde(deserialize_with = "values::absolute_path")]
    pub file: Option<PathBuf>,
    /// A table without a file lies on huge pages of 2 MiB, which must have been set aside (`vm.nr_hugepages`). Default: false.
    pub huge_pages: bool,
    /// How long idle connections are remembered.
    pub timeouts: TimeoutsConfig,
}

/// The hash that chooses backends.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct HashConfig {
    /// Any number of 64 bits; the same on every gateway of a cluster, so that all choose alike. Default: 0.
    #[serde(deserialize_with = "values::seed")]
    pub seed: u64,
}

impl Default for ConntrackConfig {
    fn default() -> ConntrackConfig {
        ConntrackConfig { capacity: 1 << 20, file: None, huge_pages: false, timeouts: TimeoutsConfig::default() }
    }
}

impl Default for Config {
    fn default() -> Config {
        Config {
            node: NodeConfig::default(),
            cluster_cidrs: Vec::new(),
            detect_local: DetectLocal::default(),
            service_cidrs: Vec::new(),
            masquerade_all: false,
            localhost_node_ports: true,
            node_port_addresses: NodePortAddresses::default(),
            interfaces: Vec::new(),
            redirect_interfaces: Vec::new(),
            manifests: None,
            kubernetes: None,
            snat: SnatConfig::default(),
            workers: Workers::default(),
            packets: PacketsConfig::default(),
            local_traffic: LocalTrafficConfig::default(),
            conntrack: ConntrackConfig::default(),
            hash: HashConfig::default(),
            reject: Reject::default(),
            on_failure: OnFailure::default(),
            detach_on_exit: false,
            state_dir: PathBuf::from("/run/nomagic"),
            healthz_bind_address: listen::healthz_default(),
            metrics_bind_address: listen::metrics_default(),
            bind_address_hard_fail: false,
            sync_period_ms: 30_000,
            grace_ms: 2_000,
        }
    }
}

impl Config {
    /// Reads a configuration file; `manifests` and the files of `kubernetes` become relative to the working directory.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let text = read_text(path)?;
        let mut config = Config::parse(&text, path)?;
        if let Some(dir) = path.parent() {
            config.manifests = config.manifests.map(|m| dir.join(m));
            config.kubernetes = config.kubernetes.map(|k| k.relative_to(dir));
        }
        Ok(config)
    }

    /// Reads the text of a configuration file; `path` is for error messages.
    pub fn parse(text: &str, path: &Path) -> Result<Config, ConfigError> {
        let config: Config = error::read(text, path)?;
        if config.manifests.is_some() && config.kubernetes.is_some() {
            let message = "manifests are named as well: objects come either from files or from an API server";
            return Err(ConfigError::missing(path, "kubernetes", message));
        }
        Ok(config)
    }

    /// This node's name: configured, or the host name.
    pub fn node_name(&self) -> String {
        let host = || std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        self.node.name.clone().unwrap_or_else(|| host().trim().to_ascii_lowercase())
    }
}

/// The text of a configuration file.
pub(crate) fn read_text(path: &Path) -> Result<String, ConfigError> {
    let unreadable = |what: String| ConfigError::whole(path, what);
    let length = std::fs::metadata(path).map_err(|e| unreadable(format!("cannot be read: {e}")))?.len();
    if length > FILE_MAX {
        return Err(unreadable(format!("{length} bytes long, {FILE_MAX} are allowed: is it really a configuration file?")));
    }
    std::fs::read_to_string(path).map_err(|e| unreadable(format!("cannot be read: {e}")))
}

#[cfg(test)]
mod tests;
