//! A member that fell behind gets everything from another one, while that one goes on.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use crate::planted::{Mistake, assert_found};
use crate::store::seam::*;
use crate::testing::lane_fixture::*;
use crate::types::*;

const SOURCE: MemberId = MemberId(1);
const TARGET: MemberId = MemberId(2);

fn random_write(lab: &mut Lab, member: MemberId) -> LabOp {
    let count = 1 + lab.random.below(6) as u32;
    let first = Block(lab.random.below(u64::from(BLOCKS - count)) as u32);
    let range = BlockRange { first, count };
    let op = match lab.random.one_in(4) {
        true => LabOp::Zero { range },
        false => LabOp::Write { range, seed: lab.random.next() },
    };
    let last = lab.models[&member].log.len() as u64;
    lab.append(member, last + 1, &[op]);
    lab.settle();
    lab.models.get_mut(&member).unwrap().commit = last + 1;
    lab.apply_next(member, true);
    op
}

/// Two members of one shard; the target has the first few entries of the source.
fn behind(seed: u64) -> Lab {
    let mut lab = Lab::with(seed, 1, FORMAT.wal_bytes, 40 * EXTENT_BYTES as u64);
    let record = MemberRecord { member: TARGET, ..record(1) };
    lab.create(record);
    for _ in 0..lab.random.below(12) {
        let op = random_write(&mut lab, SOURCE);
        let last = lab.models[&TARGET].log.len() as u64;
        lab.append(TARGET, last + 1, &[op]);
        lab.settle();
        lab.commit_all(TARGET);
        if lab.random.one_in(4) {
            lab.rest();
        }
    }
    for _ in 0..10 + lab.random.below(20) {
        random_write(&mut lab, SOURCE);
        if lab.random.one_in(6) {
            lab.rest();
        }
    }
    lab
}

fn manifest(lab: &mut Lab, member: MemberId) -> (u64, BTreeMap<Extent, ManifestEntry>) {
    lab.lane.manifest(ReadId(1 << 40), member, Extent(0));
    let events = lab.events();
    let [Event::Manifest { chunk, .. }] = &events[..] else {
        panic!("{events:?}");
    };
    assert_eq!(chunk.next, None);
    let extents = chunk.extents.iter().map(|entry| (entry.extent, *entry));
    (chunk.applied_index, extents.collect())
}

fn fetch(lab: &mut Lab, extent: Extent) -> ExtentContent {
    lab.lane.fetch_extent(ReadId(1 << 41), SOURCE, extent, 0);
    let events = lab.events();
    let [Event::Extent { result, .. }] = &events[..] else {
        panic!("{events:?}");
    };
    result.clone().unwrap()
}

fn durable(lab: &mut Lab) {
    for _ in 0..3 {
        lab.poll();
        lab.settle();
    }
    let events = lab.events();
    assert!(matches!(events[..], [Event::MemberDurable { member: TARGET }]), "{events:?}");
}

/// One round: returns the index as of which the target is complete.
fn round(lab: &mut Lab) -> u64 {
    let (index, theirs) = manifest(lab, SOURCE);
    let (_, ours) = manifest(lab, TARGET);
    let gone = ours.keys().filter(|extent| !theirs.contains_key(extent));
    let delete: Vec<_> = gone.map(|extent| (*extent, 0)).collect();
    let differs = theirs.values().filter(|entry| {
        let same = |other: &ManifestEntry| other.last_changed == entry.last_changed;
        !ours.get(&entry.extent).is_some_and(same)
    });
    let wanted: Vec<_> = differs.map(|entry| entry.extent).collect();
    let mut extents = Vec::new();
    for extent in wanted {
        // The source goes on: some extents are newer than the list.
        if lab.random.one_in(3) {
            random_write(lab, SOURCE);
        }
        extents.push(fetch(lab, extent));
    }
    lab.lane.install_extents(ReadId(1 << 42), TARGET, index, extents, delete);
    let events = lab.events();
    let [Event::Installed { refused, .. }] = &events[..] else {
        panic!("{events:?}");
    };
    assert!(refused.is_empty());
    index
}

