//! Datagrams in fragments arrive whole, with right checksums: SCTP with its CRC, UDP without a checksum, and a random mix against a naive model.

use nomagic_core::frame::Verdict;
use nomagic_core::reason::Reason;
use nomagic_core_fixtures::*;

use crate::fragments::{WAYS, edge, orders, send};

/// The SCTP packet in a frame of either family without options, and whether its CRC holds: `(ports, verification tag and chunks, CRC)`.
fn sctp_of(frame: &[u8]) -> ([u8; 4], Vec<u8>, bool) {
    let packet = &frame[if frame[14] >> 4 == 6 { 54 } else { 34 }..];
    let mut zeroed = packet.to_vec();
    zeroed[8..12].fill(0);
    let holds = naive_crc32c(&zeroed).to_le_bytes() == packet[8..12];
    (*packet.first_chunk().expect("ports"), [&packet[4..8], &packet[12..]].concat(), holds)
}

#[test]
fn sctp_fragments_in_any_order_and_with_other_ports() {
    for (service, snat) in [("10.96.0.1:80", false), ("10.96.0.2:80", true)] {
        let mut e = edge();
        let whole = sctp_frame("10.0.0.2:40000", service, 1, 2_001);
        let mut damaged = whole.clone();
        damaged[1_500] ^= 0x10;
        let mut without = whole.clone();
        without[42..46].fill(0);
        let mut id = 0;
        for order in orders(3) {
            for (frame, sound) in [(&whole, true), (&damaged, false), (&without, false)] {
                id += 1;
                send(&mut e, CLIENTS, &fragments(frame, 800, id), &order, id as usize % 2);
                let ((sent_ports, sent, sent_holds), (ports, got, holds)) = (sctp_of(frame), sctp_of(&e.arrived().expect("whole")));
                assert_eq!((got, ports[..2] != sent_ports[..2], sent_holds, holds), (sent, snat, sound, sound), "{order:?}");
                assert_eq!(ports[2..], 8080u16.to_be_bytes());
            }
        }
        assert_eq!((e.held(), e.world.live()), (0, 1));
        e.accounts_close();
    }
}

/// UDP without a checksum stays without, in both families.
#[test]
fn udp_fragments_without_a_checksum() {
    for (client, service, snat) in WAYS {
        let mut e = edge();
        let mut frame = Spec { payload: 3_000, ..spec("udp", client, service, 0) }.frame();
        let field = if client.starts_with('[') { 60 } else { 40 };
        frame[field..field + 2].fill(0);
        for (id, order) in orders(3).iter().enumerate() {
            send(&mut e, CLIENTS, &fragments(&frame, 1_400, id as u16), order, 0);
            let whole = e.arrived().expect("whole");
            assert_eq!((&whole[field..field + 2], &whole[field + 2..]), (&[0, 0][..], &frame[field + 2..]));
            assert_eq!(whole[field - 6..field - 4] != frame[field - 6..field - 4], snat);
        }
    }
}

/// A datagram of the random mix, with its fragments.
struct Mixed {
    whole: Spec,
    ours: bool,
    pieces: Vec<Vec<u8>>,
    first_worker: usize,
}

/// Datagrams of a few clients, cut anywhere, some for nobody.
fn mix(random: &mut u64) -> Vec<Mixed> {
    let mut below = |n: usize| nomagic_core::tuple::splitmix64(random) as usize % n;
    let datagram = |(id, ours): (usize, bool), below: &mut dyn FnMut(usize) -> usize| {
        let (client, service, _) = WAYS[below(4)];
        let other = if client.starts_with('[') { "[fd00:a::1]:53" } else { "10.0.0.1:53" };
        let proto = if below(2) == 0 { "udp" } else { "tcp" };
        let mut whole = Spec { payload: 900 + below(2_300), ..spec(proto, client, if ours { service } else { other }, SYN) };
        whole.src.set_port(40_000 + below(3) as u16);
        let (frame, headers) = (whole.frame(), if client.starts_with('[') { 54 } else { 34 });
        let (mut pieces, mut at) = (Vec::new(), 0);
        while at < frame.len() - headers {
            let end = (at + 64 + 8 * below(100)).min(frame.len() - headers);
            pieces.push(fragment(&frame, at..end, end < frame.len() - headers, id as u16));
            at = end;
        }
        Mixed { whole, ours, pieces, first_worker: below(2) }
    };
    let count = 1 + below(5);
    (0..count).map(|id| (id, below(4) > 0)).collect::<Vec<_>>().into_iter().map(|what| datagram(what, &mut below)).collect()
}

