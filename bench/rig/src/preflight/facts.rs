//! What is known about the machine, parsed and not judged. `None` is "could not be found out" everywhere.

use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;

use super::cpus::CpuSet;
use super::drivers::Version;
use super::host::Host;

/// Between the two looks at /proc/stat.
const SAMPLE: Duration = Duration::from_millis(200);

/// What is asked of the machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wanted {
    /// nomagic's workers, or the generator's threads.
    pub workers: u32,
    /// Their CPUs; empty when not pinned.
    pub cpus: CpuSet,
    /// What the machine is for.
    pub role: Role,
    /// Huge pages of 2 MiB that must be free.
    pub huge_pages: u64,
}

/// What a machine is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Role {
    /// nomagic runs here.
    Gateway,
    /// Traffic is made and counted here.
    Generator,
}

impl Role {
    /// Its name, as on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Role::Gateway => "gateway",
            Role::Generator => "generator",
        }
    }
}

/// Shares of a CPU's time, 0 to 1.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Load {
    /// Not idle.
    pub busy: f64,
    /// Taken by the hypervisor.
    pub steal: f64,
}

/// What is known about one CPU that is to be used.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Cpu {
    /// cpufreq's governor.
    pub governor: Option<String>,
    /// All threads of its core, itself too.
    pub siblings: Option<CpuSet>,
    /// Its NUMA node.
    pub node: Option<u32>,
    /// Exit latency of the deepest idle state that is not switched off, microseconds.
    pub idle_exit_us: Option<u64>,
}

/// The machine.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Machine {
    /// Effective capabilities, a bit each.
    pub capabilities: Option<u64>,
    /// `uname -r`.
    pub release: Option<String>,
    /// The kernel's configuration, without `CONFIG_`.
    pub config: Option<BTreeMap<String, String>>,
    /// RLIMIT_MEMLOCK, bytes; `u64::MAX` for unlimited.
    pub memlock: Option<u64>,
    /// net.core.bpf_jit_enable.
    pub jit: Option<i64>,
    /// The clock that the kernel reads.
    pub clocksource: Option<String>,
    /// kernel.nmi_watchdog.
    pub nmi_watchdog: Option<i64>,
    /// Vulnerabilities by name, with what is done about each.
    pub vulnerabilities: BTreeMap<String, String>,
    /// There is a hypervisor below.
    pub hypervisor: Option<bool>,
    /// CPUs that run.
    pub online: Option<CpuSet>,
    /// CPUs that the scheduler leaves alone, those without a tick, and those whose RCU callbacks run elsewhere.
    pub isolated: Option<CpuSet>,
    #[expect(missing_docs, reason = "see above")]
    pub nohz_full: Option<CpuSet>,
    #[expect(missing_docs, reason = "see above")]
    pub rcu_nocbs: Option<CpuSet>,
    /// Turbo frequencies are allowed.
    pub turbo: Option<bool>,
    /// A process `irqbalance`; `None` when processes cannot be listed.
    pub irqbalance: Option<bool>,
    /// Huge pages of 2 MiB that are free.
    pub huge_pages_free: Option<u64>,
    /// Load of each CPU over a fifth of a second.
    pub load: Option<BTreeMap<u32, Load>>,
    /// The CPUs asked for.
    pub cpus: BTreeMap<u32, Cpu>,
    /// The connection tracking of the kernel is loaded.
    pub nf_conntrack: Option<bool>,
}

