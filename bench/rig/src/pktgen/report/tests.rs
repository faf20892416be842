use super::*;
use crate::pktgen::check::Checker;
use crate::pktgen::options::BackendKind;
use crate::pktgen::profile::tests::profile;
use crate::pktgen::sink::Checked;

fn options(rate: Option<u64>) -> Options {
    Options {
        tx: "eth0@a".parse().unwrap(),
        rx: Some("eth0@b".parse().unwrap()),
        profile: profile(),
        pcap: None,
        backend: BackendKind::AfXdp,
        rate,
        duration: Duration::from_secs(2),
        count: None,
        count_only: false,
        dst_mac: None,
        allow_host: false,
    }
}

fn outcome(options: &Options, frames: u64, blocked: u64, forgone: u64) -> Outcome<'_> {
    Outcome {
        options,
        backend: "X".into(),
        sent: Sent { frames, bytes: frames * 60, flows_opened: 3, blocked, ..Sent::default() },
        elapsed: Duration::from_secs(2),
        forgone,
        stopped: false,
        sink: None,
    }
}

#[test]
fn what_set_the_rate_is_named() {
    for (rate, frames, blocked, forgone, words) in [
        (Some(1_000), 2_000, 0, 0, "the requested rate"),
        (Some(1_000), 1_991, 5, 9, "the requested rate"),
        (Some(1_000), 1_500, 0, 500, "the generator's CPU time (500 frames"),
        (Some(1_000), 1_500, 7, 500, "the interface, which was full 7 times: X"),
        (None, 1_500, 7, 0, "the interface"),
        (None, 1_500, 0, 0, "the generator: X"),
    ] {
        let report = Report::new(&outcome(&options(rate), frames, blocked, forgone));
        assert!(report.limited_by.starts_with(words), "{}", report.limited_by);
    }
}

#[test]
fn rates_count_what_a_wire_carries() {
    // The smallest frames fill 10 Gbit/s at 14.88 million a second.
    let options = options(None);
    let mut full = outcome(&options, 14_880_952 * 2, 0, 0);
    full.elapsed = Duration::from_secs(2);
    let report = Report::new(&full);
    assert_eq!(report.sent_pps.round(), 14_880_952.0);
    assert!((report.sent_bps / 1e10 - 1.0).abs() < 1e-6, "{}", report.sent_bps);
    full.elapsed = Duration::ZERO;
    assert!(Report::new(&full).sent_pps.is_finite());
}

#[test]
fn losses_on_the_way_and_at_the_sink_are_told_apart() {
    let options = options(None);
    let mut o = outcome(&options, 100, 0, 0);
    let mut sink = SinkResult { arrived: 93, arrived_bytes: 93 * 60, lost_at_sockets: 4, checked: None, native: true };
    o.sink = Some(sink.clone());
    let report = Report::new(&o).sink.unwrap();
    assert_eq!((report.lost, report.lost_share, report.lost_at_sink, report.checks, report.latency_us), (7, 0.07, 4, None, None));

    let mut checker = Checker::new(0, 1);
    let template = |run| {
        let ends = crate::pktgen::template::Ends { src: "10.0.0.1:1".parse().unwrap(), dst: "10.0.0.2:2".parse().unwrap() };
        let macs = crate::pktgen::template::Macs { src: [2; 6], dst: [2; 6] };
        crate::pktgen::template::Template::new(&macs, &ends, profile().protocol, run, 0)
    };
    let mut frame = [0; 60];
    // Two of this run, one of them twice, and one of another run.
    for (run, sequence) in [(0, 0), (0, 1), (0, 1), (1, 2)] {
        template(run).finish(&mut frame, 60, sequence, 1_000);
        checker.observe(&frame, 26_000);
    }
    sink.arrived = 4;
    sink.checked = Some(Checked { counts: checker.counts(), flows_seen: checker.flows_seen(), latency_ns: checker.latency_ns().clone() });
    o.sink = Some(sink);
    let report = Report::new(&o);
    let (text, json) = (report.to_string(), serde_json::to_value(&report).unwrap());
    assert_eq!(report.sink.as_ref().unwrap().lost, 98);
    assert_eq!(json.pointer("/sink/checks/duplicated").unwrap(), 1);
    assert_eq!(json.pointer("/sink/checks/foreign").unwrap(), 1);
    assert_eq!(json.pointer("/sink/flows_seen").unwrap(), 1);
    assert!((json.pointer("/sink/latency_us/p99_99").unwrap().as_f64().unwrap() - 25.0).abs() < 0.1);
    for words in ["eth0@a -> eth0@b, X", "  lost            98  98.0000 %", "p99.99 25.0", "limited by the generator: X"] {
        assert!(text.contains(words), "{text}");
    }
}
