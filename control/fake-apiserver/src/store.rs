//! The objects and their history, in place of the real server's etcd and watch cache.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use serde_json::{Value, json};

use crate::resources::Resource;

/// Maximum number of objects.
pub const OBJECTS_MAX: usize = 50_000;
/// Maximum size of an object, bytes: about etcd's limit.
pub const OBJECT_BYTES_MAX: usize = 3 << 20;
/// Maximum number of changes in the history; older ones are compacted.
pub const HISTORY_MAX: usize = 20_000;

/// Kind, namespace ("" for cluster-scoped kinds) and name.
pub type ObjectKey = (Resource, String, String);

/// One change of one object.
#[derive(Clone, Debug)]
pub struct ObjectChange {
    /// The resource version after the change.
    pub version: u64,
    pub key: ObjectKey,
    /// The object before the change; `None`: it was created.
    pub old: Option<Arc<Value>>,
    /// The object after the change; `None`: it was deleted.
    pub new: Option<Arc<Value>>,
}

/// All objects, and the changes that led to them.
#[derive(Debug)]
pub struct Store {
    version: u64,
    compacted: u64,
    objects: BTreeMap<ObjectKey, Arc<Value>>,
    history: VecDeque<ObjectChange>,
}

impl Default for Store {
    fn default() -> Store {
        // Like a cluster that is not new: version 1 is compacted.
        Store { version: 100, compacted: 100, objects: BTreeMap::new(), history: VecDeque::new() }
    }
}

impl Store {
    /// The resource version of the last change.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Changes up to this version are compacted.
    pub fn compacted(&self) -> u64 {
        self.compacted
    }

    /// Creates or replaces an object. `Err`: why it is invalid.
    pub fn put(&mut self, mut object: Value) -> Result<u64, String> {
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let (api, kind, name) = (text(&object["apiVersion"]), text(&object["kind"]), text(&object["metadata"]["name"]));
        let resource = Resource::of(&api, &kind).ok_or_else(|| format!("no such resource: apiVersion {api:?}, kind {kind:?}"))?;
        if name.is_empty() {
            return Err("metadata.name: missing".into());
        }
        let namespace = match text(&object["metadata"]["namespace"]) {
            _ if !resource.namespaced() => String::new(),
            empty if empty.is_empty() => "default".to_owned(),
            given => given,
        };
        let bytes = object.to_string().len();
        if bytes > OBJECT_BYTES_MAX {
            return Err(format!("{bytes} bytes: {OBJECT_BYTES_MAX} are allowed"));
        }
        let key = (resource, namespace, name);
        if self.objects.len() == OBJECTS_MAX && !self.objects.contains_key(&key) {
            return Err(format!("{OBJECTS_MAX} objects are allowed"));
        }
        if resource.namespaced() {
            object["metadata"]["namespace"] = json!(key.1);
        }
        set_defaults(resource, &mut object);
        let version = self.version + 1;
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        let new = Arc::new(object);
        let old = self.objects.insert(key.clone(), new.clone());
        self.record(ObjectChange { version, key, old, new: Some(new) });
        Ok(version)
    }

    /// Deletes an object. `None`: no such object.
    pub fn delete(&mut self, key: &ObjectKey) -> Option<u64> {
        let old = self.objects.remove(key)?;
        let version = self.version + 1;
        self.record(ObjectChange { version, key: key.clone(), old: Some(old), new: None });
        Some(version)
    }

    pub fn get(&self, key: &ObjectKey) -> Option<&Arc<Value>> {
        self.objects.get(key)
    }

    /// The objects of a kind at a version, by namespace and name. `None`: the version is compacted or in the future.
    pub fn at(&self, resource: Resource, version: u64) -> Option<BTreeMap<ObjectKey, Arc<Value>>> {
        if version < self.compacted || version > self.version {
            return None;
        }
        let of_kind = self.objects.iter().filter(|(key, _)| key.0 == resource);
        let mut objects: BTreeMap<ObjectKey, Arc<Value>> = of_kind.map(|(k, v)| (k.clone(), v.clone())).collect();
        for change in self.history.iter().rev().take_while(|c| c.version > version).filter(|c| c.key.0 == resource) {
            match &change.old {
                Some(old) => objects.insert(change.key.clone(), old.clone()),
                None => objects.remove(&change.key),
            };
        }
        Some(objects)
    }

    /// The first `max` changes after a version. `None`: some of them are compacted.
    pub fn after(&self, version: u64, max: usize) -> Option<impl Iterator<Item = &ObjectChange>> {
        if version < self.compacted {
            return None;
        }
        let first = self.history.partition_point(|c| c.version <= version);
        Some(self.history.range(first..).take(max))
    }

