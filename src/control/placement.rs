//! Places the replicas of a new volume. Pure: from the known state of the disks to a placement.
//!
//! The replicas of a shard go to different failure domains: to nodes of different names, or of
//! different values of the label that the class names. A disk promises its capacity as often as the
//! class says (overcommit). Of the disks with room, those with the fewest replicas per free byte
//! come first.
//!
//! The first replica of a shard is the first to campaign, and leads at first. So the pods take
//! turns, over all volumes: otherwise one pod would lead everything that nobody uses yet.

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::config::size::ByteSize;
use crate::control::command::{Placement, listed};
use crate::control::reports::{Heard, Pods};
use crate::control::state::CatalogState;
use crate::control::state::rebirth::PODS_PER_HISTORY;
use crate::control::state::rows::{Class, Volume};
use crate::limits::{SHARD_BYTES, SHARDS_MAX};
use crate::types::{PodId, Uuid, mix64};
use crate::view::DiskReport;

/// A disk that can take replicas.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub disk: Uuid,
    pub pod: PodId,
    /// What no two replicas of a shard have in common.
    pub domain: String,
    pub free_bytes: u64,
    /// What it may still promise.
    pub room_bytes: u64,
    /// Replicas that it already holds.
    pub members: u64,
    /// Shards of which it holds the first replica.
    pub firsts: u64,
}

/// The disks that a volume may use.
#[derive(Clone, Debug, Default)]
pub struct Candidates {
    pub disks: Vec<Candidate>,
    /// The label of nodes in which the replicas of a shard differ, or [`NODE`].
    pub failure_domain: String,
    pub overcommit_percent: u32,
    pub capacity_bytes: u64,
    /// Names what is left out, in words for people; may be empty.
    pub left_out: String,
}

/// The failure domain of classes whose replicas are on different nodes.
pub const NODE: &str = "node";

/// What is to be placed.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    pub name: &'a str,
    pub shards: u64,
    /// Of the longest shard. More than 0.
    pub shard_bytes: u64,
    pub replicas: u32,
    /// The shards are added to a volume.
    pub grows: bool,
}

/// Why the replicas were not placed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlacementError {
    #[error(
        "volume {name} needs {replicas} replicas on {}, but only {domains} {} a usable \
         disk{left_out}", that_differ(.failure_domain), have(.domains, .failure_domain)
    )]
    TooFewDomains {
        name: String,
        replicas: u32,
        domains: usize,
        failure_domain: String,
        /// Names what was left out, in words for people; may be empty.
        left_out: String,
    },
    #[error(
        "{} {} with {replicas} replicas does not fit: the disks may promise \
         {overcommit_percent}% of their {}, of which a volume of {} is left{left_out}",
        that_is(.name, .grows), ByteSize(*.wanted_bytes).rounded(),
        ByteSize(*.capacity_bytes).rounded(), ByteSize(*.largest_bytes).rounded()
    )]
    NoRoom {
        name: String,
        /// It is there, and more of it does not fit.
        grows: bool,
        replicas: u32,
        wanted_bytes: u64,
        /// The largest volume that would fit, about.
        largest_bytes: u64,
        capacity_bytes: u64,
        overcommit_percent: u32,
        left_out: String,
    },
    #[error(
        "volume {name} cannot grow by {} within its last shard: disk {disk} of pod {pod} may \
         promise {overcommit_percent}% of its {}, of which {} is left",
        ByteSize(*.wanted_bytes).rounded(), ByteSize(*.capacity_bytes).rounded(),
        ByteSize(*.largest_bytes).rounded()
    )]
    NoRoomInLast {
        name: String,
        disk: Uuid,
        pod: PodId,
        wanted_bytes: u64,
        largest_bytes: u64,
        capacity_bytes: u64,
        overcommit_percent: u32,
    },
    #[error("a volume has 1, 3 or 5 replicas, not {replicas}")]
    BadReplicas { replicas: u32 },
}

impl PlacementError {
    /// Pods that were not heard of yet may have room.
    pub fn may_pass(&self) -> bool {
        matches!(self, PlacementError::TooFewDomains { .. } | PlacementError::NoRoom { .. })
    }
}

fn that_is(name: &str, grows: &bool) -> String {
    match grows {
        true => format!("volume {name} cannot grow: another"),
        false => format!("volume {name} of"),
    }
}

