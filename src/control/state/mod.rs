//! The catalog's state, on which the members of its Raft group agree. Pure and deterministic: the
//! same commands in the same order give the same state on every member. So nothing here may depend
//! on a clock, on reports, or on the version of the software; a command carries the time.
//!
//! The state is rows, one for each object ([`rows`]), in tables that share memory with their copies
//! ([`table`]). A command changes the rows that it is about, and these are what is written down.
//!
//! Invariants ([`CatalogState::check`]):
//! - ids only grow and are never given twice (rule `ids-never-reused`);
//! - no shard has two replicas on one disk, or had two on one pod when it was created;
//! - a deleted volume keeps its name and its shards until each of its members was confirmed as
//!   destroyed.

mod attachments;
pub mod audience;
mod authority;
pub mod check;
mod claims;
mod classes;
mod credentials;
mod decided;
pub mod error;
pub mod events;
pub mod growth;
pub mod happened;
pub mod index;
mod pods;
pub mod rebirth;
pub mod recent;
mod retention;
pub mod rows;
pub mod table;
pub mod tables;
pub mod upgrade;
pub mod view;
mod volumes;

use std::ops::Deref;

use bytes::Bytes;

use crate::control::command::{Addresses, CatalogCommand, NewClass, NewNode, NewVolume, Outcome};
use crate::control::state::check::{Contradiction, check};
use crate::control::state::decided::record_decisions;
pub use crate::control::state::error::CatalogError;
use crate::control::state::error::REQUEST_ID_BYTES_MAX;
use crate::control::state::recent::{Changed, Recent};
use crate::control::state::rows::{
    Answered, CatalogMember, Cluster, FileSystem, RowChange, RowError, RowKey,
};
use crate::control::state::tables::{Tables, take};
use crate::level::NEWEST;
use crate::planted::planted;
use crate::types::{MemberId, PodId, Uuid};

/// Named requests whose answers are kept at least, and the time for which they are kept (rule
/// `request-carried-out-once`).
const REQUESTS_KEPT: usize = 1024;
const REQUESTS_KEPT_MS: u64 = 10 * 60 * 1000;
/// Named requests whose answers are kept at most.
const REQUESTS_MAX: usize = 1 << 18;
/// Answers that one command forgets at most.
const FORGOTTEN_AT_ONCE: usize = 4;

/// See the module. A copy is cheap.
#[derive(Clone, Debug, Default)]
pub struct CatalogState {
    tables: Tables,
    /// Not a part of what members agree on: one that has restarted remembers less.
    recent: Recent,
}

impl PartialEq for CatalogState {
    fn eq(&self, other: &CatalogState) -> bool {
        self.tables == other.tables
    }
}

/// What one command did.
#[derive(Clone, Debug, PartialEq)]
pub struct Applied {
    pub outcome: Result<Outcome, CatalogError>,
    /// The rows that differ now; none after an error.
    pub changes: Vec<RowChange>,
}

