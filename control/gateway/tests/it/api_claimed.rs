//! A Service that claims the API server's own address and port, in network namespaces. nomagic routes the node's packets to such an address
//! into its internal port, but not those of its own connections. Needs root.

use std::time::Duration;

use nomagic_fake_apiserver::{FakeApiServer, Resource};
use nomagic_testbed::rig::{GATEWAY_V4, Scene};
use serde_json::json;

use crate::common::api_gateway::{answered, service, slices};
use crate::common::*;

/// The client's namespace has the API server.
const SERVER: &str = "10.0.0.2";
const LONG: Duration = Duration::from_secs(20);

/// What an earlier process may leave: the server's address leads nowhere.
fn leave_routes(scene: &Scene) {
    for words in
        [format!("route add unreachable {SERVER} table 28269 proto 78"), "rule add pref 110 iif lo lookup 28269 protocol 78".to_owned()]
    {
        scene.gw.ip(&words).unwrap();
    }
    assert!(scene.gw.ip(&format!("route get {SERVER}")).is_err(), "the address is unreachable");
}

fn put_slices(api: &FakeApiServer, service: &str, pod: usize) {
    for slice in slices(service, &[pod]) {
        api.put(slice).unwrap();
    }
}

/// The number of Services that nomagic knows.
fn services(g: &Gateway) -> usize {
    g.status().api.expect("a watch").kinds.iter().find(|k| k.kind == "Service").expect("Services").objects
}

#[test]
fn no_service_and_no_left_over_route_cuts_off_the_api_server() {
    let scene = Scene::new("claimed").expect("a scene (needs root)");
    let mut api = scene.client.run(|| FakeApiServer::start(format!("{SERVER}:0").parse().unwrap(), None)).unwrap().unwrap();
    api.set_bookmark_interval(Duration::from_secs(1));
    let port: u16 = api.url().rsplit(':').next().unwrap().parse().unwrap();
    leave_routes(&scene);
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), "clusterCIDRs: [192.168.0.0/16]")
        .replace("manifests: manifests.yaml", &format!("kubernetes: {{url: '{}'}}", api.url()));
    let mut g = Gateway::begin(scene, dir, &config);
    g.wait_until_ready();

    let ports = json!([{"name": "http", "port": port, "targetPort": 80}]);
    api.put(service("evil", json!({"clusterIP": "10.109.66.66", "externalIPs": [SERVER], "ports": ports}))).unwrap();
    put_slices(&api, "evil", 0);
    let claimed = |g: &Gateway| {
        let table = g.scene.gw.ip("route show table 28269").unwrap_or_default();
        table.contains(&format!("{SERVER} ")) || g.status().services.problems.iter().any(|p| p.contains("evil"))
    };
    wait_for("the claim to be in force or refused", LONG, || claimed(&g));

    // All connections to the server are new ones.
    api.stop();
    g.scene.client.run(|| api.resume()).unwrap().unwrap();
    api.put(service("late", json!({"clusterIP": "10.109.7.7", "ports": [{"name": "http", "port": 80}]}))).unwrap();
    put_slices(&api, "late", 1);
    answered(&g, false, "10.109.7.7:80");

    g.kill();
    g.restart();
    assert_eq!(services(&g), 2, "{:#?}", g.status());
    assert!(api.delete(Resource::Services, "default", "evil"));
    wait_for("the deletion to be heard", LONG, || services(&g) == 1);
    wait_for("the claim to be gone", LONG, || !claimed(&g));
    let rules = |g: &Gateway| g.scene.gw.ip("rule show").unwrap();
    assert!(rules(&g).contains("fwmark 0x4e"), "{}", rules(&g));
    assert!(g.scene.gw.ip(&format!("route get {SERVER} mark 78")).unwrap().contains(&GATEWAY_V4.to_string()));
    g.kill();
    g.scene.gw.exec(NOMAGIC, &["cleanup", "--state-dir", &g.state_dir().to_string_lossy()]).unwrap();
    assert!(!rules(&g).contains("fwmark"), "{}", rules(&g));
}
