//! The catalog is lost with most of its members, or all. The pods serve by what they know, and one
//! of them recovers it: nothing that a pod knows is lost, and nothing that was removed comes back.
//! A backup alone is enough, with the recovery key also for certificates. That test has its pods in
//! network namespaces, which needs root.

mod support;

use std::fs;
use std::process::{Child, Command, Output, Stdio};

use support::fleet::{Fleet, Place, name};
use support::tools::{noise, text};
use support::{Cluster, PODS, Setup, program, wait_until};

const BLOCK: usize = 4096;

/// The pods of a cluster as processes of the test, which nobody starts again.
struct Pods {
    cluster: Cluster,
    running: Vec<Option<Child>>,
}

impl Pods {
    /// Takes over a cluster that is stopped.
    fn of(cluster: Cluster) -> Pods {
        Pods { cluster, running: (0..=PODS).map(|_| None).collect() }
    }

    fn data(&self, pod: usize) -> std::path::PathBuf {
        self.cluster.pod_dir(pod).join("data")
    }

    fn start(&mut self, pod: usize) {
        let log = self.cluster.pod_dir(pod).join("again.log");
        let log = fs::File::options().create(true).append(true).open(log).unwrap();
        let mut command = Command::new(program());
        command.arg("serve").arg("--config").arg(self.cluster.pod_dir(pod).join("holdfast.toml"));
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.running[pod] = Some(command.spawn().expect("run holdfast serve"));
    }

