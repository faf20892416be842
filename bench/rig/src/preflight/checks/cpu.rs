//! The CPUs that are to be used: that they are there, alone, and at one speed.

use crate::preflight::cpus::CpuSet;
use crate::preflight::facts::{Load, Machine, Wanted};
use crate::preflight::finding::{Finding, State};

/// Shares of a CPU from which on a figure is doubtful: other people's work, and time that the hypervisor takes.
const BUSY_MAX: f64 = 0.05;
const STEAL_MAX: f64 = 0.01;
/// Exit latency of an idle state that a packet would notice, microseconds.
const IDLE_EXIT_US_MAX: u64 = 10;
const NO_CPUS: &str = "no CPUs named (--cpus)";

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// A virtual machine's figures are its neighbours' too.
pub fn hypervisor(_: &Wanted, machine: &Machine) -> Finding {
    let (name, wanted) = ("hypervisor", "none");
    match machine.hypervisor {
        None => Finding::unknown(name, "the CPU does not tell", wanted).remedy("systemd-detect-virt"),
        Some(false) => Finding::new(name, State::Ok, "none", wanted),
        Some(true) => Finding::new(name, State::Warning, "this is a virtual machine", wanted)
            .remedy("measure on a machine of your own, or say so beside every figure"),
    }
}

/// Over a fifth of a second.
pub fn steal(wanted: &Wanted, machine: &Machine) -> Finding {
    let (name, text) = ("steal now", "below 1 %");
    let Some(load) = machine.load.as_ref() else { return Finding::unknown(name, "no /proc/stat", text) };
    let counted = load.iter().filter(|(cpu, _)| wanted.cpus.is_empty() || wanted.cpus.0.contains(cpu));
    let Some(most) = counted.map(|(_, l)| l.steal).reduce(f64::max) else {
        return Finding::unknown(name, "these CPUs are not there", text);
    };
    Finding::judged(name, most < STEAL_MAX, State::Missing, percent(most), text)
        .remedy("wait until the neighbours are quiet, then run this again")
}

/// As many as workers, and running.
pub fn present(wanted: &Wanted, machine: &Machine) -> Finding {
    let (name, text) = ("CPUs", format!("{}, one for each worker, running", wanted.workers));
    if wanted.cpus.is_empty() {
        return Finding::unknown(name, NO_CPUS, text).remedy("choose CPUs of the NIC's NUMA node (`lscpu -e`) and give --cpus");
    }
    let Some(online) = machine.online.as_ref() else { return Finding::unknown(name, "the kernel does not list its CPUs", text) };
    let absent = wanted.cpus.without(online);
    let enough = wanted.cpus.0.len() >= wanted.workers as usize;
    let found = match (absent.is_empty(), enough) {
        (false, _) => format!("{absent} not running (running: {online})"),
        (true, false) => format!("{}: only {}", wanted.cpus, wanted.cpus.0.len()),
        (true, true) => wanted.cpus.to_string(),
    };
    Finding::judged(name, absent.is_empty() && enough, State::Missing, found, text)
        .remedy("give --cpus as many as --workers says, of those that run")
}

fn busiest<'m>(cpus: &CpuSet, load: &'m std::collections::BTreeMap<u32, Load>) -> Option<(&'m u32, &'m Load)> {
    load.iter().filter(|(cpu, _)| cpus.0.contains(cpu)).max_by(|a, b| a.1.busy.total_cmp(&b.1.busy))
}

/// What others do on them, over a fifth of a second.
pub fn foreign_load(wanted: &Wanted, machine: &Machine) -> Finding {
    let (name, text) = ("load of these CPUs", "below 5 % while nothing is measured");
    if wanted.cpus.is_empty() {
        return Finding::unknown(name, NO_CPUS, text);
    }
    let busiest = machine.load.as_ref().and_then(|load| busiest(&wanted.cpus, load));
    let Some((cpu, load)) = busiest else { return Finding::unknown(name, "/proc/stat does not name them", text) };
    let found = format!("{} at the most (CPU {cpu})", percent(load.busy));
    Finding::judged(name, load.busy < BUSY_MAX, State::Missing, found, text)
        .remedy(format!("stop what runs there: ps -eLo psr,pcpu,pid,comm --sort=-pcpu | awk '$1 == {cpu}' | head"))
}

/// `isolcpus`, `nohz_full`, `rcu_nocbs`.
pub fn isolation(wanted: &Wanted, machine: &Machine) -> Finding {
    let (name, cpus) = ("isolated CPUs", &wanted.cpus);
    if cpus.is_empty() {
        return Finding::unknown(name, NO_CPUS, "the workers' CPUs isolated");
    }
    let text = format!("isolcpus={cpus} nohz_full={cpus} rcu_nocbs={cpus}");
    // The kernel moves the RCU callbacks of nohz_full CPUs away by itself.
    let sets = [
        ("isolcpus", machine.isolated.clone()),
        ("nohz_full", machine.nohz_full.clone()),
        (
            "rcu_nocbs",
            machine.rcu_nocbs.clone().map(|r| CpuSet(r.0.into_iter().chain(machine.nohz_full.clone().unwrap_or_default().0).collect())),
        ),
    ];
    if let Some((parameter, _)) = sets.iter().find(|(_, set)| set.is_none()) {
        return Finding::unknown(name, format!("the kernel does not tell its {parameter}"), text);
    }
    let lacking: Vec<String> = sets
        .iter()
        .map(|(parameter, set)| (parameter, cpus.without(set.as_ref().unwrap_or(&CpuSet::default()))))
        .filter(|(_, without)| !without.is_empty())
        .map(|(parameter, without)| format!("{parameter} without {without}"))
        .collect();
    let found = if lacking.is_empty() { cpus.to_string() } else { lacking.join(", ") };
    Finding::judged(name, lacking.is_empty(), State::Warning, found, text)
        .remedy(format!("kernel command line: isolcpus=managed_irq,domain,{cpus} nohz_full={cpus} rcu_nocbs={cpus}    # then reboot"))
}

