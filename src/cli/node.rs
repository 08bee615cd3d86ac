//! `holdfast node ...`

use clap::Subcommand;

use crate::cli::Output;
use crate::cli::client::Client;
use crate::cli::list::{WhichWatched, list_or_watch, one, show};
use crate::control::proto::{ClearLostRequest, DeclareLostRequest, Node};

#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// List the nodes
    List {
        #[command(flatten)]
        which: WhichWatched,
    },
    /// Show one node
    Show { name: String },
    /// Declare that a node is off: it loses its volumes, and gets no others in this boot
    Lost {
        name: String,
        /// The boot that is lost, as `node show` tells it
        #[arg(long)]
        boot_id: String,
    },
    /// Declare that a lost node has no old device any more
    ClearLost { name: String },
}

pub async fn run(client: &Client, command: NodeCommand, output: Output) -> anyhow::Result<String> {
    match command {
        NodeCommand::List { which } => list_or_watch::<Node>(client, &which, "", output).await,
        NodeCommand::Lost { name, boot_id } => {
            let doing = format!("declare node {name} lost");
            let request = DeclareLostRequest { name, boot_id };
            one(&client.check(doing, client.nodes().declare_lost(request).await)?, output)
        }
        NodeCommand::ClearLost { name } => {
            let doing = format!("clear node {name}");
            let request = ClearLostRequest { name };
            one(&client.check(doing, client.nodes().clear_lost(request).await)?, output)
        }
        NodeCommand::Show { name } => show::<Node>(client, &name, output).await,
    }
}
