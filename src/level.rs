//! The feature level of a cluster: one number that says which kinds of entries, commands, rows,
//! fields and requests may be written. Pods of two neighbouring versions work together at the level
//! of the older one, until a person raises it (`holdfast cluster upgrade --finish`).
//!
//! A program refuses what is above the newest level that it supports: disks, peers and catalogs
//! (rule `level-after-all-pods`).

use std::fmt;

use serde::{Deserialize, Serialize};

/// All levels, the oldest first, and the release of each. A cluster is made at the newest.
pub const LEVELS: &[(Level, &str)] = &[(Level(1), "0.1")];
/// The newest level that this program supports.
pub const NEWEST: Level = LEVELS[LEVELS.len() - 1].0;

/// See the module. 0: not known.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Level(pub u32);

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The levels of a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Levels {
    /// Of its cluster, as far as it knows.
    pub cluster: Level,
    /// The newest one that its program supports.
    pub newest: Level,
}

/// A program is too old.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "it is of feature level {needed}, and this program supports levels up to {newest}: start a \
     newer version"
)]
pub struct TooOld {
    pub needed: Level,
    pub newest: Level,
}

impl Levels {
    /// In a cluster that this program made.
    pub const OWN: Levels = Levels { cluster: NEWEST, newest: NEWEST };

    /// Refuses what is of a level that this program does not support.
    pub fn admit(self, needed: Level) -> Result<(), TooOld> {
        let newest = self.newest;
        if needed <= newest { Ok(()) } else { Err(TooOld { needed, newest }) }
    }

    /// Refuses a pod that does not support the level of this one's cluster, and the reverse.
    pub fn meet(self, other: Levels) -> Result<(), TooOld> {
        self.admit(other.cluster)?;
        other.admit(self.cluster)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_grow_by_one() {
        let levels: Vec<u32> = LEVELS.iter().map(|(level, _)| level.0).collect();
        assert_eq!(levels, (1..=LEVELS.len() as u32).collect::<Vec<_>>());
    }

    #[test]
    fn each_side_refuses_what_the_other_does_not_support() {
        let of = |cluster, newest| Levels { cluster: Level(cluster), newest: Level(newest) };
        assert_eq!(of(1, 2).meet(of(1, 1)), Ok(()), "during an upgrade");
        assert_eq!(of(0, 1).meet(of(2, 2)), Err(TooOld { needed: Level(2), newest: Level(1) }));
        assert_eq!(of(2, 2).meet(of(0, 1)), Err(TooOld { needed: Level(2), newest: Level(1) }));
        assert_eq!(of(0, 2).meet(of(2, 2)), Ok(()), "a new pod knows nothing yet");
    }
}
