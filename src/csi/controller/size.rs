//! Sizes of volumes: what the orchestrator gives is a range, what Holdfast makes is a multiple of
//! 4 KiB.

use crate::config::size::ByteSize;
use crate::csi::proto::CapacityRange;
use crate::limits::VOLUME_BYTES_MAX;
use crate::types::BLOCK_BYTES;

/// Smallest volume, and what all sizes are a multiple of.
pub const SIZE_BYTES_MIN: u64 = BLOCK_BYTES as u64;
/// The size of a volume of which nobody says how large it is to be.
const SIZE_BYTES_DEFAULT: u64 = 1 << 30;

/// Why there is no size in a range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    #[error("a capacity is negative")]
    Negative,
    #[error(
        "there is no multiple of {} from {required_bytes} to {limit_bytes} bytes",
        ByteSize(SIZE_BYTES_MIN)
    )]
    Empty { required_bytes: u64, limit_bytes: u64 },
    #[error(
        "a volume has {} to {}, not {required_bytes} bytes",
        ByteSize(SIZE_BYTES_MIN),
        ByteSize(VOLUME_BYTES_MAX)
    )]
    TooLarge { required_bytes: u64 },
}

/// The sizes that a volume may have, in bytes. All are possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SizeRange {
    least: u64,
    most: u64,
    /// Nothing asks for `least`: it is only what is possible.
    is_open: bool,
}

impl SizeRange {
    /// Reads a range; 0 and a missing range leave it to us.
    pub fn of(range: Option<&CapacityRange>) -> Result<SizeRange, SizeError> {
        let range = range.copied().unwrap_or_default();
        let bytes = |number: i64| u64::try_from(number).map_err(|_| SizeError::Negative);
        let required_bytes = bytes(range.required_bytes)?;
        let limit_bytes = match bytes(range.limit_bytes)? {
            0 => VOLUME_BYTES_MAX,
            limit => limit,
        };
        if required_bytes > VOLUME_BYTES_MAX {
            return Err(SizeError::TooLarge { required_bytes });
        }
        let least = required_bytes.max(SIZE_BYTES_MIN).next_multiple_of(SIZE_BYTES_MIN);
        let most = limit_bytes.min(VOLUME_BYTES_MAX) / SIZE_BYTES_MIN * SIZE_BYTES_MIN;
        match least <= most {
            true => Ok(SizeRange { least, most, is_open: required_bytes == 0 }),
            false => Err(SizeError::Empty { required_bytes, limit_bytes }),
        }
    }

    /// The size of a new volume.
    pub fn chosen(self) -> u64 {
        if self.is_open { SIZE_BYTES_DEFAULT.min(self.most) } else { self.least }
    }

    /// True when a volume of this size is what is asked for.
    pub fn has(self, size_bytes: u64) -> bool {
        (self.least..=self.most).contains(&size_bytes)
    }

    /// The size that a volume of `size_bytes` is to get; `None`: it would have to shrink.
    pub fn grown(self, size_bytes: u64) -> Option<u64> {
        (size_bytes <= self.most).then(|| self.least.max(size_bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(required_bytes: i64, limit_bytes: i64) -> Result<SizeRange, SizeError> {
        SizeRange::of(Some(&CapacityRange { required_bytes, limit_bytes }))
    }

    #[test]
    fn sizes_are_rounded_up_within_their_range() {
        let chosen = |required, limit| of(required, limit).map(SizeRange::chosen);
        assert_eq!(SizeRange::of(None).map(SizeRange::chosen), Ok(1 << 30));
        assert_eq!(chosen(0, 0), Ok(1 << 30));
        assert_eq!(chosen(0, 10_000), Ok(8192));
        assert_eq!(chosen(1, 0), Ok(4096));
        assert_eq!(chosen(4097, 0), Ok(8192));
        assert_eq!(chosen(1 << 30, 1 << 30), Ok(1 << 30));
        assert_eq!(chosen(1 << 50, 0), Ok(1 << 50));
        assert_eq!(chosen(-1, 0), Err(SizeError::Negative));
        assert_eq!(chosen(0, -1), Err(SizeError::Negative));
        assert!(matches!(chosen(4097, 8191), Err(SizeError::Empty { .. })));
        assert!(matches!(chosen(0, 4095), Err(SizeError::Empty { .. })));
        assert!(matches!(chosen(8192, 4096), Err(SizeError::Empty { .. })));
        assert!(matches!(chosen((1 << 50) + 1, 0), Err(SizeError::TooLarge { .. })));
        assert!(matches!(chosen(i64::MAX, i64::MAX), Err(SizeError::TooLarge { .. })));
    }

    #[test]
    fn volumes_never_shrink() {
        let range = of(8192, 16_384).unwrap();
        assert_eq!(range.grown(4096), Some(8192));
        assert_eq!(range.grown(12_288), Some(12_288));
        assert_eq!(range.grown(20_480), None);
        assert!(range.has(8192) && range.has(16_384) && !range.has(4096));
    }
}
