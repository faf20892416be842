//! Parses a document as kubectl does: JSON objects, one behind the other, or one YAML value.

use serde_json::Value;
use serde_json::error::Category;
use serde_saphyr::{DuplicateKeyPolicy, Error, NonFiniteFloatPolicy};

use super::documents::RawDocument;

/// Maximum number of values in a document; a list of 100,000 endpoints has about two million.
const NODES_MAX: usize = 8_000_000;
/// Maximum number of values in a document that come from `*alias`.
const ALIASED_MAX: usize = 100_000;

/// A part of a document.
pub(super) enum Parsed<'t> {
    Value {
        value: Value,
        part: RawDocument<'t>,
        /// A key that is given twice: `(line in the file, key)`.
        twice: Option<(u32, String)>,
    },
    Unreadable {
        /// The line in the file.
        line: u32,
        message: String,
    },
}

/// Calls `take` with each part, until it returns false.
pub(super) fn each_part<'t>(document: RawDocument<'t>, take: &mut dyn FnMut(Parsed<'t>) -> bool) {
    let text = document.text.trim_start();
    if !text.starts_with('{') {
        take(parse_yaml(document));
        return;
    }
    let mut objects = JsonObjects { rest: document.text, lines: document.offset };
    let Some(mut next) = objects.next() else { return };
    if let Parsed::Unreadable { .. } = next {
        // YAML has mappings in braces too.
        let yaml = parse_yaml(document);
        let json = text[1..].trim_start().starts_with(['"', '}']);
        if matches!(yaml, Parsed::Value { .. }) || !json {
            take(yaml);
            return;
        }
    }
    while take(next) {
        let Some(following) = objects.next() else { return };
        next = following;
    }
}

/// JSON objects, one behind the other. After an unreadable one it continues at the next line that begins with a brace.
struct JsonObjects<'t> {
    rest: &'t str,
    /// Number of lines before `rest`.
    lines: u32,
}

impl<'t> JsonObjects<'t> {
    fn skip(&mut self, bytes: usize) -> &'t str {
        let (skipped, rest) = self.rest.split_at(bytes);
        self.lines += skipped.matches('\n').count() as u32;
        self.rest = rest;
        skipped
    }
}

impl<'t> Iterator for JsonObjects<'t> {
    type Item = Parsed<'t>;

    fn next(&mut self) -> Option<Parsed<'t>> {
        self.skip(self.rest.len() - self.rest.trim_start().len());
        if self.rest.is_empty() {
            return None;
        }
        let (line, offset) = (self.lines + 1, self.lines);
        let fault = if self.rest.starts_with('{') {
            let mut stream = serde_json::Deserializer::from_str(self.rest).into_iter::<Value>();
            match stream.next()? {
                Ok(value) => {
                    let text = self.skip(stream.byte_offset());
                    return Some(Parsed::Value { value, part: RawDocument { line, offset, text }, twice: None });
                }
                Err(e) => (e.line(), json_words(&e)),
            }
        } else {
            (1, "after a JSON object only another one, or a line `---`, may follow")
        };
        let (fault_line, words) = fault;
        let before: usize = self.rest.split_inclusive('\n').take(fault_line.saturating_sub(1)).map(str::len).sum();
        // The line break before the fault's line counts: the next object may begin there.
        let from = before.saturating_sub(1);
        let next = self.rest.get(from..).and_then(|rest| rest.find("\n{")).map_or(self.rest.len(), |at| from + at + 1);
        self.skip(next);
        Some(Parsed::Unreadable { line: offset + fault_line.max(1) as u32, message: format!("not readable as JSON: {words}") })
    }
}

/// An error in words for people.
fn json_words(error: &serde_json::Error) -> &'static str {
    const WORDS: [(&str, &str); 7] = [
        ("expected `,` or `", "a comma or a closing bracket is missing here"),
        ("expected `:`", "a colon is missing behind a key"),
        ("expected value", "a value is missing here"),
        ("key must be", "a key is missing, or not in double quotes"),
        ("trailing comma", "a comma too many"),
        ("control character", "a text does not end on its line: its closing quote is missing"),
        ("recursion limit", "nested too deeply"),
    ];
    if error.classify() == Category::Eof {
        return "it ends in the middle: a closing bracket or quote is missing";
    }
    let text = error.to_string();
    WORDS.iter().find(|(start, _)| text.starts_with(start)).map_or("a mistake in its form on this line", |(_, words)| words)
}

