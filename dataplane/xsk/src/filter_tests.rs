//! The XDP program itself, run by the kernel on crafted frames (BPF_PROG_TEST_RUN) and compared with the core's reading of them.

use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use aya::Ebpf;
use aya::maps::PerCpuArray;
use aya::programs::{TestRun, TestRunOptions};
use nomagic_core::counters::XdpCounts;
use nomagic_core::filter::{BUCKET_SLOTS, ReplyFilter};
use nomagic_core::frame::{Frame, PortId};
use nomagic_core::parse::{NotPacket, parse};
use nomagic_core::tuple::{Proto, Tuple, splitmix64};

use crate::config::{EdgeConfig, OnFailure};
use crate::filter::{FilterMaps, FilterRules};
use crate::program::{self, Constants};
use crate::status::read_xdp;
use crate::{memory, sys};

const DROP: u32 = 1;
const PASS: u32 = 2;
const REDIRECT: u32 = 4;
const BUCKETS: u32 = 64;
/// What the kernel always routes to the internal port.
const INTERNAL: [&str; 2] = ["169.254.78.78", "fd4e::78"];
const SEED: u32 = 0x1234_5678;

/// A loaded program with an AF_XDP socket on queue 0 and a live worker.
struct Bench {
    ebpf: Ebpf,
    maps: FilterMaps,
    replies: ReplyFilter<'static>,
    heartbeat: &'static std::sync::atomic::AtomicU64,
    config: EdgeConfig,
    socket: Option<OwnedFd>,
}

impl Bench {
    fn new(take_everything: bool) -> Bench {
        Bench::with_buckets(BUCKETS, take_everything)
    }

    fn with_buckets(buckets: u32, take_everything: bool) -> Bench {
        let constants = Constants {
            reply_buckets: buckets,
            reply_seed: SEED,
            take_everything,
            redirect_to: 0,
            internal: INTERNAL.map(|a| a.parse().ok()),
        };
        let mut ebpf = program::load("test", constants, None).expect("loading needs root");
        let config = EdgeConfig::new("/nowhere", vec!["test".into()]);
        program::write_settings(&mut ebpf, &config).unwrap();
        let fd = |ebpf: &Ebpf, name| match ebpf.map(name) {
            Some(aya::maps::Map::Array(data)) => data.fd().as_fd().try_clone_to_owned().unwrap(),
            _ => panic!("{name} is no array"),
        };
        let words = memory::bpf_words32(fd(&ebpf, "replies").as_fd(), buckets as usize * BUCKET_SLOTS).unwrap();
        let heartbeats = memory::bpf_words64(fd(&ebpf, "heartbeats").as_fd(), 64).unwrap();
        heartbeats[0].store(sys::monotonic_ns(), Relaxed);
        // SAFETY: creates a new descriptor.
        let raw = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        assert!(raw >= 0, "{}", std::io::Error::last_os_error());
        // SAFETY: the descriptor was created above and belongs to nobody else.
        let socket = unsafe { OwnedFd::from_raw_fd(raw) };
        program::connect_queue(&mut ebpf, 0, socket.as_raw_fd(), 0).unwrap();
        let maps = FilterMaps::open(&mut ebpf).unwrap();
        let replies = ReplyFilter::new(words, SEED).unwrap();
        Bench { ebpf, maps, replies, heartbeat: &heartbeats[0], config, socket: Some(socket) }
    }

    fn run(&mut self, frame: &[u8]) -> u32 {
        let program = program::program(&mut self.ebpf).unwrap();
        program.test_run(TestRunOptions { data_in: Some(frame), ..TestRunOptions::default() }).unwrap().return_value
    }

    fn counters(&self) -> XdpCounts {
        let Some(aya::maps::Map::PerCpuArray(data)) = self.ebpf.map("stats") else { panic!("no stats") };
        let fd = data.fd().as_fd().try_clone_to_owned().unwrap();
        let map = aya::maps::Map::PerCpuArray(aya::maps::MapData::from_fd(fd).unwrap());
        read_xdp(&PerCpuArray::try_from(map).unwrap()).unwrap()
    }

