//! IPv4 packets that are longer than the MTU of their way on. A naive splitter and a receiver that puts together say what is right; etherparse reads
//! every fragment.

use etherparse::{Ipv4Slice, SlicedPacket};
use nomagic_core::fragmenting::FRAGMENTS_MAX;
use nomagic_core::frame::{PortId, Verdict};
use nomagic_core::reason::Reason;
use nomagic_core_fixtures::*;
use proptest::prelude::*;

const UDP: usize = 8;
const HEADERS: usize = 34;
const CLIENT: &str = "10.0.0.2:40000";
const SERVICE: &str = "10.96.0.1:80";
/// With SNAT.
const SNAT: &str = "10.96.0.2:80";

/// The test world behind links with this MTU.
fn world(mtu: u16) -> World {
    let mut w = World::new(services(), 64);
    w.routes = routes_with_mtu(1, mtu.into());
    w
}

/// A client's datagram with an IP packet of this many bytes, which may be fragmented.
fn datagram(to: &str, ip_len: usize) -> Vec<u8> {
    let mut frame = Spec { payload: ip_len - 20 - UDP, ..spec("udp", CLIENT, to, 0) }.frame();
    frame[18..20].copy_from_slice(&[0xbe, 0xef]);
    allow_fragments(&mut frame);
    frame
}

/// What etherparse reads in a fragment: offset in bytes, more fragments, payload.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Piece {
    offset: usize,
    more: bool,
    payload: Vec<u8>,
    options: Vec<u8>,
}

/// Reads an IPv4 frame whose header has no fault. `original`: what it is a part of.
fn piece(frame: &[u8], original: &[u8], mtu: usize) -> Piece {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let Some(etherparse::NetSlice::Ipv4(ip)) = packet.net else { panic!("no IPv4") };
    let (header, whole) = (ip.header().to_header(), Ipv4Slice::from_slice(&original[14..]).unwrap().header().to_header());
    assert_eq!(header.calc_header_checksum(), header.header_checksum);
    assert!(usize::from(header.total_len) <= mtu && frame.len() == 14 + usize::from(header.total_len));
    assert_eq!(
        (header.identification, header.dont_fragment, header.dscp, header.ecn),
        (whole.identification, false, whole.dscp, whole.ecn)
    );
    assert_eq!((header.time_to_live, header.protocol), (whole.time_to_live - 1, whole.protocol), "one hop less");
    let (payload, options) = (ip.payload().payload.to_vec(), header.options.to_vec());
    Piece { offset: usize::from(header.fragment_offset.value()) * 8, more: header.more_fragments, payload, options }
}

/// How many bytes of payload the fragments of a packet have, said anew: as many as fit, a multiple of 8 but in the last one.
fn lengths(mut left: usize, room: usize) -> Vec<usize> {
    let mut lengths = Vec::new();
    while left > room {
        lengths.push(room / 8 * 8);
        left -= room / 8 * 8;
    }
    lengths.push(left);
    lengths
}

/// Sends a frame, which becomes fragments, in a world like `w` but for the MTU, to say what they are fragments of.
fn whole(services: nomagic_core::services::Services, port: PortId, frame: &[u8]) -> Vec<u8> {
    let mut w = World::new(services, 64);
    w.routes = routes_with_mtu(1, 65_535);
    let done = w.run(port, frame);
    assert!(matches!(done.verdict, Verdict::Forward(..)), "{:?}", done.verdict);
    done.bytes
}

