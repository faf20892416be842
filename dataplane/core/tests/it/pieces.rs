//! SCTP with its CRC, and packets in pieces.

use nomagic_core::frame::Verdict;
use nomagic_core::reason::Reason;
use nomagic_core_fixtures::*;

fn world() -> World {
    World::new(services(), 256)
}

/// `(source, destination, whether the CRC holds)` of an SCTP packet over IPv4.
fn read_sctp(frame: &[u8]) -> (String, String, bool) {
    let addr = |at: usize| std::net::Ipv4Addr::new(frame[at], frame[at + 1], frame[at + 2], frame[at + 3]);
    let port = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    let mut sctp = frame[34..].to_vec();
    let crc = u32::from_le_bytes(sctp[8..12].try_into().unwrap());
    sctp[8..12].fill(0);
    (format!("{}:{}", addr(26), port(34)), format!("{}:{}", addr(30), port(36)), crc == naive_crc32c(&sctp))
}

#[test]
fn sctp_there_and_back_with_and_without_snat() {
    for (service, snat) in [("10.96.0.1:80", false), ("10.96.0.2:80", true)] {
        let mut w = world();
        let done = w.run(CLIENTS, &sctp_frame("10.0.0.2:40000", service, 1, 33));
        assert!(matches!(done.verdict, Verdict::Forward(PODS, _)));
        let (src, dst, holds) = read_sctp(&done.bytes);
        assert!(holds && dst.starts_with("192.168.1.") && dst.ends_with(":8080"));
        assert_eq!(src != "10.0.0.2:40000", snat, "{src}");
        let back = w.run(PODS, &sctp_frame(&dst, &src, 2, 64));
        assert_eq!(read_sctp(&back.bytes), (service.into(), "10.0.0.2:40000".into(), true));
        // A sender that left the CRC to its NIC; one whose packet was damaged on its way.
        let mut partial = sctp_frame("10.0.0.2:40000", service, 10, 8);
        partial[42..46].fill(0);
        assert!(read_sctp(&w.run(CLIENTS, &partial).bytes).2);
        let mut damaged = sctp_frame("10.0.0.2:40000", service, 0, 8);
        damaged[51] ^= 0x10;
        assert!(!read_sctp(&w.run(CLIENTS, &damaged).bytes).2, "damage is not healed");
        assert_eq!(w.counters.conntrack.created.get(), 1);
        // ABORT, then a new association from the same port.
        w.run(CLIENTS, &sctp_frame("10.0.0.2:40000", service, 6, 0));
        w.run(CLIENTS, &sctp_frame("10.0.0.2:40000", service, 1, 0));
        assert_eq!(w.counters.conntrack.replaced.get(), 1);
    }
}

#[test]
fn sctp_over_several_segments() {
    let frame = sctp_frame("10.0.0.2:40000", "10.96.0.1:80", 1, 901);
    for cut in [50, 101, 400] {
        let done = world().run_segments(CLIENTS, &frame[..cut], &[&frame[cut..700], &frame[700..]]);
        let whole = [&done.bytes[..], &frame[cut..]].concat();
        assert!(read_sctp(&whole).2);
    }
}

/// Cuts the IP payload of an untagged frame into fragments of `size` bytes (a multiple of 8), as RFC 791 and RFC 8200 4.5 say.
fn fragments(frame: &[u8], size: usize, id: u16) -> Vec<Vec<u8>> {
    let v6 = frame[14] >> 4 == 6;
    let payload = &frame[if v6 { 54 } else { 34 }..];
    let count = payload.chunks(size).len();
    let piece = |(i, chunk): (usize, &[u8])| {
        let offset = (i * size) as u16;
        let more = u16::from(i + 1 < count);
        let mut out = frame[..if v6 { 54 } else { 34 }].to_vec();
        if v6 {
            let next = std::mem::replace(&mut out[20], 44);
            out[18..20].copy_from_slice(&(chunk.len() as u16 + 8).to_be_bytes());
            out.extend([&[next, 0][..], &(offset | more).to_be_bytes(), &u32::from(id).to_be_bytes()].concat());
        } else {
            out[16..18].copy_from_slice(&(chunk.len() as u16 + 20).to_be_bytes());
            out[18..20].copy_from_slice(&id.to_be_bytes());
            out[20..22].copy_from_slice(&((offset / 8) | (more << 13)).to_be_bytes());
            out[24..26].fill(0);
            let sum = nomagic_core::checksum::checksum(&out[14..34]);
            out[24..26].copy_from_slice(&sum.to_be_bytes());
        }
        out.extend(chunk);
        out
    };
    payload.chunks(size).enumerate().map(piece).collect()
}

