//! Whether a gateway says that it can carry: `nomagic status --ready`, `/readyz`, and the state of links. Needs root.

use std::process::{Command, Output, Stdio};
use std::time::Duration;

use crate::common::plain_http::get;
use crate::common::*;

const SOON: Duration = Duration::from_secs(5);

fn status(g: &Gateway, args: &[&str]) -> Output {
    Command::new(NOMAGIC).arg("status").args(args).arg("--state-dir").arg(g.state_dir()).output().unwrap()
}

/// The exit code of `status --ready` and the code of `/readyz`; 0 if nothing answers there.
fn readiness(g: &Gateway) -> (Option<i32>, u16) {
    let readyz = || get("10.0.0.1:10256".parse().unwrap(), "/readyz").map_or(0, |answer| answer.status);
    (status(g, &["--ready"]).status.code(), g.scene.client.run(readyz).unwrap())
}

fn becomes(g: &Gateway, what: &str, wanted: (Option<i32>, u16)) {
    let mut last = (None, 0);
    let end = std::time::Instant::now() + SOON;
    while last != wanted && std::time::Instant::now() < end {
        last = readiness(g);
    }
    let said = status(g, &["--ready"]);
    assert_eq!(last, wanted, "{what}: {}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
}

#[test]
fn a_gateway_without_a_link_or_a_port_is_not_ready() {
    let mut g = Gateway::start("ready", "", &nginx(&[0]));
    becomes(&g, "started", (Some(0), 200));
    assert_eq!(String::from_utf8_lossy(&status(&g, &["--ready"]).stdout), "ready\n");

    g.scene.fabric.ip("link set gw0 down").unwrap();
    becomes(&g, "the other end is down", (Some(3), 503));
    let text = String::from_utf8(status(&g, &[]).stdout).unwrap();
    assert!(text.starts_with("NOT READY: port pods0 has no carrier"), "{text}");
    assert!(text.lines().any(|l| l.starts_with("pods0  no carrier")), "{text}");
    g.scene.fabric.ip("link set gw0 up").unwrap();
    becomes(&g, "the other end is up", (Some(0), 200));

    g.scene.gw.ip("link set pods0 down").unwrap();
    becomes(&g, "the port is down", (Some(3), 503));
    let text = String::from_utf8(status(&g, &[]).stdout).unwrap();
    assert!(text.contains("ip link set dev pods0 up"), "{text}");
    g.scene.gw.ip("link set pods0 up").unwrap();
    becomes(&g, "the port is up", (Some(0), 200));

    g.scene.gw.ip("link del pods0").unwrap();
    becomes(&g, "the port is gone", (Some(3), 503));
    assert!(g.process.terminate(SOON).unwrap().success());
    becomes(&g, "stopped", (Some(3), 0));
}

#[test]
fn a_reader_that_closes_its_end_is_no_failure() {
    let g = Gateway::start("closed", "", &nginx(&[0]));
    for args in [&["status"][..], &["status", "--format", "json"], &["deny", "list"], &["deny", "add", "192.0.2.1"]] {
        let mut command = Command::new(NOMAGIC);
        let mut child =
            command.args(args).arg("--state-dir").arg(g.state_dir()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // The process still has to connect to the gateway: nothing is written yet.
        drop(child.stdout.take());
        let out = child.wait_with_output().unwrap();
        assert_eq!((out.status.code(), String::from_utf8_lossy(&out.stderr).as_ref()), (Some(0), ""), "{args:?}");
    }
    let mut child = Command::new(NOMAGIC).arg("preflight").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let out = child.wait_with_output().unwrap();
    assert!(matches!(out.status.code(), Some(0 | 1)), "{:?}: {}", out.status, String::from_utf8_lossy(&out.stderr));
}

fn done(g: &Gateway, args: &[&str]) -> String {
    let out = Command::new(NOMAGIC).args(args).arg("--state-dir").arg(g.state_dir()).output().unwrap();
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// The codes of these paths of the health server.
fn codes(g: &Gateway) -> [u16; 3] {
    let ask = |path: &'static str| get("10.0.0.1:10256".parse().unwrap(), path).map_or(0, |answer| answer.status);
    g.scene.client.run(move || ["/readyz", "/healthz", "/livez"].map(ask)).unwrap()
}

#[test]
fn a_drained_gateway_says_so_and_carries_on_until_it_is_undone() {
    let mut g = Gateway::start("drain", "graceMs: 10000", &nginx(&[0]));
    let serves = |g: &Gateway| assert_eq!(g.http(&g.scene.client, "10.109.35.24:80", 10).answered(), 10);
    assert_eq!(codes(&g), [200, 200, 200]);
    done(&g, &["drain"]);
    assert_eq!(codes(&g), [503, 503, 200], "load balancers leave, nothing is restarted");
    let said = status(&g, &[]);
    assert!(String::from_utf8_lossy(&said.stdout).starts_with("NOT READY: draining: `nomagic drain --undo` ends it"), "{said:?}");
    assert!(said.status.code() == Some(3) && g.status().draining);
    serves(&g);

    assert!(g.process.terminate(SOON).unwrap().success());
    g.restart();
    assert_eq!(codes(&g), [503, 503, 200], "a restart does not end it");
    serves(&g);
    done(&g, &["drain", "--undo"]);
    assert_eq!((codes(&g), status(&g, &["--ready"]).status.code()), ([200, 200, 200], Some(0)));
    serves(&g);
}

#[test]
fn a_service_manager_is_told_and_a_signal_says_what_happens_to_traffic() {
    let scene = nomagic_testbed::rig::Scene::new("notify").expect("a scene (needs root)");
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("manifests.yaml"), nginx(&[0])).unwrap();
    let path = dir.path().join("nomagic.yaml");
    std::fs::write(&path, config(dir.path(), "graceMs: 1500")).unwrap();
    let socket = std::os::unix::net::UnixDatagram::bind(dir.path().join("notify")).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let variable = format!("NOTIFY_SOCKET={}", dir.path().join("notify").display());
    let words = [&variable, "WATCHDOG_USEC=10000000", NOMAGIC, "run", "--config", &path.to_string_lossy()];
    let mut process = scene.gw.spawn("env", &words).unwrap();
    let mut heard = String::new();
    let mut hears = |what: &str, process: &nomagic_testbed::rig::Process| {
        wait_for_or(SOON + START, || {
            let mut text = [0; 512];
            if let Ok(n) = socket.recv(&mut text) {
                heard += &format!("{}\n", String::from_utf8_lossy(&text[..n]));
            }
            heard.contains(what)
        })
        .unwrap_or_else(|()| panic!("{what} was not heard: {heard}\n{}", process.output()));
    };
    hears("READY=1\nSTATUS=ready\n", &process);
    hears("WATCHDOG=1\nWATCHDOG=1\n", &process);
    scene.fabric.ip("link set gw0 down").unwrap();
    hears("STATUS=NOT READY: port pods0 has no carrier", &process);
    process.signal(libc::SIGTERM).unwrap();
    hears("STOPPING=1", &process);
    let status = process.wait(SOON).unwrap();
    let said = process.output();
    assert!(status.success() && said.contains("stopping on a signal: the XDP programs stay attached"), "{said}");
    assert!(said.contains("within 1.5 s (graceMs), they go to the kernel (onFailure: pass)"), "{said}");
    scene.gw.exec(NOMAGIC, &["cleanup", "--state-dir", &dir.path().join("state").to_string_lossy()]).unwrap();
}

fn wait_for_or(limit: Duration, mut holds: impl FnMut() -> bool) -> Result<(), ()> {
    let end = std::time::Instant::now() + limit;
    while !holds() {
        if std::time::Instant::now() > end {
            return Err(());
        }
    }
    Ok(())
}

#[test]
fn the_log_level_changes_while_it_runs_and_lines_may_be_json() {
    let g = Gateway::start("loglevel", "log: {level: info, format: json}", &nginx(&[0]));
    assert_eq!(done(&g, &["log"]), "info\n");
    assert_eq!(done(&g, &["log", "debug"]), "debug\n");
    let line = || g.process.output().lines().find(|l| l.contains("the log level is debug now")).map(str::to_owned);
    wait_for("a line in JSON", SOON, || line().is_some());
    let line: serde_json::Value = serde_json::from_str(&line().unwrap()).unwrap();
    assert_eq!((&line["level"], &line["fields"]["message"]), (&"INFO".into(), &"the log level is debug now".into()), "{line}");
    assert_eq!(done(&g, &["log", "warn"]), "warn\n");
    let out = Command::new(NOMAGIC).args(["log", "loud", "--state-dir"]).arg(g.state_dir()).output().unwrap();
    let error = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.code() == Some(2) && error.contains("error, warn, info, debug, trace"), "{error}");
    let out = Command::new(NOMAGIC).env("NOMAGIC_LOG", "verbose").args(["run", "--config"]).arg(g.config_path()).output().unwrap();
    let error = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.code() == Some(2) && error.contains("NOMAGIC_LOG: `verbose` is no log level"), "{error}");
}

