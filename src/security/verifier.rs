//! Verifiers for rustls: which certificates a handshake accepts.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, ring, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme};

use crate::security::certificate::{CertificateError, Root};
use crate::security::subject::Role;
use crate::security::token::sha256;
use crate::security::trust::Trust;

/// Whom the other side of a handshake must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// A pod that is part of the cluster.
    Member,
    /// A pod: for clients, which need no list of them.
    Pod,
    /// Anybody with a certificate.
    Anybody,
    /// Somebody who may use volumes.
    VolumeUser,
    /// Anybody with a certificate, or without one: requests say what they may do.
    AnybodyOrNobody,
}

/// Decides by [`Trust`]. For both sides.
#[derive(Debug)]
pub struct Verifier {
    trust: Trust,
    expected: Expected,
    signatures: WebPkiSupportedAlgorithms,
}

impl Verifier {
    pub fn new(trust: Trust, expected: Expected) -> Arc<Verifier> {
        let signatures = ring::default_provider().signature_verification_algorithms;
        Arc::new(Verifier { trust, expected, signatures })
    }

    fn check(&self, certificate: &[u8], now: UnixTime) -> Result<(), CertificateError> {
        match self.expected {
            Expected::Member => self.trust.check_member(certificate).map(drop),
            Expected::Pod => self.trust.check_pod(certificate).map(drop),
            // Pods that are not in the list may ask to join: requests are checked again.
            Expected::AnybodyOrNobody => self.trust.check(certificate, now.as_secs()).map(drop),
            Expected::Anybody | Expected::VolumeUser => {
                let found = self.trust.check(certificate, now.as_secs())?;
                self.trust.check_again(&found, now.as_secs())?;
                match found.subject.role {
                    Role::CsiController(_) | Role::Viewer(_)
                        if self.expected == Expected::VolumeUser =>
                    {
                        Err(CertificateError::WrongRole)
                    }
                    _ => Ok(()),
                }
            }
        }
    }
}

/// The error in rustls's words, so that the other side gets a fitting alert, and ours in it.
fn refused(error: CertificateError) -> Error {
    Error::InvalidCertificate(match error {
        CertificateError::Malformed => rustls::CertificateError::BadEncoding,
        CertificateError::Revoked => rustls::CertificateError::Revoked,
        error => rustls::CertificateError::Other(OtherError(Arc::new(error))),
    })
}

/// What a handshake that failed had against the other side's certificate, if that was the reason.
pub fn refusal_in(error: &Error) -> Option<CertificateError> {
    match error {
        Error::InvalidCertificate(rustls::CertificateError::BadEncoding) => {
            Some(CertificateError::Malformed)
        }
        Error::InvalidCertificate(rustls::CertificateError::Revoked) => {
            Some(CertificateError::Revoked)
        }
        Error::InvalidCertificate(rustls::CertificateError::Other(OtherError(other))) => {
            other.downcast_ref().copied()
        }
        _ => None,
    }
}

fn no_tls_1_2() -> Error {
    Error::General("this program speaks TLS 1.3 only".to_owned())
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity, now).map_err(refused)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls_1_2())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.signatures)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        self.expected != Expected::AnybodyOrNobody
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end_entity, now).map_err(refused)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls_1_2())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.signatures)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

/// For somebody who knows nothing of a cluster but the hash of its authority's certificate, from a
/// token. Servers present that certificate behind their own.
#[derive(Debug)]
pub struct Pinned {
    authority: [u8; 32],
    signatures: WebPkiSupportedAlgorithms,
}

impl Pinned {
    pub fn new(authority: [u8; 32]) -> Arc<Pinned> {
        let signatures = ring::default_provider().signature_verification_algorithms;
        Arc::new(Pinned { authority, signatures })
    }

    /// Finds the authority among what a server presents, and checks the server by it.
    pub fn check(
        &self,
        certificate: &[u8],
        others: &[CertificateDer<'_>],
    ) -> Result<Root, CertificateError> {
        let found = others.iter().find(|other| sha256(other) == self.authority);
        let root = Root::from_der(found.ok_or(CertificateError::Foreign)?)?;
        let server = crate::security::certificate::check(certificate, std::slice::from_ref(&root))?;
        match server.subject.role.is_bound_by_dates() {
            false => Ok(root),
            true => Err(CertificateError::NotAPod),
        }
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity, intermediates).map_err(refused)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls_1_2())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.signatures)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}
