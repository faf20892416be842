//! Checks the manifests in `deploy/` against Kubernetes' types and against the files that nomagic reads, its servers and its requests.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction, PodSpec};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use nomagic::config::Config;
use nomagic::observe::events::{Event, Recorder};
use nomagic::observe::http::{Listeners, Server};
use nomagic_api::WatchState;
use nomagic_fake_apiserver::{FakeApiServer, Streaming};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::common::kustomize::BuiltObjects;
use crate::common::{kustomize, plain_http, watching};

fn dir(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy").join(name)
}

fn applied(name: &str) -> BuiltObjects {
    kustomize::read(&dir(name)).unwrap()
}

/// The only object of a kind.
fn only<T: DeserializeOwned>(all: &BuiltObjects, kind: &str) -> T {
    let mut found = all.objects.iter().filter(|(_, o)| o["kind"] == kind);
    let (Some((_, object)), None) = (found.next(), found.next()) else { panic!("not one {kind}") };
    serde_json::from_value(object.clone()).unwrap()
}

fn pod(all: &BuiltObjects) -> PodSpec {
    only::<DaemonSet>(all, "DaemonSet").spec.unwrap().template.spec.unwrap()
}

fn container(all: &BuiltObjects) -> Container {
    let containers = pod(all).containers;
    assert_eq!(containers.len(), 1);
    containers.into_iter().next().unwrap()
}

/// The configuration at the path that the pods' arguments name.
fn config(all: &BuiltObjects) -> Config {
    let (map, file) = ("nomagic", "nomagic.yaml");
    Config::parse(&all.config_maps[map][file], Path::new(file)).unwrap_or_else(|e| panic!("{e}"))
}

const ALL: [&str; 2] = ["base", "overlays/example"];

#[test]
fn every_object_matches_the_schema() {
    for name in ALL {
        let all = applied(name);
        assert_eq!(all.objects.len(), 4, "{name}");
        for (file, object) in &all.objects {
            kustomize::check(object).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
            let namespaced = !object["kind"].as_str().unwrap().starts_with("Cluster");
            assert_eq!(object["metadata"]["namespace"].as_str(), namespaced.then_some(all.namespace.as_str()), "{}", file.display());
        }
    }
}

/// Checks the DaemonSet after a change.
fn spoilt(spoil: impl FnOnce(&mut Value)) -> Result<(), String> {
    let mut object = applied("base").objects.into_iter().map(|(_, o)| o).find(|o| o["kind"] == "DaemonSet").unwrap();
    spoil(&mut object);
    kustomize::check(&object)
}

fn rename(at: &'static str, from: &'static str, to: &'static str) -> impl FnOnce(&mut Value) {
    move |object| {
        let fields = object.pointer_mut(at).unwrap().as_object_mut().unwrap();
        let value = fields.remove(from).unwrap();
        fields.insert(to.into(), value);
    }
}

/// Tests the check: every fault is reported.
#[test]
fn faults_are_found() {
    const POD: &str = "/spec/template/spec";
    const MAIN: &str = "/spec/template/spec/containers/0";
    assert_eq!(spoilt(|_| ()), Ok(()));
    let found = |result: Result<(), String>, words: &str| {
        let error = result.unwrap_err();
        assert!(error.contains(words), "{words:?} in {error:?}");
    };
    found(spoilt(rename(POD, "hostNetwork", "hostNetwrok")), "/spec/template/spec/hostNetwrok: no such field");
    found(spoilt(rename(MAIN, "livenessProbe", "liveness")), "containers/0/liveness: no such field");
    found(spoilt(rename("/spec", "selector", "selectors")), "/spec/selector: required");
    found(spoilt(rename("/metadata", "labels", "label")), "/metadata/label: no such field");
    found(spoilt(|o| drop(o.pointer_mut(MAIN).unwrap().as_object_mut().unwrap().remove("name"))), "containers/0/name: required");
    found(spoilt(|o| o["spec"]["template"]["spec"]["hostNetwork"] = json!("true")), "boolean");
    found(spoilt(|o| o["spec"]["minReadySeconds"] = json!("10")), "i32");
    found(spoilt(|o| o["spec"]["template"]["spec"]["dnsPolicy"] = json!("Defualt")), "dnsPolicy");
    found(spoilt(|o| o["spec"]["updateStrategy"]["type"] = json!("Rolling")), "updateStrategy/type");
    found(spoilt(|o| o["apiVersion"] = json!("apps/v2")), "apps/v2");
    found(spoilt(|o| o["spec"]["template"]["spec"]["volumes"][1]["hostPath"]["path"] = json!(null)), "null was read as");
    assert!(kustomize::documents("a: 1\na: 2\n").is_err(), "a field twice");
}

