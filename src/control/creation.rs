//! When a new volume can be used. Pure: from the record of the volume and the reports of the pods.
//!
//! A volume is *creating* until each of its shards has a leader and the replicas that can be there
//! are there. The catalog then remembers it. A shard that is without a leader later is *paused*.

use crate::control::reports::Pods;
use crate::control::state::CatalogState;
use crate::control::state::rows::{Shard, Volume};
use crate::view::MemberState;

/// True when all shards have leaders, and their replicas on working disks exist.
pub fn has_come(state: &CatalogState, pods: Pods<'_>, volume: &Volume) -> bool {
    let mut shards = state.shards_of(volume);
    shards.all(|(_, shard)| has_leader(pods, shard) && missing(pods, shard) == 0)
}

fn has_leader(pods: Pods<'_>, shard: &Shard) -> bool {
    let mut reports = shard.members.iter().filter_map(|it| pods.member(it.member, it.disk));
    reports.any(|report| report.state == MemberState::Leader)
}

/// Replicas that do not exist, although their disks work.
pub fn missing(pods: Pods<'_>, shard: &Shard) -> usize {
    let works = |disk| pods.disk(disk).is_some_and(|disk| disk.failed.is_none());
    let members = shard.members.iter().filter(|it| works(it.disk));
    members.filter(|it| pods.member(it.member, it.disk).is_none()).count()
}
