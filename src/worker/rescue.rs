//! Rescue: brings an intact copy of an extent from another replica when one of its blocks has none
//! here. What waits for it (a client's read, a write-back) then goes on as if nothing had been.
//!
//! One pass asks every other replica in turn; after each answer the extent is checked again here,
//! against our own checksums (see [`crate::store::lane::Lane::mend`] for why that is enough). A
//! replica may still have to apply what we have applied, or be on its way back: passes are
//! repeated for a while. A read that waits is started again, not answered with the other
//! replica's bytes: so it is judged like every other read of this member.
//!
//! [`Rescues`] owns them, [`RepairHandler`] carries them on. Calls: lanes, members, links, resyncs
//! (which end with a member that is lost), reports. Told: bad blocks, extents of other pods, and
//! what lanes find when they look again.

use std::time::Duration;

use crate::net::message::{CallId, PeerMessage};
use crate::replica::seam::{Input, ReqId};
use crate::types::{BlockError, BlockRange, Extent, ExtentContent, MemberId, Mono};
use crate::worker::lanes::Lanes;
use crate::worker::peers::PeerHandler;
use crate::worker::reads::{BlockRead, ReadTarget};
use crate::worker::reports::Reports;
use crate::worker::resync::Resyncs;

/// An answer that takes longer is not waited for.
const ANSWER_PATIENCE: Duration = Duration::from_secs(2);
/// Between two passes.
const PASS_PAUSE: Duration = Duration::from_millis(200);
/// Between two passes for a write-back that some replica may still save.
const LONG_PAUSE: Duration = Duration::from_secs(1);
/// Passes in which every other replica answered and none had what is needed.
const PASSES_MIN: u32 = 15;
/// A read does not wait longer than this for replicas that do not answer: until then it is a
/// pause, as without a majority.
const READ_PATIENCE: Duration = Duration::from_secs(60);
/// What could not be rescued is not tried again for a peer's sake before this has passed.
const RETRY_FOR_PEERS: Duration = Duration::from_secs(10);

/// The rescues of a worker; few at any time.
#[derive(Default)]
pub struct Rescues {
    running: Vec<Rescue>,
    /// Extents that nobody could bring, and when that was found.
    failed: Vec<(MemberId, Extent, Mono)>,
}

struct Rescue {
    member: MemberId,
    extent: Extent,
    step: Step,
    /// Replicas that were not asked in this pass.
    left: Vec<MemberId>,
    /// In this pass, a replica gave no answer that says what it has.
    silent: bool,
    /// Ended passes in which every replica answered.
    heard: u32,
    began: Mono,
    /// Write-back cannot go on without it.
    for_writeback: bool,
    /// Reads that go on when it ends.
    waiting: Vec<ReadTarget>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Asking { call: CallId, since: Mono },
    Checking,
    Resting { until: Mono },
}

impl Rescues {
    fn running(&mut self, member: MemberId, extent: Extent) -> Option<&mut Rescue> {
        self.running.iter_mut().find(|rescue| rescue.is_of(member, extent))
    }

    /// True when an extent was asked for with this call by a rescue.
    pub fn asks(&self, call: CallId) -> bool {
        self.running.iter().any(|rescue| rescue.asks(call))
    }

    fn end(&mut self, member: MemberId, extent: Extent) -> Option<Rescue> {
        let at = self.running.iter().position(|rescue| rescue.is_of(member, extent))?;
        Some(self.running.remove(at))
    }

    fn forget_old_failures(&mut self, now: Mono) {
        self.failed.retain(|(_, _, at)| now.since(*at) < RETRY_FOR_PEERS);
    }
}

/// The rescues with what they call.
pub struct RepairHandler<'a> {
    pub rescues: &'a mut Rescues,
    pub resyncs: &'a mut Resyncs,
    pub lanes: &'a mut Lanes,
    pub reports: &'a mut Reports,
    pub out: PeerHandler<'a>,
}

