//! Toeplitz hashes and indirection tables against their definitions.

use super::*;
use proptest::prelude::*;
use std::net::SocketAddr;

/// Key and vectors: Microsoft, "Verifying the RSS hash calculation"; also the data sheet of Intel's 82599, 7.1.2.8.3.
const KEY: [u8; 40] = [
    0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0, 0xca, 0x2b, 0xcb, 0xae, 0x7b,
    0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
];
/// Destination, source, hash of the addresses, hash of addresses and ports.
const VECTORS: [(&str, &str, u32, u32); 8] = [
    ("161.142.100.80:1766", "66.9.149.187:2794", 0x323e_8fc2, 0x51cc_c178),
    ("65.69.140.83:4739", "199.92.111.2:14230", 0xd718_262a, 0xc626_b0ea),
    ("12.22.207.184:38024", "24.19.198.95:12898", 0xd2d0_a5de, 0x5c2b_394a),
    ("209.142.163.6:2217", "38.27.205.30:48228", 0x8298_9176, 0xafc7_327f),
    ("202.188.127.2:1303", "153.39.163.191:44251", 0x5d18_09c5, 0x10e8_28a2),
    ("[3ffe:2501:200:3::1]:1766", "[3ffe:2501:200:1fff::7]:2794", 0x2cc1_8cd5, 0x4020_7d3d),
    ("[ff02::1]:4739", "[3ffe:501:8::260:97ff:fe40:efab]:14230", 0x0f0c_461c, 0xdde5_1bbf),
    ("[fe80::200:f8ff:fe21:67cf]:38024", "[3ffe:1900:4545:3:200:f8ff:fe21:67cf]:44251", 0x4b61_e985, 0x02d1_feef),
];

fn tuple(proto: Proto, src: &str, dst: &str) -> Tuple {
    let (src, dst): (SocketAddr, SocketAddr) = (src.parse().unwrap(), dst.parse().unwrap());
    Tuple::new(proto, src.ip(), src.port(), dst.ip(), dst.port()).unwrap()
}

/// What is hashed of a packet.
fn input(t: &Tuple, ports: bool) -> Vec<u8> {
    let skip = if t.v6 { 0 } else { 12 };
    let ports: &[u16] = if ports { &[t.sport, t.dport] } else { &[] };
    let mut input = [&bytes(t.src)[skip..], &bytes(t.dst)[skip..]].concat();
    input.extend(ports.iter().flat_map(|p| p.to_be_bytes()));
    input
}

/// Bit by bit, as Microsoft's pseudocode.
fn naive(key: &[u8], input: &[u8]) -> u32 {
    let bit = |bytes: &[u8], i: usize| u32::from(bytes[i / 8] >> (7 - i % 8)) & 1;
    let window = |i: usize| (i..i + 32).fold(0, |w, i| (w << 1) | bit(key, i));
    (0..8 * input.len()).filter(|&i| bit(input, i) == 1).fold(0, |hash, i| hash ^ window(i))
}

fn all_kinds() -> Kinds {
    let kinds = [Proto::Tcp, Proto::Udp, Proto::Sctp].into_iter().flat_map(|proto| [(proto, false), (proto, true)]);
    kinds.fold(Kinds::default(), |kinds, (proto, v6)| kinds.with(proto, v6))
}

#[test]
fn the_published_vectors() {
    let toeplitz = Toeplitz::new(&KEY).unwrap();
    let one_to_one: Vec<u16> = (0..128).collect();
    let queues: Vec<u32> = (0..128).collect();
    let rss = Rss::new(&KEY, &queues, &one_to_one, all_kinds()).unwrap();
    for (dst, src, addresses, ports) in VECTORS {
        let t = tuple(Proto::Tcp, src, dst);
        assert_eq!(naive(&KEY, &input(&t, true)), ports, "the twin, {t}");
        assert_eq!(toeplitz.hash(input(&t, false).into_iter()), addresses, "{t}");
        assert_eq!(toeplitz.hash(input(&t, true).into_iter()), ports, "{t}");
        let at = |worker| rss.answers(&t, worker).unwrap().come_back(t.dport);
        assert_eq!((0..128).filter(|&w| at(w)).collect::<Vec<u16>>(), [(ports & 127) as u16], "{t}");
    }
}

