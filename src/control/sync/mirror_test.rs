use proptest::prelude::*;

use super::*;
use crate::control::command::{CatalogCommand, Deletion, NewDisk};
use crate::control::state::view::part;
use crate::control::state::{CatalogState, NewCluster};
use crate::control::sync::follower::{Follower, Idle};
use crate::planted::{Mistake, assert_found};
use crate::testing::catalog_fixture::{
    addresses_of, cluster, create_on, first_pod, join, new_disk, node, register,
};
use crate::types::AccessMode;

fn apply(state: &mut CatalogState, command: CatalogCommand) {
    state.apply(5, command).outcome.unwrap();
}

/// The pod whose mirror is looked at.
const POD: PodId = PodId(2);

fn no_wants() -> BTreeSet<VolumeId> {
    BTreeSet::new()
}

/// Brings a mirror to the state, through the encoded form.
fn follow_with(
    mirror: &mut Mirror,
    follower: &mut Follower,
    state: &CatalogState,
) -> Option<Update> {
    let update = follower.next(state, Idle::Now)?;
    let read = Update::decode(&update.encode()).unwrap();
    assert_eq!(read, update);
    mirror.take(&read).unwrap();
    assert_eq!(mirror.position(), follower.position());
    Some(update)
}

/// The same in a stream that begins now.
fn follow(mirror: &mut Mirror, state: &CatalogState) -> Option<Update> {
    follow_with(mirror, &mut resumed(mirror, POD, no_wants()), state)
}

/// A follower that knows what a mirror has.
fn resumed(mirror: &Mirror, pod: PodId, wants: BTreeSet<VolumeId>) -> Follower {
    Follower::new(pod, mirror.position(), mirror.volumes(), wants)
}

fn whole(state: &CatalogState) -> Update {
    resumed(&Mirror::default(), POD, no_wants()).next(state, Idle::Now).unwrap()
}

fn ours(state: &CatalogState) -> ClusterView {
    part(state, POD, &no_wants())
}

#[test]
fn differences_are_what_changed_and_nothing_else() {
    let mut state = cluster(3);
    let mut mirror = Mirror::default();
    assert!(follow(&mut mirror, &state).unwrap().is_whole);
    assert_eq!(**mirror.view(), ours(&state));
    let mut follower = resumed(&mirror, POD, no_wants());
    follow_with(&mut mirror, &mut follower, &state);
    assert_eq!(follower.next(&state, Idle::Now), None, "nothing has changed");

    apply(&mut state, create_on("one", &[1, 2, 3]));
    follow(&mut mirror, &state).unwrap();
    apply(&mut state, create_on("two", &[2]));
    let difference = follow(&mut mirror, &state).unwrap();
    assert!(!difference.is_whole);
    let kinds: Vec<u8> = difference.rows.iter().map(|(key, _)| key.encode()[0]).collect();
    assert_eq!(kinds, *b"vs", "the new volume and its shard");
    assert!(difference.encode().len() < 1024, "{} bytes", difference.encode().len());
    assert_eq!(**mirror.view(), ours(&state));
    // The node's row is kept for a recovery. The view does not show it.
    let mut again = register(1, &[new_disk(1)]);
    if let CatalogCommand::Register { node, .. } = &mut again {
        node.boot_id = "another".to_owned();
    }
    apply(&mut state, again);
    let difference = follow(&mut mirror, &state).unwrap();
    let kinds: Vec<u8> = difference.rows.iter().map(|(key, _)| key.encode()[0]).collect();
    assert_eq!(kinds, *b"n");
    assert_eq!(mirror.position().revision, state.revision());
}

#[test]
fn volumes_that_did_not_change_share_their_memory() {
    let mut state = cluster(3);
    apply(&mut state, create_on("one", &[1, 2, 3]));
    let mut mirror = Mirror::default();
    follow(&mut mirror, &state);
    let before = Arc::clone(mirror.view());
    apply(&mut state, create_on("two", &[1, 2, 3]));
    follow(&mut mirror, &state);
    assert!(Arc::ptr_eq(&before.volumes[0], &mirror.view().volumes[0]));
    // Also when everything comes anew.
    let before = Arc::clone(mirror.view());
    mirror.take(&whole(&state)).unwrap();
    assert!(Arc::ptr_eq(&before.volumes[1], &mirror.view().volumes[1]));
}

