//! Rules `session-checked-at-apply`, `access-changes-by-entry` and `fenced-for-ever`, seen from the
//! members: a second, plain account of who may use each shard says which entries take effect. A
//! write whose outcome may be unknown is never sent again in its session. A request for another
//! term than its leader's is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::log::Applied;
use crate::replica::command::{self, EntryCommand};
use crate::replica::messages::{Input, ReqId, Role};
use crate::sim::checks::wrong::{Checked, check};
use crate::store::wal::format::FoundEntry;
use crate::types::{
    AccessMode, AccessSet, AttachmentId, BlockError, Generation, MemberId, Origin, PodId, Session,
    ShardId, ShardOp,
};
use crate::view::ClusterView;

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
    open: BTreeMap<Write, Session>,
}

/// A write of a shard.
type Write = (ShardId, u64);

/// What an entry does.
enum What {
    Writes,
    Touches { renews: bool },
    Sets(AccessSet),
}

#[derive(Default)]
struct Shard {
    /// Entries that are logged and not applied, by index and term.
    entries: BTreeMap<(u64, u64), (Origin, What)>,
    /// As of all applied entries; `None`: as at its birth, and nothing was applied.
    access: Option<Account>,
    birth: AccessSet,
}

/// Who may use a shard.
#[derive(Default)]
struct Account {
    set: AccessSet,
    /// Of the attachments of the set that were ever used.
    sessions: BTreeMap<AttachmentId, Session>,
    /// Without an attachment.
    front_ends: BTreeMap<PodId, Session>,
}

impl Account {
    /// The recorded session of an origin, if its attachment may use the shard.
    fn session_of(&self, origin: Origin) -> Result<Option<Session>, BlockError> {
        let AccessSet { generation, open, grants } = &self.set;
        if origin.attachment == AttachmentId::NONE {
            let recorded = self.front_ends.get(&origin.session.pod).copied();
            return if *open { Ok(recorded) } else { Err(BlockError::Fenced) };
        }
        if grants.iter().any(|grant| grant.attachment == origin.attachment) {
            return Ok(self.sessions.get(&origin.attachment).copied());
        }
        Err(match origin.attachment.0 > generation.0 {
            true => BlockError::NotYet,
            false => BlockError::Fenced,
        })
    }

    /// Carries out an entry. An error: it changes nothing.
    fn apply(&mut self, origin: Origin, what: What) -> Result<(), BlockError> {
        match what {
            What::Sets(set) => {
                self.take(set);
                Ok(())
            }
            What::Touches { renews } => {
                if let Some(recorded) = self.session_of(origin)? {
                    let goes_on = !renews || recorded.is_of_the_process_of(origin.session);
                    if !goes_on || origin.session.counter <= recorded.counter {
                        return Err(BlockError::StaleSession { recorded });
                    }
                }
                match origin.attachment {
                    AttachmentId::NONE => {
                        self.front_ends.insert(origin.session.pod, origin.session);
                    }
                    attachment => drop(self.sessions.insert(attachment, origin.session)),
                }
                Ok(())
            }
            What::Writes => match self.session_of(origin)? {
                Some(recorded) if recorded == origin.session => {
                    let grants = &self.set.grants;
                    let of = grants.iter().find(|grant| grant.attachment == origin.attachment);
                    match of.map(|grant| grant.mode) {
                        Some(AccessMode::ReadOnly) => Err(BlockError::ReadOnly),
                        _ => Ok(()),
                    }
                }
                Some(recorded) if recorded.counter >= origin.session.counter => {
                    Err(BlockError::StaleSession { recorded })
                }
                _ => Err(BlockError::NotTouched),
            },
        }
    }

    fn take(&mut self, set: AccessSet) {
        let had = |id: AttachmentId| self.set.grants.iter().any(|had| had.attachment == id);
        let now = self.set.generation;
        let comes_back = |id: AttachmentId| id.0 <= now.0 && !had(id);
        if set.generation <= now || set.grants.iter().any(|grant| comes_back(grant.attachment)) {
            return;
        }
        let stays = |id: &AttachmentId| set.grants.iter().any(|grant| grant.attachment == *id);
        self.sessions.retain(|id, _| stays(id));
        self.set = set;
    }
}

impl SessionChecks {
    /// What the catalog says of the births of shards.
    pub fn learn(&mut self, view: &ClusterView) {
        for shard in view.volumes.iter().flat_map(|volume| &volume.shards) {
            self.shards.entry(shard.shard).or_default().birth = shard.birth.clone();
        }
    }

    /// The generation of the access set that a shard has, as of all applied entries.
    pub fn generation(&self, shard: ShardId) -> Generation {
        let Some(seen) = self.shards.get(&shard) else { return Generation(0) };
        seen.access.as_ref().map_or(&seen.birth, |account| &account.set).generation
    }

    /// The attachments in the access set of a shard, as of all applied entries.
    pub fn admitted(&self, shard: ShardId) -> Vec<AttachmentId> {
        let Some(seen) = self.shards.get(&shard) else { return Vec::new() };
        let set = seen.access.as_ref().map_or(&seen.birth, |account| &account.set);
        set.grants.iter().map(|grant| grant.attachment).collect()
    }

    /// An entry is durable in some log of the shard for the first time.
    pub fn logged(&mut self, shard: ShardId, entry: &FoundEntry) {
        let Ok((origin, command)) = command::decode(&entry.context) else { return };
        let what = match command {
            EntryCommand::Write { .. } | EntryCommand::Zero { .. } => What::Writes,
            EntryCommand::Touch { renews } => What::Touches { renews },
            EntryCommand::SetAccess(set) => What::Sets(set),
            EntryCommand::Opaque => return,
        };
        let entries = &mut self.shards.entry(shard).or_default().entries;
        entries.insert((entry.index, entry.term), (origin, what));
    }

    /// The first member of a shard applies an entry.
    pub fn applies(&mut self, shard: ShardId, applied: &Applied) -> Checked {
        let seen = self.shards.entry(shard).or_default();
        let entry = seen.entries.remove(&(applied.index, applied.term));
        seen.entries = seen.entries.split_off(&(applied.index + 1, 0));
        let Some((origin, what)) = entry else { return Ok(()) };
        let born = || Account { set: seen.birth.clone(), ..Account::default() };
        let expected = seen.access.get_or_insert_with(born).apply(origin, what).err();
        check(expected == applied.refused, || {
            let (index, found) = (applied.index, &applied.refused);
            format!("entry {index} of {shard:?} is of {origin:?}: {expected:?}, and not {found:?}")
        })
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
            format!("{:?} of {shard:?} is sent again in session {session:?}", op.range())
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
