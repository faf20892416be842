//! Reads an `Endpoints` object as the EndpointSlices that Kubernetes' mirroring controller would make of it.
//!
//! Only for files: in a cluster that controller makes them, and nomagic reads those. Unlike in a cluster, the Service may have a selector:
//! no other controller makes slices of its pods here.

use std::collections::HashSet;

use k8s_openapi::api::core::v1 as k8s;
use k8s_openapi::api::discovery::v1::EndpointPort;
use serde::Deserialize;
use serde_json::Value;

use super::addr::parse_ip;
use super::read::{key, reported};
use super::shape::{Checked, Wrong, check};
use super::slice::{ENDPOINTS_MAX, HEADLESS, HEADLESS_LABEL, read_ports, usable};
use super::{Endpoint, Kind, NamespacedName, Slice, SlicePort, read_key, schema};
use crate::problem::{Notes, Origin, Problem};

/// The kind `v1` Endpoints.
pub const ENDPOINTS: &str = "Endpoints";
/// The label with which an `Endpoints` object asks not to be mirrored.
const SKIP_LABEL: &str = "endpointslice.kubernetes.io/skip-mirror";
/// The annotation of the `Endpoints` objects that old leader elections keep their state in.
const LEADER_ANNOTATION: &str = "control-plane.alpha.kubernetes.io/leader";

/// Reads an `Endpoints` object: at least one slice, of which the first has the problems.
///
/// # Errors
/// If nothing useful can be read: the name, as far as it could be read, and the problem.
pub fn mirror(value: Value, origin: &Origin) -> Result<Vec<Slice>, (Option<NamespacedName>, Box<Problem>)> {
    let named = key(Kind::EndpointSlice, &value);
    let object = named.as_ref().map_or(ENDPOINTS.to_owned(), |key| format!("{ENDPOINTS} {key}"));
    let refuse = |field: String, message: String| {
        (named.clone(), Box::new(Problem { origin: origin.clone(), object: object.clone(), field, message }))
    };
    let (endpoints, faults, emptied) = match k8s::Endpoints::deserialize(&value) {
        Ok(endpoints) => (endpoints, Vec::new(), Vec::new()),
        Err(_) => {
            let Checked { value, faults, emptied } = check(&schema::ENDPOINTS, value)
                .map_err(|Wrong { field, message, .. }| refuse(field, format!("{message}; the object is skipped")))?;
            let form = |_| refuse(String::new(), "its form is not that of its kind; the object is skipped".into());
            (k8s::Endpoints::deserialize(&value).map_err(form)?, faults, emptied)
        }
    };
    let key = read_key(&endpoints.metadata).map_err(|(field, message)| refuse(field.into(), message))?;
    let mut notes = Notes::new(origin, object.clone());
    let mut mirror = Mirror { key, origin, slices: Vec::new(), endpoints: 0 };
    match ignored(&endpoints) {
        Some(reason) => mirror.slices.push(Slice { ignored: Some(reason), ..mirror.slice(0, false) }),
        None => endpoints.subsets.iter().flatten().enumerate().for_each(|(i, subset)| mirror.add_subset(i, subset, &mut notes)),
    }
    let mut slices = mirror.finish();
    let emptied: HashSet<String> = emptied.into_iter().collect();
    slices[0].problems = reported(Notes::new(origin, object.clone()), faults, &notes.finish(), &emptied);
    Ok(slices)
}

struct Mirror<'o> {
    key: NamespacedName,
    origin: &'o Origin,
    slices: Vec<Slice>,
    /// Number of endpoints read.
    endpoints: usize,
}