#[test]
fn what_does_not_continue_is_refused_and_changes_nothing() {
    let mut state = cluster(3);
    let mut mirror = Mirror::default();
    follow(&mut mirror, &state);
    let first = mirror.clone();
    apply(&mut state, create_on("one", &[1, 2, 3]));
    let difference = resumed(&mirror, POD, no_wants()).next(&state, Idle::Now).unwrap();
    follow(&mut mirror, &state);
    let (view, position) = (Arc::clone(mirror.view()), mirror.position());
    let mut refused = |update: &Update, text: &str| {
        let error = mirror.take(update).unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
        assert!(Arc::ptr_eq(&view, mirror.view()));
        assert_eq!(mirror.position(), position);
    };
    refused(&difference, "continues revision");
    // The catalog was restored from a backup by somebody who made it anew.
    let other = CatalogState::new(NewCluster {
        uid: state.cluster.uid,
        history: Uuid([66; 16]),
        pod: (Uuid([1; 16]), addresses_of(1), node(1)),
        now_ms: 1,
    });
    refused(&whole(&other), "does not descend");
    let foreign = CatalogState::new(NewCluster {
        uid: Uuid([55; 16]),
        history: Uuid([66; 16]),
        pod: (Uuid([1; 16]), addresses_of(1), node(1)),
        now_ms: 1,
    });
    refused(&whole(&foreign), "belongs to");
    let mut torn = whole(&state);
    torn.rows.retain(|(key, _)| !matches!(key, RowKey::Shard(_)));
    refused(&torn, "is not in it");
    let mut mirror = first;
    let mut headless = difference;
    headless.rows.retain(|(key, _)| !matches!(key, RowKey::Shard(_)));
    assert!(mirror.take(&headless).is_err());
    assert!(mirror.view().volumes.is_empty());
}

/// The catalog is restored from an old copy. Its revisions count from there, in a new history.
fn a_restored_catalog_goes_back() {
    let older = cluster(3);
    let mut newer = older.clone();
    apply(&mut newer, create_on("one", &[1, 2, 3]));
    let mut mirror = Mirror::default();
    follow(&mut mirror, &newer);
    let history = Uuid([66; 16]);
    let ancestors = vec![older.cluster.history];
    let cluster = Cluster { history, ancestors, ..older.cluster.clone() };
    let rows = older.rows().map(|(key, row)| match key {
        RowKey::Cluster => (key, encode_row(1, &cluster)),
        _ => (key, row),
    });
    let restored = CatalogState::from_rows(rows).unwrap();
    follow(&mut mirror, &restored);
    assert_eq!(**mirror.view(), ours(&restored), "a pod follows the restored catalog");
}

#[test]
fn revisions_of_two_histories_are_not_compared() {
    a_restored_catalog_goes_back();
    assert_found(Mistake::HistoriesCompared, a_restored_catalog_goes_back);
}

#[test]
fn a_history_that_descends_from_ours_is_followed() {
    let state = cluster(3);
    let mut mirror = Mirror::default();
    follow(&mut mirror, &state);
    let mut restored = whole(&state);
    let history = Uuid([66; 16]);
    let ancestors = vec![state.cluster.history];
    let cluster = Cluster { history, ancestors, ..state.cluster.clone() };
    for (key, row) in &mut restored.rows {
        if *key == RowKey::Cluster {
            *row = Some(encode_row(1, &cluster));
        }
    }
    restored.to = Position { history, revision: 3, ..restored.to };
    mirror.take(&restored).unwrap();
    assert_eq!(mirror.position(), restored.to, "revisions of two histories are not compared");
}

fn create(state: &mut CatalogState, name: &str, disks: &[u8]) -> VolumeId {
    apply(state, create_on(name, disks));
    state.volume_by_name(name).unwrap().0
}

/// The volumes of an update: what comes, and what goes.
fn volumes_in(update: &Update) -> (BTreeSet<VolumeId>, BTreeSet<VolumeId>) {
    let (mut comes, mut goes) = (BTreeSet::new(), BTreeSet::new());
    for (key, row) in &update.rows {
        if let RowKey::Volume(volume) = key {
            if row.is_some() {
                comes.insert(*volume)
            } else {
                goes.insert(*volume)
            };
        }
    }
    (comes, goes)
}

