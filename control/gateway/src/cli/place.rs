//! Where a nomagic keeps things, for commands that look after it.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::config::Config;

/// The connection table's file: as configured, or where the example has it.
pub fn table_file(state_dir: &Path, config: Option<&Path>) -> Result<PathBuf> {
    let configured = config.map(Config::load).transpose()?.and_then(|config| config.conntrack.file);
    Ok(configured.unwrap_or_else(|| state_dir.join("conntrack")))
}

/// Where the state is: as given, or as configured, or the default.
pub fn state_dir(state_dir: Option<PathBuf>, config: Option<&Path>) -> Result<PathBuf> {
    match (state_dir, config) {
        (Some(dir), _) => Ok(dir),
        (None, Some(path)) => Ok(Config::load(path)?.state_dir),
        (None, None) => Ok(Config::default().state_dir),
    }
}
