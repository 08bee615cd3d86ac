//! When new shards can be used. Pure: from the record of the volume and the reports of the pods.
//!
//! A volume is *creating* until each of its shards has a leader and the replicas that can be there
//! are there. The catalog then remembers it. A shard that is without a leader later is *paused*.

use crate::control::reports::Pods;
use crate::control::state::CatalogState;
use crate::control::state::rows::{Shard, Volume};
use crate::planted::planted;
use crate::types::Generation;
use crate::view::MemberState;

/// True when all shards have leaders, and their replicas on working disks exist.
pub fn has_come(state: &CatalogState, pods: Pods<'_>, volume: &Volume) -> bool {
    let mut shards = state.shards_of(volume);
    shards.all(|(_, shard)| is_led(pods, shard, Generation(0)) && missing(pods, shard) == 0)
}

/// True when all shards that a volume is growing by are there, and each has a leader that knows the
/// newest generation of the access set (rule `size-after-new-shards`).
pub fn has_grown(state: &CatalogState, pods: Pods<'_>, volume: &Volume) -> bool {
    let newest = volume.access.wanted;
    let mut new = state.shards_of(volume).skip(volume.shards_in_use() as usize);
    let confirms = |shard: &Shard| is_led(pods, shard, newest) && missing(pods, shard) == 0;
    planted!(GrownEarly) || new.all(|(_, shard)| confirms(shard))
}

/// True when a leader of the shard has this generation, or a newer one. Generations only grow, so
/// an old report is as good as a new one.
fn is_led(pods: Pods<'_>, shard: &Shard, generation: Generation) -> bool {
    let mut reports = shard.members.iter().filter_map(|it| pods.member(it.member, it.disk));
    reports.any(|report| report.state == MemberState::Leader && report.access >= generation)
}

/// Replicas that do not exist, although their disks work.
pub fn missing(pods: Pods<'_>, shard: &Shard) -> usize {
    let works = |disk| pods.disk(disk).is_some_and(|disk| disk.failed.is_none());
    let members = shard.members.iter().filter(|it| works(it.disk));
    members.filter(|it| pods.member(it.member, it.disk).is_none()).count()
}
