//! The clock for leases.

use rustix::time::{ClockId, clock_gettime};

use crate::types::Mono;

/// CLOCK_BOOTTIME also runs while the machine is suspended, so a lease ends in time even then.
pub fn now() -> Mono {
    let time = clock_gettime(ClockId::Boottime);
    // The kernel's seconds since boot and nanoseconds below 10^9 are never negative.
    Mono(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}
