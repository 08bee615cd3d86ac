//! Tells a pod what concerns it: the server's side of Sync.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::control::api::errors::invalid;
use crate::control::node::Node;
use crate::control::proto::internal as proto;
use crate::control::sync::follower::{Follower, Idle};
use crate::control::sync::update::{Update, position_of};
use crate::control::sync::wants::WANTS_MAX;
use crate::level::{Level, Levels};
use crate::types::{PodId, VolumeId};

/// A stream of a pod says at least this often that it goes on, and how far the catalog is.
pub const SILENT_MAX: Duration = Duration::from_secs(3);
/// Messages that wait for a slow pod; changes meanwhile are merged.
const MESSAGES_AHEAD: usize = 2;

type Messages = mpsc::Sender<Result<proto::SyncMessage, Status>>;

/// Begins to tell the pod of the first request. Ends with the pod's requests.
pub fn tell_pod(
    node: Arc<Node>,
    first: proto::SyncRequest,
    requests: Streaming<proto::SyncRequest>,
) -> Result<ReceiverStream<Result<proto::SyncMessage, Status>>, Status> {
    let position = position_of(first.position).map_err(|error| invalid(&error))?;
    let volumes = first.volumes.into_iter().map(VolumeId).collect();
    let wants = wants_of(first.wants)?;
    let newest = Level(first.newest_level);
    let follower = Follower::new(PodId(first.pod), position, volumes, wants);
    let (messages, waiting) = mpsc::channel(MESSAGES_AHEAD);
    tokio::spawn(async move {
        // An error is the reader's reason to look elsewhere.
        if let Err(status) = tell(&node, follower, newest, requests, &messages).await {
            let _gone = messages.send(Err(status)).await;
        }
    });
    Ok(ReceiverStream::new(waiting))
}

fn wants_of(message: Option<proto::SyncWants>) -> Result<BTreeSet<VolumeId>, Status> {
    let wants = message.unwrap_or_default().volumes;
    match wants.len() {
        0..=WANTS_MAX => Ok(wants.into_iter().map(VolumeId).collect()),
        _ => Err(Status::invalid_argument("a pod wants too many volumes")),
    }
}

/// Tells a pod what it lacks, then each change, until the pod is gone. An error: the state of this
/// pod may be outdated.
async fn tell(
    node: &Node,
    mut follower: Follower,
    newest: Level,
    mut requests: Streaming<proto::SyncRequest>,
    messages: &Messages,
) -> Result<(), Status> {
    if node.recovery().is_some() {
        return ask_for_knowledge(node, follower.pod(), messages).await;
    }
    let absent = || Status::unavailable("this pod is not a member of the catalog");
    let catalog = node.catalog().ok_or_else(absent)?;
    let (me, mut published) = (catalog.row.member, catalog.published.clone());
    drop(catalog);
    let mut told_at: Option<Instant> = None;
    let mut told_leader = None;
    loop {
        let now = published.borrow_and_update().clone();
        let leader = now.leader(me).and_then(|leader| node.peers.pod_of(leader));
        let (Some(state), Some(leader)) = (&now.state, leader) else {
            return Err(Status::unavailable("this pod knows no leader of the catalog"));
        };
        let levels = Levels { newest, ..Levels::default() };
        levels.admit(state.cluster.level).map_err(|error| {
            let message = format!("the pod cannot be told of this cluster: {error}");
            Status::failed_precondition(message)
        })?;
        let is_due = told_at.is_none_or(|at| at.elapsed() >= SILENT_MAX);
        let speaks = told_leader != Some(leader) || is_due;
        let update = follower.next(state, if speaks { Idle::Now } else { Idle::Later });
        if update.is_some() || speaks {
            let api = node.peers.api_of(leader).map(|api| api.to_string());
            let message = proto::SyncMessage {
                leader_pod: leader.0,
                leader_api: api.unwrap_or_default(),
                ..proto::SyncMessage::default()
            };
            if !send_update(messages, &message, update.as_ref()).await {
                return Ok(());
            }
            (told_at, told_leader) = (Some(Instant::now()), Some(leader));
        }
        tokio::select! {
            // Changed or not, look again; this pod's member may be gone.
            changed = timeout(SILENT_MAX, published.changed()) => {
                if matches!(changed, Ok(Err(_))) {
                    return Err(absent());
                }
            }
            request = requests.message() => match request? {
                Some(request) => follower.want(wants_of(request.wants)?),
                None => return Ok(()),
            }
        }
    }
}

/// Asks a pod for what it knows, until the recovery ends. The pod then looks for the new catalog.
async fn ask_for_knowledge(node: &Node, pod: PodId, messages: &Messages) -> Result<(), Status> {
    let mut recoveries = node.recoveries();
    while let Some(recovery) = node.recovery() {
        let history = recovery.plan.history.to_string();
        let told = recovery.with(|gathering| gathering.has_told(pod));
        let recovering = Some(proto::Recovering { history, told });
        let message = proto::SyncMessage { recovering, ..proto::SyncMessage::default() };
        if messages.send(Ok(message)).await.is_err() {
            return Ok(());
        }
        // Ended or not, look again.
        let _ended = timeout(SILENT_MAX, recoveries.wait_for(Option::is_none)).await;
    }
    Err(Status::unavailable("the catalog was recovered"))
}

/// Sends an update in pieces; false when the receiver is gone.
async fn send_update(
    messages: &Messages,
    message: &proto::SyncMessage,
    update: Option<&Update>,
) -> bool {
    let mut pieces: VecDeque<_> = update.map(Update::pieces).unwrap_or_default().into();
    loop {
        let piece = pieces.pop_front();
        let more = !pieces.is_empty();
        let message = proto::SyncMessage { update: piece, more, ..message.clone() };
        if messages.send(Ok(message)).await.is_err() {
            return false;
        }
        if !more {
            return true;
        }
    }
}
