//! Connections during changes of Services and endpoints: kube-proxy's cases through the real packet path, connection table, reply filter
//! and reconciler thread.
//!
//! `cargo test -p nomagic --test it established -- --nocapture` prints how many entries and packets ran.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use nomagic::reconcile::Reconciler;
use nomagic_core::conntrack::{Conntrack, Flow, Hit, Phase};
use nomagic_core::services::Services;
use nomagic_core::tuple::{HashSeed, Proto, Tuple, addr_words, words_addr};
use nomagic_table::compile::serving::Serving;
use nomagic_table::compile::{Compiler, TARGETS_MAX};
use nomagic_table::index::Index;
use nomagic_table::objects::NamespacedName;
use nomagic_table::settings::Settings;
use serde_json::Value;

use crate::common::replay::*;
use crate::common::wire::{ACK, PacketOutcome, SYN, Wire, reply_filter};

/// An in-memory gateway that applies objects like `run`.
struct MemoryGateway {
    settings: Settings,
    compiler: Compiler,
    services: Services,
    serving: Serving,
    /// All Services so far.
    known: BTreeSet<NamespacedName>,
    reconciler: Reconciler,
    wire: Wire<'static>,
}

impl MemoryGateway {
    fn new(settings: Settings) -> MemoryGateway {
        // Leaked, because the reconciler thread needs 'static.
        let words: Vec<AtomicU64> = (0..Conntrack::words_needed(1_024)).map(|_| AtomicU64::new(0)).collect();
        let table = Conntrack::format(words.leak(), 1_024, 1, [0, 0]).unwrap();
        let replies = reply_filter(64);
        MemoryGateway {
            settings,
            compiler: Compiler::new(TARGETS_MAX),
            services: Services::empty(HashSeed::new(0)),
            serving: Serving::default(),
            known: BTreeSet::new(),
            reconciler: Reconciler::start(table, replies).unwrap(),
            wire: Wire::new(0, table, Some(replies)),
        }
    }

    /// Puts new objects in force and waits until the reconciler has finished.
    fn apply(&mut self, index: &Index) {
        let serving = serving(index, &self.serving, &mut self.known);
        let before = std::mem::replace(&mut self.serving, serving);
        let walks = self.reconciler.done().walks + u64::from(self.serving.ends_some_of(&before));
        self.reconciler.hold();
        self.services = self.compiler.compile(index, &self.settings).services;
        self.reconciler.follow(&self.serving);
        let end = Instant::now() + Duration::from_secs(10);
        while self.reconciler.done().walks < walks {
            assert!(Instant::now() < end, "the walk does not end");
            std::thread::yield_now();
        }
        self.assert_no_leak();
    }

    /// Checks that ended connections have released their announcement and source port.
    fn assert_no_leak(&self) {
        let (mut announced, mut replaced) = (0, 0);
        self.wire.table.for_each(|_, flow| {
            announced += usize::from(flow.announced);
            replaced += u64::from(flow.replaces_source());
        });
        assert_eq!((self.wire.filter.unwrap().len(), self.wire.table.snat_ports().in_use()), (announced, replaced));
    }

    fn insert(&self, mut flow: Flow) -> Hit {
        let table = self.wire.table;
        if flow.replaces_source() {
            table.snat_ports().take(&flow, nomagic_core::services::PortLimits::NONE).unwrap();
        }
        let (hash, port, phase) = (table.hash(&flow.original()), flow.source_port, Phase::first(flow.proto, SYN));
        let pending = table.reserve(&mut flow, hash, phase, 1, std::iter::once(port)).unwrap();
        if pending.flow.announced {
            assert!(self.wire.filter.unwrap().insert(&pending.flow.reply(), pending.slot()));
        }
        table.commit(pending).unwrap()
    }
}

fn proto(value: &Value) -> Proto {
    match value["proto"].as_str().unwrap() {
        "TCP" => Proto::Tcp,
        "UDP" => Proto::Udp,
        "SCTP" => Proto::Sctp,
        other => panic!("{other}"),
    }
}

fn number(value: &Value, field: &str) -> u16 {
    value[field].as_u64().unwrap_or_else(|| panic!("{field} in {value}")) as u16
}

/// The flow that a case's entry describes, from a separate client; every second one with SNAT.
fn entry(entry: &Value, n: u16, settings: &Settings) -> Flow {
    let node = settings.node.primary.iter().find(|ip| ip.is_ipv4()).unwrap();
    let to: IpAddr = entry["origDst"].as_str().map_or(*node, |addr| addr.parse().unwrap());
    let words = |addr: IpAddr| addr_words(addr).0;
    let client = words(IpAddr::from([198, 51, 100, 1]));
    let snat = n % 2 == 1;
    Flow {
        proto: proto(entry),
        v6: to.is_ipv6(),
        announced: !snat,
        client,
        client_port: 1_000 + n,
        service: words(to),
        service_port: number(entry, "origPort"),
        backend: words(text(entry, "replySrc").parse().unwrap()),
        backend_port: number(entry, "replyPort"),
        source: if snat { words(*node) } else { client },
        source_port: 61_000 + n,
        stats: 0,
        counted: None,
    }
}

