//! The Services that a gateway knows, read in pages.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// The version of [`Service`]'s form. It grows with each incompatible change.
pub const SERVICE_SCHEMA: u32 = 1;
/// Maximum number of Services in one page.
pub const SERVICES_MAX: usize = 256;
/// Maximum number of Services that one request looks at.
pub const LOOKED_AT_MAX: usize = 1_024;
/// Maximum number of endpoints and addresses that one request looks at, unless a single Service has more.
pub const WORK_MAX: usize = 16_384;
/// Maximum number of addresses, and of endpoints, listed for one Service; the others are counted.
pub const LISTED_MAX: usize = 2_048;
/// Maximum number of problems and near misses listed for one Service; the others are counted.
pub const PROBLEMS_MAX: usize = 64;

/// Selects Services: those that fit all fields that are set.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServiceFilter {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// `namespace/name`: only this one, with what takes longer to find.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Only those that need attention, see [`Service::needs_attention`].
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub problems: bool,
}

/// How a Service is served, as a whole.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServiceState {
    /// At each of its addresses, with endpoints.
    Served,
    /// Some of its addresses or ports have no endpoints, or are not served.
    PartlyServed,
    /// Its addresses are served, but no port has an endpoint to use.
    NoEndpoints,
    /// None of its addresses is served; the addresses and problems say why.
    NotServed,
    /// Set aside by design: it is headless, an alias, or has no cluster IP.
    SetAside,
    /// Left to another proxy, by its label.
    OtherProxy,
    /// The object could not be read. Its cluster IPs, if known, are left to the kernel.
    Unreadable,
    /// One Service too many. Its cluster IPs are left to the kernel.
    OverLimit,
    /// EndpointSlices name it, but there is no such Service.
    Missing,
}

impl ServiceState {
    pub const ALL: [ServiceState; 9] = [
        ServiceState::Served,
        ServiceState::PartlyServed,
        ServiceState::NoEndpoints,
        ServiceState::NotServed,
        ServiceState::SetAside,
        ServiceState::OtherProxy,
        ServiceState::Unreadable,
        ServiceState::OverLimit,
        ServiceState::Missing,
    ];

    /// In words.
    pub fn text(self) -> &'static str {
        match self {
            ServiceState::Served => "served",
            ServiceState::PartlyServed => "partly served",
            ServiceState::NoEndpoints => "no endpoints",
            ServiceState::NotServed => "not served",
            ServiceState::SetAside => "set aside",
            ServiceState::OtherProxy => "left to another proxy",
            ServiceState::Unreadable => "unreadable",
            ServiceState::OverLimit => "one too many",
            ServiceState::Missing => "missing",
        }
    }
}

impl fmt::Display for ServiceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.text())
    }
}

/// What a client from outside gets at an address of a Service port.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AddressState {
    /// An endpoint.
    Served,
    /// A reject: no endpoint can be used.
    NoEndpoints,
    /// Silence: the traffic policy is Local, and no endpoint is on this node.
    NoLocalEndpoints,
    /// Another Service's endpoint.
    Taken,
    /// The address is left to the kernel.
    Kernel,
    /// A load balancer's address with `ipMode: Proxy`: the load balancer itself gets the packets.
    LoadBalancer,
    /// The address may not be served: it is not the owner's to choose, or the API server's.
    Refused,
    /// The Service has no cluster IP of the address's family.
    OtherFamily,
    /// The table has no entry for it, because the Service is not served as a whole.
    NotServed,
}

impl AddressState {
    /// In words.
    pub fn text(self) -> &'static str {
        match self {
            AddressState::Served => "served",
            AddressState::NoEndpoints => "no endpoints",
            AddressState::NoLocalEndpoints => "no local endpoints",
            AddressState::Taken => "taken",
            AddressState::Kernel => "left to the kernel",
            AddressState::LoadBalancer => "the load balancer's",
            AddressState::Refused => "refused",
            AddressState::OtherFamily => "other family",
            AddressState::NotServed => "not served",
        }
    }
}

