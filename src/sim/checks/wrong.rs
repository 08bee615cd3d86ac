//! The result of a check.

/// Describes a violation.
pub type Wrong = String;

pub type Checked = Result<(), Wrong>;

/// Returns an error unless `holds`.
pub fn check(holds: bool, otherwise: impl FnOnce() -> Wrong) -> Checked {
    if holds { Ok(()) } else { Err(otherwise()) }
}
