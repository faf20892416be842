//! Kubernetes objects that come, change and go, valid ones and others: a table that follows the changes equals one compiled from scratch.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;

use nomagic::config::Config;
use nomagic_core::capture::FilterRules;
use nomagic_core::services::Action;
use nomagic_core_fuzz::input::Input;
use nomagic_table::compile::{CAPACITY, Compiled, Compiler, Demand, TARGETS_MAX};
use nomagic_table::index::Index;
use nomagic_table::objects::{Kind, Object, key, read};
use nomagic_table::problem::Origin;
use serde_json::{Value, json};

const STEPS_MAX: usize = 60;
const CONFIGS: [&str; 4] = [
    "node: {name: here, ips: [192.168.0.2, 'fd00::2']}\nclusterCIDRs: [10.1.0.0/16, 'fd00:2::/64']",
    "node: {name: here, ips: [192.168.0.2]}\nmasqueradeAll: true",
    "node: {name: there, ips: [192.168.0.3, 'fd00::3']}\nclusterCIDRs: [10.1.0.0/24]\n\
     limits: {connectionsPerSecond: 100, maxConnectionsPerClient: 7}",
    "node: {name: here, ips: [192.168.0.2, 192.168.7.7]}\nnodePortAddresses: [192.168.0.0/16]",
];

struct Run<'i> {
    input: Input<'i>,
    index: Index,
    compiler: Compiler,
    configs: Vec<Config>,
    config: usize,
    /// What fits into the table.
    capacity: Demand,
    /// The filter's rules, which follow the changes.
    rules: BTreeSet<String>,
}

/// Runs one input.
pub fn run(data: &[u8]) {
    let parsed = CONFIGS.iter().map(|text| Config::parse(text, "config.yaml".as_ref()).unwrap_or_else(|e| panic!("{text}: {e}")));
    // The capacity of a gateway, or hardly enough for two Services.
    let tight = Demand { rules: 8, frontends: 20, cluster_ips: 4, pool_bytes: 60_000 };
    let capacity = if data.len().is_multiple_of(2) { CAPACITY } else { tight };
    let mut run = Run {
        input: Input::new(data),
        index: Index::default(),
        compiler: Compiler::with_capacity(TARGETS_MAX, capacity),
        capacity,
        configs: parsed.collect(),
        config: 0,
        rules: BTreeSet::new(),
    };
    for _ in 0..STEPS_MAX {
        if run.input.is_empty() {
            break;
        }
        run.step();
    }
    run.compile(true);
}

impl Run<'_> {
    fn step(&mut self) {
        match self.input.below(16) {
            0..=11 => {
                if let Some(object) = self.object() {
                    self.index.apply(object);
                }
            }
            12 => {
                let (kind, value) = value(&mut self.input);
                if let Some(key) = key(kind, &value) {
                    self.index.delete(kind, &key);
                }
            }
            13 => {
                let count = self.input.below(4);
                let objects: Vec<Object> = (0..count).filter_map(|_| self.object()).collect();
                let (kind, kept) = (self.input.one(&Kind::ALL), self.index.services().take(1).map(|s| s.key.clone()).collect());
                self.index.replace(kind, objects, &kept);
            }
            14 => self.config = self.input.below(CONFIGS.len()),
            _ => {
                let whole = self.input.byte() < 128;
                self.compile(whole);
            }
        }
    }

    /// An object; `None`: it was refused, with a problem.
    fn object(&mut self) -> Option<Object> {
        let (kind, mut value) = value(&mut self.input);
        for _ in 0..self.input.byte().saturating_sub(160) / 32 {
            damage(&mut value, &mut self.input);
        }
        match read(kind, value, &Origin::default()) {
            Ok(object) => Some(object),
            Err(unread) => {
                crate::assert_readable(std::iter::once(&unread.problem));
                None
            }
        }
    }

    /// Compiles the changes. `whole`: compares the table with one from scratch.
    fn compile(&mut self, whole: bool) {
        let (touched, settings) = (self.index.take_touched(), self.configs[self.config].settings_for(&[], &self.index));
        let followed = self.compiler.recompile(&self.index, &settings, &touched);
        self.follow(&followed);
        self.assert_fits(&followed);
        crate::assert_readable(followed.problems.iter());
        let places: Vec<u32> = self.compiler.targets().map(|target| target.0).collect();
        assert_eq!(places.iter().collect::<BTreeSet<_>>().len(), places.len(), "the places of counters are unique");
        if whole {
            let anew = Compiler::with_capacity(TARGETS_MAX, self.capacity).compile(&self.index, &settings);
            assert_eq!(page(&followed), page(&anew));
            crate::explain(&self.index, &settings, &followed);
        }
    }

    /// The filter and the table hold no more than was promised.
    fn assert_fits(&self, compiled: &Compiled) {
        let (filter, services) = (FilterRules::of(&compiled.services), &compiled.services);
        let counts = [filter.services.len(), services.frontend_count(), filter.addresses.len()];
        let Demand { rules, frontends, cluster_ips, .. } = self.capacity;
        let most = [rules, rules + frontends, cluster_ips];
        assert!(counts.iter().zip(most).all(|(count, most)| *count as u64 <= most), "{counts:?} of {most:?}");
    }

    /// Applies a table's changes to the filter's rules: adds the opened ones, and removes others if any were closed.
    fn follow(&mut self, compiled: &Compiled) {
        let text = |rules: &FilterRules| -> BTreeSet<String> {
            let services = rules.services.iter().map(|rule| format!("{rule:?}"));
            services.chain(rules.addresses.iter().map(|rule| format!("{rule:?}"))).collect()
        };
        let all = text(&FilterRules::of(&compiled.services));
        self.rules.extend(text(&compiled.opened));
        if compiled.closed {
            self.rules.retain(|rule| all.contains(rule));
        }
        assert_eq!(self.rules, all, "the filter's rules");
    }
}

