//! What a certificate must be to count here. Chains have one step: an authority signs subjects.
//!
//! An authority's certificate names its cluster by the URI `holdfast://<cluster>/authority`.
//!
//! A certificate of a subject is X.509 version 3, signed with ECDSA P-256 and SHA-256, and has
//! exactly one URI among its alternative names, which is the subject's. Pods' certificates may also
//! have DNS names and addresses, for clients that compare them. Everything that is marked critical
//! must be known here.

use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_SIG_ECDSA_WITH_SHA256,
};
use x509_parser::prelude::FromDer;
use x509_parser::x509::{SubjectPublicKeyInfo, X509Version};

use crate::planted::planted;
use crate::security::subject::{AUTHORITY, SCHEME, Subject};
use crate::security::token::sha256;
use crate::types::Uuid;

/// A longer certificate is refused before it is read.
const CERTIFICATE_BYTES_MAX: usize = 16 << 10;

/// A certificate that was read, and whose signature was not looked at yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    pub subject: Subject,
    /// Seconds since 1970.
    pub not_before_s: i64,
    /// Seconds since 1970; valid until here, inclusive.
    pub not_after_s: i64,
    /// Hexadecimal digits.
    pub serial: String,
    /// The name of the authority that is said to have signed it, encoded.
    pub issuer: Vec<u8>,
}

/// An authority that is trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// The one cluster whose authority it is.
    cluster: Uuid,
    der: Vec<u8>,
    /// Its name, encoded.
    name: Vec<u8>,
    public_key: Vec<u8>,
}

/// Why a certificate does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    #[error("the certificate cannot be read")]
    Malformed,
    #[error("the certificate is not of the kind that a Holdfast authority signs")]
    OtherKind,
    #[error("no trusted authority has signed the certificate")]
    Foreign,
    #[error("the certificate is of another cluster")]
    OtherCluster,
    #[error("the certificate is not valid yet: compare the clocks")]
    NotYetValid,
    #[error("the certificate has expired: renew it, or compare the clocks")]
    Expired,
    #[error("the certificate is not a pod's")]
    NotAPod,
    #[error("the role of the certificate may not do this")]
    WrongRole,
    #[error("the pod is not part of the cluster any more")]
    RemovedPod,
    #[error("the certificate was revoked")]
    Revoked,
    #[error("the authority that signed the certificate was replaced: get a new certificate")]
    Replaced,
}

impl Root {
    /// Reads the certificate of an authority.
    pub fn from_der(der: &[u8]) -> Result<Root, CertificateError> {
        let certificate = parse(der)?;
        let constraints = certificate.basic_constraints();
        let is_authority = matches!(constraints, Ok(Some(found)) if found.value.ca);
        if !is_authority {
            return Err(CertificateError::OtherKind);
        }
        let names = certificate.subject_alternative_name();
        let names = names.ok().flatten().map(|names| &names.value.general_names[..]);
        let Some([GeneralName::URI(uri)]) = names else { return Err(CertificateError::OtherKind) };
        let cluster = uri.strip_prefix(SCHEME).and_then(|rest| rest.strip_suffix(AUTHORITY));
        let cluster = cluster.and_then(|cluster| cluster.parse().ok());
        let root = Root {
            cluster: cluster.ok_or(CertificateError::OtherKind)?,
            der: der.to_vec(),
            name: certificate.subject().as_raw().to_vec(),
            public_key: certificate.public_key().subject_public_key.data.to_vec(),
        };
        // Not for trust, which comes from where the root was found, but against a damaged file.
        match root.has_signed(&certificate) {
            true => Ok(root),
            false => Err(CertificateError::Foreign),
        }
    }

    pub fn der(&self) -> &[u8] {
        &self.der
    }

    pub fn cluster(&self) -> Uuid {
        self.cluster
    }

    /// SHA-256 of the certificate, as tokens name it.
    pub fn hash(&self) -> [u8; 32] {
        sha256(&self.der)
    }

    /// True when an accepted certificate is by this authority: no two have one name.
    pub fn is_issuer_of(&self, held: &Certificate) -> bool {
        self.name == held.issuer
    }

    /// True for another authority that has the same name or key.
    pub fn is_mistaken_for(&self, other: &Root) -> bool {
        self.der != other.der && (self.name == other.name || self.public_key == other.public_key)
    }

    /// True when this (the bits of a P-256 key) is its public key.
    pub fn has_public_key(&self, key: &[u8]) -> bool {
        self.public_key == key
    }

