//! Reads a Kubernetes Service.

mod ports;

use std::collections::HashSet;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as k8s;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;

use self::ports::{read_optional_port, read_ports};
use super::addr::{fault, fault_of_cluster_ip, parse_cidr, parse_ip};
use super::{Kind, LimitAnnotations, Service, ServiceType, TrafficPolicy, read_key};
use crate::problem::{Notes, Origin, Problem};

/// Services with this label belong to another proxy.
pub(super) const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// Why a Service with [`PROXY_NAME_LABEL`] is ignored.
const OTHER_PROXY: &str = "the label service.kubernetes.io/service-proxy-name gives it to another proxy";
/// Why a Service that could not be read, or is one too many, is ignored; its problem says more.
const UNREAD: &str = "it could not be read";
const OVER_LIMIT: &str = "there are too many Services";
/// Why a Service without cluster IP is ignored.
const NO_CLUSTER_IP: &str = "it has no cluster IP (yet)";
/// `sessionAffinityConfig.clientIP.timeoutSeconds`, default and limits.
const AFFINITY_DEFAULT_S: i32 = 10_800;
const AFFINITY_MAX_S: i32 = 86_400;

impl Service {
    /// Reads a Service. `Err` without a name or spec; invalid fields are skipped and listed in [`Service::problems`].
    pub fn from_k8s(service: &k8s::Service, origin: &Origin) -> Result<Service, Problem> {
        let refuse =
            |object: String, field: &str, message: String| Problem { origin: origin.clone(), object, field: field.into(), message };
        let key = read_key(&service.metadata).map_err(|(field, message)| {
            let name = service.metadata.name.as_deref().unwrap_or("");
            refuse(format!("{} {name:?}", Kind::Service), field, message)
        })?;
        let object = format!("{} {key}", Kind::Service);
        let Some(spec) = &service.spec else {
            return Err(refuse(object, "spec", "missing: a Service needs a spec with ports; it is skipped".into()));
        };
        let mut notes = Notes::new(origin, object);
        let kind = read_type(spec.type_.as_deref(), &mut notes);
        let ignored = ignored(service, spec, kind);
        let mut read = Service {
            created_s: service.metadata.creation_timestamp.as_ref().map_or(i64::MAX, |t| t.0.as_second()),
            ignored,
            kind,
            cluster_ips: Vec::new(),
            external_ips: Vec::new(),
            load_balancer_ips: Vec::new(),
            proxied_ips: Vec::new(),
            source_ranges: Vec::new(),
            source_ranges_unreadable: false,
            ports: Vec::new(),
            ports_unread: false,
            internal_policy: TrafficPolicy::Cluster,
            external_policy: TrafficPolicy::Cluster,
            affinity_timeout_s: None,
            health_check_port: None,
            limits: LimitAnnotations::default(),
            problems: Vec::new(),
            origin: origin.clone(),
            key,
        };
        if ignored == Some(NO_CLUSTER_IP) && origin.file.is_some() {
            notes.add("spec.clusterIP", "missing, so it is not served; the API server would choose one, a file must name it");
        }
        // What an ignored Service would have is only for `explain`, so its faults are nobody's concern.
        let mut silent = Notes::new(origin, String::new());
        read.fill(service, spec, if ignored.is_none() { &mut notes } else { &mut silent });
        read.problems = notes.finish();
        Ok(read)
    }

    fn fill(&mut self, service: &k8s::Service, spec: &k8s::ServiceSpec, notes: &mut Notes) {
        self.cluster_ips = read_cluster_ips(spec, notes);
        self.external_ips = read_addresses("spec.externalIPs", spec.external_ips.as_deref().unwrap_or(&[]), notes);
        self.read_load_balancer(service, notes);
        self.read_source_ranges(spec.load_balancer_source_ranges.as_deref().unwrap_or(&[]), notes);
        (self.ports, self.ports_unread) = read_ports(spec, notes);
        self.internal_policy = read_policy("spec.internalTrafficPolicy", spec.internal_traffic_policy.as_deref(), notes);
        let external = read_policy("spec.externalTrafficPolicy", spec.external_traffic_policy.as_deref(), notes);
        if self.externally_accessible() {
            self.external_policy = external;
        }
        self.affinity_timeout_s = read_affinity(spec, notes);
        self.limits = LimitAnnotations::read(service.metadata.annotations.as_ref(), notes);
        if self.kind == ServiceType::LoadBalancer && self.external_policy == TrafficPolicy::Local {
            self.health_check_port = read_optional_port("spec.healthCheckNodePort", spec.health_check_node_port, notes);
        }
    }

