//! Kernel settings that are global to the machine: changed for a time and restored, also after the process was killed.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;

use anyhow::{Context, Result};

use super::cleanup::{Guard, TABLES, Undo, undo_later};

/// Suffix of the notes of changed settings.
pub const SETTING_SUFFIX: &str = ".setting";

/// What a kernel setting was before it was changed, and the file that notes it. The next run restores what a killed one has noted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Setting {
    path: PathBuf,
    before: String,
    note: PathBuf,
}

impl Setting {
    /// Gives a setting this value until the guard is dropped.
    pub fn change(path: &str, value: &str) -> Result<Guard> {
        static NOTES: AtomicU32 = AtomicU32::new(0);
        let path = PathBuf::from(path);
        let before = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?.trim().to_owned();
        let name = format!("nm-setting-{}-{}{SETTING_SUFFIX}", std::process::id(), NOTES.fetch_add(1, Relaxed));
        let setting = Setting { path, before, note: Path::new(TABLES).join(name) };
        std::fs::write(&setting.note, format!("{}\n{}\n", setting.path.display(), setting.before))
            .with_context(|| format!("cannot write {}", setting.note.display()))?;
        let path = setting.path.clone();
        let guard = undo_later(Undo::Setting(setting));
        std::fs::write(&path, value).with_context(|| format!("cannot write {value} to {}", path.display()))?;
        Ok(guard)
    }

    /// Reads a note. One that was not written to its end belongs to a setting that was not changed yet.
    pub fn read(note: &Path) -> Result<Option<Setting>> {
        let text = std::fs::read_to_string(note).with_context(|| format!("cannot read {}", note.display()))?;
        let mut lines = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
        Ok(lines.next().zip(lines.next()).map(|(path, before)| Setting { path: path.into(), before: before.into(), note: note.into() }))
    }

    /// Restores the setting and removes its note.
    pub fn restore(&self) -> Result<()> {
        let removed = std::fs::remove_file(&self.note).with_context(|| format!("cannot remove {}", self.note.display()));
        let restored = std::fs::write(&self.path, &self.before);
        restored.with_context(|| format!("cannot write {} to {}", self.before, self.path.display())).and(removed)
    }
}
