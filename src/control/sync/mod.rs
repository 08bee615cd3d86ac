//! Sync: what a pod is told of the catalog, as differences between revisions.
//!
//! A pod holds a [`mirror::Mirror`] of the rows that concern it: the cluster's, all nodes, pods,
//! disks, classes, members of the catalog and revoked certificates, and whole volumes (each with
//! its shards and its attachments): those of which it has a replica, those that are attached to its
//! node, and those that it wants because its clients use them ([`wants`]). From the state of any
//! member of the catalog, [`follower::Follower`] makes what the mirror lacks: the rows that have
//! changed since its revision, all rows of volumes that concern it now and did not, and removals of
//! those that do not any more; or everything when the changes are not remembered any more. The
//! mirror is kept on the pod's disk ([`kept`]), and a pod that starts without any catalog serves by
//! it.

pub mod follower;
pub mod kept;
pub mod mirror;
pub mod resolve;
pub mod update;
pub mod wants;
