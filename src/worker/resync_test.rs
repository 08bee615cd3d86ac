//! Resyncs between real lanes whose source goes on writing: chunks of two extents, and a log that
//! brings the changes after the start of the round.

use bytes::Bytes;

use super::resync::Resync;
use crate::planted::{Mistake, assert_found};
use crate::store::messages::{Event, MemberRecord, ReadId};
use crate::testing::lane_fixture::*;
use crate::types::{
    BLOCKS_PER_EXTENT, BlockRange, EXTENT_BYTES, Extent, ExtentContent, ManifestChunk, MemberId,
    Mono,
};

const SOURCE: MemberId = MemberId(1);
const TARGET: MemberId = MemberId(2);
const CHUNK_EXTENTS: usize = 2;

/// A source with data in every extent, and an empty target with the resyncing flag.
fn behind() -> Fixture {
    let mut fixture = Fixture::with(1, 1, FORMAT.wal_bytes, 40 * EXTENT_BYTES as u64);
    fixture.create(MemberRecord { member: TARGET, ..record(1) });
    for extent in 0..BLOCKS / BLOCKS_PER_EXTENT {
        change(&mut fixture, extent, 100 + u64::from(extent));
    }
    fixture.lane.begin_resync(TARGET);
    durable(&mut fixture);
    fixture
}

/// The source writes the first block of an extent.
fn change(fixture: &mut Fixture, extent: u32, seed: u64) {
    let range = BlockRange { first: Extent(extent).first_block(), count: 1 };
    fixture.write(SOURCE, FixtureOp::Write { range, seed });
}

fn durable(fixture: &mut Fixture) {
    let mut events = Vec::new();
    while events.is_empty() {
        fixture.poll();
        events = fixture.events();
    }
    assert!(matches!(events[..], [Event::MemberDurable { member: TARGET }]), "{events:?}");
}

fn list(fixture: &mut Fixture, member: MemberId, from: Extent) -> ManifestChunk {
    fixture.lane.manifest(ReadId(1 << 40), member, from);
    match fixture.events().pop() {
        Some(Event::Manifest { chunk, .. }) => chunk,
        other => panic!("{other:?}"),
    }
}

/// As a source whose lists are short.
fn list_source(fixture: &mut Fixture, from: Extent) -> ManifestChunk {
    let mut chunk = list(fixture, SOURCE, from);
    chunk.next = chunk.extents.get(CHUNK_EXTENTS).map(|entry| entry.extent);
    chunk.extents.truncate(CHUNK_EXTENTS);
    chunk
}

fn fetch(fixture: &mut Fixture, extent: Extent) -> ExtentContent {
    fixture.lane.fetch_extent(ReadId(1 << 41), SOURCE, extent, 0);
    match fixture.events().pop() {
        Some(Event::Extent { result: Ok(content), .. }) => content,
        other => panic!("{other:?}"),
    }
}

/// One round, made durable, with its snapshot: the log goes on from the returned index.
/// `meanwhile` happens at the source before each chunk is listed, and before each is fetched.
fn copy(
    fixture: &mut Fixture,
    resync: &mut Resync,
    meanwhile: impl Fn(&mut Fixture, Extent, Moment),
) -> u64 {
    resync.round.own = list(fixture, TARGET, Extent(0)).extents.into();
    let mut next = Some(Extent(0));
    while let Some(from) = next {
        meanwhile(fixture, from, Moment::BeforeList);
        let chunk = list_source(fixture, from);
        resync.listed(&chunk, Bytes::new());
        meanwhile(fixture, from, Moment::BeforeFetch);
        while let Some((extent, _)) = resync.round.to_fetch.pop_front() {
            resync.fetched(fetch(fixture, extent));
        }
        let extents = std::mem::take(&mut resync.round.arrived);
        let delete = std::mem::take(&mut resync.round.to_delete);
        let as_of = resync.round.as_of;
        fixture.lane.install_extents(ReadId(1 << 42), TARGET, as_of, extents, delete);
        let events = fixture.events();
        assert!(matches!(&events[..], [Event::Installed { refused, .. }] if refused.is_empty()));
        next = resync.round.next;
    }
    let (index, term, meta) = resync.round.since.clone().expect("a chunk was listed");
    fixture.lane.finish_resync(TARGET, index, term, meta);
    durable(fixture);
    fixture.reset(TARGET, SOURCE, index);
    fixture.settle();
    index
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Moment {
    BeforeList,
    BeforeFetch,
}

/// The next entry of the source comes through the log and is applied; false when there is none.
fn follow_one(fixture: &mut Fixture) -> bool {
    let (source, next) = (&fixture.models[&SOURCE], fixture.models[&TARGET].applied + 1);
    if next > source.applied {
        return false;
    }
    let op = source.ops[&(next, source.log[next as usize - 1])];
    fixture.append(TARGET, next, &[op]);
    fixture.settle();
    fixture.commit_all(TARGET);
    true
}

/// An extent that was copied long ago changes while the last ones are listed.
#[test]
fn what_changes_behind_the_copy_comes_through_the_log() {
    let mut fixture = behind();
    let mut resync = Resync::new(SOURCE, 1, 0, Mono(0));
    copy(&mut fixture, &mut resync, |fixture, from, moment| {
        if from == Extent(4) && moment == Moment::BeforeList {
            change(fixture, 0, 7);
        }
    });
    while follow_one(&mut fixture) {}
    assert!(resync.is_covered(fixture.models[&TARGET].applied, 1));
    fixture.lane.clear_resync(TARGET);
    durable(&mut fixture);
    fixture.check_all();
}

/// Extents change between being listed and being fetched: what was copied is not as of one moment
/// before the log has brought everything up to the newest of them.
#[test]
fn a_resync_ends_when_the_log_covers_what_was_copied_last() {
    let mut fixture = behind();
    let mut resync = Resync::new(SOURCE, 1, 0, Mono(0));
    let since = copy(&mut fixture, &mut resync, |fixture, from, moment| {
        if moment == Moment::BeforeFetch {
            change(fixture, from.0, 70 + u64::from(from.0));
            change(fixture, from.0 + 1, 80 + u64::from(from.0));
        }
    });
    let mut followed = 0;
    while !resync.is_covered(fixture.models[&TARGET].applied, 1) {
        assert!(follow_one(&mut fixture), "covered by what the source has at the latest");
        followed += 1;
    }
    fixture.lane.clear_resync(TARGET);
    durable(&mut fixture);
    // A read now sees the content as of the applied index.
    fixture.check_all();
    assert_eq!(followed, 6, "two changes of each chunk, after {since}");
    // A source that is deposed and listed less does not make it forget what it has.
    let again = Resync::new(SOURCE, 1, since + 6, Mono(0));
    assert!(!again.is_covered(since + 5, 1) && again.is_covered(since + 6, 1));
    // Nor one that has the resyncing flag itself, and does not know what it reflects.
    let flagged = Resync::new(SOURCE, 2, since + 6, Mono(0));
    assert!(!flagged.is_covered(since + 6, 1) && flagged.is_covered(since + 7, 2));
}

#[test]
fn broken_rules_are_noticed() {
    assert_found(Mistake::ResyncMissesWrites, what_changes_behind_the_copy_comes_through_the_log);
    assert_found(Mistake::ResyncEndsEarly, a_resync_ends_when_the_log_covers_what_was_copied_last);
}
