//! From a file's text to objects, document by document.

use std::path::Path;
use std::sync::Arc;

use nomagic_table::objects::{self, Kind};
use nomagic_table::problem::{Origin, Problem};
use serde::de::IgnoredAny;
use serde_json::Value;

use super::Content;

/// Documents in a file at the most.
const DOCUMENTS_MAX: usize = 100_000;
/// Lists in lists at the most.
const LIST_DEPTH_MAX: usize = 2;
/// Values in a document at the most: a list of 100,000 endpoints has about two million.
const NODES_MAX: usize = 8_000_000;
/// Values that `*alias` may repeat in a document at the most.
const ALIASED_MAX: usize = 100_000;

/// One document of a file.
struct Document<'t> {
    /// The line of its first value, from 1.
    line: u32,
    /// Lines before `text`.
    offset: u32,
    text: &'t str,
}

/// Reads all documents of a file.
pub(super) fn read(text: &str, file: &Path) -> Content {
    let file: Arc<Path> = file.into();
    let mut reader = Reader { content: Content::default(), origin: Origin { file: Some(file.clone()), line: 0 } };
    let documents = if is_json(&file) { whole(text) } else { split(text) };
    if documents.len() > DOCUMENTS_MAX {
        reader.fault("", "", format!("{} documents: the first {DOCUMENTS_MAX} are read; split the file", documents.len()));
    }
    for document in documents.iter().take(DOCUMENTS_MAX) {
        reader.origin.line = document.line;
        let parsed = if is_json(&file) { parse_json(document) } else { parse_yaml(document) };
        match parsed {
            Ok(Value::Null) => {}
            Ok(value) => {
                let lines = item_lines(&value, document);
                reader.take(value, None, &lines, 0);
            }
            Err((line, message)) => {
                reader.origin.line = line;
                reader.content.lost_unknown = true;
                reader.fault("", "", format!("{message}; this document is skipped"));
            }
        }
    }
    reader.content
}

fn is_json(file: &Path) -> bool {
    file.extension().is_some_and(|e| e.eq_ignore_ascii_case("json"))
}

fn whole(text: &str) -> Vec<Document<'_>> {
    let text = text.trim_start_matches('\u{feff}');
    if text.trim().is_empty() { Vec::new() } else { vec![Document { line: 1, offset: 0, text }] }
}

/// Cuts at `---`, which YAML allows at the start of a line nowhere but between documents. So a fault in one document stays in it.
fn split(text: &str) -> Vec<Document<'_>> {
    let text = text.trim_start_matches('\u{feff}');
    let mut documents = Vec::new();
    let (mut start, mut offset) = (0, 0);
    let mut position = 0;
    for (number, line) in (0u32..).zip(text.split_inclusive('\n')) {
        let marker = line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        if marker {
            documents.extend(document(&text[start..position], offset));
            (start, offset) = (position + 3, number);
        }
        position += line.len();
    }
    documents.extend(document(&text[start..], offset));
    documents
}

/// A document, unless there is nothing in it but blanks, comments and directives.
fn document(text: &str, offset: u32) -> Option<Document<'_>> {
    let empty = |line: &str| {
        let line = line.trim();
        line.is_empty() || line.starts_with(['#', '%']) || line == "..."
    };
    let first = text.lines().position(|l| !empty(l))?;
    Some(Document { line: offset + first as u32 + 1, offset, text })
}

fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        with_snippet: false,
        // As YAML 1.2 has it: a namespace may be called `n`, a port `on`.
        strict_booleans: true,
        budget: serde_saphyr::budget! { max_nodes: NODES_MAX, max_events: 3 * NODES_MAX, max_depth: 64 },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: ALIASED_MAX },
    }
}

/// `Err((line in the file, message))`.
fn parse_yaml(document: &Document<'_>) -> Result<Value, (u32, String)> {
    serde_saphyr::from_str_with_options(document.text, options()).map_err(|e| {
        let line = e.location().map_or(document.line, |l| document.offset + l.line() as u32);
        (line, format!("not readable as YAML: {}", crate::config::error::message(&e)))
    })
}

