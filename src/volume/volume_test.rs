//! A volume against shards that reorder, fail, move their leaders, answer late, twice or never, and
//! keep requests of lost links for later. Writes of a word must still be applied in the order of
//! their arrival. A read never misses a write that was acknowledged, or seen by a read, before it
//! began. When the faults end, everything is answered. With an `io_timeout`, everything is answered
//! within it, and a write that has timed out may take place late, but not after newer ones.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::io::buffer::Pool;
use crate::planted::{Mistake, assert_found};
use crate::sim::rng::Rng;
use crate::types::{
    AccessSet, BLOCK_BYTES, BlockReply, Segment, StatusRun, Uuid, ZeroHow, block_crc,
};
use crate::view::ShardView;

const VOLUME: VolumeId = VolumeId(9);
const SHARDS: usize = 2;
const SHARD_BLOCKS: usize = 6;
const SHARD_BYTES: usize = SHARD_BLOCKS * BLOCK_BYTES;
/// Not a multiple of a block: the last block is used in part.
const SIZE_BYTES: usize = SHARDS * SHARD_BYTES - 1000;
const ME: PodId = PodId(1);
const WORD: usize = 4;

fn view(pods: &[u64]) -> VolumeView {
    let member = |shard: u64, pod: u64| MemberView {
        member: MemberId(shard * 10 + pod),
        disk: Uuid::default(),
        pod: PodId(pod),
    };
    let shard = |shard: u64| ShardView {
        shard: ShardId(100 + shard),
        members: pods.iter().map(|pod| member(shard, *pod)).collect(),
        birth: AccessSet::default(),
    };
    VolumeView {
        volume: VOLUME,
        name: "v".to_owned(),
        size_bytes: SIZE_BYTES as u64,
        stripe_width: 1,
        stripe_bytes: SHARD_BYTES as u64,
        shards: (0..SHARDS as u64).map(shard).collect(),
        withheld: false,
        deleting: false,
        open: true,
        io_timeout_ms: 0,
        attachments: Vec::new(),
    }
}

/// A request in flight to a member.
struct Call {
    ticket: Ticket,
    shard: usize,
    to: MemberView,
    term: u64,
    session: Session,
    op: ShardOp,
}

struct Answer {
    ticket: Ticket,
    from: MemberView,
    term: u64,
    result: Result<ShardReply, BlockError>,
}

struct Proposal {
    ticket: Ticket,
    session: Session,
    op: ShardOp,
    /// Its proposer has already answered "unknown", and will not answer again.
    silent: bool,
}

/// What a shard answers to a request under another session than the recorded one.
fn refusal(used: Session, recorded: Session) -> BlockError {
    match used.counter > recorded.counter || recorded.counter == 0 {
        true => BlockError::NotTouched,
        false => BlockError::StaleSession { recorded },
    }
}

struct FakeShard {
    bytes: Vec<u8>,
    members: Vec<MemberView>,
    leader: Option<usize>,
    term: u64,
    /// As recorded; counter 0: none.
    session: Session,
    touches: usize,
    log: VecDeque<Proposal>,
}

/// A request for which a client waits.
struct Waiting {
    conn: ConnId,
    since: Mono,
    kind: Kind,
    offset: usize,
    len: usize,
}

enum Kind {
    /// A write: its number, and the words it changes.
    Write(u32, Vec<usize>),
    /// A read: per word, the oldest write that it may show.
    Read(Vec<u32>),
    Other,
}

struct World {
    random: Rng,
    now: Mono,
    volume: Volume,
    shards: Vec<FakeShard>,
    calls: Vec<Call>,
    answers: Vec<Answer>,
    waiting: BTreeMap<u64, Waiting>,
    next_handle: u64,
    conns: Vec<ConnId>,
    next_conn: u64,
    writes: u32,
    /// Per word: the newest applied write, the oldest that a new read may show, and every write of
    /// zeroes.
    applied: Vec<u32>,
    floor: Vec<u32>,
    zeroes: Vec<Vec<u32>>,
    healthy: bool,
    pool: Pool,
    /// Requests that have waited for too long.
    timed_out: usize,
}

