//! Follows the catalog's records and the reports on the catalog's leader: judges what was touched,
//! remembers since when things are as they are, and numbers the changes for those who watch. Pure;
//! the clock is an argument.
//!
//! It looks only at what differs from the time before.

use std::collections::{BTreeMap, BTreeSet};

use crate::control::command::Sighting;
use crate::control::objects::condition::Truth;
use crate::control::objects::cursor::Mark;
use crate::control::objects::judge::Judge;
use crate::control::objects::key::{Kind, ObjectKey};
use crate::control::objects::ledger::{Condition, Ledger, Standing};
use crate::control::objects::ring::{Ring, TooOld};
use crate::control::objects::seen::Seen;
use crate::control::objects::source::Source;
use crate::control::proto::Phase;
use crate::control::reports::Pods;
use crate::types::Uuid;

/// Changes that are kept for those who watch.
const CHANGES_MAX: usize = 1 << 16;

/// See the module.
#[derive(Debug)]
pub struct Observer {
    /// A random number of the process: its changes have numbers of their own.
    run: u64,
    history: Uuid,
    revision: u64,
    seen: Seen,
    ledger: Ledger,
    changes: Ring<Changed>,
    /// Objects whose conditions may be news for their histories. True: they were judged for the
    /// first time, as all are by a new leader.
    unrecorded: BTreeMap<ObjectKey, bool>,
    /// Nodes that are unreachable.
    missed: BTreeSet<String>,
}

/// A change that somebody may watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    pub key: ObjectKey,
    /// Of an object that is gone now.
    pub gone: Option<Gone>,
}

/// Who an object was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gone {
    pub uid: String,
    pub name: String,
}

impl Observer {
    pub fn new(run: u64) -> Observer {
        Observer {
            run,
            history: Uuid::default(),
            revision: 0,
            seen: Seen::default(),
            ledger: Ledger::default(),
            changes: Ring::new(CHANGES_MAX),
            unrecorded: BTreeMap::new(),
            missed: BTreeSet::new(),
        }
    }

    /// Some of the conditions that are not in the history of their objects yet, at most `max` or
    /// those of one object. What an earlier leader may have recorded, and which was forgotten
    /// since, is not news: otherwise every new leader would fill the history with it.
    pub fn take_news(&mut self, source: Source<'_>, max: usize) -> Vec<Sighting> {
        let mut news = Vec::new();
        while news.len() < max {
            let Some((key, is_first)) = self.unrecorded.pop_first() else { break };
            let kind = key.kind().word();
            let name = self.ledger.get(&key).map_or("", |standing| &standing.name);
            if is_first && source.forgets_events(kind) && source.events_of(kind, name).count() == 0
            {
                continue;
            }
            let standing = self.ledger.get(&key).into_iter();
            let sightings = standing.flat_map(|standing| sightings(key.kind(), standing));
            news.extend(sightings.filter(|seen| source.is_news(seen)));
        }
        news
    }

    /// These could not be recorded, and are looked at again.
    pub fn give_back(&mut self, source: Source<'_>, news: &[Sighting]) {
        let keys = news.iter().filter_map(|seen| source.key_of(Kind::of(&seen.kind)?, &seen.name));
        self.unrecorded.extend(keys.map(|key| (key, false)));
    }

    pub fn seen(&self) -> &Seen {
        &self.seen
    }

    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// The moment up to which it has seen everything.
    pub fn mark(&self) -> Mark {
        let sequence = self.changes.last();
        Mark { history: self.history, revision: self.revision, run: self.run, sequence }
    }

    /// The changes since a moment. An error: they are not known any more.
    pub fn since(&self, mark: &Mark) -> Result<impl Iterator<Item = &Changed>, TooOld> {
        if (mark.history, mark.run) != (self.history, self.run) {
            return Err(TooOld);
        }
        self.changes.since(mark.sequence)
    }

