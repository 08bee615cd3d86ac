//! Members that rest: their groups do nothing, so they have neither ticks nor heartbeats of their
//! own (ADR 9). Instead a lane beats for all of its resting leaders at once, over each connection
//! to a lane with followers of theirs. A part of the members.
//!
//! A member wakes with its first input, with the end of one of its connections, when the beat of
//! its leader's lane fails to come, and after a while in any case. It then tells the others of its
//! group over the connections by which it rested.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rustc_hash::FxHashMap;

use crate::limits::{BEAT_LAPSE, REST_TIME};
use crate::planted::planted;
use crate::types::{MemberId, Mono, mix64};
use crate::worker::token::ConnKey;

/// The resting members of a worker.
#[derive(Default)]
pub struct Rests {
    resting: FxHashMap<MemberId, Resting>,
    /// By connection: what rests by it.
    by_conn: BTreeMap<ConnKey, OfConn>,
    /// When each wakes in any case.
    ends: BTreeSet<(Mono, MemberId)>,
}

struct Resting {
    until: Mono,
    leads: bool,
    /// The other members, and the connections to them: of a follower only the leader.
    others: Vec<(ConnKey, MemberId)>,
}

#[derive(Default)]
struct OfConn {
    /// Leaders here, and how many followers at the other end each of them has.
    leaders: BTreeMap<MemberId, u32>,
    /// Followers here whose leaders are at the other end.
    followers: BTreeSet<MemberId>,
    /// When the other end last beat.
    heard: Mono,
}

/// A member that woke.
pub struct Woken {
    /// When it last heard its leader's lane.
    pub heard: Mono,
    /// Members that must know, and the connections to them.
    pub others: Vec<(ConnKey, MemberId)>,
}

impl Rests {
    pub fn is_resting(&self, member: MemberId) -> bool {
        self.resting.contains_key(&member)
    }

    pub fn len(&self) -> usize {
        self.resting.len()
    }

    /// A leader here rests, by the connections to its followers.
    pub fn rest_leader(&mut self, now: Mono, leader: MemberId, others: Vec<(ConnKey, MemberId)>) {
        for (conn, _) in &others {
            *self.by_conn.entry(*conn).or_default().leaders.entry(leader).or_default() += 1;
        }
        // Not all at once.
        let part = Duration::from_millis(mix64(leader.0) % (REST_TIME.as_millis() as u64 / 2));
        self.insert(leader, Resting { until: now + (REST_TIME - part), leads: true, others });
    }

    /// A follower here rests by the connection to its leader, which it has just heard.
    pub fn rest_follower(&mut self, now: Mono, member: MemberId, conn: ConnKey, leader: MemberId) {
        let of = self.by_conn.entry(conn).or_default();
        of.followers.insert(member);
        of.heard = of.heard.max(now);
        let (until, others) = (now + 2 * REST_TIME, vec![(conn, leader)]);
        self.insert(member, Resting { until, leads: false, others });
    }

    fn insert(&mut self, member: MemberId, resting: Resting) {
        self.ends.insert((resting.until, member));
        let before = self.resting.insert(member, resting);
        assert!(before.is_none(), "only a member that is awake goes to rest");
    }

    /// Ends the rest of a member; `None`: it is awake.
    pub fn wake(&mut self, now: Mono, member: MemberId) -> Option<Woken> {
        let Resting { until, leads, others } = self.resting.remove(&member)?;
        self.ends.remove(&(until, member));
        let mut heard = now;
        for (conn, _) in &others {
            let Some(of) = self.by_conn.get_mut(conn) else { continue };
            of.leaders.remove(&member);
            of.followers.remove(&member);
            if !leads {
                heard = of.heard;
            }
            if of.leaders.is_empty() && of.followers.is_empty() {
                self.by_conn.remove(conn);
            }
        }
        Some(Woken { heard, others })
    }

    /// The other end of a connection beats.
    pub fn heard(&mut self, now: Mono, conn: ConnKey) {
        if let Some(of) = self.by_conn.get_mut(&conn) {
            of.heard = now;
        }
    }

    /// The connections over which this end must beat.
    pub fn beats(&self) -> impl Iterator<Item = ConnKey> + '_ {
        let leads = |(_, of): &(&ConnKey, &OfConn)| !of.leaders.is_empty();
        self.by_conn.iter().filter(leads).map(|(conn, _)| *conn)
    }

    /// Everything that rests by a connection.
    pub fn of_conn(&self, conn: ConnKey) -> Vec<MemberId> {
        let of = self.by_conn.get(&conn);
        let members = |of: &OfConn| of.leaders.keys().chain(&of.followers).copied().collect();
        of.map(members).unwrap_or_default()
    }

    /// The members that must wake now.
    pub fn due(&self, now: Mono) -> Vec<MemberId> {
        let ends = self.ends.iter().take_while(|(until, _)| *until <= now);
        let mut due: Vec<MemberId> = ends.map(|(_, member)| *member).collect();
        let lapsed = self.by_conn.values().filter(|of| now.since(of.heard) > BEAT_LAPSE);
        due.extend(lapsed.flat_map(|of| &of.followers).filter(|_| !planted!(SleepsOn)));
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEADER: MemberId = MemberId(1);
    const FOLLOWER: MemberId = MemberId(2);
    const OTHER: MemberId = MemberId(3);

    fn at(ms: u64) -> Mono {
        Mono(1) + Duration::from_millis(ms)
    }

    #[test]
    fn followers_wake_when_the_beat_fails_to_come_and_leaders_beat_as_long_as_they_rest() {
        let mut rests = Rests::default();
        rests.rest_leader(at(0), LEADER, vec![(7, MemberId(11)), (8, MemberId(12))]);
        rests.rest_follower(at(0), FOLLOWER, 8, MemberId(13));
        rests.rest_follower(at(0), OTHER, 9, MemberId(14));
        assert_eq!(rests.beats().collect::<Vec<_>>(), [7, 8]);
        rests.heard(at(400), 8);
        assert_eq!(rests.due(at(500)), []);
        assert_eq!(rests.due(at(501)), [OTHER]);
        let woken = rests.wake(at(501), OTHER).expect("it rests");
        assert_eq!((woken.heard, woken.others), (at(0), vec![(9, MemberId(14))]));
        assert!(rests.wake(at(501), OTHER).is_none());
        assert_eq!(rests.due(at(901)), [FOLLOWER], "also if its own lane leads others");
        let woken = rests.wake(at(901), LEADER).expect("it rests");
        assert_eq!(woken.others, [(7, MemberId(11)), (8, MemberId(12))]);
        assert_eq!(rests.beats().count(), 0);
        assert_eq!(rests.of_conn(8), [FOLLOWER]);
        assert_eq!(rests.len(), 1);
    }

    #[test]
    fn nobody_rests_for_ever() {
        let mut rests = Rests::default();
        rests.rest_leader(at(0), LEADER, vec![(7, MemberId(11))]);
        rests.rest_follower(at(0), FOLLOWER, 7, MemberId(13));
        let later = at(0) + REST_TIME;
        rests.heard(later, 7);
        assert_eq!(rests.due(later), [LEADER]);
        rests.heard(later + REST_TIME, 7);
        assert_eq!(rests.due(later + REST_TIME), [LEADER, FOLLOWER]);
    }
}
