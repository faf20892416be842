use std::path::Path;

use clap::Parser;

use super::finding::{CheckState, Finding};
use super::*;

/// A machine in a directory, with canned output of programs.
struct Fake {
    dir: tempfile::TempDir,
    outputs: Vec<(String, String)>,
    features: Option<u64>,
    segments: bool,
}

impl Fake {
    /// A gateway that passes all checks.
    fn good() -> Fake {
        let fake = Fake { dir: tempfile::tempdir().unwrap(), outputs: Vec::new(), features: Some(0xf), segments: false };
        fake.with("proc/self/status", "Name:\tx\nCapEff:\t000000c000007000\n")
            .with("proc/sys/kernel/osrelease", "6.18.0-gateway\n")
            .with("boot/config-6.18.0-gateway", "CONFIG_BPF_SYSCALL=y\nCONFIG_BPF_JIT=y\nCONFIG_XDP_SOCKETS=y\n")
            .with("proc/sys/net/core/bpf_jit_enable", "1\n")
            .with("proc/self/limits", "Limit\nMax locked memory         8388608              8388608              bytes\n")
            .with("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "performance\n")
            .with("sys/devices/system/cpu/cpu1/cpufreq/scaling_governor", "performance\n")
            .with("proc/sys/net/ipv4/ip_forward", "1\n")
            .with("proc/sys/net/ipv4/ip_local_port_range", "32768\t60999\n")
            .with("proc/sys/net/ipv4/ip_local_reserved_ports", "\n")
            .with("sys/class/net/eth1/carrier", "1\n")
            .with("sys/class/net/eth1/operstate", "up\n")
            .with("sys/class/net/eth1/mtu", "1500\n")
            .output("ip -d link show dev eth1", "2: eth1: <UP>\n    link/ether 02:00:00:00:00:01\n")
            .output("ethtool -l eth1", "Pre-set maximums:\nRX: n/a\nCombined: 8\nCurrent hardware settings:\nRX: n/a\nCombined: 4\n")
            .output("ethtool -n eth1 rx-flow-hash udp4", "IP SA\nIP DA\nL4 bytes 0 & 1 [TCP/UDP src port]\nL4 bytes 2 & 3 [dst port]\n")
            .output("ethtool -n eth1 rx-flow-hash udp6", "IP SA\nIP DA\nL4 bytes 0 & 1 [TCP/UDP src port]\nL4 bytes 2 & 3 [dst port]\n")
            .output("ethtool -k eth1", "Features for eth1:\nlarge-receive-offload: off [fixed]\nrx-vlan-offload: off\n")
            .output("ethtool -a eth1", "Pause parameters for eth1:\nAutonegotiate:\toff\nRX:\t\toff\nTX:\t\toff\n")
    }

    fn with(self, path: &str, text: &str) -> Fake {
        let path = self.dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
        self
    }

    fn without(self, path: &str) -> Fake {
        std::fs::remove_file(self.dir.path().join(path)).unwrap();
        self
    }

    /// Sets a command's output. A later call replaces an earlier one.
    fn output(mut self, command: &str, text: &str) -> Fake {
        self.outputs.insert(0, (command.into(), text.into()));
        self
    }

    fn report(&self) -> PreflightReport {
        args("--interface eth1 --workers 4").report(self).unwrap()
    }

    fn finding(&self, name: &str) -> Finding {
        self.report().findings.into_iter().find(|f| f.name == name).unwrap_or_else(|| panic!("no check {name}"))
    }
}

impl Host for Fake {
    fn root(&self) -> &Path {
        self.dir.path()
    }

    fn run(&self, program: &str, args: &[&str]) -> Result<String, String> {
        let command = format!("{program} {}", args.join(" "));
        let output = self.outputs.iter().find(|(c, _)| *c == command);
        output.map(|(_, text)| text.clone()).ok_or_else(|| format!("cannot run {program}"))
    }

    fn xdp_features(&self, _: &str) -> Option<u64> {
        self.features
    }

