//! `docs/troubleshooting.md` has a row for every reason for which a frame is dropped or left to the kernel.

use std::path::Path;

use nomagic_core::reason::Reason;

#[test]
fn every_reason_has_a_row_and_every_row_a_reason() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().find(|dir| dir.join("docs/troubleshooting.md").is_file());
    let page = std::fs::read_to_string(root.expect("this crate lies in the repository").join("docs/troubleshooting.md")).unwrap();
    let (_, table) = page.split_once("\n## Reasons\n").expect("a section of its own");
    let table = table.split("\n## ").next().unwrap();
    let rows = table.lines().filter_map(|line| Some(line.strip_prefix("| `")?.split_once("` |")?.0));
    let mut documented: Vec<&str> = rows.collect();
    let mut reasons: Vec<&str> = Reason::ALL.iter().map(|reason| reason.label()).collect();
    documented.sort_unstable();
    reasons.sort_unstable();
    assert_eq!(documented, reasons);
}
