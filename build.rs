//! Compiles the gRPC services. protox reads the definitions, so no protoc is needed.

use std::error::Error;

const PROTOS: &[&str] = &[
    "proto/holdfast/v1/catalog.proto",
    "proto/holdfast/v1/cluster.proto",
    "proto/holdfast/v1/disks.proto",
    "proto/holdfast/v1/pods.proto",
    "proto/holdfast/v1/volumes.proto",
];

/// Messages that `-o json` prints as they are.
const PRINTED: &[&str] = &["Volume", "Shard", "Replica", "Pod", "Disk", "StatusResponse"];

/// Fields that are printed as the name of their state, not as its number.
const STATES: &[(&str, &str)] =
    &[("Volume", "volume_state"), ("Pod", "pod_state"), ("Disk", "disk_state")];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(PROTOS, ["proto"])?;
    let mut builder = tonic_prost_build::configure().bytes(".");
    for message in PRINTED {
        let path = format!(".holdfast.v1.{message}");
        builder = builder.type_attribute(path, "#[derive(serde::Serialize)]");
    }
    for (message, function) in STATES {
        let path = format!(".holdfast.v1.{message}.state");
        let attribute = format!("#[serde(serialize_with = \"{function}\")]");
        builder = builder.field_attribute(path, attribute);
    }
    builder.compile_fds(descriptors)?;
    Ok(())
}
