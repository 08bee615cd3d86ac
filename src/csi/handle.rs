//! Handles of volumes: `<uid of the cluster>/<uid of the volume>`, each 32 hexadecimal digits. And
//! names: what the orchestrator calls a volume that it asks for, as a name in Holdfast.

use std::fmt;
use std::str::FromStr;

use ring::digest::{SHA256, digest};

use crate::control::names::check_name;
use crate::security::secret::to_hex;
use crate::types::Uuid;

const SEPARATOR: char = '/';
/// Longest name of a volume in the specification, in bytes.
const NAME_BYTES_MAX: usize = 128;
/// Bytes of the hash that stands for a name.
const HASH_BYTES: usize = 16;

/// Names a volume of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handle {
    pub cluster: Uuid,
    pub volume: Uuid,
}

/// A text is no handle of this driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a volume's id is the uid of its cluster, {SEPARATOR:?}, and its own uid")]
pub struct ParseHandleError;

impl fmt::Display for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{SEPARATOR}{}", self.cluster, self.volume)
    }
}

impl FromStr for Handle {
    type Err = ParseHandleError;

    fn from_str(text: &str) -> Result<Handle, ParseHandleError> {
        let (cluster, volume) = text.split_once(SEPARATOR).ok_or(ParseHandleError)?;
        let uid = |text: &str| text.parse().map_err(|_| ParseHandleError);
        let handle = Handle { cluster: uid(cluster)?, volume: uid(volume)? };
        // One handle has one text: digits in capitals, or with a sign, are none of ours.
        if handle.to_string() == text { Ok(handle) } else { Err(ParseHandleError) }
    }
}

/// Why a volume cannot be called so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VolumeNameError {
    #[error("the name is missing")]
    Missing,
    #[error("the name has {bytes} bytes, more than {NAME_BYTES_MAX}")]
    Length { bytes: usize },
    #[error("the name has the control character {0:?}")]
    Control(char),
}

/// The name in Holdfast of a volume that the orchestrator calls `name`: the same, or, if Holdfast
/// does not allow it, a hash of it. The same name always gives the same.
pub fn volume_name(name: &str) -> Result<String, VolumeNameError> {
    if name.is_empty() {
        return Err(VolumeNameError::Missing);
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(VolumeNameError::Length { bytes: name.len() });
    }
    let is_banned = |c: &char| c.is_control() && !matches!(c, '\t' | '\n' | '\r');
    if let Some(banned) = name.chars().find(is_banned) {
        return Err(VolumeNameError::Control(banned));
    }
    if check_name(name).is_ok() {
        return Ok(name.to_owned());
    }
    Ok(format!("csi-{}", hash_of(name)))
}

/// Stands for what the orchestrator calls a volume.
pub fn hash_of(name: &str) -> String {
    to_hex(&digest(&SHA256, name.as_bytes()).as_ref()[..HASH_BYTES])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_handle_survives_its_text_and_nothing_else_is_one() {
        let handle = Handle { cluster: Uuid([0xab; 16]), volume: Uuid([7; 16]) };
        let text = handle.to_string();
        assert_eq!(text, format!("{}/{}", "ab".repeat(16), "07".repeat(16)));
        assert_eq!(text.parse(), Ok(handle));
        let (capitals, longer) = (text.to_uppercase(), format!("{text}0"));
        let signed = text.replacen("ab", "+a", 1);
        for wrong in ["", "/", "reallyfake", &text[1..], &capitals, &longer, &signed] {
            assert_eq!(wrong.parse::<Handle>(), Err(ParseHandleError), "{wrong}");
        }
    }

    #[test]
    fn names_stay_as_they_are_or_become_hashes() {
        let long = "a".repeat(NAME_BYTES_MAX);
        assert_eq!(volume_name("pvc-1f"), Ok("pvc-1f".to_owned()));
        assert_eq!(volume_name(&long), Ok(long.clone()));
        let hashed = volume_name("db/main ä").unwrap();
        assert!(hashed.starts_with("csi-") && hashed.len() == 4 + 2 * HASH_BYTES, "{hashed}");
        assert_eq!(volume_name("db/main ä"), Ok(hashed.clone()));
        assert_ne!(volume_name("db/main ö"), Ok(hashed));
        assert_eq!(volume_name(""), Err(VolumeNameError::Missing));
        assert_eq!(volume_name(&format!("{long}b")), Err(VolumeNameError::Length { bytes: 129 }));
        assert_eq!(volume_name("a\u{7f}"), Err(VolumeNameError::Control('\u{7f}')));
    }

    proptest! {
        #[test]
        fn every_name_that_is_taken_is_one_in_holdfast(name in ".{0,64}|[a-z._-]{1,128}") {
            if let Ok(name) = volume_name(&name) {
                prop_assert_eq!(check_name(&name), Ok(()));
            }
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,80}|[0-9a-f/+-]{60,70}") {
            if let Ok(handle) = text.parse::<Handle>() {
                prop_assert_eq!(handle.to_string(), text);
            }
        }
    }
}
