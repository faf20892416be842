//! Process metrics from /proc, under the names of Prometheus' client libraries.

use std::fs;

use nomagic_sys::process::page_bytes;

use super::Exposition;
use super::exposition::MetricType::{Counter, Gauge};

/// `USER_HZ`, the unit of times in /proc: 100 on every architecture that nomagic supports.
const TICKS_PER_SECOND: f64 = 100.0;
/// Maximum number of threads examined.
const THREADS_MAX: usize = 1_024;
/// Prefix of worker thread names, before the worker's number.
const WORKER_NAME: &str = "nm-worker-";

/// Indices of /proc/PID/stat fields after the name: the numbers in proc(5) minus 3.
const UTIME: usize = 11;
const STIME: usize = 12;
const START: usize = 19;
const RSS: usize = 21;

/// Returns `(name, fields from "state" on)`. The name may contain any character, so it ends at the last `)`.
fn stat(text: &str) -> Option<(&str, Vec<u64>)> {
    let (name, rest) = (text.split_once('(')?.1, text.rsplit_once(')')?.1);
    let name = &name[..name.rfind(')')?];
    // The state (a letter) and negative fields are not used here and parse as 0.
    Some((name, rest.split_whitespace().map(|f| f.parse().unwrap_or(0)).collect()))
}

fn cpu_seconds(fields: &[u64]) -> Option<f64> {
    Some((fields.get(UTIME)? + fields.get(STIME)?) as f64 / TICKS_PER_SECOND)
}

/// The boot time in Unix time.
fn boot_s(text: &str) -> Option<u64> {
    text.lines().find_map(|l| l.strip_prefix("btime "))?.trim().parse().ok()
}

/// Writes the metrics whose source is readable.
pub fn write(out: &mut Exposition) {
    let own = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    if let Some((_, fields)) = stat(&own) {
        if let Some(seconds) = cpu_seconds(&fields) {
            out.single("process_cpu_seconds_total", Counter, "CPU time of all threads.", seconds);
        }
        if let Some(pages) = fields.get(RSS) {
            out.single("process_resident_memory_bytes", Gauge, "Resident memory.", pages * page_bytes());
        }
        let boot = fs::read_to_string("/proc/stat").ok().and_then(|t| boot_s(&t));
        if let (Some(boot), Some(ticks)) = (boot, fields.get(START)) {
            let help = "When the process started, in Unix time.";
            out.single("process_start_time_seconds", Gauge, help, boot as f64 + *ticks as f64 / TICKS_PER_SECOND);
        }
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        out.single("process_open_fds", Gauge, "Open file descriptors.", open.count());
    }
    workers(out);
}

/// Writes the CPU time of each worker thread: the load of a worker that sleeps when idle.
fn workers(out: &mut Exposition) {
    let name = "nomagic_worker_cpu_seconds_total";
    out.begin(name, Counter, "CPU time of a worker thread; with `idle: spin` it grows by one every second.");
    let threads = fs::read_dir("/proc/self/task").into_iter().flatten().flatten().take(THREADS_MAX);
    let mut found: Vec<(u32, f64)> = threads
        .filter_map(|thread| {
            let text = fs::read_to_string(thread.path().join("stat")).ok()?;
            let (thread, fields) = stat(&text)?;
            Some((thread.strip_prefix(WORKER_NAME)?.parse().ok()?, cpu_seconds(&fields)?))
        })
        .collect();
    found.sort_by_key(|(worker, _)| *worker);
    found.dedup_by_key(|(worker, _)| *worker);
    found.iter().for_each(|(worker, seconds)| out.sample(name, &[("worker", &worker.to_string())], seconds));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_name_does_not_shift_the_fields() {
        let text = "7 (a) 9 (b) S 1 7 7 0 -1 4194560 1 2 3 4 150 50 0 0 20 0 3 0 1000 9000 321 18446744073709551615 1";
        let (name, fields) = stat(text).unwrap();
        assert_eq!((name, cpu_seconds(&fields), fields[START], fields[RSS]), ("a) 9 (b", Some(2.0), 1_000, 321));
        assert!(stat("").is_none() && stat(")(").is_none() && cpu_seconds(&[]).is_none());
        assert_eq!(boot_s("cpu 1 2\nbtime 1700000000\n"), Some(1_700_000_000));
    }

    #[test]
    fn workers_are_found_by_thread_name() {
        let (started, stop) = (std::sync::mpsc::channel(), std::sync::mpsc::channel::<()>());
        let thread = std::thread::Builder::new().name("nm-worker-41".into());
        let thread = thread.spawn(move || {
            started.0.send(()).unwrap();
            let _ = stop.1.recv();
        });
        started.1.recv().unwrap();
        let mut out = Exposition::default();
        write(&mut out);
        drop(stop.0);
        thread.unwrap().join().unwrap();
        let text = out.finish();
        for start in ["process_cpu_seconds_total ", "process_resident_memory_bytes ", "process_start_time_seconds 1", "process_open_fds "] {
            assert!(text.lines().any(|l| l.starts_with(start)), "{start} in {text}");
        }
        assert!(text.contains("nomagic_worker_cpu_seconds_total{worker=\"41\"} 0"), "{text}");
    }
}
