//! Runs nomagic in a scene of network namespaces.

pub mod api_gateway;
pub mod kernel_nat;
pub mod kustomize;
pub mod local_pod;
pub mod nat;
pub mod plain_http;
pub mod prometheus;
pub mod replay;
pub mod slow_clients;
pub mod watching;
pub mod wire;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use nomagic_api::explain::Answer;
use nomagic_api::{Pool, Status};
use nomagic_core::counters::WorkerCounts;
use nomagic_core::reason::Reason;
use nomagic_testbed::peers::{ClientOptions, LoadReport, PodOptions, PodThread, http_load, start_pod, udp_load};
use nomagic_testbed::rig::{Netns, PODS, Process, Scene};

pub const NOMAGIC: &str = env!("CARGO_BIN_EXE_nomagic");
pub const START: Duration = Duration::from_secs(20);

/// Exclusive use of the machine's CPUs for one test: concurrent gateways and spinning threads would make clients time out. Reentrant.
pub struct CpuLock(());

static CPU_HOLDER: (Mutex<Option<(ThreadId, usize)>>, Condvar) = (Mutex::new(None), Condvar::new());

impl CpuLock {
    pub fn take() -> CpuLock {
        let mut holder = CPU_HOLDER.0.lock().unwrap_or_else(PoisonError::into_inner);
        let me = std::thread::current().id();
        while holder.is_some_and(|(thread, _)| thread != me) {
            holder = CPU_HOLDER.1.wait(holder).unwrap_or_else(PoisonError::into_inner);
        }
        *holder = Some((me, holder.map_or(0, |(_, times)| times) + 1));
        CpuLock(())
    }
}

impl Drop for CpuLock {
    fn drop(&mut self) {
        let mut holder = CPU_HOLDER.0.lock().unwrap_or_else(PoisonError::into_inner);
        *holder = holder.and_then(|(thread, times)| (times > 1).then_some((thread, times - 1)));
        CPU_HOLDER.1.notify_all();
    }
}

/// A gateway with nomagic in it, three pods and a client.
pub struct Gateway {
    pub process: Process,
    pub _pods: Vec<PodThread>,
    pub scene: Scene,
    pub dir: tempfile::TempDir,
    /// Dropped last.
    pub _cpus: CpuLock,
}

impl Gateway {
    /// Creates the scene and starts nomagic with these manifests. `extra` are further configuration lines.
    pub fn start(tag: &str, extra: &str, manifests: &str) -> Gateway {
        Gateway::start_in(Scene::new(tag).expect("a scene (needs root)"), extra, manifests)
    }