impl World {
    fn new(seed: u64, io_timeout_ms: u64) -> World {
        let view = VolumeView { io_timeout_ms, ..view(&[1, 2, 3]) };
        let shards = view.shards.iter().map(|shard| FakeShard {
            bytes: vec![0; SHARD_BYTES],
            members: shard.members.clone(),
            leader: None,
            term: 1,
            session: Session::default(),
            touches: 0,
            log: VecDeque::new(),
        });
        let words = SHARDS * SHARD_BYTES / WORD;
        World {
            random: Rng::new(seed),
            now: Mono(1),
            shards: shards.collect(),
            volume: Volume::new(&view, AttachmentId::NONE, FrontEnd::new(ME, 1)),
            calls: Vec::new(),
            answers: Vec::new(),
            waiting: BTreeMap::new(),
            next_handle: 0,
            conns: vec![ConnId(0), ConnId(1)],
            next_conn: 2,
            writes: 0,
            applied: vec![0; words],
            floor: vec![0; words],
            zeroes: vec![vec![0]; words],
            healthy: false,
            pool: Pool::default(),
            timed_out: 0,
        }
    }

    fn step(&mut self) {
        match self.random.index(100) {
            0..20 if !self.healthy && self.waiting.len() < 24 => self.issue(),
            20..50 => self.deliver_call(),
            50..70 => self.deliver_answer(),
            70..88 => self.apply_one(),
            88..94 => {
                self.now = self.now + Duration::from_millis(self.random.index(60) as u64);
                self.volume.tick(self.now);
                self.poll();
                self.check_waiting();
            }
            94..100 if !self.healthy => self.fault(),
            _ => {}
        }
        self.poll();
    }

    /// Nobody waits for longer than the timeout.
    fn check_waiting(&self) {
        let timeout = self.volume.overdue.timeout.unwrap_or(Duration::MAX);
        let waits = |waiting: &Waiting| self.now.since(waiting.since);
        assert!(self.waiting.values().all(|waiting| waits(waiting) < timeout));
    }

    fn fault(&mut self) {
        let shard = self.random.index(SHARDS);
        match self.random.index(10) {
            0..4 => self.move_leader(shard),
            4..6 => {
                let pod = PodId(2 + self.random.index(2) as u64);
                // A part of the lost link's content arrives much later, or never.
                let keep = self.random.percent(70);
                self.calls.retain(|call| call.to.pod != pod || keep);
                self.answers.retain(|answer| answer.from.pod != pod);
                self.volume.pod_down(self.now, pod);
            }
            6 => {
                let place = self.random.index(self.conns.len());
                let conn = self.conns[place];
                self.volume.close_connection(conn);
                self.waiting.retain(|_, waiting| waiting.conn != conn);
                self.conns[place] = ConnId(self.next_conn);
                self.next_conn += 1;
            }
            7 => {
                let known = &self.shards[shard];
                let leader = known.leader.map(|leader| known.members[leader].member);
                self.volume.role(ShardId(100 + shard as u64), leader, known.term);
            }
            8 if !self.answers.is_empty() => {
                // Never answered, and nobody notices.
                let place = self.random.index(self.answers.len());
                self.answers.swap_remove(place);
            }
            _ => {
                self.now = self.now + Duration::from_secs(31);
                self.volume.tick(self.now);
            }
        }
    }

