//! Sync: what a pod is told of the catalog, as differences between revisions.
//!
//! A pod holds a [`mirror::Mirror`] of the rows that concern it. From the state of any member of
//! the catalog, [`update::update`] makes what the mirror lacks: the rows that have changed since
//! its revision, or everything when these are not remembered any more. The mirror is kept on the
//! pod's disk ([`kept`]), and a pod that starts without any catalog serves by it.

pub mod kept;
pub mod mirror;
pub mod update;
