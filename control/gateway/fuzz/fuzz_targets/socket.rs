//! `make fuzz FUZZ_TARGETS=socket`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nomagic_fuzz::socket::run(data));
