//! Metrics of the process. One registry has all of them; `telemetry::http` serves its text.
//!
//! [`list`] defines every metric: name, type, unit, labels, meaning. `docs/metrics.md` is made from
//! it. [`numbers`] holds the values: plain relaxed atomics that a thread writes without locks and
//! without allocation, so that the data path can count. A [`Source`] reads them when somebody asks:
//! [`data_path`] those of the worker, [`process`] those of the system, and `control` has its own.
//!
//! Invariant: labels are few and bounded, by disks, RPCs and fixed words. No metric has a series
//! for each volume, shard, client or pod.

pub mod data_path;
pub mod list;
pub mod numbers;
pub mod page;
pub mod process;
mod registry;

pub use registry::{Registry, Samples, Source, Value};
