//! What the fields mean, with kube-proxy's defaults where they are missing (pkg/proxy/apis/config/v1alpha1/defaults.go) and its rules
//! about them (pkg/proxy/apis/config/validation).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use nomagic_core::tuple::Prefix;
use nomagic_table::objects::addr::{parse_cidr, parse_ip};
use nomagic_table::settings::NodePortAddresses;

use super::document::{Document, shown};
use super::fields::Mode;
use super::{DropIn, IdleTimes};
use crate::config::error::ConfigError;
use crate::config::timeouts::is_idle_time;
use crate::config::{DetectLocal, Pattern};
use nomagic_xsk::InterfaceName;

/// Port of `/healthz`.
const HEALTHZ_PORT: u16 = 10_256;
/// Port of `/metrics`.
const METRICS_PORT: u16 = 10_249;
/// Sync period when none is set, milliseconds.
const SYNC_PERIOD_MS: u64 = 30_000;
/// Longest name of a Node.
const NODE_NAME_MAX: usize = 253;
/// Most entries of `nodePortAddresses`.
const NODE_PORT_ADDRESSES_MAX: usize = 1_024;

/// Reads the meaning out of a document.
pub(super) fn translate(document: Document) -> Result<DropIn, ConfigError> {
    let mode = mode(&document)?;
    let bind = match document.text("bindAddress") {
        "" => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        text => parse_ip(text).ok_or_else(|| document.fault("bindAddress", format!("{} is not an IP address", shown(text))))?,
    };
    // Without addresses of their own the servers follow bindAddress's family.
    let (any, here): (IpAddr, IpAddr) = match bind {
        IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::LOCALHOST.into()),
    };
    let kubeconfig = document.text("clientConnection.kubeconfig");
    let (masquerade_all, sync_period) = match mode {
        Mode::Iptables => ("iptables.masqueradeAll", "iptables.syncPeriod"),
        Mode::Ipvs => ("iptables.masqueradeAll", "ipvs.syncPeriod"),
        Mode::Nftables => ("nftables.masqueradeAll", "nftables.syncPeriod"),
    };
    let (detect_local, cluster_cidrs) = (detect_local(&document)?, cluster_cidrs(&document)?);
    let localhost = document.flag("iptables.localhostNodePorts").unwrap_or(true);
    Ok(DropIn {
        kubeconfig: (!kubeconfig.is_empty()).then(|| kubeconfig.into()),
        node_name: node_name(&document)?,
        primary: (!bind.is_unspecified()).then_some(bind),
        bind_address_hard_fail: document.flag("bindAddressHardFail").unwrap_or(false),
        healthz_bind_address: listen(&document, "healthzBindAddress", any, HEALTHZ_PORT)?,
        metrics_bind_address: listen(&document, "metricsBindAddress", here, METRICS_PORT)?,
        cluster_cidrs: if detect_local == DetectLocal::ClusterCidrs { cluster_cidrs } else { Vec::new() },
        detect_local,
        masquerade_all: document.flag(masquerade_all).unwrap_or(false),
        localhost_node_ports: mode == Mode::Iptables && localhost,
        node_port_addresses: node_port_addresses(&document, mode)?,
        sync_period_ms: document.millis(sync_period).unwrap_or(SYNC_PERIOD_MS),
        idle: IdleTimes {
            tcp_established_ms: idle_ms(&document, "conntrack.tcpEstablishedTimeout")?,
            tcp_close_wait_ms: idle_ms(&document, "conntrack.tcpCloseWaitTimeout")?,
            udp_ms: idle_ms(&document, "conntrack.udpTimeout")?,
            udp_stream_ms: idle_ms(&document, "conntrack.udpStreamTimeout")?,
        },
        warnings: document.warnings(mode),
    })
}

fn mode(document: &Document) -> Result<Mode, ConfigError> {
    match document.text("mode") {
        "" | "iptables" => Ok(Mode::Iptables),
        "ipvs" => Ok(Mode::Ipvs),
        "nftables" => Ok(Mode::Nftables),
        other => Err(document.fault("mode", format!("{} is none of iptables, ipvs and nftables", shown(other)))),
    }
}

/// The name in lower case and without blanks around it, as kube-proxy makes it.
fn node_name(document: &Document) -> Result<Option<String>, ConfigError> {
    let given = document.text("hostnameOverride");
    let name = given.trim().to_lowercase();
    let fits = (1..=NODE_NAME_MAX).contains(&name.len()) && !name.chars().any(|c| c.is_whitespace() || c.is_control());
    match (given, fits) {
        ("", _) => Ok(None),
        (_, true) => Ok(Some(name)),
        (_, false) => {
            let message = format!("{} is not a Node's name: 1 to {NODE_NAME_MAX} characters without blanks", shown(given));
            Err(document.fault("hostnameOverride", message))
        }
    }
}

