//! What peers may say (rule `peers-are-checked-on-arrival`). A message that no pod of ours would
//! send ends its link before any part acts on it. One that may only be early or late is dropped:
//! views of the cluster reach pods at different times.
//! - Owns: nothing.
//! - May call: nobody. It reads members and routers, and changes neither.
//! - Is told: messages of peers, before anybody else.

use crate::limits::RAFT_NUMBER_MAX;
use crate::net::message::PeerMessage;
use crate::planted::planted;
use crate::replica::meta::Meta;
use crate::replica::raft_message::MessageError;
use crate::types::{
    BLOCKS_PER_EXTENT, BlockError, Extent, ExtentContent, ManifestChunk, MemberId, PodId, ShardOp,
};
use crate::worker::members::Members;
use crate::worker::routers::Routers;
use crate::worker::token::ConnKey;

/// Why a link to another pod is closed: what it sent.
#[derive(Debug, thiserror::Error)]
pub enum Breach {
    #[error("a Raft message for replica {to} is not one that a replica sends")]
    Raft {
        to: MemberId,
        #[source]
        source: MessageError,
    },
    #[error("a Raft message for replica {to} contradicts what it knows: {what}")]
    Contradiction { to: MemberId, what: &'static str },
    #[error("a message has {what} {found}, which is not allowed")]
    Value { what: &'static str, found: u64 },
    #[error("an answer of a resync has unreadable metadata")]
    Meta,
    #[error("an answer is for a request over another connection")]
    OthersCall,
    #[error("more questions for extents wait than a pod asks")]
    TooManyAsks,
}

fn breach(what: &'static str, found: impl Into<u64>) -> Breach {
    Breach::Value { what, found: found.into() }
}

/// Fails for a term or an index that no cluster reaches: sums of those would overflow.
fn check_number(what: &'static str, number: u64) -> Result<(), Breach> {
    match number <= RAFT_NUMBER_MAX || planted!(PeersAreBelieved) {
        true => Ok(()),
        false => Err(breach(what, number)),
    }
}

/// Checks messages, but for Raft's (see `admission`).
pub struct Intake<'a> {
    pub members: &'a Members,
    pub routers: &'a Routers,
}

impl Intake<'_> {
    /// False: drop it. `pod` sent it over `conn`.
    pub fn check(&self, pod: PodId, conn: ConnKey, message: &PeerMessage) -> Result<bool, Breach> {
        match message {
            PeerMessage::Request { term, origin, op, .. } => {
                check_number("the term", *term)?;
                if origin.session.pod != pod {
                    return Err(breach("as origin pod", origin.session.pod.0));
                }
                // Nothing could follow the last of either.
                check_number("the session", origin.session.counter)?;
                if let ShardOp::SetAccess(set) = op {
                    check_number("the access generation", set.generation.0)?;
                }
                Ok(true)
            }
            PeerMessage::Response { call, term, result } => {
                check_number("the term", *term)?;
                match result {
                    Err(BlockError::NotLeader { term, .. }) => check_number("the term", *term)?,
                    Err(BlockError::StaleSession { recorded }) => {
                        check_number("the session", recorded.counter)?;
                    }
                    _ => {}
                }
                match self.routers.forwarded.get(call) {
                    Some(forwarded) if forwarded.conn != conn => Err(Breach::OthersCall),
                    Some(_) => Ok(true),
                    // Given up before.
                    None => Ok(false),
                }
            }
            PeerMessage::ResyncOffer { to, source: other }
            | PeerMessage::Rest { to, from: other, .. }
            | PeerMessage::ResyncDone { to, member: other, .. } => {
                Ok(self.is_peer(*to, *other, pod))
            }
            PeerMessage::ManifestRequest { source, from, .. } => {
                let blocks = self.blocks_of(*source);
                blocks.map_or(Ok(()), |blocks| check_next(blocks, *from)).map(|()| true)
            }
            PeerMessage::ExtentRequest { source, extent, layer, .. } => {
                let check = |blocks| check_extent(blocks, *extent, *layer);
                self.blocks_of(*source).map_or(Ok(()), check).map(|()| true)
            }
            _ => Ok(true),
        }
    }

    /// True when `other` is a replica of the same shard as `member`, on that pod.
    fn is_peer(&self, member: MemberId, other: MemberId, pod: PodId) -> bool {
        self.members.get(member).is_some_and(|runtime| runtime.is_peer(other, pod))
    }

    /// Blocks of a member, if it is here.
    fn blocks_of(&self, member: MemberId) -> Option<u32> {
        Some(self.members.get(member)?.member.blocks().count)
    }
}

/// Checks where a listing goes on: at most behind the last extent.
fn check_next(blocks: u32, next: Extent) -> Result<(), Breach> {
    match next.0 <= blocks.div_ceil(BLOCKS_PER_EXTENT) || planted!(PeersAreBelieved) {
        true => Ok(()),
        false => Err(breach("the extent", next.0)),
    }
}

fn check_extent(blocks: u32, extent: Extent, layer: u32) -> Result<(), Breach> {
    if planted!(PeersAreBelieved) {
        return Ok(());
    }
    if extent.0 >= blocks.div_ceil(BLOCKS_PER_EXTENT) {
        return Err(breach("the extent", extent.0));
    }
    match layer {
        0 => Ok(()),
        layer => Err(breach("the layer", layer)),
    }
}

/// Checks a chunk of a source's list for a member with this many blocks.
pub fn check_manifest(blocks: u32, chunk: &ManifestChunk, meta: &[u8]) -> Result<(), Breach> {
    check_number("the applied index", chunk.applied_index)?;
    check_number("the applied term", chunk.applied_term)?;
    for listed in &chunk.extents {
        check_extent(blocks, listed.extent, listed.layer)?;
        check_number("the last change", listed.last_changed)?;
    }
    if let Some(next) = chunk.next {
        check_next(blocks, next)?;
    }
    // It would be recorded, and found unreadable at the next start.
    match Meta::decode(meta) {
        Ok(meta) if meta.blocks == blocks => Ok(()),
        _ => Err(Breach::Meta),
    }
}

/// Checks an extent that a member with this many blocks asked for.
pub fn check_content(blocks: u32, asked: Extent, content: &ExtentContent) -> Result<(), Breach> {
    check_extent(blocks, content.extent, content.layer)?;
    check_number("the last change", content.last_changed)?;
    match content.extent == asked {
        true => Ok(()),
        false => Err(breach("the extent", content.extent.0)),
    }
}