#[test]
fn conntrack_cases() {
    let file = cases("kubeproxy-stateful.yaml");
    let (mut ran, mut wrong) = (0, Vec::new());
    for case in list(&file["conntrackCases"]) {
        let mut g = MemoryGateway::new(settings(&file["defaults"]["config"], case));
        let entries: Vec<(&Value, Flow, Hit)> = list(&case["entries"])
            .iter()
            .zip(0..)
            .map(|(e, n)| {
                let flow = entry(e, n, &g.settings);
                (e, flow, g.insert(flow))
            })
            .collect();
        g.apply(&index(&case["objects"]));
        for (entry, flow, hit) in entries {
            let kept = g.wire.table.flow(&hit) == Some(flow);
            if kept != (text(entry, "expect") == "kept") {
                wrong.push(format!("{}: {entry}, kept: {kept}", text(case, "id")));
            }
            ran += 1;
        }
    }
    println!("{ran} entries ran, {} agree with kube-proxy", ran - wrong.len());
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(ran >= 13, "only {ran} entries found");
}

#[test]
fn flow_cases() {
    let file = cases("kubeproxy-stateful.yaml");
    let (mut flows, mut ran, mut wrong) = (0, 0, Vec::new());
    for case in list(&file["flowCases"]) {
        let mut g = MemoryGateway::new(settings(&file["defaults"]["config"], case));
        let mut known = BTreeSet::new();
        for (place, step) in list(&case["steps"]).iter().enumerate() {
            if !step["objects"].is_null() {
                g.apply(&index(&step["objects"]));
                continue;
            }
            let p = &step["packet"];
            let addr = |field| text(p, field).parse::<IpAddr>().unwrap();
            let tuple = Tuple::new(proto(p), addr("from"), number(p, "sport"), addr("to"), number(p, "port")).unwrap();
            let first = known.insert(tuple.to_string());
            let went = match g.wire.send(&g.services, &tuple, if first { SYN } else { ACK }) {
                PacketOutcome::Forwarded(_, to) => to.to_string(),
                PacketOutcome::Rejected(_) => "reject".into(),
                PacketOutcome::Dropped(_) => "drop".into(),
                PacketOutcome::Kernel(_) => "pass".into(),
            };
            if went != text(step, "expect") {
                wrong.push(format!("{} step {place}: {p} went to {went}, expected {}", text(case, "id"), step["expect"]));
            }
            ran += 1;
        }
        flows += known.len();
    }
    println!("{flows} flows with {ran} packets ran, {} agree with kube-proxy", ran - wrong.len());
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(flows >= 11 && ran >= 22, "only {flows} flows, {ran} packets found");
}

/// One worker may use the new table while others still create connections by the old one.
#[test]
fn nothing_ends_before_every_worker_uses_the_new_table() {
    let file = cases("kubeproxy-stateful.yaml");
    let case = list(&file["flowCases"]).iter().find(|c| text(c, "id") == "flow-udp-target-port").unwrap();
    let steps: Vec<&Value> = list(&case["steps"]).iter().filter(|s| !s["objects"].is_null()).collect();
    let mut g = MemoryGateway::new(settings(&file["defaults"]["config"], case));
    g.apply(&index(&steps[0]["objects"]));
    let tuple = |sport| Tuple::new(Proto::Udp, [10, 0, 0, 2].into(), sport, [172, 30, 0, 41].into(), 53).unwrap();
    let to = |port| SocketAddr::from(([10, 180, 0, 1], port));
    assert_eq!(g.wire.send(&g.services, &tuple(1), SYN), PacketOutcome::Forwarded(SocketAddr::from(([10, 0, 0, 2], 1)), to(53)));

    let later = index(&steps[1]["objects"]);
    let serving = serving(&later, &g.serving, &mut g.known);
    g.reconciler.hold();
    let services = g.compiler.compile(&later, &g.settings).services;
    assert!(matches!(g.wire.send(&services, &tuple(2), SYN), PacketOutcome::Forwarded(_, went) if went == to(5_353)));
    std::thread::sleep(Duration::from_millis(20));
    let backends = |g: &MemoryGateway| {
        let mut ports = Vec::new();
        g.wire.table.for_each(|_, flow| ports.push((words_addr(flow.backend, false), flow.backend_port)));
        ports
    };
    assert_eq!(backends(&g).len(), 2, "on hold");
    let walks = g.reconciler.done().walks;
    g.reconciler.follow(&serving);
    // A flow's announcement is withdrawn after the flow has ended, so both are certain only after the walk.
    let end = Instant::now() + Duration::from_secs(10);
    while g.reconciler.done().walks == walks {
        assert!(Instant::now() < end, "the walk does not end");
        std::thread::yield_now();
    }
    assert_eq!(backends(&g), [([10, 180, 0, 1].into(), 5_353)]);
    g.assert_no_leak();
}
