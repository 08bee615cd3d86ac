//! `holdfast csi ...`: the driver for Kubernetes and other container orchestrators.

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tonic::service::Routes;

use crate::cli::Global;
use crate::config::Log;
use crate::csi::DRIVER_NAME;
use crate::csi::api::Api;
use crate::csi::controller::ControllerService;
use crate::csi::credentials::keep;
use crate::csi::identity::{DriverName, IdentityService};
use crate::csi::proto::controller_server::ControllerServer;
use crate::csi::proto::identity_server::IdentityServer;
use crate::csi::server::{SocketPath, serve};
use crate::csi::spec::Spec;
use crate::security::credentials::Tls;
use crate::telemetry::logs;

#[derive(Debug, clap::Subcommand)]
pub enum CsiCommand {
    /// Make, publish and delete volumes for an orchestrator, until it is told to stop
    Controller(ControllerArgs),
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
}

/// Runs a part of the driver. `--endpoint` may name several pods, with commas between them.
pub fn run(global: &Global, command: CsiCommand) -> anyhow::Result<()> {
    logs::start(&Log::default())?;
    let CsiCommand::Controller(args) = command;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("csi")
        .enable_all()
        .build()
        .context("could not start the threads of the driver")?;
    runtime.block_on(controller(global, args))
}

/// A client of the API. Its certificate is kept valid.
fn api(global: &Global) -> anyhow::Result<Api> {
    let Some(paths) = global.paths() else { return Ok(Api::new(&global.endpoint, None)?) };
    let credentials = paths.load()?;
    let tls = Tls::new(&credentials, credentials.trust())?;
    let api = Api::new(&global.endpoint, Some(&tls))?;
    tokio::spawn(keep(paths, tls, global.endpoint.clone(), credentials));
    Ok(api)
}

async fn controller(global: &Global, args: ControllerArgs) -> anyhow::Result<()> {
    let ControllerArgs { csi_endpoint, driver_name, csi_spec } = args;
    let api = api(global)?;
    let identity = IdentityService::of_controller(driver_name);
    let services = Routes::new(IdentityServer::new(identity))
        .add_service(ControllerServer::new(ControllerService::new(api, csi_spec)));
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let told = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    Ok(serve(&csi_endpoint, services, told).await?)
}
