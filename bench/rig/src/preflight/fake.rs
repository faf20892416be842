//! A machine made by hand: a tree of files in a temporary directory, and the answers of programs.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use super::host::Host;

/// Files and answers. Nothing is there at first.
pub struct FakeHost {
    dir: tempfile::TempDir,
    answers: BTreeMap<String, String>,
    /// Files that change while somebody rests.
    later: RefCell<Vec<(String, String)>>,
    /// See [`Host::xdp_features`].
    pub features: Option<u64>,
}

impl FakeHost {
    /// With these files: a path, and what is in it.
    pub fn new(files: &[(&str, &str)]) -> FakeHost {
        let dir = tempfile::tempdir().unwrap();
        let host = FakeHost { dir, answers: BTreeMap::new(), later: RefCell::default(), features: None };
        files.iter().for_each(|(path, text)| host.write(path, text));
        host
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    /// A command line that has an answer.
    pub fn says(mut self, command: &str, answer: &str) -> FakeHost {
        self.answers.insert(command.into(), answer.into());
        self
    }

    /// A file that is another one after a rest.
    pub fn later(self, path: &str, text: &str) -> FakeHost {
        self.later.borrow_mut().push((path.into(), text.into()));
        self
    }
}

impl Host for FakeHost {
    fn root(&self) -> &Path {
        self.dir.path()
    }

    fn run(&self, program: &str, args: &[&str]) -> Result<String, String> {
        let command = format!("{program} {}", args.join(" "));
        self.answers.get(&command).cloned().ok_or_else(|| "Operation not supported".into())
    }

    fn xdp_features(&self, _: &str) -> Option<u64> {
        self.features
    }

    fn program_name(&self, id: u32) -> Option<String> {
        (id == 7).then(|| "nomagic_filter".into())
    }

    fn rest(&self, time: Duration) {
        assert!(time < Duration::from_secs(1));
        self.later.borrow().iter().for_each(|(path, text)| self.write(path, text));
    }
}