/// A volume comes to a pod with a disk, with an attachment, or because the pod wants it.
fn volumes_come_and_go() {
    let mut state = cluster(4);
    let (mut mirror, set) = (Mirror::default(), |volume| BTreeSet::from([volume]));
    let other = create(&mut state, "other", &[1, 3, 4]);
    let mut follower = resumed(&mirror, POD, no_wants());
    follow_with(&mut mirror, &mut follower, &state);
    assert!(mirror.view().volumes.is_empty());
    // Nothing is said of what does not concern it.
    apply(&mut state, CatalogCommand::Created { volumes: vec![other] });
    assert_eq!(follower.next(&state, Idle::Later), None);

    // It has a disk of the volume.
    apply(&mut state, register(2, &[NewDisk { path: "moved".to_owned(), ..new_disk(3) }]));
    let update = follow_with(&mut mirror, &mut follower, &state).unwrap();
    assert_eq!(volumes_in(&update), (set(other), no_wants()));
    assert_eq!(**mirror.view(), ours(&state));
    apply(&mut state, register(3, &[new_disk(3)]));
    let update = follow_with(&mut mirror, &mut follower, &state).unwrap();
    assert_eq!(volumes_in(&update), (no_wants(), set(other)));
    assert_eq!(**mirror.view(), ours(&state));

    // It wants the volume, and then does not.
    follower.want(set(other));
    let update = follow_with(&mut mirror, &mut follower, &state).unwrap();
    assert_eq!((update.from.revision, volumes_in(&update).0), (update.to.revision, set(other)));
    assert_eq!((mirror.wants(), mirror.view().volumes.len()), (&set(other), 1));
    follower.want(no_wants());
    let update = follow_with(&mut mirror, &mut follower, &state).unwrap();
    assert_eq!(volumes_in(&update), (no_wants(), set(other)));

    // The volume is attached to its node.
    apply(
        &mut state,
        CatalogCommand::SetOpen { request_id: String::new(), volume: other, open: false },
    );
    let (node, mode, uid) = ("node-2".to_owned(), AccessMode::Raw, Uuid([5; 16]));
    apply(
        &mut state,
        CatalogCommand::Publish {
            request_id: String::new(),
            volume: other,
            node: node.clone(),
            mode,
            io_timeout_ms: None,
            uid,
        },
    );
    let update = follow_with(&mut mirror, &mut follower, &state).unwrap();
    assert_eq!(volumes_in(&update), (set(other), no_wants()));
    let generation = state.access_of(other).generation;
    apply(&mut state, CatalogCommand::AccessIsSet { volume: other, generation, shards: 1 });
    follow_with(&mut mirror, &mut follower, &state).unwrap();
    assert_eq!(mirror.view().volumes[0].attachments.len(), 1);
    apply(&mut state, CatalogCommand::Unpublish { request_id: String::new(), volume: other, node });
    let generation = state.access_of(other).generation;
    apply(&mut state, CatalogCommand::AccessIsSet { volume: other, generation, shards: 1 });
    let update = follow_with(&mut mirror, &mut follower, &state).unwrap();
    assert_eq!(volumes_in(&update), (no_wants(), set(other)));
    assert_eq!(**mirror.view(), ours(&state));
}

#[test]
fn a_pod_has_the_volumes_that_concern_it_and_no_others() {
    volumes_come_and_go();
    assert_found(Mistake::EntersWithChanges, volumes_come_and_go);
    assert_found(Mistake::SyncForgetsRemovals, volumes_come_and_go);
}

/// A pod follows its own member and a stream at once; the stream does not know of a want.
fn two_followers_of_one_mirror() {
    let mut state = cluster(4);
    let other = create(&mut state, "other", &[1, 3, 4]);
    let mut mirror = Mirror::default();
    let mut stream = resumed(&mirror, POD, no_wants());
    follow_with(&mut mirror, &mut stream, &state);
    let mut own = resumed(&mirror, POD, BTreeSet::from([other]));
    let wanted = own.next(&state, Idle::Now).unwrap();
    mirror.take(&wanted).unwrap();
    apply(
        &mut state,
        CatalogCommand::SetOpen { request_id: String::new(), volume: other, open: false },
    );
    let unaware = stream.next(&state, Idle::Now).unwrap();
    let refused = match mirror.take(&unaware) {
        Ok(()) => false,
        Err(MirrorError::Gap { .. }) => true,
        Err(other) => panic!("{other}"),
    };
    // What the stream says of the volume would be missed for ever.
    assert!(refused || **mirror.view() == part(&state, POD, &BTreeSet::from([other])));
    let mut again = resumed(&mirror, POD, BTreeSet::from([other]));
    follow_with(&mut mirror, &mut again, &state);
    assert_eq!(**mirror.view(), part(&state, POD, &BTreeSet::from([other])));
}

