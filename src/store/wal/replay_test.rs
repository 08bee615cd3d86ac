use bytes::Bytes;

use super::*;
use crate::planted::{Mistake, assert_found};
use crate::store::wal::format::{Batch, Header};
use crate::store::wal::recover::Lost;

const MEMBER: MemberId = MemberId(1);

fn batch(seq: u64, items: Vec<FoundItem>) -> LogPart {
    LogPart::Batch(Batch {
        header: Header { seq: BatchSeq(seq), ..Header::default() },
        items,
        index: Bytes::new(),
        previous: Bytes::new(),
    })
}

fn found(index: u64, term: u64) -> FoundEntry {
    FoundEntry {
        index,
        term,
        kind: 0,
        context: Bytes::new(),
        payload_offset: 0,
        payload_bytes: 0,
        payload_crc: 0,
        crc_start: 0,
        payload_ok: true,
        bypass: None,
    }
}

fn entries(range: std::ops::Range<u64>, term: u64) -> Vec<FoundItem> {
    range.map(|index| FoundItem::Entry { member: MEMBER, entry: found(index, term) }).collect()
}

fn hard(term: u64, commit: u64) -> FoundItem {
    FoundItem::Hard { member: MEMBER, hard: HardState { term, vote: 0, commit } }
}

fn reset(index: u64) -> FoundItem {
    FoundItem::Reset { member: MEMBER, index, term: 1 }
}

fn log_snapshot(compacted_index: u64, range: std::ops::Range<u64>) -> FoundItem {
    FoundItem::LogSnapshot {
        member: MEMBER,
        hard: HardState::default(),
        compacted_index,
        compacted_term: 1,
        entries: range.map(|index| found(index, 9)).collect(),
    }
}

fn lost(seq: u64, kinds: u8, first: u64, last: u64) -> LogPart {
    LogPart::Lost(Lost {
        first: BatchSeq(seq),
        last: BatchSeq(seq),
        members: LostMembers::Known(vec![Summary { member: MEMBER, kinds, first, last }]),
    })
}

/// Index and term of each entry, and the verdict.
type Outcome = (Vec<(u64, u64)>, Option<FaultReason>);

fn outcome(log: Vec<LogPart>, flushed: u64) -> Outcome {
    let flushed = Flushed { index: flushed, term: 1 };
    let logs = replay(log, &BTreeMap::from([(MEMBER, flushed)]), &[]);
    let log = &logs[&MEMBER];
    let entries = log.entries.iter();
    let entries = entries.map(|e| (e.entry.index, e.entry.term)).collect();
    (entries, log.faulted)
}

#[test]
fn logs_are_replayed_as_they_were_written() {
    let cases: Vec<(&str, Vec<LogPart>, u64, Outcome)> = vec![
        (
            "an append replaces what it conflicts with",
            vec![batch(1, entries(1..5, 1)), batch(2, entries(3..4, 2))],
            0,
            (vec![(1, 1), (2, 1), (3, 2)], None),
        ),
        ("flushed entries are dropped", vec![batch(1, entries(1..5, 1))], 3, (vec![(4, 1)], None)),
        ("everything is flushed, and more", vec![batch(1, entries(1..5, 1))], 9, (vec![], None)),
        (
            "a gap",
            vec![batch(1, entries(1..3, 1)), batch(2, entries(4..6, 1))],
            1,
            (vec![(4, 1), (5, 1)], Some(FaultReason::Gap { after: 1, before: 4 })),
        ),
        (
            "a gap that is flushed",
            vec![batch(1, entries(1..3, 1)), batch(2, entries(4..6, 1))],
            3,
            (vec![(4, 1), (5, 1)], None),
        ),
        (
            "a reset drops the log",
            vec![
                batch(1, entries(1..5, 1)),
                batch(2, vec![reset(10)]),
                batch(3, entries(11..12, 2)),
            ],
            10,
            (vec![(11, 2)], None),
        ),
        (
            "a reset that the store does not know of",
            vec![batch(1, vec![reset(10)])],
            4,
            (vec![], Some(FaultReason::StoreBehind { compacted: 10, flushed: 4 })),
        ),
        (
            "a log snapshot replaces, it never appends",
            vec![batch(1, entries(1..9, 1)), batch(2, vec![log_snapshot(2, 3..5)])],
            2,
            (vec![(3, 9), (4, 9)], None),
        ),
        (
            "two log snapshots: the newer one is the whole log",
            vec![
                batch(1, vec![log_snapshot(0, 1..6)]),
                batch(2, entries(6..8, 9)),
                batch(3, vec![log_snapshot(4, 5..7)]),
            ],
            4,
            (vec![(5, 9), (6, 9)], None),
        ),
        (
            "entries follow the newer one of two log snapshots",
            vec![
                batch(1, vec![log_snapshot(0, 1..3)]),
                batch(2, vec![log_snapshot(1, 2..4)]),
                batch(3, entries(4..5, 9)),
            ],
            1,
            (vec![(2, 9), (3, 9), (4, 9)], None),
        ),
        (
            "a commit beyond the log",
            vec![batch(1, entries(1..3, 1)), batch(2, vec![hard(1, 3)])],
            0,
            (vec![(1, 1), (2, 1)], Some(FaultReason::CommitBeyondLog { commit: 3, last: 2 })),
        ),
        (
            "a mark of an earlier start stays",
            vec![
                batch(1, vec![FoundItem::Fault { member: MEMBER }]),
                batch(2, vec![log_snapshot(0, 1..2)]),
            ],
            0,
            (vec![(1, 9)], Some(FaultReason::Marked)),
        ),
    ];
    for (name, log, flushed, expected) in cases {
        assert_eq!(outcome(log, flushed), expected, "{name}");
    }
}

