//! `make fuzz FUZZ_TARGETS=region`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nomagic_core_fuzz::region::run(data));
