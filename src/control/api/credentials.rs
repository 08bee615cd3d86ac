//! Tokens and certificates. The leader signs, with the key that the catalog has. A certificate is
//! recorded before anybody gets it.

use std::net::IpAddr;
use std::sync::Arc;

use tonic::{Code, Request, Response, Status};

use crate::control::api::authorities;
use crate::control::api::errors::{broken, invalid, of_catalog};
use crate::control::api::parse_addresses;
use crate::control::api::requests::name_request;
use crate::control::api::route::{Failure, on_leader, read};
use crate::control::catalog::Catalog;
use crate::control::command::{Addresses, CatalogCommand, NewNode, Outcome};
use crate::control::connections::{Caller, Who};
use crate::control::node::Node;
use crate::control::proto;
use crate::control::proto::credentials_client::CredentialsClient;
use crate::control::proto::credentials_server::Credentials;
use crate::control::state::rows;
use crate::control::state::{CatalogError, CatalogState};
use crate::control::voucher::{VouchError, Vouched};
use crate::level::Level;
use crate::security::authority::{Authority, Places};
use crate::security::certificate::Certificate;
use crate::security::issue::now_s;
use crate::security::random::random;
use crate::security::secret::{Secret, from_hex, to_hex};
use crate::security::subject::{Role, Subject};
use crate::security::token::{Token, TokenError, TokenId, TokenKind, TokenRecord};
use crate::types::PodId;

const LIFETIME_S: u64 = 60 * 60;
const LIFETIME_S_MAX: u64 = 30 * 24 * 60 * 60;
/// A request is much shorter.
const REQUEST_BYTES_MAX: usize = 16 << 10;

pub struct CredentialsService {
    pub node: Arc<Node>,
}

#[tonic::async_trait]
impl Credentials for CredentialsService {
    async fn create_token(
        &self,
        mut request: Request<proto::CreateTokenRequest>,
    ) -> Result<Response<proto::CreateTokenResponse>, Status> {
        name_request(&mut request.get_mut().request_id)?;
        on_leader(&self.node, request, create_token, |channel, call| async move {
            CredentialsClient::new(channel).create_token(call).await
        })
        .await
    }

    async fn list_tokens(
        &self,
        request: Request<proto::ListTokensRequest>,
    ) -> Result<Response<proto::ListTokensResponse>, Status> {
        let list = |catalog: Arc<Catalog>, _| async move {
            let (state, _) = read(&catalog).await?;
            let tokens = state.tokens.iter();
            let tokens = tokens.map(|(id, token)| describe_token(id, token)).collect();
            Ok(proto::ListTokensResponse { tokens })
        };
        on_leader(&self.node, request, list, |channel, call| async move {
            CredentialsClient::new(channel).list_tokens(call).await
        })
        .await
    }

    async fn revoke_token(
        &self,
        mut request: Request<proto::RevokeTokenRequest>,
    ) -> Result<Response<proto::RevokeTokenResponse>, Status> {
        name_request(&mut request.get_mut().request_id)?;
        let revoke = |catalog: Arc<Catalog>, request: proto::RevokeTokenRequest| async move {
            let proto::RevokeTokenRequest { id, request_id } = request;
            catalog.propose(CatalogCommand::RemoveToken { request_id, id }).await?;
            Ok(proto::RevokeTokenResponse {})
        };
        on_leader(&self.node, request, revoke, |channel, call| async move {
            CredentialsClient::new(channel).revoke_token(call).await
        })
        .await
    }

    async fn enrol(
        &self,
        request: Request<proto::EnrolRequest>,
    ) -> Result<Response<proto::EnrolResponse>, Status> {
        let enrol = |catalog, request| enrol(self.node.clone(), catalog, request);
        on_leader(&self.node, request, enrol, |channel, call| async move {
            CredentialsClient::new(channel).enrol(call).await
        })
        .await
    }

    async fn renew(
        &self,
        mut request: Request<proto::RenewRequest>,
    ) -> Result<Response<proto::EnrolResponse>, Status> {
        let caller = request.extensions().get::<Caller>().cloned().unwrap_or_default();
        let holder = match caller.who() {
            Who::Holder(holder) => &holder.subject,
            _ => return Err(Status::unauthenticated("a certificate is needed to renew it")),
        };
        // A pod passes on what another one has asked, and that one has said who it is.
        let is_passed_on = matches!(holder.role, Role::Pod(_));
        if !is_passed_on || request.get_ref().subject.is_empty() {
            request.get_mut().subject = holder.to_string();
        }
        renew_on_leader(&self.node, request).await
    }

