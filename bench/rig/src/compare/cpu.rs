//! CPU time by process, from /proc/stat and /proc/PID/stat.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};

/// Times of one CPU in clock ticks of 10 ms.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CpuTicks {
    /// In user space, nice or not.
    pub user: u64,
    /// In the kernel, for a process.
    pub system: u64,
    /// Idle or waiting for a disk.
    pub idle: u64,
    pub interrupts: u64,
    pub steal: u64,
}

impl CpuTicks {
    fn parse(line: &str) -> Option<CpuTicks> {
        let n: Vec<u64> = line.split_whitespace().skip(1).map(|w| w.parse().ok()).collect::<Option<_>>()?;
        let at = |i: usize| n.get(i).copied().unwrap_or(0);
        Some(CpuTicks { user: at(0) + at(1), system: at(2), idle: at(3) + at(4), interrupts: at(5) + at(6), steal: at(7) })
    }

    fn since(&self, earlier: &CpuTicks) -> CpuTicks {
        // Idle and waiting times can go back a little (proc(5)).
        CpuTicks {
            user: self.user.saturating_sub(earlier.user),
            system: self.system.saturating_sub(earlier.system),
            idle: self.idle.saturating_sub(earlier.idle),
            interrupts: self.interrupts.saturating_sub(earlier.interrupts),
            steal: self.steal.saturating_sub(earlier.steal),
        }
    }
}

/// Times of a process and of its ended children, in clock ticks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct ProcessTicks {
    user: u64,
    system: u64,
    kernel_thread: bool,
}

impl ProcessTicks {
    /// Of /proc/PID/stat. The name in parentheses can contain anything.
    fn parse(text: &str) -> Option<ProcessTicks> {
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        let at = |i: usize| fields.get(i).and_then(|f| f.parse::<u64>().ok());
        /// PF_KTHREAD of linux/sched.h.
        const KERNEL_THREAD: u64 = 0x0020_0000;
        Some(ProcessTicks { user: at(11)? + at(13)?, system: at(12)? + at(14)?, kernel_thread: at(6)? & KERNEL_THREAD != 0 })
    }
}

#[derive(Clone, Debug)]
pub struct Reading {
    at: Instant,
    cpus: Vec<CpuTicks>,
    processes: HashMap<u32, ProcessTicks>,
}

impl Reading {
    /// Reads all times below `proc`, which is /proc outside of tests.
    pub fn take(proc: &Path) -> Result<Reading> {
        let text = std::fs::read_to_string(proc.join("stat")).context("cannot read /proc/stat")?;
        let cpus = text.lines().filter(|l| l.starts_with("cpu") && !l.starts_with("cpu ")).filter_map(CpuTicks::parse).collect();
        let mut processes = HashMap::new();
        for entry in std::fs::read_dir(proc).context("cannot read /proc")?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else { continue };
            // The process may have ended meanwhile.
            let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
            processes.extend(ProcessTicks::parse(&stat).map(|ticks| (pid, ticks)));
        }
        Ok(Reading { at: Instant::now(), cpus, processes })
    }
}

/// CPU time between two readings.
#[derive(Clone, PartialEq, Debug)]
pub struct Usage {
    /// Seconds between them.
    pub elapsed_s: f64,
    /// Each CPU's ticks.
    pub cpus: Vec<CpuTicks>,
    /// The hypervisor's share of all CPUs' time.
    pub steal_share: f64,
    /// The share of processes outside of the rig.
    pub foreign_share: f64,
}

impl Usage {
    /// `own` are the processes of the rig. Foreign user time is all user time less theirs, which includes processes
    /// that lived only between the readings; foreign kernel time is that of the known foreign processes. Interrupts
    /// are nobody's.
    pub fn between(earlier: &Reading, later: &Reading, own: &HashSet<u32>) -> Usage {
        let elapsed_s = later.at.duration_since(earlier.at).as_secs_f64().max(1e-9);
        let cpus: Vec<CpuTicks> = later.cpus.iter().zip(&earlier.cpus).map(|(l, e)| l.since(e)).collect();
        let (mut own_user, mut foreign_system) = (0, 0);
        for (pid, now) in &later.processes {
            let before = earlier.processes.get(pid).copied().unwrap_or_default();
            if own.contains(pid) {
                own_user += now.user.saturating_sub(before.user);
            } else if !now.kernel_thread {
                foreign_system += now.system.saturating_sub(before.system);
            }
        }
        let sum = |f: fn(&CpuTicks) -> u64| cpus.iter().map(f).sum::<u64>();
        let foreign = sum(|c| c.user).saturating_sub(own_user) + foreign_system;
        let all = elapsed_s * TICKS_PER_SECOND * cpus.len().max(1) as f64;
        Usage { elapsed_s, steal_share: sum(|c| c.steal) as f64 / all, foreign_share: foreign as f64 / all, cpus }
    }
}

/// USER_HZ, the unit of /proc on every architecture with Rust and XDP.
pub const TICKS_PER_SECOND: f64 = 100.0;

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn tree(user: u64, steal: u64, processes: &[(u32, &str, u64, u64, u64)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let stat = format!("cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 {user} 1 20 300 0 3 4 {steal} 0 0\ncpu1 0 0 0 0 0 0 0 0 0 0\nintr 5\n");
        fs::write(dir.path().join("stat"), stat).unwrap();
        for (pid, name, flags, user, system) in processes {
            fs::create_dir(dir.path().join(pid.to_string())).unwrap();
            let line = format!("{pid} ({name}) R 1 1 1 0 -1 {flags} 0 0 0 0 {user} {system} 1 1 20 0 1 0 5 0 0");
            fs::write(dir.path().join(pid.to_string()).join("stat"), line).unwrap();
        }
        dir
    }

    #[test]
    fn foreign_is_what_is_not_the_rig_s() {
        let before = tree(10, 0, &[(7, "nomagic) R 9", 0, 10, 0), (8, "cc", 0, 5, 5), (9, "ksoftirqd/0", 0x20_0000, 0, 0)]);
        let after =
            tree(90, 6, &[(7, "nomagic) R 9", 0, 60, 9), (8, "cc", 0, 25, 9), (9, "ksoftirqd/0", 0x20_0000, 0, 50), (10, "sh", 0, 1, 1)]);
        let (mut a, mut b) = (Reading::take(before.path()).unwrap(), Reading::take(after.path()).unwrap());
        a.at = Instant::now();
        b.at = a.at + std::time::Duration::from_secs(1);
        let usage = Usage::between(&a, &b, &HashSet::from([7]));
        assert_eq!(usage.cpus[0], CpuTicks { user: 80, system: 0, idle: 0, interrupts: 0, steal: 6 });
        // 80 of user time, 50 of them the rig's; 4 + 2 of system time (the new shell's with its children's). Two CPUs
        // have 200 ticks in a second.
        assert!((usage.foreign_share - 0.18).abs() < 1e-9 && (usage.steal_share - 0.03).abs() < 1e-9, "{usage:?}");
    }

    #[test]
    fn the_real_one_is_read() {
        let reading = Reading::take(Path::new("/proc")).unwrap();
        assert!(!reading.cpus.is_empty() && reading.processes.contains_key(&std::process::id()));
    }
}
