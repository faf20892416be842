use std::path::Path;

use clap::Parser;

use super::finding::{Finding, State};
use super::*;

/// A machine in a directory, with prepared answers of programs.
struct Fake {
    dir: tempfile::TempDir,
    answers: Vec<(String, String)>,
    features: Option<u64>,
}

impl Fake {
    /// A gateway on which nothing is missing.
    fn good() -> Fake {
        let fake = Fake { dir: tempfile::tempdir().unwrap(), answers: Vec::new(), features: Some(0xf) };
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
            .says("ip -d link show dev eth1", "2: eth1: <UP>\n    link/ether 02:00:00:00:00:01\n")
            .says("ethtool -l eth1", "Pre-set maximums:\nRX: n/a\nCombined: 8\nCurrent hardware settings:\nRX: n/a\nCombined: 4\n")
            .says("ethtool -n eth1 rx-flow-hash udp4", "IP SA\nIP DA\nL4 bytes 0 & 1 [TCP/UDP src port]\nL4 bytes 2 & 3 [dst port]\n")
            .says("ethtool -n eth1 rx-flow-hash udp6", "IP SA\nIP DA\nL4 bytes 0 & 1 [TCP/UDP src port]\nL4 bytes 2 & 3 [dst port]\n")
            .says("ethtool -k eth1", "Features for eth1:\nlarge-receive-offload: off [fixed]\n")
            .says("ethtool -a eth1", "Pause parameters for eth1:\nAutonegotiate:\toff\nRX:\t\toff\nTX:\t\toff\n")
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

    /// Later answers of the same command replace earlier ones.
    fn says(mut self, command: &str, text: &str) -> Fake {
        self.answers.insert(0, (command.into(), text.into()));
        self
    }

    fn report(&self) -> Report {
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
        let answer = self.answers.iter().find(|(c, _)| *c == command);
        answer.map(|(_, text)| text.clone()).ok_or_else(|| format!("cannot run {program}"))
    }

    fn xdp_features(&self, _: &str) -> Option<u64> {
        self.features
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
fn a_good_machine_lacks_nothing() {
    let report = Fake::good().report();
    assert_eq!((report.ok, report.findings.len()), (MACHINE.len() + INTERFACE.len(), report.ok), "{report}");
    assert!(report.findings.iter().all(|f| f.remedy.is_none()));
}

#[test]
fn every_check_fails_on_its_own_fact_and_names_a_remedy() {
    type Change = fn(Fake) -> Fake;
    let cases: [(&str, State, &str, Change); 24] = [
        ("privileges", State::Missing, "without CAP_PERFMON, CAP_BPF", |f| f.with("proc/self/status", "CapEff:\t0000000000007000\n")),
        ("kernel", State::Missing, "5.4.0", |f| f.with("proc/sys/kernel/osrelease", "5.4.0")),
        ("kernel options", State::Missing, "without CONFIG_XDP_SOCKETS", |f| {
            f.with("boot/config-6.18.0-gateway", "CONFIG_BPF_SYSCALL=y\nCONFIG_BPF_JIT=y\nCONFIG_XDP_SOCKETS=m\n")
        }),
        ("kernel options", State::Unknown, "neither", |f| f.without("boot/config-6.18.0-gateway")),
        ("BPF JIT", State::Missing, "0", |f| f.with("proc/sys/net/core/bpf_jit_enable", "0")),
        ("BPF JIT", State::Unknown, "cannot read /proc/sys/net/core", |f| f.without("proc/sys/net/core/bpf_jit_enable")),
        ("locked memory", State::Missing, "8192", |f| f.with("proc/self/status", "CapEff:\t000000c000003000\n")),
        ("CPU governor", State::Warning, "performance, powersave", |f| {
            f.with("sys/devices/system/cpu/cpu1/cpufreq/scaling_governor", "powersave")
        }),
        ("IP forwarding", State::Missing, "0", |f| f.with("proc/sys/net/ipv4/ip_forward", "0")),
        ("SNAT ports", State::Missing, "4536 shared", |f| f.with("proc/sys/net/ipv4/ip_local_port_range", "1024 65535")),
        ("SNAT ports", State::Missing, "1 shared", |f| {
            f.with("proc/sys/net/ipv4/ip_local_port_range", "1024 65535")
                .with("proc/sys/net/ipv4/ip_local_reserved_ports", "80,61000-61999,62001-65535")
        }),
        ("link", State::Missing, "no carrier", |f| f.with("sys/class/net/eth1/carrier", "0")),
        ("link", State::Missing, "down", |f| f.without("sys/class/net/eth1/carrier")),
        ("link", State::Missing, "no such interface", |f| f.without("sys/class/net/eth1/carrier").without("sys/class/net/eth1/operstate")),
        ("MTU", State::Warning, "9000", |f| f.with("sys/class/net/eth1/mtu", "9000")),
        ("native XDP", State::Missing, "no", |f| Fake { features: Some(0), ..f }),
        ("native XDP", State::Unknown, "6.3", |f| Fake { features: Some(0), ..f.with("proc/sys/kernel/osrelease", "6.1.0") }),
        ("AF_XDP zero-copy", State::Warning, "no", |f| Fake { features: Some(0x7), ..f }),
        ("XDP program", State::Missing, "id 7 name other", |f| {
            f.says("ip -d link show dev eth1", "2: eth1\n    prog/xdp id 7 name other tag 00\n")
        }),
        ("queues", State::Missing, "6", |f| f.says("ethtool -l eth1", "Current hardware settings:\nRX: 2\nCombined: 4\n")),
        ("queues", State::Unknown, "names no queues", |f| f.says("ethtool -l eth1", "Current hardware settings:\nRX: n/a\n")),
        ("RSS of UDP", State::Missing, "addresses only", |f| f.says("ethtool -n eth1 rx-flow-hash udp6", "IP SA\nIP DA\n")),
        ("LRO", State::Missing, "on", |f| f.says("ethtool -k eth1", "large-receive-offload: on\n")),
        ("flow control", State::Warning, "on", |f| f.says("ethtool -a eth1", "RX:\t\ton\nTX:\t\ton\n")),
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
fn other_good_facts_pass() {
    let own = Fake::good().says("ip -d link show dev eth1", "    prog/xdp id 7 name nomagic_filter\n");
    assert_eq!(own.finding("XDP program").state, State::Ok);
    let one = Fake::good().says("ethtool -l eth1", "Combined: 1\n").says("ethtool -n eth1 rx-flow-hash udp4", "");
    assert_eq!(one.finding("RSS of UDP").found, "one queue");
    let unlimited = Fake::good()
        .with("proc/self/status", "CapEff:\t000000c000003000\n")
        .with("proc/self/limits", "Max locked memory         unlimited            unlimited            bytes\n");
    assert_eq!(unlimited.finding("locked memory").state, State::Ok);
    let admin = Fake::good().with("proc/self/status", "CapEff:\t0000000000207000\n");
    assert_eq!(admin.finding("privileges").state, State::Ok);
}

#[test]
fn reports_count_group_and_name_the_remedy() {
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
fn senseless_arguments_are_refused() {
    let seventeen = "--interface eth0 ".repeat(17);
    for (words, error) in [("--workers 0", "1..=64"), ("--workers 65", "1..=64"), ("--interface a/b", "valid")] {
        let refused = Cli::try_parse_from(format!("preflight {words}").split_whitespace()).err().expect(words).to_string();
        assert!(refused.contains(error), "{words}: {refused}");
    }
    let refused = args(&seventeen).report(&Fake::good()).unwrap_err().to_string();
    assert!(refused.contains("at most 16"), "{refused}");
    let examples = EXAMPLES.lines().filter_map(|l| l.trim().strip_prefix("nomagic preflight "));
    assert_eq!(examples.map(args).count(), 2);
}