    /// Elects another leader, or none for now. A prefix of the old one's proposals survives.
    fn move_leader(&mut self, shard: usize) {
        let leader = (!self.random.percent(20)).then(|| self.random.index(3));
        let survive = self.random.index(self.shards[shard].log.len() + 1);
        let fake = &mut self.shards[shard];
        let from = fake.leader.map(|leader| fake.members[leader]);
        for (place, proposal) in fake.log.iter_mut().enumerate() {
            let Some(from) = from.filter(|_| !proposal.silent) else {
                continue;
            };
            proposal.silent = place < survive;
            self.answers.push(Answer {
                ticket: proposal.ticket,
                from,
                term: fake.term + 1,
                result: Err(BlockError::Unknown),
            });
        }
        fake.log.truncate(survive);
        fake.term += 1;
        fake.leader = leader;
    }

    fn heal(&mut self) {
        self.healthy = true;
        for shard in 0..SHARDS {
            if self.shards[shard].leader.is_none() {
                self.shards[shard].leader = Some(self.random.index(3));
                self.shards[shard].term += 1;
            }
        }
        for pod in [2, 3] {
            self.volume.pod_down(self.now, PodId(pod));
        }
    }

    fn issue(&mut self) {
        let words = SIZE_BYTES / WORD;
        let start = self.random.index(words);
        let most = [3, 300, 3000, 9000][self.random.index(4)];
        let count = 1 + self.random.index(most.min(words - start));
        let (offset, len) = (start * WORD, count * WORD);
        let kind = self.random.index(10);
        let (op, kind) = match kind {
            0..5 => self.new_write(offset, len, kind),
            5..9 => {
                let op = BlockOp::Read { offset: offset as u64, len: len as u32 };
                (op, Kind::Read(self.floor[start..start + count].to_vec()))
            }
            _ if self.random.percent(50) => (BlockOp::Flush, Kind::Other),
            _ => (BlockOp::Status { offset: offset as u64, len: len as u32 }, Kind::Other),
        };
        let conn = self.conns[self.random.index(self.conns.len())];
        let handle = self.next_handle;
        self.next_handle += 1;
        let since = self.now;
        self.waiting.insert(handle, Waiting { conn, since, kind, offset, len });
        self.volume.request(self.now, conn, handle, op);
    }

    fn new_write(&mut self, offset: usize, len: usize, kind: usize) -> (BlockOp, Kind) {
        self.writes += 1;
        let number = self.writes;
        let (start, end) = (offset, offset + len);
        let op = match kind {
            0 | 1 => {
                let how = if kind == 0 { ZeroHow::Trim } else { ZeroHow::Free };
                BlockOp::Zero { offset: offset as u64, len: len as u32, how }
            }
            _ => {
                let skew = offset % BLOCK_BYTES;
                let mut data = self.pool.take(skew + len);
                for word in data[skew..].chunks_exact_mut(WORD) {
                    word.copy_from_slice(&number.to_le_bytes());
                }
                let data = data.freeze_range(skew..skew + len);
                BlockOp::Write { offset: offset as u64, data }
            }
        };
        let words: Vec<usize> = (start / WORD..end / WORD).collect();
        if matches!(op, BlockOp::Zero { .. }) {
            words.iter().for_each(|word| self.zeroes[*word].push(number));
        }
        (op, Kind::Write(number, words))
    }

    fn deliver_call(&mut self) {
        if self.calls.is_empty() {
            return;
        }
        let place = self.random.index(self.calls.len());
        let call = self.calls.swap_remove(place);
        let result = self.receive(call.shard, &call);
        let shard = &mut self.shards[call.shard];
        match result {
            Some(result) => self.answers.push(Answer {
                ticket: call.ticket,
                from: call.to,
                term: shard.term,
                result,
            }),
            None => shard.log.push_back(Proposal {
                ticket: call.ticket,
                session: call.session,
                op: call.op,
                silent: false,
            }),
        }
    }

