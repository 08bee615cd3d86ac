//! A small deterministic cluster of members for tests: messages that are late, lost or doubled,
//! log writes that are confirmed late, crashes that keep what was durable, partitions, clocks
//! that differ. One seed gives one run. Checks the properties that must always hold.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use raft::eraftpb::Message;

use crate::io::buffer::Pool;
use crate::limits::SHARD_PROPOSAL_BYTES_MAX;
use crate::log::{Append, Applied, Change, HardState, LogEntry, LogGone};
use crate::replica::apply::Applier;
use crate::replica::entry::raft_entry;
use crate::replica::member::Member;
use crate::replica::messages::{
    Input, MemberConfig, NotFetched, Output, ReadMode, ReqId, Role, Start,
};
use crate::replica::meta::Meta;
use crate::replica::raft_message;
use crate::sim::rng::Rng;
use crate::types::{
    AttachmentId, BLOCK_BYTES, Block, BlockError, BlockRange, MemberId, Mono, Origin, PodId,
    Session, ShardId, ShardOp, ShardReply, VolumeId, block_crc,
};

/// Blocks of the shard under test.
pub const BLOCKS: u32 = 8;
/// A block under test has this many sectors, each filled with the tag of who wrote it last.
pub const SECTORS: usize = 8;
const SECTOR_BYTES: usize = BLOCK_BYTES / SECTORS;
const VOLUME: VolumeId = VolumeId(77);
/// The session of requests for which a test names none: the shard is made with it.
pub const ORIGIN: Origin = Origin {
    attachment: AttachmentId::NONE,
    session: Session { counter: 1 << 24, pod: PodId(99) },
};

/// What a block holds: the tag in each sector, and the index of the entry that changed it last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Content {
    pub tags: [u64; SECTORS],
    pub index: u64,
}

pub type Store = [Content; BLOCKS as usize];

/// What survives a crash.
#[derive(Clone)]
struct Disk {
    hard: HardState,
    /// The log starts behind this point; `store` and `meta` are as of it.
    base: (u64, u64),
    store: Store,
    meta: Bytes,
    entries: Vec<LogEntry>,
    resyncing: bool,
}

pub struct Node {
    pub member: Option<Member>,
    disk: Disk,
    /// Log writes that were not confirmed yet.
    writes: VecDeque<Append>,
    /// As applied, in memory.
    pub store: Store,
    pub meta: Bytes,
    pub applied: (u64, u64),
    pub role: Role,
    pub faulted: Option<String>,
    /// This member's clock runs at (1000 + skew) / 1000 of real time.
    skew: i64,
    poll_at: Option<u64>,
}

/// What happens when.
enum Event {
    Deliver(MemberId, Box<Message>),
    Tick(MemberId, u64),
    Confirm(MemberId, u64),
    Base(MemberId, u64, u64, Block),
    /// The store answers a fetch of entries: from one index on, and before another.
    Fetched(MemberId, u64, u64, u64),
    Poll(MemberId),
    Resync(MemberId, MemberId),
}

/// A request and what is known of it.
#[derive(Clone, Debug)]
pub struct Call {
    pub op: ShardOp,
    pub node: MemberId,
    /// Per block, the newest index that was acknowledged or read before it began.
    seen: Store,
    pub result: Option<Result<ShardReply, BlockError>>,
    /// What a read found.
    pub found: Vec<Content>,
}

/// Chances in percent, times in microseconds.
#[derive(Clone, Copy)]
pub struct Faults {
    pub drop: u64,
    pub double: u64,
    pub delay_us: u64,
    pub disk_us: u64,
}

pub const CALM: Faults = Faults { drop: 0, double: 0, delay_us: 300, disk_us: 200 };

