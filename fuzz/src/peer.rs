//! What another pod sends: greetings, frames, messages.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| holdfast_fuzz::testing::fuzz::peer::fuzz_one(input));
