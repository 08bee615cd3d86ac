//! Mistakes that the simulator finds, and within how many seeds.

use std::time::Duration;

use super::{Options, run};
use crate::planted::{Mistake, with};

/// The first seed that shows the mistake, as a violation or as a broken assertion.
fn found_by(mistake: Mistake, seeds: u64, seconds: u64) -> Option<u64> {
    (1..=seeds).find(|seed| {
        let options = Options::new(*seed, Duration::from_secs(seconds));
        with(mistake, || run(&options)).is_err()
    })
}

#[test]
fn mistakes_are_found_within_so_many_seeds() {
    let mistakes = [
        (Mistake::LogWriteNotDurable, 3),
        (Mistake::IndexBeforeData, 8),
        (Mistake::FlushedIsNewestApplied, 2),
        (Mistake::SlotReusedBeforeFlush, 4),
    ];
    for (mistake, seeds) in mistakes {
        assert!(found_by(mistake, seeds, 12).is_some(), "{mistake:?} was not found");
    }
}
