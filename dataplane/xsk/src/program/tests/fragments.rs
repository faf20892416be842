//! Fragments: all of a datagram go one way, in whatever order they come.

use super::parity::{CAPTURED, PASSED, fate_now};
use super::*;
use aya::maps::HashMap;

/// First, middle and last fragment of a packet.
fn pieces(t: &Tuple) -> [Vec<u8>; 3] {
    let dress = |fragment| Dress { extensions: &[0, 44], fragment, ..Dress::default() };
    match t.v6 {
        true => [1, 0x101, 0x200].map(|fragment| frame(t, dress(fragment))),
        false => [0x2000, 0x2010, 0x0020].map(|fragment| frame(t, Dress { extensions: &[], ..dress(fragment) })),
    }
}

fn bench() -> Bench {
    let mut bench = Bench::new(false);
    bench.maps.add(&rules()).unwrap();
    bench
}

/// What becomes of a packet's fragments in this order, with nothing known before.
fn actions(bench: &mut Bench, t: &Tuple, order: [usize; 3]) -> [u32; 3] {
    let pieces = pieces(t);
    let actions = order.map(|piece| {
        bench.heartbeat.store(monotonic_ns(), Relaxed);
        bench.run(&pieces[piece])
    });
    let mut fragments: HashMap<_, [u32; 10], u32> = bench.ebpf.map_mut("fragments").unwrap().try_into().unwrap();
    let keys: Vec<[u32; 10]> = fragments.keys().map(Result::unwrap).collect();
    assert!(keys.len() <= 1);
    keys.iter().for_each(|key| fragments.remove(key).unwrap());
    actions
}

const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];

#[test]
fn a_datagram_for_a_service_is_captured_in_any_order() {
    let mut bench = bench();
    for t in [
        tuple(Proto::Tcp, "192.168.0.5:1000", "10.109.35.24:80"),
        tuple(Proto::Udp, "192.168.0.5:1000", "10.109.35.25:9"),
        tuple(Proto::Sctp, "192.168.0.5:1000", "10.110.3.4:9"),
        tuple(Proto::Udp, "[fd00::5]:1000", "[fd00:10::24]:53"),
        tuple(Proto::Sctp, "[fd00::5]:1000", "[fd00:10::25]:9"),
    ] {
        ORDERS.iter().for_each(|order| assert_eq!(actions(&mut bench, &t, *order), [REDIRECT; 3], "{t} {order:?}"));
    }
}

#[test]
fn a_fragmented_reply_is_captured_in_any_order() {
    let mut bench = bench();
    for t in [
        tuple(Proto::Udp, "172.16.1.2:53", "192.168.0.5:1000"),
        tuple(Proto::Tcp, "[fd00:b::2]:53", "[fd00::5]:1000"),
        tuple(Proto::Sctp, "172.16.1.3:53", "192.168.0.5:1000"),
    ] {
        ORDERS.iter().for_each(|order| assert_eq!(actions(&mut bench, &t, *order), [PASS; 3], "{t} {order:?}"));
        assert!(bench.replies.insert(&t, 0));
        ORDERS.iter().for_each(|order| assert_eq!(actions(&mut bench, &t, *order), [REDIRECT; 3], "{t} {order:?}"));
    }
}

/// On an address that has Services, for a port that is none: passed if the first fragment comes first, else all captured, for the worker to decide.
#[test]
fn the_nodes_own_datagrams_go_one_way() {
    let mut bench = bench();
    let replies = tuple(Proto::Udp, "172.16.1.2:53", "192.168.0.5:1000");
    assert!(bench.replies.insert(&replies, 0));
    for t in [
        tuple(Proto::Tcp, "192.168.0.5:1000", "10.109.35.24:22"),
        tuple(Proto::Udp, "[fd00::5]:1000", "[fd00:10::24]:22"),
        // Of an endpoint, and no reply.
        Tuple { sport: 54, ..replies },
    ] {
        for order in ORDERS {
            let action = if order[0] == 0 { PASS } else { REDIRECT };
            assert_eq!(actions(&mut bench, &t, order), [action; 3], "{t} {order:?}");
        }
    }
    // No Service has this address, or this protocol on it.
    for t in [
        tuple(Proto::Tcp, "192.168.0.5:1000", "10.109.35.23:80"),
        tuple(Proto::Udp, "192.168.0.5:1000", "10.109.35.24:80"),
        tuple(Proto::Tcp, "[fd00::5]:1000", "[fd00:10::24]:53"),
    ] {
        ORDERS.iter().for_each(|order| assert_eq!(actions(&mut bench, &t, *order), [PASS; 3], "{t} {order:?}"));
    }
}

/// A rule's address and protocol count while it has a rule.
#[test]
fn later_fragments_follow_the_rules() {
    let mut bench = bench();
    let rule = |port, proto| FilterRules { services: [(ip("203.0.113.1"), port, proto)].into(), ..FilterRules::default() };
    let later = |bench: &mut Bench| actions(bench, &tuple(Proto::Udp, "192.168.0.5:1", "203.0.113.1:9"), [1, 2, 1])[0];
    assert_eq!(later(&mut bench), PASS);
    for port in [80, 81] {
        bench.maps.add(&rule(port, Proto::Udp)).unwrap();
        bench.maps.add(&rule(port, Proto::Tcp)).unwrap();
        assert_eq!(later(&mut bench), REDIRECT);
    }
    bench.maps.remove(&rule(80, Proto::Udp)).unwrap();
    assert_eq!(later(&mut bench), REDIRECT, "it has another rule");
    bench.maps.remove(&rule(81, Proto::Udp)).unwrap();
    assert_eq!(later(&mut bench), PASS);
    bench.maps.add(&rule(80, Proto::Udp)).unwrap();
    assert_eq!(later(&mut bench), REDIRECT);
}

/// Identifications are used again: what became of an earlier datagram does not count for long.
#[test]
fn the_fate_of_a_datagram_is_forgotten() {
    const UNIT: u32 = 1 << 2;
    let mut bench = bench();
    let t = tuple(Proto::Tcp, "192.168.0.5:1000", "10.109.35.24:80");
    let own = parity::fragment_key(t.src, t.dst, 1, t.proto);
    let [first, later, _] = pieces(&t);
    for (fate, age, action) in
        [(PASSED, 0, PASS), (PASSED, 9, PASS), (PASSED, 12, REDIRECT), (CAPTURED, 0, REDIRECT), (CAPTURED, 12, REDIRECT)]
    {
        let mut fragments: HashMap<_, [u32; 10], u32> = bench.ebpf.map_mut("fragments").unwrap().try_into().unwrap();
        fragments.insert(own, fate_now(fate).wrapping_sub(age * UNIT), 0).unwrap();
        bench.heartbeat.store(monotonic_ns(), Relaxed);
        assert_eq!(bench.run(&later), action, "{fate} {age}");
    }
    // That a first fragment is nomagic's is right whatever is known.
    let mut fragments: HashMap<_, [u32; 10], u32> = bench.ebpf.map_mut("fragments").unwrap().try_into().unwrap();
    fragments.insert(own, fate_now(PASSED), 0).unwrap();
    assert_eq!((bench.run(&first), bench.run(&later)), (REDIRECT, REDIRECT));
}
