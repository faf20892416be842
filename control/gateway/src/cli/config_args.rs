//! The configuration of a command: nomagic's own file, or kube-proxy's.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::config::Config;
use crate::config::error::ConfigError;
use crate::config::values;
use crate::kubeproxy::DropIn;

/// The configuration file, and the options that override it.
#[derive(Clone, Debug, Args)]
pub struct ConfigArgs {
    #[command(flatten)]
    pub file: ConfigFile,
    /// Read Services and EndpointSlices from this file or directory instead of the configured source.
    #[arg(long, value_name = "PATH")]
    pub manifests: Option<PathBuf>,
}

/// Exactly one of the two files; `explain` can do without.
#[derive(Clone, Debug, Default, Args)]
#[group(required = true, multiple = true)]
pub struct ConfigFile {
    /// The configuration file; `deploy/example/nomagic.yaml` documents every field.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// kube-proxy's configuration file (KubeProxyConfiguration) instead; unsupported fields give a warning.
    #[arg(long, value_name = "FILE", conflicts_with = "config")]
    pub kube_proxy_config: Option<PathBuf>,
}

/// The parsed configuration.
pub struct LoadedConfig {
    /// nomagic's own configuration; with kube-proxy's file, the defaults, to which [`DropIn::apply`] adds that file.
    pub config: Config,
    /// kube-proxy's configuration.
    pub drop_in: Option<DropIn>,
}

impl ConfigArgs {
    /// The file's path, for messages.
    pub fn path(&self) -> &Path {
        self.file.config.as_deref().or(self.file.kube_proxy_config.as_deref()).unwrap_or(Path::new(""))
    }

    pub fn load(&self) -> Result<LoadedConfig, ConfigError> {
        let (mut config, drop_in) = match &self.file.kube_proxy_config {
            Some(path) => (Config::default(), Some(DropIn::load(path)?)),
            None => (Config::load(self.path())?, None),
        };
        if self.manifests.is_some() {
            config.manifests.clone_from(&self.manifests);
            config.kubernetes = None;
        }
        Ok(LoadedConfig { config, drop_in })
    }
}

/// Parses `--node-name`.
pub fn parse_node_name(text: &str) -> Result<String, String> {
    values::parse_node_name(text).ok_or_else(|| format!("not {}", values::NODE_NAME))
}
