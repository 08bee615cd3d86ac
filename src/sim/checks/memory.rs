//! Checks the memory of a pod by account, at every step of heavy runs.

use crate::sim::checks::wrong::{Checked, check};
use crate::store::lane::Space;

/// The share of a log's size that the overlays of a disk may take beside the contents of their
/// blocks. Their bound in runs with large discards is half of it (rule `overlay-is-bounded`):
/// entries of earlier terms, and what a restart replays, may go beyond that bound.
const OVERLAY_PART: u64 = 16;

/// Checks the accounts of a lane.
pub fn of_lane(space: &Space) -> Checked {
    let (bytes, most) = (space.overlay_bytes, space.log_bytes / OVERLAY_PART);
    check(bytes <= most, || format!("the overlays of a disk take {bytes} bytes of {most}"))
}
