//! Entries that are read back from the log for followers (rule `fetched-as-logged`).

use crate::log::{LogEntry, LogGone};
use crate::planted::{Mistake, assert_found};
use crate::store::lane::{Demand, Source};
use crate::store::messages::{Done, Effect, Event, LaneFile};
use crate::testing::lane_fixture::*;
use crate::types::*;

const M: MemberId = MemberId(1);

fn block(at: u32) -> BlockRange {
    BlockRange { first: Block(at), count: 1 }
}

fn write(at: u32, seed: u64) -> FixtureOp {
    FixtureOp::Write { range: block(at), seed }
}

fn whole(extent: u32, seed: u64) -> FixtureOp {
    let first = Extent(extent).first_block();
    FixtureOp::Write { range: BlockRange { first, count: BLOCKS_PER_EXTENT }, seed }
}

/// Appends, commits and applies an operation, and lets its log write end.
fn put(fixture: &mut Fixture, op: FixtureOp) -> u64 {
    fixture.write(M, op);
    fixture.models[&M].log.len() as u64
}

type Fetched = Result<Vec<LogEntry>, LogGone>;

/// Fetches in flight have ended; this one's answer.
fn answer(fixture: &mut Fixture, low: u64) -> Fetched {
    let is_it = |event: &Event| matches!(event, Event::LogFetched { low: at, .. } if *at == low);
    let at = fixture.events.iter().position(is_it).expect("answered");
    match fixture.events.remove(at) {
        Event::LogFetched { member, result, .. } => {
            if let Ok(entries) = &result {
                check(fixture, member, low, entries);
            }
            result
        }
        _ => unreachable!(),
    }
}

/// They are exactly the entries that were appended last, and applied.
fn check(fixture: &Fixture, member: MemberId, low: u64, entries: &[LogEntry]) {
    let model = &fixture.models[&member];
    assert!(!entries.is_empty());
    for (entry, index) in entries.iter().zip(low..) {
        assert_eq!((entry.index, entry.term), (index, model.log[index as usize - 1]));
        assert!(index <= model.applied && entry.bypass.is_none() && entry.context == "context");
        let expected: Vec<u8> = match model.ops[&(index, entry.term)] {
            FixtureOp::Write { range, seed } => {
                let blocks = 0..u64::from(range.count);
                blocks.flat_map(|at| content(seed.wrapping_add(at), 0)).collect()
            }
            _ => Vec::new(),
        };
        assert!(entry.payload == expected, "entry {index} has another payload");
    }
}

fn fetch(fixture: &mut Fixture, low: u64, high: u64) -> Fetched {
    fixture.lane.fetch_log(M, low, high);
    fixture.settle();
    answer(fixture, low)
}

/// Fetches everything from `low` on, piece by piece.
fn fetch_all(fixture: &mut Fixture, mut low: u64) -> Result<u64, LogGone> {
    let high = fixture.models[&M].applied + 1;
    while low < high {
        low += fetch(fixture, low, high)?.len() as u64;
    }
    Ok(low)
}

#[test]
fn entries_come_back_whether_recovery_needs_them_or_not() {
    let mut fixture = Fixture::new(1, 2);
    for at in 0..20 {
        put(&mut fixture, write(at, 100 + u64::from(at)));
        if at == 12 {
            fixture.rest();
        }
    }
    put(&mut fixture, FixtureOp::Zero { range: block(3) });
    assert_eq!(fetch_all(&mut fixture, 1), Ok(22));
    fixture.rest();
    assert_eq!(fixture.lane.space().overlay_blocks, 0, "recovery needs none of them");
    assert_eq!(fetch_all(&mut fixture, 1), Ok(22));
    assert_eq!(fetch(&mut fixture, 5, 8).unwrap().len(), 3);
    assert_eq!(fetch(&mut fixture, 22, 30), Err(LogGone { first: 23 }), "not applied");
    fixture.crash();
    let gone = Err(LogGone { first: 22 });
    assert_eq!(fetch(&mut fixture, 21, 22), gone, "a restart knows only what it needs");
}

#[test]
fn a_reopened_lane_gives_what_recovery_kept() {
    let mut fixture = Fixture::new(2, 1);
    for at in 0..12 {
        put(&mut fixture, write(at, u64::from(at)));
    }
    fixture.models.get_mut(&M).unwrap().commit = 12;
    fixture.append(M, 13, &[FixtureOp::Noop]);
    fixture.settle();
    fixture.crash();
    assert!(fixture.models[&M].applied >= 12);
    assert_eq!(fetch_all(&mut fixture, 1), Ok(fixture.models[&M].applied + 1));
}

