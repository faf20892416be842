//! Which configuration a command works with: nomagic's own file, or a kube-proxy's.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::config::Config;
use crate::config::error::ConfigError;
use crate::config::values;
use crate::kubeproxy::DropIn;

/// The file, and what the command line says instead of it.
#[derive(Clone, Debug, Args)]
pub struct ConfigArgs {
    /// Exactly one file.
    #[command(flatten)]
    pub file: ConfigFile,
    /// Read Services and EndpointSlices from this file or directory, whatever the configuration names.
    #[arg(long, value_name = "PATH")]
    pub manifests: Option<PathBuf>,
}

/// One of two files.
#[derive(Clone, Debug, Default, Args)]
#[group(required = true, multiple = false)]
pub struct ConfigFile {
    /// The configuration file; `deploy/example/nomagic.yaml` documents every field.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// A kube-proxy's configuration file (KubeProxyConfiguration) in its place; what has no meaning here is named in a warning.
    #[arg(long, value_name = "FILE")]
    pub kube_proxy_config: Option<PathBuf>,
}

/// A configuration that was read.
pub struct Loaded {
    /// nomagic's own; with a kube-proxy's file: the defaults, to which [`DropIn::apply`] brings the file.
    pub config: Config,
    /// The kube-proxy's file.
    pub drop_in: Option<DropIn>,
}

impl ConfigArgs {
    /// The file's path, for messages.
    pub fn path(&self) -> &Path {
        self.file.config.as_deref().or(self.file.kube_proxy_config.as_deref()).unwrap_or(Path::new(""))
    }

    /// Reads the file.
    pub fn load(&self) -> Result<Loaded, ConfigError> {
        let (mut config, drop_in) = match &self.file.kube_proxy_config {
            Some(path) => (Config::default(), Some(DropIn::load(path)?)),
            None => (Config::load(self.path())?, None),
        };
        if self.manifests.is_some() {
            config.manifests.clone_from(&self.manifests);
            config.kubernetes = None;
        }
        Ok(Loaded { config, drop_in })
    }
}

/// A Node's name on the command line.
pub fn parse_node_name(text: &str) -> Result<String, String> {
    values::parse_node_name(text).ok_or_else(|| format!("not {}", values::NODE_NAME))
}
