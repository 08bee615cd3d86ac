//! Output of a pod about itself: logs, metrics, and whether it is well.

pub mod health;
pub mod http;
pub mod logs;
pub mod metrics;

use std::sync::Arc;

use health::Health;
use metrics::Registry;

/// Where the parts of a pod say how they are.
#[derive(Clone, Default)]
pub struct Telemetry {
    pub registry: Arc<Registry>,
    pub health: Arc<Health>,
}
