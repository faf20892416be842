//! `make fuzz FUZZ_TARGETS=frames`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nomagic_core_fuzz::frames::run(data));
