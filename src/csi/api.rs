//! A client of the API for drivers. It knows several pods, and asks the next one when one does not
//! answer: the next endpoint, or another address of the same name. It keeps the deadline of the
//! request that it works for, and passes it on.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};
use tonic_types::StatusExt as _;

use crate::control::api::deadline::timeout_of;
use crate::control::connector::{ADDRESS_WITHIN, Connector, connector};
use crate::control::local;
use crate::control::reason::{DOMAIN, Reason};
use crate::security::credentials::{CredentialsError, Tls};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// The same for a name, which may have several addresses.
const CONNECT_BY_NAME_TIMEOUT: Duration = ADDRESS_WITHIN.saturating_mul(3);
/// How long one pod may take before the next one is asked. Longer than the API waits for shards.
const ATTEMPT_WITHIN: Duration = Duration::from_secs(6);
/// Before the same request is tried once more.
const AGAIN_AFTER: Duration = Duration::from_millis(100);
/// The time for a request of a caller that does not say.
const PATIENCE: Duration = Duration::from_secs(60);
/// So long before its deadline the caller gets an answer that says what was missing.
const ANSWER_WITHIN: Duration = Duration::from_millis(200);
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(2);
const KEEP_ALIVE_WITHIN: Duration = Duration::from_secs(3);

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{endpoint:?} is no endpoint of the API, such as 10.0.0.1:7400 or unix:/PATH/api.sock")]
    Endpoint { endpoint: String },
    #[error("no endpoint of the API is named")]
    NoEndpoint,
    #[error("could not find the socket of {endpoint}")]
    Socket {
        endpoint: String,
        #[source]
        source: std::io::Error,
    },
    #[error("the credentials cannot be used")]
    Credentials(#[from] CredentialsError),
}

/// Why a call had no result.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The cluster answered that it does not do it.
    #[error("{}", .0.message())]
    Refused(Box<Status>),
    #[error("no answer in time from the API at {endpoints}: {}", last.message())]
    Unanswered { endpoints: String, last: Box<Status> },
    #[error("the deadline of the request is too short")]
    TooLate,
}

impl ApiError {
    /// Why the cluster refused it; `None` when no pod answered, or one of a newer version.
    pub fn reason(&self) -> Option<Reason> {
        match self {
            ApiError::Refused(status) => reason_of(status),
            ApiError::Unanswered { .. } | ApiError::TooLate => None,
        }
    }

    /// Name of the object that a refusal is about.
    pub fn about(&self) -> Option<String> {
        match self {
            ApiError::Refused(status) => Some(status.get_details_resource_info()?.resource_name),
            ApiError::Unanswered { .. } | ApiError::TooLate => None,
        }
    }
}

fn reason_of(status: &Status) -> Option<Reason> {
    let info = status.get_details_error_info()?;
    Reason::of(&info.reason).filter(|_| info.domain == DOMAIN)
}

/// Until when a request must be answered.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(Instant);

impl Deadline {
    /// That of a request with this metadata, less a little for the answer's way.
    pub fn of(metadata: &MetadataMap) -> Deadline {
        let patience = timeout_of(metadata).unwrap_or(PATIENCE);
        let patience = patience.saturating_sub(ANSWER_WITHIN.min(patience / 10));
        Deadline(Instant::now() + patience.min(PATIENCE))
    }

    /// That of work of our own.
    pub fn after(time: Duration) -> Deadline {
        Deadline(Instant::now() + time)
    }

    /// The time that is left.
    pub fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }
}

struct Pod {
    endpoint: String,
    /// What it is reached by, over TLS.
    dialled: Option<(Endpoint, Connector)>,
    /// With the number of channels before it.
    channel: Mutex<(Channel, u64)>,
}

