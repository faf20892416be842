//! `make fuzz FUZZ_TARGETS=manifests`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nomagic_fuzz::manifests::run(data));