    async fn get_authorities(
        &self,
        request: Request<proto::GetAuthoritiesRequest>,
    ) -> Result<Response<proto::GetAuthoritiesResponse>, Status> {
        let get = |catalog, _| authorities::get(self.node.clone(), catalog);
        on_leader(&self.node, request, get, |channel, call| async move {
            CredentialsClient::new(channel).get_authorities(call).await
        })
        .await
    }

    async fn replace_authority(
        &self,
        request: Request<proto::ReplaceAuthorityRequest>,
    ) -> Result<Response<proto::GetAuthoritiesResponse>, Status> {
        let replace = |catalog, request| authorities::replace(self.node.clone(), catalog, request);
        on_leader(&self.node, request, replace, |channel, call| async move {
            CredentialsClient::new(channel).replace_authority(call).await
        })
        .await
    }

    async fn move_authority(
        &self,
        request: Request<proto::MoveAuthorityRequest>,
    ) -> Result<Response<proto::GetAuthoritiesResponse>, Status> {
        let step = |catalog, request| authorities::take_step(self.node.clone(), catalog, request);
        on_leader(&self.node, request, step, |channel, call| async move {
            CredentialsClient::new(channel).move_authority(call).await
        })
        .await
    }

    async fn list_certificates(
        &self,
        request: Request<proto::ListCertificatesRequest>,
    ) -> Result<Response<proto::ListCertificatesResponse>, Status> {
        let list = |catalog: Arc<Catalog>, _| async move {
            let (state, _) = read(&catalog).await?;
            let is_trusted = |number| state.cluster.roots.iter().any(|root| root.number == number);
            let describe = |(serial, it): (&String, &rows::Certificate)| proto::Certificate {
                serial: serial.clone(),
                subject: it.subject.clone(),
                expires_s: it.expires_s,
                revoked: state.revoked.contains_key(serial) || !is_trusted(it.authority),
            };
            let certificates = state.certificates.iter().map(describe).collect();
            Ok(proto::ListCertificatesResponse { certificates })
        };
        on_leader(&self.node, request, list, |channel, call| async move {
            CredentialsClient::new(channel).list_certificates(call).await
        })
        .await
    }

    async fn revoke_certificate(
        &self,
        request: Request<proto::RevokeCertificateRequest>,
    ) -> Result<Response<proto::RevokeCertificateResponse>, Status> {
        let revoke = |catalog: Arc<Catalog>, request: proto::RevokeCertificateRequest| async move {
            let serial = request.serial;
            catalog.propose(CatalogCommand::RevokeCertificate { serial }).await?;
            Ok(proto::RevokeCertificateResponse {})
        };
        on_leader(&self.node, request, revoke, |channel, call| async move {
            CredentialsClient::new(channel).revoke_certificate(call).await
        })
        .await
    }
}

fn describe_token(id: &str, token: &rows::Token) -> proto::Token {
    proto::Token { id: id.to_owned(), kind: token.kind.clone(), expires_s: token.expires_s }
}

fn refused(code: Code, text: impl Into<String>) -> Failure {
    Failure::Final(Status::new(code, text))
}

