//! The file of the deny list: one prefix a line. A bad line does not affect other lines, and a file that cannot be read keeps the last list in force.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nomagic_core::tuple::Prefix;

use super::{PREFIX, parse_prefix};

/// Maximum size of the file, bytes: 64 for each prefix that has room in the deny list.
pub const FILE_BYTES_MAX: u64 = 4 << 20;
/// Maximum number of bad lines that are named; the rest is counted.
const BAD_LINES_NAMED_MAX: usize = 20;
/// Maximum length of a line's text in a message, characters.
const QUOTED_CHARS_MAX: usize = 60;

/// A line's number, from 1, and what it says.
type Line<T> = (usize, T);
/// Size, modification time and inode: if they stay, so does the content.
type Stamp = (u64, i64, i64, u64);

/// The file, and what it said when it could last be read.
#[derive(Debug)]
pub struct DenyFile {
    path: PathBuf,
    /// `Err`: why it cannot be read.
    stamp: Result<Stamp, String>,
    /// Another stamp than that, seen at the last look.
    seen: Option<Stamp>,
    lines: Vec<Line<Prefix>>,
    problems: Vec<String>,
}

impl DenyFile {
    /// Reads the file. `stand_in` is the list if that fails.
    pub fn open(path: &Path, stand_in: impl Iterator<Item = Prefix>) -> DenyFile {
        let mut file = DenyFile { path: path.into(), stamp: Err(String::new()), seen: None, lines: Vec::new(), problems: Vec::new() };
        file.reload(true);
        if file.stamp.is_err() {
            file.lines = stand_in.map(|prefix| (0, prefix)).collect();
        }
        file
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it was never read: what an earlier process denied stands in for it.
    pub fn is_missing(&self) -> bool {
        self.lines.first().is_some_and(|(line, _)| *line == 0)
    }

    /// The prefixes with their line numbers. Those that stand in for a file that was never read have the number 0.
    pub fn lines(&self) -> &[(usize, Prefix)] {
        &self.lines
    }

    /// Why the file, or some of its lines, are not in force.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }

    /// Reads the file if it has changed and is the same at two looks, or `always`. Returns whether the lines or the problems may have changed.
    pub fn reload(&mut self, always: bool) -> bool {
        let stamp = stamp(&self.path);
        let now = stamp.as_ref().ok().copied();
        // A file that somebody writes right now is not read: half of its last line can be a valid prefix.
        let settled = now.is_none() || std::mem::replace(&mut self.seen, now) == now;
        let stamp = stamp.map_err(|e| e.to_string());
        if !always && (stamp == self.stamp || !settled) {
            return false;
        }
        let content = stamp.and_then(|stamp| read(&self.path, stamp).map(|content| (stamp, content)).map_err(|e| e.to_string()));
        match content {
            Ok((stamp, content)) => {
                let (lines, bad) = parse(&content);
                self.stamp = Ok(stamp);
                self.lines = lines;
                let named = bad.iter().take(BAD_LINES_NAMED_MAX).map(|(line, text)| self.bad_line(*line, text));
                self.problems = named.collect();
                if let Some(more @ 1..) = bad.len().checked_sub(BAD_LINES_NAMED_MAX) {
                    self.problems.push(format!("deny.file: {}: {more} more lines are not prefixes", self.path.display()));
                }
            }
            Err(why) => {
                let unchanged = self.stamp.as_ref() == Err(&why);
                self.problems = vec![format!(
                    "deny.file: {}: cannot be read: {why}; its last list, if there is one, stays in force",
                    self.path.display()
                )];
                self.stamp = Err(why);
                return !unchanged;
            }
        }
        true
    }

    fn bad_line(&self, line: usize, text: &str) -> String {
        format!("deny.file: {}: line {line}: {text:?} is not {PREFIX}; the line is skipped", self.path.display())
    }
}

fn stamp(path: &Path) -> io::Result<Stamp> {
    let meta = std::fs::metadata(path)?;
    // Opening a FIFO would wait for a writer.
    if !meta.is_file() {
        return Err(io::Error::other("not a file"));
    }
    if meta.len() > FILE_BYTES_MAX {
        return Err(io::Error::other(format!("{} bytes long, at most {FILE_BYTES_MAX} are allowed", meta.len())));
    }
    Ok((meta.len(), meta.mtime(), meta.mtime_nsec(), meta.ino()))
}

/// Reads the file up to its limit. Fails if it is no longer the one with this stamp.
fn read(path: &Path, before: Stamp) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path)?.take(FILE_BYTES_MAX).read_to_end(&mut content)?;
    if stamp(path)? != before || content.len() as u64 != before.0 {
        return Err(io::Error::other("it changed while it was read; nomagic tries again"));
    }
    Ok(content)
}

/// The prefixes and the bad lines. `#` begins a comment.
fn parse(content: &[u8]) -> (Vec<Line<Prefix>>, Vec<Line<String>>) {
    let (mut lines, mut bad) = (Vec::new(), Vec::new());
    for (index, line) in content.split(|byte| *byte == b'\n').enumerate() {
        let text = line.split(|byte| *byte == b'#').next().unwrap_or_default().trim_ascii();
        if text.is_empty() {
            continue;
        }
        match std::str::from_utf8(text).ok().and_then(parse_prefix) {
            Some(prefix) => lines.push((index + 1, prefix)),
            None => bad.push((index + 1, quoted(text))),
        }
    }
    (lines, bad)
}

