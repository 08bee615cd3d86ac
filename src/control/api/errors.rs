//! Errors of the API: `google.rpc` status details with a stable reason. This is the one place that
//! maps errors of the control plane to reasons, and so to codes.

use std::collections::HashMap;
use std::fmt::Display;
use std::time::Duration;

use tonic::Status;
use tonic_types::{ErrorDetails, StatusExt};

use crate::control::catalog::chain;
use crate::control::objects::key::Kind;
use crate::control::objects::query::QueryError;
use crate::control::placement::PlacementError;
use crate::control::reason::{DOMAIN, Reason};
use crate::control::state::CatalogError;

/// After this time another try makes sense when nothing says otherwise.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// A refusal that is being put together; ends as a [`Status`].
#[derive(Clone, Debug)]
pub struct Refusal {
    reason: Reason,
    message: String,
    metadata: HashMap<String, String>,
    /// Kind and name of the object that it is about.
    about: Option<(Kind, String)>,
    retry_after: Option<Duration>,
}

impl Refusal {
    pub fn new(reason: Reason, message: impl Into<String>) -> Refusal {
        Refusal {
            reason,
            message: message.into(),
            metadata: HashMap::new(),
            about: None,
            retry_after: None,
        }
    }

    /// Names the object.
    pub fn about(mut self, kind: Kind, name: impl Into<String>) -> Refusal {
        self.about = Some((kind, name.into()));
        self
    }

    /// Adds a number or name for programs.
    pub fn with(mut self, key: &str, value: impl Display) -> Refusal {
        self.metadata.insert(key.to_owned(), value.to_string());
        self
    }

