//! A world for a lane in tests: a disk that forgets what was not made durable, an index that
//! forgets what was not flushed, and members whose every append, commit and applied entry is
//! remembered, so that what a lane says after a crash can be judged.

use std::collections::{BTreeMap, HashMap, VecDeque};

use bytes::Bytes;

use crate::level::Levels;
use crate::limits::{LISTING_EXTENTS_MAX, OVERLAY_BYTES_MAX};
use crate::log::{Append, Applied, Change, HardState, LogEntry, Reset, WholeExtents};
use crate::sim::rng::Rng;
use crate::store::index::memory::MemoryIndex;
use crate::store::index::run;
use crate::store::lane::{Lane, LaneConfig, LaneFiles, RecoveredMember};
use crate::store::members_test::assert_counted;
use crate::store::messages::*;
use crate::store::open::{LaneFormat, data_files, format_lane};
use crate::testing::crash_disk::Disk;
use crate::types::{
    BLOCK_BYTES, BLOCKS_PER_EXTENT, Block, BlockRange, EXTENT_BYTES, MemberId, Mono, Segment,
    ShardId, Uuid, VolumeId, block_crc, mix64,
};

/// Effects until a lane has nothing to do, at most.
const STEPS_MAX: u32 = 100_000;

fn count(steps: u32) -> u32 {
    assert!(steps < STEPS_MAX, "the lane never comes to rest");
    steps + 1
}

/// What an entry does. `seed` makes the bytes of its blocks.
#[derive(Clone, Copy, Debug)]
pub enum FixtureOp {
    Write {
        range: BlockRange,
        seed: u64,
    },
    Zero {
        range: BlockRange,
    },
    /// As [`FixtureOp::Zero`], without giving space back.
    Clear {
        range: BlockRange,
    },
    Noop,
}

/// What a member was told and what it answered.
pub struct Model {
    pub record: MemberRecord,
    /// Terms of the entries from index 1 on, as of the newest append and the newest confirmed.
    pub log: Vec<u64>,
    acked_log: Vec<u64>,
    acked_hard: HardState,
    pending: VecDeque<Append>,
    pub ops: HashMap<(u64, u64), FixtureOp>,
    pub hard: HardState,
    pub commit: u64,
    pub applied: u64,
    number: u64,
    /// Per block: (index, seed of the content or none), ascending.
    pub blocks: Vec<Vec<(u64, Option<u64>)>>,
}

pub struct Fixture {
    pub random: Rng,
    pub disk: Disk,
    pub index: MemoryIndex,
    pub lane: Lane,
    pub queue: Vec<Effect>,
    pub now: Mono,
    pub models: BTreeMap<MemberId, Model>,
    /// Member, range, and what was applied when it was asked.
    reads: HashMap<ReadId, (MemberId, BlockRange, u64)>,
    next_read: u64,
    /// Events that nobody waits for here.
    pub events: Vec<Event>,
    pub poisoned: bool,
    /// Effects on this file take long; `None`: the index's do.
    pub slow: Option<Option<LaneFile>>,
    pub config: LaneConfig,
}

pub const FORMAT: LaneFormat = LaneFormat {
    cluster: Uuid([1; 16]),
    disk: Uuid([2; 16]),
    seed: 77,
    wal_bytes: 1 << 20,
    data_bytes_max: 12 * EXTENT_BYTES as u64,
    data_file_bytes: 3 * EXTENT_BYTES as u64,
};

/// Blocks of every shard: 6 extents and a bit.
pub const BLOCKS: u32 = 6 * BLOCKS_PER_EXTENT + 5;

/// The bytes that a seed stands for.
pub fn content(seed: u64, position: u32) -> Vec<u8> {
    let word = mix64(seed ^ mix64(u64::from(position))).to_le_bytes();
    word.repeat(BLOCK_BYTES / 8)
}

pub fn record(member: u64) -> MemberRecord {
    MemberRecord {
        member: MemberId(member),
        shard: ShardId(member),
        volume: VolumeId(9),
        first_block_in_volume: member * 1000,
        blocks: BLOCKS,
        flushed_index: 0,
        flushed_term: 0,
        meta: Bytes::from_static(b"0"),
        resyncing: false,
    }
}