/// A valid object, of a kind; a few names, addresses and ports, so that they often conflict.
fn value(input: &mut Input<'_>) -> (Kind, Value) {
    match input.below(16) {
        0..=6 => (Kind::Service, service(input)),
        7..=13 => (Kind::EndpointSlice, slice(input)),
        14 => {
            let (name, ips, zone) =
                (input.one(&["here", "there"]), input.one(&["192.168.0.2", "192.168.0.9", "fd00::2"]), input.one(&["a", "b"]));
            let labels = json!({"topology.kubernetes.io/zone": zone});
            let addresses = json!([{"type": "InternalIP", "address": ips}]);
            let spec = json!({"podCIDRs": [input.one(&["10.1.0.0/24", "10.2.0.0/24"])]});
            (Kind::Node, json!({"metadata": {"name": name, "labels": labels}, "spec": spec, "status": {"addresses": addresses}}))
        }
        _ => {
            let cidrs = input.one(&[&["172.30.0.0/24"][..], &["172.30.0.0/16", "fd00:10::/112"], &["10.96.0.0/12"]]);
            (Kind::ServiceCidr, json!({"metadata": {"name": input.one(&["x", "y"])}, "spec": {"cidrs": cidrs}}))
        }
    }
}

fn service(input: &mut Input<'_>) -> Value {
    let mut one = |of: &[&str]| input.one(of).to_owned();
    let (name, kind) = (one(&["a", "b", "c", "d"]), one(&["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"]));
    let ips: Vec<String> = one(&["172.30.0.1", "172.30.0.2", "172.30.0.3 fd00:10::3", "fd00:10::4", "None", "", "10.96.0.1"])
        .split_whitespace()
        .map(str::to_owned)
        .collect();
    let external: Vec<String> =
        one(&["", "198.51.100.1", "198.51.100.1 172.30.0.1 192.168.0.2", "0.0.0.0 ::1"]).split_whitespace().map(str::to_owned).collect();
    let (outer, inner, affinity) = (one(&["Cluster", "Local"]), one(&["Cluster", "Local"]), one(&["None", "ClientIP"]));
    let (created, ranges) = (one(&["2020", "2021", "2022"]), one(&["", "203.0.113.0/24", "what", "::/0"]));
    let ingress = one(&["", "198.51.100.1", "198.51.100.2"]);
    let mode = one(&["VIP", "Proxy"]);
    let ports: Vec<Value> = (0..input.below(4))
        .map(|i| {
            let (proto, node_port) = (input.one(&["TCP", "UDP", "SCTP"]), input.one(&[0, 30_080, 30_081, 80]));
            let name = ["x", "y", "z"][i];
            json!({"name": name, "port": 80 + input.below(2), "protocol": proto, "nodePort": node_port})
        })
        .collect();
    json!({
        "metadata": {"name": name, "namespace": "n", "creationTimestamp": format!("{created}-01-01T00:00:00Z"), "annotations": {}, "labels": {}},
        "spec": {
            "type": kind, "clusterIPs": ips, "externalIPs": external, "externalTrafficPolicy": outer, "internalTrafficPolicy": inner,
            "sessionAffinity": affinity, "ports": ports, "healthCheckNodePort": input.one(&[0, 30_500, 30_501]),
            "loadBalancerSourceRanges": if ranges.is_empty() { json!([]) } else { json!([ranges]) },
        },
        "status": {"loadBalancer": {"ingress": if ingress.is_empty() { json!([]) } else { json!([{"ip": ingress, "ipMode": mode}]) }}},
    })
}

