//! `holdfast pod ...`

use clap::Subcommand;

use crate::cli::Output;
use crate::cli::client::Client;
use crate::cli::render;
use crate::control::proto::ListPodsRequest;

#[derive(Debug, Subcommand)]
pub enum PodCommand {
    /// List the pods
    List,
}

pub async fn run(client: &Client, command: PodCommand, output: Output) -> anyhow::Result<String> {
    let PodCommand::List = command;
    let answer = client.pods().list(ListPodsRequest {}).await;
    let pods = client.check("list the pods", answer)?.pods;
    match output {
        Output::Table => Ok(render::pods(&pods)),
        Output::Json => render::json(&pods),
    }
}
