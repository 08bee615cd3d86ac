use std::collections::BTreeSet;

use proptest::prelude::*;

use super::super::Item;
use super::super::replay::{FaultReason, MemberLog};
use super::*;
use crate::planted::{Mistake, assert_found};
use crate::testing::log_fixture::{Fixture, bypassed, entry, hard, kept, log_entry};
use crate::types::{BLOCK_BYTES, MemberId};

/// One situation and the expected result of recovery.
struct Case {
    name: &'static str,
    /// Damages the log of [`four_batches`].
    damage: fn(&mut Fixture),
    kept: &'static [u64],
    /// First, last, and whether their content is known.
    lost: &'static [(u64, u64, bool)],
    cut: Option<u64>,
    /// Members 1 and 2, with nothing flushed.
    faulted: &'static [u64],
}

/// Four durable batches; the fourth is not marked durable. Odd ones are member 1's, even ones
/// member 2's: a HardState and an entry with a payload page.
fn four_batches() -> Fixture {
    let mut fixture = Fixture::new(512, 0);
    for (member, index) in [(1, 1), (2, 1), (1, 2), (2, 2)] {
        fixture.write(vec![hard(member, 1, 0), entry(member, index, 1, 1)]);
    }
    fixture
}

/// Batches 5, 6 and 7 of member 1 in flight; nothing of them is on the disk.
fn three_in_flight(fixture: &mut Fixture) -> Vec<super::super::BatchWrite> {
    (0..3).map(|n| fixture.fly(vec![entry(1, 3 + n, 1, 16 + n as usize)])).collect()
}

const HEADER: usize = 0;
const PAYLOAD: usize = 1;

