//! Replays the corpora of the on-disk formats, and pins these formats: today's code must make
//! exactly the seeds in `tests/corpus`.
//!
//! Fuzzers call the same readers; their findings are added to the folders.

use std::fs;
use std::path::PathBuf;

/// One reader and its folder of the corpus.
struct Reader {
    name: &'static str,
    /// Makes today's seeds.
    seeds: fn() -> Vec<(&'static str, Vec<u8>)>,
    read: fn(&[u8]),
    /// True for formats with exactly one encoding. JSON may get more fields.
    is_pinned: bool,
}

const READERS: [Reader; 4] = [
    Reader {
        name: "disk",
        seeds: holdfast::store::fuzz_seeds,
        read: holdfast::store::fuzz_one,
        is_pinned: true,
    },
    Reader {
        name: "index",
        seeds: holdfast::store::index::fuzz_seeds,
        read: holdfast::store::index::fuzz_one,
        is_pinned: true,
    },
    Reader {
        name: "entry",
        seeds: holdfast::replica::fuzz_seeds,
        read: holdfast::replica::fuzz_one,
        is_pinned: true,
    },
    Reader {
        name: "catalog",
        seeds: holdfast::control::fuzz_seeds,
        read: holdfast::control::fuzz_one,
        is_pinned: false,
    },
];

fn corpus(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(name)
}

#[test]
fn every_input_of_the_corpora_is_survived() {
    for Reader { name, seeds, read, .. } in READERS {
        let mut count = 0;
        for entry in fs::read_dir(corpus(name)).unwrap() {
            let path = entry.unwrap().path();
            eprintln!("{}", path.display());
            read(&fs::read(&path).unwrap());
            count += 1;
        }
        assert!(count >= seeds().len(), "the corpus of {name} is there");
    }
}

/// A change here is a change of a format: disks of older programs must still be read. New seeds are
/// written by `HOLDFAST_WRITE_CORPUS=1 cargo test --release --test disk_corpus`.
#[test]
fn the_formats_have_not_changed() {
    for Reader { name, seeds, is_pinned, .. } in READERS {
        for (seed, bytes) in seeds() {
            let path = corpus(name).join(seed);
            if std::env::var_os("HOLDFAST_WRITE_CORPUS").is_some() && !path.exists() {
                fs::create_dir_all(corpus(name)).unwrap();
                fs::write(&path, &bytes).unwrap();
            }
            let kept = fs::read(&path).unwrap_or_else(|e| panic!("read {}: {e}", path.display()));
            let same = kept == bytes || !is_pinned;
            assert!(same, "{name}/{seed} is encoded in another way than it was");
        }
    }
}
