//! Counts changed objects between two tables, for kube-proxy's metrics of changes and of programming latency.

use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;

use crate::index::{Index, Touched};
use crate::objects::{Service, Slice};

/// Changes that affect a Service proxy.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Changes {
    /// Services added, changed or removed.
    pub services: u64,
    /// EndpointSlices added, changed or removed.
    pub slices: u64,
    /// Trigger times of added and changed slices that have one: `(family, time)`. Removed slices have none: their annotation is about an
    /// earlier change.
    pub triggers: Vec<(usize, Timestamp)>,
}

impl Changes {
    /// Compares touched objects with their current state.
    pub fn of(touched: &Touched, after: &Index) -> Changes {
        let mut changes = Changes::default();
        for (key, before) in &touched.services {
            let served = |s: &&Arc<Service>| s.ignored.is_none();
            changes.services += u64::from(match (before.as_ref().filter(served), after.service(key).filter(served)) {
                (Some(old), Some(new)) => !same_service(old, new),
                (old, new) => old.is_some() || new.is_some(),
            });
        }
        for (key, before) in &touched.slices {
            let counts = |s: &&Arc<Slice>| s.ignored.is_none();
            match (before.as_ref().filter(counts), after.slice(key).filter(counts)) {
                (Some(old), Some(new)) if same_slice(old, new) => {}
                (_, Some(new)) => {
                    changes.slices += 1;
                    changes.triggers.extend(new.triggered.map(|at| (usize::from(new.v6), at)));
                }
                (old, None) => changes.slices += u64::from(old.is_some()),
            }
        }
        changes
    }
}

/// Equality without the position in a file, which changes with every line above.
fn same_service(a: &Service, b: &Service) -> bool {
    std::ptr::eq(a, b) || *a == Service { origin: a.origin.clone(), problems: a.problems.clone(), ..b.clone() }
}

/// Equality of the fields that kube-proxy compares: a new annotation alone is no change.
fn same_slice(a: &Slice, b: &Slice) -> bool {
    std::ptr::eq(a, b) || (a.service == b.service && a.v6 == b.v6 && a.ports == b.ports && a.endpoints == b.endpoints)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::objects::{Kind, Object};
    use crate::problem::Origin;

    fn service(name: &str, ip: &str, line: u32) -> Object {
        let yaml = format!("metadata: {{name: {name}, namespace: n}}\nspec: {{clusterIP: {ip}, ports: [{{port: 80}}]}}");
        Object::Service(Arc::new(Service::from_k8s(&serde_saphyr::from_str(&yaml).unwrap(), &Origin { file: None, line }).unwrap()))
    }

    fn slice(name: &str, addr: &str, trigger: &str) -> Object {
        let v6 = addr.contains(':');
        let yaml = format!(
            "metadata: {{name: {name}, namespace: n, labels: {{kubernetes.io/service-name: web}}, annotations: {{endpoints.kubernetes.io/last-change-trigger-time: '{trigger}'}}}}\naddressType: {}\nendpoints: [{{addresses: ['{addr}']}}]",
            if v6 { "IPv6" } else { "IPv4" }
        );
        Object::Slice(Arc::new(Slice::from_k8s(&serde_saphyr::from_str(&yaml).unwrap(), &Origin::default()).unwrap()))
    }

    #[test]
    fn added_changed_and_removed_objects_count_and_removed_ones_have_no_trigger() {
        let (early, late) = ("2026-01-01T00:00:00Z", "2026-01-01T00:00:01.25Z");
        let before = [
            service("same", "10.0.0.1", 1),
            service("other", "10.0.0.2", 9),
            service("gone", "10.0.0.3", 20),
            service("headless", "None", 1),
            slice("same", "10.1.0.1", early),
            slice("other", "10.1.0.2", early),
            slice("gone", "10.1.0.3", early),
        ];
        let after = [
            service("same", "10.0.0.1", 2),
            service("other", "10.0.0.9", 9),
            service("new", "10.0.0.4", 30),
            slice("same", "10.1.0.1", late),
            slice("other", "10.1.0.9", late),
            slice("new", "fd00::1", "yesterday"),
        ];
        let mut index = Index::of(before);
        let all = index.take_touched();
        let all = Changes::of(&all, &index);
        assert_eq!((all.services, all.slices, all.triggers.len()), (3, 3, 3));

        // Changes that cancel out are no change.
        let other = slice("same", "10.1.0.77", late);
        assert!(index.apply(other) && index.delete(Kind::EndpointSlice, &slice("same", "10.1.0.1", late).key().clone()));
        for kind in [Kind::Service, Kind::EndpointSlice] {
            index.replace(kind, after.clone(), &BTreeSet::new());
        }
        let at = late.parse().unwrap();
        let touched = index.take_touched();
        assert_eq!(Changes::of(&touched, &index), Changes { services: 3, slices: 3, triggers: vec![(0, at)] });
        let touched = index.take_touched();
        assert_eq!(Changes::of(&touched, &index), Changes::default());
    }
}
