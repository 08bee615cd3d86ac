//! ListVolumes.

use std::collections::BTreeMap;

use holdfast::csi::proto::controller_service_capability::rpc::Type as Rpc;
use holdfast::csi::proto::list_volumes_response::Entry;
use holdfast::csi::proto::{ListVolumesRequest, ListVolumesResponse};
use tonic::{Code, Status};

use super::driver::{Driver, assert_refused, to_publish};

fn page(driver: &Driver, max_entries: i32, token: &str) -> Result<ListVolumesResponse, Status> {
    let request = ListVolumesRequest { max_entries, starting_token: token.to_owned() };
    driver.controller(async |mut it| it.list_volumes(request).await)
}

fn id_of(entry: &Entry) -> String {
    entry.volume.as_ref().expect("an entry has a volume").volume_id.clone()
}

/// All volumes, each with how often it was listed. `between`: called after every page.
fn listed(
    driver: &Driver,
    max_entries: i32,
    mut between: impl FnMut(&[Entry]),
) -> BTreeMap<String, usize> {
    let (mut found, mut token) = (BTreeMap::new(), String::new());
    loop {
        let page = page(driver, max_entries, &token).unwrap();
        assert!(max_entries == 0 || page.entries.len() <= max_entries as usize);
        for entry in &page.entries {
            *found.entry(id_of(entry)).or_insert(0) += 1;
        }
        if page.next_token.is_empty() {
            return found;
        }
        between(&page.entries);
        token = page.next_token;
    }
}

pub fn wrong_pages_are_refused(driver: &Driver) {
    assert_refused(page(driver, -1, ""), Code::InvalidArgument);
    for token in ["invalid-token", "0", "ä"] {
        assert_refused(page(driver, 0, token), Code::Aborted);
    }
}

pub fn pages_have_every_volume_once(driver: &Driver) {
    let made: Vec<String> = (0..7).map(|_| driver.volume("page")).collect();
    for max_entries in [0, 1, 2, 3, 1000, i32::MAX] {
        let found = listed(driver, max_entries, |_| ());
        for id in &made {
            assert_eq!(found.get(id), Some(&1), "with {max_entries} a page");
        }
    }
    made.iter().for_each(|id| driver.delete(id).unwrap());
    let found = listed(driver, 0, |_| ());
    assert!(made.iter().all(|id| !found.contains_key(id)), "deleted volumes are not listed");
}

/// The last volume of each page is deleted, which the next page begins behind, and one that was not
/// listed yet. A new one is made, too.
pub fn pages_survive_deletions_and_new_volumes(driver: &Driver) {
    let made: Vec<String> = (0..9).map(|_| driver.volume("survive")).collect();
    let (mut deleted, mut new) = (Vec::new(), Vec::new());
    let mut told: Vec<String> = Vec::new();
    let found = listed(driver, 2, |entries| {
        told.extend(entries.iter().map(id_of));
        let last = told.last().filter(|id| made.contains(id)).cloned();
        let next = made.iter().rev().find(|id| !told.contains(id) && !deleted.contains(*id));
        for id in last.iter().chain(next.filter(|_| deleted.len() < 3)) {
            driver.delete(id).unwrap();
            deleted.push(id.clone());
        }
        if new.len() < 3 {
            new.push(driver.volume("new"));
        }
    });
    assert!(deleted.len() >= 3, "some were deleted: {deleted:?}");
    for id in made.iter().filter(|id| !deleted.contains(id)) {
        assert_eq!(found.get(id), Some(&1), "it was there all the time");
    }
    assert!(found.values().all(|count| *count == 1), "none is listed twice");
    made.iter().chain(&new).for_each(|id| driver.delete(id).unwrap());
}

pub fn published_nodes_are_listed(driver: &Driver) {
    if !driver.has(Rpc::ListVolumesPublishedNodes) {
        return;
    }
    let (id, node) = (driver.volume("nodes"), &driver.nodes[1]);
    let nodes = || {
        let page = page(driver, 0, "").unwrap();
        let entry = page.entries.into_iter().find(|entry| id_of(entry) == id).expect("listed");
        let status = entry.status.expect("an entry has a status");
        assert_eq!(status.volume_condition.is_some(), driver.has(Rpc::VolumeCondition));
        status.published_node_ids
    };
    assert_eq!(nodes(), [""; 0]);
    driver.publish(to_publish(&id, node)).unwrap();
    assert_eq!(nodes(), [node.as_str()]);
    driver.unpublish(&id, node).unwrap();
    assert_eq!(nodes(), [""; 0]);
    driver.delete(&id).unwrap();
}
