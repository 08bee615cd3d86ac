//! Brings a started development cluster to usable volumes.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::cli::client::{Client, request_id};
use crate::cli::dev::layout::Layout;
use crate::cli::output::{self, OutputError};
use crate::config::size::ByteSize;
use crate::control::proto::{
    CreateVolumeRequest, DiskState, ListVolumesRequest, PodState, StatusRequest, Volume,
    VolumeState,
};
use crate::control::reconcile::voters_due;

/// Time limit of each step.
const STEP_WITHIN: Duration = Duration::from_secs(120);
const ASK_EVERY: Duration = Duration::from_millis(100);

/// Waits for the pods, creates the volumes, and prints a line for each usable volume.
pub async fn bring_up(layout: &Layout, volumes: &[(String, ByteSize)]) -> anyhow::Result<()> {
    let first = &layout.pods[0].config;
    let client = Client::new(&first.api.listen.to_string())?;
    until("all pods serve", || all_serve(layout, &client)).await?;
    let replicas = if layout.pods.len() >= 3 { 3 } else { 1 };
    let there = list(&client).await?;
    for (name, size) in volumes {
        match there.iter().find(|volume| volume.name == *name) {
            Some(volume) if volume.size_bytes != size.0 => output::note(&format!(
                "volume {name} exists with {}; its size stays",
                ByteSize(volume.size_bytes)
            )),
            Some(_) => {}
            None => create(&client, name, *size, replicas).await?,
        }
    }
    for volume in list(&client).await? {
        let name = &volume.name;
        let what = format!("volume {name} can be used");
        until(&what, || usable(&client, name, first.nbd.listen)).await?;
        match output::line(&format!("ready nbd://{}/{name}", first.nbd.listen)) {
            // The cluster is there for others, too.
            Ok(()) | Err(OutputError::Closed) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Asks until the answer is `None`. After the time limit, the last answer says what is missing.
async fn until<F>(what: &str, ask: impl Fn() -> F) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<Option<String>>>,
{
    let deadline = Instant::now() + STEP_WITHIN;
    loop {
        let missing = match ask().await {
            Ok(None) => return Ok(()),
            Ok(Some(missing)) => missing,
            Err(error) => format!("{error:#}"),
        };
        if Instant::now() >= deadline {
            bail!("waited {STEP_WITHIN:?} until {what}, but {missing}");
        }
        sleep(ASK_EVERY).await;
    }
}

async fn all_serve(layout: &Layout, client: &Client) -> anyhow::Result<Option<String>> {
    for pod in &layout.pods {
        if !pod.pid_file().exists() {
            return Ok(Some(format!("pod {} does not serve yet", pod.number)));
        }
    }
    let answer = client.cluster().status(StatusRequest {}).await;
    let status = client.check("get the status of the cluster", answer)?;
    let up = status.pods.iter().filter(|pod| pod.state() == PodState::Up).count();
    let disks = status.disks.iter().filter(|disk| disk.state() == DiskState::Up).count();
    let parts = status.pods.iter().map(|pod| pod.catalog.as_str());
    let voters = parts.filter(|part| matches!(*part, "leader" | "voter")).count();
    let pods = layout.pods.len();
    // From here on a cluster of three or more pods survives the loss of one.
    match up >= pods && disks >= pods && voters >= voters_due(pods) {
        true => Ok(None),
        false => Ok(Some(format!(
            "of {pods} pods, {up} are up, with {disks} disks, and {voters} hold the catalog"
        ))),
    }
}

async fn list(client: &Client) -> anyhow::Result<Vec<Volume>> {
    let answer = client.volumes().list(ListVolumesRequest {}).await;
    let volumes = client.check("list the volumes", answer)?.volumes;
    Ok(volumes.into_iter().filter(|volume| volume.state() != VolumeState::Deleting).collect())
}

async fn create(client: &Client, name: &str, size: ByteSize, replicas: u32) -> anyhow::Result<()> {
    let request = CreateVolumeRequest {
        name: name.to_owned(),
        size_bytes: size.0,
        replicas,
        request_id: request_id()?,
    };
    let answer = client.volumes().create(request).await;
    client.check(format!("create volume {name}"), answer)?;
    Ok(())
}

/// `None` once a leader serves every shard and the front end accepts connections.
async fn usable(client: &Client, name: &str, nbd: SocketAddr) -> anyhow::Result<Option<String>> {
    let volumes = list(client).await?;
    let volume = volumes.iter().find(|volume| volume.name == name);
    let volume = volume.context("the volume no longer exists")?;
    if !matches!(volume.state(), VolumeState::Ready | VolumeState::Degraded) {
        return Ok(Some(volume.reason.clone()));
    }
    match timeout(ASK_EVERY * 10, TcpStream::connect(nbd)).await {
        Ok(Ok(_)) => Ok(None),
        Ok(Err(error)) => Ok(Some(format!("{nbd} does not answer: {error}"))),
        Err(_) => Ok(Some(format!("{nbd} does not answer in time"))),
    }
}
