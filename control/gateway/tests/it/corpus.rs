//! The fuzzers' corpus of what people write, replayed.

use std::path::Path;

use crate::common::text;

#[test]
fn the_corpus_is_replayed() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/text");
    let scratch = tempfile::tempdir().expect("a directory");
    let mut inputs = 0;
    for entry in std::fs::read_dir(&corpus).expect("the corpus is part of the project") {
        let input = std::fs::read(entry.expect("an entry").path()).expect("a file");
        text::run(&input, &scratch.path().join("input.yaml"));
        inputs += 1;
    }
    println!("{inputs} inputs replayed from {}", corpus.display());
    assert!(inputs >= 10);
}
