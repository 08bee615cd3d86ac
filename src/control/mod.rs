//! The control plane: the catalog (a Raft group of its own), its API, and the decisions made from
//! it. It is never on the I/O path: the data path works with the last view that it received.
//!
//! Pure: [`access`], [`command`], [`state`], [`placement`], [`reconcile`], [`registration`],
//! [`objects`], [`names`], and [`catalog_member`], which the simulator runs too. Most of [`sync`]
//! is pure as well. All else runs on tokio, except the catalog's thread.
//!
//! Invariant: the data path sees the cluster only through [`crate::view::ClusterView`].

pub mod access;
pub mod api;
pub mod api_meters;
#[cfg(test)]
mod api_test;
pub mod catalog;
pub mod catalog_member;
#[cfg(test)]
mod cluster_test;
pub mod command;
pub mod connections;
pub mod connector;
pub mod creation;
pub mod data_path;
pub mod enrol;
pub mod identity;
pub mod join;
pub mod local;
pub mod machine;
pub mod membership;
pub mod names;
pub mod node;
pub mod node_meters;
pub mod node_reports;
pub mod objects;
pub mod observe;
pub mod observed;
pub mod outbound;
mod own_certificate;
pub mod peers;
pub mod placement;
pub mod proto;
pub mod reason;
pub mod reconcile;
pub mod recover;
pub mod recovery;
pub mod registration;
pub mod reports;
pub mod resolve;
pub mod revival;
pub mod rounds;
pub mod server;
pub mod state;
pub mod storage;
pub mod supersede;
pub mod supervise;
pub mod sync;
pub mod tasks;
pub mod tls;
pub mod trusting;
pub mod voucher;
