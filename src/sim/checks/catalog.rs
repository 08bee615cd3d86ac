//! Checks the catalog, whatever happens to its members.
//!
//! A model state applies every entry that any member reports as applied, once and in order. Each
//! member must have applied the same entries, and have the same state at the same index, before and
//! after restarts.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use bytes::Bytes;

use crate::control::catalog_member::Published;
use crate::control::command::{CatalogCommand, Envelope, Outcome, Ticket, decode};
use crate::control::reconcile::{Group, voters_due};
use crate::control::state::CatalogState;
use crate::control::state::rebirth::NUMBERS_PER_HISTORY;
use crate::control::state::rows::{RowChange, RowKey, Volume};
use crate::control::state::view::view as view_of;
use crate::log::LogEntry;
use crate::types::{Generation, MemberId, ShardId, VolumeId};
use crate::view::ClusterView;

/// See the module.
pub struct CatalogCheck {
    state: CatalogState,
    /// The rows that were written for it.
    rows: BTreeMap<RowKey, Bytes>,
    view: Arc<ClusterView>,
    /// For each entry from the first on: hashes of the entry and of the state after it.
    entries: Vec<(u64, u64)>,
    /// Commands that were applied, and their log index.
    applied: HashMap<Ticket, u64>,
    /// The newest entry whose command was acknowledged.
    acknowledged_index: u64,
    leaders: BTreeMap<u64, MemberId>,
    /// The highest index that each member has ever applied.
    reached: BTreeMap<MemberId, u64>,
    /// The last compared state of each member, and its index.
    compared: BTreeMap<MemberId, (u64, Arc<CatalogState>)>,
    /// Ids of pods, volumes, shards and members.
    ids: [Ids; 4],
    created: BTreeSet<String>,
    deleted: BTreeSet<String>,
    /// Volumes that have had a file system.
    made: BTreeSet<VolumeId>,
    /// Shards that clients may use by now, of volumes that were smaller before, and the newest
    /// generation of the access set then.
    grown: Vec<(ShardId, Generation)>,
}

/// Ids of one kind.
#[derive(Default)]
struct Ids {
    there: BTreeSet<u64>,
    highest: u64,
}

impl Ids {
    /// Takes the present ids. New ones must be higher than all earlier ones.
    fn see(&mut self, now: BTreeSet<u64>) {
        for id in now.difference(&self.there) {
            assert!(*id > self.highest, "id {id} was used before");
        }
        self.highest = self.highest.max(now.last().copied().unwrap_or(0));
        self.there = now;
    }
}

/// Entries between comparisons of all rows.
const ROWS_COMPARED_EVERY: usize = 16;
/// The log index of the initial state of a cluster.
const FIRST: u64 = 1;

impl CatalogCheck {
    pub fn new(state: CatalogState) -> CatalogCheck {
        let mut check = CatalogCheck {
            view: Arc::new(view_of(&state)),
            entries: vec![(0, state.fingerprint())],
            applied: HashMap::new(),
            acknowledged_index: FIRST,
            leaders: BTreeMap::new(),
            reached: BTreeMap::new(),
            compared: BTreeMap::new(),
            ids: Default::default(),
            created: BTreeSet::new(),
            deleted: BTreeSet::new(),
            made: BTreeSet::new(),
            grown: Vec::new(),
            rows: state.rows().collect(),
            state,
        };
        check.state_changed();
        check
    }

    /// The catalog was recovered: from here on it has another log. Ids are still given once.
    #[cfg(test)]
    pub fn reborn(&mut self, state: CatalogState) {
        self.entries = vec![(0, state.fingerprint())];
        self.acknowledged_index = FIRST;
        self.applied.clear();
        self.leaders.clear();
        self.reached.clear();
        self.compared.clear();
        self.rows = state.rows().collect();
        self.state = state;
        self.state_changed();
    }