    /// What the rules say about a packet.
    fn ours(&self, t: &Tuple) -> bool {
        let (dst, rules) = (t.dst_addr(), self.maps.rules());
        rules.services.contains(&(dst, t.dport, t.proto))
            || rules.addresses.contains(&dst)
            || rules.service_cidrs.iter().any(|p| p.contains(dst))
            || rules.snat.iter().any(|(a, first, last)| *a == dst && (*first..=*last).contains(&t.dport))
            || self.replies.contains(t)
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn tuple(proto: Proto, src: &str, dst: &str) -> Tuple {
    let (s, d): (std::net::SocketAddr, std::net::SocketAddr) = (src.parse().unwrap(), dst.parse().unwrap());
    Tuple::new(proto, s.ip(), s.port(), d.ip(), d.port()).unwrap()
}

/// How a frame is dressed.
#[derive(Clone, Copy, Default, Debug)]
struct Dress {
    vlan_tags: usize,
    ipv4_options: usize,
    /// IPv6 extension headers, by number.
    extensions: &'static [u8],
    /// Fragment offset and flags, where the family has them.
    fragment: u16,
}

fn frame(t: &Tuple, dress: Dress) -> Vec<u8> {
    let l4_len = if t.proto == Proto::Udp { 8 } else { 20 };
    let mut f = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    for i in 0..dress.vlan_tags {
        f.extend(if i + 1 < dress.vlan_tags { [0x88, 0xa8, 0, 5] } else { [0x81, 0, 0, 7] });
    }
    match (t.src_addr(), t.dst_addr()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let header = 20 + dress.ipv4_options * 4;
            f.extend([8, 0, 0x40 | (header / 4) as u8, 0, 0, (header + l4_len) as u8, 0, 1]);
            f.extend(dress.fragment.to_be_bytes());
            f.extend([64, t.proto as u8, 0, 0]);
            f.extend(src.octets());
            f.extend(dst.octets());
            f.extend(std::iter::repeat_n(1, dress.ipv4_options * 4));
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let mut chain = Vec::new();
            for (i, kind) in dress.extensions.iter().enumerate() {
                let next = dress.extensions.get(i + 1).copied().unwrap_or(t.proto as u8);
                let mut header = vec![next, u8::from(*kind == 60)];
                if *kind == 44 {
                    header = vec![next, 0];
                    header.extend(dress.fragment.to_be_bytes());
                }
                // Destination options are given 16 bytes, the others 8.
                header.resize(if *kind == 60 { 16 } else { 8 }, 0);
                chain.extend(header);
            }
            f.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            f.extend(((chain.len() + l4_len) as u16).to_be_bytes());
            f.extend([dress.extensions.first().copied().unwrap_or(t.proto as u8), 64]);
            f.extend(src.octets());
            f.extend(dst.octets());
            f.extend(chain);
        }
        _ => unreachable!("a tuple has one family"),
    }
    f.extend(t.sport.to_be_bytes());
    f.extend(t.dport.to_be_bytes());
    match t.proto {
        Proto::Udp => f.extend([0, 8, 0, 0]),
        _ => f.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]),
    }
    f
}

const DRESSES: [Dress; 8] = [
    Dress { vlan_tags: 0, ipv4_options: 0, extensions: &[], fragment: 0 },
    Dress { vlan_tags: 1, ipv4_options: 1, extensions: &[0], fragment: 0 },
    Dress { vlan_tags: 2, ipv4_options: 10, extensions: &[0, 60, 43], fragment: 0 },
    Dress { vlan_tags: 0, ipv4_options: 5, extensions: &[60, 60, 60, 60, 60, 60, 60], fragment: 0 },
    Dress { vlan_tags: 0, ipv4_options: 0, extensions: &[44], fragment: 0 },
    Dress { vlan_tags: 0, ipv4_options: 0, extensions: &[0, 44], fragment: 0x2001 },
    Dress { vlan_tags: 3, ipv4_options: 0, extensions: &[], fragment: 0 },
    Dress { vlan_tags: 1, ipv4_options: 2, extensions: &[0, 0, 0, 0, 0, 0, 0, 0, 0], fragment: 0x0010 },
];

fn rules() -> FilterRules {
    FilterRules {
        services: [(ip("10.109.35.24"), 80, Proto::Tcp), (ip("fd00:10::24"), 53, Proto::Udp)].into(),
        addresses: [ip("10.109.35.25"), ip("fd00:10::25")].into(),
        service_cidrs: ["10.110.0.0/16".parse().unwrap(), "fd00:11::/112".parse().unwrap()].into(),
        snat: [(ip("10.0.0.1"), 40_000, 40_999), (ip("fd00::1"), 40_000, 40_999)].into(),
    }
}

