//! `make fuzz FUZZ_TARGETS=rules`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nomagic_fuzz::rules::run(data));
