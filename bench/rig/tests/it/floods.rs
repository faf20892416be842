//! The floods' rig, short: each flood goes through both subjects, and nothing is left behind. What the figures are is not asserted.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nomagic_testbed::rig::remove_leftovers;

use crate::{all_cpus, bench, nomagic};

/// A setting that is global to the machine; absent until the first rule set uses the kernel's connection table.
fn conntrack_max() -> Option<u32> {
    let text = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_max").ok()?;
    Some(text.trim().parse().unwrap())
}

fn namespaces() -> String {
    String::from_utf8(Command::new("ip").args(["netns", "list"]).output().unwrap().stdout).unwrap()
}

#[test]
fn short_floods_go_through_both_subjects_and_leave_nothing_behind() {
    let _cpus = all_cpus();
    let conntrack_max_before = conntrack_max();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("floods.json");
    let kinds = ["none", "syn", "handshake", "syn-snat", "one-client", "question", "scan"];
    let (nomagic, kinds_text) = (nomagic(), kinds.join(","));
    let args = ["floods", "--capacity", "4096", "--seconds", "0.5", "--rate", "5000", "--kinds", &kinds_text];
    let (pid, _) = bench(&[&args[..], &["--nomagic", nomagic.to_str().unwrap(), "--out", out.to_str().unwrap()]].concat());
    let rows: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&out).unwrap()).unwrap();
    let rows = rows.as_array().unwrap();
    assert_eq!(rows.len(), 2 * kinds.len(), "{rows:?}");
    for row in rows {
        let number = |field: &str| row[field].as_f64().unwrap_or_else(|| panic!("{field} of {row}"));
        assert!(number("newcomersPerS") > 1.0 && (0.0..=1.0).contains(&number("newcomers")), "{row}");
        let served = number("newcomers").min(number("established"));
        assert!(row["flood"] != "none" || served > 0.5, "hardly any client is served, although nobody floods: {row}");
        assert_eq!(number("floodPps") > 0.0, row["flood"] != "none", "{row}");
    }
    assert_eq!(conntrack_max(), conntrack_max_before.or(conntrack_max().filter(|n| *n != 4096)));
    assert!(!namespaces().contains(&format!("-{pid}-")), "namespaces are left");
}

#[test]
fn the_next_run_restores_what_a_killed_one_has_changed() {
    let _cpus = all_cpus();
    let before = conntrack_max();
    let dir = tempfile::tempdir().unwrap();
    let mut killed = Command::new(env!("CARGO_BIN_EXE_nomagic-bench"))
        .args(["floods", "--capacity", "4321", "--kinds", "none", "--nomagic", nomagic().to_str().unwrap()])
        .args(["--out", dir.path().join("floods.json").to_str().unwrap()])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let pid = killed.id();
    let end = Instant::now() + Duration::from_secs(30);
    while conntrack_max() != Some(4321) {
        assert!(Instant::now() < end && killed.try_wait().unwrap().is_none(), "it has not changed the setting");
        std::thread::sleep(Duration::from_millis(10));
    }
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert!(conntrack_max() == Some(4321) && namespaces().contains(&format!("-{pid}-")), "nothing is left to restore");

    remove_leftovers();

    assert_eq!(conntrack_max(), before.or(conntrack_max().filter(|n| *n != 4321)));
    assert!(!namespaces().contains(&format!("-{pid}-")), "namespaces are left");
}