#[test]
fn r3_a_resynced_member_skips_what_its_extents_already_include() {
    for seed in 0..60 {
        let mut lab = behind(seed);
        lab.lane.begin_resync(TARGET);
        durable(&mut lab);
        if lab.random.one_in(2) {
            round(&mut lab);
        }
        let index = round(&mut lab);
        let term = lab.models[&SOURCE].log[index as usize - 1];
        lab.lane.finish_resync(TARGET, index, term, Bytes::from_static(b"meta"));
        durable(&mut lab);
        take_over(&mut lab, index);
        let (_, theirs) = manifest(&mut lab, SOURCE);
        let (_, ours) = manifest(&mut lab, TARGET);
        assert_eq!(theirs, ours);
        lab.rest();
        lab.check_all();
        assert_eq!(lab.lane.space().overlay_blocks, 0);
    }
}

/// Raft hears that the store has everything up to `index`, and the resync ends.
fn take_over(lab: &mut Lab, index: u64) {
    lab.reset(TARGET, SOURCE, index);
    lab.settle();
    lab.lane.clear_resync(TARGET);
    durable(lab);
    follow(lab, index);
}

/// What comes after `index` comes through the log.
fn follow(lab: &mut Lab, index: u64) {
    for next in index + 1..=lab.models[&SOURCE].applied {
        let source = &lab.models[&SOURCE];
        let op = source.ops[&(next, source.log[next as usize - 1])];
        lab.append(TARGET, next, &[op]);
    }
    lab.settle();
    lab.commit_all(TARGET);
    lab.check_all();
}

#[test]
fn r3_an_entry_that_an_extent_already_includes_is_skipped() {
    let mut lab = behind(1);
    lab.lane.begin_resync(TARGET);
    durable(&mut lab);
    round(&mut lab);
    let (index, theirs) = manifest(&mut lab, SOURCE);
    let range = BlockRange { first: Block(1), count: 1 };
    let op = LabOp::Write { range, seed: 42 };
    lab.append(SOURCE, index + 1, &[op]);
    lab.settle();
    lab.commit_all(SOURCE);
    let extents = theirs.keys().chain([&Extent(0)]).map(|extent| fetch(&mut lab, *extent));
    let extents = extents.collect();
    lab.lane.install_extents(ReadId(1 << 42), TARGET, index, extents, Vec::new());
    lab.events();
    let term = lab.models[&SOURCE].log[index as usize - 1];
    lab.lane.finish_resync(TARGET, index, term, Bytes::new());
    durable(&mut lab);
    lab.reset(TARGET, SOURCE, index);
    lab.rest();
    assert_eq!(lab.lane.space().overlay_blocks, 0);
    lab.append(TARGET, index + 1, &[op]);
    lab.settle();
    lab.commit_all(TARGET);
    assert_eq!(lab.lane.space().overlay_blocks, 0, "the extent has it already");
    lab.append(TARGET, index + 2, &[op]);
    lab.settle();
    lab.commit_all(TARGET);
    assert_eq!(lab.lane.space().overlay_blocks, 1);
    lab.check_all();
}

#[test]
fn a_damaged_extent_is_refused_and_a_crash_keeps_the_mark() {
    let mut lab = behind(3);
    lab.lane.begin_resync(TARGET);
    durable(&mut lab);
    let (_, theirs) = manifest(&mut lab, SOURCE);
    let extent = *theirs.keys().next().unwrap();
    let good = fetch(&mut lab, extent);
    let mut bytes = good.data.to_vec();
    bytes[7] ^= 1;
    let bad = ExtentContent { data: bytes.into(), ..good.clone() };
    let short = ExtentContent { data: good.data.slice(4096..), ..good.clone() };
    lab.lane.install_extents(ReadId(5), TARGET, u64::MAX, vec![bad, short, good], Vec::new());
    let events = lab.events();
    let [Event::Installed { refused, .. }] = &events[..] else {
        panic!("{events:?}");
    };
    assert_eq!(refused[..], [extent, extent]);
    lab.lane.destroy_member(SOURCE);
    lab.events();
    lab.models.remove(&SOURCE);
    let found = lab.reopen_unchecked();
    assert!(found[0].record.resyncing);
}

