//! What is taken away when Holdfast leaves a Kubernetes cluster, and when that must not be. Pure.
//!
//! Objects that Helm is told to keep stay here, too: they say which cluster there is.

use k8s_openapi::api::core::v1::PersistentVolume;
use serde_json::Value;

use super::{Choice, ManifestsError, documents, render};

/// Why nothing is taken away.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{count} PersistentVolumes are of {driver}, and would be lost to their users: {names}. Delete \
     their claims (and the volumes themselves, if they are to be retained), and try again"
)]
pub struct InUse {
    driver: String,
    count: usize,
    names: String,
}

/// An object that is taken away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Empty for the core of Kubernetes.
    pub group: String,
    pub version: String,
    pub kind: String,
    /// The kind, as paths of the API have it.
    pub plural: String,
    /// Empty for objects of the whole cluster.
    pub namespace: String,
    pub name: String,
}

/// Names of the volumes that a refusal tells.
const NAMES_MAX: usize = 20;

/// Refuses while there are volumes of the driver's.
pub fn check(volumes: &[PersistentVolume], driver: &str) -> Result<(), InUse> {
    let ours: Vec<&PersistentVolume> = volumes.iter().filter(|it| is_of(it, driver)).collect();
    if ours.is_empty() {
        return Ok(());
    }
    let mut names: Vec<String> = ours.iter().take(NAMES_MAX).map(|volume| named(volume)).collect();
    if ours.len() > NAMES_MAX {
        names.push("and others".to_owned());
    }
    Err(InUse { driver: driver.to_owned(), count: ours.len(), names: names.join(", ") })
}

fn is_of(volume: &PersistentVolume, driver: &str) -> bool {
    let csi = volume.spec.as_ref().and_then(|spec| spec.csi.as_ref());
    csi.is_some_and(|csi| csi.driver == driver)
}

/// The name, with that of the claim.
fn named(volume: &PersistentVolume) -> String {
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    let claim = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    let claim =
        claim.and_then(|it| Some(format!("{}/{}", it.namespace.as_ref()?, it.name.as_ref()?)));
    match claim {
        Some(claim) => format!("{name} ({claim})"),
        None => name.to_owned(),
    }
}

/// What is taken away, in two steps: first what makes new volumes, and then all else, with what was
/// applied last first.
pub fn order(choice: &Choice) -> Result<(Vec<Object>, Vec<Object>), ManifestsError> {
    let text = render(choice)?;
    let all = documents(&text).map_err(|source| ManifestsError::Yaml { name: "output", source })?;
    let is_kept = |it: &&Value| it["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep";
    let objects = all.iter().rev().filter(|it| !is_kept(it)).filter_map(object);
    Ok(objects.partition(|object| match object.kind.as_str() {
        "StorageClass" => true,
        "Deployment" => object.name == "holdfast-csi-controller",
        _ => false,
    }))
}

fn object(of: &Value) -> Option<Object> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let version = of["apiVersion"].as_str()?;
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    let kind = of["kind"].as_str()?;
    Some(Object {
        group: group.to_owned(),
        version: version.to_owned(),
        kind: kind.to_owned(),
        plural: plural(kind),
        namespace: text(&of["metadata"]["namespace"]),
        name: text(&of["metadata"]["name"]),
    })
}

/// As the API has it for the kinds of the templates.
fn plural(kind: &str) -> String {
    let kind = kind.to_ascii_lowercase();
    match kind.ends_with("ss") {
        true => format!("{kind}es"),
        false => format!("{kind}s"),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::PersistentVolumeSpec;
    use k8s_openapi::api::core::v1::{CSIPersistentVolumeSource, ObjectReference};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;

    fn volume(name: &str, driver: &str, claim: Option<&str>) -> PersistentVolume {
        let csi = CSIPersistentVolumeSource { driver: driver.to_owned(), ..Default::default() };
        let claim_ref = claim.map(|claim| ObjectReference {
            namespace: Some("shop".to_owned()),
            name: Some(claim.to_owned()),
            ..ObjectReference::default()
        });
        PersistentVolume {
            metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
            spec: Some(PersistentVolumeSpec {
                csi: Some(csi),
                claim_ref,
                ..PersistentVolumeSpec::default()
            }),
            ..PersistentVolume::default()
        }
    }

    #[test]
    fn volumes_of_the_driver_forbid_it() {
        let other = volume("pv-1", "csi.example", Some("a"));
        let (none, not_csi) = (PersistentVolume::default(), &[PersistentVolume::default()]);
        assert_eq!(check(&[other.clone(), none], "csi.holdfast.io"), Ok(()));
        assert_eq!(check(not_csi, "csi.holdfast.io"), Ok(()));
        let ours = [
            other,
            volume("pv-2", "csi.holdfast.io", Some("db-0")),
            volume("pv-3", "csi.holdfast.io", None),
        ];
        let said = check(&ours, "csi.holdfast.io").unwrap_err().to_string();
        assert!(said.starts_with("2 PersistentVolumes"), "{said}");
        assert!(said.contains("pv-2 (shop/db-0), pv-3."), "{said}");
        let many: Vec<_> = (0..50).map(|it| volume(&format!("pv-{it}"), "d", None)).collect();
        let said = check(&many, "d").unwrap_err().to_string();
        assert!(said.contains("pv-19, and others.") && !said.contains("pv-20,"), "{said}");
    }

    #[test]
    fn what_makes_volumes_goes_first_and_accounts_last() {
        let choice = Choice::of_defaults("there").unwrap();
        let (first, then) = order(&choice).unwrap();
        let names = |objects: &[Object]| -> Vec<String> {
            objects.iter().map(|it| format!("{}/{}", it.plural, it.name)).collect()
        };
        let first = names(&first);
        assert_eq!(first.len(), 4, "{first:?}");
        assert!(first.contains(&"deployments/holdfast-csi-controller".to_owned()), "{first:?}");
        assert!(first.contains(&"storageclasses/holdfast-local".to_owned()), "{first:?}");
        let driver = &then[0];
        assert_eq!((&*driver.plural, &*driver.group), ("csidrivers", "storage.k8s.io"));
        assert_eq!(then.last().unwrap().plural, "serviceaccounts");
        assert!(then.iter().all(|it| it.kind != "Namespace" && it.kind != "Secret"));
        let maps = then.iter().filter(|it| it.kind == "ConfigMap").map(|it| it.name.as_str());
        assert_eq!(maps.collect::<Vec<_>>(), ["holdfast-pod"]);
    }
}
