//! A gateway that is started again and again, with connections through it.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nomagic_testbed::peers::{PodOptions, PodThread, start_pod};
use nomagic_testbed::rig::{PODS, Process, Scene};

use super::Before;
use super::judge::Trial;
use super::record::{self, Fault};
use crate::common::{NOMAGIC, START, config, keep_alive, nginx};

const SERVICES: [&str; 2] = ["10.109.35.24:80", "[fd00:10:109::24]:80"];
/// Connections to each of them.
const CONNECTIONS: usize = 4;
/// The node's own server.
const NODE: &str = "10.0.0.1:7777";
/// Time limit of a start with a fault.
const END: Duration = Duration::from_secs(10);

/// After this time the last answers are acknowledged. Otherwise pods would repeat them to a node where nothing is attached, and its kernel
/// would reset their connections.
const ACKNOWLEDGED: Duration = Duration::from_millis(60);
/// Starts that fail before one that must not.
const TOGETHER: usize = 4;

pub struct Lane {
    scene: Scene,
    dir: tempfile::TempDir,
    connections: Vec<(TcpStream, String)>,
    /// What a start without faults says about its ports.
    ports: Vec<String>,
    /// What it warns of.
    warnings: Vec<String>,
    _pods: Vec<PodThread>,
}

impl Lane {
    pub fn new(tag: &str) -> Lane {
        let scene = Scene::new(tag).expect("a scene (needs root)");
        let dir = tempfile::tempdir_in("/dev/shm").expect("a directory");
        std::fs::write(dir.path().join("manifests.yaml"), nginx(&[0, 1, 2])).expect("manifests");
        let extra = "graceMs: 10000\nmasqueradeAll: true\nconntrack: {capacity: 4096, file: $STATE/conntrack}";
        std::fs::write(dir.path().join("nomagic.yaml"), config(dir.path(), extra)).expect("configuration");
        let pods = scene.pods.iter().zip(PODS).map(|(ns, p)| start_pod(ns, PodOptions::new(p.name)).expect("a pod")).collect();
        let mut lane = Lane { scene, dir, connections: Vec::new(), ports: Vec::new(), warnings: Vec::new(), _pods: pods };
        lane.serve_on_node();
        let mut process = lane.start_clean().expect("a first start");
        let open = |to: SocketAddr| move || (0..CONNECTIONS).map(|_| keep_alive(to)).collect::<Vec<_>>();
        for to in SERVICES {
            let opened = lane.scene.client.run(open(to.parse().expect("an address"))).expect("connections");
            lane.connections.extend(opened);
        }
        std::thread::sleep(ACKNOWLEDGED);
        let said = process.output();
        (lane.ports, lane.warnings) = (about_ports(&said), warnings(&said).collect());
        process.kill().expect("SIGKILL");
        lane
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    fn args(&self) -> [String; 3] {
        ["run".into(), "--config".into(), self.dir.path().join("nomagic.yaml").to_string_lossy().into_owned()]
    }

    /// The node's own server: nothing to do with Services.
    fn serve_on_node(&self) {
        let listener = self.scene.gw.run(|| TcpListener::bind(NODE).expect("an address")).expect("a thread");
        std::thread::spawn(move || listener.incoming().map_while(Result::ok).for_each(drop));
    }

    fn start_clean(&self) -> Result<Process, String> {
        let [run, flag, path] = self.args();
        let mut process = self.scene.gw.spawn(NOMAGIC, &[&run, &flag, &path]).map_err(|e| e.to_string())?;
        process.wait_for_line("nomagic is ready", START).map_err(|e| e.to_string())?;
        Ok(process)
    }

    /// Prepares what a start finds. No process runs.
    fn prepare(&mut self, before: Before) {
        if before == Before::Killed {
            return;
        }
        let table = self.state().join("conntrack");
        let kept = std::fs::read(&table).expect("the table's file");
        self.scene.gw.exec(NOMAGIC, &["cleanup", "--config", &self.args()[2]]).expect("cleanup");
        if before == Before::TableOnly {
            std::fs::create_dir_all(self.state()).expect("the state directory");
            std::fs::write(&table, kept).expect("the table's file");
            std::fs::set_permissions(&table, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("its mode");
        } else {
            self.connections.clear();
        }
    }

    /// The calls of a start without faults.
    pub fn record(&mut self, before: Before) -> Vec<String> {
        let table = self.state().join("conntrack");
        let kept = std::fs::read(&table).expect("the table's file");
        let connections = std::mem::take(&mut self.connections);
        self.prepare(before);
        self.connections = connections;
        let calls = Arc::new(Mutex::new(Vec::new()));
        let [run, flag, path] = self.args();
        let watch = record::recorder(self.dir.path(), calls.clone());
        let mut process = self.scene.gw.spawn_watched(NOMAGIC, &[&run, &flag, &path], watch).expect("nomagic");
        process.wait_for_line("nomagic is ready", START).expect("ready");
        process.kill().expect("SIGKILL");
        if before == Before::Nothing {
            std::fs::write(&table, kept).expect("the table's file");
        }
        let calls = calls.lock().unwrap_or_else(PoisonError::into_inner);
        calls.clone()
    }

    /// Tries faults, each in a start of its own, and then a start without one.
    pub fn run(&mut self, mut next: impl FnMut() -> Option<Fault>) -> Vec<Trial> {
        let (mut done, mut pending) = (Vec::new(), Vec::new());
        while let Some(fault) = next() {
            let trial = self.strike(&fault);
            if trial.ended.is_none() {
                done.push(trial);
                continue;
            }
            pending.push(trial);
            if pending.len() == TOGETHER || fault.before != Before::Killed {
                self.settle(&mut pending);
                done.append(&mut pending);
            }
        }
        self.settle(&mut pending);
        done.append(&mut pending);
        done
    }

    /// A start without a fault after these. If it is not well, each of them has one of its own, so that the one to blame is known.
    fn settle(&mut self, pending: &mut [Trial]) {
        let Err(together) = self.next_start() else { return };
        let mut blamed = false;
        for trial in &mut *pending {
            let again = self.strike(&trial.fault.clone());
            let alone = self.next_start().err().map(|e| format!("the next start: {e}"));
            blamed |= alone.is_some();
            trial.problems.extend(again.problems.into_iter().chain(alone));
        }
        if !blamed {
            pending.iter_mut().for_each(|trial| trial.problems.push(format!("the start after this and others: {together}")));
        }
    }

    fn next_start(&mut self) -> Result<(), String> {
        let mut process = self.start_clean()?;
        let well = self.all_is_well(&process.output());
        process.kill().map_err(|e| e.to_string())?;
        well
    }

    /// A start with a fault.
    fn strike(&mut self, fault: &Fault) -> Trial {
        self.prepare(fault.before);
        let mut trial = Trial { fault: fault.clone(), ended: None, said: String::new(), problems: Vec::new() };
        let struck = Arc::new(AtomicBool::new(false));
        let [run, flag, path] = self.args();
        let watch = record::injector(self.dir.path(), fault, struck.clone());
        match self.scene.gw.spawn_watched(NOMAGIC, &[&run, &flag, &path], watch) {
            Ok(mut process) => self.follow(&mut process, &mut trial),
            Err(e) => trial.problems.push(format!("it could not be started: {e:#}")),
        }
        if !struck.load(Relaxed) {
            trial.problems.push("the call did not come".into());
        }
        trial.problems.extend(self.node_is_reachable().err());
        trial
    }

    /// Waits until a start ends or is ready.
    fn follow(&mut self, process: &mut Process, trial: &mut Trial) {
        match process.wait_for_line("nomagic is ready", END) {
            Ok(_) => {
                let well = self.all_is_well(&process.output());
                trial.problems.extend(well.err());
                trial.said = process.output();
                trial.judge_ready();
                let _ = process.kill();
            }
            // It returns early if the process has ended.
            Err(_) => match process.wait(Duration::from_millis(100)) {
                Ok(status) => {
                    trial.said = process.output();
                    trial.judge_end(status);
                }
                Err(_) => {
                    trial.said = process.output();
                    trial.problems.push(format!("it neither ended nor became ready within {END:?}"));
                    let _ = process.kill();
                }
            },
        }
    }

    /// Whether a running gateway has everything that one without a fault has, or says what it lacks.
    fn all_is_well(&mut self, said: &str) -> Result<(), String> {
        // Those of earlier trials, which are closed, may be among them.
        let taken = said.split_once("took over ").and_then(|(_, rest)| rest.split(' ').next()?.parse().ok()).unwrap_or(0);
        if taken < self.connections.len() {
            return Err(format!("of {} connections it took over {taken}:\n{said}", self.connections.len()));
        }
        for (stream, pod) in &mut self.connections {
            answers(stream, pod).map_err(|e| format!("a connection to {pod} that was open: {e}"))?;
        }
        for to in SERVICES {
            let connect = || TcpStream::connect_timeout(&to.parse().expect("an address"), Duration::from_secs(5));
            let connected = self.scene.client.run(connect).map_err(|e| e.to_string())?;
            connected.and_then(|mut stream| answers(&mut stream, "nginx-")).map_err(|e| format!("a new connection to {to}: {e}"))?;
        }
        std::thread::sleep(ACKNOWLEDGED);
        let files = std::fs::read_dir(self.state()).map_err(|e| e.to_string())?;
        if let Some(aside) = files.flatten().map(|f| f.file_name()).find(|name| name.to_string_lossy().contains("set-aside")) {
            return Err(format!("{} is set aside", aside.display()));
        }
        let warned = warnings(said).any(|line| !self.warnings.contains(&line));
        if !warned && about_ports(said) != self.ports {
            return Err(format!("without a warning, the ports are not as they should be:\n{said}"));
        }
        let mut command = std::process::Command::new(NOMAGIC);
        let status = command.args(["status", "--state-dir"]).arg(self.state()).output().map_err(|e| e.to_string())?;
        if !warned && !status.status.success() {
            return Err(format!("it is not ready: {}", String::from_utf8_lossy(&status.stdout)));
        }
        Ok(())
    }

    fn node_is_reachable(&self) -> Result<(), String> {
        let to: SocketAddr = NODE.parse().expect("an address");
        let connect = move || TcpStream::connect_timeout(&to, Duration::from_secs(2)).map(drop);
        let connected = self.scene.client.run(connect).map_err(|e| e.to_string())?;
        connected.map_err(|e| format!("the node cannot be reached: {e}"))
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        let _ = self.scene.gw.exec(NOMAGIC, &["cleanup", "--config", &self.args()[2]]);
    }
}

/// Sends a request on an open connection; the answer must be of this pod.
fn answers(stream: &mut TcpStream, pod: &str) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: nginx\r\n\r\n")?;
    let (mut answer, mut chunk) = (Vec::new(), [0; 4096]);
    while !answer.ends_with(b"}") {
        match stream.read(&mut chunk)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => answer.extend(&chunk[..n]),
        }
    }
    let text = String::from_utf8_lossy(&answer);
    if text.contains(pod) { Ok(()) } else { Err(io::Error::other(format!("not of {pod}: {text}"))) }
}

/// Warnings and errors in a log, without their times.
fn warnings(said: &str) -> impl Iterator<Item = String> {
    said.lines()
        .filter(|line| line.contains(" WARN ") || line.contains("ERROR "))
        .filter_map(|line| Some(line.split_once('Z')?.1.to_owned()))
}

/// What the log says about the ports.
fn about_ports(said: &str) -> Vec<String> {
    said.lines().filter_map(|line| line.split_once(" port ").map(|(_, about)| about.to_owned())).collect()
}
