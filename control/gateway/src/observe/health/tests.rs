//! The proxy's health, step by step on a simulated clock.

use k8s_openapi::api::core::v1 as k8s;
use nomagic_table::objects::node_eligible;
use serde_json::{Value, json};

use super::*;

struct Clock(Moment);

impl Clock {
    fn new() -> Clock {
        Clock(Moment { steady: Instant::now(), wall: "2026-01-02T03:04:05.5Z".parse().unwrap() })
    }

    fn advance(&mut self, seconds: u64) {
        self.0.steady += Duration::from_secs(seconds);
        self.0.wall = self.0.wall.checked_add(Duration::from_secs(seconds)).unwrap();
    }
}

fn node(name: &str) -> Option<k8s::Node> {
    let yaml = match name {
        "ok" => "metadata: {name: n}",
        "tainted" => "metadata: {name: n}\nspec: {taints: [{key: ToBeDeletedByClusterAutoscaler, effect: NoSchedule}]}",
        "tainted-other" => "metadata: {name: n}\nspec: {taints: [{key: node.kubernetes.io/unreachable, effect: NoExecute}]}",
        "deleting" => "metadata: {name: n, deletionTimestamp: '2026-01-02T03:04:05Z'}",
        "absent" => return None,
        other => panic!("{other}"),
    };
    Some(serde_saphyr::from_str(yaml).unwrap())
}

fn family(name: &Value) -> usize {
    FAMILIES.iter().position(|f| name == f).unwrap_or_else(|| panic!("{name}"))
}

/// Plays steps: `advance` (seconds), `queued`, `updated` (families), `node`, then the expected status codes of `[healthz, livez]`.
fn play(id: &str, steps: &[(Value, [u16; 2])]) {
    let (mut clock, mut health) = (Clock::new(), Health::new(Duration::from_secs(30)));
    for (number, (step, expected)) in steps.iter().enumerate() {
        clock.advance(step["advance"].as_u64().unwrap_or(0));
        step["queued"].as_array().into_iter().flatten().for_each(|f| health.queued(family(f), clock.0));
        step["updated"].as_array().into_iter().flatten().for_each(|f| health.updated(family(f), clock.0));
        if let Some(name) = step["node"].as_str() {
            health.set_node_eligible(node(name).as_ref().is_some_and(node_eligible));
        }
        let code = |good: bool| if good { 200 } else { 503 };
        assert_eq!([code(health.healthz(clock.0).0), code(health.livez(clock.0).0)], *expected, "{id}, step {number}: {step}");
    }
}

#[test]
fn unhealthy_two_sync_periods_after_the_oldest_pending_change() {
    play(
        "start",
        &[(json!({}), [200, 200]), (json!({"queued": ["IPv4"], "advance": 1}), [200, 200]), (json!({"advance": 500}), [200, 200])],
    );
    play(
        "exact limit",
        &[
            (json!({"updated": ["IPv4"]}), [200, 200]),
            (json!({"advance": 1_000}), [200, 200]),
            (json!({"queued": ["IPv4"]}), [200, 200]),
            (json!({"advance": 59}), [200, 200]),
            // A later change does not reset the age of the oldest one.
            (json!({"queued": ["IPv4"]}), [200, 200]),
            (json!({"advance": 1}), [503, 503]),
            (json!({"advance": 100}), [503, 503]),
            (json!({"updated": ["IPv4"]}), [200, 200]),
            (json!({"advance": 1_000}), [200, 200]),
        ],
    );
    play(
        "one family is enough",
        &[
            (json!({"updated": ["IPv4", "IPv6"]}), [200, 200]),
            (json!({"queued": ["IPv4", "IPv6"]}), [200, 200]),
            (json!({"advance": 30, "updated": ["IPv4"]}), [200, 200]),
            (json!({"advance": 30}), [503, 503]),
            (json!({"updated": ["IPv6"]}), [200, 200]),
        ],
    );
    play(
        "a family that was never updated",
        &[(json!({"updated": ["IPv4"], "queued": ["IPv6"]}), [200, 200]), (json!({"advance": 600}), [200, 200])],
    );
}

#[test]
fn a_node_about_to_be_deleted_fails_healthz_but_not_livez() {
    play(
        "node",
        &[
            (json!({"updated": ["IPv4"], "node": "ok"}), [200, 200]),
            (json!({"node": "tainted"}), [503, 200]),
            (json!({"node": "tainted-other"}), [200, 200]),
            (json!({"node": "deleting"}), [503, 200]),
            (json!({"node": "absent"}), [503, 200]),
            (json!({"node": "ok", "queued": ["IPv4"]}), [200, 200]),
            (json!({"node": "tainted", "advance": 60}), [503, 503]),
        ],
    );
}

#[test]
fn the_case_file_has_no_proxy_health_cases() {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/cases/kubeproxy-stateful.yaml");
    let file: Value = serde_saphyr::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    println!("proxyHealthCases: {} in the file; those above are of the same kind", file["proxyHealthCases"].as_array().map_or(0, Vec::len));
    assert_eq!(file["proxyHealthCases"], json!([]), "write a reader for them");
}

#[test]
fn bodies_equal_kube_proxys() {
    let (mut clock, mut health) = (Clock::new(), Health::new(Duration::from_secs(30)));
    health.set_node_eligible(false);
    let nothing = r#"{"lastUpdated":"0001-01-01T00:00:00Z","currentTime":"2026-01-02T03:04:05.5Z","nodeEligible":false,"healthy":true}"#;
    assert_eq!(health.healthz(clock.0), (false, nothing.into()));
    health.set_node_eligible(true);
    health.updated(0, clock.0);
    clock.advance(1);
    health.updated(1, clock.0);
    clock.advance(1);
    let good = r#"{"lastUpdated":"2026-01-02T03:04:07.5Z","currentTime":"2026-01-02T03:04:07.5Z","nodeEligible":true,"healthy":true,"status":{"IPv4":{"lastUpdated":"2026-01-02T03:04:05.5Z","healthy":true},"IPv6":{"lastUpdated":"2026-01-02T03:04:06.5Z","healthy":true}}}"#;
    assert_eq!(health.healthz(clock.0), (true, good.into()));
    health.queued(0, clock.0);
    clock.advance(60);
    let late = r#"{"lastUpdated":"2026-01-02T03:04:06.5Z","currentTime":"2026-01-02T03:05:07.5Z","healthy":false,"status":{"IPv4":{"lastUpdated":"2026-01-02T03:04:05.5Z","healthy":false},"IPv6":{"lastUpdated":"2026-01-02T03:04:06.5Z","healthy":true}}}"#;
    assert_eq!(health.livez(clock.0), (false, late.into()));
    assert!(!health.healthy(clock.0));
}
