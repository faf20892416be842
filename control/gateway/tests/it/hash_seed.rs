//! The seed of the hash in running gateways: where it comes from, and that gateways with the same one choose alike. Needs root.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use nomagic::watch::WatchTarget;
use nomagic_api::SeedSource;
use nomagic_api::explain::Answer;
use nomagic_fake_apiserver::{FakeApiServer, Resource};
use nomagic_testbed::rig::{Process, Scene};

use crate::common::watching::TestWatch;
use crate::common::*;

const UID: &str = "6b1e8c3a-3a52-4b5e-9a0d-1f5b4d2c7e90";
/// Source ports asked about: different seeds choose alike for all of them with a probability of 3^-64.
const FLOWS: u16 = 64;

/// The endpoints that the running gateway chooses for the client's source ports.
fn choices(g: &Gateway) -> Vec<String> {
    let flows: Vec<String> = (0..FLOWS).map(|i| format!("tcp 10.0.0.2:{} -> 10.109.35.24:80", 20_000 + i)).collect();
    let mut command = Command::new(NOMAGIC);
    command.args(["explain", "--running", "--format", "json", "--state-dir"]).arg(g.state_dir()).args(flows);
    let out = command.output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let answers = out.stdout.split(|b| *b == b'\n').filter(|l| !l.is_empty()).map(|l| serde_json::from_slice::<Answer>(l).unwrap());
    let chosen: Vec<String> = answers.map(|a| a.chosen.filter(|_| a.certain).expect("a gateway knows its seed")).collect();
    assert_eq!(chosen.len(), usize::from(FLOWS));
    chosen
}

fn source(g: &Gateway) -> SeedSource {
    g.status().hash_seed_source.expect("a chosen seed")
}

/// Ends the gateway and starts it again.
fn again(g: &mut Gateway) {
    assert!(g.process.terminate(Duration::from_secs(10)).unwrap().success());
    g.restart();
}

fn stored(g: &Gateway) -> PathBuf {
    g.state_dir().join("hash-seed")
}

/// Waits for a line of the log.
fn logged(process: &Process, words: &str) {
    wait_for(words, Duration::from_secs(5), || process.output().contains(words));
}

/// A gateway without a configured seed, with objects of an API server.
fn with_api(tag: &str, prepare: impl FnOnce(&FakeApiServer)) -> (Gateway, FakeApiServer) {
    api_gateway::start(tag, "# hash: the default", |api| {
        api.put_yaml(&nginx(&[0, 1, 2])).unwrap();
        prepare(api);
    })
}

/// Gives the cluster its UID.
fn with_uid(api: &FakeApiServer) {
    api.put_kube_system(UID).unwrap();
}

/// The requests for Namespaces so far.
fn asked(api: &FakeApiServer) -> Vec<String> {
    api.take_requests().into_iter().filter(|r| r.contains("/namespaces")).collect()
}

#[test]
fn the_uid_is_read_once_beside_the_first_list() {
    let mut api = watching::server();
    with_uid(&api);
    api.put(watching::service("a")).unwrap();
    let mut w = TestWatch::identified(&api);
    assert_eq!((w.feed.cluster_uid(), asked(&api)), (Some(Ok(UID)), vec!["GET /api/v1/namespaces/kube-system".to_owned()]));
    // Its version is lost.
    api.stop();
    api.put(watching::service("b")).unwrap();
    api.compact();
    api.resume().unwrap();
    w.until("another list", |w| w.of("Service").lists > 1);
    assert!(asked(&api).is_empty());
    assert!(w.feed.complete());
    let w = TestWatch::listed(&api);
    assert_eq!((w.feed.cluster_uid(), asked(&api)), (None, vec![]), "only on request");
}

