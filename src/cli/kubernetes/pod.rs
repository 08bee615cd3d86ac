//! `holdfast kubernetes pod`: the program of a storage pod's container.

use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::Context;

use crate::cli::serve::serve;
use crate::kubernetes::pod::{Setting, bootstrap, publish_for_ever};
use crate::kubernetes::template::{Place, fill};
use crate::kubernetes::zone;
use crate::telemetry::logs;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory for the pod's identity, certificate and catalog, which outlives the container
    #[arg(long, value_name = "DIR")]
    directory: PathBuf,
    /// Configuration of all storage pods: what differs between nodes is filled in
    #[arg(long, value_name = "TEMPLATE")]
    config: PathBuf,
    /// Labels of storage nodes
    #[arg(long, default_value = "holdfast.io/storage=true", value_name = "SELECTOR")]
    selector: String,
    /// Least number of storage nodes that report empty disks before a cluster is made
    #[arg(long, default_value_t = 3, value_name = "COUNT")]
    expect: usize,
    /// Name of a storage node, instead of a selector; may be repeated
    #[arg(long = "expect-node", value_name = "NAME")]
    expect_nodes: Vec<String>,
    /// File with the token of the service account, for the audience `holdfast`
    #[arg(long, default_value = "/var/run/secrets/holdfast/token", value_name = "FILE")]
    token_file: PathBuf,
    /// Name of the node that this pod runs on
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    node_name: String,
    /// Address of that node
    #[arg(long, env = "HOST_IP", value_name = "IP")]
    host_ip: IpAddr,
    /// Namespace of the pod
    #[arg(long, env = "NAMESPACE", value_name = "NAMESPACE")]
    namespace: String,
}

/// Waits until this pod belongs to a cluster, and serves.
pub fn run(args: Args) -> anyhow::Result<()> {
    let template = std::fs::read_to_string(&args.config)
        .with_context(|| format!("could not read {}", args.config.display()))?;
    let place = Place {
        directory: args.directory,
        node: args.node_name.clone(),
        host: args.host_ip,
        namespace: args.namespace.clone(),
    };
    let config = fill(&template, &place)?;
    logs::start(&config.log)?;
    let setting = Setting {
        config,
        node: args.node_name,
        namespace: args.namespace,
        selector: args.selector,
        named: args.expect_nodes,
        least: args.expect,
        token: args.token_file,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("could not start the thread that follows Kubernetes")?;
    let mut config = runtime.block_on(bootstrap(&setting))?;
    let labels = runtime.block_on(zone::labels(&config.data, &setting.node));
    for (name, value) in labels {
        // What the template says comes first.
        config.node.labels.entry(name).or_insert(value);
    }
    // On a thread of its own: nothing of it may hold up the pod.
    std::thread::Builder::new()
        .name("kubernetes".to_owned())
        .spawn(move || runtime.block_on(publish_for_ever(setting)))
        .context("could not start the thread that follows Kubernetes")?;
    serve(config)
}
