//! Problems of objects: where the fault is, what is allowed, and how it was handled.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// Where an object was read.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Origin {
    /// `None` for objects from an API server.
    pub file: Option<Arc<Path>>,
    /// First line of the object, from 1; 0 if unknown.
    pub line: u32,
}

impl fmt::Display for Origin {
    /// `dir/nginx.yaml:12`; empty without a file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.file, self.line) {
            (None, _) => Ok(()),
            (Some(file), 0) => f.write_str(&shown(&file.to_string_lossy())),
            (Some(file), line) => write!(f, "{}:{line}", shown(&file.to_string_lossy())),
        }
    }
}

/// A fault of an object, with its handling. The rest of the object and other objects are not affected.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Problem {
    pub origin: Origin,
    /// Kind and name (`Service default/nginx`); empty if they could not be read.
    pub object: String,
    /// The field (`spec.ports[0].port`); empty for the whole object.
    pub field: String,
    /// The fault, what is allowed, and how it was handled.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.origin.file.is_some() {
            write!(f, "{}: ", self.origin)?;
        }
        for part in [&self.object, &self.field] {
            if !part.is_empty() {
                write!(f, "{}: ", shown(part))?;
            }
        }
        f.write_str(&shown(&self.message))
    }
}

/// Maximum number of characters shown of untrusted text: from its beginning, and from its end, where a message has the handling.
const SHOWN_MAX: [usize; 2] = [400, 200];

/// Makes untrusted text safe for logs and pages: limits its length and escapes control characters and line breaks. Quotes and backslashes
/// stay, because much text is quoted already.
pub fn shown(text: &str) -> String {
    let cut = text.chars().count().checked_sub(SHOWN_MAX.iter().sum()).filter(|&n| n > 0);
    let mut out = String::new();
    let mut push = |c: char| if printable(c) { out.push(c) } else { out.extend(c.escape_debug()) };
    let Some(cut) = cut else {
        text.chars().for_each(push);
        return out;
    };
    text.chars().take(SHOWN_MAX[0]).for_each(&mut push);
    format!("[... {cut} characters ...]").chars().for_each(&mut push);
    text.chars().skip(SHOWN_MAX[0] + cut).for_each(push);
    out
}

/// Whether a character can be printed unescaped.
pub fn printable(c: char) -> bool {
    matches!(c, '"' | '\'' | '\\') || c.escape_debug().eq(std::iter::once(c))
}

/// Maximum number of problems listed for one object; further ones are counted.
const NOTES_MAX: usize = 32;

/// Collects the problems of one object.
#[derive(Debug)]
pub struct Notes {
    origin: Origin,
    object: String,
    problems: Vec<Problem>,
    more: usize,
}

impl Notes {
    /// No problems of `object` yet.
    pub fn new(origin: &Origin, object: String) -> Notes {
        Notes { origin: origin.clone(), object, problems: Vec::new(), more: 0 }
    }

    /// Adds a problem.
    pub fn add(&mut self, field: impl Into<String>, message: impl Into<String>) {
        if self.problems.len() == NOTES_MAX {
            self.more += 1;
            return;
        }
        let problem = Problem { origin: self.origin.clone(), object: self.object.clone(), field: field.into(), message: message.into() };
        self.problems.push(problem);
    }

    /// All problems.
    pub fn finish(mut self) -> Vec<Problem> {
        if self.more > 0 {
            let message = format!("{} more problems of the same object are not listed", self.more);
            self.problems.push(Problem { origin: self.origin, object: self.object, field: String::new(), message });
        }
        self.problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_names_file_object_and_field() {
        let origin = Origin { file: Some(Path::new("m/nginx.yaml").into()), line: 7 };
        let mut notes = Notes::new(&origin, "Service a/b".into());
        notes.add("spec.ports", "empty");
        assert_eq!(notes.finish()[0].to_string(), "m/nginx.yaml:7: Service a/b: spec.ports: empty");
        let mut notes = Notes::new(&Origin::default(), String::new());
        notes.add("", "gone");
        assert_eq!(notes.finish()[0].to_string(), "gone");
    }

    #[test]
    fn untrusted_text_cannot_control_a_terminal() {
        assert_eq!(shown("a\tb\nc\u{1b}[31m\0\u{202e}\u{7f}"), r"a\tb\nc\u{1b}[31m\0\u{202e}\u{7f}");
        assert_eq!(shown("\"x\" is '\\n'; Größe 日本"), "\"x\" is '\\n'; Größe 日本");
        let long = format!("{}\n{}; it is skipped", "é".repeat(600), "x".repeat(600));
        let short = shown(&long);
        assert!(
            short.starts_with(&"é".repeat(400)) && short.ends_with("x; it is skipped") && short.contains("é[... 616 characters ...]x"),
            "{short}"
        );
        assert_eq!(shown(&"y".repeat(600)), "y".repeat(600));
        let (object, field, message) = ("Service a\nb".into(), "x\r".into(), "y\u{1b}".into());
        let problem = Problem { origin: Origin::default(), object, field, message };
        assert_eq!(problem.to_string(), r"Service a\nb: x\r: y\u{1b}");
        let origin = Origin { file: Some(Path::new("m/a\nb.yaml").into()), line: 1 };
        assert_eq!(origin.to_string(), r"m/a\nb.yaml:1");
    }

    #[test]
    fn problems_beyond_the_limit_are_counted() {
        let mut notes = Notes::new(&Origin::default(), "EndpointSlice a/b".into());
        (0..100).for_each(|i| notes.add(format!("endpoints[{i}]"), "bad"));
        let problems = notes.finish();
        assert_eq!(problems.len(), NOTES_MAX + 1);
        assert!(problems[NOTES_MAX].message.starts_with("68 more"));
    }
}
