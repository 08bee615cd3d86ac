//! Which links pods want, and where they lead.

use std::sync::Arc;

use super::*;
use crate::level::Levels;
use crate::limits::{Budgets, SocketLimits};
use crate::replica::messages::ReadMode;
use crate::types::{AccessSet, ShardId, VolumeId};
use crate::view::{ShardView, VolumeView};

/// A pod that has the disks that the view says, but for one.
fn peers_of(pod: u64, view: &ClusterView, gone: Option<Uuid>) -> Peers {
    let config = WorkerConfig {
        cluster: view.cluster,
        pod: PodId(pod),
        levels: Levels::OWN,
        process: pod,
        seed: pod,
        log_tail_bytes: 0,
        leaders_follow_clients: false,
        reads: ReadMode::Lease,
        budgets: Budgets::default(),
        sockets: SocketLimits::default(),
    };
    let mut peers = Peers::new(&config, Pool::default());
    let here = view.disks.iter().filter(|disk| disk.pod.0 == pod && Some(disk.disk) != gone);
    for disk in here {
        let DiskView { disk, pod } = *disk;
        peers.add_local(Identity { cluster: view.cluster, pod, disk, lane: 0, incarnation: 1 });
    }
    peers.update_view(view, &[]);
    peers
}

/// Disks are given by the pod they are in; every three of them in a row have a shard.
fn view(pods_of_disks: &[u64]) -> ClusterView {
    let address: SocketAddr = "127.0.0.1:1".parse().expect("an address");
    let disk = |number: usize| Uuid([number as u8 + 1; 16]);
    let member = |shard: usize, replica: usize| {
        let at = (shard + replica) % pods_of_disks.len();
        let member = MemberId((shard * 3 + replica) as u64 + 1);
        MemberView { member, disk: disk(at), pod: PodId(pods_of_disks[at]) }
    };
    let shards = (0..pods_of_disks.len()).map(|shard| ShardView {
        shard: ShardId(shard as u64 + 1),
        members: (0..3).map(|replica| member(shard, replica)).collect(),
        birth: AccessSet::default(),
    });
    let volume = VolumeView {
        volume: VolumeId(1),
        name: "v".to_owned(),
        size_bytes: 0,
        stripe_width: 1,
        stripe_bytes: 0,
        shards: shards.collect(),
        withheld: false,
        deleting: false,
        open: true,
        io_timeout_ms: 0,
        attachments: Vec::new(),
    };
    let pod = |pod| PodView { pod: PodId(pod), peer: address, api: address, nbd: None };
    let disks = pods_of_disks.iter().enumerate();
    ClusterView {
        revision: 1,
        cluster: Uuid([7; 16]),
        level: Levels::OWN.cluster,
        pods: (1..=4).map(pod).collect(),
        disks: disks
            .map(|(number, pod)| DiskView { disk: disk(number), pod: PodId(*pod) })
            .collect(),
        volumes: vec![Arc::new(volume)],
        destroyed: Vec::new(),
    }
}

/// A connection that only one end wants is closed by the other, again and again.
#[test]
fn both_ends_want_the_same_connections_and_every_member_can_be_reached() {
    // One disk each; two each; moved together in every way, also two replicas of a shard.
    let layouts: [&[u64]; 5] =
        [&[1, 2, 3], &[1, 2, 3, 1, 2, 3], &[1, 1, 2, 2, 3, 4], &[1, 1, 1, 2, 3], &[4, 1, 1, 2]];
    for layout in layouts {
        let view = view(layout);
        let ends: Vec<Peers> = (1..=4).map(|pod| peers_of(pod, &view, None)).collect();
        let pod_of = |disk: &Uuid| {
            view.disks.iter().find(|known| known.disk == *disk).expect("it is known").pod
        };
        for peers in &ends {
            for (local, remote, purpose) in peers.wanted.keys() {
                let other = &ends[pod_of(remote).0 as usize - 1];
                let back = (*remote, *local, *purpose);
                assert!(other.wanted.contains_key(&back), "{layout:?}: {local} {remote}");
            }
            if !layout.contains(&peers.own.0) {
                continue;
            }
            for member in view.volumes[0].shards.iter().flat_map(|shard| &shard.members) {
                let route = peers.routes.get(&member.member);
                let there = route.map(|(local, remote)| (*local, *remote, Purpose::Data));
                let wanted = there.is_some_and(|pair| peers.wanted.contains_key(&pair));
                assert!(wanted || member.pod == peers.own, "{layout:?}: {member:?}");
            }
        }
    }
}
/// The first disk of pod 1 was moved, and its new pod cannot say so: the other replica that
/// pod 1 has of the same shard talks to the third.
#[test]
fn no_way_begins_at_a_disk_that_is_not_here_any_more() {
    let view = view(&[1, 1, 2, 3]);
    let peers = peers_of(1, &view, Some(view.disks[0].disk));
    let third = view.volumes[0].shards[0].members[2];
    assert_eq!(peers.routes[&third.member], (view.disks[1].disk, third.disk));
}

#[test]
fn a_pod_without_lanes_reaches_every_disk_by_its_front() {
    let view = view(&[1, 2, 3]);
    let front = front_of(PodId(4));
    let identity =
        Identity { cluster: view.cluster, pod: PodId(4), disk: front, lane: 0, incarnation: 1 };
    // One that has no disk, and one whose disk could not be opened.
    for pods_of_disks in [&[1, 2, 3][..], &[1, 2, 3, 4]] {
        let view = self::view(pods_of_disks);
        let mut peers = peers_of(4, &view, view.disks.get(3).map(|disk| disk.disk));
        assert!(!peers.locals.iter().any(|local| !is_front(local.disk)));
        peers.add_local(identity);
        peers.places = None;
        peers.update_view(&view, &[]);
        let data: FxHashSet<Pair> =
            view.disks[..3].iter().map(|disk| (front, disk.disk, Purpose::Data)).collect();
        let wanted: FxHashSet<Pair> = peers
            .wanted
            .iter()
            .filter(|(_, it)| it.dials)
            .map(|(pair, _)| *pair)
            .filter(|(local, _, _)| *local == front)
            .collect();
        assert_eq!(wanted, data);
        for member in view.volumes[0].shards.iter().flat_map(|shard| &shard.members) {
            let expected = (member.pod != PodId(4)).then_some((front, member.disk));
            assert_eq!(peers.routes.get(&member.member).copied(), expected);
        }
    }
    let mut other = peers_of(1, &view, None);
    let before = other.wanted.len();
    let of = |front, purpose| (view.disks[0].disk, front, purpose);
    other.admit_front(of(front_of(PodId(9)), Purpose::Data));
    other.admit_front(of(front, Purpose::Resync));
    other.admit_front(of(Uuid([9; 16]), Purpose::Data));
    assert_eq!(other.wanted.len(), before, "no pod of the view calls for that");
    other.admit_front(of(front, Purpose::Data));
    assert_eq!(other.wanted[&of(front, Purpose::Data)].pod, PodId(4));
    other.places = None;
    other.update_view(&view, &[]);
    assert!(other.wanted.contains_key(&of(front, Purpose::Data)), "while its pod is in the view");
}