async fn create_token(
    catalog: Arc<Catalog>,
    request: proto::CreateTokenRequest,
) -> Result<proto::CreateTokenResponse, Failure> {
    let kind = match request.role.as_str() {
        "" => TokenKind::Pod,
        role => format!("role:{role}").parse().map_err(|_| {
            refused(Code::InvalidArgument, format!("{role:?} is not a role for a token"))
        })?,
    };
    let lifetime_s = if request.lifetime_s == 0 { LIFETIME_S } else { request.lifetime_s };
    if lifetime_s > LIFETIME_S_MAX {
        return Err(refused(Code::InvalidArgument, "a token lasts 30 days at most"));
    }
    let (state, _) = read(&catalog).await?;
    let (_, authority) = authorities::signer(&state)?;
    let id = TokenId(random().map_err(|error| refused(Code::Internal, error.to_string()))?);
    let token_of = |authority: &Authority, id: TokenId| {
        Token::new(kind.clone(), authority.root().hash(), id, authority.token_secret(id))
    };
    let record = token_of(&authority, id).record(now_s() + lifetime_s);
    let request_id = request.request_id;
    let row = rows::Token {
        kind: record.kind.to_string(),
        secret_hash: to_hex(&record.secret_hash),
        expires_s: record.expires_s,
        created_ms: now_s() * 1000,
        request_id: request_id.clone(),
    };
    let put =
        CatalogCommand::PutToken { request_id: request_id.clone(), id: id.to_string(), token: row };
    catalog.propose(put).await?;
    // A request that was carried out before has made another one, which may be void by now.
    let (state, _) = read(&catalog).await?;
    let kind_text = kind.to_string();
    let is_earlier = |row: &rows::Token| row.request_id == request_id && row.kind == kind_text;
    let own = state.tokens.iter().find(|(known, _)| **known == id.to_string());
    let made = own.or_else(|| state.tokens.iter().find(|(_, row)| is_earlier(row)));
    let made_id = id.to_string();
    let none = || of_catalog(&CatalogError::NoSuchToken { id: made_id.clone() });
    let (id, row) = made.ok_or_else(none)?;
    let parsed = id.parse().map_err(|error: TokenError| broken(error.to_string()))?;
    // Another authority may sign by now than the one that its secret is derived from.
    let mut by_all = authorities::all_with_keys(&state)?.into_iter();
    let is_it = |token: &Token| to_hex(&token.record(0).secret_hash) == row.secret_hash;
    let token = by_all.find_map(|by| Some(token_of(&by, parsed)).filter(is_it));
    let token = token.ok_or_else(none)?;
    let text = String::from_utf8_lossy(token.text().expose()).into_owned();
    Ok(proto::CreateTokenResponse { text, token: Some(describe_token(id, row)) })
}

/// Checks a token that somebody shows. The answer does not say whether it exists.
fn check_token(state: &CatalogState, text: &str) -> Result<Token, Failure> {
    let wrong = |error: TokenError| refused(Code::Unauthenticated, error.to_string());
    let token: Token = text.parse().map_err(wrong)?;
    let row = state.tokens.get(&token.id.to_string()).ok_or_else(|| wrong(TokenError::Invalid))?;
    record_of(token.id, row).and_then(|record| record.check(&token, now_s())).map_err(wrong)?;
    Ok(token)
}

fn record_of(id: TokenId, row: &rows::Token) -> Result<TokenRecord, TokenError> {
    let secret_hash = from_hex(&row.secret_hash).ok_or(TokenError::Invalid)?;
    Ok(TokenRecord { id, kind: row.kind.parse()?, secret_hash, expires_s: row.expires_s })
}

/// What somebody may get.
enum Permit {
    Role(Role),
    /// `node`: the only one that it may be on.
    Pod {
        node: Option<String>,
    },
}

impl From<TokenKind> for Permit {
    fn from(kind: TokenKind) -> Permit {
        match kind {
            TokenKind::Pod => Permit::Pod { node: None },
            TokenKind::Role(role) => Permit::Role(role),
        }
    }
}

/// Asks who vouches for programs about the token of one.
async fn vouched(node: &Node, token: String) -> Result<Permit, Failure> {
    let token = Secret::new(token.into_bytes());
    let Some(voucher) = node.voucher() else {
        let text = "this pod takes no tokens of Kubernetes: set `kubernetes.enrol`";
        return Err(refused(Code::Unauthenticated, text));
    };
    if token.expose().len() > REQUEST_BYTES_MAX {
        return Err(refused(Code::Unauthenticated, TokenError::Malformed.to_string()));
    }
    match voucher.vouch(&token).await {
        Ok(Vouched::Pod { node }) => Ok(Permit::Pod { node: Some(node) }),
        Ok(Vouched::Role(role)) => Ok(Permit::Role(role)),
        Err(VouchError::Refused(text)) => Err(refused(Code::Unauthenticated, text)),
        Err(error) => Err(refused(Code::Unavailable, error.to_string())),
    }
}

