//! The cluster hears of this node: without a report, a node without storage pods is not known, and
//! no volume can be published to it. And a node that was declared lost says when it has no device
//! of that time any more.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use crate::control::catalog::chain;
use crate::control::node_reports::EVERY_MAX;
use crate::control::proto::ReportRequest;
use crate::control::proto::nodes_client::NodesClient;
use crate::csi::api::Deadline;
use crate::csi::node::parts::Parts;

const WITHIN: Duration = Duration::from_secs(30);
const LOOK_WITHIN: Duration = Duration::from_secs(1);
/// Before it is said again: a catalog that was restored may have forgotten it, and a node that was
/// declared lost is free when the last of its devices is gone.
const AGAIN_AFTER: Duration = EVERY_MAX;
/// The same on a node with devices: its silence is the first sign that it is lost.
const AGAIN_WITH_DEVICES: Duration = Duration::from_secs(5);

/// Reports for as long as it runs.
pub async fn report(parts: Arc<Parts>) {
    let (mut reported, mut was_free) = (None::<Instant>, false);
    loop {
        // What cannot be looked at may be there. The report must not wait for it: the cluster
        // misses a report, not a device.
        let devices = timeout(LOOK_WITHIN, parts.devices.all()).await;
        let has_no_device = devices.is_ok_and(|all| all.is_ok_and(|all| all.is_empty()));
        let every = if has_no_device { AGAIN_AFTER } else { AGAIN_WITH_DEVICES };
        let is_due = reported.is_none_or(|at| at.elapsed() >= every) || has_no_device != was_free;
        if !is_due {
            sleep(AGAIN_WITH_DEVICES).await;
            continue;
        }
        let request = ReportRequest {
            name: parts.node.clone(),
            boot_id: parts.boot_id.clone(),
            labels: HashMap::new(),
            has_no_device,
            again_after_ms: every.as_millis() as u32,
        };
        let report = async |channel, call| NodesClient::new(channel).report(call).await;
        match parts.api.call(Deadline::after(WITHIN), request, report).await {
            Ok(_) => {
                (reported, was_free) = (Some(Instant::now()), has_no_device);
                sleep(AGAIN_WITH_DEVICES).await;
            }
            // The call itself has waited for a pod that answers.
            Err(error) => {
                tracing::warn!("the cluster was not told of this node: {}", chain(&error));
                sleep(AGAIN_WITH_DEVICES).await;
            }
        }
    }
}
