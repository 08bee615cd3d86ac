//! Volumes that clients open by a name which their pod does not know. The catalog's leader is
//! asked, and then the pod is told of the volume as long as it is used.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::timeout;
use tonic::Request;

use crate::control::api::catalog::CatalogService;
use crate::control::data_path::DataPath;
use crate::control::node::Node;
use crate::control::proto::internal as proto;
use crate::control::proto::internal::catalog_server::Catalog as _;
use crate::control::sync::wants::KEPT_FOR;
use crate::io::clock;
use crate::types::VolumeId;
use crate::view::ClusterView;
use crate::worker::{Question, Resolution};

/// A client waits so long for an answer. It is shorter than the time that a handshake may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Questions that are being answered at a time.
const AT_ONCE_MAX: usize = 64;

/// Answers the questions of the data path.
pub async fn answer_questions(node: Arc<Node>, data_path: Arc<dyn DataPath>) {
    let mut asked = node.asked.lock().await;
    let mut answers = JoinSet::new();
    loop {
        while answers.len() >= AT_ONCE_MAX {
            // One that has panicked leaves its client to the deadline of handshakes.
            let _ended = answers.join_next().await;
        }
        while answers.try_join_next().is_some() {}
        let Some(Question { id, name }) = asked.recv().await else { return };
        let (node, data_path) = (node.clone(), data_path.clone());
        answers.spawn(async move {
            let answer = timeout(ANSWER_WITHIN, resolve(&node, name)).await;
            data_path.resolved(id, answer.unwrap_or(Resolution::OutOfReach));
        });
    }
}

/// Asks the leader, and waits until the data path knows the volume.
async fn resolve(node: &Arc<Node>, name: String) -> Resolution {
    let service = CatalogService { node: node.clone() };
    let mut request = Request::new(proto::ResolveRequest {
        cluster: node.identity.cluster.to_string(),
        pod: node.identity.pod.0,
        name,
    });
    request.set_timeout(ANSWER_WITHIN);
    let (volume, revision) = match service.resolve(request).await {
        Ok(answer) => (VolumeId(answer.get_ref().volume), answer.get_ref().revision),
        Err(status) => {
            tracing::debug!("the name of an export cannot be asked for: {}", status.message());
            return Resolution::OutOfReach;
        }
    };
    if volume == VolumeId(0) {
        return Resolution::Unknown;
    }
    if let Err(full) = node.want([volume], KEPT_FOR) {
        tracing::warn!(%volume, "a client cannot be served: {full}");
        return Resolution::OutOfReach;
    }
    let mut views = node.handed_over.subscribe();
    // The pod may know the volume as it was before the export.
    let knows =
        |view: &Arc<ClusterView>| view.revision >= revision && view.volume(volume).is_some();
    match views.wait_for(knows).await {
        Ok(_) => Resolution::Found(volume),
        Err(_) => Resolution::OutOfReach,
    }
}

/// Wants what clients use, and for some time what they have used.
pub async fn keep_wants(node: Arc<Node>) {
    let mut uses = node.uses.subscribe();
    loop {
        let used = uses.borrow_and_update().clone();
        let next = node.keep_wants(&used);
        // No want that comes meanwhile ends earlier.
        let left = next.map_or(KEPT_FOR, |next| next.since(clock::now()).min(KEPT_FOR));
        if let Ok(Err(_)) = timeout(left, uses.changed()).await {
            return;
        }
    }
}
