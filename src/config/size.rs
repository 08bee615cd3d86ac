//! Sizes as people write them: `4096`, `512MiB`, `10GiB`. Only binary units and whole numbers, so
//! that a printed size parses to the same value.

use std::fmt;
use std::str::FromStr;

/// A number of bytes with a text form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

/// From the largest to the smallest.
const UNITS: [(&str, u32); 6] =
    [("PiB", 50), ("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10), ("B", 0)];

/// Why a text cannot be parsed as a size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseSizeError {
    #[error("a size starts with a whole number, as in 10GiB")]
    NoNumber,
    #[error("a size is a whole number: write 1536MiB instead of 1.5GiB")]
    Fraction,
    #[error("unknown unit {0:?}: use B, KiB, MiB, GiB, TiB or PiB, as in 10GiB")]
    Unit(String),
    #[error("the size is larger than 64 bits can hold")]
    TooLarge,
}

impl FromStr for ByteSize {
    type Err = ParseSizeError;

    fn from_str(text: &str) -> Result<ByteSize, ParseSizeError> {
        let text = text.trim();
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        if number.is_empty() {
            return Err(ParseSizeError::NoNumber);
        }
        if unit.starts_with(['.', ',']) {
            return Err(ParseSizeError::Fraction);
        }
        let number: u64 = number.parse().map_err(|_| ParseSizeError::TooLarge)?;
        let unit = unit.trim_start();
        let shift = if unit.is_empty() {
            0
        } else {
            UNITS
                .iter()
                .find(|(name, _)| name.eq_ignore_ascii_case(unit))
                .ok_or_else(|| ParseSizeError::Unit(unit.to_owned()))?
                .1
        };
        number.checked_mul(1 << shift).map(ByteSize).ok_or(ParseSizeError::TooLarge)
    }
}

impl fmt::Display for ByteSize {
    /// Exact: uses the largest unit that leaves no fraction.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.pad("0B");
        }
        let (unit, shift) = UNITS
            .iter()
            .find(|(_, shift)| self.0.trailing_zeros() >= *shift)
            .expect("every number is a whole number of bytes");
        f.pad(&format!("{}{unit}", self.0 >> shift))
    }
}

impl ByteSize {
    /// Rounded down to at most one decimal for people, as in `1.4TiB`.
    pub fn rounded(self) -> String {
        let (unit, shift) =
            UNITS.iter().find(|(_, shift)| self.0 >> shift > 0).unwrap_or(&("B", 0));
        let whole = self.0 >> shift;
        let tenths = ((u128::from(self.0) * 10) >> shift) % 10;
        match tenths {
            0 => format!("{whole}{unit}"),
            _ => format!("{whole}.{tenths}{unit}"),
        }
    }
}

impl serde::Serialize for ByteSize {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for ByteSize {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<ByteSize, D::Error> {
        struct Visitor;

        impl serde::de::Visitor<'_> for Visitor {
            type Value = ByteSize;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as \"10GiB\"")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<ByteSize, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_i64<E: serde::de::Error>(self, bytes: i64) -> Result<ByteSize, E> {
                self.visit_u64(u64::try_from(bytes).map_err(E::custom)?)
            }

            fn visit_u64<E: serde::de::Error>(self, bytes: u64) -> Result<ByteSize, E> {
                Ok(ByteSize(bytes))
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_printed_parses_to_the_same(bytes: u64, shift in 0u32..60) {
            let size = ByteSize((bytes >> shift) << (shift / 2));
            prop_assert_eq!(size.to_string().parse::<ByteSize>().unwrap(), size);
        }

        #[test]
        fn any_text_is_a_size_or_an_error(text in ".*") {
            let _ = text.parse::<ByteSize>();
        }
    }

    #[test]
    fn sizes_that_are_understood() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("4KiB", 4096),
            ("10 GiB", 10 << 30),
            ("1tib", 1 << 40),
            ("16383PiB", 16383 << 50),
        ] {
            assert_eq!(text.parse::<ByteSize>().unwrap().0, bytes, "{text}");
        }
    }

    #[test]
    fn sizes_that_are_refused() {
        for (text, error) in [
            ("", ParseSizeError::NoNumber),
            ("-1", ParseSizeError::NoNumber),
            ("GiB", ParseSizeError::NoNumber),
            ("1.5GiB", ParseSizeError::Fraction),
            ("10GB", ParseSizeError::Unit("GB".into())),
            ("10G", ParseSizeError::Unit("G".into())),
            ("16384PiB", ParseSizeError::TooLarge),
            ("99999999999999999999", ParseSizeError::TooLarge),
        ] {
            assert_eq!(text.parse::<ByteSize>().unwrap_err(), error, "{text}");
        }
    }

    #[test]
    fn rounding_for_people() {
        for (bytes, text) in [
            (0, "0B"),
            (1023, "1023B"),
            (1536, "1.5KiB"),
            (u64::MAX, "16383.9PiB"),
            (10 << 30, "10GiB"),
        ] {
            assert_eq!(ByteSize(bytes).rounded(), text);
        }
    }
}
