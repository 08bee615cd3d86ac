//! Bytes that nobody may read in a log.

use std::fmt;

use zeroize::Zeroizing;

/// Secret bytes. `Debug` and `Display` show none of them, and they are overwritten when dropped.
#[derive(Clone)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    pub fn new(bytes: impl Into<Vec<u8>>) -> Secret {
        Secret(Zeroizing::new(bytes.into()))
    }

    /// The bytes, for those who need them. Hand them to nothing that keeps or prints them.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// Compares without a hint of where the first difference is: the time depends on lengths alone.
pub fn equal_in_constant_time(one: &[u8], other: &[u8]) -> bool {
    if one.len() != other.len() {
        return false;
    }
    let differing = one.iter().zip(other).fold(0u8, |bits, (a, b)| bits | (a ^ b));
    std::hint::black_box(differing) == 0
}

/// The bytes as lower-case hexadecimal digits.
pub fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes of any number of pairs of lower-case hexadecimal digits.
pub fn bytes_from_hex(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).ok());
    pairs.map(|pair| from_hex::<1>(pair?).map(|[byte]| byte)).collect()
}

/// The bytes of exactly `N` pairs of lower-case hexadecimal digits.
pub fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let value = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0u8; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = value(pair[0])? << 4 | value(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_secret_is_printed() {
        let secret = Secret::new(*b"swordfish");
        for text in [format!("{secret:?}"), format!("{secret}"), format!("{:#?}", Some(&secret))] {
            assert!(!text.contains("sword") && !text.contains("115"), "{text}");
        }
        assert_eq!(secret.expose(), b"swordfish");
    }

    #[test]
    fn equal_means_equal() {
        assert!(equal_in_constant_time(b"", b"") && equal_in_constant_time(b"abc", b"abc"));
        for other in [&b"abd"[..], b"ab", b"abcd", b"xbc", b""] {
            assert!(!equal_in_constant_time(b"abc", other));
        }
    }

    #[test]
    fn only_lower_case_digits_of_the_right_number_are_hexadecimal() {
        assert_eq!(from_hex::<2>("0aff"), Some([0x0a, 0xff]));
        assert_eq!(to_hex(&[0x0a, 0xff]), "0aff");
        assert_eq!(bytes_from_hex("0aff01"), Some(vec![0x0a, 0xff, 1]));
        assert_eq!(bytes_from_hex(""), Some(Vec::new()));
        for wrong in ["0af", "0aFF", "zz", "ä0"] {
            assert_eq!(bytes_from_hex(wrong), None, "{wrong}");
        }
        for wrong in ["0aFF", "0af", "0aff0", "+aff", "0agf", ""] {
            assert_eq!(from_hex::<2>(wrong), None, "{wrong}");
        }
    }
}
