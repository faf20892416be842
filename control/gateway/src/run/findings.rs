//! Keeps the findings about Services and slices (see [`nomagic_table::findings`]) up to date.
//!
//! Objects of files are complete, so their findings count at once. An API server's objects come one by one: a Service's endpoints after the
//! Service, a new port name in two steps. There a Service is examined only after it has been left alone for a while.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use nomagic_table::findings::{findings, missing_services};
use nomagic_table::index::Index;
use nomagic_table::objects::NamespacedName;
use nomagic_table::problem::Problem;
use nomagic_table::settings::ThisNode;

/// How long a Service of an API server and its slices must be unchanged.
pub const SETTLED_AFTER: Duration = Duration::from_secs(10);
/// Maximum number of Services examined at a time, so that the control loop is not held up.
const EXAMINED_MAX: usize = 1_000;

#[derive(Debug)]
pub struct Findings {
    settled_after: Duration,
    /// Every Service is known: the objects come from files.
    all_services: bool,
    /// Name and zone of the node that Services were examined for.
    node: Option<(String, Option<String>)>,
    /// Services to examine, with the time of their last change.
    due: BTreeMap<NamespacedName, Instant>,
    found: BTreeMap<NamespacedName, Vec<Problem>>,
}

impl Findings {
    /// Findings about objects of files.
    pub fn of_files() -> Findings {
        Findings { settled_after: Duration::ZERO, all_services: true, node: None, due: BTreeMap::new(), found: BTreeMap::new() }
    }

    /// Findings about objects of an API server.
    pub fn of_api_server(settled_after: Duration) -> Findings {
        Findings { settled_after, all_services: false, ..Findings::of_files() }
    }

    /// Records that Services or their slices have changed.
    pub fn touched(&mut self, services: BTreeSet<NamespacedName>, now: Instant) {
        self.due.extend(services.into_iter().map(|key| (key, now)));
    }

    /// Examines the Services that are due. `unread`: the objects that could not be read (`Service default/web`). Returns true if there are
    /// other findings than before.
    pub fn examine(&mut self, index: &Index, node: &ThisNode, unread: &BTreeSet<String>, now: Instant) -> bool {
        let place = (node.name.clone(), node.zone.clone());
        if self.node.as_ref() != Some(&place) {
            let all = index.services().map(|s| &s.key).chain(missing_services(index));
            self.due.extend(all.cloned().map(|key| (key, now)));
            self.node = Some(place);
        }
        let settled = |at: &Instant| now.saturating_duration_since(*at) >= self.settled_after;
        let at_once = if self.all_services { usize::MAX } else { EXAMINED_MAX };
        let due: Vec<NamespacedName> = self.due.iter().filter(|(_, at)| settled(at)).take(at_once).map(|(key, _)| key.clone()).collect();
        let mut changed = false;
        for key in due {
            self.due.remove(&key);
            let all_services = self.all_services && !unread.contains(&format!("Service {key}"));
            let found = findings(index, node, &key, all_services);
            changed |= self.found.get(&key).map_or(&[][..], Vec::as_slice) != found;
            if found.is_empty() {
                self.found.remove(&key);
            } else {
                self.found.insert(key, found);
            }
        }
        changed
    }

    /// All findings, by Service.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.found.values().flatten()
    }

    /// The findings about a Service.
    pub fn of(&self, service: &NamespacedName) -> &[Problem] {
        self.found.get(service).map_or(&[], Vec::as_slice)
    }

    /// The Services with findings.
    pub fn services(&self) -> impl Iterator<Item = &NamespacedName> {
        self.found.keys()
    }

    pub fn all_services(&self) -> bool {
        self.all_services
    }
}

#[cfg(test)]
mod tests {
    use nomagic_table::objects::{Kind, read};
    use nomagic_table::problem::Origin;
    use serde_json::json;

    use super::*;

    fn node() -> ThisNode {
        ThisNode { name: "gw".into(), ips: Vec::new(), primary: Vec::new(), zone: None }
    }

    fn index(port: &str) -> Index {
        let service = json!({"metadata": {"name": "a"}, "spec": {"clusterIP": "10.96.0.1", "ports": [{"name": port, "port": 80}]}});
        let slice = json!({
            "metadata": {"name": "a-1", "labels": {"kubernetes.io/service-name": "a"}}, "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080}], "endpoints": [{"addresses": ["10.1.0.1"]}],
        });
        Index::of([(Kind::Service, service), (Kind::EndpointSlice, slice)].map(|(kind, v)| read(kind, v, &Origin::default()).unwrap()))
    }

    fn keys(index: &Index) -> BTreeSet<NamespacedName> {
        index.services().map(|s| s.key.clone()).collect()
    }

    #[test]
    fn an_api_servers_objects_are_examined_once_they_are_left_alone() {
        let mut findings = Findings::of_api_server(SETTLED_AFTER);
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let wrong = index("");
        findings.touched(keys(&wrong), start);
        assert!(!findings.examine(&wrong, &node(), &BTreeSet::new(), start), "the name may follow");
        // A change starts the wait again.
        findings.touched(keys(&wrong), start + 5 * second);
        assert!(!findings.examine(&wrong, &node(), &BTreeSet::new(), start + SETTLED_AFTER + second));
        assert!(findings.examine(&wrong, &node(), &BTreeSet::new(), start + SETTLED_AFTER + 5 * second));
        assert!(
            findings.problems().next().is_some_and(|p| p.message.contains("EndpointSlice default/a-1 has endpoints for port \"http\""))
        );
        assert!(!findings.examine(&wrong, &node(), &BTreeSet::new(), start + 100 * second), "nothing is due");
        let right = index("http");
        findings.touched(keys(&right), start + 100 * second);
        assert!(findings.examine(&right, &node(), &BTreeSet::new(), start + 200 * second) && findings.problems().count() == 0);
    }

    #[test]
    fn files_are_examined_at_once_and_an_unreadable_service_is_not_missing() {
        let mut index = index("http");
        index.delete(Kind::Service, &NamespacedName { namespace: "default".into(), name: "a".into() });
        let mut findings = Findings::of_files();
        let now = Instant::now();
        assert!(findings.examine(&index, &node(), &BTreeSet::new(), now));
        let all: Vec<String> = findings.problems().map(ToString::to_string).collect();
        assert!(all.len() == 1 && all[0].ends_with("there is no Service default/a"), "{all:?}");
        let mut findings = Findings::of_files();
        assert!(!findings.examine(&index, &node(), &["Service default/a".to_owned()].into(), now));
    }
}
