//! `socketGroup`: who may read from the control socket.

use std::path::Path;

use serde::de::Error;
use serde::{Deserialize, Deserializer};

/// Where group names are looked up.
const GROUPS: &str = "/etc/group";

/// A group, by name or number.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SocketGroup {
    Name(String),
    Number(u32),
}

impl<'de> Deserialize<'de> for SocketGroup {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<SocketGroup, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Value {
            Number(u32),
            Name(String),
        }
        match Value::deserialize(from).map_err(|_| D::Error::custom("not the name or the number of a group"))? {
            Value::Number(number) => Ok(SocketGroup::Number(number)),
            Value::Name(name) if !name.is_empty() && !name.contains([':', '\n']) => Ok(SocketGroup::Name(name)),
            Value::Name(name) => Err(D::Error::custom(format!("`{}` is no name of a group", name.escape_debug()))),
        }
    }
}

impl SocketGroup {
    /// Its number.
    ///
    /// # Errors
    /// If this machine, or the container, has no such group: what to do.
    pub fn number(&self) -> Result<u32, String> {
        match self {
            SocketGroup::Number(number) => Ok(*number),
            SocketGroup::Name(name) => number_in(Path::new(GROUPS), name),
        }
    }
}

fn number_in(file: &Path, name: &str) -> Result<u32, String> {
    let groups =
        std::fs::read_to_string(file).map_err(|e| format!("socketGroup: {}: {e}; give the number of the group", file.display()))?;
    let found = groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok()).flatten()
    });
    found.ok_or_else(|| format!("socketGroup: {} has no group {name}: add it (groupadd --system {name}), or give a number", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_found_by_name() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "root:x:0:\nnomagic:x:990:alice,bob\nbroken\nodd:x:many:\n").unwrap();
        assert_eq!(number_in(file.path(), "nomagic"), Ok(990));
        for name in ["nobody", "broken", "odd", ""] {
            assert!(number_in(file.path(), name).unwrap_err().contains("has no group"), "{name}");
        }
        assert_eq!(SocketGroup::Number(7).number(), Ok(7));
    }
}
