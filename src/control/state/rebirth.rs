//! The state of a catalog that was restored or recovered, made from rows that several sources had
//! ([`crate::control::recovery::merge`]).
//!
//! Nobody knows all the numbers that the catalog gave before it was lost. So every history has
//! numbers of its own: after `n` restores, revisions and ids begin at `n` times
//! [`NUMBERS_PER_HISTORY`], those of pods at `n` times [`PODS_PER_HISTORY`] (rule
//! `ids-never-reused`). Revisions of a history and of its ancestors can therefore be compared.

use bytes::Bytes;

use crate::control::state::authority::keep_trusted;
use crate::control::state::check::check;
use crate::control::state::events::record;
use crate::control::state::happened::Happened;
use crate::control::state::rows::{
    CatalogMember, Cluster, Counters, Event, Head, Kept, RowKey, Volume, VolumeAccess,
};
use crate::control::state::tables::{Tables, take};
use crate::control::state::{CatalogState, StateError};
use crate::planted::planted;
use crate::types::{Generation, MemberId, PodId, Uuid, VolumeId};

/// Revisions, and ids of each kind, in one history.
pub const NUMBERS_PER_HISTORY: u64 = 1 << 40;
/// Pods that may join in one history.
pub const PODS_PER_HISTORY: u64 = 1 << 16;
/// Restores of a cluster. Beyond them, numbers would not fit into 62 bits.
pub const RESTORES_MAX: u64 = 1 << 20;

/// How a state is born again.
#[derive(Clone, Debug)]
pub struct Rebirth {
    pub history: Uuid,
    /// The histories that the new one descends from, the oldest first.
    pub ancestors: Vec<Uuid>,
    /// One more than in any of the sources.
    pub restores: u64,
    /// The pod that has the only member of the catalog.
    pub pod: PodId,
    /// Not before any time in the sources.
    pub now_ms: u64,
}

impl CatalogState {
    /// The state of a new history. `rows` are of all kinds but heads and members of the catalog.
    pub fn reborn(
        rows: impl IntoIterator<Item = (RowKey, Bytes)>,
        rebirth: Rebirth,
    ) -> Result<CatalogState, StateError> {
        let Rebirth { history, ancestors, restores, pod, now_ms } = rebirth;
        assert!((1..=RESTORES_MAX).contains(&restores), "it is a restore");
        let mut tables = Tables::default();
        for (key, row) in rows {
            assert!(!matches!(key, RowKey::Head | RowKey::CatalogMember(_)), "these are made anew");
            tables.load(&key, &row)?;
        }
        let first = match planted!(NumbersGoOn) {
            true => first_free(&tables),
            false => first_numbers(restores),
        };
        tables.head = Head { revision: restores * NUMBERS_PER_HISTORY, next: first, now_ms };
        let others_trusted = !tables.cluster.roots.is_empty();
        let cluster =
            Cluster { history, ancestors, restores, others_trusted, ..tables.cluster.clone() };
        tables.put_cluster(cluster);
        keep_trusted(&mut tables);
        let member = MemberId(take(&mut tables.head.next.member));
        tables.put(member, CatalogMember { pod });
        ask_shards(&mut tables, restores * NUMBERS_PER_HISTORY, now_ms);
        record(&mut tables, now_ms, restored(history));
        tables.seal(now_ms);
        let state = CatalogState::of(tables);
        check(&state)?;
        Ok(state)
    }
}

fn restored(history: Uuid) -> Event {
    let happened = Happened::CatalogRestored;
    Event {
        kind: happened.kind().to_owned(),
        reason: happened.word().to_owned(),
        message: format!("history {history}"),
        warns: happened.warns(),
        ..Event::default()
    }
}

/// The first ids of a history.
fn first_numbers(restores: u64) -> Counters {
    let first = restores * NUMBERS_PER_HISTORY + 1;
    let pod = restores * PODS_PER_HISTORY + 1;
    Counters { pod, volume: first, shard: first, member: first, request: first, event: first }
}

/// The ids after those that are there: another catalog may have given them since.
fn first_free(tables: &Tables) -> Counters {
    let members = tables.shards.values().flat_map(|shard| &shard.members);
    Counters {
        pod: tables.pods.keys().map(|id| id.0 + 1).max().unwrap_or(1),
        volume: tables.volumes.keys().map(|id| id.0 + 1).max().unwrap_or(1),
        shard: tables.shards.keys().map(|id| id.0 + 1).max().unwrap_or(1),
        member: members.map(|it| it.member.0 + 1).max().unwrap_or(1),
        request: tables.answered.keys().map(|id| id + 1).max().unwrap_or(1),
        event: tables.events.keys().map(|id| id + 1).max().unwrap_or(1),
    }
}

/// Attachments and access sets of a volume get numbers above those that any shard may have. Every
/// shard is asked for a new access set: what the sources believe may have changed since, and shards
/// that know better refuse it ([`crate::control::state::attachments`]). A deleted volume that is
/// kept gets its whole time again, so that somebody can look first.
fn ask_shards(tables: &mut Tables, first: u64, now_ms: u64) {
    let ids: Vec<VolumeId> = tables.volumes.keys().copied().collect();
    for id in ids {
        let volume = tables.volumes[&id].clone();
        if volume.deleting {
            continue;
        }
        let counter = volume.access.counter.max(first).saturating_add(1);
        let access = VolumeAccess { counter, wanted: Generation(counter), ..volume.access };
        let kept = volume.kept.map(|kept| {
            let time_ms = kept.purge_ms.saturating_sub(kept.deleted_ms);
            Kept { purge_ms: kept.purge_ms.max(now_ms.saturating_add(time_ms)), ..kept }
        });
        // One that was being made may have been used since.
        let file_system = volume.file_system.filter(|it| it.made || planted!(BegunIsTrusted));
        tables.put(id, Volume { access, kept, file_system, ..volume });
    }
}