    /// Whether the Service is reachable from outside the cluster; only then does its external traffic policy apply.
    pub fn externally_accessible(&self) -> bool {
        match self.kind {
            ServiceType::NodePort | ServiceType::LoadBalancer => true,
            ServiceType::ClusterIp => !self.external_ips.is_empty(),
            ServiceType::ExternalName => false,
        }
    }

    fn read_load_balancer(&mut self, service: &k8s::Service, notes: &mut Notes) {
        let ingress = service.status.as_ref().and_then(|s| s.load_balancer.as_ref()).and_then(|l| l.ingress.as_deref()).unwrap_or(&[]);
        for (i, entry) in ingress.iter().enumerate() {
            let Some(text) = entry.ip.as_deref().filter(|t| !t.is_empty()) else { continue };
            let field = format!("status.loadBalancer.ingress[{i}].ip");
            let Some(addr) = read_address(&field, text, fault, notes) else { continue };
            let proxied = entry.ip_mode.as_deref() == Some("Proxy");
            let list = if proxied { &mut self.proxied_ips } else { &mut self.load_balancer_ips };
            list.push(addr);
        }
        self.proxied_ips = without_repetitions(std::mem::take(&mut self.proxied_ips));
        self.load_balancer_ips = without_repetitions(std::mem::take(&mut self.load_balancer_ips));
    }

    fn read_source_ranges(&mut self, ranges: &[String], notes: &mut Notes) {
        for (i, text) in ranges.iter().enumerate() {
            match parse_cidr(text) {
                Some(prefix) => self.source_ranges.push(prefix),
                None => notes.add(
                    format!("spec.loadBalancerSourceRanges[{i}]"),
                    format!("{text:?} is not a CIDR such as 203.0.113.0/24; it admits no client"),
                ),
            }
        }
        self.source_ranges = without_repetitions(std::mem::take(&mut self.source_ranges));
        self.source_ranges_unreadable = !ranges.is_empty() && self.source_ranges.is_empty();
    }
}

/// A Service in place of one that could not be read: its cluster IPs, which are then left to the kernel. `None`: not even these are known.
pub(super) fn stand_in(value: &Value, origin: &Origin) -> Option<Arc<Service>> {
    let text = |v: Option<&Value>| v.and_then(Value::as_str).map(str::to_owned);
    let (meta, spec) = (value.get("metadata")?, value.get("spec")?);
    let list = spec.get("clusterIPs").and_then(Value::as_array);
    let known = k8s::Service {
        metadata: ObjectMeta { name: text(meta.get("name")), namespace: text(meta.get("namespace")), ..ObjectMeta::default() },
        spec: Some(k8s::ServiceSpec {
            cluster_ip: text(spec.get("clusterIP")),
            cluster_ips: list.map(|ips| ips.iter().filter_map(|ip| text(Some(ip))).collect()),
            ..k8s::ServiceSpec::default()
        }),
        ..k8s::Service::default()
    };
    let mut service = Service::from_k8s(&known, origin).ok().filter(|s| !s.cluster_ips.is_empty())?;
    service.ignored = Some(UNREAD);
    service.problems.clear();
    Some(Arc::new(service))
}

impl Service {
    /// A Service in place of this one, if there are too many: its cluster IPs are left to the kernel.
    pub fn over_limit(&self) -> Arc<Service> {
        Arc::new(Service { ignored: Some(OVER_LIMIT), problems: Vec::new(), ..self.clone() })
    }

    /// Whether it only stands in for one that could not be read or is one too many.
    pub fn stands_in(&self) -> bool {
        matches!(self.ignored_as(), Some(IgnoredAs::Unread | IgnoredAs::OverLimit))
    }