/// Raft does not know yet that the store went ahead: the log goes on where it was.
#[test]
fn entries_that_a_resync_brought_already_can_still_be_appended() {
    let mut lab = behind(4);
    while lab.models[&SOURCE].applied < lab.models[&TARGET].applied + 4 {
        random_write(&mut lab, SOURCE);
    }
    lab.lane.begin_resync(TARGET);
    durable(&mut lab);
    let index = round(&mut lab);
    let term = lab.models[&SOURCE].log[index as usize - 1];
    lab.lane.finish_resync(TARGET, index, term, Bytes::from_static(b"meta"));
    durable(&mut lab);
    let last = lab.models[&TARGET].log.len() as u64;
    assert!(last + 2 <= index);
    for next in last + 1..=last + 2 {
        let source = &lab.models[&SOURCE];
        let op = source.ops[&(next, source.log[next as usize - 1])];
        lab.append(TARGET, next, &[op]);
        lab.settle();
        assert_eq!(lab.models[&TARGET].unconfirmed(), 0);
    }
    take_over(&mut lab, index);
    lab.rest();
    lab.check_all();
}

/// Newer content from the log stays. A source that is behind, such as a deposed leader that does
/// not know it, has nothing for this member.
#[test]
fn a_resync_never_goes_back() {
    let mut lab = behind(4);
    lab.write(SOURCE, LabOp::Write { range: BlockRange { first: Block(0), count: 1 }, seed: 1 });
    let (as_of, _) = manifest(&mut lab, SOURCE);
    let old = fetch(&mut lab, Extent(0));
    for seed in 0..=as_of {
        let range = BlockRange { first: Block((seed % 2) as u32 * BLOCKS_PER_EXTENT), count: 1 };
        lab.write(TARGET, LabOp::Write { range, seed: 100 + seed });
    }
    lab.lane.begin_resync(TARGET);
    durable(&mut lab);
    lab.lane.install_extents(ReadId(5), TARGET, as_of, vec![old], vec![(Extent(1), 0)]);
    let events = lab.events();
    let [Event::Installed { refused, .. }] = &events[..] else {
        panic!("{events:?}");
    };
    assert_eq!(refused[..], [Extent(0), Extent(1)]);
    lab.check_all();
}

/// A trim gave an extent of the source back while the target was away: no tombstone says so, only
/// the list on which it does not stand.
#[test]
fn what_the_source_does_not_have_any_more_is_deleted() {
    let mut lab = Lab::new(5, 1);
    lab.create(MemberRecord { member: TARGET, ..record(1) });
    let range = BlockRange { first: Extent(2).first_block(), count: BLOCKS_PER_EXTENT };
    for member in [SOURCE, TARGET] {
        lab.write(member, LabOp::Write { range, seed: 5 });
    }
    lab.write(SOURCE, LabOp::Zero { range });
    lab.rest();
    let used_bytes = lab.lane.space().used_bytes;
    lab.lane.begin_resync(TARGET);
    durable(&mut lab);
    let index = round(&mut lab);
    let term = lab.models[&SOURCE].log[index as usize - 1];
    lab.lane.finish_resync(TARGET, index, term, Bytes::new());
    durable(&mut lab);
    lab.reset(TARGET, SOURCE, index);
    lab.settle();
    lab.lane.clear_resync(TARGET);
    durable(&mut lab);
    // It reads as zeroes, as the source does, and its slot came back.
    lab.check_all();
    lab.rest();
    assert_eq!(lab.lane.space().used_bytes, used_bytes - EXTENT_BYTES as u64);
}

/// The answer to the snapshot that ends a resync counts towards the leader's quorum.
#[test]
fn a_resync_is_not_acknowledged_before_what_it_copied_is_durable() {
    let mut lab = behind(6);
    lab.lane.begin_resync(TARGET);
    durable(&mut lab);
    let index = round(&mut lab);
    let term = lab.models[&SOURCE].log[index as usize - 1];
    lab.lane.finish_resync(TARGET, index, term, Bytes::new());
    let is_flush = |effect: &Effect| {
        matches!(effect, Effect::Index { job: IndexJob::Commit { flush: true, .. }, .. })
    };
    lab.settle_but(is_flush);
    assert!(lab.queue.iter().any(is_flush) && lab.events.is_empty(), "it is on its way");
    durable(&mut lab);
    lab.reset(TARGET, SOURCE, index);
    lab.settle();
    assert_eq!(lab.models[&TARGET].unconfirmed(), 0);
}

/// The same, should the worker not wait.
#[test]
#[should_panic(expected = "the store holds everything up to a reset, durably")]
fn a_lane_takes_no_snapshot_before_what_it_stands_for_is_durable() {
    let mut lab = behind(6);
    lab.lane.begin_resync(TARGET);
    durable(&mut lab);
    let index = round(&mut lab);
    lab.reset(TARGET, SOURCE, index);
}

