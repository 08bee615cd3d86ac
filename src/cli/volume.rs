//! `holdfast volume ...`

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Subcommand;
use tokio::time::Instant;
use tonic::Code;

use crate::cli::client::{Client, request_id};
use crate::cli::exit::{NotCreated, UsageError, WaitedInVain};
use crate::cli::list::{WhichWatched, deleted, label, list_or_watch, one};
use crate::cli::noun::Noun as _;
use crate::cli::render::Rows as _;
use crate::cli::time::span;
use crate::cli::wait::{Wanted, until};
use crate::cli::{Output, output, render};
use crate::config::size::ByteSize;
use crate::control::names::check_name;
use crate::control::objects::describe::Object as _;
use crate::control::objects::selector::{Labels, check_labels};
use crate::control::proto::{
    CreateVolumeRequest, DeleteVolumeRequest, ListShardsRequest, Phase, Query, SetOpenRequest,
    UndeleteVolumeRequest, UpdateVolumeRequest, Volume, VolumeSpec,
};

/// A new volume usually takes less than a second.
const CREATED_WITHIN: Duration = Duration::from_secs(60);
/// New shards usually take less than a second, too.
const GROWN_WITHIN: Duration = Duration::from_secs(60);
/// A resize is tried so often while the volume's record changes.
const RESIZES_MAX: usize = 10;
const QUIET_FOR: Duration = Duration::from_secs(3);
/// Shards that `show` lists at most.
const SHARDS_SHOWN: u32 = 20;

#[derive(Debug, Subcommand)]
pub enum VolumeCommand {
    /// Create a volume; the same again does nothing
    Create {
        /// 1 to 128 of a-z, A-Z, 0-9, `.`, `_` and `-`
        #[arg(value_parser = volume_name)]
        name: String,
        /// As in 10GiB
        #[arg(long)]
        size: ByteSize,
        /// What kind of volume; `holdfast class list` shows what there is
        #[arg(long, default_value = "replicated")]
        class: String,
        /// Copies, each on another pod: 1, 3 or 5; by default as the class says
        #[arg(long)]
        replicas: Option<u32>,
        /// A label of the volume; may be repeated
        #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
        labels: Vec<(String, String)>,
        /// Let only nodes use it that it is published to
        #[arg(long)]
        closed: bool,
        /// Return when the volume is recorded, before it can be used
        #[arg(long)]
        no_wait: bool,
    },
    /// List the volumes
    List {
        #[command(flatten)]
        which: WhichWatched,
    },
    /// Show one volume
    Show { name: String },
    /// Give a volume labels, or take them away
    Label {
        name: String,
        /// KEY=VALUE sets a label, KEY- takes it away
        #[arg(required = true, value_name = "LABEL")]
        labels: Vec<String>,
    },
    /// Make a volume larger, also while clients use it
    Resize {
        name: String,
        /// As in 10GiB; a volume does not shrink
        size: ByteSize,
        /// Return when the size is recorded, before clients can use it
        #[arg(long)]
        no_wait: bool,
    },
    /// Delete a volume; for a day it can be brought back
    Delete {
        name: String,
        /// Also while a node has it
        #[arg(long)]
        force: bool,
        /// For how long it can be brought back, as in 90m, 24h or 7d; 0: not at all
        #[arg(long, default_value = "24h", value_parser = span)]
        retention: Duration,
        /// Free the space and the name of a volume that is deleted already
        #[arg(long, conflicts_with_all = ["force", "retention"])]
        purge: bool,
    },
    /// Let everybody with rights use a volume, without an attachment
    Open { name: String },
    /// Let only the nodes use a volume that it is published to. Clients without are cut off
    Close { name: String },
    /// Bring a deleted volume back, with all that was on it
    Undelete {
        name: String,
        /// Return before clients can use the volume
        #[arg(long)]
        no_wait: bool,
    },
}

