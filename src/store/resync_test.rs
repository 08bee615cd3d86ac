//! A member that fell behind gets everything from another one, while that one goes on.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use crate::planted::{Mistake, assert_found};
use crate::store::lane::{Demand, Source};
use crate::store::messages::*;
use crate::testing::lane_fixture::*;
use crate::types::*;

const SOURCE: MemberId = MemberId(1);
const TARGET: MemberId = MemberId(2);

fn random_write(fixture: &mut Fixture, member: MemberId) -> FixtureOp {
    let count = 1 + fixture.random.below(6) as u32;
    let first = Block(fixture.random.below(u64::from(BLOCKS - count)) as u32);
    let range = BlockRange { first, count };
    let op = match fixture.random.one_in(4) {
        true => FixtureOp::Zero { range },
        false => FixtureOp::Write { range, seed: fixture.random.next() },
    };
    let last = fixture.models[&member].log.len() as u64;
    fixture.append(member, last + 1, &[op]);
    fixture.settle();
    fixture.models.get_mut(&member).unwrap().commit = last + 1;
    fixture.apply_next(member, true);
    op
}

/// Two members of one shard; the target has the first few entries of the source.
fn behind(seed: u64) -> Fixture {
    let mut fixture = Fixture::with(seed, 1, FORMAT.wal_bytes, 40 * EXTENT_BYTES as u64);
    let record = MemberRecord { member: TARGET, ..record(1) };
    fixture.create(record);
    for _ in 0..fixture.random.below(12) {
        let op = random_write(&mut fixture, SOURCE);
        let last = fixture.models[&TARGET].log.len() as u64;
        fixture.append(TARGET, last + 1, &[op]);
        fixture.settle();
        fixture.commit_all(TARGET);
        if fixture.random.one_in(4) {
            fixture.rest();
        }
    }
    for _ in 0..10 + fixture.random.below(20) {
        random_write(&mut fixture, SOURCE);
        if fixture.random.one_in(6) {
            fixture.rest();
        }
    }
    fixture
}

fn manifest(fixture: &mut Fixture, member: MemberId) -> (u64, BTreeMap<Extent, ManifestEntry>) {
    fixture.lane.manifest(ReadId(1 << 40), member, Extent(0));
    let events = fixture.events();
    let [Event::Manifest { chunk, .. }] = &events[..] else {
        panic!("{events:?}");
    };
    assert_eq!(chunk.next, None);
    let extents = chunk.extents.iter().map(|entry| (entry.extent, *entry));
    (chunk.applied_index, extents.collect())
}

fn fetch(fixture: &mut Fixture, extent: Extent) -> ExtentContent {
    fixture.lane.fetch_extent(ReadId(1 << 41), SOURCE, extent, 0);
    let events = fixture.events();
    let [Event::Extent { result, .. }] = &events[..] else {
        panic!("{events:?}");
    };
    result.clone().unwrap()
}

fn durable(fixture: &mut Fixture) {
    for _ in 0..3 {
        fixture.poll();
        fixture.settle();
    }
    let events = fixture.events();
    assert!(matches!(events[..], [Event::MemberDurable { member: TARGET }]), "{events:?}");
}

/// One round: returns the index as of which the target is complete.
fn round(fixture: &mut Fixture) -> u64 {
    let (index, theirs) = manifest(fixture, SOURCE);
    let (_, ours) = manifest(fixture, TARGET);
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
        if fixture.random.one_in(3) {
            random_write(fixture, SOURCE);
        }
        extents.push(fetch(fixture, extent));
    }
    fixture.lane.install_extents(ReadId(1 << 42), TARGET, index, extents, delete);
    let events = fixture.events();
    let [Event::Installed { refused, .. }] = &events[..] else {
        panic!("{events:?}");
    };
    assert!(refused.is_empty());
    index
}

