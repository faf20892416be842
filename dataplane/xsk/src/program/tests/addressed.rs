//! Whose frame it is: MAC addresses, VLANs, the IPv4 header.

use aya::maps::HashMap;
use nomagic_core_fixtures::with_ipv4_options;

use super::*;
use crate::addressed::PortMacs;

const TAKEN: (u32, &str) = (REDIRECT, "taken");

/// A filter with rules, and a request to a Service.
fn bench() -> (Bench, Vec<u8>) {
    let mut bench = Bench::new(false);
    bench.maps.add(&rules()).unwrap();
    (bench, frame(&tuple(Proto::Tcp, "192.168.0.5:1000", "10.109.35.24:80"), Dress::default()))
}

fn to(frame: &[u8], mac: [u8; 6]) -> Vec<u8> {
    [&mac[..], &frame[6..]].concat()
}

fn tagged(frame: &[u8], tags: &[u8]) -> Vec<u8> {
    [&frame[..12], tags, &frame[12..]].concat()
}

#[test]
fn only_frames_to_the_ports_own_addresses_are_taken() {
    let (mut bench, request) = bench();
    for mac in [MAC, BRIDGE_MAC, VRRP_MAC] {
        assert_eq!(bench.outcome(&to(&request, mac)), TAKEN, "{mac:x?}");
    }
    let groups = [[0xff; 6], [1, 0, 0x5e, 0, 0, 0x12], [0x33, 0x33, 0, 0, 0, 1], [3, 0, 0, 0, 0, 1]];
    let strangers = [[0; 6], [2, 0xde, 0xad, 0xbe, 0xef, 1], [0xfe; 6], [0xfe, 0xff, 0xff, 0xff, 0xff, 0xff]];
    // Each bit counts.
    let near = (0..48).map(|bit| std::array::from_fn(|i| MAC[i] ^ if i == bit / 8 { 1 << (bit % 8) } else { 0 }));
    for mac in groups.into_iter().chain(strangers).chain(near) {
        assert_eq!(bench.outcome(&to(&request, mac)), (PASS, "pass_other_mac"), "{mac:x?}");
    }
    let reply = tuple(Proto::Udp, "192.168.7.7:80", "10.0.0.9:5555");
    assert!(bench.replies.insert(&reply, 0));
    let reply = frame(&reply, Dress::default());
    assert_eq!((bench.outcome(&reply), bench.outcome(&to(&reply, [0xff; 6])).0), (TAKEN, PASS), "replies as well");
}

#[test]
fn a_changed_address_is_followed_by_the_running_program() {
    let (mut bench, request) = bench();
    let new = [2, 0, 0, 0, 0, 0x99];
    program::set_macs(&mut bench.ebpf, PortMacs::of(&Bench::link(new, None))).unwrap();
    let outcomes = [new, MAC, BRIDGE_MAC, [0; 6]].map(|mac| bench.outcome(&to(&request, mac)).0);
    assert_eq!(outcomes, [REDIRECT, PASS, PASS, PASS]);
}

#[test]
fn a_redirect_port_has_addresses_of_its_own() {
    // The kernel runs the program as if the frame had come by the loopback interface.
    const LO: u32 = 1;
    let mut bench = Bench::with_constants(Constants { redirect_to: LO, ..Bench::constants() });
    bench.maps.add(&rules()).unwrap();
    let request = frame(&tuple(Proto::Tcp, "192.168.0.5:1000", "10.109.35.24:80"), Dress::default());
    let stranger = [2, 0xde, 0xad, 0xbe, 0xef, 1];
    let (plain, port_of_bridge) = (Bench::link(MAC, None), Bench::link(MAC, Some(BRIDGE_MAC)));
    let ports = [
        (None, [PASS, PASS, PASS]),
        (Some(PortMacs::of_redirect(&plain)), [REDIRECT, PASS, PASS]),
        (Some(PortMacs::of_redirect(&port_of_bridge)), [REDIRECT, REDIRECT, PASS]),
    ];
    for (macs, expected) in ports {
        for (ifindex, expected) in [(LO + 1, [PASS; 3]), (LO, expected)] {
            if macs.is_some() {
                program::set_redirect_macs(&mut bench.ebpf, ifindex, macs).unwrap();
            }
            let outcomes = [MAC, stranger, [0xff; 6]].map(|mac| bench.outcome(&to(&request, mac)).0);
            assert_eq!(outcomes, expected, "{macs:?} of {ifindex}");
            if macs.is_some() {
                program::set_redirect_macs(&mut bench.ebpf, ifindex, None).unwrap();
            }
        }
    }
}

