//! The deny list: its changes by command, and its content.

use serde::{Deserialize, Serialize};

/// Where a denied prefix comes from.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DenySource {
    /// `deny.prefixes`.
    Configuration,
    /// `deny.file`.
    File,
    /// `nomagic deny add`.
    Command,
}

impl std::fmt::Display for DenySource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            DenySource::Configuration => "configuration",
            DenySource::File => "file",
            DenySource::Command => "command",
        })
    }
}

/// A denied prefix.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DenyEntry {
    /// In CIDR notation.
    pub prefix: String,
    /// At least one.
    pub sources: Vec<DenySource>,
    /// Seconds until the command ends; `null`: the command has no end, or the prefix is not denied by command.
    pub expires_in_s: Option<u64>,
    /// Packets dropped whose longest matching prefix is this one.
    pub packets: u64,
}

/// The whole list, sorted.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct DenyReport {
    pub entries: Vec<DenyEntry>,
    /// Maximum number of entries.
    pub entries_max: usize,
    /// What keeps configured prefixes or lines of the file from being denied.
    pub problems: Vec<String>,
}

/// The answer to a change by command.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DenyChange {
    /// The prefix as it is denied: without host bits.
    pub prefix: String,
    /// Why it is denied after the change; empty: it no longer is.
    pub sources: Vec<DenySource>,
}

/// The size of the list, as a part of the status.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Deny {
    /// Denied prefixes. One of several sources counts for each of these, but once here.
    pub prefixes: usize,
    pub prefixes_max: usize,
    pub of_configuration: usize,
    pub of_file: usize,
    pub of_command: usize,
}
