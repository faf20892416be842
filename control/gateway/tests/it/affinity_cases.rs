//! Session affinity over time: kube-proxy's cases as frames through the packet path, with a simulated clock.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;

use nomagic_core::conntrack::Conntrack;
use nomagic_table::compile::{Compiled, Compiler, TARGETS_MAX};
use nomagic_table::explain::parse_flow;
use serde_json::Value;

use crate::common::replay::{cases, index, list, settings, text};
use crate::common::wire::{PacketOutcome, SYN, Wire};

/// The possible endpoints of a new connection to an address.
fn usable(compiled: &Compiled, to: SocketAddr) -> BTreeSet<SocketAddr> {
    let pools = compiled.services.frontends().filter(|(ip, port, ..)| SocketAddr::new(*ip, *port) == to);
    let pools = pools.flat_map(|(_, _, _, f)| f.actions()).filter_map(|action| match action {
        nomagic_core::services::Action::Forward { pool, .. } => Some(pool),
        _ => None,
    });
    pools.flat_map(|pool| pool.backends.iter().map(|b| SocketAddr::new(b.addr, b.port))).collect()
}

struct Made {
    backend: SocketAddr,
    /// Several endpoints were possible.
    free: bool,
}

/// Plays a case with source ports from `first_port` on.
fn play(file: &Value, case: &Value, first_port: u16) -> Vec<Made> {
    // The clock starts well after zero, like a real one.
    let words: Vec<AtomicU64> = (0..Conntrack::words_needed(256)).map(|_| AtomicU64::new(0)).collect();
    let mut wire = Wire::new(0, Conntrack::format(&words, 256, 1, [0, 0]).unwrap(), None);
    let (start_ms, mut compiler) = (1_000_000, Compiler::new(TARGETS_MAX));
    let settings = settings(&file["defaults"]["config"], case);
    let (mut compiled, mut named, mut met) = (None, BTreeMap::new(), Vec::new());
    for (number, step) in list(&case["steps"]).iter().enumerate() {
        if !step["objects"].is_null() {
            compiled = Some(compiler.compile(&index(&step["objects"]), &settings));
            continue;
        }
        let place = format!("{} step {number}", case["id"]);
        let table = compiled.as_ref().expect("objects come first");
        let connect = &step["connect"];
        let to = SocketAddr::new(text(connect, "to").parse().unwrap(), connect["port"].as_u64().unwrap() as u16);
        let from = SocketAddr::new(text(connect, "from").parse().unwrap(), first_port + number as u16);
        let proto = connect["proto"].as_str().unwrap_or("TCP").to_lowercase();
        let tuple = parse_flow(&format!("{proto} {from} -> {to}")).unwrap();
        wire.now_ms = start_ms + std::time::Duration::from_secs_f64(step["at"].as_f64().unwrap()).as_millis() as u64;
        let PacketOutcome::Forwarded(_, backend) = wire.send(&table.services, &tuple, SYN) else { panic!("{place}: no backend") };
        let usable = usable(table, to);
        assert!(usable.contains(&backend), "{place}: {backend} is no usable endpoint");
        if let Some(name) = text(step, "expect").strip_prefix("same:") {
            assert_eq!(Some(&backend), named.get(name), "{place}: the endpoint of {name}");
        } else {
            assert!(matches!(text(step, "expect"), "free" | "any"), "{place}: {step}");
        }
        if let Some(name) = step["as"].as_str() {
            named.insert(name.to_owned(), backend);
        }
        met.push(Made { backend, free: step["expect"] == "free" && usable.len() > 1 });
    }
    met
}

#[test]
fn affinity_cases() {
    let (mut played, mut connections, mut free) = (0, 0, 0);
    for name in ["kubeproxy-stateful.yaml", "more-stateful.yaml"] {
        let file = cases(name);
        for case in list(&file["affinityCases"]) {
            // Many source ports, so that no hash matches by chance.
            let plays: Vec<Vec<Made>> = (0..40).map(|i| play(&file, case, 10_000 + i * 100)).collect();
            connections += plays.iter().map(Vec::len).sum::<usize>();
            for i in (0..plays[0].len()).filter(|&i| plays[0][i].free) {
                let met: BTreeSet<SocketAddr> = plays.iter().map(|p| p[i].backend).collect();
                assert!(met.len() > 1, "{}: connection {i} is free, yet all go to {met:?}", case["id"]);
                // The first connection does not determine the endpoint of a free one.
                let moved = plays.iter().filter(|p| p[i].backend != p[0].backend).count();
                assert!(i == 0 || moved > 5, "{}: connection {i} follows the first one: {moved} of 40 do not", case["id"]);
                free += 1;
            }
            played += 1;
        }
    }
    println!("affinityCases: {played} cases ran from 40 source ports each, {connections} connections as frames, {free} of each 40 free");
    assert!(played >= 13 && free >= 12, "{played} {free}");
}