#[test]
fn the_filter_takes_what_the_rules_and_the_core_say() {
    let mut bench = Bench::new(false);
    bench.maps.apply(&rules()).unwrap();
    let mut tuples = vec![
        tuple(Proto::Tcp, "192.168.0.5:1000", "10.109.35.24:80"),
        tuple(Proto::Udp, "192.168.0.5:1000", "10.109.35.24:80"),
        tuple(Proto::Tcp, "192.168.0.5:1000", "10.109.35.24:81"),
        tuple(Proto::Tcp, "192.168.0.5:1000", "10.109.35.25:81"),
        tuple(Proto::Sctp, "192.168.0.5:1000", "10.109.35.25:81"),
        tuple(Proto::Sctp, "192.168.0.5:1000", "10.109.35.24:80"),
        tuple(Proto::Udp, "192.168.0.5:1000", "10.110.3.4:5"),
        tuple(Proto::Udp, "192.168.0.5:1000", "10.111.3.4:5"),
        tuple(Proto::Tcp, "192.168.7.7:80", "10.0.0.1:40000"),
        tuple(Proto::Tcp, "192.168.7.7:80", "10.0.0.1:40999"),
        tuple(Proto::Tcp, "192.168.7.7:80", "10.0.0.1:41000"),
        tuple(Proto::Tcp, "192.168.7.7:80", "10.0.0.1:39999"),
        tuple(Proto::Udp, "[fd00::5]:1000", "[fd00:10::24]:53"),
        tuple(Proto::Tcp, "[fd00::5]:1000", "[fd00:10::24]:53"),
        tuple(Proto::Tcp, "[fd00::5]:1000", "[fd00:10::25]:1"),
        tuple(Proto::Tcp, "[fd00::5]:1000", "[fd00:11::ff]:1"),
        tuple(Proto::Tcp, "[fd00::5]:1000", "[fd00:11::1:ff]:1"),
        tuple(Proto::Tcp, "[fd00::5]:1000", "[fd00::1]:40500"),
        // The IPv4 addresses' words in IPv6: other addresses.
        tuple(Proto::Tcp, "[::5]:1000", "[::10.109.35.24]:80"),
        tuple(Proto::Tcp, "[fd00::5]:1000", "[::10.109.35.25]:80"),
        tuple(Proto::Tcp, "[fd00::5]:1000", "[a6e::]:80"),
    ];
    for i in 0..40u8 {
        let proto = if i & 1 == 0 { Proto::Tcp } else { Proto::Udp };
        let v4 = tuple(proto, &format!("192.168.1.{i}:80"), "172.16.0.9:5555");
        let v6 = tuple(proto, &format!("[fd00:1::{i}]:80"), "[fd00:2::9]:5555");
        for t in [v4, v6] {
            if i < 20 {
                assert!(bench.replies.insert(&t));
            }
            tuples.push(t);
        }
    }
    let (mut taken, mut passed) = (0, 0);
    for t in &tuples {
        for dress in DRESSES {
            bench.heartbeat.store(sys::monotonic_ns(), Relaxed);
            let mut bytes = frame(t, dress);
            let action = bench.run(&bytes);
            let len = bytes.len();
            match parse(&Frame::new(&mut bytes, 0, len, PortId(0), 0)) {
                Ok(packet) => {
                    assert_eq!(packet.tuple, *t, "{dress:?}");
                    assert_eq!(action, if bench.ours(t) { REDIRECT } else { PASS }, "{t} {dress:?}");
                }
                Err(_) => assert_eq!(action, PASS, "{t} {dress:?}"),
            }
            *if action == REDIRECT { &mut taken } else { &mut passed } += 1;
        }
    }
    assert!(taken > 200 && passed > 200, "{taken} taken, {passed} passed");
    let counters = bench.counters();
    assert_eq!((counters.taken, counters.passed(), counters.dropped()), (taken, passed, 0));
    assert!(counters.pass_fragment > 0 && counters.pass_unreadable > 0 && counters.pass_not_ip > 0 && counters.pass_not_ours > 0);
}

