//! The file as a document: every field known by name and of its type; what is not is an error or a warning with its place.

use std::path::{Path, PathBuf};

use serde_saphyr::Spanned;

use super::Warning;
use super::fields::{FIELDS, Field, Kind, Meaning, Mode};
use crate::config::error::{self, ConfigError};
use crate::config::timeouts::duration_ms;
use crate::config::tree::{Tree, find};

/// Warnings at the most; more are counted.
const WARNINGS_MAX: usize = 100;
/// Characters of the file's own words in a message at the most.
const SHOWN_MAX: usize = 60;

const OTHER_MODE: &str = "nomagic carries packets itself; where the modes differ it decides as nftables does";
const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
const KIND: &str = "KubeProxyConfiguration";

/// A KubeProxyConfiguration whose values are of the right types.
pub(super) struct Document {
    file: PathBuf,
    root: Spanned<Tree>,
    /// The first fields that nobody knows.
    unknown: Vec<Warning>,
    /// How many more there are.
    unknown_more: usize,
}

impl Document {
    /// Reads one document of this kind and version.
    pub(super) fn read(text: &str, file: &Path) -> Result<Document, ConfigError> {
        let root: Spanned<Tree> = error::read(text, file)?;
        let mut document = Document { file: file.into(), root, unknown: Vec::new(), unknown_more: 0 };
        if !matches!(document.root.value, Tree::Mapping(_)) {
            return Err(document.fault("", format!("a mapping with apiVersion {API_VERSION} and kind {KIND} is expected")));
        }
        for (name, wanted) in [("apiVersion", API_VERSION), ("kind", KIND)] {
            match find(&document.root, name).map(|v| &v.value) {
                Some(Tree::Text(text)) if text == wanted => {}
                Some(Tree::Text(text)) => return Err(document.fault(name, format!("{} is not {wanted}", shown(text)))),
                Some(_) => return Err(document.fault(name, format!("{wanted} is expected"))),
                None => return Err(document.fault(name, format!("missing: {wanted} is expected"))),
            }
        }
        let unknown = document.check("", &document.root)?;
        let message = "unknown, and left out: a misspelt name, or one of another version of kube-proxy";
        let warning = |(path, value): &(String, &Spanned<Tree>)| document.warning(value, shown(path), message);
        let (listed, all) = (unknown.iter().take(WARNINGS_MAX).map(warning).collect(), unknown.len());
        (document.unknown, document.unknown_more) = (listed, all.saturating_sub(WARNINGS_MAX));
        Ok(document)
    }

