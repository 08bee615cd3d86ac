//! Replays the corpus of the peer protocol, and pins its format: today's code must make exactly the
//! seeds in `tests/corpus/peer`.
//!
//! A fuzzer calls `holdfast::net::fuzz_one`; its findings are added to that folder.

use std::fs;
use std::path::PathBuf;

fn corpus() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/peer")
}

#[test]
fn every_input_of_the_corpus_is_survived() {
    let mut count = 0;
    for entry in fs::read_dir(corpus()).unwrap() {
        let path = entry.unwrap().path();
        eprintln!("{}", path.display());
        holdfast::net::fuzz_one(&fs::read(&path).unwrap());
        count += 1;
    }
    assert!(count >= holdfast::net::fuzz_seeds().len());
}

/// A change here is a change of the protocol: raise its version and keep reading the old one. New
/// seeds are written by `HOLDFAST_WRITE_CORPUS=1 cargo test --release --test peer_corpus`.
#[test]
fn the_format_has_not_changed() {
    for (name, bytes) in holdfast::net::fuzz_seeds() {
        let path = corpus().join(name);
        if std::env::var_os("HOLDFAST_WRITE_CORPUS").is_some() && !path.exists() {
            fs::write(&path, &bytes).unwrap();
        }
        let kept = fs::read(&path).unwrap_or_else(|e| panic!("read {}: {e}", path.display()));
        assert!(kept == bytes, "{name} is encoded in another way than it was");
    }
}