#[test]
fn a_late_uid_is_waited_for_and_an_absent_server_for_as_long_as_the_lists() {
    let api = watching::server();
    api.put_kube_system(UID).unwrap();
    api.set_unanswered(&[Resource::Namespaces]);
    let mut w = TestWatch::start(WatchTarget { read_cluster_uid: true, ..watching::target(watching::by_url(&api)) });
    w.until("the lists", |w| ["Service", "EndpointSlice", "Node", "ServiceCIDR"].iter().all(|kind| w.of(kind).listed));
    w.for_a_while(Duration::from_millis(300));
    assert!(!w.feed.complete() && w.feed.missing().contains("the Namespace kube-system"), "{}", w.feed.missing());
    api.set_unanswered(&[]);
    w.until("the UID", |w| w.feed.complete());
    assert_eq!(w.feed.cluster_uid(), Some(Ok(UID)));

    let mut api = watching::server();
    api.put_kube_system(UID).unwrap();
    api.stop();
    let mut w = TestWatch::start(WatchTarget { read_cluster_uid: true, ..watching::target(watching::by_url(&api)) });
    w.for_a_while(Duration::from_millis(3_000));
    assert!(!w.feed.complete() && w.of("Service").faults > 2);
    api.resume().unwrap();
    w.until("the lists", |w| w.feed.complete());
    assert_eq!(w.feed.cluster_uid(), Some(Ok(UID)), "no refusal of the time before the lists counts");
}

#[test]
fn two_gateways_with_one_file_choose_alike() {
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), "correct horse battery staple\n").unwrap();
    let hash = format!("hash: {{seedFile: '{}'}}", secret.path().display());
    let manifests = nginx(&[0, 1, 2]);
    let mut one = Gateway::start("seedone", &hash, &manifests);
    let two = Gateway::start("seedtwo", &hash, &manifests);
    let chosen = choices(&one);
    assert_eq!((source(&one), source(&two), choices(&two) == chosen), (SeedSource::File, SeedSource::File, true));
    assert!(!stored(&one).exists(), "a configured seed is not stored");

    std::fs::write(secret.path(), "another secret of more than 16 bytes").unwrap();
    assert!(choices(&one) == chosen, "the file is read at start only");
    again(&mut one);
    assert!(choices(&one) != chosen);
    let report = one.http(&one.scene.client, "10.109.35.24:80", 20);
    assert_eq!(report.answered(), 20, "{report:?}");
}

#[test]
fn a_restart_keeps_the_random_seed() {
    let mut g = Gateway::start("seedrandom", "# hash: the default", &nginx(&[0, 1, 2]));
    assert_eq!(source(&g), SeedSource::Random);
    logged(&g.process, "hash seed: random");
    let (chosen, mode) = (choices(&g), |g: &Gateway| std::fs::metadata(stored(g)).unwrap().permissions().mode() & 0o7777);
    let digits = std::fs::read_to_string(stored(&g)).unwrap();
    let value = u64::from_str_radix(digits.trim(), 16).unwrap();
    assert_eq!((mode(&g), digits.len()), (0o600, 17));
    let page = nomagic_testbed::rig::run(NOMAGIC, &["status", "--state-dir", &g.state_dir().to_string_lossy()]).unwrap();
    assert!(page.lines().any(|l| l.starts_with("hash seed: random")), "{page}");
    for text in [page, g.process.output(), serde_json::to_string(&g.status()).unwrap()] {
        assert!(!text.contains(digits.trim()) && !text.contains(&value.to_string()), "the seed is secret: {text}");
    }
    again(&mut g);
    assert!(choices(&g) == chosen && source(&g) == SeedSource::Random);

    std::fs::write(stored(&g), "damaged").unwrap();
    again(&mut g);
    logged(&g.process, "a new hash seed is chosen");
    let other = choices(&g);
    assert!(other != chosen && mode(&g) == 0o600);
    again(&mut g);
    assert!(choices(&g) == other, "the new one is kept");

    assert!(g.process.terminate(Duration::from_secs(10)).unwrap().success());
    let said = g.scene.gw.exec(NOMAGIC, &["cleanup", "--state-dir", &g.state_dir().to_string_lossy()]).unwrap();
    assert!(said.contains("the hash seed") && !stored(&g).exists(), "{said}");
}

