//! Why a call failed: the one list of reasons. A program compares the words, which never change;
//! people read the message beside them. docs/api.md has the list for readers; a test compares.

use tonic::Code;

/// Domain of all reasons.
pub const DOMAIN: &str = "holdfast";

macro_rules! reasons {
    ($($reason:ident $word:literal $code:ident $means:literal,)*) => {
        /// See the module.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason {
            $(#[doc = $means] $reason,)*
        }

        impl Reason {
            pub const ALL: &'static [Reason] = &[$(Reason::$reason,)*];

            /// The word in `ErrorInfo`.
            pub fn word(self) -> &'static str {
                match self {
                    $(Reason::$reason => $word,)*
                }
            }

            pub fn code(self) -> Code {
                match self {
                    $(Reason::$reason => Code::$code,)*
                }
            }

            /// What it means, for readers of the documentation.
            pub fn means(self) -> &'static str {
                match self {
                    $(Reason::$reason => $means,)*
                }
            }
        }
    };
}

reasons! {
    BadRequest "BAD_REQUEST" InvalidArgument
        "something of the request cannot be read",
    BadName "BAD_NAME" InvalidArgument
        "a text cannot be the name of an object",
    BadSize "BAD_SIZE" InvalidArgument
        "a volume cannot have this size",
    BadReplicas "BAD_REPLICAS" InvalidArgument
        "a volume cannot have so many replicas",
    BadClass "BAD_CLASS" InvalidArgument
        "a class cannot be like this",
    BadIoTimeout "BAD_IO_TIMEOUT" InvalidArgument
        "I/O cannot have this timeout",
    BadLabels "BAD_LABELS" InvalidArgument
        "labels are too many or too long, or have signs that are not allowed",
    BadRequestId "BAD_REQUEST_ID" InvalidArgument
        "a request id is too long",
    RequestIdReused "REQUEST_ID_REUSED" AlreadyExists
        "a request id was used for other content before",
    BadSelector "BAD_SELECTOR" InvalidArgument
        "a selector cannot be parsed",
    BadPage "BAD_PAGE" InvalidArgument
        "a page is too large, or its token is none or belongs to another query",
    BadResumeToken "BAD_RESUME_TOKEN" InvalidArgument
        "the resume token of a watch is none",
    NoSuchNode "NO_SUCH_NODE" NotFound
        "there is no node of this name",
    NoSuchPod "NO_SUCH_POD" NotFound
        "there is no pod of this name",
    NoSuchDisk "NO_SUCH_DISK" NotFound
        "there is no disk of this name",
    NoSuchClass "NO_SUCH_CLASS" NotFound
        "there is no class of this name",
    NoSuchVolume "NO_SUCH_VOLUME" NotFound
        "there is no volume of this name, or it is another than meant",
    NoSuchAttachment "NO_SUCH_ATTACHMENT" NotFound
        "there is no attachment of this name",
    NoSuchShard "NO_SUCH_SHARD" NotFound
        "there is no shard of this name",
    NoSuchEvent "NO_SUCH_EVENT" NotFound
        "there is no event of this name, or it was forgotten",
    NoSuchToken "NO_SUCH_TOKEN" NotFound
        "there is no token with this id",
    NoSuchCertificate "NO_SUCH_CERTIFICATE" NotFound
        "no certificate with this serial was issued here",
    TooManyPods "TOO_MANY_PODS" ResourceExhausted
        "as many pods have joined as can, counting those that left",
    TooManyTokens "TOO_MANY_TOKENS" ResourceExhausted
        "there are as many tokens as there can be",
    TooManyCertificates "TOO_MANY_CERTIFICATES" ResourceExhausted
        "the subject has as many valid certificates as it can have",
    AuthorityExists "AUTHORITY_EXISTS" FailedPrecondition
        "the cluster has another authority",
    NoAuthority "NO_AUTHORITY" FailedPrecondition
        "the catalog has no authority, or not its key",
    AuthorityInReplacement "AUTHORITY_IN_REPLACEMENT" FailedPrecondition
        "an authority is being replaced, and this step is not the next one",
    NoReplacement "NO_REPLACEMENT" FailedPrecondition
        "no authority is being replaced",
    AuthorityReplaced "AUTHORITY_REPLACED" Aborted
        "the authority was replaced meanwhile; ask again",
    AuthorityRetired "AUTHORITY_RETIRED" FailedPrecondition
        "the authority was retired before, or is too much like a trusted one",
    PodsNotReady "PODS_NOT_READY" FailedPrecondition
        "some pods do not trust the new authority yet, or still use the old one",
    CertificatesInUse "CERTIFICATES_IN_USE" FailedPrecondition
        "certificates of the old authority are valid, and would be void",
    CertificateOfPod "CERTIFICATE_OF_POD" FailedPrecondition
        "a pod's certificate is void when the pod is removed, and not before",
    NameTaken "NAME_TAKEN" AlreadyExists
        "an object has the name, and another spec than asked for",
    ClassInUse "CLASS_IN_USE" FailedPrecondition
        "a class cannot be deleted while volumes name it",
    RevisionConflict "REVISION_CONFLICT" Aborted
        "the object has changed since the revision that the update is based on; read it again",
    NameNotFreeYet "NAME_NOT_FREE_YET" FailedPrecondition
        "the name belongs to a volume that is being deleted",
    VolumeDeleted "VOLUME_DELETED" FailedPrecondition
        "the volume was deleted and is still kept: it can be brought back, or purged",
    NotDeleted "NOT_DELETED" FailedPrecondition
        "only a volume that is deleted can be purged",
    BadRetention "BAD_RETENTION" InvalidArgument
        "a deleted volume cannot be kept for so long",
    WouldShrink "WOULD_SHRINK" InvalidArgument
        "a volume does not become smaller",
    TooManyShards "TOO_MANY_SHARDS" FailedPrecondition
        "the volume cannot have so many shards of its length",
    NodeLost "NODE_LOST" FailedPrecondition
        "the node was declared lost, and gets no volumes before it has started anew",
    NodeRebooted "NODE_REBOOTED" FailedPrecondition
        "the node has started anew since; look again whether it is lost",
    VolumeOpen "VOLUME_OPEN" FailedPrecondition
        "the volume is open to everybody, so no node can have it for itself",
    VolumeInUse "VOLUME_IN_USE" FailedPrecondition
        "a node has the volume; it has to be unpublished there first",
    NotPublished "NOT_PUBLISHED" FailedPrecondition
        "the volume is not published to the node, or not yet",
    Formatted "FORMATTED" FailedPrecondition
        "the volume has a file system, and gets no other one",
    OtherMode "OTHER_MODE" AlreadyExists
        "the node has the volume in another mode",
    TooManyAttachments "TOO_MANY_ATTACHMENTS" ResourceExhausted
        "the volume has as many attachments as it can have",
    PlacementStale "PLACEMENT_STALE" Aborted
        "the disks changed while replicas were placed",
    TooFewDomains "TOO_FEW_DOMAINS" FailedPrecondition
        "fewer nodes, zones or the like can take a replica than there are to be replicas",
    NoCapacity "NO_CAPACITY" ResourceExhausted
        "the disks have too little room that is not promised",
    WatchTooOld "WATCH_TOO_OLD" OutOfRange
        "the changes since the resume token are no longer known; list again",
    LeaderChanged "LEADER_CHANGED" Unavailable
        "the leader of the catalog changed during a watch; resume it",
    ShardsWaiting "SHARDS_WAITING" Unavailable
        "not every shard of a volume has admitted or fenced a node yet; it goes on by itself",
    NoRecovery "NO_RECOVERY" FailedPrecondition
        "the catalog is not being recovered by this pod",
    NoLeader "NO_LEADER" Unavailable
        "no leader of the catalog was found in time",
    NotLeader "NOT_LEADER" Unavailable
        "a call was passed on to a pod that does not lead",
    DeadlineExceeded "DEADLINE_EXCEEDED" DeadlineExceeded
        "the caller's deadline ended before an answer was there",
    WrongCluster "WRONG_CLUSTER" FailedPrecondition
        "the pod belongs to another cluster",
    WrongPod "WRONG_POD" FailedPrecondition
        "the caller is not the pod that it says it is",
    DiskInUse "DISK_IN_USE" FailedPrecondition
        "another pod uses the disk, or may use it",
    VersionTooOld "VERSION_TOO_OLD" FailedPrecondition
        "the caller is older than this cluster allows",
    Broken "BROKEN" Internal
        "something went wrong that should not; the log of the pod has more",
}

impl Reason {
    /// The reason of a word; `None` for a word of a newer version.
    pub fn of(word: &str) -> Option<Reason> {
        Reason::ALL.iter().copied().find(|reason| reason.word() == word)
    }
}

/// The name of a code as the specification of gRPC writes it.
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

#[cfg(test)]
mod tests {
    use super::*;

    /// As `google.rpc.ErrorInfo` demands it.
    #[test]
    fn words_are_unique_and_well_formed() {
        for reason in Reason::ALL {
            let word = reason.word();
            assert!(word.len() <= 63 && !word.is_empty(), "{word}");
            assert!(word.chars().all(|c| c.is_ascii_uppercase() || c == '_'), "{word}");
            assert_eq!(Reason::of(word), Some(*reason));
        }
        assert_eq!(Reason::of("NONSENSE"), None);
    }

    #[test]
    fn the_page_of_the_api_lists_all_reasons() {
        let page = include_str!("../../docs/api.md");
        for reason in Reason::ALL {
            let code = crate::control::reason::code_name(reason.code());
            let row = format!("| `{}` | {code} | {} |", reason.word(), reason.means());
            assert!(page.contains(&row), "docs/api.md lacks: {row}");
        }
    }
}
