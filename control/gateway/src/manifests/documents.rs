//! Reads the objects of a file, document by document.

use std::path::Path;
use std::sync::Arc;

use nomagic_table::objects::{self, Kind, Object, Unread};
use nomagic_table::problem::{Origin, Problem};
use serde::de::IgnoredAny;
use serde_json::Value;
use serde_saphyr::DuplicateKeyPolicy;

use super::parse::{Parsed, each_part, yaml};
use super::{FileContent, ObjectId};

/// Maximum number of documents in a file.
const DOCUMENTS_MAX: usize = 100_000;
/// Maximum nesting depth of lists.
const LIST_DEPTH_MAX: usize = 2;
/// Maximum number of problems that are kept for a file.
const PROBLEMS_MAX: usize = 1_000;

/// One document of a file.
#[derive(Clone, Copy)]
pub(super) struct RawDocument<'t> {
    /// The line of the first value, 1-based.
    pub(super) line: u32,
    /// Number of lines before `text`.
    pub(super) offset: u32,
    pub(super) text: &'t str,
}

pub(super) fn read(text: &str, file: &Path) -> FileContent {
    let origin = Origin { file: Some(file.into()), line: 0 };
    let mut reader = DocumentReader { content: FileContent::default(), origin, unlisted: 0 };
    let mut count = 0;
    for document in split(text) {
        each_part(document, &mut |part| {
            count += 1;
            if count <= DOCUMENTS_MAX {
                reader.take(part, document.text);
            }
            count <= DOCUMENTS_MAX
        });
        if count > DOCUMENTS_MAX {
            reader.content.lost_unknown = true;
            reader.origin.line = 0;
            reader.fault("", "", format!("only the first {DOCUMENTS_MAX} documents are read; split the file"));
            break;
        }
    }
    reader.finish()
}

/// Splits at `---`, which YAML allows at the start of a line only between documents, and JSON nowhere. A syntax error affects only its own
/// document.
fn split(text: &str) -> Vec<RawDocument<'_>> {
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

/// A document, unless it contains only white space, comments and directives.
fn document(text: &str, offset: u32) -> Option<RawDocument<'_>> {
    let empty = |line: &str| {
        let line = line.trim();
        line.is_empty() || line.starts_with(['#', '%']) || line == "..."
    };
    let first = text.lines().position(|l| !empty(l))?;
    Some(RawDocument { line: offset + first as u32 + 1, offset, text })
}

/// The line of each item of a list; empty if the document is not a list.
fn item_lines(value: &Value, document: &RawDocument<'_>) -> Vec<u32> {
    #[derive(serde::Deserialize)]
    struct Items {
        items: Vec<serde_saphyr::Spanned<IgnoredAny>>,
    }
    if value.get("items").is_none_or(|i| !i.is_array()) {
        return Vec::new();
    }
    let items = yaml::<Items>(document.text, DuplicateKeyPolicy::LastWins);
    items.map_or(Vec::new(), |i| i.items.iter().map(|s| document.offset + s.referenced.line() as u32).collect())
}

/// What a Helm template has and nothing else.
const TEMPLATE: &str = "{{";
const TEMPLATE_WORDS: &str = "`{{` looks like a Helm template: give nomagic the output of `helm template`";

struct DocumentReader {
    content: FileContent,
    /// Position of the current object.
    origin: Origin,
    /// Number of problems beyond the limit.
    unlisted: usize,
}

impl DocumentReader {
    fn fault(&mut self, object: &str, field: &str, message: String) {
        let problem = Problem { origin: self.origin.clone(), object: object.into(), field: field.into(), message };
        self.problem(problem);
    }

    fn problem(&mut self, problem: Problem) {
        if self.content.problems.len() < PROBLEMS_MAX {
            self.content.problems.push(problem);
        } else {
            self.unlisted += 1;
        }
    }

    fn finish(mut self) -> FileContent {
        if self.unlisted > 0 {
            let origin = Origin { line: 0, ..self.origin };
            let message = format!("{} more problems of this file are not listed", self.unlisted);
            self.content.problems.push(Problem { origin, message, ..Problem::default() });
        }
        self.content
    }

    /// Reads a part of a document.
    fn take(&mut self, part: Parsed<'_>, document: &str) {
        match part {
            Parsed::Value { value: Value::Null, .. } => {}
            Parsed::Value { value, part, twice } => {
                if let Some((line, key)) = twice {
                    self.origin.line = line;
                    self.fault(
                        &named(&value),
                        "",
                        format!("the key {key:?} is given twice in one mapping; as in kubectl, the last one counts"),
                    );
                }
                self.origin.line = part.line;
                let lines = item_lines(&value, &part);
                self.add(value, None, &lines, 0);
            }
            Parsed::Unreadable { line, message } => {
                self.origin.line = line;
                self.content.lost_unknown = true;
                let message = if document.contains(TEMPLATE) { TEMPLATE_WORDS.into() } else { message };
                self.fault("", "", format!("{message}; this document is skipped"));
            }
        }
    }

