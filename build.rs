//! Compiles the gRPC services. protox reads the definitions, so no protoc is needed.

use std::error::Error;
use std::path::PathBuf;

use prost::Message as _;

/// The API of the cluster.
const API: &[&str] = &[
    "proto/holdfast/v1/attachments.proto",
    "proto/holdfast/v1/catalog_admin.proto",
    "proto/holdfast/v1/classes.proto",
    "proto/holdfast/v1/cluster.proto",
    "proto/holdfast/v1/credentials.proto",
    "proto/holdfast/v1/disks.proto",
    "proto/holdfast/v1/events.proto",
    "proto/holdfast/v1/meta.proto",
    "proto/holdfast/v1/nodes.proto",
    "proto/holdfast/v1/pods.proto",
    "proto/holdfast/v1/shards.proto",
    "proto/holdfast/v1/volumes.proto",
];

/// What pods say among themselves.
const INTERNAL: &[&str] = &[
    "proto/holdfast/internal/v1/catalog.proto",
    "proto/holdfast/internal/v1/joining.proto",
    "proto/holdfast/internal/v1/rounds.proto",
];

/// Fields that are printed as the name of their value, not as its number.
const NAMED: &[(&str, &str)] = &[
    ("Condition.status", "condition_status"),
    ("PhaseCount.phase", "phase"),
    ("Problem.phase", "phase"),
    ("Event.severity", "event_severity"),
    ("AttachmentSpec.mode", "access_mode"),
    ("AttachmentStatus.phase", "phase"),
    ("NodeStatus.phase", "phase"),
    ("PodStatus.phase", "phase"),
    ("DiskStatus.phase", "phase"),
    ("ClassStatus.phase", "phase"),
    ("VolumeStatus.phase", "phase"),
    ("ShardStatus.phase", "phase"),
];

/// Services, requests and lists, which nobody prints.
const UNPRINTED: &[&str] = &["Request", "Response", "Query", "Piece"];

/// Answers that are printed as they are.
const PRINTED: &[&str] =
    &["StatusResponse", "CapacityResponse", "GetLevelResponse", "GetAuthoritiesResponse"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let api = protox::compile(API, ["proto"])?;
    // For the reflection service.
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("holdfast.v1.bin"), api.encode_to_vec())?;
    let mut builder = tonic_prost_build::configure().bytes(".");
    for message in api.file.iter().flat_map(|file| &file.message_type) {
        let name = message.name();
        let is_printed = !UNPRINTED.iter().any(|ending| name.ends_with(ending));
        if is_printed || PRINTED.contains(&name) {
            let path = format!(".holdfast.v1.{name}");
            builder = builder.message_attribute(path, "#[derive(serde::Serialize)]");
        }
    }
    for (field, function) in NAMED {
        let attribute = format!("#[serde(serialize_with = \"{function}\")]");
        builder = builder.field_attribute(format!(".holdfast.v1.{field}"), attribute);
    }
    // Sorted, so that the same object is always printed in the same way.
    builder = builder.btree_map(".holdfast.v1.Meta.labels");
    builder.compile_fds(protox::compile([API, INTERNAL].concat(), ["proto"])?)?;
    compile_devices()?;
    compile_csi()
}

/// What programs of one node say to each other.
fn compile_devices() -> Result<(), Box<dyn Error>> {
    let devices = protox::compile(["proto/holdfast/node/v1/devices.proto"], ["proto"])?;
    let printed = "#[derive(serde::Serialize)]";
    let builder = tonic_prost_build::configure();
    Ok(builder.message_attribute(".holdfast.node.v1.Device", printed).compile_fds(devices)?)
}

/// The interface of container orchestrators.
fn compile_csi() -> Result<(), Box<dyn Error>> {
    let csi = protox::compile(["proto/csi/v1/csi.proto"], ["proto"])?;
    let ours = csi.file.iter().filter(|file| file.package() == "csi.v1");
    let messages = ours.flat_map(|file| &file.message_type);
    // `src/csi/proto.rs` prints these without their secrets.
    let unprinted = messages
        .filter(|message| message.field.iter().any(|field| field.name() == "secrets"))
        .map(|message| format!(".csi.v1.{}", message.name()));
    let unprinted: Vec<String> = unprinted.collect();
    let builder = tonic_prost_build::configure().btree_map(".csi.v1").skip_debug(unprinted);
    Ok(builder.compile_fds(csi)?)
}
