//! Kubernetes YAML from a file or a directory: the objects without a cluster.
//!
//! One bad document never loses the others, and one bad edit never takes a Service down: what cannot be read any more stays as it was
//! when it last could be.

mod documents;

use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nomagic_table::objects::{Key, Kind, Object};
use nomagic_table::problem::{Origin, Problem};

/// Largest file, bytes.
const FILE_MAX: u64 = 64 << 20;
/// Files in a directory at the most.
const FILES_MAX: usize = 10_000;
/// What a directory's files must be called.
const EXTENSIONS: [&str; 3] = ["yaml", "yml", "json"];
/// Names listed in one message at the most.
const NAMES_MAX: usize = 8;

/// What the manifests say.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// Services and EndpointSlices, one of each name, in the order of files and documents.
    pub objects: Vec<Object>,
    /// What was wrong with files and documents. What is wrong inside an object that could be read travels with the object.
    pub problems: Vec<Problem>,
    /// Files read.
    pub files: usize,
    /// Objects of kinds that nomagic has nothing to do with.
    pub ignored: usize,
    by_file: BTreeMap<PathBuf, Vec<Object>>,
}

/// What one file says.
#[derive(Debug, Default)]
struct Content {
    objects: Vec<Object>,
    problems: Vec<Problem>,
    ignored: usize,
    /// Objects that are in the file but could not be read.
    lost: Vec<(Kind, Key)>,
    /// There may be more of them, of unknown name.
    lost_unknown: bool,
}

/// A cheap summary of the files: when it differs from an earlier one, [`load`] again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fingerprint(Result<Vec<(PathBuf, u64, i128, u64)>, String>);

/// Looks at names, sizes, times and inodes; reads nothing. Take it before [`load`], so that a change in between is seen next time.
pub fn fingerprint(path: &Path) -> Fingerprint {
    let stat = |file: PathBuf| {
        let meta = std::fs::metadata(&file);
        let (len, mtime, inode) =
            meta.map_or((0, 0, 0), |m| (m.len(), i128::from(m.mtime()) * 1_000_000_000 + i128::from(m.mtime_nsec()), m.ino()));
        (file, len, mtime, inode)
    };
    let listed = list(path);
    Fingerprint(listed.map(|(files, _)| files.into_iter().map(stat).collect()).map_err(|p| p.to_string()))
}

/// Reads everything. `Err` when there is no such file or directory: whoever has an earlier answer keeps it.
pub fn load(path: &Path, previous: Option<&Loaded>) -> Result<Loaded, Problem> {
    let (files, more) = list(path)?;
    let mut loaded = Loaded { files: files.len(), ..Loaded::default() };
    if files.is_empty() {
        let message = "no *.yaml, *.yml or *.json in this directory: there are no Services";
        loaded.problems.push(whole_file(path, message.into()));
    }
    if more > 0 {
        loaded
            .problems
            .push(whole_file(path, format!("{more} files more than the {FILES_MAX} that are read; put several objects into one")));
    }
    let mut kept = Vec::new();
    for file in files {
        let mut content = read_file(&file);
        let old = previous.and_then(|p| p.by_file.get(&file)).map_or(&[][..], Vec::as_slice);
        let stay = still_good(old, &content);
        if !stay.is_empty() {
            content.problems.push(whole_file(&file, format!("what could be read before stays in force: {}", names(&stay))));
        }
        loaded.problems.append(&mut content.problems);
        loaded.ignored += content.ignored;
        loaded.objects.extend(content.objects.iter().cloned());
        kept.extend(stay.iter().cloned());
        content.objects.extend(stay);
        loaded.by_file.insert(file, content.objects);
    }
    drop_duplicates(&mut loaded, kept);
    Ok(loaded)
}

/// The objects of an earlier reading that this one could not read.
fn still_good(old: &[Object], content: &Content) -> Vec<Object> {
    let same = |a: &Object, b: &Object| a.kind() == b.kind() && a.key() == b.key();
    let lost = |o: &Object| content.lost_unknown || content.lost.iter().any(|(kind, key)| *kind == o.kind() && key == o.key());
    let unread = |o: &&Object| lost(o) && !content.objects.iter().any(|n| same(n, o));
    // Only after a fault is there anything to keep, so the two nested searches stay off the common path.
    if content.lost.is_empty() && !content.lost_unknown { Vec::new() } else { old.iter().filter(unread).cloned().collect() }
}

/// Of objects with one name the first stays; those kept from earlier step back behind all others.
fn drop_duplicates(loaded: &mut Loaded, kept: Vec<Object>) {
    let mut seen: HashMap<(Kind, Key), Origin> = HashMap::new();
    let mut problems = Vec::new();
    loaded.objects.retain(|object| {
        let id = (object.kind(), object.key().clone());
        let first = match seen.entry(id) {
            std::collections::hash_map::Entry::Vacant(v) => {
                v.insert(object.origin().clone());
                return true;
            }
            std::collections::hash_map::Entry::Occupied(o) => o.into_mut(),
        };
        problems.push(Problem {
            origin: object.origin().clone(),
            object: format!("{} {}", object.kind(), object.key()),
            field: String::new(),
            message: format!("the same name as at {first}, which stays; this one is skipped"),
        });
        false
    });
    loaded.problems.append(&mut problems);
    let fresh = |o: &Object| !seen.contains_key(&(o.kind(), o.key().clone()));
    loaded.objects.extend(kept.into_iter().filter(fresh));
}

fn names(objects: &[Object]) -> String {
    let mut text: Vec<String> = objects.iter().take(NAMES_MAX).map(|o| format!("{} {}", o.kind(), o.key())).collect();
    if objects.len() > NAMES_MAX {
        text.push(format!("and {} more", objects.len() - NAMES_MAX));
    }
    text.join(", ")
}

fn whole_file(file: &Path, message: String) -> Problem {
    Problem { origin: Origin { file: Some(file.into()), line: 0 }, object: String::new(), field: String::new(), message }
}

/// The files to read, sorted, and how many there are beyond the limit.
fn list(path: &Path) -> Result<(Vec<PathBuf>, usize), Problem> {
    let unreadable = |e: std::io::Error| whole_file(path, format!("the manifests cannot be read: {e}"));
    if !std::fs::metadata(path).map_err(unreadable)?.is_dir() {
        return Ok((vec![path.to_path_buf()], 0));
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(unreadable)? {
        let file = entry.map_err(unreadable)?.path();
        let hidden = file.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"."));
        let yaml = file.extension().is_some_and(|e| EXTENSIONS.iter().any(|x| e.eq_ignore_ascii_case(x)));
        if yaml && !hidden && !file.is_dir() {
            files.push(file);
        }
    }
    files.sort();
    let more = files.len().saturating_sub(FILES_MAX);
    files.truncate(FILES_MAX);
    Ok((files, more))
}

fn read_file(file: &Path) -> Content {
    match read_text(file) {
        Ok(text) => documents::read(&text, file),
        Err(message) => Content { problems: vec![whole_file(file, message)], lost_unknown: true, ..Content::default() },
    }
}

fn read_text(file: &Path) -> Result<String, String> {
    let unreadable = |e: std::io::Error| format!("cannot be read: {e}");
    let meta = std::fs::metadata(file).map_err(unreadable)?;
    if !meta.is_file() {
        return Err("not a regular file: it is skipped".into());
    }
    if meta.len() > FILE_MAX {
        return Err(format!("{} bytes long, {FILE_MAX} are allowed: split it", meta.len()));
    }
    std::fs::read_to_string(file).map_err(unreadable)
}

#[cfg(test)]
mod tests;