#[test]
fn a_difference_between_other_volumes_is_refused() {
    two_followers_of_one_mirror();
    assert_found(Mistake::PartNotCompared, two_followers_of_one_mirror);
    // What leads elsewhere is refused, too.
    let mut state = cluster(3);
    create(&mut state, "one", &[1, 2, 3]);
    let mut wrong = whole(&state);
    wrong.to.part.add(VolumeId(7));
    let mut mirror = Mirror::default();
    assert!(matches!(mirror.take(&wrong), Err(MirrorError::Part)));
    let mut lonely = whole(&state);
    lonely.rows.retain(|(key, _)| !matches!(key, RowKey::Volume(_)));
    assert!(mirror.take(&lonely).is_err(), "shards of no volume");
    assert_eq!(mirror.position(), Position::default());
}

#[derive(Clone, Debug)]
enum Step {
    Join(u8),
    Disks(u8, u8),
    /// The pod is on another node.
    Moves(u8, u8),
    Create(u8, Vec<u8>),
    Delete(u8),
    Confirm(u8),
    SetOpen(u8, bool),
    Publish(u8, u8),
    Unpublish(u8, u8),
    AccessIsSet(u8),
    Want(usize, u8),
    Unwant(usize, u8),
    /// Looks, and speaks only if something concerns the pod.
    Look(usize),
    Follow(usize),
    /// The stream ends, and another begins.
    Resume(usize),
    /// From what is kept on its disk.
    Restart(usize),
    /// From a member of the catalog that lags behind, or remembers nothing.
    Lag,
    Forget,
}

fn step() -> impl Strategy<Value = Step> {
    let on = || prop::sample::subsequence(vec![1u8, 2, 3, 4], 1..=3);
    prop_oneof![
        (1u8..6).prop_map(Step::Join),
        (1u8..5, 1u8..7).prop_map(|(pod, disk)| Step::Disks(pod, disk)),
        (1u8..5, 1u8..5).prop_map(|(pod, node)| Step::Moves(pod, node)),
        (1u8..6, on()).prop_map(|(name, on)| Step::Create(name, on)),
        (1u8..6, on()).prop_map(|(name, on)| Step::Create(name, on)),
        (1u8..6).prop_map(Step::Delete),
        (1u8..5).prop_map(Step::Confirm),
        (1u8..6, any::<bool>()).prop_map(|(name, open)| Step::SetOpen(name, open)),
        (1u8..6, 1u8..5).prop_map(|(name, node)| Step::Publish(name, node)),
        (1u8..6, 1u8..5).prop_map(|(name, node)| Step::Unpublish(name, node)),
        (1u8..6).prop_map(Step::AccessIsSet),
        (0usize..PODS, 1u8..8).prop_map(|(pod, volume)| Step::Want(pod, volume)),
        (0usize..PODS, 1u8..8).prop_map(|(pod, volume)| Step::Unwant(pod, volume)),
        (0usize..PODS).prop_map(Step::Look),
        (0usize..PODS).prop_map(Step::Look),
        (0usize..PODS).prop_map(Step::Follow),
        (0usize..PODS).prop_map(Step::Follow),
        (0usize..PODS).prop_map(Step::Resume),
        (0usize..PODS).prop_map(Step::Restart),
        Just(Step::Lag),
        Just(Step::Forget),
    ]
}

const PODS: usize = 4;

/// A pod, as far as Sync is concerned.
struct Pod {
    id: PodId,
    mirror: Mirror,
    follower: Follower,
    wants: BTreeSet<VolumeId>,
}

impl Pod {
    fn new(id: u64) -> Pod {
        let (id, mirror, wants) = (PodId(id), Mirror::default(), no_wants());
        let follower = resumed(&mirror, id, wants.clone());
        Pod { id, mirror, follower, wants }
    }

    fn resume(&mut self) {
        self.follower = resumed(&self.mirror, self.id, self.wants.clone());
    }

    fn take(&mut self, state: &CatalogState, idle: Idle) {
        self.follower.want(self.wants.clone());
        let Some(update) = self.follower.next(state, idle) else { return };
        let read = Update::decode(&update.encode()).unwrap();
        assert_eq!(read, update);
        self.mirror.take(&read).unwrap();
        assert_eq!(self.mirror.position(), self.follower.position());
        assert_eq!(self.mirror.position().revision, state.revision());
        self.check(state);
    }

    fn check(&self, state: &CatalogState) {
        assert_eq!(**self.mirror.view(), part(state, self.id, &self.wants), "of {}", self.id);
        assert_eq!(*self.mirror.wants(), self.wants);
        // All rows, not only what the view shows.
        let mut anew = Mirror::default();
        let mut follower = resumed(&anew, self.id, self.wants.clone());
        anew.take(&follower.next(state, Idle::Now).unwrap()).unwrap();
        assert_eq!(anew.whole(), self.mirror.whole(), "of {}", self.id);
    }

