//! Compiles the gRPC services. protox reads the definitions, so no protoc is needed.

use std::error::Error;

const PROTOS: &[&str] = &[
    "proto/holdfast/v1/catalog.proto",
    "proto/holdfast/v1/cluster.proto",
    "proto/holdfast/v1/disks.proto",
    "proto/holdfast/v1/pods.proto",
    "proto/holdfast/v1/volumes.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(PROTOS, ["proto"])?;
    tonic_prost_build::configure()
        .bytes(".")
        .compile_fds(descriptors)?;
    Ok(())
}
