//! The paths where BPF objects are pinned, so that they outlive the process.
//!
//! All pins are in a dedicated bpffs on `<state_dir>/bpf`: shared maps at the top, and each interface's own maps and link in `if/<name>/`.
//! A pinned link keeps its program attached until the pin is removed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nomagic_sys::bpf::detach_pinned_link;
use nomagic_sys::capabilities::has_what_is_needed;
use nomagic_sys::directory;
use nomagic_sys::mount::{is_bpffs, mount_bpffs, unmount};
use rustix::io::Errno;

use crate::error::EdgeError;

/// The pinned link of an interface.
const LINK: &str = "link";

/// The directory of the pins.
#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
}

impl Pins {
    /// Mounts a bpffs on `<state_dir>/bpf` unless one is mounted already.
    pub fn open(state_dir: &Path) -> Result<Pins, EdgeError> {
        let root = state_dir.join("bpf");
        directory::make(&root).map_err(|e| EdgeError::io(format!("creating {}", root.display()), e))?;
        let mounted = is_bpffs(&root).map_err(|e| EdgeError::io(format!("looking at {}", root.display()), e))?;
        if !mounted {
            mount_bpffs(&root).map_err(|source| mount_error(&root, source))?;
        }
        let pins = Pins { root };
        pins.create(&pins.root.join("if"))?;
        pins.create(&pins.redirect_links())?;
        pins.create(&pins.answers_links())?;
        Ok(pins)
    }

    /// Opens existing pins, if any.
    ///
    /// # Errors
    /// System errors: whether there are any is not known.
    pub fn existing(state_dir: &Path) -> Result<Option<Pins>, EdgeError> {
        let root = state_dir.join("bpf");
        match is_bpffs(&root) {
            Ok(mounted) => Ok(mounted.then_some(Pins { root })),
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
            Err(e) => Err(EdgeError::io(format!("looking at {}", root.display()), e)),
        }
    }

    /// Where a map shared by all interfaces is pinned.
    pub fn shared(&self, map: &str) -> PathBuf {
        self.root.join(map)
    }

    /// Where one of an interface's own maps is pinned.
    pub fn own(&self, interface: &str, map: &str) -> PathBuf {
        self.directory(interface).join(map)
    }

    /// Where an interface's link is pinned.
    pub fn link(&self, interface: &str) -> PathBuf {
        self.own(interface, LINK)
    }

    /// Where a redirect port's link is pinned.
    pub fn redirect_link(&self, interface: &str) -> PathBuf {
        self.redirect_links().join(encode(interface))
    }

    /// Where the link of an interface's program for answers is pinned.
    pub fn answers_link(&self, interface: &str) -> PathBuf {
        self.answers_links().join(encode(interface))
    }

    fn answers_links(&self) -> PathBuf {
        self.root.join("answers-links")
    }

    /// Interfaces with a pinned link of the program for answers.
    pub fn answers(&self) -> Vec<String> {
        names(&self.answers_links())
    }

    /// Detaches an interface's program for answers and removes its pin.
    pub fn remove_answers(&self, interface: &str) -> Result<(), EdgeError> {
        detach(&self.answers_link(interface))
    }

    /// The redirect ports' common maps.
    pub fn redirect_directory(&self) -> PathBuf {
        self.root.join("redirect")
    }

    fn redirect_links(&self) -> PathBuf {
        self.root.join("redirect-links")
    }

    /// Redirect ports that have a pinned link.
    pub fn redirects(&self) -> Vec<String> {
        names(&self.redirect_links())
    }

    /// Detaches a redirect port's program and removes its pin.
    pub fn remove_redirect(&self, interface: &str) -> Result<(), EdgeError> {
        detach(&self.redirect_link(interface))
    }

    /// Interfaces that have pins.
    pub fn interfaces(&self) -> Vec<String> {
        names(&self.root.join("if"))
    }

    /// Detaches an interface's program and removes its pins.
    pub fn remove_interface(&self, interface: &str) -> Result<(), EdgeError> {
        // The link first: frames go to the kernel before the maps go away.
        detach(&self.link(interface))?;
        remove_tree(&self.directory(interface))
    }

    /// Removes one pin, if it exists.
    pub fn remove(&self, path: &Path) -> Result<(), EdgeError> {
        remove(path)
    }

