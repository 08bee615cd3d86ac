//! Where volumes can be used. A volume with replicas can be used on every node. One of the class
//! `local` is meant for the node that has its data: only such a volume has a topology, and only for
//! such a volume are the orchestrator's wishes binding.

use crate::control::proto::Volume;
use crate::csi::TOPOLOGY_KEY;
use crate::csi::proto::{Topology, TopologyRequirement};

/// The class whose volumes belong to a node.
const LOCAL: &str = "local";

/// True when volumes of the class belong to the node that has their data.
pub fn is_local(class: &str) -> bool {
    class == LOCAL
}

/// Preferred nodes that are tried one by one.
const PREFERRED_MAX: usize = 16;

/// The nodes on which a new volume may be made, those to try first in front; each list is one try.
/// An empty list is any node. No try at all: the requisite places are none of ours.
pub fn tries(class: &str, wanted: Option<&TopologyRequirement>) -> Vec<Vec<String>> {
    let any = || vec![Vec::new()];
    let Some(wanted) = wanted.filter(|_| is_local(class)) else { return any() };
    let requisite: Vec<String> = wanted.requisite.iter().filter_map(node_of).collect();
    if requisite.is_empty() && !wanted.requisite.is_empty() {
        return Vec::new();
    }
    let preferred = wanted.preferred.iter().filter_map(node_of);
    let mut tries: Vec<Vec<String>> = preferred.take(PREFERRED_MAX).map(|it| vec![it]).collect();
    // Without requisite nodes a preference is no more than that.
    if !tries.contains(&requisite) {
        tries.push(requisite);
    }
    tries
}

/// True when a volume that is there could be the result of these tries.
pub fn fits(volume: &Volume, tries: &[Vec<String>]) -> bool {
    let class = volume.spec.as_ref().map(|spec| spec.class.as_str());
    let is_on = |node: &String| {
        volume.status.as_ref().is_some_and(|status| status.replica_nodes.contains(node))
    };
    !class.is_some_and(is_local)
        || tries.iter().any(|nodes| nodes.is_empty() || nodes.iter().any(is_on))
}

/// The node that a topology names; `None`: it is one of another driver.
pub fn node_of(topology: &Topology) -> Option<String> {
    topology.segments.get(TOPOLOGY_KEY).cloned()
}

/// From where a volume can be used; empty: from everywhere.
pub fn of(volume: &Volume) -> Vec<Topology> {
    let class = volume.spec.as_ref().map(|spec| spec.class.as_str());
    if !class.is_some_and(is_local) {
        return Vec::new();
    }
    let nodes = volume.status.iter().flat_map(|status| &status.replica_nodes);
    let segments = nodes.map(|node| [(TOPOLOGY_KEY.to_owned(), node.clone())].into());
    segments.map(|segments| Topology { segments }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::proto::{VolumeSpec, VolumeStatus};

    fn on(nodes: &[&str]) -> Vec<Topology> {
        let segments = nodes.iter().map(|it| [(TOPOLOGY_KEY.to_owned(), (*it).into())].into());
        segments.map(|segments| Topology { segments }).collect()
    }

    fn tried(class: &str, requisite: &[&str], preferred: &[&str]) -> Vec<Vec<String>> {
        let wanted = TopologyRequirement { requisite: on(requisite), preferred: on(preferred) };
        tries(class, Some(&wanted))
    }

    #[test]
    fn a_local_volume_is_made_where_it_is_wanted_and_others_anywhere() {
        let any: Vec<Vec<String>> = vec![Vec::new()];
        assert_eq!(tries("local", None), any);
        assert_eq!(tried("replicated", &["a"], &["a"]), any);
        let all = tried("local", &["a", "b", "c"], &["b", "a"]);
        assert_eq!(all, [vec!["b"], vec!["a"], vec!["a", "b", "c"]]);
        assert_eq!(tried("local", &["a"], &["a"]), [vec!["a"]]);
        assert_eq!(tried("local", &[], &["a"]), [vec!["a".to_owned()], Vec::new()]);
        let others = Topology { segments: [("zone".to_owned(), "z".to_owned())].into() };
        assert_eq!(node_of(&others), None);
        let requisite = TopologyRequirement { requisite: vec![others], preferred: on(&["a"]) };
        assert_eq!(tries("local", Some(&requisite)), Vec::<Vec<String>>::new());
    }

    #[test]
    fn only_local_volumes_have_a_topology() {
        let volume = |class: &str| Volume {
            spec: Some(VolumeSpec { class: class.to_owned(), ..VolumeSpec::default() }),
            status: Some(VolumeStatus {
                replica_nodes: vec!["a".to_owned()],
                ..VolumeStatus::default()
            }),
            ..Volume::default()
        };
        assert_eq!(of(&volume("local")), on(&["a"]));
        assert_eq!(of(&volume("replicated")), []);
        let tries = |nodes: &[&str]| vec![nodes.iter().map(|it| (*it).to_owned()).collect()];
        assert!(fits(&volume("local"), &tries(&["b", "a"])) && fits(&volume("local"), &tries(&[])));
        assert!(!fits(&volume("local"), &tries(&["b"])));
        assert!(fits(&volume("replicated"), &tries(&["b"])));
    }
}
