//! The configuration file: YAML, every field documented here and in `deploy/example/nomagic.yaml`.
//!
//! Fields are parsed directly into their final types ([`values`]). An error names the file, line, column and field, and the allowed values.
//! Unknown fields are errors, so that a misspelt option does not silently keep its default.

mod addressed;
mod deny;
mod detect_local;
pub mod error;
pub mod kubernetes;
pub mod limits;
mod listen;
mod log;
mod metrics;
mod mss;
pub mod packets;
pub mod patterns;
mod settings;
mod socket_group;
pub mod timeouts;
pub(crate) mod tree;
pub mod values;
mod workers;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use nomagic_core::services::UnusedPorts;
use nomagic_core::tuple::Prefix;
use nomagic_sys::shortage::explained;
use nomagic_table::settings::NodePortAddresses;
use serde::Deserialize;

pub use deny::DenyConfig;
pub use detect_local::DetectLocal;
use error::ConfigError;
pub use kubernetes::Kubernetes;
pub use limits::LimitsConfig;
pub use log::LogConfig;
pub use metrics::MetricsConfig;
pub use mss::Mss;
use nomagic_xsk::{InterfaceName, MacAddress, VlanId};
pub use packets::PacketsConfig;
pub use patterns::Pattern;
pub use socket_group::SocketGroup;
pub use timeouts::TimeoutsConfig;
pub use values::{FailurePolicy, PortRange, Reject};
pub use workers::{WorkerIdle, WorkersConfig};

/// Maximum size of a configuration file in bytes.
const FILE_MAX: u64 = 1 << 20;

