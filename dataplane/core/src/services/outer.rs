//! Addresses of load balancers and external IPs. Services answer there, but often no host has them: routers send their packets here, and the
//! kernel, which does not have them either, would send the unused ports' back.

use std::net::IpAddr;

use super::{AddressKind, Services};
use crate::cow_map::CowMap;

/// What becomes of packets for unused ports of load balancer and external IPs, if the kernel would send them back where they came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum UnusedPorts {
    /// Their sender is told, as at a cluster IP.
    #[default]
    Refuse,
    /// Silence.
    Drop,
    /// The kernel gets them.
    Kernel,
}

/// An address that only Services have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnlyHere {
    /// A cluster IP.
    ClusterIp,
    /// In a Service range, but no Service has it.
    Unallocated,
    /// A load balancer or external IP. It may be a host's as well: the route tells.
    Outer,
}

impl Services {
    /// The load balancer and external IPs.
    pub fn outer(&self) -> &OuterAddresses {
        &self.outer
    }

    /// What an address is to Services, if it is neither the kernel's nor foreign to them.
    pub fn only_here(&self, addr: IpAddr) -> Option<OnlyHere> {
        let of_services = if self.cluster_ips.contains(&addr) {
            OnlyHere::ClusterIp
        } else if self.in_service_range(addr) {
            OnlyHere::Unallocated
        } else if self.outer.contains(&addr) {
            OnlyHere::Outer
        } else {
            return None;
        };
        (!self.kernel_ips.contains(&addr)).then_some(of_services)
    }

    /// Whether an address is in one of the ranges of cluster IPs.
    pub fn in_service_range(&self, addr: IpAddr) -> bool {
        self.service_cidrs.iter().any(|range| range.contains(addr))
    }
}

/// Load balancer and external IPs, by how many frontends are there.
#[derive(Clone, Debug, Default)]
pub struct OuterAddresses(CowMap<IpAddr, u32>);

impl OuterAddresses {
    /// Whether a Service has this load balancer or external IP.
    pub fn contains(&self, addr: &IpAddr) -> bool {
        self.0.contains(addr)
    }

    /// All of them, in no order.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> {
        self.0.iter().map(|(addr, _)| *addr)
    }

    /// Those that only one of two copies has, in no order. Shared parts are skipped.
    pub fn differences<'m>(&'m self, other: &'m OuterAddresses) -> impl Iterator<Item = IpAddr> {
        self.0.differences(&other.0).filter(|(_, here, there)| here.is_some() != there.is_some()).map(|(addr, ..)| *addr)
    }

    /// A frontend comes to an address.
    pub(super) fn add(&mut self, addr: IpAddr, kind: AddressKind) {
        if is_outer(kind) {
            let count = self.0.get(&addr).copied().unwrap_or(0);
            self.0.insert(addr, count + 1);
        }
    }

    /// A frontend leaves an address.
    pub(super) fn remove(&mut self, addr: IpAddr, kind: AddressKind) {
        if is_outer(kind) {
            match self.0.get(&addr) {
                Some(count) if *count > 1 => drop(self.0.insert(addr, count - 1)),
                _ => drop(self.0.remove(&addr)),
            }
        }
    }
}

fn is_outer(kind: AddressKind) -> bool {
    matches!(kind, AddressKind::ExternalIp | AddressKind::LoadBalancer)
}
