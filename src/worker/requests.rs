//! Requests that members have not answered, and who waits for each. A part of the members.

use rustc_hash::FxHashMap;

use crate::net::message::CallId;
use crate::replica::messages::ReqId;
use crate::types::{AttachmentId, BlockError, MemberId, Mono, ShardOp, ShardReply, VolumeId};
use crate::volume::Ticket;
use crate::worker::token::ConnKey;

/// A volume as it is used under one attachment: it has a router of its own.
pub type RouterKey = (VolumeId, AttachmentId);

/// A request of a router of this worker. Routers come and go: an answer is for the one that asked,
/// not for a later one of the same key (rule `answers-find-their-asker`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asker {
    pub router: RouterKey,
    /// Another one for each router of this worker.
    pub life: u64,
    pub ticket: Ticket,
}

/// The answer of a member.
pub type Answer = Result<ShardReply, BlockError>;

/// Where an answer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiter {
    /// A router of this worker.
    Volume(Asker),
    /// A peer that forwarded the request over this connection, which was promised `owed_bytes`.
    Peer { conn: ConnKey, call: CallId, owed_bytes: usize },
}

/// What a request asks for, for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Read,
    Write,
    Other,
}

impl Kind {
    pub fn of(op: &ShardOp) -> Kind {
        match op {
            ShardOp::Read { .. } => Kind::Read,
            op if op.is_write() => Kind::Write,
            _ => Kind::Other,
        }
    }
}

/// A request that is not answered yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    pub member: MemberId,
    pub waiter: Waiter,
    pub kind: Kind,
    /// When it came.
    pub since: Mono,
}

/// The unanswered requests of members of this worker.
#[derive(Default)]
pub struct Requests {
    next: u64,
    waiting: FxHashMap<ReqId, Waiting>,
}

impl Requests {
    pub fn add(&mut self, waiting: Waiting) -> ReqId {
        self.next += 1;
        let req = ReqId(self.next);
        self.waiting.insert(req, waiting);
        req
    }

    pub fn get(&self, req: ReqId) -> Option<&Waiting> {
        self.waiting.get(&req)
    }

    /// The waiter, once.
    pub fn take(&mut self, req: ReqId) -> Option<Waiting> {
        self.waiting.remove(&req)
    }

    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Every open request of a member.
    pub fn of_member(&self, member: MemberId) -> Vec<ReqId> {
        let of = |(req, asked): (&ReqId, &Waiting)| (asked.member == member).then_some(*req);
        self.waiting.iter().filter_map(of).collect()
    }
}
