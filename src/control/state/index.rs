//! What is found in the state by something else than its key. Made from the tables alone, and kept
//! as they change. Like tables, indexes share memory with their copies.

use rpds::{RedBlackTreeMapSync, RedBlackTreeSetSync};

use crate::control::state::rows::{
    Answered, Attachment, AttachmentKey, CatalogMember, Disk, Event, Pod, Shard, Volume,
};
use crate::types::{MemberId, PodId, ShardId, Uuid, VolumeId};

type Map<K, V> = RedBlackTreeMapSync<K, V>;
type Set<K> = RedBlackTreeSetSync<K>;

/// What a disk holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Its replicas, also those that are to be destroyed.
    pub members: Map<MemberId, ShardId>,
    /// Shards of which it has the first replica.
    pub firsts: u64,
    /// What it promises to the volumes of its replicas.
    pub provisioned_bytes: u64,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Index {
    pub pods_by_uid: Map<Uuid, PodId>,
    pub pods_by_node: Map<String, Set<PodId>>,
    pub disks_by_pod: Map<PodId, Set<Uuid>>,
    pub volumes_by_name: Map<String, VolumeId>,
    pub volumes_by_uid: Map<Uuid, VolumeId>,
    pub creating: Set<VolumeId>,
    pub deleting: Set<VolumeId>,
    /// Volumes whose new shards are not ready yet.
    pub growing: Set<VolumeId>,
    /// Deleted volumes that are kept, by the time at which each is to be destroyed.
    pub purges: Set<(u64, VolumeId)>,
    /// Volumes of which a shard may not have the access set that is wanted.
    pub access_changing: Set<VolumeId>,
    pub attachments_by_uid: Map<Uuid, AttachmentKey>,
    pub attachments_by_node: Map<String, Set<AttachmentKey>>,
    pub held: Map<Uuid, Held>,
    pub catalog_by_pod: Map<PodId, MemberId>,
    pub requests: Map<String, u64>,
    /// The events of each object, by its kind and name.
    pub events_of: Map<(String, String), Set<u64>>,
    pub events_of_kind: Map<String, Set<u64>>,
    /// Shards that are left of each volume.
    pub shards_left: Map<VolumeId, u32>,
    /// The disks with replicas of each volume, ordered, and how many each has.
    pub spread: Map<VolumeId, Vec<(Uuid, u32)>>,
}

impl Index {
    pub(super) fn pod(&mut self, key: &PodId, before: Option<&Pod>, now: Option<&Pod>) {
        if let Some(before) = before {
            self.pods_by_uid.remove_mut(&before.uid);
            set_in(&mut self.pods_by_node, &before.node, key, false);
        }
        if let Some(now) = now {
            self.pods_by_uid.insert_mut(now.uid, *key);
            set_in(&mut self.pods_by_node, &now.node, key, true);
        }
    }

    pub(super) fn disk(&mut self, key: &Uuid, before: Option<&Disk>, now: Option<&Disk>) {
        if let Some(before) = before {
            set_in(&mut self.disks_by_pod, &before.pod, key, false);
        }
        if let Some(now) = now {
            set_in(&mut self.disks_by_pod, &now.pod, key, true);
        }
    }

    pub(super) fn volume(&mut self, key: &VolumeId, before: Option<&Volume>, now: Option<&Volume>) {
        if let Some(before) = before {
            self.volumes_by_name.remove_mut(&before.name);
            self.volumes_by_uid.remove_mut(&before.uid);
            if let Some(kept) = before.kept {
                self.purges.remove_mut(&(kept.purge_ms, *key));
            }
        }
        if let Some(now) = now {
            self.volumes_by_name.insert_mut(now.name.clone(), *key);
            self.volumes_by_uid.insert_mut(now.uid, *key);
            if let Some(kept) = now.kept {
                self.purges.insert_mut((kept.purge_ms, *key));
            }
        }
        let grows = |now: &Volume| now.growing_to.is_some() && now.kept.is_none() && !now.deleting;
        set(&mut self.growing, key, now.is_some_and(grows));
        set(
            &mut self.creating,
            key,
            now.is_some_and(|now| now.creating && now.kept.is_none() && !now.deleting),
        );
        set(&mut self.deleting, key, now.is_some_and(|now| now.deleting));
        let changes = |now: &Volume| now.access.wanted > now.access.applied && !now.deleting;
        set(&mut self.access_changing, key, now.is_some_and(changes));
    }