    fn has_signed(&self, certificate: &X509Certificate<'_>) -> bool {
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &self.public_key);
        let signed = certificate.tbs_certificate.as_ref();
        certificate.issuer().as_raw() == self.name
            && key.verify(signed, &certificate.signature_value.data).is_ok()
    }
}

/// Reads a subject's certificate and checks that one of `roots` has signed it.
pub fn check(der: &[u8], roots: &[Root]) -> Result<Certificate, CertificateError> {
    let parsed = parse(der)?;
    let certificate = read(&parsed)?;
    match roots.iter().find(|root| root.has_signed(&parsed)) {
        Some(root) if root.cluster == certificate.subject.cluster => Ok(certificate),
        Some(_) => Err(CertificateError::OtherCluster),
        None => Err(CertificateError::Foreign),
    }
}

impl Certificate {
    /// Reads a subject's certificate without looking at who has signed it.
    pub fn from_der(der: &[u8]) -> Result<Certificate, CertificateError> {
        read(&parse(der)?)
    }

    /// Compares the dates of those whom dates bind (rule `pods-need-no-clock`).
    pub fn check_dates(&self, now_s: u64) -> Result<(), CertificateError> {
        let now_s = i64::try_from(now_s).unwrap_or(i64::MAX);
        if !self.subject.role.is_bound_by_dates() && !planted!(PodDatesCount) {
            return Ok(());
        }
        match now_s {
            now_s if now_s < self.not_before_s => Err(CertificateError::NotYetValid),
            now_s if now_s > self.not_after_s => Err(CertificateError::Expired),
            _ => Ok(()),
        }
    }
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, CertificateError> {
    if der.len() > CERTIFICATE_BYTES_MAX {
        return Err(CertificateError::Malformed);
    }
    let certificate = match X509Certificate::from_der(der) {
        Ok(([], certificate)) => certificate,
        _ => return Err(CertificateError::Malformed),
    };
    let algorithm = &certificate.signature_algorithm;
    let is_ours = certificate.version() == X509Version::V3
        && algorithm.algorithm == OID_SIG_ECDSA_WITH_SHA256
        && certificate.tbs_certificate.signature == *algorithm
        && is_p256(certificate.public_key())
        // It finds an extension that is there twice.
        && certificate.extensions_map().is_ok();
    match is_ours {
        true => Ok(certificate),
        false => Err(CertificateError::OtherKind),
    }
}

fn is_p256(key: &SubjectPublicKeyInfo<'_>) -> bool {
    let curve = key.algorithm.parameters.as_ref().and_then(|curve| curve.as_oid().ok());
    key.algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY && curve == Some(OID_EC_P256)
}

fn read(certificate: &X509Certificate<'_>) -> Result<Certificate, CertificateError> {
    let mut subject = None;
    for extension in certificate.extensions() {
        let is_fine = match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => {
                subject = Some(subject_of(&names.general_names)?);
                true
            }
            ParsedExtension::BasicConstraints(found) => !found.ca,
            ParsedExtension::KeyUsage(usage) => {
                usage.digital_signature() && !usage.key_cert_sign() && !usage.crl_sign()
            }
            ParsedExtension::ExtendedKeyUsage(usage) => usage.client_auth,
            ParsedExtension::ParseError { .. } => false,
            _ => !extension.critical,
        };
        if !is_fine {
            return Err(CertificateError::OtherKind);
        }
    }
    let validity = certificate.validity();
    Ok(Certificate {
        subject: subject.ok_or(CertificateError::OtherKind)?,
        not_before_s: validity.not_before.timestamp(),
        not_after_s: validity.not_after.timestamp(),
        serial: crate::security::secret::to_hex(certificate.raw_serial()),
        issuer: certificate.issuer().as_raw().to_vec(),
    })
}

fn subject_of(names: &[GeneralName<'_>]) -> Result<Subject, CertificateError> {
    let other_kind = CertificateError::OtherKind;
    let (mut subjects, mut others) = (Vec::new(), 0);
    for name in names {
        match name {
            GeneralName::URI(uri) => subjects.push(uri.parse().map_err(|_| other_kind)?),
            GeneralName::DNSName(_) | GeneralName::IPAddress(_) => others += 1,
            _ => return Err(other_kind),
        }
    }
    let [subject] = <[Subject; 1]>::try_from(subjects).map_err(|_| other_kind)?;
    match others > 0 && subject.role.is_bound_by_dates() {
        true => Err(other_kind),
        false => Ok(subject),
    }
}
