//! Reading YAML into a typed value, with errors that name file, line, column and field.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use super::tree::place_of;

/// A configuration that cannot be used, said so that it can be mended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigError {
    /// The file.
    pub file: PathBuf,
    /// Line and column, from 1; (0, 0) when it concerns the whole file.
    pub at: (u64, u64),
    /// The field, as `workers.count`; empty for the whole file.
    pub field: String,
    /// What is wrong and what is allowed.
    pub message: String,
}

impl ConfigError {
    /// A fault of the file as a whole.
    pub fn whole(file: &Path, message: impl Into<String>) -> ConfigError {
        ConfigError { file: file.into(), at: (0, 0), field: String::new(), message: message.into() }
    }

    /// A field that must be there for what was asked.
    pub fn missing(file: &Path, field: &str, message: impl Into<String>) -> ConfigError {
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

/// Reads one YAML document. An empty file is an empty mapping.
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
        // "." is the root, and a path ends with "?" where the reader did not get to a name.
        let field = path.trim_end_matches('?').trim_end_matches('.').to_string();
        // The reader points at the key of a bad value, or at its list: look for the value itself.
        let value = match e.without_snippet() {
            serde_saphyr::Error::SerdeUnknownField { .. } => None,
            _ => place_of(text, &field),
        };
        let at = value.or(e.location()).map_or((0, 0), |l| (l.line(), l.column()));
        ConfigError { file: file.into(), at, field, message: message(&e) }
    })
}

/// The error without its position, which is printed in front.
pub(crate) fn message(error: &serde_saphyr::Error) -> String {
    let whole = error.without_snippet().render_with_options(serde_saphyr::render_options! {
        formatter: &serde_saphyr::DefaultMessageFormatter,
        snippets: serde_saphyr::SnippetMode::Off,
    });
    match error.location() {
        Some(l) => whole
            .replace(&format!(" at line {}, column {}", l.line(), l.column()), "")
            .replace(&format!("line {} column {}: ", l.line(), l.column()), ""),
        None => whole,
    }
}
