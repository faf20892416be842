//! The calls of a start, and which of them fail in which start.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use nomagic_testbed::rig::Call;

use super::{Before, errors};

/// One system call that fails in one start.
#[derive(Clone, Debug)]
pub struct Fault {
    pub before: Before,
    pub site: String,
    /// Which of the site's calls, from 0.
    pub nth: usize,
    /// The error's number.
    pub error: i32,
}

impl Fault {
    /// The call's name.
    fn call(&self) -> Option<&str> {
        self.site.split(' ').nth(1)
    }
}

/// What many calls of one site have in common: the name of an interface, of its settings, of a process.
fn common<'d>(detail: &'d str) -> String {
    if detail.starts_with("/proc/sys/net/") && detail.contains("/conf/nm") {
        let create = if detail.ends_with(" create") { " create" } else { "" };
        return format!("/proc/sys/net/ip/conf/IF/KEY{create}");
    }
    if let Some(words) = detail.strip_prefix("ethtool ") {
        return format!("ethtool IF {}", words.rsplit(' ').next().unwrap_or_default());
    }
    let mut before = "";
    let name = |part: &'d str| {
        let number = before == "proc" && part.parse::<u32>().is_ok();
        let shown = if before == "if" {
            "IF"
        } else if number {
            "PID"
        } else {
            part
        };
        before = part;
        shown
    };
    detail.split('/').map(name).collect::<Vec<_>>().join("/")
}

/// The name of a site: the same in every lane and every run.
fn site(call: &Call<'_>, dir: &str) -> String {
    let name = call.name().unwrap_or("unknown");
    let detail = common(&call.detail().replace(dir, "DIR"));
    format!("{}: {name} {detail}", call.thread()).trim_end().to_owned()
}

/// Whether the program's own calls have begun: its first one opens the configuration.
fn begins(call: &Call<'_>) -> bool {
    call.name() == Some("openat") && call.detail().ends_with("/nomagic.yaml")
}

/// Records the sites of a start, from its own first call until it says that it is ready.
pub fn recorder(dir: &Path, to: Arc<Mutex<Vec<String>>>) -> impl FnMut(&Call<'_>) -> Option<i32> + Send + 'static {
    let dir = dir.to_string_lossy().into_owned();
    let (mut begun, mut ended) = (false, false);
    move |call| {
        begun = begun || begins(call);
        if begun && !ended && !call.is_of_runtime() {
            to.lock().unwrap_or_else(PoisonError::into_inner).push(site(call, &dir));
        }
        ended = ended || call.written().contains("nomagic is ready");
        None
    }
}

/// Fails a call. `struck` says whether it came.
pub fn injector(dir: &Path, fault: &Fault, struck: Arc<AtomicBool>) -> impl FnMut(&Call<'_>) -> Option<i32> + Send + 'static {
    let (dir, fault) = (dir.to_string_lossy().into_owned(), fault.clone());
    let (mut begun, mut seen) = (false, 0);
    move |call| {
        begun = begun || begins(call);
        // First what costs nothing to find out.
        if !begun || call.name() != fault.call() || call.is_of_runtime() || site(call, &dir) != fault.site {
            return None;
        }
        seen += 1;
        let hit = seen == fault.nth + 1;
        struck.fetch_or(hit, Relaxed);
        hit.then_some(fault.error)
    }
}

/// Adds the faults of a recorded start, unless an earlier start has the site: the first call of each site. Where one site serves many
/// purposes, also its last call, and of threads all. Each fails once, with the errors of its kind in turns.
pub fn plan(before: Before, recorded: &[String], wanted: &str, faults: &mut Vec<Fault>) {
    let mut counts: HashMap<&str, usize> = HashMap::new();
    recorded.iter().for_each(|site| *counts.entry(site).or_default() += 1);
    let known: HashSet<String> = faults.iter().map(|f| f.site.clone()).collect();
    let mut turns: HashMap<&str, usize> = HashMap::new();
    for site in recorded {
        // Once for each site: later ones find no count.
        let Some(count) = counts.remove(site.as_str()) else { continue };
        let errors = errors::of_site(site);
        if known.contains(site) || errors.is_empty() {
            continue;
        }
        let kind = site.split(' ').nth(1).unwrap_or_default();
        let nths = match kind {
            "clone3" => (0..count).collect(),
            "bpf" | "ioctl" | "openat" | "recvfrom" | "sendto" | "socket" if count > 1 => vec![0, count - 1],
            _ => vec![0],
        };
        for nth in nths {
            let turn = turns.entry(kind).or_default();
            let chosen = match wanted {
                "" => vec![errors[*turn % errors.len()]],
                "all" => errors.clone(),
                text if site.contains(text) => errors.clone(),
                _ => Vec::new(),
            };
            *turn += 1;
            faults.extend(chosen.into_iter().map(|error| Fault { before, site: site.clone(), nth, error }));
        }
    }
}
