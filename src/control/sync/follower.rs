//! What one pod was told, and what it lacks. Pure.
//!
//! Each stream of a pod has a follower. It knows which volumes the pod has. Of what commands have
//! changed it takes the rows that all pods have, and those of volumes that concern the pod (rule
//! `sync-tells-what-concerns`). The pods of a volume are found once, by the command
//! ([`crate::control::state::audience`]), so a follower compares a few numbers for each change.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::control::state::CatalogState;
use crate::control::state::audience::{audience, volumes_of};
use crate::control::state::rows::{RowKey, encode_row};
use crate::control::state::table::Table;
use crate::control::state::tables::Object;
use crate::control::sync::update::{Part, Position, Update};
use crate::planted::planted;
use crate::types::{PodId, VolumeId};

/// When a pod is told of revisions that do not concern it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idle {
    /// With the next change that does.
    Later,
    Now,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Follower {
    pod: PodId,
    /// What the pod was told last.
    at: Position,
    /// The newest revision that was looked at.
    seen: u64,
    /// The volumes that it has, and their fingerprint.
    told: BTreeSet<VolumeId>,
    part: Part,
    wants: BTreeSet<VolumeId>,
    /// The wants have changed since the last update.
    has_new_wants: bool,
    /// Volumes of which it must be found out whether they concern the pod.
    unsure: BTreeSet<VolumeId>,
}

type Rows = BTreeMap<RowKey, Option<Bytes>>;

/// A volume of which something may have changed.
#[derive(Default)]
struct Touched<'a> {
    /// Whether the pod is in its newest audience; `None`: that must be found out.
    is_in: Option<bool>,
    keys: Vec<&'a RowKey>,
}

impl Follower {
    /// A pod that is so far, has these volumes, and wants these. What it says of itself may be
    /// wrong; its mirror then refuses the first update that does not fit.
    pub fn new(
        pod: PodId,
        at: Position,
        told: BTreeSet<VolumeId>,
        wants: BTreeSet<VolumeId>,
    ) -> Follower {
        let unsure = told.union(&wants).copied().collect();
        let (seen, part) = (at.revision, Part::of(&told));
        Follower { pod, at, seen, told, part, wants, has_new_wants: true, unsure }
    }

    pub fn pod(&self) -> PodId {
        self.pod
    }

    /// What the pod has been told of.
    pub fn position(&self) -> Position {
        self.at
    }

    /// The pod wants these volumes now.
    pub fn want(&mut self, wants: BTreeSet<VolumeId>) {
        if wants != self.wants {
            self.unsure.extend(wants.symmetric_difference(&self.wants));
            self.wants = wants;
            self.has_new_wants = true;
        }
    }

    /// What the pod lacks of this state; `None` when it lacks nothing, or knows more.
    pub fn next(&mut self, state: &CatalogState, idle: Idle) -> Option<Update> {
        let history = state.cluster.history;
        let same_history = self.at.history == history || planted!(HistoriesCompared);
        let revision = state.revision();
        if same_history && self.seen > revision {
            return None;
        }
        let known = same_history && self.at.revision > 0;
        let Some(rows) = known.then(|| self.differences(state)).flatten() else {
            return Some(self.whole(state));
        };
        self.seen = revision;
        let to = Position { history, revision, part: self.part };
        let is_due = idle == Idle::Now && revision > self.at.revision;
        if rows.is_empty() && !self.has_new_wants && !is_due {
            return None;
        }
        Some(self.update(to, false, rows))
    }

    fn update(&mut self, to: Position, is_whole: bool, rows: Rows) -> Update {
        let from = if is_whole { Position::default() } else { self.at };
        self.at = to;
        let wants = std::mem::take(&mut self.has_new_wants).then(|| self.wants.clone());
        Update { from, to, is_whole, rows: rows.into_iter().collect(), wants }
    }

    /// The rows that differ since the last look; `None` when that is not remembered any more.
    fn differences(&mut self, state: &CatalogState) -> Option<Rows> {
        let mut rows = Rows::new();
        let mut touched: BTreeMap<VolumeId, Touched<'_>> = BTreeMap::new();
        for changed in state.commands_since(self.seen)? {
            rows.extend(changed.common().iter().map(|key| (key.clone(), row(state, key))));
            for change in changed.volumes() {
                let is_in = change.audience.binary_search(&self.pod).is_ok();
                let has = self.told.contains(&change.volume);
                if is_in || has || self.wants.contains(&change.volume) {
                    let volume = touched.entry(change.volume).or_default();
                    volume.is_in = Some(is_in);
                    volume.keys.extend(changed.keys_of(change));
                } else {
                    // It may have come and gone since the last look.
                    touched.remove(&change.volume);
                }
            }
        }
        for volume in std::mem::take(&mut self.unsure) {
            touched.entry(volume).or_default();
        }
        for (volume, Touched { is_in, keys }) in touched {
            let is_in =
                is_in.unwrap_or_else(|| audience(state, volume).binary_search(&self.pod).is_ok());
            let concerns = is_in || self.wants.contains(&volume);
            match (self.told.contains(&volume), concerns && state.volumes.contains_key(&volume)) {
                (false, true) => self.enters(state, volume, keys, &mut rows),
                (true, false) => self.leaves(volume, &mut rows),
                (true, true) => {
                    rows.extend(keys.into_iter().map(|key| (key.clone(), row(state, key))))
                }
                (false, false) => {}
            }
        }
        Some(rows)
    }

