//! Creates, starts and removes this pod's member of the catalog, as the catalog demands.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

use crate::control::catalog::Catalog;
use crate::control::command::{Addresses, NewNode};
use crate::control::identity::{Identity, IdentityError, PodDirectory, random_uuid};
use crate::control::node::Node;
use crate::control::outbound::Queues;
use crate::control::recovery::plan::{self, Plan, PlanError};
use crate::control::state::rebirth::NUMBERS_PER_HISTORY;
use crate::control::state::{CatalogState, NewCluster};
use crate::control::storage::{MemberRow, Recovered, Snapshot, Storage, StorageError};
use crate::io::clock;
use crate::replica::meta::{Meta, MetaError};
use crate::security::files::{FilesError, make_private_directory};
use crate::types::{MemberId, PodId, Uuid, mix64};

#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    #[error("could not open the catalog's database in {path}")]
    Storage {
        path: PathBuf,
        #[source]
        source: StorageError,
    },
    #[error(transparent)]
    Directory(#[from] FilesError),
    #[error("could not read or write the identity of this pod")]
    Identity(#[from] IdentityError),
    #[error("the configuration of the catalog's group cannot be read")]
    Meta(#[from] MetaError),
    #[error("could not remove {path}")]
    Remove {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(
        "the log of member {member} of the catalog is missing from {path}, and with it its \
         promises to other members; restore the directory from this machine's disk"
    )]
    Lost { member: MemberId, path: PathBuf },
    #[error("could not read random bytes")]
    Random(#[source] std::io::Error),
    #[error("{path} holds the catalog of another pod; move it away, or restore pod.json")]
    Foreign { path: PathBuf },
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(
        "a recovery of the catalog was begun here; start the pod again, or abandon the recovery \
         with `holdfast catalog abandon`"
    )]
    Recovering,
    #[error("opening the catalog was interrupted")]
    Interrupted,
}

/// Where a pod's member has its log.
pub fn database(data: &Path) -> PathBuf {
    data.join("catalog")
}

/// New name of a database that is being removed.
fn removed(data: &Path) -> PathBuf {
    data.join("catalog.removed")
}

fn open(path: &Path) -> Result<(Storage, Option<Recovered>), MembershipError> {
    let fail = |source| MembershipError::Storage { path: path.to_owned(), source };
    // The authority's key is in it.
    make_private_directory(path)?;
    let mut storage = Storage::open(path).map_err(fail)?;
    let recovered = storage.recover().map_err(fail)?;
    Ok((storage, recovered))
}

/// Makes a new cluster with this pod as its first, and as the only member of the catalog. Can be
/// called again after an interrupted attempt. `cluster`: its identity, if it was chosen already.
pub fn initialise(
    directory: &mut PodDirectory,
    addresses: Addresses,
    node: NewNode,
    cluster: Option<Uuid>,
) -> Result<Identity, MembershipError> {
    let path = database(directory.path());
    let (storage, recovered) = open(&path)?;
    let state = match recovered {
        Some(recovered) => recovered
            .snapshot
            .state
            .filter(|state| state.index.pods_by_uid.contains_key(&directory.file().uid)),
        None => {
            let uid = match cluster {
                Some(cluster) => cluster,
                None => random_uuid().map_err(MembershipError::Random)?,
            };
            let state = CatalogState::new(NewCluster {
                uid,
                history: random_uuid().map_err(MembershipError::Random)?,
                pod: (directory.file().uid, addresses, node),
                now_ms: clock::wall_ms(),
            });
            let (row, snapshot) = first(MemberId(1), state.clone());
            storage
                .create(row, &snapshot)
                .map_err(|source| MembershipError::Storage { path: path.clone(), source })?;
            Some(state)
        }
    };
    let state = state.ok_or(MembershipError::Foreign { path })?;
    let identity = Identity { cluster: state.cluster.uid, pod: PodId(1) };
    directory.set_catalog_member(Some(MemberId(1)))?;
    directory.set_identity(identity)?;
    Ok(identity)
}

/// Starts this pod's member, if it has one.
pub async fn resume(node: &Arc<Node>) -> Result<(), MembershipError> {
    blocking(node, resume_now).await
}

/// Starts a member again that has stopped by itself.
pub async fn restart(node: &Arc<Node>) -> Result<(), MembershipError> {
    blocking(node, |node| {
        // Until the new one is there, its place is taken: nobody makes another member.
        if let Some(stopped) = node.catalog() {
            stopped.stop();
        }
        node.catalog_lost.send_replace(None);
        resume_now(node)
    })
    .await
}

fn resume_now(node: &Arc<Node>) -> Result<(), MembershipError> {
    let mut directory = node.directory.lock().unwrap_or_else(PoisonError::into_inner);
    let path = database(directory.path());
    // Its member belongs to a history that ends.
    if plan::is_begun(directory.path()) {
        return Err(MembershipError::Recovering);
    }
    remove_rest(directory.path())?;
    let promised = directory.file().catalog_member;
    if !path.exists() {
        return match promised {
            Some(member) => Err(MembershipError::Lost { member, path }),
            None => Ok(()),
        };
    }
    match (open(&path)?, promised) {
        ((storage, Some(recovered)), promised) => {
            if promised != Some(recovered.row.member) {
                directory.set_catalog_member(Some(recovered.row.member))?;
            }
            drop(directory);
            start(node, storage, recovered)
        }
        ((_, None), Some(member)) => Err(MembershipError::Lost { member, path }),
        // An interrupted removal.
        ((_, None), None) => Ok(()),
    }
}

fn start(node: &Arc<Node>, storage: Storage, recovered: Recovered) -> Result<(), MembershipError> {
    if let Some(state) = &recovered.snapshot.state {
        node.peers.learn_state(state);
    }
    tracing::info!(member = recovered.row.member.0, "this pod is a member of the catalog");
    let weak = Arc::downgrade(node);
    let lost = move |reason| {
        if let Some(node) = weak.upgrade() {
            node.catalog_lost.send_replace(Some(reason));
        }
    };
    // Proposals of an earlier member of this process must not be taken for its own.
    let run = mix64(node.run ^ mix64(clock::now().0));
    let catalog = Catalog::start(storage, recovered, run, Queues::new(node), lost)?;
    node.set_catalog(Some(Arc::new(catalog)));
    Ok(())
}

/// Creates or removes this pod's member, as a list of members as of `revision` says.
pub async fn follow(
    node: &Arc<Node>,
    revision: u64,
    members: &[(MemberId, PodId)],
) -> Result<(), MembershipError> {
    let row = node.catalog().map(|catalog| catalog.row);
    match step(row, node.identity.pod, revision, members) {
        Step::Nothing if row.is_none() => {
            blocking(node, move |node| forget_lost(node, revision)).await
        }
        Step::Nothing => Ok(()),
        Step::Remove(row) => {
            tracing::info!(member = row.member.0, "this pod's member left the catalog");
            blocking(node, remove).await
        }
        Step::Create(row) => blocking(node, move |node| create(node, row)).await,
    }
}

/// A member whose log was lost is not missed any more when its history has ended: no later list can
/// name it.
fn forget_lost(node: &Arc<Node>, revision: u64) -> Result<(), MembershipError> {
    let mut directory = node.directory.lock().unwrap_or_else(PoisonError::into_inner);
    let first = revision / NUMBERS_PER_HISTORY * NUMBERS_PER_HISTORY;
    if directory.file().catalog_member.is_some_and(|member| member.0 < first) {
        directory.set_catalog_member(None)?;
        node.catalog_lost.send_replace(None);
    }
    Ok(())
}

/// What a pod does about its member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Nothing,
    Create(MemberRow),
    Remove(MemberRow),
}

/// Decides from a list of members as of `revision`. `row`: the member that exists here.
pub fn step(
    row: Option<MemberRow>,
    pod: PodId,
    revision: u64,
    members: &[(MemberId, PodId)],
) -> Step {
    let mine = members.iter().find(|(_, other)| *other == pod).map(|(member, _)| *member);
    match (row, mine) {
        (None, None) => Step::Nothing,
        (Some(row), Some(member)) if row.member == member => Step::Nothing,
        // The list is older than the member.
        (Some(row), _) if row.since_revision >= revision => Step::Nothing,
        (Some(row), _) => Step::Remove(row),
        (None, Some(member)) => Step::Create(MemberRow { member, since_revision: revision }),
    }
}

/// A new member: without configuration, it waits until the leader sends the state.
pub fn unborn() -> Snapshot {
    Snapshot { index: 0, term: 0, meta: Meta::new(&[], 1).encode(), state: None }
}

/// The first and only member of a new history.
pub fn first(member: MemberId, state: CatalogState) -> (MemberRow, Snapshot) {
    let row = MemberRow { member, since_revision: state.revision() };
    let meta = Meta::new(&[row.member], 1).encode();
    (row, Snapshot { index: 1, term: 1, meta, state: Some(state) })
}

/// The state of this pod's member, which does not run; `None`: there is no member, or it never had
/// a state.
pub fn read_state(data: &Path) -> Result<Option<CatalogState>, MembershipError> {
    let path = database(data);
    if !path.exists() {
        return Ok(None);
    }
    Ok(open(&path)?.1.and_then(|recovered| recovered.snapshot.state))
}

/// Starts the catalog that was recovered, with this pod's member as its only one.
pub async fn found(
    node: &Arc<Node>,
    plan: Plan,
    state: CatalogState,
) -> Result<(), MembershipError> {
    blocking(node, move |node| found_now(node, &plan, state)).await
}

/// The plan ends when the new member is durable. Before, all of this can be done again.
fn found_now(node: &Arc<Node>, plan: &Plan, state: CatalogState) -> Result<(), MembershipError> {
    let mut directory = node.directory.lock().unwrap_or_else(PoisonError::into_inner);
    let path = database(directory.path());
    plan::set_aside(directory.path(), plan, &path)?;
    let (mut storage, recovered) = open(&path)?;
    assert!(recovered.is_none(), "the old member was set aside");
    assert_eq!(state.catalog.len(), 1, "a new history has one member");
    let member = *state.catalog.keys().next().expect("one member");
    let fail = |source| MembershipError::Storage { path: path.clone(), source };
    let (row, snapshot) = first(member, state);
    storage.create(row, &snapshot).map_err(fail)?;
    let recovered = storage.recover().map_err(fail)?.expect("it was just created");
    directory.set_catalog_member(Some(member))?;
    plan::done(directory.path())?;
    drop(directory);
    start(node, storage, recovered)
}

/// Removes this pod's member, which belongs to a history that was replaced.
pub async fn give_up(node: &Arc<Node>, row: MemberRow) -> Result<(), MembershipError> {
    blocking(node, move |node| match node.catalog().is_some_and(|now| now.row == row) {
        true => remove(node),
        // It is gone already, and there may be one of the new history.
        false => Ok(()),
    })
    .await
}

/// Creates and starts a new member of this pod.
fn create(node: &Arc<Node>, row: MemberRow) -> Result<(), MembershipError> {
    let mut directory = node.directory.lock().unwrap_or_else(PoisonError::into_inner);
    let path = database(directory.path());
    if directory.file().catalog_member == Some(row.member) {
        return Err(MembershipError::Lost { member: row.member, path });
    }
    if directory.file().newest_member >= Some(row.member) {
        tracing::debug!(member = row.member.0, "a list of the catalog's members is outdated");
        return Ok(());
    }
    let (mut storage, recovered) = open(&path)?;
    assert!(recovered.is_none(), "an existing member was started before");
    let fail = |source| MembershipError::Storage { path: path.clone(), source };
    storage.create(row, &unborn()).map_err(fail)?;
    let recovered = storage.recover().map_err(fail)?.expect("it was just created");
    directory.set_catalog_member(Some(row.member))?;
    drop(directory);
    start(node, storage, recovered)
}

/// Removes the member. Its id is never used again, so its log is not needed any more.
fn remove(node: &Arc<Node>) -> Result<(), MembershipError> {
    if let Some(catalog) = node.set_catalog(None) {
        catalog.stop();
    }
    let mut directory = node.directory.lock().unwrap_or_else(PoisonError::into_inner);
    directory.set_catalog_member(None)?;
    remove_rest(directory.path())?;
    set_aside(directory.path())?;
    remove_rest(directory.path())
}

/// Renames a database before its removal: after a crash, half of one could not be opened.
fn set_aside(data: &Path) -> Result<(), MembershipError> {
    let path = database(data);
    let renamed = match std::fs::rename(&path, removed(data)) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    };
    // The new name must be durable before any file is deleted.
    renamed
        .and_then(|()| std::fs::File::open(data)?.sync_all())
        .map_err(|source| MembershipError::Remove { path, source })
}