const CASES: &[Case] = &[
    Case {
        name: "intact",
        damage: |_| (),
        kept: &[1, 2, 3, 4],
        lost: &[],
        cut: None,
        faulted: &[],
    },
    Case {
        name: "last batch torn in its header",
        damage: |fixture| fixture.damage(4, HEADER),
        kept: &[1, 2, 3],
        lost: &[],
        cut: None,
        faulted: &[],
    },
    Case {
        name: "last batch torn in its payload",
        damage: |fixture| fixture.damage(4, PAYLOAD),
        kept: &[1, 2, 3],
        lost: &[],
        cut: Some(4),
        faulted: &[],
    },
    Case {
        name: "three in flight, the oldest did not arrive, the others are valid",
        damage: |fixture| {
            let writes = three_in_flight(fixture);
            fixture.put(&writes[1], |_| true);
            fixture.put(&writes[2], |_| true);
        },
        kept: &[1, 2, 3, 4],
        lost: &[],
        cut: Some(5),
        faulted: &[],
    },
    Case {
        name: "three in flight, the oldest torn in its payload",
        damage: |fixture| {
            let writes = three_in_flight(fixture);
            fixture.put(&writes[0], |page| page != 7);
            fixture.put(&writes[1], |_| true);
        },
        kept: &[1, 2, 3, 4],
        lost: &[],
        cut: Some(5),
        faulted: &[],
    },
    Case {
        name: "three in flight, only the newest arrived",
        damage: |fixture| {
            let writes = three_in_flight(fixture);
            fixture.put(&writes[2], |_| true);
        },
        kept: &[1, 2, 3, 4],
        lost: &[],
        cut: Some(5),
        faulted: &[],
    },
    Case {
        name: "corrupt below a mark, the copy in the successor intact",
        damage: |fixture| fixture.damage(2, HEADER),
        kept: &[1, 3, 4],
        lost: &[(2, 2, true)],
        cut: None,
        faulted: &[2],
    },
    Case {
        name: "corrupt below a mark, the copy in the successor gone too",
        damage: |fixture| {
            fixture.damage(2, HEADER);
            fixture.damage(3, HEADER);
            fixture.idle_mark();
        },
        kept: &[1, 4, 5],
        lost: &[(2, 3, false)],
        cut: None,
        faulted: &[1, 2],
    },
    Case {
        name: "the first batch of the log corrupt",
        damage: |fixture| fixture.damage(1, HEADER),
        kept: &[2, 3, 4],
        lost: &[(1, 1, true)],
        cut: None,
        faulted: &[1],
    },
    Case {
        name: "only the superblock marks the last batch, which is corrupt",
        damage: |fixture| {
            fixture.marks.durable_seq = BatchSeq(4);
            fixture.damage(4, HEADER);
        },
        kept: &[1, 2, 3],
        lost: &[(4, 4, false)],
        cut: None,
        faulted: &[1, 2],
    },
    Case {
        name: "an idle mark marks the last batch, which is corrupt",
        damage: |fixture| {
            fixture.idle_mark();
            fixture.damage(4, HEADER);
        },
        kept: &[1, 2, 3, 5],
        lost: &[(4, 4, true)],
        cut: None,
        faulted: &[2],
    },
    Case {
        name: "an acknowledged payload corrupt",
        damage: |fixture| fixture.damage(3, PAYLOAD),
        kept: &[1, 2, 3, 4],
        lost: &[],
        cut: None,
        faulted: &[1],
    },
    Case {
        name: "corrupt and torn in one gap: only what is marked counts as lost",
        damage: |fixture| {
            // 5, 6, 7 are built while 4 is the mark.
            let writes = three_in_flight(fixture);
            fixture.put(&writes[1], |_| true);
            fixture.damage(4, HEADER);
        },
        kept: &[1, 2, 3],
        lost: &[(4, 4, false)],
        cut: Some(5),
        faulted: &[1, 2],
    },
    Case {
        name: "a corrupt member whose newer HardState and log snapshot follow",
        damage: |fixture| {
            fixture.write(vec![Item::LogSnapshot {
                member: MemberId(2),
                hard: Default::default(),
                compacted_index: 0,
                compacted_term: 0,
                entries: vec![log_entry(1, 1, 1), log_entry(2, 1, 1)],
            }]);
            fixture.damage(2, HEADER);
        },
        kept: &[1, 3, 4, 5],
        lost: &[(2, 2, true)],
        cut: None,
        faulted: &[],
    },
    Case {
        name: "a write that went to the wrong place",
        damage: |fixture| {
            let (from, len) = fixture.written[&BatchSeq(3)];
            let (to, _) = fixture.written[&BatchSeq(2)];
            let (from, to) = (from as usize, to as usize);
            fixture.disk.copy_within(from..from + len, to);
        },
        kept: &[1, 3, 4],
        lost: &[(2, 2, true)],
        cut: None,
        faulted: &[2],
    },
    Case {
        name: "zeroes everywhere, the superblock knows better",
        damage: |fixture| {
            fixture.disk.fill(0);
            fixture.marks.durable_seq = BatchSeq(3);
        },
        kept: &[],
        lost: &[(1, 3, false)],
        cut: None,
        faulted: &[1, 2],
    },
    Case {
        name: "an empty ring, and a tail that points beyond it",
        damage: |fixture| {
            fixture.disk.fill(0);
            fixture.marks.tail_offset = u64::MAX;
        },
        kept: &[],
        lost: &[],
        cut: None,
        faulted: &[],
    },
    Case {
        name: "a released batch is damaged",
        damage: |fixture| {
            fixture.release_to(BatchSeq(2));
            fixture.damage(1, HEADER);
        },
        kept: &[2, 3, 4],
        lost: &[],
        cut: None,
        // Its first entry is not flushed: the tail was moved too far.
        faulted: &[1],
    },
    Case {
        name: "the superblock's tail and mark went back; the batches know the newer tail",
        damage: |fixture| {
            let old = fixture.marks;
            fixture.release_to(BatchSeq(3));
            fixture.write(vec![hard(2, 1, 0)]);
            fixture.marks = old;
            fixture.damage(1, HEADER);
            fixture.damage(2, HEADER);
        },
        kept: &[3, 4, 5],
        lost: &[],
        cut: None,
        faulted: &[1, 2],
    },
    Case {
        name: "the last batch names slots and is intact",
        damage: |fixture| {
            fixture.write(vec![bypassed(1, 3, 1)]);
        },
        kept: &[1, 2, 3, 4, 5],
        lost: &[],
        cut: None,
        faulted: &[],
    },
    Case {
        name: "the last batch names slots and is torn",
        damage: |fixture| {
            fixture.write(vec![bypassed(1, 3, 1)]);
            fixture.damage(5, HEADER);
        },
        kept: &[1, 2, 3, 4],
        lost: &[],
        cut: None,
        faulted: &[],
    },
    Case {
        name: "a batch that names slots is corrupt below a mark",
        damage: |fixture| {
            fixture.write(vec![bypassed(1, 3, 1)]);
            fixture.idle_mark();
            fixture.damage(5, HEADER);
        },
        kept: &[1, 2, 3, 4, 6],
        lost: &[(5, 5, true)],
        cut: None,
        faulted: &[1],
    },
    Case {
        name: "a page that cannot be read is a damaged one",
        damage: |fixture| fixture.unreadable = vec![fixture.written[&BatchSeq(2)].0],
        kept: &[1, 3, 4],
        lost: &[(2, 2, true)],
        cut: None,
        faulted: &[2],
    },
];