#[test]
fn a_resynced_member_skips_what_its_extents_already_include() {
    for seed in 0..60 {
        let mut fixture = behind(seed);
        fixture.lane.begin_resync(TARGET);
        durable(&mut fixture);
        if fixture.random.one_in(2) {
            round(&mut fixture);
        }
        let index = round(&mut fixture);
        let term = fixture.models[&SOURCE].log[index as usize - 1];
        fixture.lane.finish_resync(TARGET, index, term, Bytes::from_static(b"meta"));
        durable(&mut fixture);
        take_over(&mut fixture, index);
        let (_, theirs) = manifest(&mut fixture, SOURCE);
        let (_, ours) = manifest(&mut fixture, TARGET);
        assert_eq!(theirs, ours);
        fixture.rest();
        fixture.check_all();
        assert_eq!(fixture.lane.space().overlay_blocks, 0);
    }
}

/// Raft hears that the store has everything up to `index`, and the resync ends.
fn take_over(fixture: &mut Fixture, index: u64) {
    fixture.reset(TARGET, SOURCE, index);
    fixture.settle();
    fixture.lane.clear_resync(TARGET);
    durable(fixture);
    follow(fixture, index);
}

/// What comes after `index` comes through the log.
fn follow(fixture: &mut Fixture, index: u64) {
    for next in index + 1..=fixture.models[&SOURCE].applied {
        let source = &fixture.models[&SOURCE];
        let op = source.ops[&(next, source.log[next as usize - 1])];
        fixture.append(TARGET, next, &[op]);
    }
    fixture.settle();
    fixture.commit_all(TARGET);
    fixture.check_all();
}

#[test]
fn an_entry_that_an_extent_already_includes_is_skipped() {
    let mut fixture = behind(1);
    fixture.lane.begin_resync(TARGET);
    durable(&mut fixture);
    round(&mut fixture);
    let (index, theirs) = manifest(&mut fixture, SOURCE);
    let range = BlockRange { first: Block(1), count: 1 };
    let op = FixtureOp::Write { range, seed: 42 };
    fixture.append(SOURCE, index + 1, &[op]);
    fixture.settle();
    fixture.commit_all(SOURCE);
    let extents = theirs.keys().chain([&Extent(0)]).map(|extent| fetch(&mut fixture, *extent));
    let extents = extents.collect();
    fixture.lane.install_extents(ReadId(1 << 42), TARGET, index, extents, Vec::new());
    fixture.events();
    let term = fixture.models[&SOURCE].log[index as usize - 1];
    fixture.lane.finish_resync(TARGET, index, term, Bytes::new());
    durable(&mut fixture);
    fixture.reset(TARGET, SOURCE, index);
    fixture.rest();
    assert_eq!(fixture.lane.space().overlay_blocks, 0);
    fixture.append(TARGET, index + 1, &[op]);
    fixture.settle();
    fixture.commit_all(TARGET);
    assert_eq!(fixture.lane.space().overlay_blocks, 0, "the extent has it already");
    fixture.append(TARGET, index + 2, &[op]);
    fixture.settle();
    fixture.commit_all(TARGET);
    assert_eq!(fixture.lane.space().overlay_blocks, 1);
    fixture.check_all();
}

#[test]
fn a_damaged_extent_is_refused_and_a_crash_keeps_the_resyncing_flag() {
    let mut fixture = behind(3);
    fixture.lane.begin_resync(TARGET);
    durable(&mut fixture);
    let (_, theirs) = manifest(&mut fixture, SOURCE);
    let extent = *theirs.keys().next().unwrap();
    let good = fetch(&mut fixture, extent);
    let mut bytes = good.data.to_vec();
    bytes[7] ^= 1;
    let bad = ExtentContent { data: bytes.into(), ..good.clone() };
    let short = ExtentContent { data: good.data.slice(4096..), ..good.clone() };
    fixture.lane.install_extents(ReadId(5), TARGET, u64::MAX, vec![bad, short, good], Vec::new());
    let events = fixture.events();
    let [Event::Installed { refused, .. }] = &events[..] else {
        panic!("{events:?}");
    };
    assert_eq!(refused[..], [extent, extent]);
    fixture.lane.destroy_member(SOURCE);
    fixture.events();
    fixture.models.remove(&SOURCE);
    let found = fixture.reopen_unchecked();
    assert!(found[0].record.resyncing);
}