#[test]
fn packets_are_cut_at_the_mtu_and_in_multiples_of_eight() {
    for (mtu, ip_len, expected) in [
        (1_400, 1_400, vec![]),
        (1_400, 1_401, vec![1_376, 5]),
        (1_400, 1_408, vec![1_376, 12]),
        // Of the last fragment's room, 4 bytes are no multiple of 8.
        (1_400, 1_376 + 1_400, vec![1_376, 1_380]),
        (1_400, 1_376 + 1_401, vec![1_376, 1_376, 5]),
        (1_396, 2 * 1_376 + 20, vec![1_376, 1_376]),
        (1_396, 2 * 1_376 + 21, vec![1_376, 1_376, 1]),
        (1_280, 1_500, vec![1_256, 224]),
        (68, 100, vec![48, 32]),
        (28, 44, vec![8, 8, 8]),
    ] {
        for to in [SERVICE, SNAT] {
            let (mut w, frame) = (world(mtu), datagram(to, ip_len));
            let done = w.run(CLIENTS, &frame);
            assert_eq!(lengths(ip_len - 20, usize::from(mtu) - 20).len(), expected.len().max(1), "{mtu} {ip_len}");
            if expected.is_empty() {
                assert!(matches!(done.verdict, Verdict::Forward(PODS, _)));
                assert_eq!(w.counters.path.fragmented.get(), 0);
                continue;
            }
            assert!(matches!(done.verdict, Verdict::Fragment(PODS, _, by) if by == mtu), "{:?}", done.verdict);
            let pieces: Vec<Piece> = done.fragments.iter().map(|f| piece(f, &frame, mtu.into())).collect();
            assert_eq!(pieces.iter().map(|p| p.payload.len()).collect::<Vec<_>>(), expected);
            let offsets: Vec<usize> = expected.iter().scan(0, |at, len| Some(std::mem::replace(at, *at + len))).collect();
            assert_eq!(pieces.iter().map(|p| p.offset).collect::<Vec<_>>(), offsets, "in order");
            assert!(pieces.iter().enumerate().all(|(i, p)| p.more == (i + 1 < pieces.len())));
            let seen = read(&reassemble(&done.fragments).unwrap()).expect("a sound packet");
            assert_eq!((seen.tuple.src_addr() == ip("10.0.0.1"), seen.payload), (to == SNAT, frame[HEADERS + UDP..].to_vec()));
            assert_eq!((w.counters.path.fragmented.get(), w.live()), (1, 1));
            let frames = w.reconciled();
            assert_eq!((frames.forwarded.packets, frames.forwarded.bytes), (1, frame.len() as u64));
        }
    }
}

#[test]
fn known_flows_and_answers_are_fragmented_too() {
    for to in [SERVICE, SNAT] {
        let mut w = world(1_400);
        let first = w.run(CLIENTS, &datagram(to, 100));
        let there = read(&first.bytes).unwrap().tuple;
        let done = w.run(CLIENTS, &datagram(to, 1_500));
        assert!(matches!(done.verdict, Verdict::Fragment(PODS, ..)));
        assert_eq!(read(&reassemble(&done.fragments).unwrap()).unwrap().tuple, there);
        let spec = Spec {
            payload: 1_472,
            ..spec("udp", &format!("{}:8080", there.dst_addr()), &format!("{}:{}", there.src_addr(), there.sport), 0)
        };
        let mut answer = spec.frame();
        // What may not be fragmented is not.
        let told = w.run(PODS, &answer);
        assert_eq!((told.verdict, &told.made[0][34..36]), (Verdict::Drop(Reason::TooBig), &[3, 4][..]));
        allow_fragments(&mut answer);
        let done = w.run(PODS, &answer);
        assert!(matches!(done.verdict, Verdict::Fragment(CLIENTS, ..)));
        let seen = read(&reassemble(&done.fragments).unwrap()).unwrap();
        assert_eq!((seen.tuple, seen.payload.len()), (self::spec("udp", to, CLIENT, 0).tuple(), 1_472));
        assert_eq!((w.counters.path.fragmented.get(), w.live()), (2, 1));
        w.reconciled();
    }
}

#[test]
fn what_may_not_be_fragmented_is_dropped_as_it_was() {
    let v6 = Spec { payload: 1_472, ..spec("udp", "[fd00:a::2]:40000", "[fd00:96::1]:80", 0) }.frame();
    let df = Spec { payload: 1_472, ..spec("udp", CLIENT, SERVICE, 0) }.frame();
    let free = datagram(SERVICE, 1_500);
    let mut dying = free.clone();
    dying[22] = 1;
    assert!(set_ipv4_checksum(&mut dying, 14));
    for (fragment, mtu, frame, reason, told) in [
        (true, 1_400, &v6, Reason::TooBig, Some([2, 0])),
        (true, 1_400, &df, Reason::TooBig, Some([3, 4])),
        (false, 1_400, &df, Reason::TooBig, Some([3, 4])),
        (false, 1_400, &free, Reason::TooBig, None),
        (true, 1_400, &dying, Reason::TtlExceeded, Some([11, 0])),
        // Not even 8 bytes fit beside the header.
        (true, 27, &free, Reason::TooBig, None),
    ] {
        let mut w = world(mtu);
        w.services.fragment = fragment;
        let done = w.run(CLIENTS, frame);
        assert_eq!((done.verdict, &done.bytes), (Verdict::Drop(reason), frame));
        let l4 = if frame == &v6 { 54 } else { 34 };
        assert_eq!(done.made.first().map(|made| [made[l4], made[l4 + 1]]), told, "{fragment} {mtu}");
        assert_eq!((w.counters.path.fragmented.get(), w.live()), (0, 0));
        w.reconciled();
    }
}

