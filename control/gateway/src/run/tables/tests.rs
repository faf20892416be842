//! Tables from changed files, pods, and filter rules that come and go.

use super::*;
use nomagic_core::conntrack::{Conntrack, Flow, Phase};
use nomagic_core::tuple::{Prefix, Proto, addr_words};
use nomagic_core::unused::Unused;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

fn manifest(port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec: {{clusterIP: 10.96.0.1, externalIPs: [203.0.113.7], ports: [{{port: {port}}}]}}\n"
    )
}

fn tables(dir: &std::path::Path) -> CompiledTables {
    std::fs::write(dir.join("m.yaml"), manifest(80)).unwrap();
    let mut tables = open(dir.join("m.yaml")).unwrap();
    tables.compile_first();
    tables
}

/// Reads the file if it has changed, or if `always`, and compiles. True if there is a new table.
fn reload(t: &mut CompiledTables, always: bool) -> bool {
    t.reload(always);
    changed(t).is_some_and(|changed| changed == Changed::Objects && t.compile())
}

/// What changes in a short while.
fn changed(t: &mut CompiledTables) -> Option<Changed> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let changed = runtime.block_on(async { tokio::time::timeout(Duration::from_millis(500), t.changed()).await });
    changed.ok().map(Result::unwrap)
}

/// The port served on the Service's cluster IP.
fn served(t: &CompiledTables) -> u16 {
    t.services().frontends().find(|(ip, ..)| *ip == IpAddr::from([10, 96, 0, 1])).unwrap().1
}

fn open(manifests: std::path::PathBuf) -> Result<CompiledTables> {
    let config = Config { manifests: Some(manifests), ..Config::default() };
    let addresses = NodeAddresses { usable: vec!["10.0.0.1".parse().unwrap()], ..NodeAddresses::default() };
    CompiledTables::open(&config, Some(Seed::configured(0)), addresses)
}

#[test]
fn a_changed_file_makes_a_new_table_and_a_missing_file_keeps_the_old_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut t = tables(dir.path());
    assert_eq!((t.services().generation, served(&t)), (1, 80));
    assert!(!reload(&mut t, false));
    std::fs::write(dir.path().join("m.yaml"), manifest(8081)).unwrap();
    assert!(reload(&mut t, false) && !reload(&mut t, false));
    assert_eq!((t.services().generation, served(&t)), (2, 8081));
    std::fs::remove_file(dir.path().join("m.yaml")).unwrap();
    assert!(!reload(&mut t, false) && !reload(&mut t, true));
    assert_eq!(served(&t), 8081);
    std::fs::write(dir.path().join("m.yaml"), manifest(8082)).unwrap();
    assert!(reload(&mut t, false));
    assert!(open(dir.path().join("none.yaml")).is_err());
}

#[test]
fn a_large_change_is_compiled_beside_the_control_loop() {
    let dir = tempfile::tempdir().unwrap();
    let mut t = tables(dir.path());
    let ports: Vec<String> = (1..=3_000).map(|port| format!("{{name: p{port}, port: {port}}}")).collect();
    let large = manifest(80).replace("{port: 80}", &ports.join(", "));
    std::fs::write(dir.path().join("m.yaml"), &large).unwrap();
    t.reload(false);
    assert_eq!(changed(&mut t), Some(Changed::Objects));
    assert!(!t.compile() && t.services().generation == 1 && !t.is_behind());
    // Meanwhile the tables in force are shown, and what changes waits.
    assert_eq!((t.ports().count(), t.targets().count()), (1, 0));
    std::fs::write(dir.path().join("m.yaml"), manifest(81)).unwrap();
    t.reload(false);
    let mut order = Vec::new();
    while order.len() < 2 {
        order.extend(changed(&mut t));
        if order.last() == Some(&Changed::Objects) {
            t.compile();
        }
    }
    order.sort_by_key(|changed| *changed == Changed::Table);
    assert_eq!(order, [Changed::Objects, Changed::Table]);
    if t.is_behind() {
        assert_eq!((t.services().generation, t.ports().count(), t.has_new_manifests()), (2, 3_000, false));
        t.compile();
    }
    if t.services().generation == 2 {
        assert_eq!(changed(&mut t), Some(Changed::Table));
    }
    assert_eq!((t.services().generation, served(&t), t.ports().count(), t.is_behind()), (3, 81, 1, false));
    assert!(t.has_new_manifests() && !t.has_new_manifests());
}

#[test]
fn pods_beyond_the_limit_are_a_problem() {
    let dir = tempfile::tempdir().unwrap();
    let mut t = tables(dir.path());
    let pod: IpAddr = "10.1.0.7".parse().unwrap();
    let pods = |left_out| Some(PodRanges { ranges: vec![Prefix::host(pod)], left_out });
    assert!(t.follow_pods(pods(3)) && !t.follow_pods(pods(3)), "unchanged pods make no new table");
    assert!(t.problems().len() == 1 && t.problems()[0].starts_with("detectLocal: "), "{:?}", t.problems());
    assert!(t.services().pod_ips.contains(&pod));
    assert!(t.follow_pods(pods(0)) && t.problems().is_empty());
    assert!(!t.follow_pods(None) && t.services().pod_ips.contains(&pod));
}

#[test]
fn rules_are_removed_after_the_last_connection() {
    let dir = tempfile::tempdir().unwrap();
    let mut t = tables(dir.path());
    let known = t.opened().clone();
    assert!(t.in_force() && !t.in_force());
    assert!(known.services.contains(&("203.0.113.7".parse().unwrap(), 80, Proto::Tcp)));
    std::fs::write(dir.path().join("m.yaml"), manifest(8081)).unwrap();
    reload(&mut t, false);

    let words: Vec<AtomicU64> = (0..Conntrack::words_needed(8)).map(|_| AtomicU64::new(0)).collect();
    let table = Conntrack::format(&words, 8, 1, [0, 0]).unwrap();
    let addr = |a: &str| addr_words(a.parse().unwrap()).0;
    let mut flow = Flow {
        proto: Proto::Tcp,
        v6: false,
        announced: false,
        client: addr("10.0.0.9"),
        client_port: 1000,
        service: addr("203.0.113.7"),
        service_port: 80,
        backend: addr("192.168.0.1"),
        backend_port: 80,
        source: addr("10.0.0.1"),
        source_port: 61_000,
        stats: 0,
        counted: None,
    };
    let (hash, phase) = (table.hash(&flow.original()), Phase::first(Proto::Tcp, 2));
    let pending = table.reserve(&mut flow, hash, phase, 0, std::iter::once(61_000)).unwrap();
    let hit = table.commit(pending).unwrap();
    assert_eq!(t.surplus(&known).len(), 1);
    assert!(Unused::of(t.surplus(&known), table).rules().is_empty(), "a connection is live");
    assert!(table.end(&hit).is_some());
    let gone = Unused::of(t.surplus(&known), table);
    let gone = gone.rules();
    assert_eq!((gone.services.len(), gone.len()), (1, 1));
    let new = t.opened().clone();
    assert_eq!((new.services.len(), new.len()), (1, 1), "only new rules");
    assert!(t.surplus(&FilterRules { services: new.services, ..FilterRules::default() }).is_empty());
    assert!(t.surplus(&known).is_empty(), "none until something changes");
    assert!(t.in_force());
    assert_eq!(t.surplus(&known).len(), 1, "rules closed before they came into force are found");
}
