//! Makes one state of what several sources know of a lost catalog. Pure.
//!
//! A source is what a member of the catalog had (all of it), or what a pod was told (all that
//! concerns the pod), as of one revision. The newest source that knows an object is right about it
//! (rule `newest-knowledge-wins`). A volume is a unit, with its shards and attachments.
//!
//! A volume that a source lacks was removed since, if that source is newer than all that have it,
//! and would have it: it is a member's, or of a pod with a replica (rule `removals-stand`).
//!
//! Tokens are void: nobody knows which ones were used or revoked.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::control::command::Outcome;
use crate::control::names::NAME_BYTES_MAX;
use crate::control::recovery::note::Note;
use crate::control::state::rebirth::{RESTORES_MAX, Rebirth};
use crate::control::state::rows::{
    Answered, Authority, Cluster, Disk, Head, Pod, RowError, RowKey, Shard, Volume, decode_row,
    encode_row,
};
use crate::control::state::{CatalogState, StateError};
use crate::planted::planted;
use crate::types::{PodId, Uuid, VolumeId};

/// What one source knows.
#[derive(Clone, Debug)]
pub struct Source {
    /// For people: `pod 3`, `the backup`.
    pub name: String,
    /// Whose knowledge it is; `None`: nobody's who could have a replica.
    pub pod: Option<PodId>,
    /// It has everything, not only what concerns a pod.
    pub is_complete: bool,
    /// As of this revision.
    pub revision: u64,
    pub rows: Vec<(RowKey, Bytes)>,
}

/// Why a source is not taken, or why there is no state.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    #[error("{name} has nothing of the cluster")]
    Nothing { name: String },
    #[error("{name} is of cluster {found}, and this is cluster {wanted}")]
    Foreign { name: String, found: Uuid, wanted: Uuid },
    #[error(
        "{name} follows history {found}, which is neither an ancestor nor a descendant of {other}: \
         two catalogs went on independently of each other. Decide which pods to leave out"
    )]
    Fork { name: String, found: Uuid, other: Uuid },
    #[error("a row that {name} has cannot be read")]
    Row {
        name: String,
        #[source]
        source: RowError,
    },
    #[error("the volume of a row that {name} has is not there")]
    Volume { name: String },
    #[error("the cluster was restored too often")]
    Restores,
    #[error("what the sources know makes no state of a catalog")]
    State(#[from] StateError),
}

/// A row, as of a revision.
type Known = (u64, Bytes);

/// A volume as the newest source has it that has it at all.
#[derive(Debug)]
struct VolumeRows {
    revision: u64,
    volume: Volume,
    shards: Vec<Shard>,
    /// All of its rows.
    rows: Vec<(RowKey, Bytes)>,
}

/// What a source had.
#[derive(Debug)]
struct Had {
    revision: u64,
    volumes: BTreeSet<VolumeId>,
    /// The disks of its own pod.
    disks: BTreeSet<Uuid>,
}

impl Had {
    /// It is newer than `revision`, and does not know this volume.
    fn lacks(&self, id: VolumeId, revision: u64) -> bool {
        self.revision > revision && !self.volumes.contains(&id)
    }
}

/// What all sources know together. See the module.
#[derive(Debug, Default)]
pub struct Merge {
    /// Of the newest history.
    cluster: Option<Cluster>,
    newest_revision: u64,
    now_ms: u64,
    /// Nodes, pods, disks, classes, answers, credentials.
    others: BTreeMap<RowKey, Known>,
    /// Of the newest complete source.
    events: Vec<(RowKey, Bytes)>,
    volumes: BTreeMap<VolumeId, VolumeRows>,
    by_pod: BTreeMap<PodId, Had>,
    /// Of the newest complete source.
    complete: Option<Had>,
}

/// What came out.
#[derive(Debug)]
pub struct Merged {
    pub state: CatalogState,
    pub notes: Vec<Note>,
}

