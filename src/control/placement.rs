//! Places the replicas of a new volume. Pure: from the known state of the disks to a placement.
//!
//! The replicas of a shard go to different pods. Of the disks, those with the fewest replicas per
//! free byte come first.
//!
//! The first replica of a shard is the first to campaign, and leads at first. So the pods take
//! turns, over all volumes: otherwise one pod would lead everything that nobody uses yet.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use crate::control::command::Placement;
use crate::control::reports::Pods;
use crate::control::state::CatalogState;
use crate::limits::SHARD_BYTES;
use crate::types::{PodId, Uuid};

/// Most shards of one volume. A larger volume has longer shards.
pub const SHARDS_MAX: u64 = 4096;

/// A disk that can take replicas.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub disk: Uuid,
    pub pod: PodId,
    pub free_bytes: u64,
    /// Replicas that it already holds.
    pub members: u64,
    /// Shards of which it holds the first replica.
    pub firsts: u64,
}

/// Why the replicas were not placed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlacementError {
    #[error(
        "volume {name} needs {replicas} replicas on different pods, but only {pods} \
         {} a usable disk{unreachable}", have(.pods)
    )]
    TooFewPods {
        name: String,
        replicas: u32,
        pods: usize,
        /// Names the unreachable pods, in words for people; may be empty.
        unreachable: String,
    },
    #[error("a volume has 1, 3 or 5 replicas, not {replicas}")]
    BadReplicas { replicas: u32 },
}

fn have(pods: &usize) -> &'static str {
    match pods {
        1 => "pod has",
        _ => "pods have",
    }
}

/// Length of a shard in bytes, and number of shards, for a volume of `size_bytes`.
pub fn layout(size_bytes: u64) -> (u64, u64) {
    let mut stripe_bytes = SHARD_BYTES;
    while size_bytes.div_ceil(stripe_bytes) > SHARDS_MAX {
        stripe_bytes *= 2;
    }
    (stripe_bytes, size_bytes.div_ceil(stripe_bytes))
}

/// The disks that can take replicas, and a text that names the unreachable pods.
pub fn candidates(state: &CatalogState, pods: Pods<'_>) -> (Vec<Candidate>, String) {
    let candidates = pods
        .disks()
        .filter(|report| report.failed.is_none())
        .filter_map(|report| {
            let disk = state.disks.get(&report.disk)?;
            Some(Candidate {
                disk: report.disk,
                pod: disk.pod,
                free_bytes: report.capacity_bytes.saturating_sub(report.used_bytes),
                members: state.members_on(report.disk),
                firsts: state.firsts_on(report.disk),
            })
        })
        .collect();
    let unreachable: Vec<String> =
        state.pods.keys().filter(|pod| !pods.is_up(**pod)).map(|pod| pod.to_string()).collect();
    let unreachable = match unreachable.as_slice() {
        [] => String::new(),
        [pod] => format!(" (pod {pod} is unreachable)"),
        pods => format!(" (pods {} are unreachable)", pods.join(", ")),
    };
    (candidates, unreachable)
}

/// Places `shards` shards of volume `name`, each with `replicas` replicas.
pub fn place(
    name: &str,
    shards: u64,
    replicas: u32,
    candidates: &[Candidate],
    unreachable: &str,
) -> Result<Placement, PlacementError> {
    if !matches!(replicas, 1 | 3 | 5) {
        return Err(PlacementError::BadReplicas { replicas });
    }
    let mut pods: BTreeMap<PodId, Vec<Candidate>> = BTreeMap::new();
    for candidate in candidates.iter().filter(|candidate| candidate.free_bytes > 0) {
        pods.entry(candidate.pod).or_default().push(candidate.clone());
    }
    if pods.len() < replicas as usize {
        let (name, unreachable) = (name.to_owned(), unreachable.to_owned());
        return Err(PlacementError::TooFewPods { name, replicas, pods: pods.len(), unreachable });
    }
    let mut firsts: BTreeMap<PodId, u64> = BTreeMap::new();
    for candidate in candidates {
        *firsts.entry(candidate.pod).or_default() += candidate.firsts;
    }
    let mut placement = Placement::default();
    let mut positions: BTreeMap<Uuid, u16> = BTreeMap::new();
    for _ in 0..shards {
        let mut best: Vec<&mut Candidate> = pods
            .values_mut()
            .map(|disks| disks.iter_mut().min_by(|a, b| by_load(a, b)).expect("not empty"))
            .collect();
        best.sort_by(|a, b| by_load(a, b));
        best.truncate(replicas as usize);
        let first = (0..best.len()).min_by_key(|at| firsts[&best[*at].pod]).expect("a replica");
        best.rotate_left(first);
        *firsts.entry(best[0].pod).or_default() += 1;
        let mut shard = Vec::with_capacity(replicas as usize);
        for disk in best {
            disk.members += 1;
            let position = *positions.entry(disk.disk).or_insert_with(|| {
                placement.disks.push(disk.disk);
                u16::try_from(placement.disks.len() - 1).expect("at most 20480 replicas")
            });
            shard.push(position);
        }
        placement.shards.push(shard);
    }
    Ok(placement)
}