#[test]
fn the_limit_of_fragments_is_kept() {
    let room = 48;
    for (count, fits) in [(FRAGMENTS_MAX, true), (FRAGMENTS_MAX + 1, false)] {
        let mut w = world(68);
        let done = w.run(CLIENTS, &datagram(SERVICE, 20 + count * room));
        assert_eq!(done.fragments.len(), if fits { FRAGMENTS_MAX } else { 0 });
        assert!(fits || done.verdict == Verdict::Drop(Reason::TooManyFragments));
    }
}

#[test]
fn options_are_in_the_fragments_that_they_are_for() {
    // Record route (first only), a security option (in all), a NOP, a timestamp (first only), the end, and what nobody reads.
    let options = [7, 7, 4, 0, 0, 0, 0, 130, 3, 9, 1, 68, 4, 5, 0, 0, 7, 3, 4, 5];
    let rest = [1, 1, 1, 1, 1, 1, 1, 130, 3, 9, 1, 1, 1, 1, 1, 0, 7, 3, 4, 5];
    let frame = with_ipv4_options(&datagram(SERVICE, 1_500), &options);
    let done = world(1_400).run(CLIENTS, &frame);
    let pieces: Vec<Piece> = done.fragments.iter().map(|f| piece(f, &frame, 1_400)).collect();
    assert_eq!(pieces.iter().map(|p| p.payload.len()).collect::<Vec<_>>(), [1_360, 120]);
    assert_eq!([&pieces[0].options, &pieces[1].options], [&options.to_vec(), &rest.to_vec()]);
    // Those of a fragment that is not the first one are as they should be already.
    let mut later = with_ipv4_options(&fragment(&datagram(SERVICE, 3_000), 1_480..2_960, true, 0xbeef), &rest);
    let mut w = world(1_400);
    w.run(CLIENTS, &fragment(&datagram(SERVICE, 3_000), 0..1_480, true, 0xbeef));
    later[18..20].copy_from_slice(&[0xbe, 0xef]);
    assert!(set_ipv4_checksum(&mut later, 14));
    let done = w.run(CLIENTS, &later);
    assert_eq!(done.fragments.iter().map(|f| piece(f, &later, 1_400).options).collect::<Vec<_>>(), [rest, rest]);
}

#[test]
fn fragments_become_fragments() {
    let frame = datagram(SERVICE, 4_000);
    let mut w = world(1_300);
    let mut out = Vec::new();
    for (i, part) in fragments(&frame, 1_480, 0xbeef).iter().enumerate() {
        let done = w.run(CLIENTS, part);
        let pieces: Vec<Piece> = done.fragments.iter().map(|f| piece(f, part, 1_300)).collect();
        let expected: &[_] = match i {
            0 => &[(0, true, 1_280), (1_280, true, 200)],
            1 => &[(1_480, true, 1_280), (2_760, true, 200)],
            _ => &[],
        };
        assert_eq!(pieces.iter().map(|p| (p.offset, p.more, p.payload.len())).collect::<Vec<_>>(), expected);
        out.extend(if expected.is_empty() { vec![done.bytes] } else { done.fragments });
    }
    let expected = whole(services(), CLIENTS, &frame);
    // The DF bit that the receiver sees is that of the first fragment.
    assert_eq!(read(&reassemble(&out).unwrap()).unwrap(), read(&expected).unwrap());
    assert_eq!((w.counters.path.fragmented.get(), w.reconciled().forwarded.packets), (2, 3));
}

#[test]
fn a_checksum_that_was_left_to_the_nic_is_completed_before() {
    for proto in ["udp", "tcp"] {
        let spec = Spec { payload: 1_472, ..spec(proto, CLIENT, SERVICE, SYN) };
        let mut frame = spec.frame();
        allow_fragments(&mut frame);
        let complete = frame.clone();
        make_partial(&mut frame, &spec);
        let mut w = world(1_400);
        let done = w.run(CLIENTS, &frame);
        let reassembled = reassemble(&done.fragments).unwrap();
        assert_eq!(read(&reassembled).unwrap().payload, read(&complete).unwrap().payload);
        assert_eq!(w.counters.path.checksum_completed.get(), 1);
    }
}

#[test]
fn sctp_packets_keep_their_checksum() {
    let mut frame = sctp_frame(CLIENT, SERVICE, 1, 1_464);
    allow_fragments(&mut frame);
    let done = world(1_400).run(CLIENTS, &frame);
    let mut packet = reassemble(&done.fragments).unwrap();
    let crc = u32::from_le_bytes(packet[42..46].try_into().unwrap());
    packet[42..46].fill(0);
    assert_eq!((done.fragments.len(), naive_crc32c(&packet[34..])), (2, crc));
}