    fn stop(&mut self, pod: usize) {
        let mut child = self.running[pod].take().expect("it runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Runs a command of the catalog on a pod's directory or through its API.
    fn catalog(&self, arguments: &[&str]) -> Output {
        let output = Command::new(program()).arg("catalog").args(arguments).output();
        output.expect("run holdfast catalog")
    }

    fn catalog_done(&self, arguments: &[&str]) -> String {
        let output = self.catalog(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The recovery that a pod carries out, as it tells.
    fn recovery(&self, pod: usize) -> Option<serde_json::Value> {
        let endpoint = self.cluster.endpoint(pod);
        let output = self.catalog(&["status", "-o", "json", "--endpoint", &endpoint]);
        serde_json::from_slice(&output.stdout).ok()
    }

    fn volumes(&self) -> Vec<String> {
        let listed = self.cluster.ask(&["volume", "list"]).unwrap_or_default();
        let listed = listed.as_array().cloned().unwrap_or_default();
        listed.iter().map(|it| it["meta"]["name"].as_str().unwrap().to_owned()).collect()
    }

    fn status(&self, field: &str) -> serde_json::Value {
        self.cluster.ask(&["status"]).unwrap_or_default()[field].clone()
    }

    fn wait_data(&self, pod: usize, volume: &str, seed: u64) {
        let mut client = None;
        wait_until("a pod serves the volume", || {
            let address = self.cluster.nbd_address(pod);
            client = support::nbd::Client::connect(address, volume).ok();
            client.is_some()
        });
        let read = client.expect("connected").read(0, 64 * BLOCK).unwrap();
        assert!(read == noise(seed, 64 * BLOCK), "the data of {volume} through pod {pod}");
    }
}

impl Drop for Pods {
    fn drop(&mut self) {
        for child in self.running.iter_mut().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            for pod in 1..=PODS {
                let log = fs::read_to_string(self.cluster.pod_dir(pod).join("again.log"));
                let log = log.unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                let last = lines.len().saturating_sub(40);
                eprintln!("--- pod {pod}\n{}", lines[last..].join("\n"));
            }
        }
    }
}

fn write(cluster: &Cluster, volume: &str, seed: u64) {
    let mut client = cluster.connect(1, volume);
    client.write(0, &noise(seed, 64 * BLOCK)).unwrap();
    client.flush().unwrap();
}

fn create(cluster: &Cluster, name: &str) {
    let created = ["volume", "create", name, "--size", "64MiB", "--class", "dev"];
    cluster.ask(&created).unwrap_or_else(|| panic!("volume {name} is created"));
}

/// A backup is older than the newest volume. All members of the catalog are lost.
#[test]
fn a_backup_and_what_pods_know_make_the_catalog_again() {
    let setup = Setup::new("catalog_restored").volume("kept", "64MiB").volume("old", "64MiB");
    let mut cluster = setup.start();
    cluster.wait_healthy();
    write(&cluster, "kept", 1);
    let backup = cluster.dir.join("catalog.backup");
    let endpoint = cluster.endpoint(2);
    let command = ["catalog", "backup", text(&backup), "--endpoint", &endpoint];
    let output = Command::new(program()).args(command).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    create(&cluster, "later");
    write(&cluster, "later", 2);
    cluster.ask(&["volume", "delete", "old", "--retention", "0"]);
    let is_gone = |cluster: &Cluster| {
        let listed = cluster.ask(&["volume", "list"]).unwrap_or_default().to_string();
        listed.contains("later") && !listed.contains("\"old\"")
    };
    wait_until("the volume is gone", || is_gone(&cluster));
    let status = cluster.ask(&["status"]).unwrap();
    assert!(cluster.terminate().success());
    let mut pods = Pods::of(cluster);
    for pod in 1..=PODS {
        fs::remove_dir_all(pods.data(pod).join("catalog")).unwrap();
        pods.start(pod);
    }
    for pod in 1..=PODS {
        pods.wait_data(pod, "kept", 1);
        pods.wait_data(pod, "later", 2);
    }
    assert_eq!(pods.cluster.ask(&["status"]), None, "there is no catalog");

    pods.stop(1);
    let data = pods.data(1);
    let (backup, data) = (text(&backup), text(&data));
    let plan = pods.catalog_done(&["restore", backup, "--data", data, "--dry-run"]);
    assert!(plan.contains("pods 2, 3") && plan.contains("Nothing was done"), "{plan}");
    let left = pods.catalog(&["abandon", "--data", data]);
    assert!(!left.status.success(), "nothing was begun: {left:?}");
    pods.catalog_done(&["restore", backup, "--data", data]);
    pods.start(1);
    wait_until("the catalog is back", || pods.cluster.ask(&["status"]).is_some());
    assert_eq!(pods.volumes(), ["kept", "later"]);
    for pod in 1..=PODS {
        pods.wait_data(pod, "kept", 1);
        pods.wait_data(pod, "later", 2);
    }
    let (before, now) = (status["revision"].as_u64(), pods.status("revision").as_u64());
    assert!(now > before, "revisions go on: {before:?}, {now:?}");
    wait_until("the catalog has three members again", || {
        pods.status("catalog")["voters_up"] == PODS
    });
    create(&pods.cluster, "new");
    write(&pods.cluster, "new", 3);
    pods.stop(1);
    wait_until("two members are enough", || pods.cluster.ask(&["status"]).is_some());
    pods.wait_data(2, "new", 3);
}

/// Two pods of three are given up, and then come back, with a majority of the old catalog.
#[test]
fn pods_that_were_given_up_do_not_bring_the_old_catalog_back() {
    let mut cluster = Setup::new("catalog_recovered").volume("kept", "64MiB").start();
    cluster.wait_healthy();
    write(&cluster, "kept", 1);
    assert!(cluster.terminate().success());
    let mut pods = Pods::of(cluster);
    let data = pods.data(1);
    let data = text(&data);
    pods.catalog_done(&["recover", "--from-survivor", data]);
    pods.catalog_done(&["abandon", "--data", data]);
    pods.catalog_done(&["recover", "--from-survivor", data]);
    pods.start(1);
    let missing = |pods: &Pods| {
        let recovery = pods.recovery(1).unwrap_or_default();
        let all = recovery["pods"].as_array().cloned().unwrap_or_default();
        all.iter().filter(|it| it["state"] == "missing").count()
    };
    wait_until("the recovery waits for two pods", || missing(&pods) == 2);
    assert_eq!(pods.cluster.ask(&["volume", "list"]), None, "nothing is decided meanwhile");
    let endpoint = pods.cluster.endpoint(1);
    let refused = pods.catalog(&["leave-out", "1", "--endpoint", &endpoint]);
    assert!(!refused.status.success(), "it is here: {refused:?}");
    pods.catalog_done(&["leave-out", "2", "3", "--endpoint", &endpoint]);
    wait_until("the catalog is back", || pods.cluster.ask(&["status"]).is_some());
    assert_eq!(pods.volumes(), ["kept"]);
    assert_eq!(pods.status("catalog")["voters"], 1);

    pods.start(2);
    pods.start(3);
    wait_until("the old members have given up", || {
        let status = |pod: usize| {
            let output = Command::new(program())
                .args(["status", "-o", "json", "--endpoint", &pods.cluster.endpoint(pod)])
                .output()
                .unwrap();
            serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap_or_default()
        };
        (1..=PODS).all(|pod| status(pod)["catalog"]["voters_up"] == PODS)
    });
    let revision = pods.status("revision").as_u64().unwrap();
    assert!(revision > 1 << 40, "it is the recovered one: {revision}");
    for pod in 1..=PODS {
        pods.wait_data(pod, "kept", 1);
    }
    create(&pods.cluster, "new");
    write(&pods.cluster, "new", 3);
}

/// The authority's key is sealed in the backup, and the recovery key opens it.
#[test]
fn a_backup_and_the_recovery_key_make_certificates_again() {
    let place = |node| Place { node, zone: "a", has_disk: true };
    let mut fleet = Fleet::start("catalog_sealed", &["w1", "w2", "w3"].map(place));
    fleet.must(&["volume", "create", "kept", "--size", "64MiB"]);
    fleet.front(2).connect_soon("kept").write(0, &noise(1, 64 * BLOCK)).unwrap();
    let token = |fleet: &Fleet, file: &str| {
        let made = fleet.run(2, &["token", "create", "--role", "viewer/v"]);
        let file = fleet.dir.join(file);
        fs::write(&file, made.stdout).unwrap();
        file
    };
    let old_token = token(&fleet, "old-token");
    let backup = fleet.dir.join("catalog.backup");
    assert!(fleet.run(3, &["catalog", "backup", text(&backup)]).status.success());

    // All that the pods know is lost, but for who they are.
    for pod in 1..=fleet.size() {
        fleet.stop(pod);
        fs::remove_dir_all(fleet.data(pod).join("catalog")).unwrap();
        fs::remove_file(fleet.data(pod).join("sync")).unwrap();
    }
    let data = fleet.data(1);
    let restore = |fleet: &Fleet, more: &[&str]| {
        let restore = ["catalog", "restore", text(&backup), "--data", text(&data)];
        fleet.run(1, &[&restore, more].concat())
    };
    let sealed = restore(&fleet, &["--dry-run"]);
    assert!(String::from_utf8_lossy(&sealed.stdout).contains("stays sealed"), "{sealed:?}");
    let wrong = fleet.dir.join("wrong-key");
    let key = fs::read_to_string(fleet.recovery_key()).unwrap();
    let digit = if key.ends_with('0') { "1" } else { "0" };
    fs::write(&wrong, key[..key.len() - 1].to_owned() + digit).unwrap();
    let refused = restore(&fleet, &["--recovery-key-file", text(&wrong)]);
    assert!(!refused.status.success(), "{refused:?}");
    let begun = restore(&fleet, &["--recovery-key-file", text(&fleet.recovery_key())]);
    assert!(begun.status.success(), "{begun:?}");
    (1..=fleet.size()).for_each(|pod| fleet.serve(pod));
    fleet.wait_well();

    let volumes = fleet.list(&["volume", "list"]);
    assert_eq!(volumes.iter().map(name).collect::<Vec<_>>(), ["kept"]);
    let read = fleet.front(3).connect_soon("kept").read(0, 64 * BLOCK).unwrap();
    assert!(read == noise(1, 64 * BLOCK));
    let renewed = fleet.over_network(2, &["cert", "renew", text(&fleet.admin())]);
    assert!(renewed.status.success(), "{renewed:?}");
    let gets = |token: &std::path::Path| {
        let to = fleet.dir.join("viewer");
        fleet.over_network(3, &["cert", "get", "--token-file", text(token), "--to", text(&to)])
    };
    assert!(!gets(&old_token).status.success(), "tokens are void");
    let got = gets(&token(&fleet, "new-token"));
    assert!(got.status.success(), "{got:?}");
}
