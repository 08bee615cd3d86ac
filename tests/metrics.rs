//! The metrics of a real cluster: the text is what the format allows and what the code lists, and
//! the numbers are those of the requests that were made.

mod support;

use std::collections::BTreeSet;

use holdfast::telemetry::metrics::list;

use support::metrics::{Scrape, get, scrape};
use support::nbd::Client;
use support::tools::noise;
use support::{Cluster, PODS, Setup, wait_until};

const BLOCK: usize = 4096;
const WRITES: u64 = 300;
const READS: u64 = 200;

#[test]
fn numbers_are_those_of_the_requests_made_and_only_grow() {
    let setup = Setup::new("metrics").restart_after("never");
    let cluster = setup.volume("demo", "64MiB").start();
    cluster.wait_healthy();
    for pod in 1..=PODS {
        assert_eq!(get(pod, cluster.offset, "/healthz").unwrap().0, 200);
        wait_until("a pod is ready", || get(pod, cluster.offset, "/readyz").unwrap().0 == 200);
    }
    let mut client = cluster.connect(1, "demo");
    let (before, after) = measure(&cluster, &mut client);
    all_are_listed(&after);
    for (before, after) in before.iter().zip(&after) {
        for (series, value) in before.growing() {
            assert!(after.get(series) >= value, "{series} went back from {value}");
        }
    }
    counts_are_exact(&before[0], &after[0]);
    followers_took_part(&before, &after);
    states_are_known(&cluster);
    it_goes_on_without_a_catalog(&cluster, client);
}

/// The metrics of all pods before and after the requests. A request that meets a change of its
/// leader passes some stages twice, so all are made anew until none did.
fn measure(cluster: &Cluster, client: &mut Client) -> (Vec<Scrape>, Vec<Scrape>) {
    let scrapes = || -> Vec<Scrape> { (1..=PODS).map(|pod| scrape(pod, cluster.offset)).collect() };
    let mut measured = None;
    wait_until("the leader stays while requests are made", || {
        cluster.lead_from(1, "demo");
        let before = scrapes();
        for number in 0..WRITES {
            client.write(number * BLOCK as u64, &noise(number, BLOCK)).unwrap();
        }
        for number in 0..READS {
            assert!(client.read(number * BLOCK as u64, BLOCK).unwrap() == noise(number, BLOCK));
        }
        let after = scrapes();
        let troubles = ["holdfast_raft_term_changes_total", "holdfast_lease_lapses_total"];
        let troubled = |scrapes: &[Scrape]| -> f64 {
            let sums = scrapes.iter().flat_map(|scrape| troubles.map(|name| scrape.sum(name)));
            sums.sum()
        };
        let is_calm = troubled(&before) == troubled(&after);
        measured = Some((before, after));
        is_calm
    });
    measured.expect("it was measured")
}

fn all_are_listed(scrapes: &[Scrape]) {
    let mut seen = BTreeSet::new();
    // The driver for orchestrators is another process.
    for metric in list::all().filter(|metric| metric.name != list::CSI_OPERATIONS.name) {
        let ending = metric.unit.as_ref().map_or(String::new(), |it| format!("_{}", it.as_str()));
        let name = format!("{}{ending}", metric.name);
        for family in scrapes.iter().filter_map(|scrape| scrape.families.get(&name)) {
            assert_eq!(family.kind, metric.kind.name(), "{name}");
            assert_eq!(family.unit, ending.trim_start_matches('_'), "{name}");
            seen.insert(name.clone());
        }
        assert!(seen.contains(&name), "no pod has {name}");
    }
    let shown: BTreeSet<String> =
        scrapes.iter().flat_map(|scrape| scrape.families.keys().cloned()).collect();
    assert_eq!(shown, seen, "nothing is shown that is not listed");
}