#[test]
fn the_programs_places_are_the_lists_outcomes_in_order() {
    let header = include_str!("../bpf/maps.h");
    let (_, after) = header.split_once("enum stat {").expect("the enum");
    let (body, _) = after.split_once('}').expect("its end");
    let places: Vec<String> = body.split(',').map(|name| name.trim().to_lowercase()).filter(|name| !name.is_empty()).collect();
    let (last, places) = places.split_last().expect("places");
    assert_eq!((places, last.as_str()), (&XdpCounts::OUTCOMES.map(str::to_owned)[..], "stat_count"));
}

#[test]
fn later_fragments_follow_a_first_one_that_was_taken() {
    let mut bench = Bench::new(false);
    bench.maps.apply(&rules()).unwrap();
    let v4 = |fragment| Dress { fragment, ..Dress::default() };
    let v6 = |fragment| Dress { extensions: &[0, 44], fragment, ..Dress::default() };
    let cases = [
        ("192.168.0.5:1000", "10.109.35.24:80", [v4(0x2000), v4(0x2010), v4(0x0020)]),
        ("[fd00::5]:1000", "[fd00:10::25]:80", [v6(1), v6(0x101), v6(0x200)]),
    ];
    for (client, service, [first, middle, last]) in cases {
        let (ours, other) = (tuple(Proto::Tcp, client, service), tuple(Proto::Tcp, service, client));
        let mut run = |t: &Tuple, dress: Dress| {
            bench.heartbeat.store(sys::monotonic_ns(), Relaxed);
            bench.run(&frame(t, dress))
        };
        assert_eq!(run(&ours, middle), PASS, "before its first one");
        assert_eq!(run(&ours, first), REDIRECT);
        assert_eq!((run(&ours, middle), run(&ours, last)), (REDIRECT, REDIRECT));
        assert_eq!((run(&other, first), run(&other, middle)), (PASS, PASS), "not ours");
        let udp = Tuple { proto: Proto::Udp, ..ours };
        assert_eq!(run(&udp, last), PASS, "another protocol");
    }
}

#[test]
fn spoilt_frames_are_passed_or_agree_with_the_core() {
    let mut bench = Bench::new(false);
    bench.maps.apply(&rules()).unwrap();
    let seeds = [
        frame(&tuple(Proto::Tcp, "192.168.0.5:1000", "10.109.35.24:80"), DRESSES[2]),
        frame(&tuple(Proto::Udp, "[fd00::5]:1000", "[fd00:10::24]:53"), DRESSES[2]),
        frame(&tuple(Proto::Tcp, "[fd00::5]:1000", "[fd00:10::25]:53"), DRESSES[3]),
    ];
    let mut state = 42;
    let mut kernels = 0;
    for i in 0..4_000 {
        bench.heartbeat.store(sys::monotonic_ns(), Relaxed);
        let mut bytes = seeds[i % seeds.len()].clone();
        for _ in 0..splitmix64(&mut state) % 4 {
            let at = splitmix64(&mut state) as usize % bytes.len();
            bytes[at] = splitmix64(&mut state) as u8;
        }
        if splitmix64(&mut state).is_multiple_of(3) {
            bytes.truncate(14 + splitmix64(&mut state) as usize % (bytes.len() - 14));
        }
        let action = bench.run(&bytes);
        let len = bytes.len();
        match parse(&Frame::new(&mut bytes, 0, len, PortId(0), 0)) {
            Ok(packet) => assert_eq!(action, if bench.ours(&packet.tuple) { REDIRECT } else { PASS }, "{bytes:x?}"),
            Err(NotPacket::Kernel(_)) => {
                kernels += 1;
                assert_eq!(action, PASS, "{bytes:x?}");
            }
            // Taken if by chance the one before it left word for it.
            Err(NotPacket::Later(_)) => assert!(action == PASS || action == REDIRECT),
            // Broken, but perhaps with readable addresses and ports: taken and dropped by the core, or left to the kernel.
            Err(NotPacket::Malformed(_)) => assert!(action == PASS || action == REDIRECT),
        }
    }
    assert!(kernels > 100, "{kernels}");
}

