//! The gRPC messages and services, generated from `proto/`.

#![allow(missing_docs, clippy::all)]

tonic::include_proto!("holdfast.v1");