#[test]
fn unsupported_kustomization_fields_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let head = "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nnamespace: a\n";
    for (rest, words) in [
        ("resource: [a.yaml]\n", "resource"),
        ("resources: [none.yaml]\n", "none.yaml"),
        ("configMapGenerator: [{name: a, behavior: replace, files: []}]\n", "ConfigMap a"),
        ("images: [{name: a, newName: b, newTag: c}]\n", "image a"),
    ] {
        std::fs::write(dir.path().join("kustomization.yaml"), format!("{head}{rest}")).unwrap();
        assert!(kustomize::read(dir.path()).unwrap_err().contains(words), "{rest}");
    }
}

#[test]
fn references_resolve() {
    for name in ALL {
        let all = applied(name);
        let spec = only::<DaemonSet>(&all, "DaemonSet").spec.unwrap();
        let labels = spec.template.metadata.unwrap().labels.unwrap();
        let selector = spec.selector.match_labels.unwrap();
        assert!(!selector.is_empty() && selector.iter().all(|(k, v)| labels.get(k) == Some(v)), "{selector:?} of {labels:?}");

        let account: Value = only(&all, "ServiceAccount");
        let (role, binding): (ClusterRole, ClusterRoleBinding) = (only(&all, "ClusterRole"), only(&all, "ClusterRoleBinding"));
        assert_eq!((binding.role_ref.kind.as_str(), Some(&binding.role_ref.name)), ("ClusterRole", role.metadata.name.as_ref()));
        let [subject] = &binding.subjects.unwrap()[..] else { panic!("one subject") };
        assert_eq!((subject.kind.as_str(), subject.namespace.as_deref()), ("ServiceAccount", Some(all.namespace.as_str())));
        assert_eq!(account["metadata"]["name"], json!(subject.name));
        assert_eq!(pod(&all).service_account_name.as_ref(), Some(&subject.name));

        let volumes = pod(&all).volumes.unwrap();
        let mounted = container(&all).volume_mounts.unwrap();
        let names = |list: Vec<&String>| list.into_iter().cloned().collect::<BTreeSet<_>>();
        assert_eq!(names(volumes.iter().map(|v| &v.name).collect()), names(mounted.iter().map(|m| &m.name).collect()));
        for map in volumes.iter().filter_map(|v| v.config_map.as_ref()) {
            assert!(all.config_maps.contains_key(&map.name), "ConfigMap {}", map.name);
        }
    }
}

/// The pod's arguments are a valid command line; the configuration file in it is mounted and valid.
#[test]
fn the_mounted_configuration_is_valid() {
    for name in ALL {
        let (all, main) = (applied(name), container(&applied(name)));
        let args = main.args.unwrap();
        let at = args.iter().position(|a| a == "--config").map(|i| PathBuf::from(&args[i + 1])).unwrap();
        let mounts = main.volume_mounts.unwrap();
        let mount = mounts.iter().find(|m| Path::new(&m.mount_path) == at.parent().unwrap()).expect("the directory is mounted");
        let volume = pod(&all).volumes.unwrap().into_iter().find(|v| v.name == mount.name).unwrap();
        let map = volume.config_map.unwrap().name;
        assert!(all.config_maps[&map].contains_key(at.file_name().unwrap().to_str().unwrap()), "{at:?}");

        let config = config(&all);
        assert!(config.kubernetes.is_some() && !config.interfaces.is_empty());
        let table = config.conntrack.file.expect("connections outlive the pod");
        assert_eq!(table.parent(), Some(config.state_dir.as_path()));
        let host_path = |path: &Path| {
            let mount = mounts.iter().find(|m| Path::new(&m.mount_path) == path).unwrap_or_else(|| panic!("{path:?} is mounted"));
            pod(&all).volumes.unwrap().into_iter().find(|v| v.name == mount.name).unwrap().host_path.expect("the host's").path
        };
        assert_eq!(host_path(&config.state_dir), "/run/nomagic", "where `nomagic status` looks on the node");
        assert!(host_path(&config.state_dir.join("bpf")).starts_with("/sys/fs/bpf/"));
        assert_eq!(host_path(Path::new("/host/proc/sys/net")), "/proc/sys/net");

        // The command line with the kubelet's substitutions.
        let env: BTreeMap<_, _> =
            main.env.unwrap().into_iter().map(|e| (e.name, e.value_from.unwrap().field_ref.unwrap().field_path)).collect();
        assert_eq!(env["NODE_NAME"], "spec.nodeName");
        let dir = tempfile::tempdir().unwrap();
        let args = args.iter().map(|a| a.replace("$(NODE_NAME)", "gw-1").replace(at.to_str().unwrap(), "/none/nomagic.yaml"));
        let out = std::process::Command::new(env!("CARGO_BIN_EXE_nomagic")).args(args).current_dir(&dir).output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(2), "{said}");
        assert!(said.contains("/none/nomagic.yaml: cannot be read"), "everything but the file is good: {said}");
    }
}