    fn restart(&mut self) {
        if self.mirror.position().revision == 0 {
            return;
        }
        let mut kept = Mirror::default();
        kept.take(&self.mirror.whole()).unwrap();
        assert_eq!(kept.view(), self.mirror.view());
        assert_eq!(kept.whole(), self.mirror.whole());
        self.wants = kept.wants().clone();
        self.mirror = kept;
        self.resume();
    }
}

/// The command of a step, if it is one.
fn command_of(step: &Step, state: &CatalogState) -> CatalogCommand {
    let id = |name: &u8| state.volume_by_name(&format!("v{name}")).map_or(VolumeId(0), |it| it.0);
    match step {
        Step::Join(pod) => join(*pod),
        Step::Disks(pod, disk) => {
            register(*pod, &[NewDisk { path: "moved".to_owned(), ..new_disk(*disk) }])
        }
        Step::Moves(pod, to) => {
            let mut moves = register(*pod, &[]);
            if let CatalogCommand::Register { node: of, .. } = &mut moves {
                *of = node(*to);
            }
            moves
        }
        Step::Create(name, on) if on.len() != 2 => create_on(&format!("v{name}"), on),
        Step::Create(name, on) => create_on(&format!("v{name}"), &on[..1]),
        Step::Delete(name) => {
            let (request_id, volume) = (String::new(), id(name));
            let name = format!("v{name}");
            let how = Deletion { force: true, ..Deletion::default() };
            CatalogCommand::DeleteVolume { request_id, name, volume, how }
        }
        Step::Confirm(disk) => {
            let disk = Uuid([*disk; 16]);
            let doomed = crate::control::state::view::view(state).destroyed.into_iter();
            let members = doomed.filter(|it| it.0 == disk).map(|it| it.1).collect();
            CatalogCommand::Destroyed { disk, members }
        }
        Step::SetOpen(name, open) => {
            CatalogCommand::SetOpen { request_id: String::new(), volume: id(name), open: *open }
        }
        Step::Publish(name, node) => CatalogCommand::Publish {
            request_id: String::new(),
            volume: id(name),
            node: format!("node-{node}"),
            mode: AccessMode::Raw,
            io_timeout_ms: None,
            uid: Uuid([name * 16 + node; 16]),
        },
        Step::Unpublish(name, node) => {
            let node = format!("node-{node}");
            CatalogCommand::Unpublish { request_id: String::new(), volume: id(name), node }
        }
        Step::AccessIsSet(name) => {
            let volume = id(name);
            let wanted = state.volumes.get(&volume).map(|volume| volume.access.wanted);
            let generation = wanted.unwrap_or_default();
            CatalogCommand::AccessIsSet { volume, generation, shards: 1 }
        }
        _ => CatalogCommand::Created { volumes: Vec::new() },
    }
}

proptest! {
    /// However a mirror gets there, by differences or at once, it shows what concerns its pod as it
    /// is.
    #[test]
    fn differences_add_up_to_the_whole(steps in prop::collection::vec(step(), 1..80)) {
        let mut state = first_pod();
        let mut pods: Vec<Pod> = (1..=PODS as u64).map(Pod::new).collect();
        let mut lagging = state.clone();
        for step in steps {
            match &step {
                Step::Look(pod) => pods[*pod].take(&state, Idle::Later),
                Step::Follow(pod) => {
                    pods[*pod].take(&state, Idle::Now);
                    pods[*pod].check(&state);
                }
                Step::Resume(pod) => pods[*pod].resume(),
                Step::Restart(pod) => pods[*pod].restart(),
                Step::Want(pod, volume) => {
                    pods[*pod].wants.insert(VolumeId((*volume).into()));
                }
                Step::Unwant(pod, volume) => {
                    pods[*pod].wants.remove(&VolumeId((*volume).into()));
                }
                Step::Lag => {
                    pods.iter_mut().for_each(|pod| {
                        // It is told nothing that it knows already.
                        pod.take(&lagging, Idle::Now);
                    });
                    lagging = state.clone();
                }
                Step::Forget => state = CatalogState::from_rows(state.rows()).unwrap(),
                // Some are refused, and change nothing.
                _ => drop(state.apply(5, command_of(&step, &state))),
            }
        }
        for pod in &mut pods {
            pod.take(&state, Idle::Now);
            pod.check(&state);
        }
    }
}
