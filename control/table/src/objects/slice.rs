//! Reads a Kubernetes EndpointSlice.

use k8s_openapi::api::discovery::v1 as k8s;

use super::addr::{fault, parse_ip};
use super::{Endpoint, Kind, NamespacedName, Slice, SlicePort, read_key, read_port, read_proto, too_long};
use crate::problem::{Notes, Origin, Problem};

/// The label with the name of the slice's Service.
pub(super) const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// The label of slices of headless Services.
pub(super) const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
/// Why a slice is ignored.
const NO_SERVICE: &str = "it has no label kubernetes.io/service-name";
pub(super) const HEADLESS: &str = "the label service.kubernetes.io/headless";
/// The annotation with the time of the cause of the last change, for the metric of programming latency; invalid times are ignored.
pub(super) const TRIGGER_ANNOTATION: &str = "endpoints.kubernetes.io/last-change-trigger-time";
/// Maximum number of endpoints: far more than the API server's 1,000, so that a hand-written slice fits too.
pub(super) const ENDPOINTS_MAX: usize = 200_000;
/// Maximum number of ports (the API server's limit).
const PORTS_MAX: usize = 20_000;

impl Slice {
    /// Reads an EndpointSlice. `Err` without a name or with an unknown address type; invalid fields are skipped and listed in [`Slice::problems`].
    pub fn from_k8s(slice: &k8s::EndpointSlice, origin: &Origin) -> Result<Slice, Problem> {
        let refuse =
            |object: String, field: &str, message: String| Problem { origin: origin.clone(), object, field: field.into(), message };
        let key = read_key(&slice.metadata).map_err(|(field, message)| {
            let name = slice.metadata.name.as_deref().unwrap_or("");
            refuse(format!("{} {name:?}", Kind::EndpointSlice), field, message)
        })?;
        let object = format!("{} {key}", Kind::EndpointSlice);
        let (v6, fqdn) = match slice.address_type.as_str() {
            "IPv4" => (false, false),
            "IPv6" => (true, false),
            "FQDN" => (false, true),
            other => {
                return Err(refuse(object, "addressType", format!("{other:?}: IPv4, IPv6 and FQDN are allowed; the slice is skipped")));
            }
        };
        let labels = slice.metadata.labels.as_ref();
        let service = labels.and_then(|l| l.get(SERVICE_NAME_LABEL)).filter(|n| !n.is_empty());
        let ignored = match service {
            _ if labels.is_some_and(|l| l.contains_key(HEADLESS_LABEL)) => Some(HEADLESS),
            None => Some(NO_SERVICE),
            _ if fqdn => Some("addressType FQDN"),
            Some(_) => None,
        };
        let service = service.map(|name| NamespacedName { namespace: key.namespace.clone(), name: name.clone() });
        let mut notes = Notes::new(origin, object);
        if ignored == Some(NO_SERVICE) {
            notes.add("metadata.labels", format!("it counts for no Service: {NO_SERVICE}"));
        }
        let mut read = Slice {
            key,
            origin: origin.clone(),
            service,
            mirrored: false,
            ignored,
            v6,
            ports: Vec::new(),
            endpoints: Vec::new(),
            triggered: slice.metadata.annotations.as_ref().and_then(|a| a.get(TRIGGER_ANNOTATION)).and_then(|t| t.parse().ok()),
            unusable: Vec::new(),
            problems: Vec::new(),
        };
        if ignored.is_none() {
            read.ports = read_ports("", slice.ports.as_deref().unwrap_or(&[]), &mut notes);
            read.read_endpoints(&slice.endpoints, &mut notes);
        }
        read.problems = notes.finish();
        Ok(read)
    }

    fn read_endpoints(&mut self, endpoints: &[k8s::Endpoint], notes: &mut Notes) {
        if endpoints.len() > ENDPOINTS_MAX {
            notes.add("endpoints", format!("{} entries: the first {ENDPOINTS_MAX} are used", endpoints.len()));
        }
        for (i, endpoint) in endpoints.iter().take(ENDPOINTS_MAX).enumerate() {
            // The API allows up to 100 addresses and defines the meaning of the first one only.
            let text = endpoint.addresses.first().map_or("", String::as_str);
            match usable(text, self.v6) {
                Ok(addr) => self.endpoints.push(read_endpoint(addr, endpoint)),
                Err(fault) => {
                    notes.add(format!("endpoints[{i}].addresses[0]"), format!("{text:?} is {fault}; the endpoint is skipped"));
                    self.unusable.push((text.chars().take(64).collect(), fault));
                }
            }
        }
    }
}

pub(super) fn usable(text: &str, v6: bool) -> Result<std::net::IpAddr, &'static str> {
    let addr = parse_ip(text).ok_or("not an IP address")?;
    match fault(addr) {
        Some(fault) => Err(fault),
        None if addr.is_ipv6() == v6 => Ok(addr),
        None if v6 => Err("not an IPv6 address, as the slice's addressType says"),
        None => Err("not an IPv4 address, as the slice's addressType says"),
    }
}

fn read_endpoint(addr: std::net::IpAddr, endpoint: &k8s::Endpoint) -> Endpoint {
    let conditions = endpoint.conditions.as_ref();
    let zones = endpoint.hints.as_ref().and_then(|h| h.for_zones.as_deref()).unwrap_or(&[]);
    let nodes = endpoint.hints.as_ref().and_then(|h| h.for_nodes.as_deref()).unwrap_or(&[]);
    Endpoint {
        addr,
        ready: conditions.and_then(|c| c.ready).unwrap_or(true),
        serving: conditions.and_then(|c| c.serving).unwrap_or(true),
        terminating: conditions.and_then(|c| c.terminating).unwrap_or(false),
        node: endpoint.node_name.as_deref().filter(|n| !n.is_empty()).map(Into::into),
        zone_hints: zones.iter().map(|z| z.name.as_str().into()).collect(),
        node_hints: nodes.iter().map(|n| n.name.as_str().into()).collect(),
    }
}

