//! Configurations, manifests and flows to explain: `cargo +nightly fuzz run text` in `control/gateway`.
#![no_main]

/// The same code as in the integration tests, which replay the corpus.
mod text {
    include!("../../tests/it/common/text.rs");
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let file = format!("/dev/shm/nomagic-fuzz-{}.yaml", std::process::id());
    text::run(data, std::path::Path::new(&file));
});