    /// The immediate answer of the member; `None`: it has proposed.
    fn receive(&mut self, shard: usize, call: &Call) -> Option<Result<ShardReply, BlockError>> {
        let fake = &self.shards[shard];
        let leader = fake.leader.map(|leader| fake.members[leader].member);
        let other_term = call.term != 0 && call.term != fake.term;
        if leader != Some(call.to.member) || other_term {
            let wrong = MemberId(shard as u64 * 10 + 1 + self.random.index(4) as u64);
            let hint = match self.random.index(10) {
                0 if !self.healthy => Some(wrong),
                1 if !self.healthy => None,
                _ => leader,
            };
            return Some(Err(BlockError::NotLeader { hint, term: fake.term }));
        }
        assert!(call.term != 0 || !call.op.is_logged(), "what is logged names its term");
        if !call.op.is_logged() && call.session != fake.session {
            return Some(Err(refusal(call.session, fake.session)));
        }
        if !self.healthy && self.random.percent(5) {
            return Some(Err(BlockError::Busy));
        }
        match &call.op {
            ShardOp::Read { range } => Some(Ok(self.read(shard, *range))),
            ShardOp::Status { range } => {
                let run = StatusRun { count: range.count, hole: false };
                Some(Ok(ShardReply::Status(vec![run])))
            }
            _ => None,
        }
    }

    fn read(&mut self, shard: usize, range: BlockRange) -> ShardReply {
        let from = range.first.0 as usize * BLOCK_BYTES;
        let bytes = &self.shards[shard].bytes[from..from + range.bytes() as usize];
        let mut segments = Vec::new();
        let mut crcs = Vec::new();
        for (block, number) in bytes.chunks(BLOCK_BYTES).zip(u64::from(range.first.0)..) {
            let number = number + (shard * SHARD_BLOCKS) as u64;
            if block.iter().all(|byte| *byte == 0) && self.random.percent(50) {
                segments.push(Segment::Zero(BLOCK_BYTES));
                crcs.push(0);
                continue;
            }
            crcs.push(block_crc(VOLUME, number, block));
            let mut block = block.to_vec();
            if !self.healthy && self.random.percent(1) {
                block[17] ^= 1;
            }
            segments.push(Segment::Data(Bytes::from(block)));
        }
        ShardReply::Data { segments, crcs }
    }

    /// Applies the oldest entry of some shard, and checks rule `session-checked-at-apply`.
    fn apply_one(&mut self) {
        let shard = self.random.index(SHARDS);
        let Some(leader) = self.shards[shard].leader else {
            return;
        };
        let Some(proposal) = self.shards[shard].log.pop_front() else {
            return;
        };
        let fake = &mut self.shards[shard];
        let refused = match &proposal.op {
            ShardOp::Touch { .. } => {
                let stale = proposal.session.counter <= fake.session.counter;
                let before = fake.session;
                if !stale {
                    (fake.session, fake.touches) = (proposal.session, fake.touches + 1);
                }
                stale.then_some(BlockError::StaleSession { recorded: before })
            }
            op if proposal.session == fake.session => {
                let op = op.clone();
                self.change(shard, &op);
                None
            }
            _ => Some(refusal(proposal.session, fake.session)),
        };
        if proposal.silent {
            return;
        }
        let fake = &self.shards[shard];
        self.answers.push(Answer {
            ticket: proposal.ticket,
            from: fake.members[leader],
            term: fake.term,
            result: refused.map_or(Ok(ShardReply::Done), Err),
        });
    }

    fn change(&mut self, shard: usize, op: &ShardOp) {
        let block = op.range().first.0 as usize;
        let (at, data) = match op {
            ShardOp::Write { data, crcs, .. } => {
                for (index, part) in data.chunks(BLOCK_BYTES).enumerate() {
                    let number = (shard * SHARD_BLOCKS + block + index) as u64;
                    assert_eq!(crcs[index], block_crc(VOLUME, number, part));
                }
                (block * BLOCK_BYTES, data.clone())
            }
            ShardOp::WritePartial { offset_bytes, data, .. } => {
                (block * BLOCK_BYTES + *offset_bytes as usize, data.clone())
            }
            ShardOp::Zero { range, .. } => {
                (block * BLOCK_BYTES, Bytes::from(vec![0; range.bytes() as usize]))
            }
            _ => unreachable!("it changes nothing"),
        };
        self.shards[shard].bytes[at..at + data.len()].copy_from_slice(&data);
        let first = (shard * SHARD_BYTES + at) / WORD;
        for (word, value) in (first..).zip(data.chunks(WORD)) {
            let number = u32::from_le_bytes(value.try_into().unwrap());
            if number != 0 {
                assert!(self.applied[word] <= number, "an older write came after a newer one");
                self.applied[word] = number;
            }
        }
    }