fn parse_json(document: &Document<'_>) -> Result<Value, (u32, String)> {
    serde_json::from_str(document.text).map_err(|e| (e.line() as u32, format!("not readable as JSON: {e}")))
}

/// The line of each item of a list; empty when the document is no list.
fn item_lines(value: &Value, document: &Document<'_>) -> Vec<u32> {
    #[derive(serde::Deserialize)]
    struct Items {
        items: Vec<serde_saphyr::Spanned<IgnoredAny>>,
    }
    if value.get("items").is_none_or(|i| !i.is_array()) {
        return Vec::new();
    }
    let items = serde_saphyr::from_str_with_options::<Items>(document.text, options());
    items.map_or(Vec::new(), |i| i.items.iter().map(|s| document.offset + s.referenced.line() as u32).collect())
}

struct Reader {
    content: Content,
    /// Of the object at hand.
    origin: Origin,
}

impl Reader {
    fn fault(&mut self, object: &str, field: &str, message: String) {
        let problem = Problem { origin: self.origin.clone(), object: object.into(), field: field.into(), message };
        self.content.problems.push(problem);
    }

    /// Takes an object, or a list of them. `inherited`: version and kind that a typed list gives to items without their own.
    fn take(&mut self, mut value: Value, inherited: Option<(&str, &str)>, lines: &[u32], depth: usize) {
        if !value.is_object() {
            return self.fault("", "", "not a Kubernetes object: a mapping with apiVersion and kind is expected; it is skipped".into());
        }
        let own = |v: &Value, name: &str| v.get(name).and_then(Value::as_str).map(str::to_string);
        let version = own(&value, "apiVersion").or(inherited.map(|(v, _)| v.into())).unwrap_or_default();
        let kind = own(&value, "kind").or(inherited.map(|(_, k)| k.into())).unwrap_or_default();
        if kind.is_empty() {
            return self.fault("", "kind", "missing: every Kubernetes object names its kind; it is skipped".into());
        }
        if let (Some(item_kind), Some(Value::Array(items))) = (kind.strip_suffix("List"), value.get_mut("items").map(Value::take)) {
            return self.take_list(&version, item_kind, items, lines, depth);
        }
        match Kind::ALL.into_iter().find(|k| k.to_string() == kind) {
            Some(known) if known.version() == version => self.take_object(known, value),
            Some(known) => {
                let wanted = known.version();
                self.fault(&kind, "apiVersion", format!("{version:?}: {wanted} is read; the object is skipped"));
            }
            None => self.content.ignored += 1,
        }
    }

    fn take_list(&mut self, version: &str, item_kind: &str, items: Vec<Value>, lines: &[u32], depth: usize) {
        if depth == LIST_DEPTH_MAX {
            return self.fault("", "items", "lists in lists in lists: the innermost one is skipped".into());
        }
        let inherited = (!item_kind.is_empty()).then_some((version, item_kind));
        for (i, item) in items.into_iter().enumerate() {
            self.origin.line = lines.get(i).copied().unwrap_or(self.origin.line);
            self.take(item, inherited, &[], depth + 1);
        }
    }

    fn take_object(&mut self, kind: Kind, mut value: Value) {
        if kind == Kind::EndpointSlice {
            default_slice(&mut value);
        }
        match objects::read(kind, value, &self.origin) {
            Ok(object) => self.content.objects.push(object),
            Err(unread) => {
                match unread.key {
                    Some(key) => self.content.lost.push((kind, key)),
                    None => self.content.lost_unknown = true,
                }
                self.content.problems.push(unread.problem);
            }
        }
    }
}

/// What the API server fills in when a slice is written: the names of ports.
fn default_slice(slice: &mut Value) {
    for port in slice.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut) {
        let name = port.entry("name").or_insert(Value::Null);
        if name.is_null() {
            *name = Value::String(String::new());
        }
    }
}
