//! Everything that reads bytes from outside, against tens of thousands of damaged inputs: the
//! corpora, mutated in a way that is the same in every run. Not guided by coverage (`fuzz/` is),
//! but part of every test run.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::corpora_test::{READERS, corpus};
use crate::sim::rng::Rng;

/// Mutated inputs per reader.
const INPUTS: u64 = 20_000;
const INPUT_BYTES_MAX: usize = 64 << 10;

/// Values that lie at the edges of something.
const EDGES: [u64; 10] =
    [0, 1, 0x7f, 0x80, 0xff, 0xffff, 0x7fff_ffff, 0xffff_ffff, 1 << 63, u64::MAX];

/// One change: of bits, of numbers, of lengths, or a piece of another input.
fn mutate(input: &mut Vec<u8>, others: &[Vec<u8>], rng: &mut Rng) {
    let mut below = |bound: usize| rng.below(bound.max(1) as u64) as usize;
    let at = below(input.len());
    let len = 1 + below(32);
    let end = (at + len).min(input.len());
    match below(9) {
        0 if !input.is_empty() => input[at] ^= 1 << below(8),
        1 if !input.is_empty() => input[at] = below(256) as u8,
        2 | 3 if !input.is_empty() => {
            let edge = EDGES[below(EDGES.len())];
            let width = [1, 2, 4, 8][below(4)].min(input.len() - at);
            let bytes = match below(2) {
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
            let other = &others[below(others.len())];
            let from = below(other.len());
            let to = (from + 1 + below(512)).min(other.len());
            input.splice(at..end, other[from..to].iter().copied());
        }
        _ => input.extend((0..len).map(|_| below(256) as u8)),
    }
    input.truncate(INPUT_BYTES_MAX);
}

/// Runs a reader over the seeds and over what becomes of them. An input that makes it panic is
/// kept as a file, to be put into the corpus.
fn run(name: &str, seeds: &[Vec<u8>], read: fn(&[u8])) {
    assert!(!seeds.is_empty(), "there is something to start from");
    let mut changed = 0;
    for number in 0..INPUTS {
        let mut rng = Rng::new(number);
        let seed = &seeds[number as usize % seeds.len()];
        let mut input = seed.clone();
        for _ in 0..1 + rng.below(8) {
            mutate(&mut input, seeds, &mut rng);
        }
        changed += u64::from(input != *seed);
        if catch_unwind(AssertUnwindSafe(|| read(&input))).is_err() {
            let (_, file) = tempfile::Builder::new()
                .prefix(&format!("{name}-{number}-"))
                .tempfile()
                .and_then(|file| Ok(file.keep()?))
                .expect("a file for the input");
            std::fs::write(&file, &input).expect("keep the input");
            panic!("{name} does not survive input {number}, kept as {}", file.display());
        }
    }
    assert!(changed > INPUTS / 2, "most inputs were changed: {changed}");
}

/// A reader against the seeds that the code makes, and against its corpus.
fn survive(name: &str) {
    let reader = READERS.iter().find(|reader| reader.name == name).expect("a reader");
    let seeds = (reader.seeds)().into_iter().map(|(_, bytes)| bytes);
    let seeds: Vec<_> = seeds.chain(corpus(name).into_iter().map(|(_, bytes)| bytes)).collect();
    run(name, &seeds, reader.fuzz_one);
}

#[test]
fn the_nbd_session_survives_damaged_input() {
    survive("nbd");
}

#[test]
fn the_peer_link_survives_damaged_input() {
    survive("peer");
}

#[test]
fn the_superblock_and_the_recovery_of_the_log_survive_damaged_input() {
    survive("disk");
}

#[test]
fn the_commands_and_the_metadata_of_entries_survive_damaged_input() {
    survive("entry");
}

#[test]
fn the_records_of_the_index_survive_damaged_input() {
    survive("index");
}

#[test]
fn the_commands_and_the_state_of_the_catalog_survive_damaged_input() {
    survive("catalog");
}

#[test]
#[should_panic(expected = "does not survive input")]
fn a_reader_that_panics_is_found() {
    let reader = |input: &[u8]| assert!(!input.contains(&0xff), "it cannot stand 0xff");
    run("reader-that-panics", &[vec![0; 64]], reader);
}
