//! The parsed file, checked against the field table: wrong types are errors, unknown fields are warnings, both with their position.

use std::path::{Path, PathBuf};

use serde_saphyr::Spanned;

use super::Warning;
use super::fields::{FIELDS, FieldSpec, FieldType, ProxyMode, Support};
use crate::config::error::{self, ConfigError};
use crate::config::timeouts::duration_ms;
use crate::config::tree::{Tree, find};

/// Maximum number of warnings; further ones are only counted.
const WARNINGS_MAX: usize = 100;
/// Maximum number of characters quoted from the file in a message.
const SHOWN_MAX: usize = 60;

const OTHER_MODE: &str = "nomagic forwards packets itself; where the modes differ, it behaves like nftables mode";
const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
const KIND: &str = "KubeProxyConfiguration";

/// A KubeProxyConfiguration whose values have the right types.
pub(super) struct Document {
    file: PathBuf,
    root: Spanned<Tree>,
    /// One warning for each unknown field, at most `WARNINGS_MAX`.
    unknown: Vec<Warning>,
    /// Unknown fields beyond those.
    unknown_more: usize,
}

impl Document {
    /// Parses one document and checks its kind, version and field types.
    pub(super) fn read(text: &str, file: &Path) -> Result<Document, ConfigError> {
        let root: Spanned<Tree> = error::read(text, file)?;
        let mut document = Document { file: file.into(), root, unknown: Vec::new(), unknown_more: 0 };
        if !matches!(document.root.value, Tree::Mapping(_)) {
            return Err(document.fault("", format!("a mapping with apiVersion {API_VERSION} and kind {KIND} is expected")));
        }
        for (name, wanted) in [("apiVersion", API_VERSION), ("kind", KIND)] {
            match find(&document.root, name).map(|v| &v.value) {
                Some(Tree::Text(text)) if text == wanted => {}
                Some(Tree::Text(text)) => return Err(document.fault(name, format!("{} is not {wanted}", quoted(text)))),
                Some(_) => return Err(document.fault(name, format!("{wanted} is expected"))),
                None => return Err(document.fault(name, format!("missing: {wanted} is expected"))),
            }
        }
        let unknown = document.check("", &document.root)?;
        let message = "unknown field, ignored: misspelt, or from another version of kube-proxy";
        let warning = |(path, value): &(String, &Spanned<Tree>)| document.warning(value, quoted(path), message);
        let (listed, all) = (unknown.iter().take(WARNINGS_MAX).map(warning).collect(), unknown.len());
        (document.unknown, document.unknown_more) = (listed, all.saturating_sub(WARNINGS_MAX));
        Ok(document)
    }