/// The configuration of `nomagic run` and `nomagic explain`.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Config {
    pub node: NodeConfig,
    /// Pod ranges. A client in one of them counts as a pod. Without a range of a family, pods of that family are not recognised.
    #[serde(rename = "clusterCIDRs", deserialize_with = "values::cidrs")]
    pub cluster_cidrs: Vec<Prefix>,
    /// How pods are recognised. Set only from kube-proxy's file.
    #[serde(skip)]
    pub detect_local: DetectLocal,
    /// Ranges of cluster IPs. Packets to an address in them that no Service uses are dropped.
    #[serde(rename = "serviceCIDRs", deserialize_with = "values::cidrs")]
    pub service_cidrs: Vec<Prefix>,
    /// SNAT every connection to a cluster IP, also those of pods.
    pub masquerade_all: bool,
    /// Accepted for compatibility with kube-proxy; has no effect. Packets to 127.0.0.1 never leave the node, so nomagic never receives them;
    /// `explain` reports this.
    pub localhost_node_ports: bool,
    /// The node's addresses that serve node ports: `primary` (default) or CIDRs. `[]` means every address of the node.
    #[serde(deserialize_with = "values::node_port_addresses")]
    pub node_port_addresses: NodePortAddresses,
    /// Addresses of this node on which local processes keep even the ports of Services, such as a node-local DNS cache's.
    #[serde(deserialize_with = "values::cidrs")]
    pub keep_local: Vec<Prefix>,
    /// Addresses that `spec.externalIPs` may name, and no others. Default: all but cluster IP ranges, pod ranges, this node's primary addresses and the
    /// API servers'.
    #[serde(rename = "allowedExternalIPs", deserialize_with = "values::optional_cidrs")]
    pub allowed_external_ips: Option<Vec<Prefix>>,
    /// Names of the network interfaces to take over. Not required by `explain`.
    #[serde(deserialize_with = "values::interfaces")]
    pub interfaces: Vec<InterfaceName>,
    /// Name patterns of interfaces that appear and disappear (pods' veths, tunnels): `*` matches any text, `?` any character. XDP redirects
    /// Service packets from them to the internal port.
    #[serde(deserialize_with = "patterns::patterns")]
    pub redirect_interfaces: Vec<Pattern>,
    /// MAC addresses that frames to Services may have beside the interface's own, at most 8: a virtual router's (VRRP), a macvlan's.
    #[serde(deserialize_with = "addressed::mac_addresses")]
    pub mac_addresses: Vec<MacAddress>,
    /// VLANs whose tagged frames are taken, at most 64. Untagged frames and priority tags always are, several tags never.
    #[serde(deserialize_with = "addressed::vlans")]
    pub vlans: Vec<VlanId>,
    /// Kubernetes YAML: a file, or a directory of `*.yaml`, `*.yml`, `*.json`. Relative to the configuration file.
    pub manifests: Option<PathBuf>,
    /// The API server to watch, instead of `manifests`.
    pub kubernetes: Option<Kubernetes>,
    pub snat: SnatConfig,
    /// Worker threads: a number, or `{count, cpus, idle}`.
    pub workers: WorkersConfig,
    pub packets: PacketsConfig,
    pub local_traffic: LocalTrafficConfig,
    pub deny: DenyConfig,
    pub conntrack: ConntrackConfig,
    pub limits: LimitsConfig,
    pub log: LogConfig,
    pub metrics: MetricsConfig,
    pub hash: HashConfig,
    /// How connections to a Service without endpoints, or to a port that the Service does not have, are rejected: `icmp` (default, as
    /// kube-proxy does), or `tcpReset` for TCP.
    pub reject: Reject,
    /// What becomes of packets for unused ports of load balancer and external IPs if the kernel's route would send them back to the router that they
    /// came from: `refuse` (default), `drop` or `kernel`.
    #[serde(deserialize_with = "values::unused_ports")]
    pub unused_ports: UnusedPorts,
    /// Answer pings to cluster, load balancer and external IPs that are not the node's own. Default: false.
    pub answer_ping: bool,
    /// The maximum segment size that clients and endpoints announce to each other: `keep` (default), `clamp` to the MTUs here, or a number.
    pub mss: Mss,
    /// Send IPv4 packets without DF that are larger than the MTU of their way on in fragments, as the kernel does. Default: true; false: they are dropped.
    pub fragment: bool,
    /// What the XDP program does with Service packets if no worker has been alive for longer than `graceMs`.
    pub on_failure: FailurePolicy,
    /// Detach the XDP program from the interfaces on an orderly exit.
    pub detach_on_exit: bool,
    /// The directory for pins and state.
    pub state_dir: PathBuf,
    /// A group, by name or number, whose members may read from the control socket. Default: none, only root may.
    pub socket_group: Option<SocketGroup>,
    /// The listen address of `/healthz` and `/livez`; `""`: off. Default port: 10256. Default: 0.0.0.0:10256.
    #[serde(deserialize_with = "listen::healthz")]
    pub healthz_bind_address: Option<SocketAddr>,
    /// The listen address of `/metrics`; `""`: off. Default port: 10249. Default: 127.0.0.1:10249.
    #[serde(deserialize_with = "listen::metrics")]
    pub metrics_bind_address: Option<SocketAddr>,
    /// Exit if binding one of the two fails. Default: false, binding is retried every five seconds.
    pub bind_address_hard_fail: bool,
    /// A change of the objects that is not applied after twice this time makes the node unhealthy. Milliseconds, 1,000 to 3,600,000.
    #[serde(deserialize_with = "values::sync_period_ms")]
    pub sync_period_ms: u32,
    /// How long Service packets are dropped after the workers stop, before `onFailure` applies. Milliseconds, 100 to 60,000.
    #[serde(deserialize_with = "values::grace_ms")]
    pub grace_ms: u32,
}

