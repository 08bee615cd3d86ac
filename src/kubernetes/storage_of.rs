//! Whose storage a Pod uses: ours, the node's own, or that of others. Pure.
//!
//! Ours is fenced when a node is lost, and what lies on the node itself is beyond reach with it.
//! The storage of others may still be written to by a Pod that nobody hears. What is not known
//! counts as storage of others.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{PersistentVolumeSpec, Pod, Volume};
use serde_json::Value;

use crate::kubernetes::failover::{Handle, ObjectRef, UsingPod};

/// A claim of a volume: namespace and name.
pub type Claim = (String, String);

/// Sources of a Pod's volumes that lie on its node, or are only read.
const OF_NODE: &[&str] = &[
    "configMap",
    "downwardAPI",
    "emptyDir",
    "gitRepo",
    "hostPath",
    "image",
    "projected",
    "secret",
];

/// Whose a PersistentVolume is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    Holdfast(Handle),
    Node,
    Other,
}

/// Whose a PersistentVolume is. `driver`: name of ours.
pub fn owner_of(spec: &PersistentVolumeSpec, driver: &str) -> Owner {
    match &spec.csi {
        Some(csi) if csi.driver == driver => Owner::Holdfast(csi.volume_handle.clone()),
        None if spec.host_path.is_some() || spec.local.is_some() => Owner::Node,
        _ => Owner::Other,
    }
}

/// What a Pod uses. `owners`: of all claims that are bound.
pub fn used_by(own: ObjectRef, pod: &Pod, owners: &BTreeMap<Claim, Owner>) -> UsingPod {
    let mut used = UsingPod { object: own, ..UsingPod::default() };
    for volume in volumes_of(pod) {
        let (owner, is_read_only) = match claim_of(&used.object, volume) {
            Some(claim) => {
                let of_claim = volume.persistent_volume_claim.as_ref();
                let is_read_only = of_claim.is_some_and(|it| it.read_only == Some(true));
                (owners.get(&claim).cloned().unwrap_or(Owner::Other), is_read_only)
            }
            None => owner_of_source(volume),
        };
        match owner {
            Owner::Holdfast(handle) => drop(used.volumes.insert(handle)),
            Owner::Other if !is_read_only => used.others.push(volume.name.clone()),
            Owner::Other | Owner::Node => {}
        }
    }
    used
}

/// Whose a volume without a claim is, and whether it is only read.
fn owner_of_source(volume: &Volume) -> (Owner, bool) {
    let fields = serde_json::to_value(volume).unwrap_or_default();
    let fields = fields.as_object().cloned().unwrap_or_default();
    match fields.iter().find(|(key, _)| *key != "name") {
        Some((key, _)) if OF_NODE.contains(&key.as_str()) => (Owner::Node, false),
        Some((_, source)) => (Owner::Other, source["readOnly"] == Value::Bool(true)),
        // Of a newer Kubernetes than this program knows.
        None => (Owner::Other, false),
    }
}

/// The claims that a Pod uses, also those that were made for it.
pub fn claims_of(own: &ObjectRef, pod: &Pod) -> Vec<Claim> {
    volumes_of(pod).iter().filter_map(|volume| claim_of(own, volume)).collect()
}

fn volumes_of(pod: &Pod) -> &[Volume] {
    pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default()
}

fn claim_of(own: &ObjectRef, volume: &Volume) -> Option<Claim> {
    let name = match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(claim), _) => claim.claim_name.clone(),
        (None, Some(_)) => format!("{}-{}", own.name, volume.name),
        (None, None) => return None,
    };
    Some((own.namespace.clone(), name))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const DRIVER: &str = "csi.holdfast.io";

    fn owner(spec: Value) -> Owner {
        owner_of(&serde_json::from_value(spec).unwrap(), DRIVER)
    }

    #[test]
    fn volumes_have_an_owner() {
        let csi = |driver: &str| json!({ "csi": { "driver": driver, "volumeHandle": "h" } });
        assert_eq!(owner(csi(DRIVER)), Owner::Holdfast("h".to_owned()));
        assert_eq!(owner(csi("other.io")), Owner::Other);
        assert_eq!(owner(json!({ "nfs": { "server": "s", "path": "/" } })), Owner::Other);
        assert_eq!(owner(json!({ "hostPath": { "path": "/" } })), Owner::Node);
        assert_eq!(owner(json!({ "local": { "path": "/" } })), Owner::Node);
        assert_eq!(owner(json!({ "newKind": {} })), Owner::Other);
    }

    #[test]
    fn pods_that_may_write_to_storage_of_others_are_told_apart() {
        let claim = |name: &str| ("ns".to_owned(), name.to_owned());
        let owners = BTreeMap::from([
            (claim("ours"), Owner::Holdfast("h".to_owned())),
            (claim("p-scratch"), Owner::Holdfast("e".to_owned())),
            (claim("local"), Owner::Node),
            (claim("theirs"), Owner::Other),
        ]);
        let used = |volume: Value| {
            let mut volume = volume;
            volume["name"] = json!("scratch");
            let pod = json!({ "spec": { "containers": [], "volumes": [
                { "name": "data", "persistentVolumeClaim": { "claimName": "ours" } }, volume,
            ] } });
            let own = ObjectRef { namespace: "ns".to_owned(), name: "p".into(), uid: "u".into() };
            used_by(own, &serde_json::from_value(pod).unwrap(), &owners)
        };
        let of_claim = |name: &str, read_only: bool| {
            let claim = json!({ "claimName": name, "readOnly": read_only });
            json!({ "persistentVolumeClaim": claim })
        };
        for harmless in [
            json!({ "emptyDir": {} }),
            json!({ "configMap": { "name": "c" } }),
            json!({ "hostPath": { "path": "/x" } }),
            json!({ "projected": { "sources": [] } }),
            json!({ "csi": { "driver": "secrets.io", "readOnly": true } }),
            json!({ "nfs": { "server": "s", "path": "/", "readOnly": true } }),
            of_claim("local", false),
            of_claim("theirs", true),
        ] {
            let used = used(harmless.clone());
            assert!(used.others.is_empty() && used.volumes.len() == 1, "{harmless}: {used:?}");
        }
        for others in [
            json!({ "csi": { "driver": "other.io" } }),
            json!({ "nfs": { "server": "s", "path": "/" } }),
            json!({ "iscsi": { "targetPortal": "t", "iqn": "i", "lun": 0 } }),
            json!({ "newKind": {} }),
            of_claim("theirs", false),
            of_claim("unbound", false),
        ] {
            assert_eq!(used(others.clone()).others, ["scratch"], "{others}");
        }
        let used = used(json!({ "ephemeral": {} }));
        assert_eq!((used.volumes.len(), used.others.len()), (2, 0), "{used:?}");
    }
}