fn that_differ(failure_domain: &str) -> String {
    match failure_domain {
        NODE => "different nodes".to_owned(),
        label => format!("nodes that differ in their label {label}"),
    }
}

fn have(domains: &usize, failure_domain: &str) -> String {
    let (one, many) = match failure_domain {
        NODE => ("node".to_owned(), "nodes".to_owned()),
        label => (format!("value of {label}"), format!("values of {label}")),
    };
    match domains {
        1 => format!("{one} has"),
        _ => format!("{many} have"),
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

/// Pods from which the disks for a small volume are chosen, and the pods and shards from which on
/// that is done: to look at all disks of a large cluster takes longer than to make the volume.
const SAMPLED_PODS: usize = 24;
const SAMPLED_FROM_PODS: usize = 48;
const SAMPLED_SHARDS_MAX: u64 = 16;
/// Numbers of pods that are drawn at most; some may be unreachable.
const DRAWS_MAX: u64 = 256;
/// The newest histories whose pods are drawn from.
const HISTORIES_MAX: u64 = 16;

/// Places a volume, on disks of some pods where these do. The best of a few disks, chosen at random
/// each time, keep all disks nearly as evenly filled as the best of all.
pub fn place_on_pods(
    state: &CatalogState,
    pods: Pods<'_>,
    class: &Class,
    wish: Wish<'_>,
) -> Result<Placement, PlacementError> {
    if state.pods.len() >= SAMPLED_FROM_PODS && wish.shards <= SAMPLED_SHARDS_MAX {
        let sample = sample(state, pods, wish.name);
        let disks = sample.iter().flat_map(|heard| &heard.report.disks);
        if let Ok(placement) = place(wish, &from_disks(state, pods, class, disks)) {
            return Ok(placement);
        }
    }
    place(wish, &candidates(state, pods, class))
}

/// As [`place_on_pods`], on disks of these nodes alone. Empty: of any.
pub fn place_on_nodes(
    state: &CatalogState,
    pods: Pods<'_>,
    class: &Class,
    wish: Wish<'_>,
    nodes: &[String],
) -> Result<Placement, PlacementError> {
    if nodes.is_empty() {
        return place_on_pods(state, pods, class, wish);
    }
    let mut from = candidates(state, pods, class);
    let is_wanted = |pod| state.pods.get(&pod).is_some_and(|pod| nodes.contains(&pod.node));
    from.disks.retain(|disk| is_wanted(disk.pod));
    from.left_out.push_str(" (only disks of the nodes that the request names count)");
    place(wish, &from)
}

/// Places the shards by which a volume grows to `size_bytes`, of which it needs `shards`. The disks
/// of its last shard must have room for the part that is still missing there.
pub fn place_growth(
    state: &CatalogState,
    pods: Pods<'_>,
    volume: &Volume,
    size_bytes: u64,
    shards: u64,
) -> Result<Placement, PlacementError> {
    let class = &state.classes[&volume.class];
    let place = u32::try_from(volume.shards() - 1).expect("a bounded number of shards");
    let last = volume.shard_at(place).and_then(|shard| state.shards.get(&shard));
    let last = last.expect("a volume in use has all of its shards");
    let begin = u64::from(place) * volume.stripe_bytes;
    let more_bytes = (size_bytes - begin).min(volume.stripe_bytes) - last.bytes;
    for member in &last.members {
        let disk = &state.disks[&member.disk];
        let promised = promised(disk.capacity_bytes, class.overcommit_percent);
        let left = promised.saturating_sub(state.provisioned_on(member.disk));
        if left < more_bytes {
            return Err(PlacementError::NoRoomInLast {
                name: volume.name.clone(),
                disk: member.disk,
                pod: disk.pod,
                wanted_bytes: more_bytes,
                largest_bytes: left,
                capacity_bytes: disk.capacity_bytes,
                overcommit_percent: class.overcommit_percent,
            });
        }
    }
    if shards == 0 {
        return Ok(Placement::default());
    }
    let mut from = candidates(state, pods, class);
    for disk in &mut from.disks {
        if last.members.iter().any(|member| member.disk == disk.disk) {
            disk.room_bytes = disk.room_bytes.saturating_sub(more_bytes);
        }
    }
    let (name, replicas) = (&volume.name, volume.replicas);
    let shard_bytes = (size_bytes - begin - volume.stripe_bytes).min(volume.stripe_bytes);
    self::place(Wish { name, shards, shard_bytes, replicas, grows: true }, &from)
}

/// The numbers that pods have, nearly without gaps: they begin anew with every recovery of the
/// catalog.
fn numbers(state: &CatalogState) -> Vec<Range<u64>> {
    let oldest = state.cluster.restores.saturating_sub(HISTORIES_MAX);
    let histories = oldest..=state.cluster.restores;
    let ranges = histories.filter_map(|history| {
        let first = history * PODS_PER_HISTORY;
        let all = PodId(first)..PodId(first + PODS_PER_HISTORY);
        let mut pods = state.pods.range(all).map(|(pod, _)| pod.0);
        let least = pods.next()?;
        Some(least..pods.next_back().unwrap_or(least) + 1)
    });
    ranges.collect()
}

/// Reachable pods, other ones for another name.
fn sample<'a>(state: &CatalogState, pods: Pods<'a>, name: &str) -> Vec<&'a Heard> {
    let seed = name.bytes().fold(0, |seed, byte| mix64(seed ^ u64::from(byte)));
    let numbers = numbers(state);
    let count = numbers.iter().map(|range| range.end - range.start).sum::<u64>().max(1);
    let drawn = (0..DRAWS_MAX).filter_map(|draw| {
        let mut at = mix64(seed ^ draw) % count;
        numbers.iter().find_map(|range| {
            let len = range.end - range.start;
            let found = (at < len).then(|| PodId(range.start + at));
            at = at.saturating_sub(len);
            found
        })
    });
    let (mut known, mut sample) = (BTreeSet::new(), Vec::new());
    for pod in drawn {
        if sample.len() < SAMPLED_PODS && known.insert(pod) {
            sample.extend(pods.get(pod));
        }
    }
    sample
}

