//! What a leader does for a follower that copies the store: it keeps the log from the start of the
//! copy's round on, in memory and within bounds. It slows clients down when rounds do not shrink
//! (rule `resync-slows-clients`).

use crate::planted::planted;

/// Ticks for which the log is kept for a follower that copies. A little longer than a copying
/// follower waits without an answer.
const KEEP_TICKS: u32 = 150;

/// The rounds of a copy, as its source sees them. Bytes count all that was applied here.
#[derive(Default)]
pub struct LogKeep {
    round: Option<Round>,
    /// Something may be proposed before the next tick.
    has_turn: bool,
}

#[derive(Clone, Copy, Debug)]
struct Round {
    /// Entries after this one are kept.
    above: u64,
    ticks: u32,
    /// What was applied when the round began.
    since_bytes: u64,
    /// Bytes that were applied during the round before.
    before_bytes: Option<u64>,
}

impl LogKeep {
    /// A follower begins a round (`anew`), or goes on with it.
    pub fn keep(&mut self, anew: bool, applied_index: u64, applied_bytes: u64) {
        let last = self.round;
        if anew {
            self.round = Some(Round {
                above: applied_index,
                ticks: 0,
                since_bytes: applied_bytes,
                before_bytes: last.map(|last| applied_bytes - last.since_bytes),
            });
        }
        if let Some(round) = &mut self.round {
            round.ticks = KEEP_TICKS;
        }
    }

    pub fn tick(&mut self) {
        let left = |round: Round| Some(Round { ticks: round.ticks.checked_sub(1)?, ..round });
        self.round = self.round.and_then(left);
        self.has_turn = true;
    }

    pub fn end(&mut self) {
        self.round = None;
    }

    /// Entries after this index are kept.
    pub fn above(&self) -> Option<u64> {
        self.round.map(|round| round.above)
    }

    /// `MsgAppend`s that may be proposed now: one per tick while clients write more than half of
    /// `kept_bytes_max` in a round, and hardly less than in the round before. So the log that the
    /// follower needs at the end of its last round does not run away.
    pub fn proposals(&self, applied_bytes: u64, kept_bytes_max: usize) -> usize {
        let is_slow = self.round.is_some_and(|round| {
            let bytes = applied_bytes - round.since_bytes;
            let shrinks = round.before_bytes.is_none_or(|before| bytes <= before - before / 4);
            !shrinks && bytes > kept_bytes_max as u64 / 2 && !planted!(ResyncNeverSlows)
        });
        if is_slow { usize::from(self.has_turn) } else { usize::MAX }
    }

    pub fn proposed(&mut self) {
        self.has_turn = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::planted::{Mistake, assert_found};

    const MIB: u64 = 1 << 20;

    /// Clients write as much in the second round as in the first.
    fn rounds_that_do_not_shrink() {
        let mut keep = LogKeep::default();
        let proposals = |keep: &LogKeep, mib: u64| keep.proposals(mib * MIB, 64 << 20);
        keep.keep(true, 10, 0);
        assert_eq!(proposals(&keep, 500), usize::MAX, "the first round is as long as it is");
        keep.keep(true, 90, 100 * MIB);
        assert_eq!(keep.above(), Some(90));
        assert_eq!(proposals(&keep, 170), usize::MAX, "30 % less");
        assert_eq!(proposals(&keep, 180), 0);
        keep.tick();
        assert_eq!(proposals(&keep, 180), 1);
        keep.proposed();
        assert_eq!(proposals(&keep, 180), 0);
        keep.end();
        assert_eq!((proposals(&keep, 500), keep.above()), (usize::MAX, None));
    }

    #[test]
    fn clients_are_slowed_when_rounds_do_not_shrink() {
        rounds_that_do_not_shrink();
        assert_found(Mistake::ResyncNeverSlows, rounds_that_do_not_shrink);
    }

    #[test]
    fn little_is_never_slowed_and_a_copy_that_ends_without_a_word_is_forgotten() {
        let mut keep = LogKeep::default();
        keep.keep(true, 1, 0);
        keep.keep(true, 2, MIB);
        assert_eq!(keep.proposals(20 * MIB, 64 << 20), usize::MAX);
        keep.keep(false, 3, 30 * MIB);
        assert_eq!(keep.above(), Some(2));
        assert_eq!(keep.proposals(40 * MIB, 64 << 20), 0);
        (0..=KEEP_TICKS).for_each(|_| keep.tick());
        assert_eq!((keep.above(), keep.proposals(50 * MIB, 64 << 20)), (None, usize::MAX));
        keep.keep(false, 9, 60 * MIB);
        assert_eq!(keep.above(), None, "only a round that began here is known");
    }
}