async fn enrol(
    node: Arc<Node>,
    catalog: Arc<Catalog>,
    request: proto::EnrolRequest,
) -> Result<proto::EnrolResponse, Failure> {
    let (state, _) = read(&catalog).await?;
    let permit = match request.service_account_token.is_empty() {
        true => check_token(&state, &request.token)?.kind.into(),
        false => vouched(&node, request.service_account_token).await?,
    };
    let (role, places, others) = match (permit, request.pod) {
        (Permit::Role(role), None) => (role, Places::default(), Vec::new()),
        (Permit::Pod { node }, Some(pod)) => {
            if let Some(node) = node.filter(|node| *node != pod.node) {
                let text = format!("the token is from node {node}, and the pod is on {}", pod.node);
                return Err(refused(Code::PermissionDenied, text));
            }
            let (pod, addresses) = join(&catalog, pod).await?;
            let others = state.pods.iter().filter(|(other, _)| **other != pod);
            let others = others.map(|(_, record)| record.addresses.api.to_string()).collect();
            (Role::Pod(pod), places_of(&addresses), others)
        }
        _ => return Err(refused(Code::InvalidArgument, "the token is for something else")),
    };
    let subject = Subject { cluster: state.cluster.uid, role };
    // A pod that has joined is waited for from now on, so it must know whom to trust by now.
    let (state, _) = read(&catalog).await?;
    let issued = sign(&node, &catalog, &state, &request.request, &subject, &places).await?;
    Ok(proto::EnrolResponse { api: others, ..issued })
}

/// Where clients may reach a pod.
fn places_of(addresses: &Addresses) -> Places {
    let all = [Some(addresses.api), Some(addresses.peer), addresses.nbd];
    let mut addresses: Vec<IpAddr> = all.iter().flatten().map(|at| at.ip()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    Places { addresses, names: Vec::new() }
}

async fn join(catalog: &Catalog, pod: proto::EnrolPod) -> Result<(PodId, Addresses), Failure> {
    let proto::EnrolPod { uid, api, peer, nbd, newest_level, node, boot_id, labels } = pod;
    let uid = uid.parse().map_err(|error| invalid(&error))?;
    let addresses = parse_addresses(&api, &peer, &nbd)?;
    let node = NewNode { name: node, boot_id, labels: labels.into_iter().collect() };
    match catalog
        .propose(CatalogCommand::Join { uid, addresses, node, newest: Level(newest_level) })
        .await?
    {
        Outcome::Pod(pod) => Ok((pod, addresses)),
        _ => Err(refused(Code::Internal, "joining made no pod")),
    }
}

/// Asks the leader for a new certificate. The subject of the request was checked.
pub async fn renew_on_leader(
    node: &Arc<Node>,
    request: Request<proto::RenewRequest>,
) -> Result<Response<proto::EnrolResponse>, Status> {
    let renew = |catalog, request| renew(node.clone(), catalog, request);
    on_leader(node, request, renew, |channel, call| async move {
        CredentialsClient::new(channel).renew(call).await
    })
    .await
}

async fn renew(
    node: Arc<Node>,
    catalog: Arc<Catalog>,
    request: proto::RenewRequest,
) -> Result<proto::EnrolResponse, Failure> {
    let (state, _) = read(&catalog).await?;
    let subject: Subject = request.subject.parse().map_err(|error| invalid(&error))?;
    if subject.cluster != state.cluster.uid {
        return Err(refused(Code::PermissionDenied, "the subject is of another cluster"));
    }
    let places = match subject.role {
        Role::Pod(pod) => {
            let record = state.pods.get(&pod);
            let record = record.ok_or_else(|| refused(Code::PermissionDenied, "no such pod"))?;
            places_of(&record.addresses)
        }
        _ => Places::default(),
    };
    authorities::check_renewal(&node, &state, &subject.role)?;
    sign(&node, &catalog, &state, &request.request, &subject, &places).await
}

/// Signs, records, and then gives.
async fn sign(
    node: &Node,
    catalog: &Catalog,
    state: &CatalogState,
    request: &[u8],
    subject: &Subject,
    places: &Places,
) -> Result<proto::EnrolResponse, Failure> {
    let (number, authority) = authorities::signer(state)?;
    if request.len() > REQUEST_BYTES_MAX {
        return Err(refused(Code::InvalidArgument, "the request for a certificate is too long"));
    }
    let der =
        authority.answer(request, subject, places, now_s()).map_err(|error| invalid(&error))?;
    let read = Certificate::from_der(&der).map_err(|error| invalid(&error))?;
    let certificate = rows::Certificate {
        subject: subject.to_string(),
        authority: number,
        expires_s: u64::try_from(read.not_after_s).unwrap_or(0),
        created_ms: now_s() * 1000,
    };
    catalog.propose(CatalogCommand::PutCertificate { serial: read.serial, certificate }).await?;
    Ok(proto::EnrolResponse {
        certificate: der.into(),
        authorities: authorities::trusted(node, state).into_iter().map(Into::into).collect(),
        api: Vec::new(),
    })
}