pub struct Cluster {
    pub rng: Rng,
    pub now_us: u64,
    pub nodes: BTreeMap<MemberId, Node>,
    pub faults: Faults,
    /// Directed links that lose everything.
    pub cut: BTreeSet<(MemberId, MemberId)>,
    /// Members whose full log drops every entry without a word.
    pub full: BTreeSet<MemberId>,
    /// Members whose log writes are not confirmed.
    pub stuck_disks: BTreeSet<MemberId>,
    pub calls: BTreeMap<ReqId, Call>,
    /// Hash of every output, in order.
    pub trace: u64,
    pub resyncs: usize,
    pub log_tail_bytes: usize,
    /// Of members that start from now on.
    pub proposal_bytes_max: usize,
    /// Entries that members can read back from their disks, the newest ones. 0: no member asks.
    pub ring_entries: u64,
    /// The next entries from a disk are not those of the log.
    pub wrong_fetch: Option<fn(&mut LogEntry)>,
    /// Entries that one fetch brings, at most.
    pub fetch_entries: u64,
    /// Fetches that brought entries.
    pub fetches: usize,
    /// Of members that start from now on: decides their election timeouts.
    pub member_seed: u64,
    /// How members that start from now on read.
    pub reads: ReadMode,
    events: BTreeMap<(u64, u64), Event>,
    seq: u64,
    generation: BTreeMap<MemberId, u64>,
    next_req: u64,
    /// Who led each term.
    leaders: BTreeMap<u64, MemberId>,
    /// What was applied at each index, the same everywhere.
    history: BTreeMap<u64, (u64, Option<Change>)>,
    model: Store,
    model_index: u64,
    /// Per block, the newest state that a client knows of.
    known: Store,
}

impl Cluster {
    pub fn new(seed: u64, members: u64) -> Cluster {
        let mut cluster = Cluster {
            rng: Rng::new(seed),
            now_us: 1_000_000,
            nodes: BTreeMap::new(),
            faults: CALM,
            cut: BTreeSet::new(),
            full: BTreeSet::new(),
            stuck_disks: BTreeSet::new(),
            calls: BTreeMap::new(),
            trace: 0,
            resyncs: 0,
            log_tail_bytes: 1 << 20,
            proposal_bytes_max: SHARD_PROPOSAL_BYTES_MAX,
            ring_entries: 0,
            wrong_fetch: None,
            fetch_entries: 8,
            fetches: 0,
            member_seed: 42,
            reads: ReadMode::Lease,
            events: BTreeMap::new(),
            seq: 0,
            generation: BTreeMap::new(),
            next_req: 0,
            leaders: BTreeMap::new(),
            history: BTreeMap::new(),
            model: Store::default(),
            model_index: 0,
            known: Store::default(),
        };
        let ids: Vec<MemberId> = (1..=members).map(MemberId).collect();
        let mut meta = Meta::new(&ids, BLOCKS);
        meta.access.touch(ORIGIN, false).expect("anybody may use it");
        cluster.members_start_with(&meta);
        cluster
    }

    /// Makes the members of a shard that is born with this metadata.
    pub fn members_start_with(&mut self, meta: &Meta) {
        for id in meta.conf.voters.iter().copied().map(MemberId) {
            self.add(id, meta.encode());
        }
    }

    /// A request to record a session; it must succeed.
    pub fn touch(&mut self, id: MemberId, origin: Origin) {
        let touch = self.call_as(id, 0, origin, ShardOp::Touch { renews: false });
        self.run(20);
        assert_eq!(self.result(touch), Some(&Ok(ShardReply::Done)));
    }

    /// A new, empty member, started.
    pub fn add(&mut self, id: MemberId, meta: Bytes) {
        let disk = Disk {
            hard: HardState::default(),
            base: (0, 0),
            store: Store::default(),
            meta,
            entries: Vec::new(),
            resyncing: false,
        };
        let skew = self.rng.below(21) as i64 - 10;
        let node = Node {
            member: None,
            store: disk.store,
            meta: disk.meta.clone(),
            disk,
            writes: VecDeque::new(),
            applied: (0, 0),
            role: Role::default(),
            faulted: None,
            skew,
            poll_at: None,
        };
        self.nodes.insert(id, node);
        self.start(id);
    }

    fn clock(&self, id: MemberId) -> Mono {
        let ns = self.now_us as i128 * (1000 + i128::from(self.nodes[&id].skew));
        Mono(u64::try_from(ns).unwrap() + id.0 * 1_000_000_000)
    }

    fn at(&mut self, delay_us: u64, event: Event) {
        self.seq += 1;
        self.events.insert((self.now_us + delay_us, self.seq), event);
    }

