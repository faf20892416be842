//! Reads a Kubernetes Node: the fields that nomagic needs of its own node.

use std::net::IpAddr;

use k8s_openapi::api::core::v1 as k8s;
use nomagic_core::tuple::Prefix;

use super::addr::{fault, parse_cidr, parse_ip};
use super::{Kind, NamespacedName, read_cluster_key};
use crate::problem::{Notes, Origin, Problem};

/// The label that names a node's zone.
pub const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
/// The taint with which the cluster autoscaler announces a deletion.
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";
/// Maximum number of addresses and of pod ranges of a Node.
const LIST_MAX: usize = 256;

/// A Node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    pub key: NamespacedName,
    pub origin: Origin,
    /// The label `topology.kubernetes.io/zone`.
    pub zone: Option<String>,
    /// `status.addresses`: for each family the first InternalIP, or else the first ExternalIP.
    pub ips: Vec<IpAddr>,
    /// `spec.podCIDRs`
    pub pod_cidrs: Vec<Prefix>,
    /// See [`node_eligible`].
    pub eligible: bool,
    pub problems: Vec<Problem>,
}

impl Node {
    /// Reads a Node. `Err` without a valid name; invalid fields are skipped and listed in [`Node::problems`].
    pub fn from_k8s(node: &k8s::Node, origin: &Origin) -> Result<Node, Problem> {
        let key = read_cluster_key(Kind::Node, &node.metadata, origin)?;
        let mut notes = Notes::new(origin, format!("{} {key}", Kind::Node));
        let zone = node.metadata.labels.as_ref().and_then(|l| l.get(ZONE_LABEL)).filter(|z| !z.is_empty()).cloned();
        let addresses = node.status.as_ref().and_then(|s| s.addresses.as_deref()).unwrap_or(&[]);
        let ips = read_ips(addresses, &mut notes);
        let listed = node.spec.as_ref().and_then(|s| s.pod_cidrs.as_deref()).unwrap_or(&[]);
        let pod_cidrs = read_cidrs("spec.podCIDRs", listed, &mut notes);
        Ok(Node { key, origin: origin.clone(), zone, ips, pod_cidrs, eligible: node_eligible(node), problems: notes.finish() })
    }
}

fn read_ips(addresses: &[k8s::NodeAddress], notes: &mut Notes) -> Vec<IpAddr> {
    let mut ips: Vec<IpAddr> = Vec::new();
    for wanted in ["InternalIP", "ExternalIP"] {
        for (i, address) in addresses.iter().take(LIST_MAX).enumerate().filter(|(_, a)| a.type_ == wanted) {
            match parse_ip(&address.address) {
                Some(ip) if fault(ip).is_none() => {
                    if !ips.iter().any(|other| other.is_ipv6() == ip.is_ipv6()) {
                        ips.push(ip);
                    }
                }
                _ => notes.add(
                    format!("status.addresses[{i}].address"),
                    format!("{:?} is not reachable from other hosts; it is skipped", address.address),
                ),
            }
        }
    }
    ips
}

/// Reads a list of CIDRs; skips and reports invalid ones.
pub(super) fn read_cidrs(field: &str, texts: &[String], notes: &mut Notes) -> Vec<Prefix> {
    if texts.len() > LIST_MAX {
        notes.add(field, format!("{} entries: the first {LIST_MAX} are used", texts.len()));
    }
    let mut cidrs: Vec<Prefix> = Vec::new();
    for (i, text) in texts.iter().take(LIST_MAX).enumerate() {
        match parse_cidr(text) {
            Some(cidr) if cidrs.contains(&cidr) => {}
            Some(cidr) => cidrs.push(cidr),
            None => notes.add(format!("{field}[{i}]"), format!("{text:?} is not a CIDR such as 10.0.0.0/8; it is skipped")),
        }
    }
    cidrs
}

/// Whether load balancers should use a node: it is not being deleted, and the cluster autoscaler does not announce its deletion.
pub fn node_eligible(node: &k8s::Node) -> bool {
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or(&[]);
    node.metadata.deletion_timestamp.is_none() && !taints.iter().any(|t| t.key == TO_BE_DELETED)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(yaml: &str) -> Node {
        Node::from_k8s(&serde_saphyr::from_str(yaml).unwrap(), &Origin::default()).unwrap()
    }

    #[test]
    fn zone_addresses_and_pod_ranges() {
        let n = read(
            "
metadata: {name: gw, labels: {topology.kubernetes.io/zone: a}}
spec: {podCIDR: 10.1.0.0/24, podCIDRs: [10.1.0.0/24, 'fd00:1::/64', 10.1.0.0/24]}
status:
  addresses:
  - {type: Hostname, address: gw}
  - {type: ExternalIP, address: 203.0.113.1}
  - {type: ExternalIP, address: 'fd00::9'}
  - {type: InternalIP, address: 192.168.0.2}
  - {type: InternalIP, address: 192.168.0.3}
",
        );
        assert_eq!((n.key.to_string().as_str(), n.zone.as_deref()), ("gw", Some("a")));
        assert_eq!(n.ips, ["192.168.0.2".parse::<IpAddr>().unwrap(), "fd00::9".parse().unwrap()]);
        assert_eq!(n.pod_cidrs.len(), 2);
        assert!(n.problems.is_empty());
        let bare = read("metadata: {name: gw, labels: {topology.kubernetes.io/zone: ''}}");
        assert_eq!((bare.zone, bare.ips.len(), bare.pod_cidrs.len()), (None, 0, 0));
    }

    #[test]
    fn invalid_fields_are_reported_and_the_rest_is_kept() {
        let many = (0..300).map(|i| format!("10.{}.{}.0/24", i / 256, i % 256)).collect::<Vec<_>>().join(", ");
        let n = read(&format!(
            "metadata: {{name: gw}}\nspec: {{podCIDRs: [x, {many}]}}\nstatus: {{addresses: [{{type: InternalIP, address: 127.0.0.1}}, {{type: InternalIP, address: 10.0.0.1}}]}}"
        ));
        assert_eq!((n.ips.len(), n.pod_cidrs.len()), (1, LIST_MAX - 1));
        let fields: Vec<&str> = n.problems.iter().map(|p| p.field.as_str()).collect();
        assert_eq!(fields, ["status.addresses[0].address", "spec.podCIDRs", "spec.podCIDRs[0]"]);
        assert_eq!(Node::from_k8s(&k8s::Node::default(), &Origin::default()).unwrap_err().field, "metadata.name");
    }
}
