//! The desired state: every Service and EndpointSlice known, by name. Pure: apply, delete, replace.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::objects::{Key, Kind, Object, Service, Slice};
use crate::problem::Problem;

/// Services and EndpointSlices by namespace and name.
#[derive(Clone, Default, Debug)]
pub struct Index {
    services: BTreeMap<Key, Arc<Service>>,
    slices: BTreeMap<Key, Arc<Slice>>,
    /// Names of the slices of a Service, for slices that count.
    members: BTreeMap<Key, BTreeSet<String>>,
}

impl Index {
    /// An index of these objects; of two with one name the last stays.
    pub fn of(objects: impl IntoIterator<Item = Object>) -> Index {
        let mut index = Index::default();
        objects.into_iter().for_each(|o| index.apply(o));
        index
    }

    /// Adds an object, or replaces the one of its name.
    pub fn apply(&mut self, object: Object) {
        match object {
            Object::Service(service) => {
                self.services.insert(service.key.clone(), service);
            }
            Object::Slice(slice) => {
                self.delete(Kind::EndpointSlice, &slice.key);
                if let (Some(service), None) = (&slice.service, slice.ignored) {
                    self.members.entry(service.clone()).or_default().insert(slice.key.name.clone());
                }
                self.slices.insert(slice.key.clone(), slice);
            }
        }
    }

    /// Forgets an object. False when it was not known.
    pub fn delete(&mut self, kind: Kind, key: &Key) -> bool {
        match kind {
            Kind::Service => self.services.remove(key).is_some(),
            Kind::EndpointSlice => {
                let Some(slice) = self.slices.remove(key) else { return false };
                if let Some(service) = &slice.service
                    && let Some(names) = self.members.get_mut(service)
                {
                    names.remove(&key.name);
                    if names.is_empty() {
                        self.members.remove(service);
                    }
                }
                true
            }
        }
    }

    /// All objects of one kind are these from now on (a relist). Objects of the other kind in the list are left out.
    pub fn replace(&mut self, kind: Kind, objects: impl IntoIterator<Item = Object>) {
        match kind {
            Kind::Service => self.services.clear(),
            Kind::EndpointSlice => {
                self.slices.clear();
                self.members.clear();
            }
        }
        objects.into_iter().filter(|o| o.kind() == kind).for_each(|o| self.apply(o));
    }

    /// A Service.
    pub fn service(&self, key: &Key) -> Option<&Arc<Service>> {
        self.services.get(key)
    }

    /// All Services, by name.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// An EndpointSlice.
    pub fn slice(&self, key: &Key) -> Option<&Arc<Slice>> {
        self.slices.get(key)
    }

    /// All EndpointSlices, by name.
    pub fn slices(&self) -> impl Iterator<Item = &Arc<Slice>> {
        self.slices.values()
    }

    /// The slices of a Service that count, by name.
    pub fn slices_of(&self, service: &Key) -> impl Iterator<Item = &Arc<Slice>> {
        let names = self.members.get(service).into_iter().flatten();
        let namespace = &service.namespace;
        names.filter_map(move |name| self.slices.get(&Key { namespace: namespace.clone(), name: name.clone() }))
    }

    /// What was wrong with the objects themselves.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        let services = self.services.values().flat_map(|s| &s.problems);
        services.chain(self.slices.values().flat_map(|s| &s.problems))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::Origin;

    fn key(name: &str) -> Key {
        Key { namespace: "n".into(), name: name.into() }
    }

    fn service(name: &str) -> Object {
        let yaml = format!("metadata: {{name: {name}, namespace: n}}\nspec: {{clusterIP: 10.0.0.1, ports: [{{port: 80}}]}}");
        Object::Service(Arc::new(Service::from_k8s(&serde_saphyr::from_str(&yaml).unwrap(), &Origin::default()).unwrap()))
    }

    fn slice(name: &str, of: &str) -> Object {
        let yaml = format!(
            "metadata: {{name: {name}, namespace: n, labels: {{kubernetes.io/service-name: {of}}}}}\naddressType: IPv4\nendpoints: []"
        );
        Object::Slice(Arc::new(Slice::from_k8s(&serde_saphyr::from_str(&yaml).unwrap(), &Origin::default()).unwrap()))
    }

    fn members(index: &Index, service: &str) -> Vec<String> {
        index.slices_of(&key(service)).map(|s| s.key.name.clone()).collect()
    }

    #[test]
    fn slices_follow_their_label() {
        let mut index = Index::of([slice("b", "web"), slice("a", "web"), service("web")]);
        assert_eq!(members(&index, "web"), ["a", "b"]);
        index.apply(slice("a", "other"));
        assert_eq!((members(&index, "web"), members(&index, "other")), (vec!["b".to_string()], vec!["a".to_string()]));
        assert!(index.delete(Kind::EndpointSlice, &key("b")) && !index.delete(Kind::EndpointSlice, &key("b")));
        assert!(members(&index, "web").is_empty());
    }

    #[test]
    fn a_relist_replaces_one_kind() {
        let mut index = Index::of([service("web"), service("old"), slice("a", "web")]);
        index.replace(Kind::Service, [service("web"), slice("stray", "web")]);
        assert_eq!(index.services().map(|s| s.key.name.as_str()).collect::<Vec<_>>(), ["web"]);
        assert_eq!(members(&index, "web"), ["a"]);
        index.replace(Kind::EndpointSlice, []);
        assert!(members(&index, "web").is_empty() && index.service(&key("web")).is_some());
        assert!(index.delete(Kind::Service, &key("web")) && index.service(&key("web")).is_none());
    }
}
