//! Raft's promises, seen from outside: at most one leader per term and shard, one vote per member
//! and term, logs that agree where index and term do, and one history of applied entries. Answers
//! need a durable entry, applies a durable majority (rule `durable-before-ack`). Destroyed members
//! are silent (rule `destroyed-stays-destroyed`). A read sees everything that was applied anywhere
//! before its arrival.

use std::collections::{BTreeMap, BTreeSet};

use raft::eraftpb::{Message, MessageType};

use crate::log::{Applied, Change};
use crate::replica::messages::{ReqId, Role};
use crate::sim::checks::ledger::Ledger;
use crate::sim::checks::wrong::{Checked, Wrong, check};
use crate::store::wal::format::FoundEntry;
use crate::types::{MemberId, ShardId, mix64};
use crate::view::ClusterView;

/// See the module.
#[derive(Default)]
pub struct RaftChecks {
    revision: u64,
    shard_of: BTreeMap<MemberId, ShardId>,
    shards: BTreeMap<ShardId, Shard>,
    /// The vote of a member in a term.
    votes: BTreeMap<(MemberId, u64), u64>,
    /// Members that are to be destroyed, and destroyed ones.
    dying: BTreeSet<MemberId>,
    dead: BTreeSet<MemberId>,
    /// The newest applied entry of a member: since its start, and ever.
    applied: BTreeMap<MemberId, u64>,
    reached: BTreeMap<MemberId, u64>,
    /// The newest entry applied anywhere when a read arrived at a member.
    asked: BTreeMap<(MemberId, ReqId), u64>,
    terms: u64,
}

/// Observations of one Raft group.
#[derive(Default)]
struct Shard {
    voters: Vec<MemberId>,
    leaders: BTreeMap<u64, MemberId>,
    /// Hash of each logged entry, by index and term.
    logged: BTreeMap<(u64, u64), u64>,
    /// Term and digest of the changes of each applied entry, by index.
    applied: BTreeMap<u64, (u64, u64)>,
}

impl RaftChecks {
    /// A shard has had a leader.
    pub fn was_led(&self, shard: ShardId) -> bool {
        self.shards.get(&shard).is_some_and(|shard| !shard.leaders.is_empty())
    }

    /// Takes over a newer view. False: the view is not newer.
    pub fn learn(&mut self, view: &ClusterView) -> bool {
        if view.revision <= self.revision {
            return false;
        }
        self.revision = view.revision;
        for shard in view.volumes.iter().flat_map(|volume| &volume.shards) {
            let voters = shard.members.iter().map(|member| member.member);
            let seen = self.shards.entry(shard.shard).or_default();
            seen.voters = voters.collect();
            self.shard_of.extend(seen.voters.iter().map(|member| (*member, shard.shard)));
        }
        let dying: BTreeSet<MemberId> = view.destroyed.iter().map(|(_, member)| *member).collect();
        self.dead.extend(self.dying.difference(&dying));
        self.dying = dying;
        true
    }

    /// The number of terms with a leader, in all shards.
    pub fn terms(&self) -> u64 {
        self.terms
    }

    /// The shard of a member, if the catalog has told it.
    pub fn shard_of(&self, member: MemberId) -> Option<ShardId> {
        self.shard_of.get(&member).copied()
    }

    /// The number of voters of a shard.
    pub fn voters(&self, shard: ShardId) -> usize {
        self.shards.get(&shard).map_or(0, |shard| shard.voters.len())
    }

    /// The voters of a shard.
    pub fn voters_of(&self, shard: ShardId) -> &[MemberId] {
        self.shards.get(&shard).map_or(&[], |shard| &shard.voters)
    }

    /// The newest term of a shard that has a leader.
    pub fn newest_led(&self, shard: ShardId) -> u64 {
        let newest = self.shards.get(&shard).and_then(|shard| shard.leaders.last_key_value());
        newest.map_or(0, |(term, _)| *term)
    }

    /// The newest entry that a member has applied since its start.
    pub fn applied(&self, member: MemberId) -> u64 {
        self.applied.get(&member).copied().unwrap_or(0)
    }

    /// The newest entry that a member has ever applied.
    pub fn reached(&self, member: MemberId) -> u64 {
        self.reached.get(&member).copied().unwrap_or(0)
    }

    /// A start or a resync has put the member's state at this entry.
    pub fn is_at(&mut self, member: MemberId, index: u64) {
        self.applied.insert(member, index);
        let reached = self.reached.entry(member).or_default();
        *reached = index.max(*reached);
    }

