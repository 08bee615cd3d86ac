//! Followers that are behind the log, as their leader sees them.
//!
//! raft-rs asks its storage for a snapshot, is refused, and asks again at every answer to a
//! heartbeat. Its view of the follower stays *probing*, so the answer to a stepped snapshot is
//! taken as progress. If that answer was lost, the commit index in the follower's next
//! heartbeat answer says the same: see [`Resync::is_lagging`].

use crate::replica::seam::Output;
use crate::types::MemberId;

/// Ticks after which the world is reminded of a follower that still lags.
const REMIND_TICKS: u32 = 30;

/// The followers of one leader that need a resync.
#[derive(Default)]
pub struct Resync {
    episodes: Vec<Episode>,
}

struct Episode {
    member: u64,
    /// Since it was last reported.
    ticks: u32,
    /// raft-rs has asked again since.
    asked: bool,
}

impl Resync {
    /// raft-rs wanted a snapshot for `member`: reported once per episode.
    pub fn wanted(&mut self, member: u64, out: &mut Vec<Output>) {
        if let Some(episode) = self.episodes.iter_mut().find(|known| known.member == member) {
            episode.asked = true;
            return;
        }
        self.episodes.push(Episode { member, ticks: 0, asked: false });
        out.push(Output::NeedsResync { member: MemberId(member) });
    }

    /// Reports again what still lags after a while, and forgets what does not.
    pub fn tick(&mut self, out: &mut Vec<Output>) {
        self.episodes.retain_mut(|episode| {
            episode.ticks += 1;
            if episode.ticks < REMIND_TICKS {
                return true;
            }
            let lags = std::mem::take(&mut episode.asked);
            episode.ticks = 0;
            if lags {
                out.push(Output::NeedsResync { member: MemberId(episode.member) });
            }
            lags
        });
    }

    /// A resync ended. After a failed one the next question is reported at once; after a good
    /// one the follower has time to show its progress.
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

    pub fn is_lagging(&self, member: u64) -> bool {
        self.episodes.iter().any(|episode| episode.member == member)
    }

    /// The follower made progress through the log.
    pub fn caught_up(&mut self, member: u64) {
        self.episodes.retain(|episode| episode.member != member);
    }

    pub fn clear(&mut self) {
        self.episodes.clear();
    }
}