    /// Restores the state at an older version, which forgets the changes after it. False: it is compacted or in the future.
    pub fn go_back(&mut self, version: u64) -> bool {
        if version < self.compacted || version > self.version {
            return false;
        }
        while let Some(change) = self.history.pop_back_if(|change| change.version > version) {
            match change.old {
                Some(old) => drop(self.objects.insert(change.key, old)),
                None => drop(self.objects.remove(&change.key)),
            }
        }
        self.version = version;
        true
    }

    /// Raises the version to at least this one and compacts everything older.
    pub fn begin_at(&mut self, version: u64) {
        self.version = self.version.max(version);
        self.compact();
    }

    /// Discards the history.
    pub fn compact(&mut self) {
        self.history.clear();
        self.compacted = self.version;
    }

    fn record(&mut self, change: ObjectChange) {
        self.version = change.version;
        self.history.push_back(change);
        if self.history.len() > HISTORY_MAX
            && let Some(oldest) = self.history.pop_front()
        {
            self.compacted = oldest.version;
        }
    }
}

/// Sets those of the real server's defaults that a proxy depends on.
fn set_defaults(resource: Resource, object: &mut Value) {
    if resource != Resource::EndpointSlices {
        return;
    }
    for port in object.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut) {
        for (field, default) in [("name", ""), ("protocol", "TCP")] {
            let value = port.entry(field).or_insert(Value::Null);
            if value.is_null() {
                *value = json!(default);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str) -> Value {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {}})
    }

    fn key(name: &str) -> ObjectKey {
        (Resource::Services, "default".into(), name.into())
    }

    #[test]
    fn history_is_kept_until_compaction() {
        let mut store = Store::default();
        let first = store.put(service("a")).unwrap();
        store.put(service("b")).unwrap();
        let both = store.version();
        store.delete(&key("a")).unwrap();
        store.put(service("c")).unwrap();
        let names = |store: &Store, version| store.at(Resource::Services, version).map(|o| o.into_keys().map(|k| k.2).collect::<Vec<_>>());
        assert_eq!(names(&store, first).unwrap(), ["a"]);
        assert_eq!(names(&store, both).unwrap(), ["a", "b"]);
        assert_eq!(names(&store, store.version()).unwrap(), ["b", "c"]);
        assert_eq!(store.after(both, 10).unwrap().count(), 2);
        assert_eq!(store.after(both, 1).unwrap().count(), 1);
        store.compact();
        assert!(names(&store, both).is_none() && store.after(both, 10).is_none() && names(&store, store.version() + 1).is_none());
        assert_eq!(names(&store, store.version()).unwrap(), ["b", "c"]);
    }

    #[test]
    fn an_older_state_is_restored_with_its_version() {
        let mut store = Store::default();
        store.put(service("a")).unwrap();
        let older = store.put(service("b")).unwrap();
        let before = store.at(Resource::Services, older).unwrap();
        store.delete(&key("a")).unwrap();
        store.put(service("b")).unwrap();
        store.put(service("c")).unwrap();
        assert!(!store.go_back(store.version() + 1) && !store.go_back(store.compacted() - 1));
        assert!(store.go_back(older));
        assert_eq!((store.version(), store.at(Resource::Services, older).unwrap()), (older, before));
        assert_eq!(store.put(service("d")).unwrap(), older + 1);
    }

    #[test]
    fn invalid_and_excess_objects_are_rejected() {
        let mut store = Store::default();
        for (object, word) in [
            (json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}}), "Pod"),
            (json!({"apiVersion": "v1", "kind": "Service", "metadata": {}}), "metadata.name"),
            (json!("nothing"), "no such resource"),
            (json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "x": "y".repeat(OBJECT_BYTES_MAX)}), "bytes"),
        ] {
            assert!(store.put(object).unwrap_err().contains(word), "{word}");
        }
        assert_eq!(store.delete(&key("a")), None);
        (0..OBJECTS_MAX).for_each(|i| {
            store.put(service(&format!("s{i}"))).unwrap();
        });
        assert!(store.put(service("one more")).unwrap_err().contains("objects are allowed"));
        assert!(store.put(service("s0")).is_ok(), "an existing object can be replaced");
    }

    #[test]
    fn the_oldest_changes_are_compacted() {
        let mut store = Store::default();
        let start = store.version();
        (0..=HISTORY_MAX).for_each(|_| {
            store.put(service("a")).unwrap();
        });
        assert_eq!((store.compacted(), store.history.len()), (start + 1, HISTORY_MAX));
        assert!(store.after(start, 1).is_none() && store.after(start + 1, 1).is_some());
    }

    #[test]
    fn ports_of_slices_get_their_defaults() {
        let mut store = Store::default();
        let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "a"}, "ports": [{"port": 80}, {"name": "x", "protocol": "UDP"}]});
        store.put(slice).unwrap();
        let stored = store.get(&(Resource::EndpointSlices, "default".into(), "a".into())).unwrap();
        assert_eq!(stored["ports"], json!([{"port": 80, "name": "", "protocol": "TCP"}, {"name": "x", "protocol": "UDP"}]));
    }
}
