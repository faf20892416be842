//! `make fuzz FUZZ_TARGETS=replies`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nomagic_core_fuzz::replies::run(data));
