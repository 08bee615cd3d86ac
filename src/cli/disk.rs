//! `holdfast disk ...`

use clap::Subcommand;

use crate::cli::Output;
use crate::cli::client::Client;
use crate::cli::render;
use crate::control::proto::ListDisksRequest;

#[derive(Debug, Subcommand)]
pub enum DiskCommand {
    /// List the disks
    List,
}

pub async fn run(client: &Client, command: DiskCommand, output: Output) -> anyhow::Result<String> {
    let DiskCommand::List = command;
    let answer = client.disks().list(ListDisksRequest {}).await;
    let disks = client.check("list the disks", answer)?.disks;
    match output {
        Output::Table => Ok(render::disks(&disks)),
        Output::Json => render::json(&disks),
    }
}
