//! What a recovery has heard so far, and whom it waits for. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::control::recovery::format::Copy;
use crate::control::recovery::merge::{Merge, MergeError, Merged, Source};
use crate::control::recovery::plan::Loaded;
use crate::types::{PodId, Uuid};

/// See the module.
#[derive(Debug)]
pub struct Gathering {
    /// Of the new catalog.
    pub history: Uuid,
    /// The pod that recovers.
    me: PodId,
    merge: Merge,
    /// The revision of what each pod told.
    told: BTreeMap<PodId, u64>,
    /// Why the knowledge of a pod was not taken.
    refused: BTreeMap<PodId, String>,
    left_out: BTreeSet<PodId>,
}

/// A pod, as a recovery sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// It told what it knows, as of this revision.
    Told(u64),
    /// Nothing yet.
    Nothing,
    /// A person said that it is off for good.
    LeftOut,
    /// Its knowledge cannot be used.
    Refused(String),
}

impl Gathering {
    /// Begins with the sources of the plan.
    pub fn new(loaded: Loaded, me: PodId) -> Result<Gathering, MergeError> {
        let Loaded { plan, backup, member } = loaded;
        let mut merge = Merge::default();
        for (copy, name) in [(backup, "the backup"), (member, "the catalog's member on this pod")] {
            if let Some(Copy { head, rows }) = copy {
                let (name, revision) = (name.to_owned(), head.revision);
                merge.add(Source { name, pod: None, is_complete: true, revision, rows })?;
            }
        }
        Ok(Gathering {
            history: plan.history,
            me,
            merge,
            told: BTreeMap::new(),
            refused: BTreeMap::new(),
            left_out: BTreeSet::new(),
        })
    }

    /// Takes what a pod knows. An error is also kept, for those who look.
    pub fn hear(&mut self, pod: PodId, is_complete: bool, copy: Copy) -> Result<(), MergeError> {
        let Copy { head, rows } = copy;
        let (name, revision) = (format!("pod {pod}"), head.revision);
        let added = match revision {
            // It knows nothing of the cluster.
            0 => Ok(()),
            _ => self.merge.add(Source { name, pod: Some(pod), is_complete, revision, rows }),
        };
        match &added {
            Ok(()) => {
                self.told.insert(pod, revision);
                self.refused.remove(&pod);
                self.left_out.remove(&pod);
            }
            Err(error) => drop(self.refused.insert(pod, error.to_string())),
        }
        added
    }

    pub fn has_told(&self, pod: PodId) -> bool {
        self.told.contains_key(&pod)
    }

    /// These pods are off for good. False: one of them has told already, or is not known.
    pub fn leave_out(&mut self, pods: &[PodId]) -> bool {
        let known = self.merge.pods();
        let may =
            |pod: &PodId| known.contains(pod) && !self.told.contains_key(pod) && *pod != self.me;
        if !pods.iter().all(may) {
            return false;
        }
        self.left_out.extend(pods);
        true
    }