#[test]
fn what_the_ring_has_overwritten_is_gone() {
    let mut fixture = Fixture::new(3, 1);
    for at in 0..400 {
        put(&mut fixture, write(at % BLOCKS, u64::from(at)));
        if at % 20 == 0 {
            fixture.rest();
        }
    }
    let LogGone { first } = fetch(&mut fixture, 1, 10).unwrap_err();
    assert!(first > 250, "the ring has 256 pages: {first}");
    assert!(first < 350, "what the tail has passed is still there: {first}");
    assert_eq!(fetch_all(&mut fixture, first), Ok(401));
    assert_eq!(fetch(&mut fixture, first - 1, 400), Err(LogGone { first }));
    assert_eq!(fixture.lane.space().media_faults, 0);
}

/// A fetch does not hold the ring. It notices at its end that its batches were overwritten.
fn overwritten_during_the_read() {
    let mut fixture = Fixture::new(4, 1);
    for at in 0..10 {
        put(&mut fixture, write(at, u64::from(at)));
    }
    fixture.rest();
    fixture.lane.fetch_log(M, 1, 11);
    fixture.poll();
    let (reads, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut fixture.queue)
        .into_iter()
        .partition(|effect| matches!(effect, Effect::Read { file: LaneFile::Wal, .. }));
    assert!(!reads.is_empty());
    fixture.queue = rest;
    for at in 0..300 {
        put(&mut fixture, write(at % BLOCKS, u64::from(at)));
        if at % 20 == 0 {
            fixture.rest();
        }
    }
    for read in reads {
        fixture.carry_out(read);
    }
    fixture.settle();
    let gone = answer(&mut fixture, 1).unwrap_err();
    assert!(gone.first > 10);
    assert_eq!(fixture.lane.space().media_faults, 0, "the disk is well");
}

#[test]
fn a_fetch_does_not_hold_the_ring() {
    overwritten_during_the_read();
    assert_found(Mistake::FetchedOverwritten, overwritten_during_the_read);
}

/// A bit flips in the payload of an entry. The entries before it come back, it does not.
fn bit_rot_in_the_log() {
    let mut fixture = Fixture::new(5, 1);
    for at in 0..6 {
        put(&mut fixture, write(at, u64::from(at)));
    }
    fixture.rest();
    let payload = content(3, 0);
    let wal = fixture.disk.file(LaneFile::Wal).now.clone();
    let page = wal.chunks(BLOCK_BYTES).position(|page| page == payload).unwrap();
    let mut rotten = payload;
    rotten[77] ^= 4;
    let offset = (page * BLOCK_BYTES) as u64;
    fixture.disk.file(LaneFile::Wal).write(offset, &rotten, true);
    assert_eq!(fetch(&mut fixture, 1, 7).unwrap().len(), 3);
    assert_eq!(fixture.lane.space().media_faults, 0, "nobody asked for it yet");
    assert_eq!(fetch(&mut fixture, 4, 7), Err(LogGone { first: 5 }));
    assert_eq!(fixture.lane.space().media_faults, 1, "reported");
    assert_eq!(fetch(&mut fixture, 5, 7).unwrap().len(), 2);
}

#[test]
fn an_entry_that_fails_its_checksum_is_gone_and_reported() {
    bit_rot_in_the_log();
    assert_found(Mistake::FetchedUnchecked, bit_rot_in_the_log);
}

#[test]
fn a_read_that_fails_is_bit_rot() {
    let mut fixture = Fixture::new(6, 1);
    put(&mut fixture, write(1, 1));
    fixture.lane.fetch_log(M, 1, 2);
    fixture.poll();
    for effect in std::mem::take(&mut fixture.queue) {
        match effect {
            Effect::Read { op, .. } => {
                let failed = Done::Failed(std::io::ErrorKind::Other, "unreadable".to_owned());
                fixture.lane.complete(op, failed);
            }
            other => fixture.queue.push(other),
        }
    }
    fixture.settle();
    assert_eq!(answer(&mut fixture, 1), Err(LogGone { first: 2 }));
    assert!(!fixture.poisoned && fixture.lane.space().media_faults == 1);
}

#[test]
fn a_bypassed_entry_comes_from_its_slots_as_long_as_they_are_as_they_were() {
    let mut fixture = Fixture::bypassing(7, 1, FORMAT.wal_bytes, 40 * EXTENT_BYTES as u64);
    put(&mut fixture, write(90, 1));
    put(&mut fixture, whole(1, 500));
    put(&mut fixture, write(91, 2));
    assert_eq!(fixture.lane.space().used_bytes, EXTENT_BYTES as u64, "it went to a slot");
    assert_eq!(fetch_all(&mut fixture, 1), Ok(4));
    fixture.rest();
    assert_eq!(fetch_all(&mut fixture, 1), Ok(4), "the index has the slot now");
    // And changes it in place.
    put(&mut fixture, write(BLOCKS_PER_EXTENT + 3, 3));
    fixture.rest();
    assert_eq!(fetch(&mut fixture, 2, 5), Err(LogGone { first: 3 }));
    assert_eq!(fetch_all(&mut fixture, 3), Ok(5));
    assert_eq!(fixture.lane.space().media_faults, 0);
}

