//! Mistakes that tests plant into the real code, to prove that a test would find them. A rule whose
//! breach no test notices is not kept by anything.
//!
//! Each is a mistake that storage systems have made, or that a reader of the design feared. At its
//! place the code asks `planted`. Outside of tests that is a constant `false`, and the compiler
//! removes it.

/// Makes the enum and the list of its variants.
macro_rules! mistakes {
    ($($(#[$text:meta])* $name:ident,)*) => {
        /// A planted mistake, named for its effect. Its docstring names the rules that it breaks.
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
    /// `durable-before-ack`: a batch of the log is written but not made durable.
    LogWriteNotDurable,
    /// `confirm-what-was-found`: recovery trusts a found batch that no durable mark covers.
    FoundNotConfirmed,
    /// `data-before-index`: a round commits its records without a sync of the data file before.
    IndexBeforeData,
    /// `data-before-index`: a sync covers only the first data file.
    OneDataFileSynced,
    /// `flushed-is-a-low-water-mark`: the index claims to have everything that is applied.
    FlushedIsNewestApplied,
    /// `replay-skips-newer`: replay applies entries to extents with newer content.
    ReplayOverNewer,
    /// `slot-reuse-after-durable-free`: a freed slot is reused before the free is durable.
    SlotReusedBeforeFlush,
    /// `slot-pinned-while-read`: a freed slot is reused while a read of it is in flight.
    SlotReusedWhileRead,
    /// `slot-reuse-after-durable-free`: slots of replaced entries are reused too early.
    ReplacedSlotsReused,
    /// `whole-blocks-in-log`: a partial block is merged with a base that misses writes in flight.
    PartialFromOldBase,
    /// `bypass-before-batch`: a bypassed write is not durable when the log names it.
    BypassNotDurable,
    /// `named-slot-is-immutable`: write-back changes a slot that a log entry names.
    NamedSlotWritten,
    /// `write-back-after-durable-commit`: an entry that no durable HardState covers is written
    /// back.
    WrittenBackUncovered,
    /// `recovery-commit-covers-flushed`: the HardState's commit counts, although more is written
    /// back.
    CommitBelowFlushed,
    /// `incarnation-per-open`: a superblock from before the newest open is believed.
    OldSuperblockTrusted,
    /// `superblock-copies-settled`: an update of the superblock begins while its copies differ.
    SuperblockNotSettled,
    /// `tail-after-superblock`: the ring is freed before the superblock says so.
    TailBeforeSuperblock,
    /// `idle-members-free-the-tail`: a lane settles while a read of the log holds the tail.
    SettledWhileRead,
    /// `idle-members-free-the-tail`: the totals over members miss changes after the first.
    ChangeNotCounted,
    /// `log-snapshot-replaces`: replay of a log snapshot appends its entries to the ones before it.
    LogSnapshotAppends,
    /// `kept-until-replaced`: an append releases what it replaces before the append is durable.
    ReplacedLetGo,
    /// `kept-until-replaced`: entries below a jump are released before the jump is durable.
    JumpLetsGo,
    /// `other-history-is-void`: the rest of a log that a resync jumped over still counts.
    OldHistoryCounts,
    /// `no-silent-cut`: the log is cut at the first bad batch, durable or not.
    CutAtFirstBad,
    /// `cut-stays-cut`: batches that were cut off come back with a later batch.
    CutComesBack,
    /// `sequence-never-reused`: sequences of batches that were cut off are used again.
    SequenceReused,
    /// `log-reserve`: ordinary entries may fill the log to its last byte.
    NoReserve,
    /// `full-log-still-commits`: entries that are already here need room again, and are refused.
    EntriesCountedTwice,
    /// `full-log-still-commits`: a message is dropped whole when its entries find no room.
    FullLogIsDeaf,
    /// `full-log-still-commits`: entries of earlier terms get no more room than new ones.
    EarlierTermsRefused,
    /// `overlay-is-bounded`: what a change will take of the overlay is charged nowhere.
    DiscardUncharged,
    /// `trimmed-space-comes-back`: only slots that are free already count.
    TrimmedSpaceForgotten,
    /// `trimmed-space-comes-back`: a trim of a part of a block leaves the block as it is.
    TrimLeavesEdges,
    /// `data-before-index`: write-back zeroes blocks of an extent that a newer entry wrote.
    TrimBelowNewerWrite,
    /// `space-before-append`: entries are admitted without a slot for each.
    AdmittedWithoutSpace,
    /// `log-reserve`, `space-before-append`: an elected member counts no requests before it serves.
    NewLeaderTakesAll,
    /// `space-before-append`: a resync takes slots that are promised to applied entries.
    CopyTakesPromised,
    /// `trim-hides-lower-layers`: a trim clears *present* above another layer.
    TrimClearsPresent,
    /// `destroyed-stays-destroyed`: the log of a destroyed member is replayed.
    TombstonesForgotten,
    /// `uninitialised-never-votes`: a member without a configuration votes.
    UninitialisedVotes,
    /// `destroyed-stays-destroyed`: a destroyed member is created again, and votes.
    EmptyMemberVotes,
    /// `verify-before-serving`: blocks are served without a check of their checksums.
    ChecksumsIgnored,
    /// `lease-ends-before-election`: a lease has no end.
    LeaseWithoutEnd,
    /// `no-lease-after-transfer`: reads use the lease after another member was told to lead.
    LeaseAfterTransfer,
    /// `quorum-reads-trust-no-clock`: reads use a lease, although no clock is trusted.
    LeaseDespiteQuorum,
    /// `rest-ends-with-the-beat`: resting followers miss that their leader's lane beats no more.
    SleepsOn,
    /// `own-term-before-reading`: a leader reads before it has applied an entry of its own term.
    ReadBeforeOwnTerm,
    /// `no-vote-within-lease`: a restarted member votes at once.
    VotesAfterRestart,
    /// `no-vote-within-lease`: a member grants a vote while it hears a leader.
    VotesWithinLease,
    /// `session-checked-at-apply`: attachment and session are not checked when a write is applied.
    SessionNotChecked,
    /// `session-checked-at-apply`: a session above the recorded one counts, too.
    HigherSessionCounts,
    /// `session-checked-at-apply`: a leader serves reads to clients that are fenced.
    FencedReadServed,
    /// `read-only-at-apply`: writes under a read-only attachment take effect.
    ReadOnlyWrites,
    /// `access-changes-by-entry`: a write whose attachment is not in the access set takes it over.
    WriteChangesAccess,
    /// `fenced-for-ever`: an access set takes an attachment that was fenced before.
    FencedIdAdmitted,
    /// `grant-waits-for-all-shards`: a round ends when a majority of the shards have answered.
    GrantByMajority,
    /// `grant-waits-for-all-shards`: a shard answers before the entry is committed.
    FenceAnswersEarly,
    /// `touch-before-anything`: the first request to a shard goes without a touch.
    FirstRequestUntouched,
    /// `outdone-hangs-up`: a session that renews another follows those of other front ends, too.
    RenewsOverOthers,
    /// `term-checked-at-propose`: the term of a request is not compared.
    TermNotCompared,
    /// `resend-in-new-session`: a write of unknown outcome is sent again under its old session.
    RetryUnderOldSession,
    /// `sessions-only-grow`: a refused session is followed by the next one, however high the
    /// recorded one is.
    RefusedSessionCountsOn,
    /// `outdone-hangs-up`: a front end that was outdone sends its requests again in a higher
    /// session.
    OutdoneGoesOn,
    /// `timed-out-keeps-its-place`: a write that timed out is forgotten, and may come after later
    /// ones.
    TimedOutForgotten,
    /// `overlapping-writes-in-order`: overlapping writes are sent at the same time.
    OverlapNotOrdered,
    /// `hang-up-before-execute`: requests of a client are executed after it has hung up.
    ProcessedAfterHangUp,
    /// `a-line-has-one-connection`: the older connection of a line goes on.
    OldLineGoesOn,
    /// `ended-connection-hands-over-nothing`: later writes do not wait for those of an ended
    /// connection.
    ResentThroughSecondConnection,
    /// `meta-with-blocks`: a resync brings the blocks, but not who may use the shard.
    SessionsNotInstalled,
    /// `meta-with-blocks`: a checkpoint stores the shard's metadata as of the start.
    MetaNotStored,
    /// `hard-state-with-entries`: term and vote are not written with their entries.
    HardStateNotLogged,
    /// `hard-state-with-entries`: the HardState is written in a later batch than its entries.
    HardStateAfterEntries,
    /// `majority-answers`: a resyncing member is never elected, even if nobody else can be.
    ResyncNeverElected,
    /// `majority-answers`: a member with a complete copy does not vote before it is installed.
    MuteUntilInstalled,
    /// `resync-lists-everything`: a resync keeps extents that its source no longer has.
    ResyncKeepsExtents,
    /// `resync-ends-behind-the-log`: a resync counts as of its end, and misses writes since its
    /// start.
    ResyncMissesWrites,
    /// `resync-never-goes-back`: a resync replaces newer extents by older ones.
    ResyncGoesBack,
    /// `resync-ends-behind-the-log`: a resync ends before the log covers the newest copied extent.
    ResyncEndsEarly,
    /// `resync-never-goes-back`: an older copy replaces a newer one, and replay ignores that.
    OlderCopyOverlooked,
    /// `dead-link-is-given-up`: resync links are kept, although nothing arrives over them any more.
    DeadResyncLinkKept,
    /// `no-jump-over-applied`: the store jumps, although the log went on since the comparison.
    JumpOverApplied,
    /// `resyncing-flag-first`: a member with half of a resync after a crash is a source for others.
    ResyncingSource,
    /// `majority-answers`: a resyncing leader is no source, even for members that need it.
    ResyncingLeaderIsNoSource,
    /// `durable-before-ack`: a resync is acknowledged before its data is durable.
    ResyncAcksBeforeData,
    /// `majority-answers`: a router accepts no leader below the newest term that it heard of.
    TermWithoutLeader,
    /// `volume-keeps-its-minimum`: one volume without a quorum uses up the budget of all.
    VolumesShareBudget,
    /// `durable-before-ack`: answers to appends and votes leave before their promises are durable.
    AnsweredBeforeDurable,
    /// `conflicting-suffix-truncated`: a conflicting entry is added to the logged entries.
    SuffixNotTruncated,
    /// `heartbeats-go-first`: heartbeats wait behind all data that was sent before.
    HeartbeatBehindData,
    /// `congestion-keeps-the-leader`: a full link counts as a member that does not lead.
    CongestionIsNoLeader,
    /// `peers-are-checked-on-arrival`: messages of a peer are taken unchecked.
    PeersAreBelieved,
    /// `every-handshake-has-a-deadline`: a connection may stay without a word.
    HandshakesWithoutEnd,
    /// `links-name-their-pods`: any pod's certificate is good enough for a link.
    LinkOfAnyPod,
    /// `pods-need-no-clock`: the dates of pods' certificates count.
    PodDatesCount,
    /// `removed-pods-are-refused`: the authority's signature is enough.
    RemovedPodTrusted,
    /// `fetched-as-logged`: a payload is read back without a check of its checksum.
    FetchedUnchecked,
    /// `fetched-as-logged`: what the ring overwrote during a fetch counts as bit rot.
    FetchedOverwritten,
    /// `resync-beyond-the-ring`: entries that a follower was fed and that were lost count for ever.
    FedForEver,
    /// `resync-beyond-the-ring`: a follower that is behind the memory of its leader is resynced.
    ResyncInsteadOfRing,
    /// `fetched-as-logged`: a leader sends entries that its store gave without looking at them.
    FetchedNotCompared,
    /// `resync-slows-clients`: clients write as fast as they can, whatever a resync needs.
    ResyncNeverSlows,
    /// `resync-shares-the-lane`: copies of a resync always go before write-back.
    ResyncsBeforeWriteBack,
    /// `catalog-answers-after-apply`: a command is answered when only the leader's log has it.
    CatalogAnswersEarly,
    /// `ids-never-reused`: a catalog member gets an id that the next one gets, too.
    CatalogMemberReused,
    /// `learner-before-voter`: a catalog learner becomes a voter before it has the state.
    CatalogLearnerEarly,
    /// `registration-is-watched`: a registered pod does not check that it stays registered.
    RegistersOnce,
    /// `request-carried-out-once`: a repeated request is carried out again.
    CatalogRequestTwice,
    /// `grant-waits-for-all-shards`: an attachment counts with the end of any round.
    ActiveEarly,
    /// `grant-waits-for-all-shards`: an attachment is forgotten with the end of any round.
    ForgottenEarly,
    /// `a-volume-is-formatted-once`: a file system is begun on a volume that has one.
    FormattedTwice,
    /// `a-volume-is-formatted-once`: a restored catalog believes that a file system is not made.
    BegunIsTrusted,
    /// `grant-waits-for-all-shards`: a round that began before the volume grew counts.
    NewShardsForgotten,
    /// `size-after-new-shards`: clients get the new size before every new shard is ready.
    GrownEarly,
    /// `born-from-the-birth-record`: a new shard is born with the access set that the volume had
    /// at its creation.
    BornOutdated,
    /// `changed-rows-are-the-state`: a row that a command removes stays on the disk.
    RowsStayBehind,
    /// `differences-add-up`: a pod is not told of rows that are gone.
    SyncForgetsRemovals,
    /// `sync-tells-what-concerns`: a volume that concerns a pod from now on comes with its changes
    /// only.
    EntersWithChanges,
    /// `sync-tells-what-concerns`: a pod takes a difference between other volumes than it has.
    PartNotCompared,
    /// `histories-are-not-compared`: a pod compares revisions of two histories.
    HistoriesCompared,
    /// `ids-never-reused`: a recovered catalog goes on with the numbers that it knows of.
    NumbersGoOn,
    /// `answers-find-their-asker`: an answer goes to a later router of the same attachment.
    LateAnswersTaken,
    /// `nodes-open-what-is-theirs`: a node opens the attachment of another.
    AnyNodeOpens,
    /// `pods-accept-each-other`: an authority signs for pods that others do not accept then.
    AuthoritySignsEarly,
    /// `pods-accept-each-other`: the old authority is trusted no more while a pod needs it.
    AuthorityRetiredEarly,
    /// `void-connections-end`: a connection stays when its certificate is void.
    VoidConnectionsStay,
    /// `relay-loses-no-request`: what a pod did not answer before it went is forgotten.
    RelayForgets,
    /// `level-after-all-pods`: the feature level is raised with a pod that does not support it.
    LevelRaisedEarly,
    /// `newest-knowledge-wins`: a recovery keeps what it heard first of a volume.
    OldestKnowledgeWins,
    /// `grant-waits-for-all-shards`: a round that the leader's pod cannot end is nobody else's, and
    /// the grant waits for ever.
    RoundsUnaided,
    /// `removals-stand`: a recovery takes every volume that any source has.
    RemovedComesBack,
}

#[cfg(test)]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Mistake>> = const { std::cell::Cell::new(None) };
}

/// True when this mistake is to be made, on this thread.
#[cfg(test)]
pub fn is_planted(mistake: Mistake) -> bool {
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

/// `planted!(Name)`: the mistake is to be made here, now.
#[cfg(test)]
macro_rules! planted {
    ($mistake:ident) => {
        $crate::planted::is_planted($crate::planted::Mistake::$mistake)
    };
}

/// Outside of tests no mistake is ever made.
#[cfg(not(test))]
macro_rules! planted {
    ($mistake:ident) => {
        false
    };
}

pub(crate) use planted;

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
