//! The served kinds of objects and their URL paths.

/// A kind of objects.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Resource {
    /// `v1` Service.
    Services,
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlices,
    /// `v1` Node.
    Nodes,
    /// `networking.k8s.io/v1` ServiceCIDR.
    ServiceCidrs,
    /// `events.k8s.io/v1` Event.
    Events,
    /// `v1` Namespace. Objects of other kinds need no Namespace object.
    Namespaces,
}

impl Resource {
    /// All kinds.
    pub const ALL: [Resource; 6] =
        [Resource::Services, Resource::EndpointSlices, Resource::Nodes, Resource::ServiceCidrs, Resource::Events, Resource::Namespaces];

    /// `apiVersion`
    pub fn version(self) -> &'static str {
        match self {
            Resource::Services | Resource::Nodes | Resource::Namespaces => "v1",
            Resource::EndpointSlices => "discovery.k8s.io/v1",
            Resource::ServiceCidrs => "networking.k8s.io/v1",
            Resource::Events => "events.k8s.io/v1",
        }
    }

    /// `kind`
    pub fn kind(self) -> &'static str {
        match self {
            Resource::Services => "Service",
            Resource::EndpointSlices => "EndpointSlice",
            Resource::Nodes => "Node",
            Resource::ServiceCidrs => "ServiceCIDR",
            Resource::Events => "Event",
            Resource::Namespaces => "Namespace",
        }
    }

    /// The name in URL paths.
    pub fn plural(self) -> &'static str {
        match self {
            Resource::Services => "services",
            Resource::EndpointSlices => "endpointslices",
            Resource::Nodes => "nodes",
            Resource::ServiceCidrs => "servicecidrs",
            Resource::Events => "events",
            Resource::Namespaces => "namespaces",
        }
    }

    /// Whether the kind is namespaced.
    pub fn namespaced(self) -> bool {
        matches!(self, Resource::Services | Resource::EndpointSlices | Resource::Events)
    }

    /// The resource of an object's `apiVersion` and `kind`.
    pub fn of(version: &str, kind: &str) -> Option<Resource> {
        Resource::ALL.into_iter().find(|r| r.version() == version && r.kind() == kind)
    }
}

/// A parsed URL path: a collection or an object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ResourcePath {
    pub resource: Resource,
    /// The namespace; `None`: all namespaces, or a cluster-scoped kind.
    pub namespace: Option<String>,
    /// The object's name; `None`: the collection.
    pub name: Option<String>,
}

impl ResourcePath {
    /// Parses `/api/v1/services`, `/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/web-1` and the like.
    pub fn parse(path: &str) -> Option<ResourcePath> {
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let (version, rest) = match parts.as_slice() {
            ["api", "v1", rest @ ..] => ("v1".to_owned(), rest),
            ["apis", group, version, rest @ ..] => (format!("{group}/{version}"), rest),
            _ => return None,
        };
        let (namespace, rest) = match rest {
            // A Namespace itself.
            ["namespaces"] | ["namespaces", _] => (None, rest),
            ["namespaces", namespace, rest @ ..] => (Some((*namespace).to_owned()), rest),
            rest => (None, rest),
        };
        let (plural, name) = match rest {
            [plural] => (plural, None),
            [plural, name] => (plural, Some((*name).to_owned())),
            _ => return None,
        };
        let resource = Resource::ALL.into_iter().find(|r| r.version() == version && r.plural() == *plural)?;
        let whole = resource.namespaced() || namespace.is_none();
        let named = name.is_none() || namespace.is_some() == resource.namespaced();
        (whole && named).then_some(ResourcePath { resource, namespace, name })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let parsed = |path: &str| ResourcePath::parse(path).map(|p| (p.resource, p.namespace, p.name));
        let text = |t: &str| Some(t.to_owned());
        assert_eq!(parsed("/api/v1/services"), Some((Resource::Services, None, None)));
        assert_eq!(
            parsed("/apis/discovery.k8s.io/v1/namespaces/n/endpointslices/web-1"),
            Some((Resource::EndpointSlices, text("n"), text("web-1")))
        );
        assert_eq!(parsed("/api/v1/nodes/gw"), Some((Resource::Nodes, None, text("gw"))));
        assert_eq!(parsed("/apis/networking.k8s.io/v1/servicecidrs"), Some((Resource::ServiceCidrs, None, None)));
        assert_eq!(parsed("/api/v1/namespaces/kube-system"), Some((Resource::Namespaces, None, text("kube-system"))));
        assert_eq!(parsed("/api/v1/namespaces"), Some((Resource::Namespaces, None, None)));
        for none in
            ["/", "/api/v1/pods", "/apis/v1/services", "/api/v1/services/web", "/api/v1/namespaces/n/nodes", "/api/v2/services", "/version"]
        {
            assert_eq!(parsed(none), None, "{none}");
        }
    }
}