pub async fn run(
    client: &Client,
    command: VolumeCommand,
    output: Output,
) -> anyhow::Result<String> {
    match command {
        VolumeCommand::Create { name, size, class, replicas, labels, closed, no_wait } => {
            let labels: Labels = labels.into_iter().collect();
            check_labels(&labels).map_err(|error| UsageError(error.to_string()))?;
            let replicas = replicas.unwrap_or(0);
            let spec = VolumeSpec { size_bytes: size.0, class, replicas, closed };
            let mut volume = create(client, &name, spec, labels).await?;
            if !no_wait && volume.phase() == Phase::Creating {
                volume = until_created(client, volume).await?;
            }
            match output {
                Output::Table | Output::Wide => Ok(render::objects(&[volume], output.is_wide())),
                Output::Json | Output::Yaml => one(&volume, output),
            }
        }
        VolumeCommand::List { which } => list_or_watch::<Volume>(client, &which, "", output).await,
        VolumeCommand::Show { name } => show(client, &name, output).await,
        VolumeCommand::Label { name, labels } => {
            let volume = Volume::get(client, &name).await?;
            let revision = volume.meta().revision;
            let labels = relabelled(volume.meta().labels.clone(), &labels)?;
            let (doing, request_id) = (format!("label volume {name}"), request_id()?);
            let labels = labels.into_iter().collect();
            let size_bytes = 0;
            let request = UpdateVolumeRequest { name, revision, labels, request_id, size_bytes };
            one(&client.check(doing, client.volumes().update(request).await)?, output)
        }
        VolumeCommand::Resize { name, size, no_wait } => {
            let mut volume = resize(client, &name, size).await?;
            if !no_wait && volume.usable_bytes() < size.0 {
                let wanted = Wanted::Size(size.0);
                let found = until(client, &name, &wanted, GROWN_WITHIN, |_: &Volume| ()).await?;
                volume = found.unwrap_or(volume);
            }
            one(&volume, output)
        }
        VolumeCommand::Delete { name, force, retention, purge } => {
            let doing = match purge {
                true => format!("purge volume {name}"),
                false => format!("delete volume {name}"),
            };
            let retention_s = Some(retention.as_secs());
            let (request_id, uid) = (request_id()?, String::new());
            let request = DeleteVolumeRequest {
                name: name.clone(),
                request_id,
                uid,
                force,
                retention_s,
                purge,
            };
            client.check(doing, client.volumes().delete(request).await)?;
            if !purge && !retention.is_zero() && matches!(output, Output::Table | Output::Wide) {
                output::note(&format!("`holdfast volume undelete {name}` brings it back"));
            }
            deleted("volume", &name, output)
        }
        VolumeCommand::Open { name } => one(&set_open(client, name, true).await?, output),
        VolumeCommand::Close { name } => one(&set_open(client, name, false).await?, output),
        VolumeCommand::Undelete { name, no_wait } => {
            let (doing, request_id) = (format!("undelete volume {name}"), request_id()?);
            let uid = String::new();
            let request = UndeleteVolumeRequest { name, request_id, uid };
            let mut volume = client.check(doing, client.volumes().undelete(request).await)?;
            if !no_wait && volume.phase() == Phase::Creating {
                volume = until_created(client, volume).await?;
            }
            one(&volume, output)
        }
    }
}

async fn set_open(client: &Client, name: String, open: bool) -> anyhow::Result<Volume> {
    let doing = format!("{} volume {name}", if open { "open" } else { "close" });
    let request = SetOpenRequest { name, open, request_id: request_id()?, uid: String::new() };
    Ok(client.check(doing, client.volumes().set_open(request).await)?)
}

/// Asks for a larger size. The labels stay as they are.
async fn resize(client: &Client, name: &str, size: ByteSize) -> anyhow::Result<Volume> {
    let (doing, size_bytes) = (format!("resize volume {name}"), size.0);
    let mut tries = 0;
    loop {
        let volume = Volume::get(client, name).await?;
        let (revision, labels) = (volume.meta().revision, volume.meta().labels.clone());
        let (name, request_id) = (name.to_owned(), request_id()?);
        let labels = labels.into_iter().collect();
        let request = UpdateVolumeRequest { name, revision, labels, request_id, size_bytes };
        let answer = client.volumes().update(request).await;
        tries += 1;
        // Its record has changed meanwhile, perhaps by itself.
        if tries < RESIZES_MAX && answer.as_ref().is_err_and(|it| it.code() == Code::Aborted) {
            continue;
        }
        return Ok(client.check(doing, answer)?);
    }
}