/// The disks that can take replicas of a volume of this class.
pub fn candidates(state: &CatalogState, pods: Pods<'_>, class: &Class) -> Candidates {
    from_disks(state, pods, class, pods.disks())
}

fn from_disks<'a>(
    state: &CatalogState,
    pods: Pods<'_>,
    class: &Class,
    from: impl Iterator<Item = &'a DiskReport>,
) -> Candidates {
    let (mut disks, mut capacity_bytes, mut unlabelled) = (Vec::new(), 0, 0);
    for report in from.filter(|report| report.failed.is_none()) {
        let Some(pod) = state.disks.get(&report.disk).map(|disk| disk.pod) else { continue };
        let Some(domain) = domain(state, pod, &class.failure_domain) else {
            unlabelled += 1;
            continue;
        };
        capacity_bytes += report.capacity_bytes;
        let promised = promised(report.capacity_bytes, class.overcommit_percent);
        disks.push(Candidate {
            disk: report.disk,
            pod,
            domain,
            free_bytes: report.capacity_bytes.saturating_sub(report.used_bytes),
            room_bytes: promised.saturating_sub(state.provisioned_on(report.disk)),
            members: state.members_on(report.disk),
            firsts: state.firsts_on(report.disk),
        });
    }
    let unreachable: Vec<PodId> =
        state.pods.keys().filter(|pod| !pods.is_up(**pod)).copied().collect();
    let unreachable = match unreachable.as_slice() {
        [] => None,
        [pod] => Some(format!("pod {pod} is unreachable")),
        pods => Some(format!("pods {} are unreachable", listed(pods))),
    };
    let unlabelled = (unlabelled > 0).then(|| {
        let label = &class.failure_domain;
        format!("disks on nodes without the label {label}, {unlabelled} of them, do not count")
    });
    let left_out: Vec<String> = unreachable.into_iter().chain(unlabelled).collect();
    Candidates {
        disks,
        failure_domain: class.failure_domain.clone(),
        overcommit_percent: class.overcommit_percent,
        capacity_bytes,
        left_out: match left_out.is_empty() {
            true => String::new(),
            false => format!(" ({})", left_out.join("; ")),
        },
    }
}

/// How much a disk may promise.
pub fn promised(capacity_bytes: u64, overcommit_percent: u32) -> u64 {
    let promised = u128::from(capacity_bytes) * u128::from(overcommit_percent) / 100;
    u64::try_from(promised).unwrap_or(u64::MAX)
}

/// The failure domain of a pod; `None`: its node lacks the label.
pub fn domain(state: &CatalogState, pod: PodId, failure_domain: &str) -> Option<String> {
    let name = &state.pods.get(&pod)?.node;
    match failure_domain {
        NODE => Some(name.clone()),
        label => state.nodes.get(name)?.labels.get(label).cloned(),
    }
}

