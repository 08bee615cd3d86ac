//! Replays the corpora of all readers of bytes from outside, and pins their formats: the seeds that
//! the code makes today must be the bytes that are kept in `tests/corpus`.
//!
//! What a fuzzer finds is added to the folder of its reader.

use std::fs;
use std::path::{Path, PathBuf};

use super::fuzz::{Seeds, catalog, disk, entry, index, nbd, peer};

/// One reader and its folder of the corpus.
pub(super) struct Reader {
    pub name: &'static str,
    /// What the code makes for it.
    pub seeds: fn() -> Seeds,
    pub fuzz_one: fn(&[u8]),
    /// What has one encoding only. JSON may get more fields.
    is_pinned: bool,
}

#[rustfmt::skip]
pub(super) const READERS: [Reader; 6] = [
    Reader { name: "nbd", seeds: Vec::new, fuzz_one: nbd::fuzz_one, is_pinned: true },
    Reader { name: "peer", seeds: peer::fuzz_seeds, fuzz_one: peer::fuzz_one, is_pinned: true },
    Reader { name: "disk", seeds: disk::fuzz_seeds, fuzz_one: disk::fuzz_one, is_pinned: true },
    Reader { name: "index", seeds: index::fuzz_seeds, fuzz_one: index::fuzz_one, is_pinned: true },
    Reader { name: "entry", seeds: entry::fuzz_seeds, fuzz_one: entry::fuzz_one, is_pinned: true },
    Reader {
        name: "catalog",
        seeds: catalog::fuzz_seeds,
        fuzz_one: catalog::fuzz_one,
        is_pinned: false,
    },
];

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(name)
}

/// The inputs of a corpus with their paths, in the order of their names.
pub(super) fn corpus(name: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = fs::read_dir(folder(name)).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let with_bytes = |path: PathBuf| fs::read(&path).map(|bytes| (path, bytes)).unwrap();
    paths.into_iter().map(with_bytes).collect()
}

#[test]
fn every_input_of_the_corpora_is_survived() {
    for Reader { name, seeds, fuzz_one, .. } in READERS {
        let inputs = corpus(name);
        assert!(inputs.len() >= seeds().len().max(1), "the corpus of {name} is there");
        for (path, input) in inputs {
            eprintln!("{}", path.display());
            fuzz_one(&input);
        }
    }
}

/// The first byte says in which pieces the rest arrives, and how requests are answered.
#[test]
fn the_nbd_session_survives_its_corpus_in_every_mode() {
    let inputs = corpus("nbd");
    assert!(inputs.len() >= 20, "the corpus is there");
    for (path, mut input) in inputs {
        eprintln!("{}", path.display());
        for mode in 0..16 {
            let Some(first) = input.first_mut() else { continue };
            *first = mode;
            nbd::fuzz_one(&input);
        }
    }
}

/// A change here is a change of a format: disks of older programs must still be read, and a new
/// peer protocol has a new version. New seeds are written by `HOLDFAST_WRITE_CORPUS=1 cargo test
/// --release --lib corpora`.
#[test]
fn the_formats_have_not_changed() {
    for Reader { name, seeds, is_pinned, .. } in READERS {
        for (seed, bytes) in seeds() {
            let path = folder(name).join(seed);
            if std::env::var_os("HOLDFAST_WRITE_CORPUS").is_some() && !path.exists() {
                fs::create_dir_all(folder(name)).unwrap();
                fs::write(&path, &bytes).unwrap();
            }
            let kept = fs::read(&path).unwrap_or_else(|e| panic!("read {}: {e}", path.display()));
            let same = kept == bytes || !is_pinned;
            assert!(same, "{name}/{seed} is encoded in another way than it was");
        }
    }
}
