//! The control plane: the catalog (a Raft group of its own), its API, and the decisions made from
//! it. Never on the I/O path: the data path works with the last view it was given.
//!
//! Pure: [`command`], [`state`], [`placement`], [`reconcile`], [`names`]. The rest runs on tokio,
//! but for the catalog's driver, which has a thread of its own.
//!
//! Invariant: the data path sees the cluster only through [`crate::view::ClusterView`].

pub mod command;
pub mod identity;
pub mod names;
pub mod placement;
pub mod proto;
pub mod reconcile;
pub mod state;
