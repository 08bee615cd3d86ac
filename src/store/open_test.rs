//! Power failures during several starts in a row.

use bytes::Bytes;

use crate::level::{Level, Levels, TooOld};
use crate::planted::{Mistake, assert_found};
use crate::sim::rng::Rng;
use crate::store::OpenError;
use crate::store::lane::{Lane, LaneFiles};
use crate::store::messages::LaneFile;
use crate::testing::crash_disk::Disk;
use crate::testing::lane_fixture::{Fixture, FixtureOp};
use crate::types::{Block, BlockRange, MemberId};

/// A disk whose power fails after this many writes.
struct Unsteady<'a> {
    disk: &'a mut Disk,
    writes_left: u64,
    has_failed: bool,
}

impl LaneFiles for Unsteady<'_> {
    fn read(&mut self, file: LaneFile, offset: u64, len: usize) -> std::io::Result<Bytes> {
        self.disk.read(file, offset, len)
    }

    fn write(&mut self, file: LaneFile, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        self.has_failed |= self.writes_left == 0;
        if !self.has_failed {
            self.writes_left -= 1;
            return self.disk.write(file, offset, bytes);
        }
        self.disk.file(file).write(offset, bytes, false);
        Err(std::io::Error::other("the power failed"))
    }

    fn size_bytes(&mut self, file: LaneFile) -> std::io::Result<u64> {
        self.disk.size_bytes(file)
    }
}

/// Each start writes the superblock, and finds the remains of the starts before.
#[test]
fn a_disk_can_be_opened_however_often_power_fails_meanwhile() {
    for seed in 0..300 {
        let mut fixture = Fixture::new(seed, 1);
        let mut random = Rng::new(seed);
        for start in 0..12 {
            let (config, pool) = (fixture.config.clone(), fixture.disk.pool.clone());
            let most = if random.one_in(2) { 2 } else { 7 };
            let writes_left = random.below(most);
            let mut files = Unsteady { disk: &mut fixture.disk, writes_left, has_failed: false };
            let opened = Lane::open(config, pool, &mut files, &mut fixture.index);
            if let Err(error) = opened {
                assert!(files.has_failed, "start {start} of seed {seed}: {error:?}");
                for file in [LaneFile::Superblock, LaneFile::Wal] {
                    fixture.disk.file(file).crash(&mut random);
                }
            }
        }
    }
}

/// Somebody brings back the superblock that was written by the open before the last one.
#[test]
fn a_superblock_from_an_earlier_open_is_refused() {
    let mut fixture = Fixture::new(1, 1);
    let earlier = fixture.disk.file(LaneFile::Superblock).now.clone();
    fixture.reopen();
    let member = MemberId(1);
    let range = BlockRange { first: Block(0), count: 1 };
    fixture.write(member, FixtureOp::Write { range, seed: 7 });
    fixture.settle();
    fixture.disk.file(LaneFile::Superblock).write(0, &earlier, true);
    let (config, pool) = (fixture.config.clone(), fixture.disk.pool.clone());
    let refused = Lane::open(config, pool, &mut fixture.disk, &mut fixture.index);
    let Err(error) = refused else { panic!("the log is of a newer open") };
    let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
    let text = format!("{error}: {source}");
    assert!(text.contains("older copy") && text.contains("empty folder"), "{text}");
}

/// A disk that was used at a feature level is refused by programs that do not support it.
#[test]
fn a_disk_of_a_newer_feature_level_is_refused_and_left_alone() {
    let of = |cluster, newest| Levels { cluster: Level(cluster), newest: Level(newest) };
    let mut fixture = Fixture::new(1, 1);
    fixture.config.levels = of(1, 2);
    fixture.reopen();
    fixture.lane.raise_level(Level(2));
    // Enough for the log's tail to move, with which the superblock is written.
    let range = |number| BlockRange { first: Block(number % 64), count: 1 };
    for number in 0u32.. {
        if fixture.lane.superblock().level == Level(2) {
            break;
        }
        assert!(number < 10_000, "the superblock is never written");
        fixture.write(MemberId(1), FixtureOp::Write { range: range(number), seed: number.into() });
        fixture.settle();
    }
    fixture.config.levels = of(0, 1);
    let before = fixture.disk.file(LaneFile::Superblock).now.clone();
    let (config, pool) = (fixture.config.clone(), fixture.disk.pool.clone());
    let refused = Lane::open(config, pool, &mut fixture.disk, &mut fixture.index);
    let Err(OpenError::Level(TooOld { needed, .. })) = refused else { panic!("it is too new") };
    assert_eq!(needed, Level(2));
    assert!(fixture.disk.file(LaneFile::Superblock).now == before, "nothing was changed");
    // A pod that knows nothing of its cluster yet keeps what the disk knows.
    fixture.config.levels = of(0, 2);
    fixture.reopen();
    assert_eq!(fixture.lane.superblock().level, Level(2));
}

#[test]
fn broken_rules_are_noticed() {
    assert_found(
        Mistake::SuperblockNotSettled,
        a_disk_can_be_opened_however_often_power_fails_meanwhile,
    );
}
