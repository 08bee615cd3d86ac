//! A certificate with its key and what it trusts, and the settings of rustls made from them.

use std::sync::{Arc, PoisonError, RwLock};

use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::cipher_suite::{
    TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
};
use rustls::crypto::ring::sign::any_ecdsa_type;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ServerConfig, SignatureScheme};

use crate::security::certificate::{Certificate, CertificateError, Root};
use crate::security::secret::Secret;
use crate::security::subject::Subject;
use crate::security::trust::{ROOTS_MAX, Trust};
use crate::security::verifier::{Expected, Pinned, Verifier};

/// Why credentials cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    #[error("cannot use the certificate")]
    Certificate(#[from] CertificateError),
    #[error("cannot use the key, or it is not that of the certificate")]
    Key(#[source] rustls::Error),
    #[error(
        "{0} authorities are listed; there must be one, or up to {ROOTS_MAX} while one is replaced"
    )]
    Authorities(usize),
    #[error("cannot set up TLS")]
    Tls(#[from] rustls::Error),
}

/// A certificate, its key, and the authorities that its holder trusts.
#[derive(Clone, Debug)]
pub struct Credentials {
    held: Certificate,
    /// DER.
    certificate: Vec<u8>,
    /// PKCS #8, DER.
    key: Secret,
    roots: Vec<Root>,
}

impl Credentials {
    /// Checks that they belong together.
    pub fn new(
        certificate: Vec<u8>,
        key: Secret,
        roots: Vec<Root>,
    ) -> Result<Credentials, CredentialsError> {
        if roots.is_empty() || roots.len() > ROOTS_MAX {
            return Err(CredentialsError::Authorities(roots.len()));
        }
        // Its dates are for others to judge.
        let held = crate::security::certificate::check(&certificate, &roots)?;
        let credentials = Credentials { held, certificate, key, roots };
        let certified = credentials.certified()?;
        certified.keys_match().map_err(CredentialsError::Key)?;
        Ok(credentials)
    }

    pub fn subject(&self) -> &Subject {
        &self.held.subject
    }

    /// DER.
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// PKCS #8, DER.
    pub fn key(&self) -> &Secret {
        &self.key
    }

    pub fn roots(&self) -> &[Root] {
        &self.roots
    }

    /// The authority that signed the certificate.
    pub fn issuer(&self) -> &Root {
        let is_issuer = |root: &&Root| root.is_issuer_of(&self.held);
        self.roots.iter().find(is_issuer).expect("it was checked when they were put together")
    }

    /// The same certificate, with trust in other authorities.
    pub fn with_roots(&self, roots: Vec<Root>) -> Result<Credentials, CredentialsError> {
        Credentials::new(self.certificate.clone(), self.key.clone(), roots)
    }

    /// Trust in the authorities, for the cluster of the certificate.
    pub fn trust(&self) -> Trust {
        Trust::new(self.held.subject.cluster, self.roots.clone())
    }

    fn certified(&self) -> Result<CertifiedKey, CredentialsError> {
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.key.expose()));
        let key = any_ecdsa_type(&key).map_err(CredentialsError::Key)?;
        // Those who know only the authority's hash find it here.
        let roots = self.roots.iter().map(|root| root.der().to_vec());
        let chain = std::iter::once(self.certificate.clone()).chain(roots);
        Ok(CertifiedKey::new(chain.map(CertificateDer::from).collect(), key))
    }
}

/// What a process presents and whom it trusts: for all of its listeners and links. Clones share
/// their content, which can be replaced while they run.
#[derive(Clone, Debug)]
pub struct Tls {
    presented: Arc<Presented>,
    trust: Trust,
}

#[derive(Debug)]
struct Presented(RwLock<Arc<CertifiedKey>>);

impl Presented {
    fn get(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ResolvesServerCert for Presented {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.get())
    }
}

impl ResolvesClientCert for Presented {
    fn resolve(&self, _hints: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let certified = self.get();
        certified.key.choose_scheme(schemes).is_some().then_some(certified)
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Only ring's, and the cheapest suite first: pods have hardware for AES.
fn provider() -> Arc<CryptoProvider> {
    let cipher_suites =
        vec![TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256];
    Arc::new(CryptoProvider { cipher_suites, ..rustls::crypto::ring::default_provider() })
}

impl Tls {
    pub fn new(credentials: &Credentials, trust: Trust) -> Result<Tls, CredentialsError> {
        let certified = Arc::new(credentials.certified()?);
        Ok(Tls { presented: Arc::new(Presented(RwLock::new(certified))), trust })
    }

    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// Presents another certificate in new connections. Those that exist go on.
    pub fn present(&self, credentials: &Credentials) -> Result<(), CredentialsError> {
        let certified = Arc::new(credentials.certified()?);
        *self.presented.0.write().unwrap_or_else(PoisonError::into_inner) = certified;
        Ok(())
    }

    /// Settings of a side that calls. `raw`: its records are sealed by [`super::channel`].
    pub fn client(&self, expected: Expected, raw: bool) -> Result<ClientConfig, CredentialsError> {
        let verifier = Verifier::new(self.trust.clone(), expected);
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(Arc::clone(&self.presented) as Arc<_>);
        // A resumed session would skip the check of the certificate.
        config.resumption = Resumption::disabled();
        config.enable_sni = false;
        config.enable_secret_extraction = raw;
        Ok(config)
    }

    /// Settings of a side that is called. `raw`: its records are sealed by [`super::channel`].
    pub fn server(&self, expected: Expected, raw: bool) -> Result<ServerConfig, CredentialsError> {
        let verifier = Verifier::new(self.trust.clone(), expected);
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::clone(&self.presented) as Arc<_>);
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        config.enable_secret_extraction = raw;
        Ok(config)
    }
}

/// Settings of somebody who has a token and no certificate yet.
pub fn client_with_token(authority: [u8; 32]) -> Result<ClientConfig, CredentialsError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Pinned::new(authority))
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    Ok(config)
}

/// Settings of somebody who knows the cluster's authorities and has no certificate yet.
pub fn client_without_certificate(trust: Trust) -> Result<ClientConfig, CredentialsError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Verifier::new(trust, Expected::Pod))
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    Ok(config)
}

/// The holder of a certificate that a handshake has accepted.
pub fn holder_of(chain: Option<&[CertificateDer<'_>]>) -> Option<Certificate> {
    Certificate::from_der(chain?.first()?).ok()
}
