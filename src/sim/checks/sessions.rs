//! Rule R15, seen from the members: an entry of a session or an epoch that others have outdone
//! changes nothing; a write whose outcome may be open is never sent again in its session; and a
//! request that is meant for another term than its leader's is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::log::Applied;
use crate::replica::command;
use crate::replica::seam::{Input, ReqId, Role};
use crate::sim::checks::wrong::{Checked, check};
use crate::store::wal::format::FoundEntry;
use crate::types::{BlockError, MemberId, Origin, PodId, ShardId, ShardOp};

/// See the module.
#[derive(Default)]
pub struct SessionChecks {
    shards: BTreeMap<ShardId, Shard>,
    /// The term of every member, as it told last.
    terms: BTreeMap<MemberId, u64>,
    /// Requests that are meant for another term.
    misdirected: BTreeSet<(MemberId, ReqId)>,
    /// Writes that members were given and have not answered.
    sent: BTreeMap<(MemberId, ReqId), Write>,
    /// Writes that took place or may do so, and the session in which they were sent last.
    open: BTreeMap<Write, u64>,
}

/// A write of a shard.
type Write = (ShardId, u64);

#[derive(Default)]
struct Shard {
    /// Who sent what is logged and not applied, by index and term.
    origins: BTreeMap<(u64, u64), Origin>,
    /// The highest session of each front end, of all that is applied.
    sessions: BTreeMap<PodId, u64>,
    attachment_epoch: u64,
}

impl SessionChecks {
    /// An entry is durable in some log of the shard, for the first time.
    pub fn logged(&mut self, shard: ShardId, entry: &FoundEntry) {
        if let Ok((origin, _)) = command::decode(&entry.context) {
            let origins = &mut self.shards.entry(shard).or_default().origins;
            origins.insert((entry.index, entry.term), origin);
        }
    }

    /// The first member of a shard applies an entry.
    pub fn applies(&mut self, shard: ShardId, applied: &Applied) -> Checked {
        let seen = self.shards.entry(shard).or_default();
        let origin = seen.origins.remove(&(applied.index, applied.term));
        seen.origins = seen.origins.split_off(&(applied.index + 1, 0));
        let Some(origin) = origin else { return Ok(()) };
        let session = seen.sessions.entry(origin.front_end).or_default();
        let stale = origin.session < *session || origin.attachment_epoch < seen.attachment_epoch;
        check(stale == applied.refused.is_some(), || {
            let index = applied.index;
            let verdict = if stale { "outdone, and changes something" } else { "new, and refused" };
            format!("entry {index} of {shard:?} is of {origin:?}: {verdict}")
        })?;
        *session = origin.session.max(*session);
        seen.attachment_epoch = origin.attachment_epoch.max(seen.attachment_epoch);
        Ok(())
    }

    pub fn role(&mut self, member: MemberId, role: Role) {
        self.terms.insert(member, role.term);
    }

    /// A member is given something.
    pub fn input(&mut self, shard: ShardId, member: MemberId, input: &Input) -> Checked {
        let Input::Client { req, term, origin, op } = input else { return Ok(()) };
        self.misdirected.remove(&(member, *req));
        if *term != 0 && self.terms.get(&member).is_some_and(|own| own != term) {
            self.misdirected.insert((member, *req));
        }
        let Some(write) = number_of(op) else { return Ok(()) };
        let (write, session) = ((shard, write), origin.session);
        self.sent.insert((member, *req), write);
        // One that was sent before may come later, and is refused then.
        let before = self.open.get(&write).copied();
        self.open.insert(write, before.map_or(session, |before| before.max(session)));
        check(before != Some(session), || {
            format!("{:?} of {shard:?} is sent again in session {session}", op.range())
        })
    }

    /// A member answers a request.
    pub fn answers(
        &mut self,
        member: MemberId,
        req: ReqId,
        result: Result<(), &BlockError>,
    ) -> Checked {
        let write = self.sent.remove(&(member, req));
        if result.is_err_and(|error| *error != BlockError::Unknown) {
            write.and_then(|write| self.open.remove(&write));
        }
        let misdirected = self.misdirected.remove(&(member, req));
        let text = || format!("{member:?} carries out {req:?}, which was meant for another term");
        check(!misdirected || result.is_err(), text)
    }
}

/// A number that no other write of a run has, however often it is sent: clients never write the
/// same twice. Zeroes, which are all alike, have none.
fn number_of(op: &ShardOp) -> Option<u64> {
    let mut hasher = DefaultHasher::new();
    match op {
        ShardOp::Write { range, crcs, .. } => (range.first.0, crcs).hash(&mut hasher),
        ShardOp::WritePartial { block, offset_bytes, data } if data[0..8] != [0; 8] => {
            (block.0, offset_bytes, &data[0..8]).hash(&mut hasher);
        }
        _ => return None,
    }
    Some(hasher.finish())
}
