//! What pods say to each other on the data path.

use bytes::Bytes;

use crate::types::{
    BlockError, Extent, ExtentContent, ManifestChunk, MemberId, Origin, ShardId, ShardOp,
    ShardReply,
};

/// Names a request on one link until it is answered. Chosen by the asking side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallId(pub u64);

/// One message between two pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerMessage {
    /// A Raft message for `to`. `header` is its encoding without the entries' data, `payloads`
    /// the data of each entry that has some, each in memory aligned to 4 KiB on arrival.
    Raft {
        to: MemberId,
        header: Bytes,
        payloads: Vec<Bytes>,
    },
    /// Heartbeats, their answers and other Raft messages without payload, of many groups at once.
    RaftBatch {
        messages: Vec<(MemberId, Bytes)>,
    },
    /// An operation for the leader of a shard, which `to` is believed to be.
    Request {
        call: CallId,
        shard: ShardId,
        to: MemberId,
        term: u64,
        origin: Origin,
        op: ShardOp,
    },
    Response {
        call: CallId,
        term: u64,
        result: Result<ShardReply, BlockError>,
    },
    /// The leader's offer to a follower that is behind the log: resync from `source`.
    ResyncOffer {
        to: MemberId,
        source: MemberId,
    },
    /// The end of a resync, from the follower to its leader.
    ResyncDone {
        to: MemberId,
        member: MemberId,
        ok: bool,
    },
    ManifestRequest {
        call: CallId,
        source: MemberId,
        from: Extent,
    },
    /// `meta`: shard metadata as of `chunk.applied_index`. `None`: not possible now.
    Manifest {
        call: CallId,
        answer: Option<(ManifestChunk, Bytes)>,
    },
    ExtentRequest {
        call: CallId,
        source: MemberId,
        extent: Extent,
        layer: u32,
    },
    Extent {
        call: CallId,
        result: Result<ExtentContent, BlockError>,
    },
    /// Bytes that the sender's lane can still allocate (rule R10); sent when it changed, with the
    /// heartbeats at most.
    Space {
        free_bytes: u64,
    },
}
