//! `nomagic report`: its archive, read by tar. Needs root.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use nomagic_api::Status;
use nomagic_api::services::Service;
use nomagic_testbed::rig::{CLIENT_V4, PODS};
use serde_json::Value;

use crate::common::*;

/// Writes a report in the gateway's namespace, and unpacks it.
fn report(g: &Gateway, name: &str, args: &[&str]) -> tempfile::TempDir {
    let file = g.dir.path().join(name);
    let file = file.to_str().unwrap();
    let state = g.state_dir();
    let args = [&["report", "--state-dir", state.to_str().unwrap(), "--out", file][..], args].concat();
    // With the namespace's own /sys.
    let out = Command::new("ip").args(["netns", "exec", g.scene.gw.name(), NOMAGIC]).args(args).output().unwrap();
    assert!(out.status.success(), "{out:?}");
    let said = String::from_utf8(out.stdout).unwrap();
    assert!(said.starts_with(&format!("wrote {file}")), "{said}");
    unpacked(Path::new(file))
}

fn unpacked(file: &Path) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let out = Command::new("tar").arg("-xf").arg(file).arg("-C").arg(dir.path()).output().unwrap();
    assert!(out.status.success(), "{out:?}");
    assert!(std::fs::metadata(file).unwrap().len() < 33 << 20);
    dir
}

fn part(dir: &tempfile::TempDir, name: &str) -> String {
    let path = dir.path().join("nomagic-report").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}\n{}", path.display(), manifest(dir)))
}