impl Model {
    fn new(record: MemberRecord) -> Model {
        Model {
            log: Vec::new(),
            acked_log: Vec::new(),
            acked_hard: HardState::default(),
            pending: VecDeque::new(),
            ops: HashMap::new(),
            hard: HardState { term: 1, vote: 1, commit: 0 },
            commit: 0,
            applied: 0,
            number: 0,
            blocks: vec![vec![(0, None)]; record.blocks as usize],
            record,
        }
    }

    /// The newest entry that may be called committed: confirmed, and not about to be replaced.
    /// Appends that were not confirmed yet.
    pub fn unconfirmed(&self) -> usize {
        self.pending.len()
    }

    pub fn committable(&self) -> u64 {
        let replaced = self.pending.iter().filter_map(|request| request.entries.first());
        let first = replaced.map(|entry| entry.index - 1).min();
        (self.acked_log.len() as u64).min(first.unwrap_or(u64::MAX))
    }

    fn note_applied(&mut self, index: u64) {
        let term = self.log[index as usize - 1];
        match self.ops[&(index, term)] {
            FixtureOp::Write { range, seed } => {
                for (position, at) in range.blocks().enumerate() {
                    let seed = seed.wrapping_add(position as u64);
                    self.blocks[at.0 as usize].push((index, Some(seed)));
                }
            }
            FixtureOp::Zero { range } | FixtureOp::Clear { range } => {
                range.blocks().for_each(|at| self.blocks[at.0 as usize].push((index, None)));
            }
            FixtureOp::Noop => {}
        }
        self.applied = index;
    }

    /// Forgets what was applied: a restart.
    pub fn rewind(&mut self, to: u64) {
        for versions in &mut self.blocks {
            versions.retain(|(index, _)| *index <= to);
        }
        self.applied = to;
    }

    fn acknowledge(log: &mut Vec<u64>, hard: &mut HardState, request: &Append) {
        for entry in &request.entries {
            log.truncate(entry.index as usize - 1);
            log.push(entry.term);
        }
        *hard = request.hard.unwrap_or(*hard);
    }

    /// After a crash: the log must be as of the newest confirmed append, or a later one.
    fn judge(&mut self, found: &RecoveredMember) {
        let flushed = found.record.flushed_index;
        let (mut log, mut hard) = (self.acked_log.clone(), self.acked_hard);
        let terms: Vec<_> = found.entries.iter().map(|e| (e.entry.index, e.entry.term)).collect();
        let fits = |log: &Vec<u64>, hard: &HardState| {
            let end = log.len() as u64;
            let expected: Vec<_> = (flushed + 1..=end).map(|i| (i, log[i as usize - 1])).collect();
            let same_vote = (hard.term, hard.vote) == (found.hard.term, found.hard.vote);
            terms == expected && same_vote && found.hard.commit >= hard.commit
        };
        let mut pending = std::mem::take(&mut self.pending).into_iter();
        while !fits(&log, &hard) {
            let Some(request) = pending.next() else {
                panic!(
                    "member {}: flushed {flushed}, found {:?} {terms:?}, confirmed {:?} {:?}",
                    found.record.member, found.hard, self.acked_hard, self.acked_log
                );
            };
            Model::acknowledge(&mut log, &mut hard, &request);
        }
        assert!(found.hard.commit <= self.commit, "nothing else was committed");
        assert!(!found.faulted);
        self.acked_log = log.clone();
        self.log = log;
        self.acked_hard = found.hard;
        self.hard = found.hard;
        self.rewind(flushed);
        for recovered in &found.entries {
            let key = (recovered.entry.index, recovered.entry.term);
            if let (FixtureOp::Write { range, seed }, true) = (self.ops[&key], recovered.loaded) {
                assert_eq!(recovered.entry.payload, payload(range, seed));
            }
        }
    }
}

fn payload(range: BlockRange, seed: u64) -> Vec<u8> {
    let blocks = (0..range.count).map(|position| (seed.wrapping_add(u64::from(position)), 0));
    blocks.flat_map(|(seed, at)| content(seed, at)).collect()
}

fn crcs_of(record: &MemberRecord, range: BlockRange, bytes: &[u8]) -> Vec<u32> {
    let crc = |(at, bytes): (Block, &[u8])| {
        block_crc(record.volume, record.first_block_in_volume + u64::from(at.0), bytes)
    };
    range.blocks().zip(bytes.chunks(BLOCK_BYTES)).map(crc).collect()
}