fn quoted(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(&text[..text.len().min(4 * QUOTED_CHARS_MAX)]);
    text.chars().take(QUOTED_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(lines: &[(usize, Prefix)]) -> Vec<(usize, String)> {
        lines.iter().map(|(line, prefix)| (*line, prefix.to_string())).collect()
    }

    #[test]
    fn one_prefix_a_line_with_comments() {
        let content = b"# A flood.\n192.0.2.0/24\n\n  2001:db8::/32 # since Monday\r\n10.1.2.3/8\n192.0.2.7\n#192.0.2.8";
        let (lines, bad) = parse(content);
        let expected = [(2, "192.0.2.0/24"), (4, "2001:db8::/32"), (5, "10.0.0.0/8"), (6, "192.0.2.7/32")];
        assert_eq!(texts(&lines), expected.map(|(line, text)| (line, text.to_owned())));
        assert!(bad.is_empty() && parse(b"").0.is_empty());
    }

    #[test]
    fn a_bad_line_is_named_and_skipped() {
        let long = "x".repeat(1_000);
        let content = format!("192.0.2.0/33\n192.0.2.0/24\n192.0.2.0/24 10.0.0.0/8\n{long}\nexample.com\n::/0\n");
        let (lines, bad) = parse(&[content.as_bytes(), b"\xff/8\n\x00"].concat());
        assert_eq!(texts(&lines), [(2, "192.0.2.0/24".into()), (6, "::/0".into())]);
        assert_eq!(bad.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [1, 3, 4, 5, 7, 8]);
        assert_eq!(bad[2].1.len(), QUOTED_CHARS_MAX);

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deny");
        std::fs::write(&path, "192.0.2.0/24\nexample.com\n".to_owned() + &"bad\n".repeat(30)).unwrap();
        let file = DenyFile::open(&path, std::iter::empty());
        assert_eq!((file.lines().len(), file.problems().len()), (1, BAD_LINES_NAMED_MAX + 1));
        assert!(file.problems()[0].ends_with(&format!("deny: line 2: \"example.com\" is not {PREFIX}; the line is skipped")), "{file:?}");
        assert!(file.problems()[BAD_LINES_NAMED_MAX].ends_with("deny: 11 more lines are not prefixes"), "{file:?}");
    }

    #[test]
    fn it_is_read_again_when_it_changes_and_a_missing_one_keeps_the_last_list() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deny");
        let stand_in = "198.51.100.0/24".parse().unwrap();
        let mut file = DenyFile::open(&path, std::iter::once(stand_in));
        assert_eq!(file.lines(), [(0, stand_in)]);
        assert!(file.problems()[0].contains("cannot be read: No such file") && !file.reload(false), "{file:?}");
        std::fs::write(&path, "192.0.2.0/24\n").unwrap();
        assert!(!file.reload(false), "it may still be written");
        assert!(file.reload(false) && !file.reload(false) && file.problems().is_empty());
        assert_eq!(texts(file.lines()), [(1, "192.0.2.0/24".into())]);
        assert!(file.reload(true), "SIGHUP");
        std::fs::remove_file(&path).unwrap();
        assert!(file.reload(false) && !file.reload(false), "once");
        assert_eq!((file.lines().len(), file.problems().len()), (1, 1));
        std::fs::create_dir(&path).unwrap();
        assert!(file.reload(false) && file.problems()[0].contains("not a file"), "{file:?}");
        std::fs::remove_dir(&path).unwrap();
        std::fs::write(&path, vec![b'\n'; FILE_BYTES_MAX as usize + 1]).unwrap();
        assert!(file.reload(false) && file.problems()[0].contains("4194305 bytes long, at most 4194304"), "{file:?}");
        assert_eq!(file.lines().len(), 1);
        std::fs::write(&path, "").unwrap();
        assert!(!file.reload(false) && file.reload(false) && file.lines().is_empty() && file.problems().is_empty());
    }

    #[test]
    fn a_file_that_is_being_written_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deny");
        std::fs::write(&path, "192.0.2.0/24\n").unwrap();
        let mut file = DenyFile::open(&path, std::iter::empty());
        // Half of 10.1.2.0/24: a quarter of all addresses.
        for written in ["", "192.0.2.0/24\n10.1.2.0/2", "192.0.2.0/24\n10.1.2.0/24\n"] {
            std::fs::write(&path, written).unwrap();
            assert!(!file.reload(false) && texts(file.lines()) == [(1, "192.0.2.0/24".into())], "{written:?}: {file:?}");
        }
        assert!(file.reload(false), "the same at two looks");
        assert_eq!(texts(file.lines()), [(1, "192.0.2.0/24".into()), (2, "10.1.2.0/24".into())]);
        read(&path, (1, 0, 0, 0)).unwrap_err();
    }
}
