//! `holdfast attach`: a node's block devices for the volumes that are published to it. A device is
//! an NBD client of this machine whose connections end in the **relay** here. The relay keeps what
//! is not answered, and sends it again to the same pod or another one, so that the device sees no
//! connection end.
//!
//! Invariant: `relay-loses-no-request`: a request of the device has one answer, from a pod, or
//! waits.

mod backend;
pub mod child;
pub mod devices;
pub mod fuse;
pub mod guard;
pub mod kernel;
mod loops;
pub mod mounts;
pub mod relay;
pub mod service;
mod thread;

/// The service's messages.
pub mod proto {
    #![allow(clippy::all, reason = "generated")]

    tonic::include_proto!("holdfast.node.v1");
}
