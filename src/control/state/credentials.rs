//! Commands about tokens and certificates.

use crate::control::command::Outcome;
use crate::control::state::error::{CERTIFICATES_MAX, CatalogError};
use crate::control::state::rows::{Certificate, Revoked, Token};
use crate::control::state::tables::{Object, Tables};

/// Tokens that are not void, at most: they are for hours.
const TOKENS_MAX: usize = 1000;
/// Rows that have lost their meaning, of which one command removes so many.
const FORGOTTEN_AT_ONCE: usize = 4;

pub(super) fn put_token(
    tables: &mut Tables,
    now_ms: u64,
    id: String,
    token: Token,
) -> Result<Outcome, CatalogError> {
    let is_void = |token: &Token| token.expires_s.saturating_mul(1000) <= now_ms;
    if tables.tokens.len() >= TOKENS_MAX && !tables.tokens.values().any(is_void) {
        return Err(CatalogError::TooManyTokens);
    }
    forget(tables, is_void);
    tables.put(id, token);
    Ok(Outcome::Done)
}

pub(super) fn remove_token(tables: &mut Tables, id: String) -> Result<Outcome, CatalogError> {
    if !tables.tokens.contains_key(&id) {
        return Err(CatalogError::NoSuchToken { id });
    }
    tables.remove::<Token>(&id);
    Ok(Outcome::Done)
}

/// A certificate was signed. It is given to nobody before this is applied.
pub(super) fn put_certificate(
    tables: &mut Tables,
    now_ms: u64,
    serial: String,
    certificate: Certificate,
) -> Result<Outcome, CatalogError> {
    let signer = tables.cluster.roots.first().map(|root| root.number);
    if signer != Some(certificate.authority) {
        return Err(CatalogError::AuthorityReplaced);
    }
    let now_s = now_ms / 1000;
    let trusted: Vec<u64> = tables.cluster.roots.iter().map(|root| root.number).collect();
    forget(tables, move |known: &Certificate| {
        known.expires_s < now_s || !trusted.contains(&known.authority)
    });
    forget(tables, move |revoked: &Revoked| revoked.expires_s < now_s);
    make_room(tables, now_s, &serial, &certificate.subject)?;
    tables.put(serial, certificate);
    Ok(Outcome::Done)
}

/// A holder may renew a certificate at any time, and must not fill the catalog by that. A
/// pod's certificates are not revoked one by one, so that its oldest row says nothing that is
/// needed.
fn make_room(
    tables: &mut Tables,
    now_s: u64,
    serial: &String,
    subject: &str,
) -> Result<(), CatalogError> {
    let is_valid = |(known, it): &(&String, &Certificate)| {
        it.subject == subject
            && *known != serial
            && it.expires_s >= now_s
            && !tables.revoked.contains_key(*known)
    };
    let valid = || tables.certificates.iter().filter(is_valid);
    if valid().count() < CERTIFICATES_MAX {
        return Ok(());
    }
    if !subject.contains("/pod/") {
        return Err(CatalogError::TooManyCertificates { subject: subject.to_owned() });
    }
    let oldest = valid().min_by_key(|(serial, it)| (it.created_ms, *serial));
    if let Some(serial) = oldest.map(|(serial, _)| serial.clone()) {
        tables.remove::<Certificate>(&serial);
    }
    Ok(())
}

pub(super) fn revoke(
    tables: &mut Tables,
    now_ms: u64,
    serial: String,
) -> Result<Outcome, CatalogError> {
    if tables.revoked.contains_key(&serial) {
        return Ok(Outcome::Done);
    }
    let Some(certificate) = tables.certificates.get(&serial) else {
        return Err(CatalogError::NoSuchCertificate { serial });
    };
    if certificate.subject.contains("/pod/") {
        return Err(CatalogError::CertificateOfPod);
    }
    let Certificate { subject, expires_s, .. } = certificate.clone();
    tables.put(serial, Revoked { subject, expires_s, revoked_ms: now_ms });
    Ok(Outcome::Done)
}