    /// The kind of reason for which it is ignored; `None`: it is not.
    pub fn ignored_as(&self) -> Option<IgnoredAs> {
        Some(match self.ignored? {
            UNREAD => IgnoredAs::Unread,
            OVER_LIMIT => IgnoredAs::OverLimit,
            OTHER_PROXY => IgnoredAs::OtherProxy,
            _ => IgnoredAs::SetAside,
        })
    }
}

/// Kinds of reasons for which a Service is ignored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IgnoredAs {
    /// It is another proxy's.
    OtherProxy,
    /// No proxy serves it: headless, an alias, without a cluster IP.
    SetAside,
    /// It could not be read.
    Unread,
    /// It is one too many.
    OverLimit,
}

/// Why kube-proxy ignores the Service.
fn ignored(service: &k8s::Service, spec: &k8s::ServiceSpec, kind: ServiceType) -> Option<&'static str> {
    let label = service.metadata.labels.as_ref().is_some_and(|l| l.contains_key(PROXY_NAME_LABEL));
    let first = cluster_ip_texts(spec).next();
    match first {
        _ if label => Some(OTHER_PROXY),
        _ if kind == ServiceType::ExternalName => Some("type ExternalName is a DNS alias"),
        Some("None") => Some("clusterIP None: a headless Service has no address of its own"),
        None => Some(NO_CLUSTER_IP),
        Some(_) => None,
    }
}

/// `clusterIPs`, or the older `clusterIP` alone.
fn cluster_ip_texts(spec: &k8s::ServiceSpec) -> impl Iterator<Item = &str> {
    let list = spec.cluster_ips.as_deref().unwrap_or(&[]);
    let single = spec.cluster_ip.as_deref().filter(|_| list.is_empty());
    list.iter().map(String::as_str).chain(single).filter(|t| !t.is_empty())
}

fn read_cluster_ips(spec: &k8s::ServiceSpec, notes: &mut Notes) -> Vec<IpAddr> {
    let mut ips: Vec<IpAddr> = Vec::new();
    for (i, text) in cluster_ip_texts(spec).enumerate() {
        let field = format!("spec.clusterIPs[{i}]");
        let Some(addr) = read_address(&field, text, fault_of_cluster_ip, notes) else { continue };
        match ips.iter().find(|other| other.is_ipv6() == addr.is_ipv6()) {
            Some(other) => {
                notes.add(field, format!("a second address of the family of {other}: one a family is allowed; {addr} is skipped"));
            }
            None => ips.push(addr),
        }
    }
    ips
}

fn read_address(field: &str, text: &str, fault: fn(IpAddr) -> Option<&'static str>, notes: &mut Notes) -> Option<IpAddr> {
    let Some(addr) = parse_ip(text) else {
        notes.add(field, format!("{text:?} is not an IP address; it is skipped"));
        return None;
    };
    if let Some(fault) = fault(addr) {
        notes.add(field, format!("{addr} is {fault}, which no Service can have; it is skipped"));
        return None;
    }
    Some(addr)
}

fn read_addresses(field: &str, texts: &[String], notes: &mut Notes) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for (i, text) in texts.iter().enumerate() {
        if let Some(addr) = read_address(&format!("{field}[{i}]"), text, fault, notes) {
            addresses.push(addr);
        }
    }
    without_repetitions(addresses)
}

fn read_type(name: Option<&str>, notes: &mut Notes) -> ServiceType {
    match name {
        None | Some("" | "ClusterIP") => ServiceType::ClusterIp,
        Some("NodePort") => ServiceType::NodePort,
        Some("LoadBalancer") => ServiceType::LoadBalancer,
        Some("ExternalName") => ServiceType::ExternalName,
        Some(other) => {
            let allowed = "ClusterIP, NodePort, LoadBalancer and ExternalName are allowed";
            notes.add("spec.type", format!("{other:?}: {allowed}; it is taken for ClusterIP"));
            ServiceType::ClusterIp
        }
    }
}

fn read_policy(field: &str, name: Option<&str>, notes: &mut Notes) -> TrafficPolicy {
    match name {
        None | Some("" | "Cluster") => TrafficPolicy::Cluster,
        Some("Local") => TrafficPolicy::Local,
        Some(other) => {
            notes.add(field, format!("{other:?}: Cluster and Local are allowed; it is taken for Cluster"));
            TrafficPolicy::Cluster
        }
    }
}

