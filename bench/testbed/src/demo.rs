//! `make demo`: a Service over AF_XDP, with one command.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::columns;
use crate::gateway::{Accounts, ECHO_V4, ECHO_V6, GatewayProcess, NGINX_V4, NGINX_V6, Reading, write_files};
use crate::peers::{ClientOptions, LoadReport, http_load, udp_load};
use crate::rig::{CLIENT_V4, Guard, PODS, Process, Scene, Undo, clean_on_signals, remove_leftovers, require_root, undo_later};

/// Time limit for a pod to listen.
const POD_LIMIT: Duration = Duration::from_secs(10);
const DATAGRAMS: u32 = 30;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DemoOptions {
    /// The `nomagic` program.
    pub nomagic: PathBuf,
    pub connections_v4: u32,
    pub connections_v6: u32,
}

/// Runs the demo. It removes everything it created, even after a signal.
pub fn demo(options: &DemoOptions) -> Result<()> {
    require_root()?;
    clean_on_signals()?;
    if !options.nomagic.exists() {
        bail!("{} does not exist: build it (`make build`), or name it with --nomagic", options.nomagic.display());
    }
    let leftovers = remove_leftovers();
    if leftovers > 0 {
        println!("Removed {leftovers} namespaces that an earlier run left behind.");
    }
    let steps = Steps(Instant::now());
    let (dir, _dir_guard) = scratch_directory()?;
    steps.say("laying out network namespaces: one client, one gateway, three pods behind a bridge");
    let scene = Scene::new("demo")?;
    steps.say("starting the pods: HTTP on port 80, UDP echo on port 53");
    let _pods = start_pods(&scene)?;
    let (config, state_dir) = write_files(&dir)?;
    steps.say(&format!("starting nomagic in the gateway with ordinary Kubernetes YAML ({})", dir.display()));
    let gateway = GatewayProcess::start(&scene.gw, &options.nomagic, &config, &state_dir)?;
    let outcome = traffic(&scene, &gateway, options, &steps);
    if outcome.is_err() {
        // Its log most likely has the reason.
        eprintln!("nomagic wrote:\n{}", { gateway }.process().output());
        return outcome.map(drop);
    }
    steps.say("stopping nomagic");
    gateway.stop()?;
    steps.say("cleaning up");
    drop((_pods, scene, _dir_guard));
    println!("\n{}", outcome?);
    Ok(())
}

/// Progress lines with the time since the start.
struct Steps(Instant);

impl Steps {
    fn say(&self, what: &str) {
        println!("[{:5.1} s] {what}", self.0.elapsed().as_secs_f32());
    }
}

fn scratch_directory() -> Result<(PathBuf, Guard)> {
    let dir = tempfile::Builder::new().prefix("nomagic-demo-").tempdir().context("cannot create a temporary directory")?.keep();
    Ok((dir.clone(), undo_later(Undo::Directory(dir))))
}

fn start_pods(scene: &Scene) -> Result<Vec<Process>> {
    let own = std::env::current_exe().context("cannot find this program's own file")?;
    let own = own.to_str().context("this program's path is not UTF-8")?;
    let mut pods = Vec::new();
    for (netns, pod) in scene.pods.iter().zip(PODS) {
        pods.push(netns.spawn(own, &["pod", "--name", pod.name])?);
    }
    for pod in &mut pods {
        pod.wait_for_line("listening", POD_LIMIT)?;
    }
    Ok(pods)
}

