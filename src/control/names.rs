//! Names that people choose.

/// Longest name in bytes.
pub const NAME_BYTES_MAX: usize = 128;

/// Why a text is no name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("a name has 1 to {NAME_BYTES_MAX} characters")]
    Length,
    #[error("a name may contain only a-z, A-Z, 0-9, . _ and -, not {0:?}")]
    Character(char),
    #[error("a name must start and end with a letter or digit")]
    Edge,
}

/// Checks a name: it serves as the name of an export and as part of paths and of URIs, and needs no
/// quoting in any of them.
pub fn check_name(name: &str) -> Result<(), NameError> {
    if !(1..=NAME_BYTES_MAX).contains(&name.len()) {
        return Err(NameError::Length);
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if let Some(other) = name.chars().find(|c| !allowed(*c)) {
        return Err(NameError::Character(other));
    }
    let is_edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    if !is_edge(name.chars().next()) || !is_edge(name.chars().next_back()) {
        return Err(NameError::Edge);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_words_of_letters_digits_and_few_signs() {
        let long = "a".repeat(NAME_BYTES_MAX);
        for name in ["a", "demo", "0", "pvc-1f", "Db_01.main", "a..b", &long] {
            assert_eq!(check_name(name), Ok(()), "{name}");
        }
        let longer = "a".repeat(NAME_BYTES_MAX + 1);
        for (name, error) in [
            ("", NameError::Length),
            (&longer, NameError::Length),
            ("-a", NameError::Edge),
            ("a-", NameError::Edge),
            (".", NameError::Edge),
            ("..", NameError::Edge),
            ("a b", NameError::Character(' ')),
            ("a/b", NameError::Character('/')),
            ("é", NameError::Character('é')),
        ] {
            assert_eq!(check_name(name), Err(error), "{name}");
        }
    }

    proptest! {
        /// No name leads out of a directory, or needs quoting in a URI or a shell.
        #[test]
        fn names_are_harmless(name in ".{0,12}|[a./_-]{1,8}") {
            if check_name(&name).is_ok() {
                prop_assert!(name.is_ascii() && name.len() <= NAME_BYTES_MAX);
                prop_assert!(!name.starts_with(['.', '-', '_']) && !name.contains(['/', '%', ' ']));
            }
        }
    }
}