impl std::fmt::Debug for Pod {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pod").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

impl Pod {
    fn channel(&self) -> MutexGuard<'_, (Channel, u64)> {
        self.channel.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connects to another address of the name, unless another call has seen to that.
    fn dial_anew(&self, number: u64) {
        let Some((endpoint, connector)) = &self.dialled else { return };
        let mut channel = self.channel();
        if channel.1 == number {
            connector.turn();
            let next = endpoint.connect_with_connector_lazy(connector.clone());
            *channel = (next, number + 1);
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Api {
    pods: Vec<Pod>,
    /// The one that answered last.
    preferred: AtomicUsize,
}

/// What to do after an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    GiveUp,
    AskAgain,
    AskNext,
}

impl Api {
    /// A client of `host:port,...`, under TLS if it has credentials, or of `unix:PATH`.
    pub fn new(endpoints: &str, tls: Option<&Tls>) -> Result<Api, OpenError> {
        let names = endpoints.split(',').map(str::trim).filter(|name| !name.is_empty());
        let pods = names.map(|name| pod(name, tls));
        let pods = pods.collect::<Result<Vec<Pod>, OpenError>>()?;
        match pods.is_empty() {
            true => Err(OpenError::NoEndpoint),
            false => Ok(Api { pods, preferred: AtomicUsize::new(0) }),
        }
    }

    /// Calls `with` a pod until one answers, or the deadline ends. A request that changes something
    /// has an id, so that it is carried out once.
    pub async fn call<Req, Res, Answer>(
        &self,
        deadline: Deadline,
        request: Req,
        with: impl Fn(Channel, Request<Req>) -> Answer,
    ) -> Result<Res, ApiError>
    where
        Req: Clone,
        Answer: Future<Output = Result<Response<Res>, Status>>,
    {
        let (mut last, mut silent) = (None, 0);
        loop {
            let limit = deadline.left().min(ATTEMPT_WITHIN);
            if limit.is_zero() {
                return Err(self.unanswered(last));
            }
            let at = self.preferred.load(Ordering::Relaxed) % self.pods.len();
            let mut call = Request::new(request.clone());
            call.set_timeout(limit);
            let (channel, number) = self.pods[at].channel().clone();
            let answer = with(channel, call);
            let status = match timeout(limit, answer).await {
                Ok(Ok(answer)) => return Ok(answer.into_inner()),
                Ok(Err(status)) => status,
                Err(_) => Status::deadline_exceeded("the pod took too long"),
            };
            match then(&status) {
                Then::GiveUp => return Err(ApiError::Refused(Box::new(status))),
                Then::AskAgain => silent = self.pods.len(),
                Then::AskNext => {
                    silent += 1;
                    self.pods[at].dial_anew(number);
                    self.pass_over(at, &status);
                }
            }
            last = Some(status);
            if silent >= self.pods.len() {
                silent = 0;
                sleep(AGAIN_AFTER.min(deadline.left())).await;
            }
        }
    }

    /// The next pod is asked from now on, unless another call has found one meanwhile.
    fn pass_over(&self, at: usize, status: &Status) {
        let next = (at + 1) % self.pods.len();
        let order = Ordering::Relaxed;
        if self.preferred.compare_exchange(at, next, order, order).is_ok() && next != at {
            let (pod, next) = (&self.pods[at].endpoint, &self.pods[next].endpoint);
            tracing::warn!(pod, next, "a pod does not answer: {}", status.message());
        }
    }

    fn unanswered(&self, last: Option<Status>) -> ApiError {
        let names: Vec<&str> = self.pods.iter().map(|pod| pod.endpoint.as_str()).collect();
        match last {
            None => ApiError::TooLate,
            Some(last) => {
                ApiError::Unanswered { endpoints: names.join(", "), last: Box::new(last) }
            }
        }
    }
}

fn then(status: &Status) -> Then {
    match (reason_of(status), status.code()) {
        (Some(Reason::ShardsWaiting | Reason::PlacementStale), _) => Then::AskAgain,
        (
            Some(
                Reason::NoLeader
                | Reason::NotLeader
                | Reason::LeaderChanged
                | Reason::DeadlineExceeded,
            ),
            _,
        ) => Then::AskNext,
        (Some(_), _) => Then::GiveUp,
        (None, Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled) => Then::AskNext,
        // It may be behind with whom to trust, or its clock is wrong.
        (None, Code::Unauthenticated) => Then::AskNext,
        // The connection broke: no pod has said so.
        (None, _) if std::error::Error::source(status).is_some() => Then::AskNext,
        (None, _) => Then::GiveUp,
    }
}

fn pod(endpoint: &str, tls: Option<&Tls>) -> Result<Pod, OpenError> {
    let made = |channel, dialled| Pod {
        endpoint: endpoint.to_owned(),
        dialled,
        channel: Mutex::new((channel, 0)),
    };
    let wrong = || OpenError::Endpoint { endpoint: endpoint.to_owned() };
    if let Some(path) = endpoint.strip_prefix("unix:") {
        let fail = |source| OpenError::Socket { endpoint: endpoint.to_owned(), source };
        let path = local::short(Path::new(path)).map_err(fail)?;
        let uri = format!("unix:{}", path.display());
        let parsed = Endpoint::from_shared(uri).map_err(|_| wrong())?;
        return Ok(made(watched(parsed).connect_lazy(), None));
    }
    let (scheme, address) = endpoint.split_once("://").unwrap_or(("", endpoint));
    let parsed = Endpoint::from_shared(format!("http://{address}")).map_err(|_| wrong())?;
    parsed.uri().port().ok_or_else(wrong)?;
    match (scheme, tls) {
        ("" | "https", Some(tls)) => {
            let host = parsed.uri().host().unwrap_or_default().trim_matches(['[', ']']);
            let is_name = host.parse::<std::net::IpAddr>().is_err();
            let mut endpoint = watched(parsed);
            if is_name {
                endpoint = endpoint.connect_timeout(CONNECT_BY_NAME_TIMEOUT);
            }
            let connector = connector(tls)?;
            let channel = endpoint.connect_with_connector_lazy(connector.clone());
            Ok(made(channel, Some((endpoint, connector))))
        }
        ("" | "http", _) => Ok(made(watched(parsed).connect_lazy(), None)),
        _ => Err(wrong()),
    }
}

/// Notices within seconds that a machine is gone.
fn watched(endpoint: Endpoint) -> Endpoint {
    endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE_EVERY)
        .keep_alive_timeout(KEEP_ALIVE_WITHIN)
        .tcp_nodelay(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::errors::Refusal;
    use crate::testing::tls_fixture::Cluster;

    #[test]
    fn a_refusal_ends_a_call_and_silence_does_not() {
        let of = |reason| Status::from(Refusal::new(reason, ""));
        assert_eq!(then(&of(Reason::NoCapacity)), Then::GiveUp);
        assert_eq!(then(&of(Reason::ShardsWaiting)), Then::AskAgain);
        assert_eq!(then(&of(Reason::NoLeader)), Then::AskNext);
        assert_eq!(then(&Status::unavailable("")), Then::AskNext);
        assert_eq!(then(&Status::unauthenticated("")), Then::AskNext);
        assert_eq!(then(&Status::permission_denied("")), Then::GiveUp);
        let broken = Status::from_error(Box::new(std::io::Error::other("broken")));
        assert_eq!(then(&broken), Then::AskNext);
    }

    #[tokio::test]
    async fn endpoints_are_checked() {
        for wrong in ["", ",", "nonsense", "https://h:1", "ftp://h:1", "h:1,:"] {
            assert!(Api::new(wrong, None).is_err(), "{wrong}");
        }
        let api = Api::new("127.0.0.1:7400, node-2:7400,unix:/run/api.sock", None).unwrap();
        assert_eq!(api.pods.len(), 3);
    }

    /// Many calls fail at once when a pod is gone: they dial anew once.
    #[tokio::test]
    async fn a_pod_that_does_not_answer_is_dialled_anew_once() {
        let credentials = Cluster::new(1).credentials("csi-node/n");
        let tls = Tls::new(&credentials, credentials.trust()).unwrap();
        let api = Api::new("holdfast-api.example:7400", Some(&tls)).unwrap();
        let number = || api.pods[0].channel().1;
        api.pods[0].dial_anew(0);
        api.pods[0].dial_anew(0);
        assert_eq!(number(), 1);
        api.pods[0].dial_anew(1);
        assert_eq!(number(), 2);
    }

    #[tokio::test]
    async fn a_deadline_leaves_time_for_the_answer() {
        let mut call = Request::new(());
        call.set_timeout(Duration::from_secs(10));
        let left = Deadline::of(call.metadata()).left();
        assert!(left <= Duration::from_millis(9800) && left > Duration::from_secs(9), "{left:?}");
        assert!(Deadline::of(&MetadataMap::new()).left() > Duration::from_secs(50));
    }
}
