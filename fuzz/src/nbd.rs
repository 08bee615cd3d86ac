//! What an NBD client sends: options and requests.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| holdfast_fuzz::testing::fuzz::nbd::fuzz_one(input));