/// A loopback address of this process, because tests run concurrently.
fn own_address(last: u8) -> IpAddr {
    let [.., high, low] = std::process::id().to_be_bytes();
    [127, 128 | (high & 63), low.max(1), last].into()
}

#[test]
fn probes_match_the_servers() {
    for (name, last) in ALL.into_iter().zip(1..) {
        let (all, main) = (applied(name), container(&applied(name)));
        let (mut config, ip) = (config(&all), own_address(last));
        let at = config.healthz_bind_address.expect("health is answered");
        assert!(at.ip().is_unspecified(), "the kubelet asks at the node's address");
        assert!(config.metrics_bind_address.is_none_or(|m| m.ip().is_loopback()), "metrics are node-local");
        config.healthz_bind_address = Some(SocketAddr::new(ip, at.port()));
        config.metrics_bind_address = None;
        let _server = Server::start(Listeners::open(&config, &Recorder::off()).unwrap(), Recorder::off()).unwrap();
        let port = |action: &HTTPGetAction| match &action.port {
            IntOrString::Int(port) => *port,
            IntOrString::String(name) => {
                let named = main.ports.iter().flatten().find(|p| p.name.as_ref() == Some(name));
                named.unwrap_or_else(|| panic!("no port {name}")).container_port
            }
        };
        let probes = [(&main.startup_probe, "/livez", 200), (&main.liveness_probe, "/livez", 200), (&main.readiness_probe, "/readyz", 503)];
        for (probe, path, code) in probes {
            let action = probe.as_ref().unwrap().http_get.as_ref().expect("HTTP");
            assert_eq!(action.path.as_deref(), Some(path));
            let port = u16::try_from(port(action)).unwrap();
            // Without a control loop, it lives but is not ready.
            assert_eq!(plain_http::get(SocketAddr::new(ip, port), path).unwrap().status, code, "{name} {path}");
        }
        for port in main.ports.iter().flatten() {
            assert_eq!(port.host_port, Some(port.container_port), "required on the host network");
        }
    }
}

