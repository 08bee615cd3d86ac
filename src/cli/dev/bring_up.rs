//! Brings a started development cluster to usable volumes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::bail;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::cli::client::Client;
use crate::cli::dev::layout::Layout;
use crate::cli::noun::{Noun as _, all};
use crate::cli::output::{self, OutputError};
use crate::cli::volume::create;
use crate::config::size::ByteSize;
use crate::control::objects::describe::Object as _;
use crate::control::placement::NODE;
use crate::control::proto::{
    ClassSpec, CreateClassRequest, Phase, Query, StatusRequest, Summary, Volume, VolumeSpec,
};
use crate::control::reason::Reason;
use crate::control::reconcile::voters_due;
use crate::security::credentials::Credentials;

/// Class of the volumes that the command line names.
const CLASS: &str = "dev";
/// Time limit of each step.
const STEP_WITHIN: Duration = Duration::from_secs(120);
const ASK_EVERY: Duration = Duration::from_millis(100);

/// Waits for the pods, creates the volumes, and prints a line for each usable volume.
pub async fn bring_up(
    layout: &Layout,
    volumes: &[(String, ByteSize)],
    credentials: Option<&Credentials>,
) -> anyhow::Result<()> {
    let first = &layout.pods[0].config;
    let client = Client::with_credentials(&first.api.listen.to_string(), credentials)?;
    until("all pods serve", || all_serve(layout, &client)).await?;
    create_class(&client, if layout.pods.len() >= 3 { 3 } else { 1 }).await?;
    let there = list(&client).await?;
    for (name, size) in volumes {
        match there.iter().find(|volume| volume.meta().name == *name) {
            Some(volume) if volume.phase() == Phase::Retained => output::note(&format!(
                "volume {name} was deleted and is kept; `holdfast volume undelete {name}` brings \
                 it back"
            )),
            Some(volume) if size_of(volume) != *size => output::note(&format!(
                "volume {name} exists with {}; its size stays",
                size_of(volume)
            )),
            Some(_) => {}
            None => {
                let (size_bytes, class) = (size.0, CLASS.to_owned());
                let spec = VolumeSpec { size_bytes, class, ..VolumeSpec::default() };
                create(&client, name, spec, BTreeMap::new()).await?;
            }
        }
    }
    let is_there = |volume: &Volume| volume.phase() != Phase::Retained;
    for volume in list(&client).await?.into_iter().filter(is_there) {
        let name = &volume.meta().name;
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

/// Makes the class of the volumes here. The pods share the disks of one machine, so how much each
/// of them may promise says nothing.
async fn create_class(client: &Client, replicas: u32) -> anyhow::Result<()> {
    let spec = ClassSpec {
        replicas,
        failure_domain: NODE.to_owned(),
        overcommit_percent: 1_000_000,
        ..ClassSpec::default()
    };
    let request = CreateClassRequest {
        name: CLASS.to_owned(),
        spec: Some(spec),
        ..CreateClassRequest::default()
    };
    let made = client.classes().create(request).await;
    match client.check(format!("create class {CLASS}"), made) {
        // Somebody has changed it.
        Err(error) if error.reason() == Some(Reason::NameTaken) => Ok(()),
        made => Ok(made.map(drop)?),
    }
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
    let in_phases = |summary: &Option<Summary>, wanted: &[Phase]| {
        let phases = summary.iter().flat_map(|summary| &summary.phases);
        let counts = phases.filter(|it| wanted.contains(&it.phase())).map(|it| it.count as usize);
        counts.sum::<usize>()
    };
    // Degraded: without its member of the catalog, which the voters show.
    let up = in_phases(&status.pods, &[Phase::Up, Phase::Degraded]);
    // A pod says what it has, also that a disk of it failed.
    let disks = in_phases(&status.disks, &[Phase::Up, Phase::Failed]);
    let voters = status.catalog.map_or(0, |catalog| catalog.voters as usize);
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
    let volumes = all::<Volume>(client, Query::default(), "").await?;
    Ok(volumes.into_iter().filter(|volume| !volume.meta().deleting).collect())
}

fn size_of(volume: &Volume) -> ByteSize {
    ByteSize(volume.spec.as_ref().map_or(0, |spec| spec.size_bytes))
}

/// `None` once a leader serves every shard and the front end accepts connections.
async fn usable(client: &Client, name: &str, nbd: SocketAddr) -> anyhow::Result<Option<String>> {
    let volume = Volume::get(client, name).await?;
    if !matches!(volume.phase(), Phase::Ready | Phase::Degraded) {
        let conditions = volume.status.unwrap_or_default().conditions;
        return Ok(Some(conditions.first().map_or_else(String::new, |it| it.message.clone())));
    }
    match timeout(ASK_EVERY * 10, TcpStream::connect(nbd)).await {
        Ok(Ok(_)) => Ok(None),
        Ok(Err(error)) => Ok(Some(format!("{nbd} does not answer: {error}"))),
        Err(_) => Ok(Some(format!("{nbd} does not answer in time"))),
    }
}
