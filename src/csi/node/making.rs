//! Is a file system made on a volume, or used as it is? Pure.
//!
//! Invariant: `a-volume-is-formatted-once`: one is made only where nothing was ever written, or
//! where only our own unfinished making has written.

use crate::types::FileSystemKind;

/// What the catalog knows of a volume's file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    None,
    /// Its making has begun, and nobody has used it.
    Begun(FileSystemKind),
    Made(FileSystemKind),
}

/// What lies on a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    Nothing,
    FileSystem(FileSystemKind),
    /// Another file system, a table of partitions, or the like.
    Other(String),
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Make a file system over the rest of an earlier try.
    MakeOverOurs(FileSystemKind),
    /// Ask whether anything is allocated, and make it only if not.
    MakeIfBlank(FileSystemKind),
    /// Use what is there. `is_news`: the catalog does not know of it.
    Use { kind: FileSystemKind, is_news: bool },
}

/// Why neither is done. A person has to look.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MakingError {
    #[error("the volume has the file system {has}, not {wanted}")]
    OtherKind { has: FileSystemKind, wanted: FileSystemKind },
    #[error(
        "the volume had the file system {0}, and the device does not show it; it is not made anew"
    )]
    Gone(FileSystemKind),
    #[error("the volume holds something else, and is not overwritten: {0}")]
    Occupied(String),
    #[error("the volume has no file system, and none is made on one that is only read")]
    ReadOnly,
}

/// Decides. `wanted`: `None` takes what is there, or ext4.
pub fn plan(
    record: Record,
    found: &Found,
    wanted: Option<FileSystemKind>,
    read_only: bool,
) -> Result<Plan, MakingError> {
    let fits = |has: FileSystemKind| match wanted {
        Some(wanted) if wanted != has => Err(MakingError::OtherKind { has, wanted }),
        _ => Ok(has),
    };
    let new = wanted.unwrap_or(FileSystemKind::Ext4);
    let plan = match (record, found) {
        (Record::Made(kind), Found::FileSystem(found)) if *found == kind => {
            Plan::Use { kind: fits(kind)?, is_news: false }
        }
        (Record::Made(kind), _) => return Err(MakingError::Gone(kind)),
        (Record::Begun(_), _) => Plan::MakeOverOurs(new),
        (Record::None, Found::FileSystem(kind)) => {
            Plan::Use { kind: fits(*kind)?, is_news: !read_only }
        }
        (Record::None, Found::Other(what)) => return Err(MakingError::Occupied(what.clone())),
        (Record::None, Found::Nothing) => Plan::MakeIfBlank(new),
    };
    match plan {
        Plan::MakeOverOurs(_) | Plan::MakeIfBlank(_) if read_only => Err(MakingError::ReadOnly),
        plan => Ok(plan),
    }
}

/// What blkid(8) prints with `-p -o export` for a device on which it found something.
pub fn read_probe(printed: &str) -> Found {
    let value = |key: &str| {
        let mut lines = printed.lines().filter_map(|line| line.split_once('='));
        lines.find(|(found, _)| *found == key).map(|(_, value)| value)
    };
    match (value("TYPE"), value("PTTYPE")) {
        (Some(name), _) => match FileSystemKind::named(name) {
            Some(kind) => Found::FileSystem(kind),
            None => Found::Other(name.to_owned()),
        },
        (None, Some(table)) => Found::Other(format!("partitions ({table})")),
        // Blkid tells sizes of devices, too.
        (None, None) => Found::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::FileSystemKind::{Ext4, Xfs};
    use super::*;

    #[test]
    fn a_file_system_is_made_only_where_nothing_can_be_lost() {
        let other = || Found::Other("LVM2_member".to_owned());
        for (record, found, wanted, planned) in [
            (Record::None, Found::Nothing, None, Ok(Plan::MakeIfBlank(Ext4))),
            (Record::None, Found::Nothing, Some(Xfs), Ok(Plan::MakeIfBlank(Xfs))),
            (
                Record::None,
                Found::FileSystem(Xfs),
                None,
                Ok(Plan::Use { kind: Xfs, is_news: true }),
            ),
            (
                Record::None,
                Found::FileSystem(Ext4),
                Some(Xfs),
                Err(MakingError::OtherKind { has: Ext4, wanted: Xfs }),
            ),
            (Record::None, other(), None, Err(MakingError::Occupied("LVM2_member".to_owned()))),
            (Record::Begun(Ext4), Found::FileSystem(Ext4), Some(Xfs), Ok(Plan::MakeOverOurs(Xfs))),
            (
                Record::Made(Xfs),
                Found::FileSystem(Xfs),
                None,
                Ok(Plan::Use { kind: Xfs, is_news: false }),
            ),
            (
                Record::Made(Xfs),
                Found::FileSystem(Xfs),
                Some(Ext4),
                Err(MakingError::OtherKind { has: Xfs, wanted: Ext4 }),
            ),
            (Record::Made(Ext4), Found::Nothing, None, Err(MakingError::Gone(Ext4))),
            (Record::Made(Ext4), Found::FileSystem(Xfs), None, Err(MakingError::Gone(Ext4))),
            (Record::Made(Ext4), other(), Some(Ext4), Err(MakingError::Gone(Ext4))),
        ] {
            assert_eq!(plan(record, &found, wanted, false), planned, "{record:?} {found:?}");
        }
    }

    #[test]
    fn nothing_is_made_on_a_volume_that_is_only_read() {
        for record in [Record::None, Record::Begun(Ext4)] {
            assert_eq!(plan(record, &Found::Nothing, None, true), Err(MakingError::ReadOnly));
        }
        let used = plan(Record::None, &Found::FileSystem(Xfs), None, true);
        assert_eq!(used, Ok(Plan::Use { kind: Xfs, is_news: false }));
    }

    #[test]
    fn the_words_of_blkid_are_read() {
        let found = |text: &str| read_probe(text);
        let ext4 = "DEVNAME=/dev/loop0\nUUID=1-2\nBLOCK_SIZE=4096\nTYPE=ext4\nUSAGE=filesystem\n";
        assert_eq!(found(ext4), Found::FileSystem(Ext4));
        assert_eq!(found("TYPE=btrfs\n"), Found::Other("btrfs".to_owned()));
        let table = Found::Other("partitions (gpt)".to_owned());
        assert_eq!(found("DEVNAME=/dev/loop0\nPTTYPE=gpt\n"), table);
        assert_eq!(found("DEVNAME=/dev/loop0\n"), Found::Nothing);
    }
}
