//! The caller's deadline: `grpc-timeout`, one to eight digits and a unit.

use std::time::Duration;

use tonic::metadata::MetadataMap;

const HEADER: &str = "grpc-timeout";
const DIGITS_MAX: usize = 8;

/// The time that a caller waits; `None`: it did not say, or nothing that can be read.
pub fn timeout_of(metadata: &MetadataMap) -> Option<Duration> {
    parse(metadata.get(HEADER)?.to_str().ok()?)
}

fn parse(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if !(1..=DIGITS_MAX).contains(&digits.len()) || !digits.bytes().all(|it| it.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_are_read_or_ignored() {
        for (text, millis) in [("1H", 3_600_000), ("2M", 120_000), ("3S", 3000), ("40m", 40)] {
            assert_eq!(parse(text), Some(Duration::from_millis(millis)), "{text}");
        }
        assert_eq!(parse("5000u"), Some(Duration::from_millis(5)));
        assert_eq!(parse("99999999n"), Some(Duration::from_nanos(99_999_999)));
        for text in ["", "S", "1", "1s", "-1S", "+1S", "123456789S", "1.5S", "1é"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