    /// Adds an object, or the items of a list. `inherited` are the version and kind that a typed list implies for items without their own.
    fn add(&mut self, mut value: Value, inherited: Option<(&str, &str)>, lines: &[u32], depth: usize) {
        if !value.is_object() {
            return self.fault("", "", "not a Kubernetes object: a mapping with apiVersion and kind is expected; it is skipped".into());
        }
        let own = |v: &Value, name: &str| v.get(name).and_then(Value::as_str).map(str::to_string);
        let version = own(&value, "apiVersion").or(inherited.map(|(v, _)| v.into())).unwrap_or_default();
        let kind = own(&value, "kind").or(inherited.map(|(_, k)| k.into())).unwrap_or_default();
        if kind.is_empty() {
            return self.fault("", "kind", "missing: every Kubernetes object has a kind; it is skipped".into());
        }
        if let (Some(item_kind), Some(Value::Array(items))) = (kind.strip_suffix("List"), value.get_mut("items").map(Value::take)) {
            return self.add_list(&version, item_kind, items, lines, depth);
        }
        match Kind::ALL.into_iter().find(|k| k.to_string() == kind) {
            Some(known) if known.version() == version => self.add_object(known, value),
            Some(known) if version.is_empty() => {
                let message = format!("missing: {} is expected; the object is skipped", known.version());
                self.fault(&named(&value), "apiVersion", message);
            }
            Some(known) if group(known.version()) == group(&version) => {
                let expected = known.version();
                self.fault(&named(&value), "apiVersion", format!("{version:?} is not supported, only {expected}; the object is skipped"));
            }
            None if kind == objects::ENDPOINTS && version == "v1" => self.add_endpoints(value),
            // Another API group's kind of the same name, such as Knative's Service.
            _ => self.content.ignored += 1,
        }
    }

    fn add_list(&mut self, version: &str, item_kind: &str, items: Vec<Value>, lines: &[u32], depth: usize) {
        if depth == LIST_DEPTH_MAX {
            return self.fault("", "items", "lists are nested too deeply: the innermost one is skipped".into());
        }
        let inherited = (!item_kind.is_empty()).then_some((version, item_kind));
        for (i, item) in items.into_iter().enumerate() {
            self.origin.line = lines.get(i).copied().unwrap_or(self.origin.line);
            self.add(item, inherited, &[], depth + 1);
        }
    }

    fn add_object(&mut self, kind: Kind, mut value: Value) {
        if kind == Kind::EndpointSlice {
            default_slice(&mut value);
        }
        match objects::read(kind, value, &self.origin) {
            Ok(object) => self.add_read(object),
            Err(unread) => {
                let Unread { key, problem, stand_in, .. } = *unread;
                self.content.stand_ins.extend(stand_in.map(Object::Service));
                self.lost(key.map(|key| ObjectId { kind, key, mirrored: false }), problem);
            }
        }
    }

    fn add_endpoints(&mut self, value: Value) {
        match objects::mirror(value, &self.origin) {
            Ok(slices) => slices.into_iter().for_each(|slice| self.add_read(Object::Slice(Arc::new(slice)))),
            Err((key, problem)) => {
                self.lost(key.map(|key| ObjectId { kind: Kind::EndpointSlice, key, mirrored: true }), *problem);
            }
        }
    }

    fn add_read(&mut self, object: Object) {
        if object.problems().iter().any(|p| p.message.contains(TEMPLATE)) {
            self.fault(&object.label(), "", TEMPLATE_WORDS.into());
        }
        self.content.objects.push(object);
    }

    fn lost(&mut self, id: Option<ObjectId>, problem: Problem) {
        match id {
            Some(id) => self.content.lost.push(id),
            None => self.content.lost_unknown = true,
        }
        if problem.message.contains(TEMPLATE) {
            self.fault(&problem.object, "", TEMPLATE_WORDS.into());
        }
        self.problem(problem);
    }
}

/// Whether a kind is namespaced: those that nomagic reads, and no others matter here.
fn namespaced(kind: &str) -> bool {
    kind == objects::ENDPOINTS || Kind::ALL.iter().any(|k| k.to_string() == kind && k.namespaced())
}

/// Kind and name of an object, as far as it has them.
fn named(value: &Value) -> String {
    let text = |v: Option<&Value>| v.and_then(Value::as_str).unwrap_or("").to_owned();
    let (kind, meta) = (text(value.get("kind")), value.get("metadata"));
    let (namespace, name) = (text(meta.and_then(|m| m.get("namespace"))), text(meta.and_then(|m| m.get("name"))));
    match (name.is_empty(), namespace.is_empty()) {
        (true, _) => kind,
        (false, true) if namespaced(&kind) => format!("{kind} default/{name}"),
        (false, true) => format!("{kind} {name}"),
        (false, false) => format!("{kind} {namespace}/{name}"),
    }
}

/// The API group of an `apiVersion`; "" for the core group.
fn group(version: &str) -> &str {
    version.split_once('/').map_or("", |(group, _)| group)
}

/// Applies the API server's default for port names.
fn default_slice(slice: &mut Value) {
    for port in slice.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut) {
        let name = port.entry("name").or_insert(Value::Null);
        if name.is_null() {
            *name = Value::String(String::new());
        }
    }
}
