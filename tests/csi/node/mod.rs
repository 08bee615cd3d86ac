//! Cases of the node service. They need root: they look at what the plugin has mounted.

pub mod driver;
pub mod knowing;
pub mod showing;
pub mod staging;
pub mod telling;
