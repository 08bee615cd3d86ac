//! `holdfast volume ...`

use clap::Subcommand;

use crate::cli::Output;
use crate::cli::client::{Client, request_id};
use crate::cli::render;
use crate::config::size::ByteSize;
use crate::control::names::check_volume_name;
use crate::control::proto::{
    CreateVolumeRequest, DeleteVolumeRequest, GetVolumeRequest, ListVolumesRequest,
};

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
        VolumeCommand::Create { name, size, replicas } => {
            let doing = format!("create volume {name}");
            let request_id = request_id()?;
            let size_bytes = size.0;
            let request = CreateVolumeRequest { name, size_bytes, replicas, request_id };
            let volume = client.check(doing, volumes.create(request).await)?;
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

/// Parser for clap: returns a valid name, or the reason of its refusal.
pub fn volume_name(text: &str) -> Result<String, String> {
    check_volume_name(text).map_err(|error| error.to_string())?;
    Ok(text.to_owned())
}
