//! The recovery key: seals the authority's key, so that a backup alone signs nothing. `init` prints
//! it once, and nobody keeps it but people.
//!
//! As text: `holdfast-recovery-` and 9 groups of 8 hexadecimal digits, joined by `-`: 32 bytes of
//! the key, then 4 bytes of its SHA-256, which find a typing error.
//!
//! What is sealed:
//!
//! ```text
//!  0  magic       8 bytes   "HOLDSEAL"
//!  8  nonce      12 bytes   random
//! 20  ciphertext            AES-256-GCM; bound to magic and cluster
//!     tag        16 bytes
//! ```

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

use crate::security::random::{NoRandom, random};
use crate::security::secret::{Secret, from_hex, to_hex};
use crate::security::token::sha256;
use crate::types::Uuid;

const PREFIX: &str = "holdfast-recovery-";
const KEY_BYTES: usize = 32;
const CHECK_BYTES: usize = 4;
const GROUP_DIGITS: usize = 8;
const MAGIC: &[u8; 8] = b"HOLDSEAL";
const NONCE_BYTES: usize = 12;

/// The key that opens what backups have sealed.
#[derive(Clone, Debug)]
pub struct RecoveryKey(Secret);

/// Why something could not be sealed or opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecoveryError {
    #[error("this is not a recovery key; look for a typing error")]
    Malformed,
    #[error("the recovery key does not open this: it is of another cluster, or it is damaged")]
    Closed,
    #[error(transparent)]
    Random(#[from] NoRandom),
}

impl RecoveryKey {
    pub fn new() -> Result<RecoveryKey, RecoveryError> {
        Ok(RecoveryKey(Secret::new(random::<KEY_BYTES>()?)))
    }

    /// The key as text, as secret as the key.
    pub fn text(&self) -> Secret {
        let check = sha256(self.0.expose());
        let digits = to_hex(self.0.expose()) + &to_hex(&check[..CHECK_BYTES]);
        let groups = digits.as_bytes().chunks(GROUP_DIGITS);
        let groups: Vec<String> =
            groups.map(|group| String::from_utf8_lossy(group).into_owned()).collect();
        Secret::new(PREFIX.to_owned() + &groups.join("-"))
    }

    /// Reads a key that somebody typed: case and dashes do not matter.
    pub fn parse(text: &str) -> Result<RecoveryKey, RecoveryError> {
        let text = text.trim().to_ascii_lowercase();
        let digits = text.strip_prefix(PREFIX).ok_or(RecoveryError::Malformed)?.replace('-', "");
        let bytes: [u8; KEY_BYTES + CHECK_BYTES] =
            from_hex(&digits).ok_or(RecoveryError::Malformed)?;
        let (key, check) = bytes.split_at(KEY_BYTES);
        match sha256(key)[..CHECK_BYTES] == *check {
            true => Ok(RecoveryKey(Secret::new(key))),
            false => Err(RecoveryError::Malformed),
        }
    }

    /// Seals a secret of this cluster.
    pub fn seal(&self, cluster: Uuid, secret: &Secret) -> Result<Vec<u8>, RecoveryError> {
        let nonce = random::<NONCE_BYTES>()?;
        let mut sealed = secret.expose().to_vec();
        self.cipher()
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(bound_to(cluster)),
                &mut sealed,
            )
            .map_err(|_| RecoveryError::Closed)?;
        Ok([&MAGIC[..], &nonce, &sealed].concat())
    }

    /// Opens what was sealed for this cluster.
    pub fn open(&self, cluster: Uuid, sealed: &[u8]) -> Result<Secret, RecoveryError> {
        let rest = sealed.strip_prefix(&MAGIC[..]).ok_or(RecoveryError::Closed)?;
        let (nonce, ciphertext) =
            rest.split_first_chunk::<NONCE_BYTES>().ok_or(RecoveryError::Closed)?;
        let mut opened = zeroize::Zeroizing::new(ciphertext.to_vec());
        let opened = self
            .cipher()
            .open_in_place(
                Nonce::assume_unique_for_key(*nonce),
                Aad::from(bound_to(cluster)),
                &mut opened,
            )
            .map_err(|_| RecoveryError::Closed)?;
        Ok(Secret::new(&*opened))
    }

    fn cipher(&self) -> LessSafeKey {
        let key = UnboundKey::new(&AES_256_GCM, self.0.expose());
        LessSafeKey::new(key.expect("a key has 32 bytes"))
    }
}

fn bound_to(cluster: Uuid) -> Vec<u8> {
    [&MAGIC[..], &cluster.0].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: Uuid = Uuid([4; 16]);

    fn text_of(key: &RecoveryKey) -> String {
        String::from_utf8(key.text().expose().to_vec()).unwrap()
    }

    #[test]
    fn a_key_that_was_printed_opens_what_it_sealed_and_nothing_else_does() {
        let (key, other) = (RecoveryKey::new().unwrap(), RecoveryKey::new().unwrap());
        let sealed = key.seal(CLUSTER, &Secret::new(*b"the authority's key")).unwrap();
        let typed = text_of(&key).to_uppercase().replace('-', "").replace("RECOVERY", "-RECOVERY-");
        let typed = RecoveryKey::parse(&format!(" {typed}\n")).unwrap();
        let opened = typed.open(CLUSTER, &sealed).unwrap();
        assert_eq!(opened.expose(), b"the authority's key");
        let closed = |result: Result<Secret, RecoveryError>| {
            assert_eq!(result.unwrap_err(), RecoveryError::Closed);
        };
        closed(other.open(CLUSTER, &sealed));
        closed(key.open(Uuid([5; 16]), &sealed));
        for at in 0..sealed.len() {
            let mut bad = sealed.clone();
            bad[at] ^= 1;
            closed(key.open(CLUSTER, &bad));
            closed(key.open(CLUSTER, &sealed[..at]));
        }
    }

    #[test]
    fn a_typing_error_is_found() {
        let text = text_of(&RecoveryKey::new().unwrap());
        for at in PREFIX.len()..text.len() {
            let mut typed = text.clone().into_bytes();
            typed[at] = if typed[at] == b'3' { b'4' } else { b'3' };
            let typed = String::from_utf8(typed).unwrap();
            assert_eq!(RecoveryKey::parse(&typed).unwrap_err(), RecoveryError::Malformed);
        }
    }

    #[test]
    fn debug_has_nothing_of_the_key() {
        let key = RecoveryKey::new().unwrap();
        let shown = format!("{key:?} {}", key.text());
        assert!(!shown.contains(&to_hex(&key.0.expose()[..4])), "{shown}");
        assert_eq!(shown, "RecoveryKey((secret)) (secret)");
    }
}