/// The store went ahead of the log, and the power fails before Raft hears of it.
#[test]
fn r7_what_is_flushed_is_committed_whatever_the_hard_state_says() {
    let mut lab = behind(7);
    lab.lane.begin_resync(TARGET);
    durable(&mut lab);
    let index = round(&mut lab);
    let term = lab.models[&SOURCE].log[index as usize - 1];
    lab.lane.finish_resync(TARGET, index, term, Bytes::new());
    durable(&mut lab);
    let found = lab.reopen_unchecked();
    let target = found.iter().find(|found| found.record.member == TARGET).expect("it is here");
    assert_eq!(target.record.flushed_index, index);
    assert!(target.hard.commit >= index, "commit {} of {index}", target.hard.commit);
    assert!(target.record.resyncing && !target.faulted);
}

/// A resync begins again, with a source that knows of fewer commits than the one before: what that
/// had brought in advance has to come through the log, and so has what it had deleted.
#[test]
fn r3_what_an_older_copy_does_not_have_any_more_comes_through_the_log() {
    let mut lab = Lab::with(1, 1, FORMAT.wal_bytes, 40 * EXTENT_BYTES as u64);
    lab.create(MemberRecord { member: TARGET, ..record(1) });
    let write =
        |first, seed| LabOp::Write { range: BlockRange { first: Block(first), count: 2 }, seed };
    lab.write(SOURCE, write(0, 1));
    let (index, _) = manifest(&mut lab, SOURCE);
    let old = fetch(&mut lab, Extent(0));
    lab.write(SOURCE, write(0, 2));
    lab.write(SOURCE, write(BLOCKS_PER_EXTENT, 3));
    let newer = [0, 1].map(|extent| fetch(&mut lab, Extent(extent))).to_vec();
    lab.lane.begin_resync(TARGET);
    durable(&mut lab);
    for (as_of, extents, delete) in
        [(index + 2, newer, vec![]), (index, vec![old], vec![(Extent(1), 0)])]
    {
        lab.lane.install_extents(ReadId(1 << 42), TARGET, as_of, extents, delete);
        let events = lab.events();
        assert!(matches!(&events[..], [Event::Installed { refused, .. }] if refused.is_empty()));
    }
    let term = lab.models[&SOURCE].log[index as usize - 1];
    lab.lane.finish_resync(TARGET, index, term, Bytes::from_static(b"meta"));
    durable(&mut lab);
    take_over(&mut lab, index);
    lab.rest();
    lab.check_all();
}

/// The log goes on after the lists were compared: it writes to an extent that was deleted because
/// the source has none any more, and the trim is in what the store would jump over.
#[test]
fn r3_a_resync_does_not_jump_when_the_log_went_on() {
    let mut lab = Lab::new(5, 1);
    lab.create(MemberRecord { member: TARGET, ..record(1) });
    let range = BlockRange { first: Extent(2).first_block(), count: BLOCKS_PER_EXTENT };
    let again = LabOp::Write { range: BlockRange { count: 2, ..range }, seed: 6 };
    for member in [SOURCE, TARGET] {
        lab.write(member, LabOp::Write { range, seed: 5 });
    }
    lab.write(SOURCE, again);
    lab.write(SOURCE, LabOp::Zero { range });
    let next = lab.models[&TARGET].log.len() as u64 + 1;
    lab.append(TARGET, next, &[again]);
    lab.settle();
    lab.lane.begin_resync(TARGET);
    durable(&mut lab);
    let finish = |lab: &mut Lab| {
        let index = round(lab);
        let term = lab.models[&SOURCE].log[index as usize - 1];
        lab.lane.finish_resync(TARGET, index, term, Bytes::from_static(b"meta"));
        index
    };
    finish(&mut lab);
    lab.commit_all(TARGET);
    for _ in 0..3 {
        lab.poll();
        lab.settle();
    }
    let events = lab.events();
    assert!(matches!(events[..], [Event::ResyncOvertaken { member: TARGET }]), "{events:?}");
    let index = finish(&mut lab);
    durable(&mut lab);
    take_over(&mut lab, index);
    lab.rest();
    lab.check_all();
}

