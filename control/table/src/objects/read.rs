//! Reads an object of a known kind from an untyped value, which came from a file or an API server.

use std::collections::HashSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node as K8sNode, Service as K8sService};
use k8s_openapi::api::discovery::v1::EndpointSlice as K8sSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR as K8sServiceCidr;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::shape::{Checked, Wrong, check};
use super::{Kind, NamespacedName, Node, Object, Service, ServiceCidr, Slice, schema, service};
use crate::problem::{Notes, Origin, Problem};

/// An object that could not be read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unread {
    pub kind: Kind,
    /// Namespace and name, if they could be read.
    pub key: Option<NamespacedName>,
    pub problem: Problem,
    /// Says which cluster IPs are those of an unreadable Service, if these could be read. In force as long as no valid version is known.
    pub stand_in: Option<Arc<Service>>,
}

/// Reads an object. A value of the wrong type costs as little as possible ([`schema`]), and nothing if nomagic does not read it.
///
/// # Errors
/// If nothing useful can be read.
pub fn read(kind: Kind, value: Value, origin: &Origin) -> Result<Object, Box<Unread>> {
    let key = key(kind, &value);
    let stand_in = |value: &Value| (kind == Kind::Service).then(|| service::stand_in(value, origin)).flatten();
    let unread = |problem, stand_in| Box::new(Unread { kind, key: key.clone(), problem, stand_in });
    if let Some(object) = typed(kind, &value, origin) {
        return object.map_err(|problem| unread(problem, stand_in(&value)));
    }
    let stand_in = stand_in(&value);
    let refused = |problem| unread(problem, stand_in.clone());
    let object = || key.as_ref().map_or(kind.to_string(), |k| format!("{kind} {k}"));
    let problem = |field, message| refused(Problem { origin: origin.clone(), object: object(), field, message });
    let Checked { value, faults, emptied } = check(schema::of(kind), value)
        .map_err(|Wrong { field, message, .. }| problem(field, format!("{message}; the object is skipped")))?;
    match typed(kind, &value, origin) {
        Some(Ok(read)) => {
            let problems = reported(Notes::new(origin, object()), faults, read.problems(), &emptied.into_iter().collect());
            Ok(with_problems(read, problems))
        }
        Some(Err(problem)) => Err(refused(problem)),
        None => Err(problem(String::new(), "its form is not that of its kind; the object is skipped".into())),
    }
}

/// The namespace and name of an object, even if it is invalid otherwise.
pub fn key(kind: Kind, value: &Value) -> Option<NamespacedName> {
    let meta = |name: &str| value.get("metadata")?.get(name)?.as_str().filter(|t| !t.is_empty()).map(str::to_owned);
    let namespace = if kind.namespaced() { meta("namespace").unwrap_or_else(|| "default".into()) } else { String::new() };
    Some(NamespacedName { namespace, name: meta("name")? })
}

/// Reads an object all of whose values have the right types; `None` for others.
fn typed(kind: Kind, value: &Value, origin: &Origin) -> Option<Result<Object, Problem>> {
    fn of<T: DeserializeOwned>(value: &Value) -> Option<T> {
        T::deserialize(value).ok()
    }
    Some(match kind {
        Kind::Service => Service::from_k8s(&of::<K8sService>(value)?, origin).map(|s| Object::Service(Arc::new(s))),
        Kind::EndpointSlice => Slice::from_k8s(&of::<K8sSlice>(value)?, origin).map(|s| Object::Slice(Arc::new(s))),
        Kind::Node => Node::from_k8s(&of::<K8sNode>(value)?, origin).map(|n| Object::Node(Arc::new(n))),
        Kind::ServiceCidr => ServiceCidr::from_k8s(&of::<K8sServiceCidr>(value)?, origin).map(|c| Object::ServiceCidr(Arc::new(c))),
    })
}

/// The faults of an object and what its reader says, except about the fields that are empty because of a fault.
pub(super) fn reported(mut notes: Notes, faults: Vec<(String, String)>, of_reader: &[Problem], emptied: &HashSet<String>) -> Vec<Problem> {
    let empty = |p: &Problem| {
        let ends = p.field.match_indices(['.', '[']).map(|(at, _)| at);
        ends.chain([p.field.len()]).any(|end| emptied.contains(&p.field[..end]))
    };
    faults.into_iter().for_each(|(field, message)| notes.add(field, message));
    of_reader.iter().filter(|p| !empty(p)).for_each(|p| notes.add(p.field.as_str(), p.message.as_str()));
    notes.finish()
}

