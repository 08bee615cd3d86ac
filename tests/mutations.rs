//! Feeds tens of thousands of damaged inputs to every reader of outside bytes: the corpora, mutated
//! in the same way in every run. Not guided by coverage (`fuzz/` is), but part of every test run.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use holdfast::types::mix64;

/// Mutated inputs per reader.
const INPUTS: u64 = 20_000;
const INPUT_BYTES_MAX: usize = 64 << 10;

/// A generator that draws the same numbers for the same seed.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(1);
        (mix64(self.0) % bound.max(1) as u64) as usize
    }
}

/// Values at the edges of integer types and sizes.
const EDGES: [u64; 10] =
    [0, 1, 0x7f, 0x80, 0xff, 0xffff, 0x7fff_ffff, 0xffff_ffff, 1 << 63, u64::MAX];

/// Applies one mutation: of bits, numbers or lengths, or a piece of another input.
fn mutate(input: &mut Vec<u8>, others: &[Vec<u8>], numbers: &mut Numbers) {
    let at = numbers.below(input.len());
    let len = 1 + numbers.below(32);
    let end = (at + len).min(input.len());
    match numbers.below(9) {
        0 if !input.is_empty() => input[at] ^= 1 << numbers.below(8),
        1 if !input.is_empty() => input[at] = numbers.below(256) as u8,
        2 | 3 if !input.is_empty() => {
            let edge = EDGES[numbers.below(EDGES.len())];
            let width = [1, 2, 4, 8][numbers.below(4)].min(input.len() - at);
            let bytes = match numbers.below(2) {
                0 => edge.to_le_bytes()[..width].to_vec(),
                _ => edge.to_be_bytes()[8 - width..].to_vec(),
            };
            input[at..at + width].copy_from_slice(&bytes);
        }
        4 => drop(input.drain(at..end)),
        5 => input.truncate(at),
        6 => {
            let piece = input[at..end].to_vec();
            input.splice(at..at, piece);
        }
        7 => {
            let other = &others[numbers.below(others.len())];
            let from = numbers.below(other.len());
            let to = (from + 1 + numbers.below(512)).min(other.len());
            input.splice(at..end, other[from..to].iter().copied());
        }
        _ => input.extend((0..len).map(|_| numbers.below(256) as u8)),
    }
    input.truncate(INPUT_BYTES_MAX);
}

/// Runs a reader over the seeds and their mutations. An input that causes a panic is kept as a
/// file, for the corpus.
fn survive(name: &str, seeds: &[Vec<u8>], read: fn(&[u8])) {
    assert!(!seeds.is_empty(), "there is something to start from");
    let mut changed = 0;
    for number in 0..INPUTS {
        let mut numbers = Numbers(mix64(number));
        let seed = &seeds[number as usize % seeds.len()];
        let mut input = seed.clone();
        for _ in 0..1 + numbers.below(8) {
            mutate(&mut input, seeds, &mut numbers);
        }
        changed += u64::from(input != *seed);
        if catch_unwind(AssertUnwindSafe(|| read(&input))).is_err() {
            let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{number}"));
            std::fs::write(&file, &input).expect("keep the input");
            panic!("{name} does not survive input {number}, kept as {}", file.display());
        }
    }
    assert!(changed > INPUTS / 2, "most inputs were changed: {changed}");
}

/// The files of a corpus.
fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(name);
    // A reader that never failed has no corpus yet.
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| std::fs::read(file).unwrap()).collect()
}

/// The seeds that the code makes, then the files of a corpus.
fn corpus_and(seeds: Vec<(&'static str, Vec<u8>)>, name: &str) -> Vec<Vec<u8>> {
    seeds.into_iter().map(|(_, bytes)| bytes).chain(corpus(name)).collect()
}

#[test]
fn the_nbd_session_survives_damaged_input() {
    survive("nbd", &corpus("nbd"), holdfast::front::nbd::fuzz_one);
}

#[test]
fn the_peer_link_survives_damaged_input() {
    survive("peer", &corpus("peer"), holdfast::net::fuzz_one);
}

#[test]
fn the_superblock_and_the_recovery_of_the_log_survive_damaged_input() {
    let seeds = corpus_and(holdfast::store::fuzz_seeds(), "disk");
    survive("disk", &seeds, holdfast::store::fuzz_one);
}

#[test]
fn the_commands_and_the_metadata_of_entries_survive_damaged_input() {
    let seeds = corpus_and(holdfast::replica::fuzz_seeds(), "entry");
    survive("entry", &seeds, holdfast::replica::fuzz_one);
}

#[test]
fn the_records_of_the_index_survive_damaged_input() {
    let seeds = corpus_and(holdfast::store::index::fuzz_seeds(), "index");
    survive("index", &seeds, holdfast::store::index::fuzz_one);
}

#[test]
fn the_commands_and_the_state_of_the_catalog_survive_damaged_input() {
    let seeds = corpus_and(holdfast::control::fuzz_seeds(), "catalog");
    survive("catalog", &seeds, holdfast::control::fuzz_one);
}

#[test]
#[should_panic(expected = "does not survive input")]
fn a_reader_that_panics_is_found() {
    let reader = |input: &[u8]| assert!(!input.contains(&0xff), "it cannot stand 0xff");
    survive("reader-that-panics", &[vec![0; 64]], reader);
}