    /// Starts a member from what was durable: replays what is committed, as recovery does.
    pub fn start(&mut self, id: MemberId) {
        let now = self.clock(id);
        let generation = self.generation.entry(id).or_default();
        *generation += 1;
        let generation = *generation;
        let (log_tail_bytes, log_on_disk) = (self.log_tail_bytes, self.ring_entries > 0);
        let proposal_bytes_max = self.proposal_bytes_max;
        let node = self.nodes.get_mut(&id).unwrap();
        let disk = &node.disk;
        let mut applier = Applier::new(Meta::decode(&disk.meta).unwrap());
        let mut store = disk.store;
        let mut applied = disk.base;
        for entry in disk.entries.iter().take_while(|entry| entry.index <= disk.hard.commit) {
            let done = applier.apply(&raft_entry(entry).unwrap()).unwrap();
            change_store(&mut store, &done);
            applied = (entry.index, entry.term);
        }
        let meta = applier.meta.encode();
        let start = Start {
            hard: disk.hard,
            applied_index: applied.0,
            compacted_index: disk.base.0,
            compacted_term: disk.base.1,
            entries: disk.entries.clone(),
            on_disk: None,
            meta: meta.clone(),
            resyncing: disk.resyncing,
            faulted: false,
        };
        let config = MemberConfig {
            member: id,
            shard: ShardId(1),
            seed: self.member_seed,
            volume: VOLUME,
            first_block_in_volume: 0,
            blocks: BLOCKS,
            log_tail_bytes,
            log_on_disk,
            proposal_bytes_max,
            reads: self.reads,
            pool: Pool::default(),
        };
        node.member = Some(Member::start(config, start, now));
        (node.store, node.meta, node.applied) = (store, meta, applied);
        node.role = Role::default();
        let first = self.rng.below(100_000);
        self.at(first, Event::Tick(id, generation));
        self.schedule_poll(id);
    }

    /// The process dies. Of the log writes in flight, some of the oldest were durable.
    pub fn crash(&mut self, id: MemberId) {
        *self.generation.entry(id).or_default() += 1;
        let node = self.nodes.get_mut(&id).unwrap();
        node.member = None;
        let kept = self.rng.below(node.writes.len() as u64 + 1);
        for _ in 0..kept {
            let append = node.writes.pop_front().unwrap();
            persist(&mut node.disk, &append);
        }
        node.writes.clear();
        node.poll_at = None;
        for call in self.calls.values_mut() {
            if call.node == id && call.result.is_none() {
                call.result = Some(Err(BlockError::Unknown));
            }
        }
    }

    pub fn is_up(&self, id: MemberId) -> bool {
        self.nodes[&id].member.is_some()
    }

    pub fn handle(&mut self, id: MemberId, input: Input) {
        let now = self.clock(id);
        let node = self.nodes.get_mut(&id).unwrap();
        if let Some(member) = &mut node.member {
            member.handle(now, input);
            self.schedule_poll(id);
        }
    }

    /// Rounds of a worker take a while: events close together share a poll.
    fn schedule_poll(&mut self, id: MemberId) {
        if self.nodes[&id].poll_at.is_none() {
            let delay = self.rng.below(60);
            self.nodes.get_mut(&id).unwrap().poll_at = Some(self.now_us + delay);
            self.at(delay, Event::Poll(id));
        }
    }

    /// Sends a request of a client; its answer appears in `calls`.
    pub fn call_as(&mut self, id: MemberId, term: u64, origin: Origin, op: ShardOp) -> ReqId {
        self.next_req += 1;
        self.call_tagged(ReqId(self.next_req), id, term, origin, op)
    }

    fn call_tagged(
        &mut self,
        req: ReqId,
        id: MemberId,
        term: u64,
        origin: Origin,
        op: ShardOp,
    ) -> ReqId {
        let call =
            Call { op: op.clone(), node: id, seen: self.known, result: None, found: Vec::new() };
        self.calls.insert(req, call);
        if self.is_up(id) {
            self.handle(id, Input::Client { req, term, origin, op });
        } else {
            self.answer(req, Err(BlockError::Unknown));
        }
        req
    }

    pub fn read(&mut self, id: MemberId, first: u32, count: u32) -> ReqId {
        let range = BlockRange { first: Block(first), count };
        self.call_as(id, 0, ORIGIN, ShardOp::Read { range })
    }