#[test]
fn every_case_of_the_table() {
    for case in CASES {
        let mut fixture = four_batches();
        (case.damage)(&mut fixture);
        for round in ["at first", "again", "after more was written"] {
            check(case, &fixture, round);
            if round == "again" {
                // The verdict stays the same under the next incarnation, which goes on writing.
                let seen = fixture.recover().unwrap().position.next_seq;
                fixture.reopen();
                let seq = fixture.write(vec![]);
                assert!(seq >= seen, "{}: numbers are never used again", case.name);
            }
        }
    }
}

fn check(case: &Case, fixture: &Fixture, round: &str) {
    let name = case.name;
    let recovered = fixture.recover().unwrap();
    let mut batches = kept(&recovered);
    if round == "after more was written" {
        batches.pop();
    } else {
        assert_eq!(recovered.cut.map(|seq| seq.0), case.cut, "{name}, {round}");
    }
    assert_eq!(batches, case.kept, "{name}, {round}");
    let lost: Vec<_> = recovered
        .log
        .iter()
        .filter_map(|part| match part {
            LogPart::Batch(_) => None,
            LogPart::Lost(lost) => {
                Some((lost.first.0, lost.last.0, matches!(lost.members, LostMembers::Known(_))))
            }
        })
        .collect();
    assert_eq!(lost, case.lost, "{name}, {round}");
    let faulted: Vec<u64> = fixture
        .replay(&[(1, 0), (2, 0)])
        .iter()
        .filter(|(_, log)| log.faulted.is_some())
        .map(|(member, _)| member.0)
        .collect();
    assert_eq!(faulted, case.faulted, "{name}, {round}");
}

#[test]
fn what_is_flushed_counts_as_compacted_when_a_newer_hard_state_follows() {
    let mut fixture = four_batches();
    fixture.damage(2, HEADER);
    fixture.damage(3, PAYLOAD);
    // Member 2's first entry and HardState were in batch 2; both its second are in batch 4.
    let logs = fixture.replay(&[(1, 2), (2, 1)]);
    let (one, two) = (&logs[&MemberId(1)], &logs[&MemberId(2)]);
    assert_eq!((one.faulted, two.faulted), (None, None));
    assert_eq!(one.entries, []);
    assert_eq!((two.compacted_index, two.entries.len()), (1, 1));
    assert_eq!(two.hard.commit, 1, "rule `recovery-commit-covers-flushed`");
    // No flush replaces the newest HardState.
    fixture.idle_mark();
    fixture.damage(4, HEADER);
    let reason = fixture.replay(&[(1, 2), (2, 2)])[&MemberId(2)].faulted;
    assert_eq!(reason, Some(FaultReason::HardStateLost(4)));
}

