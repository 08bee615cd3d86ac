//! `holdfast attachment ...`

use clap::{Subcommand, ValueEnum};

use crate::cli::Output;
use crate::cli::client::{Client, request_id};
use crate::cli::list::{Which, deleted, list, one, show, watch};
use crate::cli::time::io_timeout;
use crate::control::proto::{AccessMode, Attachment, PublishRequest, UnpublishRequest};

#[derive(Debug, Subcommand)]
pub enum AttachmentCommand {
    /// List who may use which closed volume
    List {
        #[command(flatten)]
        which: Which,
        /// Only those of this volume
        #[arg(long)]
        volume: Option<String>,
        /// Only those of this node
        #[arg(long)]
        node: Option<String>,
        /// Go on with the changes until interrupted
        #[arg(short, long, conflicts_with_all = ["volume", "node"])]
        watch: bool,
    },
    /// Show one attachment, by its uid
    Show { name: String },
    /// Let a node use a closed volume
    Publish {
        volume: String,
        node: String,
        #[arg(long, value_enum, default_value_t = Mode::ReadWrite)]
        mode: Mode,
        /// I/O fails when it has waited for so long, as in 30s; 0: it waits for ever. By default as
        /// the volume says. Of an attachment that is there already: from now on
        #[arg(long, value_name = "TIME", value_parser = io_timeout)]
        io_timeout: Option<u64>,
    },
    /// Take a volume from a node, in whatever state the node is
    Unpublish { volume: String, node: String },
}

/// What a node may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// One node reads and writes
    ReadWrite,
    /// Many nodes read
    ReadOnly,
    /// Many nodes read and write, and coordinate that themselves
    Raw,
}

pub async fn run(
    client: &Client,
    command: AttachmentCommand,
    output: Output,
) -> anyhow::Result<String> {
    match command {
        AttachmentCommand::List { which, watch: true, .. } => {
            watch::<Attachment>(client, which.query(), output).await?;
            Ok(String::new())
        }
        AttachmentCommand::List { which, volume, node, .. } => {
            let (volume, node) = (volume.unwrap_or_default(), node.unwrap_or_default());
            list::<Attachment>(client, &which, &format!("{volume}/{node}"), output).await
        }
        AttachmentCommand::Show { name } => show::<Attachment>(client, &name, output).await,
        AttachmentCommand::Publish { volume, node, mode, io_timeout } => {
            let doing = format!("publish volume {volume} to node {node}");
            let mode = match mode {
                Mode::ReadWrite => AccessMode::ReadWrite,
                Mode::ReadOnly => AccessMode::ReadOnly,
                Mode::Raw => AccessMode::Raw,
            };
            let (mode, request_id) = (mode.into(), request_id()?);
            let io_timeout_ms = io_timeout;
            let volume_uid = String::new();
            let request =
                PublishRequest { volume, node, mode, request_id, io_timeout_ms, volume_uid };
            one(&client.check(doing, client.attachments().publish(request).await)?, output)
        }
        AttachmentCommand::Unpublish { volume, node } => {
            let doing = format!("take volume {volume} from node {node}");
            let what = format!("of volume {volume} on node {node}");
            let (request_id, volume_uid) = (request_id()?, String::new());
            let request = UnpublishRequest { volume, node, request_id, volume_uid };
            client.check(doing, client.attachments().unpublish(request).await)?;
            deleted("attachment", &what, output)
        }
    }
}
