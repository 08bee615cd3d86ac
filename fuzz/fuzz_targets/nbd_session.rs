//! Arbitrary bytes from an NBD client.
//! `cargo +nightly fuzz run nbd_session tests/corpus/nbd`

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| holdfast::front::nbd::fuzz_one(input));
