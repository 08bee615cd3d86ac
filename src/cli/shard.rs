//! `holdfast shard ...`

use clap::Subcommand;

use crate::cli::Output;
use crate::cli::client::Client;
use crate::cli::list::{Which, list, show};
use crate::control::proto::Shard;

#[derive(Debug, Subcommand)]
pub enum ShardCommand {
    /// List the shards
    List {
        #[command(flatten)]
        which: Which,
        /// Only shards of this volume
        #[arg(long)]
        volume: Option<String>,
    },
    /// Show one shard
    Show { name: String },
}

pub async fn run(client: &Client, command: ShardCommand, output: Output) -> anyhow::Result<String> {
    match command {
        ShardCommand::List { which, volume } => {
            list::<Shard>(client, &which, &volume.unwrap_or_default(), output).await
        }
        ShardCommand::Show { name } => show::<Shard>(client, &name, output).await,
    }
}
