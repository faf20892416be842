//! Cleaning up in reverse order: on drop, on a signal, or at the next start.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::setting::{SETTING_SUFFIX, Setting};
use super::{run, sys};

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Undo {
    /// End this process: SIGTERM, and SIGKILL after 2 s.
    Process(u32),
    /// End the processes in this network namespace, then delete it.
    Namespace(String),
    /// Run this command (program and arguments).
    Command(Vec<String>),
    /// Remove this directory and its content.
    Directory(PathBuf),
    /// Restore a kernel setting.
    Setting(Setting),
}

/// Things to undo, oldest first.
static MADE: Mutex<Vec<(u64, Undo)>> = Mutex::new(Vec::new());
/// Number of the next guard.
static NEXT: AtomicU64 = AtomicU64::new(0);

#[derive(Debug)]
pub struct Guard(u64);

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(undo) = take(self.0) {
            undo_now(&undo);
        }
    }
}

impl Guard {
    /// Forgets it, because it was undone otherwise.
    pub fn forget(self) {
        take(self.0);
    }
}

/// Registers something to undo when the guard is dropped or a signal comes.
pub fn undo_later(undo: Undo) -> Guard {
    let id = NEXT.fetch_add(1, Relaxed);
    lock().push((id, undo));
    Guard(id)
}

fn lock() -> MutexGuard<'static, Vec<(u64, Undo)>> {
    MADE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn take(id: u64) -> Option<Undo> {
    let mut made = lock();
    let place = made.iter().position(|(i, _)| *i == id)?;
    Some(made.remove(place).1)
}

/// From now on SIGINT, SIGTERM and SIGHUP undo everything and end the process with exit code 128 + signal.
pub fn clean_on_signals() -> Result<()> {
    static ONCE: Once = Once::new();
    let mut result = Ok(());
    ONCE.call_once(|| result = watch_signals());
    result
}

fn watch_signals() -> Result<()> {
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP]).context("cannot watch signals")?;
    std::thread::Builder::new()
        .name("rig-signals".into())
        .spawn(move || {
            if let Some(signal) = signals.forever().next() {
                eprintln!("\nstopped by signal {signal}: cleaning up");
                undo_all();
                std::process::exit(128 + signal);
            }
        })
        .context("cannot start the signal thread")?;
    Ok(())
}

/// Undoes everything in reverse order. The list stays locked, so that nothing new is created meanwhile.
fn undo_all() {
    let mut made = lock();
    while let Some((_, undo)) = made.pop() {
        undo_now(&undo);
    }
}

fn undo_now(undo: &Undo) {
    let result = match undo {
        Undo::Process(pid) => end_process(*pid),
        Undo::Namespace(name) => remove_namespace(name),
        Undo::Command(words) => run_words(words),
        Undo::Directory(path) => remove_directory(path),
        Undo::Setting(setting) => setting.restore(),
    };
    if let Err(e) = result {
        eprintln!("clean-up: {e:#}");
    }
}

fn run_words(words: &[String]) -> Result<()> {
    let (program, args) = words.split_first().context("an empty command")?;
    run(program, &args.iter().map(String::as_str).collect::<Vec<_>>()).map(drop)
}

/// Ends a process and waits until it is gone; a zombie counts as gone.
fn end_process(pid: u32) -> Result<()> {
    sys::signal(pid, SIGTERM).with_context(|| format!("cannot end process {pid}"))?;
    if wait_gone(pid, Duration::from_secs(2)) {
        return Ok(());
    }
    sys::signal(pid, libc::SIGKILL).with_context(|| format!("cannot kill process {pid}"))?;
    wait_gone(pid, Duration::from_secs(2));
    Ok(())
}

fn wait_gone(pid: u32, limit: Duration) -> bool {
    let end = Instant::now() + limit;
    while Instant::now() < end {
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The state letter follows the command name, which is in parentheses and may contain anything.
        match state.rsplit_once(") ").map(|(_, rest)| rest.as_bytes()[0]) {
            None | Some(b'Z') => return true,
            Some(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
    false
}

/// Ends the processes in a namespace and deletes it.
fn remove_namespace(name: &str) -> Result<()> {
    for pid in run("ip", &["netns", "pids", name])?.split_whitespace().filter_map(|p| p.parse().ok()) {
        // A thread of this process may still be inside; it ends by itself.
        if pid != std::process::id() {
            end_process(pid)?;
        }
    }
    run("ip", &["netns", "del", name]).map(drop)
}

/// Directory of the gateways' connection tables, a tmpfs.
pub const TABLES: &str = "/dev/shm";
/// Suffix of their names, behind the name of the gateway's namespace.
pub const TABLE_SUFFIX: &str = ".conntrack";

/// Removes leftovers of dead processes, named `nm-<tag>-<pid>-<n>` with the pid of no process: namespaces, connection
/// tables, and temporary directories with their mounts. Restores the kernel settings that they changed. Returns the number of namespaces.
pub fn remove_leftovers() -> usize {
    let removed = left_behind(Path::new("/run/netns"), "").filter(|name| warned(remove_namespace(name))).count();
    for name in left_behind(Path::new(TABLES), TABLE_SUFFIX) {
        let path = Path::new(TABLES).join(name + TABLE_SUFFIX);
        warned(std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display())));
    }
    restore_settings(Path::new(TABLES));
    for name in left_behind(&std::env::temp_dir(), "") {
        warned(remove_directory(&std::env::temp_dir().join(name)));
    }
    removed
}

/// Restores what dead processes have noted in this directory.
fn restore_settings(directory: &Path) {
    for name in left_behind(directory, SETTING_SUFFIX) {
        let note = directory.join(name + SETTING_SUFFIX);
        warned(Setting::read(&note).and_then(|found| match found {
            Some(setting) => setting.restore(),
            None => std::fs::remove_file(&note).with_context(|| format!("cannot remove {}", note.display())),
        }));
    }
}

fn warned(result: Result<()>) -> bool {
    result.inspect_err(|e| eprintln!("clean-up: {e:#}")).is_ok()
}

/// Names in a directory, without their suffix, whose process is gone.
fn left_behind(directory: &Path, suffix: &str) -> impl Iterator<Item = String> {
    let names = std::fs::read_dir(directory).into_iter().flatten().flatten().filter_map(|e| e.file_name().into_string().ok());
    let names: Vec<String> = names.filter_map(|n| n.strip_suffix(suffix).map(str::to_owned)).collect();
    names.into_iter().filter(|n| owner(n).is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()))
}

