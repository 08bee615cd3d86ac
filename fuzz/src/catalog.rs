//! What the members of the catalog read: its commands and its state.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| holdfast_fuzz::testing::fuzz::catalog::fuzz_one(input));
