//! Services, EndpointSlices, Nodes and ServiceCIDRs: parsed and validated once, trusted afterwards.
//!
//! Kubernetes' types have many optional strings. Here addresses, ports and policies have types of their own, and each invalid field is a
//! [`Problem`] stored with the object.

pub mod addr;
pub mod limits;
mod mirror;
mod node;
mod read;
mod schema;
mod service;
mod service_cidr;
mod shape;
mod slice;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use nomagic_core::tuple::{Prefix, Proto};

use crate::problem::{Origin, Problem, printable};
pub use limits::{Annotated, LimitAnnotations};
pub use mirror::{ENDPOINTS, mirror};
pub use node::{Node, ZONE_LABEL, node_eligible};
pub use read::{Unread, key, read};
pub use service::IgnoredAs;
pub use service_cidr::ServiceCidr;

/// Namespace and name.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct NamespacedName {
    /// Empty for cluster-scoped kinds.
    pub namespace: String,
    pub name: String,
}

impl fmt::Display for NamespacedName {
    /// `default/nginx`, or only the name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() { f.write_str(&self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}

/// The kinds of objects that nomagic reads.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice,
    /// `v1` Node; only the node that nomagic runs on is used.
    Node,
    /// `networking.k8s.io/v1` ServiceCIDR.
    ServiceCidr,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Kind; 4] = [Kind::Service, Kind::EndpointSlice, Kind::Node, Kind::ServiceCidr];

    /// The supported `apiVersion`.
    pub fn version(self) -> &'static str {
        match self {
            Kind::Service | Kind::Node => "v1",
            Kind::EndpointSlice => "discovery.k8s.io/v1",
            Kind::ServiceCidr => "networking.k8s.io/v1",
        }
    }

    /// Whether the kind is namespaced.
    pub fn namespaced(self) -> bool {
        matches!(self, Kind::Service | Kind::EndpointSlice)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Service => "Service",
            Kind::EndpointSlice => "EndpointSlice",
            Kind::Node => "Node",
            Kind::ServiceCidr => "ServiceCIDR",
        })
    }
}

/// `spec.type`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ServiceType {
    /// `ClusterIP`
    ClusterIp,
    /// `NodePort`
    NodePort,
    /// `LoadBalancer`
    LoadBalancer,
    /// `ExternalName`: a DNS alias, never proxied.
    ExternalName,
}

/// A traffic policy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TrafficPolicy {
    /// All endpoints.
    Cluster,
    /// Endpoints of this node only.
    Local,
}

/// A Service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Service {
    pub key: NamespacedName,
    pub origin: Origin,
    /// `metadata.creationTimestamp`, seconds since 1970; the maximum if absent.
    pub created_s: i64,
    /// Why a Service proxy ignores the Service; `None`: it is served.
    pub ignored: Option<&'static str>,
    /// `spec.type`
    pub kind: ServiceType,
    /// `spec.clusterIPs`, at most one per family; they determine the served families.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.externalIPs`
    pub external_ips: Vec<IpAddr>,
    /// `status.loadBalancer.ingress[].ip` with `ipMode: VIP` (the default).
    pub load_balancer_ips: Vec<IpAddr>,
    /// The same with `ipMode: Proxy`: the load balancer terminates connections to them itself.
    pub proxied_ips: Vec<IpAddr>,
    /// `spec.loadBalancerSourceRanges`
    pub source_ranges: Vec<Prefix>,
    /// All source ranges are invalid: no client may connect to the load balancer addresses.
    pub source_ranges_unreadable: bool,
    /// `spec.ports`
    pub ports: Vec<ServicePortSpec>,
    /// Some of its ports could not be read.
    pub ports_unread: bool,
    /// `spec.internalTrafficPolicy`
    pub internal_policy: TrafficPolicy,
    /// `spec.externalTrafficPolicy`, if the Service is reachable from outside the cluster.
    pub external_policy: TrafficPolicy,
    /// Timeout of `sessionAffinity: ClientIP`, seconds.
    pub affinity_timeout_s: Option<u32>,
    /// `spec.healthCheckNodePort`, for type LoadBalancer with external policy Local.
    pub health_check_port: Option<u16>,
    /// How many connections it takes, from annotations.
    pub limits: LimitAnnotations,
    pub problems: Vec<Problem>,
}

/// One of `spec.ports`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServicePortSpec {
    /// "" for an unnamed port.
    pub name: String,
    pub proto: Proto,
    /// `port`
    pub port: u16,
    /// `nodePort`
    pub node_port: Option<u16>,
    /// Index in `spec.ports`.
    pub index: usize,
}

/// An EndpointSlice.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Slice {
    pub key: NamespacedName,
    pub origin: Origin,
    /// The Service of the slice.
    pub service: Option<NamespacedName>,
    /// Made from an `Endpoints` object of the Service's name (see [`mirror`]).
    pub mirrored: bool,
    /// Why the slice is ignored; `None`: it is used.
    pub ignored: Option<&'static str>,
    /// `addressType: IPv6`
    pub v6: bool,
    /// `ports` with name and number.
    pub ports: Vec<SlicePort>,
    /// Endpoints with a usable address.
    pub endpoints: Vec<Endpoint>,
    /// Time of the cause of the last change (annotation `endpoints.kubernetes.io/last-change-trigger-time`).
    pub triggered: Option<Timestamp>,
    /// Unusable addresses, with the reason.
    pub unusable: Vec<(String, &'static str)>,
    pub problems: Vec<Problem>,
}

