//! What tests stand on, and nothing of a release: *fixtures* (a part with a world around it, in
//! which one situation can be told step by step), and one run of a fuzzer per reader of bytes from
//! outside.
//!
//! A fixture that needs what only its part sees is a module of that part, and its file is here:
//! `pod_fixture` of `worker`, `fuzz/index` of `store::index`.

pub mod catalog_fixture;
pub mod crash_disk;
pub mod fuzz;
pub mod group_fixture;
pub mod lane_fixture;
pub mod log_fixture;
pub mod nbd_fixture;
pub mod null_data_path;
pub mod peer_fixture;
pub mod stream_fixture;
pub mod tls_fixture;

mod corpora_test;
mod mutations_test;