/// Why rows make no state.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error(transparent)]
    Row(#[from] RowError),
    #[error(transparent)]
    Contradiction(#[from] Contradiction),
}

impl Deref for CatalogState {
    type Target = Tables;

    fn deref(&self) -> &Tables {
        &self.tables
    }
}

impl CatalogState {
    /// A new cluster of one pod, which holds the only member of the catalog.
    pub fn new(cluster: NewCluster) -> CatalogState {
        let NewCluster { uid, history, pod: first_pod, now_ms } = cluster;
        let mut tables = Tables::default();
        let (pod, volume, shard, member, request, event) = (1, 1, 1, 1, 1, 1);
        tables.head.next = rows::Counters { pod, volume, shard, member, request, event };
        let (ancestors, restores, created_ms) = (Vec::new(), 0, now_ms);
        let level = NEWEST;
        tables.put_cluster(Cluster {
            uid,
            history,
            ancestors,
            restores,
            level,
            roots: Vec::new(),
            others_trusted: false,
            retired: Vec::new(),
            created_ms,
        });
        for (name, replicas, failure_domain) in FIRST_CLASSES {
            let (failure_domain, overcommit_percent) = (failure_domain.to_owned(), 200);
            let class =
                NewClass { replicas, failure_domain, overcommit_percent, ..NewClass::default() };
            classes::create(&mut tables, now_ms, name.to_owned(), class)
                .expect("the first classes are good ones");
        }
        let (pod_uid, addresses, node) = first_pod;
        let pod = pods::join(&mut tables, now_ms, pod_uid, addresses, node, NEWEST)
            .expect("the first pod of a cluster has a good name");
        let Outcome::Pod(pod) = pod else { unreachable!("joining makes a pod") };
        let member = MemberId(take(&mut tables.head.next.member));
        tables.put(member, CatalogMember { pod });
        tables.seal(now_ms);
        CatalogState::of(tables)
    }

    fn of(tables: Tables) -> CatalogState {
        let recent = Recent::after(tables.head.revision);
        CatalogState { tables, recent }
    }

    /// The state that these rows are: what [`Tables::rows`] gave, in any order.
    pub fn from_rows(
        rows: impl IntoIterator<Item = (RowKey, Bytes)>,
    ) -> Result<CatalogState, StateError> {
        let mut tables = Tables::default();
        for (key, row) in rows {
            tables.load(&key, &row)?;
        }
        let state = CatalogState::of(tables);
        check(&state.tables)?;
        Ok(state)
    }

    pub fn revision(&self) -> u64 {
        self.head.revision
    }

    /// Carries out a command that was proposed at `now_ms` (since 1970).
    pub fn apply(&mut self, now_ms: u64, command: CatalogCommand) -> Applied {
        let before = self.tables.clone();
        let tables = &mut self.tables;
        // Clocks differ; time in the state does not go back.
        let now_ms = now_ms.max(tables.head.now_ms);
        let outcome = carry_out(tables, now_ms, command);
        assert!(outcome.is_ok() || !tables.has_changed(), "an error changes nothing");
        if tables.has_changed() {
            record_decisions(&before, tables, now_ms);
        }
        let changes = self.tables.seal(now_ms);
        if !changes.is_empty() {
            let changed = audience::changed(&before, &self.tables, &changes);
            self.recent.push(self.tables.head.revision, changed);
        }
        Applied { outcome, changes }
    }

    /// The keys of the rows that have changed after `revision`, perhaps repeatedly; `None` when
    /// that is not remembered any more.
    pub fn changed_since(&self, revision: u64) -> Option<impl Iterator<Item = &RowKey>> {
        let changed = self.recent.since(revision)?;
        Some(changed.flat_map(Changed::keys))
    }

    /// What each command after `revision` has changed, and for whom; `None` when that is not
    /// remembered any more.
    pub fn commands_since(&self, revision: u64) -> Option<impl Iterator<Item = &Changed>> {
        self.recent.since(revision)
    }

    /// The outcome of a named request, if it was carried out before.
    pub fn answered(&self, id: &str) -> Option<Outcome> {
        answered(&self.tables, id).map(|answered| answered.outcome)
    }

    /// Panics when an invariant does not hold.
    pub fn check_invariants(&self) {
        if let Err(broken) = check(&self.tables) {
            panic!("{broken}");
        }
    }
}

/// From what a cluster is made.
#[derive(Clone, Debug)]
pub struct NewCluster {
    pub uid: Uuid,
    pub history: Uuid,
    /// The first pod: its uid, its addresses and its node.
    pub pod: (Uuid, Addresses, NewNode),
    pub now_ms: u64,
}

/// The classes of a new cluster: name, replicas, failure domain.
const FIRST_CLASSES: [(&str, u32, &str); 3] =
    [("replicated", 3, "node"), ("replicated-zones", 3, "zone"), ("local", 1, "node")];

fn carry_out(
    tables: &mut Tables,
    now_ms: u64,
    command: CatalogCommand,
) -> Result<Outcome, CatalogError> {
    match command {
        CatalogCommand::Join { uid, addresses, node, newest } => {
            upgrade::check_newest(tables, newest)?;
            pods::join(tables, now_ms, uid, addresses, node, newest)
        }
        CatalogCommand::Register { pod, uid, addresses, node, newest, disks } => {
            upgrade::check_newest(tables, newest)?;
            pods::register(tables, now_ms, (pod, uid), addresses, node, newest, disks)
        }
        CatalogCommand::RaiseLevel { level } => upgrade::raise(tables, level),
        CatalogCommand::CreateVolume { request_id, volume, placement } => {
            let NewVolume { name, class, labels, size_bytes, replicas, open, .. } = &volume;
            let content = content(&("create", name, class, labels, size_bytes, replicas, open));
            once(tables, now_ms, request_id, content, |tables| {
                volumes::create(tables, now_ms, volume, &placement)
            })
        }
        CatalogCommand::DeleteVolume { request_id, name, volume, how } => {
            let content = content(&("delete", &name, how.retention_ms, how.purge));
            once(tables, now_ms, request_id, content, |tables| {
                retention::delete(tables, now_ms, &name, volume, how)
            })
        }
        CatalogCommand::UndeleteVolume { request_id, name, volume } => {
            let content = content(&("undelete", &name));
            once(tables, now_ms, request_id, content, |tables| {
                retention::undelete(tables, &name, volume)
            })
        }
        CatalogCommand::PurgeVolume { volume, purge_ms } => {
            Ok(retention::purge(tables, now_ms, volume, purge_ms))
        }
        CatalogCommand::Publish { request_id, volume, node, mode, io_timeout_ms, uid } => {
            // One that comes late must not give the volume to a node that has given it back.
            let content = content(&("publish", volume, &node, mode, io_timeout_ms));
            once(tables, now_ms, request_id, content, |tables| {
                let wish = attachments::Wish { node, mode, io_timeout_ms };
                attachments::publish(tables, now_ms, volume, wish, uid)
            })
        }
        CatalogCommand::Unpublish { request_id, volume, node } => {
            // One that comes late must not take the volume from a node that has it anew.
            let content = content(&("unpublish", volume, &node));
            once(tables, now_ms, request_id, content, |tables| {
                Ok(attachments::unpublish(tables, volume, &node))
            })
        }
        CatalogCommand::Claim { volume, node, boot_id } => {
            claims::claim(tables, volume, &node, boot_id)
        }
        CatalogCommand::RecordFileSystem { volume, node, attachment, kind, made } => {
            let file_system = FileSystem { kind, made };
            claims::record_file_system(tables, volume, (&node, attachment), file_system)
        }
        CatalogCommand::ReportNode { node, has_no_device } => {
            claims::report(tables, now_ms, node, has_no_device)
        }
        CatalogCommand::SetOpen { request_id, volume, open } => {
            let content = content(&("set open", volume, open));
            once(tables, now_ms, request_id, content, |tables| {
                attachments::set_open(tables, volume, open)
            })
        }
        CatalogCommand::DeclareLost { node, boot_id } => {
            attachments::declare_lost(tables, &node, &boot_id)
        }
        CatalogCommand::ClearLost { node } => attachments::clear_lost(tables, &node),
        CatalogCommand::AccessIsSet { volume, generation, shards } => {
            Ok(attachments::confirm(tables, volume, generation, shards))
        }
        CatalogCommand::Grown { volume, size_bytes, generation } => {
            Ok(growth::confirm(tables, volume, size_bytes, generation))
        }
        CatalogCommand::AccessOutdone { volume, asked, seen } => {
            Ok(attachments::outdone(tables, volume, asked, seen))
        }
        CatalogCommand::UpdateVolume { request_id, volume, update, placement } => {
            let content = content(&("update", volume, &update));
            once(tables, now_ms, request_id, content, |tables| {
                volumes::update(tables, volume, update, &placement)
            })
        }
        CatalogCommand::CreateClass { request_id, name, class } => {
            let content = content(&("create class", &name, &class));
            once(tables, now_ms, request_id, content, |tables| {
                classes::create(tables, now_ms, name, class)
            })
        }
        CatalogCommand::UpdateClass { request_id, name, class, based_on } => {
            let content = content(&("update class", &name, &class, based_on));
            once(tables, now_ms, request_id, content, |tables| {
                classes::update(tables, name, class, based_on)
            })
        }
        CatalogCommand::DeleteClass { request_id, name } => {
            let content = content(&("delete class", &name));
            once(tables, now_ms, request_id, content, |tables| classes::delete(tables, &name))
        }
        CatalogCommand::SetAuthority { authority } => authority::set(tables, authority),
        CatalogCommand::ReplaceAuthority { authority } => authority::replace(tables, authority),
        CatalogCommand::MoveAuthority { step, based_on } => authority::step(tables, step, based_on),
        CatalogCommand::PutToken { request_id, id, token } => {
            let content = content(&("token", &token.kind));
            once(tables, now_ms, request_id, content, |tables| {
                credentials::put_token(tables, now_ms, id, token)
            })
        }
        CatalogCommand::RemoveToken { request_id, id } => {
            let content = content(&("revoke", &id));
            once(tables, now_ms, request_id, content, |tables| {
                credentials::remove_token(tables, id)
            })
        }
        CatalogCommand::PutCertificate { serial, certificate } => {
            credentials::put_certificate(tables, now_ms, serial, certificate)
        }
        CatalogCommand::RevokeCertificate { serial } => credentials::revoke(tables, now_ms, serial),
        CatalogCommand::Created { volumes } => Ok(volumes::confirm_created(tables, &volumes)),
        CatalogCommand::Destroyed { disk, members } => {
            Ok(volumes::confirm_destroyed(tables, disk, &members))
        }
        CatalogCommand::AddCatalogMembers { pods } => add_catalog_members(tables, &pods),
        CatalogCommand::RemoveCatalogMember { member } => {
            if tables.catalog.len() > 1 {
                tables.remove::<CatalogMember>(&member);
            }
            Ok(Outcome::Done)
        }
        CatalogCommand::RecordEvents { seen } => {
            events::see(tables, now_ms, seen);
            Ok(Outcome::Done)
        }
    }
}

fn answered<'a>(tables: &'a Tables, id: &str) -> Option<&'a Answered> {
    if id.is_empty() || planted!(CatalogRequestTwice) {
        return None;
    }
    tables.index.requests.get(id).map(|number| &tables.answered[number])
}

