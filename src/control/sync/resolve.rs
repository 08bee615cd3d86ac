//! Finds the volume behind the name of an export. Pure.

use crate::control::state::CatalogState;
use crate::control::state::rows::Volume;
use crate::types::{Uuid, VolumeId};

/// The volume that may be exported under this name: an open one by its own name, any by the uid of
/// an attachment that is active. "" means the only open one. For anybody else, a closed volume has
/// no name.
pub fn exported(state: &CatalogState, name: &str) -> Option<VolumeId> {
    let is_usable = |volume: &&Volume| !volume.deleting && !volume.is_withheld();
    let is_open = |id: &VolumeId| {
        let volume = state.volumes.get(id).filter(is_usable);
        volume.is_some_and(|volume| volume.access.open)
    };
    if name.is_empty() {
        let mut open = state.volumes.keys().filter(|volume| is_open(volume));
        return open.next().copied().filter(|_| open.next().is_none());
    }
    let attached = name.parse().ok().and_then(|uid: Uuid| {
        let key = state.index.attachments_by_uid.get(&uid)?;
        state.volumes.get(&key.0).filter(is_usable)?;
        state.attachments.get(key)?.active.then_some(key.0)
    });
    let named = || state.volume_by_name(name).map(|(volume, _)| volume).filter(is_open);
    attached.or_else(named)
}

/// The revision from which on a pod that is told of the volume knows the export of this name.
pub fn known_from(state: &CatalogState, volume: VolumeId, name: &str) -> u64 {
    let of_volume = state.volumes.row(&volume).map(|row| row.revision);
    let of_attachment = name.parse().ok().and_then(|uid: Uuid| {
        let key = state.index.attachments_by_uid.get(&uid)?;
        Some(state.attachments.row(key)?.revision)
    });
    of_volume.max(of_attachment).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::command::{CatalogCommand, Deletion};
    use crate::testing::catalog_fixture::{cluster, create_on};
    use crate::types::{AccessMode, Generation};

    #[test]
    fn only_what_may_be_used_has_a_name() {
        let mut state = cluster(3);
        let apply = |state: &mut CatalogState, command| state.apply(1, command).outcome.unwrap();
        let (one, two) = (VolumeId(1), VolumeId(2));
        assert_eq!(exported(&state, ""), None, "there is none");
        apply(&mut state, create_on("one", &[1, 2, 3]));
        assert_eq!((exported(&state, "one"), exported(&state, "")), (Some(one), Some(one)));
        let mut closed = create_on("two", &[1, 2, 3]);
        if let CatalogCommand::CreateVolume { volume, .. } = &mut closed {
            volume.open = false;
        }
        apply(&mut state, closed);
        assert_eq!((exported(&state, "two"), exported(&state, "")), (None, Some(one)));
        let (node, uid, mode) = ("node-1".to_owned(), Uuid([5; 16]), AccessMode::Raw);
        apply(
            &mut state,
            CatalogCommand::Publish {
                request_id: String::new(),
                volume: two,
                node,
                mode,
                io_timeout_ms: None,
                uid,
            },
        );
        let name = uid.to_string();
        assert_eq!(exported(&state, &name), None, "not before all shards know it");
        let generation = Generation(1);
        apply(&mut state, CatalogCommand::AccessIsSet { volume: two, generation, shards: 1 });
        assert_eq!(exported(&state, &name), Some(two));
        assert_eq!(known_from(&state, two, &name), state.revision());
        assert!(known_from(&state, one, "one") < state.revision());
        assert_eq!(exported(&state, "two"), None, "nobody learns of it");
        apply(&mut state, create_on("three", &[1, 2, 3]));
        assert_eq!(exported(&state, ""), None, "there are two");
        // A deleted volume that is kept for a while is nobody's, either.
        for (name, volume, retention_ms) in [("two", two, 0), ("three", VolumeId(3), 1000)] {
            let (request_id, name) = (String::new(), name.to_owned());
            let how = Deletion { force: true, retention_ms, purge: false };
            apply(&mut state, CatalogCommand::DeleteVolume { request_id, name, volume, how });
        }
        assert_eq!((exported(&state, &name), exported(&state, "three")), (None, None));
        assert_eq!(exported(&state, ""), Some(one));
    }
}
