//! `holdfast bench`: puts load on a volume as an NBD client, and reports the answers. Data that was
//! read is not checked; errors are counted.

mod load;
mod nbd;
mod pattern;
pub mod report;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};

use crate::cli::Output;
use crate::cli::bench::load::Workload;
use crate::cli::bench::nbd::Target;
use crate::cli::bench::pattern::Pattern;
use crate::cli::client::Client;
use crate::cli::exit::UsageError;
use crate::cli::noun::Noun as _;
use crate::cli::render;
use crate::config::size::ByteSize;
use crate::control::proto::Volume;
use crate::limits::REQUEST_BYTES_MAX;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the volume
    volume: String,
    /// Order of blocks, and whether they are read or written
    #[arg(long, value_enum, default_value_t = Pattern::Randread)]
    pattern: Pattern,
    /// Length of each request
    #[arg(long, default_value = "4KiB", value_name = "SIZE")]
    block_size: ByteSize,
    /// Requests in flight at any time, over all connections
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=4096))]
    depth: u32,
    /// Connections that share the depth
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    connections: u32,
    /// How long to send requests
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Percentage of reads in randrw
    #[arg(long, default_value_t = 70, value_parser = clap::value_parser!(u32).range(0..=100))]
    read_percent: u32,
    /// NBD address or path of a unix socket; by default the pod that leads most shards
    #[arg(long, value_name = "ADDRESS")]
    nbd: Option<String>,
    /// Overwrite the content of the volume: required for patterns that write
    #[arg(long)]
    destroy_data: bool,
}

pub async fn run(client: &Client, args: Args, output: Output) -> anyhow::Result<String> {
    check(&args)?;
    let target = match &args.nbd {
        Some(address) => target(address)?,
        None => leading_pod(client, &args.volume).await?,
    };
    let load = Workload {
        target: target.clone(),
        export: args.volume.clone(),
        pattern: args.pattern,
        read_percent: args.read_percent,
        block_bytes: args.block_size.0 as u32,
        depth: args.depth,
        connections: args.connections,
        time: Duration::from_secs(args.seconds.into()),
    };
    let stop = Arc::new(AtomicBool::new(false));
    let mut interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?;
    let work = tokio::task::spawn_blocking({
        let stop = stop.clone();
        move || load.run(&stop)
    });
    tokio::pin!(work);
    let mut interrupted = false;
    let outcome = loop {
        tokio::select! {
            outcome = &mut work => break outcome.context("could not put load on the volume")??,
            _ = interrupt.recv(), if !interrupted => {
                interrupted = true;
                stop.store(true, Ordering::Relaxed);
            }
        }
    };
    let report = report::Report {
        volume: args.volume,
        nbd: target.to_string(),
        pattern: args.pattern.name().to_owned(),
        block_bytes: args.block_size.0,
        depth: args.depth,
        connections: args.connections,
        interrupted,
        ..report::Report::new(&outcome)
    };
    match output {
        Output::Table | Output::Wide => Ok(report::text(&report)),
        Output::Json => render::json(&report),
        Output::Yaml => render::yaml(&report),
    }
}

/// Refuses bad arguments before any call is made.
fn check(args: &Args) -> Result<(), UsageError> {
    let pattern = args.pattern.name();
    if args.pattern.writes() && !args.destroy_data {
        return Err(UsageError(format!(
            "{pattern} overwrites what is on volume {}: say --destroy-data if it may be lost",
            args.volume
        )));
    }
    let bytes = args.block_size.0;
    if bytes == 0 || !bytes.is_multiple_of(512) || bytes > REQUEST_BYTES_MAX as u64 {
        return Err(UsageError(format!(
            "--block-size is {}; it must be a multiple of 512 bytes, at most {}",
            args.block_size,
            ByteSize(REQUEST_BYTES_MAX as u64)
        )));
    }
    if args.depth < args.connections {
        return Err(UsageError(format!(
            "--depth {} is less than one request for each of {} connections",
            args.depth, args.connections
        )));
    }
    Ok(())
}

fn target(address: &str) -> Result<Target, UsageError> {
    if address.contains('/') {
        return Ok(Target::Unix(PathBuf::from(address)));
    }
    let parsed: Result<SocketAddr, _> = address.parse();
    parsed.map(Target::Tcp).map_err(|_| {
        UsageError(format!("--nbd {address} is neither an address like 127.0.0.1:10809 nor a path"))
    })
}

/// The pod that leads most shards of a volume, as a client close to the data would choose.
async fn leading_pod(client: &Client, name: &str) -> anyhow::Result<Target> {
    let volume = Volume::get(client, name).await?;
    // Those that lead most come first.
    let Some(address) = volume.status.and_then(|status| status.nbd.into_iter().next()) else {
        bail!("no pod serves NBD; name an address with --nbd");
    };
    let address =
        address.parse().with_context(|| format!("{address:?} is not an address of a pod"))?;
    Ok(Target::Tcp(address))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn args(line: &[&str]) -> Args {
        Line::parse_from(["bench", "demo"].iter().chain(line)).args
    }

    #[test]
    fn nothing_is_overwritten_unless_it_is_said() {
        for pattern in ["randwrite", "write", "randrw"] {
            let error = check(&args(&["--pattern", pattern])).unwrap_err().to_string();
            assert!(error.contains("--destroy-data"), "{error}");
            check(&args(&["--pattern", pattern, "--destroy-data"])).unwrap();
        }
        check(&args(&["--pattern", "read"])).unwrap();
        check(&args(&[])).unwrap();
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for line in [
            &["--block-size", "0"][..],
            &["--block-size", "1000"],
            &["--block-size", "64MiB"],
            &["--depth", "3", "--connections", "4"],
        ] {
            assert!(check(&args(line)).is_err(), "{line:?}");
        }
        assert!(matches!(target("127.0.0.1:10809"), Ok(Target::Tcp(_))));
        assert!(matches!(target("./nbd.socket"), Ok(Target::Unix(_))));
        assert!(target("nowhere").is_err());
    }
}
