//! `nomagic services`: what a running gateway knows of its Services. Needs root.

use std::process::{Command, Output};

use nomagic_api::services::{AddressState, SERVICE_SCHEMA, Service, ServiceState};
use nomagic_testbed::rig::PODS;

use crate::common::*;

fn services(g: &Gateway, args: &[&str]) -> Output {
    Command::new(NOMAGIC).arg("services").arg("--state-dir").arg(g.state_dir()).args(args).output().unwrap()
}

fn text(g: &Gateway, args: &[&str]) -> String {
    let out = services(g, args);
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

fn parsed(g: &Gateway, args: &[&str]) -> Vec<Service> {
    let args = [args, &["--format", "json"]].concat();
    text(g, &args).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A healthy Service, one without endpoints, one whose slice has another port name, and one that a tenant made to confuse terminals.
fn objects() -> String {
    let cluster =
        |last: u8| format!("clusterIP: 10.109.35.{last}\nclusterIPs: [10.109.35.{last}, 'fd00:10:109::{last}']\nipFamilies: [IPv4, IPv6]");
    let (empty, near) = (cluster(40), cluster(41));
    let svc = |name, spec, pods| Svc { name, spec, status: "", ports: &[("http", "TCP", 80, 0)], pods };
    let near = manifests(&[svc("near", &near, &[0])]).replacen("name: http", "name: web", 1);
    let odd = "---\napiVersion: v1\nkind: Service\nmetadata: {name: odd, namespace: other}\nspec:\n  clusterIP: 10.109.35.42\n  \
               ports: [{name: \"a\\e[31mb\", port: 80}]\n";
    nginx(&[0, 1]) + &manifests(&[svc("empty", &empty, &[])]) + &near + odd
}

#[test]
fn services_of_a_running_gateway() {
    let g = Gateway::start("services", "", &objects());
    let all = parsed(&g, &[]);
    let states: Vec<(String, ServiceState)> = all.iter().map(|s| (s.key(), s.state)).collect();
    let expected = [
        ("default/empty", ServiceState::NoEndpoints),
        ("default/near", ServiceState::NoEndpoints),
        ("default/nginx", ServiceState::Served),
        ("other/odd", ServiceState::NoEndpoints),
    ];
    assert_eq!(states, expected.map(|(name, state)| (name.to_owned(), state)));
    let nginx = &all[2];
    assert_eq!((nginx.schema, nginx.ports.len(), nginx.near_misses.len(), nginx.problems.len()), (SERVICE_SCHEMA, 2, 0, 0));
    let http = &nginx.ports[0];
    let addresses: Vec<String> = http.addresses.iter().map(|a| format!("{} {} {}", a.kind, a.ip, a.port)).collect();
    assert_eq!(addresses, ["clusterIP 10.109.35.24 80", "clusterIP fd00:10:109::24 80"]);
    assert!(http.addresses.iter().all(|a| a.state == AddressState::Served));
    let pods = [0, 1].map(|i| format!("{}:80", PODS[i].v4));
    assert!(pods.iter().all(|pod| http.backends.iter().any(|b| b.endpoint == *pod && b.left_out.is_none())), "{http:#?}");
    assert_eq!(http.backends.len(), 4, "of both families");

    let troubled: Vec<String> = parsed(&g, &["--problems"]).iter().map(Service::key).collect();
    assert_eq!(troubled, ["default/empty", "default/near", "other/odd"]);
    let others: Vec<String> = parsed(&g, &["--namespace", "other"]).iter().map(Service::key).collect();
    assert_eq!(others, ["other/odd"]);
    let near = parsed(&g, &["--service", "default/near"]);
    assert!(
        near.len() == 1 && near[0].near_misses.iter().any(|m| m.contains("a slice's port must have the Service port's name")),
        "{near:#?}"
    );

    let page = text(&g, &[]);
    assert!(page.contains("default/nginx: served  ClusterIP\n  http 80/TCP\n    clusterIP      10.109.35.24:80\n"), "{page}");
    assert!(page.ends_with("4 Services: 1 served, 3 no endpoints\n"), "{page}");
    assert!(page.contains(r"a\u{1b}[31mb 80/TCP") && !page.contains('\u{1b}'), "{page}");

    for (args, code, words) in [
        (&["--service", "default/ngnix"][..], 1, "knows no Service default/ngnix (there is default/nginx)"),
        (&["--service", "nginx"], 2, "not a namespace and a name"),
        (&["--service", "a/b", "--namespace", "a"], 2, "cannot be used with"),
    ] {
        let out = services(&g, args);
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.code() == Some(code) && said.contains(words), "{args:?}: {said}");
    }
    let elsewhere = tempfile::tempdir().unwrap();
    let out = Command::new(NOMAGIC).arg("services").arg("--state-dir").arg(elsewhere.path()).output().unwrap();
    assert!(out.status.code() == Some(1) && String::from_utf8_lossy(&out.stderr).contains("is it running?"), "{out:?}");
}

/// Thousands of Services come in many answers, and the gateway answers others meanwhile.
#[test]
fn thousands_of_services_come_in_pages() {
    const SERVICES: usize = 3_000;
    let one = |i: usize| {
        let (high, low) = (i / 250, i % 250 + 1);
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{i:04}, namespace: many}}\nspec: {{clusterIP: 10.100.{high}.{low}, ports: [{{port: 80}}]}}\n"
        )
    };
    let g = Gateway::start("manyservices", "", &(nginx(&[0]) + &(0..SERVICES).map(one).collect::<String>()));
    let all = parsed(&g, &["--namespace", "many"]);
    let names: std::collections::BTreeSet<String> = all.iter().map(Service::key).collect();
    assert_eq!((all.len(), names.len()), (SERVICES, SERVICES));
    let start = std::time::Instant::now();
    assert_eq!(parsed(&g, &["--service", "many/s2999"])[0].state, ServiceState::NoEndpoints);
    assert!(start.elapsed() < std::time::Duration::from_secs(2), "{:?}", start.elapsed());
    assert!(text(&g, &["--problems"]).ends_with("3000 Services: 3000 no endpoints\n"));
}
