//! `holdfast csi ...`: the driver for Kubernetes and other container orchestrators.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tonic::service::Routes;

use crate::cli::Global;
use crate::cli::attach::SOCKET;
use crate::cli::kubernetes::fail_over;
use crate::config::Log;
use crate::control::api_meters::Counted;
use crate::control::machine::boot_id;
use crate::control::names::check_name;
use crate::csi::DRIVER_NAME;
use crate::csi::api::Api;
use crate::csi::controller::ControllerService;
use crate::csi::credentials::keep;
use crate::csi::identity::{DriverName, IdentityService};
use crate::csi::meters::CsiMeters;
use crate::csi::node::{Devices, NodeService};
use crate::csi::proto::controller_server::ControllerServer;
use crate::csi::proto::identity_server::IdentityServer;
use crate::csi::proto::node_server::NodeServer;
use crate::csi::server::{SocketPath, serve};
use crate::csi::spec::Spec;
use crate::security::credentials::Tls;
use crate::telemetry::metrics::process::Process;
use crate::telemetry::{Telemetry, http, logs};

#[derive(Debug, clap::Subcommand)]
pub enum CsiCommand {
    /// Make, publish and delete volumes for an orchestrator, until it is told to stop
    Controller(ControllerArgs),
    /// Make volumes usable on this node for its kubelet, until it is told to stop
    Node(NodeArgs),
}

#[derive(Debug, clap::Args)]
pub struct NodeArgs {
    /// Where the kubelet calls the driver, as in unix:///csi/csi.sock
    #[arg(long, value_name = "SOCKET")]
    csi_endpoint: SocketPath,
    /// Name of this node, as the cluster and the orchestrator have it
    #[arg(long, value_name = "NAME")]
    node: String,
    /// Socket of `holdfast attach` on this node
    #[arg(long, value_name = "SOCKET", default_value = SOCKET)]
    devices: PathBuf,
    /// Name of the driver, as StorageClasses have it
    #[arg(long, default_value = DRIVER_NAME, value_name = "NAME")]
    driver_name: DriverName,
    /// Version of the specification: 1.12, or 1.13 for orchestrators that know volume health
    #[arg(long, default_value = "1.12", value_name = "VERSION")]
    csi_spec: Spec,
    /// Serve metrics and health over plain HTTP here, for everybody who can reach it
    #[arg(long, value_name = "IP:PORT")]
    http_endpoint: Option<SocketAddr>,
}

#[derive(Debug, clap::Args)]
pub struct ControllerArgs {
    /// Where the orchestrator calls the driver, as in unix:///run/csi.sock
    #[arg(long, value_name = "SOCKET")]
    csi_endpoint: SocketPath,
    /// Name of the driver, as StorageClasses have it
    #[arg(long, default_value = DRIVER_NAME, value_name = "NAME")]
    driver_name: DriverName,
    /// Version of the specification: 1.12, or 1.13 for orchestrators that know volume health
    #[arg(long, default_value = "1.12", value_name = "VERSION")]
    csi_spec: Spec,
    /// Serve metrics and health over plain HTTP here, for everybody who can reach it
    #[arg(long, value_name = "IP:PORT")]
    http_endpoint: Option<SocketAddr>,
    #[command(flatten)]
    fail_over: fail_over::Args,
}

/// Runs a part of the driver. `--endpoint` may name several pods, with commas between them.
pub fn run(global: &Global, command: CsiCommand) -> anyhow::Result<()> {
    logs::start(&Log::default())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("csi")
        .enable_all()
        .build()
        .context("could not start the threads of the driver")?;
    runtime.block_on(async {
        match command {
            CsiCommand::Controller(args) => controller(global, args).await,
            CsiCommand::Node(args) => node(global, args).await,
        }
    })
}

/// A client of the API. Its certificate is kept valid.
fn api(global: &Global) -> anyhow::Result<(Api, Option<Tls>)> {
    let Some(paths) = global.paths() else { return Ok((Api::new(&global.endpoint, None)?, None)) };
    let credentials = paths.load()?;
    let tls = Tls::new(&credentials, credentials.trust())?;
    let api = Api::new(&global.endpoint, Some(&tls))?;
    tokio::spawn(keep(paths, tls.clone(), global.endpoint.clone(), credentials));
    Ok((api, Some(tls)))
}

async fn controller(global: &Global, args: ControllerArgs) -> anyhow::Result<()> {
    let ControllerArgs { csi_endpoint, driver_name, csi_spec, http_endpoint, fail_over } = args;
    let meters = Arc::new(CsiMeters::new(driver_name.clone()));
    let _http = serve_http(http_endpoint, meters.clone()).await?;
    let (api, tls) = api(global)?;
    fail_over::begin(fail_over, &global.endpoint, tls, driver_name.as_str())?;
    let service = ControllerService::new(api, csi_spec);
    let identity = IdentityServer::new(IdentityService::of_controller(driver_name));
    let services = Routes::new(Counted { service: identity, meters: meters.clone() })
        .add_service(Counted { service: ControllerServer::new(service), meters });
    until_told(&csi_endpoint, services).await
}

async fn node(global: &Global, args: NodeArgs) -> anyhow::Result<()> {
    let NodeArgs { csi_endpoint, node, devices, driver_name, csi_spec, http_endpoint } = args;
    check_name(&node).with_context(|| format!("{node:?} cannot be the name of a node"))?;
    let boot_id = boot_id().context("could not read the machine's boot id")?;
    let meters = Arc::new(CsiMeters::new(driver_name.clone()));
    let _http = serve_http(http_endpoint, meters.clone()).await?;
    let ((api, _), devices) = (api(global)?, Devices::at(&devices)?);
    let service = NodeService::new(api, devices, node, boot_id, csi_spec);
    let _reports = Background(tokio::spawn(service.report()));
    let identity = IdentityServer::new(IdentityService::of_node(driver_name));
    let services = Routes::new(Counted { service: identity, meters: meters.clone() })
        .add_service(Counted { service: NodeServer::new(service), meters });
    until_told(&csi_endpoint, services).await
}

/// A task that ends with this.
struct Background(JoinHandle<()>);

impl Drop for Background {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn serve_http(
    at: Option<SocketAddr>,
    meters: Arc<CsiMeters>,
) -> anyhow::Result<Option<Background>> {
    let Some(at) = at else { return Ok(None) };
    let telemetry = Telemetry::default();
    telemetry.registry.add(Arc::new(Process::default()));
    telemetry.registry.add(meters);
    let server = http::Server::bind(at, telemetry).await?;
    Ok(Some(Background(tokio::spawn(server.run()))))
}

async fn until_told(at: &SocketPath, services: Routes) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let told = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    Ok(serve(at, services, told).await?)
}