    fn knows_segments(&self) -> bool {
        self.segments
    }
}

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: PreflightArgs,
}

fn args(words: &str) -> PreflightArgs {
    Cli::try_parse_from(format!("preflight {words}").split_whitespace()).unwrap().args
}

#[test]
fn a_suitable_machine_passes_all_checks() {
    let report = Fake::good().report();
    assert_eq!((report.ok, report.findings.len()), (MACHINE.len() + INTERFACE.len(), report.ok), "{report}");
    assert!(report.findings.iter().all(|f| f.remedy.is_none()));
}

#[test]
fn every_check_fails_on_its_fact_and_has_a_remedy() {
    type Change = fn(Fake) -> Fake;
    let cases: [(&str, CheckState, &str, Change); 25] = [
        ("privileges", CheckState::Missing, "without CAP_PERFMON, CAP_BPF", |f| f.with("proc/self/status", "CapEff:\t0000000000007000\n")),
        ("kernel", CheckState::Missing, "5.4.0", |f| f.with("proc/sys/kernel/osrelease", "5.4.0")),
        ("kernel options", CheckState::Missing, "without CONFIG_XDP_SOCKETS", |f| {
            f.with("boot/config-6.18.0-gateway", "CONFIG_BPF_SYSCALL=y\nCONFIG_BPF_JIT=y\nCONFIG_XDP_SOCKETS=m\n")
        }),
        ("kernel options", CheckState::Unknown, "neither", |f| f.without("boot/config-6.18.0-gateway")),
        ("BPF JIT", CheckState::Missing, "0", |f| f.with("proc/sys/net/core/bpf_jit_enable", "0")),
        ("BPF JIT", CheckState::Unknown, "cannot read /proc/sys/net/core", |f| f.without("proc/sys/net/core/bpf_jit_enable")),
        ("locked memory", CheckState::Missing, "8192", |f| f.with("proc/self/status", "CapEff:\t000000c000003000\n")),
        ("CPU governor", CheckState::Warning, "performance, powersave", |f| {
            f.with("sys/devices/system/cpu/cpu1/cpufreq/scaling_governor", "powersave")
        }),
        ("IP forwarding", CheckState::Missing, "0", |f| f.with("proc/sys/net/ipv4/ip_forward", "0")),
        ("SNAT ports", CheckState::Missing, "none of 64512", |f| f.with("proc/sys/net/ipv4/ip_local_port_range", "1024 65535")),
        ("SNAT ports", CheckState::Unknown, "cannot read", |f| f.without("proc/sys/net/ipv4/ip_local_port_range")),
        ("link", CheckState::Missing, "no carrier", |f| f.with("sys/class/net/eth1/carrier", "0")),
        ("link", CheckState::Missing, "down", |f| f.without("sys/class/net/eth1/carrier")),
        ("link", CheckState::Missing, "no such interface", |f| {
            f.without("sys/class/net/eth1/carrier").without("sys/class/net/eth1/operstate")
        }),
        ("MTU", CheckState::Warning, "9000", |f| f.with("sys/class/net/eth1/mtu", "9000")),
        ("native XDP", CheckState::Missing, "no", |f| Fake { features: Some(0), ..f }),
        ("native XDP", CheckState::Unknown, "6.3", |f| Fake { features: Some(0), ..f.with("proc/sys/kernel/osrelease", "6.1.0") }),
        ("AF_XDP zero-copy", CheckState::Warning, "no", |f| Fake { features: Some(0x7), ..f }),
        ("XDP program", CheckState::Missing, "id 7 name other", |f| {
            f.output("ip -d link show dev eth1", "2: eth1\n    prog/xdp id 7 name other tag 00\n")
        }),
        ("queues", CheckState::Missing, "6", |f| f.output("ethtool -l eth1", "Current hardware settings:\nRX: 2\nCombined: 4\n")),
        ("queues", CheckState::Unknown, "no queues", |f| f.output("ethtool -l eth1", "Current hardware settings:\nRX: n/a\n")),
        ("RSS of UDP", CheckState::Missing, "addresses only", |f| f.output("ethtool -n eth1 rx-flow-hash udp6", "IP SA\nIP DA\n")),
        ("LRO", CheckState::Missing, "on", |f| f.output("ethtool -k eth1", "large-receive-offload: on\n")),
        ("VLAN offload", CheckState::Warning, "on", |f| f.output("ethtool -k eth1", "rx-vlan-offload: on [fixed]\n")),
        ("flow control", CheckState::Warning, "on", |f| f.output("ethtool -a eth1", "RX:\t\ton\nTX:\t\ton\n")),
    ];
    for (name, state, found, change) in cases {
        let finding = change(Fake::good()).finding(name);
        assert_eq!(finding.state, state, "{name}: {finding:?}");
        assert!(finding.found.contains(found) && finding.remedy.is_some(), "{finding:?}");
        assert!(!finding.remedy.unwrap().contains("{interface}") && !finding.found.contains('{'), "{name}");
    }
    for check in MACHINE.iter().chain(INTERFACE) {
        assert!(cases.iter().any(|c| c.0 == check.name), "no case for {}", check.name);
    }
}

