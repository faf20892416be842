//! What the machine says: kernel, interfaces, routes, pinned BPF objects, logs.

use std::collections::BTreeMap;
use std::path::Path;

use nomagic_xsk::InterfaceName;
use serde_json::{Value, json};

use super::bundle::{About, Bundle};
use super::command;
use super::configuration::Configured;
use crate::preflight::check_machine;
use crate::preflight::host::{Host, ThisHost};

const VERSION: About = About::new("version.json", "this program: version and build");
const KERNEL: About = About::new("kernel.json", "kernel, CPUs, memory, sysctls");
const PREFLIGHT: About = About::new("preflight.json", "nomagic preflight --format json");
const INTERFACES: About = About::new("interfaces.json", "network interfaces: driver, queues, state, XDP features");
const ETHTOOL: About = About::new("ethtool.txt", "ethtool about the gateway's interfaces");
const PINS: About = About::new("pins.json", "pinned BPF objects, with the sizes of maps");
const JOURNAL: About = About::new("journal.txt", "the newest log lines of the unit nomagic, newest first").up_to(4 << 20);
/// What the kernel has: the file's name, what it is, and the arguments of `ip`.
const NETWORK: [(About, &[&str]); 9] = [
    (About::new("ip-link.json", "ip -j -d -s link").up_to(4 << 20), &["-j", "-d", "-s", "link"]),
    (About::new("ip-address.json", "ip -j address"), &["-j", "address"]),
    (About::new("ip-route-v4.json", "ip -j -4 route show table all").up_to(4 << 20), &["-j", "-4", "route", "show", "table", "all"]),
    (About::new("ip-route-v6.json", "ip -j -6 route show table all").up_to(4 << 20), &["-j", "-6", "route", "show", "table", "all"]),
    (About::new("ip-rule-v4.json", "ip -j -4 rule"), &["-j", "-4", "rule"]),
    (About::new("ip-rule-v6.json", "ip -j -6 rule"), &["-j", "-6", "rule"]),
    (About::new("ip-neighbour.json", "ip -j neighbour"), &["-j", "neighbour"]),
    (About::new("ip-nexthop.json", "ip -j nexthop"), &["-j", "nexthop"]),
    (About::new("ip-vrf.json", "ip -j vrf"), &["-j", "vrf"]),
];
/// Log lines that are asked for.
const LOG_LINES: &str = "5000";
/// Maximum number of interfaces, and of pins.
const LISTED_MAX: usize = 1_024;
/// Sysctls that decide what the kernel and nomagic do with packets.
const SYSCTLS: [&str; 27] = [
    "kernel/osrelease",
    "kernel/version",
    "kernel/unprivileged_bpf_disabled",
    "kernel/sched_rt_runtime_us",
    "kernel/numa_balancing",
    "net/core/bpf_jit_enable",
    "net/core/rmem_max",
    "net/core/wmem_max",
    "net/core/optmem_max",
    "net/core/netdev_budget",
    "net/core/netdev_max_backlog",
    "net/core/busy_poll",
    "net/ipv4/ip_forward",
    "net/ipv4/ip_local_port_range",
    "net/ipv4/ip_local_reserved_ports",
    "net/ipv4/ip_nonlocal_bind",
    "net/ipv4/fib_multipath_hash_policy",
    "net/ipv4/nexthop_compat_mode",
    "net/ipv4/neigh/default/gc_thresh3",
    "net/ipv6/neigh/default/gc_thresh3",
    "net/ipv6/conf/all/forwarding",
    "net/ipv6/conf/all/disable_ipv6",
    "net/ipv6/route/max_size",
    "net/netfilter/nf_conntrack_count",
    "net/netfilter/nf_conntrack_max",
    "vm/nr_hugepages",
    "vm/max_map_count",
];
/// Sysctls of each interface.
const OF_INTERFACES: [&str; 6] = [
    "ipv4/conf/{}/rp_filter",
    "ipv4/conf/{}/forwarding",
    "ipv4/conf/{}/arp_ignore",
    "ipv4/conf/{}/accept_local",
    "ipv6/conf/{}/forwarding",
    "ipv6/conf/{}/accept_ra",
];
/// Options of ethtool.
const ETHTOOL_OPTIONS: [&str; 7] = ["-i", "-k", "-l", "-g", "-c", "-x", "-S"];