fn forget<T: Object>(tables: &mut Tables, is_over: impl Fn(&T) -> bool) {
    let over = T::table(tables).iter().filter(|(_, it)| is_over(it));
    let over: Vec<T::Key> = over.take(FORGOTTEN_AT_ONCE).map(|(key, _)| key.clone()).collect();
    over.iter().for_each(|key| tables.remove::<T>(key));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::command::{Authority, AuthorityStep, CatalogCommand, Hidden};
    use crate::control::state::CatalogState;
    use crate::testing::catalog_fixture::first_pod;

    fn token(expires_s: u64) -> Token {
        let (kind, secret_hash) = ("pod".to_owned(), "00".to_owned());
        let request_id = String::new();
        Token { kind, secret_hash, request_id, expires_s, created_ms: 0 }
    }

    fn certificate(subject: &str, expires_s: u64) -> Certificate {
        let subject = format!("holdfast://c/{subject}");
        Certificate { subject, authority: 1, expires_s, created_ms: 0 }
    }

    fn put(serial: &str, subject: &str, expires_s: u64) -> CatalogCommand {
        let certificate = certificate(subject, expires_s);
        CatalogCommand::PutCertificate { serial: serial.to_owned(), certificate }
    }

    fn authority(certificate: &str) -> Authority {
        let (certificate, key) = (certificate.to_owned(), Hidden("00".to_owned()));
        Authority { certificate, key, sealed: String::new(), created_ms: 0 }
    }

    fn with_authority() -> CatalogState {
        let mut state = first_pod();
        let set = CatalogCommand::SetAuthority { authority: authority("aa") };
        assert!(apply(&mut state, 1, set));
        state
    }

    fn apply(state: &mut CatalogState, now_ms: u64, command: CatalogCommand) -> bool {
        let is_done = state.apply(now_ms, command).outcome.is_ok();
        let rows: Vec<_> = state.rows().collect();
        assert_eq!(CatalogState::from_rows(rows).unwrap(), *state);
        is_done
    }

    #[test]
    fn a_token_is_made_and_revoked_once_for_each_request() {
        let mut state = first_pod();
        let put = |request_id: &str, id: &str, expires_s| CatalogCommand::PutToken {
            request_id: request_id.to_owned(),
            id: id.to_owned(),
            token: token(expires_s),
        };
        let remove = |request_id: &str| CatalogCommand::RemoveToken {
            request_id: request_id.to_owned(),
            id: "one".to_owned(),
        };
        assert!(apply(&mut state, 1, put("make", "one", 100)));
        assert!(apply(&mut state, 2, put("make", "one", 200)), "it is repeated");
        assert_eq!(state.tokens["one"].expires_s, 100);
        assert!(apply(&mut state, 3, remove("revoke")) && apply(&mut state, 4, remove("revoke")));
        assert!(apply(&mut state, 5, put("make", "one", 100)), "it comes late");
        assert!(state.tokens.is_empty());
        assert!(!apply(&mut state, 6, remove("another")));
    }

    #[test]
    fn void_tokens_make_room_and_others_are_kept() {
        let mut state = first_pod();
        let put = |number: usize, expires_s| CatalogCommand::PutToken {
            request_id: String::new(),
            id: format!("{number:04}"),
            token: token(expires_s),
        };
        for number in 0..TOKENS_MAX {
            assert!(state.apply(1, put(number, 100)).outcome.is_ok());
        }
        assert!(!apply(&mut state, 1, put(TOKENS_MAX, 100)));
        assert!(apply(&mut state, 100_000, put(TOKENS_MAX, 200)));
        assert!(state.tokens.len() < TOKENS_MAX);
        let remove = || {
            let (request_id, id) = (String::new(), format!("{TOKENS_MAX:04}"));
            CatalogCommand::RemoveToken { request_id, id }
        };
        assert!(apply(&mut state, 100_000, remove()) && !apply(&mut state, 100_000, remove()));
    }

    #[test]
    fn a_persons_certificate_can_be_revoked_until_it_would_have_ended() {
        let mut state = with_authority();
        let revoke = |serial: &str| CatalogCommand::RevokeCertificate { serial: serial.to_owned() };
        assert!(apply(&mut state, 1, put("1a", "admin/a", 10)));
        assert!(apply(&mut state, 1, put("2b", "pod/1", 10)));
        assert!(!apply(&mut state, 1, revoke("3c")) && !apply(&mut state, 1, revoke("2b")));
        assert!(apply(&mut state, 1, revoke("1a")) && apply(&mut state, 1, revoke("1a")));
        assert_eq!(state.revoked.len(), 1);
        assert!(apply(&mut state, 11_000, put("4d", "admin/a", 100)));
        assert_eq!((state.revoked.len(), state.certificates.len()), (0, 1));
    }

    #[test]
    fn one_subject_has_a_bounded_number_of_certificates() {
        let mut state = with_authority();
        for (at, subject) in ["csi-node/a", "pod/1"].into_iter().enumerate() {
            for number in 0..CERTIFICATES_MAX {
                assert!(apply(&mut state, 1, put(&format!("{at}{number:02}"), subject, 10)));
            }
        }
        // A pod is never refused.
        let of_pod = |state: &CatalogState| {
            state.certificates.values().filter(|it| it.subject.contains("/pod/")).count()
        };
        assert!(apply(&mut state, 1, put("1ff", "pod/1", 10)));
        assert!(of_pod(&state) <= CERTIFICATES_MAX && state.certificates.contains_key("1ff"));
        assert!(apply(&mut state, 1, put("000", "csi-node/a", 10)), "it is repeated");
        assert!(!apply(&mut state, 1, put("0ff", "csi-node/a", 10)));
        assert!(apply(&mut state, 1, put("0ff", "csi-node/b", 10)), "others are not held up");
        let revoke = CatalogCommand::RevokeCertificate { serial: "000".to_owned() };
        assert!(apply(&mut state, 1, revoke));
        assert!(apply(&mut state, 1, put("0fe", "csi-node/a", 100)));
        assert!(!apply(&mut state, 1, put("0fd", "csi-node/a", 100)));
        assert!(apply(&mut state, 11_000, put("0fd", "csi-node/a", 100)), "the old are over");
    }

    #[test]
    fn a_replaced_authority_signs_nothing_more_and_what_it_signed_is_forgotten() {
        let mut state = with_authority();
        assert!(apply(&mut state, 1, put("1a", "admin/a", 10)));
        let replace = CatalogCommand::ReplaceAuthority { authority: authority("bb") };
        let step = |state: &CatalogState, step| CatalogCommand::MoveAuthority {
            step,
            based_on: state.cluster_revision,
        };
        assert!(apply(&mut state, 1, replace) && apply(&mut state, 1, put("2b", "pod/1", 10)));
        let switch = step(&state, AuthorityStep::Switch);
        assert!(apply(&mut state, 1, switch));
        assert!(!apply(&mut state, 1, put("3c", "admin/c", 10)), "signed before the switch");
        let by_new = |serial: &str| CatalogCommand::PutCertificate {
            serial: serial.to_owned(),
            certificate: Certificate { authority: 2, ..certificate("admin/d", 10) },
        };
        assert!(apply(&mut state, 1, by_new("4d")));
        assert_eq!(state.certificates.len(), 3);
        let finish = step(&state, AuthorityStep::Finish);
        assert!(apply(&mut state, 1, finish));
        assert!(apply(&mut state, 1, by_new("5e")));
        assert_eq!(state.certificates.len(), 2);
    }
}
