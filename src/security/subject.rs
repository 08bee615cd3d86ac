//! Subjects: whom a certificate speaks for. Written as the one URI of the certificate's subject
//! alternative names:
//!
//! ```text
//! holdfast://<cluster>/pod/<number>
//! holdfast://<cluster>/admin/<name>             may do everything
//! holdfast://<cluster>/csi-controller/<name>
//! holdfast://<cluster>/csi-node/<node>          acts for one node
//! holdfast://<cluster>/viewer/<name>            may look
//! ```
//!
//! `cluster` is 32 hexadecimal digits, `number` is decimal, and a name is 1 to 128 of the
//! characters `a-z A-Z 0-9 . _ -`. Every subject has one spelling only.

use std::fmt;
use std::str::FromStr;

use crate::types::{PodId, Uuid};

pub(super) const SCHEME: &str = "holdfast://";
/// What follows the cluster in the URI of its authority.
pub(super) const AUTHORITY: &str = "/authority";
const NAME_BYTES_MAX: usize = 128;

/// The holder of a certificate.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Subject {
    pub cluster: Uuid,
    pub role: Role,
}

/// What a subject is in its cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    Pod(PodId),
    Admin(Name),
    CsiController(Name),
    CsiNode(Name),
    Viewer(Name),
}

/// A checked name of a person, a program or a node.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(String);

/// The text does not name a subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubjectError {
    #[error("a name is 1 to {NAME_BYTES_MAX} letters, digits, dots, dashes and underscores")]
    Name,
    #[error(
        "a role is admin/NAME, csi-controller/NAME, csi-node/NODE or viewer/NAME; a pod is \
         pod/NUMBER"
    )]
    Role,
    #[error("a subject is holdfast://CLUSTER/ROLE")]
    Uri,
}

impl Name {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = SubjectError;

    fn from_str(text: &str) -> Result<Name, SubjectError> {
        let is_allowed = |c: u8| c.is_ascii_alphanumeric() || b"._-".contains(&c);
        match (1..=NAME_BYTES_MAX).contains(&text.len()) && text.bytes().all(is_allowed) {
            true => Ok(Name(text.to_owned())),
            false => Err(SubjectError::Name),
        }
    }
}

impl Role {
    /// The first word of the role, which says what it may do.
    pub fn kind(&self) -> &'static str {
        match self {
            Role::Pod(_) => "pod",
            Role::Admin(_) => "admin",
            Role::CsiController(_) => "csi-controller",
            Role::CsiNode(_) => "csi-node",
            Role::Viewer(_) => "viewer",
        }
    }

    /// True when it may act for this node: use its attachments.
    pub fn acts_for(&self, node: &str) -> bool {
        match self {
            Role::Pod(_) | Role::Admin(_) => true,
            Role::CsiNode(own) => own.as_str() == node,
            Role::CsiController(_) | Role::Viewer(_) => false,
        }
    }

    /// True for those whose certificates expire: all but pods (rule `pods-need-no-clock`).
    pub fn is_bound_by_dates(&self) -> bool {
        !matches!(self, Role::Pod(_))
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.kind();
        match self {
            Role::Pod(pod) => write!(f, "{kind}/{pod}"),
            Role::Admin(name)
            | Role::CsiController(name)
            | Role::CsiNode(name)
            | Role::Viewer(name) => write!(f, "{kind}/{}", name.0),
        }
    }
}

impl FromStr for Role {
    type Err = SubjectError;

    fn from_str(text: &str) -> Result<Role, SubjectError> {
        let (kind, name) = text.split_once('/').ok_or(SubjectError::Role)?;
        let role = match kind {
            "pod" => Role::Pod(PodId(name.parse().map_err(|_| SubjectError::Role)?)),
            "admin" => Role::Admin(name.parse()?),
            "csi-controller" => Role::CsiController(name.parse()?),
            "csi-node" => Role::CsiNode(name.parse()?),
            "viewer" => Role::Viewer(name.parse()?),
            _ => return Err(SubjectError::Role),
        };
        // One spelling: no sign and no leading zero in a number.
        if role.to_string() != text {
            return Err(SubjectError::Role);
        }
        Ok(role)
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}", self.cluster, self.role)
    }
}

impl FromStr for Subject {
    type Err = SubjectError;

    fn from_str(text: &str) -> Result<Subject, SubjectError> {
        let rest = text.strip_prefix(SCHEME).ok_or(SubjectError::Uri)?;
        let (cluster, role) = rest.split_once('/').ok_or(SubjectError::Uri)?;
        let subject = Subject {
            cluster: cluster.parse().map_err(|_| SubjectError::Uri)?,
            role: role.parse()?,
        };
        match subject.to_string() == text {
            true => Ok(subject),
            false => Err(SubjectError::Uri),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CLUSTER: &str = "0123456789abcdef0123456789abcdef";

    proptest! {
        #[test]
        fn what_is_accepted_has_one_spelling(
            cluster in "[0-9a-fA-F+]{31,33}",
            kind in "pod|admin|csi-node|viewer|[a-z-]{3,14}",
            name in "[0-9]{1,3}|[0-9a-zA-Z+ /.-]{0,9}",
        ) {
            let text = format!("{SCHEME}{cluster}/{kind}/{name}");
            if let Ok(subject) = text.parse::<Subject>() {
                prop_assert_eq!(subject.to_string(), text);
            }
        }
    }

    #[test]
    fn every_role_survives() {
        for role in
            ["pod/7", "admin/ada", "csi-controller/main", "csi-node/node-1.example", "viewer/v_1"]
        {
            let text = format!("{SCHEME}{CLUSTER}/{role}");
            assert_eq!(text.parse::<Subject>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_node_acts_for_itself_only() {
        let acts = |role: &str| role.parse::<Role>().unwrap().acts_for("node-1");
        assert!(acts("csi-node/node-1") && acts("admin/a") && acts("pod/1"));
        for wrong in ["csi-node/node-2", "csi-node/node", "csi-controller/node-1", "viewer/node-1"]
        {
            assert!(!acts(wrong), "{wrong}");
        }
    }

    #[test]
    fn other_texts_are_refused() {
        let long = "x".repeat(NAME_BYTES_MAX + 1);
        for role in [
            "pod/07",
            "pod/+7",
            "pod/",
            "pod/x",
            "pod/7/",
            "pod/18446744073709551616",
            "root/a",
            "admin",
            "admin/",
            "admin/a b",
            "admin/a/b",
            "Admin/a",
            "",
            "admin/ä",
            "csi-node/a\0",
            &format!("viewer/{long}"),
        ] {
            assert!(format!("{SCHEME}{CLUSTER}/{role}").parse::<Subject>().is_err(), "{role}");
        }
        for text in [
            format!("https://{CLUSTER}/admin/a"),
            format!("{SCHEME}{}/admin/a", CLUSTER.to_uppercase()),
            format!("{SCHEME}{}/admin/a", &CLUSTER[1..]),
            format!("{SCHEME}+{}/admin/a", &CLUSTER[1..]),
            format!(" {SCHEME}{CLUSTER}/admin/a"),
        ] {
            assert!(text.parse::<Subject>().is_err(), "{text}");
        }
    }
}
