//! Configurations, manifests and questions: `cargo +nightly fuzz run text` in `control`.
#![no_main]

#[path = "../../tests/common/text.rs"]
mod text;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let file = format!("/dev/shm/nomagic-fuzz-{}.yaml", std::process::id());
    text::run(data, std::path::Path::new(&file));
});
