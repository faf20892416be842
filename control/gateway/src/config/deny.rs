//! The deny list.

use std::path::PathBuf;

use nomagic_core::tuple::Prefix;
use serde::Deserialize;

use super::values;

/// Sources whose packets to Services the XDP filter drops; `nomagic deny` adds more.
#[derive(Clone, PartialEq, Eq, Default, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct DenyConfig {
    /// Denied prefixes.
    #[serde(deserialize_with = "values::cidrs")]
    pub prefixes: Vec<Prefix>,
    /// A file with more of them, one a line; `#` begins a comment. Re-read when it changes. Relative to the configuration file.
    pub file: Option<PathBuf>,
}
