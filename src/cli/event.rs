//! `holdfast event ...`

use clap::Subcommand;

use crate::cli::Output;
use crate::cli::client::Client;
use crate::cli::list::{Which, list, watch_within};
use crate::control::proto::Event;

#[derive(Debug, Subcommand)]
pub enum EventCommand {
    /// List what has happened, the oldest first
    List {
        /// Only what has happened to one object, as in volume/demo, or to one kind, as in node
        #[arg(long = "for", value_name = "KIND[/NAME]")]
        object: Option<String>,
        /// Go on with what happens until interrupted
        #[arg(short, long)]
        watch: bool,
    },
}

pub async fn run(client: &Client, command: EventCommand, output: Output) -> anyhow::Result<String> {
    let EventCommand::List { object, watch } = command;
    let (which, within) = (Which::default(), object.unwrap_or_default());
    if !watch {
        return list::<Event>(client, &which, &within, output).await;
    }
    watch_within::<Event>(client, which.query(), &within, output).await?;
    Ok(String::new())
}
