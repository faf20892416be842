//! Selects the endpoints of a Service port by readiness, termination, locality and topology, in kube-proxy's order.

use std::collections::HashMap;
use std::net::IpAddr;

use nomagic_core::tuple::Proto;

use crate::index::Index;
use crate::objects::{Endpoint, NamespacedName, ServicePortSpec, Slice};
use crate::settings::ThisNode;

/// An endpoint of a Service port.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'i> {
    pub endpoint: &'i Endpoint,
    /// The port number on the endpoint.
    pub port: u16,
    /// Whether it runs on this node.
    pub local: bool,
}

impl Candidate<'_> {
    fn id(&self) -> (IpAddr, u16) {
        (self.endpoint.addr, self.port)
    }

    /// Terminating but still serving.
    fn draining(&self) -> bool {
        self.endpoint.serving && self.endpoint.terminating
    }
}

/// The set of endpoints that a traffic policy selects from.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Class {
    /// Policy Cluster: endpoints of all nodes, narrowed by topology hints.
    Cluster,
    /// Policy Local: endpoints of this node.
    Local,
}

/// The topology hints that narrow the selection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AppliedHints {
    /// None.
    All,
    /// All ready endpoints have node hints, and one names this node.
    Node,
    /// All ready endpoints have zone hints, and one names this node's zone.
    Zone,
}

/// Why an endpoint gets no new connections.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exclusion {
    /// Neither ready nor terminating.
    NotReady,
    /// Terminating while others are ready.
    Terminating,
    /// Terminating and no longer serving.
    NotServing,
    /// Policy Local, and it runs on another node.
    OtherNode,
    /// Its topology hints name other nodes.
    NodeHint,
    /// Its topology hints name other zones.
    ZoneHint,
}

impl Exclusion {
    /// The reason in words.
    pub fn text(self) -> &'static str {
        match self {
            Exclusion::NotReady => "not ready",
            Exclusion::Terminating => "terminating, and others are ready",
            Exclusion::NotServing => "terminating and no longer serving",
            Exclusion::OtherNode => "on another node, and the traffic policy is Local",
            Exclusion::NodeHint => "its topology hints name other nodes",
            Exclusion::ZoneHint => "its topology hints name other zones",
        }
    }
}

/// The endpoints of a port, sorted by address and port, and those usable by each class.
#[derive(Clone, Debug)]
pub struct Selection<'i> {
    /// All known endpoints.
    pub candidates: Vec<Candidate<'i>>,
    /// The hints that apply to [`Class::Cluster`].
    pub topology: AppliedHints,
    cluster: Vec<u32>,
    local: Vec<u32>,
}

impl<'i> Selection<'i> {
    /// Indices in `candidates` of the usable endpoints.
    pub fn members(&self, class: Class) -> &[u32] {
        match class {
            Class::Cluster => &self.cluster,
            Class::Local => &self.local,
        }
    }

    /// The usable endpoints.
    pub fn usable(&self, class: Class) -> impl ExactSizeIterator<Item = &Candidate<'i>> {
        self.members(class).iter().map(|&i| &self.candidates[i as usize])
    }

    /// Whether no endpoint is ready, so that terminating ones that still serve are used.
    pub fn falls_back(&self, class: Class) -> bool {
        self.usable(class).next().is_some_and(|c| !c.endpoint.ready)
    }

    /// The other endpoints, with the reason.
    pub fn left_out(&self, class: Class) -> impl Iterator<Item = (&Candidate<'i>, Exclusion)> {
        let used = move |i: usize| self.members(class).binary_search(&(i as u32)).is_ok();
        self.candidates.iter().enumerate().filter(move |(i, _)| !used(*i)).map(move |(_, c)| (c, self.why(c, class)))
    }

    /// For each of the candidates, why it is not usable.
    pub fn exclusions(&self, class: Class) -> Vec<Option<Exclusion>> {
        let mut all: Vec<Option<Exclusion>> = self.candidates.iter().map(|c| Some(self.why(c, class))).collect();
        self.members(class).iter().for_each(|&i| all[i as usize] = None);
        all
    }

    fn why(&self, candidate: &Candidate<'_>, class: Class) -> Exclusion {
        let endpoint = candidate.endpoint;
        match (class, self.topology) {
            _ if !endpoint.ready && endpoint.terminating && !endpoint.serving => Exclusion::NotServing,
            (Class::Local, _) if !candidate.local => Exclusion::OtherNode,
            _ if !endpoint.ready && endpoint.terminating => Exclusion::Terminating,
            _ if !endpoint.ready => Exclusion::NotReady,
            (_, AppliedHints::Node) => Exclusion::NodeHint,
            (_, _) => Exclusion::ZoneHint,
        }
    }
}

