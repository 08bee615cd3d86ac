//! Metrics of a pod's control plane, as of the moment that somebody asks.

use std::sync::Weak;

use crate::control::node::Node;
use crate::telemetry::metrics::list;
use crate::telemetry::metrics::{Samples, Source};

/// The metrics of a node, as long as it is there.
pub struct NodeMeters(pub Weak<Node>);

impl Source for NodeMeters {
    fn collect(&self, into: &mut Samples) {
        let Some(node) = self.0.upgrade() else { return };
        node.api_meters.collect(into);
        node.restarts.collect(into);
        let catalog = node.catalog();
        let published = catalog.as_ref().map(|catalog| catalog.published.borrow().clone());
        let known = published.as_ref().and_then(|published| published.state.as_ref());
        let revision = known.map_or(0, |state| state.revision()).max(node.view.borrow().revision);
        into.count(&list::CATALOG_REVISION, &[], revision);
        let applied = published.as_ref().map_or(0, |published| published.applied_index);
        into.count(&list::CATALOG_APPLIED, &[], applied);
        let term = published.as_ref().map_or(0, |published| published.role.term);
        into.count(&list::CATALOG_TERM, &[], term);
        let role = match &published {
            _ if node.catalog_lost.borrow().is_some() => "stopped",
            None => "none",
            Some(published) if published.failed.is_some() => "stopped",
            Some(published) if published.role.serving => "leader",
            Some(_) => "follower",
        };
        for word in ["leader", "follower", "none", "stopped"] {
            into.count(&list::CATALOG_ROLE, &[word], u64::from(word == role));
        }
        let lag = match role {
            "leader" => node.reports.with(|pods| pods.catalog_lag(applied)),
            _ => 0,
        };
        into.count(&list::CATALOG_LAG, &[], lag);
    }
}
