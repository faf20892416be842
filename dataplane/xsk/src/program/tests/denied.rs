//! The deny list: what the program drops is what the filter takes otherwise, from the sources that [`DenyList`] matches.

use std::collections::HashMap;
use std::net::IpAddr;

use nomagic_core::deny::DenyList;
use nomagic_core::tuple::{Prefix, words_addr};
use nomagic_core_fixtures::{fuzz_input, honest_frames};

use super::*;
use crate::denied::{Denied, NO_END_NS};
use crate::error::EdgeError;

const DENIED: (u32, &str) = (DROP, "denied");
const TAKEN: (u32, &str) = (REDIRECT, "taken");

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

fn configured(prefixes: &[&str]) -> Denied {
    prefixes.iter().map(|text| (prefix(text), None)).collect()
}

fn bench(denied: &[&str]) -> Bench {
    let mut bench = Bench::new(false);
    bench.maps.add(&rules()).unwrap();
    bench.denied.follow(&configured(denied)).unwrap();
    bench
}

fn request(src: &str) -> Vec<u8> {
    let dst = if src.starts_with('[') { "[fd00:10::24]:53" } else { "10.109.35.24:80" };
    let proto = if src.starts_with('[') { Proto::Udp } else { Proto::Tcp };
    frame(&tuple(proto, src, dst), Dress::default())
}

/// Sources around nested prefixes of all lengths.
#[test]
fn the_filter_agrees_with_the_model() {
    let mut random = 11;
    let mut next = || splitmix64(&mut random);
    let mut outcomes = [0, 0];
    for round in 0..8 {
        let mut denied = Denied::new();
        for i in 0..40 {
            let v6 = i % 2 == 0;
            let base = if v6 { [0xfd00 << 48, next() & 3] } else { [0, 0x0a00_0000 | (next() & 3)] };
            // Short ones, /0 among them, in every other round: they match nearly all sources.
            let (bits, shortest) = (if v6 { 128 } else { 32 }, if round % 2 == 0 { 0 } else { 9 });
            let len = shortest + next() % (bits + 1 - shortest);
            denied.insert(Prefix::new(words_addr(base, v6), len as u8).unwrap(), (i % 3 == 0).then_some(NO_END_NS));
        }
        let model: DenyList = denied.keys().copied().collect();
        let mut bench = bench(&[]);
        bench.denied.follow(&denied).unwrap();
        let mut dropped: HashMap<Prefix, u64> = HashMap::new();
        for _ in 0..400 {
            let v6 = next() % 2 == 0;
            let near = if v6 {
                [(0xfd00 << 48) ^ ((next() & 1) << (next() % 64)), next() & 7]
            } else {
                [0, 0x0a00_0000 ^ (next() % 8) ^ (1 << (next() % 32))]
            };
            let (service, proto) = if v6 { ("fd00:10::24", Proto::Udp) } else { ("10.109.35.24", Proto::Tcp) };
            let t = Tuple::new(proto, words_addr(near, v6), 1_000, ip(service), if v6 { 53 } else { 80 }).unwrap();
            let outcome = bench.outcome(&frame(&t, Dress::default()));
            let matched = model.longest_match(t.src_addr());
            assert_eq!(outcome, if matched.is_some() { DENIED } else { TAKEN }, "{t}: {matched:?}");
            outcomes[usize::from(matched.is_some())] += 1;
            matched.into_iter().for_each(|prefix| *dropped.entry(prefix).or_default() += 1);
        }
        for prefix in denied.keys() {
            assert_eq!(bench.denied.packets(prefix).unwrap(), dropped.get(prefix).copied().unwrap_or(0), "{prefix}");
        }
    }
    assert!(outcomes.iter().all(|n| *n > 200), "{outcomes:?}");
}

