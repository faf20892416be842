//! The log.

use serde::Deserialize;

use crate::log::{LogFormat, LogLevel};

/// What is logged, and how.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct LogConfig {
    /// error, warn, info (default), debug or trace. The environment variable NOMAGIC_LOG overrides it, and `nomagic log` changes it.
    pub level: LogLevel,
    /// text (default) or json.
    pub format: LogFormat,
}