fn json(dir: &tempfile::TempDir, name: &str) -> Value {
    serde_json::from_str(&part(dir, name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn manifest(dir: &tempfile::TempDir) -> String {
    std::fs::read_to_string(dir.path().join("nomagic-report/manifest.txt")).unwrap()
}

/// Why a part is missing.
fn error_of(dir: &tempfile::TempDir, name: &str) -> Option<String> {
    let manifest = json(dir, "manifest.json");
    let part = manifest["parts"].as_array().unwrap().iter().find(|part| part["name"] == name).unwrap().clone();
    part["error"].as_str().map(str::to_owned)
}

#[test]
fn a_report_has_what_a_bug_report_needs() {
    let g = Gateway::start("report", "", &nginx(&[0, 1, 2]));
    let to = "10.109.35.24:80".parse().unwrap();
    let (stream, _) = g.scene.client.run(move || keep_alive(to)).unwrap();
    let dir = report(&g, "report.tar", &[]);

    let status: Status = serde_json::from_str(&part(&dir, "status.json")).unwrap();
    assert!(status.ready && status.conntrack.live == 1, "{:?}", status.not_ready);
    let services: Vec<Service> = part(&dir, "services.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(services.iter().map(Service::key).collect::<Vec<_>>(), ["default/nginx"]);
    let flows = json(&dir, "flows.json");
    assert_eq!((&flows["by_service"]["groups"]["default/nginx:http"], &flows["by_state"]["groups"]["ESTABLISHED"]), (&1.into(), &1.into()));
    assert_eq!(part(&dir, "problems.txt"), "none\n");
    assert_eq!(json(&dir, "log-level.json")["level"], "info");
    assert!(json(&dir, "deny.json").is_object());
    let version = json(&dir, "version.json");
    assert!(
        version["version"] == env!("CARGO_PKG_VERSION") && version["executable_sha256"].as_str().is_some_and(|digest| digest.len() == 64)
    );

    // The configuration of the process that runs, without the seed.
    let configuration = json(&dir, "configuration.json");
    assert_eq!(configuration["fields"]["interfaces"], serde_json::json!(["cl0", "pods0"]));
    assert_eq!(configuration["fields"]["hash"]["seed"], "(left out of the report)");
    let process = json(&dir, "process.json");
    assert!(process["pid"] == g.process.pid() && process["threads"].as_array().is_some_and(|threads| threads.len() > 1), "{process}");

    let kernel = json(&dir, "kernel.json");
    assert!(kernel["sysctls"]["kernel/osrelease"].is_string() && kernel["sysctls"]["net/ipv4/conf/cl0/rp_filter"].is_string());
    let interfaces = json(&dir, "interfaces.json");
    assert!(interfaces["cl0"]["mtu"].is_string() && interfaces["cl0"]["receive_queues"].as_u64() > Some(0), "{interfaces}");
    assert!(json(&dir, "preflight.json")["findings"].as_array().is_some_and(|findings| findings.iter().any(|f| f["interface"] == "pods0")));
    let objects = json(&dir, "pins.json")["objects"].clone();
    let maps: Vec<&Value> = objects.as_object().unwrap().values().filter(|object| object["kind"] == "map").collect();
    assert!(!maps.is_empty() && maps.iter().all(|map| map["facts"]["max_entries"].is_string()), "{objects}");
    assert!(objects["if/cl0/link"]["kind"] == "link", "{objects}");
    for (name, words) in
        [("ip-route-v4.json", "192.168."), ("ip-address.json", "10.0.0.1"), ("ip-rule-v4.json", "priority"), ("ip-link.json", "pods0")]
    {
        assert!(part(&dir, name).contains(words), "{name}: {}", part(&dir, name));
    }
    assert!(part(&dir, "ip-neighbour.json").contains(&CLIENT_V4.to_string()));
    let text = manifest(&dir);
    assert!(text.contains("status.json") && text.contains("the real ones"), "{text}");
    drop(stream);

    // Nothing is overwritten, and the file is for its owner alone.
    let file = g.dir.path().join("report.tar");
    let before = std::fs::read(&file).unwrap();
    let out = Command::new(NOMAGIC).arg("report").arg("--out").arg(&file).output().unwrap();
    assert!(out.status.code() == Some(1) && String::from_utf8_lossy(&out.stderr).contains("exists: name another file"), "{out:?}");
    assert_eq!(std::fs::read(&file).unwrap(), before);
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn addresses_are_replaced_alike_everywhere() {
    let g = Gateway::start("reportaddr", "", &nginx(&[0, 1, 2]));
    assert_eq!(g.http(&g.scene.client, "10.109.35.24:80", 20).failed(), 0);
    let dir = report(&g, "report.tar", &["--replace-addresses"]);
    let links: Value = serde_json::from_str(&g.scene.gw.exec("ip", &["-j", "link"]).unwrap()).unwrap();
    let macs = links.as_array().unwrap().iter().filter_map(|link| link["address"].as_str()).filter(|mac| *mac != "00:00:00:00:00:00");
    let mut secrets: Vec<String> = macs.map(str::to_owned).collect();
    assert!(!secrets.is_empty());
    secrets.extend(["10.109.35.24", "fd00:10:109::24", "10.0.0.1", "fd00:a::1", &CLIENT_V4.to_string()].map(str::to_owned));
    secrets.extend(PODS.iter().flat_map(|pod| [pod.v4.to_string(), pod.v6.to_string()]));
    for entry in std::fs::read_dir(dir.path().join("nomagic-report")).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        for secret in &secrets {
            let at = text.match_indices(secret.as_str()).find(|(at, _)| {
                let next = text[at + secret.len()..].chars().next();
                // Not the beginning of another number.
                next.is_none_or(|c| !c.is_ascii_hexdigit())
            });
            assert!(at.is_none(), "{secret} in {}: {text}", path.display());
        }
    }
    // The same endpoints in two parts have the same stand-ins.
    let status: Status = serde_json::from_str(&part(&dir, "status.json")).unwrap();
    let of_status: BTreeSet<String> = status.targets.iter().map(|target| target.backend.clone()).collect();
    let services: Vec<Service> = part(&dir, "services.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let backends = services.iter().flat_map(|s| &s.ports).flat_map(|port| &port.backends);
    let of_services: BTreeSet<String> = backends.map(|backend| backend.endpoint.clone()).collect();
    assert_eq!(of_services, of_status);
    assert_eq!(of_services.len(), 12, "three pods, two families, two ports");
    assert!(of_services.iter().all(|endpoint| endpoint.starts_with("198.1") || endpoint.starts_with("[2001:db8:")), "{of_services:?}");
    assert!(part(&dir, "ip-address.json").contains("127.0.0.1"));
    assert!(manifest(&dir).contains("are replaced"));
}

#[test]
fn a_report_without_a_gateway_has_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("report.tar");
    let mut command = Command::new(NOMAGIC);
    let config = dir.path().join("broken.yaml");
    std::fs::write(&config, "hash: {seed: 4711\n").unwrap();
    command.arg("report").arg("--out").arg(&file).arg("--config").arg(&config).arg("--state-dir").arg(dir.path());
    let out = command.output().unwrap();
    assert!(out.status.success(), "{out:?}");
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(said.contains("status.json: no nomagic answers on"), "{said}");
    let report = unpacked(&file);
    assert!(error_of(&report, "status.json").is_some_and(|e| e.contains("is it running?")));
    assert!(error_of(&report, "configuration.json").is_some_and(|e| e.contains("no valid YAML") && !e.contains("4711")));
    assert!(error_of(&report, "pins.json").is_some());
    assert!(!report.path().join("nomagic-report/status.json").exists());
    assert!(json(&report, "kernel.json")["sysctls"]["kernel/osrelease"].is_string());
    assert!(json(&report, "interfaces.json")["lo"]["mtu"].is_string());
}
