//! `holdfast doctor`: what keeps Holdfast from working well here, why it matters, and what to do.

use std::path::{Path, PathBuf};

use anyhow::bail;

use crate::cli::{Output, output, render};
use crate::control::catalog::chain;
use crate::doctor::machine::judge;
use crate::doctor::{Finding, Verdict, look};
use crate::kubernetes::client::open;
use crate::kubernetes::doctor as cluster;
use crate::kubernetes::survey::Survey;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Also look at this machine as a node of a Kubernetes cluster, and at that cluster: by
    /// KUBECONFIG, or by the service account of the pod that this runs in
    #[arg(long)]
    kubernetes: bool,
    /// Root directory of the machine to look at
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// Kubelet's directory, as the manifests have it
    #[arg(long, value_name = "DIR", default_value = "/var/lib/kubelet")]
    kubelet_root: PathBuf,
    /// Namespace of Holdfast
    #[arg(long, default_value = "holdfast")]
    namespace: String,
    /// Name of the CSI driver
    #[arg(long, default_value = crate::csi::DRIVER_NAME)]
    driver: String,
}

/// Prints all findings. An error: something does not work.
pub async fn run(args: &Args, output: Output) -> anyhow::Result<()> {
    let kubelet_root = args.kubernetes.then_some(args.kubelet_root.as_path());
    let mut findings = of_machine(&args.root, kubelet_root);
    if args.kubernetes {
        findings.extend(of_cluster(args).await);
    }
    let text = match output {
        Output::Table | Output::Wide => table(&findings),
        Output::Json => render::json(&findings)?,
        Output::Yaml => render::yaml(&findings)?,
    };
    output::print(&text)?;
    match findings.iter().filter(|finding| finding.verdict == Verdict::Bad).count() {
        0 => Ok(()),
        bad => bail!("{bad} of {} checks found something to mend", findings.len()),
    }
}

/// In a container, its own files would be looked at in place of the machine's.
fn of_machine(root: &Path, kubelet_root: Option<&Path>) -> Vec<Finding> {
    let marks = ["/.dockerenv", "/run/.containerenv"];
    let is_container = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some()
        || marks.iter().any(|mark| Path::new(mark).exists());
    if is_container && root == Path::new("/") {
        return vec![Finding::unknown(
            "machine",
            "this is a container",
            "Give the directory at which it has the root of the machine: --root /host",
        )];
    }
    judge(&look::machine(root), kubelet_root)
}

async fn of_cluster(args: &Args) -> Vec<Finding> {
    match open().await {
        Ok(client) => cluster::judge(&Survey::read(&client, &args.driver, &args.namespace).await),
        Err(error) => vec![Finding::unknown(
            "kubernetes",
            chain(&error),
            "Set KUBECONFIG to the file of a user who may list the objects of the cluster.",
        )],
    }
}

/// The worst findings come last, where people see them.
fn table(findings: &[Finding]) -> String {
    let mut text = String::new();
    let mut sorted: Vec<&Finding> = findings.iter().collect();
    sorted.sort_by_key(|finding| finding.verdict);
    for Finding { verdict, check, found, why, fix } in sorted {
        text.push_str(&format!("{:8} {check}: {found}\n", verdict.word()));
        for line in [why, fix].into_iter().filter(|line| !line.is_empty()) {
            text.push_str(&format!("{:8} {line}\n", ""));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_finding_comes_last() {
        let findings = [
            Finding::bad("one", "a", "because", "do"),
            Finding::good("two", "b"),
            Finding::unknown("three", "c", "look"),
        ];
        let expected = "good     two: b\n\
                        unknown  three: c\n         look\n\
                        bad      one: a\n         because\n         do\n";
        assert_eq!(table(&findings), expected);
    }
}
