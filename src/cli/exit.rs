//! Exit codes, and the call errors behind them.

use std::process::ExitCode;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::control::reason::{DOMAIN, Reason};

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

    /// Why the call was refused; `None` when no pod answered, or one of a newer version.
    pub fn reason(&self) -> Option<Reason> {
        Reason::of(&self.reason_word()?)
    }

    fn reason_word(&self) -> Option<String> {
        let info = self.status.get_details_error_info()?;
        (info.domain == DOMAIN).then_some(info.reason)
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
        write!(f, "could not {doing}: {}", status.message())?;
        match self.reason_word() {
            Some(word) => write!(f, " [{word}]"),
            None => Ok(()),
        }
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
     usable by itself, and `holdfast explain volume {name}` tells what is missing",
    .waited.as_secs()
)]
pub struct NotCreated {
    pub name: String,
    pub reason: String,
    pub waited: Duration,
}

/// What somebody waited for did not come.
#[derive(Debug, thiserror::Error)]
#[error(
    "{kind} {name} is not {wanted} after {} seconds: it is {now}; `holdfast explain {kind} {name}` \
     tells why", .waited.as_secs()
)]
pub struct WaitedInVain {
    pub kind: &'static str,
    pub name: String,
    pub wanted: String,
    pub now: String,
    pub waited: Duration,
}

/// An object that is not there, or no longer.
#[derive(Debug, thiserror::Error)]
#[error("there is no {kind} named {name:?}; `holdfast {kind} list` shows what there is")]
pub struct NotThere {
    pub kind: &'static str,
    pub name: String,
}

/// The exit code for an error.
pub fn code_of(error: &anyhow::Error) -> ExitCode {
    if error.chain().any(|cause| cause.is::<UsageError>()) {
        return ExitCode::from(2);
    }
    if error.chain().any(|cause| cause.is::<NotCreated>() || cause.is::<WaitedInVain>()) {
        return ExitCode::from(4);
    }
    if error.chain().any(|cause| cause.is::<NotThere>()) {
        return ExitCode::from(3);
    }
    let call = error.chain().find_map(|cause| cause.downcast_ref::<CallError>());
    ExitCode::from(call.map_or(1, |call| code_of_status(call.code())))
}

fn code_of_status(code: Code) -> u8 {
    match code {
        Code::InvalidArgument | Code::OutOfRange => 2,
        Code::NotFound => 3,
        Code::Unavailable | Code::DeadlineExceeded => 4,
        Code::AlreadyExists
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::ResourceExhausted => 5,
        Code::PermissionDenied | Code::Unauthenticated => 6,
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
    fn a_refusal_shows_its_reason() {
        let details = tonic_types::ErrorDetails::with_error_info(
            Reason::NameTaken.word(),
            DOMAIN,
            std::collections::HashMap::new(),
        );
        let status = Status::with_error_details(Code::AlreadyExists, "it exists", details);
        let error = CallError::new("create".to_owned(), "127.0.0.1:7400", status);
        assert_eq!(error.to_string(), "could not create: it exists [NAME_TAKEN]");
        assert_eq!(error.reason(), Some(Reason::NameTaken));
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
            (Code::ResourceExhausted, 5),
            (Code::PermissionDenied, 6),
        ] {
            assert_eq!(code_of_status(code), exit, "{code:?}");
        }
    }
}