    fn enters(
        &mut self,
        state: &CatalogState,
        volume: VolumeId,
        changed: Vec<&RowKey>,
        rows: &mut Rows,
    ) {
        self.told.insert(volume);
        self.part.add(volume);
        match planted!(EntersWithChanges) {
            true => rows.extend(changed.into_iter().map(|key| (key.clone(), row(state, key)))),
            false => rows.extend(rows_of(state, volume).map(|(key, row)| (key, Some(row)))),
        }
    }

    fn leaves(&mut self, volume: VolumeId, rows: &mut Rows) {
        self.told.remove(&volume);
        self.part.remove(volume);
        if !planted!(SyncForgetsRemovals) {
            rows.insert(RowKey::Volume(volume), None);
        }
    }

    /// Everything that concerns the pod.
    fn whole(&mut self, state: &CatalogState) -> Update {
        let mut volumes = volumes_of(state, self.pod);
        volumes.extend(self.wants.iter().filter(|want| state.volumes.contains_key(want)));
        let mut rows = Rows::new();
        rows.insert(RowKey::Cluster, row(state, &RowKey::Cluster));
        all(&state.nodes, &mut rows);
        all(&state.pods, &mut rows);
        all(&state.disks, &mut rows);
        all(&state.classes, &mut rows);
        all(&state.catalog, &mut rows);
        all(&state.revoked, &mut rows);
        for volume in &volumes {
            rows.extend(rows_of(state, *volume).map(|(key, row)| (key, Some(row))));
        }
        self.part = Part::of(&volumes);
        (self.told, self.unsure) = (volumes, BTreeSet::new());
        self.seen = state.revision();
        self.has_new_wants = true;
        let (history, revision) = (state.cluster.history, state.revision());
        self.update(Position { history, revision, part: self.part }, true, rows)
    }
}

/// All rows of a volume.
fn rows_of(
    state: &CatalogState,
    volume: VolumeId,
) -> impl Iterator<Item = (RowKey, Bytes)> + use<'_> {
    let found = state.volumes.get(&volume).into_iter();
    let shards = found.flat_map(|volume| state.shards_of(volume)).map(|it| RowKey::Shard(it.0));
    let attachments =
        state.attachments_of(volume).map(move |it| RowKey::Attachment((volume, it.0)));
    let keys = std::iter::once(RowKey::Volume(volume)).chain(shards).chain(attachments);
    keys.filter_map(|key| Some((key.clone(), row(state, &key)?)))
}

fn all<T: Object>(table: &Table<T::Key, T>, rows: &mut Rows) {
    let encoded = table.rows().map(|(key, row)| {
        let bytes = encode_row(row.revision, &row.value);
        (T::key(key), Some(bytes))
    });
    rows.extend(encoded);
}

/// A row in its encoded form, if it is there and pods are told of its kind.
fn row(state: &CatalogState, key: &RowKey) -> Option<Bytes> {
    fn of<T: Object>(table: &Table<T::Key, T>, key: &T::Key) -> Option<Bytes> {
        table.row(key).map(|row| encode_row(row.revision, &row.value))
    }
    match key {
        RowKey::Cluster => Some(encode_row(state.cluster_revision, &state.cluster)),
        RowKey::Node(name) => of(&state.nodes, name),
        RowKey::Pod(pod) => of(&state.pods, pod),
        RowKey::Disk(disk) => of(&state.disks, disk),
        RowKey::Class(name) => of(&state.classes, name),
        RowKey::Volume(volume) => of(&state.volumes, volume),
        RowKey::Shard(shard) => of(&state.shards, shard),
        RowKey::Attachment(key) => of(&state.attachments, key),
        RowKey::CatalogMember(member) => of(&state.catalog, member),
        RowKey::Revoked(serial) => of(&state.revoked, serial),
        RowKey::Head | RowKey::Answered(_) | RowKey::Event(_) => None,
        RowKey::Authority(_) | RowKey::Token(_) | RowKey::Certificate(_) => None,
    }
}
