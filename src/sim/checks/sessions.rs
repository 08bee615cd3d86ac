//! Rule `session-checked-at-apply`, seen from the members: an entry of an outdone session or epoch
//! changes nothing. A write whose outcome may be unknown is never sent again in its session. A
//! request for another term than its leader's is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::log::Applied;
use crate::replica::command;
use crate::replica::messages::{Input, ReqId, Role};
use crate::sim::checks::wrong::{Checked, check};
use crate::store::wal::format::FoundEntry;
use crate::types::{BlockError, MemberId, Origin, PodId, ShardId, ShardOp};

/// See the module.
#[derive(Default)]
pub struct SessionChecks {
    shards: BTreeMap<ShardId, Shard>,
    /// The last reported term of each member.
    terms: BTreeMap<MemberId, u64>,
    /// Requests for another term.
    misdirected: BTreeSet<(MemberId, ReqId)>,
    /// Writes that members have not answered yet.
    sent: BTreeMap<(MemberId, ReqId), Write>,
    /// Writes that may have taken place, and the newest session in which they were sent.
    open: BTreeMap<Write, u64>,
}

/// A write of a shard.
type Write = (ShardId, u64);

#[derive(Default)]
struct Shard {
    /// Origins of entries that are logged and not applied, by index and term.
    origins: BTreeMap<(u64, u64), Origin>,
    /// The highest session of each front end, in all applied entries.
    sessions: BTreeMap<PodId, u64>,
    attachment_epoch: u64,
}

impl SessionChecks {
    /// An entry is durable in some log of the shard for the first time.
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

    /// A member gets an input.
    pub fn input(&mut self, shard: ShardId, member: MemberId, input: &Input) -> Checked {
        let Input::Client { req, term, origin, op } = input else { return Ok(()) };
        self.misdirected.remove(&(member, *req));
        if *term != 0 && self.terms.get(&member).is_some_and(|own| own != term) {
            self.misdirected.insert((member, *req));
        }
        let Some(write) = number_of(op) else { return Ok(()) };
        let (write, session) = ((shard, write), origin.session);
        self.sent.insert((member, *req), write);
        // An earlier sending may arrive later; it is refused then.
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

/// Identifies a write, however often it is sent: clients never write the same content twice. `None`
/// for zeroes, which are all alike.
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