/// The largest volume of which each of `replicas` copies lies in another domain than the others.
/// `room`: what each disk can take, with its domain.
pub fn largest<D: Ord>(room: impl IntoIterator<Item = (D, u64)>, replicas: u32) -> u64 {
    let mut domains = BTreeMap::new();
    for (domain, bytes) in room {
        *domains.entry(domain).or_insert(0u64) += bytes;
    }
    let mut left: Vec<u64> = domains.into_values().collect();
    left.sort_unstable_by(|a, b| b.cmp(a));
    // No domain can use more than the size of the volume. So the largest ones count as that size,
    // and the others share what is left of the copies.
    let sizes = (0..replicas.max(1) as usize).map(|large| {
        let rest: u64 = left.iter().skip(large).sum();
        rest / (u64::from(replicas.max(1)) - large as u64)
    });
    sizes.min().unwrap_or(0)
}

/// Places the replicas of all shards of a volume.
pub fn place(wish: Wish<'_>, from: &Candidates) -> Result<Placement, PlacementError> {
    let Wish { name, replicas, .. } = wish;
    if !matches!(replicas, 1 | 3 | 5) {
        return Err(PlacementError::BadReplicas { replicas });
    }
    let mut domains: Domains<'_> = BTreeMap::new();
    for candidate in from.disks.iter().filter(|candidate| candidate.free_bytes > 0) {
        domains.entry(&candidate.domain).or_default().push(candidate.clone());
    }
    if domains.len() < replicas as usize {
        return Err(PlacementError::TooFewDomains {
            name: name.to_owned(),
            replicas,
            domains: domains.len(),
            failure_domain: from.failure_domain.clone(),
            left_out: from.left_out.clone(),
        });
    }
    // Where the usual order leaves no room for the last shards, another one may.
    let placed = place_by(wish, from, domains.clone(), false);
    placed.or_else(|| place_by(wish, from, domains, true)).ok_or_else(|| no_room(wish, from))
}

/// Candidates by their failure domain.
type Domains<'a> = BTreeMap<&'a str, Vec<Candidate>>;

/// Places shard after shard; `None`: there is no room for one.
fn place_by(
    wish: Wish<'_>,
    from: &Candidates,
    mut domains: Domains<'_>,
    by_room: bool,
) -> Option<Placement> {
    let mut firsts: BTreeMap<PodId, u64> = BTreeMap::new();
    for candidate in &from.disks {
        *firsts.entry(candidate.pod).or_default() += candidate.firsts;
    }
    let mut placement = Placement::default();
    let mut positions: BTreeMap<Uuid, u16> = BTreeMap::new();
    for _ in 0..wish.shards {
        let mut best = choose(&mut domains, wish, by_room)?;
        let first = (0..best.len()).min_by_key(|at| firsts[&best[*at].pod]).expect("a replica");
        best.rotate_left(first);
        *firsts.entry(best[0].pod).or_default() += 1;
        let mut shard = Vec::with_capacity(best.len());
        for disk in best {
            disk.members += 1;
            disk.room_bytes -= wish.shard_bytes;
            let position = *positions.entry(disk.disk).or_insert_with(|| {
                placement.disks.push(disk.disk);
                u16::try_from(placement.disks.len() - 1).expect("at most 20480 replicas")
            });
            shard.push(position);
        }
        placement.shards.push(shard);
    }
    Some(placement)
}

/// The disks for one shard: by load, or where most room is left.
fn choose<'a>(
    domains: &'a mut Domains<'_>,
    wish: Wish<'_>,
    by_room: bool,
) -> Option<Vec<&'a mut Candidate>> {
    let Wish { shard_bytes, replicas, .. } = wish;
    let best_of = |disks: &'a mut Vec<Candidate>| {
        let room: u64 = disks.iter().map(|disk| disk.room_bytes / shard_bytes).sum();
        let with_room = disks.iter_mut().filter(|disk| disk.room_bytes >= shard_bytes);
        let best = match by_room {
            true => with_room.max_by_key(|disk| (disk.room_bytes, disk.disk)),
            false => with_room.min_by(|a, b| by_load(a, b)),
        };
        best.map(|disk| (room, disk))
    };
    let mut best: Vec<(u64, &mut Candidate)> = domains.values_mut().filter_map(best_of).collect();
    match by_room {
        true => best.sort_by_key(|(room, _)| Reverse(*room)),
        false => best.sort_by(|a, b| by_load(a.1, b.1)),
    }
    let is_enough = best.len() >= replicas as usize;
    best.truncate(replicas as usize);
    is_enough.then(|| best.into_iter().map(|(_, disk)| disk).collect())
}

