//! What a pod says of the machine that it runs on.

use crate::config::Config;
use crate::control::command::NewNode;

/// The kernel's identity of the present boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The node as the configuration names it, or as the system does.
pub fn this_node(config: &Config) -> NewNode {
    let host = || rustix::system::uname().nodename().to_string_lossy().into_owned();
    let boot_id = std::fs::read_to_string(BOOT_ID).map(|text| text.trim().to_owned());
    NewNode {
        name: config.node.name.clone().unwrap_or_else(host),
        boot_id: boot_id.unwrap_or_else(|error| {
            tracing::warn!("could not read {BOOT_ID}: {error}");
            String::new()
        }),
        labels: config.node.labels.clone(),
    }
}
