//! Brings this pod's member of the catalog back after it has stopped: a full file system has room
//! again, or what made it panic is gone. The pod goes on without it meanwhile.

use std::sync::Arc;
use std::time::Duration;

use crate::control::catalog::chain;
use crate::control::membership;
use crate::control::node::Node;
use crate::control::supervise::Pause;

const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// Starts the member again whenever it is lost, after pauses that grow.
pub async fn revive(node: Arc<Node>) {
    let mut lost = node.catalog_lost.subscribe();
    let mut pause = Pause::new(PAUSE_MIN, PAUSE_MAX);
    loop {
        // An error means that the pod stops.
        let Ok(_) = lost.wait_for(Option::is_some).await else { return };
        pause.wait(PAUSE_MIN).await;
        match membership::restart(&node).await {
            Ok(()) => tracing::info!("this pod's member of the catalog runs again"),
            Err(error) => {
                let reason = chain(&error);
                tracing::warn!("this pod's member of the catalog cannot start yet: {reason}");
                node.catalog_lost.send_replace(Some(reason));
            }
        }
    }
}