/// A Service. The JSON output has these fields in this order.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Service {
    /// [`SERVICE_SCHEMA`].
    pub schema: u32,
    pub namespace: String,
    pub name: String,
    pub state: ServiceState,
    /// More about the state, if there is more to say.
    pub why: Option<String>,
    /// `spec.type`; `null` if unknown.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// `Cluster` or `Local`; `null` if unknown.
    pub internal_traffic_policy: Option<String>,
    /// The same for addresses other than cluster IPs; `null` if unknown or without effect.
    pub external_traffic_policy: Option<String>,
    /// Timeout of `sessionAffinity: ClientIP`.
    pub session_affinity_s: Option<u32>,
    pub health_check_node_port: Option<u16>,
    /// `spec.loadBalancerSourceRanges`
    pub source_ranges: Vec<String>,
    pub ports: Vec<Port>,
    /// Number of ports that are not listed.
    pub more_ports: u64,
    /// What is valid, but does less than its author may expect.
    pub near_misses: Vec<String>,
    pub problems: Vec<String>,
    /// Number of near misses and problems that are not listed.
    pub more_problems: u64,
}

/// A port of a Service.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Port {
    /// "" for an unnamed port.
    pub name: String,
    pub port: u16,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    pub node_port: Option<u16>,
    pub addresses: Vec<Address>,
    /// Number of addresses that are not listed.
    pub more_addresses: u64,
    /// Endpoints that get new connections first, then those that are left out.
    pub backends: Vec<Backend>,
    /// Number of endpoints that are not listed.
    pub more_backends: u64,
}

/// An address at which clients find a Service port.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Address {
    /// `clusterIP`, `nodePort`, `externalIP` or `loadBalancerIP`.
    pub kind: String,
    pub ip: IpAddr,
    pub port: u16,
    pub state: AddressState,
    pub why: Option<String>,
}

/// An endpoint of a Service port.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Backend {
    /// `address:port`.
    pub endpoint: String,
    /// `nodeName`
    pub node: Option<String>,
    /// Why it gets no new connections to the cluster IP; `null`: it gets some.
    pub left_out: Option<String>,
    /// The same for clients outside, at the other addresses; `null` too if there are none.
    pub left_out_outside: Option<String>,
}

impl Service {
    /// `namespace/name`
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Whether it has problems or near misses, or is not served although it should be.
    pub fn needs_attention(&self) -> bool {
        let as_intended = matches!(self.state, ServiceState::Served | ServiceState::SetAside | ServiceState::OtherProxy);
        !as_intended || !self.problems.is_empty() || !self.near_misses.is_empty()
    }
}

/// Addresses that stand for clients of a class, if a command names none.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct ExampleClients {
    /// Outside of the cluster: IPv4, IPv6.
    pub outside: [Option<IpAddr>; 2],
    /// In the pod ranges; `None` for a family whose pods are not told apart from other clients.
    pub pod: [Option<IpAddr>; 2],
}

/// A part of the Services, by name.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct ServicesPage {
    pub services: Vec<Service>,
    /// Only with [`ServiceFilter::service`].
    pub clients: Option<ExampleClients>,
    /// The Service to go on at, `namespace/name`; `null`: all have been seen.
    pub next: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_states_are_unique() {
        let names: std::collections::BTreeSet<&str> = ServiceState::ALL.iter().map(|state| state.text()).collect();
        assert_eq!(names.len(), ServiceState::ALL.len());
        assert_eq!(serde_json::to_value(ServiceState::OtherProxy).unwrap(), "other_proxy");
        assert_eq!(serde_json::to_value(AddressState::NoLocalEndpoints).unwrap(), "no_local_endpoints");
    }

    #[test]
    fn a_filter_without_fields_is_empty() {
        assert_eq!(serde_json::to_string(&ServiceFilter::default()).unwrap(), "{}");
        assert_eq!(serde_json::from_str::<ServiceFilter>("{}").unwrap(), ServiceFilter::default());
        serde_json::from_str::<ServiceFilter>(r#"{"name":"a"}"#).unwrap_err();
    }
}
