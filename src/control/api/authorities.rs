//! How an authority is replaced while the cluster runs ([`crate::control::state::authority`] has
//! the steps). The leader takes a step only when no pod is shut out by it.

use std::sync::Arc;

use crate::control::api::errors::{Refusal, broken, invalid};
use crate::control::api::route::{Failure, read};
use crate::control::catalog::Catalog;
use crate::control::command::{AuthorityStep, CatalogCommand, Hidden, listed};
use crate::control::node::Node;
use crate::control::proto;
use crate::control::reason::Reason;
use crate::control::state::CatalogState;
use crate::control::state::rows::{self, TrustedRoot};
use crate::control::trusting::{hash_of, not_presenting, not_trusting, not_trusting_signer};
use crate::security::authority::Authority;
use crate::security::certificate::Root;
use crate::security::issue::now_s;
use crate::security::secret::{Secret, bytes_from_hex, to_hex};
use crate::security::subject::Role;
use crate::security::trust::ROOTS_MAX;
use crate::types::PodId;

/// A sealed key is much shorter.
const SEALED_BYTES_MAX: usize = 64 << 10;

/// The authority that signs, with its number.
pub fn signer(state: &CatalogState) -> Result<(u64, Authority), Failure> {
    let none = || {
        let text = "the catalog has no authority, or its key is sealed: put authority.key and \
                    recovery.sealed into the `tls` directory of a pod, and start it again \
                    (docs/security.md)";
        Failure::Final(Refusal::new(Reason::NoAuthority, text).into())
    };
    let root = state.cluster.roots.first().ok_or_else(none)?;
    Ok((root.number, with_key(state, root)?.ok_or_else(none)?))
}

