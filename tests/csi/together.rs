//! Requests at the same time.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use holdfast::csi::proto::controller_client::ControllerClient;
use holdfast::csi::proto::{
    ControllerUnpublishVolumeRequest, CreateVolumeRequest, DeleteVolumeRequest,
};
use tokio::task::JoinSet;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::driver::{Driver, to_publish, unique, wanted};

/// As many callers as a busy sidecar has.
const AT_ONCE: usize = 32;

async fn create(
    mut client: ControllerClient<Channel>,
    request: CreateVolumeRequest,
) -> Result<String, Status> {
    let made = client.create_volume(request).await?.into_inner();
    Ok(made.volume.expect("an answer has the volume").volume_id)
}

pub fn the_same_volume_asked_for_at_once_is_made_once(driver: &Driver) {
    let request = wanted(&unique("at-once"));
    let client = ControllerClient::new(driver.channel());
    let answers = driver.wait(async {
        let mut calls = JoinSet::new();
        (0..AT_ONCE).for_each(|_| drop(calls.spawn(create(client.clone(), request.clone()))));
        calls.join_all().await
    });
    let mut ids = BTreeSet::new();
    for answer in answers {
        match answer {
            Ok(id) => drop(ids.insert(id)),
            Err(status) => assert_eq!(status.code(), Code::Aborted, "{status}"),
        }
    }
    let again = driver.create(request).unwrap();
    ids.insert(again.volume_id.clone());
    assert_eq!(ids.len(), 1, "one volume: {ids:?}");
    driver.delete(&again.volume_id).unwrap();
}

pub fn operations_on_one_volume_are_done_or_aborted(driver: &Driver) {
    let (id, node) = (driver.volume("busy"), &driver.nodes[0]);
    let client = ControllerClient::new(driver.channel());
    let answers = driver.wait(async {
        let mut calls = JoinSet::new();
        for call in 0..AT_ONCE {
            let (mut client, volume_id) = (client.clone(), id.clone());
            let publish = to_publish(&id, node);
            let node_id = node.clone();
            calls.spawn(async move {
                match call % 2 {
                    0 => client.controller_publish_volume(publish).await.map(|_| ()),
                    _ => {
                        let request = ControllerUnpublishVolumeRequest {
                            volume_id,
                            node_id,
                            ..Default::default()
                        };
                        client.controller_unpublish_volume(request).await.map(|_| ())
                    }
                }
            });
        }
        calls.join_all().await
    });
    assert!(answers.iter().any(Result::is_ok), "somebody came first");
    for status in answers.into_iter().filter_map(Result::err) {
        assert_eq!(status.code(), Code::Aborted, "{status}");
    }
    driver.until(|| driver.unpublish(&id, node)).unwrap();
    driver.until(|| driver.delete(&id)).unwrap();
}

/// Makes `count` volumes, [`AT_ONCE`] at a time, and returns their ids and how long each took.
pub fn make_many(driver: &Driver, count: usize) -> (Vec<String>, Vec<Duration>) {
    let client = ControllerClient::new(driver.channel());
    let what = unique("many");
    driver.wait(async {
        let mut calls = JoinSet::new();
        for caller in 0..AT_ONCE {
            let (client, what) = (client.clone(), what.clone());
            calls.spawn(async move {
                let mut made = Vec::new();
                for number in (caller..count).step_by(AT_ONCE) {
                    let began = Instant::now();
                    let id = create(client.clone(), wanted(&format!("{what}-{number}"))).await;
                    made.push((id.expect("create a volume"), began.elapsed()));
                }
                made
            });
        }
        calls.join_all().await.into_iter().flatten().unzip()
    })
}

/// Deletes them, some at a time.
pub fn delete_all(driver: &Driver, ids: &[String]) {
    let client = ControllerClient::new(driver.channel());
    driver.wait(async {
        for some in ids.chunks(AT_ONCE) {
            let mut calls = JoinSet::new();
            for id in some {
                let (mut client, volume_id) = (client.clone(), id.clone());
                let request = DeleteVolumeRequest { volume_id, ..DeleteVolumeRequest::default() };
                calls.spawn(async move { client.delete_volume(request).await.map(|_| ()) });
            }
            for answer in calls.join_all().await {
                answer.expect("delete a volume");
            }
        }
    });
}

pub fn many_volumes_are_made_at_once(driver: &Driver) {
    let (ids, _) = make_many(driver, 2 * AT_ONCE);
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), 2 * AT_ONCE);
    delete_all(driver, &ids);
}
