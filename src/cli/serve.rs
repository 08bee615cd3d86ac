//! `holdfast serve`: runs one pod until it is told to stop.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::{data_path, output};
use crate::config::Config;
use crate::control::identity::{PodDirectory, write_atomically};
use crate::control::server::Server;
use crate::kubernetes::reviewer::Reviewer;
use crate::limits::SocketLimits;
use crate::telemetry::metrics::process::Process;
use crate::telemetry::{Telemetry, http, logs};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Configuration of this pod
    #[arg(long)]
    config: PathBuf,
}

pub fn run(args: &Args) -> ExitCode {
    let config = match read(&args.config) {
        Ok(config) => config,
        Err(error) => {
            output::note(&format!("error: {error:#}"));
            return ExitCode::FAILURE;
        }
    };
    match serve(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("could not serve: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Reads the configuration and sets up logging accordingly.
fn read(path: &Path) -> anyhow::Result<Config> {
    let config = Config::load(path)?;
    logs::start(&config.log)?;
    Ok(config)
}

/// Raises the limit of open files, for defaults suit only select(2). Returns how many connections
/// of each kind the pod may take, so that its own files always find a descriptor.
fn raise_open_files(disks: usize) -> anyhow::Result<SocketLimits> {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(%error, "could not raise the limit of open files");
    }
    let Some(open_files) = getrlimit(Resource::Nofile).current else {
        return Ok(SocketLimits::default());
    };
    let wanted = SocketLimits::wanted(disks);
    let remedy = "raise the hard limit (LimitNOFILE= of systemd, ulimit -Hn)";
    let limits = SocketLimits::of(open_files, disks).with_context(|| {
        format!(
            "this pod may open {open_files} files, and needs {} for its {disks} disks alone: \
             {remedy} to {wanted}",
            SocketLimits::reserve(disks)
        )
    })?;
    if limits != SocketLimits::default() {
        let SocketLimits { clients, .. } = limits;
        tracing::warn!(
            "this pod may open {open_files} files, and serves {clients} NBD clients at most: \
             {remedy} to {wanted}"
        );
    }
    Ok(limits)
}

/// Serves until a signal. Logging is set up.
pub fn serve(config: Config) -> anyhow::Result<()> {
    let sockets = raise_open_files(config.disks.len())?;
    let directory = PodDirectory::open(&config.data)?;
    data_path::check_disks(&config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("control")
        .enable_all()
        .build()
        .context("could not start the threads of the control plane")?;
    let result = runtime.block_on(serve_until_told(&config, directory, sockets));
    runtime.shutdown_background();
    result
}

/// Serves until a signal.
async fn serve_until_told(
    config: &Config,
    directory: PodDirectory,
    sockets: SocketLimits,
) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut told = async || {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let telemetry = Telemetry::default();
    telemetry.registry.add(Arc::new(Process::default()));
    let http = http::Server::bind(config.http.listen, telemetry.clone()).await?;
    tokio::spawn(http.run());
    let server = tokio::select! {
        server = Server::start(config, directory, sockets.api) => server?,
        () = told() => return Ok(()),
    };
    telemetry.registry.add(Arc::new(server.meters()));
    if config.kubernetes.enrol {
        server.use_voucher(Arc::new(Reviewer::new(config.kubernetes.namespace.clone())));
    }
    let data_path = {
        let (config, identity) = (config.clone(), server.identity());
        let control = server.control_link();
        let level = server.views().borrow().level;
        let tls = server.tls().cloned();
        let start = move || {
            data_path::start(&config, identity, level, sockets, control, &telemetry, tls.as_ref())
        };
        tokio::task::spawn_blocking(start).await.context("could not start the data path")?
    };
    let data_path = match data_path {
        Ok(data_path) => data_path,
        Err(error) => {
            server.stop().await;
            return Err(error);
        }
    };
    server.attach(data_path.clone());
    if let Some(file) = &config.pid_file
        && let Err(error) = write_atomically(file, format!("{}\n", std::process::id()).as_bytes())
    {
        // On a full file system, say.
        tracing::error!("could not write {}: {error}", file.display());
    }
    tracing::info!(pod = server.identity().pod.0, "serving");
    told().await;
    tracing::info!("stopping");
    if let Some(file) = &config.pid_file
        && let Err(error) = std::fs::remove_file(file)
    {
        tracing::warn!("could not remove {}: {error}", file.display());
    }
    tokio::task::spawn_blocking(move || data_path.stop())
        .await
        .context("could not stop the data path")?;
    server.stop().await;
    Ok(())
}