/// An address to listen on: `IP:PORT`, or an IP alone.
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
        let message = format!("{} is neither an IP address nor one with a port, such as 0.0.0.0:{port} or [::]:{port}", shown(text));
        document.fault(field, message)
    })
}

/// By what local traffic is told from other traffic.
fn detect_local(document: &Document) -> Result<DetectLocal, ConfigError> {
    match document.text("detectLocalMode") {
        "" | "ClusterCIDR" => Ok(DetectLocal::ClusterCidrs),
        "NodeCIDR" => Ok(DetectLocal::NodeCidrs),
        "BridgeInterface" => Ok(DetectLocal::Interfaces(vec![interfaces(document, "detectLocal.bridgeInterface", "")?])),
        "InterfaceNamePrefix" => Ok(DetectLocal::Interfaces(vec![interfaces(document, "detectLocal.interfaceNamePrefix", "*")?])),
        other => {
            let known = "none of ClusterCIDR, NodeCIDR, BridgeInterface and InterfaceNamePrefix";
            Err(document.fault("detectLocalMode", format!("{} is {known}", shown(other))))
        }
    }
}

/// The interfaces whose names are, or begin with, what a field says.
fn interfaces(document: &Document, field: &str, rest: &str) -> Result<Pattern, ConfigError> {
    let (text, mode) = (document.text(field), document.text("detectLocalMode"));
    if text.is_empty() {
        return Err(document.fault("detectLocalMode", format!("{mode} needs {field}, the interfaces behind which local pods are")));
    }
    let pattern = match InterfaceName::try_from(text) {
        Ok(name) if !name.contains(['*', '?']) => Pattern::parse(&format!("{name}{rest}")),
        _ => None,
    };
    pattern.ok_or_else(|| {
        let rule = format!("{} and no wildcards", InterfaceName::RULE);
        document.fault(field, format!("{} is no interface's name, nor the beginning of one: {rule}", shown(text)))
    })
}

/// The pod ranges, which count in the mode ClusterCIDR only.
fn cluster_cidrs(document: &Document) -> Result<Vec<Prefix>, ConfigError> {
    let text = document.text("clusterCIDR");
    let mut ranges: Vec<Prefix> = Vec::new();
    for part in text.split(',').filter(|_| !text.is_empty()) {
        let fault = |what: &str| Err(document.fault("clusterCIDR", format!("{}{what}", shown(part))));
        match parse_cidr(part) {
            None => return fault(" is not a CIDR such as 10.244.0.0/16"),
            Some(range) if ranges.iter().any(|r| r.addr().is_ipv6() == range.addr().is_ipv6()) => {
                return fault(": a second range of its family, one a family is allowed");
            }
            Some(range) => ranges.push(range),
        }
    }
    Ok(ranges)
}

/// Without any: all addresses of the node, in nftables mode its primary ones.
fn node_port_addresses(document: &Document, mode: Mode) -> Result<NodePortAddresses, ConfigError> {
    const FIELD: &str = "nodePortAddresses";
    let entries = document.texts(FIELD);
    match entries.as_slice() {
        ["primary"] => return Ok(NodePortAddresses::Primary),
        [] if mode == Mode::Nftables => return Ok(NodePortAddresses::Primary),
        many if many.len() > NODE_PORT_ADDRESSES_MAX => {
            return Err(document.fault(FIELD, format!("{} entries, {NODE_PORT_ADDRESSES_MAX} are allowed", many.len())));
        }
        _ => {}
    }
    let read = |(i, text): (usize, &&str)| {
        let field = format!("{FIELD}[{i}]");
        match (*text, parse_cidr(text)) {
            (_, Some(cidr)) => Ok(cidr),
            ("primary", None) => Err(document.fault(&field, "primary must stand alone, without CIDRs beside it")),
            (other, None) => Err(document.fault(&field, format!("{} is neither a CIDR such as 10.0.0.0/8 nor primary", shown(other)))),
        }
    };
    entries.iter().enumerate().map(read).collect::<Result<_, _>>().map(NodePortAddresses::Cidrs)
}

fn idle_ms(document: &Document, field: &str) -> Result<Option<u64>, ConfigError> {
    match document.millis(field) {
        Some(ms) if !is_idle_time(ms) => Err(document
            .fault(field, format!("{} is too short or too long: 0s (the default stays), or 1s to 720h", shown(document.text(field))))),
        given => Ok(given),
    }
}
