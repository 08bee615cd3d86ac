//! What is applied to Kubernetes: `deploy/` is what the program prints, Helm makes the same objects
//! of the chart, Kubernetes' schemas know every field, and nothing names metrics or pages that do
//! not exist. To write `deploy/` anew: `UPDATE_GOLDEN=1 cargo test --release --test manifests`.
//!
//! `scripts/setup.sh test` fetches Helm and the schemas. Where a registry cannot be reached it
//! leaves a note, and the tests that need them say so.

mod support;

#[allow(dead_code, reason = "tests/kubernetes.rs uses the rest of it")]
#[path = "kubernetes/api.rs"]
mod api;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use holdfast::kubernetes::manifests::{
    Choice, DEFAULT_NAMESPACE, VALUES, documents, namespace, render, values,
};
use holdfast::telemetry::metrics::page;
use serde_json::{Value, json};
use support::program;

/// Values that take the other way at every branch of the templates.
const OTHERS: &[&str] = &[
    "csi.failOver=dry-run",
    "csi.controller.replicas=1",
    "global.imageRegistry=registry.example/mirror",
    "global.imagePullSecrets=[{name: mirror}]",
    "guard.enabled=false",
    "metrics.enabled=true",
    "persistence.defaultClass=false",
    "storage.nodeSelector={rack: a, disks: many}",
    "storage.extraConfig=[budgets]",
];
/// Objects that Kubernetes has schemas for only where the Prometheus operator is installed.
const MONITORING: &[&str] =
    &["metrics.serviceMonitor.enabled=true", "metrics.prometheusRule.enabled=true"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn chosen(assignments: &[&str]) -> Choice {
    let mut choice = Choice::of_defaults(DEFAULT_NAMESPACE).unwrap();
    assignments.iter().for_each(|assignment| choice.assign(assignment).unwrap());
    choice
}

/// Where `scripts/setup.sh` puts Helm and the schemas; `None`: they could not be fetched.
fn tools() -> Option<PathBuf> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let tools = target.join("tools/kubernetes");
    if let Ok(why) = fs::read_to_string(tools.join("unavailable")) {
        println!("not tested: {why}");
        return None;
    }
    assert!(tools.join("helm").exists(), "Helm is missing: scripts/setup.sh test fetches it");
    Some(tools)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let (said, complained) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{said}{complained}", output.status);
    output
}

/// The objects by what tells them apart.
fn objects(text: &str) -> BTreeMap<String, Value> {
    let all = documents(text).unwrap();
    let count = all.len();
    let key = |object: &Value| {
        let meta = &object["metadata"];
        format!("{} {} {}", object["kind"], meta["namespace"], meta["name"])
    };
    let all: BTreeMap<String, Value> = all.into_iter().map(|it| (key(&it), it)).collect();
    assert_eq!(all.len(), count, "two objects have one name");
    all
}

#[test]
fn deploy_is_what_the_program_prints() {
    let choice = chosen(&[]);
    let schema = values::schema(&values::parse(VALUES).unwrap());
    let schema = serde_json::to_string_pretty(&schema).unwrap() + "\n";
    for (path, made) in [
        ("deploy/kubernetes/holdfast.yaml", render(&choice).unwrap()),
        ("deploy/kubernetes/namespace.yaml", namespace(&choice)),
        ("deploy/helm/holdfast/values.schema.json", schema),
    ] {
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(root().join(path), &made).unwrap();
        }
        let hint = "UPDATE_GOLDEN=1 cargo test --release --test manifests";
        assert!(read(path) == made, "{path} is not what the program prints; write it anew: {hint}");
    }
    let printed = run(Command::new(program()).args(["kubernetes", "manifests"]));
    assert_eq!(text(&printed.stdout), read("deploy/kubernetes/holdfast.yaml"));
    let chart = documents(&read("deploy/helm/holdfast/Chart.yaml")).unwrap().remove(0);
    assert_eq!(chart["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"));
}

/// The containers of an object that run this program.
fn our_containers(object: &Value) -> Vec<&Value> {
    let pod = &object["spec"]["template"]["spec"];
    let all = ["initContainers", "containers"].into_iter().filter_map(|of| pod[of].as_array());
    let ours = |container: &&Value| {
        let image = container["image"].as_str().unwrap();
        image.starts_with("localhost/holdfast:") && container["command"].is_null()
    };
    all.flatten().filter(ours).collect()
}

/// Options that another version does not know would keep every pod from starting.
#[test]
fn the_program_takes_the_arguments_of_its_containers() {
    let mut count = 0;
    for assignments in [&[][..], &["metrics.enabled=true", "csi.failOver=dry-run"]] {
        let objects = documents(&render(&chosen(assignments)).unwrap()).unwrap();
        for container in objects.iter().flat_map(our_containers) {
            let arguments = container["args"].as_array().unwrap().iter();
            let arguments: Vec<String> = arguments
                .map(|it| it.as_str().unwrap().replace("$(HOST_IP)", "192.0.2.1"))
                .collect();
            // It reads all that stands before.
            let output = Command::new(program()).args(&arguments).arg("--help").output().unwrap();
            assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
            count += 1;
        }
    }
    assert_eq!(count, 2 * 7);
}