#[test]
fn heartbeats_decide() {
    let mut bench = Bench::new(false);
    bench.maps.apply(&rules()).unwrap();
    let bytes = frame(&tuple(Proto::Tcp, "192.168.0.5:1000", "10.109.35.24:80"), Dress::default());
    let other = frame(&tuple(Proto::Tcp, "192.168.0.5:1000", "10.9.35.24:80"), Dress::default());
    let aged = |bench: &mut Bench, age: Duration| {
        bench.heartbeat.store(sys::monotonic_ns() - age.as_nanos() as u64, Relaxed);
        assert_eq!(bench.run(&other), PASS, "what is not ours never notices");
        bench.run(&bytes)
    };
    bench.heartbeat.store(0, Relaxed);
    assert_eq!(bench.run(&bytes), PASS, "no worker has ever run");
    assert_eq!(aged(&mut bench, Duration::ZERO), REDIRECT);
    assert_eq!(aged(&mut bench, Duration::from_millis(450)), REDIRECT);
    assert_eq!(aged(&mut bench, Duration::from_millis(550)), DROP);
    assert_eq!(aged(&mut bench, Duration::from_millis(1_950)), DROP);
    assert_eq!(aged(&mut bench, Duration::from_millis(2_050)), PASS);
    bench.config.on_failure = OnFailure::Drop;
    program::write_settings(&mut bench.ebpf, &bench.config).unwrap();
    assert_eq!(aged(&mut bench, Duration::from_millis(2_050)), DROP);
    // A closed socket leaves the map; the frame is dropped, not passed, while the heartbeat is fresh.
    bench.socket = None;
    assert_eq!(aged(&mut bench, Duration::ZERO), DROP);
    let c = bench.counters();
    assert_eq!((c.pass_never_started, c.taken, c.dropped_stale, c.failed_open, c.failed_closed, c.dropped_no_socket), (1, 2, 2, 1, 1, 1));
    assert_eq!((c.pass_not_ours, c.received()), (7, 15));
}

#[test]
fn the_internal_port_takes_all_but_group_addresses() {
    let mut bench = Bench::new(true);
    let mut bytes = frame(&tuple(Proto::Tcp, "192.168.0.5:1000", "10.9.9.9:80"), Dress::default());
    assert_eq!(bench.run(&bytes), REDIRECT);
    bytes[12..14].copy_from_slice(&[8, 6]);
    assert_eq!(bench.run(&bytes), REDIRECT, "even what is not IP");
    bytes[0] = 0x33;
    assert_eq!(bench.run(&bytes), PASS, "multicast");
}

#[test]
fn the_internal_port_gives_back_what_nobody_takes() {
    let mut bench = Bench::new(true);
    bench.maps.apply(&rules()).unwrap();
    let to = |src: &str, dst: &str| frame(&tuple(Proto::Tcp, src, dst), Dress::default());
    let service = to("192.168.0.5:1000", "10.109.35.24:80");
    let aged = |bench: &mut Bench, age_ms: u64, bytes: &[u8]| {
        bench.heartbeat.store(sys::monotonic_ns() - age_ms * 1_000_000, Relaxed);
        bench.run(bytes)
    };
    assert_eq!(
        (aged(&mut bench, 0, &service), aged(&mut bench, 1_000, &service), aged(&mut bench, 2_050, &service)),
        (REDIRECT, DROP, REDIRECT)
    );
    let mut icmp = to("192.168.0.5:1000", "10.9.9.9:80");
    icmp[23] = 1;
    for given_back in [to("192.168.0.5:1000", "203.0.113.7:22"), to("[fd00::5]:1000", "[fd4e::79]:80"), icmp] {
        assert_eq!(aged(&mut bench, 2_050, &given_back), REDIRECT);
    }
    // These would come again and again.
    for [src, dst] in [["192.168.0.5:1000", "169.254.78.78:61000"], ["[fd00::5]:1000", "[fd4e::78]:61000"]] {
        assert_eq!(aged(&mut bench, 2_050, &to(src, dst)), PASS);
    }
    let mut arp = service.clone();
    arp[12..14].copy_from_slice(&[8, 6]);
    assert_eq!(aged(&mut bench, 2_050, &arp), PASS);
    let c = bench.counters();
    assert_eq!((c.taken, c.dropped_stale, c.failed_open), (1, 1, 7));
    bench.config.on_failure = OnFailure::Drop;
    program::write_settings(&mut bench.ebpf, &bench.config).unwrap();
    assert_eq!(aged(&mut bench, 2_050, &service), DROP);
}

