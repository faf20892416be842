//! The desired state: all known objects by name, from files or an API server. Pure: apply, delete, replace.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::objects::{Kind, NamespacedName, Node, Object, Service, ServiceCidr, Slice};
use crate::problem::Problem;

/// Changed objects, in their state before the change; `None` for those that did not exist.
#[derive(Clone, Default, Debug)]
pub struct Touched {
    pub services: BTreeMap<NamespacedName, Option<Arc<Service>>>,
    pub slices: BTreeMap<NamespacedName, Option<Arc<Slice>>>,
}

impl Touched {
    /// The Services that changed themselves, or whose slices changed, before or now.
    pub fn services_concerned(&self, index: &Index) -> BTreeSet<NamespacedName> {
        let mut concerned: BTreeSet<NamespacedName> = self.services.keys().cloned().collect();
        for (key, before) in &self.slices {
            let slices = before.iter().chain(index.slice(key));
            concerned.extend(slices.filter_map(|slice| slice.service.clone()));
        }
        concerned
    }
}

/// Objects by namespace and name.
#[derive(Clone, Default, Debug)]
pub struct Index {
    services: BTreeMap<NamespacedName, Arc<Service>>,
    /// How many of them only [stand in](Service::stands_in).
    stand_ins: usize,
    slices: BTreeMap<NamespacedName, Arc<Slice>>,
    /// Names of the slices of a Service that are not ignored.
    members: BTreeMap<NamespacedName, BTreeSet<String>>,
    nodes: BTreeMap<NamespacedName, Arc<Node>>,
    service_cidrs: BTreeMap<NamespacedName, Arc<ServiceCidr>>,
    /// Objects with problems.
    troubled: BTreeSet<(Kind, NamespacedName)>,
    /// Changes since the last [`Index::take_touched`].
    touched: Touched,
}

/// Compares objects; ignores how they were applied.
impl PartialEq for Index {
    fn eq(&self, other: &Index) -> bool {
        let Index { services, stand_ins: _, slices, members, nodes, service_cidrs, troubled, touched: _ } = self;
        (services, slices, members) == (&other.services, &other.slices, &other.members)
            && (nodes, service_cidrs, troubled) == (&other.nodes, &other.service_cidrs, &other.troubled)
    }
}

impl Index {
    /// An index of these objects; of two with the same name the last one stays.
    pub fn of(objects: impl IntoIterator<Item = Object>) -> Index {
        let mut index = Index::default();
        for object in objects {
            index.apply(object);
        }
        index
    }

    /// Adds or replaces an object. False when nothing changed.
    pub fn apply(&mut self, object: Object) -> bool {
        if self.has(&object) {
            return false;
        }
        self.delete(object.kind(), object.key());
        if !object.problems().is_empty() {
            self.troubled.insert((object.kind(), object.key().clone()));
        }
        match object {
            Object::Service(service) => {
                self.touched.services.entry(service.key.clone()).or_default();
                self.stand_ins += usize::from(service.stands_in());
                self.services.insert(service.key.clone(), service);
            }
            Object::Slice(slice) => self.insert_slice(slice),
            Object::Node(node) => drop(self.nodes.insert(node.key.clone(), node)),
            Object::ServiceCidr(cidr) => drop(self.service_cidrs.insert(cidr.key.clone(), cidr)),
        }
        true
    }

    /// Whether an equal object is known.
    fn has(&self, object: &Object) -> bool {
        match object {
            Object::Service(service) => self.services.get(&service.key) == Some(service),
            Object::Slice(slice) => self.slices.get(&slice.key) == Some(slice),
            Object::Node(node) => self.nodes.get(&node.key) == Some(node),
            Object::ServiceCidr(cidr) => self.service_cidrs.get(&cidr.key) == Some(cidr),
        }
    }

    fn insert_slice(&mut self, slice: Arc<Slice>) {
        self.touched.slices.entry(slice.key.clone()).or_default();
        if let (Some(service), None) = (&slice.service, slice.ignored) {
            self.members.entry(service.clone()).or_default().insert(slice.key.name.clone());
        }
        self.slices.insert(slice.key.clone(), slice);
    }

    /// Takes the changes since the last call.
    pub fn take_touched(&mut self) -> Touched {
        std::mem::take(&mut self.touched)
    }