#[test]
fn what_was_cut_never_comes_back() {
    let mut fixture = four_batches();
    let writes = three_in_flight(&mut fixture);
    fixture.put(&writes[0], |page| page != 7);
    fixture.put(&writes[1], |_| true);
    fixture.put(&writes[2], |_| true);
    assert_eq!(fixture.reopen().cut, Some(BatchSeq(5)));
    // The batch at the cut is overwritten, the valid ones behind it are not.
    let first = fixture.write(vec![entry(2, 3, 2, 1)]);
    assert!(first > BatchSeq(7));
    let second = fixture.write(vec![entry(2, 4, 2, 1)]);
    assert_eq!(kept(&fixture.recover().unwrap()), [1, 2, 3, 4, first.0, second.0]);
    // Not even when the first batch of the new incarnation is lost and leaves a gap for them.
    fixture.damage(first.0, HEADER);
    let recovered = fixture.recover().unwrap();
    assert_eq!(kept(&recovered), [1, 2, 3, 4, second.0]);
    let faulted = |fixture: &Fixture| -> Vec<u64> {
        let logs = fixture.replay(&[(1, 0), (2, 0)]);
        let faulted = logs.iter().filter(|(_, log)| log.faulted.is_some());
        faulted.map(|(member, _)| member.0).collect()
    };
    assert_eq!(faulted(&fixture), [2]);
    // And when the torn batch turns out to be readable after all.
    let at = (writes[0].offset + 8 * BLOCK_BYTES as u64) as usize;
    fixture.put(&writes[0], |page| page > 4);
    assert!(fixture.disk[at] != 0);
    assert_eq!(kept(&fixture.recover().unwrap()), [1, 2, 3, 4, second.0]);
}

#[test]
fn a_number_of_which_every_trace_is_gone_is_not_used_again() {
    let mut fixture = Fixture::new(512, 0);
    let _torn = fixture.fly(vec![entry(1, 1, 1, 2)]);
    let seen = fixture.fly(vec![entry(1, 2, 1, 16)]);
    fixture.put(&seen, |_| true);
    assert!(fixture.reopen().position.next_seq > seen.seq);
    // Overwrites what was seen, and leaves no header of its own.
    let unseen = fixture.fly(vec![entry(1, 1, 2, 8)]);
    fixture.put(&unseen, |page| page != HEADER);
    assert!(fixture.reopen().position.next_seq > unseen.seq);
}

#[test]
fn an_old_lap_in_the_place_of_a_lost_write_is_noticed() {
    let mut fixture = Fixture::new(32, 0);
    let mut tails = std::collections::VecDeque::new();
    let mut wraps = 0;
    for index in 1..60 {
        let before = fixture.disk.clone();
        let seq = fixture.write(vec![hard(1, 1, 0), entry(1, index, 1, 2)]);
        let (offset, len) = fixture.written[&seq];
        fixture.idle_mark();
        wraps += u32::from(offset == 0);
        tails.push_back(seq);
        if tails.len() > 3 {
            tails.pop_front();
        }
        fixture.release_to(tails[0]);
        let intact = kept(&fixture.recover().unwrap());
        assert_eq!(intact.first(), Some(&tails[0].0));
        assert_eq!(intact.last(), Some(&(seq.0 + 1)));
        // The device reports the write as done, but lost it.
        let place = offset as usize..offset as usize + len;
        let arrived = fixture.disk[place.clone()].to_vec();
        fixture.disk[place.clone()].copy_from_slice(&before[place.clone()]);
        let fault = fixture.replay(&[(1, index - 1)])[&MemberId(1)].faulted;
        assert_eq!(fault, Some(FaultReason::HardStateLost(seq.0)));
        fixture.disk[place].copy_from_slice(&arrived);
    }
    assert!(wraps > 3, "the ring has wrapped: {wraps}");
}

#[test]
fn a_ring_that_must_not_be_judged_is_refused() {
    let mut fixture = four_batches();
    // A superblock from before the newest open, which this open has raised to the same number.
    fixture.marks.last_open = 0;
    let error = fixture.recover().unwrap_err();
    let newer = matches!(error, RecoverError::NewerIncarnation { found: 1, ours: 0 });
    assert!(newer, "{error}");

    let mut fixture = four_batches();
    fixture.unreadable = (0..512).map(|page| page * BLOCK_BYTES as u64).collect();
    let error = fixture.recover().unwrap_err();
    assert!(matches!(error, RecoverError::Read { .. }), "{error}");
}

/// A change of a member's log, as a replica makes them.
#[derive(Clone, Debug)]
enum Change {
    Hard,
    Append(u64),
    /// Replaces the newest entries, at most this many.
    Conflict(u64),
    Reset,
    LogSnapshot,
}

fn changes() -> impl Strategy<Value = Vec<(u64, Change)>> {
    let change = prop_oneof![
        3 => Just(Change::Hard),
        6 => (1u64..4).prop_map(Change::Append),
        2 => (1u64..4).prop_map(Change::Conflict),
        1 => Just(Change::Reset),
        1 => Just(Change::LogSnapshot),
    ];
    proptest::collection::vec((1u64..4, change), 1..60)
}

