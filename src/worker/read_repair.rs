//! Read repair: fetches an intact copy of an extent from another replica when one of its blocks has
//! none here. The client's read or the write-back that waits for it then goes on.
//!
//! One pass asks every other replica in turn. After each answer the extent is checked again here,
//! against our own checksums (why: [`crate::store::lane::Lane::repair`]). A replica may still have
//! to apply what we have applied, or be unreachable, so passes are repeated for a while. A read
//! that waits is started again, not answered with the other's bytes: it is judged like all reads
//! here.
//! - Owns: the read repairs.
//! - May call: lanes, members, peers, reports, and resyncs (they end with a member that is lost).
//! - Is told: bad blocks, extents of other pods, and the results of checks by lanes.

use std::time::Duration;

use crate::net::message::{CallId, PeerMessage};
use crate::replica::messages::Input;
use crate::types::{BLOCKS_PER_EXTENT, BlockError, Extent, ExtentContent, MemberId, Mono};
use crate::worker::lanes::Lanes;
use crate::worker::peers::PeerHandler;
use crate::worker::reads::{BlockRead, ReadTarget, Reader};
use crate::worker::reports::Reports;
use crate::worker::resync::Resyncs;

/// Longest wait for an answer.
const ANSWER_PATIENCE: Duration = Duration::from_secs(2);
/// Between two passes.
const PASS_PAUSE: Duration = Duration::from_millis(200);
/// Between two passes for a write-back that some silent replica may still save.
const LONG_PAUSE: Duration = Duration::from_secs(1);
/// Passes that every other replica answered, none with an intact copy, before repair gives up.
const PASSES_MIN: u32 = 15;
/// Longest wait of a read for silent replicas: until then it pauses, as without a majority.
const READ_PATIENCE: Duration = Duration::from_secs(60);
/// After a failed repair, the time before a peer's read may start another one.
const RETRY_FOR_PEERS: Duration = Duration::from_secs(10);

/// The read repairs of a worker; few at any time.
#[derive(Default)]
pub struct ReadRepairs {
    running: Vec<Repair>,
    /// Extents that no replica could repair, and when that was found.
    failed: Vec<(Place, Mono)>,
}

/// An extent of a member, without an intact copy here.
type Place = (MemberId, Extent);

struct Repair {
    place: Place,
    step: Step,
    /// Replicas that are still to be asked in this pass.
    left: Vec<MemberId>,
    /// In this pass, some replica did not say what it has.
    silent: bool,
    /// Ended passes in which every replica answered.
    heard: u32,
    began: Mono,
    /// Write-back cannot go on without it.
    for_writeback: bool,
    /// Reads that go on when it ends.
    waiting: Vec<BlockRead>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Asking { call: CallId, since: Mono },
    Checking,
    Resting { until: Mono },
}

impl ReadRepairs {
    pub fn len(&self) -> usize {
        self.running.len()
    }

    fn running(&mut self, place: Place) -> Option<&mut Repair> {
        self.running.iter_mut().find(|repair| repair.place == place)
    }

    /// True when a read repair asked for an extent with this call.
    pub fn asks(&self, call: CallId) -> bool {
        self.running.iter().any(|repair| repair.asks(call))
    }

    fn end(&mut self, place: Place) -> Option<Repair> {
        let at = self.running.iter().position(|repair| repair.place == place)?;
        Some(self.running.remove(at))
    }

    fn forget_old_failures(&mut self, now: Mono) {
        self.failed.retain(|(_, at)| now.since(*at) < RETRY_FOR_PEERS);
    }
}

/// The read repairs, and the parts that they call.
pub struct RepairHandler<'a> {
    pub read_repairs: &'a mut ReadRepairs,
    pub resyncs: &'a mut Resyncs,
    pub lanes: &'a mut Lanes,
    pub reports: &'a mut Reports,
    pub out: PeerHandler<'a>,
}