#[test]
fn a_closed_log_does_not_end_the_gateway() {
    // Like `nomagic run 2>&1 | head -1`: its reader is gone before the gateway is ready.
    let scene = nomagic_testbed::rig::Scene::new("closedlog").expect("a scene (needs root)");
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("manifests.yaml"), nginx(&[0])).unwrap();
    std::fs::write(dir.path().join("nomagic.yaml"), config(dir.path(), "")).unwrap();
    let script = "exec \"$0\" run --config \"$1\" 2> >(exec head -n 1)";
    let config = dir.path().join("nomagic.yaml");
    let mut process = scene.gw.spawn("bash", &["-c", script, NOMAGIC, &config.to_string_lossy()]).unwrap();
    let state = dir.path().join("state");
    let ready = || Command::new(NOMAGIC).args(["status", "--ready", "--state-dir"]).arg(&state).output().unwrap().status.code() == Some(0);
    wait_for("the gateway", START, ready);
    scene.fabric.ip("link set gw0 down").unwrap();
    wait_for("a line of the log", SOON, || !ready());
    scene.fabric.ip("link set gw0 up").unwrap();
    wait_for("the gateway again", SOON, ready);
    assert!(process.running());
    assert!(process.terminate(SOON).unwrap().success(), "{}", process.output());
    scene.gw.exec(NOMAGIC, &["cleanup", "--state-dir", &state.to_string_lossy()]).unwrap();
}