#[test]
fn helm_makes_the_same_objects() {
    let Some(tools) = tools() else { return };
    let chart = root().join("deploy/helm/holdfast");
    run(Command::new(tools.join("helm")).args(["lint", "--strict"]).arg(&chart));
    let directory = tempfile::tempdir().unwrap();
    for assignments in [&[][..], OTHERS, MONITORING] {
        let choice = chosen(assignments);
        let file = directory.path().join("values.json");
        fs::write(&file, choice.values.to_string()).unwrap();
        let mut helm = Command::new(tools.join("helm"));
        helm.args(["template", "holdfast", "--no-hooks", "--kube-version", "1.34.0"]);
        helm.args(["--namespace", DEFAULT_NAMESPACE, "--values"]).arg(&file).arg(&chart);
        let theirs = objects(&text(&run(&mut helm).stdout));
        let ours = objects(&render(&choice).unwrap());
        let names = |all: &BTreeMap<String, Value>| all.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&ours), names(&theirs), "{assignments:?}");
        for (name, object) in &ours {
            assert_eq!(object, &theirs[name], "{name} with {assignments:?}");
        }
    }
    // Helm refuses what the program refuses.
    for wrong in ["csi.failOver=perhaps", "storage.dsks=1", "csi.controller.replicas=many"] {
        let mut helm = Command::new(tools.join("helm"));
        helm.args(["template", "x", "--kube-version", "1.34.0", "--set", wrong]).arg(&chart);
        assert!(!helm.output().unwrap().status.success(), "{wrong}");
        let mut choice = chosen(&[]);
        assert!(choice.assign(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn kubernetes_knows_every_field() {
    let Some(tools) = tools() else { return };
    let directory = tempfile::tempdir().unwrap();
    let chart = root().join("deploy/helm/holdfast");
    let mut helm = Command::new(tools.join("helm"));
    helm.args(["template", "holdfast", "--kube-version", "1.34.0"]).arg(&chart);
    let all = [
        ("defaults", render(&chosen(&[])).unwrap()),
        ("others", render(&chosen(OTHERS)).unwrap()),
        // With the hooks, which the program does not print.
        ("chart", text(&run(&mut helm).stdout)),
        ("namespace", read("deploy/kubernetes/namespace.yaml")),
    ];
    for (name, made) in all {
        let file = directory.path().join(format!("{name}.yaml"));
        fs::write(&file, made).unwrap();
        // The least version, and the newest one that the package knows.
        for version in [&["-k", "1.34"][..], &[]] {
            let mut validate = Command::new(tools.join("venv/bin/kubernetes-validate"));
            run(validate.args(["--strict", "--quiet"]).args(version).arg(&file));
        }
    }
}

/// Names of metrics in a text.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let is_letter = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    let words = text.split(|letter| !is_letter(letter));
    let is_metric = |word: &&str| word.starts_with("holdfast_") || word.starts_with("process_");
    words.filter(is_metric).map(str::to_owned).collect()
}

#[test]
fn alerts_and_the_dashboard_use_metrics_that_exist() {
    let page = page::markdown();
    let kinds: BTreeMap<&str, &str> = page
        .lines()
        .filter_map(|line| {
            let mut cells = line.split('|').map(str::trim).skip(1);
            Some((cells.next()?.strip_prefix('`')?.strip_suffix('`')?, cells.next()?))
        })
        .collect();
    assert!(kinds.len() > 40, "{kinds:?}");
    let alerts = render(&chosen(MONITORING)).unwrap();
    let rules = documents(&alerts).unwrap().into_iter().find(|it| it["kind"] == "PrometheusRule");
    let rules = rules.unwrap()["spec"].to_string();
    for (of, text) in [("alerts", rules), ("dashboard", read("deploy/grafana/holdfast.json"))] {
        let used = metrics_in(&text);
        assert!(used.len() > 10, "{of}: {used:?}");
        for name in used {
            // A histogram is asked for by its buckets, and everything else by its own name.
            let (base, is_bucket) = match name.strip_suffix("_bucket") {
                Some(base) => (base, true),
                None => (name.as_str(), false),
            };
            let kind = kinds.get(base);
            assert!(kind.is_some(), "{of}: docs/metrics.md has no {base}");
            assert_eq!(is_bucket, kind == Some(&"histogram"), "{of}: {name}");
        }
    }
    let board: Value = serde_json::from_str(&read("deploy/grafana/holdfast.json")).unwrap();
    assert_eq!(board["uid"], "holdfast");
}

#[test]
fn each_alert_has_a_chapter() {
    let alerts = documents(&render(&chosen(MONITORING)).unwrap()).unwrap();
    let rules = alerts.iter().find(|it| it["kind"] == "PrometheusRule").unwrap();
    let rules = rules["spec"]["groups"][0]["rules"].as_array().unwrap();
    let page = read("docs/operating.md");
    let chapters: BTreeSet<String> = page
        .lines()
        .filter_map(|line| Some(line.strip_prefix("### ")?.to_ascii_lowercase()))
        .collect();
    let mut named = BTreeSet::new();
    for rule in rules {
        let url = rule["annotations"]["runbook_url"].as_str().unwrap();
        let (page, anchor) = url.split_once('#').unwrap();
        assert_eq!(page, "docs/operating.md");
        assert_eq!(anchor, rule["alert"].as_str().unwrap().to_ascii_lowercase());
        assert!(chapters.contains(anchor), "docs/operating.md has no chapter {anchor}");
        assert!(["critical", "warning"].contains(&rule["labels"]["severity"].as_str().unwrap()));
        named.insert(anchor.to_owned());
    }
    let of_alerts = chapters.into_iter().filter(|chapter| chapter.starts_with("holdfast"));
    assert_eq!(of_alerts.collect::<BTreeSet<_>>(), named, "chapters of alerts that do not exist");
}

/// A Kubernetes cluster with what the manifests have, and Holdfast's command against it.
struct Installed {
    api: api::FakeApi,
    directory: tempfile::TempDir,
}

impl Installed {
    fn new() -> Installed {
        let api = api::FakeApi::start();
        for object in documents(&render(&chosen(&[])).unwrap()).unwrap() {
            let kind = object["kind"].as_str().unwrap().to_ascii_lowercase();
            let plural = if kind.ends_with("ss") { kind + "es" } else { kind + "s" };
            let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default().to_owned();
            api.put(&plural, &namespace, object);
        }
        Installed { api, directory: tempfile::tempdir().unwrap() }
    }

    fn put_volume(&self, name: &str, driver: &str) {
        let spec = json!({
            "csi": { "driver": driver, "volumeHandle": "h" },
            "claimRef": { "namespace": "shop", "name": "db-0" },
        });
        let meta = json!({ "name": name });
        self.api.put("persistentvolumes", "", json!({ "metadata": meta, "spec": spec }));
    }

    fn uninstall(&self, options: &[&str]) -> Output {
        let kubeconfig = self.api.kubeconfig(self.directory.path(), "admin");
        let mut command = Command::new(program());
        command.env("KUBECONFIG", kubeconfig).args(["kubernetes", "uninstall"]).args(options);
        command.output().unwrap()
    }

    fn deleted(&self) -> Vec<String> {
        let all = self.api.recorded().into_iter();
        all.filter_map(|it| Some(it.what.strip_prefix("DELETE ")?.to_owned())).collect()
    }
}

#[test]
fn uninstall_refuses_while_there_are_volumes() {
    let installed = Installed::new();
    installed.put_volume("pv-7", "csi.holdfast.io");
    for options in [&[][..], &["--dry-run"]] {
        let output = installed.uninstall(options);
        let said = text(&output.stderr);
        assert!(!output.status.success(), "{said}");
        assert!(said.contains("pv-7 (shop/db-0)"), "{said}");
    }
    assert_eq!(installed.deleted(), [""; 0]);
}

#[test]
fn uninstall_takes_what_was_applied_and_leaves_the_cluster() {
    let installed = Installed::new();
    installed.put_volume("pv-1", "csi.example");
    let output = installed.uninstall(&["--dry-run"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    // The two Secrets and the ConfigMap of the cluster stay.
    let count = objects(&read("deploy/kubernetes/holdfast.yaml")).len() - 3;
    assert_eq!(text(&output.stdout).lines().count(), count);
    assert_eq!(installed.deleted(), [""; 0]);

    let output = installed.uninstall(&[]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let deleted = installed.deleted();
    assert_eq!(deleted.len(), count, "{deleted:?}");
    let place = |what: &str| deleted.iter().position(|it| it == what).unwrap();
    assert!(place("deployments/holdfast-csi-controller") < place("daemonsets/holdfast-pod"));
    for kind in ["daemonsets", "deployments", "clusterroles", "storageclasses", "csidrivers"] {
        assert!(installed.api.names(kind).is_empty(), "{kind}");
    }
    assert_eq!(installed.api.names("secrets"), ["holdfast-cluster", "holdfast-recovery"]);
    assert_eq!(installed.api.names("configmaps"), ["holdfast-cluster"]);
    assert_eq!(installed.api.names("persistentvolumes"), ["pv-1"]);
    // Nothing is left to do, and that is no error.
    assert!(installed.uninstall(&[]).status.success());
}
