//! What a pod has to do with the Kubernetes cluster that it runs in.

use serde::{Deserialize, Serialize};

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Kubernetes {
    /// Gives certificates to who shows the token of one of Holdfast's service accounts. The API
    /// server of Kubernetes is asked about it, so this pod needs the right to do that.
    pub enrol: bool,
    /// Of these service accounts.
    pub namespace: String,
}

impl Kubernetes {
    /// True when nothing of it is set.
    pub fn is_default(&self) -> bool {
        *self == Kubernetes::default()
    }

    /// True when the namespace is needed and missing.
    pub fn lacks_namespace(&self) -> bool {
        self.enrol && self.namespace.is_empty()
    }
}
