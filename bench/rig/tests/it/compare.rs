//! The comparison's rig, short and on a machine that need not be quiet: everything is measured once, and nothing is
//! left behind. What the figures are is not asserted.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use nomagic_bench::ndr::measure::{FACTOR, Task, measure};
use nomagic_bench::ndr::search::Method;
use nomagic_bench::pktgen::interface::Place;
use nomagic_bench::pktgen::profile::{Protocol, Size};
use nomagic_bench::pktgen::{BackendKind, Options};
use nomagic_bench::report::text;
use nomagic_bench::results::{Outcome, Results, Traffic, Verdict};
use nomagic_testbed::rig::{Netns, cable};

use crate::{all_cpus, bench, nomagic};

#[test]
fn a_short_comparison_measures_everything_and_leaves_nothing_behind() {
    let _cpus = all_cpus();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("results.json");
    let backlog = || std::fs::read_to_string("/proc/sys/net/core/netdev_max_backlog").unwrap();
    let backlog_before = backlog();
    let subjects = ["nomagic-1", "no-work", "nftables-1", "iptables-1", "routing", "nomagic-1000", "nftables-1000", "iptables-1000"];
    let (nomagic, out_text, subjects_text) = (nomagic(), out.to_str().unwrap(), subjects.join(","));
    let args = ["compare", "--accept-noise", "--rounds", "1", "--trial-ms", "50", "--flows", "2000", "--subjects", &subjects_text];
    let (pid, table) = bench(&[&args[..], &["--nomagic", nomagic.to_str().unwrap(), "--out", out_text]].concat());

    let results = Results::read(&out).unwrap();
    for subject in subjects {
        let row = results.rates.iter().find(|r| r.subject == subject && r.traffic == Traffic::Established).unwrap();
        assert_eq!(row.rounds.len(), 1, "{row:?}");
        assert!(row.generator_pps.unwrap() > 1_000.0, "{row:?}");
    }
    // Those with real rates have everything; a machine that is too busy may leave some without.
    let rated = |id: &str| results.rates.iter().any(|r| r.subject == id && r.traffic == Traffic::Established && r.rounds[0] > 0.0);
    assert!(subjects.iter().filter(|id| rated(id)).count() >= 4, "hardly any subject carried frames: {:?}", results.rates);
    for row in results.latencies.iter().filter(|r| rated(&r.subject)) {
        let Outcome::Measured(l) = &row.latency_us else { panic!("{row:?}") };
        assert!(l.min > 0.0 && l.p50 <= l.p99 && l.p99 <= l.max && l.max < 10e6, "{row:?}");
    }
    assert_eq!(results.latencies.len(), 5 * 3, "five subjects at three loads");
    assert!(results.cpu.iter().filter(|r| rated(&r.subject)).all(|r| r.per_packet.value().is_some()), "{:?}", results.cpu);
    for id in ["nomagic-1", "nftables-1", "iptables-1", "direct"] {
        let row = results.connections.iter().find(|r| r.subject == id).unwrap();
        assert!(row.seen_per_second.median > 10.0 && row.failed == 0, "{row:?}");
    }
    for id in ["nomagic-1000", "nftables-1000", "iptables-1000"] {
        let row = results.programming.iter().find(|r| r.subject == id).unwrap();
        assert!(row.ms.value().is_some_and(|ms| ms.median > 0.0), "{row:?}");
        if rated(id) {
            let row = results.churn.iter().find(|r| r.subject == id && r.event == "1,000 Services reloaded").unwrap();
            assert!(row.events >= 2 && row.timeline.iter().sum::<u64>() > 0, "{row:?}");
        }
    }
    for row in results.flood.iter().filter(|r| rated(&r.subject)) {
        let goodput = row.goodput.value().unwrap().median;
        assert!(goodput > 0.0 && goodput <= 1.0 && row.flood_pps > 0.0, "{row:?}");
    }
    assert_eq!(results.figures.len(), 6);
    assert!(
        results.figures.iter().all(|f| !f.found.is_empty() && (f.verdict != Verdict::NotMeasured || f.found.len() > 10)),
        "{:?}",
        results.figures
    );
    assert!(table.contains(&text::figures(&results)) && results.rig.trials > 50, "{table}");

    let namespaces = String::from_utf8(Command::new("ip").args(["netns", "list"]).output().unwrap().stdout).unwrap();
    assert!(!namespaces.contains(&format!("-{pid}-")), "{namespaces}");
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    assert!(!mounts.contains(&format!("nm-compare-{pid}-")), "{mounts}");
    let tables = std::fs::read_dir("/dev/shm").unwrap().flatten().filter(|e| e.file_name().to_string_lossy().contains(&format!("-{pid}-")));
    assert_eq!(tables.count(), 0, "a connection table was left behind");
    assert_eq!(backlog(), backlog_before);
}

#[test]
fn a_cable_is_no_faster_than_itself_and_so_not_measured() {
    let _cpus = all_cpus();
    let (a, b) = (Netns::new("ndr-t-a").unwrap(), Netns::new("ndr-t-b").unwrap());
    cable(&a, "gen0", &b, "sink0", 1).unwrap();
    let place = |name: &str, netns: &Netns| Place { name: name.into(), netns: Some(netns.name().into()) };
    let task = Task {
        options: Options {
            tx: place("gen0", &a),
            rx: Some(place("sink0", &b)),
            profile: nomagic_bench::compare::workload::profile(1, 100, Protocol::Udp, Size::Min),
            pcap: None,
            backend: BackendKind::Live,
            rate: None,
            duration: Duration::from_secs(1),
            count: None,
            count_only: true,
            dst_mac: None,
            allow_host: false,
        },
        trial: Duration::from_millis(100),
        repeat: 2,
        goals: vec![0.0],
        method: Method { precision: 0.1, tries: 1, step: 1.3, hopeless: 0.05, rates_max: 30 },
        baseline: None,
    };
    let report = measure(&task, &Arc::new(AtomicBool::new(false)), &mut |text| println!("{text}")).unwrap();
    println!("{report}");
    let goal = &report.goals[0];
    assert!(goal.repetitions.len() == 2 && report.trials > 3, "{report}");
    // The device is a cable like the baseline's: nothing shows that it is the limit, unless something disturbed one of them.
    match &goal.pps {
        Outcome::Measured(e) => assert!(e.median > 0.0 && report.baseline_pps as f64 >= FACTOR * e.median, "{report}"),
        Outcome::NotMeasured(why) if why.contains("every rate") => assert!(goal.repetitions.contains(&0), "{report}"),
        Outcome::NotMeasured(why) => assert!(why.contains("times this rate"), "{report}"),
    }
}
