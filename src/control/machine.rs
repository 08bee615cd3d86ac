//! What a pod says of the machine that it runs on.

use crate::config::Config;
use crate::control::command::NewNode;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The kernel's identity of the machine's present boot.
pub fn boot_id() -> std::io::Result<String> {
    Ok(std::fs::read_to_string(BOOT_ID)?.trim().to_owned())
}

/// The node as the configuration names it, or as the system does.
pub fn this_node(config: &Config) -> NewNode {
    let host = || rustix::system::uname().nodename().to_string_lossy().into_owned();
    NewNode {
        name: config.node.name.clone().unwrap_or_else(host),
        boot_id: boot_id().unwrap_or_else(|error| {
            tracing::warn!("could not read {BOOT_ID}: {error}");
            String::new()
        }),
        labels: config.node.labels.clone(),
    }
}
