//! The authority of a running cluster is replaced, step by step, under load and with pods that are
//! off or killed meanwhile. Nobody is shut out before the last step, and then everybody with a
//! certificate of the old authority is. A backup from before does not shut out pods either.
//!
//! Each pod is on a machine of its own, a network namespace: the test needs root.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use holdfast::security::files::Paths;
use holdfast::security::secret::to_hex;
use serde_json::Value;

use support::fleet::{Fleet, Place, number};
use support::load::{Load, verify};
use support::network::address;
use support::ports::API_PORT;
use support::tools::text;
use support::{program, wait_until};

const PLACES: [Place; 3] = [
    Place { node: "w1", zone: "a", has_disk: true },
    Place { node: "w2", zone: "b", has_disk: true },
    Place { node: "w3", zone: "c", has_disk: true },
];
const LEN_BYTES: u64 = 32 << 20;

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A command on the administrator's machine, with these credentials, to a pod over the network.
fn with(fleet: &Fleet, credentials: &Path, pod: usize, arguments: &[&str]) -> Output {
    let mut command = fleet.network.command(0, &program());
    command.args(arguments).args(["--credentials", text(credentials)]);
    command.args(["--endpoint", &format!("{}:{API_PORT}", address(pod))]);
    command.output().expect("run holdfast")
}

fn authorities(fleet: &Fleet) -> Value {
    fleet.must(&["authority", "show"])
}

/// The fingerprint of the authority that signs.
fn signer(fleet: &Fleet) -> String {
    let shown = authorities(fleet);
    shown["authorities"][0]["fingerprint"].as_str().expect("an authority signs").to_owned()
}

fn waits_for(fleet: &Fleet) -> Vec<u64> {
    let waits = authorities(fleet)["waiting_pods"].as_array().cloned().unwrap_or_default();
    waits.iter().map(number).collect()
}

/// The authorities of the pods' certificates, and how many each pod trusts, as their files say.
fn presented(fleet: &Fleet) -> (BTreeSet<String>, BTreeSet<usize>) {
    let pods = (1..=fleet.size()).map(|pod| Paths::of_pod(&fleet.data(pod)).load().unwrap());
    pods.map(|own| (to_hex(&own.issuer().hash()), own.roots().len())).unzip()
}

/// A certificate that the catalog has signed, by a token.
fn get_certificate(fleet: &Fleet, role: &str, to: &Path) {
    let token = fleet.dir.join("role-token");
    fs::write(&token, fleet.run(1, &["token", "create", "--role", role]).stdout).unwrap();
    let mut get = fleet.network.command(0, &program());
    get.args(["cert", "get", "--token-file", text(&token), "--to", text(to)]);
    get.args(["--endpoint", &format!("{}:{API_PORT}", address(1))]);
    let got = get.output().expect("run holdfast cert get");
    assert!(got.status.success(), "{}", said(&got));
}

fn renew(fleet: &Fleet, directory: &Path, pod: usize) -> Output {
    let mut renew = fleet.network.command(0, &program());
    renew.args(["cert", "renew", text(directory)]);
    renew.args(["--endpoint", &format!("{}:{API_PORT}", address(pod))]);
    renew.output().expect("run holdfast cert renew")
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for name in ["client-cert.pem", "client-key.pem", "ca-cert.pem"] {
        fs::copy(from.join(name), to.join(name)).unwrap();
    }
}

fn step(fleet: &Fleet, arguments: &[&str]) -> Output {
    fleet.run(1, &[&["authority"], arguments].concat())
}

/// Tries a step until the leader finds that no pod is shut out by it.
fn step_when_ready(fleet: &Fleet, arguments: &[&str]) {
    wait_until("a step of the replacement is safe", || step(fleet, arguments).status.success());
}

fn replace(fleet: &Fleet, name: &str) {
    let directory = fleet.dir.join(name);
    let replaced = step(fleet, &["replace", text(&directory)]);
    assert!(replaced.status.success(), "{}", said(&replaced));
    let key = String::from_utf8_lossy(&replaced.stdout).contains("holdfast-recovery-");
    assert!(key, "the recovery key is shown: {replaced:?}");
    let again = step(fleet, &["replace", text(&directory)]);
    assert!(again.status.success(), "it can be repeated: {}", said(&again));
}