    /// Writes whole blocks; every sector gets the request's number as its tag.
    pub fn write_as(&mut self, id: MemberId, origin: Origin, first: u32, count: u32) -> ReqId {
        self.next_req += 1;
        let tag = self.next_req;
        let range = BlockRange { first: Block(first), count };
        let block = sectors(&[tag; SECTORS]);
        let crcs = range.blocks().map(|at| block_crc(VOLUME, u64::from(at.0), &block)).collect();
        let data = Bytes::from(block.repeat(count as usize));
        let op = ShardOp::Write { range, data, crcs };
        self.call_tagged(ReqId(tag), id, 0, origin, op)
    }

    pub fn write(&mut self, id: MemberId, first: u32) -> ReqId {
        self.write_as(id, ORIGIN, first, 1)
    }

    /// Writes one sector of a block.
    pub fn write_sector(&mut self, id: MemberId, block: u32, sector: usize) -> ReqId {
        self.next_req += 1;
        let tag = self.next_req;
        let data = Bytes::from(tag.to_le_bytes().repeat(SECTOR_BYTES / 8));
        let op = ShardOp::WritePartial {
            block: Block(block),
            offset_bytes: (sector * SECTOR_BYTES) as u32,
            data,
        };
        self.call_tagged(ReqId(tag), id, 0, ORIGIN, op)
    }

    pub fn zero(&mut self, id: MemberId, first: u32, count: u32) -> ReqId {
        let range = BlockRange { first: Block(first), count };
        let op = ShardOp::Zero { range, trim: true };
        self.call_as(id, 0, ORIGIN, op)
    }

    pub fn result(&self, req: ReqId) -> Option<&Result<ShardReply, BlockError>> {
        self.calls[&req].result.as_ref()
    }

    /// A member that leads and serves, if there is exactly one that says so in the newest term.
    pub fn leader(&self) -> Option<MemberId> {
        let up = self.nodes.iter().filter(|(_, node)| node.member.is_some());
        let serving = up.filter(|(_, node)| node.role.serving);
        serving.max_by_key(|(_, node)| node.role.term).map(|(id, _)| *id)
    }

    /// Runs until there is a leader that serves; panics when there is none for a minute.
    pub fn elect(&mut self) -> MemberId {
        assert!(self.run_until(60_000, |cluster| cluster.leader().is_some()));
        self.leader().unwrap()
    }

    /// Runs for some milliseconds.
    pub fn run(&mut self, ms: u64) {
        self.run_until(ms, |_| false);
    }

    pub fn run_until(&mut self, ms: u64, done: impl Fn(&Cluster) -> bool) -> bool {
        let end = self.now_us + ms * 1000;
        loop {
            if done(self) {
                return true;
            }
            match self.events.first_key_value() {
                Some(((at, _), _)) if *at <= end => {
                    let ((at, _), event) = self.events.pop_first().unwrap();
                    self.now_us = at;
                    self.step(event);
                }
                _ => {
                    self.now_us = end;
                    return done(self);
                }
            }
        }
    }

    fn step(&mut self, event: Event) {
        match event {
            Event::Deliver(id, message) => self.handle(id, Input::Peer(message)),
            Event::Tick(id, generation) => {
                if self.generation[&id] == generation {
                    self.handle(id, Input::Tick);
                    let next = 95_000 + self.rng.below(10_000);
                    self.at(next, Event::Tick(id, generation));
                }
            }
            Event::Confirm(id, generation) => {
                if self.generation[&id] != generation {
                    return;
                }
                if self.stuck_disks.contains(&id) {
                    self.at(10_000, Event::Confirm(id, generation));
                    return;
                }
                let node = self.nodes.get_mut(&id).unwrap();
                let append = node.writes.pop_front().unwrap();
                persist(&mut node.disk, &append);
                if append.reset.is_some() {
                    node.disk.resyncing = false;
                }
                let number = append.number;
                self.handle(id, Input::Appended { number });
            }
            Event::Base(id, generation, ticket, block) => {
                if self.generation[&id] == generation {
                    let tags = self.nodes[&id].store[block.0 as usize].tags;
                    let stored = (tags != [0; SECTORS]).then(|| Bytes::from(sectors(&tags)));
                    let result = Ok(stored);
                    self.handle(id, Input::Base { ticket, result });
                }
            }
            Event::Fetched(id, generation, low, high) => {
                if self.generation[&id] == generation {
                    let result = self.read_log(id, low, high);
                    self.handle(id, Input::LogFetched { low, result });
                }
            }
            Event::Poll(id) => self.poll(id),
            Event::Resync(leader, member) => self.resync(leader, member),
        }
    }

