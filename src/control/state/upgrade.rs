//! The command that raises the feature level of the cluster ([`crate::level`]).

use crate::control::command::Outcome;
use crate::control::state::error::CatalogError;
use crate::control::state::rows::Cluster;
use crate::control::state::tables::Tables;
use crate::level::{Level, TooOld};
use crate::planted::planted;
use crate::types::PodId;

/// Raises the level, once every pod that is not on a lost node supports it (rule
/// `level-after-all-pods`).
pub(super) fn raise(tables: &mut Tables, level: Level) -> Result<Outcome, CatalogError> {
    if level <= tables.cluster.level {
        return Ok(Outcome::Done);
    }
    let newest = tables.pods.values().map(|pod| pod.newest_level).max().unwrap_or_default();
    if level > newest {
        return Err(CatalogError::NoSuchLevel { level, newest });
    }
    let too_old = holding_back(tables, level).next();
    if let Some((pod, newest)) = too_old.filter(|_| !planted!(LevelRaisedEarly)) {
        return Err(CatalogError::PodTooOld { pod, source: TooOld { needed: level, newest } });
    }
    let cluster = Cluster { level, ..tables.cluster.clone() };
    tables.put_cluster(cluster);
    Ok(Outcome::Done)
}

/// The pods whose programs do not support a level, and what they support. Those on lost nodes do
/// not count: they are refused until they are upgraded.
pub fn holding_back(tables: &Tables, level: Level) -> impl Iterator<Item = (PodId, Level)> {
    let lost = |node: &str| tables.nodes.get(node).is_some_and(|node| node.is_lost());
    let pods = tables.pods.iter().filter(move |(_, pod)| !lost(&pod.node));
    pods.filter(move |(_, pod)| pod.newest_level < level).map(|(id, pod)| (*id, pod.newest_level))
}

/// Refuses a pod whose program is older than the cluster.
pub(super) fn check_newest(tables: &Tables, newest: Level) -> Result<(), CatalogError> {
    let needed = tables.cluster.level;
    match newest < needed && !planted!(LevelRaisedEarly) {
        true => Err(CatalogError::TooOld(TooOld { needed, newest })),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::command::CatalogCommand;
    use crate::control::state::CatalogState;
    use crate::level::NEWEST;
    use crate::planted::{Mistake, assert_found};
    use crate::testing::catalog_fixture::{cluster, join, register};

    const NEXT: Level = Level(NEWEST.0 + 1);

    fn apply(state: &mut CatalogState, command: CatalogCommand) -> Result<Outcome, CatalogError> {
        let outcome = state.apply(5, command).outcome;
        state.check_invariants();
        outcome
    }

    /// Pod `number` has started with another program.
    fn starts(state: &mut CatalogState, number: u8, level: Level) -> Result<Outcome, CatalogError> {
        let mut register = register(number, &[]);
        if let CatalogCommand::Register { newest, .. } = &mut register {
            *newest = level;
        }
        apply(state, register)
    }

    fn raise_next(state: &mut CatalogState) -> Result<Outcome, CatalogError> {
        apply(state, CatalogCommand::RaiseLevel { level: NEXT })
    }

    #[test]
    fn the_level_is_raised_when_every_pod_supports_it() {
        let mut state = cluster(3);
        let old = |pod| CatalogError::PodTooOld {
            pod: PodId(pod),
            source: TooOld { needed: NEXT, newest: NEWEST },
        };
        let unknown = CatalogError::NoSuchLevel { level: NEXT, newest: NEWEST };
        assert_eq!(raise_next(&mut state), Err(unknown));
        starts(&mut state, 1, NEXT).unwrap();
        assert_eq!(raise_next(&mut state), Err(old(2)));
        starts(&mut state, 2, NEXT).unwrap();
        assert_eq!(raise_next(&mut state), Err(old(3)));
        starts(&mut state, 3, NEXT).unwrap();
        raise_next(&mut state).unwrap();
        let revision = state.revision();
        raise_next(&mut state).expect("it is there");
        assert_eq!((state.cluster.level, state.revision()), (NEXT, revision));
        // Nobody goes back, and nobody old comes in.
        let refused = CatalogError::TooOld(TooOld { needed: NEXT, newest: NEWEST });
        assert_eq!(starts(&mut state, 3, NEWEST), Err(refused.clone()));
        assert_eq!(apply(&mut state, join(4)), Err(refused));
    }

    #[test]
    fn a_lost_node_does_not_hold_it_back_and_is_refused_later() {
        let mut state = cluster(3);
        starts(&mut state, 1, NEXT).unwrap();
        starts(&mut state, 2, NEXT).unwrap();
        let lost = CatalogCommand::DeclareLost { node: "node-3".into(), boot_id: "boot".into() };
        apply(&mut state, lost).unwrap();
        raise_next(&mut state).unwrap();
        assert!(matches!(starts(&mut state, 3, NEWEST), Err(CatalogError::TooOld(_))));
        starts(&mut state, 3, NEXT).unwrap();
    }

    #[test]
    fn a_level_that_no_program_supports_is_refused_with_all_nodes_lost() {
        let mut state = cluster(1);
        let lost = CatalogCommand::DeclareLost { node: "node-1".into(), boot_id: "boot".into() };
        apply(&mut state, lost).unwrap();
        assert!(matches!(raise_next(&mut state), Err(CatalogError::NoSuchLevel { .. })));
    }

    /// The mistake: the level is raised with a pod that does not support it.
    #[test]
    fn a_level_that_is_raised_early_is_found() {
        assert_found(Mistake::LevelRaisedEarly, || {
            let mut state = cluster(2);
            starts(&mut state, 1, NEXT).unwrap();
            let _refused = raise_next(&mut state);
            for (id, pod) in state.pods.iter() {
                assert!(pod.newest_level >= state.cluster.level, "{id} cannot follow");
            }
        });
    }
}
