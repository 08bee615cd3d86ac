//! Names that people choose.

/// Why a text is no name of a volume.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("a name must have 1 to 63 characters")]
    Length,
    #[error("a name may contain only a-z, 0-9 and -, not {0:?}")]
    Character(char),
    #[error("a name must neither start nor end with -")]
    Edge,
}

/// Checks that a name is a DNS label: it serves as host name, export and object name.
pub fn check_volume_name(name: &str) -> Result<(), NameError> {
    if !(1..=63).contains(&name.len()) {
        return Err(NameError::Length);
    }
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if let Some(other) = name.chars().find(|c| !allowed(*c)) {
        return Err(NameError::Character(other));
    }
    if name.starts_with('-') || name.ends_with('-') {
        return Err(NameError::Edge);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_labels() {
        let long = "a".repeat(63);
        for name in ["a", "demo", "0", "pvc-1f", &long] {
            assert_eq!(check_volume_name(name), Ok(()), "{name}");
        }
        let longer = "a".repeat(64);
        for (name, error) in [
            ("", NameError::Length),
            (&longer, NameError::Length),
            ("-a", NameError::Edge),
            ("a-", NameError::Edge),
            ("A", NameError::Character('A')),
            ("a/b", NameError::Character('/')),
            ("é", NameError::Character('é')),
        ] {
            assert_eq!(check_volume_name(name), Err(error), "{name}");
        }
    }
}