/// The labels after these changes.
fn relabelled(mut labels: Labels, changes: &[String]) -> Result<Labels, UsageError> {
    for change in changes {
        match (change.split_once('='), change.strip_suffix('-')) {
            (Some((key, value)), _) => {
                labels.insert(key.to_owned(), value.to_owned());
            }
            (None, Some(key)) => {
                labels.remove(key);
            }
            (None, None) => {
                let text = format!("{change:?} is neither KEY=VALUE nor KEY-");
                return Err(UsageError(text));
            }
        }
    }
    check_labels(&labels).map_err(|error| UsageError(error.to_string()))?;
    Ok(labels)
}

/// Asks for a volume.
pub async fn create(
    client: &Client,
    name: &str,
    spec: VolumeSpec,
    labels: BTreeMap<String, String>,
) -> anyhow::Result<Volume> {
    let request = CreateVolumeRequest {
        name: name.to_owned(),
        spec: Some(spec),
        labels: labels.into_iter().collect(),
        request_id: request_id()?,
        nodes: Vec::new(),
    };
    let answer = client.volumes().create(request).await;
    Ok(client.check(format!("create volume {name}"), answer)?)
}

/// A volume with its first shards.
async fn show(client: &Client, name: &str, output: Output) -> anyhow::Result<String> {
    let volume = Volume::get(client, name).await?;
    let text = one(&volume, output)?;
    if matches!(output, Output::Json | Output::Yaml) {
        return Ok(text);
    }
    let query = Query { page_size: SHARDS_SHOWN, ..Query::default() };
    let request = ListShardsRequest { query: Some(query), volume: name.to_owned() };
    let answer = client.shards().list(request).await;
    let shards = client.check(format!("list the shards of volume {name}"), answer)?.shards;
    let mut text = format!("{text}\n{}", render::objects(&shards, output.is_wide()));
    let more = volume.status.map_or(0, |status| status.shards).saturating_sub(shards.len() as u64);
    if more > 0 {
        text += &format!("and {more} more: `holdfast shard list --volume {name}`\n");
    }
    Ok(text)
}

/// Waits until a new volume can be used. An end of the waiting leaves the volume as it is.
async fn until_created(client: &Client, created: Volume) -> anyhow::Result<Volume> {
    let (begin, mut told) = (Instant::now(), String::new());
    let name = created.meta().name.clone();
    let tell = |volume: &Volume| {
        let state = progress(volume);
        if begin.elapsed() >= QUIET_FOR && state != told {
            output::note(&format!(
                "volume {name} is recorded; waiting until it can be used: {state} (Ctrl-C leaves \
                 the volume, --no-wait does not wait)"
            ));
            told = state;
        }
    };
    match until(client, &created.meta().name, &Wanted::Usable, CREATED_WITHIN, tell).await {
        Ok(volume) => Ok(volume.unwrap_or(created)),
        Err(error) => match error.downcast::<WaitedInVain>() {
            Ok(WaitedInVain { name, now, waited, .. }) => {
                Err(NotCreated { name, reason: now, waited }.into())
            }
            Err(error) => Err(error),
        },
    }
}

/// `3 of 12 replicas`, or what is missing.
fn progress(volume: &Volume) -> String {
    let status = volume.status.clone().unwrap_or_default();
    match status.progress {
        Some(it) if it.done < it.total => format!("{} of {} {}", it.done, it.total, it.unit),
        _ => status.conditions.first().map(|it| it.message.clone()).unwrap_or_default(),
    }
}

/// Parser for clap: returns a valid name, or the reason of its refusal.
pub fn volume_name(text: &str) -> Result<String, String> {
    check_name(text).map_err(|error| error.to_string())?;
    Ok(text.to_owned())
}