    /// Says that the same call may succeed soon.
    pub fn passing(mut self) -> Refusal {
        self.retry_after = Some(RETRY_AFTER);
        self
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Status {
        let Refusal { reason, message, metadata, about, retry_after } = refusal;
        let mut details = ErrorDetails::with_error_info(reason.word(), DOMAIN, metadata);
        if let Some((kind, name)) = about {
            details.set_resource_info(kind.word(), name, "", "");
        }
        if retry_after.is_some() {
            details.set_retry_info(retry_after);
        }
        Status::with_error_details(reason.code(), message, details)
    }
}

/// A request with content that cannot be read.
pub fn invalid(error: &dyn std::error::Error) -> Status {
    Refusal::new(Reason::BadRequest, chain(error)).into()
}

/// Something that should not happen.
pub fn broken(message: impl Into<String>) -> Status {
    Refusal::new(Reason::Broken, message).into()
}

/// An object that is not there.
pub fn no_such(kind: Kind, name: &str) -> Status {
    let reason = match kind {
        Kind::Node => Reason::NoSuchNode,
        Kind::Pod => Reason::NoSuchPod,
        Kind::Disk => Reason::NoSuchDisk,
        Kind::Class => Reason::NoSuchClass,
        Kind::Volume => Reason::NoSuchVolume,
        Kind::Shard => Reason::NoSuchShard,
        Kind::Attachment => Reason::NoSuchAttachment,
        // It is forgotten after a while.
        Kind::Event => Reason::NoSuchEvent,
    };
    let word = kind.word();
    let message =
        format!("there is no {word} named {name:?}; `holdfast {word} list` shows what there is");
    Refusal::new(reason, message).about(kind, name).into()
}

/// What the catalog refused.
pub fn of_catalog(error: &CatalogError) -> Status {
    let text = chain(error);
    match error {
        CatalogError::NameTaken { name } => {
            let text = format!("{text}; choose another name, or delete it first");
            Refusal::new(Reason::NameTaken, text).about(Kind::Volume, name)
        }
        CatalogError::NoSuchVolume { name } => return no_such(Kind::Volume, name),
        CatalogError::NameNotFreeYet { name } => {
            Refusal::new(Reason::NameNotFreeYet, text).about(Kind::Volume, name).passing()
        }
        CatalogError::VolumeDeleted { name } => {
            let text = format!(
                "{text}; `holdfast volume undelete {name}` brings it back, and `holdfast volume \
                 delete {name} --purge` frees its name and its space"
            );
            Refusal::new(Reason::VolumeDeleted, text).about(Kind::Volume, name)
        }
        CatalogError::NotDeleted { name } => {
            Refusal::new(Reason::NotDeleted, text).about(Kind::Volume, name)
        }
        CatalogError::BadRetention => Refusal::new(Reason::BadRetention, text),
        CatalogError::Shrinks { name, wanted_bytes, size_bytes } => {
            let refusal = Refusal::new(Reason::WouldShrink, text).about(Kind::Volume, name);
            refusal.with("wanted_bytes", wanted_bytes).with("size_bytes", size_bytes)
        }
        CatalogError::TooManyShards { name, size_bytes, largest_bytes } => {
            let text = format!("{text}; make a larger volume, and copy the data");
            let refusal = Refusal::new(Reason::TooManyShards, text).about(Kind::Volume, name);
            refusal.with("size_bytes", size_bytes).with("largest_bytes", largest_bytes)
        }
        CatalogError::NoSuchClass { name, .. } => {
            Refusal::new(Reason::NoSuchClass, text).about(Kind::Class, name)
        }
        CatalogError::ClassTaken { name } => {
            Refusal::new(Reason::NameTaken, text).about(Kind::Class, name)
        }
        CatalogError::ClassInUse { name, .. } => {
            Refusal::new(Reason::ClassInUse, text).about(Kind::Class, name)
        }
        CatalogError::BadClass(_) => Refusal::new(Reason::BadClass, text),
        CatalogError::BadIoTimeout => Refusal::new(Reason::BadIoTimeout, text),
        CatalogError::Conflict { revision, .. } => {
            let text = format!("{text}; read it again, and decide anew");
            Refusal::new(Reason::RevisionConflict, text).with("revision", revision)
        }
        CatalogError::BadLabels => Refusal::new(Reason::BadLabels, text),
        CatalogError::WrongPod { pod } => {
            Refusal::new(Reason::WrongPod, text).about(Kind::Pod, pod.to_string())
        }
        CatalogError::RequestReused { .. } => Refusal::new(Reason::RequestIdReused, text),
        CatalogError::BadName { .. } => Refusal::new(Reason::BadName, text),
        CatalogError::BadSize { size_bytes } => {
            Refusal::new(Reason::BadSize, text).with("size_bytes", size_bytes)
        }
        CatalogError::BadRequestId => Refusal::new(Reason::BadRequestId, text),
        CatalogError::NoSuchPod { pod } => {
            Refusal::new(Reason::NoSuchPod, text).about(Kind::Pod, pod.to_string())
        }
        CatalogError::NoSuchNode { node } => return no_such(Kind::Node, node),
        CatalogError::NodeLost { node } => {
            Refusal::new(Reason::NodeLost, text).about(Kind::Node, node)
        }
        CatalogError::NodeRebooted { node } => {
            Refusal::new(Reason::NodeRebooted, text).about(Kind::Node, node)
        }
        CatalogError::VolumeOpen { name } => {
            Refusal::new(Reason::VolumeOpen, text).about(Kind::Volume, name)
        }
        CatalogError::Held { name, holder } => {
            let refusal = Refusal::new(Reason::VolumeInUse, text).about(Kind::Volume, name);
            refusal.with("holder", holder)
        }
        CatalogError::NotPublished { name, .. } => {
            Refusal::new(Reason::NotPublished, text).about(Kind::Volume, name)
        }
        CatalogError::Formatted { name, .. } => {
            Refusal::new(Reason::Formatted, text).about(Kind::Volume, name)
        }
        CatalogError::OtherMode { node } => {
            Refusal::new(Reason::OtherMode, text).about(Kind::Node, node)
        }
        CatalogError::TooManyAttachments { name } => {
            Refusal::new(Reason::TooManyAttachments, text).about(Kind::Volume, name)
        }
        CatalogError::NoSuchToken { .. } => Refusal::new(Reason::NoSuchToken, text),
        CatalogError::NoSuchCertificate { .. } => Refusal::new(Reason::NoSuchCertificate, text),
        CatalogError::AuthorityExists => Refusal::new(Reason::AuthorityExists, text),
        CatalogError::NoAuthority => Refusal::new(Reason::NoAuthority, text),
        CatalogError::AuthorityInReplacement
        | CatalogError::AuthorityNotInUse
        | CatalogError::AuthorityInUse => Refusal::new(Reason::AuthorityInReplacement, text),
        CatalogError::AuthorityRetired => Refusal::new(Reason::AuthorityRetired, text),
        CatalogError::NoReplacement => Refusal::new(Reason::NoReplacement, text),
        CatalogError::AuthorityReplaced => {
            Refusal::new(Reason::AuthorityReplaced, format!("{text}; ask again")).passing()
        }
        CatalogError::TooOld(_) | CatalogError::NoSuchLevel { .. } => {
            Refusal::new(Reason::VersionTooOld, text)
        }
        CatalogError::PodTooOld { pod, .. } => {
            let text = format!("{text}; upgrade it first, or declare its node lost");
            Refusal::new(Reason::VersionTooOld, text).about(Kind::Pod, pod.to_string())
        }
        CatalogError::TooManyPods => Refusal::new(Reason::TooManyPods, text),
        CatalogError::TooManyTokens => Refusal::new(Reason::TooManyTokens, text),
        CatalogError::TooManyCertificates { .. } => Refusal::new(Reason::TooManyCertificates, text),
        CatalogError::CertificateOfPod => Refusal::new(Reason::CertificateOfPod, text),
        CatalogError::StalePlacement => {
            Refusal::new(Reason::PlacementStale, format!("{text}; try again")).passing()
        }
    }
    .into()
}

/// Why a query was refused.
pub fn of_query(error: &QueryError) -> Status {
    let reason = match error {
        QueryError::Selector(_) => Reason::BadSelector,
        QueryError::Phase { .. } => Reason::BadRequest,
        QueryError::PageSize { .. }
        | QueryError::PageToken(_)
        | QueryError::OtherFilters
        | QueryError::OtherHistory => Reason::BadPage,
    };
    Refusal::new(reason, chain(error)).into()
}

/// Why replicas were not placed.
pub fn of_placement(error: &PlacementError) -> Status {
    match error {
        PlacementError::BadReplicas { replicas } => {
            Refusal::new(Reason::BadReplicas, error.to_string()).with("replicas", replicas)
        }
        PlacementError::TooFewDomains { replicas, domains, failure_domain, .. } => {
            let text = format!("{error}; add pods, or ask for fewer replicas");
            let refusal = Refusal::new(Reason::TooFewDomains, text);
            let refusal = refusal.with("replicas", replicas).with("domains", domains);
            refusal.with("failure_domain", failure_domain)
        }
        PlacementError::NoRoom { wanted_bytes, largest_bytes, capacity_bytes, .. }
        | PlacementError::NoRoomInLast { wanted_bytes, largest_bytes, capacity_bytes, .. } => {
            let text = format!(
                "{error}; add disks, delete volumes, or take a class with a larger overcommit"
            );
            let refusal = Refusal::new(Reason::NoCapacity, text);
            let refusal = refusal.with("wanted_bytes", wanted_bytes);
            refusal.with("largest_bytes", largest_bytes).with("capacity_bytes", capacity_bytes)
        }
    }
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    #[test]
    fn a_status_carries_reason_object_and_numbers() {
        let name = "demo".to_owned();
        let status = of_catalog(&CatalogError::NameTaken { name });
        assert_eq!(status.code(), Code::AlreadyExists);
        let details = status.get_error_details();
        let info = details.error_info().unwrap();
        assert_eq!((info.reason.as_str(), info.domain.as_str()), ("NAME_TAKEN", "holdfast"));
        let resource = details.resource_info().unwrap();
        assert_eq!((&*resource.resource_type, &*resource.resource_name), ("volume", "demo"));
        assert!(details.retry_info().is_none());

        let status = of_catalog(&CatalogError::StalePlacement);
        assert_eq!(status.get_error_details().retry_info().unwrap().retry_delay, Some(RETRY_AFTER));
        let status = of_placement(&PlacementError::BadReplicas { replicas: 2 });
        assert_eq!(status.get_error_details().error_info().unwrap().metadata["replicas"], "2");
    }
}
