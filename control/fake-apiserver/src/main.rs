//! `nomagic-fake-apiserver`: the fake API server as a program, for experiments.
//!
//! ```text
//! nomagic-fake-apiserver --listen 127.0.0.1:8001 deploy/example/manifests/*.yaml
//! curl '127.0.0.1:8001/api/v1/services?watch=true'
//! curl -X DELETE 127.0.0.1:8001/api/v1/namespaces/default/services/nginx
//! ```
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;
use nomagic_fake_apiserver::FakeApiServer;

/// The UID of the Namespace kube-system, unless a file has that Namespace. Always the same, so that a server can replace an earlier one.
const KUBE_SYSTEM_UID: &str = "6e6f6d61-6769-4063-8e73-797374656d00";

/// Serve Services, EndpointSlices, Nodes, ServiceCIDRs, Events and Namespaces like a Kubernetes API server: GET (list, watch), POST, PUT, DELETE with JSON.
#[derive(Parser)]
struct Args {
    /// Address to listen on, without TLS.
    #[arg(long, default_value = "127.0.0.1:8001")]
    listen: SocketAddr,
    /// First resource version; older ones get 410 Gone. For a server that replaces an earlier one.
    #[arg(long)]
    first_version: Option<u64>,
    /// YAML files with the initial objects.
    files: Vec<PathBuf>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let server = FakeApiServer::start(args.listen, None)?;
    // No client may see a part of the initial objects as the complete list.
    server.set_token(Some("until all objects are loaded"));
    if let Some(version) = args.first_version {
        server.begin_at(version);
    }
    server.put_kube_system(KUBE_SYSTEM_UID)?;
    for file in &args.files {
        let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        server.put_yaml(&text).with_context(|| file.display().to_string())?;
    }
    server.set_token(None);
    println!("listening on {}", server.url());
    loop {
        std::thread::park();
    }
}