/// The last free slot was promised to what another member has applied.
#[test]
fn r10_a_copy_takes_no_space_that_was_promised() {
    let other = MemberId(3);
    let mut lab = Lab::with(1, 1, FORMAT.wal_bytes, 2 * EXTENT_BYTES as u64);
    for member in [TARGET, other] {
        lab.create(MemberRecord { member, ..record(1) });
    }
    let all = LabOp::Write { range: BlockRange { first: Block(0), count: 16 }, seed: 1 };
    lab.write(SOURCE, all);
    lab.rest();
    lab.lane.begin_resync(TARGET);
    durable(&mut lab);
    let (index, _) = manifest(&mut lab, SOURCE);
    let copied = fetch(&mut lab, Extent(0));
    lab.write(other, all);
    lab.lane.install_extents(ReadId(1 << 42), TARGET, index, vec![copied], Vec::new());
    let events = lab.events();
    let [Event::Installed { refused, .. }] = &events[..] else {
        panic!("{events:?}");
    };
    assert_eq!(refused[..], [Extent(0)]);
    assert_eq!(lab.lane.overdrawn_bytes(), 0);
    lab.rest();
    assert_eq!(lab.lane.space().used_bytes, 2 * EXTENT_BYTES as u64);
}

/// The target has acknowledged entries that the copy stands for. A checkpoint that began before
/// ends, and moves the tail of the log; then power fails, and the copy is not durable yet.
#[test]
fn r8_what_a_jump_leaves_behind_is_kept_until_the_jump_is_durable() {
    let is_flush = |effect: &Effect| {
        matches!(effect, Effect::Index { job: IndexJob::Commit { flush: true, .. }, .. })
    };
    let mut lab = Lab::with(1, 1, FORMAT.wal_bytes, 40 * EXTENT_BYTES as u64);
    lab.create(MemberRecord { member: TARGET, ..record(1) });
    let write = |seed| LabOp::Write { range: BlockRange { first: Block(0), count: 2 }, seed };
    (0..12).for_each(|seed| lab.write(SOURCE, write(seed)));
    for index in 1..=3 {
        lab.append(TARGET, index, &[write(50 + index)]);
        lab.settle();
    }
    lab.rest();
    lab.lane.begin_resync(TARGET);
    durable(&mut lab);
    let index = round(&mut lab);
    let term = lab.models[&SOURCE].log[index as usize - 1];
    lab.write(SOURCE, write(60));
    while !lab.queue.iter().any(is_flush) {
        lab.now = lab.now + Duration::from_millis(100);
        lab.poll();
        lab.settle_but(is_flush);
    }
    lab.lane.finish_resync(TARGET, index, term, Bytes::new());
    lab.poll();
    assert_eq!(lab.queue.iter().filter(|effect| is_flush(effect)).count(), 2);
    let first = lab.queue.iter().position(is_flush).expect("there are two");
    let checkpoint = lab.queue.remove(first);
    lab.carry_out(checkpoint);
    lab.settle_but(is_flush);
    let found = lab.reopen_unchecked();
    let target = found.iter().find(|found| found.record.member == TARGET).expect("it is here");
    assert!(!target.faulted && target.record.flushed_index == 0);
    assert_eq!(target.entries.len(), 3);
}

#[test]
fn broken_rules_are_noticed() {
    assert_found(
        Mistake::OlderCopyOverlooked,
        r3_what_an_older_copy_does_not_have_any_more_comes_through_the_log,
    );
    assert_found(
        Mistake::JumpLetsGo,
        r8_what_a_jump_leaves_behind_is_kept_until_the_jump_is_durable,
    );
    assert_found(Mistake::JumpOverApplied, r3_a_resync_does_not_jump_when_the_log_went_on);
    assert_found(Mistake::CopyTakesPromised, r10_a_copy_takes_no_space_that_was_promised);
    assert_found(Mistake::ResyncKeepsExtents, what_the_source_does_not_have_any_more_is_deleted);
    assert_found(Mistake::ReplayOverNewer, r3_an_entry_that_an_extent_already_includes_is_skipped);
    assert_found(Mistake::ResyncGoesBack, a_resync_never_goes_back);
    assert_found(
        Mistake::CommitBelowFlushed,
        r7_what_is_flushed_is_committed_whatever_the_hard_state_says,
    );
    assert_found(
        Mistake::ResyncAcksBeforeData,
        a_resync_is_not_acknowledged_before_what_it_copied_is_durable,
    );
}