impl Merge {
    /// Adds what a source knows. After an error nothing has changed.
    pub fn add(&mut self, source: Source) -> Result<(), MergeError> {
        let Source { name, pod, is_complete, revision, rows } = source;
        let read = Rows::read(&name, rows)?;
        let cluster = self.newer_cluster(&name, read.cluster, revision)?;
        (self.cluster, self.newest_revision) = (Some(cluster), self.newest_revision.max(revision));
        self.now_ms = self.now_ms.max(read.now_ms);
        let disks = pod.map(|pod| disks_of(pod, &read.others)).unwrap_or_default();
        let mut events = Vec::new();
        for (key, row) in read.others {
            if let RowKey::Event(_) = key {
                events.push((key, row));
                continue;
            }
            let is_better = match self.others.get(&key) {
                None => true,
                // The key itself is worth more than its sealed form, whatever is newer.
                Some((_, known)) if is_sealed(&key, known) != is_sealed(&key, &row) => {
                    is_sealed(&key, known)
                }
                Some((known, _)) => *known <= revision,
            };
            if is_better {
                self.others.insert(key, (revision, row));
            }
        }
        let had: BTreeSet<VolumeId> = read.volumes.keys().copied().collect();
        for (id, mut rows) in read.volumes {
            rows.revision = revision;
            let known = self.volumes.get(&id).map_or(0, |known| known.revision);
            if known <= revision && !(planted!(OldestKnowledgeWins) && known > 0) {
                self.volumes.insert(id, rows);
            }
        }
        let is_newer =
            |before: Option<&Had>| before.is_none_or(|before| before.revision <= revision);
        // Two histories of an object are one that is told twice.
        if is_complete && is_newer(self.complete.as_ref()) {
            self.events = events;
        }
        if let Some(pod) = pod.filter(|pod| is_newer(self.by_pod.get(pod))) {
            self.by_pod.insert(pod, Had { revision, volumes: had.clone(), disks });
        }
        if is_complete && is_newer(self.complete.as_ref()) {
            self.complete = Some(Had { revision, volumes: had, disks: BTreeSet::new() });
        }
        Ok(())
    }

    /// The newest row of the cluster, when all histories are in one line. The feature level
    /// is the highest that any source knows: disks and links may be at it (rule
    /// `level-after-all-pods`).
    fn newer_cluster(
        &self,
        name: &str,
        found: Cluster,
        revision: u64,
    ) -> Result<Cluster, MergeError> {
        let Some(known) = &self.cluster else { return Ok(found) };
        let name = name.to_owned();
        if found.uid != known.uid {
            return Err(MergeError::Foreign { name, found: found.uid, wanted: known.uid });
        }
        let descends = |one: &Cluster, of: &Cluster| {
            one.history == of.history || one.ancestors.contains(&of.history)
        };
        let level = known.level.max(found.level);
        if !descends(known, &found) && !descends(&found, known) {
            return Err(MergeError::Fork { name, found: found.history, other: known.history });
        }
        // Those of a later history are greater.
        let newest = if revision >= self.newest_revision { found } else { known.clone() };
        Ok(Cluster { level, ..newest })
    }

    /// The pods that any source names.
    pub fn pods(&self) -> BTreeSet<PodId> {
        let pod = |key: &RowKey| if let RowKey::Pod(pod) = key { Some(*pod) } else { None };
        self.others.keys().filter_map(pod).collect()
    }

    /// The cluster that the sources are of; `None` without a source.
    pub fn cluster(&self) -> Option<Uuid> {
        self.cluster.as_ref().map(|cluster| cluster.uid)
    }

    /// The newest history of the sources, and the newest revision.
    pub fn newest(&self) -> (Option<Uuid>, u64) {
        (self.cluster.as_ref().map(|cluster| cluster.history), self.newest_revision)
    }

