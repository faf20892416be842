//! Compares `docs/configuration.md` with `deploy/example/nomagic.yaml`: both name the same fields, including those commented out in the
//! example.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A file of the repository.
fn text(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().find(|dir| dir.join("deploy/example/nomagic.yaml").is_file());
    let path: PathBuf = root.expect("this crate lies in the repository").join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A line of YAML as (indentation, key), commented out or not. Prose must not begin with a lower-case word and a colon.
fn key(line: &str) -> Option<(usize, &str)> {
    let indentation = |text: &str| text.len() - text.trim_start_matches(' ').len();
    let before = indentation(line);
    let rest = &line[before..];
    let (indent, rest) = match rest.strip_prefix("# ") {
        Some(commented) => (before + indentation(commented), commented.trim_start_matches(' ')),
        None => (before, rest),
    };
    let (name, value) = rest.split_once(':')?;
    let is_name = name.starts_with(|c: char| c.is_ascii_lowercase()) && name.chars().all(|c| c.is_ascii_alphabetic());
    (is_name && (value.is_empty() || value.starts_with(' '))).then_some((indent, name))
}

/// The paths of all fields of a YAML document, as `conntrack.timeouts.udp`.
fn fields_of_yaml(yaml: &str) -> BTreeSet<String> {
    let mut above: Vec<(usize, &str)> = Vec::new();
    let mut fields = BTreeSet::new();
    for (indent, name) in yaml.lines().filter_map(key) {
        above.retain(|(outer, _)| *outer < indent);
        above.push((indent, name));
        let path: Vec<&str> = above.iter().map(|(_, name)| *name).collect();
        assert!(fields.insert(path.join(".")), "the example has {} twice", path.join("."));
    }
    fields
}

/// The fields that a page documents: the first cells of its tables' rows.
fn fields_of_page(page: &str) -> BTreeSet<String> {
    let cells = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` |"));
    let mut fields = BTreeSet::new();
    for (field, _) in cells {
        assert!(fields.insert(field.to_owned()), "the page documents {field} twice");
    }
    fields
}

#[test]
fn documented_fields_equal_the_examples() {
    let (example, page) = (fields_of_yaml(&text("deploy/example/nomagic.yaml")), fields_of_page(&text("docs/configuration.md")));
    assert!(example.len() > 60 && example.contains("kubernetes.tokenFile"), "the example was not read: {example:?}");
    let undocumented: Vec<_> = example.difference(&page).collect();
    let unknown: Vec<_> = page.difference(&example).collect();
    assert!(undocumented.is_empty(), "in the example, not in docs/configuration.md: {undocumented:?}");
    assert!(unknown.is_empty(), "in docs/configuration.md, not in the example: {unknown:?}");
}

#[test]
fn commented_out_fields_are_found() {
    let yaml = "# The name: of what.\nnode:\n  # Also lower: no.\n  name: a\n  labels:\n    topology.kubernetes.io/zone: b\n# api:\n#   # Or so.\n#   url: c\nnext: d\n";
    let expected = ["api", "api.url", "next", "node", "node.labels", "node.name"];
    assert!(fields_of_yaml(yaml).iter().eq(expected), "{:?}", fields_of_yaml(yaml));
    let page = "| Field | Meaning |\n|---|---|\n| `node` | `node.ips` too |\n| text | `other` |\n| `node.name` | `x` |\n";
    assert!(fields_of_page(page).iter().eq(["node", "node.name"]));
}