/// Removes a directory, after the bpffs that gateways have mounted in it.
fn remove_directory(directory: &Path) -> Result<()> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
    for path in mounts.lines().filter_map(|l| l.split(' ').nth(1)).filter(|p| Path::new(p).starts_with(directory)) {
        run("umount", &[path])?;
    }
    std::fs::remove_dir_all(directory).with_context(|| format!("cannot remove {}", directory.display()))
}

/// The pid in the name of a namespace.
fn owner(name: &str) -> Option<u32> {
    let mut parts = name.strip_prefix("nm-")?.rsplit('-');
    let (number, pid, tag) = (parts.next()?, parts.next()?, parts.next()?);
    number.parse::<u32>().ok()?;
    (!tag.is_empty()).then_some(())?;
    pid.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_ours_have_an_owner() {
        assert_eq!(owner("nm-demo-4711-0"), Some(4711));
        assert_eq!(owner("nm-two-words-4711-12"), Some(4711));
        for other in ["cni-1234-5678", "nm-4711-0", "nm--1-2", "nm-x-y-0", "nm-x-1-y", "nm-"] {
            assert_eq!(owner(other), None, "{other}");
        }
    }

    #[test]
    fn files_of_running_processes_stay() {
        let dir = tempfile::tempdir().unwrap();
        let own = std::process::id();
        // No process has this pid: it is above the kernel's limit (PID_MAX_LIMIT, 2^22).
        for name in [format!("nm-t-{own}-0.x"), "nm-t-4999999-0.x".into(), "nm-t-4999999-1".into(), "other-4999999-0.x".into()] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        assert_eq!(left_behind(dir.path(), ".x").collect::<Vec<_>>(), ["nm-t-4999999-0"]);
        assert_eq!(left_behind(dir.path(), "").collect::<Vec<_>>(), ["nm-t-4999999-1"]);
        assert_eq!(left_behind(&dir.path().join("none"), "").count(), 0);
    }

    #[test]
    fn settings_of_a_killed_process_are_restored() {
        let dir = tempfile::tempdir().unwrap();
        let kernel = dir.path().join("nf_conntrack_max");
        std::fs::write(&kernel, "4096").unwrap();
        for (pid, value) in [(4_999_999, "262144"), (std::process::id(), "1")] {
            let note = dir.path().join(format!("nm-setting-{pid}-0{SETTING_SUFFIX}"));
            std::fs::write(note, format!("{}\n{value}\n", kernel.display())).unwrap();
        }
        restore_settings(dir.path());
        assert_eq!(std::fs::read_to_string(&kernel).unwrap(), "262144", "not the one of a process that runs");
        assert_eq!(left_behind(dir.path(), SETTING_SUFFIX).count(), 0, "restored once only");
    }

    #[test]
    fn guards_undo_once_and_may_forget() {
        let dir = tempfile::tempdir().unwrap();
        let (kept, gone) = (dir.path().join("kept"), dir.path().join("gone"));
        for d in [&kept, &gone] {
            std::fs::create_dir(d).unwrap();
        }
        let guard = undo_later(Undo::Directory(kept.clone()));
        drop(undo_later(Undo::Directory(gone.clone())));
        guard.forget();
        assert!(kept.exists() && !gone.exists());
    }

    #[test]
    fn a_stubborn_process_is_killed() {
        // The shell ignores SIGTERM, and the wait happens in another thread so that no zombie is left.
        let mut child = std::process::Command::new("sh").args(["-c", "trap '' TERM; while :; do sleep 0.05; done"]).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(100));
        let start = Instant::now();
        drop(undo_later(Undo::Process(child.id())));
        let waited = start.elapsed();
        assert!(!child.wait().unwrap().success());
        assert!(waited >= Duration::from_secs(2) && waited < Duration::from_secs(4), "{waited:?}");
    }

    #[test]
    fn invalid_pids_and_init_are_never_signalled() {
        assert!(sys::signal(0, 0).is_err());
        assert!(sys::signal(1, 0).is_err());
        assert!(sys::signal(u32::MAX, 0).is_err());
    }
}
