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
            (Some(file), 0) => write!(f, "{}", file.display()),
            (Some(file), line) => write!(f, "{}:{line}", file.display()),
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
                write!(f, "{part}: ")?;
            }
        }
        f.write_str(&self.message)
    }
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
    fn a_flood_of_problems_is_counted() {
        let mut notes = Notes::new(&Origin::default(), "EndpointSlice a/b".into());
        (0..100).for_each(|i| notes.add(format!("endpoints[{i}]"), "bad"));
        let problems = notes.finish();
        assert_eq!(problems.len(), NOTES_MAX + 1);
        assert!(problems[NOTES_MAX].message.starts_with("68 more"));
    }
}
