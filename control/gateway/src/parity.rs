//! nomagic's table beside the rules of a kube-proxy: where the rules come from, and what the objects say about an endpoint.

mod source;

use std::net::SocketAddr;

use nomagic_core::services::ServicePort;
use nomagic_core::tuple::Proto;
use nomagic_kube_proxy_rules::Node;
use nomagic_kube_proxy_rules::parity::{Objects, Standing};
use nomagic_table::compile::endpoints::{Class, Exclusion, Members, candidates, select};
use nomagic_table::index::Index;
use nomagic_table::objects::NamespacedName;
use nomagic_table::settings::Settings;

pub use source::{RulesError, from_files, from_kernel};

/// The objects that a table was compiled from.
pub struct KnownObjects<'i> {
    pub index: &'i Index,
    pub settings: &'i Settings,
}

impl Objects for KnownObjects<'_> {
    fn standing(&self, port: &ServicePort, to: SocketAddr) -> Standing {
        let key = NamespacedName { namespace: port.namespace.clone(), name: port.name.clone() };
        let spec = self.index.service(&key).and_then(|s| s.ports.iter().find(|p| (&p.name, p.proto) == (&port.port_name, port.proto)));
        let Some(spec) = spec else { return Standing::Unknown };
        let node = &self.settings.node;
        let all = candidates(&Members::of(self.index, &key), spec, to.is_ipv6(), node);
        let Some(local) = all.iter().find(|c| (c.endpoint.addr, c.port) == (to.ip(), to.port())).map(|c| c.local) else {
            return Standing::Unknown;
        };
        let selection = select(all, node);
        let is = |address, port| (address, port) == (to.ip(), to.port());
        if let Some((_, why)) = selection.left_out(Class::Cluster).find(|(c, _)| is(c.endpoint.addr, c.port)) {
            return Standing::LeftOut { why: why.text().into(), other_node: None };
        }
        // Usable with the policy Cluster; with Local perhaps not.
        match selection.left_out(Class::Local).find(|(c, _)| is(c.endpoint.addr, c.port)) {
            Some((candidate, Exclusion::OtherNode)) if candidate.endpoint.node.is_some() => Standing::LeftOut {
                why: Exclusion::OtherNode.text().into(),
                other_node: candidate.endpoint.node.as_deref().map(str::to_owned),
            },
            _ => Standing::Usable { local },
        }
    }

    fn has_node_port(&self, port: u16, proto: Proto) -> bool {
        self.index.services().flat_map(|service| &service.ports).any(|p| (p.node_port, p.proto) == (Some(port), proto))
    }
}

/// The node as the rules see it.
pub fn node(settings: &Settings) -> Node {
    Node { addresses: settings.node.ips.iter().chain(&settings.kernel_ips).copied().collect() }
}