    /// Makes the state of a new history, whose catalog is on `pod`.
    pub fn finish(&self, history: Uuid, pod: PodId, now_ms: u64) -> Result<Merged, MergeError> {
        let nothing = || MergeError::Nothing { name: "nobody".to_owned() };
        let cluster = self.cluster.clone().ok_or_else(nothing)?;
        let restores = cluster.restores.saturating_add(1);
        if restores > RESTORES_MAX {
            return Err(MergeError::Restores);
        }
        let mut notes = Vec::new();
        let volumes = self.surviving(&mut notes)?;
        let mut rows = vec![(RowKey::Cluster, encode_row(self.newest_revision, &cluster))];
        let is_kept = |id: &VolumeId| volumes.contains_key(id);
        for (key, (_, row)) in &self.others {
            if !is_outdated(key, row, is_kept) {
                rows.push((key.clone(), row.clone()));
            }
        }
        for found in volumes.into_values() {
            rows.extend(found);
        }
        rows.extend(self.events.iter().cloned());
        let mut ancestors = cluster.ancestors;
        ancestors.push(cluster.history);
        let now_ms = now_ms.max(self.now_ms);
        let rebirth = Rebirth { history, ancestors, restores, pod, now_ms };
        Ok(Merged { state: CatalogState::reborn(rows, rebirth)?, notes })
    }

    /// The rows of the volumes that were not removed. No two of them have the same name.
    fn surviving(
        &self,
        notes: &mut Vec<Note>,
    ) -> Result<BTreeMap<VolumeId, Vec<(RowKey, Bytes)>>, MergeError> {
        let mut newest_first: Vec<(&VolumeId, &VolumeRows)> = self.volumes.iter().collect();
        newest_first.sort_by_key(|(id, found)| std::cmp::Reverse((found.revision, **id)));
        let mut names = BTreeSet::new();
        let mut all = BTreeMap::new();
        for (id, found) in newest_first {
            let name = &found.volume.name;
            if self.is_removed(*id, found) {
                notes.push(Note::Removed { name: name.clone(), volume: *id });
                continue;
            }
            let mut rows = found.rows.clone();
            if !names.insert(name.clone()) {
                let other = free_name(name, *id, &names);
                notes.push(Note::Renamed { name: name.clone(), volume: *id, now: other.clone() });
                names.insert(other.clone());
                let volume = Volume { name: other, ..found.volume.clone() };
                rows.retain(|(key, _)| *key != RowKey::Volume(*id));
                rows.push((RowKey::Volume(*id), encode_row(found.revision, &volume)));
            }
            if self.complete.as_ref().is_some_and(|had| !had.volumes.contains(id)) {
                notes.push(Note::OnlyPodsKnew { name: name.clone(), volume: *id });
            }
            all.insert(*id, rows);
        }
        Ok(all)
    }

    /// See rule `removals-stand` in the module. One pod alone may have lost its replica to another
    /// one since.
    fn is_removed(&self, id: VolumeId, found: &VolumeRows) -> bool {
        let lacks = |had: &Had| had.lacks(id, found.revision);
        // Only a pod that had the disk then would know.
        let lacks_it = |disk: Uuid| {
            let pod = self.pod_of(disk).and_then(|pod| self.by_pod.get(&pod));
            pod.is_some_and(|had| had.disks.contains(&disk) && lacks(had))
        };
        let has_lost = |shard: &Shard| {
            let lacking = shard.members.iter().filter(|member| lacks_it(member.disk));
            2 * lacking.count() > shard.members.len()
        };
        let is_removed =
            self.complete.as_ref().is_some_and(lacks) || found.shards.iter().any(has_lost);
        is_removed && !planted!(RemovedComesBack)
    }

    fn pod_of(&self, disk: Uuid) -> Option<PodId> {
        let (_, row) = self.others.get(&RowKey::Disk(disk))?;
        Some(decode_row::<Disk>(&RowKey::Disk(disk), row).ok()?.1.pod)
    }
}

/// True for rows that mean nothing in a new history.
fn is_outdated(key: &RowKey, row: &Bytes, is_kept: impl Fn(&VolumeId) -> bool) -> bool {
    match key {
        // Who asks again must not be told of a volume that is gone.
        RowKey::Answered(_) => match decode_row::<Answered>(key, row) {
            Ok((_, Answered { outcome: Outcome::Volume(id) | Outcome::Attachment(id, _), .. })) => {
                !is_kept(&id)
            }
            Ok(_) => false,
            Err(_) => true,
        },
        _ => false,
    }
}

