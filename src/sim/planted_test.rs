//! Mistakes that the simulator finds, and within how many seeds.

use std::time::Duration;

use super::{Options, run};
use crate::planted::{Mistake, with};

const FAULTS_FOR: Duration = Duration::from_secs(20);

/// The first seed that shows the mistake, and how.
fn found_by(mistake: Mistake, seeds: u64) -> Option<(u64, String)> {
    (1..=seeds).find_map(|seed| {
        let options = Options::new(seed, FAULTS_FOR);
        let violation = with(mistake, || run(&options)).err()?;
        Some((seed, violation.to_string()))
    })
}

#[test]
fn measure() {
    use Mistake::*;
    let all = [
        LogWriteNotDurable,
        IndexBeforeData,
        FlushedIsNewestApplied,
        ReplayOverNewer,
        SlotReusedBeforeFlush,
        SlotReusedWhileRead,
        ReplacedSlotsReused,
        PartialFromOldBase,
        RedirectNotDurable,
        NamedSlotWritten,
        WrittenBackUncovered,
        TailBeforeSuperblock,
        SettledWhileRead,
        ImageAppends,
        ReplacedLetGo,
        CutAtFirstBad,
        CutComesBack,
        SequenceReused,
        NoReserve,
        AdmittedWithoutSpace,
        TrimClearsPresent,
        TombstonesForgotten,
        UninitialisedVotes,
        ChecksumsIgnored,
        LeaseWithoutEnd,
        LeaseAfterTransfer,
        ReadBeforeOwnTerm,
        VotesAfterRestart,
        VotesWithinLease,
        SessionNotChecked,
        TermNotCompared,
        RetryUnderOldSession,
        OverlapNotOrdered,
        MetaNotStored,
        HardStateNotLogged,
        ResyncKeepsExtents,
        ResyncMissesWrites,
        ResyncGoesBack,
        ResyncEndsEarly,
        AnsweredBeforeDurable,
        SuffixNotTruncated,
    ];
    for mistake in all {
        let start = std::time::Instant::now();
        let found = found_by(mistake, 60);
        eprintln!(
            "PLANTED {mistake:?}: {:?} {:.1?}",
            found.map(|(seed, how)| (seed, how.chars().take(110).collect::<String>())),
            start.elapsed()
        );
    }
}
