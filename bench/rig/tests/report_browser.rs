//! The report's page in a real browser: what it draws, at both ends of the widths, light and dark. Needs chromium (`make setup`).

#[path = "common/results.rs"]
mod fixture;

use nomagic_bench::report::against::Comparison;
use nomagic_bench::report::{page, sections, style};
use nomagic_bench::results as model;
use nomagic_bench::results::Results;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use serde_json::Value;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const CHROMIUM: &str = "/usr/bin/chromium";
/// The browser's time for one page.
const LIMIT: Duration = Duration::from_secs(30);
/// Before all else: nothing that goes wrong, and nothing that a name manages to run, stays unseen.
const WATCH: &str = "<script>const errors = []; window.onerror = (m) => { errors.push(String(m)); };
window.alert = (m) => { errors.push('alert ' + m); };
document.addEventListener('securitypolicyviolation', (e) => errors.push('blocked ' + e.violatedDirective + ' ' + e.blockedURI));</script>";
const PROBE: &str = include_str!("common/probe.js");

/// Runs the browser on a file; what it wrote to standard output.
fn chromium(dir: &Path, file: &Path, (width, height): (u32, u32), dark: bool, args: &[&str]) -> String {
    assert!(Path::new(CHROMIUM).exists(), "{CHROMIUM} is missing: `make setup` installs it");
    let profile = tempfile::tempdir_in(dir).unwrap();
    let [stdout, stderr] = ["stdout", "stderr"].map(|name| profile.path().join(name));
    let mut child = Command::new(CHROMIUM)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"])
        .args([
            "--disable-component-update",
            "--disable-sync",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
            "--virtual-time-budget=2000",
        ])
        .arg(format!("--user-data-dir={}", profile.path().join("profile").display()))
        .arg(format!("--window-size={width},{height}"))
        .arg(format!("--blink-settings=preferredColorScheme={}", if dark { 0 } else { 1 }))
        .args(args)
        .arg(format!("file://{}", file.display()))
        .env("HOME", profile.path())
        .stdin(Stdio::null())
        .stdout(File::create(&stdout).unwrap())
        .stderr(File::create(&stderr).unwrap())
        .process_group(0)
        .spawn()
        .unwrap();
    let group = Pid::from_child(&child);
    let read = |file: &Path| String::from_utf8_lossy(&std::fs::read(file).unwrap_or_default()).into_owned();
    let started = Instant::now();
    // Done is who has written all: now and then a browser does not end after that.
    let done = loop {
        // Without collecting its status: until then nobody else gets its process id.
        let ended = waitid(WaitId::Pid(group), WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT).unwrap();
        let over = ended.is_some() || started.elapsed() > LIMIT;
        let (page, said) = (read(&stdout), read(&stderr));
        if page.trim_end().ends_with("</html>") || said.contains(" bytes written to file ") {
            break true;
        }
        if over {
            break false;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    // What the browser started is of its group: nothing of it stays.
    let _ = kill_process_group(group, Signal::KILL);
    let status = child.wait().unwrap();
    assert!(done, "chromium has not shown {} within {LIMIT:?} ({status}):\n{}", file.display(), read(&stderr));
    std::fs::read_to_string(&stdout).unwrap()
}

/// What the probe finds in a copy of the page.
fn probe(dir: &Path, html: &str, width: u32, dark: bool) -> Value {
    // The page allows no script at all, also not this one.
    let allowed = html.replacen("default-src 'none';", "default-src 'none'; script-src 'unsafe-inline';", 1);
    assert_ne!(allowed, html, "the page has no policy");
    let copy =
        allowed.replacen("<style>", &format!("{WATCH}<style>"), 1).replacen("</body>", &format!("<script>{PROBE}</script></body>"), 1);
    let file = dir.join(format!("probe-{width}-{dark}.html"));
    std::fs::write(&file, copy).unwrap();
    let dom = chromium(dir, &framed(dir, &file, (width, 900)), (width, 900), dark, &["--dump-dom"]);
    let found = dom.split_once("<pre id=\"probe\">").unwrap_or_else(|| panic!("the probe did not run: {}", &dom[..dom.len().min(2000)])).1;
    serde_json::from_str(&decoded(found.split_once("</pre>").unwrap().0)).unwrap()
}

/// A page that shows a file as wide as asked for: the browser's window cannot be narrower than 500 pixels, a frame in it can. What the probe says in
/// the frame is written into this page.
fn framed(dir: &Path, file: &Path, (width, height): (u32, u32)) -> PathBuf {
    let frame = dir.join(format!("{}-framed.html", file.file_stem().unwrap().display()));
    let html = format!(
        "<!DOCTYPE html><meta name=\"color-scheme\" content=\"light dark\"><style>:root {{ color-scheme: light dark; }} body {{ margin: 0; }}</style>\
         <script>addEventListener('message', (e) => {{ const out = document.createElement('pre'); out.id = 'probe'; out.textContent = e.data; \
         document.body.append(out); }});</script><body><iframe src=\"{}\" style=\"width: {width}px; height: {height}px; border: 0\"></iframe>",
        file.file_name().unwrap().display()
    );
    std::fs::write(&frame, html).unwrap();
    frame
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(b) = rest.next() {
        let mut digit = || char::from(rest.next().unwrap()).to_digit(16).unwrap() as u8;
        bytes.push(if b == b'%' { digit() << 4 | digit() } else { b });
    }
    String::from_utf8(bytes).unwrap()
}

fn check(name: &str, results: &Results, found: &Value, (width, dark): (u32, bool)) {
    let plots: usize = sections::sections(results).iter().map(|s| s.plots.len()).sum();
    let brief = |key: &str| found[key].to_string();
    let what = format!("{name}, {width} px, dark {dark}");
    assert_eq!(
        (found["width"].as_u64(), found["dark"].as_bool()),
        (Some(u64::from(width)), Some(dark)),
        "{what}: not the view that was asked for"
    );
    assert_eq!(found["drawings"], plots, "{what}: drawings that are shown");
    assert!(plots == 0 || found["texts"].as_u64().unwrap() > plots as u64 * 5, "{what}: {} texts", found["texts"]);
    for empty in ["errors", "resources", "outside", "overlapping", "pale"] {
        assert_eq!(found[empty].as_array().map(Vec::len), Some(0), "{what}: {empty}: {}", brief(empty));
    }
    for (zero, words) in [("unnamed", "drawings without a name"), ("headless", "tables without heads"), ("ids", "ids that are not unique")]
    {
        assert_eq!(found[zero], 0, "{what}: {words}");
    }
    assert!(found["scroll"].as_u64().unwrap() <= u64::from(width), "{what}: {} px wide", found["scroll"]);
    assert!(found["contrast"].as_f64().unwrap() >= 4.5, "{what}: {}", found["contrast"]);
    assert!(&Results::parse(&found["results"].to_string()).unwrap() == results, "{what}: the JSON in the page");
}

/// A picture of a file, beside one of a page with nothing on it.
fn check_screenshot(dir: &Path, file: &Path, picture: &Path, (width, height): (u32, u32), dark: bool) {
    let empty = dir.join("empty.html");
    std::fs::write(&empty, "<!DOCTYPE html><meta name=\"color-scheme\" content=\"light dark\"><title>-</title>").unwrap();
    let blank = dir.join("empty.png");
    let [seen, nothing] = [(file, picture), (&empty, &blank)].map(|(file, picture)| {
        chromium(dir, file, (width, height), dark, &[&format!("--screenshot={}", picture.display())]);
        std::fs::read(picture).unwrap()
    });
    assert_eq!((&seen[..8], &seen[12..16]), (&b"\x89PNG\r\n\x1a\n"[..], &b"IHDR"[..]), "{}", picture.display());
    let number = |at: usize| u32::from_be_bytes(seen[at..at + 4].try_into().unwrap());
    assert_eq!((number(16), number(20)), (width, height), "{}", picture.display());
    // Pixels that are all alike take next to nothing in a PNG.
    assert!(seen.len() > nothing.len() * 4, "{}: {} bytes, an empty page {}", picture.display(), seen.len(), nothing.len());
}

#[test]
fn a_browser_shows_the_page_whole_at_every_width_in_light_and_dark() {
    let dir = tempfile::tempdir().unwrap();
    // Where the pictures are kept, to look at.
    let kept = std::env::var_os("NOMAGIC_SCREENSHOTS").map_or_else(|| dir.path().to_owned(), Into::into);
    let (whole, hostile, unmeasured) = (fixture::results(), fixture::hostile(), fixture::unmeasured());
    let pages = [
        ("whole", &whole, page::html(&whole, None).unwrap()),
        ("hostile", &hostile, page::html(&hostile, Some(&Comparison::new(&hostile, &whole))).unwrap()),
        ("unmeasured", &unmeasured, page::html(&unmeasured, None).unwrap()),
    ];
    for (name, results, html) in &pages {
        let views: &[(u32, bool)] =
            if *name == "whole" { &[(400, false), (700, true), (1280, true), (1600, false)] } else { &[(400, true), (1280, false)] };
        for &(width, dark) in views {
            check(name, results, &probe(dir.path(), html, width, dark), (width, dark));
        }
    }
    let page = dir.path().join("page.html");
    std::fs::write(&page, &pages[0].2).unwrap();
    for (width, height) in [(400, 9000), (1280, 6000)] {
        for dark in [false, true] {
            let picture = kept.join(format!("page-{width}-{}.png", if dark { "dark" } else { "light" }));
            check_screenshot(dir.path(), &framed(dir.path(), &page, (width, height)), &picture, (width.max(500), height), dark);
        }
    }
}

#[test]
fn a_plot_alone_can_be_read_in_light_and_dark() {
    let dir = tempfile::tempdir().unwrap();
    let kept = std::env::var_os("NOMAGIC_SCREENSHOTS").map_or_else(|| dir.path().to_owned(), Into::into);
    let results = fixture::results();
    let section = sections::sections(&results).into_iter().find(|s| s.id == "rates").unwrap();
    let file = dir.path().join("rates.svg");
    std::fs::write(&file, style::standalone(&section.plots)).unwrap();
    for dark in [false, true] {
        let picture = kept.join(format!("rates-{}.png", if dark { "dark" } else { "light" }));
        check_screenshot(dir.path(), &file, &picture, (720, 700), dark);
    }
}