    /// An entry is durable in a member's log. True: no other log had it before.
    pub fn logged(
        &mut self,
        shard: ShardId,
        member: MemberId,
        entry: &FoundEntry,
    ) -> Result<bool, Wrong> {
        let says = mix64(u64::from(crc32fast::hash(&entry.context)) << 8 | u64::from(entry.kind));
        let logged = &mut self.shards.get_mut(&shard).expect("it has members").logged;
        let before = logged.len();
        let first = *logged.entry((entry.index, entry.term)).or_insert(says);
        let is_new = logged.len() > before;
        check(first == says, || {
            let (index, term) = (entry.index, entry.term);
            format!("{member:?} of {shard:?} logged another entry {index} of term {term}")
        })?;
        Ok(is_new)
    }

    /// A member gets a read.
    pub fn asked(&mut self, shard: ShardId, member: MemberId, req: ReqId) {
        let shard = self.shards.get(&shard);
        let newest = shard.and_then(|shard| shard.applied.last_key_value());
        self.asked.insert((member, req), newest.map_or(0, |(index, _)| *index));
    }

    pub fn role(&mut self, shard: ShardId, role: Role) -> Checked {
        let Some(leader) = role.leader else { return Ok(()) };
        let leaders = &mut self.shards.get_mut(&shard).expect("it has members").leaders;
        let before = leaders.len();
        let first = *leaders.entry(role.term).or_insert(leader);
        self.terms += (leaders.len() - before) as u64;
        let text = || format!("{first:?} and {leader:?} lead {shard:?} in term {}", role.term);
        check(first == leader, text)
    }

    pub fn sends(&mut self, ledger: &Ledger, member: MemberId, message: &Message) -> Checked {
        check(!self.dead.contains(&member), || format!("{member:?} was destroyed and speaks"))?;
        let (term, to) = (message.term, message.to);
        match message.get_msg_type() {
            MessageType::MsgAppendResponse if !message.reject => {
                let index = message.index;
                let text = || format!("{member:?} answers for {index}, which it can still forget");
                // An answer of an earlier term may leave late, when a leader that was elected
                // without it has replaced the entry.
                check(ledger.is_beyond(member, term) || ledger.reaches(member, index), text)
            }
            MessageType::MsgRequestVoteResponse if !message.reject => {
                let first = *self.votes.entry((member, term)).or_insert(to);
                let text = || format!("{member:?} votes for {first} and {to} in term {term}");
                check(first == to, text)?;
                let text = || format!("{member:?} can still forget its vote of term {term}");
                check(ledger.has_voted(member, term, to), text)
            }
            _ => Ok(()),
        }
    }

    pub fn reads(&mut self, member: MemberId, req: ReqId) -> Checked {
        let due = self.asked.remove(&(member, req)).unwrap_or(0);
        let applied = self.applied(member);
        check(applied >= due, || {
            format!("{member:?} reads as of {applied}, and {due} was applied before it was asked")
        })
    }

    /// A member applies an entry. True: it is the first member to do so.
    pub fn applies(
        &mut self,
        ledger: &Ledger,
        shard: ShardId,
        member: MemberId,
        applied: &Applied,
    ) -> Result<bool, Wrong> {
        let (index, term) = (applied.index, applied.term);
        self.is_at(member, index);
        let seen = self.shards.get_mut(&shard).expect("it has members");
        let change = (term, digest(applied));
        if let Some(first) = seen.applied.get(&index) {
            let text = || format!("{member:?} of {shard:?} applies another entry {index}");
            check(*first == change, text)?;
            return Ok(false);
        }
        let holds = seen.voters.iter().filter(|voter| ledger.holds(**voter, index, term)).count();
        check(2 * holds > seen.voters.len(), || {
            format!("{member:?} of {shard:?} applies {index}, which {holds} members have durably")
        })?;
        seen.applied.insert(index, change);
        Ok(true)
    }
}

/// A digest of the changes of an entry.
fn digest(applied: &Applied) -> u64 {
    let mut digest = u64::from(applied.refused.is_some());
    let mut add = |number: u64| digest = mix64(digest ^ number);
    match &applied.change {
        None => add(1),
        Some(Change::Write { range, crcs, .. }) => {
            add(2 + (u64::from(range.first.0) << 8));
            crcs.iter().for_each(|crc| add(u64::from(*crc)));
        }
        Some(Change::Zero { range, trim }) => {
            add(3 + (u64::from(range.first.0) << 8));
            add(u64::from(range.count) << 1 | u64::from(*trim));
        }
    }
    if let Some(meta) = &applied.meta {
        add(u64::from(crc32fast::hash(meta)));
    }
    digest
}