fn options(duplicate_keys: DuplicateKeyPolicy, words: TruthWords) -> serde_saphyr::Options {
    serde_saphyr::options! {
        with_snippet: false,
        strict_booleans: words == TruthWords::Yaml12,
        // As in kubectl: 0120 is 80.
        legacy_octal_numbers: true,
        // A label such as 12e4567, which is no number of 64 bits, costs nothing.
        non_finite_float_policy: NonFiniteFloatPolicy::AsString,
        duplicate_keys: duplicate_keys,
        budget: serde_saphyr::budget! { max_nodes: NODES_MAX, max_events: 3 * NODES_MAX, max_depth: 64 },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: ALIASED_MAX },
    }
}

/// The words for truth values.
#[derive(Clone, Copy, PartialEq, Eq)]
enum TruthWords {
    /// Only `true` and `false`: a namespace may be named `n`, a port `on`.
    Yaml12,
    /// Also `yes`, `off` and so on, as in kubectl.
    Yaml11,
}

/// The keys of truth values that nomagic reads.
const TRUTHS: [&str; 3] = ["ready", "serving", "terminating"];

/// Replaces YAML 1.1's unquoted words for truth values where one is expected.
fn read_truths(text: &str, duplicates: DuplicateKeyPolicy, value: &mut Value) {
    if has_truth_word(value)
        && let Ok(other) = serde_saphyr::from_str_with_options::<Value>(text, options(duplicates, TruthWords::Yaml11))
    {
        take_truths(value, other);
    }
}

fn has_truth_word(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.iter().any(|(key, v)| TRUTHS.contains(&key.as_str()) && v.is_string() || has_truth_word(v)),
        Value::Array(list) => list.iter().any(has_truth_word),
        _ => false,
    }
}

/// `other` is the same document with YAML 1.1's words.
fn take_truths(value: &mut Value, other: Value) {
    match (value, other) {
        (Value::Object(map), Value::Object(mut others)) => {
            for (key, value) in map.iter_mut() {
                match others.remove(key) {
                    Some(truth @ Value::Bool(_)) if TRUTHS.contains(&key.as_str()) => *value = truth,
                    Some(other) => take_truths(value, other),
                    None => {}
                }
            }
        }
        (Value::Array(list), Value::Array(others)) => list.iter_mut().zip(others).for_each(|(value, other)| take_truths(value, other)),
        _ => {}
    }
}

fn parse_yaml(part: RawDocument<'_>) -> Parsed<'_> {
    let line = |e: &Error| e.location().map_or(part.line, |l| part.offset + l.line() as u32);
    let unreadable = |e: &Error| Parsed::Unreadable { line: line(e), message: format!("not readable as YAML: {}", yaml_words(e)) };
    let fault = match yaml::<Value>(part.text, DuplicateKeyPolicy::Error) {
        Ok(mut value) => {
            read_truths(part.text, DuplicateKeyPolicy::Error, &mut value);
            return Parsed::Value { value, part, twice: None };
        }
        Err(fault) => fault,
    };
    let Error::DuplicateMappingKey { key, .. } = fault.without_snippet() else { return unreadable(&fault) };
    match yaml::<Value>(part.text, DuplicateKeyPolicy::LastWins) {
        Ok(mut value) => {
            read_truths(part.text, DuplicateKeyPolicy::LastWins, &mut value);
            Parsed::Value { value, twice: Some((line(&fault), key.clone().unwrap_or_default())), part }
        }
        Err(other) => unreadable(&other),
    }
}

/// Parses YAML.
pub(super) fn yaml<'t, T: serde::Deserialize<'t>>(text: &'t str, duplicates: DuplicateKeyPolicy) -> Result<T, Error> {
    serde_saphyr::from_str_with_options(text, options(duplicates, TruthWords::Yaml12))
}

/// An error in words for people.
fn yaml_words(error: &Error) -> String {
    match error.without_snippet() {
        Error::Budget { .. }
        | Error::AliasReplayLimitExceeded { .. }
        | Error::AliasReplayCounterOverflow { .. }
        | Error::AliasExpansionLimitExceeded { .. }
        | Error::AliasReplayStackDepthExceeded { .. } => "too large, nested too deeply, or its aliases (*name) stand for too much".into(),
        Error::UnknownAnchor { .. } => "an alias (*name) without its anchor (&name) before it".into(),
        Error::RecursiveReferencesRequireWeakTypes { .. } => "an alias (*name) inside of its own anchor (&name)".into(),
        Error::Unexpected { .. } | Error::UnexpectedContainerEndWhileReadingKeyNode { .. } => {
            "a list or mapping where plain text is expected, such as a key; text that begins with { or [ needs quotes".into()
        }
        _ => crate::config::error::message(error),
    }
}
