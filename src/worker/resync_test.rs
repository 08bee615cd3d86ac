//! Resyncs between real lanes whose source goes on writing: chunks of two extents, and a log that
//! brings the changes after the start of the round.

use bytes::Bytes;

use super::resync::Resync;
use crate::planted::{Mistake, assert_found};
use crate::store::seam::{Event, MemberRecord, ReadId};
use crate::testing::lane_fixture::*;
use crate::types::{
    BLOCKS_PER_EXTENT, BlockRange, EXTENT_BYTES, Extent, ExtentContent, ManifestChunk, MemberId,
    Mono,
};

const SOURCE: MemberId = MemberId(1);
const TARGET: MemberId = MemberId(2);
const CHUNK_EXTENTS: usize = 2;

/// A source with data in every extent, and an empty target with the resyncing flag.
fn behind() -> Lab {
    let mut lab = Lab::with(1, 1, FORMAT.wal_bytes, 40 * EXTENT_BYTES as u64);
    lab.create(MemberRecord { member: TARGET, ..record(1) });
    for extent in 0..BLOCKS / BLOCKS_PER_EXTENT {
        change(&mut lab, extent, 100 + u64::from(extent));
    }
    lab.lane.begin_resync(TARGET);
    durable(&mut lab);
    lab
}

/// The source writes the first block of an extent.
fn change(lab: &mut Lab, extent: u32, seed: u64) {
    let range = BlockRange { first: Extent(extent).first_block(), count: 1 };
    lab.write(SOURCE, LabOp::Write { range, seed });
}

fn durable(lab: &mut Lab) {
    let mut events = Vec::new();
    while events.is_empty() {
        lab.poll();
        events = lab.events();
    }
    assert!(matches!(events[..], [Event::MemberDurable { member: TARGET }]), "{events:?}");
}

fn list(lab: &mut Lab, member: MemberId, from: Extent) -> ManifestChunk {
    lab.lane.manifest(ReadId(1 << 40), member, from);
    match lab.events().pop() {
        Some(Event::Manifest { chunk, .. }) => chunk,
        other => panic!("{other:?}"),
    }
}

/// As a source whose lists are short.
fn list_source(lab: &mut Lab, from: Extent) -> ManifestChunk {
    let mut chunk = list(lab, SOURCE, from);
    chunk.next = chunk.extents.get(CHUNK_EXTENTS).map(|entry| entry.extent);
    chunk.extents.truncate(CHUNK_EXTENTS);
    chunk
}

fn fetch(lab: &mut Lab, extent: Extent) -> ExtentContent {
    lab.lane.fetch_extent(ReadId(1 << 41), SOURCE, extent, 0);
    match lab.events().pop() {
        Some(Event::Extent { result: Ok(content), .. }) => content,
        other => panic!("{other:?}"),
    }
}

/// One round, made durable, with its snapshot: the log goes on from the returned index.
/// `meanwhile` happens at the source before each chunk is listed, and before each is fetched.
fn copy(lab: &mut Lab, resync: &mut Resync, meanwhile: impl Fn(&mut Lab, Extent, Moment)) -> u64 {
    resync.round.own = list(lab, TARGET, Extent(0)).extents.into();
    let mut next = Some(Extent(0));
    while let Some(from) = next {
        meanwhile(lab, from, Moment::BeforeList);
        let chunk = list_source(lab, from);
        resync.listed(&chunk, Bytes::new());
        meanwhile(lab, from, Moment::BeforeFetch);
        while let Some((extent, _)) = resync.round.to_fetch.pop_front() {
            resync.fetched(fetch(lab, extent));
        }
        let extents = std::mem::take(&mut resync.round.arrived);
        let delete = std::mem::take(&mut resync.round.to_delete);
        let as_of = resync.round.as_of;
        lab.lane.install_extents(ReadId(1 << 42), TARGET, as_of, extents, delete);
        let events = lab.events();
        assert!(matches!(&events[..], [Event::Installed { refused, .. }] if refused.is_empty()));
        next = resync.round.next;
    }
    let (index, term, meta) = resync.round.since.clone().expect("a chunk was listed");
    lab.lane.finish_resync(TARGET, index, term, meta);
    durable(lab);
    lab.reset(TARGET, SOURCE, index);
    lab.settle();
    index
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Moment {
    BeforeList,
    BeforeFetch,
}

/// The next entry of the source comes through the log and is applied; false when there is none.
fn follow_one(lab: &mut Lab) -> bool {
    let (source, next) = (&lab.models[&SOURCE], lab.models[&TARGET].applied + 1);
    if next > source.applied {
        return false;
    }
    let op = source.ops[&(next, source.log[next as usize - 1])];
    lab.append(TARGET, next, &[op]);
    lab.settle();
    lab.commit_all(TARGET);
    true
}

/// An extent that was copied long ago changes while the last ones are listed.
#[test]
fn what_changes_behind_the_copy_comes_through_the_log() {
    let mut lab = behind();
    let mut resync = Resync::new(SOURCE, 1, 0, Mono(0));
    copy(&mut lab, &mut resync, |lab, from, moment| {
        if from == Extent(4) && moment == Moment::BeforeList {
            change(lab, 0, 7);
        }
    });
    while follow_one(&mut lab) {}
    assert!(resync.is_covered(lab.models[&TARGET].applied, 1));
    lab.lane.clear_resync(TARGET);
    durable(&mut lab);
    lab.check_all();
}

/// Extents change between being listed and being fetched: what was copied is not as of one moment
/// before the log has brought everything up to the newest of them.
#[test]
fn a_resync_ends_when_the_log_covers_what_was_copied_last() {
    let mut lab = behind();
    let mut resync = Resync::new(SOURCE, 1, 0, Mono(0));
    let since = copy(&mut lab, &mut resync, |lab, from, moment| {
        if moment == Moment::BeforeFetch {
            change(lab, from.0, 70 + u64::from(from.0));
            change(lab, from.0 + 1, 80 + u64::from(from.0));
        }
    });
    let mut followed = 0;
    while !resync.is_covered(lab.models[&TARGET].applied, 1) {
        assert!(follow_one(&mut lab), "covered by what the source has at the latest");
        followed += 1;
    }
    lab.lane.clear_resync(TARGET);
    durable(&mut lab);
    // A read now sees the content as of the applied index.
    lab.check_all();
    assert_eq!(followed, 6, "two changes of each chunk, after {since}");
    // A source that is deposed and listed less does not make it forget what it has.
    let again = Resync::new(SOURCE, 1, since + 6, Mono(0));
    assert!(!again.is_covered(since + 5, 1) && again.is_covered(since + 6, 1));
    // Nor one that has the resyncing flag itself, and does not know what it reflects.
    let marked = Resync::new(SOURCE, 2, since + 6, Mono(0));
    assert!(!marked.is_covered(since + 6, 1) && marked.is_covered(since + 7, 2));
}

#[test]
fn broken_rules_are_noticed() {
    assert_found(Mistake::ResyncMissesWrites, what_changes_behind_the_copy_comes_through_the_log);
    assert_found(Mistake::ResyncEndsEarly, a_resync_ends_when_the_log_covers_what_was_copied_last);
}