    fn poll(&mut self, id: MemberId) {
        let now = self.clock(id);
        let node = self.nodes.get_mut(&id).unwrap();
        if node.poll_at != Some(self.now_us) {
            return;
        }
        node.poll_at = None;
        let Some(member) = &mut node.member else {
            return;
        };
        let mut out = Vec::new();
        member.poll(now, &mut out);
        for output in out {
            self.note(id, &output);
            self.carry_out(id, output);
        }
    }

    fn note(&mut self, id: MemberId, output: &Output) {
        let text = format!("{} {id} {output:?}", self.now_us);
        let hash = crc32fast::hash(text.as_bytes());
        self.trace = crate::types::mix64(self.trace ^ u64::from(hash));
    }

    fn carry_out(&mut self, id: MemberId, output: Output) {
        let generation = self.generation[&id];
        match output {
            Output::Append(append) => {
                let node = self.nodes.get_mut(&id).unwrap();
                if let Some(reset) = &append.reset {
                    node.applied = (reset.index, reset.term);
                    node.meta = reset.meta.clone();
                }
                node.writes.push_back(append);
                let delay = 50 + self.rng.below(self.faults.disk_us);
                self.at(delay, Event::Confirm(id, generation));
            }
            Output::Send(message) => self.send(id, *message),
            Output::Apply(applied) => self.applied(id, applied),
            Output::Read { req, range, .. } => self.on_read(id, req, range),
            Output::ReadBase { ticket, block } => {
                let delay = self.rng.below(300);
                self.at(delay, Event::Base(id, generation, ticket, block));
            }
            Output::Reply { req, result } => self.answer(req, result),
            Output::Barrier { req } => self.answer(req, Ok(ShardReply::Done)),
            Output::Role(role) => {
                if role.leader == Some(id) {
                    let first = *self.leaders.entry(role.term).or_insert(id);
                    assert_eq!(first, id, "two leaders in term {}", role.term);
                }
                self.nodes.get_mut(&id).unwrap().role = role;
            }
            Output::FetchLog { low, high, .. } => {
                let delay = 20 + self.rng.below(self.faults.disk_us);
                self.at(delay, Event::Fetched(id, generation, low, high));
            }
            Output::NeedsResync { member, .. } => {
                self.resyncs += 1;
                let delay = self.rng.below(50_000);
                self.at(delay, Event::Resync(id, member));
            }
            Output::Faulted { reason } => self.nodes.get_mut(&id).unwrap().faulted = Some(reason),
        }
    }

    fn send(&mut self, from: MemberId, message: Message) {
        let to = MemberId(message.to);
        assert_eq!(message.from, from.0);
        if self.cut.contains(&(from, to)) || self.rng.percent(self.faults.drop) {
            return;
        }
        if self.full.contains(&to) && !message.entries.is_empty() {
            return;
        }
        let (header, payloads) = raft_message::split(message);
        let copies = 1 + usize::from(self.rng.percent(self.faults.double));
        for _ in 0..copies {
            let message = raft_message::join(&header, payloads.clone()).unwrap();
            let delay = 20 + self.rng.below(self.faults.delay_us);
            self.at(delay, Event::Deliver(to, Box::new(message)));
        }
    }

    /// What a store does for a follower that is behind the memory of its leader.
    fn read_log(&mut self, id: MemberId, low: u64, high: u64) -> Result<Vec<LogEntry>, NotFetched> {
        let disk = &self.nodes[&id].disk;
        let last = disk.base.0 + disk.entries.len() as u64;
        let first = (disk.base.0 + 1).max((last + 1).saturating_sub(self.ring_entries));
        if low < first {
            return Err(NotFetched::Gone(LogGone { first }));
        }
        let wanted = disk.entries.iter().filter(|entry| entry.index >= low && entry.index < high);
        let mut found: Vec<LogEntry> =
            wanted.take(1 + self.rng.below(self.fetch_entries) as usize).cloned().collect();
        if let Some(spoil) = self.wrong_fetch.take() {
            found.iter_mut().for_each(spoil);
        }
        self.fetches += 1;
        Ok(found)
    }

