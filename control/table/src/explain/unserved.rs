//! The Services that name an address or node port and are not served there.

use std::net::IpAddr;

use nomagic_core::tuple::Tuple;

use crate::findings::family;
use crate::index::Index;
use crate::objects::{Service, ServicePortSpec};

/// A Service that would answer a packet if it were served.
pub(super) struct Unserved<'i> {
    pub(super) service: &'i Service,
    /// What the packet's destination is for it.
    address: &'static str,
    /// Why it does not answer.
    reason: Reason,
}

enum Reason {
    /// The Service is ignored.
    Ignored(&'static str),
    /// It has no cluster IP of the packet's family.
    Family,
}

impl<'i> Unserved<'i> {
    /// Finds the Service, the oldest first. `node`: the packet is for the node itself, where node ports are.
    pub(super) fn find(index: &'i Index, tuple: &Tuple, node: bool) -> Option<Unserved<'i>> {
        let found = index.services().filter_map(|service| Unserved::of(service, tuple, node));
        found.min_by_key(|unserved| (unserved.service.created_s, &unserved.service.key))
    }

    fn of(service: &'i Service, tuple: &Tuple, node: bool) -> Option<Unserved<'i>> {
        let reason = match service.ignored {
            Some(reason) => Reason::Ignored(reason),
            None if service.cluster_ips.iter().any(|ip| ip.is_ipv6() == tuple.v6) => return None,
            None => Reason::Family,
        };
        let (dst, port) = (tuple.dst_addr(), |p: &ServicePortSpec| p.proto == tuple.proto && p.node_port == Some(tuple.dport));
        let lists: [(&[IpAddr], &str); 4] = [
            (&service.cluster_ips, "the cluster IP"),
            (&service.load_balancer_ips, "a load balancer's address"),
            (&service.external_ips, "one of the externalIPs"),
            (&service.proxied_ips, "a load balancer's address"),
        ];
        let address = lists.into_iter().find(|(ips, _)| ips.contains(&dst)).map(|(_, words)| words);
        let node_port = || (node && service.ports.iter().any(port)).then_some("the node port");
        Some(Unserved { service, address: address.or_else(node_port)?, reason })
    }

    pub(super) fn sentence(&self, t: &Tuple) -> String {
        let what = match self.address {
            "the node port" => format!("{}/{}", t.dport, t.proto),
            _ => t.dst_addr().to_string(),
        };
        let (address, key) = (self.address, &self.service.key);
        match self.reason {
            Reason::Ignored(reason) => format!("{what} is {address} of Service {key}, which is not served: {reason}."),
            Reason::Family => {
                format!("{what} is {address} of Service {key}, which has no {} cluster IP, so it is not served there.", family(t.v6))
            }
        }
    }
}