/// Raft does not know yet that the store went ahead: the log goes on where it was.
#[test]
fn entries_that_a_resync_brought_already_can_still_be_appended() {
    let mut fixture = behind(4);
    while fixture.models[&SOURCE].applied < fixture.models[&TARGET].applied + 4 {
        random_write(&mut fixture, SOURCE);
    }
    fixture.lane.begin_resync(TARGET);
    durable(&mut fixture);
    let index = round(&mut fixture);
    let term = fixture.models[&SOURCE].log[index as usize - 1];
    fixture.lane.finish_resync(TARGET, index, term, Bytes::from_static(b"meta"));
    durable(&mut fixture);
    let last = fixture.models[&TARGET].log.len() as u64;
    assert!(last + 2 <= index);
    for next in last + 1..=last + 2 {
        let source = &fixture.models[&SOURCE];
        let op = source.ops[&(next, source.log[next as usize - 1])];
        fixture.append(TARGET, next, &[op]);
        fixture.settle();
        assert_eq!(fixture.models[&TARGET].unconfirmed(), 0);
    }
    take_over(&mut fixture, index);
    fixture.rest();
    fixture.check_all();
}

/// Newer content from the log stays. A source that is behind, such as a deposed leader that does
/// not know it, has nothing for this member.
#[test]
fn a_resync_never_goes_back() {
    let mut fixture = behind(4);
    fixture.write(
        SOURCE,
        FixtureOp::Write { range: BlockRange { first: Block(0), count: 1 }, seed: 1 },
    );
    let (as_of, _) = manifest(&mut fixture, SOURCE);
    let old = fetch(&mut fixture, Extent(0));
    for seed in 0..=as_of {
        let range = BlockRange { first: Block((seed % 2) as u32 * BLOCKS_PER_EXTENT), count: 1 };
        fixture.write(TARGET, FixtureOp::Write { range, seed: 100 + seed });
    }
    fixture.lane.begin_resync(TARGET);
    durable(&mut fixture);
    fixture.lane.install_extents(ReadId(5), TARGET, as_of, vec![old], vec![(Extent(1), 0)]);
    let events = fixture.events();
    let [Event::Installed { refused, .. }] = &events[..] else {
        panic!("{events:?}");
    };
    assert_eq!(refused[..], [Extent(0), Extent(1)]);
    fixture.check_all();
}

/// A trim gave an extent of the source back while the target was down: no tombstone says so, only
/// the list on which it does not stand.
#[test]
fn what_the_source_does_not_have_any_more_is_deleted() {
    let mut fixture = Fixture::new(5, 1);
    fixture.create(MemberRecord { member: TARGET, ..record(1) });
    let range = BlockRange { first: Extent(2).first_block(), count: BLOCKS_PER_EXTENT };
    for member in [SOURCE, TARGET] {
        fixture.write(member, FixtureOp::Write { range, seed: 5 });
    }
    fixture.write(SOURCE, FixtureOp::Zero { range });
    fixture.rest();
    let used_bytes = fixture.lane.space().used_bytes;
    fixture.lane.begin_resync(TARGET);
    durable(&mut fixture);
    let index = round(&mut fixture);
    let term = fixture.models[&SOURCE].log[index as usize - 1];
    fixture.lane.finish_resync(TARGET, index, term, Bytes::new());
    durable(&mut fixture);
    fixture.reset(TARGET, SOURCE, index);
    fixture.settle();
    fixture.lane.clear_resync(TARGET);
    durable(&mut fixture);
    // It reads as zeroes, as the source does, and its slot came back.
    fixture.check_all();
    fixture.rest();
    assert_eq!(fixture.lane.space().used_bytes, used_bytes - EXTENT_BYTES as u64);
}

