//! The parts of a report, limited in size, and the tar file that has them.

use std::io::{self, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::replace::Replacer;

/// The version of `manifest.json`. It grows with each incompatible change.
const SCHEMA: u32 = 1;
/// Maximum size of all parts together, without the tar file's headers.
pub const BUNDLE_MAX: usize = 32 << 20;
/// Maximum size of a part, unless it says otherwise.
pub const PART_MAX: usize = 2 << 20;
/// The directory in the tar file.
const DIRECTORY: &str = "nomagic-report";

/// A part of a report.
#[derive(Debug)]
struct Part {
    name: String,
    what: &'static str,
    bytes: Vec<u8>,
    /// What was cut off.
    cut: Option<String>,
    /// Why the part is missing, or not whole.
    error: Option<String>,
}

/// A report.
#[derive(Debug)]
pub struct Bundle {
    parts: Vec<Part>,
    left: usize,
    replacer: Option<Replacer>,
    made_at_s: u64,
}

/// A part's name and meaning, and its maximum size.
#[derive(Clone, Copy, Debug)]
pub struct About {
    name: &'static str,
    what: &'static str,
    max: usize,
}

impl About {
    pub const fn new(name: &'static str, what: &'static str) -> About {
        About { name, what, max: PART_MAX }
    }

    /// The maximum size.
    pub const fn max(self) -> usize {
        self.max
    }

    pub const fn up_to(self, max: usize) -> About {
        About { max, ..self }
    }
}

impl Bundle {
    pub fn new(replacer: Option<Replacer>) -> Bundle {
        let made_at_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Bundle { parts: Vec::new(), left: BUNDLE_MAX, replacer, made_at_s }
    }

    /// Adds lines of text, or says why there are none.
    pub fn add_text(&mut self, about: About, text: Result<String, String>) {
        match text {
            Ok(text) => {
                let text = self.replaced(text);
                self.push(about, text, None);
            }
            Err(error) => self.push(about, String::new(), Some(error)),
        }
    }

    /// Adds a JSON value, or says why there is none.
    pub fn add_json(&mut self, about: About, value: Result<Value, String>) {
        match value {
            Ok(mut value) => {
                if let Some(replacer) = &mut self.replacer {
                    replacer.replace_json(&mut value);
                }
                // A value has only string keys, so this cannot fail.
                let text = serde_json::to_string_pretty(&value).unwrap_or_default();
                self.push(about, text + "\n", None);
            }
            Err(error) => self.push(about, String::new(), Some(error)),
        }
    }

    /// Adds a command's output or another text that is cut already, `cut`, or incomplete for a reason.
    pub fn add_partial(&mut self, about: About, text: String, error: Option<String>) {
        let text = self.replaced(text);
        self.push(about, text, error);
    }

    /// Names that a part was cut before it was added.
    pub fn note_cut(&mut self, words: &str) {
        if let Some(part) = self.parts.last_mut() {
            part.cut.get_or_insert_with(|| words.to_owned());
        }
    }

    fn replaced(&mut self, text: String) -> String {
        match &mut self.replacer {
            Some(replacer) => replacer.replace(&text),
            None => text,
        }
    }

    fn push(&mut self, about: About, mut text: String, error: Option<String>) {
        let error = error.map(|error| self.replaced(error));
        let max = about.max.min(self.left);
        let cut = (text.len() > max).then(|| {
            let whole = text.len();
            text.truncate(place_to_cut(&text, max));
            format!("{} of {whole} bytes are left out at the end", whole - text.len())
        });
        self.left -= text.len();
        self.parts.push(Part { name: about.name.into(), what: about.what, bytes: text.into_bytes(), cut, error });
    }

    /// The names of parts that are missing or not whole.
    pub fn incomplete(&self) -> impl Iterator<Item = (&str, &str)> {
        self.parts.iter().filter_map(|part| Some((part.name.as_str(), part.error.as_deref().or(part.cut.as_deref())?)))
    }

    /// Writes the tar file.
    pub fn write(&self, out: impl Write) -> io::Result<()> {
        let mut tar = tar::Builder::new(out);
        let json = serde_json::to_string_pretty(&self.manifest()).map_err(io::Error::other)? + "\n";
        let mut add = |name: &str, bytes: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o600);
            header.set_mtime(self.made_at_s);
            tar.append_data(&mut header, format!("{DIRECTORY}/{name}"), bytes)
        };
        add("manifest.txt", self.manifest_text().as_bytes())?;
        add("manifest.json", json.as_bytes())?;
        // An empty file would say that there is nothing; a missing one is named in the manifest.
        for part in self.parts.iter().filter(|part| !part.bytes.is_empty() || part.error.is_none()) {
            add(&part.name, &part.bytes)?;
        }
        tar.into_inner()?.flush()
    }

    fn manifest(&self) -> Value {
        let parts = self
            .parts
            .iter()
            .map(|part| json!({ "name": part.name, "what": part.what, "bytes": part.bytes.len(), "cut": part.cut, "error": part.error }));
        json!({
            "schema": SCHEMA,
            "version": env!("CARGO_PKG_VERSION"),
            "made_at_s": self.made_at_s,
            "addresses_replaced": self.replacer.is_some(),
            "parts": parts.collect::<Vec<Value>>(),
        })
    }

    fn manifest_text(&self) -> String {
        let addresses = match self.replacer {
            Some(_) => "IP and MAC addresses are replaced, each one by the same stand-in everywhere. Names are not.",
            None => "IP and MAC addresses are the real ones (--replace-addresses replaces them).",
        };
        let mut text = format!("Report of nomagic {}\n{addresses}\n\n", env!("CARGO_PKG_VERSION"));
        for Part { name, what, bytes, cut, error } in &self.parts {
            text += &format!("{name:<28} {:>9} bytes  {what}\n", bytes.len());
            for (word, note) in [("cut", cut), ("failed", error)] {
                text += &note.as_ref().map_or(String::new(), |note| format!("{:<28} {word}: {}\n", "", note.escape_debug()));
            }
        }
        text
    }
}

