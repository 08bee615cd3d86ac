//! The table of disks, their newest incarnations and their pods (rule `disk-copies-are-refused`). A
//! copy of a disk (a cloned virtual machine, a restored image) has the identity of the original. If
//! both voted as one member, they would break the majority.

use std::collections::HashMap;

use crate::net::handshake::{Identity, Refusal, RefusalCode};
use crate::types::{PodId, Uuid};

/// Far more disks than any cluster has. Bounds the memory that a caller can take.
const DISKS_MAX: usize = 65_536;

/// The newest sighting of every disk. All links of a pod share one table.
#[derive(Debug, Default)]
pub struct Incarnations {
    seen: HashMap<Uuid, Seen>,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    pod: PodId,
    incarnation: u64,
}

impl Incarnations {
    /// Records a disk's pod as given by the catalog; only this moves a disk to another pod. Its
    /// incarnation stays. Call it for the pod's own disks, too, so that a calling copy is refused.
    pub fn place(&mut self, disk: Uuid, pod: PodId) {
        let incarnation = self.seen.get(&disk).map_or(0, |seen| seen.incarnation);
        self.seen.insert(disk, Seen { pod, incarnation });
    }

    /// Records the other end of a connection. Refuses an older incarnation than was seen, and a
    /// disk that lives on another pod.
    pub fn admit(&mut self, peer: &Identity) -> Result<(), Refusal> {
        if self.seen.len() >= DISKS_MAX && !self.seen.contains_key(&peer.disk) {
            return Err(Refusal {
                code: RefusalCode::TooManyDisks,
                text: format!("this pod has met {DISKS_MAX} disks and takes no new ones"),
            });
        }
        let seen = self
            .seen
            .entry(peer.disk)
            .or_insert(Seen { pod: peer.pod, incarnation: peer.incarnation });
        if seen.pod != peer.pod {
            return Err(Refusal {
                code: RefusalCode::DuplicateDisk,
                text: format!(
                    "disk {} belongs to pod {} and was also presented by pod {}: it is a copy; \
                     take the copy out of service, or register the disk on its new pod",
                    peer.disk, seen.pod, peer.pod
                ),
            });
        }
        if peer.incarnation < seen.incarnation {
            return Err(Refusal {
                code: RefusalCode::StaleIncarnation,
                text: format!(
                    "disk {} was opened {} times, and the caller knows of {} only: it is a copy \
                     or a leftover process; stop it, or replace the disk",
                    peer.disk, seen.incarnation, peer.incarnation
                ),
            });
        }
        seen.incarnation = peer.incarnation;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(pod: u64, incarnation: u64) -> Identity {
        Identity {
            cluster: Uuid([1; 16]),
            pod: PodId(pod),
            disk: Uuid([2; 16]),
            lane: 0,
            incarnation,
        }
    }

    #[test]
    fn copies_and_leftovers_are_refused() {
        let mut table = Incarnations::default();
        let code = |result: Result<(), Refusal>| result.map_err(|refusal| refusal.code);
        assert_eq!(code(table.admit(&identity(1, 5))), Ok(()));
        assert_eq!(code(table.admit(&identity(1, 5))), Ok(()), "a second connection");
        assert_eq!(code(table.admit(&identity(1, 6))), Ok(()), "restarted");
        let stale = code(table.admit(&identity(1, 5)));
        assert_eq!(stale, Err(RefusalCode::StaleIncarnation));
        for incarnation in [5, 6, 7] {
            let copy = code(table.admit(&identity(2, incarnation)));
            assert_eq!(copy, Err(RefusalCode::DuplicateDisk));
        }
        // A refused copy with a higher incarnation changes nothing.
        assert_eq!(code(table.admit(&identity(1, 6))), Ok(()));
    }

    #[test]
    fn ever_new_disks_take_no_more_memory() {
        let mut table = Incarnations::default();
        let disk = |number: usize| Identity {
            disk: Uuid((number as u128).to_le_bytes()),
            ..identity(1, 1)
        };
        for number in 0..DISKS_MAX {
            table.admit(&disk(number)).unwrap();
        }
        let refused = table.admit(&disk(DISKS_MAX)).unwrap_err();
        assert_eq!(refused.code, RefusalCode::TooManyDisks);
        assert!(table.admit(&disk(7)).is_ok(), "a known one");
    }

    #[test]
    fn a_disk_moves_when_the_catalog_says_so() {
        let mut table = Incarnations::default();
        table.admit(&identity(1, 5)).unwrap();
        table.place(Uuid([2; 16]), PodId(2));
        assert!(table.admit(&identity(1, 6)).is_err());
        assert!(table.admit(&identity(2, 4)).is_err());
        assert!(table.admit(&identity(2, 6)).is_ok());
    }
}
