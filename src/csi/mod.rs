//! The driver for Kubernetes and other container orchestrators: the Container Storage Interface
//! (CSI 1.12; <https://github.com/container-storage-interface/spec>). Its services are clients of
//! the API, and keep nothing: what they need to know is asked of the cluster each time.
//!
//! A volume's handle is the cluster's uid and the volume's uid, a node's id is its name.

pub mod proto;