    /// Like `start`, in an existing scene.
    pub fn start_in(scene: Scene, extra: &str, manifests: &str) -> Gateway {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("manifests.yaml"), manifests).expect("manifests");
        let config = config(dir.path(), extra);
        let mut gateway = Gateway::begin(scene, dir, &config);
        gateway.wait_until_ready();
        gateway
    }

    /// Starts nomagic with a complete configuration, without waiting for it.
    pub fn begin(scene: Scene, dir: tempfile::TempDir, config: &str) -> Gateway {
        let cpus = CpuLock::take();
        let path = dir.path().join("nomagic.yaml");
        std::fs::write(&path, config).expect("configuration");
        let pods = scene.pods.iter().zip(PODS).map(|(ns, p)| start_pod(ns, PodOptions::new(p.name)).expect("a pod")).collect();
        let process = scene.gw.spawn(NOMAGIC, &["run", "--config", &path.to_string_lossy()]).expect("nomagic");
        Gateway { process, _pods: pods, scene, dir, _cpus: cpus }
    }

    pub fn wait_until_ready(&mut self) {
        self.process.wait_for_line("nomagic is ready", START).expect("ready");
    }

    pub fn config_path(&self) -> PathBuf {
        self.dir.path().join("nomagic.yaml")
    }

    pub fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// Replaces the manifests and waits until nomagic uses them.
    pub fn apply(&mut self, manifests: &str) {
        self.apply_and(manifests, || ());
    }

    /// Replaces the manifests, sends SIGHUP, and waits until nomagic uses them.
    pub fn apply_and_tell(&mut self, manifests: &str) {
        let pid = self.process.pid();
        self.apply_and(manifests, || drop(nomagic_testbed::rig::run("kill", &["-HUP", &pid.to_string()]).expect("SIGHUP")));
    }

    fn apply_and(&mut self, manifests: &str, then: impl FnOnce()) {
        let generation = |g: &Gateway| g.status().services.table.generation;
        let before = generation(self);
        // Written to a temporary file and renamed, so that nomagic never reads half a file.
        let aside = self.dir.path().join(".manifests.new");
        std::fs::write(&aside, manifests).expect("manifests");
        std::fs::rename(aside, self.dir.path().join("manifests.yaml")).expect("manifests");
        then();
        wait_for("the new manifests to be in force", Duration::from_secs(5), || generation(self) > before);
    }

    /// `nomagic status --format json`.
    pub fn status(&self) -> Status {
        self.try_status().unwrap_or_else(|e| panic!("{e}"))
    }

    fn try_status(&self) -> Result<Status, String> {
        let out = Command::new(NOMAGIC).args(["status", "--format", "json", "--state-dir"]).arg(self.state_dir()).output();
        let out = out.map_err(|e| e.to_string())?;
        // 3: not ready.
        if !matches!(out.status.code(), Some(0 | 3)) || out.stdout.is_empty() {
            return Err(String::from_utf8_lossy(&out.stderr).into_owned());
        }
        serde_json::from_slice(&out.stdout).map_err(|e| e.to_string())
    }

    /// The gateway's counters for assertion messages: all reasons that occurred, and the table sizes.
    pub fn account(&self) -> String {
        let status = match self.try_status() {
            Ok(status) => status,
            Err(e) => return format!("no status of the gateway: {e}"),
        };
        let counts = &status.totals.counts;
        let mut out = String::from("the gateway counted:");
        counts.reasons.each(|series, n| {
            if n > 0 {
                out += &format!("\n  {} {} {n}", series.info.key, series.label.map_or("", |(_, reason)| reason));
            }
        });
        out + &format!("\n  {:?}\n  {:?}\n  {:?}", status.conntrack, status.snat, status.replies)
            + &format!("\n  {:?}\n  {:?}\n  {:?}", counts.frames, counts.path, counts.conntrack)
    }

    /// What the running gateway says of a packet.
    pub fn explain(&self, flow: &str) -> Answer {
        let mut command = Command::new(NOMAGIC);
        command.args(["explain", "--running", "--format", "json", "--state-dir"]).arg(self.state_dir()).arg(flow);
        let out = command.output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        serde_json::from_slice(&out.stdout).unwrap()
    }

    /// A number in the status.
    pub fn number<N>(&self, of: impl Fn(&Status) -> N) -> N {
        of(&self.status())
    }

    /// The sum of a counter over all workers.
    pub fn count(&self, of: impl Fn(&WorkerCounts) -> u64) -> u64 {
        of(&self.status().totals.counts)
    }

    /// Frames dropped or passed for this reason.
    pub fn reason(&self, reason: Reason) -> u64 {
        self.count(|c| c.reasons.kernel[reason] + c.reasons.drop[reason] + c.reasons.handed[reason])
    }

    /// Opens new HTTP connections from a namespace.
    pub fn http(&self, from: &Netns, to: &str, connections: u32) -> LoadReport {
        let to: SocketAddr = to.parse().expect("an address");
        from.block_on(move || http_load(to, connections, ClientOptions::default())).expect("a client")
    }

    /// Sends datagrams from a namespace, each from a new socket.
    pub fn udp(&self, from: &Netns, to: &str, datagrams: u32) -> LoadReport {
        let to: SocketAddr = to.parse().expect("an address");
        from.block_on(move || udp_load(to, datagrams, ClientOptions::default())).expect("a client")
    }

    /// Checks that every received frame has a verdict, and that no UMEM frame is lost.
    pub fn assert_accounts_close(&self) {
        let status = self.status();
        let (totals, frames) = (&status.totals, &status.totals.counts.frames);
        assert!(totals.counts.closes(), "{totals:#?}");
        assert_eq!(totals.held_now, frames.held.packets - frames.released.packets, "{totals:#?}");
        assert!(status.pools.iter().all(Pool::closes), "{:#?}", status.pools);
    }

    /// Waits until no frame is in flight, prints the pools, and checks that no frame is lost.
    pub fn print_frames(&self) {
        std::thread::sleep(Duration::from_millis(250));
        self.assert_accounts_close();
        for pool in self.status().pools {
            println!("frames: {pool:?}");
            assert_eq!(pool.handed_over, 0, "{pool:?}");
        }
    }

    /// Kills nomagic.
    pub fn kill(&mut self) {
        self.process.kill().expect("SIGKILL");
    }

    /// Starts a new process with the same configuration.
    pub fn restart(&mut self) {
        self.process = launch(&self.scene.gw, &self.config_path());
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("nomagic said:\n{}\n{}", self.process.output(), self.account());
        }
        let _ = self.process.terminate(Duration::from_secs(5));
        let state = self.state_dir();
        let _ = self.scene.gw.exec(NOMAGIC, &["cleanup", "--state-dir", &state.to_string_lossy()]);
    }
}

/// Starts nomagic and waits until it is ready.
pub fn launch(gw: &Netns, config: &std::path::Path) -> Process {
    let mut process = gw.spawn(NOMAGIC, &["run", "--config", &config.to_string_lossy()]).expect("nomagic");
    process.wait_for_line("nomagic is ready", START).expect("ready");
    process
}

