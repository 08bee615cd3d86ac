//! `holdfast volume ...`

use std::time::Duration;

use anyhow::bail;
use clap::Subcommand;
use tokio::time::{Instant, sleep};
use tonic::Code;

use crate::cli::Output;
use crate::cli::client::{Client, request_id};
use crate::cli::exit::NotCreated;
use crate::cli::{output, render};
use crate::config::size::ByteSize;
use crate::control::names::check_name;
use crate::control::proto::{
    CreateVolumeRequest, DeleteVolumeRequest, GetVolumeRequest, ListVolumesRequest, Volume,
    VolumeState,
};

/// A new volume usually takes less than a second.
const CREATED_WITHIN: Duration = Duration::from_secs(60);
const QUIET_FOR: Duration = Duration::from_secs(3);
const ASK_EVERY: Duration = Duration::from_millis(100);

#[derive(Debug, Subcommand)]
pub enum VolumeCommand {
    /// Create a volume
    Create {
        /// A DNS label: a-z, 0-9 and -
        #[arg(value_parser = volume_name)]
        name: String,
        /// As in 10GiB
        #[arg(long)]
        size: ByteSize,
        /// Copies, each on another pod: 1, 3 or 5
        #[arg(long, default_value_t = 3)]
        replicas: u32,
        /// Return when the volume is recorded, before it can be used
        #[arg(long)]
        no_wait: bool,
    },
    /// List the volumes
    List,
    /// Show one volume with its shards
    Show { name: String },
    /// Delete a volume and everything on it
    Delete { name: String },
}

pub async fn run(
    client: &Client,
    command: VolumeCommand,
    output: Output,
) -> anyhow::Result<String> {
    let mut volumes = client.volumes();
    match command {
        VolumeCommand::Create { name, size, replicas, no_wait } => {
            let doing = format!("create volume {name}");
            let request_id = request_id()?;
            let size_bytes = size.0;
            let request = CreateVolumeRequest { name, size_bytes, replicas, request_id };
            let mut volume = client.check(doing, volumes.create(request).await)?;
            if !no_wait {
                volume = until_created(client, volume).await?;
            }
            match output {
                Output::Table => Ok(render::volumes(&[volume])),
                Output::Json => render::json(&volume),
            }
        }
        VolumeCommand::List => {
            let answer = volumes.list(ListVolumesRequest {}).await;
            let volumes = client.check("list the volumes", answer)?.volumes;
            match output {
                Output::Table => Ok(render::volumes(&volumes)),
                Output::Json => render::json(&volumes),
            }
        }
        VolumeCommand::Show { name } => {
            let doing = format!("show volume {name}");
            let volume = client.check(doing, volumes.get(GetVolumeRequest { name }).await)?;
            match output {
                Output::Table => Ok(render::volume(&volume)),
                Output::Json => render::json(&volume),
            }
        }
        VolumeCommand::Delete { name } => {
            let doing = format!("delete volume {name}");
            let request_id = request_id()?;
            let request = DeleteVolumeRequest { name: name.clone(), request_id, volume: None };
            client.check(doing, volumes.delete(request).await)?;
            match output {
                Output::Table => Ok(format!("volume {name} is deleted\n")),
                Output::Json => render::json(&serde_json::json!({ "deleted": name })),
            }
        }
    }
}

/// Waits until a new volume can be used. An end of the waiting leaves the volume as it is.
async fn until_created(client: &Client, created: Volume) -> anyhow::Result<Volume> {
    let (begin, mut is_told) = (Instant::now(), false);
    let mut volume = created;
    while volume.state() == VolumeState::Creating {
        let name = volume.name.clone();
        if begin.elapsed() >= CREATED_WITHIN {
            let reason = volume.reason;
            return Err(NotCreated { name, reason, waited: CREATED_WITHIN }.into());
        }
        if begin.elapsed() >= QUIET_FOR && !is_told {
            is_told = true;
            output::note(&format!(
                "volume {name} is recorded; waiting until it can be used: {} (Ctrl-C leaves the \
                 volume, --no-wait does not wait)",
                volume.reason
            ));
        }
        sleep(ASK_EVERY).await;
        let id = volume.id;
        let answer = client.volumes().get(GetVolumeRequest { name: name.clone() }).await;
        volume = match client.check(format!("wait for volume {name}, which is recorded"), answer) {
            // A change of the catalog's leader passes.
            Err(error) if error.code() == Code::Unavailable => volume,
            answer => answer?,
        };
        if volume.id != id {
            bail!("volume {name} was deleted while this waited for it");
        }
    }
    Ok(volume)
}

/// Parser for clap: returns a valid name, or the reason of its refusal.
pub fn volume_name(text: &str) -> Result<String, String> {
    check_name(text).map_err(|error| error.to_string())?;
    Ok(text.to_owned())
}
