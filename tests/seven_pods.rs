//! Seven pods on machines of their own, in three zones, two of them without disks. Clients use
//! volumes through the pods without disks while every pod is restarted, and while one is cut off.
//!
//! Each machine is a network namespace: the test needs root.

mod support;

use std::collections::BTreeSet;

use serde_json::Value;

use support::fleet::{Fleet, Place, name, number};
use support::load::{Load, verify};
use support::nbd::Client;
use support::network::address;
use support::ports::API_PORT;
use support::tools::noise;
use support::{program, wait_until};

const MIB: u64 = 1 << 20;
const PLACES: [Place; 7] = [
    Place { node: "w1", zone: "a", has_disk: true },
    Place { node: "w2", zone: "a", has_disk: true },
    Place { node: "w3", zone: "b", has_disk: true },
    Place { node: "w4", zone: "b", has_disk: true },
    Place { node: "w5", zone: "c", has_disk: true },
    Place { node: "w6", zone: "a", has_disk: false },
    Place { node: "w7", zone: "b", has_disk: false },
];
/// Two pods without disks.
const FRONTS: [usize; 2] = [6, 7];
/// Of each volume, the part that the load writes.
const LOAD_BYTES: u64 = 16 * MIB;
/// Behind that, so many MiB are written while a pod is away.
const COPIED: u64 = 32;

fn create(fleet: &Fleet, volume: &str, class: &str, more: &[&str]) {
    let create = ["volume", "create", volume, "--size", "64MiB", "--class", class];
    fleet.must(&[&create, more].concat());
}

/// Replicas are where the class says; each pod with a disk has some.
fn check_placement(fleet: &Fleet, volumes: &[String]) {
    let mut used = BTreeSet::new();
    for volume in volumes {
        for pods in fleet.replicas(volume) {
            let of = |what: fn(Place) -> &'static str| {
                let values = pods.iter().map(|pod| what(fleet.place(*pod)));
                values.collect::<BTreeSet<_>>().len()
            };
            assert_eq!((pods.len(), of(|it| it.node)), (3, 3), "{volume} is on {pods:?}");
            let zones = if volume.starts_with("zones") { 3 } else { 1 };
            assert!(of(|it| it.zone) >= zones, "{volume} is on {pods:?}");
            used.extend(pods);
        }
    }
    assert_eq!(used, (1..=5).collect(), "every pod with a disk is used, and no other");
}

/// Over the network only those with a certificate are answered.
fn check_security(fleet: &Fleet) {
    assert!(fleet.over_network(3, &["status"]).status.success());
    let mut nobody = fleet.network.command(0, &program());
    nobody.args(["status", "--endpoint", &format!("{}:{API_PORT}", address(3))]);
    assert!(!nobody.output().expect("run holdfast").status.success());
}

fn phase(fleet: &Fleet, pod: usize) -> Value {
    fleet.ask(&["pod", "show", &pod.to_string()]).unwrap_or_default()["status"]["phase"].clone()
}

/// Resyncs into the disks of a pod since it started.
fn resyncs(fleet: &Fleet, pod: usize) -> u64 {
    let disks = fleet.list(&["disk", "list", "--pod", &pod.to_string()]);
    disks.iter().map(|disk| number(&disk["status"]["resyncs"])).sum()
}

/// Reads through a pod until it leads the volume's only shard, so that it reads its own disk.
fn lead_from(fleet: &Fleet, pod: usize, volume: &str) -> Client {
    let mut client = fleet.front(pod).connect_soon(volume);
    wait_until("the leader follows its client", || {
        for _ in 0..200 {
            client.read(client.size_bytes - 4096, 4096).expect("reads wait, and do not fail");
        }
        let shards = fleet.list(&["shard", "list", "--volume", volume]);
        shards.iter().all(|shard| number(&shard["status"]["leader_pod"]) == pod as u64)
    });
    client
}

#[test]
fn seven_pods_are_restarted_and_cut_off_under_their_clients() {
    let mut fleet = Fleet::start("seven_pods", &PLACES);
    check_security(&fleet);
    let volumes: Vec<String> =
        (0..4).flat_map(|number| [format!("nodes-{number}"), format!("zones-{number}")]).collect();
    for volume in &volumes {
        let class = if volume.starts_with("zones") { "replicated-zones" } else { "replicated" };
        let more: &[&str] = if volume == "nodes-0" { &["--closed"] } else { &[] };
        create(&fleet, volume, class, more);
    }
    check_placement(&fleet, &volumes);
    let published = fleet.must(&["attachment", "publish", "nodes-0", "w6"]);
    let closed = Load::start(fleet.front(FRONTS[0]), name(&published), LOAD_BYTES);
    let open = Load::start(fleet.front(FRONTS[1]), "zones-0", LOAD_BYTES);
    let loads = || [&closed, &open].into_iter().for_each(Load::wait_progress);
    loads();

    for pod in 1..=fleet.size() {
        fleet.stop(pod);
        loads_but(&[&closed, &open], pod);
        fleet.serve(pod);
        loads();
        fleet.wait_well();
    }

    let was_cut_off = cut_off(&fleet, &[&closed, &open]);
    let (closed, open) = (closed.end(), open.end());
    for done in [&closed, &open] {
        let (pieces, reconnects) = (done.written.len(), done.reconnects);
        println!("{pieces} pieces, {reconnects} reconnects, pause {:?}", done.longest_pause);
        assert_eq!(reconnects, 1, "only the pod of a client ends its connection");
    }
    verify(&mut fleet.front(FRONTS[0]).connect_soon(name(&published)), &closed.written);
    for pod in [3, FRONTS[1]] {
        verify(&mut fleet.front(pod).connect_soon("zones-0"), &open.written);
    }
    let mut own = lead_from(&fleet, was_cut_off, "zones-0");
    verify(&mut own, &open.written);
    for number in 0..COPIED {
        let read = own.read(LOAD_BYTES + number * MIB, MIB as usize).expect("reads do not fail");
        assert!(read == copied(), "MiB {number}, on the pod that was cut off");
    }
    check_placement(&fleet, &volumes);
}

/// While a pod is down, clients of the others go on.
fn loads_but(loads: &[&Load; 2], pod: usize) {
    for (load, front) in loads.iter().zip(FRONTS) {
        if front != pod {
            load.wait_progress();
        }
    }
}

/// A pod is cut off for so long that its replicas are copied anew when it is back. Returns the pod.
fn cut_off(fleet: &Fleet, loads: &[&Load; 2]) -> usize {
    let pod = fleet.replicas("zones-0")[0][0];
    let before = resyncs(fleet, pod);
    fleet.network.cut(pod);
    wait_until("the pod is reported as unreachable", || phase(fleet, pod) == "unreachable");
    loads_but(loads, pod);
    let mut client = fleet.front(FRONTS[1]).connect_soon("zones-0");
    // Much more than a log holds.
    for number in 0..6 * COPIED {
        let offset = LOAD_BYTES + number % COPIED * MIB;
        client.write(offset, &copied()).expect("writes do not fail");
    }
    fleet.network.mend(pod);
    wait_until("the pod is up again", || phase(fleet, pod) == "up");
    fleet.wait_well();
    assert!(resyncs(fleet, pod) > before, "what the logs do not have any more is copied");
    loads_but(loads, 0);
    pod
}

/// Each MiB that is written while a pod is away.
fn copied() -> Vec<u8> {
    noise(7, MIB as usize)
}