/// The answer to the snapshot that ends a resync counts towards the leader's quorum.
#[test]
fn a_resync_is_not_acknowledged_before_what_it_copied_is_durable() {
    let mut fixture = behind(6);
    fixture.lane.begin_resync(TARGET);
    durable(&mut fixture);
    let index = round(&mut fixture);
    let term = fixture.models[&SOURCE].log[index as usize - 1];
    fixture.lane.finish_resync(TARGET, index, term, Bytes::new());
    let is_flush = |effect: &Effect| {
        matches!(effect, Effect::Index { job: IndexJob::Commit { flush: true, .. }, .. })
    };
    fixture.settle_but(is_flush);
    assert!(fixture.queue.iter().any(is_flush) && fixture.events.is_empty(), "it is on its way");
    durable(&mut fixture);
    fixture.reset(TARGET, SOURCE, index);
    fixture.settle();
    assert_eq!(fixture.models[&TARGET].unconfirmed(), 0);
}

/// The same, should the worker not wait.
#[test]
#[should_panic(expected = "the store holds everything up to a reset, durably")]
fn a_lane_takes_no_snapshot_before_what_it_stands_for_is_durable() {
    let mut fixture = behind(6);
    fixture.lane.begin_resync(TARGET);
    durable(&mut fixture);
    let index = round(&mut fixture);
    fixture.reset(TARGET, SOURCE, index);
}

/// The store went ahead of the log, and the power fails before Raft hears of it.
#[test]
fn what_is_flushed_is_committed_whatever_the_hard_state_says() {
    let mut fixture = behind(7);
    fixture.lane.begin_resync(TARGET);
    durable(&mut fixture);
    let index = round(&mut fixture);
    let term = fixture.models[&SOURCE].log[index as usize - 1];
    fixture.lane.finish_resync(TARGET, index, term, Bytes::new());
    durable(&mut fixture);
    let found = fixture.reopen_unchecked();
    let target = found.iter().find(|found| found.record.member == TARGET).expect("it is here");
    assert_eq!(target.record.flushed_index, index);
    assert!(target.hard.commit >= index, "commit {} of {index}", target.hard.commit);
    assert!(target.record.resyncing && !target.faulted);
}

/// A resync begins again, with a source that knows of fewer commits than the one before: what that
/// had brought in advance has to come through the log, and so has what it had deleted.
#[test]
fn what_an_older_copy_does_not_have_any_more_comes_through_the_log() {
    let mut fixture = Fixture::with(1, 1, FORMAT.wal_bytes, 40 * EXTENT_BYTES as u64);
    fixture.create(MemberRecord { member: TARGET, ..record(1) });
    let write = |first, seed| FixtureOp::Write {
        range: BlockRange { first: Block(first), count: 2 },
        seed,
    };
    fixture.write(SOURCE, write(0, 1));
    let (index, _) = manifest(&mut fixture, SOURCE);
    let old = fetch(&mut fixture, Extent(0));
    fixture.write(SOURCE, write(0, 2));
    fixture.write(SOURCE, write(BLOCKS_PER_EXTENT, 3));
    let newer = [0, 1].map(|extent| fetch(&mut fixture, Extent(extent))).to_vec();
    fixture.lane.begin_resync(TARGET);
    durable(&mut fixture);
    for (as_of, extents, delete) in
        [(index + 2, newer, vec![]), (index, vec![old], vec![(Extent(1), 0)])]
    {
        fixture.lane.install_extents(ReadId(1 << 42), TARGET, as_of, extents, delete);
        let events = fixture.events();
        assert!(matches!(&events[..], [Event::Installed { refused, .. }] if refused.is_empty()));
    }
    let term = fixture.models[&SOURCE].log[index as usize - 1];
    fixture.lane.finish_resync(TARGET, index, term, Bytes::from_static(b"meta"));
    durable(&mut fixture);
    take_over(&mut fixture, index);
    fixture.rest();
    fixture.check_all();
}

