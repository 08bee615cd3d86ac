//! The pause before the next attempt to connect. Pure: the jitter is a function of (seed, attempt),
//! so that a simulation can be replayed.

use std::time::Duration;

use crate::types::mix64;

const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(2);

/// The pause after `attempt` failures in a row (0: no pause). Its bound doubles from 50 ms to 2 s.
/// The pause is drawn from the upper half, so that pods that lost a peer at the same moment do not
/// reconnect at the same moment.
pub fn reconnect_pause(seed: u64, attempt: u32) -> Duration {
    let Some(doublings) = attempt.checked_sub(1) else {
        return Duration::ZERO;
    };
    let factor = 1u32.checked_shl(doublings).unwrap_or(u32::MAX);
    let longest = FIRST.saturating_mul(factor).min(LONGEST);
    let half = longest / 2;
    let drawn_ns = mix64(seed ^ mix64(u64::from(attempt))) % half.as_nanos() as u64;
    half + Duration::from_nanos(drawn_ns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_stay_in_their_upper_half() {
        assert_eq!(reconnect_pause(1, 0), Duration::ZERO);
        let steps_ms = [50, 100, 200, 400, 800, 1600, 2000, 2000];
        for seed in 0..200 {
            for (failures, step_ms) in (1..).zip(steps_ms) {
                let pause = reconnect_pause(seed, failures);
                assert!(pause >= Duration::from_millis(step_ms / 2), "{pause:?}");
                assert!(pause < Duration::from_millis(step_ms), "{pause:?}");
            }
            assert!(reconnect_pause(seed, u32::MAX) < LONGEST);
        }
    }

    #[test]
    fn the_jitter_is_a_function_of_seed_and_attempt() {
        assert_eq!(reconnect_pause(9, 4), reconnect_pause(9, 4));
        let distinct: std::collections::BTreeSet<_> =
            (0..100).map(|seed| reconnect_pause(seed, 7)).collect();
        assert!(distinct.len() > 90);
    }
}
