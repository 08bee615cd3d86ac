//! The messages between pods on the data path.

use bytes::Bytes;

use crate::types::{
    BlockError, Extent, ExtentContent, ManifestChunk, MemberId, Origin, ShardId, ShardOp,
    ShardReply,
};

/// Identifies a request on one link until it is answered. Chosen by the requesting side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallId(pub u64);

/// One message between two pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerMessage {
    /// A Raft message for `to`. `header` is its encoding without the payloads of entries;
    /// `payloads` are the non-empty ones. On arrival each is in memory aligned to 4 KiB.
    Raft {
        to: MemberId,
        header: Bytes,
        payloads: Vec<Bytes>,
    },
    /// Raft messages without payloads, such as heartbeats, of many groups.
    RaftBatch {
        messages: Vec<(MemberId, Bytes)>,
    },
    /// An operation on a shard. The sender believes that `to` leads the shard.
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
    /// The leader's offer to a follower that lags behind the log: resync from `source`.
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
    /// `meta`: shard metadata as of `chunk.applied_index`. `None`: not available now.
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
    /// The leader `from` offers a follower that their group rests: with the sender's `Beat`s as the
    /// only sign of life, until one of both says `Awake`. `index`: the end of its log.
    Rest {
        to: MemberId,
        from: MemberId,
        term: u64,
        index: u64,
    },
    /// `from` does not rest, or not any more.
    Awake {
        to: MemberId,
        from: MemberId,
    },
    /// The sender's lane is alive, and so are all its leaders that rest by this connection.
    Beat,
    /// Bytes that the sender's lane can still allocate (rule `space-before-append`). Sent on
    /// changes, at most as often as heartbeats.
    Space {
        free_bytes: u64,
    },
}
