//! Who waits for the answer of a member.

use rustc_hash::FxHashMap;

use crate::net::message::CallId;
use crate::replica::seam::ReqId;
use crate::types::{BlockError, MemberId, Origin, ShardId, ShardOp, VolumeId};
use crate::volume::Ticket;
use crate::worker::Worker;
use crate::worker::token::ConnId;

impl Worker {
    /// A request that names its shard: a member of another one does not carry it out, whatever its
    /// id (a catalog that was restored from an old copy gives ids again).
    pub fn request_for(
        &mut self,
        shard: ShardId,
        member: MemberId,
        term: u64,
        origin: Origin,
        op: ShardOp,
        waiter: Waiter,
    ) {
        if self.members.get(&member).is_some_and(|runtime| runtime.shard != shard) {
            let req = self.requests.add(member, waiter);
            return self.answer(req, Err(BlockError::NotLeader { hint: None, term: 0 }));
        }
        self.request(member, term, origin, op, waiter);
    }
}

/// Where an answer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiter {
    /// A router of this worker.
    Volume { volume: VolumeId, ticket: Ticket },
    /// A peer that forwarded the request over this connection, which was promised so many bytes.
    Peer { conn: ConnId, call: CallId, owed_bytes: usize },
}

/// The requests that members of this worker have not answered.
#[derive(Default)]
pub struct Requests {
    next: u64,
    waiting: FxHashMap<ReqId, (MemberId, Waiter)>,
}

impl Requests {
    pub fn add(&mut self, member: MemberId, waiter: Waiter) -> ReqId {
        self.next += 1;
        let req = ReqId(self.next);
        self.waiting.insert(req, (member, waiter));
        req
    }

    /// The waiter, once.
    pub fn take(&mut self, req: ReqId) -> Option<(MemberId, Waiter)> {
        self.waiting.remove(&req)
    }

    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Every open request of a member.
    pub fn of_member(&self, member: MemberId) -> Vec<ReqId> {
        let of =
            |(req, (asked, _)): (&ReqId, &(MemberId, Waiter))| (*asked == member).then_some(*req);
        self.waiting.iter().filter_map(of).collect()
    }
}
