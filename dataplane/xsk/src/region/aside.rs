//! Files that were set aside, because they are not the table that is wanted: `FILE.set-aside.1`, `.2` and so on.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::EdgeError;

const SUFFIX: &str = ".set-aside";
/// Files that are kept; the oldest ones beyond are removed. Each needs as much memory as the table.
const KEPT_MAX: usize = 3;

/// Files set aside from this path, with their numbers, the oldest first. One without a number is of an earlier version.
pub(super) fn existing(path: &Path) -> Result<Vec<(u32, PathBuf)>, EdgeError> {
    let (directory, name) = (directory(path), path.file_name().unwrap_or_default().to_string_lossy().into_owned());
    let failed = |e| EdgeError::io(format!("reading the directory {}", directory.display()), e);
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(e)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        if let Some(number) = entry.file_name().to_str().and_then(|file| number(file, &name)) {
            found.push((number, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

/// The path where the next file is set aside.
pub(super) fn next(path: &Path) -> Result<PathBuf, EdgeError> {
    let newest = existing(path)?.last().map_or(0, |(number, _)| *number);
    let mut name = path.as_os_str().to_owned();
    name.push(format!("{SUFFIX}.{}", newest.saturating_add(1)));
    Ok(name.into())
}

/// Removes the oldest files beyond [`KEPT_MAX`].
pub(super) fn limit(path: &Path) {
    let files = existing(path).unwrap_or_default();
    for (_, old) in files.iter().take(files.len().saturating_sub(KEPT_MAX)) {
        match fs::remove_file(old) {
            Ok(()) => tracing::info!("removed {}: {KEPT_MAX} newer files are set aside", old.display()),
            Err(e) => tracing::warn!("cannot remove {}, which was set aside: {e}", old.display()),
        }
    }
}

fn directory(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn number(file: &str, table: &str) -> Option<u32> {
    match file.strip_prefix(table)?.strip_prefix(SUFFIX)? {
        "" => Some(0),
        rest => rest.strip_prefix('.').filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))?.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_numbered_files_of_the_table_count() {
        for (file, expected) in [
            ("conntrack.set-aside", Some(0)),
            ("conntrack.set-aside.12", Some(12)),
            ("conntrack.set-aside.x", None),
            ("conntrack.set-aside.", None),
            ("conntrack.set-aside.99999999999", None),
            ("conntrack2.set-aside.1", None),
            ("conntrack", None),
        ] {
            assert_eq!(number(file, "conntrack"), expected, "{file}");
        }
    }
}
