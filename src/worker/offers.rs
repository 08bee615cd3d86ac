//! Offers of resyncs to followers of members here: a bounded number per lane, the rest in order. A
//! part of the resyncs.

use std::collections::VecDeque;
use std::time::Duration;

use crate::limits::RESYNCS_FROM_LANE_MAX;
use crate::types::{MemberId, Mono};

/// An offer from which nothing is heard for so long makes room for the next.
const SILENCE: Duration = Duration::from_secs(5);

/// A leader here, and its follower that needs a resync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    pub lane: u8,
    pub source: MemberId,
    pub to: MemberId,
}

/// The offers of a worker.
#[derive(Default)]
pub struct Offers {
    /// With the time when the follower was last heard.
    made: Vec<(Offer, Mono)>,
    waiting: VecDeque<Offer>,
}

impl Offers {
    /// Takes an offer. True: it is to be sent now.
    pub fn add(&mut self, now: Mono, offer: Offer) -> bool {
        if self.made.iter().any(|(made, _)| *made == offer) {
            return true;
        }
        if self.made_by(offer.lane) >= RESYNCS_FROM_LANE_MAX {
            if !self.waiting.contains(&offer) {
                self.waiting.push_back(offer);
            }
            return false;
        }
        self.waiting.retain(|waiting| *waiting != offer);
        self.made.push((offer, now));
        true
    }

    fn made_by(&self, lane: u8) -> usize {
        self.made.iter().filter(|(made, _)| made.lane == lane).count()
    }

    /// A follower asks this source for something.
    pub fn heard(&mut self, now: Mono, source: MemberId) {
        for (offer, heard) in &mut self.made {
            if offer.source == source {
                *heard = now;
            }
        }
    }

    /// A resync of this follower ended.
    pub fn ended(&mut self, source: MemberId, to: MemberId) {
        self.made.retain(|(offer, _)| (offer.source, offer.to) != (source, to));
    }

    /// Offers that have waited and are to be sent now, if their source still leads.
    pub fn next(&mut self, now: Mono, leads: impl Fn(MemberId) -> bool) -> Vec<Offer> {
        self.made.retain(|(offer, heard)| leads(offer.source) && now.since(*heard) <= SILENCE);
        let mut next = Vec::new();
        for offer in std::mem::take(&mut self.waiting) {
            if leads(offer.source) && self.add(now, offer) {
                next.push(offer);
            }
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(lane: u8, source: u64) -> Offer {
        Offer { lane, source: MemberId(source), to: MemberId(100 + source) }
    }

    #[test]
    fn a_lane_makes_a_bounded_number_of_offers_and_the_rest_wait_in_order() {
        let mut offers = Offers::default();
        let most = RESYNCS_FROM_LANE_MAX as u64;
        for source in 1..=most + 3 {
            assert_eq!(offers.add(Mono(0), offer(0, source)), source <= most);
        }
        assert!(offers.add(Mono(0), offer(0, 1)), "an offer may be repeated");
        assert!(!offers.add(Mono(0), offer(0, most + 1)), "it waits, once");
        assert!(offers.add(Mono(0), offer(1, 50)), "another lane");
        assert_eq!(offers.next(Mono(1), |_| true), []);
        offers.ended(MemberId(2), MemberId(102));
        assert_eq!(offers.next(Mono(1), |_| true), [offer(0, most + 1)]);
        // One does not lead any more, and another is silent.
        offers.ended(MemberId(3), MemberId(103));
        assert_eq!(offers.next(Mono(1), |source| source.0 != most + 2), [offer(0, most + 3)]);
        assert!(!offers.add(Mono(1), offer(0, 70)));
        let later = Mono(6_000_000_000);
        offers.heard(later, MemberId(4));
        assert_eq!(offers.next(later, |_| true), [offer(0, 70)]);
        assert_eq!(offers.made.len(), 2, "the one that was heard, and the next");
    }
}
