//! `holdfast kubernetes enrol`: gets a certificate by the token of a service account.

use std::path::PathBuf;

use clap::ValueEnum;

use crate::cli::Global;
use crate::config::Log;
use crate::kubernetes::enrol::{Wish, get};
use crate::telemetry::logs;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The role to get, which the service account has to be for
    #[arg(long, value_enum)]
    role: Wanted,
    /// File with the cluster's authorities, PEM; it may come later
    #[arg(long, value_name = "FILE")]
    authority: PathBuf,
    /// File with the token of the service account, for the audience `holdfast`
    #[arg(long, value_name = "FILE")]
    token_file: PathBuf,
    /// Node that the certificate is for: one that is there for another node is replaced
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    node: Option<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Wanted {
    /// For the node that the token's Pod is on
    CsiNode,
    CsiController,
}

/// Enrols, and returns what to print. The credentials go to the directory of `--credentials`.
pub async fn run(global: &Global, args: &Args) -> anyhow::Result<String> {
    logs::start(&Log::default())?;
    let Args { role, authority, token_file, node } = args;
    let Some(credentials) = &global.credentials else {
        anyhow::bail!("--credentials DIR is missing: the certificate is written there");
    };
    let role = match role {
        Wanted::CsiNode => "csi-node",
        Wanted::CsiController => "csi-controller",
    };
    let wish = Wish {
        role: role.to_owned(),
        node: node.clone(),
        endpoints: global.endpoint.clone(),
        authority: authority.clone(),
        token: token_file.clone(),
        credentials: credentials.clone(),
    };
    let role = get(&wish).await?;
    Ok(format!("{role} has a certificate in {}\n", credentials.display()))
}
