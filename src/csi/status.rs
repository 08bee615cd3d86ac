//! What callers of the driver are told when something is refused. This is the one place that maps
//! reasons of the API to the codes of the specification.

use tonic::{Code, Status};

use crate::control::reason::Reason;
use crate::csi::api::ApiError;

/// A request that is not as the specification says.
pub fn invalid(error: impl std::fmt::Display) -> Status {
    Status::invalid_argument(error.to_string())
}

/// A field that must be there.
pub fn missing(field: &str) -> Status {
    Status::invalid_argument(format!("{field} is missing"))
}

/// A volume that is not there, or no more.
pub fn no_volume(handle: &str) -> Status {
    Status::not_found(format!("there is no volume {handle:?}"))
}

/// A method of a capability that the driver does not have.
pub fn unimplemented(what: &str) -> Status {
    Status::unimplemented(format!("this driver has no {what}"))
}

impl From<ApiError> for Status {
    fn from(error: ApiError) -> Status {
        let code = match &error {
            ApiError::Unanswered { .. } => Code::Unavailable,
            ApiError::TooLate => Code::DeadlineExceeded,
            ApiError::Refused(status) => error.reason().map_or(status.code(), code_of),
        };
        Status::new(code, error.to_string())
    }
}

/// The code of the specification for a reason of the API.
fn code_of(reason: Reason) -> Code {
    match reason {
        Reason::TooFewDomains => Code::ResourceExhausted,
        Reason::BadSize | Reason::WouldShrink | Reason::TooManyShards => Code::OutOfRange,
        Reason::NoSuchClass => Code::InvalidArgument,
        Reason::NameNotFreeYet | Reason::BadPage => Code::Aborted,
        Reason::VolumeDeleted => Code::AlreadyExists,
        reason => reason.code(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::errors::Refusal;

    #[test]
    fn reasons_of_the_api_become_codes_of_the_specification() {
        for (reason, code) in [
            (Reason::TooFewDomains, Code::ResourceExhausted),
            (Reason::NoCapacity, Code::ResourceExhausted),
            (Reason::BadSize, Code::OutOfRange),
            (Reason::NoSuchClass, Code::InvalidArgument),
            (Reason::NoSuchNode, Code::NotFound),
            (Reason::VolumeInUse, Code::FailedPrecondition),
            (Reason::OtherMode, Code::AlreadyExists),
            (Reason::BadPage, Code::Aborted),
        ] {
            let refused = Status::from(Refusal::new(reason, "why"));
            let status = Status::from(ApiError::Refused(Box::new(refused)));
            assert_eq!((status.code(), status.message()), (code, "why"));
        }
        // What no pod of Holdfast has said keeps its code.
        let denied = ApiError::Refused(Box::new(Status::permission_denied("no")));
        assert_eq!(Status::from(denied).code(), Code::PermissionDenied);
    }
}
