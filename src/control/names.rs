//! Names that people choose.

/// Longest name in bytes.
pub const NAME_BYTES_MAX: usize = 128;

/// Why a text is no name of an object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("a name must have 1 to {NAME_BYTES_MAX} characters")]
    Length,
    #[error("a name may contain only a-z, A-Z, 0-9, '.', '_' and '-', not {0:?}")]
    Character(char),
    #[error("a name must start and end with a letter or a digit")]
    Edge,
}

/// Checks a name of a volume, node or class. It serves as export and as part of URLs, too.
pub fn check_name(name: &str) -> Result<(), NameError> {
    if !(1..=NAME_BYTES_MAX).contains(&name.len()) {
        return Err(NameError::Length);
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if let Some(other) = name.chars().find(|c| !allowed(*c)) {
        return Err(NameError::Character(other));
    }
    let is_edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    match is_edge(name.as_bytes().first()) && is_edge(name.as_bytes().last()) {
        true => Ok(()),
        false => Err(NameError::Edge),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_and_of_plain_characters() {
        let long = "a".repeat(128);
        for name in ["a", "demo", "0", "pvc-1f", "A.b_c", &long] {
            assert_eq!(check_name(name), Ok(()), "{name}");
        }
        let longer = "a".repeat(129);
        for (name, error) in [
            ("", NameError::Length),
            (&longer, NameError::Length),
            ("-a", NameError::Edge),
            ("a.", NameError::Edge),
            ("a b", NameError::Character(' ')),
            ("a/b", NameError::Character('/')),
            ("é", NameError::Character('é')),
        ] {
            assert_eq!(check_name(name), Err(error), "{name}");
        }
    }
}