    /// Takes over the state and the reports as of `now_ms` (since 1970). True when anything
    /// changed. A state that is older than the last one counts for nothing.
    pub fn update(&mut self, source: Source<'_>, pods: Pods<'_>, now_ms: u64) -> bool {
        let before = self.changes.last();
        let mut due = BTreeSet::new();
        let is_other = source.history() != self.history;
        if is_other || source.revision() > self.revision {
            match source.changed_since(self.revision).filter(|_| !is_other) {
                Some(changed) => {
                    for key in changed {
                        // Shards are new, or go, as their volume does.
                        let volume = match &key {
                            ObjectKey::Volume(volume) => source.volume(*volume),
                            _ => None,
                        };
                        let shards = volume.into_iter().flat_map(|it| source.shards_of(&it.value));
                        due.extend(shards.map(|(shard, _)| ObjectKey::Shard(shard)));
                        due.insert(key);
                    }
                }
                None => due.extend(self.everything(source)),
            }
            // Whether silence matters depends on what is attached there by now.
            due.extend(self.missed.iter().cloned().map(ObjectKey::Node));
            (self.history, self.revision) = (source.history(), source.revision());
        } else if source.revision() < self.revision {
            return false;
        }
        let touched = self.seen.hear(pods);
        due.extend(touched.pods.iter().map(|pod| ObjectKey::Pod(*pod)));
        due.extend(touched.nodes.into_iter().map(ObjectKey::Node));
        for disk in &touched.disks {
            // Also those with a replica that no pod reports: whether it could be there has changed.
            due.extend(source.shards_on(*disk).map(ObjectKey::Shard));
            due.insert(ObjectKey::Disk(*disk));
        }
        due.extend(touched.shards.iter().map(|shard| ObjectKey::Shard(*shard)));
        // A volume is as its shards are, and a node as its pods.
        let owners = due.iter().filter_map(|key| match key {
            ObjectKey::Shard(shard) => Some(ObjectKey::Volume(source.shard(*shard)?.value.volume)),
            ObjectKey::Pod(pod) => Some(ObjectKey::Node(source.pod(*pod)?.value.node.clone())),
            ObjectKey::Attachment(key) => {
                Some(ObjectKey::Node(source.attachment(*key)?.value.node.clone()))
            }
            _ => None,
        });
        let owners: Vec<ObjectKey> = owners.collect();
        // What an attachment waits for is told by its volume.
        let waiting = owners.iter().filter_map(|key| match key {
            ObjectKey::Volume(volume) => Some(source.attachments_of(*volume)),
            _ => None,
        });
        due.extend(waiting.flatten().map(ObjectKey::Attachment));
        due.extend(owners);
        for key in due {
            self.judge(source, &key, now_ms);
        }
        self.changes.last() > before
    }

    /// Everything that is there, and everything that was.
    fn everything(&self, source: Source<'_>) -> BTreeSet<ObjectKey> {
        let mut all: BTreeSet<ObjectKey> = self.ledger.keys().cloned().collect();
        for kind in Kind::ALL {
            all.extend(source.keys_after(kind, None));
        }
        all
    }

    /// Shards are many, and nobody watches one: only those are remembered that are not well.
    fn judge(&mut self, source: Source<'_>, key: &ObjectKey, now_ms: u64) {
        let judge = Judge { source, seen: &self.seen };
        let judged = judge.judge(key);
        if let ObjectKey::Node(name) = key {
            let phase = judged.as_ref().map(|judged| judged.judgement.phase);
            match phase == Some(Phase::Unreachable) {
                true => drop(self.missed.insert(name.clone())),
                false => drop(self.missed.remove(name)),
            }
        }
        if key.kind() == Kind::Shard {
            match judged.filter(|judged| judged.judgement.phase != Phase::Ready) {
                Some(judged) => {
                    self.ledger.judge(key, judged, now_ms);
                }
                None => {
                    self.ledger.forget(key);
                }
            }
            return;
        }
        match judged {
            Some(judged) => {
                let is_first = self.ledger.get(key).is_none();
                if self.ledger.judge(key, judged, now_ms) {
                    if has_history(key.kind()) {
                        let known = self.unrecorded.entry(key.clone()).or_insert(is_first);
                        *known &= is_first;
                    }
                    self.changes.push(Changed { key: key.clone(), gone: None });
                }
            }
            None => {
                self.unrecorded.remove(key);
                let known = self.ledger.get(key);
                let gone = known.map(|it| Gone { uid: it.uid.clone(), name: it.name.clone() });
                if self.ledger.forget(key) {
                    self.changes.push(Changed { key: key.clone(), gone });
                }
            }
        }
    }
}

/// Objects of which conditions are recorded. A shard is as its volume is, and what an attachment
/// waits for is told by its volume.
fn has_history(kind: Kind) -> bool {
    matches!(kind, Kind::Node | Kind::Pod | Kind::Disk | Kind::Volume)
}

fn sightings(kind: Kind, standing: &Standing) -> impl Iterator<Item = Sighting> {
    let told = standing.conditions.iter().filter(|it| it.statement.why.makes_history());
    told.map(move |Condition { statement, .. }| Sighting {
        kind: kind.word().to_owned(),
        name: standing.name.clone(),
        uid: standing.uid.clone(),
        condition: statement.kind.word().to_owned(),
        reason: statement.why.word().to_owned(),
        message: statement.message.clone(),
        well: statement.truth == Truth::True,
    })
}

#[cfg(test)]
#[path = "observer_test.rs"]
mod tests;
