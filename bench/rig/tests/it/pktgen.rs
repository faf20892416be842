//! The generator and the sink at the two ends of a cable, and around a gateway.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use nomagic_bench::pktgen::interface::Place;
use nomagic_bench::pktgen::profile::{Choice, NewFlows, Profile, Protocol, Size};
use nomagic_bench::pktgen::report::Report;
use nomagic_bench::pktgen::{BackendKind, Options, run};
use nomagic_testbed::gateway::{ECHO_V4, ECHO_V6, GatewayProcess, write_files};
use nomagic_testbed::rig::{Netns, Scene, cable};

use crate::shared_cpus;

const FRAMES: u64 = 100_000;

fn place(name: &str, netns: &Netns) -> Place {
    Place { name: name.into(), netns: Some(netns.name().into()) }
}

fn options(tx: Place, rx: Place, backend: BackendKind) -> Options {
    Options {
        tx,
        rx: Some(rx),
        profile: Profile {
            targets: vec!["198.18.1.1:9".parse().unwrap()],
            sources: "198.18.0.0/24".parse().unwrap(),
            flows: 1_000,
            choice: Choice::RoundRobin,
            size: Size::Min,
            protocol: Protocol::Udp,
            new_flows: None,
            seed: 1,
        },
        pcap: None,
        backend,
        rate: None,
        duration: Duration::from_secs(20),
        count: Some(FRAMES),
        count_only: false,
        dst_mac: None,
        allow_host: false,
    }
}

fn pair(tag: &str) -> (Netns, Netns) {
    let (a, b) = (Netns::new(&format!("{tag}-a")).unwrap(), Netns::new(&format!("{tag}-b")).unwrap());
    cable(&a, "gen0", &b, "sink0", 1).unwrap();
    (a, b)
}

fn measure(options: &Options) -> Report {
    let report = run(options, &Arc::new(AtomicBool::new(false)), false).unwrap();
    println!("{report}\n");
    report
}

/// A rate that the sink's sockets can follow on a busy machine: here exact counts are wanted.
fn at_a_modest_rate(mut options: Options) -> Options {
    options.rate = Some(40_000);
    options
}

fn all_arrived(report: &Report, frames: u64, flows: u64) {
    let sink = report.sink.as_ref().unwrap();
    assert_eq!((report.sent, sink.arrived, sink.lost, sink.lost_at_sink), (frames, frames, 0, 0), "{report}");
    let checks = sink.checks.unwrap();
    assert_eq!((checks.received, checks.in_order), (frames, frames), "{report}");
    assert_eq!(sink.flows_seen, Some(flows), "{report}");
    let latency = sink.latency_us.unwrap();
    assert!(latency.min > 0.0 && latency.min <= latency.p50 && latency.p50 <= latency.p99_99 && latency.p99_99 <= latency.max * 1.001);
}

#[test]
fn every_backend_s_frames_all_arrive_and_are_right() {
    let _cpus = shared_cpus();
    let (a, b) = pair("pg-all");
    for backend in [BackendKind::AfXdp, BackendKind::Live] {
        let report = measure(&at_a_modest_rate(options(place("gen0", &a), place("sink0", &b), backend)));
        all_arrived(&report, FRAMES, 1_000);
        assert_eq!(report.flows_opened, 1_000);
    }
}

