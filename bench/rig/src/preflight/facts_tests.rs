//! The machine's facts, from a tree of files.

use super::*;
use crate::preflight::fake::FakeHost;

fn wanted(cpus: &str) -> Wanted {
    Wanted { workers: 2, cpus: cpus.parse().unwrap(), role: Role::Gateway, huge_pages: 0 }
}

const STAT: &str = "cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 100 0 100 800 0 0 0 0 0 0\ncpu2 100 0 0 900 0 0 0 0 0 0\nintr 5\n";
const STAT_LATER: &str = "cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 105 0 100 814 0 0 0 1 0 0\ncpu2 100 0 0 920 0 0 0 0 0 0\nintr 5\n";

#[test]
fn a_machine_with_everything() {
    let host = FakeHost::new(&[
        ("proc/self/status", "Name:\tx\nCapEff:\t000001ffffffffff\n"),
        ("proc/self/limits", "Limit  Soft  Hard Units\nMax locked memory         8388608              unlimited            bytes     \n"),
        ("proc/sys/kernel/osrelease", "6.12.5-amd64\n"),
        ("boot/config-6.12.5-amd64", "# a comment\nCONFIG_XDP_SOCKETS=y\nCONFIG_NET_PKTGEN=m\n# CONFIG_IP_VS is not set\n"),
        ("proc/sys/net/core/bpf_jit_enable", "1\n"),
        ("proc/cmdline", "root=/dev/sda isolcpus=2-3 rcu_nocbs=0 rcu_nocbs=2-3 quiet\n"),
        ("sys/devices/system/cpu/isolated", "2-3\n"),
        ("sys/devices/system/cpu/nohz_full", "(null)\n"),
        ("sys/devices/system/cpu/online", "0-3\n"),
        ("sys/devices/system/cpu/vulnerabilities/meltdown", "Mitigation: PTI\n"),
        ("sys/devices/system/cpu/intel_pstate/no_turbo", "1\n"),
        ("proc/cpuinfo", "processor : 0\nflags\t\t: fpu vme hypervisor\n"),
        ("proc/1/comm", "systemd\n"),
        ("proc/77/comm", "irqbalance\n"),
        ("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "512\n"),
        ("proc/stat", STAT),
        ("sys/module/nf_conntrack/refcnt", "1\n"),
        ("sys/devices/system/node/node1/cpulist", "2-3\n"),
        ("sys/devices/system/cpu/cpu2/cpufreq/scaling_governor", "powersave\n"),
        ("sys/devices/system/cpu/cpu2/topology/thread_siblings_list", "2,6\n"),
        ("sys/devices/system/cpu/cpu2/cpuidle/state1/latency", "2\n"),
        ("sys/devices/system/cpu/cpu2/cpuidle/state1/disable", "0\n"),
        ("sys/devices/system/cpu/cpu2/cpuidle/state2/latency", "170\n"),
        ("sys/devices/system/cpu/cpu2/cpuidle/state2/disable", "1\n"),
    ])
    .later("proc/stat", STAT_LATER);
    let m = Machine::gather(&host, &wanted("2"));
    assert_eq!((m.capabilities, m.memlock, m.jit), (Some(0x1ff_ffff_ffff), Some(8_388_608), Some(1)));
    assert_eq!((m.version(), m.option("NET_PKTGEN"), m.option("IP_VS")), (Some((6, 12)), Some("m"), Some("n")));
    let sets = [&m.online, &m.isolated, &m.nohz_full, &m.rcu_nocbs].map(|s| s.as_ref().unwrap().to_string());
    assert_eq!(sets, ["0-3", "2-3", "none", "2-3"]);
    assert_eq!((m.turbo, m.hypervisor, m.irqbalance, m.nf_conntrack), (Some(false), Some(true), Some(true), Some(true)));
    assert_eq!((m.huge_pages_free, m.vulnerabilities.len()), (Some(512), 1));
    let load = m.load.as_ref().unwrap();
    assert_eq!((load[&0].busy, load[&0].steal), (1.0 - 14.0 / 20.0 - 0.05, 0.05));
    assert_eq!(load[&2], Load::default());
    let cpu = Cpu { governor: Some("powersave".into()), siblings: "2,6".parse().ok(), node: Some(1), idle_exit_us: Some(2) };
    assert_eq!(m.cpus, BTreeMap::from([(2, cpu)]));
}

/// A tree without files, and one with nonsense in each of them: nothing is known then, and nothing breaks.
#[test]
fn a_machine_with_nothing_or_nonsense() {
    let nothing = Machine::gather(&FakeHost::new(&[]), &wanted("1"));
    assert_eq!(nothing, Machine { cpus: BTreeMap::from([(1, Cpu::default())]), ..Machine::default() });
    assert_eq!((nothing.version(), nothing.option("BPF")), (None, None));
    let files = [
        "proc/self/status",
        "proc/self/limits",
        "proc/sys/kernel/osrelease",
        "proc/sys/net/core/bpf_jit_enable",
        "proc/cpuinfo",
        "sys/devices/system/cpu/isolated",
        "sys/devices/system/cpu/nohz_full",
        "sys/devices/system/cpu/online",
        "proc/stat",
        "proc/meminfo",
        "sys/devices/system/cpu/intel_pstate/no_turbo",
        "sys/devices/system/cpu/cpu1/topology/thread_siblings_list",
        "proc/sys/kernel/nmi_watchdog",
    ];
    for text in [
        "",
        "\n\n",
        "cpu1 x\nCapEff: zz\nMax locked memory\nflag\n",
        "-5-",
        "\u{0}\u{ffff}",
        "cpu0 1 2\ncpu1 99999999999999999999 1 1 1 1 1 1 1",
    ] {
        let host = FakeHost::new(&files.map(|f| (f, text)));
        let m = Machine::gather(&host, &wanted("1"));
        assert_eq!((m.capabilities, m.memlock, m.jit, m.version(), m.load.clone()), (None, None, None, None, None), "{text:?}");
        assert_eq!((m.online.as_ref().map(CpuSet::is_empty).unwrap_or(true), m.turbo, m.huge_pages_free), (true, None, None), "{text:?}");
    }
}