    /// A member has ended its round; `entry` returns the entry of its log at an index.
    pub fn observe<'a>(
        &mut self,
        member: MemberId,
        known: &Published,
        entry: impl Fn(u64) -> Option<&'a LogEntry>,
    ) {
        // A member of a history that was replaced has not heard of that yet.
        if member.0 < self.state.cluster.restores * NUMBERS_PER_HISTORY {
            return;
        }
        if let Some(leader) = known.role.leader {
            let first = *self.leaders.entry(known.role.term).or_insert(leader);
            assert_eq!(first, leader, "two leaders of the catalog in term {}", known.role.term);
        }
        let index = known.applied_index;
        let reached = self.reached.get(&member).copied().unwrap_or(0);
        if index <= reached {
            // After a restart it applies earlier entries again.
            return self.compare(member, known);
        }
        // Entries that a snapshot covers are not in the log.
        for index in reached + 1..=index {
            match entry(index) {
                Some(entry) => self.take(member, entry),
                None => assert!(index <= self.index(), "{member:?} jumped over entry {index}"),
            }
        }
        self.reached.insert(member, index);
        self.compare(member, known);
        for voter in &known.group.voters {
            let has_state = self.reached.contains_key(voter);
            assert!(has_state, "{voter:?} votes in the catalog before it has its state");
        }
    }

    /// The newest entry that any member has applied.
    fn index(&self) -> u64 {
        FIRST + self.entries.len() as u64 - 1
    }

    fn compare(&mut self, member: MemberId, known: &Published) {
        let Some(state) = &known.state else { return };
        // A shared state does not change: hash it once.
        let last = self.compared.insert(member, (known.applied_index, Arc::clone(state)));
        if last.is_some_and(|(at, last)| at == known.applied_index && Arc::ptr_eq(&last, state)) {
            return;
        }
        let at = known.applied_index.checked_sub(FIRST).expect("a state has an index");
        let (_, expected) = self.entries[at as usize];
        assert_eq!(state.fingerprint(), expected, "the state of {member:?} differs at {at}");
    }

    /// A member has applied this entry.
    fn take(&mut self, member: MemberId, entry: &LogEntry) {
        let what = hash_entry(entry);
        if entry.index <= self.index() {
            let (expected, _) = self.entries[(entry.index - FIRST) as usize];
            assert_eq!(what, expected, "{member:?} applied another entry {}", entry.index);
            return;
        }
        assert_eq!(entry.index, self.index() + 1, "entries are applied in order");
        let is_command = entry.kind == 0 && !entry.payload.is_empty();
        if is_command {
            let envelope: Envelope = decode(&entry.payload).expect("our own commands");
            let Envelope { ticket, at_ms, command } = envelope;
            let before = self.state.revision();
            let grows = match &command {
                CatalogCommand::Grown { volume, .. } => self.state.volumes.get(volume).cloned(),
                _ => None,
            };
            let records = self.records_as_holder(&command);
            let applied = self.state.apply(at_ms, command);
            let is_right = applied.outcome.is_err() || records != Some(false);
            assert!(is_right, "a node without the volume has recorded a file system");
            if let Some(smaller) = grows {
                self.note_growth(&smaller);
            }
            let after = self.state.revision();
            assert!(after >= before, "the revision went back");
            assert_eq!(applied.changes.is_empty(), after == before, "every change has a revision");
            self.rows_add_up(&applied.changes);
            self.state_changed();
            let first = self.applied.insert(ticket, entry.index);
            assert_eq!(first, None, "one proposal is in the log twice");
        }
        self.entries.push((what, self.state.fingerprint()));
    }

    /// Whether a command that records a file system comes from the one that has the volume. `None`:
    /// it is another command.
    fn records_as_holder(&self, command: &CatalogCommand) -> Option<bool> {
        let CatalogCommand::RecordFileSystem { volume, node, attachment, .. } = command else {
            return None;
        };
        let mut all = self.state.attachments_of(*volume);
        Some(all.any(|(_, it)| {
            let is_whole = it.active && it.ends_with.is_none();
            it.uid == *attachment && it.node == *node && is_whole
        }))
    }

    /// Rule `a-volume-is-formatted-once`: what was recorded as made stays so.
    fn note_file_systems(&mut self) {
        for (id, volume) in self.state.volumes.iter() {
            match volume.file_system.is_some_and(|it| it.made) {
                true => drop(self.made.insert(*id)),
                false => assert!(!self.made.contains(id), "{id:?} gets another file system"),
            }
        }
    }

    fn note_growth(&mut self, before: &Volume) {
        let Some((_, now)) = self.state.volume_by_name(&before.name) else { return };
        let new = before.shards_in_use() as usize..now.shards_in_use() as usize;
        let shards = now.shard_ids().take(new.end).skip(new.start);
        self.grown.extend(shards.map(|shard| (shard, now.access.wanted)));
    }

    pub fn take_grown(&mut self) -> Vec<(ShardId, Generation)> {
        std::mem::take(&mut self.grown)
    }

    /// The state after the newest command that any member has carried out.
    pub fn state(&self) -> &CatalogState {
        &self.state
    }

    fn state_changed(&mut self) {
        let state = &self.state;
        state.check_invariants();
        let shards = state.shards.values();
        let members = shards.flat_map(|shard| &shard.members).map(|member| member.member.0);
        let [pods, volumes, shard_ids, member_ids] = &mut self.ids;
        pods.see(state.pods.keys().map(|pod| pod.0).collect());
        volumes.see(state.volumes.keys().map(|volume| volume.0).collect());
        shard_ids.see(state.shards.keys().map(|shard| shard.0).collect());
        member_ids.see(members.chain(state.catalog.keys().map(|member| member.0)).collect());
        if state.revision() != self.view.revision {
            self.view = Arc::new(view_of(state));
        }
        self.note_file_systems();
    }

    /// The cluster as of the newest command that any member has carried out.
    pub fn view(&self) -> &Arc<ClusterView> {
        &self.view
    }

    /// The newest entry whose command was acknowledged.
    pub fn acknowledged_index(&self) -> u64 {
        self.acknowledged_index
    }

    /// A leader has answered a command.
    pub fn answered(&mut self, ticket: Ticket) {
        let found = self.applied.get(&ticket);
        let index = *found.expect("a command was answered before it was carried out");
        self.acknowledged_index = self.acknowledged_index.max(index);
    }

    /// A client has been told that its volume exists.
    pub fn created(&mut self, name: &str, outcome: Outcome) {
        let found = self.state.volume_by_name(name).map(|(volume, _)| Outcome::Volume(volume));
        assert_eq!(found, Some(outcome), "{name} was acknowledged");
        self.created.insert(name.to_owned());
    }

    fn is_usable(&self, name: &str) -> bool {
        let found = self.state.volume_by_name(name);
        found.is_some_and(|(_, volume)| !volume.deleting && volume.kept.is_none())
    }

    /// The changed rows of all commands add up to the whole state.
    fn rows_add_up(&mut self, changes: &[RowChange]) {
        for RowChange { key, row } in changes {
            match row {
                Some(row) => drop(self.rows.insert(key.clone(), row.clone())),
                None => drop(self.rows.remove(key)),
            }
        }
        if self.entries.len().is_multiple_of(ROWS_COMPARED_EVERY) {
            assert!(self.state.rows().eq(self.rows.clone()), "the changed rows do not add up");
        }
    }

    /// A client has been told that the volume is gone.
    pub fn deleted(&mut self, name: &str) {
        assert!(!self.is_usable(name), "{name} was deleted, and is there");
        self.deleted.insert(name.to_owned());
    }

    /// Describes why the catalog is not idle and equal everywhere, without requests; `members` are
    /// all its members.
    pub fn unsettled<'a>(
        &self,
        members: impl Iterator<Item = (MemberId, &'a Published)>,
    ) -> Option<String> {
        for name in &self.created {
            let is_there = self.is_usable(name);
            assert_eq!(is_there, !self.deleted.contains(name), "whether there is {name}");
        }
        let voters: BTreeSet<MemberId> = self.state.catalog.keys().copied().collect();
        let due = voters_due(self.state.pods.len());
        if voters.len() != due {
            return Some(format!("the catalog has the members {voters:?}, and {due} are due"));
        }
        let group = Group { voters, ..Group::default() };
        let mut missing = group.voters.clone();
        for (member, known) in members {
            missing.remove(&member);
            // Members at the same index have the same state: `compare` has checked that.
            if known.applied_index != self.index() || known.group != group {
                let (at, is) = (known.applied_index, &known.group);
                return Some(format!("{member:?} is at {at} of {}, in {is:?}", self.index()));
            }
        }
        (!missing.is_empty()).then(|| format!("the catalog's members {missing:?} are missing"))
    }
}

fn hash_entry(entry: &LogEntry) -> u64 {
    let mut hasher = DefaultHasher::new();
    (entry.term, entry.kind, &entry.payload, &entry.context).hash(&mut hasher);
    hasher.finish()
}
