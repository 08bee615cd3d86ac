//! The clock that leases are judged by.

use rustix::time::{ClockId, clock_gettime};

use crate::types::Mono;

/// CLOCK_BOOTTIME: it goes on while the machine is suspended, so that a lease cannot outlive its
/// time there.
pub fn now() -> Mono {
    let time = clock_gettime(ClockId::Boottime);
    // The kernel's seconds since boot and nanoseconds below 10^9 are never negative.
    Mono(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}