/// The permission that a request needs: `(verb, API group, resource, the object's name)`. The name counts only for `get`.
fn needs(request: &str) -> (String, String, String, String) {
    let (method, uri) = request.split_once(' ').unwrap();
    let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let (group, rest) = match parts.as_slice() {
        ["api", "v1", rest @ ..] => ("", rest),
        ["apis", group, _, rest @ ..] => (*group, rest),
        _ => panic!("{request}"),
    };
    // With nothing after the name it is the Namespace itself.
    let rest = if let ["namespaces", _, rest @ ..] = rest
        && !rest.is_empty()
    {
        rest
    } else {
        rest
    };
    let named = rest.len() > 1;
    let verb = match method {
        "GET" if query.split('&').any(|q| q == "watch=true") => "watch",
        "GET" if named => "get",
        "GET" => "list",
        "POST" => "create",
        "PUT" => "update",
        "PATCH" => "patch",
        "DELETE" => "delete",
        _ => panic!("{request}"),
    };
    let name = if verb == "get" { rest[1] } else { "" };
    (verb.into(), group.into(), rest[0].into(), name.into())
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < end, "waited for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The ClusterRole allows exactly nomagic's requests to the API server.
#[test]
fn the_role_allows_exactly_the_requests() {
    let mut asked = BTreeSet::new();
    // Newer servers support streaming lists, older ones pages only.
    for streaming in [Streaming::Served, Streaming::Invalid] {
        let server = FakeApiServer::start("127.0.0.1:0".parse().unwrap(), None).unwrap();
        server.set_streaming(streaming);
        server.put(watching::service("web")).unwrap();
        server.put_kube_system("6b1e8c3a-3a52-4b5e-9a0d-1f5b4d2c7e90").unwrap();
        let mut watched = watching::TestWatch::identified(&server);
        watched.until("the watches", |w| {
            ["Service", "EndpointSlice", "Node", "ServiceCIDR"].iter().all(|k| w.of(k).state == WatchState::Connected)
        });
        let recorder = Recorder::start(watching::by_url(&server), "gw".into()).unwrap();
        recorder.record(Event::starting("gw"));
        until("the event", || server.events().len() == 1);
        asked.extend(server.take_requests().iter().map(|r| needs(r)));
    }
    let role: ClusterRole = only(&applied("base"), "ClusterRole");
    let mut allowed = BTreeSet::new();
    for rule in role.rules.unwrap() {
        assert!(rule.non_resource_urls.is_none());
        let names = rule.resource_names.unwrap_or_else(|| vec![String::new()]);
        for group in rule.api_groups.iter().flatten() {
            for resource in rule.resources.iter().flatten() {
                let names = names.iter().flat_map(|name| rule.verbs.iter().map(move |verb| (verb, name)));
                allowed.extend(names.map(|(verb, name)| (verb.clone(), group.clone(), resource.clone(), name.clone())));
            }
        }
    }
    assert!(asked.len() >= 10, "{asked:?}");
    assert_eq!(allowed, asked);
}

/// The uninstaller has the gateways' nodes, mounts and rights, and a valid command line.
#[test]
fn the_uninstaller_fits_the_gateways() {
    let (all, base) = (applied("uninstall"), applied("base"));
    all.objects.iter().for_each(|(_, object)| kustomize::check(object).unwrap());
    let (mut spec, mut of_gateways) = (pod(&all), pod(&base));
    let (main, gateway) = (container(&all), container(&base));
    of_gateways.volumes.as_mut().unwrap().retain(|v| v.name != "config");
    assert_eq!(spec.volumes.take(), of_gateways.volumes.take());
    assert_eq!((spec.node_selector, spec.tolerations), (of_gateways.node_selector, of_gateways.tolerations));
    assert_eq!((spec.host_network, main.security_context), (Some(true), gateway.security_context));
    let mounts = gateway.volume_mounts.unwrap().into_iter().filter(|m| m.name != "config").collect::<Vec<_>>();
    assert_eq!(main.volume_mounts.unwrap(), mounts);
    let labels = |all: &BuiltObjects| only::<DaemonSet>(all, "DaemonSet").spec.unwrap().selector.match_labels;
    assert_ne!(labels(&all), labels(&base), "one does not own the other's pods");
    let args = main.args.unwrap();
    assert_eq!(args, ["cleanup", "--stay"]);
    let out = std::process::Command::new(env!("CARGO_BIN_EXE_nomagic")).args(&args).arg("--help").output().unwrap();
    assert!(out.status.success() && String::from_utf8_lossy(&out.stdout).contains("--stay"), "{out:?}");
}

/// Exactly the README's list.
#[test]
fn exactly_five_capabilities_are_granted() {
    let context = container(&applied("base")).security_context.unwrap();
    assert_eq!((context.privileged, context.allow_privilege_escalation), (Some(false), Some(false)));
    let capabilities = context.capabilities.unwrap();
    assert_eq!(capabilities.drop.unwrap(), ["ALL"]);
    let added = capabilities.add.unwrap();
    assert_eq!(added, ["NET_ADMIN", "NET_RAW", "BPF", "PERFMON", "IPC_LOCK"]);

    // The systemd unit grants the same ones, and keeps the state in the configured directory when the service stops.
    let unit = std::fs::read_to_string(dir("systemd/nomagic.service")).unwrap();
    let line = |name: &str| {
        let value = unit.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix('='));
        value.unwrap_or_else(|| panic!("no {name}")).to_owned()
    };
    let bounds: Vec<String> = line("CapabilityBoundingSet").split(' ').map(|c| c.strip_prefix("CAP_").unwrap().into()).collect();
    assert_eq!(bounds, added);
    assert_eq!([line("RuntimeDirectory"), line("RuntimeDirectoryPreserve")], ["nomagic", "yes"]);
    // It may wait for an API server for however long before it says READY.
    assert_eq!([line("Type"), line("TimeoutStartSec")], ["notify", "infinity"]);
    assert_eq!(Config::default().state_dir, Path::new("/run/nomagic"));
}