/// The authorities that are trusted and whose keys the catalog has. The one that signs is first.
pub fn all_with_keys(state: &CatalogState) -> Result<Vec<Authority>, Failure> {
    let all = state.cluster.roots.iter().map(|root| with_key(state, root));
    Ok(all.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
}

fn with_key(state: &CatalogState, root: &TrustedRoot) -> Result<Option<Authority>, Failure> {
    let row = state.authorities.get(&root.number).filter(|row| !row.key.0.is_empty());
    let Some(row) = row else { return Ok(None) };
    let unreadable = || Failure::Final(broken("the authority of the catalog cannot be read"));
    let certificate = bytes_from_hex(&row.certificate).ok_or_else(unreadable)?;
    let key = Secret::new(bytes_from_hex(&row.key.0).ok_or_else(unreadable)?);
    Ok(Some(Authority::from_parts(&certificate, key).map_err(|_| unreadable())?))
}

/// The certificates of all that a new holder has to trust, DER. The one that signs is first. After
/// a restore pods may have certificates of others, which this pod knows.
pub fn trusted(node: &Node, state: &CatalogState) -> Vec<Vec<u8>> {
    let roots = state.cluster.roots.iter();
    let mut all: Vec<_> = roots.filter_map(|root| bytes_from_hex(&root.certificate)).collect();
    if state.cluster.others_trusted {
        let others = node.trusted_roots().into_iter().map(|root| root.der().to_vec());
        let others: Vec<_> = others.filter(|der| !all.contains(der)).collect();
        all.extend(others);
    }
    all.truncate(ROOTS_MAX);
    all
}

pub async fn get(
    node: Arc<Node>,
    catalog: Arc<Catalog>,
) -> Result<proto::GetAuthoritiesResponse, Failure> {
    let (state, _) = read(&catalog).await?;
    Ok(described(&node, &state))
}

pub async fn replace(
    node: Arc<Node>,
    catalog: Arc<Catalog>,
    request: proto::ReplaceAuthorityRequest,
) -> Result<proto::GetAuthoritiesResponse, Failure> {
    let (state, _) = read(&catalog).await?;
    let proto::ReplaceAuthorityRequest { certificate, key, sealed } = request;
    let authority = Authority::from_parts(&certificate, Secret::new(&key[..]));
    let authority = authority.map_err(|error| invalid(&error))?;
    let known = trusted(&node, &state).into_iter().filter_map(|der| Root::from_der(&der).ok());
    if known.into_iter().any(|root| root.is_mistaken_for(authority.root())) {
        let text = "the new authority has the name or the key of a trusted one; make another one";
        return Err(Failure::Final(Refusal::new(Reason::AuthorityRetired, text).into()));
    }
    if authority.cluster() != state.cluster.uid || sealed.len() > SEALED_BYTES_MAX {
        let text = "the authority is one of another cluster, or its sealed key is too long";
        return Err(Failure::Final(Refusal::new(Reason::BadRequest, text).into()));
    }
    let authority = rows::Authority {
        certificate: to_hex(authority.root().der()),
        key: Hidden(to_hex(authority.key_der().expose())),
        sealed: to_hex(&sealed),
        created_ms: now_s() * 1000,
    };
    catalog.propose(CatalogCommand::ReplaceAuthority { authority }).await?;
    get(node, catalog).await
}

pub async fn take_step(
    node: Arc<Node>,
    catalog: Arc<Catalog>,
    request: proto::MoveAuthorityRequest,
) -> Result<proto::GetAuthoritiesResponse, Failure> {
    let (state, _) = read(&catalog).await?;
    let step = match request.step() {
        proto::AuthorityStep::Switch => AuthorityStep::Switch,
        proto::AuthorityStep::Finish => AuthorityStep::Finish,
        proto::AuthorityStep::Abandon => AuthorityStep::Abandon,
        proto::AuthorityStep::Unspecified => {
            let text = "the request names no step";
            return Err(Failure::Final(Refusal::new(Reason::BadRequest, text).into()));
        }
    };
    if is_a_step(&state, step) {
        let waits = waiting(&node, &state, step);
        if !waits.is_empty() {
            return Err(Failure::Final(not_ready(step, &waits)));
        }
        if step == AuthorityStep::Finish && !request.void_certificates {
            check_void(&state)?;
        }
    }
    let based_on = state.cluster_revision;
    catalog.propose(CatalogCommand::MoveAuthority { step, based_on }).await?;
    get(node, catalog).await
}

/// False for a step that was taken before, or that is refused anyway.
fn is_a_step(state: &CatalogState, step: AuthorityStep) -> bool {
    let roots: Vec<u64> = state.cluster.roots.iter().map(|root| root.number).collect();
    match (step, &roots[..]) {
        (AuthorityStep::Switch, [first, second]) => first < second,
        (AuthorityStep::Finish, [first, second]) => first > second,
        (AuthorityStep::Finish, _) => state.cluster.others_trusted,
        (AuthorityStep::Switch | AuthorityStep::Abandon, _) => false,
    }
}

/// The pods that a step would shut out, by what they said last.
fn waiting(node: &Node, state: &CatalogState, step: AuthorityStep) -> Vec<PodId> {
    let roots = &state.cluster.roots;
    let newest = roots.iter().max_by_key(|root| root.number);
    let (Some(newest), Some(signs)) = (newest, roots.first()) else { return Vec::new() };
    node.reports.with(|pods| {
        let said = |pod| pods.trusting(pod);
        match step {
            AuthorityStep::Switch => not_trusting(state, said, &hash_of(newest)),
            AuthorityStep::Finish => not_presenting(state, said, &hash_of(signs)),
            AuthorityStep::Abandon => Vec::new(),
        }
    })
}

fn not_ready(step: AuthorityStep, waits: &[PodId]) -> tonic::Status {
    let pods = listed(waits);
    let text = match step {
        AuthorityStep::Switch => format!("pods {pods} do not trust the new authority yet"),
        _ => format!("pods {pods} still have certificates of another authority"),
    };
    let text = format!(
        "{text}; wait a little, start those that are off, or declare their nodes lost (their pods \
         then need `holdfast join --again`)"
    );
    Refusal::new(Reason::PodsNotReady, text).with("pods", pods).into()
}

/// Refuses a renewal that would give a pod a certificate which another pod does not accept (rule
/// `pods-accept-each-other`).
pub fn check_renewal(node: &Node, state: &CatalogState, role: &Role) -> Result<(), Failure> {
    if !matches!(role, Role::Pod(_)) {
        return Ok(());
    }
    let waits = node.reports.with(|pods| not_trusting_signer(state, |pod| pods.trusting(pod)));
    match waits.is_empty() {
        true => Ok(()),
        false => Err(Failure::Final(not_ready(AuthorityStep::Switch, &waits))),
    }
}

/// Refuses to make valid certificates of people and programs void.
fn check_void(state: &CatalogState) -> Result<(), Failure> {
    let signs = state.cluster.roots.first().map(|root| root.number);
    let void: Vec<&str> = in_use(state)
        .filter(|it| Some(it.authority) != signs)
        .map(|it| it.subject.rsplit_once("//").map_or("", |(_, rest)| rest))
        .filter_map(|rest| rest.split_once('/').map(|(_, role)| role))
        .collect();
    if void.is_empty() {
        return Ok(());
    }
    let text = format!(
        "{} certificates of the old authority are valid, of {}; renew them (`holdfast cert \
         renew`), or say that they may become void",
        void.len(),
        listed(&void)
    );
    Err(Failure::Final(Refusal::new(Reason::CertificatesInUse, text).into()))
}

/// The certificates of people and programs that are valid, as far as the catalog has issued them.
fn in_use(state: &CatalogState) -> impl Iterator<Item = &rows::Certificate> {
    let now_s = now_s();
    let all = state.certificates.iter();
    all.filter(move |(serial, it)| {
        it.expires_s > now_s
            && !it.subject.contains("/pod/")
            && !state.revoked.contains_key(*serial)
    })
    .map(|(_, it)| it)
}

fn described(node: &Node, state: &CatalogState) -> proto::GetAuthoritiesResponse {
    let roots = &state.cluster.roots;
    let signs = roots.first().map(|root| root.number);
    let authorities = roots.iter().map(|root| {
        let row = state.authorities.get(&root.number);
        proto::Authority {
            number: root.number,
            fingerprint: to_hex(&hash_of(root)),
            signs: Some(root.number) == signs,
            has_key: row.is_some_and(|row| !row.key.0.is_empty()),
            certificates: in_use(state).filter(|it| it.authority == root.number).count() as u64,
        }
    });
    let step = match &roots[..] {
        [first, second] if first.number < second.number => AuthorityStep::Switch,
        _ => AuthorityStep::Finish,
    };
    let waits = if is_a_step(state, step) { waiting(node, state, step) } else { Vec::new() };
    proto::GetAuthoritiesResponse {
        cluster: state.cluster.uid.to_string(),
        authorities: authorities.collect(),
        others_trusted: state.cluster.others_trusted,
        waiting_pods: waits.iter().map(|pod| pod.0).collect(),
    }
}