fn no_room(wish: Wish<'_>, from: &Candidates) -> PlacementError {
    let Wish { name, shards, shard_bytes, replicas, grows } = wish;
    let usable = from.disks.iter().filter(|disk| disk.free_bytes > 0);
    // A shard is on one disk, and shards of a smaller volume may be shorter.
    let unit = shard_bytes.min(SHARD_BYTES);
    let room = usable.map(|disk| (&disk.domain, disk.room_bytes / unit));
    PlacementError::NoRoom {
        name: name.to_owned(),
        grows,
        replicas,
        wanted_bytes: shards * shard_bytes,
        largest_bytes: largest(room, replicas) * unit,
        capacity_bytes: from.capacity_bytes,
        overcommit_percent: from.overcommit_percent,
        left_out: from.left_out.clone(),
    }
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
    use crate::control::command::CatalogCommand;
    use crate::control::reports::Table;
    use crate::control::state::rebirth::Rebirth;
    use crate::control::state::rows::RowKey;
    use crate::testing::catalog_fixture::{cluster, join, new_volume, register};
    use crate::types::Mono;
    use crate::view::PodReport;
    use proptest::prelude::*;

    const GIB: u64 = 1 << 30;

    /// A disk of a pod on a node of its own, with room for everything.
    fn candidate(disk: u8, pod: u64, free_bytes: u64) -> Candidate {
        let (disk, domain) = (Uuid([disk; 16]), format!("node-{pod}"));
        let (pod, room_bytes) = (PodId(pod), 1 << 50);
        Candidate { disk, pod, domain, free_bytes, room_bytes, members: 0, firsts: 0 }
    }

    fn from(disks: &[Candidate]) -> Candidates {
        let (failure_domain, overcommit_percent) = (NODE.to_owned(), 200);
        let capacity_bytes = 7 << 30;
        let (disks, left_out) = (disks.to_vec(), String::new());
        Candidates { disks, failure_domain, overcommit_percent, capacity_bytes, left_out }
    }

    fn wish(name: &str, shards: u64, replicas: u32) -> Wish<'_> {
        Wish { name, shards, shard_bytes: GIB, replicas, grows: false }
    }

    #[test]
    fn pods_are_drawn_by_their_numbers_in_all_histories() {
        let state = cluster(5);
        assert_eq!(numbers(&state).first(), Some(&(1..6)));
        let is_kept = |key: &RowKey| !matches!(key, RowKey::Head | RowKey::CatalogMember(_));
        let rows = state.rows().filter(|(key, _)| is_kept(key));
        let (history, ancestors) = (Uuid([5; 16]), vec![state.cluster.history]);
        let rebirth = Rebirth { history, ancestors, restores: 1, pod: PodId(1), now_ms: 1 };
        let mut state = CatalogState::reborn(rows, rebirth).unwrap();
        state.apply(1, join(6)).outcome.unwrap();
        assert_eq!(numbers(&state), [1..6, 65_537..65_538]);
    }

    /// Pods with a disk each, all of which report.
    fn reporting(pods: u8) -> (CatalogState, Table) {
        let (state, mut table) = (cluster(pods), Table::default());
        for pod in 1..=u64::from(pods) {
            let disk = DiskReport {
                disk: Uuid([pod as u8; 16]),
                capacity_bytes: 1 << 40,
                ..DiskReport::default()
            };
            let report = PodReport { pod: PodId(pod), disks: vec![disk] };
            table.hear(Mono(1), PodId(pod), Heard { report, is_open: true, ..Heard::default() });
        }
        (state, table)
    }

    /// Three disks that promise 2 TiB each.
    #[test]
    fn a_volume_grows_into_what_its_disks_still_promise() {
        let (mut state, table) = reporting(3);
        let make = |state: &mut CatalogState, name: &str, gib: u64| {
            let (volume, disks) = (new_volume(name, gib * GIB, 1024 * GIB, 3), [1, 2, 3]);
            let disks = disks.map(|disk| Uuid([disk; 16])).to_vec();
            let placement = Placement { disks, shards: vec![vec![0, 1, 2]] };
            let request_id = String::new();
            let create = CatalogCommand::CreateVolume { request_id, volume, placement };
            state.apply(1, create).outcome.unwrap();
        };
        make(&mut state, "v", 512);
        let grow = |state: &CatalogState, gib: u64| {
            let (_, volume) = state.volume_by_name("v").unwrap();
            let shards = gib.div_ceil(1024) - 1;
            place_growth(state, table.pods(Mono(1)), volume, gib * GIB, shards)
        };
        assert_eq!(grow(&state, 1024), Ok(Placement::default()), "within its shard");
        assert_eq!(grow(&state, 2048).unwrap().shards.len(), 1);
        let refused = grow(&state, 2049).unwrap_err().to_string();
        assert_eq!(
            refused,
            "volume v cannot grow: another 2TiB with 3 replicas does not fit: the disks may \
             promise 200% of their 3TiB, of which a volume of 1TiB is left"
        );
        make(&mut state, "w", 1024);
        let refused = grow(&state, 2048).unwrap_err().to_string();
        assert!(refused.contains("another 1TiB"), "{refused}");
        make(&mut state, "x", 500);
        let refused = grow(&state, 1024).unwrap_err().to_string();
        assert!(refused.contains("cannot grow by 512GiB within its last shard"), "{refused}");
        assert!(refused.ends_with("of which 12GiB is left"), "{refused}");
        assert!(grow(&state, 524).is_ok());
    }

    #[test]
    fn small_volumes_fill_a_large_cluster_evenly() {
        let (mut state, table) = reporting(100);
        let class = state.classes["replicated"].clone();
        for number in 0..1000 {
            let name = format!("volume-{number}");
            let placement =
                place_on_pods(&state, table.pods(Mono(1)), &class, wish(&name, 1, 3)).unwrap();
            let volume = new_volume(&name, GIB, GIB, 3);
            let request_id = String::new();
            let create = CatalogCommand::CreateVolume { request_id, volume, placement };
            state.apply(1, create).outcome.unwrap();
        }
        let held: Vec<u64> = state.disks.keys().map(|disk| state.members_on(*disk)).collect();
        let (least, most) = (held.iter().min().unwrap(), held.iter().max().unwrap());
        assert!(*least >= 20 && *most <= 40, "30 on average: {least} to {most}");
    }

    /// Only three of many nodes have the label that the class asks for.
    #[test]
    fn what_a_few_pods_cannot_hold_is_placed_on_others() {
        let (mut state, table) = reporting(100);
        for pod in [7, 77, 97] {
            let mut register = register(pod, &[]);
            if let CatalogCommand::Register { node, .. } = &mut register {
                node.labels.insert("zone".to_owned(), format!("zone-{pod}"));
            }
            state.apply(1, register).outcome.unwrap();
        }
        let class = state.classes["replicated-zones"].clone();
        let placement =
            place_on_pods(&state, table.pods(Mono(1)), &class, wish("v", 1, 3)).unwrap();
        let disks: BTreeSet<Uuid> = placement.disks.into_iter().collect();
        assert_eq!(disks, BTreeSet::from([7, 77, 97].map(|pod| Uuid([pod; 16]))));
        let pods = table.pods(Mono(1) + std::time::Duration::from_secs(60));
        let error = place_on_pods(&state, pods, &class, wish("v", 1, 3)).unwrap_err().to_string();
        assert!(error.contains("and 92 more are unreachable"), "{error}");
    }

    proptest! {
        #[test]
        fn replicas_are_in_different_domains_on_disks_with_room(
            disks in prop::collection::vec((1u64..8, 0u64..4, 0u64..20), 1..30),
            shards in 1u64..50,
            replicas in prop::sample::select(vec![1u32, 3, 5]),
        ) {
            let candidates: Vec<Candidate> = disks
                .iter()
                .enumerate()
                .map(|(index, (pod, free, room))| {
                    let domain = format!("rack-{}", pod / 2);
                    let room_bytes = room * GIB;
                    let made = candidate(index as u8, *pod, *free << 30);
                    Candidate { domain, room_bytes, ..made }
                })
                .collect();
            let by_disk: BTreeMap<Uuid, &Candidate> =
                candidates.iter().map(|it| (it.disk, it)).collect();
            let usable = || candidates.iter().filter(|it| it.free_bytes > 0);
            let domains: BTreeSet<&str> = usable().map(|it| it.domain.as_str()).collect();
            let fits = largest(usable().map(|it| (&it.domain, it.room_bytes / GIB)), replicas);
            match place(wish("v", shards, replicas), &from(&candidates)) {
                Err(PlacementError::TooFewDomains { .. }) => {
                    prop_assert!(domains.len() < replicas as usize);
                }
                Err(PlacementError::NoRoom { largest_bytes, .. }) => {
                    prop_assert_eq!(largest_bytes, fits * GIB);
                    prop_assert!(shards > fits);
                }
                Err(error) => panic!("{error}"),
                Ok(placement) => {
                    prop_assert_eq!(placement.shards.len() as u64, shards);
                    prop_assert!(shards <= fits);
                    let mut taken: BTreeMap<Uuid, u64> = BTreeMap::new();
                    for shard in &placement.shards {
                        let disks = shard.iter().map(|at| placement.disks[usize::from(*at)]);
                        let found: BTreeSet<&str> =
                            disks.clone().map(|disk| by_disk[&disk].domain.as_str()).collect();
                        prop_assert_eq!(found.len(), replicas as usize);
                        disks.for_each(|disk| *taken.entry(disk).or_default() += GIB);
                    }
                    for (disk, bytes) in taken {
                        prop_assert!(bytes <= by_disk[&disk].room_bytes);
                    }
                }
            }
        }

        /// A volume of units that are placed one by one, each copy where most room is left.
        #[test]
        fn the_largest_volume_is_the_largest(
            room in prop::collection::vec(0u64..12, 0..6),
            replicas in prop::sample::select(vec![1u32, 3, 5]),
        ) {
            let size = largest(room.iter().copied().enumerate(), replicas);
            let (mut left, mut placed) = (room, 0);
            loop {
                left.sort_unstable_by(|a, b| b.cmp(a));
                let Some(copies) = left.get_mut(..replicas as usize) else { break };
                if copies.contains(&0) {
                    break;
                }
                copies.iter_mut().for_each(|bytes| *bytes -= 1);
                placed += 1;
            }
            prop_assert_eq!(size, placed);
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
        let placement = place(wish("v", 100, 1), &from(&candidates)).unwrap();
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
        let placement = place(wish("v", 12, 3), &from(&candidates)).unwrap();
        let firsts = first_pods(&placement, &candidates);
        for pod in 1..=3 {
            assert_eq!(firsts.iter().filter(|first| **first == pod).count(), 4, "{firsts:?}");
        }
        // The next volume, of one shard, goes on where the last one ended.
        candidates[2].firsts = 1;
        let next = place(wish("w", 1, 3), &from(&candidates)).unwrap();
        assert_ne!(first_pods(&next, &candidates), [3]);
    }

    #[test]
    fn refusals_say_what_is_missing() {
        let two = [candidate(1, 1, 9), candidate(2, 2, 9), candidate(3, 2, 9), candidate(4, 3, 0)];
        let refused = |wish, from: &Candidates| place(wish, from).unwrap_err().to_string();
        assert_eq!(
            refused(wish("demo", 1, 3), &from(&two)),
            "volume demo needs 3 replicas on different nodes, but only 2 nodes have a usable disk"
        );
        let left_out = " (pods 2, 3 are unreachable)".to_owned();
        let zone = Candidates { failure_domain: "zone".to_owned(), left_out, ..from(&two[..1]) };
        assert_eq!(
            refused(wish("demo", 1, 3), &zone),
            "volume demo needs 3 replicas on nodes that differ in their label zone, but only 1 \
             value of zone has a usable disk (pods 2, 3 are unreachable)"
        );
        let small = [1u64, 2, 4]
            .map(|gib| Candidate { room_bytes: gib * GIB + 5, ..candidate(gib as u8, gib, 9) });
        assert_eq!(
            refused(wish("demo", 2, 3), &from(&small)),
            "volume demo of 2GiB with 3 replicas does not fit: the disks may promise 200% of \
             their 7GiB, of which a volume of 1GiB is left"
        );
        let error = place(wish("demo", 1, 2), &from(&two)).unwrap_err();
        assert_eq!(error, PlacementError::BadReplicas { replicas: 2 });
        assert!(place(wish("demo", 1, 0), &from(&two)).is_err());
    }
}
