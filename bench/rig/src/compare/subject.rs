//! The subjects: each in its own gateway, all running at the same time. An idle subject uses hardly any CPU time.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nomagic_testbed::rig::{Guard, Process, TABLE_SUFFIX, TABLES, Undo, undo_later};

use super::kernel_rules;
use super::policy::Policy;
use super::topology::{Ends, GATEWAY, Topology};
use super::workload::{CLUSTER_CIDR, QUEUE_FRAMES, SERVICE_CIDR, service_object, slice_object};
use crate::results::{Subject, SubjectKind};

/// Time for a subject to become ready.
const READY_LIMIT: Duration = Duration::from_secs(60);

/// The address of nomagic's API server in the gateway.
pub const API: &str = "127.0.0.1:8001";
/// Resource versions of each API server; the next one's begin after them.
const VERSIONS_EACH: u64 = 1_000_000;
/// Capacity of nomagic's connection table: the kernel's default on machines with more than 4 GiB (net.netfilter.nf_conntrack_max).
pub const FLOWS_MAX: u32 = 262_144;

/// Lines of a process's output in an error message.
const LINES_SHOWN: usize = 20;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cpus {
    pub lb: u32,
    pub generator: u32,
}

/// A running subject. Fields are dropped in order: the processes, their pins, the gateway.
pub struct Running {
    pub subject: Subject,
    pub policy: Policy,
    /// `None` for the kernel's rules.
    pub process: Mutex<Option<Process>>,
    /// The API server that nomagic watches.
    pub api: Mutex<Option<Process>>,
    api_versions: AtomicU64,
    _cleanup: Vec<Guard>,
    pub topology: Topology,
    pub dir: PathBuf,
}

/// What is needed to start any of them.
pub struct Setup<'s> {
    /// The ends that all topologies share.
    pub ends: &'s Ends,
    pub cpus: Cpus,
    /// The `nomagic` program.
    pub nomagic: &'s Path,
    /// The `nomagic-bench` program: this one.
    pub bench: &'s Path,
    pub dir: &'s Path,
    /// Connections that nomagic's table holds.
    pub flows_max: u32,
}

/// A subject by kind and number of Services.
pub fn subject(kind: SubjectKind, services: u32) -> Subject {
    let many = |name: &str| format!("{name}, {} Service{}", thousands(services), if services == 1 { "" } else { "s" });
    let (id, label) = match kind {
        SubjectKind::Nomagic => (format!("nomagic-{services}"), many("nomagic")),
        SubjectKind::NoWork => ("no-work".into(), "no-work AF_XDP loop".into()),
        SubjectKind::Nftables => (format!("nftables-{services}"), many("nftables")),
        SubjectKind::Iptables => (format!("iptables-{services}"), many("iptables")),
        SubjectKind::Routing => ("routing".into(), "plain routing".into()),
        SubjectKind::Direct => ("direct".into(), "no load balancer".into()),
    };
    Subject { id, label, kind, services }
}

/// `1,000` for 1000.
pub fn thousands(n: u32) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

impl Running {
    /// Lays out topology `n` and starts the subject in it.
    pub fn start(setup: &Setup<'_>, n: usize, policy: Policy) -> Result<Running> {
        let subject = subject(policy.kind, policy.services);
        let topology = Topology::new(setup.ends, n)?;
        let dir = setup.dir.join(format!("{n}-{}", subject.id));
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let mut running = Running {
            subject,
            policy,
            process: Mutex::new(None),
            api: Mutex::new(None),
            api_versions: AtomicU64::new(VERSIONS_EACH),
            _cleanup: Vec::new(),
            topology,
            dir,
        };
        let services = running.subject.services;
        let ready = match running.subject.kind {
            SubjectKind::Nomagic => running.start_nomagic(setup, services),
            SubjectKind::NoWork => running.start_no_work(setup, services),
            SubjectKind::Nftables => running.kernel(setup, &["nft", "-f", "-"], &kernel_rules::nftables(services, 0)),
            SubjectKind::Iptables => running.kernel(setup, &["iptables-restore"], &kernel_rules::iptables(services, 0)),
            SubjectKind::Routing => running.kernel(setup, &[], ""),
            SubjectKind::Direct => bail!("nothing to start"),
        };
        ready.with_context(|| format!("cannot start {}", running.subject.label))?;
        Ok(running)
    }

    fn kernel(&mut self, setup: &Setup<'_>, command: &[&str], input: &str) -> Result<()> {
        self.topology.steer_kernel(setup.cpus.lb)?;
        if command.is_empty() {
            // Frames to a Service are routed on unchanged.
            self.topology.gateway.ip(&format!("route add {SERVICE_CIDR} via {} dev pods0", super::topology::ROUTERS[1]))?;
        } else {
            self.feed(command, input)?;
        }
        Ok(())
    }

    /// Runs a command in the gateway with `input` on its standard input.
    pub fn feed(&self, command: &[&str], input: &str) -> Result<()> {
        let mut child = Command::new("ip");
        child.args(["netns", "exec", self.topology.gateway.name()]).args(command);
        let title = command.join(" ");
        let mut child = child
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run `{title}`: is it installed? (make setup)"))?;
        // The child may end before it has read everything; its own message is the better error.
        let written = child.stdin.take().context("no standard input")?.write_all(input.as_bytes());
        let out = child.wait_with_output().with_context(|| format!("cannot wait for `{title}`"))?;
        if !out.status.success() {
            let said = String::from_utf8_lossy(&out.stderr);
            bail!("`{title}` failed: {}", said.lines().take(5).collect::<Vec<_>>().join("\n"));
        }
        written.with_context(|| format!("cannot write to `{title}`"))
    }

