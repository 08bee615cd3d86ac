//! Who may call what. Everything is refused that is not allowed here, before anything is looked up:
//! nobody learns by a refusal whether an object exists.

use tonic::Status;

use crate::control::connections::Who;
use crate::security::subject::Role;
use crate::security::trust::Trust;
use crate::types::PodId;

/// What a method asks of its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Needs {
    /// A token, which the method itself checks.
    Token,
    /// A pod's certificate, also that of one which is not in the list yet.
    NewPod,
    /// Any certificate that is valid.
    Holder,
    /// Looking changes nothing.
    Look,
    /// What the CSI controller does.
    Volumes,
    /// What the CSI plugin of a node does, for its own node: the method compares.
    Node,
    Admin,
    /// What pods say to each other.
    Pod,
}

/// Services of pods among themselves, and the package of such services.
const OF_PODS: [&str; 1] = ["Catalog"];
const PACKAGE_OF_PODS: &str = "/holdfast.internal.";
/// Methods for who has no certificate yet.
const WITH_TOKEN: [&str; 1] = ["Credentials/Enrol"];
/// Methods by which a pod becomes one that has its certificate already.
const OF_NEW_PODS: [&str; 2] = ["Joining/Join", "Pods/Join"];
/// Methods for everybody with a certificate.
const OF_HOLDERS: [&str; 1] = ["Credentials/Renew"];
/// Methods of those services that are for administrators: an open volume is fenced from nobody.
const OF_ADMINS: [&str; 1] = ["Volumes/SetOpen"];
const OF_CONTROLLERS: [&str; 2] = ["Volumes", "Attachments"];
/// A controller may fence a node, volume by volume, so it may do that at once, too.
/// It has pods try to reach a machine, too: a map of the network is not for everybody.
const OF_FAIL_OVER: [&str; 2] = ["Nodes/CheckReachable", "Nodes/DeclareLost"];
const OF_NODES: [&str; 3] = ["Attachments/Claim", "Attachments/RecordFileSystem", "Nodes/Report"];
/// How the names of methods begin that change nothing.
const LOOKS: [&str; 9] = [
    "Capacity",
    "Check",
    "Explain",
    "Get",
    "List",
    "Resolve",
    "ServerReflection",
    "Status",
    "Watch",
];

/// `path` is that of the request: `/package.Service/Method`.
fn needs(path: &str) -> Needs {
    let call = path.rsplit_once('.').map_or("", |(_, call)| call);
    let Some((service, method)) = call.split_once('/') else { return Needs::Admin };
    if WITH_TOKEN.contains(&call) {
        Needs::Token
    } else if OF_NEW_PODS.contains(&call) {
        Needs::NewPod
    } else if OF_HOLDERS.contains(&call) {
        Needs::Holder
    } else if OF_PODS.contains(&service) || path.starts_with(PACKAGE_OF_PODS) {
        Needs::Pod
    } else if OF_FAIL_OVER.contains(&call) {
        Needs::Volumes
    } else if LOOKS.iter().any(|look| method.starts_with(look)) {
        Needs::Look
    } else if OF_NODES.contains(&call) {
        Needs::Node
    } else if OF_CONTROLLERS.contains(&service) && !OF_ADMINS.contains(&call) {
        Needs::Volumes
    } else {
        Needs::Admin
    }
}

/// A node's driver speaks for its own node alone. Others may ask for anybody, as pods do which pass
/// a request on.
pub fn speaks_for(who: &Who, node: &str) -> Result<(), Status> {
    match who {
        Who::Holder(holder) => match &holder.subject.role {
            Role::CsiNode(own) if own.as_str() != node => {
                let own = own.as_str();
                let message = format!("the driver of node {own} does not speak for node {node}");
                Err(Status::permission_denied(message))
            }
            _ => Ok(()),
        },
        _ => Ok(()),
    }
}

fn has(role: &Role, needs: Needs) -> bool {
    use Needs::{Holder, Look, NewPod, Node, Pod, Volumes};
    match role {
        // They pass on what others have asked of them and were allowed.
        Role::Pod(_) => true,
        Role::Admin(_) => !matches!(needs, Pod | NewPod),
        Role::CsiController(_) => matches!(needs, Look | Volumes | Holder),
        Role::CsiNode(_) => matches!(needs, Look | Node | Holder),
        Role::Viewer(_) => matches!(needs, Look | Holder),
    }
}

/// Decides on a request of `who` at `now_s`.
pub fn check(who: &Who, path: &str, trust: &Trust, now_s: u64) -> Result<(), Status> {
    let needs = needs(path);
    if needs == Needs::Token {
        return Ok(());
    }
    let holder = match who {
        // Raft's messages are for pods alone, also on the host's network.
        Who::Local | Who::Plain if !matches!(needs, Needs::Pod | Needs::NewPod) => return Ok(()),
        Who::Local | Who::Plain => {
            return Err(Status::permission_denied("only pods may call this, with a certificate"));
        }
        Who::Nobody => {
            return Err(Status::unauthenticated("a certificate of the cluster is needed"));
        }
        Who::Holder(holder) => holder,
    };
    let role = &holder.subject.role;
    match trust.check_again(holder, now_s) {
        Ok(()) => {}
        // Joining is how a pod gets into the list.
        Err(_) if needs == Needs::NewPod && may_join(role, trust) => return Ok(()),
        Err(error) => return Err(Status::unauthenticated(error.to_string())),
    }
    match has(role, needs) {
        true => Ok(()),
        false => {
            Err(Status::permission_denied(format!("the role {} may not do this", role.kind())))
        }
    }
}

