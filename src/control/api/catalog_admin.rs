//! Copies of the catalog, and its recovery.

use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::control::api::errors::Refusal;
use crate::control::api::route::{on_leader, read};
use crate::control::command::listed;
use crate::control::node::Node;
use crate::control::proto::catalog_admin_client::CatalogAdminClient;
use crate::control::proto::catalog_admin_server::CatalogAdmin;
use crate::control::proto::{
    BackupPiece, BackupRequest, GetRecoveryRequest, LeaveOutRequest, Recovery, RecoveryPod,
};
use crate::control::reason::Reason;
use crate::control::recovery::format::pieces;
use crate::control::recovery::gathering::{Gathering, Heard};
use crate::control::recovery::plan::copy_of;
use crate::control::recovery::running;
use crate::control::state::CatalogState;
use crate::io::clock;
use crate::types::PodId;

/// Pieces that wait for a slow client.
const PIECES_AHEAD: usize = 4;

pub struct CatalogAdminService {
    pub node: Arc<Node>,
}

type Pieces = Pin<Box<dyn Stream<Item = Result<BackupPiece, Status>> + Send>>;

#[tonic::async_trait]
impl CatalogAdmin for CatalogAdminService {
    type BackupStream = Pieces;

    async fn backup(&self, request: Request<BackupRequest>) -> Result<Response<Pieces>, Status> {
        on_leader(
            &self.node,
            request,
            |catalog, _| async move { Ok(copied(read(&catalog).await?.0)) },
            |channel, call| async move {
                let answer = CatalogAdminClient::new(channel).backup(call).await?;
                Ok(answer.map(|stream| Box::pin(stream) as Pieces))
            },
        )
        .await
    }

    async fn get_recovery(
        &self,
        _: Request<GetRecoveryRequest>,
    ) -> Result<Response<Recovery>, Status> {
        Ok(Response::new(described(self.node.recovery().as_deref())))
    }

    async fn leave_out(
        &self,
        request: Request<LeaveOutRequest>,
    ) -> Result<Response<Recovery>, Status> {
        let pods: Vec<PodId> = request.into_inner().pods.into_iter().map(PodId).collect();
        let none = "the catalog is not being recovered by this pod";
        let recovery =
            self.node.recovery().ok_or_else(|| Refusal::new(Reason::NoRecovery, none))?;
        if !recovery.leave_out(&pods) {
            let message = format!(
                "pods {}: one of them is not known, or has told what it knows; `holdfast catalog \
                 status` lists those that are missing",
                listed(&pods)
            );
            return Err(Refusal::new(Reason::NoSuchPod, message).into());
        }
        Ok(Response::new(described(Some(&recovery))))
    }
}

/// The pieces of a copy of this state.
fn copied(state: Arc<CatalogState>) -> Pieces {
    let (tell, told) = mpsc::channel(PIECES_AHEAD);
    // Ends with the receiver: the client is gone, or has all pieces.
    tokio::task::spawn_blocking(move || {
        let (head, rows) = copy_of(&state, clock::wall_ms(), false);
        for data in pieces(&head, rows) {
            if tell.blocking_send(Ok(BackupPiece { data: data.into() })).is_err() {
                return;
            }
        }
    });
    Box::pin(ReceiverStream::new(told))
}

fn described(recovery: Option<&running::Recovery>) -> Recovery {
    let Some(recovery) = recovery else { return Recovery::default() };
    let (found_history, found_revision) = recovery.with(Gathering::newest);
    let pod = |(pod, heard): (PodId, Heard)| {
        let (state, revision, reason) = match heard {
            Heard::Told(revision) => ("told", revision, String::new()),
            Heard::Nothing => ("missing", 0, String::new()),
            Heard::LeftOut => ("left-out", 0, String::new()),
            Heard::Refused(why) => ("refused", 0, why),
        };
        RecoveryPod { pod: pod.0, state: state.to_owned(), revision, reason }
    };
    Recovery {
        is_running: true,
        history: recovery.plan.history.to_string(),
        begun_unix_ms: recovery.plan.begun_ms,
        found_history: found_history.map(|history| history.to_string()).unwrap_or_default(),
        found_revision,
        pods: recovery.with(|gathering| gathering.pods().map(pod).collect()),
        failed: recovery.failed().unwrap_or_default(),
    }
}