/// The configuration of the scene's gateway. `$STATE` in the extra lines is the state directory. Without `hash:` in them the hash seed is 0,
/// so that every run makes the same choices.
pub fn config(dir: &std::path::Path, extra: &str) -> String {
    let state = dir.join("state");
    let extra = extra.replace("$STATE", &state.to_string_lossy());
    let hash = if extra.contains("hash:") { "" } else { "hash: {seed: 0}" };
    format!(
        "node: {{name: gw, ips: [10.0.0.1, 192.168.0.1, 'fd00:a::1', 'fd00:192::1'], primaryIPs: [10.0.0.1, 'fd00:a::1']}}\n\
         serviceCIDRs: [10.96.0.0/12, 'fd00:10:109::/64']\n\
         interfaces: [cl0, pods0]\n\
         manifests: manifests.yaml\n\
         stateDir: {}\n\
         onFailure: pass\n\
         {extra}\n{hash}\n",
        state.display()
    )
}

/// A Service port for manifests.
pub struct Svc<'a> {
    pub name: &'a str,
    pub spec: &'a str,
    pub status: &'a str,
    pub ports: &'a [(&'a str, &'a str, u16, u16)],
    /// Indices into [`PODS`].
    pub pods: &'a [usize],
}

/// Manifests of dual-stack Services over the scene's pods.
pub fn manifests(services: &[Svc<'_>]) -> String {
    let mut out = String::new();
    for s in services {
        let port = |(name, proto, port, node): &(&str, &str, u16, u16)| {
            let node = if *node == 0 { String::new() } else { format!(", nodePort: {node}") };
            format!("{{name: {name}, protocol: {proto}, port: {port}{node}}}")
        };
        let ports: Vec<String> = s.ports.iter().map(port).collect();
        out += &format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {}, namespace: default}}\nspec:\n  ipFamilyPolicy: PreferDualStack\n  {}\n  ports: [{}]\n{}\n",
            s.name,
            s.spec.replace('\n', "\n  "),
            ports.join(", "),
            s.status
        );
        for v6 in [false, true] {
            let endpoints: Vec<String> = s
                .pods
                .iter()
                .map(|&i| {
                    let addr = if v6 { PODS[i].v6.to_string() } else { PODS[i].v4.to_string() };
                    format!("{{addresses: ['{addr}'], conditions: {{ready: true}}}}")
                })
                .collect();
            let slice_port = |(name, proto, port, _): &(&str, &str, u16, u16)| format!("{{name: {name}, protocol: {proto}, port: {port}}}");
            let ports: Vec<String> = s.ports.iter().map(slice_port).collect();
            let (family, suffix) = if v6 { ("IPv6", "v6") } else { ("IPv4", "v4") };
            out += &format!(
                "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {0}-{suffix}, namespace: default, labels: {{kubernetes.io/service-name: {0}}}}}\naddressType: {family}\nendpoints: [{1}]\nports: [{2}]\n",
                s.name,
                endpoints.join(", "),
                ports.join(", ")
            );
        }
    }
    out
}

/// The Service of the demo: dual-stack, HTTP and a UDP echo.
pub fn nginx(pods: &[usize]) -> String {
    manifests(&[Svc {
        name: "nginx",
        spec: "clusterIP: 10.109.35.24\nclusterIPs: [10.109.35.24, 'fd00:10:109::24']\nipFamilies: [IPv4, IPv6]",
        status: "",
        ports: &[("http", "TCP", 80, 0), ("echo", "UDP", 53, 0)],
        pods,
    }])
}

/// Opens a connection that stays open: `(stream, pod)`.
pub fn keep_alive(to: SocketAddr) -> (TcpStream, String) {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5)).expect("a connection");
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
    let pod = ask(&mut stream);
    (stream, pod)
}

/// One request on an open connection; the name of the pod that answers.
pub fn ask(stream: &mut TcpStream) -> String {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: nginx\r\n\r\n").expect("a request");
    let mut answer = Vec::new();
    let mut chunk = [0; 4096];
    while !answer.ends_with(b"}") {
        let n = stream.read(&mut chunk).expect("an answer");
        assert!(n > 0, "the connection was closed");
        answer.extend(&chunk[..n]);
    }
    let text = String::from_utf8(answer).expect("text");
    let body = &text[text.find("\r\n\r\n").expect("a header") + 4..];
    let body: serde_json::Value = serde_json::from_str(body).expect("JSON");
    body["pod"].as_str().expect("a pod").to_owned()
}

/// Waits until a condition holds; panics with `what` on timeout.
pub fn wait_for(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !holds() {
        assert!(Instant::now() < end, "waited {limit:?} for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
