//! What a workload wants to do with a volume, and the mode of an attachment that gives it.

use crate::control::proto::AccessMode;
use crate::csi::proto::VolumeCapability;
use crate::csi::proto::volume_capability::AccessType;
use crate::csi::proto::volume_capability::access_mode::Mode;

/// File systems that nodes make and mount; empty is the first.
const FILE_SYSTEMS: [&str; 2] = ["ext4", "xfs"];

/// Why a volume cannot be used so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CapabilityError {
    #[error("no capability is asked for")]
    None,
    #[error("a capability says neither that it is a block device nor that it is mounted")]
    NoAccessType,
    #[error("a capability has no access mode that this driver knows")]
    NoAccessMode,
    #[error("the access mode {mode} is not possible{remedy}")]
    Mode { mode: &'static str, remedy: &'static str },
    #[error("there is no file system {fs_type:?}; there are {}", FILE_SYSTEMS.join(", "))]
    FileSystem { fs_type: String },
    #[error("a volume cannot be mounted for a group; fsGroup works without that")]
    MountGroup,
}

/// A capability that volumes have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Use {
    /// Mode of the attachment.
    pub mode: AccessMode,
    /// A raw block device, as opposed to a mounted file system.
    pub is_block: bool,
}

impl Use {
    /// Reads a capability.
    pub fn of(capability: &VolumeCapability) -> Result<Use, CapabilityError> {
        let is_block = match &capability.access_type {
            None => return Err(CapabilityError::NoAccessType),
            Some(AccessType::Block(_)) => true,
            Some(AccessType::Mount(mount)) => {
                let fs_type = &mount.fs_type;
                if !fs_type.is_empty() && !FILE_SYSTEMS.contains(&fs_type.as_str()) {
                    return Err(CapabilityError::FileSystem { fs_type: fs_type.clone() });
                }
                if !mount.volume_mount_group.is_empty() {
                    return Err(CapabilityError::MountGroup);
                }
                false
            }
        };
        let mode = capability.access_mode.as_ref().ok_or(CapabilityError::NoAccessMode)?;
        Ok(Use { mode: attachment_mode(mode.mode(), is_block)?, is_block })
    }

    /// Reads all capabilities that a volume is to have; there must be some.
    pub fn of_all(capabilities: &[VolumeCapability]) -> Result<Vec<Use>, CapabilityError> {
        match capabilities {
            [] => Err(CapabilityError::None),
            all => all.iter().map(Use::of).collect(),
        }
    }

    /// For a request that says itself that nothing is written.
    pub fn read_only(self, readonly: bool) -> Use {
        let mode = if readonly { AccessMode::ReadOnly } else { self.mode };
        Use { mode, ..self }
    }
}

/// True when one node at a time may have a volume with this capability, also if it only reads.
pub fn is_for_one_node(capability: &VolumeCapability) -> bool {
    let mode = capability.access_mode.as_ref().map(|mode| mode.mode());
    matches!(
        mode,
        Some(
            Mode::SingleNodeWriter
                | Mode::SingleNodeReaderOnly
                | Mode::SingleNodeSingleWriter
                | Mode::SingleNodeMultiWriter
        )
    )
}

/// True when volumes may have a capability of which not everything is known yet: the orchestrator
/// asks for capacity before it knows the access mode.
pub fn is_possible(capability: &VolumeCapability) -> bool {
    match Use::of(capability) {
        Ok(_) | Err(CapabilityError::NoAccessType | CapabilityError::NoAccessMode) => true,
        Err(_) => false,
    }
}

fn attachment_mode(mode: Mode, is_block: bool) -> Result<AccessMode, CapabilityError> {
    let refused = |remedy| Err(CapabilityError::Mode { mode: mode.as_str_name(), remedy });
    match mode {
        Mode::Unknown => Err(CapabilityError::NoAccessMode),
        // A device that somebody could write to cannot be shown as one that is only read.
        Mode::SingleNodeReaderOnly if is_block => Ok(AccessMode::ReadOnly),
        // A single node has it to itself, also if it only reads.
        Mode::SingleNodeWriter
        | Mode::SingleNodeReaderOnly
        | Mode::SingleNodeSingleWriter
        | Mode::SingleNodeMultiWriter => Ok(AccessMode::ReadWrite),
        Mode::MultiNodeReaderOnly => Ok(AccessMode::ReadOnly),
        Mode::MultiNodeMultiWriter if is_block => Ok(AccessMode::Raw),
        Mode::MultiNodeMultiWriter => {
            refused(": two nodes that write to one file system destroy it; use a block device")
        }
        Mode::MultiNodeSingleWriter => refused(": no mode has one writer among readers"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::csi::proto::volume_capability::{AccessMode as Access, BlockVolume, MountVolume};

    fn capability(mode: Mode, access_type: AccessType) -> VolumeCapability {
        let access_mode = Some(Access { mode: mode.into() });
        VolumeCapability { access_mode, access_type: Some(access_type) }
    }

    #[test]
    fn access_modes_become_modes_of_attachments() {
        use AccessMode::{Raw, ReadOnly, ReadWrite};
        for (mode, mounted, block) in [
            (Mode::Unknown, None, None),
            (Mode::SingleNodeWriter, Some(ReadWrite), Some(ReadWrite)),
            (Mode::SingleNodeReaderOnly, Some(ReadWrite), Some(ReadOnly)),
            (Mode::SingleNodeSingleWriter, Some(ReadWrite), Some(ReadWrite)),
            (Mode::SingleNodeMultiWriter, Some(ReadWrite), Some(ReadWrite)),
            (Mode::MultiNodeReaderOnly, Some(ReadOnly), Some(ReadOnly)),
            (Mode::MultiNodeSingleWriter, None, None),
            (Mode::MultiNodeMultiWriter, None, Some(Raw)),
        ] {
            let of = |access_type| Use::of(&capability(mode, access_type)).ok().map(|it| it.mode);
            assert_eq!(of(AccessType::Mount(MountVolume::default())), mounted, "{mode:?}");
            assert_eq!(of(AccessType::Block(BlockVolume {})), block, "{mode:?}");
        }
    }

    #[test]
    fn what_a_node_cannot_do_is_refused() {
        let mount = |fs_type: &str, group: &str| {
            let (fs_type, volume_mount_group) = (fs_type.to_owned(), group.to_owned());
            let mount = MountVolume { fs_type, volume_mount_group, ..MountVolume::default() };
            Use::of(&capability(Mode::SingleNodeWriter, AccessType::Mount(mount)))
        };
        assert!(mount("xfs", "").is_ok() && mount("ext4", "").is_ok());
        let fs_type = "btrfs".to_owned();
        assert_eq!(mount("btrfs", ""), Err(CapabilityError::FileSystem { fs_type }));
        assert_eq!(mount("", "1000"), Err(CapabilityError::MountGroup));
        assert_eq!(Use::of_all(&[]), Err(CapabilityError::None));
        let nothing = VolumeCapability::default();
        assert_eq!(Use::of(&nothing), Err(CapabilityError::NoAccessType));
        assert!(is_possible(&nothing));
    }
}
