//! What a check says.

/// What is wrong, in words.
pub type Wrong = String;

pub type Checked = Result<(), Wrong>;

/// An error, unless it `holds`.
pub fn check(holds: bool, otherwise: impl FnOnce() -> Wrong) -> Checked {
    if holds { Ok(()) } else { Err(otherwise()) }
}
