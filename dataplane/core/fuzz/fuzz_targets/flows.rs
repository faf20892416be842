//! `make fuzz FUZZ_TARGETS=flows`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nomagic_core_fuzz::flows::run(data));