#[test]
fn an_authority_is_replaced_under_load_with_pods_off_and_killed() {
    let mut fleet = Fleet::start("authority", &PLACES);
    let volume = ["volume", "create", "demo", "--size", "64MiB", "--class", "replicated"];
    fleet.must(&volume);
    let load = Load::start(fleet.front(1), "demo", LEN_BYTES);
    let viewer = fleet.dir.join("viewer");
    get_certificate(&fleet, "viewer/vi", &viewer);
    let (old, outdated) = (signer(&fleet), fleet.dir.join("outdated"));
    let list = ["volume", "list"];
    assert!(with(&fleet, &viewer, 2, &list).status.success());

    // A pod that is off has not heard of the new authority, so that may not sign.
    fleet.kill(3);
    replace(&fleet, "new");
    let refused = step(&fleet, &["switch"]);
    assert!(!refused.status.success() && said(&refused).contains("pods"), "{}", said(&refused));
    wait_until("only the pod that is off is waited for", || waits_for(&fleet) == [3]);
    let refused = step(&fleet, &["switch"]);
    assert!(said(&refused).contains("pods 3 do not trust"), "{}", said(&refused));
    assert_eq!(signer(&fleet), old);
    load.wait_progress();
    // People learn of the new one in time.
    assert!(renew(&fleet, &viewer, 2).status.success());
    copy(&viewer, &outdated);
    fleet.serve(3);
    step_when_ready(&fleet, &["switch"]);
    let new = signer(&fleet);
    assert_ne!(new, old);

    // Pods are killed while they renew.
    for pod in [2, 3] {
        fleet.kill(pod);
        fleet.serve(pod);
        load.wait_progress();
    }
    wait_until("all pods have certificates of the new authority", || waits_for(&fleet).is_empty());
    assert_eq!(presented(&fleet), (BTreeSet::from([new.clone()]), BTreeSet::from([2])));
    // Old certificates are good until the end, for those who know the new authority.
    assert!(with(&fleet, &viewer, 3, &list).status.success());
    let refused = step(&fleet, &["finish"]);
    assert!(said(&refused).contains("viewer/vi"), "{}", said(&refused));
    assert!(renew(&fleet, &viewer, 1).status.success());
    fleet.wait_well();
    // It knows both authorities, and is by the old one.
    assert!(with(&fleet, &outdated, 2, &list).status.success());
    step_when_ready(&fleet, &["finish", "--void-certificates"]);
    load.wait_progress();

    // What the old one signed is void, what the new one signs is not.
    wait_until("pods trust the new one alone", || {
        presented(&fleet) == (BTreeSet::from([new.clone()]), BTreeSet::from([1]))
    });
    for pod in 1..=3 {
        assert!(with(&fleet, &viewer, pod, &list).status.success());
        wait_until("the pod accepts the old authority no more", || {
            !with(&fleet, &outdated, pod, &list).status.success()
        });
    }
    get_certificate(&fleet, "admin/ada", &fleet.dir.join("ada"));
    assert!(with(&fleet, &fleet.dir.join("ada"), 2, &["token", "create"]).status.success());
    let events = fleet.run(1, &["event", "list"]);
    let events = String::from_utf8_lossy(&events.stdout).into_owned();
    for reason in ["AuthorityAdded", "AuthoritySwitched", "AuthorityRetired"] {
        assert!(events.contains(reason), "{events}");
    }
    fleet.wait_well();
    let done = load.end();
    eprintln!("longest pause {:?}, {} reconnects", done.longest_pause, done.reconnects);

    // Nothing of it was in memory only.
    for pod in 1..=3 {
        fleet.kill(pod);
    }
    for pod in 1..=3 {
        fleet.serve(pod);
    }
    fleet.wait_well();
    verify(&mut fleet.front(2).connect_soon("demo"), &done.written);
}