fn counts_are_exact(before: &Scrape, after: &Scrape) {
    let grown = |series: &str| after.get(series) - before.samples.get(series).unwrap_or(&0.0);
    for (operation, count) in [("write", WRITES), ("read", READS)] {
        let count = count as f64;
        let of = format!("operation=\"{operation}\"");
        assert_eq!(grown(&format!("holdfast_nbd_requests_total{{{of},outcome=\"ok\"}}")), count);
        let duration = "holdfast_nbd_request_duration_seconds";
        assert_eq!(grown(&format!("{duration}_count{{{of}}}")), count);
        // A read of what is in memory is answered in the round in which it came.
        let took = grown(&format!("{duration}_sum{{{of}}}"));
        assert!(took > 0.0 || operation == "read", "{operation}");
        let stages = format!("holdfast_{operation}_stage_duration_seconds_count");
        assert_eq!(grown(&format!("{stages}{{stage=\"answered\"}}")), count, "all led here");
    }
    let transferred = "holdfast_nbd_transferred_bytes_total";
    let bytes = |count: u64| (count * BLOCK as u64) as f64;
    assert_eq!(grown(&format!("{transferred}{{direction=\"written\"}}")), bytes(WRITES));
    assert_eq!(grown(&format!("{transferred}{{direction=\"read\"}}")), bytes(READS));
    let write = "holdfast_write_stage_duration_seconds_count";
    for stage in ["queued", "committed"] {
        assert_eq!(grown(&format!("{write}{{stage=\"{stage}\"}}")), WRITES as f64, "{stage}");
    }
    assert!(grown(&format!("{write}{{stage=\"logged\"}}")) >= WRITES as f64);
    let read = "holdfast_read_stage_duration_seconds_count";
    let known = |stage: &str| grown(&format!("{read}{{stage=\"{stage}\"}}"));
    assert_eq!(known("leased") + known("asked"), READS as f64);
    assert_eq!(known("stored"), READS as f64);
    let of_stages = |stage: &str| {
        grown(&format!("holdfast_write_stage_duration_seconds_sum{{stage=\"{stage}\"}}"))
    };
    let parts = of_stages("queued") + of_stages("committed");
    // Each time is rounded to a microsecond.
    assert!((parts - of_stages("answered")).abs() < 2e-6 * WRITES as f64, "{parts}");
}

/// A majority of the others wrote each block to its log.
fn followers_took_part(before: &[Scrape], after: &[Scrape]) {
    let writes = |scrape: &Scrape| scrape.sum("holdfast_log_write_duration_seconds_count");
    let grown = before.iter().zip(after).filter(|(before, after)| writes(after) > writes(before));
    assert!(grown.count() >= 2);
}

fn states_are_known(cluster: &Cluster) {
    wait_until("the look of the last second shows the state", || {
        let one = scrape(1, cluster.offset);
        one.sum("holdfast_nbd_connections") >= 1.0
            && one.sum("holdfast_dirty_bytes") >= (WRITES * BLOCK as u64) as f64
            && one.sum("holdfast_disk_up") == 1.0
            && one.get("holdfast_links{purpose=\"data\",state=\"up\"}") >= 2.0
            && one.get("holdfast_links{purpose=\"data\",state=\"down\"}") == 0.0
    });
    let all: Vec<Scrape> = (1..=PODS).map(|pod| scrape(pod, cluster.offset)).collect();
    let leaders = |scrape: &Scrape| scrape.get("holdfast_catalog_role{role=\"leader\"}");
    assert_eq!(all.iter().map(leaders).sum::<f64>(), 1.0);
    assert!(all.iter().all(|scrape| scrape.get("holdfast_view_revision") > 0.0));
    // Each shard has one leader and two followers.
    let replicas = |state: &str| -> f64 {
        let of_state = |series: &str| series.contains(&format!("state=\"{state}\""));
        let all = all.iter().flat_map(|scrape| &scrape.samples);
        let all = all.filter(|(series, _)| series.starts_with("holdfast_replicas{"));
        all.filter(|(series, _)| of_state(series)).map(|(_, value)| value).sum()
    };
    assert!(replicas("leader") >= 1.0, "{}", replicas("leader"));
    assert_eq!(replicas("follower"), 2.0 * replicas("leader"));
}

/// Alone, a pod has neither a catalog nor a majority for its volume.
fn it_goes_on_without_a_catalog(cluster: &Cluster, client: Client) {
    drop(client);
    cluster.kill(2);
    cluster.kill(3);
    wait_until("a pod that is alone says so", || {
        let alone = scrape(1, cluster.offset);
        alone.get("holdfast_links{purpose=\"data\",state=\"up\"}") == 0.0
            && alone.get("holdfast_catalog_role{role=\"leader\"}") == 0.0
            && alone.get("holdfast_link_losses_total{purpose=\"data\"}") >= 2.0
    });
    assert_eq!(get(1, cluster.offset, "/healthz").unwrap().0, 200);
    assert_eq!(get(1, cluster.offset, "/readyz").unwrap().0, 200);
}
