//! Reads of the lanes: who asked, and what to do with the answer.

use rustc_hash::FxHashMap;

use crate::net::message::CallId;
use crate::replica::seam::{Input, ReqId};
use crate::store::seam::{Event, ReadBlocks, ReadId};
use crate::types::{BlockError, BlockRange, Extent, MemberId, Segment, ShardReply};
use crate::worker::Worker;
use crate::worker::token::ConnId;

/// What a read of the store is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadTarget {
    Read(BlockRead),
    Status(ReqId),
    /// The rest of a block that a client overwrites in part.
    Base(BlockRead),
    /// A peer that resyncs from a member here.
    PeerManifest {
        conn: ConnId,
        call: CallId,
        source: MemberId,
    },
    PeerExtent {
        conn: ConnId,
        call: CallId,
        source: MemberId,
    },
    /// Steps of a resync into this member.
    OwnManifest {
        member: MemberId,
    },
    Installed {
        member: MemberId,
    },
    /// Is an extent whole again?
    Check {
        member: MemberId,
        extent: Extent,
    },
}

/// A read of blocks: what it takes to start it again when a bad block was mended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRead {
    pub member: MemberId,
    pub range: BlockRange,
    /// The client's request, or the ticket of the member.
    pub id: u64,
    /// How often a bad block was met so far.
    pub mended: u32,
}

impl BlockRead {
    pub fn new(member: MemberId, range: BlockRange, id: u64) -> BlockRead {
        BlockRead { member, range, id, mended: 0 }
    }
}

/// The reads under way.
#[derive(Default)]
pub struct Reads {
    next: u64,
    targets: FxHashMap<ReadId, ReadTarget>,
}

impl Reads {
    pub fn add(&mut self, target: ReadTarget) -> ReadId {
        self.next += 1;
        let read = ReadId(self.next);
        self.targets.insert(read, target);
        read
    }

    pub fn len(&self) -> usize {
        self.targets.len()
    }

    pub fn take(&mut self, read: ReadId) -> ReadTarget {
        self.targets.remove(&read).expect("a lane answers only reads that were started")
    }
}

impl Worker {
    /// Starts a read of the store.
    pub fn start_read(&mut self, member: MemberId, range: BlockRange, target: ReadTarget) {
        let Some(runtime) = self.members.get(&member) else { return };
        let lane = runtime.lane;
        let read = self.reads.add(target);
        let store = &mut self.lanes[usize::from(lane)].lane;
        match target {
            ReadTarget::Status(_) => store.status(read, member, range),
            _ => store.read(read, member, range),
        }
        self.touch_lane(lane);
    }

    /// What a lane has to say.
    pub fn lane_event(&mut self, lane: u8, event: Event) {
        match event {
            Event::Appended { member, number } => self.input(member, Input::Appended { number }),
            Event::Read { read, result } => self.blocks_read(read, result),
            Event::Status { read, result } => {
                let ReadTarget::Status(req) = self.reads.take(read) else {
                    panic!("a status answers something else")
                };
                self.answer(req, result.map(ShardReply::Status));
            }
            Event::MemberDurable { member } => self.member_durable(lane, member),
            Event::ResyncOvertaken { member } => self.resync_overtaken(member),
            Event::Manifest { read, chunk, meta } => match self.reads.take(read) {
                ReadTarget::PeerManifest { conn, call, source } => {
                    self.answer_manifest(conn, call, source, (chunk, meta));
                }
                ReadTarget::OwnManifest { member } => self.own_manifest(member, read, chunk),
                target => panic!("a manifest answers {target:?}"),
            },
            Event::Extent { read, result } => match self.reads.take(read) {
                ReadTarget::PeerExtent { conn, call, .. } => {
                    self.answer_extent(conn, call, result);
                }
                ReadTarget::Check { member, extent } => {
                    self.rescue_checked(member, extent, result.map(|_| ()));
                }
                target => panic!("an extent answers {target:?}"),
            },
            Event::Damaged { read, extent } => self.read_damaged(read, extent),
            Event::Rotten { member, extent } => self.rescue_for_writeback(member, extent),
            Event::Installed { read, refused } => {
                let ReadTarget::Installed { member } = self.reads.take(read) else {
                    panic!("an installation answers something else")
                };
                self.extents_installed(member, read, refused);
            }
            Event::Poisoned { reason } => self.lane_poisoned(lane, reason),
        }
    }

    fn blocks_read(&mut self, read: ReadId, result: Result<ReadBlocks, BlockError>) {
        match self.reads.take(read) {
            ReadTarget::Read(BlockRead { id, .. }) => {
                let reply = result.map(|blocks| ShardReply::Data {
                    segments: blocks.segments,
                    crcs: blocks.crcs,
                });
                self.answer(ReqId(id), reply);
            }
            ReadTarget::Base(BlockRead { member, id: ticket, .. }) => {
                let result = result.map(|blocks| match blocks.segments.into_iter().next() {
                    Some(Segment::Data(block)) => Some(block),
                    Some(Segment::Zero(_)) | None => None,
                });
                self.input(member, Input::Base { ticket, result });
            }
            target => panic!("blocks answer {target:?}"),
        }
    }

    /// The disk failed: its members stop, for good. Nothing is acknowledged any more.
    fn lane_poisoned(&mut self, lane: u8, reason: String) {
        tracing::error!(disk = %self.lanes[usize::from(lane)].place.disk, reason,
            "the disk failed; its replicas stop. Replace the disk and start the pod again");
        let gone: Vec<MemberId> = self
            .members
            .iter()
            .filter(|(_, runtime)| runtime.lane == lane)
            .map(|(member, _)| *member)
            .collect();
        for member in gone {
            self.stop_member(member, format!("its disk failed: {reason}"));
        }
        self.lanes[usize::from(lane)].poisoned = Some(reason);
        self.report_due = true;
    }

    /// Takes a member out of service; its open requests are answered as not known.
    pub fn stop_member(&mut self, member: MemberId, reason: String) {
        if let Some(runtime) = self.members.get_mut(&member) {
            runtime.faulted = Some(reason);
            runtime.role = Default::default();
        }
        for req in self.requests.of_member(member) {
            self.answer(req, Err(BlockError::Unknown));
        }
    }
}
