//! Exit codes, and the call errors behind them.

use std::process::ExitCode;

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
        self.code() == Code::Unavailable && std::error::Error::source(&self.status).is_some()
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
        write!(f, "could not {doing}: {}", status.message())
    }
}

impl std::error::Error for CallError {}

/// A command line that asks for something impossible, whatever the state of the cluster.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// The exit code for an error.
pub fn code_of(error: &anyhow::Error) -> ExitCode {
    if error.chain().any(|cause| cause.is::<UsageError>()) {
        return ExitCode::from(2);
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
