//! Output of a pod about itself: logs.

pub mod logs;
