//! `holdfast node ...`

use clap::Subcommand;

use crate::cli::Output;
use crate::cli::client::Client;
use crate::cli::list::{WhichWatched, list_or_watch, show};
use crate::control::proto::Node;

#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// List the nodes
    List {
        #[command(flatten)]
        which: WhichWatched,
    },
    /// Show one node
    Show { name: String },
}

pub async fn run(client: &Client, command: NodeCommand, output: Output) -> anyhow::Result<String> {
    match command {
        NodeCommand::List { which } => list_or_watch::<Node>(client, &which, "", output).await,
        NodeCommand::Show { name } => show::<Node>(client, &name, output).await,
    }
}