    fn start_nomagic(&mut self, setup: &Setup<'_>, services: u32) -> Result<()> {
        self.start_api(setup, services, 0)?;
        let state = self.dir.join("state");
        let config = format!(
            "node: {{name: gw, ips: [{a}, {b}], primaryIPs: [{a}]}}\nclusterCIDRs: [{CLUSTER_CIDR}]\nserviceCIDRs: [{SERVICE_CIDR}]\n\
             interfaces: [cl0, pods0]\nkubernetes: {{url: 'http://{API}'}}\nstateDir: {}\nworkers: {{count: 1, cpus: [{}]}}\n\
             packets: {{ringSize: {QUEUE_FRAMES}}}\nhash: {{seed: 0}}\n\
             conntrack: {{capacity: {}, file: {}}}\nhealthzBindAddress: ''\nmetricsBindAddress: ''\n",
            state.display(),
            setup.cpus.lb,
            setup.flows_max,
            self.table_file().display(),
            a = GATEWAY[0],
            b = GATEWAY[1],
        );
        let file = self.config_file();
        std::fs::write(&file, config).with_context(|| format!("cannot write {}", file.display()))?;
        self.clean_up_later(setup, &state)?;
        self.start_gateway(setup)
    }

    /// Stops nomagic and starts it again.
    pub fn restart(&self, setup: &Setup<'_>) -> Result<()> {
        if let Some(mut old) = lock(&self.process).take() {
            old.terminate(READY_LIMIT)?;
        }
        self.start_gateway(setup)
    }

    fn start_gateway(&self, setup: &Setup<'_>) -> Result<()> {
        let file = self.config_file();
        *lock(&self.process) = Some(self.spawn(setup.nomagic, &["run", "--config", path(&file)?], "nomagic is ready")?);
        Ok(())
    }

    /// The last lines that its process wrote.
    pub fn output(&self) -> String {
        let text = lock(&self.process).as_ref().map(Process::output).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LINES_SHOWN)..].join("\n")
    }

    pub fn pids(&self) -> Vec<u32> {
        [&self.process, &self.api].into_iter().filter_map(|p| lock(p).as_ref().map(Process::pid)).collect()
    }

    /// Starts the API server with all Services, or replaces it.
    pub fn start_api(&self, setup: &Setup<'_>, services: u32, generation: u32) -> Result<()> {
        let yaml: String = (0..services).map(|n| service_object(n) + &slice_object(n, generation)).collect();
        let file = self.dir.join(format!("services-{generation}.yaml"));
        std::fs::write(&file, yaml).with_context(|| format!("cannot write {}", file.display()))?;
        // The old server must free the port first. Its versions are too old for the new one, so nomagic lists everything again.
        drop(lock(&self.api).take());
        let first = self.api_versions.fetch_add(VERSIONS_EACH, Relaxed).to_string();
        let program = setup.nomagic.with_file_name("nomagic-fake-apiserver");
        *lock(&self.api) = Some(self.spawn(&program, &["--listen", API, "--first-version", &first, path(&file)?], "listening")?);
        Ok(())
    }

    fn start_no_work(&mut self, setup: &Setup<'_>, services: u32) -> Result<()> {
        let (state, cpu) = (self.dir.join("state"), setup.cpus.lb.to_string());
        self.clean_up_later(setup, &state)?;
        let args = ["no-work", "--cpu", &cpu, "--services", &services.to_string(), "--state-dir", path(&state)?];
        *lock(&self.process) = Some(self.spawn(setup.bench, &args, "the empty loop is ready")?);
        Ok(())
    }

    fn spawn(&self, program: &Path, args: &[&str], ready: &str) -> Result<Process> {
        let mut process = self.topology.gateway.spawn(path(program)?, args)?;
        process.wait_for_line(ready, READY_LIMIT)?;
        Ok(process)
    }

    /// Registers the removal of pins, and with a configuration file of the connection table's file, before the gateway is deleted.
    fn clean_up_later(&mut self, setup: &Setup<'_>, state: &Path) -> Result<()> {
        let net = format!("--net={}", self.topology.gateway.path().display());
        let (file, program) = (self.config_file(), path(setup.nomagic)?);
        let which = if file.exists() { ["--config", path(&file)?] } else { ["--state-dir", path(state)?] };
        let words = ["nsenter", &net, program, "cleanup"].into_iter().chain(which);
        self._cleanup.push(undo_later(Undo::Command(words.map(str::to_owned).collect())));
        Ok(())
    }

    fn config_file(&self) -> PathBuf {
        self.dir.join("nomagic.yaml")
    }

    /// The connection table's file, on a tmpfs.
    fn table_file(&self) -> PathBuf {
        PathBuf::from(TABLES).join(self.topology.gateway.name().to_owned() + TABLE_SUFFIX)
    }
}

fn lock(process: &Mutex<Option<Process>>) -> MutexGuard<'_, Option<Process>> {
    process.lock().unwrap_or_else(PoisonError::into_inner)
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("the path {} is not UTF-8", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_have_names_for_people_and_for_rows() {
        assert_eq!(subject(SubjectKind::Nftables, 10_000).label, "nftables, 10,000 Services");
        assert_eq!(subject(SubjectKind::Nomagic, 1).label, "nomagic, 1 Service");
        assert_eq!((thousands(999), thousands(1_234_567)), ("999".into(), "1,234,567".into()));
    }
}
