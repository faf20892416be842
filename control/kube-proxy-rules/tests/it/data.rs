//! The recorded rules: dumps of kube-proxy v1.36.2 on nftables 1.0.6 and iptables 1.8.9.
//!
//! `lines.txt` has each line once, and `dumps.tsv` says which lines a dump consists of. A line of an nftables dump is an element of its
//! JSON, without `handle`, which differs from run to run. Nothing else is left out.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use nomagic_api::explain::Verdict;
use nomagic_core::tuple::{Proto, Tuple};
use nomagic_kube_proxy_rules::{Expected, Node, Origin, Packet, Ruleset};
use serde_json::Value;

/// A way in which kube-proxy writes its rules.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    Nftables,
    Iptables,
}

impl Mode {
    pub fn label(self) -> &'static str {
        match self {
            Mode::Nftables => "nftables",
            Mode::Iptables => "iptables",
        }
    }
}

/// All dumps by file name.
pub struct Dumps(BTreeMap<String, String>);

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

impl Dumps {
    pub fn load() -> Dumps {
        let lines = std::fs::read_to_string(file("lines.txt")).unwrap();
        let lines: Vec<&str> = lines.lines().collect();
        let index = std::fs::read_to_string(file("dumps.tsv")).unwrap();
        let dump = |entry: &str| {
            let (name, places) = entry.split_once('\t').unwrap();
            let mut of_dump: Vec<&str> = Vec::new();
            for range in places.split(' ') {
                let (first, last) = range.split_once('-').unwrap_or((range, range));
                of_dump.extend(&lines[first.parse().unwrap()..=last.parse().unwrap()]);
            }
            let text = match name.ends_with(".json") {
                true => format!("{{\"nftables\": [{}]}}", of_dump.join(",\n")),
                false => of_dump.join("\n") + "\n",
            };
            (name.to_owned(), text)
        };
        Dumps(index.lines().map(dump).collect())
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The texts of a step in a mode.
    pub fn texts(&self, step: &str, mode: Mode) -> Vec<String> {
        let names = match mode {
            Mode::Nftables => vec![format!("{step}.nft.json")],
            Mode::Iptables => vec![format!("{step}.ipv4.rules"), format!("{step}.ipv6.rules")],
        };
        names.iter().map(|name| self.0.get(name).unwrap_or_else(|| panic!("no dump {name}")).clone()).collect()
    }

    pub fn has(&self, step: &str) -> bool {
        self.0.contains_key(&format!("{step}.nft.json"))
    }

    /// The steps, `CASE.STEP`.
    pub fn steps(&self) -> impl Iterator<Item = &str> {
        self.0.keys().filter_map(|name| name.strip_suffix(".nft.json"))
    }
}

pub fn read(texts: &[String]) -> Ruleset {
    let mut rules = Ruleset::default();
    for text in texts {
        rules.read(text).unwrap_or_else(|e| panic!("{e}"));
    }
    rules
}

/// A question and its answer.
pub struct Check {
    /// Case, step and flow.
    pub name: String,
    /// The dump: `CASE.STEP`.
    pub step: String,
    pub node: Node,
    pub packet: Packet,
    /// By mode: nftables, iptables.
    pub expected: [Expected; 2],
    /// Endpoints that are the client itself.
    pub sticky: bool,
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text<'v>(value: &'v Value, field: &str) -> &'v str {
    value[field].as_str().unwrap_or_else(|| panic!("{field} in {value}"))
}

/// The flows of the behaviour cases that have dumps.
pub fn small_checks(dumps: &Dumps) -> Vec<Check> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../gateway/tests/data/cases/kubeproxy-cases.yaml");
    let cases: Value = serde_saphyr::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let mut found = Vec::new();
    for case in list(&cases["cases"]) {
        let own = &case["config"]["node"]["ips"];
        let node = node(if own.is_null() { &cases["defaults"]["config"]["node"]["ips"] } else { own });
        for (number, step) in list(&case["steps"]).iter().enumerate() {
            let name = format!("{}.{number}", text(case, "id"));
            if dumps.has(&name) {
                found.extend(list(&step["flows"]).iter().map(|flow| check(&name, &node, flow)));
            }
        }
    }
    found
}

/// The flows of the sets of 200 Services.
pub fn large_checks() -> Vec<Check> {
    let text = std::fs::read_to_string(file("large.jsonl")).unwrap();
    let sets = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let of_set = |set: Value| {
        let name = format!("{}.0", self::text(&set, "name"));
        let node = node(&set["config"]["node"]["ips"]);
        list(&set["flows"]).iter().map(|flow| check(&name, &node, flow)).collect::<Vec<_>>()
    };
    sets.flat_map(of_set).collect()
}

fn node(ips: &Value) -> Node {
    Node { addresses: list(ips).iter().map(|ip| ip.as_str().unwrap().parse().unwrap()).collect() }
}

fn check(step: &str, node: &Node, flow: &Value) -> Check {
    let origin = match text(flow, "fromKind") {
        "pod" => Origin::Pod,
        "external" => Origin::Outside,
        _ => Origin::Node,
    };
    let proto = match flow["proto"].as_str().unwrap_or("TCP") {
        "TCP" => Proto::Tcp,
        "UDP" => Proto::Udp,
        _ => Proto::Sctp,
    };
    let port = u16::try_from(flow["port"].as_u64().unwrap()).unwrap();
    let tuple = Tuple::new(proto, text(flow, "from").parse().unwrap(), 40_000, text(flow, "to").parse().unwrap(), port).unwrap();
    let of_mode = |mode: Mode| expected(if flow["expect"].is_null() { &flow["expectByMode"][mode.label()] } else { &flow["expect"] });
    Check {
        name: format!("{step} {}", flow["id"].as_str().unwrap_or("-")),
        step: step.into(),
        node: node.clone(),
        packet: Packet { tuple, origin },
        expected: [of_mode(Mode::Nftables), of_mode(Mode::Iptables)],
        sticky: flow["sticky"] == true,
    }
}

fn expected(expect: &Value) -> Expected {
    let verdict = match text(expect, "verdict") {
        "forward" => Verdict::Forward,
        "reject" => Verdict::Reject,
        "drop" => Verdict::Drop,
        "local" => Verdict::Local,
        "pass" => Verdict::Pass,
        other => panic!("{other}"),
    };
    let backends = list(&expect["backends"]).iter().map(|to| to.as_str().unwrap().parse::<SocketAddr>().unwrap()).collect();
    Expected { verdict, backends, snat: expect["snat"] == true, affinity_s: None }
}
