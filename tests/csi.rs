//! Whether a driver keeps to the Container Storage Interface: Identity and Controller, written from
//! the specification. The cases of `tests/csi/` that are named in [`CASES`] hold for every driver:
//!
//! ```text
//! HOLDFAST_CSI_ENDPOINT=/run/csi.sock HOLDFAST_CSI_NODES=node-1,node-2 \
//!     cargo test --release --test csi -- a_driver
//! ```
//!
//! Without an endpoint, Holdfast's own driver is tested, before a cluster of three pods.
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
#[path = "csi/listing.rs"]
mod listing;
#[path = "csi/many.rs"]
mod many;
#[path = "csi/ours.rs"]
mod ours;
#[path = "csi/publishing.rs"]
mod publishing;
#[path = "csi/together.rs"]
mod together;

use std::panic::{AssertUnwindSafe, catch_unwind};

use driver::Driver;

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

#[test]
fn a_driver_keeps_the_specification() {
    let driver = Driver::start("csi_conformance", &[]);
    let chosen = std::env::var("HOLDFAST_CSI_CASE").unwrap_or_default();
    let (mut failed, mut count) = (Vec::new(), 0);
    for (name, case) in CASES.iter().filter(|(name, _)| name.contains(&chosen)) {
        count += 1;
        let began = std::time::Instant::now();
        let result = catch_unwind(AssertUnwindSafe(|| case(&driver)));
        let word = if result.is_ok() { "ok" } else { "FAILED" };
        println!("{name}: {word} ({} ms)", began.elapsed().as_millis());
        failed.extend(result.is_err().then_some(*name));
    }
    assert!(count > 0, "no case is called {chosen:?}");
    assert!(failed.is_empty(), "{} cases failed: {failed:#?}", failed.len());
}