    /// Rejects values of a wrong type; returns the unknown fields.
    fn check<'t>(&self, section: &str, value: &'t Spanned<Tree>) -> Result<Vec<(String, &'t Spanned<Tree>)>, ConfigError> {
        let mut unknown = Vec::new();
        let entries = match &value.value {
            Tree::Mapping(entries) => entries,
            Tree::Null => return Ok(unknown),
            _ => return Err(self.fault(section, "a mapping is expected")),
        };
        for (name, value) in entries {
            let path = if section.is_empty() { name.clone() } else { format!("{section}.{name}") };
            match FieldSpec::by_path(&path) {
                Some(FieldSpec(_, field_type, _)) if field_type.accepts(&value.value) => {}
                Some(FieldSpec(_, field_type, _)) => {
                    let message = format!("{} is expected, not {}", field_type.expected(), describe(&value.value));
                    return Err(self.fault_at(value, &path, message));
                }
                None if section.is_empty() && FieldSpec::is_section(name) => unknown.extend(self.check(name, value)?),
                None => unknown.push((path, value)),
            }
        }
        Ok(unknown)
    }

    /// Warnings for the fields that are set but have no effect in this mode, in the file's order.
    pub(super) fn warnings(&self, mode: ProxyMode) -> Vec<Warning> {
        let mut warnings = self.unknown.clone();
        let detect = Some(self.text("detectLocalMode")).filter(|mode| !mode.is_empty()).unwrap_or("ClusterCIDR");
        for FieldSpec(path, field_type, support) in FIELDS {
            let message = match support {
                Support::Supported => continue,
                Support::InModes(modes) if modes.contains(&mode) => continue,
                Support::InModes(_) => "used only in another mode, by kube-proxy as well",
                Support::WithDetectMode(mode) if *mode == detect => continue,
                Support::WithDetectMode(_) => "used only with another detectLocalMode",
                Support::Unsupported(reason) => reason,
            };
            if let Some(value) = self.get(path)
                && field_type.is_set(&value.value)
            {
                warnings.push(self.warning(value, (*path).into(), message));
            }
        }
        if mode != ProxyMode::Nftables
            && let Some(value) = self.get("mode").filter(|v| FieldType::Text.is_set(&v.value))
        {
            warnings.push(self.warning(value, "mode".into(), OTHER_MODE));
        }
        warnings.sort_by_key(|w| w.at);
        let more = warnings.len().saturating_sub(WARNINGS_MAX) + self.unknown_more;
        warnings.truncate(WARNINGS_MAX);
        if more > 0 {
            let message = format!("{more} more fields have no effect and are not listed");
            warnings.push(self.warning(&self.root, "(all)".into(), &message));
        }
        warnings
    }

    /// A field's value, unless it is missing or `null`.
    fn get(&self, path: &str) -> Option<&Spanned<Tree>> {
        find(&self.root, path).filter(|v| !matches!(v.value, Tree::Null))
    }

    /// A string field; empty if unset.
    pub(super) fn text(&self, path: &str) -> &str {
        match self.get(path).map(|v| &v.value) {
            Some(Tree::Text(text)) => text,
            _ => "",
        }
    }

    pub(super) fn flag(&self, path: &str) -> Option<bool> {
        match self.get(path)?.value {
            Tree::Flag(flag) => Some(flag),
            _ => None,
        }
    }

    /// A duration in milliseconds; `None` if unset or zero.
    pub(super) fn millis(&self, path: &str) -> Option<u64> {
        duration_ms(self.text(path)).filter(|ms| *ms > 0)
    }

    /// A list of strings; empty if unset.
    pub(super) fn texts(&self, path: &str) -> Vec<&str> {
        let Some(Tree::List(list)) = self.get(path).map(|v| &v.value) else { return Vec::new() };
        let texts = list.iter().map(|v| match &v.value {
            Tree::Text(text) => text.as_str(),
            _ => "",
        });
        texts.collect()
    }

    /// An error at a field's position.
    pub(super) fn fault(&self, field: &str, message: impl Into<String>) -> ConfigError {
        match find(&self.root, field) {
            Some(value) => self.fault_at(value, field, message),
            None => ConfigError::in_field(&self.file, field, message),
        }
    }

    fn fault_at(&self, value: &Spanned<Tree>, field: &str, message: impl Into<String>) -> ConfigError {
        ConfigError { at: position(value), ..ConfigError::in_field(&self.file, field, message) }
    }

    fn warning(&self, value: &Spanned<Tree>, field: String, message: &str) -> Warning {
        Warning { file: self.file.clone(), at: position(value), field, message: message.into() }
    }
}

fn position(value: &Spanned<Tree>) -> (u64, u64) {
    (value.referenced.line(), value.referenced.column())
}

/// Quotes text from the file, escaped and shortened to fit in a log line.
pub(super) fn quoted(text: &str) -> String {
    let plain = text.chars().all(|c| c.is_ascii_alphanumeric() || "._-/:,[]".contains(c));
    if plain && !text.is_empty() && text.len() <= SHOWN_MAX {
        return text.into();
    }
    let short: String = text.chars().take(SHOWN_MAX).collect();
    format!("{short:?}{}", if short.len() < text.len() { "…" } else { "" })
}

fn describe(value: &Tree) -> String {
    match value {
        Tree::Null => "null".into(),
        Tree::Flag(flag) => flag.to_string(),
        Tree::Whole(n) => n.to_string(),
        Tree::Number(n) => n.to_string(),
        Tree::Text(text) => format!("the text {}", quoted(text)),
        Tree::List(_) => "this list".into(),
        Tree::Mapping(_) => "this mapping".into(),
    }
}