/// Reads ports. `at` is the path of what lists them, with a final dot; "" for the object itself.
pub(super) fn read_ports(at: &str, listed: &[k8s::EndpointPort], notes: &mut Notes) -> Vec<SlicePort> {
    if listed.len() > PORTS_MAX {
        notes.add(format!("{at}ports"), format!("{} entries: the first {PORTS_MAX} are used", listed.len()));
    }
    let mut ports = Vec::new();
    for (i, port) in listed.iter().take(PORTS_MAX).enumerate() {
        // A port without a name or number is valid but matches no Service port.
        let (Some(name), Some(number)) = (&port.name, port.port.filter(|&n| n != 0)) else { continue };
        let Some(proto) = read_proto(port.protocol.as_deref()) else {
            let proto = port.protocol.as_deref().unwrap_or("");
            notes.add(format!("{at}ports[{i}].protocol"), format!("{proto:?}: TCP, UDP and SCTP are allowed; the port is skipped"));
            continue;
        };
        if let Some(length) = too_long(name) {
            notes.add(format!("{at}ports[{i}].name"), format!("{length}; the port is skipped"));
            continue;
        }
        match read_port(number) {
            Some(number) => ports.push(SlicePort { name: name.clone(), proto, port: number }),
            None => notes.add(format!("{at}ports[{i}].port"), format!("{number}: 1 to 65535 are allowed; the port is skipped")),
        }
    }
    ports
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(yaml: &str) -> Slice {
        let slice: k8s::EndpointSlice = serde_saphyr::from_str(yaml).unwrap();
        Slice::from_k8s(&slice, &Origin::default()).unwrap()
    }

    const META: &str = "metadata: {name: s-1, namespace: n, labels: {kubernetes.io/service-name: s}}\naddressType: IPv4\n";

    #[test]
    fn conditions_default_to_ready() {
        let s = read(&format!(
            "{META}ports: [{{name: '', port: 80}}, {{port: 81}}, {{name: x}}, {{name: y, port: 0}}]
endpoints:
- {{addresses: [010.0.0.1, 10.0.0.9], nodeName: a, hints: {{forZones: [{{name: z}}], forNodes: [{{name: a}}]}}}}
- {{addresses: [10.0.0.2], conditions: {{ready: false, serving: true, terminating: true}}}}
"
        ));
        assert_eq!((s.service.unwrap().to_string().as_str(), s.ports.len(), s.endpoints.len()), ("n/s", 1, 2));
        let (a, b) = (&s.endpoints[0], &s.endpoints[1]);
        assert_eq!((a.addr.to_string().as_str(), a.ready, a.serving, a.terminating), ("10.0.0.1", true, true, false));
        assert_eq!((a.node.as_deref(), &*a.zone_hints[0], &*a.node_hints[0]), (Some("a"), "z", "a"));
        assert_eq!((b.ready, b.serving, b.terminating), (false, true, true));
        assert!(s.problems.is_empty());
    }

    #[test]
    fn an_invalid_endpoint_does_not_affect_the_others() {
        let bad = ["127.0.0.1", "169.254.0.1", "224.0.0.1", "0.0.0.0", "fd00::1", "pod-7", ""];
        let lines: String = bad.iter().map(|b| format!("- {{addresses: ['{b}']}}\n")).collect();
        let s =
            read(&format!("{META}ports: [{{name: '', port: 80}}]\nendpoints:\n- {{addresses: [10.0.0.1]}}\n{lines}- {{addresses: []}}\n"));
        assert_eq!((s.endpoints.len(), s.unusable.len(), s.problems.len()), (1, bad.len() + 1, bad.len() + 1));
        assert_eq!(
            s.problems[0].to_string(),
            "EndpointSlice n/s-1: endpoints[1].addresses[0]: \"127.0.0.1\" is a loopback address; the endpoint is skipped"
        );
    }

    #[test]
    fn invalid_ports_are_reported() {
        let s = read(&format!(
            "{META}ports: [{{name: a, port: 70000}}, {{name: b, port: 80, protocol: tcp}}, {{name: c, port: 80}}]\nendpoints: []"
        ));
        assert_eq!(s.ports.len(), 1);
        let fields: Vec<_> = s.problems.iter().map(|p| p.field.as_str()).collect();
        assert_eq!(fields, ["ports[0].port", "ports[1].protocol"]);
    }

    #[test]
    fn slices_that_a_proxy_ignores() {
        let table = [
            ("metadata: {name: a}\naddressType: IPv4\nendpoints: []", "service-name"),
            (
                "metadata: {name: a, labels: {kubernetes.io/service-name: s}}\naddressType: FQDN\nendpoints: [{addresses: [x.example]}]",
                "FQDN",
            ),
            (
                "metadata: {name: a, labels: {kubernetes.io/service-name: s, service.kubernetes.io/headless: ''}}\naddressType: IPv4\nendpoints: []",
                "headless",
            ),
        ];
        for (yaml, why) in table {
            let s = read(yaml);
            let unlabelled = why == "service-name";
            assert!(s.ignored.is_some_and(|i| i.contains(why)) && s.problems.len() == usize::from(unlabelled), "{yaml}: {s:?}");
        }
        let slice: k8s::EndpointSlice = serde_saphyr::from_str("metadata: {name: a}\naddressType: IPX\nendpoints: []").unwrap();
        assert_eq!(Slice::from_k8s(&slice, &Origin::default()).unwrap_err().field, "addressType");
    }
}