#[test]
fn icmp_errors_that_may_be_fragmented_are() {
    let mut w = world(1_500);
    let question = spec("udp", CLIENT, SERVICE, 0);
    let there = read(&w.run(CLIENTS, &question.frame()).bytes).unwrap().tuple;
    let quoted = Spec { payload: 500, ..spec("udp", &format!("{}", question.src), &format!("{}:8080", there.dst_addr()), 0) }.frame();
    let mut error = IcmpSpec { from: there.dst_addr(), to: ip("10.0.0.2"), kind: 3, code: 3, rest: [0; 4] }.frame(&quoted[14..]);
    allow_fragments(&mut error);
    w.routes = routes_with_mtu(2, 500);
    let done = w.run(PODS, &error);
    assert!(matches!(done.verdict, Verdict::Fragment(CLIENTS, ..)), "{:?}", done.verdict);
    let packet = reassemble(&done.fragments).unwrap();
    assert_eq!((nomagic_core::checksum::checksum(&packet[34..]), done.fragments.len()), (0, 2));
    assert_eq!(w.counters.path.read().icmp_errors.total(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn fragments_are_the_packet_as_it_would_have_been_forwarded(
        mtu in 92..1_600u16,
        ip_len in 100..9_001usize,
        cuts in prop::collection::vec(60..9_000usize, 0..4),
        option_words in 0..6usize,
        option in prop_oneof![Just(7u8), Just(130), Just(1)],
        id in any::<u16>(),
        tagged in any::<bool>(),
        snat in any::<bool>(),
        partial in any::<bool>(),
    ) {
        let to = if snat { SNAT } else { SERVICE };
        let mut frame = datagram(to, ip_len);
        frame[18..20].copy_from_slice(&id.to_be_bytes());
        if partial {
            make_partial(&mut frame, &Spec { payload: ip_len - 28, ..spec("udp", CLIENT, to, 0) });
        }
        prop_assert!(set_ipv4_checksum(&mut frame, 14));
        let mut options = vec![1; 4 * option_words];
        if option_words > 0 && option != 1 {
            (options[0], options[1]) = (option, 4);
        }
        let plain = with_ipv4_options(&frame, &options);
        let expected = whole(services(), CLIENTS, &plain);
        let mut sent = plain.clone();
        if tagged {
            sent.splice(12..12, [0x81, 0, 0, 0]);
        }
        // Headers in the first segment, the rest anywhere.
        let mut at: Vec<usize> = cuts.iter().map(|cut| (*cut).clamp(4 + HEADERS + 40 + UDP, sent.len())).chain([sent.len()]).collect();
        at.sort_unstable();
        let tail: Vec<&[u8]> = at.windows(2).map(|w| &sent[w[0]..w[1]]).collect();
        let mut w = world(mtu);
        let done = w.run_segments(CLIENTS, &sent[..at[0]], &tail);
        if plain.len() - 14 <= mtu.into() {
            prop_assert!(matches!(done.verdict, Verdict::Forward(..)));
            return Ok(());
        }
        let header_len = 20 + options.len();
        let lengths = lengths(ip_len - 20, usize::from(mtu) - header_len);
        if lengths.len() > FRAGMENTS_MAX {
            prop_assert_eq!(done.verdict, Verdict::Drop(Reason::TooManyFragments));
            return Ok(());
        }
        prop_assert!(matches!(done.verdict, Verdict::Fragment(..)), "{:?}", done.verdict);
        let pieces: Vec<Piece> = done.fragments.iter().map(|f| piece(f, &plain, mtu.into())).collect();
        prop_assert_eq!(pieces.iter().map(|p| p.payload.len()).collect::<Vec<_>>(), lengths);
        let mut payload: Vec<u8> = Vec::new();
        for (i, piece) in pieces.iter().enumerate() {
            prop_assert_eq!((piece.offset, piece.offset % 8, piece.more), (payload.len(), 0, i + 1 < pieces.len()));
            let copied = i == 0 || option & 0x80 != 0;
            prop_assert_eq!(&piece.options, &if copied { options.clone() } else { vec![1; options.len()] });
            payload.extend(&piece.payload);
        }
        prop_assert_eq!(&payload[..], &expected[14 + header_len..]);
        prop_assert_eq!(&done.fragments[0][..14], &expected[..14]);
        w.reconciled();
    }
}
