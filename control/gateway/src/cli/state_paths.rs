//! Paths of a gateway's state, for `status` and `cleanup`.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::config::Config;

/// The connection table's file: the configured one, or the one of the example configuration.
pub fn table_file(state_dir: &Path, config: Option<&Path>) -> Result<PathBuf> {
    let configured = config.map(Config::load).transpose()?.and_then(|config| config.conntrack.file);
    Ok(configured.unwrap_or_else(|| state_dir.join("conntrack")))
}

/// The state directory: from the command line, the configuration, or the default.
pub fn state_dir(state_dir: Option<PathBuf>, config: Option<&Path>) -> Result<PathBuf> {
    match (state_dir, config) {
        (Some(dir), _) => Ok(dir),
        (None, Some(path)) => Ok(Config::load(path)?.state_dir),
        (None, None) => Ok(Config::default().state_dir),
    }
}
