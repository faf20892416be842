//! Translates the fields, with kube-proxy's defaults (pkg/proxy/apis/config/v1alpha1/defaults.go) and validation rules
//! (pkg/proxy/apis/config/validation).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use nomagic_core::tuple::Prefix;
use nomagic_table::objects::addr::{parse_cidr, parse_ip};
use nomagic_table::settings::NodePortAddresses;

use super::document::{Document, quoted};
use super::fields::ProxyMode;
use super::{DropIn, IdleTimeouts};
use crate::config::error::ConfigError;
use crate::config::timeouts::is_idle_time;
use crate::config::{DetectLocal, Pattern};
use nomagic_xsk::InterfaceName;

const HEALTHZ_PORT: u16 = 10_256;
const METRICS_PORT: u16 = 10_249;
/// kube-proxy's default.
const SYNC_PERIOD_MS: u64 = 30_000;
const NODE_NAME_MAX: usize = 253;
const NODE_PORT_ADDRESSES_MAX: usize = 1_024;

pub(super) fn translate(document: Document) -> Result<DropIn, ConfigError> {
    let mode = mode(&document)?;
    let bind = match document.text("bindAddress") {
        "" => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        text => parse_ip(text).ok_or_else(|| document.fault("bindAddress", format!("{} is not an IP address", quoted(text))))?,
    };
    // Servers without an address use the family of bindAddress.
    let (unspecified, loopback): (IpAddr, IpAddr) = match bind {
        IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::LOCALHOST.into()),
    };
    let kubeconfig = document.text("clientConnection.kubeconfig");
    let (masquerade_all, sync_period) = match mode {
        ProxyMode::Iptables => ("iptables.masqueradeAll", "iptables.syncPeriod"),
        ProxyMode::Ipvs => ("iptables.masqueradeAll", "ipvs.syncPeriod"),
        ProxyMode::Nftables => ("nftables.masqueradeAll", "nftables.syncPeriod"),
    };
    let (detect_local, cluster_cidrs) = (detect_local(&document)?, cluster_cidrs(&document)?);
    let localhost = document.flag("iptables.localhostNodePorts").unwrap_or(true);
    Ok(DropIn {
        kubeconfig: (!kubeconfig.is_empty()).then(|| kubeconfig.into()),
        node_name: node_name(&document)?,
        primary: (!bind.is_unspecified()).then_some(bind),
        bind_address_hard_fail: document.flag("bindAddressHardFail").unwrap_or(false),
        healthz_bind_address: listen(&document, "healthzBindAddress", unspecified, HEALTHZ_PORT)?,
        metrics_bind_address: listen(&document, "metricsBindAddress", loopback, METRICS_PORT)?,
        cluster_cidrs: if detect_local == DetectLocal::ClusterCidrs { cluster_cidrs } else { Vec::new() },
        detect_local,
        masquerade_all: document.flag(masquerade_all).unwrap_or(false),
        localhost_node_ports: mode == ProxyMode::Iptables && localhost,
        node_port_addresses: node_port_addresses(&document, mode)?,
        sync_period_ms: document.millis(sync_period).unwrap_or(SYNC_PERIOD_MS),
        idle: IdleTimeouts {
            tcp_established_ms: idle_ms(&document, "conntrack.tcpEstablishedTimeout")?,
            tcp_close_wait_ms: idle_ms(&document, "conntrack.tcpCloseWaitTimeout")?,
            udp_ms: idle_ms(&document, "conntrack.udpTimeout")?,
            udp_stream_ms: idle_ms(&document, "conntrack.udpStreamTimeout")?,
        },
        warnings: document.warnings(mode),
    })
}

fn mode(document: &Document) -> Result<ProxyMode, ConfigError> {
    match document.text("mode") {
        "" | "iptables" => Ok(ProxyMode::Iptables),
        "ipvs" => Ok(ProxyMode::Ipvs),
        "nftables" => Ok(ProxyMode::Nftables),
        other => Err(document.fault("mode", format!("{} is none of iptables, ipvs and nftables", quoted(other)))),
    }
}

/// The name, trimmed and in lower case, like kube-proxy's.
fn node_name(document: &Document) -> Result<Option<String>, ConfigError> {
    let given = document.text("hostnameOverride");
    let name = given.trim().to_lowercase();
    let fits = (1..=NODE_NAME_MAX).contains(&name.len()) && !name.chars().any(|c| c.is_whitespace() || c.is_control());
    match (given, fits) {
        ("", _) => Ok(None),
        (_, true) => Ok(Some(name)),
        (_, false) => {
            let message = format!("{} is not a Node's name: 1 to {NODE_NAME_MAX} characters without blanks", quoted(given));
            Err(document.fault("hostnameOverride", message))
        }
    }
}

