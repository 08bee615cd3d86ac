//! The relay: between the connections of one device and the pods. [`line`](self::line) decides, for
//! one connection; [`hello`] opens an export of a pod; [`run`] drives both with sockets.
//!
//! All connections of a device use one pod at a time: shards refuse requests of a pod that another
//! one has followed (docs/attachments.md).

pub mod blank;
pub mod hello;
pub mod line;
pub mod pods;
pub mod run;
pub mod serve;
pub mod welcome;
