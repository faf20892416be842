//! The files that credentials come from: whether they have changed since they were read, and the bearer token in one.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use http::HeaderValue;

use super::fault::ApiFault;

/// Maximum size of a token's file, bytes. Tokens of service accounts have about 1,000.
const TOKEN_BYTES_MAX: u64 = 64 << 10;

/// Identifies a state of a file: device, inode, size, times of the last change of its content and of its inode. `None`: no such file.
type FileState = Option<(u64, u64, u64, [i64; 4])>;

/// Paths of files, with their state when they were read.
#[derive(Clone, Debug, Default)]
pub(crate) struct CredentialFiles(Vec<(PathBuf, FileState)>);

impl CredentialFiles {
    /// Call this before reading the files, so that no change is missed.
    pub(crate) fn new(paths: impl IntoIterator<Item = PathBuf>) -> CredentialFiles {
        let mut files = CredentialFiles::default();
        paths.into_iter().for_each(|path| files.add(path));
        files
    }

    pub(crate) fn add(&mut self, path: PathBuf) {
        let state = state(&path);
        self.0.push((path, state));
    }

    /// Whether a file was replaced, written to, created or removed.
    pub(crate) fn have_changed(&self) -> bool {
        self.0.iter().any(|(path, known)| state(path) != *known)
    }
}

/// A file with a bearer token. kube reads such a file once a minute, and sends the line end that editors add.
#[derive(Clone, Debug)]
pub(crate) struct TokenFile {
    path: PathBuf,
    /// Where the path comes from, for messages.
    field: String,
}

impl TokenFile {
    pub(super) fn new(path: PathBuf, field: String) -> TokenFile {
        TokenFile { path, field }
    }

    /// Reads the file: the value of the header `Authorization`, without blanks and line ends around the token, like client-go.
    pub(super) fn authorization(&self) -> Result<HeaderValue, ApiFault> {
        let unusable = |what: &dyn std::fmt::Display| ApiFault::Unusable(format!("{} {}: {what}", self.field, self.path.display()));
        let text = self.read().map_err(|e| unusable(&e))?;
        let token = text.trim_ascii();
        if token.is_empty() {
            return Err(unusable(&"the file is empty: it must contain a bearer token"));
        }
        let value = HeaderValue::from_bytes(&[b"Bearer ", token].concat()).ok().filter(|_| token.iter().all(u8::is_ascii_graphic));
        let mut value = value.ok_or_else(|| unusable(&"not a bearer token: it must be one word of printable ASCII characters"))?;
        value.set_sensitive(true);
        Ok(value)
    }

    fn read(&self) -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        if File::open(&self.path)?.take(TOKEN_BYTES_MAX + 1).read_to_end(&mut text)? as u64 > TOKEN_BYTES_MAX {
            return Err(io::Error::other(format!("longer than {TOKEN_BYTES_MAX} bytes: not a bearer token")));
        }
        Ok(text)
    }
}

/// Follows links: Kubernetes replaces a mounted token by changing a link.
fn state(path: &Path) -> FileState {
    let m = std::fs::metadata(path).ok()?;
    Some((m.dev(), m.ino(), m.size(), [m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec()]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_change_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("a"), "first").unwrap();
        std::fs::write(at("b"), "other").unwrap();
        std::os::unix::fs::symlink("a", at("link")).unwrap();
        let files = || CredentialFiles::new([at("link"), at("none")]);
        let changes: [&dyn Fn(); 4] = [
            &|| std::fs::write(at("a"), "again").unwrap(),
            &|| {
                std::os::unix::fs::symlink("b", at("new")).unwrap();
                std::fs::rename(at("new"), at("link")).unwrap();
            },
            &|| std::fs::write(at("none"), "").unwrap(),
            &|| std::fs::remove_file(at("none")).unwrap(),
        ];
        for (i, change) in changes.iter().enumerate() {
            let before = files();
            assert!(!before.have_changed(), "change {i}");
            // The times of files have the resolution of the kernel's clock tick.
            std::thread::sleep(std::time::Duration::from_millis(20));
            change();
            assert!(before.have_changed(), "change {i}");
        }
    }

    #[test]
    fn tokens_are_trimmed_and_errors_name_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let file = TokenFile::new(path.clone(), "kubernetes.tokenFile".into());
        for text in ["abc.d-e_f", "abc.d-e_f\n", "  abc.d-e_f\r\n\n"] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(file.authorization().unwrap(), "Bearer abc.d-e_f", "{text:?}");
        }
        for (text, word) in [("", "is empty"), (" \n", "is empty"), ("two words", "one word"), ("a\nb", "one word"), ("\u{e4}", "one word")]
        {
            std::fs::write(&path, text).unwrap();
            let fault = file.authorization().unwrap_err();
            let said = fault.to_string();
            assert!(said.starts_with(&format!("kubernetes.tokenFile {}: ", path.display())) && said.contains(word), "{text:?}: {said}");
            assert!(fault.concerns_credentials());
        }
        std::fs::write(&path, "x".repeat(1 + TOKEN_BYTES_MAX as usize)).unwrap();
        assert!(file.authorization().unwrap_err().to_string().contains("65536 bytes"));
        std::fs::remove_file(&path).unwrap();
        assert!(file.authorization().unwrap_err().to_string().contains("No such file"));
    }
}