/// Removes the rest of an interrupted removal.
fn remove_rest(data: &Path) -> Result<(), MembershipError> {
    let path = removed(data);
    match std::fs::remove_dir_all(&path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(MembershipError::Remove { path, source }),
    }
}

/// Stops this pod's member until the next start. Its log is closed when this returns.
pub async fn stop(node: &Arc<Node>) {
    let stopped = blocking(node, |node| {
        if let Some(catalog) = node.set_catalog(None) {
            catalog.stop();
        }
        Ok(())
    });
    if let Err(error) = stopped.await {
        tracing::error!("could not stop the catalog: {error}");
    }
}

/// Runs work that blocks on RocksDB or files outside the runtime's threads.
async fn blocking(
    node: &Arc<Node>,
    work: impl FnOnce(&Arc<Node>) -> Result<(), MembershipError> + Send + 'static,
) -> Result<(), MembershipError> {
    let node = node.clone();
    tokio::task::spawn_blocking(move || work(&node))
        .await
        .unwrap_or(Err(MembershipError::Interrupted))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::catalog_fixture::node;

    /// A stopped pod that is the only member of its catalog.
    fn pod(data: &Path) -> Arc<Node> {
        let at = "127.0.0.1:1".parse().unwrap();
        let addresses = Addresses { api: at, peer: at, nbd: None };
        let mut directory = PodDirectory::open(data).unwrap();
        let identity = match directory.file().identity {
            Some(identity) => identity,
            None => initialise(&mut directory, addresses, node(1), None).unwrap(),
        };
        assert_ne!(identity.cluster, Uuid::default());
        Arc::new(Node::new(identity, addresses, node(1), Vec::new(), directory, 1))
    }

    #[test]
    fn a_pod_that_cannot_take_a_difference_asks_for_everything() {
        use crate::control::sync::follower::{Follower, Idle};
        use crate::control::sync::update::Position;
        use std::collections::BTreeSet;
        let root = tempfile::tempdir().unwrap();
        let node = pod(root.path());
        let state = CatalogState::new(NewCluster {
            uid: node.identity.cluster,
            history: Uuid([5; 16]),
            pod: (node.uid(), node.addresses, node.machine.clone()),
            now_ms: 1,
        });
        let nothing = || (Position::default(), BTreeSet::new());
        let mut from_nothing =
            Follower::new(node.identity.pod, Position::default(), BTreeSet::new(), BTreeSet::new());
        let whole = from_nothing.next(&state, Idle::Now).unwrap();
        node.take_update(whole.clone()).unwrap();
        let known = node.known();
        assert_ne!(known, nothing());
        let mut gap = whole.clone();
        (gap.is_whole, gap.from.revision) = (false, 99);
        assert!(node.take_update(gap).is_err());
        assert_eq!((node.known(), node.position()), (nothing(), known.0));
        node.take_update(whole).unwrap();
        assert_eq!(node.known(), known);
    }

    /// The pod is killed during a removal: the database is renamed, and one file of it is gone.
    #[tokio::test]
    async fn a_removal_that_was_interrupted_is_brought_to_its_end() {
        let root = tempfile::tempdir().unwrap();
        let data = root.path();
        let node = pod(data);
        node.directory.lock().unwrap().set_catalog_member(None).unwrap();
        set_aside(data).unwrap();
        std::fs::remove_file(removed(data).join("CURRENT")).unwrap();
        drop(node);

        let node = pod(data);
        resume(&node).await.unwrap();
        assert!(node.catalog().is_none() && !removed(data).exists() && !database(data).exists());
        let row = MemberRow { member: MemberId(7), since_revision: 9 };
        blocking(&node, move |node| create(node, row)).await.unwrap();
        assert_eq!(node.catalog().unwrap().row, row);
        blocking(&node, remove).await.unwrap();
        assert!(node.catalog().is_none() && !removed(data).exists() && !database(data).exists());
        // An older list comes late. What the member promised is gone.
        blocking(&node, move |node| create(node, row)).await.unwrap();
        assert!(node.catalog().is_none() && !database(data).exists());
    }
}
