use super::*;
use crate::pktgen::profile::tests::profile;

const MACS: Macs = Macs { src: [2, 0, 0, 0, 0, 1], dst: [2, 0, 0, 0, 0, 0xab] };

/// A device's file as the kernel shows it after a run.
const DONE: &str = "Params: count 1000  min_pkt_size: 60  max_pkt_size: 60\nCurrent:\n     pkts-sofar: 998  errors: 2\n     started: 1us  stopped: 9us \
                    idle: 0us\nResult: OK: 8(c8+d0) usec, 998 (60byte,0frags)\n  124750000pps 59880Mb/sec (59880000000bps) errors: 2\n";

/// A directory like pktgen's. Commands are written over the start of its files; `shown` is what the device's file shows behind them.
fn directory(shown: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (file, text) in [("pgctrl", String::new()), (THREAD, String::new()), ("eth0", format!("{:80}\n{shown}", ""))] {
        std::fs::write(dir.path().join(file), text).unwrap();
    }
    dir
}

#[test]
fn a_device_is_told_the_profile() {
    let mut p = profile();
    (p.flows, p.choice, p.size) = (508, Choice::Uniform, Size::Fixed(512));
    let told = commands(&p, MACS, Some(50_000)).unwrap();
    assert_eq!(
        told,
        [
            "pkt_size 508",
            "delay 0",
            "dst_mac 02:00:00:00:00:ab",
            "dst_min 10.109.35.53",
            "dst_max 10.109.35.53",
            "src_min 10.0.0.1",
            "src_max 10.0.0.254",
            "udp_dst_min 53",
            "udp_dst_max 53",
            "udp_src_min 1024",
            "udp_src_max 1026",
            "flag UDPSRC_RND",
            "flag IPSRC_RND",
            "flag UDPCSUM",
            "ratep 50000"
        ]
    );
    (p.sources, p.targets) = ("fd00::/64".parse().unwrap(), vec!["[fd00:1::1]:53".parse().unwrap()]);
    let told = commands(&p, MACS, None).unwrap();
    assert!(told.contains(&"dst6 fd00:1::1".into()) && told.contains(&"src6 fd00::1".into()), "{told:?}");
    assert!(!told.iter().any(|c| c.starts_with("ratep")));
}

#[test]
fn what_pktgen_cannot_do_is_refused() {
    type Change = fn(&mut Profile);
    let cases: [(Change, &str); 4] = [
        (|p| p.protocol = Protocol::Tcp, "UDP only"),
        (|p| p.targets.push(p.targets[0]), "one destination"),
        (|p| p.size = Size::Imix, "one size"),
        (|p| p.choice = Choice::Zipf(1.0), "round-robin or uniform"),
    ];
    for (change, words) in cases {
        let mut changed = profile();
        change(&mut changed);
        let error = commands(&changed, MACS, None).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn a_run_writes_the_files_and_reads_the_result() {
    let dir = directory(DONE);
    let begins = |name: &str, text: &str| {
        let now = std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert!(now.starts_with(text), "{name}: {now}");
    };
    let mut pktgen = KernelPktgen::open(dir.path(), "eth0", &profile(), MACS, None).unwrap();
    begins(THREAD, "add_device eth0\n");
    begins("eth0", "flag UDPCSUM\n");
    assert_eq!(pktgen.send(1_000, u64::MAX).unwrap(), 998);
    begins("eth0", "count 1000\n");
    begins("pgctrl", "start\n");
    assert_eq!(pktgen.sent(), Sent { frames: 998, bytes: 998 * 60, blocked: 2, ..Sent::default() });
    drop(pktgen);
    begins(THREAD, "rem_device_all\n");
}

#[test]
fn a_run_that_failed_is_an_error() {
    for (shown, words) in
        [("", "has no result"), ("Result: No such parameter\n", "No such parameter"), ("Result: OK: 8 usec\n", "no pkts-sofar")]
    {
        let dir = directory(shown);
        let mut pktgen = KernelPktgen::open(dir.path(), "eth0", &profile(), MACS, None).unwrap();
        let error = pktgen.send(1_000, u64::MAX).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    let dir = directory(DONE);
    let error = format!("{:#}", KernelPktgen::open(dir.path(), "eth9", &profile(), MACS, None).unwrap_err());
    assert!(error.contains("`pkt_size 60` into") && error.contains("eth9"), "{error}");
}

#[test]
fn results_are_numbers_or_errors() {
    assert_eq!(number_after(DONE, "pkts-sofar:"), Some(998));
    assert_eq!(number_after(DONE, "errors:"), Some(2));
    assert_eq!(number_after(DONE, "nothing:"), None);
    assert_eq!(number_after("errors: x", "errors:"), None);
    let error = KernelPktgen::open(Path::new("/no/such/directory"), "eth0", &profile(), MACS, None).unwrap_err().to_string();
    assert!(error.contains("modprobe pktgen"), "{error}");
}