/// A listen address: `IP` or `IP:PORT`.
fn listen(document: &Document, field: &str, default: IpAddr, port: u16) -> Result<SocketAddr, ConfigError> {
    let text = document.text(field);
    if text.is_empty() {
        return Ok(SocketAddr::new(default, port));
    }
    if let Some(ip) = parse_ip(text) {
        return Ok(SocketAddr::new(ip, port));
    }
    let with_port = || {
        let (host, port) = text.rsplit_once(':')?;
        let host = match host.strip_prefix('[') {
            Some(v6) => v6.strip_suffix(']').filter(|v6| v6.contains(':'))?,
            None => Some(host).filter(|v4| !v4.contains(':'))?,
        };
        let port = Some(port).filter(|p| p.bytes().all(|b| b.is_ascii_digit()))?.parse().ok()?;
        Some(SocketAddr::new(parse_ip(host)?, port)).filter(|_| port > 0)
    };
    with_port().ok_or_else(|| {
        let message = format!("{} is neither an IP address nor one with a port, such as 0.0.0.0:{port} or [::]:{port}", quoted(text));
        document.fault(field, message)
    })
}

fn detect_local(document: &Document) -> Result<DetectLocal, ConfigError> {
    match document.text("detectLocalMode") {
        "" | "ClusterCIDR" => Ok(DetectLocal::ClusterCidrs),
        "NodeCIDR" => Ok(DetectLocal::NodeCidrs),
        "BridgeInterface" => Ok(DetectLocal::Interfaces(vec![interface_pattern(document, "detectLocal.bridgeInterface", "")?])),
        "InterfaceNamePrefix" => Ok(DetectLocal::Interfaces(vec![interface_pattern(document, "detectLocal.interfaceNamePrefix", "*")?])),
        other => {
            let known = "none of ClusterCIDR, NodeCIDR, BridgeInterface and InterfaceNamePrefix";
            Err(document.fault("detectLocalMode", format!("{} is {known}", quoted(other))))
        }
    }
}

/// The pattern for a field's interface name followed by `suffix`.
fn interface_pattern(document: &Document, field: &str, suffix: &str) -> Result<Pattern, ConfigError> {
    let (text, mode) = (document.text(field), document.text("detectLocalMode"));
    if text.is_empty() {
        return Err(document.fault("detectLocalMode", format!("{mode} needs {field}, the interfaces of local pods")));
    }
    let pattern = match InterfaceName::try_from(text) {
        Ok(name) if !name.contains(['*', '?']) => Pattern::parse(&format!("{name}{suffix}")),
        _ => None,
    };
    pattern.ok_or_else(|| {
        let rule = format!("{} and no wildcards", InterfaceName::RULE);
        document.fault(field, format!("{} is not the name of an interface or the beginning of one: {rule}", quoted(text)))
    })
}

/// The pod ranges; used only with detectLocalMode ClusterCIDR.
fn cluster_cidrs(document: &Document) -> Result<Vec<Prefix>, ConfigError> {
    let text = document.text("clusterCIDR");
    let mut ranges: Vec<Prefix> = Vec::new();
    for part in text.split(',').filter(|_| !text.is_empty()) {
        let fault = |what: &str| Err(document.fault("clusterCIDR", format!("{}{what}", quoted(part))));
        match parse_cidr(part) {
            None => return fault(" is not a CIDR such as 10.244.0.0/16"),
            Some(range) if ranges.iter().any(|r| r.addr().is_ipv6() == range.addr().is_ipv6()) => {
                return fault(": a second range of its family; one per family is allowed");
            }
            Some(range) => ranges.push(range),
        }
    }
    Ok(ranges)
}

/// Default: all addresses of the node; in nftables mode, its primary ones.
fn node_port_addresses(document: &Document, mode: ProxyMode) -> Result<NodePortAddresses, ConfigError> {
    const FIELD: &str = "nodePortAddresses";
    let entries = document.texts(FIELD);
    match entries.as_slice() {
        ["primary"] => return Ok(NodePortAddresses::Primary),
        [] if mode == ProxyMode::Nftables => return Ok(NodePortAddresses::Primary),
        many if many.len() > NODE_PORT_ADDRESSES_MAX => {
            return Err(document.fault(FIELD, format!("{} entries, {NODE_PORT_ADDRESSES_MAX} are allowed", many.len())));
        }
        _ => {}
    }
    let read = |(i, text): (usize, &&str)| {
        let field = format!("{FIELD}[{i}]");
        match (*text, parse_cidr(text)) {
            (_, Some(cidr)) => Ok(cidr),
            ("primary", None) => Err(document.fault(&field, "primary must stand alone, without CIDRs")),
            (other, None) => Err(document.fault(&field, format!("{} is neither a CIDR such as 10.0.0.0/8 nor primary", quoted(other)))),
        }
    };
    entries.iter().enumerate().map(read).collect::<Result<_, _>>().map(NodePortAddresses::Cidrs)
}

fn idle_ms(document: &Document, field: &str) -> Result<Option<u64>, ConfigError> {
    match document.millis(field) {
        Some(ms) if !is_idle_time(ms) => Err(document
            .fault(field, format!("{} is too short or too long: 0s (keeps the default), or 1s to 720h", quoted(document.text(field))))),
        given => Ok(given),
    }
}