#[test]
fn alternative_facts_pass() {
    let own = Fake::good().output("ip -d link show dev eth1", "    prog/xdp id 7 name nomagic_filter\n");
    assert_eq!(own.finding("XDP program").state, CheckState::Ok);
    let one = Fake::good().output("ethtool -l eth1", "Combined: 1\n").output("ethtool -n eth1 rx-flow-hash udp4", "");
    assert_eq!(one.finding("RSS of UDP").found, "one queue");
    let unlimited = Fake::good()
        .with("proc/self/status", "CapEff:\t000000c000003000\n")
        .with("proc/self/limits", "Max locked memory         unlimited            unlimited            bytes\n");
    assert_eq!(unlimited.finding("locked memory").state, CheckState::Ok);
    let admin = Fake::good().with("proc/self/status", "CapEff:\t0000000000207000\n");
    assert_eq!(admin.finding("privileges").state, CheckState::Ok);
}

/// Facts are held against the configuration that will run, not against the defaults.
#[test]
fn the_configuration_decides() {
    let cases = [
        ("", 1_774, "MTU", CheckState::Ok, "1774", "at most 1774: a packet buffer of 2048 ", ""),
        (
            "",
            1_775,
            "MTU",
            CheckState::Warning,
            "1775",
            "at most 1774",
            "mtu 1500, or for up to 3498 in nomagic.yaml: packets: {frameSize: 4096}",
        ),
        ("packets: {headroom: 512}", 1_500, "MTU", CheckState::Warning, "1500", "at most 1262", "mtu 1262, or for up to 3310 in"),
        ("packets: {frameSize: 4096}", 3_498, "MTU", CheckState::Ok, "3498", "of 4096 bytes", ""),
        ("packets: {frameSize: 4096}", 9_000, "MTU", CheckState::Warning, "9000", "at most 3498", "ip link set eth1 mtu 1500"),
        ("packets: {headroom: 64}", 9_000, "MTU", CheckState::Warning, "9000", "; 29358 where kernel (Linux 6.6)", ""),
        ("", 1_500, "SNAT ports", CheckState::Ok, "36280 of 64512; 32768-60999 are left to the kernel", "1024-65535", ""),
        ("snat: {ports: 61000-65535}", 1_500, "SNAT ports", CheckState::Ok, "4536, none shared with the kernel", "61000-65535", ""),
        (
            "snat: {ports: 50000-50099}",
            1_500,
            "SNAT ports",
            CheckState::Missing,
            "none of 100: the kernel uses 32768-60999",
            "",
            "=50000-50099`",
        ),
        ("snat: {ports: 50000-50099, addresses: [10.0.0.9]}", 1_500, "SNAT ports", CheckState::Ok, "100, on addresses that", "", ""),
        ("snat: {ports: 50000-50099, addresses: [10.0.0.1]}", 1_500, "SNAT ports", CheckState::Missing, "none of 100", "", "=50000-50099`"),
        ("workers: 3", 1_500, "queues", CheckState::Missing, "4", "", "combined 3, or"),
        ("workers: 2", 1_500, "queues", CheckState::Ok, "4", "", ""),
    ];
    for (text, mtu, name, state, found, wanted, remedy) in cases {
        let fake = Fake::good()
            .with("sys/class/net/eth1/mtu", &mtu.to_string())
            .output("ip -o address", "2: eth1    inet 10.0.0.1/24 scope global");
        let file = fake.dir.path().join("nomagic.yaml");
        std::fs::write(&file, format!("interfaces: [eth1]\n{text}\n")).unwrap();
        let report = args(&format!("--config {}", file.display())).report(&fake).unwrap();
        let finding = report.findings.iter().find(|f| f.name == name).unwrap();
        assert_eq!(finding.state, state, "{text}: {finding:?}");
        assert!(finding.found.starts_with(found) && finding.wanted.contains(wanted), "{text}: {finding:?}");
        assert_eq!(finding.remedy.is_some(), state != CheckState::Ok, "{text}: {finding:?}");
        assert!(finding.remedy.as_deref().unwrap_or_default().contains(remedy), "{text}: {finding:?}");
    }
    let error = args("--config /nowhere.yaml").report(&Fake::good()).unwrap_err().to_string();
    assert!(error.contains("/nowhere.yaml"), "{error}");
}

