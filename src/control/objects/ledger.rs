//! What objects were like when they were judged last, and since when. It counts them by phase, so
//! that a summary of the cluster does not look at each of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::control::objects::condition::{Judged, Statement, severity};
use crate::control::objects::key::{Kind, ObjectKey};
use crate::control::proto::Phase;

/// A judged object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Revision of its row.
    pub revision: u64,
    pub uid: String,
    pub name: String,
    pub phase: Phase,
    pub conditions: Vec<Condition>,
}

/// A statement, and since when it has been true, false or unknown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    pub statement: Statement,
    pub since_ms: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Ledger {
    standings: HashMap<ObjectKey, Standing>,
    counts: BTreeMap<(Kind, i32), u64>,
    /// Those with a severity, the worst last. A shard is as its volume is, and not among them.
    bad: BTreeSet<(u8, ObjectKey)>,
}

impl Ledger {
    pub fn get(&self, key: &ObjectKey) -> Option<&Standing> {
        self.standings.get(key)
    }

    pub fn keys(&self) -> impl Iterator<Item = &ObjectKey> {
        self.standings.keys()
    }

    /// Records what an object is like now. True when anything differs from the time before.
    pub fn judge(&mut self, key: &ObjectKey, judged: Judged, now_ms: u64) -> bool {
        let before = self.standings.get(key);
        let Judged { revision, uid, name, judgement } = judged;
        let conditions = judgement
            .statements
            .into_iter()
            .map(|statement| Condition {
                since_ms: since(before, &statement).unwrap_or(now_ms),
                statement,
            })
            .collect();
        let now = Standing { revision, uid, name, phase: judgement.phase, conditions };
        if before == Some(&now) {
            return false;
        }
        self.forget(key);
        *self.counts.entry((key.kind(), now.phase.into())).or_default() += 1;
        if severity(now.phase) > 0 && key.kind() != Kind::Shard {
            self.bad.insert((severity(now.phase), key.clone()));
        }
        self.standings.insert(key.clone(), now);
        true
    }

    /// Forgets an object that is gone. True when it was there.
    pub fn forget(&mut self, key: &ObjectKey) -> bool {
        let Some(gone) = self.standings.remove(key) else { return false };
        let at = (key.kind(), gone.phase.into());
        let count = self.counts.get_mut(&at).expect("it was counted");
        *count -= 1;
        if *count == 0 {
            self.counts.remove(&at);
        }
        self.bad.remove(&(severity(gone.phase), key.clone()));
        true
    }

    /// How many objects of a kind are in each phase.
    pub fn counts(&self, kind: Kind) -> impl Iterator<Item = (Phase, u64)> {
        let of_kind = self.counts.range((kind, i32::MIN)..=(kind, i32::MAX));
        of_kind.map(|((_, phase), count)| (Phase::try_from(*phase).unwrap_or_default(), *count))
    }

    /// The objects with which something is wrong, the worst first.
    pub fn bad(&self) -> impl ExactSizeIterator<Item = (&ObjectKey, &Standing)> {
        self.bad.iter().rev().map(|(_, key)| (key, &self.standings[key]))
    }

    /// When the truth of a statement about an object began, as far as known.
    pub fn since_ms(&self, key: &ObjectKey, statement: &Statement) -> Option<u64> {
        since(self.standings.get(key), statement)
    }
}

fn since(standing: Option<&Standing>, statement: &Statement) -> Option<u64> {
    let same = |condition: &&Condition| {
        let before = &condition.statement;
        (before.kind, before.truth) == (statement.kind, statement.truth)
    };
    standing?.conditions.iter().find(same).map(|condition| condition.since_ms)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::objects::condition::{Judgement, Truth, Type, Why};
    use crate::types::VolumeId;
    use proptest::prelude::*;

    fn judged(revision: u64, phase: Phase, truth: Truth, why: Why, message: &str) -> Judged {
        let statement = Statement::new(Type::Redundant, truth, why, message);
        let judgement = Judgement { phase, statements: vec![statement] };
        Judged { revision, uid: "1".to_owned(), name: "v".to_owned(), judgement }
    }

    #[test]
    fn since_stays_while_the_status_does() {
        let (mut ledger, key) = (Ledger::default(), ObjectKey::Volume(VolumeId(1)));
        let bad = |message| judged(1, Phase::Degraded, Truth::False, Why::ReplicasMissing, message);
        let good = |revision| judged(revision, Phase::Ready, Truth::True, Why::AllReplicasGood, "");
        let since = |ledger: &Ledger| ledger.get(&key).unwrap().conditions[0].since_ms;
        assert!(ledger.judge(&key, good(1), 10));
        assert!(!ledger.judge(&key, good(1), 20), "nothing has changed");
        assert_eq!(since(&ledger), 10);
        assert!(ledger.judge(&key, bad("2 replicas are missing"), 30));
        // Another message and reason are a change, but the status is the same.
        assert!(ledger.judge(&key, bad("1 replica is missing"), 40));
        let resyncs = judged(1, Phase::Degraded, Truth::False, Why::ReplicasResyncing, "");
        assert!(ledger.judge(&key, resyncs, 50));
        assert_eq!(since(&ledger), 30);
        assert!(ledger.judge(&key, good(2), 60));
        assert_eq!(since(&ledger), 60);
    }

    proptest! {
        /// Counts and the list of what is bad are those of the objects that are there.
        #[test]
        fn sums_are_those_of_the_objects(
            steps in proptest::collection::vec((0u64..6, 0usize..5), 0..60),
        ) {
            let phases = [Phase::Ready, Phase::Degraded, Phase::Paused, Phase::Creating];
            let (mut ledger, mut there) = (Ledger::default(), BTreeMap::new());
            for (volume, phase) in steps {
                let key = ObjectKey::Volume(VolumeId(volume));
                match phases.get(phase) {
                    Some(phase) => {
                        let judged = judged(1, *phase, Truth::True, Why::Working, "");
                        ledger.judge(&key, judged, 1);
                        there.insert(key, *phase);
                    }
                    None => prop_assert_eq!(ledger.forget(&key), there.remove(&key).is_some()),
                }
                for phase in phases {
                    let count = there.values().filter(|other| **other == phase).count() as u64;
                    let counted = ledger.counts(Kind::Volume).find(|(other, _)| *other == phase);
                    prop_assert_eq!(counted.map_or(0, |(_, count)| count), count);
                }
                let bad: Vec<u8> = ledger.bad().map(|(_, it)| severity(it.phase)).collect();
                prop_assert!(bad.is_sorted_by(|a, b| a >= b));
                let expected = there.values().filter(|phase| severity(**phase) > 0).count();
                prop_assert_eq!(bad.len(), expected);
            }
        }
    }
}