impl Mirror<'_> {
    fn slice(&self, subset: usize, v6: bool) -> Slice {
        let name = format!("{}-{subset}-{}", self.key.name, if v6 { "ipv6" } else { "ipv4" });
        Slice {
            key: NamespacedName { namespace: self.key.namespace.clone(), name },
            origin: self.origin.clone(),
            service: Some(self.key.clone()),
            mirrored: true,
            ignored: None,
            v6,
            ports: Vec::new(),
            endpoints: Vec::new(),
            triggered: None,
            unusable: Vec::new(),
            problems: Vec::new(),
        }
    }

    fn add_subset(&mut self, place: usize, subset: &k8s::EndpointSubset, notes: &mut Notes) {
        let listed: Vec<EndpointPort> = subset.ports.iter().flatten().map(slice_port).collect();
        let ports: Vec<SlicePort> = read_ports(&format!("subsets[{place}]."), &listed, notes);
        let mut families = [false, true].map(|v6| Slice { ports: ports.clone(), ..self.slice(place, v6) });
        for (list, field, ready) in [(&subset.addresses, "addresses", true), (&subset.not_ready_addresses, "notReadyAddresses", false)] {
            for (i, address) in list.iter().flatten().enumerate() {
                let field = format!("subsets[{place}].{field}[{i}].ip");
                if self.endpoints == ENDPOINTS_MAX {
                    notes.add(field, format!("only the first {ENDPOINTS_MAX} addresses are used"));
                    break;
                }
                let text = &address.ip;
                let v6 = parse_ip(text).is_some_and(|ip| ip.is_ipv6());
                let slice = &mut families[usize::from(v6)];
                match usable(text, v6) {
                    Ok(addr) => {
                        self.endpoints += 1;
                        slice.endpoints.push(endpoint(addr, address.node_name.as_deref(), ready));
                    }
                    Err(fault) => {
                        notes.add(field, format!("{text:?} is {fault}; the endpoint is skipped"));
                        slice.unusable.push((text.chars().take(64).collect(), fault));
                    }
                }
            }
        }
        self.slices.extend(families.into_iter().filter(|s| !s.endpoints.is_empty() || !s.unusable.is_empty()));
    }

    /// All slices; an empty one if there are none.
    fn finish(mut self) -> Vec<Slice> {
        if self.slices.is_empty() {
            let none = self.slice(0, false);
            self.slices.push(none);
        }
        self.slices
    }
}

/// Why the mirroring controller, or a Service proxy, leaves the object alone.
fn ignored(endpoints: &k8s::Endpoints) -> Option<&'static str> {
    let (labels, annotations) = (endpoints.metadata.labels.as_ref(), endpoints.metadata.annotations.as_ref());
    if labels.is_some_and(|l| l.get(SKIP_LABEL).is_some_and(|v| v == "true")) {
        return Some("the label endpointslice.kubernetes.io/skip-mirror");
    }
    if annotations.is_some_and(|a| a.contains_key(LEADER_ANNOTATION)) {
        return Some("the annotation control-plane.alpha.kubernetes.io/leader: it is no Service's");
    }
    labels.is_some_and(|l| l.contains_key(HEADLESS_LABEL)).then_some(HEADLESS)
}

fn slice_port(port: &k8s::EndpointPort) -> EndpointPort {
    let name = Some(port.name.clone().unwrap_or_default());
    EndpointPort { name, port: Some(port.port), protocol: port.protocol.clone(), app_protocol: None }
}

