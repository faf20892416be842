//! Network namespaces with pods and clients, and the demo of nomagic between them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use nomagic_testbed::demo::{DemoOptions, default_nomagic, demo};
use nomagic_testbed::peers::{ClientOptions, LoadReport, PodOptions, download, http_load, serve_pod, start_pod, udp_load, upload};
use nomagic_testbed::rig::{PODS, Scene, clean_on_signals, remove_leftovers};

#[derive(Parser)]
#[command(about = "Network namespaces with pods and clients, and the demo of nomagic between them", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Carry a Service over AF_XDP between network namespaces, and account for every frame
    Demo {
        /// The nomagic program [default: next to this one]
        #[arg(long)]
        nomagic: Option<PathBuf>,
        /// HTTP connections over IPv4
        #[arg(long, default_value_t = 300)]
        connections_v4: u32,
        /// HTTP connections over IPv6
        #[arg(long, default_value_t = 100)]
        connections_v6: u32,
    },
    /// Create the scene with its pods and keep it until ^C, to look around
    Scene,
    /// Run a pod: HTTP and UDP echo on all addresses; it answers with its name and the client's address
    Pod {
        /// Its name in the answers
        #[arg(long)]
        name: String,
        /// TCP port of the HTTP server
        #[arg(long, default_value_t = 80)]
        http_port: u16,
        /// UDP port of the echo
        #[arg(long, default_value_t = 53)]
        udp_port: u16,
    },
    /// Open connections to a pod or Service and count the answers by pod
    HttpGet {
        /// Address and port, `[v6]:port` for IPv6
        to: SocketAddr,
        #[command(flatten)]
        load: LoadArgs,
    },
    /// Send datagrams to a UDP echo and count the answers by pod
    UdpEcho {
        /// Address and port, `[v6]:port` for IPv6
        to: SocketAddr,
        #[command(flatten)]
        load: LoadArgs,
    },
    /// Upload and download a body and compare it byte for byte
    Body {
        /// Address and port, `[v6]:port` for IPv6
        to: SocketAddr,
        /// Bytes in each direction, at most 64 MiB
        #[arg(long, default_value_t = 3_000_000)]
        bytes: usize,
        /// Seconds for each direction
        #[arg(long, default_value_t = 30)]
        limit_s: u64,
    },
}

#[derive(clap::Args)]
struct LoadArgs {
    /// Number of requests, each over a new socket
    #[arg(long, short = 'n', default_value_t = 1)]
    count: u32,
    /// The most requests in flight
    #[arg(long, default_value_t = 16)]
    concurrency: usize,
    /// Milliseconds for one request
    #[arg(long, default_value_t = 5_000)]
    limit_ms: u64,
}

impl LoadArgs {
    fn options(&self) -> ClientOptions {
        ClientOptions { concurrency: self.concurrency, limit: Duration::from_millis(self.limit_ms) }
    }
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("nomagic-testbed: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Demo { nomagic, connections_v4, connections_v6 } => {
            demo(&DemoOptions { nomagic: nomagic.unwrap_or_else(default_nomagic), connections_v4, connections_v6 })
        }
        Command::Scene => keep_scene(),
        Command::Pod { name, http_port, udp_port } => {
            let listening = format!("pod {name} is listening on TCP {http_port} and UDP {udp_port}");
            block_on(serve_pod(PodOptions { name, http_port, udp_port }, || println!("{listening}")))?
        }
        Command::HttpGet { to, load } => report(block_on(http_load(to, load.count, load.options()))?),
        Command::UdpEcho { to, load } => report(block_on(udp_load(to, load.count, load.options()))?),
        Command::Body { to, bytes, limit_s } => block_on(async {
            let limit = Duration::from_secs(limit_s);
            let pod = upload(to, bytes, limit).await.context("upload")?;
            download(to, bytes, limit).await.context("download")?;
            println!("{bytes} bytes up (to {pod}) and down, byte for byte");
            Ok(())
        })?,
    }
}

fn keep_scene() -> Result<()> {
    clean_on_signals()?;
    remove_leftovers();
    let scene = Scene::new("scene")?;
    let _pods = scene.pods.iter().zip(PODS).map(|(ns, pod)| start_pod(ns, PodOptions::new(pod.name))).collect::<Result<Vec<_>>>()?;
    for (what, netns) in [("client", &scene.client), ("gateway", &scene.gw), ("fabric", &scene.fabric)] {
        println!("{what:<8} ip netns exec {} bash", netns.name());
    }
    for (netns, pod) in scene.pods.iter().zip(PODS) {
        println!("{:<8} ip netns exec {} bash    # {} {}", pod.name, netns.name(), pod.v4, pod.v6);
    }
    println!("the scene is ready; ^C removes it");
    // A signal ends the process.
    loop {
        std::thread::park();
    }
}

fn block_on<F: Future>(future: F) -> Result<F::Output> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start a tokio runtime")?;
    Ok(runtime.block_on(future))
}

fn report(report: LoadReport) -> Result<()> {
    for (pod, n) in &report.per_pod {
        println!("{pod}: {n}");
    }
    for (client, n) in &report.clients_seen {
        println!("seen as {client}: {n}");
    }
    if report.failed() > 0 {
        let reasons: Vec<String> = report.failures.iter().map(|(why, n)| format!("{n} times: {why}")).collect();
        bail!("{} of {} requests failed:\n  {}", report.failed(), report.failed() + report.answered(), reasons.join("\n  "));
    }
    Ok(())
}
