//! What a recovery did to volumes, for people.

use std::fmt;

use crate::types::VolumeId;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// It was removed after the oldest source was made.
    Removed { name: String, volume: VolumeId },
    /// Another volume has its name.
    Renamed { name: String, volume: VolumeId, now: String },
    /// No member of the catalog, and no backup, had it.
    OnlyPodsKnew { name: String, volume: VolumeId },
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Note::Removed { name, volume } => {
                write!(f, "volume {name} ({volume}) was removed before, and stays removed")
            }
            Note::Renamed { name, volume, now } => {
                write!(f, "volume {name} ({volume}) is now {now}: a newer volume has its name")
            }
            Note::OnlyPodsKnew { name, volume } => {
                write!(f, "volume {name} ({volume}) is there again, as its pods know it")
            }
        }
    }
}