/// Both versions of entries 2 and 3 are in one batch.
#[test]
fn an_entry_that_was_replaced_is_never_given() {
    let mut fixture = Fixture::new(8, 1);
    put(&mut fixture, write(0, 1));
    fixture.append(M, 2, &[write(1, 11), write(2, 12), write(3, 13)]);
    fixture.append(M, 2, &[write(1, 21), write(2, 22)]);
    fixture.settle();
    fixture.commit_all(M);
    assert_eq!(fixture.models[&M].applied, 3);
    assert_eq!(fetch_all(&mut fixture, 1), Ok(4));
    fixture.rest();
    assert_eq!(fetch_all(&mut fixture, 1), Ok(4));
}

#[test]
fn fetches_of_many_members_wait_in_order() {
    let mut fixture = Fixture::new(9, 12);
    for member in 1..=12 {
        fixture.write(MemberId(member), write(0, member));
    }
    for member in 1..=12 {
        fixture.lane.fetch_log(MemberId(member), 1, 2);
    }
    fixture.poll();
    let reads = |fixture: &Fixture| {
        let is_read = |effect: &&Effect| matches!(effect, Effect::Read { .. });
        fixture.queue.iter().filter(is_read).count()
    };
    assert_eq!(reads(&fixture), 2 * crate::limits::LOG_FETCHES_MAX, "header and payload");
    fixture.settle();
    let answered = fixture.events.iter().filter_map(|event| match event {
        Event::LogFetched { member, result: Ok(entries), .. } => Some((member.0, entries.len())),
        _ => None,
    });
    let mut answered: Vec<_> = answered.collect();
    answered.sort_unstable();
    assert_eq!(answered, (1..=12).map(|member| (member, 1)).collect::<Vec<_>>());
}

/// Random work, restarts and fetches. What comes back is what was appended last; and what is
/// retained for recovery always comes back.
fn random_fetches(seed: u64) {
    let mut fixture = match seed % 2 {
        0 => Fixture::new(seed, 2),
        _ => Fixture::bypassing(seed, 2, FORMAT.wal_bytes, 40 * EXTENT_BYTES as u64),
    };
    let (mut served, mut gone) = (0, 0);
    for _ in 0..600 {
        let member = MemberId(1 + fixture.random.below(2));
        let model = &fixture.models[&member];
        let (last, commit) = (model.log.len() as u64, model.commit);
        let (applied, most) = (model.applied, model.committable());
        match fixture.random.below(20) {
            0..6 => {
                let seed = fixture.random.next();
                let op = match fixture.random.below(8) {
                    0 => FixtureOp::Zero { range: block(3) },
                    1 => FixtureOp::Noop,
                    2 => whole(fixture.random.below(4) as u32, seed),
                    _ => write(fixture.random.below(u64::from(BLOCKS)) as u32, seed),
                };
                let ranges = [BlockRange { first: Block(0), count: BLOCKS }];
                let demand = Demand::write(EXTENT_BYTES as u64, &ranges);
                if fixture.lane.admit(Source::Client, member, &demand).is_ok() {
                    let replaces = fixture.random.one_in(10) && last > commit;
                    let from = if replaces { commit + 1 } else { last + 1 };
                    fixture.append(member, from, &[op]);
                }
            }
            6..10 => {
                fixture.models.get_mut(&member).unwrap().commit = commit.max(most);
                while fixture.models[&member].applied < fixture.models[&member].commit {
                    fixture.apply_next(member, true);
                }
            }
            10..13 if applied > 0 => {
                let low = 1 + fixture.random.below(applied);
                fixture.lane.fetch_log(member, low, applied + 1);
            }
            13 => fixture.now = Mono(fixture.now.0 + 1_100_000_000),
            14 if fixture.random.one_in(40) => {
                fixture.events.clear();
                fixture.crash();
            }
            _ => {
                fixture.poll();
                fixture.complete_some();
            }
        }
        for event in std::mem::take(&mut fixture.events) {
            match event {
                Event::LogFetched { member, low, result: Ok(entries) } => {
                    check(&fixture, member, low, &entries);
                    served += 1;
                }
                Event::LogFetched { member, low, result: Err(LogGone { first }) } => {
                    let flushed = fixture.lane.core.members[&member].log.base_index();
                    assert!(low <= flushed, "entry {low} is retained from {flushed} on");
                    assert!(first > low && first <= flushed + 1);
                    gone += 1;
                }
                _ => {}
            }
        }
    }
    assert!(served > 0 && gone + served > 10, "seed {seed}: {served} served, {gone} gone");
    assert_eq!(fixture.lane.space().media_faults, 0);
}

#[test]
fn random_fetches_give_what_was_appended_last() {
    for seed in 0..60 {
        random_fetches(seed);
    }
}
