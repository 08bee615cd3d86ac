use super::*;
use crate::control::command::{Addresses, CatalogCommand};
use crate::log::Reset;
use crate::testing::catalog_fixture::{addresses, cluster, join};
use crate::types::PodId;

fn entries(range: std::ops::RangeInclusive<u64>, term: u64) -> Vec<LogEntry> {
    let payload = Bytes::from_static(&[7]);
    let entry = |index| LogEntry { index, term, payload: payload.clone(), ..Default::default() };
    range.map(entry).collect()
}

fn snapshot(index: u64, state: Option<CatalogState>) -> Snapshot {
    Snapshot { index, term: 1, meta: Bytes::from_static(b"meta"), state }
}

fn point(index: u64) -> Point {
    Point { index, term: 1, meta: Bytes::from_static(b"newer") }
}

fn append(entries: Vec<LogEntry>) -> Append {
    Append { number: 1, entries, ..Append::default() }
}

fn recover(storage: &mut Storage) -> Recovered {
    storage.recover().unwrap().unwrap()
}

fn indexes(storage: &mut Storage) -> Vec<u64> {
    recover(storage).start.entries.iter().map(|entry| entry.index).collect()
}

#[test]
fn a_log_is_appended_to_cut_compacted_and_reset() {
    let root = tempfile::tempdir().unwrap();
    let mut storage = Storage::open(root.path()).unwrap();
    assert!(storage.recover().unwrap().is_none());
    let row = MemberRow { member: MemberId(3), since_revision: 9 };
    storage.create(row, &snapshot(1, Some(cluster(1)))).unwrap();

    storage.append(&append(entries(2..=6, 1))).unwrap();
    storage.append(&append(entries(5..=5, 2))).unwrap();
    assert_eq!(indexes(&mut storage), [2, 3, 4, 5], "a replaced entry takes its successors along");

    storage.applied(&point(4), &[], Some((3, 1))).unwrap();
    let recovered = recover(&mut storage);
    assert_eq!(recovered.row, row);
    assert_eq!((recovered.start.compacted_index, recovered.start.applied_index), (3, 4));
    assert_eq!(recovered.start.hard.commit, 4, "what is applied is committed");
    assert_eq!(recovered.snapshot.state, Some(cluster(1)));
    assert_eq!(&recovered.start.meta[..], b"newer");
    assert_eq!(indexes(&mut storage), [4, 5]);

    let reset = Reset { index: 9, term: 1, meta: Bytes::new() };
    let append = Append { number: 2, reset: Some(reset), ..Append::default() };
    storage.install(&append, &snapshot(9, Some(cluster(2)))).unwrap();
    let recovered = recover(&mut storage);
    assert_eq!((recovered.start.compacted_index, recovered.start.applied_index), (9, 9));
    assert!(recovered.start.entries.is_empty());
    assert_eq!(recovered.snapshot.state, Some(cluster(2)));
}

#[test]
fn the_rows_of_commands_are_the_state_after_a_restart() {
    let root = tempfile::tempdir().unwrap();
    let mut state = cluster(1);
    let mut storage = Storage::open(root.path()).unwrap();
    let row = MemberRow { member: MemberId(1), since_revision: 1 };
    storage.create(row, &snapshot(1, Some(state.clone()))).unwrap();
    for number in 2..6 {
        let applied = state.apply(u64::from(number), join(number));
        storage.applied(&point(u64::from(number)), &applied.changes, None).unwrap();
    }
    let removal = CatalogCommand::AddCatalogMembers { pods: vec![PodId(2)] };
    let changes = state.apply(9, removal).changes;
    storage.applied(&point(6), &changes, None).unwrap();
    let removal = CatalogCommand::RemoveCatalogMember { member: MemberId(2) };
    let changes = state.apply(9, removal).changes;
    assert!(changes.iter().any(|change| change.row.is_none()), "a row goes away");
    storage.applied(&point(7), &changes, None).unwrap();
    drop(storage);
    let mut storage = Storage::open(root.path()).unwrap();
    let recovered = recover(&mut storage).snapshot.state.unwrap();
    assert_eq!(recovered, state);
    assert_eq!(recovered.fingerprint(), state.fingerprint());
    assert_eq!(recovered.index.pods_by_uid.size(), 5);
}

/// The process dies while it writes a state that came from the leader.
#[test]
fn a_state_counts_when_it_is_whole() {
    let root = tempfile::tempdir().unwrap();
    let storage = Storage::open(root.path()).unwrap();
    let row = MemberRow { member: MemberId(1), since_revision: 1 };
    storage.create(row, &snapshot(1, Some(cluster(2)))).unwrap();
    storage.stage(1, &cluster(5)).unwrap();
    drop(storage);
    let mut storage = Storage::open(root.path()).unwrap();
    assert_eq!(recover(&mut storage).snapshot.state, Some(cluster(2)));
    // The next one does not take over what was left behind.
    let reset = Reset { index: 3, term: 1, meta: Bytes::new() };
    let append = Append { number: 2, reset: Some(reset), ..Append::default() };
    storage.install(&append, &snapshot(3, Some(cluster(3)))).unwrap();
    assert_eq!(recover(&mut storage).snapshot.state, Some(cluster(3)));
    let Addresses { api, .. } = addresses(1000);
    assert_eq!(cluster(3).pods[&PodId(1)].addresses.api, api);
}