#[test]
fn families_protocols_sizes_and_choices() {
    let _cpus = shared_cpus();
    let (a, b) = pair("pg-kinds");
    for backend in [BackendKind::AfXdp, BackendKind::Live] {
        for v4 in [true, false] {
            for protocol in [Protocol::Udp, Protocol::Tcp, Protocol::SynFlood] {
                let mut o = at_a_modest_rate(options(place("gen0", &a), place("sink0", &b), backend));
                o.count = Some(6_000);
                (o.profile.protocol, o.profile.size, o.profile.choice, o.profile.flows) = (protocol, Size::Imix, Choice::Zipf(0.5), 50);
                if protocol == Protocol::SynFlood {
                    // All of a small range: each frame has another source.
                    (o.profile.choice, o.profile.sources) = (Choice::RoundRobin, "198.18.0.1".parse().unwrap());
                }
                if !v4 {
                    (o.profile.sources, o.profile.targets) = ("fd00::/64".parse().unwrap(), vec!["[fd00:1::1]:9".parse().unwrap()]);
                }
                let report = measure(&o);
                let flood_live = backend == BackendKind::Live && protocol == Protocol::SynFlood;
                all_arrived(&report, 6_000, if flood_live { 6_000 } else { 50 });
                assert_eq!(report.flows_opened, if protocol == Protocol::SynFlood { 6_000 } else { 50 }, "{report}");
            }
        }
    }
}

#[test]
fn new_flows_rate_and_duration_are_kept() {
    let _cpus = shared_cpus();
    let (a, b) = pair("pg-rate");
    let mut o = options(place("gen0", &a), place("sink0", &b), BackendKind::AfXdp);
    (o.rate, o.count, o.duration) = (Some(20_000), None, Duration::from_secs(1));
    o.profile.protocol = Protocol::Tcp;
    (o.profile.flows, o.profile.new_flows) = (100, Some(NewFlows { new: 1_000, frames: 20_000 }));
    let report = measure(&o);
    // The machine of the test may be busy: what is certain is that the rate is not exceeded.
    assert!(report.sent <= 20_033 && report.sent > 5_000, "{report}");
    assert!(report.elapsed_s >= 1.0 && report.elapsed_s < 3.0, "{report}");
    let wanted = 100 + report.sent / 20;
    assert!(report.flows_opened <= wanted && report.flows_opened >= wanted - 100, "{report}");
    all_arrived(&report, report.sent, 100);
}

#[test]
fn flat_out_every_frame_is_accounted_for() {
    let _cpus = shared_cpus();
    let (a, b) = pair("pg-flat");
    let mut o = options(place("gen0", &a), place("sink0", &b), BackendKind::Live);
    o.count = Some(1_000_000);
    let sink = measure(&o).sink.unwrap();
    let checks = sink.checks.unwrap();
    assert_eq!(sink.arrived + sink.lost, 1_000_000);
    assert_eq!(checks.received + sink.lost_at_sink, sink.arrived);
    assert_eq!(checks.in_order, checks.received, "nothing is corrupt, doubled or out of order");
    o.count_only = true;
    let sink = measure(&o).sink.unwrap();
    assert!(sink.checks.is_none() && sink.arrived > 0 && sink.arrived + sink.lost == 1_000_000);
}

#[test]
fn a_capture_is_replayed_and_other_frames_go_to_the_kernel() {
    let _cpus = shared_cpus();
    let (a, b) = pair("pg-pcap");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("three.pcap");
    let udp = |n: u8| {
        let mut out = Vec::new();
        let builder = etherparse::PacketBuilder::ethernet2([1; 6], [2; 6]).ipv4([198, 18, 0, 1], [198, 18, 1, 1], 64).udp(u16::from(n), 9);
        builder.write(&mut out, &[n; 30]).unwrap();
        out
    };
    let mut file: Vec<u8> = [0xa1b2_c3d4u32, 0x0004_0002, 0, 0, 65_535, 1].into_iter().flat_map(u32::to_le_bytes).collect();
    for frame in [udp(1), udp(2), udp(3)] {
        file.extend([0, 0, frame.len() as u32, frame.len() as u32].into_iter().flat_map(u32::to_le_bytes));
        file.extend(frame);
    }
    std::fs::write(&path, file).unwrap();
    let mut o = options(place("gen0", &a), place("sink0", &b), BackendKind::AfXdp);
    (o.pcap, o.count, o.rate) = (Some(path), Some(3_000), Some(30_000));
    let report = measure(&o);
    assert_eq!((report.sent, report.sink.unwrap().arrived), (3_000, 3_000));
    // A ping between the ends works while the sink is on: what is not the generator's passes it.
    a.ip("addr add 198.18.0.1/16 dev gen0").unwrap();
    b.ip("addr add 198.18.1.1/16 dev sink0").unwrap();
    let mut o = options(place("gen0", &a), place("sink0", &b), BackendKind::AfXdp);
    (o.rate, o.count) = (Some(1_000), Some(1_000));
    std::thread::scope(|scope| {
        let run = scope.spawn(|| measure(&o));
        std::thread::sleep(Duration::from_millis(300));
        a.exec("ping", &["-c", "2", "-i", "0.2", "-W", "2", "198.18.1.1"]).unwrap();
        all_arrived(&run.join().unwrap(), 1_000, 1_000);
    });
}

