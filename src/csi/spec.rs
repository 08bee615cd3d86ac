//! Which version of the specification the driver speaks.

use std::str::FromStr;

/// A version. Callers of 1.12 fail on capabilities that they do not know, so the newer one is
/// spoken only on request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Spec {
    /// 1.12: volumes have conditions.
    #[default]
    V1_12,
    /// 1.13: volumes have health instead.
    V1_13,
}

/// A text is no version that the driver speaks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no version of the specification that this driver speaks: 1.12 or 1.13")]
pub struct ParseSpecError {
    text: String,
}

impl FromStr for Spec {
    type Err = ParseSpecError;

    fn from_str(text: &str) -> Result<Spec, ParseSpecError> {
        match text {
            "1.12" => Ok(Spec::V1_12),
            "1.13" => Ok(Spec::V1_13),
            _ => Err(ParseSpecError { text: text.to_owned() }),
        }
    }
}