    /// State machine safety: every member applies the same entry at an index, and a partial
    /// write changes nothing but its sector.
    fn applied(&mut self, id: MemberId, applied: Applied) {
        let node = self.nodes.get_mut(&id).unwrap();
        assert_eq!(applied.index, node.applied.0 + 1, "entries are applied in order");
        change_store(&mut node.store, &applied);
        node.applied = (applied.index, applied.term);
        if let Some(meta) = &applied.meta {
            node.meta = meta.clone();
        }
        let same = (applied.term, applied.change.clone());
        match self.history.get(&applied.index) {
            Some(first) => assert!(*first == same, "two entries at {}", applied.index),
            None => {
                self.history.insert(applied.index, same);
                assert_eq!(self.model_index + 1, applied.index);
                self.model_index += 1;
                let before = self.model;
                change_store(&mut self.model, &applied);
                if let Some(change) = &applied.change {
                    self.check_change(&before, change);
                }
            }
        }
        let node = &self.nodes[&id];
        if node.applied.0 == self.model_index {
            assert!(node.store == self.model, "member {id} differs at {}", applied.index);
        }
    }

    fn check_change(&self, before: &Store, change: &Change) {
        let Change::Write { range, crcs, payload } = change else {
            return;
        };
        for (at, block) in range.blocks().enumerate() {
            let bytes = &payload[at * BLOCK_BYTES..(at + 1) * BLOCK_BYTES];
            assert_eq!(block_crc(VOLUME, u64::from(block.0), bytes), crcs[at]);
            let tags = self.model[block.0 as usize].tags;
            let old = before[block.0 as usize].tags;
            let changed: Vec<usize> = (0..SECTORS).filter(|at| tags[*at] != old[*at]).collect();
            if changed.len() == 1 {
                continue;
            }
            let call = &self.calls[&ReqId(tags[0])];
            let whole = matches!(call.op, ShardOp::Write { .. });
            assert!(whole && tags == [tags[0]; SECTORS], "a merge lost a write: {old:?} {tags:?}");
        }
    }

    fn on_read(&mut self, id: MemberId, req: ReqId, range: BlockRange) {
        let store = self.nodes[&id].store;
        let found = range.blocks().map(|at| store[at.0 as usize]).collect();
        self.calls.get_mut(&req).unwrap().found = found;
        let empty = ShardReply::Status(Vec::new());
        self.answer(req, Ok(empty));
    }

    /// Linearizability per block: log order is the order of writes; nothing goes back behind
    /// what anyone knew when the request began.
    fn answer(&mut self, req: ReqId, result: Result<ShardReply, BlockError>) {
        let call = self.calls.get_mut(&req).unwrap();
        if call.result.is_some() {
            // The process that had it has died; the answer went nowhere.
            return;
        }
        let good = result.is_ok();
        call.result = Some(result);
        if !good {
            return;
        }
        let range = call.op.range();
        let now: Vec<Content> = if call.op.is_write() {
            let store = self.nodes[&call.node].store;
            range.blocks().map(|at| store[at.0 as usize]).collect()
        } else {
            call.found.clone()
        };
        for (block, content) in range.blocks().zip(now) {
            let at = block.0 as usize;
            let seen = call.seen[at].index;
            assert!(content.index >= seen, "request {req:?} of block {at} is behind {seen}");
            if content.index > self.known[at].index {
                self.known[at] = content;
            }
        }
    }

    /// What workers and stores do for a follower that is behind the log.
    fn resync(&mut self, leader: MemberId, member: MemberId) {
        if !self.is_up(leader) || !self.is_up(member) || self.cut.contains(&(leader, member)) {
            let ok = false;
            self.handle(leader, Input::ResyncEnded { member, ok });
            return;
        }
        let behind = self.nodes[&member].applied.0 < self.nodes[&leader].applied.0;
        if !behind || !self.nodes[&member].writes.is_empty() {
            let ok = false;
            self.handle(leader, Input::ResyncEnded { member, ok });
            return;
        }
        self.copy(leader, member);
    }

