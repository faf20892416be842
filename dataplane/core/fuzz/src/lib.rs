//! Fuzz targets of the packet path and of its tables. A target is a function from bytes to a panic or none.
//!
//! `make fuzz` runs them under libFuzzer, on stable Rust: the compiler's coverage passes need no nightly, only sanitizers do. The tests replay
//! each target's corpus, in which are the inputs that libFuzzer has grown, and those that once failed.
#![forbid(unsafe_code)]

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

pub mod flows;
pub mod frames;
pub mod input;
pub mod region;
pub mod replies;

/// Minimum number of inputs in a corpus: an empty one would prove nothing.
const INPUTS_MIN: usize = 5;

/// Runs all inputs of a target's corpus, in the directory `corpus/TARGET` of a package.
///
/// # Panics
/// If there are fewer than five inputs, or if an input fails; then its name has been printed last.
pub fn replay(package: &str, target: &str, run: impl Fn(&[u8])) {
    let corpus = Path::new(package).join("corpus").join(target);
    let entries = std::fs::read_dir(&corpus).unwrap_or_else(|e| panic!("{}: {e}", corpus.display()));
    let mut inputs: Vec<_> = entries.map(|entry| entry.expect("a directory entry").path()).collect();
    inputs.sort();
    for input in &inputs {
        println!("{}", input.display());
        run(&std::fs::read(input).expect("a file of the corpus"));
    }
    assert!(inputs.len() >= INPUTS_MIN, "{}: {} inputs", corpus.display(), inputs.len());
}

/// Word of a table's header that has the number of index buckets, and the place of the first: see `region.rs` of the core.
const BUCKETS: usize = 3;
const INDEX_AT: usize = 64;
/// Entries of a bucket.
const BUCKET_ENTRIES: usize = 8;

/// Entries in the index of a table. In an empty one there are none, else places are lost with each flow.
fn index_entries(words: &[AtomicU64]) -> usize {
    let len = words[BUCKETS].load(Ordering::Relaxed) as usize * BUCKET_ENTRIES;
    words[INDEX_AT..][..len].iter().filter(|entry| entry.load(Ordering::Relaxed) != 0).count()
}