fn endpoint(addr: std::net::IpAddr, node: Option<&str>, ready: bool) -> Endpoint {
    Endpoint {
        addr,
        ready,
        serving: true,
        terminating: false,
        node: node.filter(|n| !n.is_empty()).map(Into::into),
        zone_hints: Box::default(),
        node_hints: Box::default(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn slices(value: Value) -> Vec<Slice> {
        mirror(value, &Origin::default()).unwrap_or_else(|(_, problem)| panic!("{problem}"))
    }

    fn problems(slices: &[Slice]) -> Vec<String> {
        slices.iter().flat_map(|s| &s.problems).map(ToString::to_string).collect()
    }

    #[test]
    fn subsets_are_slices_by_family() {
        let slices = slices(json!({
            "metadata": {"name": "db", "namespace": "n"},
            "subsets": [
                {
                    "addresses": [{"ip": "10.1.0.1", "nodeName": "gw"}, {"ip": "fd00::1"}],
                    "notReadyAddresses": [{"ip": "010.1.0.2"}],
                    "ports": [{"name": "sql", "port": 5432}, {"port": 53, "protocol": "UDP"}],
                },
                {"addresses": [{"ip": "10.1.0.3"}], "ports": [{"name": "sql", "port": 5433}]},
            ],
        }));
        assert!(problems(&slices).is_empty(), "{slices:?}");
        let of = |s: &Slice| {
            (s.key.to_string(), s.v6, s.ports.len(), s.endpoints.iter().map(|e| (e.addr.to_string(), e.ready)).collect::<Vec<_>>())
        };
        let ready = |a: &str| (a.to_owned(), true);
        assert_eq!(
            slices.iter().map(of).collect::<Vec<_>>(),
            [
                ("n/db-0-ipv4".to_owned(), false, 2, vec![ready("10.1.0.1"), ("10.1.0.2".into(), false)]),
                ("n/db-0-ipv6".to_owned(), true, 2, vec![ready("fd00::1")]),
                ("n/db-1-ipv4".to_owned(), false, 1, vec![ready("10.1.0.3")]),
            ]
        );
        assert!(slices.iter().all(|s| s.mirrored && s.service.as_ref().is_some_and(|of| of.to_string() == "n/db") && s.ignored.is_none()));
        assert_eq!((slices[0].endpoints[0].node.as_deref(), slices[0].ports[1].name.as_str()), (Some("gw"), ""));
        assert_eq!(slices[1].to_string(), "Endpoints n/db");
    }

    #[test]
    fn some_are_not_mirrored() {
        let with = |labels: Value, annotations: Value| {
            let metadata = json!({"name": "a", "labels": labels, "annotations": annotations});
            slices(json!({"metadata": metadata, "subsets": [{"addresses": [{"ip": "10.1.0.1"}], "ports": [{"port": 80}]}]}))
        };
        let rows = [
            (json!({"endpointslice.kubernetes.io/skip-mirror": "true"}), json!({}), true),
            (json!({"endpointslice.kubernetes.io/skip-mirror": "false"}), json!({}), false),
            (json!({}), json!({"control-plane.alpha.kubernetes.io/leader": "{}"}), true),
            (json!({"service.kubernetes.io/headless": ""}), json!({}), true),
            (json!({"app": null}), json!(null), false),
        ];
        for (labels, annotations, ignored) in rows {
            let slices = with(labels.clone(), annotations);
            assert_eq!((slices.len(), slices[0].ignored.is_some(), slices[0].endpoints.is_empty()), (1, ignored, ignored), "{labels}");
        }
    }

    #[test]
    fn wrong_values_cost_little_and_are_named() {
        let read = slices(json!({
            "metadata": {"name": "a", "managedFields": 7},
            "subsets": [
                {"addresses": [{"ip": "10.1.0.1", "hostname": 5}, {"ip": 7}, {"ip": "x"}, {"ip": "127.0.0.1"}], "ports": [{"port": 80}, {"port": "http"}]},
                5,
            ],
        }));
        assert_eq!((read.len(), read[0].endpoints.len(), read[0].ports.len()), (1, 1, 1));
        let problems = problems(&read);
        let expected = [
            "Endpoints default/a: subsets[0].addresses[1].ip: the number 7: text (in quotes) is expected; the endpoint is skipped",
            "Endpoints default/a: subsets[0].ports[1].port: the text \"http\": a number (without quotes) is expected; the port is skipped",
            "Endpoints default/a: subsets[1]: the number 5: a mapping is expected; the subset is skipped",
            "Endpoints default/a: subsets[0].addresses[2].ip: \"x\" is not an IP address; the endpoint is skipped",
            "Endpoints default/a: subsets[0].addresses[3].ip: \"127.0.0.1\" is a loopback address; the endpoint is skipped",
        ];
        assert_eq!(problems, expected);
        assert_eq!(slices(json!({"metadata": {"name": "a"}})).len(), 1, "none at all is a valid object");
        let (name, problem) = mirror(json!({"metadata": {"name": "a"}, "subsets": 5}), &Origin::default()).unwrap_err();
        assert_eq!((name.unwrap().to_string().as_str(), problem.field.as_str()), ("default/a", "subsets"));
        assert!(mirror(json!({"subsets": []}), &Origin::default()).unwrap_err().0.is_none());
    }
}
