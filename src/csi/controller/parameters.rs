//! Parameters of a StorageClass and of a VolumeAttributesClass: each is known, or refused with the
//! list of those that exist.

use std::collections::BTreeMap;

use crate::csi::KEYS_OF_KUBERNETES;

/// The class of volumes that name none.
const CLASS_DEFAULT: &str = "replicated";
/// Key of the class in Holdfast.
const CLASS: &str = "class";
/// What a key begins with that sets a label: `label.tier`.
const LABEL: &str = "label.";
/// Labels whose keys begin so are the driver's own.
const OWN_LABELS: &str = "csi.holdfast.io/";
/// Label of every volume that the driver has made: a hash of what the orchestrator calls it. A
/// volume without it was made by somebody else, and is never taken for one that is asked for.
pub const MADE_FOR: &str = "csi.holdfast.io/made-for";

/// A parameter that does not exist.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParameterError {
    #[error("there is no parameter {key:?}; there are {CLASS:?} and {LABEL:?} with a name")]
    Unknown { key: String },
    #[error("{key:?} cannot be changed; what can be is {LABEL:?} with a name")]
    NotMutable { key: String },
    #[error("the parameter {key:?} has no value")]
    Empty { key: &'static str },
    #[error("the parameter {key:?} names no label")]
    NoLabel { key: String },
    #[error("the parameter {key:?} names a label of the driver's own")]
    OwnLabel { key: String },
}

/// Labels of a volume.
pub type Labels = BTreeMap<String, String>;

/// What a volume is made with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameters {
    pub class: String,
    pub labels: Labels,
}

impl Parameters {
    /// Reads those of a class, and of an attributes class, whose labels count more.
    pub fn of(
        parameters: &BTreeMap<String, String>,
        mutable: &BTreeMap<String, String>,
    ) -> Result<Parameters, ParameterError> {
        let mut read = Parameters { class: CLASS_DEFAULT.to_owned(), labels: BTreeMap::new() };
        for (key, value) in of_ours(parameters) {
            match label(key)? {
                Some(label) => drop(read.labels.insert(label, value.clone())),
                None if key == CLASS && value.is_empty() => {
                    return Err(ParameterError::Empty { key: CLASS });
                }
                None if key == CLASS => read.class.clone_from(value),
                None => return Err(ParameterError::Unknown { key: key.clone() }),
            }
        }
        read.labels.extend(mutable_labels(mutable)?);
        Ok(read)
    }
}

/// The labels that an attributes class sets. Nothing else of a volume can be changed so.
pub fn mutable_labels(mutable: &BTreeMap<String, String>) -> Result<Labels, ParameterError> {
    let labels = of_ours(mutable).map(|(key, value)| match label(key)? {
        Some(label) => Ok((label, value.clone())),
        None => Err(ParameterError::NotMutable { key: key.clone() }),
    });
    labels.collect()
}

/// Without the keys that Kubernetes adds.
fn of_ours(parameters: &BTreeMap<String, String>) -> impl Iterator<Item = (&String, &String)> {
    parameters.iter().filter(|(key, _)| !key.starts_with(KEYS_OF_KUBERNETES))
}

/// The label that a key names; `None`: it is no key of a label.
fn label(key: &str) -> Result<Option<String>, ParameterError> {
    match key.strip_prefix(LABEL) {
        Some("") => Err(ParameterError::NoLabel { key: key.to_owned() }),
        Some(label) if label.starts_with(OWN_LABELS) => {
            Err(ParameterError::OwnLabel { key: key.to_owned() })
        }
        label => Ok(label.map(str::to_owned)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn read(pairs: &[(&str, &str)]) -> Result<Parameters, ParameterError> {
        Parameters::of(&map(pairs), &BTreeMap::new())
    }

    #[test]
    fn known_parameters_are_read_and_others_refused_with_the_list() {
        let of = read(&[
            ("class", "local"),
            ("label.tier", "gold"),
            ("csi.storage.k8s.io/fstype", "xfs"),
            ("csi.storage.k8s.io/pvc/name", "data"),
        ]);
        let labels = map(&[("tier", "gold")]);
        assert_eq!(of, Ok(Parameters { class: "local".to_owned(), labels }));
        assert_eq!(read(&[]).unwrap().class, "replicated");
        let error = read(&[("replicas", "3")]).unwrap_err().to_string();
        assert!(error.contains("replicas") && error.contains("class"), "{error}");
        assert!(error.contains("label."), "{error}");
        assert_eq!(read(&[("class", "")]), Err(ParameterError::Empty { key: "class" }));
        assert!(matches!(read(&[("label.", "x")]), Err(ParameterError::NoLabel { .. })));
        let own = read(&[("label.csi.holdfast.io/made-for", "x")]);
        assert!(matches!(own, Err(ParameterError::OwnLabel { .. })));
    }

    #[test]
    fn attributes_change_labels_alone_and_count_more() {
        let of = Parameters::of(&map(&[("label.a", "1")]), &map(&[("label.a", "2")])).unwrap();
        assert_eq!(of.labels, map(&[("a", "2")]));
        let class = mutable_labels(&map(&[("class", "local")]));
        assert!(matches!(class, Err(ParameterError::NotMutable { .. })));
        assert_eq!(mutable_labels(&map(&[("csi.storage.k8s.io/x", "y")])), Ok(Labels::new()));
    }
}
