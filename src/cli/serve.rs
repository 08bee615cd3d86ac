//! `holdfast serve`: runs one pod until it is told to stop.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::{data_path, output};
use crate::config::Config;
use crate::control::identity::{PodDirectory, write_atomically};
use crate::control::server::Server;
use crate::limits::CLIENTS_MAX;
use crate::telemetry::logs;

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

/// Descriptors besides those of clients: database files, links, the control plane.
const OTHER_FILES: u64 = 1024;

/// Raises the limit: each connection takes a descriptor, and defaults suit only select(2).
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(%error, "could not raise the limit of open files");
    }
    let wanted = CLIENTS_MAX as u64 + OTHER_FILES;
    let current = getrlimit(Resource::Nofile).current;
    if let Some(limit) = current.filter(|limit| *limit < wanted) {
        tracing::warn!(
            "this pod may open {limit} files, which is not enough for {CLIENTS_MAX} clients: raise \
             the hard limit (LimitNOFILE= of systemd, ulimit -Hn) to {wanted}"
        );
    }
}

fn serve(config: Config) -> anyhow::Result<()> {
    raise_open_files();
    config.check_disks()?;
    let mut directory = PodDirectory::open(&config.data)?;
    let number = data_path::count_start(&config, &mut directory)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("control")
        .enable_all()
        .build()
        .context("could not start the threads of the control plane")?;
    let result = runtime.block_on(serve_until_told(&config, directory, number));
    runtime.shutdown_background();
    result
}

/// Serves until a signal or a failure. `number`: the number of this start of the pod.
async fn serve_until_told(
    config: &Config,
    directory: PodDirectory,
    number: u32,
) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut told = async || {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let server = tokio::select! {
        server = Server::start(config, directory) => server?,
        () = told() => return Ok(()),
    };
    let data_path = {
        let (config, identity) = (config.clone(), server.identity());
        let reports = server.report_sink();
        let start = move || data_path::start(&config, identity, number, reports);
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
    if let Some(file) = &config.pid_file {
        write_atomically(file, format!("{}\n", std::process::id()).as_bytes())
            .with_context(|| format!("could not write {}", file.display()))?;
    }
    tracing::info!(pod = server.identity().pod.0, "serving");
    let ended = tokio::select! {
        () = told() => Ok(()),
        failure = server.failed() => Err(failure),
    };
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
    Ok(ended?)
}
