//! The authority: a certificate and its key (ECDSA P-256), which sign the cluster's certificates.

use std::net::IpAddr;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber, date_time_ymd,
};
use ring::hmac::{Context, HMAC_SHA512, Key};
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, PrivatePkcs8KeyDer};

use crate::security::certificate::{CertificateError, Root};
use crate::security::random::{NoRandom, random};
use crate::security::secret::Secret;
use crate::security::subject::{AUTHORITY, SCHEME, Subject};
use crate::security::token::{SECRET_BYTES, TokenId};
use crate::types::Uuid;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// For how long an authority is made. Nobody here looks at it; other programs do.
const AUTHORITY_LASTS: Duration = Duration::from_secs(20 * 365 * 24 * 60 * 60);
/// Those of pods: nobody here looks at it.
const POD_LASTS: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
/// Those of people and of CSI. They are renewed at two thirds.
const PERSON_LASTS: Duration = Duration::from_secs(90 * 24 * 60 * 60);
/// A clock that is behind ours by less finds a new certificate valid.
const BACKDATED: Duration = DAY;
/// Later seconds have no form that every reader of certificates knows.
const LATEST_S: u64 = 7_000_000_000;

/// What [`Authority::token_secret`] derives, apart from everything else that is made with the key.
const DERIVED: &[u8] = b"holdfast token\0";

/// Why nothing was signed.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("could not make a key or a certificate")]
    Make(#[from] rcgen::Error),
    #[error("the request for a certificate is not one that this authority answers")]
    Request,
    #[error("the key is not that of the authority's certificate")]
    OtherKey,
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error(transparent)]
    Random(#[from] NoRandom),
}

/// An authority.
#[derive(Clone, Debug)]
pub struct Authority {
    root: Root,
    /// PKCS #8, DER.
    key: Secret,
}

/// A key, and what its holder is told to present with it.
#[derive(Clone, Debug)]
pub struct Issued {
    /// DER.
    pub certificate: Vec<u8>,
    /// PKCS #8, DER.
    pub key: Secret,
}

/// The names under which clients that know nothing of subjects reach a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    pub addresses: Vec<IpAddr>,
    pub names: Vec<String>,
}

/// A new key (PKCS #8, DER), and a request for a certificate (PKCS #10, DER), which proves that the
/// asker has the key. Its subject is left to the authority.
pub fn request() -> Result<(Secret, Vec<u8>), AuthorityError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = named("request");
    let request = params.serialize_request(&key)?;
    Ok((Secret::new(key.serialize_der()), request.der().to_vec()))
}

impl Authority {
    /// Makes an authority for a cluster. `now_s`: seconds since 1970.
    pub fn new(cluster: Uuid, now_s: u64) -> Result<Authority, AuthorityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        // Two authorities of a cluster have different names, so that each certificate has one.
        let tag = crate::security::secret::to_hex(&random::<4>()?);
        let mut params = lasting(now_s, AUTHORITY_LASTS);
        params.distinguished_name = named(&format!("Holdfast authority {cluster} {tag}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.subject_alt_names =
            vec![SanType::URI(format!("{SCHEME}{cluster}{AUTHORITY}").try_into()?)];
        params.serial_number = Some(serial()?);
        let root = Root::from_der(params.self_signed(&key)?.der())?;
        Ok(Authority { root, key: Secret::new(key.serialize_der()) })
    }

    /// The authority with this certificate (DER) and key (PKCS #8, DER).
    pub fn from_parts(certificate: &[u8], key: Secret) -> Result<Authority, AuthorityError> {
        let authority = Authority { root: Root::from_der(certificate)?, key };
        let has = authority.key()?.der_bytes().to_vec();
        match authority.root.has_public_key(&has) {
            true => Ok(authority),
            false => Err(AuthorityError::OtherKey),
        }
    }

    pub fn cluster(&self) -> Uuid {
        self.root.cluster()
    }

    pub fn root(&self) -> &Root {
        &self.root
    }

    /// The secret of the token with this id. Only who has the key can know it.
    pub fn token_secret(&self, id: TokenId) -> Secret {
        let mut keyed = Context::with_key(&Key::new(HMAC_SHA512, self.key.expose()));
        keyed.update(DERIVED);
        keyed.update(&id.0);
        Secret::new(&keyed.sign().as_ref()[..SECRET_BYTES])
    }

    /// PKCS #8, DER.
    pub fn key_der(&self) -> &Secret {
        &self.key
    }

    /// Makes a key and a certificate.
    pub fn issue(
        &self,
        subject: &Subject,
        places: &Places,
        now_s: u64,
    ) -> Result<Issued, AuthorityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = self.sign(subject, places, &key, now_s)?;
        Ok(Issued { certificate, key: Secret::new(key.serialize_der()) })
    }

    /// Answers a request (see [`request`]) with a certificate. Whatever names the request has are
    /// not taken over: it proves only that the asker has the key.
    pub fn answer(
        &self,
        request: &[u8],
        subject: &Subject,
        places: &Places,
        now_s: u64,
    ) -> Result<Vec<u8>, AuthorityError> {
        let request = CertificateSigningRequestDer::from(request);
        let request = CertificateSigningRequestParams::from_der(&request)
            .map_err(|_| AuthorityError::Request)?;
        if request.public_key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
            return Err(AuthorityError::Request);
        }
        self.sign(subject, places, &request.public_key, now_s)
    }

    fn key(&self) -> Result<KeyPair, AuthorityError> {
        let key = PrivatePkcs8KeyDer::from(self.key.expose());
        Ok(KeyPair::from_pkcs8_der_and_sign_algo(&key, &PKCS_ECDSA_P256_SHA256)?)
    }

    fn sign(
        &self,
        subject: &Subject,
        places: &Places,
        key: &impl PublicKeyData,
        now_s: u64,
    ) -> Result<Vec<u8>, AuthorityError> {
        let lasts = if subject.role.is_bound_by_dates() { PERSON_LASTS } else { POD_LASTS };
        let mut params = lasting(now_s, lasts);
        params.distinguished_name = named(&subject.role.to_string());
        params.serial_number = Some(serial()?);
        // The second is not used by TLS 1.3, but QEMU asks for it.
        params.key_usages =
            vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.subject_alt_names = vec![SanType::URI(subject.to_string().try_into()?)];
        params.use_authority_key_identifier_extension = true;
        if !subject.role.is_bound_by_dates() {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
            let addresses = places.addresses.iter().copied().map(SanType::IpAddress);
            params.subject_alt_names.extend(addresses);
            for name in &places.names {
                params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into()?));
            }
        }
        let issuer = CertificateDer::from(self.root.der());
        let issuer = Issuer::from_ca_cert_der(&issuer, self.key()?)?;
        Ok(params.signed_by(key, &issuer)?.der().to_vec())
    }
}

fn lasting(now_s: u64, lasts: Duration) -> CertificateParams {
    let epoch = date_time_ymd(1970, 1, 1);
    let now = Duration::from_secs(now_s.min(LATEST_S));
    let mut params = CertificateParams::default();
    params.not_before = epoch + now.saturating_sub(BACKDATED);
    params.not_after = epoch + now + lasts;
    params
}

fn named(text: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, text);
    name
}

fn serial() -> Result<SerialNumber, NoRandom> {
    let mut bytes = random::<16>()?;
    // Positive, and never shorter: readers compare serials as texts.
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}
