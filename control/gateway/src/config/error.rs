//! Parses YAML into typed values, with errors that name file, line, column and field.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use super::tree::location_of;

/// An invalid configuration: the position, and the allowed values.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigError {
    pub file: PathBuf,
    /// Line and column, 1-based; (0, 0) for the whole file.
    pub at: (u64, u64),
    /// The field, such as `workers.count`; empty for the whole file.
    pub field: String,
    /// The problem and the allowed values.
    pub message: String,
}

impl ConfigError {
    /// An error that concerns the whole file.
    pub fn whole(file: &Path, message: impl Into<String>) -> ConfigError {
        ConfigError { file: file.into(), at: (0, 0), field: String::new(), message: message.into() }
    }

    /// An error about a field without a position in the file.
    pub fn in_field(file: &Path, field: &str, message: impl Into<String>) -> ConfigError {
        ConfigError { field: field.into(), ..ConfigError::whole(file, message) }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.at.0 > 0 {
            write!(f, ":{}:{}", self.at.0, self.at.1)?;
        }
        if !self.field.is_empty() {
            write!(f, ": {}", self.field)?;
        }
        write!(f, ": {}", self.message)
    }
}

impl std::error::Error for ConfigError {}

/// Parses one YAML document. An empty file is an empty mapping.
pub fn read<T: DeserializeOwned>(text: &str, file: &Path) -> Result<T, ConfigError> {
    let blank = text.lines().all(|l| matches!(l.trim_start().chars().next(), None | Some('#')) || l.trim_end() == "---");
    let text = if blank { "{}" } else { text };
    let mut path = String::new();
    let options = serde_saphyr::options! { with_snippet: false, strict_booleans: true };
    serde_saphyr::with_deserializer_from_str_with_options(text, options, |yaml| {
        serde_path_to_error::deserialize(yaml).map_err(|e| {
            path = e.path().to_string();
            e.into_inner()
        })
    })
    .map_err(|e| {
        // "." is the root; a path ends with "?" if the parser failed before the field's name.
        let field = path.trim_end_matches('?').trim_end_matches('.').to_string();
        // The parser reports the location of the key or list that contains an invalid value: find the value itself.
        let value = match e.without_snippet() {
            serde_saphyr::Error::SerdeUnknownField { .. } => None,
            _ => location_of(text, &field),
        };
        let at = value.or(e.location()).map_or((0, 0), |l| (l.line(), l.column()));
        ConfigError { file: file.into(), at, field, message: message(&e) }
    })
}

/// The error message without its position, which is printed first.
pub(crate) fn message(error: &serde_saphyr::Error) -> String {
    let whole = error.without_snippet().render_with_options(serde_saphyr::render_options! {
        formatter: &serde_saphyr::UserMessageFormatter,
        snippets: serde_saphyr::SnippetMode::Off,
    });
    match error.location() {
        Some(l) => whole
            .replace(&format!(" at line {}, column {}", l.line(), l.column()), "")
            .replace(&format!("line {} column {}: ", l.line(), l.column()), ""),
        None => whole,
    }
}
