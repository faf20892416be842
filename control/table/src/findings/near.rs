//! Finds the Service that a name was perhaps meant for.

use crate::index::Index;
use crate::objects::NamespacedName;

/// Maximum number of namespaces named.
const NAMED_MAX: usize = 3;
/// Names that differ in more characters are different names.
const EDITS_MAX: usize = 2;

/// ` (one is in apps)`, ` (there is default/web)`; "" if no Service is near.
pub(crate) fn service(index: &Index, key: &NamespacedName) -> String {
    let mut elsewhere: Vec<&str> = index.services().filter(|s| s.key.name == key.name).map(|s| s.key.namespace.as_str()).collect();
    let more = if elsewhere.len() > NAMED_MAX { " and others" } else { "" };
    elsewhere.truncate(NAMED_MAX);
    match elsewhere.as_slice() {
        [] => {}
        [one] => return format!(" (one is in {one})"),
        some => return format!(" (there are some in {}{more})", some.join(", ")),
    }
    let near = |name: &str| key.name.len() > EDITS_MAX && edits(&key.name, name) <= EDITS_MAX;
    let similar = index.services().find(|s| s.key.namespace == key.namespace && near(&s.key.name));
    similar.map_or(String::new(), |s| format!(" (there is {})", s.key))
}

/// Number of characters to insert, delete or replace; more than [`EDITS_MAX`] are not counted exactly.
fn edits(a: &str, b: &str) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    if a.len().abs_diff(b.len()) > EDITS_MAX {
        return EDITS_MAX + 1;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_are_counted_up_to_the_limit() {
        for (a, b, n) in [("web", "web", 0), ("web", "wep", 1), ("web", "webb", 1), ("web", "eb", 1), ("cart", "crat", 2), ("web", "", 3)] {
            assert_eq!((edits(a, b), edits(b, a)), (n, n), "{a} {b}");
        }
        assert!(edits("web", "web-frontend") > EDITS_MAX);
    }
}
