//! The command `run`.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Result, bail};
use nomagic_xsk::InterfaceName;

use super::config_args::{ConfigArgs, LoadedConfig, parse_node_name};
use crate::config::{Config, values};
use crate::run;
use crate::seed;

/// `nomagic run`
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  nomagic run --config /etc/nomagic/nomagic.yaml
  nomagic run --config /etc/nomagic/nomagic.yaml --interface eth0 --interface eth1
  nomagic run --kube-proxy-config /var/lib/kube-proxy/config.conf

Exit codes: 0 ended by a signal, 1 failure, 2 a configuration that cannot be used.")]
pub struct RunArgs {
    #[command(flatten)]
    pub config: ConfigArgs,
    /// A network interface to take over; may be repeated [default: the configuration's; with --kube-proxy-config: the interfaces that carry
    /// the node's addresses and its routes to pods].
    #[arg(long = "interface", value_name = "NAME", value_parser = values::parse_interface)]
    pub interfaces: Vec<InterfaceName>,
    /// The Node object's name; a pod gets it from the downward API [default: the configuration's, or the host name].
    #[arg(long, value_name = "NAME", value_parser = parse_node_name)]
    pub node_name: Option<String>,
    /// The directory for pins and state [default: the configuration's, or /run/nomagic].
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
}

/// Runs the gateway until SIGTERM or SIGINT.
pub fn run_gateway(args: &RunArgs) -> Result<()> {
    let LoadedConfig { mut config, drop_in } = args.config.load()?;
    crate::log::start(config.log.level, config.log.format)?;
    let seed = seed::from_config(&config.hash, args.config.path()).map_err(|e| e.error)?;
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
    }
    if drop_in.is_none()
        && let Some(missing) = missing_fields(&config).first()
    {
        bail!("{path}: {missing}");
    }
    // On a worker's CPU, one time slice of the compiler would delay frames by milliseconds. Threads started later inherit the affinity;
    // workers pin themselves.
    let cpus: Vec<usize> = config.workers.cpus.iter().map(|cpu| usize::from(*cpu)).collect();
    if let Err(e) = nomagic_sys::cpu::leave_cpus(&cpus) {
        tracing::warn!("the control threads cannot be kept off the workers' CPUs {cpus:?}: {e}");
    }
    run::run(config, seed, drop_in.as_ref(), args.node_name.as_deref())
}

/// What a configuration of nomagic's own must have and does not, as messages.
pub(super) fn missing_fields(config: &Config) -> Vec<&'static str> {
    let interfaces = "interfaces: name at least one network interface to take over, as `interfaces: [eth0]`";
    let objects = "manifests: name a file or directory with Services and EndpointSlices, here or with --manifests, or an API server under \
                   kubernetes";
    let facts = [(config.interfaces.is_empty(), interfaces), (config.manifests.is_none() && config.kubernetes.is_none(), objects)];
    facts.into_iter().filter(|(missing, _)| *missing).map(|(_, message)| message).collect()
}