    pub(super) fn shard(&mut self, key: &ShardId, before: Option<&Shard>, now: Option<&Shard>) {
        if let Some(before) = before {
            for (place, member) in before.members.iter().enumerate() {
                self.change_held(member.disk, |held| {
                    held.members.remove_mut(&member.member);
                    held.firsts -= u64::from(place == 0);
                    held.provisioned_bytes = held.provisioned_bytes.wrapping_sub(before.bytes);
                });
            }
        }
        if let Some(now) = now {
            for (place, member) in now.members.iter().enumerate() {
                self.change_held(member.disk, |held| {
                    held.members.insert_mut(member.member, *key);
                    held.firsts += u64::from(place == 0);
                    // Rows that were not checked yet may have any length.
                    held.provisioned_bytes = held.provisioned_bytes.wrapping_add(now.bytes);
                });
            }
        }
        for (shard, is_now) in [(before, false), (now, true)] {
            let Some(shard) = shard else { continue };
            for member in &shard.members {
                self.change_spread(shard.volume, member.disk, is_now);
            }
        }
        let Some(volume) = before.or(now).map(|shard| shard.volume) else { return };
        let left = self.shards_left.get(&volume).copied().unwrap_or(0);
        let left = left + u32::from(now.is_some()) - u32::from(before.is_some());
        match left {
            0 => drop(self.shards_left.remove_mut(&volume)),
            _ => self.shards_left.insert_mut(volume, left),
        }
    }

    /// A replica of the volume comes to the disk, or goes.
    fn change_spread(&mut self, volume: VolumeId, disk: Uuid, comes: bool) {
        if !self.spread.contains_key(&volume) {
            self.spread.insert_mut(volume, Vec::new());
        }
        let spread = self.spread.get_mut(&volume).expect("it was just put there");
        match (spread.binary_search_by_key(&disk, |it| it.0), comes) {
            (Ok(at), true) => spread[at].1 += 1,
            (Err(at), true) => spread.insert(at, (disk, 1)),
            (Ok(at), false) if spread[at].1 > 1 => spread[at].1 -= 1,
            (Ok(at), false) => drop(spread.remove(at)),
            (Err(_), false) => panic!("a replica that goes was counted"),
        }
        if spread.is_empty() {
            self.spread.remove_mut(&volume);
        }
    }

    fn change_held(&mut self, disk: Uuid, change: impl FnOnce(&mut Held)) {
        if !self.held.contains_key(&disk) {
            self.held.insert_mut(disk, Held::default());
        }
        let held = self.held.get_mut(&disk).expect("it was just put there");
        change(held);
        if held.members.is_empty() {
            assert_eq!(held.firsts, 0, "a disk without replicas has no first one");
            self.held.remove_mut(&disk);
        }
    }

    pub(super) fn attachment(
        &mut self,
        key: &AttachmentKey,
        before: Option<&Attachment>,
        now: Option<&Attachment>,
    ) {
        if let Some(before) = before {
            self.attachments_by_uid.remove_mut(&before.uid);
            set_in(&mut self.attachments_by_node, &before.node, key, false);
        }
        if let Some(now) = now {
            self.attachments_by_uid.insert_mut(now.uid, *key);
            set_in(&mut self.attachments_by_node, &now.node, key, true);
        }
    }

    pub(super) fn catalog_member(
        &mut self,
        key: &MemberId,
        before: Option<&CatalogMember>,
        now: Option<&CatalogMember>,
    ) {
        if let Some(before) = before {
            self.catalog_by_pod.remove_mut(&before.pod);
        }
        if let Some(now) = now {
            self.catalog_by_pod.insert_mut(now.pod, *key);
        }
    }

    pub(super) fn answered(
        &mut self,
        key: &u64,
        before: Option<&Answered>,
        now: Option<&Answered>,
    ) {
        if let Some(before) = before {
            self.requests.remove_mut(&before.id);
        }
        if let Some(now) = now {
            self.requests.insert_mut(now.id.clone(), *key);
        }
    }

    pub(super) fn event(&mut self, key: &u64, before: Option<&Event>, now: Option<&Event>) {
        for (event, is_in) in [(before, false), (now, true)] {
            if let Some(Event { kind, name, .. }) = event {
                set_in(&mut self.events_of, &(kind.clone(), name.clone()), key, is_in);
                set_in(&mut self.events_of_kind, kind, key, is_in);
            }
        }
    }
}

fn set<K: Ord + Clone>(of: &mut Set<K>, key: &K, is_in: bool) {
    match is_in {
        true => of.insert_mut(key.clone()),
        false => drop(of.remove_mut(key)),
    }
}

/// Puts a key into the set of a group, or removes it.
fn set_in<G: Ord + Clone, K: Ord + Clone>(
    groups: &mut Map<G, Set<K>>,
    group: &G,
    key: &K,
    is_in: bool,
) {
    let mut members = groups.get(group).cloned().unwrap_or_default();
    set(&mut members, key, is_in);
    match members.is_empty() {
        true => drop(groups.remove_mut(group)),
        false => groups.insert_mut(group.clone(), members),
    }
}
