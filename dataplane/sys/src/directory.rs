//! Directories.

use std::fs;
use std::io;
use std::path::Path;

/// Creates a directory and those above it, unless there is one.
///
/// # Errors
/// System errors. Where the directory exists but could not be looked at, [`fs::create_dir_all`] says only that it exists; this says why.
pub fn make(path: &Path) -> io::Result<()> {
    match fs::create_dir_all(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            if fs::metadata(path)?.is_dir() {
                Ok(())
            } else {
                Err(e)
            }
        }
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_made_once_and_files_are_none() {
        let top = std::env::temp_dir().join(format!("nmx-directory-{}", std::process::id()));
        make(&top.join("a/b")).unwrap();
        make(&top.join("a/b")).unwrap();
        fs::write(top.join("file"), "").unwrap();
        assert_eq!(make(&top.join("file")).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        fs::remove_dir_all(&top).unwrap();
    }
}
