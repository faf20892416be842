//! The commands: run a gateway, ask one for its status.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nomagic_api::socket::{Request, Response};
use nomagic_xsk::InterfaceName;

use super::config_args::{ConfigArgs, Loaded, parse_node_name};
use crate::config::values;
use crate::run::{self, socket};
use crate::status::page::page;

/// `nomagic run`
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  nomagic run --config /etc/nomagic/nomagic.yaml
  nomagic run --config /etc/nomagic/nomagic.yaml --interface eth0 --interface eth1
  nomagic run --kube-proxy-config /var/lib/kube-proxy/config.conf

Exit codes: 0 ended by a signal, 1 failure, 2 a configuration that cannot be used.")]
pub struct Args {
    /// The configuration.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// A network interface to take over; may be repeated [default: the configuration's; with --kube-proxy-config: those of the node's
    /// addresses and of its routes to pods].
    #[arg(long = "interface", value_name = "NAME", value_parser = values::parse_interface)]
    pub interfaces: Vec<InterfaceName>,
    /// The Node object's name, for a pod that has it from the downward API [default: the configuration's, or the host name].
    #[arg(long, value_name = "NAME", value_parser = parse_node_name)]
    pub node_name: Option<String>,
    /// Where pins and state live [default: the configuration's, or /run/nomagic].
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
}

/// Runs the gateway until SIGTERM or SIGINT.
pub fn run_gateway(args: &Args) -> Result<()> {
    let Loaded { mut config, drop_in } = args.config.load()?;
    let path = args.config.path().display();
    if !args.interfaces.is_empty() {
        let mut seen = BTreeSet::new();
        config.interfaces = args.interfaces.iter().filter(|name| seen.insert(*name)).cloned().collect();
    }
    if let Some(dir) = &args.state_dir {
        config.state_dir.clone_from(dir);
    }
    if let Some(drop_in) = &drop_in {
        drop_in.warnings.iter().for_each(|w| tracing::warn!("{w}"));
    } else if config.interfaces.is_empty() {
        bail!("{path}: interfaces: name at least one network interface to take over, as `interfaces: [eth0]`");
    }
    if drop_in.is_none() && config.manifests.is_none() && config.kubernetes.is_none() {
        bail!(
            "{path}: manifests: name a file or directory with Services and EndpointSlices, here or with --manifests, or an API server under kubernetes"
        );
    }
    // The compiler's time slice on a worker's CPU would be milliseconds of frames in a ring. Threads started later inherit this; workers pin themselves.
    let cpus: Vec<usize> = config.workers.cpus.iter().map(|cpu| usize::from(*cpu)).collect();
    if let Err(e) = nomagic_sys::cpu::leave_cpus(&cpus) {
        tracing::warn!("control cannot be kept off the workers' CPUs {cpus:?}: {e}");
    }
    run::run(config, drop_in.as_ref(), args.node_name.as_deref())
}

/// The status of the process that runs with this state directory: one line of JSON, or a page.
pub fn status(state_dir: &Path, json: bool) -> Result<String> {
    let Response::Status(status) = socket::ask(state_dir, &Request::Status {})? else {
        bail!("the gateway did not answer with its status")
    };
    if json {
        return serde_json::to_string(&status).context("the status cannot be written as JSON");
    }
    Ok(page(&status))
}