/// The log goes on after the lists were compared: it writes to an extent that was deleted because
/// the source has none any more, and the trim is in what the store would jump over.
#[test]
fn a_resync_does_not_jump_when_the_log_went_on() {
    let mut fixture = Fixture::new(5, 1);
    fixture.create(MemberRecord { member: TARGET, ..record(1) });
    let range = BlockRange { first: Extent(2).first_block(), count: BLOCKS_PER_EXTENT };
    let again = FixtureOp::Write { range: BlockRange { count: 2, ..range }, seed: 6 };
    for member in [SOURCE, TARGET] {
        fixture.write(member, FixtureOp::Write { range, seed: 5 });
    }
    fixture.write(SOURCE, again);
    fixture.write(SOURCE, FixtureOp::Zero { range });
    let next = fixture.models[&TARGET].log.len() as u64 + 1;
    fixture.append(TARGET, next, &[again]);
    fixture.settle();
    fixture.lane.begin_resync(TARGET);
    durable(&mut fixture);
    let finish = |fixture: &mut Fixture| {
        let index = round(fixture);
        let term = fixture.models[&SOURCE].log[index as usize - 1];
        fixture.lane.finish_resync(TARGET, index, term, Bytes::from_static(b"meta"));
        index
    };
    finish(&mut fixture);
    fixture.commit_all(TARGET);
    for _ in 0..3 {
        fixture.poll();
        fixture.settle();
    }
    let events = fixture.events();
    assert!(matches!(events[..], [Event::ResyncOvertaken { member: TARGET }]), "{events:?}");
    let index = finish(&mut fixture);
    durable(&mut fixture);
    take_over(&mut fixture, index);
    fixture.rest();
    fixture.check_all();
}

/// The last free slot was promised to what another member has applied.
#[test]
fn a_copy_takes_no_space_that_was_promised() {
    let other = MemberId(3);
    let mut fixture = Fixture::with(1, 1, FORMAT.wal_bytes, 2 * EXTENT_BYTES as u64);
    for member in [TARGET, other] {
        fixture.create(MemberRecord { member, ..record(1) });
    }
    let all = FixtureOp::Write { range: BlockRange { first: Block(0), count: 16 }, seed: 1 };
    fixture.write(SOURCE, all);
    fixture.rest();
    fixture.lane.begin_resync(TARGET);
    durable(&mut fixture);
    let (index, _) = manifest(&mut fixture, SOURCE);
    let copied = fetch(&mut fixture, Extent(0));
    fixture.write(other, all);
    fixture.lane.install_extents(ReadId(1 << 42), TARGET, index, vec![copied], Vec::new());
    let events = fixture.events();
    let [Event::Installed { refused, .. }] = &events[..] else {
        panic!("{events:?}");
    };
    assert_eq!(refused[..], [Extent(0)]);
    assert_eq!(fixture.lane.overdrawn_bytes(), 0);
    fixture.rest();
    assert_eq!(fixture.lane.space().used_bytes, 2 * EXTENT_BYTES as u64);
}

/// The target has acknowledged entries that the copy stands for. A checkpoint that began before
/// ends, and moves the tail of the log; then power fails, and the copy is not durable yet.
#[test]
fn what_a_jump_leaves_behind_is_kept_until_the_jump_is_durable() {
    let is_flush = |effect: &Effect| {
        matches!(effect, Effect::Index { job: IndexJob::Commit { flush: true, .. }, .. })
    };
    let mut fixture = Fixture::with(1, 1, FORMAT.wal_bytes, 40 * EXTENT_BYTES as u64);
    fixture.create(MemberRecord { member: TARGET, ..record(1) });
    let write = |seed| FixtureOp::Write { range: BlockRange { first: Block(0), count: 2 }, seed };
    (0..12).for_each(|seed| fixture.write(SOURCE, write(seed)));
    for index in 1..=3 {
        fixture.append(TARGET, index, &[write(50 + index)]);
        fixture.settle();
    }
    fixture.rest();
    fixture.lane.begin_resync(TARGET);
    durable(&mut fixture);
    let index = round(&mut fixture);
    let term = fixture.models[&SOURCE].log[index as usize - 1];
    fixture.write(SOURCE, write(60));
    while !fixture.queue.iter().any(is_flush) {
        fixture.now = fixture.now + Duration::from_millis(100);
        fixture.poll();
        fixture.settle_but(is_flush);
    }
    fixture.lane.finish_resync(TARGET, index, term, Bytes::new());
    fixture.poll();
    assert_eq!(fixture.queue.iter().filter(|effect| is_flush(effect)).count(), 2);
    let first = fixture.queue.iter().position(is_flush).expect("there are two");
    let checkpoint = fixture.queue.remove(first);
    fixture.carry_out(checkpoint);
    fixture.settle_but(is_flush);
    let found = fixture.reopen_unchecked();
    let target = found.iter().find(|found| found.record.member == TARGET).expect("it is here");
    assert!(!target.faulted && target.record.flushed_index == 0);
    assert_eq!(target.entries.len(), 3);
}