#[test]
fn a_backup_from_before_a_replacement_shuts_nobody_out() {
    let mut fleet = Fleet::start("authority_restored", &PLACES);
    fleet.must(&["volume", "create", "demo", "--size", "64MiB", "--class", "replicated"]);
    let old = signer(&fleet);
    let backup = fleet.dir.join("catalog.backup");
    let made = fleet.run(1, &["catalog", "backup", text(&backup)]);
    assert!(made.status.success(), "{}", said(&made));
    replace(&fleet, "new");
    step_when_ready(&fleet, &["switch"]);
    step_when_ready(&fleet, &["finish"]);
    let new = signer(&fleet);
    // Links that were made before the switch end, and are made anew.
    let log = |pod| fs::read_to_string(fleet.log(pod)).unwrap_or_default();
    let is_cut = |pod| log(pod).contains("the certificate of the other pod is void");
    wait_until("links end", || (1..=fleet.size()).any(is_cut));
    fleet.wait_well();
    let load = Load::start(fleet.front(2), "demo", LEN_BYTES);

    // All that the pods were told is lost, but for their certificates.
    for pod in 1..=3 {
        fleet.kill(pod);
        fs::remove_dir_all(fleet.data(pod).join("catalog")).unwrap();
        fs::remove_file(fleet.data(pod).join("sync")).unwrap();
    }
    let restored = Command::new(program())
        .args(["catalog", "restore", text(&backup), "--data", text(&fleet.data(1))])
        .args(["--recovery-key-file", text(&fleet.recovery_key())])
        .output()
        .expect("run holdfast catalog restore");
    assert!(restored.status.success(), "{}", said(&restored));
    for pod in 1..=3 {
        fleet.serve(pod);
    }
    fleet.wait_well();
    load.wait_progress();
    // The old authority signs again, and pods take its certificates when all trust it again.
    assert_eq!(signer(&fleet), old);
    assert_eq!(authorities(&fleet)["others_trusted"], true);
    wait_until("all pods have certificates of the restored authority", || {
        presented(&fleet).0 == BTreeSet::from([old.clone()])
    });
    assert_eq!(presented(&fleet).1, BTreeSet::from([2]), "the other one is trusted, too");
    step_when_ready(&fleet, &["finish", "--void-certificates"]);
    wait_until("pods trust the restored authority alone", || {
        presented(&fleet) == (BTreeSet::from([old.clone()]), BTreeSet::from([1]))
    });
    assert_ne!(old, new);
    fleet.wait_well();
    let done = load.end();
    verify(&mut fleet.front(3).connect_soon("demo"), &done.written);
}

#[test]
fn a_pod_that_was_left_behind_comes_back_by_a_token() {
    let mut fleet = Fleet::start("authority_behind", &PLACES);
    fleet.must(&["volume", "create", "demo", "--size", "64MiB", "--class", "replicated"]);
    let node = fleet.must(&["node", "show", "w3"]);
    let boot = node["status"]["boot_id"].as_str().expect("a node says its boot").to_owned();
    fleet.kill(3);
    fleet.must(&["node", "lost", "w3", "--boot-id", &boot]);
    replace(&fleet, "new");
    step_when_ready(&fleet, &["switch"]);
    step_when_ready(&fleet, &["finish"]);
    let token = fleet.dir.join("token");
    fs::write(&token, fleet.run(1, &["token", "create"]).stdout).unwrap();
    let join = |fleet: &Fleet, more: &[&str]| {
        let mut join = fleet.network.command(3, &program());
        join.arg("join").arg("--config").arg(fleet.config(3)).arg("--token-file").arg(&token);
        join.args(more).output().expect("run holdfast join")
    };
    assert!(said(&join(&fleet, &[])).contains("--again"));
    // With its old certificate nobody lets it in, and its log says what to do. Of two pods, the
    // identities of the disks say which one dials, and sees first that it does not know the other.
    fleet.serve(3);
    let log = || fs::read_to_string(fleet.log(3)).unwrap_or_default();
    wait_until("the pod is refused", || {
        let log = log();
        log.contains("no trusted authority") || log.contains("join --again")
    });
    fleet.kill(3);
    let joined = join(&fleet, &["--again"]);
    let answer = String::from_utf8_lossy(&joined.stdout).into_owned();
    assert!(answer.contains("as pod 3"), "{answer} {}", said(&joined));
    fleet.serve(3);
    fleet.must(&["node", "clear-lost", "w3"]);
    fleet.wait_well();
    assert_eq!(presented(&fleet).0.len(), 1);
}
