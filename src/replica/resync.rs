//! The leader's view of followers that lag behind the start of its log.
//!
//! raft-rs asks its storage for a snapshot, is refused, and asks again at every answer to a
//! heartbeat. It keeps *probing* the follower, so it takes the answer to a stepped snapshot as
//! progress. If that answer is lost, the commit index in the follower's next heartbeat answer
//! replaces it: see [`Resync::is_lagging`].

use raft::eraftpb::{Message, MessageType};

use crate::replica::messages::{Output, ResyncReason};
use crate::types::MemberId;

/// Ticks after which a follower that still lags is reported again.
const REMIND_TICKS: u32 = 30;

/// The followers of one leader that need a resync.
#[derive(Default)]
pub struct Resync {
    episodes: Vec<Episode>,
}

struct Episode {
    member: u64,
    /// Ticks since the last report.
    ticks: u32,
    /// raft-rs asked again since then.
    asked: bool,
    reason: ResyncReason,
}

impl Resync {
    /// Notes that raft-rs wanted a snapshot for `member`. Reports it once per episode.
    pub fn wanted(&mut self, member: u64, reason: ResyncReason, out: &mut Vec<Output>) {
        if let Some(episode) = self.episodes.iter_mut().find(|known| known.member == member) {
            episode.asked = true;
            return;
        }
        self.episodes.push(Episode { member, ticks: 0, asked: false, reason });
        out.push(Output::NeedsResync { member: MemberId(member), reason });
    }

    /// Reports followers again that still lag after a while. Forgets the others.
    pub fn tick(&mut self, out: &mut Vec<Output>) {
        self.episodes.retain_mut(|episode| {
            episode.ticks += 1;
            if episode.ticks < REMIND_TICKS {
                return true;
            }
            let lags = std::mem::take(&mut episode.asked);
            episode.ticks = 0;
            if lags {
                let (member, reason) = (MemberId(episode.member), episode.reason);
                out.push(Output::NeedsResync { member, reason });
            }
            lags
        });
    }

    /// A resync ended. After a failure, the next request of raft-rs is reported at once. After a
    /// success, the follower gets time to show its progress.
    pub fn ended(&mut self, member: MemberId, ok: bool) {
        if !ok {
            self.episodes.retain(|episode| episode.member != member.0);
            return;
        }
        let found = self.episodes.iter_mut().find(|known| known.member == member.0);
        if let Some(episode) = found {
            episode.ticks = 0;
            episode.asked = false;
        }
    }

    /// True when no follower needs a resync.
    pub fn is_empty(&self) -> bool {
        self.episodes.is_empty()
    }

    pub fn is_lagging(&self, member: u64) -> bool {
        self.episodes.iter().any(|episode| episode.member == member)
    }

    /// Notes that the follower made progress through the log.
    pub fn caught_up(&mut self, member: u64) {
        self.episodes.retain(|episode| episode.member != member);
    }

    pub fn clear(&mut self) {
        self.episodes.clear();
    }
}

/// Makes a member without a configuration ask for a resync with every answer to a heartbeat. It
/// cannot start from the log, whose first entries assume a configuration.
pub fn mark_uninitialised(messages: &mut [Message]) {
    for message in messages {
        if message.get_msg_type() == MessageType::MsgHeartbeatResponse {
            message.request_snapshot = 1;
        }
    }
}