    /// Refuses values of a wrong type; returns the fields that nobody knows.
    fn check<'t>(&self, section: &str, value: &'t Spanned<Tree>) -> Result<Vec<(String, &'t Spanned<Tree>)>, ConfigError> {
        let mut unknown = Vec::new();
        let entries = match &value.value {
            Tree::Mapping(entries) => entries,
            Tree::Null => return Ok(unknown),
            _ => return Err(self.fault(section, "a mapping is expected")),
        };
        for (name, value) in entries {
            let path = if section.is_empty() { name.clone() } else { format!("{section}.{name}") };
            match Field::named(&path) {
                Some(Field(_, kind, _)) if kind.takes(&value.value) => {}
                Some(Field(_, kind, _)) => {
                    let message = format!("{} is expected, not {}", kind.expected(), described(&value.value));
                    return Err(self.fault_at(value, &path, message));
                }
                None if section.is_empty() && Field::is_section(name) => unknown.extend(self.check(name, value)?),
                None => unknown.push((path, value)),
            }
        }
        Ok(unknown)
    }

    /// What is set and means nothing in a file for this mode, in the file's order.
    pub(super) fn warnings(&self, mode: Mode) -> Vec<Warning> {
        let mut warnings = self.unknown.clone();
        let detect = Some(self.text("detectLocalMode")).filter(|mode| !mode.is_empty()).unwrap_or("ClusterCIDR");
        for Field(path, kind, meaning) in FIELDS {
            let message = match meaning {
                Meaning::Taken => continue,
                Meaning::TakenIn(modes) if modes.contains(&mode) => continue,
                Meaning::TakenIn(_) => "counts only in another mode, for kube-proxy, too",
                Meaning::TakenByMode(mode) if *mode == detect => continue,
                Meaning::TakenByMode(_) => "counts only in another detectLocalMode",
                Meaning::Nothing(reason) => reason,
            };
            if let Some(value) = self.get(path)
                && kind.is_set(&value.value)
            {
                warnings.push(self.warning(value, (*path).into(), message));
            }
        }
        if mode != Mode::Nftables
            && let Some(value) = self.get("mode").filter(|v| Kind::Text.is_set(&v.value))
        {
            warnings.push(self.warning(value, "mode".into(), OTHER_MODE));
        }
        warnings.sort_by_key(|w| w.at);
        let more = warnings.len().saturating_sub(WARNINGS_MAX) + self.unknown_more;
        warnings.truncate(WARNINGS_MAX);
        if more > 0 {
            let message = format!("{more} more fields mean nothing here and are not listed");
            warnings.push(self.warning(&self.root, "(all)".into(), &message));
        }
        warnings
    }

    /// A field's value, unless it is missing or `null`.
    fn get(&self, path: &str) -> Option<&Spanned<Tree>> {
        find(&self.root, path).filter(|v| !matches!(v.value, Tree::Null))
    }

    /// A text; empty when there is none.
    pub(super) fn text(&self, path: &str) -> &str {
        match self.get(path).map(|v| &v.value) {
            Some(Tree::Text(text)) => text,
            _ => "",
        }
    }

    /// A flag.
    pub(super) fn flag(&self, path: &str) -> Option<bool> {
        match self.get(path)?.value {
            Tree::Flag(flag) => Some(flag),
            _ => None,
        }
    }

    /// A duration in milliseconds, unless it is zero.
    pub(super) fn millis(&self, path: &str) -> Option<u64> {
        duration_ms(self.text(path)).filter(|ms| *ms > 0)
    }

    /// A list of texts; empty when there is none.
    pub(super) fn texts(&self, path: &str) -> Vec<&str> {
        let Some(Tree::List(list)) = self.get(path).map(|v| &v.value) else { return Vec::new() };
        let texts = list.iter().map(|v| match &v.value {
            Tree::Text(text) => text.as_str(),
            _ => "",
        });
        texts.collect()
    }

    /// What is wrong with a field.
    pub(super) fn fault(&self, field: &str, message: impl Into<String>) -> ConfigError {
        match find(&self.root, field) {
            Some(value) => self.fault_at(value, field, message),
            None => ConfigError::missing(&self.file, field, message),
        }
    }

    fn fault_at(&self, value: &Spanned<Tree>, field: &str, message: impl Into<String>) -> ConfigError {
        ConfigError { at: place(value), ..ConfigError::missing(&self.file, field, message) }
    }

    fn warning(&self, value: &Spanned<Tree>, field: String, message: &str) -> Warning {
        Warning { file: self.file.clone(), at: place(value), field, message: message.into() }
    }
}

fn place(value: &Spanned<Tree>) -> (u64, u64) {
    (value.referenced.line(), value.referenced.column())
}

/// The file's own words, fit for a line of a log.
pub(super) fn shown(text: &str) -> String {
    let plain = text.chars().all(|c| c.is_ascii_alphanumeric() || "._-/:,[]".contains(c));
    if plain && !text.is_empty() && text.len() <= SHOWN_MAX {
        return text.into();
    }
    let short: String = text.chars().take(SHOWN_MAX).collect();
    format!("{short:?}{}", if short.len() < text.len() { "…" } else { "" })
}

fn described(value: &Tree) -> String {
    match value {
        Tree::Null => "null".into(),
        Tree::Flag(flag) => flag.to_string(),
        Tree::Whole(n) => n.to_string(),
        Tree::Number(n) => n.to_string(),
        Tree::Text(text) => format!("the text {}", shown(text)),
        Tree::List(_) => "this list".into(),
        Tree::Mapping(_) => "this mapping".into(),
    }
}