/// Puts fragments together again, as the receiver does.
fn reassemble(pieces: &[Vec<u8>]) -> Vec<u8> {
    let v6 = pieces[0][14] >> 4 == 6;
    let headers = if v6 { 62 } else { 34 };
    let mut out = pieces[0][..if v6 { 54 } else { 34 }].to_vec();
    for piece in pieces {
        if !v6 {
            assert_eq!(nomagic_core::checksum::checksum(&piece[14..34]), 0, "each fragment has a right header");
        }
        assert_eq!(piece[14 + 8..14 + 9], pieces[0][14 + 8..14 + 9]);
        out.extend(&piece[headers..]);
    }
    let payload = out.len() - if v6 { 54 } else { 34 };
    if v6 {
        out[20] = pieces[0][54];
        out[18..20].copy_from_slice(&(payload as u16).to_be_bytes());
    } else {
        out[16..18].copy_from_slice(&(payload as u16 + 20).to_be_bytes());
        out[20..22].fill(0);
        out[24..26].fill(0);
        let sum = nomagic_core::checksum::checksum(&out[14..34]);
        out[24..26].copy_from_slice(&sum.to_be_bytes());
    }
    out
}

#[test]
fn fragments_in_order_follow_their_first_one_both_ways() {
    for (client, service, snat) in [
        ("10.0.0.2:40000", "10.96.0.1:80", false),
        ("10.0.0.2:40000", "10.96.0.2:80", true),
        ("[fd00:a::2]:40000", "[fd00:96::1]:80", false),
        ("[fd00:a::2]:40000", "[fd00:96::2]:80", true),
    ] {
        let mut w = world();
        let request = Spec { payload: 4000, ..spec("udp", client, service, 0) };
        let through = |w: &mut World, port, spec: &Spec, id| {
            let sent = fragments(&spec.frame(), 1400, id);
            let got: Vec<Vec<u8>> = sent
                .iter()
                .map(|f| {
                    let done = w.run(port, f);
                    assert!(matches!(done.verdict, Verdict::Forward(..)), "{:?}", done.verdict);
                    done.bytes
                })
                .collect();
            assert_eq!(got.len(), 3);
            read(&reassemble(&got)).unwrap()
        };
        let seen = through(&mut w, CLIENTS, &request, 77);
        assert_eq!((seen.payload.len(), seen.tuple.src_addr() != request.src.ip()), (4000, snat));
        let back = Spec { src: (seen.tuple.dst_addr(), 8080).into(), dst: (seen.tuple.src_addr(), seen.tuple.sport).into(), ..request };
        let answer = through(&mut w, PODS, &back, 77);
        assert_eq!((answer.tuple, answer.payload.len()), (request.tuple().reversed(), 4000));
        // Unknown identification, too late, other peer: the kernel's.
        let stray = fragments(&request.frame(), 1400, 78);
        assert_eq!(w.run(CLIENTS, &stray[1]).verdict, Verdict::Kernel(Reason::Fragment));
        let late = fragments(&request.frame(), 1400, 77);
        w.now_ms += 7_000;
        assert_eq!(w.run(CLIENTS, &late[1]).verdict, Verdict::Kernel(Reason::Fragment));
        assert_eq!(w.counters.conntrack.created.get(), 1);
    }
}

#[test]
fn fragments_do_not_outlive_their_connection() {
    let mut w = world();
    let request = Spec { payload: 3000, ..spec("udp", "10.0.0.2:40000", "10.96.0.1:80", 0) };
    let pieces = fragments(&request.frame(), 1400, 5);
    w.run(CLIENTS, &pieces[0]);
    w.with(|ctx| ctx.table.for_each(|hit, _| assert!(ctx.table.end(hit).is_some())));
    assert_eq!(w.run(CLIENTS, &pieces[1]).verdict, Verdict::Kernel(Reason::Fragment));
    // The slot goes to another client's connection: still not that one's fragment.
    w.run(CLIENTS, &spec("udp", "10.0.0.2:40001", "10.96.0.1:80", 0).frame());
    assert_eq!(w.run(CLIENTS, &pieces[1]).verdict, Verdict::Kernel(Reason::Fragment));
}