    /// All pods that are known.
    pub fn pods(&self) -> impl Iterator<Item = (PodId, Heard)> + '_ {
        let mut known = self.merge.pods();
        known.extend(self.refused.keys());
        known.into_iter().map(|pod| {
            let heard = if let Some(revision) = self.told.get(&pod) {
                Heard::Told(*revision)
            } else if self.left_out.contains(&pod) {
                Heard::LeftOut
            } else if let Some(why) = self.refused.get(&pod) {
                Heard::Refused(why.clone())
            } else {
                Heard::Nothing
            };
            (pod, heard)
        })
    }

    /// The pods that it waits for.
    pub fn missing(&self) -> Vec<PodId> {
        let is_missing = |heard: &Heard| matches!(heard, Heard::Nothing | Heard::Refused(_));
        self.pods().filter(|(_, heard)| is_missing(heard)).map(|(pod, _)| pod).collect()
    }

    /// The newest history and revision that anybody has told of.
    pub fn newest(&self) -> (Option<Uuid>, u64) {
        self.merge.newest()
    }

    /// True when there is nobody to wait for.
    pub fn is_complete(&self) -> bool {
        self.told.contains_key(&self.me) && self.missing().is_empty()
    }

    /// Makes the new state.
    pub fn finish(&self, now_ms: u64) -> Result<Merged, MergeError> {
        self.merge.finish(self.history, self.me, now_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::recovery::plan::{copy_of, copy_of_told, new_plan};
    use crate::control::state::CatalogState;
    use crate::control::state::rows::{Cluster, RowKey, encode_row};
    use crate::control::sync::mirror::Mirror;
    use crate::testing::catalog_fixture::cluster;

    const ME: PodId = PodId(1);

    fn copy(state: &CatalogState) -> Copy {
        let (head, rows) = copy_of(state, 1, true);
        Copy { head, rows: rows.collect() }
    }

    fn gathering() -> Gathering {
        let plan = new_plan(Uuid([5; 16]), 1);
        Gathering::new(Loaded { plan, backup: None, member: None }, ME).unwrap()
    }

    #[test]
    fn it_waits_for_all_pods_but_those_that_are_off_for_good() {
        let state = cluster(3);
        let mut gathering = gathering();
        assert!(!gathering.is_complete());
        gathering.hear(ME, false, copy(&state)).unwrap();
        let nothing = |gathering: &Gathering| -> Vec<u64> {
            let missing = gathering.pods().filter(|(_, heard)| *heard == Heard::Nothing);
            missing.map(|(pod, _)| pod.0).collect()
        };
        assert_eq!(nothing(&gathering), [2, 3]);
        assert!(!gathering.leave_out(&[PodId(2), ME]), "this pod is there");
        assert!(!gathering.leave_out(&[PodId(9)]), "nobody knows it");
        assert_eq!(nothing(&gathering), [2, 3]);
        gathering.hear(PodId(2), false, copy(&state)).unwrap();
        assert!(!gathering.leave_out(&[PodId(2)]), "it has told");
        assert!(gathering.leave_out(&[PodId(3)]) && gathering.is_complete());
        // It is back.
        gathering.hear(PodId(3), false, copy(&state)).unwrap();
        assert!(gathering.pods().all(|(_, heard)| heard == Heard::Told(state.revision())));
        assert!(gathering.is_complete());
        let state = gathering.finish(7).unwrap().state;
        assert_eq!(state.cluster.history, Uuid([5; 16]));
    }

    #[test]
    fn a_pod_that_knows_nothing_is_not_waited_for() {
        let state = cluster(2);
        let mut gathering = gathering();
        let nothing = copy_of_told(Mirror::default().whole(), state.cluster.uid, 1);
        gathering.hear(ME, false, nothing).unwrap();
        assert_eq!(gathering.newest().0, None, "there is no source yet");
        gathering.hear(PodId(2), false, copy(&state)).unwrap();
        assert!(gathering.is_complete());
        gathering.finish(7).unwrap();
    }

    #[test]
    fn knowledge_of_another_catalog_is_shown_and_waits_for_a_person() {
        let state = cluster(3);
        let mut gathering = gathering();
        gathering.hear(ME, false, copy(&state)).unwrap();
        gathering.hear(PodId(2), false, copy(&state)).unwrap();
        let mut other = copy(&state);
        let cluster = Cluster { history: Uuid([6; 16]), ..state.cluster.clone() };
        for (key, row) in &mut other.rows {
            if *key == RowKey::Cluster {
                *row = encode_row(1, &cluster);
            }
        }
        assert!(gathering.hear(PodId(3), false, other).is_err());
        let refused = gathering.pods().any(|(_, heard)| matches!(heard, Heard::Refused(_)));
        assert!(refused && !gathering.is_complete());
        assert!(gathering.leave_out(&[PodId(3)]) && gathering.is_complete());
    }
}