impl Machine {
    /// Looks at the machine. Takes a fifth of a second.
    pub fn gather(host: &dyn Host, wanted: &Wanted) -> Machine {
        let release = host.line("proc/sys/kernel/osrelease");
        let cmdline = host.line("proc/cmdline");
        let modules = host.list("sys/module");
        Machine {
            capabilities: host.read("proc/self/status").and_then(|t| u64::from_str_radix(field(&t, "CapEff:")?, 16).ok()),
            config: kernel_config(host, release.as_deref()),
            release,
            memlock: host.read("proc/self/limits").and_then(|t| memlock(&t)),
            jit: host.number("proc/sys/net/core/bpf_jit_enable"),
            clocksource: host.line("sys/devices/system/clocksource/clocksource0/current_clocksource"),
            nmi_watchdog: host.number("proc/sys/kernel/nmi_watchdog"),
            vulnerabilities: vulnerabilities(host),
            hypervisor: hypervisor(host),
            online: set(host, "sys/devices/system/cpu/online"),
            isolated: set_or_empty(host, "sys/devices/system/cpu/isolated"),
            nohz_full: set_or_empty(host, "sys/devices/system/cpu/nohz_full").or_else(|| parameter(cmdline.as_deref()?, "nohz_full")),
            rcu_nocbs: cmdline.as_deref().and_then(|c| parameter(c, "rcu_nocbs")),
            turbo: turbo(host),
            irqbalance: irqbalance(host),
            huge_pages_free: huge_pages(host),
            load: load(host),
            cpus: wanted.cpus.0.iter().map(|n| (*n, cpu(host, *n))).collect(),
            nf_conntrack: modules.map(|m| m.iter().any(|m| m == "nf_conntrack")),
        }
    }

    /// Major and minor version of the kernel.
    pub fn version(&self) -> Option<Version> {
        let mut numbers = self.release.as_deref()?.split(|c: char| !c.is_ascii_digit());
        Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    }

    /// The setting of a kernel option: `Some("n")` if it is not set.
    pub fn option(&self, name: &str) -> Option<&str> {
        Some(self.config.as_ref()?.get(name).map_or("n", String::as_str))
    }
}

/// The word behind a name at the start of a line.
fn field<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    text.lines().find_map(|l| l.strip_prefix(name))?.split_whitespace().next()
}

fn kernel_config(host: &dyn Host, release: Option<&str>) -> Option<BTreeMap<String, String>> {
    let text = host.run("gzip", &["-dc", "/proc/config.gz"]).ok().or_else(|| host.read(&format!("boot/config-{}", release?)))?;
    let line = |l: &str| l.strip_prefix("CONFIG_")?.split_once('=').map(|(k, v)| (k.to_owned(), v.trim().to_owned()));
    Some(text.lines().filter_map(line).collect::<BTreeMap<_, _>>()).filter(|c| !c.is_empty())
}

fn memlock(limits: &str) -> Option<u64> {
    match field(limits, "Max locked memory")? {
        "unlimited" => Some(u64::MAX),
        bytes => bytes.parse().ok(),
    }
}

fn vulnerabilities(host: &dyn Host) -> BTreeMap<String, String> {
    let dir = "sys/devices/system/cpu/vulnerabilities";
    host.list(dir).unwrap_or_default().into_iter().filter_map(|n| Some((n.clone(), host.line(&format!("{dir}/{n}"))?))).collect()
}

fn hypervisor(host: &dyn Host) -> Option<bool> {
    if host.line("sys/hypervisor/type").is_some() {
        return Some(true);
    }
    // Only x86 tells by a flag.
    let text = host.read("proc/cpuinfo")?;
    let flags = text.lines().find(|l| l.starts_with("flags"))?;
    Some(flags.split_whitespace().any(|f| f == "hypervisor"))
}

fn set(host: &dyn Host, path: &str) -> Option<CpuSet> {
    host.line(path)?.parse().ok()
}

/// A set whose file is empty, or says `(null)`, when there is none in it.
fn set_or_empty(host: &dyn Host, path: &str) -> Option<CpuSet> {
    host.read(path)?.trim().trim_matches(|c| c == '(' || c == ')').replace("null", "").parse().ok()
}

/// The CPUs that a parameter of the kernel's command line names: none without the parameter.
fn parameter(cmdline: &str, name: &str) -> Option<CpuSet> {
    let value = cmdline.split_whitespace().filter_map(|w| w.split_once('=')).rfind(|(k, _)| *k == name);
    value.map_or(Some(CpuSet::default()), |(_, v)| v.parse().ok())
}

