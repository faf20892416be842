//! Objects as people write them: `explain` gives the right answer, and the words that its reader needs.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::common::NOMAGIC;

/// What `explain` says about a flow of the objects in a folder beside this file.
struct Explained {
    answer: Value,
    /// The explanation, line by line.
    steps: String,
    /// The warnings.
    warnings: String,
}

fn explain(folder: &str, flow: &str) -> Explained {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/objects").join(folder);
    explain_in(&folder, flow)
}

fn explain_in(folder: &Path, flow: &str) -> Explained {
    let args = ["explain", "--config", "nomagic.yaml", "--format", "json", flow];
    let out = Command::new(NOMAGIC).args(args).current_dir(folder).output().unwrap();
    let (stdout, warnings) = (String::from_utf8(out.stdout).unwrap(), String::from_utf8(out.stderr).unwrap());
    assert!(out.status.success(), "{warnings}");
    let answer: Value = serde_json::from_str(&stdout).unwrap();
    let steps = answer["steps"].as_array().unwrap().iter().map(|s| s.as_str().unwrap()).collect::<Vec<_>>().join("\n");
    Explained { answer, steps, warnings }
}

impl Explained {
    fn verdict(&self, expected: &str) -> &Explained {
        assert_eq!(self.answer["verdict"], expected, "{}\n{}", self.steps, self.warnings);
        self
    }

    fn backends(&self, expected: &[&str]) -> &Explained {
        assert_eq!(self.answer["backends"], Value::from(expected), "{}\n{}", self.steps, self.warnings);
        self
    }

    /// The explanation contains these words.
    fn says(&self, words: &str) -> &Explained {
        assert!(self.steps.contains(words), "{words:?} is not in:\n{}", self.steps);
        self
    }

    /// A warning contains these words.
    fn warns(&self, words: &str) -> &Explained {
        assert!(self.warnings.contains(words), "{words:?} is not in:\n{}", self.warnings);
        self
    }

    fn never_warns(&self, words: &str) -> &Explained {
        assert!(!self.warnings.contains(words), "{words:?} is in:\n{}", self.warnings);
        self
    }

    fn warns_nothing(&self) -> &Explained {
        assert_eq!(self.warnings, "");
        self
    }
}

/// The configuration of the folders beside this file, and these objects in a file.
fn written(file: &str, objects: &[u8], flow: &str) -> Explained {
    let dir = tempfile::tempdir().unwrap();
    let config = format!(
        "node: {{name: gw-1, ips: [192.168.0.2], primaryIPs: [192.168.0.2]}}\nclusterCIDRs: [10.244.0.0/16]\nserviceCIDRs: [10.96.0.0/12]\nmanifests: {file}\n"
    );
    std::fs::write(dir.path().join("nomagic.yaml"), config).unwrap();
    std::fs::write(dir.path().join(file), objects).unwrap();
    explain_in(dir.path(), flow)
}

const FLOW: &str = "tcp 10.244.1.1:40000 -> 10.96.0.9:80";

/// A Service at 10.96.0.9 with these further lines of its metadata and spec, and two endpoints.
fn service(metadata: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: web\n{metadata}spec:\n  clusterIP: 10.96.0.9\n  ports: [{{port: 80}}]\n{spec}---\n{}",
        slice("- {addresses: [10.244.1.1]}\n- {addresses: [10.244.1.2]}\n")
    )
}

fn slice(endpoints: &str) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: web-1, labels: {{kubernetes.io/service-name: web}}}}\n\
         addressType: IPv4\nports: [{{port: 8080}}]\nendpoints:\n{endpoints}"
    )
}

#[test]
fn null_labels_are_empty() {
    explain("null-label", "tcp 10.244.1.1:40000 -> 10.96.10.11:8080").verdict("forward").backends(&["10.244.1.70:8080"]).warns_nothing();
    let null = service("  annotations:\n    nomagic.io/note:\n  labels: {a: , b: null, c: ~}\n", "");
    written("m.yaml", null.as_bytes(), FLOW).verdict("forward").warns_nothing();
}

#[test]
fn json_objects_back_to_back_are_read() {
    let flow = "tcp 10.244.1.1:40000 -> 10.96.20.1:80";
    explain("json-objects-back-to-back", flow).verdict("forward").backends(&["10.244.2.1:8080"]).warns_nothing();
}

