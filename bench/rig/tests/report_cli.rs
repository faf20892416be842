//! `nomagic-bench report` as scripts call it: what it writes, and how it ends.

#[path = "common/results.rs"]
mod fixture;

use nomagic_bench::results as model;
use nomagic_bench::results::{Estimate, Results};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A directory with a run and one in which nomagic got slower, also to look into afterwards.
fn runs(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    let old = fixture::results();
    let mut slower = old.clone();
    slower.manifest.kernel = "6.12.1".into();
    for row in slower.rates.iter_mut().filter(|r| r.subject == "nomagic-1") {
        row.zero_loss = row.zero_loss.map(|e| Estimate { median: e.median * 0.8, low: e.low * 0.8, high: e.high * 0.8, n: e.n });
    }
    let write = |file: &str, results: &Results| std::fs::write(dir.join(file), serde_json::to_string(results).unwrap()).unwrap();
    write("old.json", &old);
    write("slower.json", &slower);
    write("unmeasured.json", &fixture::unmeasured());
    write("hostile.json", &fixture::hostile());
    std::fs::write(dir.join("other.json"), "{\"format\": 99}").unwrap();
    dir
}

fn report(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_nomagic-bench")).current_dir(dir).arg("report").args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn it_ends_as_scripts_expect_and_says_why() {
    let dir = runs("report-ends");
    let cases: [(&[&str], i32, &str, &str); 10] = [
        (&["old.json"], 0, "the page: report.html", ""),
        (&["old.json", "--format", "text"], 0, "✗ not reached", ""),
        (&["hostile.json", "--against", "old.json", "--format", "text"], 0, "THE RUNS DIFFER", ""),
        (&["slower.json", "--against", "old.json", "--out", "c.html"], 0, "kernel: 6.1.0-31-amd64 then, 6.12.1 now", ""),
        (&["slower.json", "--against", "old.json", "--format", "text", "--fail-on-worse"], 1, "-20.0 %", "2 values are clearly worse"),
        (&["old.json", "--against", "slower.json", "--format", "text", "--fail-on-worse"], 0, "✓ better", ""),
        (&["old.json", "--against", "old.json", "--format", "json", "--fail-on-worse"], 0, "\"rig\": \"veth\"", "0 worse"),
        (&["old.json", "--plot", "rates", "--out", "rates.svg"], 0, "the plot: rates.svg", ""),
        (&["unmeasured.json", "--plot", "rates"], 1, "", "nothing to plot"),
        (&["other.json"], 1, "", "its format is 99"),
    ];
    for (args, code, out, err) in cases {
        let done = report(&dir, args);
        let (stdout, stderr) = (text(&done.stdout), text(&done.stderr));
        assert_eq!(done.status.code(), Some(code), "{args:?}: {stdout}{stderr}");
        assert!(stdout.contains(out) && stderr.contains(err), "{args:?}: {stdout}{stderr}");
        assert!(!stdout.contains('\u{1b}'), "{args:?}: a name reached the terminal as it is");
    }
    let read = |file: &str| std::fs::read_to_string(dir.join(file)).unwrap();
    assert!(read("report.html").starts_with("<!DOCTYPE html>") && !read("report.html").contains("id=\"against\""));
    assert!(read("c.html").contains("id=\"against\"") && read("c.html").contains("✗ worse"));
    assert!(read("rates.svg").starts_with("<svg xmlns="));
}

#[test]
fn the_json_is_one_flat_object() {
    let dir = runs("report-json");
    let done = report(&dir, &["old.json", "--format", "json"]);
    let all: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(all["rates/nomagic-1000/established/zero-loss"], 612_000.0);
    assert!(all.values().all(|v| !v.is_object() && !v.is_array()), "{all:?}");
}
