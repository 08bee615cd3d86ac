//! `holdfast pod ...`

use clap::Subcommand;

use crate::cli::Output;
use crate::cli::client::Client;
use crate::cli::list::{WhichWatched, list_or_watch, show};
use crate::control::proto::Pod;

#[derive(Debug, Subcommand)]
pub enum PodCommand {
    /// List the pods
    List {
        #[command(flatten)]
        which: WhichWatched,
    },
    /// Show one pod
    Show { name: String },
}

pub async fn run(client: &Client, command: PodCommand, output: Output) -> anyhow::Result<String> {
    match command {
        PodCommand::List { which } => list_or_watch::<Pod>(client, &which, "", output).await,
        PodCommand::Show { name } => show::<Pod>(client, &name, output).await,
    }
}