fn with_problems(object: Object, problems: Vec<Problem>) -> Object {
    match object {
        Object::Service(mut service) => {
            Arc::make_mut(&mut service).problems = problems;
            Object::Service(service)
        }
        Object::Slice(mut slice) => {
            Arc::make_mut(&mut slice).problems = problems;
            Object::Slice(slice)
        }
        Object::Node(mut node) => {
            Arc::make_mut(&mut node).problems = problems;
            Object::Node(node)
        }
        Object::ServiceCidr(mut cidr) => {
            Arc::make_mut(&mut cidr).problems = problems;
            Object::ServiceCidr(cidr)
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_kind_is_read_and_named() {
        for kind in Kind::ALL {
            let object =
                read(kind, json!({"metadata": {"name": "a"}, "spec": {}, "addressType": "IPv4", "endpoints": []}), &Origin::default());
            let object = object.unwrap_or_else(|e| panic!("{kind}: {}", e.problem));
            let expected = if kind.namespaced() { "default/a" } else { "a" };
            assert_eq!((object.kind(), object.key().to_string().as_str()), (kind, expected));
        }
    }

    #[test]
    fn unreadable_objects_are_named_as_far_as_possible() {
        let fails = |value: Value| *read(Kind::Service, value, &Origin::default()).unwrap_err();
        let unread = fails(json!({"metadata": {"name": "a", "namespace": "n"}, "spec": {"ports": 7}}));
        assert_eq!(unread.key.map(|k| k.to_string()).as_deref(), Some("n/a"));
        assert!(unread.problem.to_string().starts_with("Service n/a: spec.ports: "), "{}", unread.problem);
        let unread = fails(json!({"metadata": {"labels": 5}, "spec": {}}));
        assert_eq!((unread.key, unread.problem.field.as_str()), (None, "metadata.name"));
        assert_eq!(fails(json!([1])).key, None);
    }

    #[test]
    fn the_cluster_ips_of_an_unreadable_service_are_known() {
        let stand_in = |spec: Value| {
            let value = json!({"metadata": {"name": "a", "namespace": "n"}, "spec": spec});
            read(Kind::Service, value, &Origin::default()).unwrap_err().stand_in
        };
        let known = stand_in(json!({"clusterIPs": ["10.96.0.9", 7, "fd00::9"], "ports": 7})).unwrap();
        assert_eq!((known.key.to_string().as_str(), known.ignored, known.ports.len()), ("n/a", Some("it could not be read"), 0));
        assert_eq!(known.cluster_ips, ["10.96.0.9".parse::<std::net::IpAddr>().unwrap(), "fd00::9".parse().unwrap()]);
        assert!(known.problems.is_empty(), "the problem says it");
        for spec in [json!({"clusterIP": "None", "ports": 7}), json!({"ports": 7}), json!(7)] {
            assert_eq!(stand_in(spec), None);
        }
    }

    /// Reads an object; returns it with its problems as text.
    fn with_problems_of(kind: Kind, value: Value) -> (Object, Vec<String>) {
        let object = read(kind, value, &Origin::default()).unwrap_or_else(|e| panic!("{}", e.problem));
        let problems = object.problems().iter().map(|p| format!("{}: {}", p.field, p.message)).collect();
        (object, problems)
    }

    fn service(spec: Value) -> Value {
        let mut all = json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]});
        all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        json!({"metadata": {"name": "a"}, "spec": all})
    }

    /// Every field that a reader uses: as a wrong value elsewhere makes nomagic read field by field, each must be in the schema.
    fn complete() -> [(Kind, Value); 4] {
        let metadata = |labels: Value, annotations: Value| {
            json!({"name": "a", "namespace": "n", "labels": labels, "annotations": annotations,
                   "creationTimestamp": "2026-01-01T00:00:00Z", "deletionTimestamp": "2026-01-02T00:00:00Z"})
        };
        let limits = json!({"nomagic.io/connections-per-second": "5", "nomagic.io/max-connections-per-client": "6"});
        let service = json!({
            "metadata": metadata(json!({"a": "b"}), limits),
            "spec": {
                "type": "LoadBalancer", "clusterIPs": ["10.96.0.1", "fd00::1"], "clusterIP": "10.96.0.1", "externalIPs": ["203.0.113.1"],
                "loadBalancerSourceRanges": ["203.0.113.0/24"], "internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local",
                "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 7}}, "healthCheckNodePort": 30000,
                "ports": [{"name": "x", "protocol": "UDP", "port": 53, "nodePort": 30053, "targetPort": "dns"}],
            },
            "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.2"}, {"ip": "203.0.113.3", "ipMode": "Proxy"}]}},
        });
        let slice = json!({
            "metadata": metadata(
                json!({"kubernetes.io/service-name": "a"}),
                json!({"endpoints.kubernetes.io/last-change-trigger-time": "2026-01-01T00:00:00Z"})
            ),
            "addressType": "IPv4", "ports": [{"name": "x", "protocol": "UDP", "port": 53}],
            "endpoints": [{
                "addresses": ["10.1.0.1", "10.1.0.2"], "nodeName": "n", "conditions": {"ready": false, "serving": false, "terminating": true},
                "hints": {"forZones": [{"name": "z"}], "forNodes": [{"name": "n"}]},
            }],
        });
        let node = json!({
            "metadata": metadata(json!({"topology.kubernetes.io/zone": "z"}), json!({})),
            "spec": {"podCIDRs": ["10.1.0.0/24"], "taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.168.0.1"}]},
        });
        let cidr = json!({"metadata": metadata(json!({}), json!({})), "spec": {"cidrs": ["10.96.0.0/12"]}});
        [(Kind::Service, service), (Kind::EndpointSlice, slice), (Kind::Node, node), (Kind::ServiceCidr, cidr)]
    }

    #[test]
    fn a_wrong_value_that_is_not_read_costs_nothing() {
        for (kind, value) in complete() {
            let expected = read(kind, value.clone(), &Origin::default()).unwrap();
            let mut wrong = value;
            wrong["metadata"]["managedFields"] = json!("none");
            wrong["metadata"]["labels"]["unused"] = json!(5);
            wrong["metadata"]["labels"]["empty"] = Value::Null;
            wrong["metadata"]["ownerReferences"] = json!([7]);
            wrong["metadata"]["generation"] = json!("first");
            wrong["spec"]["selector"] = json!(["a"]);
            wrong["spec"]["ipFamilies"] = json!("IPv4");
            wrong["status"]["conditions"] = json!(true);
            let (read, problems) = with_problems_of(kind, wrong);
            assert_eq!(problems, Vec::<String>::new(), "{kind}");
            assert_eq!(read, expected, "{kind}: a field is missing in the schema");
        }
    }

    #[test]
    fn a_wrong_value_costs_its_field_or_its_entry() {
        let rows: [(Value, &str, &str); 12] = [
            (
                service(json!({"externalIPs": ["203.0.113.1", 5]})),
                "spec.externalIPs[1]",
                "the number 5: text (in quotes) is expected; the entry",
            ),
            (
                service(json!({"externalIPs": "203.0.113.1"})),
                "spec.externalIPs",
                "the text \"203.0.113.1\": a list is expected; it is skipped",
            ),
            (service(json!({"ports": [{"port": 80}, {"name": "b", "port": "81"}]})), "spec.ports[1].port", "the port is skipped"),
            (service(json!({"ports": [{"port": 80, "nodePort": "x"}]})), "spec.ports[0].nodePort", "it is skipped"),
            (service(json!({"ports": [{"port": 80}, 7]})), "spec.ports[1]", "the number 7: a mapping is expected; the port is skipped"),
            (service(json!({"type": 5})), "spec.type", "\"5\": ClusterIP, NodePort, LoadBalancer and ExternalName are allowed"),
            (service(json!({"sessionAffinity": true})), "spec.sessionAffinity", "\"true\": None and ClientIP are allowed"),
            (service(json!({"internalTrafficPolicy": []})), "spec.internalTrafficPolicy", "a list: text is expected; it is skipped"),
            (service(json!({"loadBalancerSourceRanges": "10.0.0.0/8"})), "spec.loadBalancerSourceRanges", "no client is admitted"),
            (service(json!({"healthCheckNodePort": 1.5})), "spec.healthCheckNodePort", "the number 1.5: a whole number is expected"),
            (
                json!({"metadata": {"name": "a", "creationTimestamp": "yesterday"}, "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}}),
                "metadata.creationTimestamp",
                "a time such as",
            ),
            (
                json!({"metadata": {"name": "a", "annotations": {"nomagic.io/connections-per-second": 5}}, "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}}),
                "metadata.annotations[nomagic.io/connections-per-second]",
                "the number 5: text (in quotes) is expected; it is skipped",
            ),
        ];
        for (value, field, words) in rows {
            let (Object::Service(read), problems) = with_problems_of(Kind::Service, value) else { panic!("a Service") };
            assert!(problems.len() == 1 && problems[0].starts_with(&format!("{field}: ")) && problems[0].contains(words), "{problems:?}");
            assert_eq!((read.ports.len(), read.ports[0].port, read.cluster_ips.len()), (1, 80, 1), "{problems:?}");
            assert_eq!(read.source_ranges_unreadable, field == "spec.loadBalancerSourceRanges");
        }
        let (Object::Service(read), problems) =
            with_problems_of(Kind::Service, service(json!({"ports": [{"port": 80.0, "targetPort": []}]})))
        else {
            panic!("a Service")
        };
        assert_eq!((read.ports[0].port, problems.len()), (80, 0), "80.0 is 80");
    }

    #[test]
    fn a_service_without_a_readable_port_is_unreadable() {
        for ports in [json!([{"port": "x"}]), json!([7, "y"]), json!(7), json!({"port": 80})] {
            let unread = read(Kind::Service, service(json!({ "ports": ports })), &Origin::default()).unwrap_err();
            let words = unread.problem.to_string();
            assert!(words.starts_with("Service default/a: spec.ports") && words.ends_with("; the object is skipped"), "{words}");
        }
    }

    #[test]
    fn wrong_values_in_many_entries_are_limited() {
        let endpoints: Vec<Value> =
            (0..50_000).map(|i| if i == 7 { json!({"addresses": ["10.1.0.1"]}) } else { json!({"addresses": [i]}) }).collect();
        let slice = json!({"metadata": {"name": "a", "labels": {"kubernetes.io/service-name": "a"}}, "addressType": "IPv4", "endpoints": endpoints});
        let (Object::Slice(slice), problems) = with_problems_of(Kind::EndpointSlice, slice) else { panic!("a slice") };
        assert_eq!(slice.endpoints.len(), 1);
        assert!(problems.len() < 40 && problems.last().unwrap().contains("more problems"), "{problems:?}");
    }
}