fn read_affinity(spec: &k8s::ServiceSpec, notes: &mut Notes) -> Option<u32> {
    match spec.session_affinity.as_deref() {
        None | Some("" | "None") => return None,
        Some("ClientIP") => {}
        Some(other) => {
            notes.add("spec.sessionAffinity", format!("{other:?}: None and ClientIP are allowed; it is taken for None"));
            return None;
        }
    }
    let config = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref()).and_then(|c| c.timeout_seconds);
    let timeout = config.unwrap_or(AFFINITY_DEFAULT_S);
    if !(1..=AFFINITY_MAX_S).contains(&timeout) {
        let field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
        notes.add(field, format!("{timeout}: 1 to {AFFINITY_MAX_S} are allowed; {AFFINITY_DEFAULT_S} is used"));
        return Some(AFFINITY_DEFAULT_S.cast_unsigned());
    }
    Some(timeout.cast_unsigned())
}

/// The entries of a list, each at its first place only.
fn without_repetitions<T: Copy + Eq + Hash>(mut list: Vec<T>) -> Vec<T> {
    let mut seen = HashSet::with_capacity(list.len());
    list.retain(|entry| seen.insert(*entry));
    list
}

#[cfg(test)]
mod tests {
    use nomagic_core::tuple::Proto;

    use super::*;

    fn read(yaml: &str) -> Service {
        let service: k8s::Service = serde_saphyr::from_str(yaml).unwrap();
        Service::from_k8s(&service, &Origin::default()).unwrap()
    }

    fn with_spec(spec: &str) -> Service {
        read(&format!("metadata: {{name: a, namespace: n}}\nspec: {spec}"))
    }

    #[test]
    fn a_whole_service() {
        let s = read(
            "
metadata: {name: web, creationTimestamp: '2024-01-02T03:04:05Z'}
spec:
  type: LoadBalancer
  clusterIP: 010.0.0.1
  clusterIPs: [010.0.0.1, 'fd00::1']
  externalIPs: [203.0.113.1, 203.0.113.1]
  externalTrafficPolicy: Local
  internalTrafficPolicy: Local
  healthCheckNodePort: 30000
  loadBalancerSourceRanges: [' 198.51.100.0/24']
  sessionAffinity: ClientIP
  ports: [{name: http, port: 80, nodePort: 30080}, {name: dns, port: 53, protocol: UDP}]
status: {loadBalancer: {ingress: [{ip: 1.2.3.4}, {ip: 1.2.3.5, ipMode: Proxy}, {hostname: x.example}]}}
",
        );
        assert_eq!((s.key.to_string().as_str(), s.created_s, s.ignored), ("default/web", 1_704_164_645, None));
        assert_eq!(s.cluster_ips, ["10.0.0.1".parse::<IpAddr>().unwrap(), "fd00::1".parse().unwrap()]);
        assert_eq!((s.external_ips.len(), s.load_balancer_ips.len(), s.proxied_ips.len()), (1, 1, 1));
        assert_eq!((s.internal_policy, s.external_policy), (TrafficPolicy::Local, TrafficPolicy::Local));
        assert_eq!((s.health_check_port, s.affinity_timeout_s), (Some(30_000), Some(10_800)));
        assert_eq!(s.ports[0].node_port, Some(30_080));
        assert_eq!((s.ports[1].proto, s.ports[1].node_port), (Proto::Udp, None));
        assert!(s.problems.is_empty(), "{:?}", s.problems);
    }

    #[test]
    fn a_cluster_ip_may_be_link_local_and_nothing_else() {
        let s = with_spec("{clusterIP: 169.254.20.10, externalIPs: [169.254.20.11], ports: [{port: 53}]}");
        assert_eq!((s.cluster_ips, s.external_ips, s.problems.len()), (vec!["169.254.20.10".parse().unwrap()], vec![], 1));
        assert_eq!(with_spec("{clusterIP: 127.0.0.1, ports: [{port: 53}]}").problems.len(), 1);
    }

