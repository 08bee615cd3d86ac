//! Calls that need the catalog's leader: carried out here if this pod leads, else forwarded to it.
//! Without a leader they wait a bounded time. Every such call may safely be carried out twice.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use crate::control::api::deadline::timeout_of;
use crate::control::api::errors::{Refusal, of_catalog};
use crate::control::catalog::Catalog;
use crate::control::catalog_member::{AskError, Published};
use crate::control::command::listed;
use crate::control::node::Node;
use crate::control::reason::Reason;
use crate::control::state::CatalogState;

/// How long a call looks for a leader.
const LEADER_WITHIN: Duration = Duration::from_secs(10);
/// How long one pod may take before the call looks for another leader.
const ATTEMPT_WITHIN: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// So long before the caller's deadline it gets an answer that says what was missing.
const ANSWER_WITHIN: Duration = Duration::from_millis(100);
/// Marks a forwarded call, which is not forwarded again.
const PASSED_ON: &str = "holdfast-passed-on";

/// Why a call was not carried out here.
#[derive(Debug)]
pub enum Failure {
    /// The caller looks for the leader again.
    NotLeader,
    Final(Status),
}

impl From<Status> for Failure {
    fn from(status: Status) -> Failure {
        Failure::Final(status)
    }
}

impl From<AskError> for Failure {
    fn from(error: AskError) -> Failure {
        match error {
            AskError::Refused(error) => Failure::Final(of_catalog(&error)),
            AskError::NotLeader | AskError::Busy | AskError::Outdated | AskError::Stopped => {
                Failure::NotLeader
            }
        }
    }
}

/// Carries `request` out: with `local` when this pod leads, else with `remote` on the leader.
pub async fn on_leader<Req, Res, L, LocalFuture, R, RemoteFuture>(
    node: &Arc<Node>,
    request: Request<Req>,
    local: L,
    remote: R,
) -> Result<Response<Res>, Status>
where
    Req: Clone,
    L: Fn(Arc<Catalog>, Req) -> LocalFuture,
    LocalFuture: Future<Output = Result<Res, Failure>>,
    R: Fn(Channel, Request<Req>) -> RemoteFuture,
    RemoteFuture: Future<Output = Result<Response<Res>, Status>>,
{
    let passed_on = request.metadata().contains_key(PASSED_ON);
    let patience = timeout_of(request.metadata());
    let request = request.into_inner();
    let began = Instant::now();
    let callers = patience.map(|it| began + it.saturating_sub(ANSWER_WITHIN.min(it / 4)));
    let deadline = began + LEADER_WITHIN;
    let deadline = callers.map_or(deadline, |callers| callers.min(deadline));
    loop {
        let mut last = None;
        if let Some(catalog) = node.leading() {
            match within(callers, local(catalog, request.clone())).await {
                None => return Err(too_late()),
                Some(Ok(answer)) => return Ok(Response::new(answer)),
                Some(Err(Failure::Final(status))) => return Err(status),
                Some(Err(Failure::NotLeader)) => {}
            }
        } else if passed_on {
            let message = "this pod does not lead the catalog";
            return Err(Refusal::new(Reason::NotLeader, message).passing().into());
        } else if let Some((_, api)) = node.leader() {
            let mut call = Request::new(request.clone());
            call.metadata_mut().insert(PASSED_ON, "1".parse().expect("a plain value"));
            let left = deadline.saturating_duration_since(Instant::now());
            call.set_timeout(left.min(ATTEMPT_WITHIN));
            match remote(node.peers.channel(api), call).await {
                Ok(answer) => return Ok(answer),
                Err(status) if is_passing(&status) => last = Some(status),
                Err(status) => return Err(status),
            }
            node.set_leader(None);
        }
        let now = Instant::now();
        if now >= deadline {
            let is_early = callers.is_some_and(|callers| callers < began + LEADER_WITHIN);
            let reason = if is_early { Reason::DeadlineExceeded } else { Reason::NoLeader };
            return Err(Refusal::new(reason, no_leader(node, last.as_ref())).passing().into());
        }
        sleep(LOOK_EVERY.min(deadline - now)).await;
    }
}

/// `None`: the caller's deadline ended before the answer came.
async fn within<T>(deadline: Option<Instant>, answer: impl Future<Output = T>) -> Option<T> {
    match deadline {
        None => Some(answer.await),
        Some(deadline) => timeout_at(deadline, answer).await.ok(),
    }
}

fn too_late() -> Status {
    let message = "the deadline of the call ended before the catalog had an answer; what was asked \
                   for may still be done";
    Refusal::new(Reason::DeadlineExceeded, message).passing().into()
}

/// True when another try may succeed.
fn is_passing(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled)
        || (status.code() == Code::Unknown && std::error::Error::source(status).is_some())
}

/// Names the pods that are needed for a leader.
fn no_leader(node: &Node, last: Option<&Status>) -> String {
    let published = node.catalog().map(|catalog| catalog.published.borrow().clone());
    let mut text = "the catalog has no leader that this pod can reach".to_owned();
    if let Some(Published { group, state: Some(state), .. }) = &published {
        let voters: Vec<String> = group
            .voters
            .iter()
            .filter_map(|member| state.catalog.get(member))
            .map(|it| it.pod.to_string())
            .collect();
        let needed = voters.len() / 2 + 1;
        text += &format!("; {needed} of pods {} have to be up", voters.join(", "));
    }
    if let Some(recovery) = node.recovery() {
        let missing = recovery.with(|gathering| gathering.missing());
        text += &format!(
            "; it is being recovered, and waits for pods {}: `holdfast catalog status` tells",
            listed(&missing)
        );
    }
    if let Some(reason) = published.and_then(|published| published.failed) {
        text += &format!("; the catalog of this pod has stopped: {reason}");
    }
    if let Some(last) = last {
        text += &format!(" ({})", last.message());
    }
    text
}

/// The leader's state after everything that was acknowledged before the call.
pub async fn read(catalog: &Catalog) -> Result<(Arc<CatalogState>, Published), Failure> {
    catalog.barrier().await?;
    applied(catalog)
}

/// The state as this pod has applied it: with everything that it has answered.
pub fn applied(catalog: &Catalog) -> Result<(Arc<CatalogState>, Published), Failure> {
    let published = catalog.published.borrow().clone();
    let state = published.state.clone().ok_or(Failure::NotLeader)?;
    Ok((state, published))
}
