//! SCTP with its CRC, and frames in segments.

use nomagic_core::frame::Verdict;
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
