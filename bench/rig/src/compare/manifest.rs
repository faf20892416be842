//! Where, when and with what a comparison was made.

use std::process::Command;
use std::time::{Duration, SystemTime};

use crate::results::Manifest;

/// Describes this machine; unknown facts are empty.
pub fn manifest(started: SystemTime, duration: Duration, mode: &str) -> Manifest {
    let file = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let cpuinfo = file("/proc/cpuinfo");
    let of_cpu = |key: &str| {
        let line = cpuinfo.lines().find(|l| l.starts_with(key));
        line.and_then(|l| l.split_once(':')).map_or(String::new(), |(_, value)| value.trim().to_owned())
    };
    let memory = file("/proc/meminfo");
    let kilobytes = memory.lines().find_map(|l| l.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse::<u64>().ok());
    Manifest {
        started: output("date", &["-u", "+%Y-%m-%dT%H:%M:%SZ", "-d", &format!("@{}", unix_s(started))]).unwrap_or_default(),
        duration_s: duration.as_secs(),
        command: std::env::args().collect::<Vec<_>>().join(" "),
        version: env!("CARGO_PKG_VERSION").into(),
        commit: output("git", &["rev-parse", "HEAD"]),
        dirty: output("git", &["status", "--porcelain"]).is_some_and(|text| !text.is_empty()),
        cpu: of_cpu("model name"),
        cpus: cpuinfo.lines().filter(|l| l.starts_with("processor")).count() as u32,
        memory_bytes: kilobytes.unwrap_or(0) * 1024,
        hypervisor: of_cpu("flags").split_whitespace().any(|f| f == "hypervisor").then(hypervisor),
        kernel: file("/proc/sys/kernel/osrelease"),
        kernel_command_line: file("/proc/cmdline"),
        driver: "veth".into(),
        queues: 1,
        mode: mode.into(),
        tools: [output("nft", &["--version"]), output("iptables", &["--version"])].into_iter().flatten().collect(),
    }
}

fn unix_s(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

fn hypervisor() -> String {
    let lscpu = output("lscpu", &[]).unwrap_or_default();
    let vendor = lscpu.lines().find_map(|l| l.strip_prefix("Hypervisor vendor:"));
    vendor.map_or("unknown".into(), |v| v.trim().to_owned())
}

/// The output of a program, if it exists and succeeds.
fn output(program: &str, args: &[&str]) -> Option<String> {
    let out = Command::new(program).args(args).output().ok()?;
    out.status.success().then(|| String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_known() {
        let m = manifest(SystemTime::UNIX_EPOCH + Duration::from_secs(86_400), Duration::from_secs(61), "native XDP, copy");
        assert_eq!((m.started.as_str(), m.duration_s), ("1970-01-02T00:00:00Z", 61));
        assert!(m.cpus > 0 && m.memory_bytes > 1 << 28 && !m.kernel.is_empty(), "{m:?}");
    }
}
