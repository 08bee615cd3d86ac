//! Who is refused, and who is not: each by a whole handshake.

use crate::planted::{Mistake, assert_found};
use crate::security::authority::{Authority, AuthorityError, Places, request};
use crate::security::certificate::{Certificate, CertificateError, Root, check};
use crate::security::channel::TlsError;
use crate::security::credentials::Credentials;
use crate::security::secret::Secret;
use crate::security::subject::Subject;
use crate::security::trust::Trust;
use crate::security::verifier::{Expected, Pinned};
use crate::testing::tls_fixture::{Cluster, End, client, now_s, server, talk};
use crate::types::PodId;

const YEAR_S: u64 = 365 * 24 * 60 * 60;

/// Calls a server that has `trust` and expects `expected`; what it has against the caller.
fn refusal(
    caller: &Credentials,
    server_credentials: &Credentials,
    trust: &Trust,
    expected: Expected,
) -> Option<CertificateError> {
    // The caller would take anybody: it is the server that is asked here.
    let callers_trust = Trust::new(server_credentials.subject().cluster, trust.roots());
    let mut one = End::new(client(caller, &callers_trust, Expected::Pod));
    let mut other = End::new(server(server_credentials, trust, expected));
    talk(&mut one, &mut other, usize::MAX);
    match other.failed {
        None => {
            assert!(one.failed.is_none() && other.channel.is_up(), "{:?}", one.failed);
            assert_eq!(other.channel.peer().unwrap().subject, *caller.subject());
            None
        }
        Some(TlsError::Certificate(error)) => {
            assert!(!other.channel.is_up());
            // The caller is told by an alert, and no byte of it was read.
            assert!(one.failed.is_some() && other.read.is_empty());
            Some(error)
        }
        Some(error) => panic!("{error:?}"),
    }
}

#[test]
fn a_pod_of_the_cluster_is_accepted_whatever_the_clocks_say() {
    clocks_say_nothing_of_pods();
    assert_found(Mistake::PodDatesCount, clocks_say_nothing_of_pods);
}

fn clocks_say_nothing_of_pods() {
    let cluster = Cluster::new(1);
    let server = cluster.credentials("pod/2");
    // Issued by a clock that is off by decades, and expired for years.
    for issued_s in [0, now_s() - 30 * YEAR_S, now_s(), now_s() + 30 * YEAR_S] {
        let caller = cluster.credentials_at("pod/1", issued_s);
        for expected in [Expected::Member, Expected::Pod, Expected::Anybody] {
            assert_eq!(refusal(&caller, &server, &cluster.trust(), expected), None);
        }
    }
    let old = cluster.credentials_at("pod/2", now_s() - 30 * YEAR_S);
    let caller = cluster.credentials("pod/1");
    assert_eq!(refusal(&caller, &old, &cluster.trust(), Expected::Member), None);
}

#[test]
fn a_foreign_authority_is_refused() {
    let (cluster, foreign) = (Cluster::new(1), Cluster::new(1));
    let caller = foreign.credentials("pod/1");
    let refused = refusal(&caller, &cluster.credentials("pod/2"), &cluster.trust(), Expected::Pod);
    assert_eq!(refused, Some(CertificateError::Foreign));
}

#[test]
fn a_server_of_a_foreign_authority_is_refused() {
    let (cluster, foreign) = (Cluster::new(1), Cluster::new(1));
    let trust = cluster.trust();
    let mut one = End::new(client(&cluster.credentials("pod/1"), &trust, Expected::Pod));
    let mut other =
        End::new(server(&foreign.credentials("pod/2"), &foreign.trust(), Expected::Member));
    talk(&mut one, &mut other, usize::MAX);
    let refused = one.failed.unwrap();
    assert!(matches!(refused, TlsError::Certificate(CertificateError::Foreign)), "{refused:?}");
    assert!(!other.channel.is_up());
    // The server hears that its certificate was the reason.
    assert!(matches!(other.failed, Some(TlsError::Refused(_))), "{:?}", other.failed);
}