#[test]
fn jumbo_frames_need_several_packet_buffers() {
    let mtu = |mtu: &str, segments, features| {
        let fake = Fake { segments, features, ..Fake::good() }.with("sys/class/net/eth1/mtu", mtu);
        let finding = fake.finding("MTU");
        (finding.state, finding.found)
    };
    let [able, unable] = [0x2f, 0xf].map(Some);
    assert_eq!(mtu("9000", true, able), (CheckState::Ok, "9000, in several packet buffers".into()));
    assert_eq!(mtu("1500", true, able), (CheckState::Ok, "1500".into()));
    assert_eq!(mtu("30446", true, able).0, CheckState::Ok);
    assert_eq!(mtu("30447", true, able).0, CheckState::Warning);
    for (segments, features) in [(false, able), (true, unable), (true, None)] {
        assert_eq!(mtu("9000", segments, features), (CheckState::Warning, "9000".into()));
    }
}

#[test]
fn reports_count_and_group_findings() {
    let report = Fake::good().with("proc/sys/net/ipv4/ip_forward", "0").with("sys/class/net/eth1/mtu", "9000").report();
    assert_eq!((report.missing, report.warnings, report.unknown), (1, 1, 0));
    let text = report.to_string();
    let line = "  missing  IP forwarding      0  (wanted: net.ipv4.ip_forward = 1)\n           -> sysctl -w net.ipv4.ip_forward=1\n";
    assert!(text.starts_with("this machine\n") && text.contains(line) && text.contains("\neth1\n  ok       link"), "{text}");
    assert!(text.ends_with(&format!("1 missing, 1 warnings, 0 unknown, {} ok", report.ok)), "{text}");
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!((&json["missing"], &json["findings"][6]["state"]), (&1.into(), &"missing".into()));
}

#[test]
fn invalid_arguments_are_rejected() {
    let too_many = "--interface eth0 ".repeat(65);
    for (words, error) in [("--workers 0", "1..=64"), ("--workers 65", "1..=64"), ("--interface a/b", "valid")] {
        let error_text = Cli::try_parse_from(format!("preflight {words}").split_whitespace()).err().expect(words).to_string();
        assert!(error_text.contains(error), "{words}: {error_text}");
    }
    let error_text = args(&too_many).report(&Fake::good()).unwrap_err().to_string();
    assert!(error_text.contains("at most 64"), "{error_text}");
    let examples = EXAMPLES.lines().filter_map(|l| l.trim().strip_prefix("nomagic preflight "));
    assert_eq!(examples.map(args).count(), 3);
}