#[test]
fn an_explicit_zero_is_the_seed() {
    let g = Gateway::start("seedzero", "hash: {seed: 0}", &nginx(&[0, 1, 2]));
    assert_eq!(source(&g), SeedSource::Configured);
    let flow = "tcp 10.0.0.2:20000 -> 10.109.35.24:80";
    let out = Command::new(NOMAGIC).args(["explain", "--format", "json", "--config"]).arg(g.config_path()).arg(flow).output().unwrap();
    let answer: Answer = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!((answer.chosen.as_ref(), answer.certain), (choices(&g).first(), true), "the files tell the choice");
    assert!(!stored(&g).exists());
}

#[test]
fn gateways_of_one_cluster_choose_alike() {
    let (mut one, api) = with_api("seedcl1", with_uid);
    assert_eq!(source(&one), SeedSource::Cluster);
    let chosen = choices(&one);
    let (two, _api) = with_api("seedcl2", with_uid);
    assert!(choices(&two) == chosen && !stored(&two).exists());
    drop(two);
    // The UID is read at start only.
    api.put_kube_system("00000000-3a52-4b5e-9a0d-1f5b4d2c7e90").unwrap();
    assert!(choices(&one) == chosen);
    again(&mut one);
    assert!(choices(&one) != chosen && source(&one) == SeedSource::Cluster);
}

#[test]
fn a_refused_namespace_leaves_a_random_seed() {
    let (mut g, api) = with_api("seed403", |api| {
        api.put_kube_system(UID).unwrap();
        api.set_forbidden(&[Resource::Namespaces]);
    });
    assert_eq!(source(&g), SeedSource::Random);
    logged(&g.process, "RBAC: nomagic needs get on the Namespace kube-system");
    let chosen = choices(&g);
    again(&mut g);
    assert!(choices(&g) == chosen, "it is kept");
    api.set_forbidden(&[]);
    assert!(api.delete(Resource::Namespaces, "", "kube-system"));
    again(&mut g);
    logged(&g.process, "responded with 404");
    assert!(choices(&g) == chosen && source(&g) == SeedSource::Random);
}

#[test]
fn a_namespace_without_an_answer_does_not_hold_up_the_start() {
    let scene = Scene::new("seedhang").expect("a scene (needs root)");
    let api = scene.gw.run(|| FakeApiServer::start("127.0.0.1:0".parse().unwrap(), None)).unwrap().unwrap();
    api.put_yaml(&nginx(&[0, 1, 2])).unwrap();
    api.set_unanswered(&[Resource::Namespaces]);
    let dir = tempfile::tempdir().unwrap();
    let config =
        config(dir.path(), "# hash: the default").replace("manifests: manifests.yaml", &format!("kubernetes: {{url: '{}'}}", api.url()));
    let start = Instant::now();
    let mut g = Gateway::begin(scene, dir, &config);
    g.wait_until_ready();
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    assert_eq!(source(&g), SeedSource::Random);
    logged(&g.process, "no data from the API server for 2s");
}

#[test]
fn an_unusable_file_is_a_configuration_error() {
    let scene = Scene::new("seedbad").expect("a scene (needs root)");
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("manifests.yaml"), nginx(&[0])).unwrap();
    for (content, words) in [(None, "cannot be read"), (Some("short"), "at least 16 are required")] {
        if let Some(content) = content {
            std::fs::write(dir.path().join("secret"), content).unwrap();
        }
        let path = dir.path().join("nomagic.yaml");
        std::fs::write(&path, config(dir.path(), "hash: {seedFile: secret}")).unwrap();
        let mut process = scene.gw.spawn(NOMAGIC, &["run", "--config", &path.to_string_lossy()]).unwrap();
        assert_eq!(process.wait(Duration::from_secs(20)).unwrap().code(), Some(2));
        logged(&process, "nomagic.yaml: hash.seedFile: ");
        logged(&process, words);
    }
}