/// Adds what is known of this program.
pub fn version(bundle: &mut Bundle) {
    let executable = std::env::current_exe();
    let digest = executable.as_ref().ok().and_then(|path| std::fs::read(path).ok()).map(|bytes| {
        let digest = ring::digest::digest(&ring::digest::SHA256, &bytes);
        digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    });
    let value = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "build": if cfg!(debug_assertions) { "debug" } else { "release" },
        "architecture": std::env::consts::ARCH,
        "executable": executable.ok(),
        "executable_sha256": digest,
    });
    bundle.add_json(VERSION, Ok(value));
}

/// Adds what the machine says, in the network namespace of this process.
pub fn collect(bundle: &mut Bundle, state_dir: &Path, configured: &Configured) {
    let Configured { config, interfaces } = configured;
    let links = links();
    bundle.add_json(KERNEL, Ok(kernel(&links)));
    let report = check_machine(&ThisHost, config, interfaces, config.workers.count.get());
    bundle.add_json(PREFLIGHT, serde_json::to_value(&report).map_err(|e| e.to_string()));
    let facts: BTreeMap<&String, Value> = links.iter().map(|name| (name, interface(name))).collect();
    bundle.add_json(INTERFACES, serde_json::to_value(&facts).map_err(|e| e.to_string()));
    ethtool(bundle, interfaces);
    for (about, args) in NETWORK {
        run(bundle, about, "ip", args);
    }
    bundle.add_json(PINS, pins(&state_dir.join("bpf")));
}

/// Adds the newest log lines.
pub fn logs(bundle: &mut Bundle) {
    run(bundle, JOURNAL, "journalctl", &["--unit=nomagic", "--lines", LOG_LINES, "--reverse", "--no-pager", "--output=short-iso"]);
}

/// Adds a program's output, as JSON if it is.
fn run(bundle: &mut Bundle, about: About, program: &str, args: &[&str]) {
    match command::output(program, args, about.max()) {
        Err(e) => bundle.add_text(about, Err(e)),
        Ok(output) => {
            match serde_json::from_str::<Value>(&output.text) {
                Ok(value) => bundle.add_json(about, Ok(value)),
                Err(_) => bundle.add_text(about, Ok(output.text)),
            }
            if output.is_cut {
                bundle.note_cut("the program's output was longer");
            }
        }
    }
}

/// The names of the interfaces.
fn links() -> Vec<String> {
    let mut names = ThisHost.list("sys/class/net");
    names.truncate(LISTED_MAX);
    names
}

fn kernel(links: &[String]) -> Value {
    let read = |path: &str| ThisHost.line(&format!("proc/sys/{path}"));
    let mut sysctls: BTreeMap<String, Option<String>> = SYSCTLS.iter().map(|path| ((*path).to_owned(), read(path))).collect();
    for name in links.iter().map(String::as_str).chain(["all", "default"]) {
        let of_one = OF_INTERFACES.iter().map(|path| format!("net/{}", path.replace("{}", name)));
        sysctls.extend(of_one.filter_map(|path| read(&path).map(|value| (path, Some(value)))));
    }
    let lines = |path: &str, wanted: &[&str]| -> Vec<String> {
        let text = ThisHost.read(path).unwrap_or_default();
        text.lines().filter(|line| wanted.iter().any(|word| line.starts_with(word))).map(str::to_owned).collect()
    };
    let mut models = lines("proc/cpuinfo", &["model name", "flags"]);
    models.sort();
    models.dedup();
    json!({
        "sysctls": sysctls,
        "cpus": std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        "cpu": models,
        "isolated_cpus": ThisHost.line("sys/devices/system/cpu/isolated"),
        "memory": lines("proc/meminfo", &["MemTotal", "MemAvailable", "HugePages", "Hugepagesize"]),
        "mounts": lines("proc/mounts", &["bpf", "none /sys/fs/bpf"]),
    })
}