/// The identity of this node.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct NodeConfig {
    /// The Node object's name. Default: the host name in lower case.
    #[serde(deserialize_with = "values::node_name")]
    pub name: Option<String>,
    /// All addresses of the node. Default: discovered by `run`; `primaryIPs` for `explain`.
    #[serde(deserialize_with = "values::ips")]
    pub ips: Vec<IpAddr>,
    /// The node's InternalIPs, one per family. Default: the first of `ips` of each family.
    #[serde(rename = "primaryIPs", deserialize_with = "values::ip_per_family")]
    pub primary_ips: Vec<IpAddr>,
    /// kube-proxy's `bindAddress`: the primary address of its family, with precedence over all other sources.
    #[serde(skip)]
    pub bind_address: Option<IpAddr>,
    /// The Node object's labels; only `topology.kubernetes.io/zone` is used.
    pub labels: BTreeMap<String, String>,
}

/// Source NAT.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct SnatConfig {
    /// Source addresses for SNAT; each has all ports. Default: the node's primary addresses.
    #[serde(deserialize_with = "values::ips")]
    pub addresses: Vec<IpAddr>,
    /// Source ports, `FIRST-LAST`. On an address of the node, the kernel's ip_local_port_range is left out, except reserved ports. Default:
    /// 1024-65535.
    pub ports: PortRange,
    /// The maximum share of the ports towards one endpoint that one Service may hold, percent, 1 to 100. Default: 90.
    #[serde(deserialize_with = "values::percent")]
    pub share: u8,
    /// The same for one client. Default: 25.
    #[serde(deserialize_with = "values::percent")]
    pub client_share: u8,
    /// Source addresses for SNAT towards endpoints on this node whose replies would otherwise bypass nomagic (host network, unmanaged
    /// interfaces), one per family. Routed to the internal port. Default: 169.254.78.78, fd4e:6f6d:6167::78.
    #[serde(deserialize_with = "values::ip_per_family")]
    pub internal_addresses: Vec<IpAddr>,
}

impl Default for SnatConfig {
    fn default() -> SnatConfig {
        let internal_addresses =
            vec![Ipv4Addr::new(169, 254, 78, 78).into(), Ipv6Addr::new(0xfd4e, 0x6f6d, 0x6167, 0, 0, 0, 0, 0x78).into()];
        SnatConfig { addresses: Vec::new(), ports: PortRange::default(), share: 90, client_share: 25, internal_addresses }
    }
}

/// Connections from this node to Services.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct LocalTrafficConfig {
    /// Handle connections to addresses that only Services use: routes and a rule direct them to the internal port. Default: true.
    pub services: bool,
    /// Handle connections to node ports and other Service ports on the node's own addresses: the rule for the kernel's `local` table moves
    /// from preference 0 to 71, and rules for these ports precede it. Default: false; with kube-proxy's file, true.
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
    /// Maximum number of connections, 1,024 to 67,108,864. Default: 1,048,576.
    #[serde(deserialize_with = "values::capacity")]
    pub capacity: u32,
    /// The file of the table, from which the next process takes over the connections: an absolute path in a tmpfs or hugetlbfs. Default:
    /// none, the table ends with the process.
    #[serde(deserialize_with = "values::absolute_path")]
    pub file: Option<PathBuf>,
    /// Use huge pages of 2 MiB for a table without a file. They must be reserved (`vm.nr_hugepages`). Default: false.
    pub huge_pages: bool,
    /// Send a reset to both ends of an established TCP connection that ends by its idle timeout. Default: false.
    pub tcp_reset_on_idle: bool,
    /// Idle timeouts of connections.
    pub timeouts: TimeoutsConfig,
}

/// The hash that chooses backends. All gateways of a cluster must have the same seed, so that all choose the same backends, and clients must
/// not know it. Default: derived from the API server's cluster, else random; see [`crate::seed`].
#[derive(Clone, PartialEq, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct HashConfig {
    /// The seed: a 64-bit number.
    #[serde(deserialize_with = "values::seed")]
    pub seed: Option<u64>,
    /// A file from whose content the seed is derived, such as a mounted Secret. Relative to the configuration file.
    pub seed_file: Option<PathBuf>,
}

/// The seed is secret.
impl std::fmt::Debug for HashConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HashConfig").field("seed", &self.seed.map(|_| "set")).field("seed_file", &self.seed_file).finish()
    }
}

