//! What a page of ListVolumes, ControllerPublishVolume and GetCapacity take beside few volumes and
//! beside many. Not a bound of the tests, for machines differ: it prints what it measures.
//! `HOLDFAST_CSI_MANY` says how many volumes are many.

use std::time::{Duration, Instant};

use holdfast::csi::proto::{GetCapacityRequest, ListVolumesRequest};

use super::capacity;
use super::driver::{Driver, to_publish};
use super::support::Setup;
use super::together::{delete_all, make_many};

const FEW: usize = 10;
const MANY_IN_TESTS: usize = 150;
/// Entries of a page, in both cases.
const PAGE: usize = FEW;
const REPEATS: usize = 41;

/// The median of what a call takes.
fn median(mut call: impl FnMut()) -> Duration {
    let mut took: Vec<Duration> = (0..REPEATS)
        .map(|_| {
            let began = Instant::now();
            call();
            began.elapsed()
        })
        .collect();
    took.sort();
    took[REPEATS / 2]
}

/// Entries of a page, and whether more follow.
fn page(driver: &Driver) -> (usize, bool) {
    let request = ListVolumesRequest { max_entries: PAGE as i32, ..ListVolumesRequest::default() };
    let answer = driver.controller(async |mut it| it.list_volumes(request).await).unwrap();
    (answer.entries.len(), !answer.next_token.is_empty())
}

/// A page, a publication and the capacity.
fn measure(driver: &Driver, volume: &str) -> [Duration; 3] {
    let mut is_published = false;
    [
        median(|| assert_eq!(page(driver).0, PAGE)),
        median(|| {
            match is_published {
                false => driver.publish(to_publish(volume, "pod-1")).unwrap(),
                true => driver.unpublish(volume, "pod-1").unwrap(),
            }
            is_published = !is_published;
        }),
        median(|| {
            let answer = capacity::get(driver, GetCapacityRequest::default());
            assert!(answer.unwrap().available_capacity > 0);
        }),
    ]
}

#[test]
fn what_many_volumes_cost_is_measured() {
    let many = std::env::var("HOLDFAST_CSI_MANY").map_or(Ok(MANY_IN_TESTS), |text| text.parse());
    let many = many.expect("HOLDFAST_CSI_MANY is a number");
    let setup = Setup::new("csi_many").disk_sizes("32GiB", "64MiB");
    let driver = Driver::ours(setup.start(), &[]);
    let (first, _) = make_many(&driver, FEW);
    assert_eq!(page(&driver), (FEW, false));
    let few = measure(&driver, &first[0]);
    let (others, _) = make_many(&driver, many);
    assert_eq!(page(&driver), (PAGE, true));
    // With one publication or unpublication too many, it is at its node now.
    driver.unpublish(&first[0], "pod-1").unwrap();
    let beside_many = measure(&driver, &first[0]);
    for ((what, few), many_took) in
        ["a page of 10", "publish or unpublish", "capacity"].iter().zip(few).zip(beside_many)
    {
        println!("{what}: {few:?} with {FEW} volumes, {many_took:?} with {many} more");
    }
    driver.unpublish(&first[0], "pod-1").unwrap();
    delete_all(&driver, &first);
    delete_all(&driver, &others);
}
