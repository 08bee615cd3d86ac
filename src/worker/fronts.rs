//! The links of a pod without a lane. It has no disk, or could open none; its clients still need
//! the pods that lead their shards. Links join lanes, so such a pod has a *front*: an identity in
//! the place of a disk's. It has no votes, so a copy does no harm, and all have one incarnation.
//!
//! A front dials every disk of every other pod, for requests only. The other end takes a front of
//! any pod of its view, and forgets the link when it ends: a front that nobody uses costs nothing.

use crate::net::handshake::Purpose;
use crate::types::{PodId, Uuid};
use crate::view::{ClusterView, PodView};

/// Begins the identity of each front. Those of disks are random.
const FRONT: [u8; 8] = *b"\xffFRONT\xff\xff";

/// The incarnation of every front.
pub const FRONT_OPENED: u64 = 1;

/// The identity of a pod's front.
pub fn front_of(pod: PodId) -> Uuid {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&FRONT);
    id[8..].copy_from_slice(&pod.0.to_be_bytes());
    Uuid(id)
}

pub fn is_front(disk: Uuid) -> bool {
    disk.0[..8] == FRONT
}

/// The pairs of a pod whose only identity is this front, ours first.
pub fn pairs_of(front: Uuid, own: PodId, view: &ClusterView) -> Vec<(Uuid, Uuid)> {
    let others = view.disks.iter().filter(|disk| disk.pod != own);
    others.map(|disk| (front, disk.disk)).collect()
}

/// The pod whose front has called, if the view has that pod.
pub fn caller(pods: &[PodView], remote: Uuid, purpose: Purpose) -> Option<&PodView> {
    let pods = pods.iter().filter(|_| purpose == Purpose::Data);
    let mut pods = pods.filter(|pod| front_of(pod.pod) == remote);
    pods.next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pod_has_a_front_of_its_own() {
        let fronts: Vec<Uuid> = (0..300).map(|pod| front_of(PodId(pod))).collect();
        assert!(fronts.iter().all(|front| is_front(*front)));
        assert!((1..300).all(|pod| fronts[pod] != fronts[pod - 1]));
        assert!(!is_front(Uuid([0xff; 16])));
    }
}
