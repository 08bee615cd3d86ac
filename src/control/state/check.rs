//! The invariants of the catalog's state.

use std::collections::BTreeSet;

use crate::control::state::rows::{Authority, Counters, ShardRun, Volume};
use crate::control::state::tables::Tables;
use crate::limits::{SHARDS_MAX, VOLUME_BYTES_MAX};
use crate::types::{AccessMode, MemberId, PodId, Uuid};

/// Ids and revisions beyond this would leave too few numbers.
const COUNT_MAX: u64 = 1 << 62;

/// A state that no sequence of commands makes: damaged, or made by other software.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the catalog contradicts itself: {0}")]
pub struct Contradiction(&'static str);

fn holds(holds: bool, what: &'static str) -> Result<(), Contradiction> {
    if holds { Ok(()) } else { Err(Contradiction(what)) }
}

/// Checks the invariants of a state from outside.
pub fn check(state: &Tables) -> Result<(), Contradiction> {
    let Counters { pod, volume, shard, member, request, event } = state.head.next;
    let counts = [state.head.revision, pod, volume, shard, member, request, event];
    holds(counts.iter().all(|count| *count < COUNT_MAX), "a number was used up")?;
    holds(!state.catalog.is_empty(), "the catalog has no member")?;
    let is_pod = |pod: &PodId| state.pods.contains_key(pod);
    let mut catalog = state.catalog.values();
    holds(catalog.all(|it| is_pod(&it.pod)), "the catalog is on a pod that is not there")?;
    let one_each = state.index.catalog_by_pod.size() == state.catalog.len();
    holds(one_each, "a pod has two members of the catalog")?;
    holds(state.disks.values().all(|disk| is_pod(&disk.pod)), "a disk's pod is not there")?;
    let has_node = |node: &str| state.nodes.contains_key(node);
    holds(state.pods.values().all(|pod| has_node(&pod.node)), "a pod's node is not there")?;
    holds(state.index.pods_by_uid.size() == state.pods.len(), "two pods have one uid")?;
    holds(state.pods.keys().all(|id| id.0 < pod), "a pod's id was never given")?;
    holds(state.volumes.keys().all(|id| id.0 < volume), "a volume's id was never given")?;
    let names = state.index.volumes_by_name.size();
    holds(names == state.volumes.len(), "two volumes have one name")?;
    let requests = state.index.requests.size();
    holds(requests == state.answered.len(), "two answers have one id")?;
    holds(state.answered.keys().all(|id| *id < request), "a request's number was never given")?;
    holds(state.events.keys().all(|id| *id < event), "an event's number was never given")?;
    let mut classes = state.classes.values();
    holds(classes.all(|class| class.generation < COUNT_MAX), "a generation was used up")?;
    check_authorities(state)?;
    check_volumes(state)?;
    check_attachments(state)?;
    check_shards(state, shard, member)
}

fn check_authorities(state: &Tables) -> Result<(), Contradiction> {
    let roots = &state.cluster.roots;
    let numbers: BTreeSet<u64> = roots.iter().map(|root| root.number).collect();
    holds(roots.len() <= 2 && numbers.len() == roots.len(), "too many authorities are trusted")?;
    holds(numbers.iter().all(|number| *number < COUNT_MAX), "an authority's number was used up")?;
    let is_trusted = |(number, it): (&u64, &Authority)| {
        roots.iter().any(|root| root.number == *number && root.certificate == it.certificate)
    };
    holds(state.authorities.iter().all(is_trusted), "an authority with a key is not trusted")
}

fn check_volumes(state: &Tables) -> Result<(), Contradiction> {
    let mut shards = 0;
    for volume in state.volumes.values() {
        check_shape(volume)?;
        check_phase(volume)?;
        let access = volume.access;
        let in_order = access.applied <= access.wanted && access.wanted.0 <= access.counter;
        holds(in_order && access.counter < COUNT_MAX, "a volume has an access set of the future")?;
        let left = state.shards_of(volume).count();
        holds(left > 0, "a volume has no shards")?;
        holds(volume.deleting || left as u64 == volume.shards(), "a shard of a volume is missing")?;
        shards += left;
    }
    holds(shards == state.shards.len(), "a shard belongs to no volume, or to two")
}

fn check_shape(volume: &Volume) -> Result<(), Contradiction> {
    let has_ids = |run: &ShardRun| run.first.0.checked_add(run.count.into()).is_some();
    holds(volume.runs.iter().all(|run| run.count > 0 && has_ids(run)), "a shard has no id")?;
    let shards = volume.shards();
    holds((1..=SHARDS_MAX).contains(&shards), "a volume has no shards, or too many")?;
    holds(volume.stripe_bytes > 0, "a volume has shards without length")?;
    let wanted_bytes = volume.wanted_bytes();
    let sizes = [volume.size_bytes, wanted_bytes];
    let are_sizes = sizes.iter().all(|size| (1..=VOLUME_BYTES_MAX).contains(size));
    holds(are_sizes, "a volume has an impossible size")?;
    holds(wanted_bytes.div_ceil(volume.stripe_bytes) == shards, "a volume has no place for bytes")?;
    let waits = volume.growing_to.is_none_or(|wanted_bytes| {
        wanted_bytes > volume.size_bytes && volume.shards_in_use() < shards
    });
    holds(waits, "a volume waits for a size that it has")
}

fn check_phase(volume: &Volume) -> Result<(), Contradiction> {
    let Volume { access, kept, restoring, deleting, .. } = volume;
    let phases = [kept.is_some(), restoring.is_some(), *deleting];
    let one = phases.iter().filter(|is| **is).count() <= 1;
    holds(one, "a volume is kept, comes back and is destroyed at once")?;
    holds(kept.is_none_or(|kept| kept.deleted_ms <= kept.purge_ms), "a volume is kept backwards")?;
    let comes = restoring.is_none_or(|at| at > access.applied && at <= access.wanted);
    holds(comes, "a volume comes back with a generation that is not on its way")
}

fn check_attachments(state: &Tables) -> Result<(), Contradiction> {
    let uids = state.index.attachments_by_uid.size();
    holds(uids == state.attachments.len(), "two attachments have one uid")?;
    for ((volume, id), attachment) in state.attachments.iter() {
        let volume = state.volumes.get(volume);
        let access = volume.ok_or(Contradiction("an attachment's volume is not there"))?.access;
        holds((1..=access.counter).contains(&id.0), "an attachment's id was never given")?;
        let end = attachment.ends_with;
        let is_known = end.is_none_or(|end| end.0 > id.0 && end <= access.wanted);
        holds(is_known, "an attachment ends with a generation that was never wanted")?;
        let admitted = id.0 <= access.applied.0 && end.is_none();
        holds(!attachment.active || admitted, "an attachment is active before all shards know it")?;
    }
    state.volumes.iter().try_for_each(|(id, volume)| {
        let stay = || state.attachments_of(*id).filter(|(_, it)| it.ends_with.is_none());
        let writers = stay().filter(|(_, it)| it.mode == AccessMode::ReadWrite).count();
        let alone = writers == 0 || stay().count() == 1;
        holds(alone, "a volume has a writer and other attachments")?;
        holds(!volume.access.open || stay().count() == 0, "an open volume has an attachment")?;
        holds(volume.kept.is_none() || stay().count() == 0, "a deleted volume has an attachment")
    })
}

fn check_shards(state: &Tables, next: u64, next_member: u64) -> Result<(), Contradiction> {
    let mut members: BTreeSet<MemberId> = state.catalog.keys().copied().collect();
    for (id, shard) in state.shards.iter() {
        let volume = state.volumes.get(&shard.volume);
        let volume = volume.ok_or(Contradiction("a shard's volume is not there"))?;
        holds(volume.shard_at(shard.place) == Some(*id), "a shard is at the wrong place")?;
        holds(id.0 < next, "a shard's id was never given")?;
        let bytes = volume.bytes_at(shard.place);
        holds(bytes == shard.bytes, "a shard promises something else than its volume says")?;
        let born = shard.birth.generation.0 <= volume.access.counter;
        holds(born, "a shard was born with an access set of the future")?;
        let count = shard.members.len();
        let all = volume.replicas as usize;
        let fits = if volume.deleting { (1..=all).contains(&count) } else { count == all };
        holds(fits, "a shard has too many or few replicas")?;
        let disks: BTreeSet<Uuid> = shard.members.iter().map(|m| m.disk).collect();
        holds(disks.len() == count, "two replicas share a disk")?;
        holds(disks.iter().all(|disk| state.disks.contains_key(disk)), "a disk is missing")?;
        for member in &shard.members {
            holds(members.insert(member.member), "a member is there twice")?;
        }
    }
    holds(members.iter().all(|id| id.0 < next_member), "a member's id was never given")
}
