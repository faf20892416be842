//! Loads Kubernetes objects from a YAML file or a directory, without a cluster.
//!
//! An invalid document does not affect the others, and an invalid edit does not remove a Service: an object that can no longer be read
//! keeps its last valid version.

mod documents;
mod parse;
mod text;

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nomagic_sys::shortage::{explained, remedy};
use nomagic_table::objects::{Kind, NamespacedName, Object};
use nomagic_table::problem::{Origin, Problem};

/// Maximum file size in bytes.
const FILE_MAX: u64 = 64 << 20;
/// Maximum number of files in a directory.
const FILES_MAX: usize = 10_000;
/// File name extensions that are read in a directory.
const EXTENSIONS: [&str; 3] = ["yaml", "yml", "json"];
/// Maximum number of names in one message.
const NAMES_MAX: usize = 8;

/// The objects of all files.
#[derive(Clone, Debug, Default)]
pub struct ManifestSet {
    /// The objects, unique by kind and name, in the order of files and documents.
    pub objects: Vec<Object>,
    /// Problems of files and documents. Problems inside a readable object are stored in the object.
    pub problems: Vec<Problem>,
    /// Number of files read.
    pub files: usize,
    /// Number of objects of kinds that nomagic does not use.
    pub ignored: usize,
    /// A file that could not be read for want of memory or descriptors: it may be in order, and must be read again although it has not changed.
    pub shortage: Option<Problem>,
    /// There may be objects of which nothing is known, not even their names.
    pub incomplete: bool,
    /// A file could not be read, for whatever reason: it must be read again although it has not changed.
    pub unread: bool,
    by_file: BTreeMap<PathBuf, Vec<Object>>,
}

/// The objects of one file.
#[derive(Debug, Default)]
struct FileContent {
    objects: Vec<Object>,
    problems: Vec<Problem>,
    ignored: usize,
    /// Objects in the file that could not be read.
    lost: Vec<ObjectId>,
    /// In place of those of them that are Services.
    stand_ins: Vec<Object>,
    /// There may be further unreadable objects, of unknown name.
    lost_unknown: bool,
    /// The file could not be read for want of memory or descriptors.
    shortage: bool,
    /// The file could not be read.
    unread: bool,
}

/// Why a file is not read.
struct Unread {
    message: String,
    shortage: bool,
    /// It may be readable the next time.
    again: bool,
}

/// An object of a file.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct ObjectId {
    kind: Kind,
    key: NamespacedName,
    /// The slices of an `Endpoints` object, which is named.
    mirrored: bool,
}

impl ObjectId {
    fn of(object: &Object) -> ObjectId {
        let (kind, key) = (object.kind(), object.key().clone());
        match object {
            Object::Slice(slice) if slice.mirrored => ObjectId { kind, key: slice.service.clone().unwrap_or(key), mirrored: true },
            _ => ObjectId { kind, key, mirrored: false },
        }
    }
}

/// A cheap summary of the files. If it changes, call [`load`] again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fingerprint(Result<Vec<(PathBuf, u64, i128, u64)>, String>);

/// Fingerprints names, sizes, modification times and inodes; reads no content. Call it before [`load`], so that a change in between is
/// detected next time.
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

/// Loads all files. `previous` supplies the last valid version of objects that can no longer be read.
///
/// # Errors
/// If the path does not exist or cannot be listed; the caller keeps its previous objects.
pub fn load(path: &Path, previous: Option<&ManifestSet>) -> Result<ManifestSet, Problem> {
    let (files, more) = list(path)?;
    let mut loaded = ManifestSet { files: files.len(), ..ManifestSet::default() };
    if files.is_empty() {
        let message = "no *.yaml, *.yml or *.json in this directory, so there are no Services";
        loaded.problems.push(whole_file(path, message.into()));
    }
    if more > 0 {
        loaded.problems.push(whole_file(
            path,
            format!("{more} files beyond the limit of {FILES_MAX} are not read; put several objects into one file"),
        ));
    }
    loaded.incomplete = more > 0;
    let (mut kept, mut stand_ins) = (Vec::new(), Vec::new());
    for file in files {
        let mut content = read_file(&file);
        loaded.unread |= content.unread;
        if content.shortage {
            loaded.shortage = content.problems.first().cloned();
        }
        let old = previous.and_then(|p| p.by_file.get(&file)).map_or(&[][..], Vec::as_slice);
        let stay = last_valid(old, &content);
        if !stay.is_empty() {
            content.problems.push(whole_file(&file, format!("the last valid version stays in force: {}", names(&stay))));
        }
        loaded.problems.append(&mut content.problems);
        loaded.ignored += content.ignored;
        loaded.incomplete |= content.lost_unknown;
        stand_ins.append(&mut content.stand_ins);
        loaded.objects.extend(content.objects.iter().cloned());
        kept.extend(stay.iter().cloned());
        content.objects.extend(stay);
        loaded.by_file.insert(file, content.objects);
    }
    kept.extend(stand_ins);
    drop_duplicates(&mut loaded, kept);
    prefer_slices(&mut loaded.objects);
    Ok(loaded)
}

