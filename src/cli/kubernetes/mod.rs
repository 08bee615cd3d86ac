//! `holdfast kubernetes ...`: what Holdfast needs around it in a Kubernetes cluster.

mod enrol;
pub mod fail_over;
mod manifests;
mod pod;
mod uninstall;

use crate::cli::{Global, block_on, printed};

#[derive(Debug, clap::Subcommand)]
pub enum KubernetesCommand {
    /// Get a certificate by the token of a service account, and write it as files
    Enrol(enrol::Args),
    /// Run a storage pod; the first ones make the cluster, the others join it
    Pod(pod::Args),
    /// Print what is applied to a cluster, as YAML
    Manifests(manifests::Args),
    /// Take Holdfast away from a cluster, unless it still has volumes
    Uninstall(uninstall::Args),
}

/// Carries it out.
pub fn run(global: &Global, command: KubernetesCommand) -> anyhow::Result<()> {
    match command {
        KubernetesCommand::Enrol(args) => block_on(enrol::run(global, &args)).and_then(printed),
        KubernetesCommand::Pod(args) => pod::run(args),
        KubernetesCommand::Manifests(args) => manifests::run(&args).and_then(printed),
        KubernetesCommand::Uninstall(args) => block_on(uninstall::run(&args)).and_then(printed),
    }
}
