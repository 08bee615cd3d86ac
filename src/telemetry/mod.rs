//! What a pod says about itself.

pub mod logs;