#[test]
fn losses_count_until_something_newer_covers_them() {
    let entries_lost = |last| Some(FaultReason::EntriesLost(last));
    let cases: Vec<(&str, Vec<LogPart>, u64, Outcome)> = vec![
        (
            "the last entries",
            vec![batch(1, entries(1..4, 1)), lost(2, kinds::ENTRY, 3, 4)],
            0,
            (vec![(1, 1), (2, 1)], entries_lost(4)),
        ),
        (
            "the last entries, flushed",
            vec![batch(1, entries(1..4, 1)), lost(2, kinds::ENTRY, 3, 4)],
            4,
            (vec![], None),
        ),
        (
            "entries that were replaced later",
            vec![
                batch(1, entries(1..4, 1)),
                lost(2, kinds::ENTRY, 3, 4),
                batch(3, entries(3..4, 2)),
            ],
            0,
            (vec![(1, 1), (2, 1), (3, 2)], None),
        ),
        (
            "entries that were replaced in part",
            vec![
                batch(1, entries(1..4, 1)),
                lost(2, kinds::ENTRY, 3, 5),
                batch(3, entries(4..5, 2)),
            ],
            0,
            (vec![(4, 2)], Some(FaultReason::Gap { after: 0, before: 4 })),
        ),
        (
            "a reset: the log before it is gone for good",
            vec![batch(1, entries(1..9, 1)), lost(2, kinds::RESET, 5, 5)],
            5,
            (vec![], None),
        ),
        (
            "a log snapshot, then more entries",
            vec![
                batch(1, entries(1..9, 1)),
                lost(2, kinds::LOG_SNAPSHOT | kinds::HARD, 2, 8),
                batch(3, vec![hard(2, 0)]),
                batch(4, entries(9..10, 1)),
            ],
            4,
            (vec![(9, 1)], Some(FaultReason::Gap { after: 4, before: 9 })),
        ),
        (
            "the newest HardState",
            vec![batch(1, vec![hard(1, 0)]), lost(2, kinds::HARD, 0, 0)],
            0,
            (vec![], Some(FaultReason::HardStateLost(2))),
        ),
        (
            "a HardState that was followed by another",
            vec![lost(1, kinds::HARD, 0, 0), batch(2, vec![hard(2, 0)])],
            0,
            (vec![], None),
        ),
    ];
    for (name, log, flushed, expected) in cases {
        assert_eq!(outcome(log, flushed), expected, "{name}");
    }
}

#[test]
fn when_nobody_knows_what_was_lost_only_a_whole_new_log_helps() {
    let anything =
        || LogPart::Lost(Lost { first: BatchSeq(4), last: BatchSeq(5), members: LostMembers::Any });
    let after = |items| outcome(vec![anything(), batch(6, items)], 0).1;
    let faulted = Some(FaultReason::AnythingLost(5));
    assert_eq!(outcome(vec![anything()], 0).1, faulted);
    assert_eq!(after(vec![hard(1, 0)]), faulted);
    assert_eq!(after(vec![log_snapshot(0, 1..3)]), None);
    // Members that nobody has heard of before, too.
    let unknown = replay(vec![anything(), batch(6, vec![hard(1, 0)])], &BTreeMap::new(), &[]);
    assert_eq!(unknown[&MEMBER].faulted, faulted);
}

/// A resync went from the log of term 1 to entry 5 of term 2, durably. Other members moved the tail
/// on, into the middle of what stands above, before the log was told.
#[test]
fn what_is_left_of_a_log_of_another_history_means_nothing() {
    let judged = |log: Vec<LogPart>| {
        let flushed = Flushed { index: 5, term: 2 };
        let log = replay(log, &BTreeMap::from([(MEMBER, flushed)]), &[]).remove(&MEMBER);
        log.map(|log| (log.entries.len(), log.compacted_term, log.faulted))
    };
    let nothing = Some((0, 2, None));
    assert_eq!(judged(vec![batch(1, entries(3..9, 1))]), nothing);
    let rest = || batch(1, entries(7..9, 1));
    assert_eq!(judged(vec![rest()]), nothing, "its beginning is gone");
    assert_eq!(judged(vec![rest(), lost(2, kinds::ENTRY, 9, 9)]), nothing, "its end is lost");
    // What follows entry 5 counts.
    let gap = Some(FaultReason::Gap { after: 5, before: 7 });
    assert_eq!(judged(vec![batch(1, entries(7..9, 2))]), Some((2, 2, gap)));
}

#[test]
fn members_that_were_destroyed_are_skipped() {
    let log = vec![batch(1, entries(1..3, 1)), lost(2, kinds::ENTRY, 3, 3)];
    assert_eq!(replay(log, &BTreeMap::new(), &[MEMBER]), BTreeMap::new());
}

#[test]
fn broken_rules_are_noticed() {
    let whole_logs = when_nobody_knows_what_was_lost_only_a_whole_new_log_helps;
    assert_found(Mistake::LogSnapshotAppends, whole_logs);
    assert_found(Mistake::SuffixNotTruncated, logs_are_replayed_as_they_were_written);
    assert_found(Mistake::TombstonesForgotten, members_that_were_destroyed_are_skipped);
    let old = what_is_left_of_a_log_of_another_history_means_nothing;
    assert_found(Mistake::OldHistoryCounts, old);
}