#[test]
fn what_cannot_be_predicted_is_said() {
    let tcp4 = Kinds::default().with(Proto::Tcp, false);
    let new = |key: &[u8], entries: usize, kinds| Rss::new(key, &vec![0; entries], &[0], kinds).map(|rss| rss.entries());
    assert_eq!(new(&KEY, 128, tcp4), Ok(128));
    assert_eq!(new(&[1; 52], 512, tcp4), Ok(512), "a longer key");
    assert_eq!(new(&KEY[..39], 128, tcp4), Err(Unpredictable::Key(39)));
    assert_eq!(new(&[], 128, tcp4), Err(Unpredictable::Key(0)));
    assert_eq!(new(&KEY, 0, tcp4), Err(Unpredictable::Entries(0)));
    assert_eq!(new(&KEY, ENTRIES_MAX, tcp4), Ok(ENTRIES_MAX));
    assert_eq!(new(&KEY, ENTRIES_MAX + 1, tcp4), Err(Unpredictable::Entries(ENTRIES_MAX + 1)));
    assert_eq!(new(&KEY, 128, Kinds::default()), Err(Unpredictable::AddressesOnly));
}

#[test]
fn only_workers_with_queues_and_kinds_with_ports_have_a_choice() {
    let udp6 = Kinds::default().with(Proto::Udp, true);
    let (v4, v6) = ("10.0.0.1:80", "[fd00::1]:80");
    let rss = Rss::new(&KEY, &[0, 1, 2, 9], &[5, 5, 7], udp6).unwrap();
    assert!(rss.divides());
    assert!(rss.answers(&tuple(Proto::Udp, v6, v6), 5).is_some());
    assert!(rss.answers(&tuple(Proto::Udp, v6, v6), 7).is_some());
    for worker in [0, 6, NOBODY] {
        assert!(rss.answers(&tuple(Proto::Udp, v6, v6), worker).is_none(), "{worker}");
    }
    for other in [tuple(Proto::Tcp, v6, v6), tuple(Proto::Sctp, v6, v6), tuple(Proto::Udp, v4, v4)] {
        assert!(rss.answers(&other, 5).is_none(), "{other}");
    }
    assert!(!Rss::new(&KEY, &[0, 1], &[3, 3], udp6).unwrap().divides(), "one worker");
    assert!(!Rss::new(&KEY, &[4, 5], &[0, 1], udp6).unwrap().divides(), "nobody's queues");
    assert_eq!(format!("{rss:?}"), "Rss { 4 entries, workers: [5, 7], ports_hashed: Kinds(8) }");
}

proptest! {
    #[test]
    fn the_worker_is_that_of_the_naive_hash(
        key in proptest::collection::vec(any::<u8>(), KEY_BYTES_MIN..64),
        queues in proptest::collection::vec(0u32..6, 1..300),
        owners in proptest::collection::vec(0u16..4, 1..6),
        (src, dst, v6) in (any::<[u64; 2]>(), any::<[u64; 2]>(), any::<bool>()),
        (sport, dport) in any::<(u16, u16)>(),
        proto in prop_oneof![Just(Proto::Tcp), Just(Proto::Udp), Just(Proto::Sctp)],
    ) {
        let addr = |[high, low]: AddrWords| if v6 { [high, low] } else { [0, low & 0xffff_ffff] };
        let t = Tuple { src: addr(src), dst: addr(dst), sport, dport, proto, v6 };
        let rss = Rss::new(&key, &queues, &owners, all_kinds()).unwrap();
        let queue = queues[naive(&key, &input(&t, true)) as usize % queues.len()];
        for worker in 0..4 {
            let expected = owners.get(queue as usize) == Some(&worker);
            // A worker that no answer comes in at has no choice.
            let here = rss.answers(&t, worker).is_some_and(|answers| answers.come_back(dport));
            prop_assert_eq!(here, expected, "worker {}", worker);
        }
    }
}
