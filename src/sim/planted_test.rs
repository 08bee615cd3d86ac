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
        CommitBelowFlushed,
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
        EmptyMemberVotes,
        ChecksumsIgnored,
        LeaseWithoutEnd,
        LeaseAfterTransfer,
        LeaseDespiteQuorum,
        ReadBeforeOwnTerm,
        VotesAfterRestart,
        VotesWithinLease,
        SessionNotChecked,
        TermNotCompared,
        RetryUnderOldSession,
        OverlapNotOrdered,
        ProcessedAfterHangUp,
        ResentThroughSecondConnection,
        SessionsNotInstalled,
        MetaNotStored,
        HardStateNotLogged,
        HardStateAfterEntries,
        ResyncKeepsExtents,
        ResyncMissesWrites,
        ResyncGoesBack,
        ResyncEndsEarly,
        SourceWithMark,
        ResyncAcksBeforeData,
        VolumesShareBudget,
        AnsweredBeforeDurable,
        SuffixNotTruncated,
    ];
    let next = std::sync::atomic::AtomicUsize::new(0);
    let most: u64 = std::env::var("MOST").ok().and_then(|most| most.parse().ok()).unwrap_or(40);
    let skip: usize = std::env::var("SKIP").ok().and_then(|most| most.parse().ok()).unwrap_or(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let at = skip + next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    let Some(mistake) = all.get(at) else { return };
                    let start = std::time::Instant::now();
                    let found = found_by(*mistake, most);
                    eprintln!(
                        "PLANTED {mistake:?}: {:?} {:.1?}",
                        found.map(|(seed, how)| (seed, how.chars().take(110).collect::<String>())),
                        start.elapsed()
                    );
                }
            });
        }
    });
}
