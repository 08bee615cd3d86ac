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
    use super::*;
    use crate::control::state::CatalogState;
    use crate::control::state::view::view;
    use crate::testing::catalog_fixture::{addresses_of, first_pod, join, new_disk, register};

    /// A disk moves to another pod, and an older registration of its first pod arrives last.
    #[test]
    fn a_registration_that_comes_late_is_noticed_by_the_pod_that_has_the_disk() {
        let mut state = first_pod();
        let apply = |state: &mut CatalogState, command| state.apply(1, command).outcome.unwrap();
        apply(&mut state, join(2));
        let old = [new_disk(1), new_disk(2)];
        let new = [new_disk(2), new_disk(3)];
        let has = |state: &CatalogState, pod: u8, disks: &[NewDisk]| {
            is_registered(&view(state), PodId(pod.into()), &addresses_of(pod), disks)
        };
        apply(&mut state, register(1, &old));
        assert!(has(&state, 1, &old) && !has(&state, 2, &new));
        apply(&mut state, register(2, &new));
        assert!(has(&state, 1, &old[..1]) && has(&state, 2, &new));
        apply(&mut state, register(1, &old));
        assert!(!has(&state, 2, &new), "and registers once more");
        apply(&mut state, register(2, &new));
        assert!(has(&state, 1, &old[..1]) && has(&state, 2, &new));
        assert!(!is_registered(&view(&state), PodId(2), &addresses_of(3), &new), "it has moved");
    }
}