fn turbo(host: &dyn Host) -> Option<bool> {
    let intel = host.number("sys/devices/system/cpu/intel_pstate/no_turbo").map(|off| off == 0);
    intel.or_else(|| host.number("sys/devices/system/cpu/cpufreq/boost").map(|on| on != 0))
}

fn irqbalance(host: &dyn Host) -> Option<bool> {
    let ids = host.list("proc")?.into_iter().filter(|n| n.bytes().all(|b| b.is_ascii_digit()));
    let mut seen = false;
    for name in ids.filter_map(|id| host.line(&format!("proc/{id}/comm"))) {
        seen = true;
        if name == "irqbalance" {
            return Some(true);
        }
    }
    seen.then_some(false)
}

fn huge_pages(host: &dyn Host) -> Option<u64> {
    if let Some(free) = host.number("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages") {
        return u64::try_from(free).ok();
    }
    let text = host.read("proc/meminfo")?;
    if field(&text, "Hugepagesize:")? != "2048" {
        return None;
    }
    field(&text, "HugePages_Free:")?.parse().ok()
}

/// Ticks of each CPU: (all, idle, steal).
fn ticks(text: &str) -> BTreeMap<u32, (u64, u64, u64)> {
    let line = |l: &str| {
        let mut words = l.strip_prefix("cpu")?.split_whitespace();
        let cpu = words.next()?.parse().ok()?;
        // user, nice, system, idle, iowait, irq, softirq, steal; guest time is in user already.
        let n: Vec<u64> = words.take(8).map_while(|w| w.parse().ok()).collect();
        (n.len() == 8 && !l.starts_with("cpu ")).then(|| (cpu, (n.iter().sum(), n[3] + n[4], n[7])))
    };
    text.lines().filter_map(line).collect()
}

fn load(host: &dyn Host) -> Option<BTreeMap<u32, Load>> {
    let before = ticks(&host.read("proc/stat")?);
    host.rest(SAMPLE);
    let after = ticks(&host.read("proc/stat")?);
    let of = |(cpu, after): (&u32, &(u64, u64, u64))| {
        let before = before.get(cpu)?;
        let (all, idle, steal) = (after.0.saturating_sub(before.0), after.1.saturating_sub(before.1), after.2.saturating_sub(before.2));
        // Ticks are 10 ms as a rule; a CPU without any has had no tick: it is idle, or runs without.
        let share = |n: u64| if all == 0 { 0.0 } else { n as f64 / all as f64 };
        let steal = share(steal);
        Some((*cpu, Load { busy: if all == 0 { 0.0 } else { (1.0 - share(idle) - steal).max(0.0) }, steal }))
    };
    Some(after.iter().filter_map(of).collect::<BTreeMap<_, _>>()).filter(|l| !l.is_empty())
}

fn cpu(host: &dyn Host, n: u32) -> Cpu {
    let dir = format!("sys/devices/system/cpu/cpu{n}");
    let node = host.list("sys/devices/system/node").into_iter().flatten().find_map(|name| {
        let node = name.strip_prefix("node")?.parse().ok()?;
        set(host, &format!("sys/devices/system/node/{name}/cpulist"))?.0.contains(&n).then_some(node)
    });
    let state = |name: &String| {
        let on = host.number(&format!("{dir}/cpuidle/{name}/disable"))? == 0;
        if on { u64::try_from(host.number(&format!("{dir}/cpuidle/{name}/latency"))?).ok() } else { Some(0) }
    };
    Cpu {
        governor: host.line(&format!("{dir}/cpufreq/scaling_governor")),
        siblings: set(host, &format!("{dir}/topology/thread_siblings_list")),
        node,
        idle_exit_us: host.list(&format!("{dir}/cpuidle")).and_then(|s| s.iter().filter_map(state).max()),
    }
}

/// JSON at a path, if the text is JSON.
pub(super) fn json(text: &str) -> Option<Value> {
    serde_json::from_str(text).ok()
}

#[cfg(test)]
#[path = "facts_tests.rs"]
mod tests;
