//! What the members of the catalog read: its commands and its state.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| holdfast_fuzz::control::fuzz_one(input));