/// A frame that is the kernel's stays the kernel's, and every other one is dropped: over all frames that the parsers are compared on.
#[test]
fn denying_all_sources_drops_exactly_the_frames_taken_otherwise() {
    let corpus = fuzz_input::corpus();
    let corpus = corpus.iter().flat_map(|input| fuzz_input::decode(input)).map(|(_, frame)| frame).filter(|frame| frame.len() >= 14);
    let dressed = DRESSES.into_iter().flat_map(|dress| {
        let to = |dst: &str| frame(&tuple(Proto::Tcp, "192.168.0.5:1000", dst), dress);
        [to("10.109.35.24:80"), to("10.109.35.25:7"), to("10.110.0.9:7"), to("10.0.0.1:22")]
    });
    let frames: Vec<Vec<u8>> = corpus.chain(honest_frames()).chain(dressed).collect();
    let (mut open, mut closed) = (bench(&[]), bench(&["0.0.0.0/0", "::/0"]));
    // What some frames of the corpus are addressed to.
    let more = FilterRules { service_cidrs: ["10.0.0.0/9".parse().unwrap(), "fd00::/9".parse().unwrap()].into(), ..FilterRules::default() };
    [&mut open, &mut closed].into_iter().for_each(|bench| bench.maps.add(&more).unwrap());
    let (mut denied, mut passed) = (0, 0);
    for mut frame in frames {
        frame[..6].copy_from_slice(&MAC);
        let (before, after) = (open.outcome(&frame), closed.outcome(&frame));
        match before {
            TAKEN => assert!(after == DENIED || after == (PASS, "pass_fragment"), "{after:?}: {frame:x?}"),
            other => assert_eq!(after, other, "{frame:x?}"),
        }
        *if after == DENIED { &mut denied } else { &mut passed } += 1;
    }
    assert!(denied > 100 && passed > 100, "{denied} denied, {passed} passed");
    let packets = ["0.0.0.0/0", "::/0"].map(|all| closed.denied.packets(&prefix(all)).unwrap());
    assert!(packets.iter().all(|n| *n > 0) && packets.iter().sum::<u64>() == denied, "{packets:?}");
    assert_eq!(closed.counters().denied, denied);
}

#[test]
fn other_traffic_of_a_denied_source_is_the_kernels() {
    let mut bench = bench(&["0.0.0.0/0", "::/0"]);
    let ssh = ["192.168.0.5:1000", "[fd00::5]:1000"].into_iter().zip(["10.0.0.1:22", "[fd00::1]:22"]);
    for (src, dst) in ssh {
        assert_eq!(bench.outcome(&frame(&tuple(Proto::Tcp, src, dst), Dress::default())), (PASS, "pass_not_ours"));
    }
    let reply = tuple(Proto::Tcp, "192.168.7.7:80", "10.0.0.1:40000");
    let bytes = frame(&reply, Dress::default());
    assert_eq!(bench.outcome(&bytes), (PASS, "pass_not_ours"));
    assert!(bench.replies.insert(&reply, 0));
    assert_eq!(bench.outcome(&bytes), DENIED, "an announced reply of a denied endpoint");
    // Denied whether a worker is alive or not.
    for heartbeat in [0, 1] {
        bench.heartbeat.store(heartbeat, Relaxed);
        assert_eq!(bench.run(&bytes), DROP);
    }
}

/// A redirect port's program denies as well; the internal port's, which gets what that has let through and the node's own packets, does not.
#[test]
fn clients_and_redirect_ports_apply_the_deny_list() {
    const LO: u32 = 1;
    let mut redirect = Bench::with_constants(Constants { redirect_to: LO, ..Bench::constants() });
    program::set_redirect_macs(&mut redirect.ebpf, LO, Some(crate::addressed::PortMacs::of(&Bench::link(MAC, None)))).unwrap();
    let mut internal = Bench::new(true);
    for (bench, expected) in [(&mut redirect, DENIED), (&mut internal, TAKEN)] {
        bench.maps.add(&rules()).unwrap();
        assert_eq!(bench.outcome(&request("192.168.0.5:1000")), TAKEN);
        bench.denied.follow(&configured(&["192.168.0.0/16"])).unwrap();
        assert_eq!(bench.outcome(&request("192.168.0.5:1000")), expected);
    }
}