#[test]
fn endpoints_are_read_as_slices() {
    let flow = "tcp 203.0.113.9:40000 -> 192.168.0.2:31081";
    explain("endpoints-object", flow).verdict("forward").backends(&["172.16.5.11:32080", "172.16.5.12:32080"]).warns_nothing();
}

#[test]
fn a_service_without_cluster_ip_is_named() {
    let explained = explain("no-cluster-ip", "tcp 203.0.113.9:40000 -> 192.168.0.2:30818");
    explained
        .verdict("pass")
        .warns("Service default/web: spec.clusterIP: missing, so it is not served; the API server would choose one, a file must name it")
        .says("30818/TCP is the node port of Service default/web, which is not served: it has no cluster IP (yet)");
    assert_eq!(explained.answer["service"], "default/web");
}

#[test]
fn what_is_nearly_right_is_named() {
    let a = explain("words", "tcp 10.244.1.1:4000 -> 10.96.15.1:80");
    let ports = "EndpointSlice default/a-1 has endpoints for port \"http\" (8080/TCP): a slice's port must have the Service port's name";
    a.verdict("reject").says(ports).warns(&format!("Service default/a: spec.ports[0]: it has no endpoints; {ports}"));

    let b = explain("words", "tcp 10.244.1.1:4000 -> 10.96.15.2:80");
    let (label, place) = (": it has no label kubernetes.io/service-name", "there is no Service default/b (one is in apps)");
    b.verdict("reject")
        .says(&format!("EndpointSlice apps/b counts for no Service{label}"))
        .says(&format!("EndpointSlice default/b-2: {place}"));
    b.warns(&format!("EndpointSlice apps/b: metadata.labels: it counts for no Service{label}"));
    b.warns(&format!("EndpointSlice default/b-2: metadata.labels[kubernetes.io/service-name]: {place}"));

    let c = explain("words", "tcp 203.0.113.9:4000 -> 192.168.0.2:30815");
    c.verdict("drop").says("10.244.1.93:80 (on node gw-1.example.internal; this one is gw-1");

    let d = explain("words", "tcp 10.244.1.1:4000 -> 10.96.15.4:80");
    let hints = "hints for zones are not used: 10.244.2.101:80 has none";
    d.verdict("forward").says(hints).warns(&format!("Service default/d: {hints}"));

    let e = explain("words", "tcp [2001:db8::9]:4000 -> [2001:db8:99::6]:80");
    e.verdict("pass").says("2001:db8:99::6 is a load balancer's address of Service default/e, which has no IPv6 cluster IP");
    e.warns("Service default/e: status.loadBalancer.ingress: 2001:db8:99::6 is not served: the Service has no IPv6 cluster IP");

    let f = explain("words", "tcp [2001:db8::9]:4000 -> [2001:db8:99::7]:80");
    f.verdict("forward").says("loadBalancerSourceRanges has no IPv6 range: everybody is let in.");
    f.warns("Service default/f: spec.loadBalancerSourceRanges: no IPv6 range: everybody is let in at 2001:db8:99::7");
}

#[test]
fn other_groups_kinds_are_silent_and_no_library_speaks() {
    let all = explain("words", "tcp 10.244.1.1:4000 -> 10.96.15.8:80");
    all.verdict("reject").never_warns("serving.knative.dev").never_warns("default/g");
    all.warns("Service default/h: the key \"labels\" is given twice in one mapping; as in kubectl, the last one counts");
    all.warns("`{{` looks like a Helm template: give nomagic the output of `helm template`; this document is skipped");
    for word in ["DuplicateKeyPolicy", "i32", "scalar", "trailing", "invalid type"] {
        all.never_warns(word);
    }
}

