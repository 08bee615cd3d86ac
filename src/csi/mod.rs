//! The driver for Kubernetes and other container orchestrators: the Container Storage Interface
//! (CSI 1.12; <https://github.com/container-storage-interface/spec>). Its services are clients of
//! the API, and keep nothing: what they need to know is asked of the cluster each time.
//!
//! A volume's handle is the cluster's uid and the volume's uid ([`handle`]), a node's id is its
//! name. docs/csi.md is for those who use the driver.

pub mod api;
pub mod capability;
pub mod controller;
pub mod credentials;
pub mod handle;
pub mod identity;
pub mod meters;
pub mod node;
pub mod proto;
pub mod served;
pub mod server;
pub mod spec;
pub mod status;
pub mod turns;

/// Name of the driver when nobody chooses another.
pub const DRIVER_NAME: &str = "csi.holdfast.io";
/// The key of the topology of all nodes; its value is the node's name.
pub const TOPOLOGY_KEY: &str = "holdfast.io/node";
/// Keys below this prefix are the orchestrator's own, and mean nothing to the driver.
pub const KEYS_OF_KUBERNETES: &str = "csi.storage.k8s.io/";
