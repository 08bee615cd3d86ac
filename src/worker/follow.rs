//! Leaders follow their clients: when most requests of a shard come through one other pod for a
//! while, the leadership moves there. Reads then stay on one machine, and writes cross the network
//! once. Hysteresis: three windows in a row must agree, each with enough requests.

use std::time::Duration;

use crate::types::PodId;

/// Length of a window, in which requests are counted.
pub const WINDOW: Duration = Duration::from_secs(1);
/// A window with fewer requests does not count.
const REQUESTS_MIN: u32 = 50;
/// Windows in a row that must agree.
const WINDOWS: u32 = 3;
/// After a failed move, the pause doubles with each try, up to this: writes wait during a try.
const REST_WINDOWS_MAX: u32 = 64;

/// Where the requests of one member come from.
#[derive(Debug, Default)]
pub struct Demand {
    /// Requests of this window by the pod they came through.
    counts: Vec<(PodId, u32)>,
    /// The pod through which most requests came, and for how many windows in a row.
    leaning: Option<(PodId, u32)>,
    /// Moves to that pod that were tried, and windows until the next try.
    tries: u32,
    rest: u32,
}

impl Demand {
    pub fn note(&mut self, through: PodId) {
        match self.counts.iter_mut().find(|(pod, _)| *pod == through) {
            Some((_, count)) => *count = count.saturating_add(1),
            None => self.counts.push((through, 1)),
        }
    }

    /// True when the end of a window would change nothing.
    pub fn is_at_rest(&self) -> bool {
        self.counts.is_empty() && self.leaning.is_none()
    }

    /// Ends a window. Returns the pod to move to when enough windows agree.
    pub fn end_of_window(&mut self) -> Option<PodId> {
        let counts = std::mem::take(&mut self.counts);
        let total = counts.iter().fold(0u32, |sum, (_, count)| sum.saturating_add(*count));
        let most = |(_, count): &(PodId, u32)| u64::from(*count) * 4 > u64::from(total) * 3;
        let pod = counts.iter().find(|entry| most(entry)).map(|(pod, _)| *pod);
        self.leaning = match (pod.filter(|_| total >= REQUESTS_MIN), self.leaning) {
            (Some(pod), Some((before, windows))) if pod == before => Some((pod, windows + 1)),
            (Some(pod), _) => {
                (self.tries, self.rest) = (0, 0);
                Some((pod, 1))
            }
            (None, _) => None,
        };
        let (pod, _) = self.leaning.filter(|(_, windows)| *windows >= WINDOWS)?;
        if let Some(rest) = self.rest.checked_sub(1) {
            self.rest = rest;
            return None;
        }
        self.rest = (WINDOWS << self.tries.min(16)).min(REST_WINDOWS_MAX);
        self.tries += 1;
        Some(pod)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(demand: &mut Demand, counts: &[(u64, u32)]) -> Option<PodId> {
        for (pod, count) in counts {
            (0..*count).for_each(|_| demand.note(PodId(*pod)));
        }
        demand.end_of_window()
    }

    #[test]
    fn a_leader_moves_only_to_a_steady_majority() {
        let mut demand = Demand::default();
        assert_eq!(window(&mut demand, &[(2, 90), (1, 10)]), None);
        assert_eq!(window(&mut demand, &[(2, 90), (1, 10)]), None);
        assert_eq!(window(&mut demand, &[(2, 90), (1, 10)]), Some(PodId(2)));
        let again: Vec<u32> =
            (1..=30).filter(|_| window(&mut demand, &[(2, 90)]).is_some()).collect();
        assert_eq!(again, [4, 11, 24], "a move that does not happen is tried more and more rarely");
        assert_eq!(window(&mut demand, &[(2, 50), (1, 50)]), None, "no majority");
        assert_eq!(window(&mut demand, &[(2, 90)]), None, "begins again");
        assert_eq!(window(&mut demand, &[(2, 20)]), None, "too few to tell");
        assert_eq!(window(&mut demand, &[(2, 90)]), None);
        assert_eq!(window(&mut demand, &[(3, 90)]), None);
        assert_eq!(window(&mut demand, &[(2, 90)]), None, "clients that wander are not followed");
    }
}
