//! The messages and services of CSI, generated from `proto/csi/v1/csi.proto`.
//!
//! Requests with secrets are printed by their names alone: no log may have a secret.

#![allow(clippy::all, reason = "generated")]

use std::fmt;

tonic::include_proto!("csi.v1");

macro_rules! unprinted {
    ($($message:ident)*) => {
        $(
            impl fmt::Debug for $message {
                fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    f.write_str(concat!(stringify!($message), " { .. }"))
                }
            }
        )*
    };
}

unprinted! {
    CreateVolumeRequest DeleteVolumeRequest ControllerPublishVolumeRequest
    ControllerUnpublishVolumeRequest ValidateVolumeCapabilitiesRequest
    ControllerListVolumeHealthRequest ControllerGetVolumeHealthRequest
    ControllerModifyVolumeRequest CreateSnapshotRequest DeleteSnapshotRequest ListSnapshotsRequest
    GetSnapshotRequest ControllerExpandVolumeRequest NodeStageVolumeRequest
    NodePublishVolumeRequest NodeGetStorageHealthRequest NodeExpandVolumeRequest
    CreateVolumeGroupSnapshotRequest DeleteVolumeGroupSnapshotRequest
    GetVolumeGroupSnapshotRequest GetMetadataAllocatedRequest GetMetadataDeltaRequest
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every message of the specification with a field for secrets is listed above.
    #[test]
    fn no_request_prints_its_secrets() {
        let definitions = include_str!("../../proto/csi/v1/csi.proto");
        let mut message = "";
        for line in definitions.lines() {
            if let Some(name) = line.strip_prefix("message ") {
                message = name.trim_end_matches(" {");
            }
            if line.contains("map<string, string> secrets") {
                assert!(include_str!("proto.rs").contains(&format!(" {message}")), "{message}");
            }
        }
        let secrets = [("key".to_owned(), "5ec2e7".to_owned())].into();
        let request = CreateVolumeRequest { secrets, ..CreateVolumeRequest::default() };
        assert!(!format!("{request:?}").contains("5ec2e7"));
    }
}