    /// Puts what `source` has in the place of what `member` has.
    pub fn copy(&mut self, source: MemberId, member: MemberId) {
        let source = &self.nodes[&source];
        let (store, meta, applied) = (source.store, source.meta.clone(), source.applied);
        let node = self.nodes.get_mut(&member).unwrap();
        node.disk.resyncing = true;
        let matches = node.disk.entries.iter().any(|e| (e.index, e.term) == applied);
        if !matches {
            // The store has everything up to there; the log still is the old one.
            node.disk.store = store;
            node.disk.base = applied;
            node.disk.meta = meta.clone();
            node.disk.entries.clear();
            node.disk.hard.commit = applied.0;
            node.store = store;
        }
        self.handle(member, Input::Resyncing(true));
        let (index, term) = applied;
        self.handle(member, Input::InstallSnapshot { index, term, meta });
    }

    /// Heals everything, and checks that every member ends up with the same state.
    pub fn settle(&mut self) {
        self.faults = CALM;
        self.cut.clear();
        self.full.clear();
        self.stuck_disks.clear();
        let ids: Vec<MemberId> = self.nodes.keys().copied().collect();
        for id in &ids {
            if !self.is_up(*id) {
                self.start(*id);
            }
        }
        let leader = self.elect();
        let last = self.write(leader, 0);
        let settled = self.run_until(60_000, |cluster| {
            let caught_up = |node: &Node| node.applied.0 == cluster.model_index;
            cluster.result(last).is_some() && cluster.nodes.values().all(caught_up)
        });
        let states: Vec<_> = self.nodes.iter().map(|(id, n)| (id, n.applied, n.role)).collect();
        assert!(settled, "not settled: {states:?} of {}", self.model_index);
        for node in self.nodes.values() {
            assert!(node.faulted.is_none(), "{:?}", node.faulted);
            assert!(node.store == self.model);
        }
        self.check_logs();
    }

    /// Log matching: an index and a term name one entry, and everything before it.
    pub fn check_logs(&self) {
        let mut known: BTreeMap<(u64, u64), (u64, &LogEntry)> = BTreeMap::new();
        for node in self.nodes.values() {
            let mut before = node.disk.base.1;
            for entry in &node.disk.entries {
                let same = (before, entry);
                let first = known.entry((entry.index, entry.term)).or_insert(same);
                assert_eq!(*first, same, "logs differ at {}", entry.index);
                before = entry.term;
            }
        }
    }
}

fn change_store(store: &mut Store, applied: &Applied) {
    let index = applied.index;
    match &applied.change {
        Some(Change::Write { range, payload, .. }) => {
            for (at, block) in range.blocks().enumerate() {
                let bytes = &payload[at * BLOCK_BYTES..(at + 1) * BLOCK_BYTES];
                let tags = std::array::from_fn(|sector| tag_of(&bytes[sector * SECTOR_BYTES..]));
                store[block.0 as usize] = Content { tags, index };
            }
        }
        Some(Change::Zero { range, .. }) => {
            for block in range.blocks() {
                let tags = [0; SECTORS];
                store[block.0 as usize] = Content { tags, index };
            }
        }
        None => (),
    }
}

fn persist(disk: &mut Disk, append: &Append) {
    disk.hard = append.hard.unwrap_or(disk.hard);
    if let Some(reset) = &append.reset {
        assert!(disk.base.0 >= reset.index, "the store is not there yet");
        disk.entries.clear();
    }
    if let Some(first) = append.entries.first() {
        assert!(first.index > disk.base.0);
        disk.entries.retain(|entry| entry.index < first.index);
        disk.entries.extend(append.entries.iter().cloned());
    }
    let last = disk.base.0 + disk.entries.len() as u64;
    assert!(disk.hard.commit <= last, "a commit beyond the log");
}

fn sectors(tags: &[u64; SECTORS]) -> Vec<u8> {
    tags.iter().flat_map(|tag| tag.to_le_bytes().repeat(SECTOR_BYTES / 8)).collect()
}

fn tag_of(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes[..8].try_into().unwrap())
}