fn id_of(frame: &[u8]) -> usize {
    let at = if frame[14] >> 4 == 6 { 60 } else { 18 };
    usize::from(u16::from_be_bytes([frame[at], frame[at + 1]]))
}

proptest::proptest! {
    /// Against what must come out, said without the core: whatever the order, the cuts, the workers and the time between, each datagram that is for a
    /// Service arrives whole with the same payload and right checksums, each other one reaches the kernel as it was, and nothing else leaves.
    #[test]
    fn a_random_mix_arrives_whole(seed: u64, repeat: bool) {
        let mut random = seed;
        let datagrams = mix(&mut random);
        let mut below = |n: usize| nomagic_core::tuple::splitmix64(&mut random) as usize % n;
        let mut frames: Vec<(usize, usize)> = Vec::new();
        datagrams.iter().enumerate().for_each(|(id, datagram)| frames.extend((0..datagram.pieces.len()).map(|piece| (id, piece))));
        (1..frames.len()).rev().for_each(|i| frames.swap(i, below(i + 1)));
        let mut e = edge();
        for (id, piece) in &frames {
            let datagram = &datagrams[*id];
            // A NIC gives all later fragments of a datagram to one queue.
            let worker = if *piece == 0 { datagram.first_worker } else { id % 2 };
            for _ in 0..1 + usize::from(repeat && *piece > 0 && below(4) == 0) {
                e.receive(worker, CLIENTS, &datagram.pieces[*piece]);
            }
            e.world.now_ms += below(20) as u64;
            if below(3) == 0 {
                e.round();
            }
        }
        (0..3).for_each(|_| e.round());
        e.accounts_close();
        let settled = std::mem::take(&mut e.done);
        for (id, datagram) in datagrams.iter().enumerate() {
            let of = |wanted: fn(&Verdict) -> bool| -> Vec<Vec<u8>> {
                settled.iter().filter(|(verdict, bytes)| id_of(bytes) == id && wanted(verdict)).map(|(_, bytes)| bytes.clone()).collect()
            };
            let (sent, to_kernel) = (of(|v| matches!(v, Verdict::Forward(..))), of(|v| matches!(v, Verdict::Kernel(_))));
            if datagram.ours {
                let seen = read(&reassemble(&sent).expect("whole")).expect("sound");
                let payload: Vec<u8> = (0..datagram.whole.payload).map(|i| i as u8).collect();
                proptest::prop_assert!((seen.payload, seen.tuple.dport) == (payload, 8080));
                proptest::prop_assert_eq!(to_kernel.len(), 0);
            } else {
                let (got, as_sent) = (reassemble(&to_kernel).expect("whole"), datagram.whole.frame());
                let [got, as_sent] = [got, as_sent].map(|frame| read(&frame).expect("sound"));
                proptest::prop_assert!(sent.is_empty() && (got.tuple, got.ttl, got.payload) == (as_sent.tuple, as_sent.ttl, as_sent.payload));
            }
            let rest = of(|v| !matches!(v, Verdict::Forward(..) | Verdict::Kernel(_) | Verdict::Drop(Reason::FragmentOverlap)));
            proptest::prop_assert_eq!(rest.len(), 0);
        }
        // What a repeated fragment after the last one began waits in vain.
        proptest::prop_assert!(repeat || e.held() == 0);
    }
}