/// True for an authority whose key is sealed, as it is in backups.
fn is_sealed(key: &RowKey, row: &Bytes) -> bool {
    let has_key = || decode_row::<Authority>(key, row).is_ok_and(|(_, it)| !it.key.0.is_empty());
    matches!(key, RowKey::Authority(_)) && !has_key()
}

/// The disks that a pod has, as its own source says.
fn disks_of(pod: PodId, rows: &[(RowKey, Bytes)]) -> BTreeSet<Uuid> {
    let disk = |(key, row): &(RowKey, Bytes)| match key {
        RowKey::Disk(disk) => {
            let (_, record) = decode_row::<Disk>(key, row).ok()?;
            (record.pod == pod).then_some(*disk)
        }
        _ => None,
    };
    rows.iter().filter_map(disk).collect()
}

/// A name for a volume whose own name another one has by now.
fn free_name(name: &str, id: VolumeId, taken: &BTreeSet<String>) -> String {
    let mut number = id.0;
    loop {
        let ending = format!("-restored-{number}");
        // Names are ASCII.
        let begin: String = name.chars().take(NAME_BYTES_MAX - ending.len()).collect();
        let other = begin + &ending;
        if !taken.contains(&other) {
            return other;
        }
        number = number.wrapping_add(1);
    }
}

/// The rows of one source, read and sorted.
struct Rows {
    cluster: Cluster,
    now_ms: u64,
    others: Vec<(RowKey, Bytes)>,
    volumes: BTreeMap<VolumeId, VolumeRows>,
}

impl Rows {
    fn read(name: &str, rows: Vec<(RowKey, Bytes)>) -> Result<Rows, MergeError> {
        let fail = |source| MergeError::Row { name: name.to_owned(), source };
        let (mut cluster, mut now_ms, mut others) = (None, 0, Vec::new());
        let mut volumes = BTreeMap::new();
        let mut parts = Vec::new();
        for (key, row) in rows {
            match &key {
                RowKey::Cluster => cluster = Some(decode_row(&key, &row).map_err(fail)?.1),
                RowKey::Head => now_ms = decode_row::<Head>(&key, &row).map_err(fail)?.1.now_ms,
                RowKey::Volume(id) => {
                    let volume = decode_row(&key, &row).map_err(fail)?.1;
                    let (revision, shards, id) = (0, Vec::new(), *id);
                    let found = VolumeRows { revision, volume, shards, rows: vec![(key, row)] };
                    volumes.insert(id, found);
                }
                RowKey::Shard(_) | RowKey::Attachment(_) => parts.push((key, row)),
                RowKey::CatalogMember(_) | RowKey::Token(_) => {}
                RowKey::Pod(_) => {
                    decode_row::<Pod>(&key, &row).map_err(fail)?;
                    others.push((key, row));
                }
                _ => others.push((key, row)),
            }
        }
        for (key, row) in parts {
            let shard = match &key {
                RowKey::Shard(_) => Some(decode_row::<Shard>(&key, &row).map_err(fail)?.1),
                _ => None,
            };
            let volume = match (&key, &shard) {
                (RowKey::Attachment((volume, _)), _) => *volume,
                (_, shard) => shard.as_ref().expect("it is a shard's row").volume,
            };
            let missing = || MergeError::Volume { name: name.to_owned() };
            let found = volumes.get_mut(&volume).ok_or_else(missing)?;
            found.shards.extend(shard);
            found.rows.push((key, row));
        }
        let nothing = || MergeError::Nothing { name: name.to_owned() };
        Ok(Rows { cluster: cluster.ok_or_else(nothing)?, now_ms, others, volumes })
    }
}

#[cfg(test)]
#[path = "merge_test.rs"]
mod tests;
