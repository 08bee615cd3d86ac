//! `holdfast attach`: serves the block devices of this node. `holdfast device ...`: asks it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::{Subcommand, ValueEnum};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::{Channel, Endpoint, Server};

use crate::attach::devices::{Choice, Devices};
use crate::attach::guard;
use crate::attach::proto::devices_client::DevicesClient;
use crate::attach::proto::devices_server::DevicesServer;
use crate::attach::proto::{
    CloseDeviceRequest, Device, GrowDeviceRequest, ListDevicesRequest, OpenDeviceRequest,
};
use crate::attach::relay::pods::PodAddress;
use crate::attach::service::DevicesService;
use crate::cli::relay::{parse_pod, pods_of};
use crate::cli::{Global, Output, output, render};
use crate::config::size::ByteSize;
use crate::control::local::{replace, short};
use crate::security::credentials::Tls;

/// Interval at which the cluster is asked where its pods are.
const LOOK_EVERY: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Socket to make, for programs of this node
    #[arg(long, value_name = "PATH", default_value = SOCKET)]
    socket: PathBuf,
    /// Directory for what belongs to devices
    #[arg(long, value_name = "DIR", default_value = "/run/holdfast/devices")]
    directory: PathBuf,
    /// Where the pod of this node serves NBD: unix:PATH or IP:PORT; it is preferred
    #[arg(long = "pod", value_name = "ADDRESS", value_parser = parse_pod)]
    pods: Vec<PodAddress>,
    /// What devices are made of
    #[arg(long, value_enum, default_value_t = Made::Auto)]
    backend: Made,
}

/// What devices are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Made {
    /// The kernel's NBD client where it can be used, otherwise nbdfuse
    Auto,
    /// The kernel's NBD client, or nothing
    Kernel,
    /// nbdfuse and a loop device, which is slow
    Fuse,
}

/// Where `holdfast attach` listens, unless it is told otherwise.
pub const SOCKET: &str = "/run/holdfast/attach.sock";

#[derive(Debug, clap::Args)]
pub struct DeviceArgs {
    /// Socket of `holdfast attach`
    #[arg(long, global = true, value_name = "PATH", default_value = SOCKET)]
    socket: PathBuf,
    #[command(subcommand)]
    command: DeviceCommand,
}

#[derive(Debug, Subcommand)]
pub enum DeviceCommand {
    /// Make a block device for an attachment of this node, and print its path
    Open {
        /// Uid of the attachment
        attachment: String,
        #[arg(long)]
        read_only: bool,
        /// Name of the volume, which the device keeps and `list` shows
        #[arg(long, value_name = "NAME", default_value = "")]
        volume: String,
    },
    /// Let a block device show all that its volume has by now
    Grow {
        /// Uid of the attachment
        attachment: String,
        /// Wait until the volume has this size, as in 20GiB
        #[arg(long, value_name = "SIZE")]
        size: Option<ByteSize>,
    },
    /// Take a block device away that nothing uses
    Close {
        /// Uid of the attachment
        attachment: String,
    },
    /// List the block devices of this node
    List,
}

/// Serves until it is told to stop. Devices that are in use stay until then.
pub async fn serve(global: &Global, args: &Args) -> anyhow::Result<String> {
    guard::protect();
    let credentials = global.credentials()?;
    let tls = credentials.as_ref().map(|it| Tls::new(it, it.trust())).transpose()?;
    let (set_pods, pods) = watch::channel(args.pods.clone());
    let choice = match args.backend {
        Made::Auto => Choice::Auto,
        Made::Kernel => Choice::Kernel,
        Made::Fuse => Choice::Fuse,
    };
    let devices = Arc::new(Devices::begin(&args.directory, tls, pods, choice).await?);
    let service = DevicesService { devices: devices.clone() };
    let listener = listen(&args.socket)?;
    let mut ends = signal(SignalKind::terminate())?;
    output::note(&format!("serving {}", args.socket.display()));
    let serving = Server::builder()
        .add_service(DevicesServer::new(service))
        .serve_with_incoming(UnixListenerStream::new(listener));
    tokio::select! {
        served = serving => served.context("could not serve devices")?,
        () = follow(global, &args.pods, &set_pods) => {}
        () = devices.keep() => {}
        _ = ends.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    Ok(String::new())
}

fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    replace(path).with_context(|| format!("could not listen on {}", path.display()))
}

/// Keeps up with where the pods are. What is preferred comes first.
async fn follow(global: &Global, first: &[PodAddress], set: &watch::Sender<Vec<PodAddress>>) {
    loop {
        match pods_of(global).await {
            Ok(found) => {
                let others = found.into_iter().filter(|pod| !first.contains(pod));
                let all: Vec<PodAddress> = first.iter().cloned().chain(others).collect();
                set.send_if_modified(|known| std::mem::replace(known, all.clone()) != all);
            }
            // What is known stays good.
            Err(error) => tracing::warn!("the pods are not known: {error:#}"),
        }
        sleep(LOOK_EVERY).await;
    }
}

/// Asks `holdfast attach`.
pub async fn ask(args: DeviceArgs, output: Output) -> anyhow::Result<String> {
    let mut client = client(&args.socket)?;
    match args.command {
        DeviceCommand::Open { attachment, read_only, volume } => {
            let request = OpenDeviceRequest { attachment, read_only, volume };
            let answer = client.open(request).await;
            one(&answer.map_err(said)?.into_inner(), output)
        }
        DeviceCommand::Grow { attachment, size } => {
            let size_bytes = size.map_or(0, |size| size.0);
            let answer = client.grow(GrowDeviceRequest { attachment, size_bytes }).await;
            one(&answer.map_err(said)?.into_inner(), output)
        }
        DeviceCommand::Close { attachment } => {
            client.close(CloseDeviceRequest { attachment }).await.map_err(said)?;
            Ok(String::new())
        }
        DeviceCommand::List => {
            let answer = client.list(ListDevicesRequest::default()).await.map_err(said)?;
            listed(&answer.into_inner().devices, output)
        }
    }
}

fn client(socket: &Path) -> anyhow::Result<DevicesClient<Channel>> {
    let path = short(socket).context("could not find the socket of `holdfast attach`")?;
    let endpoint = Endpoint::from_shared(format!("unix:{}", path.display()))?;
    Ok(DevicesClient::new(endpoint.connect_lazy()))
}

fn said(status: tonic::Status) -> anyhow::Error {
    anyhow::anyhow!("`holdfast attach` does not do it: {}", status.message())
}

fn one(device: &Device, output: Output) -> anyhow::Result<String> {
    match output {
        Output::Table | Output::Wide => Ok(format!("{}\n", device.path)),
        Output::Json => render::json(device),
        Output::Yaml => render::yaml(device),
    }
}

fn listed(devices: &[Device], output: Output) -> anyhow::Result<String> {
    match output {
        Output::Json => return render::json(&devices),
        Output::Yaml => return render::yaml(&devices),
        Output::Table | Output::Wide => {}
    }
    let line = |it: &Device| {
        let state = match (it.broken.as_str(), it.pod.as_str()) {
            ("", "") => "waits: no pod can be reached".to_owned(),
            ("", pod) => format!("uses {pod}"),
            (broken, _) => format!("broken: {broken}"),
        };
        format!("{}  {}  {state}\n", it.attachment, it.path)
    };
    Ok(devices.iter().map(line).collect())
}
