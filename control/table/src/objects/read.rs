//! Reads an object of a known kind from an untyped value, which came from a file or an API server.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node as K8sNode, Service as K8sService};
use k8s_openapi::api::discovery::v1::{Endpoint as K8sEndpoint, EndpointSlice as K8sSlice};
use k8s_openapi::api::networking::v1::ServiceCIDR as K8sServiceCidr;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{Key, Kind, Node, Object, Service, ServiceCidr, Slice};
use crate::problem::{Origin, Problem};

/// An object that could not be read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unread {
    pub kind: Kind,
    /// Namespace and name, if they could be read.
    pub key: Option<Key>,
    pub problem: Problem,
}

/// Reads an object.
pub fn read(kind: Kind, value: Value, origin: &Origin) -> Result<Object, Box<Unread>> {
    let key = key(kind, &value);
    let read = match kind {
        Kind::Service => typed::<K8sService>(&value)
            .and_then(|s| Service::from_k8s(&s, origin).map(|s| Object::Service(Arc::new(s))).map_err(Fault::Refused)),
        Kind::EndpointSlice => slice(value, origin).map(|s| Object::Slice(Arc::new(s))),
        Kind::Node => {
            typed::<K8sNode>(&value).and_then(|n| Node::from_k8s(&n, origin).map(|n| Object::Node(Arc::new(n))).map_err(Fault::Refused))
        }
        Kind::ServiceCidr => typed::<K8sServiceCidr>(&value)
            .and_then(|c| ServiceCidr::from_k8s(&c, origin).map(|c| Object::ServiceCidr(Arc::new(c))).map_err(Fault::Refused)),
    };
    read.map_err(|fault| {
        let problem = match fault {
            Fault::Refused(problem) => problem,
            Fault::Shape { field, message } => Problem {
                origin: origin.clone(),
                object: key.as_ref().map_or(kind.to_string(), |k| format!("{kind} {k}")),
                field,
                message: format!("{message}; the object is skipped"),
            },
        };
        Box::new(Unread { kind, key, problem })
    })
}

/// The namespace and name of an object, even if it is invalid otherwise.
pub fn key(kind: Kind, value: &Value) -> Option<Key> {
    let meta = |name: &str| value.get("metadata")?.get(name)?.as_str().filter(|t| !t.is_empty()).map(str::to_owned);
    let namespace = if kind.namespaced() { meta("namespace").unwrap_or_else(|| "default".into()) } else { String::new() };
    Some(Key { namespace, name: meta("name")? })
}

enum Fault {
    /// A value of the wrong type.
    Shape { field: String, message: String },
    /// An object without the required fields.
    Refused(Problem),
}

fn typed<T: DeserializeOwned>(value: &Value) -> Result<T, Fault> {
    serde_path_to_error::deserialize(value)
        .map_err(|e| Fault::Shape { field: e.path().to_string().trim_matches('.').into(), message: e.into_inner().to_string() })
}

/// Reads a slice. Invalid endpoints do not affect the others.
fn slice(mut value: Value, origin: &Origin) -> Result<Slice, Fault> {
    let fault = match typed::<K8sSlice>(&value) {
        Ok(slice) => return Slice::from_k8s(&slice, origin).map_err(Fault::Refused),
        Err(fault) => fault,
    };
    let Some(endpoints) = value.get_mut("endpoints").and_then(Value::as_array_mut) else { return Err(fault) };
    let mut faults = BTreeMap::new();
    for (i, endpoint) in endpoints.iter_mut().enumerate() {
        if let Err(Fault::Shape { field, message }) = typed::<K8sEndpoint>(endpoint) {
            // Replaced by one without addresses, so that the others keep their indices.
            *endpoint = json!({ "addresses": [] });
            faults.insert(format!("endpoints[{i}].addresses[0]"), (format!("endpoints[{i}].{field}"), message));
        }
    }
    // If no endpoint can be read, the caller keeps the earlier state of the slice.
    if faults.is_empty() || faults.len() == endpoints.len() {
        return Err(fault);
    }
    let mut slice = Slice::from_k8s(&typed(&value)?, origin).map_err(Fault::Refused)?;
    for problem in &mut slice.problems {
        if let Some((field, message)) = faults.remove(&problem.field) {
            problem.field = field.trim_end_matches('.').into();
            problem.message = format!("{message}; the endpoint is skipped");
        }
    }
    Ok(slice)
}

#[cfg(test)]
mod tests {
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
    fn what_cannot_be_read_is_named_as_far_as_possible() {
        let fails = |value: Value| *read(Kind::Service, value, &Origin::default()).unwrap_err();
        let unread = fails(json!({"metadata": {"name": "a", "namespace": "n"}, "spec": {"ports": 7}}));
        assert_eq!(unread.key.map(|k| k.to_string()).as_deref(), Some("n/a"));
        assert!(unread.problem.to_string().starts_with("Service n/a: spec.ports: "), "{}", unread.problem);
        let unread = fails(json!({"metadata": {"labels": 5}}));
        assert_eq!((unread.key, unread.problem.field.as_str()), (None, "metadata.labels"));
        assert_eq!(fails(json!([1])).key, None);
    }
}