#[test]
fn a_service_s_frames_come_out_at_its_pods() {
    let _cpus = shared_cpus();
    let scene = Scene::new("pg-lb").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (config, state_dir) = write_files(dir.path()).unwrap();
    let gateway = GatewayProcess::start(&scene.gw, &crate::nomagic(), &config, &state_dir).unwrap();
    // Ranges without an address of the gateway itself: it does not take frames from those.
    for (from, to) in [("10.0.0.64/26", SocketAddr::new(ECHO_V4.into(), 53)), ("fd00:a::1:0/112", SocketAddr::new(ECHO_V6.into(), 53))] {
        let mut o = options(place("eth0", &scene.client), place("gw0", &scene.fabric), BackendKind::AfXdp);
        o.dst_mac = Some(scene.gw.link_mac("cl0").unwrap());
        (o.profile.targets, o.profile.sources, o.profile.flows) = (vec![to], from.parse().unwrap(), 300);
        (o.rate, o.count) = (Some(10_000), Some(20_000));
        let report = measure(&o);
        all_arrived(&report, 20_000, 300);
    }
    let status = gateway.status().unwrap();
    assert!(status.totals.counts.frames.forwarded.packets >= 40_000, "{status:?}");
    gateway.stop().unwrap();
}

#[test]
fn what_cannot_be_done_is_said() {
    let _cpus = shared_cpus();
    let (a, b) = pair("pg-refuse");
    a.ip("link set gen0 mtu 1200").unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let good = options(place("gen0", &a), place("sink0", &b), BackendKind::AfXdp);
    type Change = fn(&mut Options);
    let cases: [(Change, &str); 5] = [
        (|o| o.tx.name = "nothing0".into(), "nothing0"),
        (|o| o.rx = Some("lo".parse().unwrap()), "--allow-host-interface"),
        (
            |o| {
                o.rx = Some("lo".parse().unwrap());
                (o.pcap, o.allow_host) = (Some("/no/such.pcap".into()), true);
            },
            "ssh too",
        ),
        (
            |o| {
                o.backend = BackendKind::Live;
                o.profile.size = Size::Fixed(1219);
            },
            "MTU 1200 is too small for frames of 1215 bytes",
        ),
        (
            |o| {
                o.backend = BackendKind::Live;
                o.profile.new_flows = Some(NewFlows { new: 1, frames: 10 });
            },
            "--backend live cannot replace flows",
        ),
    ];
    for (change, words) in cases {
        let mut changed = good.clone();
        change(&mut changed);
        let error = format!("{:#}", run(&changed, &stop, false).unwrap_err());
        assert!(error.contains(words), "{error}");
    }
    assert_eq!(a.run(|| "lo".parse::<Place>().unwrap().enter(false).unwrap().queues).unwrap(), 1);
    // All that was attached is gone: the next run works.
    let mut o = at_a_modest_rate(good);
    o.count = Some(1_000);
    all_arrived(&measure(&o), 1_000, 1_000);
}
