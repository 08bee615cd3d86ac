//! Opens a lane, and replays the logs of its members into the store.

use crate::io::buffer::Pool;
use crate::log::HardState;
use crate::replica::apply::Applier;
use crate::replica::entry::raft_entry;
use crate::replica::messages::Start;
use crate::replica::meta::Meta;
use crate::replica::terms::Terms;
use crate::store::index::IndexStore;
use crate::store::lane::{self, Lane, LaneConfig, RecoveredEntry, RecoveredMember};
use crate::store::messages::MemberRecord;
use crate::worker::error::OpenLaneError;

/// Opens a lane and replays its log into the store. Returns how every member starts.
pub fn open_lane(
    config: LaneConfig,
    pool: &Pool,
    files: &mut dyn lane::LaneFiles,
    index: &mut dyn IndexStore,
) -> Result<(Lane, Vec<(MemberRecord, Start)>), OpenLaneError> {
    let (mut lane, recovered) = Lane::open(config, pool.clone(), files, index)?;
    let members: Result<_, OpenLaneError> =
        recovered.into_iter().map(|member| replay(&mut lane, member)).collect();
    Ok((lane, members?))
}

/// Applies the log of a member up to its commit point. Returns how it starts.
fn replay(
    lane: &mut Lane,
    recovered: RecoveredMember,
) -> Result<(MemberRecord, Start), OpenLaneError> {
    let RecoveredMember { record, hard, entries, faulted } = recovered;
    let commit = hard.commit.max(record.flushed_index);
    let mut start = Start {
        hard: HardState { commit, ..hard },
        applied_index: record.flushed_index,
        compacted_index: record.flushed_index,
        compacted_term: record.flushed_term,
        entries: Vec::new(),
        on_disk: None,
        meta: record.meta.clone(),
        resyncing: record.resyncing,
        faulted,
    };
    if faulted {
        return Ok((record, start));
    }
    let mut applier = Applier::new(Meta::decode(&record.meta)?);
    let mut terms = Terms::new(record.flushed_index, record.flushed_term);
    for RecoveredEntry { entry, loaded, .. } in entries {
        let (index, term) = (entry.index, entry.term);
        let known = raft_entry(&entry).ok_or(OpenLaneError::EntryType { index })?;
        if index <= commit {
            lane.apply(record.member, applier.apply(&known)?);
            start.applied_index = index;
        }
        if loaded {
            start.entries.push(entry);
        } else {
            assert!(index <= commit, "an entry that is not applied is always loaded");
            start.entries.drain(..).for_each(|entry| terms.push(entry.term));
            terms.push(term);
            (start.compacted_index, start.compacted_term) = (index, term);
        }
    }
    start.on_disk = Some(terms);
    start.meta = applier.meta.encode();
    Ok((record, start))
}