#[test]
fn a_removed_pod_is_refused() {
    the_list_of_pods_counts();
    assert_found(Mistake::RemovedPodTrusted, the_list_of_pods_counts);
}

fn the_list_of_pods_counts() {
    let cluster = Cluster::new(1);
    let (caller, server) = (cluster.credentials("pod/1"), cluster.credentials("pod/2"));
    let trust = cluster.trust();
    trust.set_pods([PodId(1), PodId(2)]);
    assert_eq!(refusal(&caller, &server, &trust, Expected::Member), None);
    trust.set_pods([PodId(2), PodId(3)]);
    let refused = refusal(&caller, &server, &trust, Expected::Member);
    assert_eq!(refused, Some(CertificateError::RemovedPod));
    let refused = refusal(&caller, &server, &trust, Expected::Anybody);
    assert_eq!(refused, Some(CertificateError::RemovedPod));
    // A connection that was made before: its requests are refused.
    let held = Certificate::from_der(caller.certificate()).unwrap();
    assert_eq!(trust.check_again(&held, 0), Err(CertificateError::RemovedPod));
}

#[test]
fn a_person_whose_time_is_over_or_to_come_is_refused() {
    let cluster = Cluster::new(1);
    let (server, trust) = (cluster.credentials("pod/2"), cluster.trust());
    for role in ["admin/ada", "viewer/v", "csi-node/n", "csi-controller/c"] {
        let at = |issued_s| {
            let caller = cluster.credentials_at(role, issued_s);
            refusal(&caller, &server, &trust, Expected::Anybody)
        };
        assert_eq!(at(now_s()), None);
        assert_eq!(at(now_s() - YEAR_S), Some(CertificateError::Expired));
        assert_eq!(at(now_s() + YEAR_S), Some(CertificateError::NotYetValid));
    }
}

#[test]
fn a_revoked_certificate_is_refused() {
    let cluster = Cluster::new(1);
    let (caller, server) = (cluster.credentials("admin/ada"), cluster.credentials("pod/2"));
    let trust = cluster.trust();
    let held = Certificate::from_der(caller.certificate()).unwrap();
    assert_eq!(trust.check_again(&held, now_s()), Ok(()));
    trust.set_revoked([held.serial.clone()]);
    let refused = refusal(&caller, &server, &trust, Expected::Anybody);
    assert_eq!(refused, Some(CertificateError::Revoked));
    assert_eq!(trust.check_again(&held, now_s()), Err(CertificateError::Revoked));
    assert_eq!(held.serial.len(), 32);
}

#[test]
fn a_persons_certificate_is_not_a_pods() {
    let cluster = Cluster::new(1);
    let server = cluster.credentials("pod/2");
    for role in ["admin/ada", "csi-node/1", "viewer/1", "csi-controller/pod"] {
        for expected in [Expected::Member, Expected::Pod] {
            let refused = refusal(&cluster.credentials(role), &server, &cluster.trust(), expected);
            assert_eq!(refused, Some(CertificateError::NotAPod), "{role}");
        }
    }
    // Nor does a person answer in a pod's place.
    let trust = cluster.trust();
    let mut one = End::new(client(&cluster.credentials("pod/1"), &trust, Expected::Pod));
    let mut other = End::new(self::server(&cluster.credentials("admin/a"), &trust, Expected::Pod));
    talk(&mut one, &mut other, usize::MAX);
    let refused = one.failed.unwrap();
    assert!(matches!(refused, TlsError::Certificate(CertificateError::NotAPod)), "{refused:?}");
}

