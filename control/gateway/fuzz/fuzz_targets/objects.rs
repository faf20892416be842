//! `make fuzz FUZZ_TARGETS=objects`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nomagic_fuzz::objects::run(data));
