//! What a disk holds at its start: the superblock, the log.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| holdfast_fuzz::testing::fuzz::disk::fuzz_one(input));