/// Sends all traffic and checks it. Returns the closing line.
fn traffic(scene: &Scene, gateway: &GatewayProcess, options: &DemoOptions, steps: &Steps) -> Result<String> {
    let before = Reading::take(scene, gateway)?;
    let http = |to: IpAddr, n: u32| scene.client.block_on(|| http_load(SocketAddr::new(to, 80), n, ClientOptions::default()));
    let udp = |to: IpAddr| scene.client.block_on(|| udp_load(SocketAddr::new(to, 53), DATAGRAMS, ClientOptions::default()));
    steps.say(&format!("{} HTTP connections from the client to {NGINX_V4}:80, each a new one", options.connections_v4));
    let http_v4 = http(NGINX_V4.into(), options.connections_v4)?;
    steps.say(&format!("{} HTTP connections from the client to [{NGINX_V6}]:80", options.connections_v6));
    let http_v6 = http(NGINX_V6.into(), options.connections_v6)?;
    let after_http = Reading::take(scene, gateway)?;
    steps.say(&format!("{DATAGRAMS} UDP datagrams to {ECHO_V4}:53 and {DATAGRAMS} to [{ECHO_V6}]:53, each echoed"));
    let (udp_v4, udp_v6) = (udp(ECHO_V4.into())?, udp(ECHO_V6.into())?);
    let accounts = Accounts::between(&before, &Reading::take(scene, gateway)?);

    println!("\n{}", per_pod(&[("HTTP IPv4", &http_v4), ("HTTP IPv6", &http_v6), ("UDP IPv4", &udp_v4), ("UDP IPv6", &udp_v6)]));
    println!("\nWhat nomagic says about one of these connections:\n");
    let flow = format!("tcp {CLIENT_V4}:40000 -> {NGINX_V4}:80");
    println!("$ nomagic explain '{flow}'\n{}\n", gateway.explain(&flow)?.trim_end());
    println!("{accounts}");

    let wanted = u64::from(options.connections_v4 + options.connections_v6);
    let answered = u64::from(http_v4.answered() + http_v6.answered());
    let carried = answered.min(after_http.created().wrapping_sub(before.created()));
    let mut errors = accounts.errors();
    for (what, report) in [("HTTP IPv4", &http_v4), ("HTTP IPv6", &http_v6), ("UDP IPv4", &udp_v4), ("UDP IPv6", &udp_v6)] {
        errors.extend(report.failures.iter().map(|(why, n)| format!("{what}: {n} failed: {why}")));
    }
    if carried < wanted {
        errors.push(format!("{carried} of {wanted} HTTP connections were carried over AF_XDP ({answered} were answered)"));
    }
    if !errors.is_empty() {
        bail!("the demo failed:\n  {}", errors.join("\n  "));
    }
    println!("The gateway's counters and the peers' own agree: every frame is accounted for.");
    Ok(format!("{carried} of {wanted} HTTP connections were carried over AF_XDP."))
}

/// A table of answers: a row for each pod, a column for each kind of traffic.
fn per_pod(reports: &[(&str, &LoadReport)]) -> String {
    type Count<'c> = &'c dyn Fn(&LoadReport) -> u32;
    let row = |title: String, count: Count<'_>| -> Vec<String> {
        std::iter::once(title).chain(reports.iter().map(|(_, report)| count(report).to_string())).collect()
    };
    let head = std::iter::once("Connections per pod").chain(reports.iter().map(|c| c.0));
    let mut rows = vec![head.map(str::to_owned).collect()];
    for pod in reports.iter().flat_map(|(_, r)| r.per_pod.keys()).collect::<BTreeSet<_>>() {
        rows.push(row(format!("  {pod}"), &|r| r.per_pod.get(pod).copied().unwrap_or(0)));
    }
    rows.push(row("  answered".into(), &LoadReport::answered));
    rows.push(row("  failed".into(), &LoadReport::failed));
    let numbers: Vec<usize> = (1..=reports.len()).collect();
    let out = columns::columns(rows, &numbers);
    let seen: BTreeSet<String> = reports.iter().flat_map(|(_, r)| r.clients_seen.keys()).map(IpAddr::to_string).collect();
    out + &format!("  The pods saw their clients as {}.", seen.into_iter().collect::<Vec<_>>().join(" and "))
}

/// The default path of `nomagic`: next to this program.
pub fn default_nomagic() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    own.parent().unwrap_or(Path::new(".")).join("nomagic")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_shows_every_pod_and_the_sums() {
        let mut a = LoadReport::default();
        a.per_pod.extend([("nginx-1".to_owned(), 2), ("nginx-2".to_owned(), 3)]);
        a.clients_seen.insert("10.0.0.2".parse().unwrap(), 5);
        let mut b = LoadReport::default();
        b.failures.insert("connect".to_owned(), 4);
        let table = per_pod(&[("A", &a), ("B", &b)]);
        let words: Vec<Vec<&str>> = table.lines().map(|l| l.split_whitespace().collect()).collect();
        assert_eq!(
            words[1..5],
            [vec!["nginx-1", "2", "0"], vec!["nginx-2", "3", "0"], vec!["answered", "5", "0"], vec!["failed", "0", "4"]]
        );
        assert!(table.ends_with("as 10.0.0.2."));
    }
}
