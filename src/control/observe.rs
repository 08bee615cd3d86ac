//! The task that keeps the observer up to date while this pod leads the catalog, so that it notices
//! changes when they happen, and those who watch are told.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use crate::control::node::Node;
use crate::control::observed::is_telling;
use crate::control::state::CatalogState;

/// Silence is noticed within this time. Everything else is noticed at once.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Between two looks at reports: many pods report at about the same time.
const LOOK_EVERY_LEAST: Duration = Duration::from_millis(50);

/// Observes while this pod leads.
pub async fn observe(node: Arc<Node>) {
    let mut heard = node.reports.heard();
    loop {
        let Some(catalog) = node.leading() else {
            sleep(LOOK_EVERY).await;
            continue;
        };
        let mut published = catalog.published.clone();
        drop(catalog);
        let state = published.borrow_and_update().state.clone();
        let is_due = |state: &CatalogState| node.reports.with(|pods| is_telling(state, pods));
        if let Some(state) = state.filter(|state| is_due(state)) {
            node.observed.look(&state, &node.reports, |_, _| ());
        }
        sleep(LOOK_EVERY_LEAST).await;
        tokio::select! {
            _ = timeout(LOOK_EVERY, heard.changed()) => {}
            // An error means that the member is gone.
            _ = published.changed() => {}
        }
    }
}