#[test]
fn rules_are_applied_as_differences_and_within_limits() {
    let mut bench = Bench::new(false);
    bench.maps.apply(&rules()).unwrap();
    assert_eq!(bench.maps.rules(), &rules());
    let mut fewer = rules();
    fewer.addresses.clear();
    fewer.snat = [(ip("10.0.0.1"), 50_000, 50_999)].into();
    bench.maps.apply(&fewer).unwrap();
    assert_eq!(bench.maps.rules(), &fewer);
    let reply = |port: u16| frame(&tuple(Proto::Tcp, "192.168.7.7:80", &format!("10.0.0.1:{port}")), Dress::default());
    assert_eq!((bench.run(&reply(40_000)), bench.run(&reply(50_000))), (PASS, REDIRECT));
    bench.maps.remove(&rules()).unwrap();
    assert_eq!(bench.maps.rules().len(), 1, "only what was not among them is left");
    let many = (0..70u8).map(|i| (IpAddr::from([10, 0, 1, i]), 1, 2)).collect();
    let error = bench.maps.add(&FilterRules { snat: many, ..FilterRules::default() }).unwrap_err();
    assert!(error.to_string().contains("room for 64 SNAT addresses, but there are 71"), "{error}");
    assert_eq!(bench.maps.rules().len(), 1, "refused as a whole");
}

/// Packets of a million connections' replies, and as many of others that differ from them in little.
#[test]
fn point_3_a_million_announced_replies() {
    const FLOWS: u32 = 1 << 20;
    let mut bench = Bench::with_buckets(FLOWS / 4, false);
    bench.maps.apply(&rules()).unwrap();
    let reply = |i: u32| {
        let client = std::net::Ipv4Addr::from(0x0a01_0000 | (i >> 12));
        let pod = std::net::Ipv4Addr::from(0xc0a8_0000 | (i % 251));
        Tuple::new(Proto::Tcp, pod.into(), 8080, client.into(), 20_000 + (i & 0xfff) as u16).unwrap()
    };
    let full = (0..FLOWS).filter(|&i| !bench.replies.insert(&reply(i))).count();
    assert_eq!((full, bench.replies.len()), (0, FLOWS as usize), "no bucket overflows at a quarter of its places");
    let (mut random, mut packets) = (7, 0u32);
    let mut next = |n: u32| (splitmix64(&mut random) % u64::from(n)) as u32;
    for _ in 0..40_000 {
        let i = next(FLOWS);
        let ours = reply(i);
        // The worker is alive, however long this takes.
        bench.heartbeat.store(sys::monotonic_ns(), Relaxed);
        assert_eq!(bench.run(&frame(&ours, Dress::default())), REDIRECT, "a reply of ours is missed: {ours:?}");
        // The node's own connections and those between pods: the same addresses and ports, crossed; other ports; other protocols.
        let foreign = match i % 4 {
            0 => Tuple { sport: 8081, ..ours },
            1 => Tuple { dport: ours.dport ^ 0x8000, ..ours },
            2 => Tuple { proto: Proto::Udp, ..ours },
            _ => Tuple { src: ours.dst, dst: ours.src, sport: ours.dport, dport: ours.sport, ..ours },
        };
        assert_eq!(bench.run(&frame(&foreign, Dress::default())), PASS, "not ours: {foreign:?}");
        packets += 1;
    }
    let counters = bench.counters();
    assert_eq!((counters.taken, counters.pass_not_ours), (u64::from(packets), u64::from(packets)));
    // Fingerprints that match by chance, among packets that the core is asked about alone: 3 in a million would be too many.
    let foreign = |i: u32| Tuple { sport: 443, ..reply(i) };
    let by_chance = (0..FLOWS).filter(|&i| bench.replies.contains(&foreign(i))).count();
    println!("{packets} packets of {FLOWS} announced replies taken, as many others passed; {by_chance} of {FLOWS} others match by chance");
    assert!(by_chance <= 3);
    (0..FLOWS).for_each(|i| assert!(bench.replies.remove(&reply(i))));
    assert!(bench.replies.is_empty());
    assert_eq!(bench.run(&frame(&reply(1), Dress::default())), PASS, "a connection that has ended");
}