impl fmt::Display for Slice {
    /// The object that was read: `EndpointSlice default/web-1`, or `Endpoints default/web`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.service {
            Some(service) if self.mirrored => write!(f, "{ENDPOINTS} {service}"),
            _ => write!(f, "{} {}", Kind::EndpointSlice, self.key),
        }
    }
}

/// One of a slice's ports.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SlicePort {
    pub name: String,
    pub proto: Proto,
    /// The port number on the endpoint.
    pub port: u16,
}

/// One endpoint of a slice.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoint {
    /// The first address; others are never used.
    pub addr: IpAddr,
    /// `conditions.ready`, true when absent.
    pub ready: bool,
    /// `conditions.serving`, true when absent.
    pub serving: bool,
    /// `conditions.terminating`, false when absent.
    pub terminating: bool,
    /// `nodeName`
    pub node: Option<Box<str>>,
    /// `hints.forZones`
    pub zone_hints: Box<[Box<str>]>,
    /// `hints.forNodes`
    pub node_hints: Box<[Box<str>]>,
}

/// An object of any kind, cheap to share.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Object {
    /// A Service.
    Service(Arc<Service>),
    /// An EndpointSlice.
    Slice(Arc<Slice>),
    /// A Node.
    Node(Arc<Node>),
    /// A ServiceCIDR.
    ServiceCidr(Arc<ServiceCidr>),
}

impl Object {
    pub fn kind(&self) -> Kind {
        match self {
            Object::Service(_) => Kind::Service,
            Object::Slice(_) => Kind::EndpointSlice,
            Object::Node(_) => Kind::Node,
            Object::ServiceCidr(_) => Kind::ServiceCidr,
        }
    }

    pub fn key(&self) -> &NamespacedName {
        match self {
            Object::Service(s) => &s.key,
            Object::Slice(s) => &s.key,
            Object::Node(n) => &n.key,
            Object::ServiceCidr(c) => &c.key,
        }
    }

    /// Kind and name, as in the file or at the API server.
    pub fn label(&self) -> String {
        match self {
            Object::Slice(slice) => slice.to_string(),
            _ => format!("{} {}", self.kind(), self.key()),
        }
    }

    pub fn problems(&self) -> &[Problem] {
        match self {
            Object::Service(s) => &s.problems,
            Object::Slice(s) => &s.problems,
            Object::Node(n) => &n.problems,
            Object::ServiceCidr(c) => &c.problems,
        }
    }

    pub fn origin(&self) -> &Origin {
        match self {
            Object::Service(s) => &s.origin,
            Object::Slice(s) => &s.origin,
            Object::Node(n) => &n.origin,
            Object::ServiceCidr(c) => &c.origin,
        }
    }
}

/// Maximum length of a name or namespace, bytes (the API server's limit).
const NAME_MAX: usize = 253;

/// Reads an object's name. `Err((field, message))` for names that would make log lines, metric labels or `ns/name` ambiguous.
pub(crate) fn read_key(
    meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
) -> Result<NamespacedName, (&'static str, String)> {
    let namespace = meta.namespace.as_deref().filter(|n| !n.is_empty()).unwrap_or("default");
    let name = meta.name.as_deref().unwrap_or("");
    if name.is_empty() {
        return Err(("metadata.name", "missing: every object needs a name; it is skipped".into()));
    }
    for (field, value) in [("metadata.namespace", namespace), ("metadata.name", name)] {
        if let Some(length) = too_long(value) {
            return Err((field, format!("{length}; the object is skipped")));
        }
        if let Some(c) = value.chars().find(|c| *c == '/' || c.is_whitespace() || !printable(*c)) {
            return Err((field, format!("{value:?} contains {c:?}, which no name may; the object is skipped")));
        }
    }
    Ok(NamespacedName { namespace: namespace.into(), name: name.into() })
}

/// A message if the name of an object or a port is too long.
pub(crate) fn too_long(name: &str) -> Option<String> {
    (name.len() > NAME_MAX).then(|| format!("{} bytes long, {NAME_MAX} are allowed", name.len()))
}

/// Reads the name of an object of a cluster-scoped kind.
fn read_cluster_key(
    kind: Kind,
    meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
    origin: &Origin,
) -> Result<NamespacedName, Problem> {
    match read_key(meta) {
        Ok(key) => Ok(NamespacedName { namespace: String::new(), ..key }),
        Err((field, message)) => {
            let object = format!("{kind} {:?}", meta.name.as_deref().unwrap_or(""));
            Err(Problem { origin: origin.clone(), object, field: field.into(), message })
        }
    }
}

/// Reads a protocol name; absent means TCP.
pub(crate) fn read_proto(name: Option<&str>) -> Option<Proto> {
    match name {
        None | Some("" | "TCP") => Some(Proto::Tcp),
        Some("UDP") => Some(Proto::Udp),
        Some("SCTP") => Some(Proto::Sctp),
        Some(_) => None,
    }
}

/// Reads a port number: 1 to 65535.
pub(crate) fn read_port(number: i32) -> Option<u16> {
    u16::try_from(number).ok().filter(|&p| p != 0)
}