    #[test]
    fn services_that_a_proxy_ignores() {
        let table = [
            ("{clusterIP: None, ports: [{port: 80}]}", "headless"),
            ("{type: ExternalName, externalName: x.example}", "ExternalName"),
            ("{ports: [{port: 80}]}", "no cluster IP"),
            ("{clusterIP: '', ports: [{port: 80}]}", "no cluster IP"),
        ];
        for (spec, why) in table {
            let s = with_spec(spec);
            assert!(s.ignored.is_some_and(|i| i.contains(why)), "{spec}: {:?}", s.ignored);
            assert!(s.problems.is_empty(), "{spec}: {:?}", s.problems);
        }
        let label = "metadata: {name: a, labels: {service.kubernetes.io/service-proxy-name: ''}}\nspec: {clusterIP: 10.0.0.1}";
        assert!(read(label).ignored.is_some_and(|i| i.contains("another proxy")));
    }

    #[test]
    fn the_external_policy_counts_only_for_services_reachable_from_outside() {
        let policy = |rest: &str| with_spec(&format!("{{clusterIP: 10.0.0.1, externalTrafficPolicy: Local, {rest}}}")).external_policy;
        assert_eq!(policy("ports: [{port: 80}]"), TrafficPolicy::Cluster);
        assert_eq!(policy("ports: [{port: 80}], externalIPs: [1.2.3.4]"), TrafficPolicy::Local);
        assert_eq!(policy("ports: [{port: 80}], type: NodePort"), TrafficPolicy::Local);
    }

    #[test]
    fn invalid_fields_are_reported_and_the_rest_is_kept() {
        let base = "clusterIP: 10.0.0.1";
        let table: &[(&str, &str, &str)] = &[
            ("ports: []", "spec.ports", "without ports"),
            ("ports: [{port: 70000}]", "spec.ports[0].port", "70000"),
            ("ports: [{port: 0}]", "spec.ports[0].port", "1 to 65535"),
            ("ports: [{port: 80, nodePort: -1}]", "spec.ports[0].nodePort", "-1"),
            ("ports: [{port: 80, protocol: ICMP}]", "spec.ports[0].protocol", "SCTP"),
            ("ports: [{port: 80}], externalIPs: [127.0.0.1]", "spec.externalIPs[0]", "loopback"),
            ("ports: [{port: 80}], externalIPs: [example.com]", "spec.externalIPs[0]", "not an IP"),
            ("ports: [{port: 80}], type: Clusterip", "spec.type", "taken for ClusterIP"),
            ("ports: [{port: 80}], internalTrafficPolicy: local", "spec.internalTrafficPolicy", "Cluster and Local"),
            ("ports: [{port: 80}], sessionAffinity: Cookie", "spec.sessionAffinity", "ClientIP"),
            ("ports: [{port: 80}], loadBalancerSourceRanges: [1.2.3.4]", "spec.loadBalancerSourceRanges[0]", "CIDR"),
        ];
        for (spec, field, words) in table {
            let s = with_spec(&format!("{{{base}, {spec}}}"));
            assert_eq!(s.problems.len(), 1, "{spec}: {:?}", s.problems);
            assert_eq!((s.problems[0].object.as_str(), s.problems[0].field.as_str()), ("Service n/a", *field));
            assert!(s.problems[0].message.contains(words), "{spec}: {}", s.problems[0]);
        }
        let closed = with_spec(&format!("{{{base}, ports: [{{port: 80}}], loadBalancerSourceRanges: [x]}}"));
        assert!(closed.source_ranges_unreadable && closed.source_ranges.is_empty());
    }

    #[test]
    fn objects_without_required_fields_are_refused() {
        for (yaml, field) in [
            ("metadata: {name: a}", "spec"),
            ("spec: {clusterIP: 10.0.0.1}", "metadata.name"),
            ("metadata: {name: 'a/b'}\nspec: {}", "metadata.name"),
            ("metadata: {name: a, namespace: \"x\\ny\"}\nspec: {}", "metadata.namespace"),
        ] {
            let service: k8s::Service = serde_saphyr::from_str(yaml).unwrap();
            assert_eq!(Service::from_k8s(&service, &Origin::default()).unwrap_err().field, field);
        }
    }
}
