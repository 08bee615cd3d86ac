//! The clock for leases.

use rustix::time::{ClockId, clock_gettime};

use crate::types::Mono;

/// CLOCK_BOOTTIME also runs while the machine is suspended, so a lease ends in time even then.
pub fn now() -> Mono {
    let time = clock_gettime(ClockId::Boottime);
    // The kernel's seconds since boot and nanoseconds below 10^9 are never negative.
    Mono(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

/// The time of day in ms since 1970, for people. It may jump; nothing is decided by it alone.
pub fn wall_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    // A clock before 1970 has no time to tell.
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