fn interface(name: &str) -> Value {
    let below = |path: &str| format!("sys/class/net/{name}/{path}");
    let line = |path: &str| ThisHost.line(&below(path));
    let target = |path: &str| {
        let link = std::fs::read_link(ThisHost.root().join(below(path))).ok()?;
        Some(link.file_name()?.to_string_lossy().into_owned())
    };
    let queues = ThisHost.list(&below("queues"));
    let count = |kind: &str| queues.iter().filter(|queue| queue.starts_with(kind)).count();
    let mut facts: BTreeMap<&str, Value> = [
        ("address", "address"),
        ("mtu", "mtu"),
        ("state", "operstate"),
        ("carrier", "carrier"),
        ("carrier_changes", "carrier_changes"),
        ("speed", "speed"),
        ("flags", "flags"),
        ("ifindex", "ifindex"),
        ("iflink", "iflink"),
        ("numa_node", "device/numa_node"),
        ("gro_flush_timeout", "gro_flush_timeout"),
        ("napi_defer_hard_irqs", "napi_defer_hard_irqs"),
        ("threaded", "threaded"),
    ]
    .map(|(key, path)| (key, json!(line(path))))
    .into();
    facts.insert("driver", json!(target("device/driver")));
    facts.insert("receive_queues", json!(count("rx-")));
    facts.insert("transmit_queues", json!(count("tx-")));
    facts.insert("xdp_features", json!(ThisHost.xdp_features(name)));
    json!(facts)
}

fn ethtool(bundle: &mut Bundle, interfaces: &[InterfaceName]) {
    if interfaces.is_empty() {
        return bundle.add_text(ETHTOOL, Err("no interface is configured".into()));
    }
    let mut text = String::new();
    for interface in interfaces {
        for option in ETHTOOL_OPTIONS {
            text += &format!("# ethtool {option} {interface}\n");
            match command::output("ethtool", &[option, interface], ETHTOOL.max() / 8) {
                Ok(output) => text += &output.text,
                Err(e) => text += &format!("{e}\n"),
            }
            text += "\n";
        }
    }
    bundle.add_text(ETHTOOL, Ok(text));
}

/// The objects that are pinned below a directory, with what the kernel says of them.
fn pins(root: &Path) -> Result<Value, String> {
    let mut found: BTreeMap<String, Value> = BTreeMap::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        let entries = match std::fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(e) if directory == root => return Err(format!("{}: {e}", directory.display())),
            Err(_) => continue,
        };
        for entry in entries.flatten() {
            let path = entry.path();
            // The kernel's own entries (maps.debug, progs.debug) have dots in their names.
            if found.len() >= LISTED_MAX || entry.file_name().to_string_lossy().contains('.') {
                continue;
            }
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                directories.push(path);
                continue;
            }
            let name = path.strip_prefix(root).unwrap_or(&path).display().to_string();
            let facts = match nomagic_sys::bpf::pinned_object(&path) {
                Ok(object) => json!({ "kind": object.kind, "facts": object.facts }),
                Err(e) => json!({ "error": e.to_string() }),
            };
            found.insert(name, facts);
        }
    }
    Ok(json!({ "directory": root, "objects": found }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_has_a_kernel_and_a_loopback_interface() {
        let kernel = kernel(&links());
        assert!(
            kernel["sysctls"]["kernel/osrelease"].is_string() && kernel["sysctls"]["net/ipv4/conf/all/rp_filter"].is_string(),
            "{kernel}"
        );
        assert!(links().iter().any(|name| name == "lo") && interface("lo")["mtu"].is_string());
        assert!(pins(Path::new("/nowhere")).unwrap_err().contains("/nowhere"));
    }
}