/// Somebody trusts the authority of another cluster, by mistake.
#[test]
fn a_pod_of_another_cluster_is_refused() {
    let (cluster, other) = (Cluster::new(1), Cluster::new(2));
    let roots = [&cluster, &other].map(|cluster| cluster.authority.root().clone());
    let trust = Trust::new(cluster.uuid, roots.to_vec());
    let server = cluster.credentials("pod/2");
    for (role, expected) in [("pod/1", Expected::Member), ("admin/ada", Expected::Anybody)] {
        assert_eq!(refusal(&cluster.credentials(role), &server, &trust, expected), None);
        let refused = refusal(&other.credentials(role), &server, &trust, expected);
        assert_eq!(refused, Some(CertificateError::OtherCluster));
    }
    // Nor does an authority speak for a cluster that is not its own.
    let subject = Subject { cluster: cluster.uuid, role: "pod/1".parse().unwrap() };
    let issued = other.authority.issue(&subject, &Places::default(), now_s()).unwrap();
    assert_eq!(check(&issued.certificate, &roots), Err(CertificateError::OtherCluster));
}

#[test]
fn a_role_that_uses_no_volumes_is_refused_where_volumes_are_used() {
    let cluster = Cluster::new(1);
    let (server, trust) = (cluster.credentials("pod/2"), cluster.trust());
    let at =
        |role: &str| refusal(&cluster.credentials(role), &server, &trust, Expected::VolumeUser);
    assert_eq!((at("admin/a"), at("pod/1"), at("csi-node/n")), (None, None, None));
    for role in ["viewer/v", "csi-controller/c"] {
        assert_eq!(at(role), Some(CertificateError::WrongRole));
    }
}

#[test]
fn nobody_is_accepted_without_a_certificate() {
    let cluster = Cluster::new(1);
    let server_credentials = cluster.credentials("pod/2");
    let hash = cluster.authority.root().hash();
    let mut config = crate::security::credentials::client_with_token(hash).unwrap();
    config.enable_secret_extraction = true;
    let config = std::sync::Arc::new(config);
    let nobody = || {
        let pool = crate::io::buffer::Pool::default();
        crate::security::channel::Channel::client(&config, pool)
    };
    for expected in [Expected::Member, Expected::Pod, Expected::Anybody] {
        let mut one = End::new(nobody());
        let mut other = End::new(server(&server_credentials, &cluster.trust(), expected));
        talk(&mut one, &mut other, usize::MAX);
        assert!(!other.channel.is_up() && other.failed.is_some() && one.failed.is_some());
    }
    let expected = Expected::AnybodyOrNobody;
    let mut one = End::new(nobody());
    let mut other = End::new(server(&server_credentials, &cluster.trust(), expected));
    talk(&mut one, &mut other, usize::MAX);
    assert!(other.channel.is_up() && other.channel.peer().is_none());
}

#[test]
fn two_authorities_are_trusted_while_one_is_replaced() {
    let (old, new) = (Cluster::new(1), Cluster::new(1));
    let server = old.credentials("pod/2");
    let trust = old.trust();
    let both = vec![old.authority.root().clone(), new.authority.root().clone()];
    let check = |cluster: &Cluster, trust: &Trust| {
        trust.check_member(cluster.credentials("pod/1").certificate()).map(drop)
    };
    trust.set_roots(both.clone());
    assert_eq!((check(&old, &trust), check(&new, &trust)), (Ok(()), Ok(())));
    assert_eq!(refusal(&new.credentials("pod/1"), &server, &trust, Expected::Member), None);
    trust.set_roots(both[1..].to_vec());
    let foreign = Err(CertificateError::Foreign);
    assert_eq!((check(&old, &trust), check(&new, &trust)), (foreign, Ok(())));
}

#[test]
fn a_joiner_trusts_the_authority_of_its_token_only() {
    let (cluster, other) = (Cluster::new(1), Cluster::new(1));
    let pinned = Pinned::new(cluster.authority.root().hash());
    let root = |cluster: &Cluster| cluster.authority.root().der().to_vec().into();
    let of = |cluster: &Cluster, role| cluster.credentials(role).certificate().to_vec();
    let found = pinned.check(&of(&cluster, "pod/2"), &[root(&cluster)]).unwrap();
    assert_eq!(&found, cluster.authority.root());
    for (certificate, others) in [
        (of(&cluster, "pod/2"), vec![]),
        (of(&other, "pod/2"), vec![root(&other)]),
        (of(&other, "pod/2"), vec![root(&cluster), root(&other)]),
    ] {
        assert_eq!(pinned.check(&certificate, &others), Err(CertificateError::Foreign));
    }
    let person = pinned.check(&of(&cluster, "admin/a"), &[root(&cluster)]);
    assert_eq!(person, Err(CertificateError::NotAPod));
}