/// cpufreq's governor.
pub fn governor(wanted: &Wanted, machine: &Machine) -> Finding {
    let (name, text) = ("CPU governor", "performance");
    if wanted.cpus.is_empty() {
        return Finding::unknown(name, NO_CPUS, text);
    }
    if machine.cpus.values().any(|c| c.governor.is_none()) || machine.cpus.is_empty() {
        return Finding::unknown(name, "no cpufreq: firmware or hypervisor decide", text);
    }
    let other = machine.cpus.iter().find(|(_, c)| c.governor.as_deref() != Some("performance"));
    let found = other.map_or("performance".into(), |(n, c)| format!("{} on CPU {n}", c.governor.as_deref().unwrap_or("none")));
    Finding::judged(name, other.is_none(), State::Missing, found, text)
        .remedy(format!("cpupower -c {} frequency-set -g performance", wanted.cpus))
}

/// A frequency that depends on temperature and neighbours.
pub fn turbo(_: &Wanted, machine: &Machine) -> Finding {
    let (name, text) = ("turbo", "off: the same frequency in every run");
    match machine.turbo {
        None => Finding::unknown(name, "neither intel_pstate nor cpufreq tell", text),
        Some(false) => Finding::new(name, State::Ok, "off", text),
        Some(true) => Finding::new(name, State::Warning, "on", text)
            .remedy("echo 1 > /sys/devices/system/cpu/intel_pstate/no_turbo    # or: echo 0 > /sys/devices/system/cpu/cpufreq/boost"),
    }
}

/// Deep sleep that a packet must wait for.
pub fn idle_states(wanted: &Wanted, machine: &Machine) -> Finding {
    let (name, text) = ("idle states", "exit within 10 us");
    if wanted.cpus.is_empty() {
        return Finding::unknown(name, NO_CPUS, text);
    }
    if machine.cpus.is_empty() || machine.cpus.values().any(|c| c.idle_exit_us.is_none()) {
        return Finding::unknown(name, "no cpuidle", text);
    }
    let deepest = machine.cpus.values().filter_map(|c| c.idle_exit_us).max().unwrap_or(0);
    Finding::judged(name, deepest <= IDLE_EXIT_US_MAX, State::Warning, format!("up to {deepest} us"), text)
        .remedy(format!("cpupower -c {} idle-set -D {IDLE_EXIT_US_MAX}", wanted.cpus))
}

/// The other thread of a worker's core takes half of it.
pub fn siblings(wanted: &Wanted, machine: &Machine) -> Finding {
    let (name, text) = ("SMT siblings", "idle, and no worker on them");
    if wanted.cpus.is_empty() {
        return Finding::unknown(name, NO_CPUS, text);
    }
    if machine.cpus.is_empty() {
        return Finding::unknown(name, "nothing is known about these CPUs", text);
    }
    let mut others = CpuSet::default();
    for (n, cpu) in &machine.cpus {
        let Some(siblings) = &cpu.siblings else { return Finding::unknown(name, format!("CPU {n} has no topology"), text) };
        let own = CpuSet::from_iter([*n]);
        let shared = siblings.without(&own).both(&wanted.cpus);
        if !shared.is_empty() {
            return Finding::new(name, State::Warning, format!("CPUs {n} and {shared} are one core"), text)
                .remedy("give --cpus one thread of each core (`lscpu -e`)");
        }
        others.0.extend(siblings.without(&own).0);
    }
    if others.is_empty() {
        // A virtual CPU may be half a core without knowing it.
        return match machine.hypervisor {
            Some(false) => Finding::new(name, State::Ok, "none", text),
            _ => Finding::unknown(name, "none that a hypervisor shows", text),
        };
    }
    let Some((cpu, load)) = machine.load.as_ref().and_then(|l| busiest(&others, l)) else {
        return Finding::unknown(name, format!("the load of {others} is not known"), text);
    };
    Finding::judged(
        name,
        load.busy < BUSY_MAX,
        State::Warning,
        format!("{} at the most (CPU {cpu}, of {others})", percent(load.busy)),
        text,
    )
    .remedy(format!("keep {others} free, or switch it off: echo 0 > /sys/devices/system/cpu/cpu{cpu}/online"))
}

/// It moves the queues' interrupts while one measures.
pub fn irqbalance(_: &Wanted, machine: &Machine) -> Finding {
    let (name, text) = ("irqbalance", "not running");
    let Some(running) = machine.irqbalance else { return Finding::unknown(name, "processes cannot be listed", text) };
    let found = if running { "running: it moves the queues' interrupts" } else { "not running" };
    Finding::judged(name, !running, State::Warning, found, text).remedy("systemctl stop irqbalance")
}