    /// Removes all pins, links first. False if there were none.
    pub fn remove_all(&self) -> Result<bool, EdgeError> {
        let mut removed = false;
        for interface in self.answers() {
            self.remove_answers(&interface)?;
        }
        for interface in self.interfaces() {
            self.remove_interface(&interface)?;
        }
        for interface in self.redirects() {
            self.remove_redirect(&interface)?;
        }
        for entry in fs::read_dir(&self.root).map_err(|e| EdgeError::io(format!("reading {}", self.root.display()), e))? {
            let entry = entry.map_err(|e| EdgeError::io(format!("reading {}", self.root.display()), e))?;
            // The kernel's own entries (maps.debug, progs.debug) have dots in their names and cannot be removed.
            if !entry.file_name().as_encoded_bytes().contains(&b'.') {
                remove_tree(&entry.path())?;
                removed = true;
            }
        }
        Ok(removed)
    }

    /// The directory of an interface's own maps and link.
    pub fn directory(&self, interface: &str) -> PathBuf {
        self.root.join("if").join(encode(interface))
    }

    /// Creates a directory for pins.
    pub fn create(&self, directory: &Path) -> Result<(), EdgeError> {
        match fs::create_dir(directory) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(EdgeError::io(format!("creating {}", directory.display()), e)),
            _ => Ok(()),
        }
    }
}

/// What [`cleanup`] did.
#[derive(Debug, Default)]
pub struct PinsCleaned {
    /// There were programs or maps.
    pub removed: bool,
    /// The bpffs could not be unmounted: it is empty, and does nothing.
    pub left_mounted: Option<(PathBuf, io::Error)>,
}

/// Detaches every program and removes all pins in this state directory, then unmounts its bpffs if the process may.
pub fn cleanup(state_dir: &Path) -> Result<PinsCleaned, EdgeError> {
    let Some(pins) = Pins::existing(state_dir)? else { return Ok(PinsCleaned::default()) };
    let removed = pins.remove_all()?;
    let left_mounted = match unmount(&pins.root) {
        Ok(()) => None,
        // A container may not unmount what its runtime has mounted, and a directory of another bpffs is no mount point.
        Err(e) if matches!(Errno::from_io_error(&e), Some(Errno::PERM | Errno::ACCESS | Errno::INVAL)) => Some((pins.root.clone(), e)),
        Err(e) => return Err(EdgeError::io(format!("unmounting {}", pins.root.display()), e)),
    };
    // Only if empty: other files are not nomagic's.
    let _ = fs::remove_dir(&pins.root);
    Ok(PinsCleaned { removed: removed || left_mounted.is_none(), left_mounted })
}

/// The same for a directory of pins in a bpffs of the node, which a pod had mounted. False if it is none.
pub fn cleanup_directory(root: &Path) -> Result<bool, EdgeError> {
    let pins = Pins { root: root.to_owned() };
    if !is_bpffs(root).unwrap_or(false) || !root.join("if").is_dir() {
        return Ok(false);
    }
    pins.remove_all()?;
    let _ = fs::remove_dir(root);
    Ok(true)
}

fn mount_error(path: &Path, source: io::Error) -> EdgeError {
    match Errno::from_io_error(&source) {
        // With the others but without CAP_SYS_ADMIN, one that is mounted beforehand is what helps.
        Some(Errno::PERM | Errno::ACCESS) if !has_what_is_needed() => {
            EdgeError::privileges(format!("mounting a bpffs on {}", path.display()))
        }
        _ => EdgeError::Bpffs { path: path.into(), source },
    }
}

/// bpffs refuses dots in names, which VLAN interfaces have.
fn encode(interface: &str) -> String {
    interface.replace('%', "%25").replace('.', "%2e")
}

fn decode(name: &str) -> String {
    name.replace("%2e", ".").replace("%25", "%")
}

/// The interface names of a directory of pins, sorted.
fn names(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut names: Vec<String> = entries.filter_map(|e| Some(decode(e.ok()?.file_name().to_str()?))).collect();
    names.sort();
    names
}

/// Detaches a pinned link's program and removes the pin, if it exists.
fn detach(link: &Path) -> Result<(), EdgeError> {
    match detach_pinned_link(link) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(EdgeError::io(format!("detaching {}", link.display()), e)),
        _ => remove(link),
    }
}

fn remove(path: &Path) -> Result<(), EdgeError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(EdgeError::io(format!("removing {}", path.display()), e)),
        _ => Ok(()),
    }
}

fn remove_tree(path: &Path) -> Result<(), EdgeError> {
    let done = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match done {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(EdgeError::io(format!("removing {}", path.display()), e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names_survive_the_encoding() {
        for name in ["eth0", "eth0.100", "a%2eb", "x%y.z"] {
            assert!(!encode(name).contains('.'));
            assert_eq!(decode(&encode(name)), name);
        }
    }

    #[test]
    fn cleaning_up_nothing_is_fine() {
        assert!(!cleanup(Path::new("/nowhere/at/all")).unwrap().removed);
        assert!(!cleanup_directory(Path::new("/proc")).unwrap());
    }
}
