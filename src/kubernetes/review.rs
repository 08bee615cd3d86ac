//! What the review of a service account's token says of its bearer. Pure.
//!
//! The API server writes the name of the bearer's node into tokens that belong to a Pod, since
//! Kubernetes 1.30. Nothing that the bearer says itself counts.

use std::collections::BTreeMap;

use crate::control::voucher::Vouched;
use crate::security::subject::{Name, Role};

/// The audience of tokens that are meant for Holdfast. One for the API server alone is refused: who
/// gets it by accident must not become a node of ours.
pub const AUDIENCE: &str = "holdfast";
const NODE: &str = "authentication.kubernetes.io/node-name";
const POD: &str = "authentication.kubernetes.io/pod-name";

/// The status of a TokenReview.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Review {
    pub authenticated: bool,
    pub audiences: Vec<String>,
    pub username: String,
    pub extra: BTreeMap<String, Vec<String>>,
}

/// Why a token gives nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReviewError {
    #[error(
        "the API server of Kubernetes does not know the token: it is forged, or its Pod is gone"
    )]
    Unknown,
    #[error("the token is not for the audience `{AUDIENCE}`: project one with that audience")]
    Audience,
    #[error("{0:?} may not get a certificate here: it is no service account of Holdfast's")]
    Account(String),
    #[error(
        "the token does not name its {0}: it must be projected into a Pod, by Kubernetes 1.30 or \
         later"
    )]
    Missing(&'static str),
    #[error("{0:?} cannot be a name in a certificate: it is longer than 128 bytes")]
    Name(String),
}

/// Decides what the bearer of a token may become. `namespace`: of our service accounts.
pub fn decide(review: &Review, namespace: &str) -> Result<Vouched, ReviewError> {
    if !review.authenticated {
        return Err(ReviewError::Unknown);
    }
    // A server that knows no audiences leaves the list empty, and has compared nothing.
    if !review.audiences.iter().any(|it| it == AUDIENCE) {
        return Err(ReviewError::Audience);
    }
    let unknown = || ReviewError::Account(review.username.clone());
    let account = review.username.strip_prefix("system:serviceaccount:").ok_or_else(unknown)?;
    let (found, account) = account.split_once(':').ok_or_else(unknown)?;
    if found != namespace || namespace.is_empty() {
        return Err(unknown());
    }
    let node = || of(review, NODE, "node");
    match account {
        "holdfast-pod" => Ok(Vouched::Pod { node: node()? }),
        "holdfast-csi-node" | "holdfast-attach" => Ok(Vouched::Role(Role::CsiNode(name(node()?)?))),
        "holdfast-csi-controller" => {
            let pod = of(review, POD, "Pod")?;
            Ok(Vouched::Role(Role::CsiController(name(pod)?)))
        }
        _ => Err(unknown()),
    }
}

/// The one value of a key.
fn of(review: &Review, key: &str, what: &'static str) -> Result<String, ReviewError> {
    match review.extra.get(key).map(Vec::as_slice) {
        Some([value]) if !value.is_empty() => Ok(value.clone()),
        _ => Err(ReviewError::Missing(what)),
    }
}

fn name(text: String) -> Result<Name, ReviewError> {
    text.parse().map_err(|_| ReviewError::Name(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn review(account: &str) -> Review {
        let extra = [(NODE, "worker-1.example"), (POD, "holdfast-controller-5d-x")];
        Review {
            authenticated: true,
            audiences: vec![AUDIENCE.to_owned()],
            username: format!("system:serviceaccount:{account}"),
            extra: extra.map(|(key, value)| (key.to_owned(), vec![value.to_owned()])).into(),
        }
    }

    fn decided(review: &Review) -> String {
        match decide(review, "storage") {
            Ok(Vouched::Pod { node }) => format!("a pod on {node}"),
            Ok(Vouched::Role(role)) => role.to_string(),
            Err(error) => format!("{error:?}"),
        }
    }

    #[test]
    fn service_accounts_become_roles() {
        for (account, becomes) in [
            ("storage:holdfast-pod", "a pod on worker-1.example"),
            ("storage:holdfast-csi-node", "csi-node/worker-1.example"),
            ("storage:holdfast-attach", "csi-node/worker-1.example"),
            ("storage:holdfast-csi-controller", "csi-controller/holdfast-controller-5d-x"),
        ] {
            assert_eq!(decided(&review(account)), becomes);
        }
    }

    #[test]
    fn nobody_else_becomes_anything() {
        for account in [
            "storage:default",
            "storage:holdfast-pod-2",
            "other:holdfast-pod",
            "storage:holdfast-pod:x",
            "storageholdfast-pod",
            "",
        ] {
            assert!(decided(&review(account)).starts_with("Account"), "{account}");
        }
        let person = Review { username: "storage:holdfast-pod".to_owned(), ..review("x:y") };
        assert!(decided(&person).starts_with("Account"));
        assert!(decide(&review(":holdfast-pod"), "").is_err());
        let good = review("storage:holdfast-csi-node");
        let forged = Review { authenticated: false, ..good.clone() };
        assert_eq!(decided(&forged), "Unknown");
        for audiences in [vec![], vec!["https://kubernetes.default.svc".to_owned()]] {
            let other = Review { audiences, ..good.clone() };
            assert_eq!(decided(&other), "Audience");
        }
    }

    #[test]
    fn a_token_without_its_node_gives_nothing() {
        let good = review("storage:holdfast-csi-node");
        for values in [vec![], vec![String::new()], vec!["a".to_owned(), "b".to_owned()]] {
            let mut changed = good.clone();
            changed.extra.insert(NODE.to_owned(), values);
            assert_eq!(decided(&changed), "Missing(\"node\")");
        }
        let mut long = good.clone();
        long.extra.insert(NODE.to_owned(), vec!["n".repeat(129)]);
        assert!(decided(&long).starts_with("Name"));
        let mut controller = review("storage:holdfast-csi-controller");
        controller.extra.remove(POD);
        assert_eq!(decided(&controller), "Missing(\"Pod\")");
    }
}