impl RepairHandler<'_> {
    /// A read for a member here found no intact copy of a block of this extent.
    pub fn read_damaged(&mut self, target: ReadTarget, extent: Extent) {
        match target {
            ReadTarget::Read(read) => self.for_read(read, extent, ReadTarget::Read),
            ReadTarget::Base(read) => self.for_read(read, extent, ReadTarget::Base),
            ReadTarget::Check(member, extent) => {
                self.checked(member, extent, Err(BlockError::MediaFault));
            }
            target => panic!("{target:?} reads no blocks"),
        }
    }

    /// So did a read for a peer, which asks another one; when it asks again, we may have it.
    pub fn peer_read_damaged(&mut self, source: MemberId, extent: Extent) {
        self.rescues.forget_old_failures(self.out.now);
        let failed = &self.rescues.failed;
        if !failed.iter().any(|(of, at, _)| (*of, *at) == (source, extent)) {
            self.rescue(source, extent, false, None);
        }
    }

    fn for_read(
        &mut self,
        mut read: BlockRead,
        extent: Extent,
        target: impl Fn(BlockRead) -> ReadTarget,
    ) {
        read.mended += 1;
        // Every extent of it may be bad once; more than that is no progress.
        if read.mended > 2 * extents_in(read.range) + 2 {
            return self.give_up_read(target(read));
        }
        self.rescue(read.member, extent, false, Some(target(read)));
    }

    /// The log lost what write-back needs of this extent.
    pub fn for_writeback(&mut self, member: MemberId, extent: Extent) {
        self.rescue(member, extent, true, None);
    }

    fn rescue(
        &mut self,
        member: MemberId,
        extent: Extent,
        for_writeback: bool,
        waiting: Option<ReadTarget>,
    ) {
        if let Some(rescue) = self.rescues.running(member, extent) {
            rescue.for_writeback |= for_writeback;
            rescue.waiting.extend(waiting);
            return;
        }
        tracing::warn!(%member, extent = extent.0, "a block does not match its checksum here: \
            it is fetched from another replica");
        self.rescues.running.push(Rescue {
            member,
            extent,
            step: Step::Checking,
            left: Vec::new(),
            silent: false,
            heard: 0,
            began: self.out.now,
            for_writeback,
            waiting: waiting.into_iter().collect(),
        });
        self.begin_pass(member, extent);
        self.ask_next(member, extent);
    }

    /// The replicas to be asked next; all of them are asked in one pass.
    fn begin_pass(&mut self, member: MemberId, extent: Extent) {
        let Some(runtime) = self.out.members.get(member) else { return };
        let peers: Vec<MemberId> = runtime.peers.iter().map(|peer| peer.member).collect();
        // As long as the catalog has not told who the others are, nobody was asked.
        let unknown = peers.is_empty() && !runtime.known;
        let Some(rescue) = self.rescues.running(member, extent) else { return };
        rescue.left = peers;
        rescue.silent = unknown;
    }

    /// Asks the next replica of this pass that can be reached.
    fn ask_next(&mut self, member: MemberId, extent: Extent) {
        loop {
            let call = self.out.peers.next_call();
            let now = self.out.now;
            let Some(rescue) = self.rescues.running(member, extent) else { return };
            let Some(source) = rescue.left.pop() else {
                return self.end_pass(member, extent);
            };
            rescue.step = Step::Asking { call, since: now };
            let ask = PeerMessage::ExtentRequest { call, source, extent, layer: 0 };
            if self.out.send_to(source, ask) {
                return;
            }
            if let Some(rescue) = self.rescues.running(member, extent) {
                rescue.silent = true;
            }
        }
    }

    /// Another replica's answer.
    pub fn arrived(&mut self, call: CallId, result: Result<ExtentContent, BlockError>) {
        let found = self.rescues.running.iter_mut().find(|rescue| rescue.asks(call));
        let Some(rescue) = found else { return };
        let (member, extent) = (rescue.member, rescue.extent);
        match result {
            Ok(content) if content.extent == extent => {
                let Some(lane) = self.out.members.lane_of(member) else { return };
                self.lanes.at(lane).mend(member, content);
                self.check(member, extent);
            }
            Ok(_) | Err(BlockError::MediaFault) => self.ask_next(member, extent),
            // It does not say what it has: it may be on its way back.
            Err(_) => {
                rescue.silent = true;
                self.ask_next(member, extent);
            }
        }
    }

    fn check(&mut self, member: MemberId, extent: Extent) {
        let Some(lane) = self.out.members.lane_of(member) else { return };
        if let Some(rescue) = self.rescues.running(member, extent) {
            rescue.step = Step::Checking;
        }
        let read = self.lanes.reads.add(ReadTarget::Check(member, extent));
        self.lanes.at(lane).fetch_extent(read, member, extent, 0);
    }

    /// The extent was read here once more.
    pub fn checked(&mut self, member: MemberId, extent: Extent, result: Result<(), BlockError>) {
        match result {
            Ok(()) => {
                let Some(rescue) = self.rescues.end(member, extent) else { return };
                tracing::warn!(%member, extent = extent.0, "the block is intact again");
                let Some(lane) = self.out.members.lane_of(member) else { return };
                self.lanes.at(lane).resume_writeback(member, extent);
                for target in rescue.waiting {
                    if let ReadTarget::Read(read) | ReadTarget::Base(read) = target {
                        self.lanes.read(lane, member, read.range, target);
                    }
                }
            }
            Err(_) => self.ask_next(member, extent),
        }
    }

    /// Nobody had it this time.
    fn end_pass(&mut self, member: MemberId, extent: Extent) {
        let now = self.out.now;
        let Some(rescue) = self.rescues.running(member, extent) else { return };
        rescue.heard += u32::from(!rescue.silent);
        let hopeless = rescue.left_alone();
        let pause = match rescue.for_writeback && rescue.silent {
            true => LONG_PAUSE,
            false => PASS_PAUSE,
        };
        rescue.step = Step::Resting { until: now + pause };
        let over = hopeless || now.since(rescue.began) > READ_PATIENCE;
        if !over {
            return;
        }
        let (for_writeback, waiting) = (rescue.for_writeback, std::mem::take(&mut rescue.waiting));
        for target in waiting {
            self.give_up_read(target);
        }
        if hopeless || !for_writeback {
            self.rescues.end(member, extent);
            self.rescues.forget_old_failures(now);
            self.rescues.failed.push((member, extent, now));
            tracing::error!(%member, extent = extent.0, "no replica has an intact copy");
        }
        if hopeless && for_writeback {
            self.lose_member(member);
        }
    }

    /// A read of what no replica has. Others may have something newer by now, if one of them leads.
    fn give_up_read(&mut self, target: ReadTarget) {
        match target {
            ReadTarget::Read(read) => {
                let error = match self.out.members.role_of(read.member) {
                    role if role.serving => BlockError::MediaFault,
                    role => BlockError::NotLeader { hint: role.leader, term: role.term },
                };
                self.out.answer(ReqId(read.id), Err(error));
            }
            ReadTarget::Base(read) => {
                let result = Err(BlockError::MediaFault);
                let base = Input::Base { ticket: read.id, result };
                self.out.members.input(self.out.now, read.member, base);
            }
            target => panic!("{target:?} does not wait for a rescue"),
        }
    }

    /// The log of this member lost what it had promised to keep, and nobody else has it. The only
    /// replica of a shard is not given up: what else its log holds is nowhere else.
    fn lose_member(&mut self, member: MemberId) {
        let Some(runtime) = self.out.members.get(member) else { return };
        if runtime.peers.is_empty() {
            return;
        }
        self.resyncs.stop(member);
        self.lanes.at(runtime.lane).fault_member(member);
        tracing::error!(%member, "a replica is faulted: its log is rotten");
        self.out.stop_member(member, "its log is rotten".to_owned());
        self.reports.due = true;
    }

    /// Once per tick: goes on with what waits.
    pub fn tick(&mut self) {
        let now = self.out.now;
        let members = &self.out.members;
        self.rescues.running.retain(|rescue| {
            let runtime = members.get(rescue.member);
            runtime.is_some_and(|runtime| runtime.faulted.is_none())
        });
        let due: Vec<(MemberId, Extent, Step)> = self
            .rescues
            .running
            .iter()
            .filter(|rescue| rescue.is_due(now))
            .map(|rescue| (rescue.member, rescue.extent, rescue.step))
            .collect();
        for (member, extent, step) in due {
            let Some(rescue) = self.rescues.running(member, extent) else { continue };
            match step {
                Step::Asking { .. } => {
                    rescue.silent = true;
                    self.ask_next(member, extent);
                }
                // It may have been written anew meanwhile.
                Step::Resting { .. } => {
                    self.begin_pass(member, extent);
                    self.check(member, extent);
                }
                Step::Checking => {}
            }
        }
    }
}

impl Rescue {
    fn is_of(&self, member: MemberId, extent: Extent) -> bool {
        (self.member, self.extent) == (member, extent)
    }

    fn asks(&self, call: CallId) -> bool {
        matches!(self.step, Step::Asking { call: asked, .. } if asked == call)
    }

    fn is_due(&self, now: Mono) -> bool {
        match self.step {
            Step::Asking { since, .. } => now.since(since) > ANSWER_PATIENCE,
            Step::Resting { until } => now >= until,
            Step::Checking => false,
        }
    }

    /// Every other replica has said often enough that it cannot help.
    fn left_alone(&self) -> bool {
        self.heard >= PASSES_MIN
    }
}

fn extents_in(range: BlockRange) -> u32 {
    range.count / crate::types::BLOCKS_PER_EXTENT + 2
}
