//! Metrics of the API: its requests by RPC and code.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tonic::Code;
use tonic::codegen::http::{HeaderMap, Request, Response};
use tonic::codegen::{BoxFuture, Service};
use tonic::server::NamedService;

use crate::telemetry::metrics::Samples;
use crate::telemetry::metrics::list;
use crate::telemetry::metrics::numbers::Histogram;

/// Different RPCs that are counted by name; beyond it they count as `other`.
const RPCS_MAX: usize = 256;
/// What an RPC is called that no service here has.
const UNKNOWN: &str = "unknown";
const OTHER: &str = "other";

/// The answers to one RPC.
#[derive(Default)]
struct Rpc {
    /// By code.
    answers: BTreeMap<i32, u64>,
    times: Histogram,
}

/// Requests to the API. A lock is held for a moment at the end of each.
#[derive(Default)]
pub struct ApiMeters(Mutex<BTreeMap<String, Rpc>>);

impl ApiMeters {
    /// Counts an answer to `path`, as in `/holdfast.v1.Volumes/List`.
    fn answered(&self, path: &str, code: Code, took: Duration) {
        let name = match code {
            // Anybody can invent names.
            Code::Unimplemented => UNKNOWN.to_owned(),
            _ => name_of(path),
        };
        let mut rpcs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_full = rpcs.len() >= RPCS_MAX && !rpcs.contains_key(&name);
        let rpc = rpcs.entry(if is_full { OTHER.to_owned() } else { name }).or_default();
        *rpc.answers.entry(code as i32).or_default() += 1;
        rpc.times.record(took, 1);
    }

    pub fn collect(&self, into: &mut Samples) {
        for (name, rpc) in self.0.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            for (code, count) in &rpc.answers {
                into.count(&list::API_REQUESTS, &[name, code_name(Code::from(*code))], *count);
            }
            into.histogram(&list::API_REQUEST_DURATION, &[name], rpc.times.value());
        }
    }
}

/// `Volumes.List` for `/holdfast.v1.Volumes/List`.
fn name_of(path: &str) -> String {
    let (service, method) = path.trim_start_matches('/').split_once('/').unwrap_or((path, ""));
    let service = service.rsplit('.').next().unwrap_or(service);
    format!("{service}.{method}")
}

/// The code as gRPC writes it.
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// Who counts answers.
pub trait Answers: Send + Sync + 'static {
    /// An answer to `path`, as in `/holdfast.v1.Volumes/List`.
    fn answered(&self, path: &str, code: Code, took: Duration);
}

impl Answers for ApiMeters {
    fn answered(&self, path: &str, code: Code, took: Duration) {
        ApiMeters::answered(self, path, code, took);
    }
}

/// A service whose requests are counted.
pub struct Counted<S, M = ApiMeters> {
    pub service: S,
    pub meters: Arc<M>,
}

impl<S: Clone, M> Clone for Counted<S, M> {
    fn clone(&self) -> Counted<S, M> {
        Counted { service: self.service.clone(), meters: Arc::clone(&self.meters) }
    }
}

impl<S: NamedService, M> NamedService for Counted<S, M> {
    const NAME: &'static str = S::NAME;
}

impl<S, M, Asked, Said> Service<Request<Asked>> for Counted<S, M>
where
    M: Answers,
    S: Service<Request<Asked>, Response = Response<Said>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Said>;
    type Error = Infallible;
    type Future = BoxFuture<Response<Said>, Infallible>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: Request<Asked>) -> Self::Future {
        let (path, began) = (request.uri().path().to_owned(), Instant::now());
        let (answer, meters) = (self.service.call(request), Arc::clone(&self.meters));
        Box::pin(async move {
            let answer = answer.await?;
            meters.answered(&path, code_of(answer.headers()), began.elapsed());
            Ok(answer)
        })
    }
}

/// An error comes with the headers; success, or the end of a stream, with the trailers.
fn code_of(headers: &HeaderMap) -> Code {
    headers.get("grpc-status").map_or(Code::Ok, |code| Code::from_bytes(code.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invented_rpcs_make_no_series() {
        let meters = ApiMeters::default();
        for number in 0..2 * RPCS_MAX {
            let path = format!("/holdfast.v1.Volumes/Invented{number}");
            meters.answered(&path, Code::Unimplemented, Duration::ZERO);
        }
        meters.answered("/holdfast.v1.Volumes/List", Code::Ok, Duration::ZERO);
        let names: Vec<String> = meters.0.lock().unwrap().keys().cloned().collect();
        assert_eq!(names, ["Volumes.List", UNKNOWN]);
        for number in 0..2 * RPCS_MAX {
            meters.answered(&format!("/a.B/C{number}"), Code::Ok, Duration::ZERO);
        }
        assert_eq!(meters.0.lock().unwrap().len(), RPCS_MAX + 1);
    }

    #[test]
    fn the_code_of_an_error_is_in_the_headers() {
        let mut headers = HeaderMap::new();
        assert_eq!(code_of(&headers), Code::Ok);
        headers.insert("grpc-status", "5".parse().unwrap());
        assert_eq!(code_name(code_of(&headers)), "NOT_FOUND");
    }
}