/// The slices of a Service by the name, protocol and family of their ports, with the port's number: a Service may have thousands of ports.
#[derive(Debug)]
pub struct Members<'i>(HashMap<PortId<'i>, Vec<(&'i Slice, u16)>>);

/// Name, protocol and family (IPv6) of a port.
type PortId<'i> = (&'i str, Proto, bool);

impl<'i> Members<'i> {
    /// The slices of a Service.
    pub fn of(index: &'i Index, service: &NamespacedName) -> Members<'i> {
        let mut members: HashMap<PortId<'i>, Vec<(&'i Slice, u16)>> = HashMap::new();
        for slice in index.slices_of(service) {
            for port in &slice.ports {
                members.entry((&port.name, port.proto, slice.v6)).or_default().push((slice, port.port));
            }
        }
        Members(members)
    }

    fn slices<'s>(&'s self, port: &'s ServicePortSpec, v6: bool) -> &'s [(&'i Slice, u16)] {
        self.0.get(&(port.name.as_str(), port.proto, v6)).map_or(&[], Vec::as_slice)
    }

    /// How many endpoints a Service port has at most in a family: those listed twice count twice.
    pub fn count(&self, port: &ServicePortSpec, v6: bool) -> usize {
        self.slices(port, v6).iter().map(|(slice, _)| slice.endpoints.len()).sum()
    }
}

/// All endpoints of a Service port in one family, sorted by address and port, one entry each.
pub fn candidates<'i>(members: &Members<'i>, port: &ServicePortSpec, v6: bool, node: &ThisNode) -> Vec<Candidate<'i>> {
    let mut found = Vec::with_capacity(members.count(port, v6));
    for (slice, number) in members.slices(port, v6) {
        found.extend(slice.endpoints.iter().map(|endpoint| Candidate {
            endpoint,
            port: *number,
            local: endpoint.node.as_deref() == Some(node.name.as_str()),
        }));
    }
    found.sort_by_key(Candidate::id);
    // An address is listed twice while a terminating pod's successor already has it: the running pod counts.
    found.dedup_by(|later, earlier| {
        let same = later.id() == earlier.id();
        if same && !later.endpoint.terminating {
            *earlier = *later;
        }
        same
    });
    found
}

/// Applies the rules of readiness, termination and topology.
pub fn select<'i>(candidates: Vec<Candidate<'i>>, node: &ThisNode) -> Selection<'i> {
    let topology = topology(&candidates, node);
    let near = |c: &Candidate<'_>| match topology {
        AppliedHints::All => true,
        AppliedHints::Node => names(&c.endpoint.node_hints, &node.name),
        AppliedHints::Zone => node.zone.as_deref().is_some_and(|zone| names(&c.endpoint.zone_hints, zone)),
    };
    let places = |wanted: &dyn Fn(&Candidate<'_>) -> bool| -> Vec<u32> {
        candidates.iter().enumerate().filter(|(_, c)| wanted(c)).map(|(i, _)| i as u32).collect()
    };
    let or = |first: Vec<u32>, second: &dyn Fn(&Candidate<'_>) -> bool| if first.is_empty() { places(second) } else { first };
    let cluster = or(places(&|c| c.endpoint.ready && near(c)), &|c| c.draining());
    let local = or(places(&|c| c.local && c.endpoint.ready), &|c| c.local && c.draining());
    Selection { topology, cluster, local, candidates }
}

fn topology(candidates: &[Candidate<'_>], node: &ThisNode) -> AppliedHints {
    let ready = || candidates.iter().filter(|c| c.endpoint.ready).map(|c| c.endpoint);
    let by_node = ready().all(|e| !e.node_hints.is_empty()) && ready().any(|e| names(&e.node_hints, &node.name));
    if by_node {
        return AppliedHints::Node;
    }
    let Some(zone) = node.zone.as_deref() else { return AppliedHints::All };
    let by_zone = ready().all(|e| !e.zone_hints.is_empty()) && ready().any(|e| names(&e.zone_hints, zone));
    if by_zone { AppliedHints::Zone } else { AppliedHints::All }
}

fn names(hints: &[Box<str>], wanted: &str) -> bool {
    hints.iter().any(|h| **h == *wanted)
}