/// The previously loaded objects that could not be read this time.
fn last_valid(old: &[Object], content: &FileContent) -> Vec<Object> {
    // Without a fault there is nothing to keep.
    if content.lost.is_empty() && !content.lost_unknown {
        return Vec::new();
    }
    let lost: HashSet<&ObjectId> = content.lost.iter().collect();
    let read: HashSet<ObjectId> = content.objects.iter().map(ObjectId::of).collect();
    let stays = |o: &&Object| {
        let id = ObjectId::of(o);
        (content.lost_unknown || lost.contains(&id)) && !read.contains(&id)
    };
    old.iter().filter(stays).cloned().collect()
}

/// Keeps the first object of each name. Those in `kept` have the lowest precedence: objects from an earlier load, then what stands in for
/// unreadable ones.
fn drop_duplicates(loaded: &mut ManifestSet, kept: Vec<Object>) {
    let mut seen: HashMap<ObjectId, Origin> = HashMap::new();
    let mut problems: Vec<Problem> = Vec::new();
    loaded.objects.retain(|object| {
        let id = ObjectId::of(object);
        // Several slices may be of one `Endpoints` object.
        let mirrored = id.mirrored;
        let first = match seen.entry(id) {
            Entry::Vacant(v) => {
                v.insert(object.origin().clone());
                return true;
            }
            Entry::Occupied(o) => o.into_mut(),
        };
        if mirrored && first == object.origin() {
            return true;
        }
        let message = format!("duplicate of the object at {first}; this one is skipped");
        let problem = Problem { origin: object.origin().clone(), object: object.label(), field: String::new(), message };
        if problems.last() != Some(&problem) {
            problems.push(problem);
        }
        false
    });
    loaded.problems.append(&mut problems);
    let mut added: HashSet<ObjectId> = HashSet::new();
    let mut fresh = |o: &Object| {
        let id = ObjectId::of(o);
        !seen.contains_key(&id) && (id.mirrored || added.insert(id))
    };
    loaded.objects.extend(kept.into_iter().filter(|o| fresh(o)));
}

/// Sets aside the slices of `Endpoints` objects whose Service has EndpointSlices, as in a dump of a cluster: these say the same, and more.
fn prefer_slices(objects: &mut [Object]) {
    let sliced = |object: &Object| match object {
        Object::Slice(slice) if !slice.mirrored && slice.ignored.is_none() => slice.service.clone(),
        _ => None,
    };
    let services: HashSet<NamespacedName> = objects.iter().filter_map(sliced).collect();
    for object in objects {
        if let Object::Slice(slice) = object
            && slice.mirrored
            && slice.service.as_ref().is_some_and(|service| services.contains(service))
        {
            let slice = Arc::make_mut(slice);
            slice.ignored = Some("the Service has EndpointSlices");
            slice.endpoints.clear();
        }
    }
}

fn names(objects: &[Object]) -> String {
    let mut text: Vec<String> = objects.iter().map(Object::label).collect();
    text.dedup();
    let more = text.len().saturating_sub(NAMES_MAX);
    text.truncate(NAMES_MAX);
    if more > 0 {
        text.push(format!("and {more} more"));
    }
    text.join(", ")
}

fn whole_file(file: &Path, message: String) -> Problem {
    Problem { origin: Origin { file: Some(file.into()), line: 0 }, object: String::new(), field: String::new(), message }
}

/// The files to read, sorted, and the number of files beyond the limit.
fn list(path: &Path) -> Result<(Vec<PathBuf>, usize), Problem> {
    let unreadable = |e: io::Error| whole_file(path, format!("the manifests cannot be read: {}", explained(&e)));
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

fn read_file(file: &Path) -> FileContent {
    match read_text(file) {
        Ok(text) => documents::read(&text, file),
        Err(Unread { message, shortage, again }) => {
            let problems = vec![whole_file(file, message)];
            FileContent { problems, lost_unknown: true, shortage, unread: again, ..FileContent::default() }
        }
    }
}

fn read_text(file: &Path) -> Result<String, Unread> {
    let unreadable = |e: io::Error| {
        let forbidden = e.kind() == io::ErrorKind::PermissionDenied;
        let hint = if forbidden { ": run as its owner or as root; a security module may forbid reading it, too" } else { "" };
        Unread { message: format!("cannot be read: {}{hint}", explained(&e)), shortage: remedy(&e).is_some(), again: true }
    };
    let unfit = |message: String| Unread { message, shortage: false, again: false };
    let meta = std::fs::metadata(file).map_err(unreadable)?;
    if !meta.is_file() {
        return Err(unfit("not a regular file; it is skipped".into()));
    }
    if meta.len() > FILE_MAX {
        return Err(unfit(format!("{} bytes long, at most {FILE_MAX} are allowed: split the file", meta.len())));
    }
    std::fs::read(file).map(text::decode).map_err(unreadable)
}

#[cfg(test)]
mod tests;
