//! What was wrong with an object, said so that its author can find and mend it.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// Where an object was read.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Origin {
    /// The file; `None` for objects that came from elsewhere.
    pub file: Option<Arc<Path>>,
    /// The line on which the object starts, from 1; 0 when unknown.
    pub line: u32,
}

impl fmt::Display for Origin {
    /// `dir/nginx.yaml:12`, or nothing when the object came from no file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.file, self.line) {
            (None, _) => Ok(()),
            (Some(file), 0) => f.write_str(&shown(&file.to_string_lossy())),
            (Some(file), line) => write!(f, "{}:{line}", shown(&file.to_string_lossy())),
        }
    }
}

/// One thing that was wrong and what was done about it. Everything else went on.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Problem {
    /// Where the object was read.
    pub origin: Origin,
    /// Its kind and name (`Service default/nginx`); empty when it could not be read.
    pub object: String,
    /// The field (`spec.ports[0].port`); empty when it concerns the whole object.
    pub field: String,
    /// What was wrong, what is allowed, what happens now.
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

/// Characters of a text from outside that are shown at the most: so many from its beginning, and so many from its end, where a message
/// says what happens now.
const SHOWN_MAX: [usize; 2] = [400, 200];

/// A text from outside as it may stand in a log or on a page: of limited length, and without characters that would act on a terminal or
/// look like another line. Quotes and backslashes stay: much is quoted already.
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

/// Whether a character shows as itself, wherever it is printed.
pub fn printable(c: char) -> bool {
    matches!(c, '"' | '\'' | '\\') || c.escape_debug().eq(std::iter::once(c))
}

/// Problems of one object at the most; more are counted, not listed.
const NOTES_MAX: usize = 32;

/// Gathers the problems of one object.
#[derive(Debug)]
pub struct Notes {
    origin: Origin,
    object: String,
    problems: Vec<Problem>,
    more: usize,
}

impl Notes {
    /// Nothing wrong with `object` yet.
    pub fn new(origin: &Origin, object: String) -> Notes {
        Notes { origin: origin.clone(), object, problems: Vec::new(), more: 0 }
    }

    /// One more problem.
    pub fn add(&mut self, field: impl Into<String>, message: impl Into<String>) {
        if self.problems.len() == NOTES_MAX {
            self.more += 1;
            return;
        }
        let problem = Problem { origin: self.origin.clone(), object: self.object.clone(), field: field.into(), message: message.into() };
        self.problems.push(problem);
    }

    /// All that was wrong.
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
    fn says_where_what_and_which_field() {
        let origin = Origin { file: Some(Path::new("m/nginx.yaml").into()), line: 7 };
        let mut notes = Notes::new(&origin, "Service a/b".into());
        notes.add("spec.ports", "empty");
        assert_eq!(notes.finish()[0].to_string(), "m/nginx.yaml:7: Service a/b: spec.ports: empty");
        let mut notes = Notes::new(&Origin::default(), String::new());
        notes.add("", "gone");
        assert_eq!(notes.finish()[0].to_string(), "gone");
    }

    #[test]
    fn nothing_from_outside_acts_on_a_terminal() {
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
    fn a_flood_of_problems_is_counted() {
        let mut notes = Notes::new(&Origin::default(), "EndpointSlice a/b".into());
        (0..100).for_each(|i| notes.add(format!("endpoints[{i}]"), "bad"));
        let problems = notes.finish();
        assert_eq!(problems.len(), NOTES_MAX + 1);
        assert!(problems[NOTES_MAX].message.starts_with("68 more"));
    }
}