/// Orders by replicas per free byte. Ties: more free space first, then by identity.
fn by_load(a: &Candidate, b: &Candidate) -> Ordering {
    let load_a = u128::from(a.members + 1) * u128::from(b.free_bytes);
    let load_b = u128::from(b.members + 1) * u128::from(a.free_bytes);
    load_a.cmp(&load_b).then(b.free_bytes.cmp(&a.free_bytes)).then(a.disk.cmp(&b.disk))
}

const _: () = assert!(SHARDS_MAX * 5 <= u16::MAX as u64);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn candidate(disk: u8, pod: u64, free_bytes: u64) -> Candidate {
        let disk = Uuid([disk; 16]);
        Candidate { disk, pod: PodId(pod), free_bytes, members: 0, firsts: 0 }
    }

    proptest! {
        #[test]
        fn replicas_are_always_on_different_pods(
            disks in prop::collection::vec((1u64..8, 0u64..1 << 40), 1..30),
            shards in 1u64..50,
            replicas in prop::sample::select(vec![1u32, 3, 5]),
        ) {
            let candidates: Vec<Candidate> = disks
                .iter()
                .enumerate()
                .map(|(index, (pod, free))| candidate(index as u8, *pod, *free))
                .collect();
            let pod_of: BTreeMap<Uuid, PodId> =
                candidates.iter().map(|c| (c.disk, c.pod)).collect();
            let usable: BTreeSet<PodId> =
                candidates.iter().filter(|c| c.free_bytes > 0).map(|c| c.pod).collect();
            match place("v", shards, replicas, &candidates, "") {
                Err(_) => prop_assert!(usable.len() < replicas as usize),
                Ok(placement) => {
                    prop_assert_eq!(placement.shards.len() as u64, shards);
                    for shard in &placement.shards {
                        let pods: BTreeSet<PodId> = shard
                            .iter()
                            .map(|position| pod_of[&placement.disks[*position as usize]])
                            .collect();
                        prop_assert_eq!(pods.len(), replicas as usize);
                    }
                }
            }
        }

        #[test]
        fn a_layout_covers_the_volume_with_few_shards(blocks in 1u64..=1 << 38) {
            let size = blocks * 4096;
            let (stripe, shards) = layout(size);
            prop_assert!((1..=SHARDS_MAX).contains(&shards));
            prop_assert!(stripe * (shards - 1) < size && size <= stripe * shards);
            prop_assert!(stripe / 4096 <= u64::from(u32::MAX));
        }
    }

    #[test]
    fn disks_fill_in_proportion_to_their_free_space() {
        let candidates: Vec<Candidate> =
            (1..=4u8).map(|n| candidate(n, u64::from(n), u64::from(n) << 40)).collect();
        let placement = place("v", 100, 1, &candidates, "").unwrap();
        let mut counts = BTreeMap::new();
        for shard in &placement.shards {
            *counts.entry(placement.disks[shard[0] as usize]).or_insert(0) += 1;
        }
        let counts: Vec<i32> = counts.into_values().collect();
        assert_eq!(counts, [10, 20, 30, 40]);
    }

    /// The pods of the first replicas, in the order of the shards.
    fn first_pods(placement: &Placement, candidates: &[Candidate]) -> Vec<u64> {
        let pod_of: BTreeMap<Uuid, u64> = candidates.iter().map(|c| (c.disk, c.pod.0)).collect();
        let first = |shard: &Vec<u16>| pod_of[&placement.disks[usize::from(shard[0])]];
        placement.shards.iter().map(first).collect()
    }

    /// One pod has more space than the others, so its disk comes first by load.
    #[test]
    fn pods_take_turns_with_the_first_replica() {
        let mut candidates: Vec<Candidate> =
            (1..=3u8).map(|n| candidate(n, u64::from(n), u64::from(n) << 40)).collect();
        let placement = place("v", 12, 3, &candidates, "").unwrap();
        let firsts = first_pods(&placement, &candidates);
        for pod in 1..=3 {
            assert_eq!(firsts.iter().filter(|first| **first == pod).count(), 4, "{firsts:?}");
        }
        // The next volume, of one shard, goes on where the last one ended.
        candidates[2].firsts = 1;
        let next = place("w", 1, 3, &candidates, "").unwrap();
        assert_ne!(first_pods(&next, &candidates), [3]);
    }

    #[test]
    fn refusals_say_what_is_missing() {
        let two = [candidate(1, 1, 9), candidate(2, 2, 9), candidate(3, 2, 9), candidate(4, 3, 0)];
        assert_eq!(
            place("demo", 1, 3, &two, "").unwrap_err().to_string(),
            "volume demo needs 3 replicas on different pods, but only 2 pods have a usable disk"
        );
        assert_eq!(
            place("demo", 1, 3, &two[..1], " (2 pods are unreachable)").unwrap_err().to_string(),
            "volume demo needs 3 replicas on different pods, but only 1 pod has a usable disk \
             (2 pods are unreachable)"
        );
        let error = place("demo", 1, 2, &two, "").unwrap_err();
        assert_eq!(error, PlacementError::BadReplicas { replicas: 2 });
        assert!(place("demo", 1, 0, &two, "").is_err());
    }
}