#[test]
fn fragments_of_a_denied_source_are_not_remembered() {
    let mut bench = bench(&["192.168.0.0/16"]);
    let piece = |fragment| frame(&tuple(Proto::Tcp, "192.168.0.5:1000", "10.109.35.24:80"), Dress { fragment, ..Dress::default() });
    let (first, last) = (piece(0x2000), piece(0x0020));
    assert_eq!((bench.outcome(&first), bench.outcome(&last)), (DENIED, (PASS, "pass_fragment")));
    let keys = |bench: &Bench| {
        let fragments: aya::maps::HashMap<_, [u32; 10], u32> = bench.ebpf.map("fragments").unwrap().try_into().unwrap();
        fragments.keys().count()
    };
    assert_eq!(keys(&bench), 0);
    bench.denied.follow(&Denied::new()).unwrap();
    assert_eq!((bench.outcome(&first), bench.outcome(&last), keys(&bench)), (TAKEN, TAKEN, 1));
    bench.denied.follow(&configured(&["192.168.0.0/16"])).unwrap();
    assert_eq!(bench.outcome(&last), DENIED, "remembered before its source was denied");
    // For another port, which no Service has: the kernel's, in any order.
    let other = |fragment| frame(&tuple(Proto::Tcp, "192.168.0.6:1000", "10.109.35.24:22"), Dress { fragment, ..Dress::default() });
    assert_eq!([0x0020, 0x2000, 0x0020].map(|fragment| bench.outcome(&other(fragment)).0), [PASS; 3]);
}

#[test]
fn a_list_that_changes_keeps_the_counters_of_what_stays() {
    let mut bench = bench(&["192.168.0.0/16", "fd00::/16"]);
    let packets = |bench: &Bench, text: &str| bench.denied.packets(&prefix(text)).unwrap();
    for src in ["192.168.0.5:1000", "192.168.0.6:1000", "[fd00::5]:1000"] {
        assert_eq!(bench.outcome(&request(src)), DENIED);
    }
    // One gets an end, one goes, one is new.
    let wanted: Denied = [(prefix("192.168.0.0/16"), Some(77)), (prefix("192.168.0.5/32"), Some(NO_END_NS))].into();
    bench.denied.follow(&wanted).unwrap();
    assert_eq!(bench.denied.known(), &wanted);
    assert_eq!((packets(&bench, "192.168.0.0/16"), packets(&bench, "192.168.0.5/32")), (2, 0));
    let outcomes = ["192.168.0.5:1", "192.168.0.6:1", "[fd00::5]:1000"].map(|src| bench.outcome(&request(src)));
    assert_eq!(outcomes, [DENIED, DENIED, TAKEN]);
    assert_eq!((packets(&bench, "192.168.0.0/16"), packets(&bench, "192.168.0.5/32")), (3, 1));
    bench.denied.follow(&Denied::new()).unwrap();
    assert_eq!(bench.outcome(&request("192.168.0.5:1")), TAKEN);
}

#[test]
fn a_full_list_can_still_change() {
    let hosts = |first: u32| (0..DENY_PREFIXES_MAX as u32).map(move |i| (Prefix::host(IpAddr::from((first + i).to_be_bytes())), None));
    let mut bench = bench(&[]);
    bench.denied.follow(&hosts(0x0a00_0000).collect()).unwrap();
    let end: Denied = hosts(0x0a00_0000).map(|(prefix, _)| (prefix, Some(5))).collect();
    bench.denied.follow(&end).unwrap();
    let other: Denied = hosts(0x0b00_0000).collect();
    bench.denied.follow(&other).unwrap();
    assert_eq!([bench.outcome(&request("10.0.0.1:1")), bench.outcome(&request("11.0.255.255:1"))], [TAKEN, DENIED]);
    let mut more = other.clone();
    more.insert(prefix("192.0.2.0/24"), None);
    let error = bench.denied.follow(&more).unwrap_err();
    assert!(matches!(error, EdgeError::FilterFull { .. }) && error.to_string().contains("room for 65536 denied prefixes"), "{error}");
    assert_eq!(bench.denied.known(), &other, "refused as a whole");
}
