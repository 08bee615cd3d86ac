//! Carries out a recovery on the pod that recovers, and tells what this pod knows to a pod that
//! does.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status};

use crate::control::catalog::chain;
use crate::control::membership::{self, MembershipError};
use crate::control::node::Node;
use crate::control::proto::internal::{OfferHead, OfferPiece};
use crate::control::recovery::format::{Copy, pieces};
use crate::control::recovery::gathering::Gathering;
use crate::control::recovery::merge::MergeError;
use crate::control::recovery::plan::{PlanError, copy_of, copy_of_told, load};
use crate::control::recovery::running::Recovery;
use crate::io::clock;
use crate::types::Uuid;

/// Pieces that wait to be sent.
const PIECES_AHEAD: usize = 4;
/// An offer that takes longer is sent anew.
const OFFER_WITHIN: Duration = Duration::from_secs(300);
/// Before another try to make the new catalog.
const AGAIN_AFTER: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error("what this pod knows cannot be used for a recovery")]
    Merge(#[from] MergeError),
    #[error("the recovered catalog cannot be written")]
    Member(#[from] MembershipError),
}

/// Finds the recovery that was left for this pod, and lets it know what this pod knows.
pub fn resume(node: &Node) -> Result<Option<Arc<Recovery>>, RecoveryError> {
    let data = node.data();
    let Some(loaded) = load(&data)? else { return Ok(None) };
    let me = node.identity.pod;
    let recovery = Recovery::new(loaded, me)?;
    let Knowledge { is_complete, copy } = knowledge(node);
    recovery.hear(me, is_complete, copy)?;
    tracing::warn!("the catalog is to be recovered: waiting for what other pods know");
    Ok(Some(Arc::new(recovery)))
}

/// Waits until everybody has told, then makes the new catalog. Returns when it runs.
pub async fn recover(node: Arc<Node>) {
    let Some(recovery) = node.recovery() else { return };
    let mut heard = recovery.heard();
    loop {
        heard.borrow_and_update();
        if recovery.with(Gathering::is_complete) {
            match make(&node, &recovery).await {
                Ok(()) => break,
                Err(error) => {
                    let why = chain(&error);
                    tracing::error!("the catalog cannot be recovered: {why}");
                    recovery.fail(why);
                }
            }
            // Something may be heard that mends it; a full disk may have room again.
            let _again = tokio::time::timeout(AGAIN_AFTER, heard.changed()).await;
        } else if heard.changed().await.is_err() {
            return;
        }
    }
    node.set_recovery(None);
    tracing::warn!("the catalog is recovered");
}

async fn make(node: &Arc<Node>, recovery: &Recovery) -> Result<(), RecoveryError> {
    let merged = recovery.with(|gathering| gathering.finish(clock::wall_ms()))?;
    for note in &merged.notes {
        tracing::warn!("recovery: {note}");
    }
    membership::found(node, recovery.plan.clone(), merged.state).await?;
    Ok(())
}

/// What this pod knows of the cluster.
struct Knowledge {
    /// It is what a member of the catalog had.
    is_complete: bool,
    copy: Copy,
}

/// The member's state, if this pod has one that is not behind what the pod was told.
fn knowledge(node: &Node) -> Knowledge {
    let member = node.catalog().and_then(|catalog| catalog.published.borrow().state.clone());
    let told = node.mirror_copy();
    let made_ms = clock::wall_ms();
    match member.filter(|state| state.revision() >= told.to.revision) {
        Some(state) => {
            // The key of the authority stays where it is.
            let (head, rows) = copy_of(&state, made_ms, false);
            Knowledge { is_complete: true, copy: Copy { head, rows: rows.collect() } }
        }
        None => {
            let copy = copy_of_told(told, node.identity.cluster, made_ms);
            Knowledge { is_complete: false, copy }
        }
    }
}

/// Tells what this pod knows to a pod that recovers the catalog as `history`.
pub async fn offer(node: &Node, target: SocketAddr, history: Uuid) -> Result<(), Status> {
    let Knowledge { is_complete, copy } = knowledge(node);
    let head = OfferHead {
        cluster: node.identity.cluster.to_string(),
        pod: node.identity.pod.0,
        history: history.to_string(),
        is_complete,
    };
    let (tell, told) = mpsc::channel(PIECES_AHEAD);
    // Ends with the receiver: the call failed, or has all pieces.
    tokio::task::spawn_blocking(move || {
        let mut head = Some(head);
        for data in pieces(&copy.head, copy.rows.into_iter()) {
            let piece = OfferPiece { head: head.take(), data: data.into() };
            if tell.blocking_send(piece).is_err() {
                return;
            }
        }
    });
    let mut request = Request::new(ReceiverStream::new(told));
    request.set_timeout(OFFER_WITHIN);
    node.peers.streaming(target).offer(request).await?;
    tracing::info!(%target, "told what this pod knows: the catalog is recovered there");
    Ok(())
}
