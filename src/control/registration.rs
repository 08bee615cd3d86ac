//! Whether the catalog knows this pod's addresses and disks as they are.
//!
//! A registration can be carried out late. Meanwhile its disks may have moved to another pod, which
//! has registered them. So one successful registration proves nothing: a pod compares every view
//! with its own addresses and disks (rule `registration-is-watched`).

use std::time::Duration;

use crate::control::command::{Addresses, NewDisk};
use crate::planted::planted;
use crate::types::PodId;
use crate::view::ClusterView;

/// Wait after a registration. After a failed one, until the next try. After a successful one, until
/// views are compared: older views, without the registration, may still arrive.
pub const REGISTER_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// True when the view has this pod at these addresses and all of these disks on this pod.
pub fn is_registered(
    view: &ClusterView,
    pod: PodId,
    addresses: &Addresses,
    disks: &[NewDisk],
) -> bool {
    let has_pod = view.pods.iter().any(|known| {
        let Addresses { api, peer, nbd } = *addresses;
        (known.pod, known.api, known.peer, known.nbd) == (pod, api, peer, nbd)
    });
    let has_disk = |disk: &NewDisk| {
        let mut known = view.disks.iter();
        known.any(|known| (known.disk, known.pod) == (disk.disk, pod))
    };
    planted!(RegistersOnce) || (has_pod && disks.iter().all(has_disk))
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::control::command::CatalogCommand;
    use crate::control::state::CatalogState;
    use crate::types::Uuid;

    fn addresses(port: u16) -> Addresses {
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Addresses { api: at(port), peer: at(port + 1), nbd: None }
    }

    fn disk(number: u8) -> NewDisk {
        NewDisk { disk: Uuid([number; 16]), path: "somewhere".to_owned(), capacity_bytes: 1 << 30 }
    }

    /// A disk moves to another pod, and an older registration of its first pod arrives last.
    #[test]
    fn a_registration_that_comes_late_is_noticed_by_the_pod_that_has_the_disk() {
        let mut state = CatalogState::new(Uuid([1; 16]), Uuid([2; 16]), addresses(100));
        let joins = CatalogCommand::Join { join_id: Uuid([3; 16]), addresses: addresses(200) };
        state.apply(joins).unwrap();
        let old = [disk(1), disk(2)];
        let new = [disk(2), disk(3)];
        let register = |pod, disks: &[NewDisk]| CatalogCommand::Register {
            pod: PodId(pod),
            addresses: addresses(100 * pod as u16),
            disks: disks.to_vec(),
        };
        let has = |state: &CatalogState, pod, disks: &[NewDisk]| {
            is_registered(&state.view(), PodId(pod), &addresses(100 * pod as u16), disks)
        };
        state.apply(register(1, &old)).unwrap();
        assert!(has(&state, 1, &old) && !has(&state, 2, &new));
        state.apply(register(2, &new)).unwrap();
        assert!(has(&state, 1, &old[..1]) && has(&state, 2, &new));
        state.apply(register(1, &old)).unwrap();
        assert!(!has(&state, 2, &new), "and registers once more");
        state.apply(register(2, &new)).unwrap();
        assert!(has(&state, 1, &old[..1]) && has(&state, 2, &new));
        assert!(!is_registered(&state.view(), PodId(2), &addresses(300), &new), "it has moved");
    }
}