fn slice(input: &mut Input<'_>) -> Value {
    let (name, of) = (input.one(&["s1", "s2", "s3", "s4", "s5"]), input.one(&["a", "b", "c", "d"]));
    let v6 = input.below(4) == 0;
    let prefix = if v6 { "fd00:2::" } else { "10.1.0." };
    let endpoints: Vec<Value> = (0..input.below(5))
        .map(|_| {
            let (state, last) = (input.byte(), 1 + input.below(5));
            let conditions = json!({"ready": state & 1 == 0, "serving": state & 2 == 0, "terminating": state & 4 != 0});
            let (zone, node) = (["a", "b"][usize::from(state >> 4 & 1)], ["here", "there"][usize::from(state >> 3 & 1)]);
            let hints = json!({"forZones": [{"name": zone}]});
            json!({"addresses": [format!("{prefix}{last}")], "nodeName": node, "conditions": conditions, "hints": hints})
        })
        .collect();
    let ports = match input.below(3) {
        0 => json!([{"name": "x", "port": 8_080}]),
        1 => json!([{"name": "y", "port": 8_081}, {"name": "x", "port": 1, "protocol": "UDP"}]),
        _ => json!([{"name": "x"}, {"port": 9}]),
    };
    json!({
        "metadata": {"name": name, "namespace": "n", "labels": {"kubernetes.io/service-name": of}, "annotations": {}},
        "addressType": if v6 { "IPv6" } else { "IPv4" }, "ports": ports, "endpoints": endpoints,
    })
}

/// Replaces some part of an object by something else.
fn damage(value: &mut Value, input: &mut Input<'_>) {
    let mut at = value;
    loop {
        let n = usize::from(input.byte());
        let len = match &*at {
            Value::Object(fields) => fields.len(),
            Value::Array(items) => items.len(),
            _ => 0,
        };
        if len == 0 || n >= 240 {
            break;
        }
        at = match at {
            Value::Object(fields) => fields.values_mut().nth(n % len).expect("below its length"),
            Value::Array(items) => &mut items[n % len],
            _ => break,
        };
    }
    let text = |bytes: &[u8]| Value::from(String::from_utf8_lossy(bytes).into_owned());
    *at = match input.below(18) {
        0 => Value::Null,
        1 => json!(true),
        2 => json!(-1),
        3 => json!(70_000),
        4 => json!(2_147_483_648u64),
        5 => json!(1.5),
        6 => json!([]),
        7 => json!({}),
        8 => json!([null, 7, {"a": "b"}]),
        9 => text(b""),
        10 => text(b"\x1b[31m\n\0"),
        11 => Value::from("x".repeat(300)),
        12 => text(input.one(&[
            &b"0.0.0.0"[..],
            b"::",
            b"::ffff:10.0.0.1",
            b"127.0.0.1",
            b"224.0.0.1",
            b"010.1.1.1",
            b"fe80::1%eth0",
            b"10.0.0.0/33",
        ])),
        13 => Value::from(vec!["172.30.0.1"; 40]),
        14 => json!(i64::MIN),
        15 => {
            json!({
                "service.kubernetes.io/topology-mode": "Auto", "endpoints.kubernetes.io/last-change-trigger-time": "2026-13-01T99:00:00Z",
                "nomagic.io/connections-per-second": "50", "nomagic.io/max-connections-per-client": "many",
            })
        }
        16 => json!(u64::from(input.u16())),
        _ => {
            let len = input.below(40);
            text(input.bytes(len))
        }
    };
}

/// The contents of a table as text, without its generation and the places of counters.
fn page(compiled: &Compiled) -> String {
    let services = &compiled.services;
    let action = |action: &Action| match action {
        Action::Forward { pool, snat } => format!("{:?} {snat}", pool.backends.iter().map(|b| (b.addr, b.port)).collect::<Vec<_>>()),
        other => format!("{other:?}"),
    };
    let frontends = services.frontends().map(|(ip, port, proto, frontend)| {
        let actions = frontend.actions().map(action);
        format!("{proto} {ip} {port} {:?} {:?} {:?} {actions:?}", frontend.port, frontend.kind, frontend.source_ranges)
    });
    let addresses = services.cluster_ips.iter().map(|entry| format!("{entry:?}"));
    let problems = compiled.problems.iter().map(ToString::to_string);
    let mut lines: Vec<String> = frontends.chain(addresses).chain(problems).collect();
    lines.sort();
    let mut out = lines.join("\n");
    let [nodes, pods] = [&services.node_ips, &services.pod_ips].map(|ips| ips.iter().collect::<BTreeSet<&IpAddr>>());
    let checks = (&compiled.health_checks, compiled.no_local_endpoints);
    let _ = write!(out, "\n{} {checks:?} {:?} {:?}\n{nodes:?} {pods:?}", services.ports, services.snat, services.pod_cidrs);
    out
}