#[test]
fn a_service_of_another_proxy_or_without_an_address_of_its_own_is_named() {
    let rows = [
        (
            "  labels: {service.kubernetes.io/service-proxy-name: other}\n",
            "  externalIPs: [203.0.113.9]\n",
            "10.96.0.9",
            "the cluster IP",
            "gives it to another proxy",
        ),
        (
            "",
            "  clusterIPs: [None]\n  externalIPs: [203.0.113.9]\n",
            "203.0.113.9",
            "one of the externalIPs",
            "a headless Service has no address",
        ),
        (
            "",
            "  type: ExternalName\n  externalName: a.example\n  externalIPs: [203.0.113.9]\n",
            "203.0.113.9",
            "one of the externalIPs",
            "a DNS alias",
        ),
    ];
    for (metadata, spec, address, what, why) in rows {
        let explained = written("m.yaml", service(metadata, spec).as_bytes(), &format!("tcp 10.244.1.1:40000 -> {address}:80"));
        explained.says(&format!("{address} is {what} of Service default/web, which is not served: ")).says(why).warns_nothing();
        assert_eq!(explained.answer["service"], "default/web");
    }
}

#[test]
fn slices_that_nearly_fit_are_named_where_endpoints_are_missing() {
    let explain = |objects: String| written("m.yaml", objects.as_bytes(), FLOW);
    let web = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {clusterIP: 10.96.0.9, ports: [{port: 80}]}\n---\n";
    let of = |from: &str, to: &str| format!("{web}{}", slice("- {addresses: [10.244.1.1]}\n").replace(from, to));
    let named = explain(of("service-name: web", "service-name: wep"));
    named.verdict("reject").warns(
        "EndpointSlice default/web-1: metadata.labels[kubernetes.io/service-name]: there is no Service default/wep (there is default/web)",
    );
    let protocol = explain(of("{port: 8080}", "{port: 8080, protocol: UDP}"));
    protocol.verdict("reject").says("a slice's port must have the Service port's name and protocol, here \"\" (TCP).");
    let family = explain(of("IPv4", "IPv6").replace("10.244.1.1]", "'fd00::1']"));
    family.verdict("reject").says("Its IPv6 endpoints are not for IPv4 packets: EndpointSlice default/web-1.");
    family.warns("EndpointSlice default/web-1: addressType: its IPv6 endpoints are not used: Service default/web has no IPv6 cluster IP");
    let headless = explain(of("{kubernetes.io", "{service.kubernetes.io/headless: '', kubernetes.io"));
    headless.verdict("reject").says("EndpointSlice default/web-1 counts for no Service: the label service.kubernetes.io/headless.");
    let nothing = explain(web.to_owned());
    nothing.verdict("reject").says("The Service's port 80/TCP has no endpoints.").warns_nothing();
}

#[test]
fn hints_that_are_not_used_are_explained() {
    let hinted = |zones: [&str; 2]| {
        let endpoint = |i: usize| format!("- {{addresses: [10.244.1.{i}], hints: {{forZones: [{{name: {}}}]}}}}\n", zones[i]);
        let slice = slice(&format!("{}{}", endpoint(0), endpoint(1)));
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec: {{clusterIP: 10.96.0.9, ports: [{{port: 80}}]}}\n---\n{slice}"
        )
    };
    let unknown = written("m.yaml", hinted(["a", "b"]).as_bytes(), FLOW);
    unknown.verdict("forward").says("hints for zones are not used: the zone of this node (gw-1) is not known").warns_nothing();
}

#[test]
fn a_dump_of_a_cluster_is_read_whatever_wrote_it() {
    let dump = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Service", "metadata": {
            "name": "web", "creationTimestamp": null, "labels": {"a": null}, "managedFields": [{"manager": 5, "time": "never"}], "uid": 7},
         "spec": {"clusterIP": "10.96.0.9", "ports": [{"port": 80, "targetPort": 1.5}], "selector": [], "ipFamilyPolicy": {}},
         "status": {"loadBalancer": {"ingress": [{"hostname": "a.example", "ports": 7}]}, "conditions": 5}},
        {"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "web"},
         "subsets": [{"addresses": [{"ip": "10.244.1.9", "targetRef": 3}], "ports": [{"port": 8080}]}]},
    ]});
    let text = serde_json::to_string_pretty(&dump).unwrap();
    let utf16: Vec<u8> = [0xff, 0xfe].into_iter().chain(text.encode_utf16().flat_map(u16::to_le_bytes)).collect();
    for bytes in [text.as_bytes(), &utf16, serde_json::to_string(&dump).unwrap().as_bytes()] {
        written("dump.json", bytes, FLOW).verdict("forward").backends(&["10.244.1.9:8080"]).warns_nothing();
    }
}