fn whole_extents(
    record: &MemberRecord,
    index: u64,
    range: BlockRange,
    seed: u64,
) -> Option<WholeExtents> {
    let whole = range.first.in_extent() == 0 && range.count.is_multiple_of(BLOCKS_PER_EXTENT);
    let crcs = || crcs_of(record, range, &payload(range, seed));
    whole.then(|| WholeExtents { index, first: range.first.extent(), crcs: crcs() })
}

pub fn file_of(effect: &Effect) -> Option<LaneFile> {
    match effect {
        Effect::Write { file, .. } | Effect::Read { file, .. } | Effect::Sync { file, .. } => {
            Some(*file)
        }
        Effect::Index { .. } => None,
    }
}

impl Fixture {
    /// Nothing is bypassed.
    pub fn new(seed: u64, members: u64) -> Fixture {
        Fixture::with(seed, members, FORMAT.wal_bytes, FORMAT.data_bytes_max)
    }

    /// Every write of whole extents is bypassed, as long as there is space.
    pub fn bypassing(seed: u64, members: u64, wal_bytes: u64, data_bytes_max: u64) -> Fixture {
        let mut fixture = Fixture::with(seed, 0, wal_bytes, data_bytes_max);
        fixture.config.bypass_bytes_min = EXTENT_BYTES;
        fixture.reopen();
        for member in 1..=members {
            fixture.create(record(member));
        }
        fixture
    }

    pub fn with(seed: u64, members: u64, wal_bytes: u64, data_bytes_max: u64) -> Fixture {
        let config = LaneConfig {
            levels: Levels::OWN,
            data_bytes_max,
            dirty_cache_bytes: 64 << 10,
            overlay_bytes_max: OVERLAY_BYTES_MAX,
            index_cache_bytes: 4 * 192,
            log_tail_bytes: 96 << 10,
            bypass_bytes_min: usize::MAX,
            listing_extents: LISTING_EXTENTS_MAX,
        };
        let mut disk = Disk::new(wal_bytes, data_bytes_max);
        // Files of a few slots, so that there are several; or one, as most disks have.
        let data_file_bytes = if seed % 4 == 2 { 0 } else { FORMAT.data_file_bytes };
        let format = LaneFormat { wal_bytes, data_bytes_max, data_file_bytes, ..FORMAT };
        format_lane(&mut disk, &format).unwrap();
        let mut index = MemoryIndex::default();
        let opened = Lane::open(config.clone(), disk.pool.clone(), &mut disk, &mut index);
        let (lane, found) = opened.unwrap();
        assert!(found.is_empty());
        let mut fixture = Fixture {
            random: Rng::new(seed),
            disk,
            index,
            lane,
            queue: Vec::new(),
            now: Mono(1),
            models: BTreeMap::new(),
            reads: HashMap::new(),
            next_read: 0,
            events: Vec::new(),
            poisoned: false,
            slow: None,
            config,
        };
        for member in 1..=members {
            fixture.create(record(member));
        }
        fixture
    }

    pub fn create(&mut self, record: MemberRecord) {
        self.lane.create_member(record.clone());
        self.settle();
        self.models.insert(record.member, Model::new(record));
        self.events.clear();
    }

    /// Lets everything end and returns what happened.
    pub fn events(&mut self) -> Vec<Event> {
        self.settle();
        std::mem::take(&mut self.events)
    }

    /// The log of `to` becomes as `from`'s is up to `index`, by a snapshot; its store holds that.
    pub fn reset(&mut self, to: MemberId, from: MemberId, index: u64) {
        let (log, ops, blocks) = {
            let source = &self.models[&from];
            (source.log.clone(), source.ops.clone(), source.blocks.clone())
        };
        let model = self.models.get_mut(&to).unwrap();
        model.log = log[..index as usize].to_vec();
        model.ops.extend(ops);
        model.blocks = blocks;
        model.rewind(index);
        model.commit = index;
        model.number += 1;
        model.hard = HardState { term: *log.last().unwrap(), vote: 0, commit: index };
        let request = |model: &Model| Append {
            member: to,
            number: model.number,
            hard: Some(model.hard),
            reset: Some(Reset { index, term: model.log[index as usize - 1], meta: Bytes::new() }),
            entries: Vec::new(),
            whole_extents: Vec::new(),
        };
        let (sent, noted) = (request(model), request(model));
        model.acked_log = model.log.clone();
        model.pending.push_back(noted);
        self.lane.append(sent);
    }