/// Next index, compacted index, entries of a member while a log is written.
#[derive(Clone, Default)]
struct Written {
    compacted: u64,
    entries: Vec<crate::log::LogEntry>,
    term: u64,
}

impl Written {
    fn items(&mut self, member: u64, change: &Change) -> Vec<Item> {
        self.term += 1;
        let keep = match change {
            Change::Conflict(count) => self.entries.len().saturating_sub(*count as usize),
            _ => self.entries.len(),
        };
        match change {
            Change::Hard => vec![hard(member, self.term, 0)],
            Change::Append(_) | Change::Conflict(_) => {
                self.entries.truncate(keep);
                let next = self.compacted + keep as u64 + 1;
                let count = match change {
                    Change::Append(count) => *count,
                    _ => 1,
                };
                let new = (next..next + count).map(|index| log_entry(index, self.term, 1));
                self.entries.extend(new);
                let new = self.entries[keep..]
                    .iter()
                    .map(|entry| Item::Entry { member: MemberId(member), entry: entry.clone() });
                // A replica writes both together, but a HardState only when it changed.
                let hard = self.term.is_multiple_of(3).then(|| hard(member, self.term, 0));
                hard.into_iter().chain(new).collect()
            }
            Change::Reset => {
                self.compacted += self.entries.len() as u64 + 5;
                self.entries.clear();
                let reset = Item::Reset {
                    member: MemberId(member),
                    index: self.compacted,
                    term: self.term,
                };
                vec![hard(member, self.term, self.compacted), reset]
            }
            Change::LogSnapshot => vec![Item::LogSnapshot {
                member: MemberId(member),
                hard: crate::log::HardState { term: self.term, vote: 0, commit: self.compacted },
                compacted_index: self.compacted,
                compacted_term: self.term,
                entries: self.entries.clone(),
            }],
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// After any rot at or below a durable mark, each member is either intact or faulted.
    #[test]
    fn rot_is_never_taken_for_the_truth(
        changes in changes(),
        flushed in proptest::collection::vec(0u64..8, 3),
        damaged in proptest::collection::vec(any::<prop::sample::Index>(), 0..4),
    ) {
        let mut fixture = Fixture::new(1024, 0);
        let mut members = vec![Written::default(); 4];
        for (member, change) in &changes {
            let items = members[*member as usize].items(*member, change);
            fixture.write(items);
        }
        fixture.marks.durable_seq = fixture.wal.durable_seq();
        // What was flushed is part of the log, and not before a reset.
        let flushed: Vec<(u64, u64)> = (1..4)
            .map(|id| {
                let member = &members[id as usize];
                let most = member.entries.len() as u64;
                (id, member.compacted + flushed[id as usize - 1].min(most))
            })
            .collect();
        let truth = fixture.replay(&flushed);
        for (member, log) in &truth {
            prop_assert_eq!(log.faulted, None);
            let written = &members[member.0 as usize];
            let end = written.compacted + written.entries.len() as u64;
            prop_assert_eq!(log.compacted_index + log.entries.len() as u64, end);
        }
        let pages = fixture.wal.head_offset() / BLOCK_BYTES as u64;
        let damaged: BTreeSet<usize> = damaged.iter().map(|at| at.index(pages as usize)).collect();
        for page in &damaged {
            fixture.disk[page * BLOCK_BYTES + 11] ^= 1;
        }
        let found = fixture.replay(&flushed);
        prop_assert_eq!(found.len(), 3);
        for (member, log) in &found {
            let same = |log: &MemberLog| MemberLog { faulted: None, ..log.clone() };
            prop_assert!(log.faulted.is_some() || same(log) == truth[member], "{:?}", log);
        }
    }
}

#[test]
fn broken_rules_are_noticed() {
    assert_found(Mistake::OldSuperblockTrusted, a_ring_that_must_not_be_judged_is_refused);
    assert_found(Mistake::CutAtFirstBad, every_case_of_the_table);
    assert_found(Mistake::CutComesBack, what_was_cut_never_comes_back);
    assert_found(Mistake::SequenceReused, a_number_of_which_every_trace_is_gone_is_not_used_again);
}
