//! Tokens: who has one may ask for a certificate.
//!
//! ```text
//! holdfast1.<kind>.<id>.<secret>.<authority>
//!
//! kind       `pod`, or `role:` and a role, such as `role:admin/ada`
//! id         8 bytes, hexadecimal: names the token in lists
//! secret     32 bytes, hexadecimal
//! authority  SHA-256 of the authority's certificate, hexadecimal: its holder knows the cluster
//! ```
//!
//! The cluster keeps a [`TokenRecord`], which has the hash of the secret only.

use std::fmt;
use std::str::FromStr;

use ring::digest::{SHA256, digest};

use crate::security::secret::{Secret, equal_in_constant_time, from_hex, to_hex};
use crate::security::subject::Role;

const PREFIX: &str = "holdfast1";
/// Length of a token's secret.
pub const SECRET_BYTES: usize = 32;

/// Names a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TokenId(pub [u8; 8]);

/// What a token gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// A new pod may join.
    Pod,
    /// A certificate for this role, which is not a pod's.
    Role(Role),
}

/// A token as its holder has it.
#[derive(Clone, Debug)]
pub struct Token {
    pub kind: TokenKind,
    pub id: TokenId,
    secret: Secret,
    /// SHA-256 of the certificate of the cluster's authority.
    pub authority: [u8; 32],
}

/// A token as the cluster keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRecord {
    pub id: TokenId,
    pub kind: TokenKind,
    pub secret_hash: [u8; 32],
    /// Seconds since 1970 from which on it is void.
    pub expires_s: u64,
}

/// Why a token gives nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("this is not a token")]
    Malformed,
    /// Unknown, wrong secret, or another kind: nobody learns which.
    #[error("the token is not valid here")]
    Invalid,
    #[error("the token has expired")]
    Expired,
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&to_hex(&self.0))
    }
}

impl FromStr for TokenId {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<TokenId, TokenError> {
        from_hex(text).map(TokenId).ok_or(TokenError::Malformed)
    }
}

impl fmt::Display for TokenKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TokenKind::Pod => f.write_str("pod"),
            TokenKind::Role(role) => write!(f, "role:{role}"),
        }
    }
}

impl FromStr for TokenKind {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<TokenKind, TokenError> {
        if text == "pod" {
            return Ok(TokenKind::Pod);
        }
        let role = text.strip_prefix("role:").ok_or(TokenError::Malformed)?;
        match role.parse().map_err(|_| TokenError::Malformed)? {
            // A pod gets its number when it joins.
            Role::Pod(_) => Err(TokenError::Malformed),
            role => Ok(TokenKind::Role(role)),
        }
    }
}

impl Token {
    /// `secret`: of [`SECRET_BYTES`], which nobody can guess.
    pub fn new(kind: TokenKind, authority: [u8; 32], id: TokenId, secret: Secret) -> Token {
        assert_eq!(secret.expose().len(), SECRET_BYTES, "it is one of ours");
        Token { kind, id, secret, authority }
    }

    /// What the cluster keeps of it.
    pub fn record(&self, expires_s: u64) -> TokenRecord {
        let secret_hash = hash_of(&self.secret);
        TokenRecord { id: self.id, kind: self.kind.clone(), secret_hash, expires_s }
    }

    /// The token as text, which is as secret as the token.
    pub fn text(&self) -> Secret {
        let Token { kind, id, secret, authority } = self;
        let (secret, authority) = (to_hex(secret.expose()), to_hex(authority));
        // The name of a role may have dots: it is read from both ends.
        Secret::new(format!("{PREFIX}.{kind}.{id}.{secret}.{authority}"))
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Token, TokenError> {
        let malformed = || TokenError::Malformed;
        let rest = text.trim().strip_prefix(PREFIX).and_then(|rest| rest.strip_prefix('.'));
        let mut parts = rest.ok_or_else(malformed)?.rsplitn(4, '.');
        let mut next = || parts.next().ok_or_else(malformed);
        let (authority, secret, id, kind) = (next()?, next()?, next()?, next()?);
        Ok(Token {
            kind: kind.parse()?,
            id: id.parse()?,
            secret: Secret::new(from_hex::<SECRET_BYTES>(secret).ok_or_else(malformed)?),
            authority: from_hex(authority).ok_or_else(malformed)?,
        })
    }
}

impl TokenRecord {
    /// Checks a token that somebody shows at `now_s` (seconds since 1970).
    pub fn check(&self, token: &Token, now_s: u64) -> Result<(), TokenError> {
        let is_right = equal_in_constant_time(&self.secret_hash, &hash_of(&token.secret));
        if !is_right || self.id != token.id || self.kind != token.kind {
            return Err(TokenError::Invalid);
        }
        match now_s < self.expires_s {
            true => Ok(()),
            false => Err(TokenError::Expired),
        }
    }
}

fn hash_of(secret: &Secret) -> [u8; 32] {
    sha256(secret.expose())
}

/// SHA-256.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    digest(&SHA256, bytes).as_ref().try_into().expect("it is 32 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(kind: &str) -> Token {
        let secret = Secret::new([5; SECRET_BYTES]);
        Token::new(kind.parse().unwrap(), [9; 32], TokenId([3; 8]), secret)
    }

    fn read_back(token: &Token) -> Token {
        let text = token.text();
        std::str::from_utf8(text.expose()).unwrap().parse().unwrap()
    }

    #[test]
    fn a_token_survives_its_text_and_opens_its_own_record_only() {
        for kind in ["pod", "role:admin/ada", "role:csi-node/node-1.example.com"] {
            let (token, other) = (token(kind), token("role:viewer/v"));
            let record = token.record(100);
            assert_eq!(record.check(&read_back(&token), 99), Ok(()));
            assert_eq!(record.check(&token, 100), Err(TokenError::Expired));
            assert_eq!(record.check(&other, 99), Err(TokenError::Invalid));
            let wrong = Token { secret: Secret::new([0; SECRET_BYTES]), ..token.clone() };
            assert_eq!(record.check(&wrong, 99), Err(TokenError::Invalid));
            // Nobody learns from the answer that the token exists.
            assert_eq!(record.check(&wrong, 100), Err(TokenError::Invalid));
        }
    }

    #[test]
    fn other_texts_are_no_tokens() {
        let text = String::from_utf8(token("pod").text().expose().to_vec()).unwrap();
        assert!(format!(" {text}\n").parse::<Token>().is_ok());
        for wrong in [
            String::new(),
            "holdfast1".to_owned(),
            text[1..].to_owned(),
            text[..text.len() - 1].to_owned(),
            text.replace(".pod.", ".pods."),
            text.replace(".pod.", ".role:pod/3."),
            text.replace(".pod.", "."),
        ] {
            assert_eq!(wrong.parse::<Token>().unwrap_err(), TokenError::Malformed, "{wrong}");
        }
    }

    #[test]
    fn neither_the_record_nor_debug_has_the_secret() {
        let token = token("pod");
        let secret = to_hex(token.secret.expose());
        let record = token.record(1);
        assert!(!to_hex(&record.secret_hash).contains(&secret));
        let shown = format!("{token:?} {record:?} {}", token.text());
        assert!(!shown.contains(&secret) && !shown.contains("[8, 9, 10"), "{shown}");
    }
}