impl RepairHandler<'_> {
    /// A read for a member here found no intact copy of a block of this extent.
    pub fn read_damaged(&mut self, mut read: BlockRead, extent: Extent) {
        read.repaired += 1;
        // Each of its extents may be bad once; with more than that there is no progress.
        let extents = read.range.count / BLOCKS_PER_EXTENT + 2;
        if read.repaired > 2 * extents + 2 {
            return self.give_up_read(read);
        }
        self.repair((read.member, extent), false, Some(read));
    }

    /// So did a read for a peer. The peer asks another replica; later it may find a copy here.
    pub fn peer_read_damaged(&mut self, place: Place) {
        self.read_repairs.forget_old_failures(self.out.now);
        if !self.read_repairs.failed.iter().any(|(failed, _)| *failed == place) {
            self.repair(place, false, None);
        }
    }

    /// Starts a repair, for a read that waits, or because the log lost what write-back needs.
    pub fn repair(&mut self, place: Place, for_writeback: bool, waiting: Option<BlockRead>) {
        if let Some(repair) = self.read_repairs.running(place) {
            repair.for_writeback |= for_writeback;
            repair.waiting.extend(waiting);
            return;
        }
        let (member, Extent(extent)) = place;
        tracing::warn!(%member, extent, "a block does not match its checksum here: it is fetched \
            from another replica");
        self.read_repairs.running.push(Repair {
            place,
            step: Step::Checking,
            left: Vec::new(),
            silent: false,
            heard: 0,
            began: self.out.now,
            for_writeback,
            waiting: waiting.into_iter().collect(),
        });
        self.begin_pass(place);
        self.ask_next(place);
    }

    /// Lists the replicas to ask: all of them in one pass.
    fn begin_pass(&mut self, place: Place) {
        let Some(runtime) = self.out.members.get(place.0) else { return };
        let peers: Vec<MemberId> = runtime.peers.iter().map(|peer| peer.member).collect();
        // Until the catalog has named the others, nobody was asked.
        let unknown = peers.is_empty() && !runtime.known;
        let Some(repair) = self.read_repairs.running(place) else { return };
        repair.left = peers;
        repair.silent = unknown;
    }

    /// Asks the next replica of this pass that can be reached.
    fn ask_next(&mut self, place: Place) {
        loop {
            let call = self.out.peers.next_call();
            let now = self.out.now;
            let Some(repair) = self.read_repairs.running(place) else { return };
            let Some(source) = repair.left.pop() else {
                return self.end_pass(place);
            };
            repair.step = Step::Asking { call, since: now };
            let ask = PeerMessage::ExtentRequest { call, source, extent: place.1, layer: 0 };
            if self.out.send_to(source, ask) {
                return;
            }
            if let Some(repair) = self.read_repairs.running(place) {
                repair.silent = true;
            }
        }
    }

    /// Another replica's answer.
    pub fn arrived(&mut self, call: CallId, result: Result<ExtentContent, BlockError>) {
        let found = self.read_repairs.running.iter_mut().find(|repair| repair.asks(call));
        let Some(repair) = found else { return };
        let place @ (member, extent) = repair.place;
        match result {
            Ok(content) if content.extent == extent => {
                let Some(lane) = self.out.members.lane_of(member) else { return };
                self.lanes.at(lane).repair(member, content);
                self.check(place);
            }
            Ok(_) | Err(BlockError::MediaFault) => self.ask_next(place),
            // It does not say what it has; it may say so later.
            Err(_) => {
                repair.silent = true;
                self.ask_next(place);
            }
        }
    }

    fn check(&mut self, place: Place) {
        let Some(lane) = self.out.members.lane_of(place.0) else { return };
        if let Some(repair) = self.read_repairs.running(place) {
            repair.step = Step::Checking;
        }
        let read = self.lanes.reads.add(ReadTarget::Check(place));
        self.lanes.at(lane).fetch_extent(read, place.0, place.1, 0);
    }

    /// The extent was read here again, to check it.
    pub fn checked(&mut self, place: Place, is_intact: bool) {
        if !is_intact {
            return self.ask_next(place);
        }
        let Some(repair) = self.read_repairs.end(place) else { return };
        let (member, extent) = place;
        tracing::warn!(%member, extent = extent.0, "the block is intact again");
        self.out.members.meters.read_repaired.add(1);
        let Some(lane) = self.out.members.lane_of(member) else { return };
        self.lanes.at(lane).resume_writeback(member, extent);
        for read in repair.waiting {
            self.lanes.read(lane, member, read.range, ReadTarget::Blocks(read));
        }
    }

    /// No replica had an intact copy in this pass.
    fn end_pass(&mut self, place: Place) {
        let now = self.out.now;
        let Some(repair) = self.read_repairs.running(place) else { return };
        repair.heard += u32::from(!repair.silent);
        // Every other replica has said often enough that it cannot help.
        let hopeless = repair.heard >= PASSES_MIN;
        let pause = match repair.for_writeback && repair.silent {
            true => LONG_PAUSE,
            false => PASS_PAUSE,
        };
        repair.step = Step::Resting { until: now + pause };
        if !hopeless && now.since(repair.began) <= READ_PATIENCE {
            return;
        }
        let (for_writeback, waiting) = (repair.for_writeback, std::mem::take(&mut repair.waiting));
        waiting.into_iter().for_each(|read| self.give_up_read(read));
        let (member, Extent(extent)) = place;
        if hopeless || !for_writeback {
            self.read_repairs.end(place);
            self.read_repairs.forget_old_failures(now);
            self.read_repairs.failed.push((place, now));
            tracing::error!(%member, extent, "no replica has an intact copy");
            self.out.members.meters.read_repairs_failed.add(1);
        }
        if hopeless && for_writeback {
            self.lose_member(member);
        }
    }

    /// Fails a read that no replica could repair. If another leads, it may have something newer.
    fn give_up_read(&mut self, read: BlockRead) {
        match read.reader {
            Reader::Request(req) => {
                let error = match self.out.members.role_of(read.member) {
                    role if role.serving => BlockError::MediaFault,
                    role => BlockError::NotLeader { hint: role.leader, term: role.term },
                };
                self.out.answer(req, Err(error));
            }
            Reader::Base { ticket } => {
                let base = Input::Base { ticket, result: Err(BlockError::MediaFault) };
                self.out.members.input(self.out.now, read.member, base);
            }
        }
    }

    /// Faults a member whose log lost what it had promised to keep, and that nobody else has. The
    /// only replica of a shard is not given up: the rest of its log is nowhere else.
    fn lose_member(&mut self, member: MemberId) {
        let Some(runtime) = self.out.members.get(member) else { return };
        if runtime.peers.is_empty() {
            return;
        }
        self.resyncs.stop(member);
        self.lanes.at(runtime.lane).fault_member(member);
        tracing::error!(%member, "a replica is faulted: its log is corrupt");
        self.out.stop_member(member, "its log is corrupt".to_owned());
        self.reports.due = true;
    }

    /// Once per tick: continues the repairs whose wait has ended.
    pub fn tick(&mut self) {
        let now = self.out.now;
        let members = &self.out.members;
        self.read_repairs.running.retain(|repair| {
            let runtime = members.get(repair.place.0);
            runtime.is_some_and(|runtime| runtime.faulted.is_none())
        });
        let due = self.read_repairs.running.iter().filter(|repair| repair.is_due(now));
        let due: Vec<(Place, Step)> = due.map(|repair| (repair.place, repair.step)).collect();
        for (place, step) in due {
            let Some(repair) = self.read_repairs.running(place) else { continue };
            match step {
                Step::Asking { .. } => {
                    repair.silent = true;
                    self.ask_next(place);
                }
                // It may have been overwritten meanwhile.
                Step::Resting { .. } => {
                    self.begin_pass(place);
                    self.check(place);
                }
                Step::Checking => {}
            }
        }
    }
}

impl Repair {
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
}