#[test]
fn of_tagged_frames_priority_tags_and_configured_vlans_are_taken() {
    let (mut bench, request) = bench();
    for id in 0..4096u16 {
        for priority in [0, 0x1000, 0xa000, 0xf000] {
            let tag = [&[0x81, 0][..], &(id | priority).to_be_bytes()].concat();
            let expected = if id == 0 || id == VLAN { TAKEN } else { (PASS, "pass_vlan") };
            assert_eq!(bench.outcome(&tagged(&request, &tag)), expected, "{id} {priority:x}");
        }
    }
    let several: [&[u8]; 7] = [
        &[0x81, 0, 0, 0, 0x81, 0, 0, 0],
        &[0x81, 0, 0, 0, 0x81, 0, 0, 5],
        &[0x81, 0, 0, VLAN as u8, 0x81, 0, 0, 0],
        &[0x81, 0, 0, 0, 0x88, 0xa8, 0, 0],
        &[0x88, 0xa8, 0, VLAN as u8, 0x81, 0, 0, VLAN as u8],
        &[0x88, 0xa8, 0, 0],
        &[0x91, 0, 0, VLAN as u8],
    ];
    for tags in several {
        assert_eq!(bench.outcome(&tagged(&request, tags)), (PASS, "pass_vlan"), "{tags:x?}");
    }
    let cut = &tagged(&request, &[0x81, 0, 0, VLAN as u8])[..17];
    assert_eq!(bench.outcome(cut), (PASS, "pass_unreadable"));
}

#[test]
fn a_wrong_ipv4_header_checksum_is_the_kernels_to_count() {
    let (mut bench, request) = bench();
    let with_options = with_ipv4_options(&request, &[7, 7, 4, 1, 2, 3, 4, 1]);
    for (frame, header) in [(&request, 20), (&with_options, 28)] {
        assert_eq!(bench.outcome(frame), TAKEN);
        for bit in 8..header * 8 {
            let mut spoilt = frame.clone();
            spoilt[14 + bit / 8] ^= 1 << (bit % 8);
            assert_eq!(bench.outcome(&spoilt), (PASS, "pass_ipv4_checksum"), "bit {bit} of {header} bytes");
        }
    }
    // Sums that carry into each other's upper half.
    let mut random = 3;
    for _ in 0..2_000 {
        let mut frame = request.clone();
        for at in [15, 18, 19, 22, 26, 27, 28, 29] {
            frame[at] = splitmix64(&mut random) as u8 | if splitmix64(&mut random).is_multiple_of(2) { 0xf0 } else { 0 };
        }
        assert!(set_ipv4_checksum(&mut frame, 14));
        assert_eq!(bench.outcome(&frame), TAKEN, "{frame:x?}");
    }
}

#[test]
fn a_refused_first_fragment_leaves_no_word_for_the_others() {
    let (mut bench, _) = bench();
    let piece = |fragment| {
        let dress = Dress { fragment, ..Dress::default() };
        frame(&tuple(Proto::Udp, "192.168.0.5:1000", "10.109.35.25:80"), dress)
    };
    let (first, later) = (piece(0x2000), piece(0x0002));
    let mut spoilt = first.clone();
    spoilt[24] ^= 1;
    let others = [spoilt, to(&first, [0xff; 6]), tagged(&first, &[0x81, 0, 0, 5])];
    for refused in others {
        assert_eq!(bench.run(&refused), PASS);
        let fragments: HashMap<_, [u32; 10], u32> = bench.ebpf.map("fragments").unwrap().try_into().unwrap();
        assert_eq!(fragments.keys().count(), 0, "{refused:x?}");
    }
    assert_eq!((bench.outcome(&first), bench.outcome(&later)), (TAKEN, TAKEN));
}
