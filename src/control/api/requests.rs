//! What requests for changes have in common.

use std::collections::HashMap;

use tonic::Status;

use crate::control::api::errors::{Refusal, broken};
use crate::control::identity::random_uuid;
use crate::control::objects::selector::{Labels, check_labels};
use crate::control::reason::Reason;

/// Gives a request without an id one, so that it can be forwarded and repeated.
pub fn name_request(request_id: &mut String) -> Result<(), Status> {
    if request_id.is_empty() {
        let name = random_uuid()
            .map_err(|error| broken(format!("could not name the request: {error}")))?;
        *request_id = name.to_string();
    }
    Ok(())
}

/// The labels of a request.
pub fn checked(labels: HashMap<String, String>) -> Result<Labels, Status> {
    let labels: Labels = labels.into_iter().collect();
    match check_labels(&labels) {
        Ok(()) => Ok(labels),
        Err(error) => Err(Refusal::new(Reason::BadLabels, error.to_string()).into()),
    }
}
