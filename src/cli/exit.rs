//! Exit codes, and the call errors behind them.

use std::process::ExitCode;
use std::time::Duration;

use tonic::{Code, Status};

/// A failed call to a pod.
#[derive(Debug)]
pub struct CallError {
    /// The attempted action, as in "create volume demo".
    doing: String,
    endpoint: String,
    status: Status,
}

impl CallError {
    pub fn new(doing: String, endpoint: &str, status: Status) -> CallError {
        CallError { doing, endpoint: endpoint.to_owned(), status }
    }

    pub fn code(&self) -> Code {
        self.status.code()
    }

    /// True when no pod answered, as opposed to a refusal.
    fn is_unreached(&self) -> bool {
        self.code() == Code::Unavailable && self.failed_on_the_way()
    }

    /// True when something answered that is no API of a pod: an NBD port, for instance.
    fn is_misdirected(&self) -> bool {
        let codes = [Code::Unknown, Code::Internal, Code::Cancelled];
        codes.contains(&self.code()) && self.failed_on_the_way()
    }

    fn failed_on_the_way(&self) -> bool {
        std::error::Error::source(&self.status).is_some()
    }
}

impl std::fmt::Display for CallError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let CallError { doing, endpoint, status } = self;
        if self.is_unreached() {
            return write!(
                f,
                "could not {doing}: no pod answers at {endpoint}; start one there, or name \
                 another with --endpoint or HOLDFAST_ENDPOINT"
            );
        }
        if self.is_misdirected() {
            return write!(
                f,
                "could not {doing}: what answers at {endpoint} is not the API of a pod ({}); name \
                 a pod's API with --endpoint or HOLDFAST_ENDPOINT, on port 7400 by default",
                status.message()
            );
        }
        write!(f, "could not {doing}: {}", status.message())
    }
}

impl std::error::Error for CallError {}

/// A command line that asks for something impossible, whatever the state of the cluster.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// A new volume that cannot be used yet.
#[derive(Debug, thiserror::Error)]
#[error(
    "volume {name} is recorded, but could not be used within {} seconds: {reason}; it becomes \
     usable by itself, and `holdfast volume show {name}` tells what is missing", .waited.as_secs()
)]
pub struct NotCreated {
    pub name: String,
    pub reason: String,
    pub waited: Duration,
}

/// The exit code for an error.
pub fn code_of(error: &anyhow::Error) -> ExitCode {
    if error.chain().any(|cause| cause.is::<UsageError>()) {
        return ExitCode::from(2);
    }
    if error.chain().any(|cause| cause.is::<NotCreated>()) {
        return ExitCode::from(4);
    }
    let call = error.chain().find_map(|cause| cause.downcast_ref::<CallError>());
    ExitCode::from(call.map_or(1, |call| code_of_status(call.code())))
}

fn code_of_status(code: Code) -> u8 {
    match code {
        Code::InvalidArgument | Code::OutOfRange => 2,
        Code::NotFound => 3,
        Code::Unavailable | Code::DeadlineExceeded => 4,
        Code::AlreadyExists | Code::FailedPrecondition | Code::Aborted => 5,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_api_of_a_pod_is_called_so() {
        let say = |status| CallError::new("list".to_owned(), "127.0.0.1:10809", status).to_string();
        let said = say(Status::from_error("h2 protocol error".into()));
        assert!(said.contains("127.0.0.1:10809 is not the API of a pod"), "{said}");
        assert_eq!(
            say(Status::internal("the catalog failed")),
            "could not list: the catalog failed"
        );
    }

    #[test]
    fn every_kind_of_failure_has_its_documented_code() {
        for (code, exit) in [
            (Code::Internal, 1),
            (Code::InvalidArgument, 2),
            (Code::NotFound, 3),
            (Code::Unavailable, 4),
            (Code::DeadlineExceeded, 4),
            (Code::AlreadyExists, 5),
            (Code::FailedPrecondition, 5),
        ] {
            assert_eq!(code_of_status(code), exit, "{code:?}");
        }
    }
}