    /// Ends everything in flight, and what follows from it, but for what `held` names.
    pub fn settle_but(&mut self, held: impl Fn(&Effect) -> bool) {
        self.poll();
        let mut steps = 0;
        while let Some(pick) = self.queue.iter().position(|effect| !held(effect)) {
            steps = count(steps);
            let effect = self.queue.remove(pick);
            self.carry_out(effect);
            self.poll();
        }
    }

    /// Appends one operation, and commits and applies it.
    pub fn write(&mut self, member: MemberId, op: FixtureOp) {
        let last = self.models[&member].log.len() as u64;
        self.append(member, last + 1, &[op]);
        self.settle_but(|effect| match effect {
            Effect::Write { file: LaneFile::Data, durable, .. } => !durable,
            other => file_of(other) != Some(LaneFile::Wal),
        });
        self.commit_all(member);
    }

    /// Commits and applies what is confirmed.
    pub fn commit_all(&mut self, member: MemberId) {
        let most = self.models[&member].committable();
        self.models.get_mut(&member).unwrap().commit = most;
        while self.models[&member].applied < most {
            self.apply_next(member, true);
        }
    }

    /// One round of the worker.
    pub fn poll(&mut self) {
        let (mut effects, mut events) = (Vec::new(), Vec::new());
        self.lane.poll(self.now, &mut effects, &mut events);
        assert_counted(&mut self.lane);
        for effect in effects {
            self.scribble(&effect);
            self.queue.push(effect);
        }
        for event in events {
            self.event(event);
        }
    }

    /// A write in flight may have reached any of its sectors already.
    fn scribble(&mut self, effect: &Effect) {
        if let Effect::Write { file, offset, bufs, .. } = effect
            && self.random.one_in(3)
        {
            let bytes = bufs.concat();
            for (at, sector) in (*offset..).step_by(BLOCK_BYTES).zip(bytes.chunks(BLOCK_BYTES)) {
                if self.random.one_in(2) {
                    self.disk.file(*file).write(at, sector, false);
                }
            }
        }
    }

    /// Ends one effect in flight, any of them but for the order of index jobs.
    pub fn complete_one(&mut self) -> bool {
        if self.queue.is_empty() {
            return false;
        }
        let mut pick = self.random.below(self.queue.len() as u64) as usize;
        if let Effect::Index { .. } = self.queue[pick] {
            let is_index = |effect: &Effect| matches!(effect, Effect::Index { .. });
            pick = self.queue.iter().position(is_index).unwrap();
        }
        let effect = self.queue.remove(pick);
        self.carry_out(effect);
        true
    }

    /// Perhaps ends an effect: one on the slow file seldom.
    pub fn complete_some(&mut self) {
        if let Some(slow) = self.slow {
            let is_slow = |effect: &Effect| file_of(effect) == slow;
            let all_slow = self.queue.iter().all(is_slow);
            if all_slow && !self.random.one_in(50) {
                return;
            }
            let (held, rest) = std::mem::take(&mut self.queue).into_iter().partition(is_slow);
            self.queue = rest;
            let held: Vec<Effect> = held;
            if all_slow {
                self.queue = held;
                self.complete_one();
            } else {
                self.complete_one();
                self.queue.splice(0..0, held);
            }
            return;
        }
        self.complete_one();
    }

    /// Asserts that a transfer is within one data file.
    fn in_one_file(&self, file: LaneFile, offset: u64, len: usize) {
        if file == LaneFile::Data {
            data_files(self.lane.superblock()).unwrap().locate(offset, len);
        }
    }