/// Carries out a named request once. A repeated one gets the answer of the first.
fn once(
    tables: &mut Tables,
    now_ms: u64,
    id: String,
    content: u64,
    carry_out: impl FnOnce(&mut Tables) -> Result<Outcome, CatalogError>,
) -> Result<Outcome, CatalogError> {
    if id.len() > REQUEST_ID_BYTES_MAX {
        return Err(CatalogError::BadRequestId);
    }
    match answered(tables, &id) {
        Some(answered) if answered.content == content => return Ok(answered.outcome),
        Some(_) => return Err(CatalogError::RequestReused { id }),
        None => {}
    }
    let outcome = carry_out(tables)?;
    if !id.is_empty() {
        forget_answers(tables, now_ms);
        let number = take(&mut tables.head.next.request);
        tables.put(number, Answered { id, content, outcome, at_ms: now_ms });
    }
    Ok(outcome)
}

/// Forgets the oldest answers, a few at a time.
fn forget_answers(tables: &mut Tables, now_ms: u64) {
    for _ in 0..FORGOTTEN_AT_ONCE {
        let oldest = tables.answered.iter().next().map(|(number, it)| (*number, it.at_ms));
        let Some((number, at_ms)) = oldest else { return };
        let kept = tables.answered.len();
        let is_old = kept >= REQUESTS_KEPT && now_ms.saturating_sub(at_ms) >= REQUESTS_KEPT_MS;
        if !is_old && kept < REQUESTS_MAX {
            return;
        }
        tables.remove::<Answered>(&number);
    }
}

fn add_catalog_members(tables: &mut Tables, pods: &[PodId]) -> Result<Outcome, CatalogError> {
    if let Some(pod) = pods.iter().find(|pod| !tables.pods.contains_key(pod)) {
        return Err(CatalogError::NoSuchPod { pod: *pod });
    }
    for pod in pods {
        if !tables.index.catalog_by_pod.contains_key(pod) {
            let member = match planted!(CatalogMemberReused) {
                true => tables.head.next.member,
                false => take(&mut tables.head.next.member),
            };
            tables.put(MemberId(member), CatalogMember { pod: *pod });
        }
    }
    Ok(Outcome::Done)
}

/// A number for the content of a request, the same on every member.
fn content(of: &impl serde::Serialize) -> u64 {
    let bytes = rows::encode_row(0, of);
    rows::hash_row(&RowKey::Head, &bytes)
}

#[cfg(test)]
#[path = "state_test.rs"]
mod tests;