/// Where a text is cut: after the last line that fits, else after the last comma (some JSON has one line only).
fn place_to_cut(text: &str, max: usize) -> usize {
    let mut end = max;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let head = &text[..end];
    head.rfind('\n').or_else(|| head.rfind(',')).map_or(end, |at| at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(bundle: &Bundle) -> Vec<(String, String)> {
        let mut bytes = Vec::new();
        bundle.write(&mut bytes).unwrap();
        let mut archive = tar::Archive::new(bytes.as_slice());
        let read = |entry: io::Result<tar::Entry<'_, &[u8]>>| {
            let mut entry = entry.unwrap();
            let mut text = String::new();
            io::Read::read_to_string(&mut entry, &mut text).unwrap();
            (entry.path().unwrap().display().to_string(), text)
        };
        archive.entries().unwrap().map(read).collect()
    }

    #[test]
    fn parts_are_limited_and_what_fails_costs_nothing_else() {
        let mut bundle = Bundle::new(None);
        let lines = "0123456789\n".repeat(100);
        bundle.add_text(About::new("cut.txt", "lines").up_to(105), Ok(lines));
        bundle.add_text(About::new("gone.txt", "nothing"), Err("no\nsuch thing".into()));
        bundle.add_json(About::new("some.json", "a value"), Ok(json!({"a": [1]})));
        let files = written(&bundle);
        let names: Vec<&str> = files.iter().map(|(name, _)| name.trim_start_matches("nomagic-report/")).collect();
        assert_eq!(names, ["manifest.txt", "manifest.json", "cut.txt", "some.json"]);
        assert_eq!(files[2].1, "0123456789\n".repeat(9));
        let manifest: Value = serde_json::from_str(&files[1].1).unwrap();
        assert_eq!(manifest["parts"][0]["cut"], "1001 of 1100 bytes are left out at the end");
        assert_eq!((&manifest["parts"][1]["error"], &manifest["parts"][1]["bytes"]), (&json!("no\nsuch thing"), &json!(0)));
        assert!(files[0].1.contains("failed: no\\nsuch thing") && files[0].1.contains("real ones"), "{}", files[0].1);
        assert_eq!(bundle.incomplete().map(|(name, _)| name).collect::<Vec<_>>(), ["cut.txt", "gone.txt"]);
    }

    #[test]
    fn all_parts_together_are_limited() {
        let mut bundle = Bundle::new(None);
        for _ in 0..20 {
            bundle.add_text(About::new("large.txt", "lines"), Ok("é,".repeat(1 << 20)));
        }
        let mut bytes = Vec::new();
        bundle.write(&mut bytes).unwrap();
        assert!(bytes.len() < BUNDLE_MAX + (1 << 20), "{}", bytes.len());
        assert!(bundle.parts[0].bytes.ends_with(b",") && bundle.parts[0].bytes.len() <= PART_MAX);
        assert!(bundle.parts[19].bytes.is_empty() && bundle.parts[19].cut.is_some());
    }
}
