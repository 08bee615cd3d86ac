//! What a volume asks of its driver.

use crate::types::{BlockError, BlockReply, Origin, ShardId, ShardOp};
use crate::view::MemberView;
use crate::volume::access::{AccessDone, RoundId};
use crate::volume::request::ConnId;

/// Identifies a sent operation until its result arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// The actions that a volume requests from its driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VolumeOutput {
    /// Send this to a member, on this pod or another.
    Send {
        ticket: Ticket,
        shard: ShardId,
        to: MemberView,
        /// The term in which `to` is known to lead; 0: unknown (probes only).
        term: u64,
        origin: Origin,
        op: ShardOp,
    },
    /// Answer a client.
    Reply { conn: ConnId, handle: u64, result: Result<BlockReply, BlockError> },
    /// End all connections of the volume without an answer (rule `outdone-hangs-up`).
    HangUp,
    /// End the connections whose clients have hung up, and call `Volume::clients_checked`: a
    /// session was recorded that may follow another front end's, and a client may have gone there
    /// (rule `hang-up-before-execute`).
    WhoIsThere,
    /// A round of `Volume::set_access` has ended.
    AccessSet { round: RoundId, result: Result<AccessDone, BlockError> },
}
