//! What the index of a disk holds: its keys and records.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| holdfast_fuzz::testing::fuzz::index::fuzz_one(input));