    /// Deletes an object. False when it was not known.
    pub fn delete(&mut self, kind: Kind, key: &NamespacedName) -> bool {
        if !self.troubled.is_empty() {
            self.troubled.remove(&(kind, key.clone()));
        }
        match kind {
            Kind::Service => {
                let Some(service) = self.services.remove(key) else { return false };
                self.stand_ins -= usize::from(service.stands_in());
                self.touched.services.entry(key.clone()).or_insert(Some(service));
                true
            }
            Kind::Node => self.nodes.remove(key).is_some(),
            Kind::ServiceCidr => self.service_cidrs.remove(key).is_some(),
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
                self.touched.slices.entry(key.clone()).or_insert(Some(slice));
                true
            }
        }
    }

    /// Replaces all objects of a kind (a relist), except for known ones in `kept`. Ignores objects of other kinds. False when nothing
    /// changed.
    pub fn replace(&mut self, kind: Kind, objects: impl IntoIterator<Item = Object>, kept: &BTreeSet<NamespacedName>) -> bool {
        let mut gone: BTreeSet<NamespacedName> = self.keys(kind).into_iter().filter(|key| !kept.contains(key)).collect();
        let mut changed = false;
        for object in objects.into_iter().filter(|o| o.kind() == kind) {
            gone.remove(object.key());
            changed |= self.apply(object);
        }
        for key in gone {
            changed |= self.delete(kind, &key);
        }
        changed
    }

    fn keys(&self, kind: Kind) -> Vec<NamespacedName> {
        match kind {
            Kind::Service => self.services.keys().cloned().collect(),
            Kind::EndpointSlice => self.slices.keys().cloned().collect(),
            Kind::Node => self.nodes.keys().cloned().collect(),
            Kind::ServiceCidr => self.service_cidrs.keys().cloned().collect(),
        }
    }

    /// Whether an object is known.
    pub fn knows(&self, kind: Kind, key: &NamespacedName) -> bool {
        match kind {
            Kind::Service => self.services.contains_key(key),
            Kind::EndpointSlice => self.slices.contains_key(key),
            Kind::Node => self.nodes.contains_key(key),
            Kind::ServiceCidr => self.service_cidrs.contains_key(key),
        }
    }

    /// Number of known objects of a kind. What only stands in for others does not count.
    pub fn count(&self, kind: Kind) -> usize {
        match kind {
            Kind::Service => self.services.len() - self.stand_ins,
            Kind::EndpointSlice => self.slices.len(),
            Kind::Node => self.nodes.len(),
            Kind::ServiceCidr => self.service_cidrs.len(),
        }
    }

    pub fn service(&self, key: &NamespacedName) -> Option<&Arc<Service>> {
        self.services.get(key)
    }

    /// All Services, by name.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// The Services from this name on, by name.
    pub fn services_from(&self, key: &NamespacedName) -> impl Iterator<Item = &Arc<Service>> {
        self.services.range(key..).map(|(_, service)| service)
    }

    pub fn slice(&self, key: &NamespacedName) -> Option<&Arc<Slice>> {
        self.slices.get(key)
    }

    /// All EndpointSlices, by name.
    pub fn slices(&self) -> impl Iterator<Item = &Arc<Slice>> {
        self.slices.values()
    }

    /// The slices of a Service that are not ignored, by name.
    pub fn slices_of(&self, service: &NamespacedName) -> impl Iterator<Item = &Arc<Slice>> {
        let names = self.members.get(service).into_iter().flatten();
        let namespace = &service.namespace;
        names.filter_map(move |name| self.slices.get(&NamespacedName { namespace: namespace.clone(), name: name.clone() }))
    }

    /// The names of the Services that slices name, whether they exist or not.
    pub fn slice_owners(&self) -> impl Iterator<Item = &NamespacedName> {
        self.members.keys()
    }

    pub fn node(&self, name: &str) -> Option<&Arc<Node>> {
        self.nodes.get(&NamespacedName { namespace: String::new(), name: name.into() })
    }

    /// All ServiceCIDRs, by name.
    pub fn service_cidrs(&self) -> impl Iterator<Item = &Arc<ServiceCidr>> {
        self.service_cidrs.values()
    }

    /// Problems found while reading the objects.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.troubled.iter().flat_map(|(kind, key)| self.problems_of(*kind, key))
    }

    fn problems_of(&self, kind: Kind, key: &NamespacedName) -> &[Problem] {
        let problems = match kind {
            Kind::Service => self.services.get(key).map(|s| &s.problems),
            Kind::EndpointSlice => self.slices.get(key).map(|s| &s.problems),
            Kind::Node => self.nodes.get(key).map(|n| &n.problems),
            Kind::ServiceCidr => self.service_cidrs.get(key).map(|c| &c.problems),
        };
        problems.map_or(&[], Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::Origin;

    fn key(name: &str) -> NamespacedName {
        NamespacedName { namespace: "n".into(), name: name.into() }
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
        assert!(index.replace(Kind::Service, [service("web"), slice("stray", "web")], &BTreeSet::new()));
        assert_eq!(index.services().map(|s| s.key.name.as_str()).collect::<Vec<_>>(), ["web"]);
        assert_eq!((members(&index, "web"), index.count(Kind::EndpointSlice)), (vec!["a".to_string()], 1));
        assert!(!index.replace(Kind::Service, [service("web")], &BTreeSet::new()), "nothing new");
        assert!(index.replace(Kind::EndpointSlice, [], &BTreeSet::new()));
        assert!(members(&index, "web").is_empty() && index.service(&key("web")).is_some());
        assert!(index.delete(Kind::Service, &key("web")) && index.service(&key("web")).is_none());
    }

    #[test]
    fn a_relist_keeps_objects_that_could_not_be_read() {
        let mut index = Index::of([service("web"), service("old")]);
        assert!(index.replace(Kind::Service, [service("new")], &[key("web"), key("never seen")].into()));
        assert_eq!(index.services().map(|s| s.key.name.as_str()).collect::<Vec<_>>(), ["new", "web"]);
    }

    #[test]
    fn applying_an_equal_object_is_no_change() {
        let mut index = Index::default();
        for object in [service("web"), slice("a", "web")] {
            assert!(index.apply(object.clone()) && !index.apply(object));
        }
        assert!(index.apply(slice("a", "other")));
    }

    /// Any order of events leads to the same index as a list of the final state.
    #[test]
    fn events_in_any_order_equal_a_list() {
        let mut index = Index::default();
        let mut last: BTreeMap<(Kind, NamespacedName), Object> = BTreeMap::new();
        let mut seed = 7u64;
        for _ in 0..5_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let (what, name, of) = ((seed >> 33) % 5, format!("o{}", (seed >> 40) % 6), format!("o{}", (seed >> 50) % 3));
            let object = if seed >> 63 == 0 { service(&name) } else { slice(&name, &of) };
            let id = (object.kind(), object.key().clone());
            if what == 4 {
                assert_eq!(index.delete(id.0, &id.1), last.remove(&id).is_some());
            } else {
                let known = last.insert(id, object.clone());
                assert_eq!(index.apply(object.clone()), known != Some(object));
            }
        }
        assert_eq!(index, Index::of(last.into_values()));
    }
}
