//! On the catalog's leader: has access sets committed in the shards of volumes.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::control::access::{AccessRounds, HELP_AFTER, helper};
use crate::control::catalog::chain;
use crate::control::data_path::DataPath;
use crate::control::node::Node;
use crate::control::proto::internal::rounds_client::RoundsClient;
use crate::control::proto::internal::{SetAccessRequest, SetAccessResponse};
use crate::types::{AccessSet, BlockError, Generation, VolumeId};
use crate::volume::access::AccessDone;
use crate::worker::AccessAnswer;

/// A volume that this pod wants is here within this time, if the catalog works.
const VOLUME_HERE_WITHIN: Duration = Duration::from_secs(5);
/// So long is a volume wanted after a round over its shards.
const ROUND_WANTS_FOR: Duration = Duration::from_secs(10);
const RETRY_AFTER: Duration = Duration::from_millis(200);
/// Interval of checks when nothing wakes the task earlier.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// The round went to all shards that the volume has.
fn is_whole(result: &Result<AccessDone, BlockError>, shards: u64) -> bool {
    result.as_ref().is_ok_and(|done| done.shards as u64 >= shards)
}

/// On the leader: has access sets committed in the shards.
pub async fn set_access(node: Arc<Node>, data_path: Arc<dyn DataPath>) {
    let mut rounds = AccessRounds::default();
    let mut waiting = JoinSet::new();
    loop {
        let Some(catalog) = node.leading() else {
            rounds.forget();
            // With the results that were not looked at: they are of another time of leading.
            waiting = JoinSet::new();
            sleep(LOOK_EVERY).await;
            continue;
        };
        let mut published = catalog.published.clone();
        let state = published.borrow_and_update().state.clone();
        let due = state.map(|state| rounds.due(&state)).unwrap_or_default();
        for (volume, set) in due {
            let (node, data_path) = (node.clone(), data_path.clone());
            let shards = rounds.shards_due(volume);
            waiting.spawn(async move {
                let result = carry_out(&node, &*data_path, volume, set).await;
                if !is_whole(&result, shards) {
                    // Only this volume waits for its next try.
                    sleep(RETRY_AFTER).await;
                }
                (volume, result)
            });
        }
        tokio::select! {
            Some(ended) = waiting.join_next() => {
                let Ok((volume, result)) = ended else { continue };
                if let Some(command) = rounds.ended(volume, result)
                    && let Err(error) = catalog.propose(command).await
                {
                    tracing::info!("could not record an access set: {}", chain(&error));
                }
            }
            _ = timeout(LOOK_EVERY, published.changed()) => {}
        }
        // With as many wants as may be, a round may end early, and begins again.
        let _full = node.want(rounds.on_their_way(), ROUND_WANTS_FOR);
    }
}

/// Has one round carried out: through this pod's data path, and by other pods in turn when that
/// takes long. This pod may be the only one that does not reach a shard.
async fn carry_out(
    node: &Node,
    data_path: &dyn DataPath,
    volume: VolumeId,
    set: AccessSet,
) -> Result<AccessDone, BlockError> {
    let own = set_access_of(node, data_path, volume, set.clone());
    tokio::pin!(own);
    for attempt in 0.. {
        tokio::select! {
            result = &mut own => return result,
            () = sleep(HELP_AFTER) => {}
        }
        tokio::select! {
            result = &mut own => return result,
            // One that could not do it is no reason to stop asking others.
            helped = have_carried_out(node, volume, &set, attempt) => {
                if let Some(done) = helped {
                    return Ok(done);
                }
            }
        }
    }
    unreachable!("attempts do not end")
}

/// Asks another pod. `None`: there is none, or it could not do it.
async fn have_carried_out(
    node: &Node,
    volume: VolumeId,
    set: &AccessSet,
    attempt: usize,
) -> Option<AccessDone> {
    let state = node.catalog()?.published.borrow().state.clone()?;
    let own = node.identity.pod;
    let wanted = set.generation;
    let pod = node.reports.with(|pods| helper(&state, pods, own, volume, wanted, attempt))?;
    let api = node.peers.api_of(pod)?;
    let _room = node.helps.acquire().await.ok()?;
    let request = SetAccessRequest {
        cluster: node.identity.cluster.to_string(),
        volume: volume.0,
        set: serde_json::to_vec(set).expect("our own types have a JSON form").into(),
    };
    match RoundsClient::new(node.peers.channel(api)).set_access(request).await {
        Ok(answer) => {
            tracing::info!(%volume, %pod, "another pod has carried out a round of access sets");
            let SetAccessResponse { generation, highest, shards } = answer.into_inner();
            let (generation, highest) = (Generation(generation), Generation(highest));
            Some(AccessDone { generation, highest, shards: usize::try_from(shards).ok()? })
        }
        Err(status) => {
            tracing::debug!(%volume, %pod, "a round is still waited for: {}", status.message());
            None
        }
    }
}

/// Has one round carried out through this pod's data path. The volume may not concern this pod: it
/// wants it meanwhile.
pub async fn set_access_of(
    node: &Node,
    data_path: &dyn DataPath,
    volume: VolumeId,
    set: AccessSet,
) -> Result<AccessDone, BlockError> {
    let mut views = node.handed_over.subscribe();
    if views.borrow().volume(volume).is_none() {
        node.want([volume], ROUND_WANTS_FOR).map_err(|_| BlockError::Busy)?;
    }
    let comes = views.wait_for(|view| view.volume(volume).is_some());
    let is_here = timeout(VOLUME_HERE_WITHIN, comes).await.is_ok_and(|seen| seen.is_ok());
    if !is_here {
        return Err(BlockError::Busy);
    }
    let (told, answer) = oneshot::channel();
    let told = AccessAnswer(Box::new(move |result| {
        // An error means that this pod does not lead any more.
        let _gone = told.send(result);
    }));
    data_path.set_access(volume, set, told);
    answer.await.unwrap_or(Err(BlockError::Busy))
}
