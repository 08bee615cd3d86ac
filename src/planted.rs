//! Mistakes that tests plant into the real code, to prove that they would be found: a rule whose
//! breach no test notices is not held by anything.
//!
//! Each is one that storage systems have made, or that a reader of the design feared. Where it
//! would be made, the code asks [`planted`]; outside of tests that is a constant, and nothing of
//! it is left in the program.

/// Makes the enum, and a list of all that is in it.
macro_rules! mistakes {
    ($($(#[$text:meta])* $name:ident,)*) => {
        /// A mistake, named for what goes wrong. The rule that it breaks stands beside it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Mistake {
            $($(#[$text])* $name,)*
        }

        #[cfg(test)]
        impl Mistake {
            pub const ALL: &[Mistake] = &[$(Mistake::$name,)*];
        }
    };
}

mistakes! {
    /// R1: a batch of the log is written without being made durable.
    LogWriteNotDurable,
    /// R1: what recovery found, and nothing calls durable, is relied on as it is.
    FoundNotConfirmed,
    /// R2: the records of a round are committed without a sync of the data file before.
    IndexBeforeData,
    /// R3: the index says that everything applied is in it.
    FlushedIsNewestApplied,
    /// R3: replay applies entries to extents that already have something newer.
    ReplayOverNewer,
    /// R4: a freed slot is free before the free is durable.
    SlotReusedBeforeFlush,
    /// R4: a freed slot is free while a read of it is under way.
    SlotReusedWhileRead,
    /// R4: the slots of entries that are replaced are free before the replacement is durable.
    ReplacedSlotsReused,
    /// R5: a partial block is merged with what is stored, whatever is on its way there.
    PartialFromOldBase,
    /// R6: a redirected write is not made durable before the log names it.
    RedirectNotDurable,
    /// R6: write-back changes a slot that an entry of the log names.
    NamedSlotWritten,
    /// R7: what no durable HardState covers is written back.
    WrittenBackUncovered,
    /// R7: recovery believes the commit of the HardState, although more is written back.
    CommitBelowFlushed,
    /// An update of the superblock begins while its copies differ.
    SuperblockNotSettled,
    /// R8: the ring is given free before the superblock says so.
    TailBeforeSuperblock,
    /// R8: the lane comes to rest while a read of the log holds the tail, and stays there.
    SettledWhileRead,
    /// R8: replay of an image appends its entries to what was there.
    ImageAppends,
    /// R8: an append lets go of what it replaces before it is durable itself.
    ReplacedLetGo,
    /// R8: entries that the store goes ahead of are let go before that is durable.
    JumpLetsGo,
    /// R8: the rest of a log that a resync went beyond is judged like one that counts.
    OldHistoryCounts,
    /// The log is cut at the first bad batch, durable or not.
    CutAtFirstBad,
    /// What was cut off comes back with a later batch.
    CutComesBack,
    /// Numbers of batches that were cut off are used again.
    SequenceReused,
    /// R9: ordinary entries may fill the log to its last byte.
    NoReserve,
    /// R9: entries that are here already take room again, and are refused for want of it.
    EntriesCountedTwice,
    /// R9: a message whose entries find no room is dropped, and with it the news of commits.
    FullLogIsDeaf,
    /// R9: entries of earlier terms get no more room than new ones.
    EarlierTermsRefused,
    /// R10: entries are admitted without a slot for each.
    AdmittedWithoutSpace,
    /// R9, R10: what comes to a member that is elected and does not serve yet is not counted.
    NewLeaderTakesAll,
    /// R10: the copy of a resync takes slots that applied entries were promised.
    CopyTakesPromised,
    /// R11: a trim clears *present* above another layer.
    TrimClearsPresent,
    /// R12: what the log has of a destroyed member is replayed.
    TombstonesForgotten,
    /// R12: a member without a configuration votes.
    UninitialisedVotes,
    /// R12: a member that was destroyed is created once more under its id, and votes again.
    EmptyMemberVotes,
    /// R13: blocks are served without a look at their checksums.
    ChecksumsIgnored,
    /// R14: a lease has no end.
    LeaseWithoutEnd,
    /// R14: reads go on under the lease while another member is told to lead.
    LeaseAfterTransfer,
    /// R14: reads are served under a lease although clocks are not to be trusted.
    LeaseDespiteQuorum,
    /// R14: a leader reads before it has applied an entry of its own term.
    ReadBeforeOwnTerm,
    /// R14: a member that restarts votes at once.
    VotesAfterRestart,
    /// R14: a vote is granted while a leader is heard.
    VotesWithinLease,
    /// R15: sessions and epochs are not checked when an entry is applied.
    SessionNotChecked,
    /// R15: the term that a request is meant for is not compared.
    TermNotCompared,
    /// R15: a write whose outcome is not known is sent again as if it had never been sent.
    RetryUnderOldSession,
    /// R15: writes that overlap are sent at the same time.
    OverlapNotOrdered,
    /// R15: what a client sent is executed after it has hung up.
    ProcessedAfterHangUp,
    /// R15: writes of a connection that ended stay in the router, and hold back no later ones.
    ResentThroughSecondConnection,
    /// R16: a resync brings the blocks, and neither the epoch nor the sessions.
    SessionsNotInstalled,
    /// R16: what a checkpoint stores of the shard's metadata is what it was at the start.
    MetaNotStored,
    /// Term and vote are not written with what depends on them.
    HardStateNotLogged,
    /// The HardState of a Ready is written with a later batch than its entries.
    HardStateAfterEntries,
    /// A member that is being resynced is never elected, whoever else could be.
    ResyncNeverElected,
    /// A member whose copy is whole waits for a leader that takes it into account, and does not
    /// vote for one.
    MuteUntilInstalled,
    /// A resync leaves what its source does not have any more.
    ResyncKeepsExtents,
    /// A resync says that it reflects everything up to its end: what was written meanwhile to what
    /// it had copied before is missed.
    ResyncMissesWrites,
    /// A resync puts older extents in the place of newer ones, when the log was faster.
    ResyncGoesBack,
    /// A resync ends before the log covers what was copied last.
    ResyncEndsEarly,
    /// A copy that is older than the one before is put in place, and what that had brought of later
    /// entries is believed to be there still.
    OlderCopyOverlooked,
    /// Links of resyncs are kept, although nothing comes over them any more.
    DeadResyncLinkKept,
    /// The store goes ahead of the log, although the log went on since the lists were compared.
    JumpOverApplied,
    /// A member that a crash left with half of a resync is a source for others.
    SourceWithMark,
    /// A leader with the mark is none, even for those that it needs.
    MarkedLeaderIsNoSource,
    /// A resync is acknowledged to the leader before what it copied is durable.
    ResyncAcksBeforeData,
    /// A router takes no leader of a term before one that it heard of, although nobody leads in
    /// that.
    TermWithoutLeader,
    /// Volumes share the bound on what is under way, and one without a quorum uses it up.
    VolumesShareBudget,
    /// Answers to appends and votes leave before what they promise is durable.
    AnsweredBeforeDurable,
    /// An entry that conflicts with what is logged is added to it.
    SuffixNotTruncated,
    /// The catalog answers when a command is in the leader's own log.
    CatalogAnswersEarly,
    /// Members of the catalog get an id that the next one gets, too.
    CatalogMemberReused,
    /// A learner of the catalog becomes a voter before it has the state.
    CatalogLearnerEarly,
    /// A pod that has registered does not look whether it stays so.
    RegistersOnce,
    /// A request of the catalog that is sent again is carried out again.
    CatalogRequestTwice,
}

#[cfg(test)]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Mistake>> = const { std::cell::Cell::new(None) };
}

/// True when this mistake is to be made, on this thread.
#[cfg(test)]
pub fn planted(mistake: Mistake) -> bool {
    PLANTED.get() == Some(mistake)
}

/// Runs `what` with the mistake made on this thread.
#[cfg(test)]
pub fn with<T>(mistake: Mistake, what: impl FnOnce() -> T) -> T {
    struct Pull;
    impl Drop for Pull {
        fn drop(&mut self) {
            PLANTED.set(None);
        }
    }
    PLANTED.set(Some(mistake));
    let _pull = Pull;
    what()
}

/// See the module: never, outside of tests.
#[cfg(not(test))]
#[inline(always)]
pub const fn planted(_: Mistake) -> bool {
    false
}

/// True when `scenario` panics with the mistake made.
#[cfg(test)]
pub fn is_found(mistake: Mistake, scenario: impl FnOnce()) -> bool {
    let ran = std::panic::AssertUnwindSafe(|| with(mistake, scenario));
    std::panic::catch_unwind(ran).is_err()
}

/// Fails unless `scenario` fails with the mistake made. That it passes without is a test of its
/// own.
#[cfg(test)]
pub fn assert_found(mistake: Mistake, scenario: fn()) {
    assert!(is_found(mistake, scenario), "{mistake:?} was not noticed");
}