    fn deliver_answer(&mut self) {
        if self.answers.is_empty() {
            return;
        }
        let place = self.random.index(self.answers.len());
        let times = if self.random.percent(10) { 2 } else { 1 };
        let answer = self.answers.swap_remove(place);
        for _ in 0..times {
            let Answer { ticket, from, term, ref result } = answer;
            self.volume.shard_result(self.now, ticket, from.member, term, result.clone());
        }
    }

    fn poll(&mut self) {
        let mut out = Vec::new();
        self.volume.poll(self.now, &mut out);
        for output in out {
            match output {
                VolumeOutput::Send { ticket, shard, to, term, origin, op } => {
                    let shard = (shard.0 - 100) as usize;
                    let session = origin.session;
                    self.calls.push(Call { ticket, shard, to, term, session, op });
                }
                VolumeOutput::Reply { conn, handle, result } => self.reply(conn, handle, result),
                VolumeOutput::HangUp => panic!("nobody has outdone it"),
                VolumeOutput::WhoIsThere => {
                    self.volume.clients_checked();
                    self.poll();
                }
                VolumeOutput::AccessSet { .. } => panic!("nobody has asked for that"),
            }
        }
    }

    fn reply(&mut self, conn: ConnId, handle: u64, result: Result<BlockReply, BlockError>) {
        let waiting = self.waiting.remove(&handle).expect("answered once, while connected");
        assert_eq!(waiting.conn, conn);
        match (waiting.kind, result) {
            (_, Err(BlockError::TimedOut)) if self.volume.overdue.timeout.is_some() => {
                self.timed_out += 1;
            }
            (Kind::Write(number, words), Ok(BlockReply::Done)) => {
                for word in words {
                    self.floor[word] = self.floor[word].max(number);
                }
            }
            (Kind::Read(floor), Ok(BlockReply::Data(segments))) => {
                self.check_read(waiting.offset, waiting.len, &floor, &segments);
            }
            (Kind::Read(_), Err(BlockError::MediaFault)) => {}
            (Kind::Other, Ok(BlockReply::Status(runs))) => {
                let len: u64 = runs.iter().map(|run| run.0).sum();
                assert_eq!(len, waiting.len as u64);
            }
            (Kind::Other, Ok(BlockReply::Done)) => {}
            (_, result) => panic!("an unexpected answer: {result:?}"),
        }
    }

    fn check_read(&mut self, offset: usize, len: usize, floor: &[u32], segments: &[Segment]) {
        let mut bytes = Vec::new();
        for segment in segments {
            match segment {
                Segment::Data(data) => bytes.extend_from_slice(data),
                Segment::Zero(count) => bytes.resize(bytes.len() + count, 0),
            }
        }
        assert_eq!(bytes.len(), len);
        for (index, value) in bytes.chunks(WORD).enumerate() {
            let word = offset / WORD + index;
            let oldest = floor[index];
            let mut number = u32::from_le_bytes(value.try_into().unwrap());
            if number == 0 {
                let zeroed = self.zeroes[word].iter().find(|number| **number >= oldest);
                number = *zeroed.expect("zeroes, but a newer write was acknowledged");
            }
            assert!(number >= oldest, "word {word} shows {number}, {oldest} was acknowledged");
            self.floor[word] = self.floor[word].max(number);
        }
    }
}

