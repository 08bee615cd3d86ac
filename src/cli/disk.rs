//! `holdfast disk ...`

use clap::Subcommand;

use crate::cli::Output;
use crate::cli::client::Client;
use crate::cli::list::{WhichWatched, list_or_watch, show};
use crate::control::proto::Disk;

#[derive(Debug, Subcommand)]
pub enum DiskCommand {
    /// List the disks
    List {
        #[command(flatten)]
        which: WhichWatched,
        /// Only disks of this pod
        #[arg(long)]
        pod: Option<u64>,
    },
    /// Show one disk
    Show { name: String },
}

pub async fn run(client: &Client, command: DiskCommand, output: Output) -> anyhow::Result<String> {
    match command {
        DiskCommand::List { which, pod } => {
            let within = pod.map(|pod| pod.to_string()).unwrap_or_default();
            list_or_watch::<Disk>(client, &which, &within, output).await
        }
        DiskCommand::Show { name } => show::<Disk>(client, &name, output).await,
    }
}
