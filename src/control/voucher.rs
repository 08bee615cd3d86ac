//! Somebody outside of the cluster who knows the programs that run beside it, and vouches for them:
//! the orchestrator. A program shows a token of the orchestrator's in place of one of ours.

use crate::security::secret::Secret;
use crate::security::subject::Role;

/// What the shower of a token may become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Vouched {
    /// A pod, on this node.
    Pod { node: String },
    /// The holder of a certificate for this role, which is not a pod's.
    Role(Role),
}

/// Why nobody vouches.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VouchError {
    /// The words are for the shower of the token.
    #[error("{0}")]
    Refused(String),
    #[error("could not ask the orchestrator about the token: {0}")]
    Unavailable(String),
}

/// See the module.
#[tonic::async_trait]
pub trait Voucher: Send + Sync {
    /// Asks whose token it is.
    async fn vouch(&self, token: &Secret) -> Result<Vouched, VouchError>;
}