#[test]
fn whatever_shards_do_writes_stay_in_order_and_reads_see_them() {
    let mut retried = 0;
    for seed in 0..150 {
        let mut world = World::new(seed, 0);
        for _ in 0..4000 {
            world.step();
        }
        world.heal();
        let mut steps = 0;
        while !world.waiting.is_empty() {
            world.step();
            steps += 1;
            assert!(steps < 200_000, "seed {seed}: {} never answered", world.waiting.len());
        }
        assert!(world.writes > 100, "seed {seed}: too little happened");
        retried += (world.shards.iter().any(|shard| shard.touches > 5)) as u32;
    }
    assert!(retried > 100, "outcomes were unknown in most runs");
}

/// After the faults, requests succeed again.
#[test]
fn what_has_waited_for_too_long_never_comes_after_newer_writes() {
    let mut timed_out = 0;
    for seed in 0..100 {
        let mut world = World::new(seed, 300);
        for _ in 0..4000 {
            world.step();
        }
        timed_out += world.timed_out;
        world.heal();
        let mut steps = 0;
        let mut last = world.timed_out;
        let mut answered = 0;
        while answered < 20 {
            if world.waiting.is_empty() {
                answered = if world.timed_out == last { answered + 1 } else { 0 };
                last = world.timed_out;
                world.issue();
            }
            world.step();
            steps += 1;
            assert!(steps < 200_000, "seed {seed}: requests go on failing");
        }
    }
    assert!(timed_out > 1000, "only {timed_out} requests had to wait for too long");
}

#[test]
fn a_forgotten_write_is_noticed() {
    assert_found(
        Mistake::TimedOutForgotten,
        what_has_waited_for_too_long_never_comes_after_newer_writes,
    );
}

/// The answer to a read of one block, if there is one at once.
fn read_at(volume: &mut Volume, handle: u64, offset: u64) -> Option<BlockError> {
    volume.request(Mono(1), ConnId(1), handle, BlockOp::Read { offset, len: BLOCK_BYTES as u32 });
    let mut outputs = Vec::new();
    volume.poll(Mono(1), &mut outputs);
    outputs.into_iter().find_map(|output| match output {
        VolumeOutput::Reply { handle: of, result, .. } if of == handle => result.err(),
        _ => None,
    })
}

#[test]
fn a_volume_grows_under_requests_in_flight() {
    let mut seen = view(&[1, 2, 3]);
    let mut volume = Volume::new(&seen, AttachmentId::NONE, FrontEnd::new(ME, 1));
    assert_eq!(read_at(&mut volume, 1, 0), None, "it waits for a leader");
    let end = (SHARDS * SHARD_BYTES) as u64;
    assert_eq!(read_at(&mut volume, 2, end), Some(BlockError::OutOfRange));
    // The new shard is there before clients may use it.
    let last = ShardView { shard: ShardId(900), ..seen.shards[0].clone() };
    seen.shards.push(last);
    volume.update_view(&seen);
    assert_eq!(read_at(&mut volume, 3, end), Some(BlockError::OutOfRange));
    seen.size_bytes = end + 2 * BLOCK_BYTES as u64;
    volume.update_view(&seen);
    assert_eq!(read_at(&mut volume, 4, end), None);
    assert_eq!(volume.requests_in_flight(), 2);
    // The rest of the shard is there, and behind the end.
    let beyond = end + 2 * BLOCK_BYTES as u64;
    assert_eq!(read_at(&mut volume, 5, beyond), Some(BlockError::OutOfRange));
    seen.withheld = true;
    volume.update_view(&seen);
    assert_eq!(read_at(&mut volume, 6, 0), Some(BlockError::NoSuchVolume));
}

#[test]
#[should_panic(expected = "a volume does not shrink")]
fn a_volume_does_not_shrink() {
    let mut seen = view(&[1, 2, 3]);
    let mut volume = Volume::new(&seen, AttachmentId::NONE, FrontEnd::new(ME, 1));
    seen.size_bytes -= BLOCK_BYTES as u64;
    volume.update_view(&seen);
}
