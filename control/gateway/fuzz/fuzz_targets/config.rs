//! `make fuzz FUZZ_TARGETS=config`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nomagic_fuzz::config::run(data));