#[test]
fn a_request_is_answered_for_the_subject_that_the_authority_chose() {
    let cluster = Cluster::new(1);
    let subject = Subject { cluster: cluster.uuid, role: "pod/9".parse().unwrap() };
    let places = Places {
        addresses: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
        names: vec!["pod-9.example".to_owned()],
    };
    let (key, asked) = request().unwrap();
    let certificate = cluster.authority.answer(&asked, &subject, &places, now_s()).unwrap();
    let roots = vec![cluster.authority.root().clone()];
    let found = check(&certificate, &roots).unwrap();
    assert_eq!(found.subject, subject);
    Credentials::new(certificate.clone(), key, roots.clone()).unwrap();
    let (other_key, _) = request().unwrap();
    assert!(Credentials::new(certificate, other_key, roots).is_err());
    for at in (0..asked.len()).step_by(7) {
        let mut bad = asked.clone();
        bad[at] ^= 4;
        let answer = cluster.authority.answer(&bad, &subject, &places, now_s());
        assert!(matches!(answer, Err(AuthorityError::Request)), "byte {at}");
    }
}

#[test]
fn an_authority_survives_its_parts_and_they_must_belong_together() {
    let (cluster, other) = (Cluster::new(1), Cluster::new(1));
    let key = || Secret::new(cluster.authority.key_der().expose());
    let der = cluster.authority.root().der();
    let again = Authority::from_parts(der, key()).unwrap();
    assert_eq!(again.root(), cluster.authority.root());
    let mixed = Authority::from_parts(other.authority.root().der(), key());
    assert!(matches!(mixed, Err(AuthorityError::OtherKey)));
    let pod = cluster.credentials("pod/1");
    assert!(Authority::from_parts(pod.certificate(), pod.key().clone()).is_err());
}

/// Every bit of a certificate is signed, and whatever is read of it does no harm.
#[test]
fn a_certificate_that_was_changed_is_refused() {
    let cluster = Cluster::new(1);
    let der = cluster.credentials("pod/1").certificate().to_vec();
    let roots = [cluster.authority.root().clone()];
    let good = check(&der, &roots).unwrap();
    for at in 0..der.len() {
        // The frame around what is signed has more than one spelling; it changes nothing.
        let mut bad = der.clone();
        bad[at] ^= 1 << (at % 8);
        assert!(check(&bad, &roots).map_or(true, |found| found == good), "byte {at}");
        assert!(check(&der[..at], &roots).is_err());
        let mut bad = roots[0].der().to_vec();
        let at = at % bad.len();
        bad[at] ^= 1 << (at % 8);
        let is_harmless = |bad: Root| check(&der, &[bad]).is_ok();
        assert!(Root::from_der(&bad).map_or(true, is_harmless), "byte {at}");
    }
    assert!(check(&[der, vec![0]].concat(), &roots).is_err());
}

#[test]
fn nothing_that_is_printed_has_a_key() {
    let cluster = Cluster::new(1);
    let credentials = cluster.credentials("pod/1");
    let tls = crate::security::credentials::Tls::new(&credentials, credentials.trust()).unwrap();
    let shown = format!("{:?} {credentials:?} {tls:?}", cluster.authority);
    for key in [credentials.key(), cluster.authority.key_der()] {
        // 8 bytes of the private part, as `Debug` of bytes has them.
        let part = format!("{:?}", &key.expose()[40..48]);
        let part = part.trim_matches(['[', ']']);
        assert!(!shown.contains(part), "{shown}");
    }
}