impl Default for ConntrackConfig {
    fn default() -> ConntrackConfig {
        ConntrackConfig { capacity: 1 << 20, file: None, huge_pages: false, tcp_reset_on_idle: false, timeouts: TimeoutsConfig::default() }
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
            keep_local: Vec::new(),
            allowed_external_ips: None,
            interfaces: Vec::new(),
            redirect_interfaces: Vec::new(),
            mac_addresses: Vec::new(),
            vlans: Vec::new(),
            manifests: None,
            kubernetes: None,
            snat: SnatConfig::default(),
            workers: WorkersConfig::default(),
            packets: PacketsConfig::default(),
            local_traffic: LocalTrafficConfig::default(),
            deny: DenyConfig::default(),
            conntrack: ConntrackConfig::default(),
            limits: LimitsConfig::default(),
            log: LogConfig::default(),
            metrics: MetricsConfig::default(),
            hash: HashConfig::default(),
            reject: Reject::default(),
            unused_ports: UnusedPorts::default(),
            answer_ping: false,
            mss: Mss::default(),
            fragment: true,
            on_failure: FailurePolicy::default(),
            detach_on_exit: false,
            state_dir: PathBuf::from("/run/nomagic"),
            socket_group: None,
            healthz_bind_address: listen::healthz_default(),
            metrics_bind_address: listen::metrics_default(),
            bind_address_hard_fail: false,
            sync_period_ms: 30_000,
            grace_ms: 2_000,
        }
    }
}

impl Config {
    /// Reads a configuration file. Relative paths in `manifests`, `kubernetes`, `deny` and `hash` are resolved against the file's directory.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let text = read_text(path)?;
        let mut config = Config::parse(&text, path)?;
        if let Some(dir) = path.parent() {
            config.manifests = config.manifests.map(|m| dir.join(m));
            config.kubernetes = config.kubernetes.map(|k| k.relative_to(dir));
            config.deny.file = config.deny.file.map(|f| dir.join(f));
            config.hash.seed_file = config.hash.seed_file.map(|f| dir.join(f));
        }
        Ok(config)
    }

    /// Parses a configuration; `path` is used in messages only.
    pub fn parse(text: &str, path: &Path) -> Result<Config, ConfigError> {
        let config: Config = error::read(text, path)?;
        if config.manifests.is_some() && config.kubernetes.is_some() {
            let message = "`manifests` is set as well: objects come either from files or from an API server";
            return Err(ConfigError::in_field(path, "kubernetes", message));
        }
        if config.hash.seed.is_some() && config.hash.seed_file.is_some() {
            let at = tree::location_of(text, "hash.seedFile").map_or((0, 0), |l| (l.line(), l.column()));
            let error = ConfigError::in_field(path, "hash.seedFile", "`hash.seed` is set as well: set one of the two");
            return Err(ConfigError { at, ..error });
        }
        Ok(config)
    }

    /// This node's configured name, or the host name.
    pub fn node_name(&self) -> String {
        let host = || std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        self.node.name.clone().unwrap_or_else(|| host().trim().to_ascii_lowercase())
    }
}

/// Reads a configuration file into memory, if it is not too large.
pub(crate) fn read_text(path: &Path) -> Result<String, ConfigError> {
    let unreadable = |what: String| ConfigError::whole(path, what);
    let failed = |e: io::Error| {
        let hint = if e.kind() == io::ErrorKind::PermissionDenied { "; permit it to this user, or run as root" } else { "" };
        unreadable(format!("cannot be read: {}{hint}", explained(&e)))
    };
    let length = std::fs::metadata(path).map_err(failed)?.len();
    if length > FILE_MAX {
        return Err(unreadable(format!("{length} bytes long, at most {FILE_MAX} are allowed: is this a configuration file?")));
    }
    std::fs::read_to_string(path).map_err(failed)
}

#[cfg(test)]
mod tests;
