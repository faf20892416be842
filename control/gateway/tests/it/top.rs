//! `nomagic top` in a terminal, on a running gateway with real connections. Needs root.

use std::fs::File;
use std::io::{Read, Write};
use std::num::NonZero;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nomagic_testbed::peers::{ClientOptions, http_load};
use nomagic_testbed::rig::{CLIENT_V4, PODS};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};
use serde_json::Value;

use crate::common::*;

const LIMIT: Duration = Duration::from_secs(20);
const SIZE: (u16, u16) = (80, 24);

/// A terminal with a program in it.
struct Terminal {
    master: File,
    /// The program's end, kept open: its settings can be read when the program has ended.
    slave: File,
    before: Termios,
    child: Child,
    screen: Arc<Mutex<vt100::Parser>>,
}

impl Terminal {
    /// Starts `nomagic top` in a terminal of 80x24.
    fn start(state_dir: &Path, args: &[&str], variables: &[(&str, &str)]) -> Terminal {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = std::ffi::OsString::from_vec(ptsname(&master, Vec::new()).unwrap().into_bytes());
        let slave = File::options().read(true).write(true).open(name).unwrap();
        tcsetwinsize(&slave, Winsize { ws_col: SIZE.0, ws_row: SIZE.1, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
        let before = tcgetattr(&slave).unwrap();
        let end = || Stdio::from(slave.as_fd().try_clone_to_owned().unwrap());
        // setsid(1) makes it the terminal of the program, which has the same process ID.
        let mut command = Command::new("setsid");
        command.args(["--ctty", NOMAGIC, "top", "--every", "0.2", "--state-dir"]).arg(state_dir).args(args);
        command.env("TERM", "xterm").env_remove("NO_COLOR").envs(variables.iter().copied());
        let child = command.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        let master = File::from(master);
        let screen = Arc::new(Mutex::new(vt100::Parser::new(NonZero::new(SIZE.1).unwrap(), NonZero::new(SIZE.0).unwrap(), 0)));
        let (mut read, shown) = (master.try_clone().unwrap(), screen.clone());
        std::thread::spawn(move || {
            let mut bytes = [0; 4_096];
            while let Ok(n) = read.read(&mut bytes)
                && n > 0
            {
                shown.lock().unwrap().process(&bytes[..n]);
            }
        });
        Terminal { master, slave, before, child, screen }
    }

    fn press(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).unwrap();
    }

    fn lines(&self) -> Vec<String> {
        self.screen.lock().unwrap().screen().rows(0, SIZE.0).map(|line| line.trim_end().to_owned()).collect()
    }

    /// Waits for a line of the screen.
    fn wait_for_line(&self, what: &str, fits: impl Fn(&str) -> bool) -> String {
        let mut found = None;
        let end = std::time::Instant::now() + LIMIT;
        while found.is_none() {
            assert!(std::time::Instant::now() < end, "no {what} on the screen:\n{}", self.lines().join("\n"));
            std::thread::sleep(Duration::from_millis(20));
            found = self.lines().into_iter().find(|line| fits(line));
        }
        found.unwrap()
    }

    /// Waits until the program has ended, and checks that the terminal is as it was.
    fn wait_until_restored(&mut self) -> ExitStatus {
        wait_for("the end of top", LIMIT, || self.child.try_wait().unwrap().is_some());
        let after = tcgetattr(&self.slave).unwrap();
        assert_eq!(
            (after.input_modes, after.output_modes, after.control_modes, after.local_modes),
            (self.before.input_modes, self.before.output_modes, self.before.control_modes, self.before.local_modes)
        );
        wait_for("the first screen and the cursor", LIMIT, || {
            let parser = self.screen.lock().unwrap();
            !parser.screen().alternate_screen() && !parser.screen().hide_cursor()
        });
        self.child.wait().unwrap()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The number in the column of a row, by the columns' titles. Texts have no blanks in them here.
fn number(row: &str, column: usize) -> Option<f64> {
    let word = row.split_whitespace().nth(column)?;
    let digits = word.trim_end_matches(['k', 'M', '%']);
    digits.trim_start_matches('<').parse().ok()
}

fn once(state_dir: &Path, args: &[&str]) -> Output {
    Command::new(NOMAGIC).args(["top", "--once", "--every", "0.5", "--state-dir"]).arg(state_dir).args(args).output().unwrap()
}

/// New connections from the client as long as it lives.
struct Load {
    is_over: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<anyhow::Result<()>>>,
}

impl Load {
    fn start(g: &Gateway) -> Load {
        let is_over = Arc::new(AtomicBool::new(false));
        let over = is_over.clone();
        let thread = g.scene.client.thread(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            while !over.load(Ordering::Relaxed) {
                runtime.block_on(http_load("10.109.35.24:80".parse().unwrap(), 5, ClientOptions::default()));
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        Load { is_over, thread: Some(thread.unwrap()) }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

#[test]
fn from_the_service_with_traffic_to_the_explanation_of_a_flow_and_back() {
    let g = Gateway::start("top", "", &nginx(&[0, 1, 2]));
    let to = "10.109.35.24:80".parse().unwrap();
    let held: Vec<_> = g.scene.client.run(|| (0..12).map(|_| keep_alive(to)).collect()).unwrap();
    let load = Load::start(&g);
    let mut top = Terminal::start(&g.state_dir(), &[], &[]);

    let has_rates = |line: &str, name: &str| line.starts_with(name) && number(line, 1) > Some(0.0) && number(line, 3) > Some(0.0);
    top.wait_for_line("Service with rates of packets and flows", |line| has_rates(line, "default/nginx "));
    assert!(top.lines()[0].starts_with("nomagic top  ready  up "), "{:#?}", top.lines());

    top.press("\r");
    let pods: Vec<String> = PODS.iter().map(|pod| format!("{}:80", pod.v4)).collect();
    top.wait_for_line("way", |line| line == "services > default/nginx, by packets/s");
    for pod in &pods {
        top.wait_for_line("backend", |line| line.contains(pod) && number(line, 2) > Some(0.0));
    }
    // The flows of a backend that has some of the open connections, and what happens to one of them.
    top.press("/192.168.\r\r");
    top.wait_for_line("flows", |line| line.starts_with("services > default/nginx > flows to 192.168."));
    top.press("/established\r");
    let client = format!("TCP    {CLIENT_V4}:");
    top.wait_for_line("flow", |line| line.starts_with(&client) && line.contains("10.109.35.24:80") && line.contains("ESTABLISHED"));
    top.press("\r");
    top.wait_for_line("explanation", |line| line.starts_with("  => FORWARD to 192.168."));
    // Back: each filter and each view takes an Esc. A terminal sends the same byte at the beginning of other keys: not all at once.
    for _ in 0..5 {
        top.press("\x1b");
        std::thread::sleep(Duration::from_millis(300));
    }
    top.wait_for_line("Services", |line| line == "services, by packets/s");

    top.press("3");
    let clients = top.wait_for_line("client", |line| line.starts_with(&CLIENT_V4.to_string()));
    assert!(number(&clients, 1) >= Some(held.len() as f64), "{clients}");
    top.press("5");
    top.wait_for_line("worker with load", |line| line.starts_with("0  ") && line.contains("runs") && number(line, 4) > Some(0.0));
    top.press("q");
    assert_eq!(top.wait_until_restored().code(), Some(0));
    drop(load);
}

#[test]
fn one_screen_as_text_and_as_json() {
    let g = Gateway::start("toponce", "", &nginx(&[0, 1, 2]));
    let load = Load::start(&g);
    let text = once(&g.state_dir(), &["--width", "100", "--height", "12"]);
    assert!(text.status.success(), "{}", String::from_utf8_lossy(&text.stderr));
    let text = String::from_utf8(text.stdout).unwrap();
    assert_eq!(text.lines().count(), 12, "{text}");
    let row = text.lines().find(|line| line.starts_with("default/nginx ")).unwrap_or_else(|| panic!("{text}"));
    assert!(number(row, 1) > Some(0.0), "{text}");
    assert!(!text.contains('\x1b'), "{text:?}");

    let json = once(&g.state_dir(), &["--format", "json", "--service", "default/nginx"]);
    let rows: Vec<Value> = String::from_utf8(json.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(rows.iter().all(|row| row["schema"] == 1 && row["view"] == "backends"), "{rows:#?}");
    let of_tcp: f64 = rows.iter().filter(|row| row["port"] == "80/TCP").filter_map(|row| row["packets_per_s"].as_f64()).sum();
    assert!(of_tcp > 0.0, "{rows:#?}");
    let clients = once(&g.state_dir(), &["--format", "json", "--view", "clients"]);
    let clients: Value = serde_json::from_slice(&clients.stdout).unwrap();
    assert_eq!((clients["client"].as_str(), clients["share"].as_f64()), (Some(CLIENT_V4.to_string().as_str()), Some(1.0)));
    drop(load);
}

#[test]
fn the_end_of_the_gateway_is_said_and_so_is_its_return() {
    let mut g = Gateway::start("topend", "", &nginx(&[0]));
    let mut top = Terminal::start(&g.state_dir(), &[], &[("NO_COLOR", "1")]);
    // The next process is younger than that.
    let is_young = |line: &str| (0..4).any(|s| line.contains(&format!("  up {s} s  ")));
    top.wait_for_line("uptime", |line| line.starts_with("nomagic top  ready  up ") && !is_young(line));
    top.wait_for_line("Service", |line| line.starts_with("default/nginx "));
    g.kill();
    top.wait_for_line("silence", |line| line.starts_with("NO ANSWER for "));
    g.restart();
    top.wait_for_line("return", |line| line.starts_with("the gateway has started again, "));
    assert!(!top.lines()[0].contains("NO ANSWER"), "{:#?}", top.lines());
    {
        let parser = top.screen.lock().unwrap();
        let cells = (0..SIZE.1).flat_map(|y| (0..SIZE.0).map(move |x| (y, x))).filter_map(|(y, x)| parser.screen().cell(y, x));
        assert!(cells.into_iter().all(|cell| cell.fgcolor() == vt100::Color::Default && cell.bgcolor() == vt100::Color::Default));
    }
    // A signal is a way out like any other.
    let terminate = |process: u32| nomagic_testbed::rig::run("kill", &["-TERM", &process.to_string()]).unwrap();
    terminate(top.child.id());
    assert_eq!(top.wait_until_restored().code(), Some(0));
}

#[test]
fn without_a_gateway_it_waits_and_control_c_ends_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut top = Terminal::start(dir.path(), &[], &[]);
    top.wait_for_line("silence", |line| line.starts_with("NO ANSWER for ") && line.contains("no nomagic answers"));
    top.press("\x03");
    assert_eq!(top.wait_until_restored().code(), Some(0));
    let out = once(dir.path(), &[]);
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.code() == Some(1) && said.contains("no nomagic answers on"), "{said}");
}

#[test]
fn what_cannot_show_a_screen_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut dumb = Terminal::start(dir.path(), &[], &[("TERM", "dumb")]);
    assert_eq!(dumb.wait_until_restored().code(), Some(1));
    let said = dumb.lines().concat();
    assert!(said.contains("TERM is `dumb`") && said.contains("`nomagic status`"), "{said}");
    let out = Command::new(NOMAGIC).args(["top", "--state-dir"]).arg(dir.path()).stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.code() == Some(1) && said.contains("needs a terminal") && said.contains("`nomagic status`"), "{said}");
}