/// True for a pod that the list cannot have yet: numbers grow, and none is given twice.
fn may_join(role: &Role, trust: &Trust) -> bool {
    let newest = trust.newest_pod().unwrap_or(PodId(0));
    matches!(role, Role::Pod(pod) if *pod > newest)
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;
    use crate::security::certificate::Certificate;
    use crate::testing::tls_fixture::{Cluster, now_s};

    fn held(cluster: &Cluster, role: &str) -> Who {
        let credentials = cluster.credentials(role);
        Who::Holder(Box::new(Certificate::from_der(credentials.certificate()).unwrap()))
    }

    #[test]
    fn everybody_may_do_what_their_role_says_and_no_more() {
        let cluster = Cluster::new(1);
        let trust = cluster.trust();
        trust.set_pods([PodId(1), PodId(2)]);
        let who = |name: &str| match name {
            "local" => Who::Local,
            "plain" => Who::Plain,
            "nobody" => Who::Nobody,
            role => held(&cluster, role),
        };
        let all = [
            "local",
            "plain",
            "nobody",
            "pod/1",
            "pod/3",
            "admin/a",
            "csi-controller/c",
            "csi-node/n",
            "viewer/v",
        ];
        for (path, allowed) in [
            ("/holdfast.v1.Catalog/Raft", &["pod/1"][..]),
            ("/holdfast.v1.Catalog/Watch", &["pod/1"]),
            ("/holdfast.internal.v1.Sync/List", &["pod/1"]),
            ("/holdfast.v1.Pods/Join", &["pod/1", "pod/3"]),
            ("/holdfast.v1.Credentials/Enrol", &all[..]),
            (
                "/holdfast.v1.Credentials/Renew",
                &[
                    "local",
                    "plain",
                    "pod/1",
                    "admin/a",
                    "csi-controller/c",
                    "csi-node/n",
                    "viewer/v",
                ],
            ),
            ("/holdfast.v1.Credentials/CreateToken", &["local", "plain", "pod/1", "admin/a"]),
            ("/holdfast.internal.v1.Joining/Join", &["pod/1", "pod/3"]),
            (
                "/holdfast.v1.Volumes/List",
                &[
                    "local",
                    "plain",
                    "pod/1",
                    "admin/a",
                    "csi-controller/c",
                    "csi-node/n",
                    "viewer/v",
                ],
            ),
            (
                "/holdfast.v1.Volumes/Create",
                &["local", "plain", "pod/1", "admin/a", "csi-controller/c"],
            ),
            (
                "/holdfast.v1.Attachments/Claim",
                &["local", "plain", "pod/1", "admin/a", "csi-node/n"],
            ),
            ("/holdfast.v1.Volumes/SetOpen", &["local", "plain", "pod/1", "admin/a"]),
            (
                "/holdfast.v1.Nodes/DeclareLost",
                &["local", "plain", "pod/1", "admin/a", "csi-controller/c"],
            ),
            ("/holdfast.v1.Nodes/ClearLost", &["local", "plain", "pod/1", "admin/a"]),
            ("/what/ever", &["local", "plain", "pod/1", "admin/a"]),
            ("", &["local", "plain", "pod/1", "admin/a"]),
        ] {
            let found: Vec<&str> = all
                .into_iter()
                .filter(|name| check(&who(name), path, &trust, now_s()).is_ok())
                .collect();
            assert_eq!(found, allowed, "{path}");
        }
    }

    #[test]
    fn a_refusal_says_nothing_but_that() {
        let cluster = Cluster::new(1);
        let trust = cluster.trust();
        trust.set_pods([PodId(1), PodId(5)]);
        let list = "/holdfast.v1.Volumes/List";
        let code = |who: &Who, path: &str, now_s| {
            check(who, path, &trust, now_s).map_err(|status| status.code())
        };
        let viewer = held(&cluster, "viewer/v");
        let year_s = 365 * 24 * 60 * 60;
        assert_eq!(code(&viewer, list, now_s()), Ok(()));
        // A connection that lasts longer than the certificate.
        assert_eq!(code(&viewer, list, now_s() + year_s), Err(Code::Unauthenticated));
        let delete = "/holdfast.v1.Volumes/Delete";
        assert_eq!(code(&viewer, delete, now_s()), Err(Code::PermissionDenied));
        assert_eq!(code(&Who::Nobody, list, 0), Err(Code::Unauthenticated));
        trust.set_revoked([match &viewer {
            Who::Holder(holder) => holder.serial.clone(),
            _ => unreachable!("it has a certificate"),
        }]);
        assert_eq!(code(&viewer, list, now_s()), Err(Code::Unauthenticated));
        // Its number was given before, so it was removed.
        let removed = held(&cluster, "pod/3");
        for path in [list, "/holdfast.v1.Pods/Join", "/holdfast.v1.Catalog/Raft"] {
            assert_eq!(code(&removed, path, now_s()), Err(Code::Unauthenticated));
        }
    }
}