    pub fn carry_out(&mut self, effect: Effect) {
        match &effect {
            Effect::Write { file, offset, bufs, .. } => {
                self.in_one_file(*file, *offset, bufs.iter().map(Bytes::len).sum());
            }
            Effect::Read { file, offset, len, .. } => self.in_one_file(*file, *offset, *len),
            Effect::Sync { .. } | Effect::Index { .. } => {}
        }
        let (op, done) = match effect {
            Effect::Write { op, file, offset, bufs, durable } => {
                self.disk.file(file).write(offset, &bufs.concat(), durable);
                (op, Done::Written)
            }
            Effect::Read { op, file, offset, len } => {
                (op, Done::Read(self.disk.read(file, offset, len).unwrap()))
            }
            Effect::Sync { op, file } => {
                self.disk.file(file).sync();
                (op, Done::Synced)
            }
            Effect::Index { op, job } => (op, Done::Index(run(&mut self.index, job).unwrap())),
        };
        self.lane.complete(op, done);
    }

    /// Lets everything that is in flight end, without the clock.
    pub fn settle(&mut self) {
        self.poll();
        let mut steps = 0;
        while self.complete_one() {
            steps = count(steps);
            self.poll();
        }
    }

    /// Lets the lane come to rest.
    pub fn rest(&mut self) {
        for _ in 0..4 {
            self.poll();
            self.now = Mono(self.now.0 + 2_000_000_000);
            self.settle();
        }
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Appended { member, number } => {
                let model = self.models.get_mut(&member).unwrap();
                let request = model.pending.pop_front().unwrap();
                assert_eq!(request.number, number, "confirmed in order");
                Model::acknowledge(&mut model.acked_log, &mut model.acked_hard, &request);
            }
            Event::Read { read, result } if self.reads.contains_key(&read) => {
                let (member, range, from) = self.reads.remove(&read).unwrap();
                self.check_read(member, range, from, result.unwrap());
            }
            Event::Poisoned { .. } => self.poisoned = true,
            other => self.events.push(other),
        }
    }

    /// Every block is as of some moment between the question and the answer.
    fn check_read(&self, member: MemberId, range: BlockRange, from: u64, got: ReadBlocks) {
        let model = &self.models[&member];
        let mut bytes = Vec::new();
        for segment in got.segments {
            match segment {
                Segment::Data(data) => bytes.extend_from_slice(&data),
                Segment::Zero(len) => bytes.resize(bytes.len() + len, 0),
            }
        }
        assert_eq!(bytes.len() as u64, range.bytes());
        let blocks = range.blocks().zip(bytes.chunks(BLOCK_BYTES)).zip(&got.crcs);
        for ((at, bytes), crc) in blocks {
            let versions = &model.blocks[at.0 as usize];
            let first = versions.partition_point(|(index, _)| *index <= from) - 1;
            let fits = |seed: &Option<u64>| match seed {
                None => *crc == 0 && bytes.iter().all(|byte| *byte == 0),
                Some(seed) => {
                    let at = model.record.first_block_in_volume + u64::from(at.0);
                    bytes == content(*seed, 0) && *crc == block_crc(model.record.volume, at, bytes)
                }
            };
            assert!(
                versions[first..].iter().any(|(_, seed)| fits(seed)),
                "member {member} block {} applied {from}..{}: {:?}",
                at.0,
                model.applied,
                &versions[first..]
            );
        }
    }

    pub fn read(&mut self, member: MemberId, range: BlockRange) {
        self.next_read += 1;
        let read = ReadId(self.next_read);
        let applied = self.models[&member].applied;
        self.reads.insert(read, (member, range, applied));
        self.lane.read(read, member, range);
    }

    pub fn reads_in_flight(&self) -> usize {
        self.reads.len()
    }

    /// Reads and judges every block of every member.
    pub fn check_all(&mut self) {
        let members: Vec<_> = self.models.keys().copied().collect();
        for member in members {
            let (first, count) = (Block(0), BLOCKS);
            self.read(member, BlockRange { first, count });
            while self.reads_in_flight() > 0 {
                self.poll();
                assert!(self.complete_one() || self.reads_in_flight() == 0, "a read got stuck");
            }
        }
    }

    /// Appends these operations from `from` on (the end of the log, or an uncommitted entry).
    pub fn append(&mut self, member: MemberId, from: u64, ops: &[FixtureOp]) {
        let model = self.models.get_mut(&member).unwrap();
        if from <= model.log.len() as u64 {
            model.hard.term += 1;
        }
        model.log.truncate(from as usize - 1);
        model.hard.commit = model.hard.commit.max(model.commit);
        model.number += 1;
        let request = |model: &Model, with_payload: bool| {
            let whole = |(op, index): (&FixtureOp, u64)| match op {
                FixtureOp::Write { range, seed } => {
                    whole_extents(&model.record, index, *range, *seed)
                }
                FixtureOp::Zero { .. } | FixtureOp::Clear { .. } | FixtureOp::Noop => None,
            };
            let entries = ops.iter().zip(from..).map(|(op, index)| LogEntry {
                bypass: None,
                index,
                term: model.hard.term,
                kind: 0,
                context: Bytes::from_static(b"context"),
                payload: match op {
                    FixtureOp::Write { range, seed } if with_payload => {
                        self.disk.pool.copy(&payload(*range, *seed))
                    }
                    _ => Bytes::new(),
                },
            });
            Append {
                member,
                number: model.number,
                hard: Some(model.hard),
                reset: None,
                entries: entries.collect(),
                whole_extents: ops.iter().zip(from..).filter_map(whole).collect(),
            }
        };
        let (sent, noted) = (request(model, true), request(model, false));
        model.pending.push_back(noted);
        for (op, index) in ops.iter().zip(from..) {
            model.log.push(model.hard.term);
            model.ops.insert((index, model.hard.term), *op);
        }
        self.lane.append(sent);
    }

    /// Applies the next committed entry, with its payload or as in a replay.
    pub fn apply_next(&mut self, member: MemberId, with_payload: bool) {
        let model = self.models.get_mut(&member).unwrap();
        let index = model.applied + 1;
        let term = model.log[index as usize - 1];
        let change = match model.ops[&(index, term)] {
            FixtureOp::Write { range, seed } => {
                let bytes = payload(range, seed);
                Some(Change::Write {
                    range,
                    crcs: crcs_of(&model.record, range, &bytes),
                    payload: match with_payload {
                        true => self.disk.pool.copy(&bytes),
                        false => Bytes::new(),
                    },
                })
            }
            FixtureOp::Zero { range } => Some(Change::Zero { range, trim: true }),
            FixtureOp::Clear { range } => Some(Change::Zero { range, trim: false }),
            FixtureOp::Noop => None,
        };
        model.note_applied(index);
        self.lane.apply(
            member,
            Applied {
                index,
                term,
                change,
                meta: index.is_multiple_of(5).then(|| Bytes::from(index.to_string())),
                ..Applied::default()
            },
        );
    }

    /// Power fails and comes back: the lane is opened again, its members replayed and judged.
    pub fn crash(&mut self) {
        for effect in std::mem::take(&mut self.queue) {
            if let Effect::Write { file, offset, bufs, .. } = &effect {
                self.disk.file(*file).write(*offset, &bufs.concat(), false);
            } else if let Effect::Index { job, .. } = effect
                && self.random.one_in(2)
                && let IndexJob::Commit { edits, .. } = job
            {
                run(&mut self.index, IndexJob::Commit { edits, flush: false }).unwrap();
            }
        }
        let mut files: Vec<_> = self.disk.files.iter_mut().collect();
        files.sort_by_key(|(file, _)| **file as u8);
        for (_, file) in files {
            file.crash(&mut self.random);
        }
        let commits = self.index.unflushed_commits() as u64;
        let kept = self.random.below(commits + 1) as usize;
        self.index.crash(kept);
        self.reads.clear();
        self.reopen();
    }

    /// Opens the lane again from what the disk holds.
    pub fn reopen_unchecked(&mut self) -> Vec<RecoveredMember> {
        self.queue.clear();
        let pool = self.disk.pool.clone();
        let opened = Lane::open(self.config.clone(), pool, &mut self.disk, &mut self.index);
        let (lane, found) = opened.unwrap();
        self.lane = lane;
        found
    }

    pub fn reopen(&mut self) {
        let found = self.reopen_unchecked();
        assert_eq!(found.len(), self.models.len());
        for found in found {
            let member = found.record.member;
            let model = self.models.get_mut(&member).unwrap();
            model.judge(&found);
            let last = (0..=found.record.flushed_index).rev().find(|i| i.is_multiple_of(5));
            assert_eq!(found.record.meta, last.unwrap().to_string());
            while self.models[&member].applied < found.hard.commit {
                self.apply_next(member, false);
            }
        }
        self.check_all();
    }
}
