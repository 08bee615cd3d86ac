//! Checks the memory of a pod by account, at every step of heavy runs.

use crate::sim::checks::wrong::{Checked, check};
use crate::store::lane::Space;
use crate::types::BLOCK_BYTES;

/// What a block in the overlay costs beside its content, about.
const OVERLAY_BLOCK_BYTES: u64 = 64;
/// The share of a log's size that the overlay may take beside the contents of its blocks. Every
/// block that was logged takes a block of the log, so this is twice what the log can hold.
const OVERLAY_PART: u64 = BLOCK_BYTES as u64 / (2 * OVERLAY_BLOCK_BYTES);

/// Checks the accounts of a lane.
pub fn of_lane(space: &Space) -> Checked {
    let (bytes, most) =
        (space.overlay_blocks * OVERLAY_BLOCK_BYTES, space.log_bytes / OVERLAY_PART);
    check(bytes <= most, || format!("the overlay of a disk takes {bytes} bytes of {most}"))
}
