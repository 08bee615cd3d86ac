//! Whether a driver keeps to the Container Storage Interface: Identity, Controller and Node,
//! written from the specification. The cases of `tests/csi/` that are named in [`CASES`] and
//! [`NODE_CASES`] hold for every driver:
//!
//! ```text
//! HOLDFAST_CSI_ENDPOINT=/run/csi.sock HOLDFAST_CSI_NODES=node-1,node-2 \
//!     HOLDFAST_CSI_NODE_ENDPOINT=/run/csi-node.sock cargo test --release --test csi -- a_driver
//! ```
//!
//! The cases of the node service run on its node, as root, and make paths for volumes in
//! `HOLDFAST_CSI_NODE_DIRECTORY`. Without endpoints, Holdfast's own driver is tested, before a
//! cluster of three pods; its node service takes FUSE and loop devices.
//! `HOLDFAST_CSI_CASE` runs only the cases whose names contain it.

mod support;

#[path = "csi/asking.rs"]
mod asking;
#[path = "csi/capacity.rs"]
mod capacity;
#[path = "csi/creating.rs"]
mod creating;
#[path = "csi/driver.rs"]
mod driver;
#[path = "csi/growing.rs"]
mod growing;
#[path = "csi/identity.rs"]
mod identity;
#[allow(dead_code, reason = "the tests of the node service use the rest")]
#[path = "node/kubelet.rs"]
mod kubelet;
#[path = "csi/listing.rs"]
mod listing;
#[path = "csi/many.rs"]
mod many;
#[path = "csi/node/mod.rs"]
mod node;
#[path = "csi/ours.rs"]
mod ours;
#[path = "csi/publishing.rs"]
mod publishing;
#[path = "csi/together.rs"]
mod together;

use std::panic::{AssertUnwindSafe, catch_unwind};

use driver::Driver;
use node::driver::Node;
use node::{knowing, showing, staging, telling};

/// A case, with the name of its function.
type Case = (&'static str, fn(&Driver));

macro_rules! cases {
    ($($module:ident::$case:ident,)*) => {
        &[$((concat!(stringify!($module), "::", stringify!($case)), $module::$case),)*]
    };
}

/// What the specification demands of every driver.
const CASES: &[Case] = cases! {
    identity::the_plugin_has_a_name_and_a_version,
    identity::the_plugin_says_what_it_can_do,
    identity::a_probe_is_answered,
    identity::every_capability_has_its_methods_and_others_are_unimplemented,
    creating::what_is_missing_is_refused,
    creating::capabilities_must_be_whole,
    creating::names_may_be_long_and_strange,
    creating::the_same_again_gives_the_same_volume,
    creating::another_volume_of_the_name_is_refused,
    creating::the_size_lies_in_the_range,
    creating::impossible_ranges_are_refused,
    creating::sources_need_a_capability,
    creating::a_deleted_volume_is_gone_and_its_name_is_free,
    creating::deleting_what_is_not_there_is_no_error,
    creating::fields_of_a_newer_specification_are_ignored,
    publishing::what_is_missing_is_refused,
    publishing::what_is_not_there_is_not_found,
    publishing::a_volume_is_published_to_one_node_at_a_time,
    publishing::another_mode_on_the_same_node_is_refused,
    publishing::taking_away_what_nobody_has_is_no_error,
    publishing::without_a_node_all_lose_the_volume,
    publishing::a_published_volume_is_not_deleted,
    publishing::many_nodes_read_and_many_write_blocks,
    asking::what_is_missing_or_not_there_is_refused,
    asking::possible_capabilities_are_confirmed,
    asking::impossible_capabilities_are_not_confirmed,
    asking::one_volume_is_told_of,
    listing::wrong_pages_are_refused,
    listing::pages_have_every_volume_once,
    listing::pages_survive_deletions_and_new_volumes,
    listing::published_nodes_are_listed,
    capacity::there_is_some,
    growing::what_is_missing_or_not_there_is_refused,
    growing::a_volume_grows_and_never_shrinks,
    growing::a_published_volume_grows,
    growing::attributes_can_be_changed_again_and_again,
    together::the_same_volume_asked_for_at_once_is_made_once,
    together::operations_on_one_volume_are_done_or_aborted,
    together::many_volumes_are_made_at_once,
};

/// A case of the node service.
type NodeCase = (&'static str, fn(&Node));

/// The same of the node service.
const NODE_CASES: &[NodeCase] = cases! {
    knowing::the_node_has_a_name,
    knowing::the_node_is_of_the_same_driver,
    knowing::every_capability_has_its_methods_and_others_are_unimplemented,
    staging::what_is_missing_is_refused,
    staging::what_is_not_there_is_not_found,
    staging::steps_may_be_repeated,
    staging::another_use_of_the_same_place_is_refused,
    staging::data_stay_when_a_volume_is_staged_again,
    staging::the_same_at_once_is_done_or_aborted,
    showing::what_is_missing_is_refused,
    showing::what_is_not_there_is_not_found,
    showing::a_file_system_is_at_its_target,
    showing::a_device_is_at_its_target,
    showing::one_writer_is_alone_and_many_are_not,
    telling::usage_is_told_where_the_volume_is,
    telling::usage_of_a_device_is_its_size,
    telling::stats_of_nothing_are_refused,
    telling::growth_of_nothing_is_refused,
    telling::a_device_grows_while_it_is_used,
};

#[test]
fn a_driver_keeps_the_specification() {
    let driver = Driver::start("csi_conformance", &[]);
    run_cases(CASES, &driver);
}

#[test]
fn a_driver_keeps_the_specification_on_its_node() {
    match Node::start() {
        Ok(node) => run_cases(NODE_CASES, &node),
        Err(why) => println!("SKIPPED, the node service: {why}"),
    }
}

/// Runs all cases, and fails at the end if any has failed.
fn run_cases<T>(cases: &[(&'static str, fn(&T))], subject: &T) {
    let chosen = std::env::var("HOLDFAST_CSI_CASE").unwrap_or_default();
    let mut names = CASES.iter().map(|it| it.0).chain(NODE_CASES.iter().map(|it| it.0));
    assert!(names.any(|name| name.contains(&chosen)), "no case is called {chosen:?}");
    let mut failed = Vec::new();
    for (name, case) in cases.iter().filter(|(name, _)| name.contains(&chosen)) {
        let began = std::time::Instant::now();
        let result = catch_unwind(AssertUnwindSafe(|| case(subject)));
        let word = if result.is_ok() { "ok" } else { "FAILED" };
        println!("{name}: {word} ({} ms)", began.elapsed().as_millis());
        failed.extend(result.is_err().then_some(*name));
    }
    assert!(failed.is_empty(), "{} cases failed: {failed:#?}", failed.len());
}