#[test]
fn broken_rules_are_noticed() {
    assert_found(
        Mistake::OlderCopyOverlooked,
        what_an_older_copy_does_not_have_any_more_comes_through_the_log,
    );
    assert_found(Mistake::JumpLetsGo, what_a_jump_leaves_behind_is_kept_until_the_jump_is_durable);
    assert_found(Mistake::JumpOverApplied, a_resync_does_not_jump_when_the_log_went_on);
    assert_found(Mistake::CopyTakesPromised, a_copy_takes_no_space_that_was_promised);
    assert_found(Mistake::ResyncKeepsExtents, what_the_source_does_not_have_any_more_is_deleted);
    assert_found(Mistake::ReplayOverNewer, an_entry_that_an_extent_already_includes_is_skipped);
    assert_found(Mistake::ResyncGoesBack, a_resync_never_goes_back);
    assert_found(
        Mistake::CommitBelowFlushed,
        what_is_flushed_is_committed_whatever_the_hard_state_says,
    );
    assert_found(
        Mistake::ResyncAcksBeforeData,
        a_resync_is_not_acknowledged_before_what_it_copied_is_durable,
    );
}

/// Copies arrive without an end, and clients of another member write. The log must not fill up.
fn copies_beside_writes() {
    let mut fixture = Fixture::with(7, 1, FORMAT.wal_bytes, 64 * EXTENT_BYTES as u64);
    fixture.create(MemberRecord { member: TARGET, ..record(1) });
    for at in 0..BLOCKS / BLOCKS_PER_EXTENT {
        let first = Extent(at).first_block();
        let range = BlockRange { first, count: BLOCKS_PER_EXTENT };
        fixture.write(SOURCE, FixtureOp::Write { range, seed: u64::from(at) });
    }
    fixture.rest();
    fixture.lane.begin_resync(TARGET);
    durable(&mut fixture);
    let (index, listed) = manifest(&mut fixture, SOURCE);
    let extents: Vec<ExtentContent> =
        listed.keys().map(|extent| fetch(&mut fixture, *extent)).collect();
    let mut refused = 0;
    for number in 0..600 {
        let range = BlockRange { first: Block((number % 40) as u32), count: 4 };
        let ranges = [range];
        let demand = Demand::write(range.bytes(), &ranges);
        match fixture.lane.admit(Source::Client, SOURCE, &demand) {
            Ok(()) => {
                let last = fixture.models[&SOURCE].log.len() as u64;
                fixture.append(SOURCE, last + 1, &[FixtureOp::Write { range, seed: number }]);
            }
            Err(_) => refused += 1,
        }
        for _ in 0..24 {
            // Two installs always wait.
            while fixture.lane.resync.waiting() < 2 {
                let (read, delete) = (ReadId(1 << 43), Vec::new());
                fixture.lane.install_extents(read, TARGET, index, extents.clone(), delete);
            }
            fixture.poll();
            fixture.complete_one();
            fixture.commit_all(SOURCE);
        }
        fixture.events.clear();
    }
    assert!(!fixture.poisoned);
    assert!(refused < 200, "{refused} of 600 writes found the log full");
}

#[test]
fn copies_and_write_back_take_turns() {
    copies_beside_writes();
    assert_found(Mistake::ResyncsBeforeWriteBack, copies_beside_writes);
}
