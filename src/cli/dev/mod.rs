//! `holdfast dev`: a whole cluster on this machine. It runs real `holdfast serve` processes on
//! loopback, which end with this one in any case.
//!
//! Its directory, ports and output are a contract for tests and scripts (`tests/dev_contract.rs`).

mod bring_up;
mod children;
mod credentials;
pub mod layout;

use std::fs::File;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::dev::children::{Children, RestartAfter};
use crate::cli::dev::layout::Layout;
use crate::cli::volume::volume_name;
use crate::config::size::ByteSize;
use crate::types::BLOCK_BYTES;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Number of pods
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=30))]
    pods: u16,
    /// Directory of the cluster; an existing one is resumed with its data
    #[arg(long, default_value = "holdfast-demo")]
    data: PathBuf,
    /// Create this volume unless it exists, as in demo:10GiB; may be repeated
    #[arg(long = "volume", value_name = "NAME:SIZE", value_parser = volume_and_size)]
    volumes: Vec<(String, ByteSize)>,
    /// Added to every port
    #[arg(long, default_value_t = 0)]
    port_offset: u16,
    /// Length of the write-ahead log of new disks
    #[arg(long, default_value = "256MiB", value_name = "SIZE")]
    wal_size: ByteSize,
    /// Set a key of every pod's configuration, as in io=\"epoll\"; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = setting)]
    settings: Vec<toml::Table>,
    /// One address per pod
    #[arg(long, value_delimiter = ',', value_name = "A,B,C")]
    addresses: Vec<IpAddr>,
    /// Give the pods of a new cluster no certificates, and with them no TLS
    #[arg(long)]
    no_tls: bool,
    /// Restart a pod this long after it died, or `never`
    #[arg(long, default_value = "2s", value_name = "TIME", value_parser = restart_after)]
    restart_after: RestartAfter,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    // One thread only: the children are killed when the thread that started them ends.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run_cluster(args))
}

async fn run_cluster(args: &Args) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    std::fs::create_dir_all(&args.data)
        .with_context(|| format!("could not create {}", args.data.display()))?;
    let data = args.data.canonicalize().context("could not resolve the directory")?;
    let _lock = lock(&data.join("lock"))?;
    let root = data.clone();
    let mut layout =
        Layout::new(data, args.pods, args.port_offset, &args.addresses, args.wal_size)?;
    layout.set(&args.settings)?;
    layout.wait_for_ports().await?;
    layout.write()?;
    let credentials = match args.no_tls {
        true => None,
        false => credentials::issue_all(&root, &layout.pods)?,
    };
    let mut children = Children::new(&layout.pods, args.restart_after);
    let mut is_up = false;
    let ended = {
        let up = bring_up::bring_up(&layout, &args.volumes, credentials.as_ref());
        tokio::pin!(up);
        loop {
            tokio::select! {
                _ = terminate.recv() => break Ok(()),
                _ = interrupt.recv() => break Ok(()),
                result = &mut up, if !is_up => match result {
                    Ok(()) => is_up = true,
                    Err(error) => break Err(error),
                },
                result = children.tend() => if let Err(error) = result {
                    break Err(error);
                },
            }
        }
    };
    children.stop().await;
    ended
}

/// Locks the directory against a second `dev`.
fn lock(path: &std::path::Path) -> anyhow::Result<File> {
    let file = File::create(path).with_context(|| format!("could not open {}", path.display()))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => bail!(
            "another `holdfast dev` uses {}; stop it, or name another directory with --data",
            path.parent().unwrap_or(path).display()
        ),
        Err(error) => Err(error).with_context(|| format!("could not lock {}", path.display())),
    }
}

fn volume_and_size(text: &str) -> Result<(String, ByteSize), String> {
    let (name, size) = text.split_once(':').ok_or("write NAME:SIZE, as in demo:10GiB")?;
    let size: ByteSize = size.parse().map_err(|error| format!("{error}"))?;
    // The pods would refuse it, but only once the cluster is there.
    if size.0 == 0 || !size.0.is_multiple_of(BLOCK_BYTES as u64) {
        return Err(format!("a volume's size is a multiple of 4KiB; {size} is not"));
    }
    Ok((volume_name(name)?, size))
}

/// Parses one line of a configuration. A value that is not TOML is taken as text.
fn setting(text: &str) -> Result<toml::Table, String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE, as in io=epoll")?;
    text.parse()
        .or_else(|_| format!("{key} = {value:?}").parse())
        .map_err(|error: toml::de::Error| error.message().to_owned())
}

/// Parses `never`, or a time such as `2s` or `500ms`.
fn restart_after(text: &str) -> Result<RestartAfter, String> {
    let unknown = || format!("{text:?} is not a time such as 2s or 500ms, nor `never`");
    if text == "never" {
        return Ok(RestartAfter::Never);
    }
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| unknown())?;
    match unit {
        "ms" => Ok(RestartAfter::Time(Duration::from_millis(number))),
        "s" => Ok(RestartAfter::Time(Duration::from_secs(number))),
        _ => Err(unknown()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_understood_or_explained() {
        assert_eq!(restart_after("2s"), Ok(RestartAfter::Time(Duration::from_secs(2))));
        assert_eq!(restart_after("500ms"), Ok(RestartAfter::Time(Duration::from_millis(500))));
        assert_eq!(restart_after("never"), Ok(RestartAfter::Never));
        for text in ["", "2", "s", "2m", "-1s"] {
            assert!(restart_after(text).is_err(), "{text}");
        }
        for text in ["io=epoll", "io = \"epoll\""] {
            let table = setting(text).unwrap();
            assert_eq!(table["io"].as_str(), Some("epoll"), "{text}");
        }
        assert_eq!(setting("init=true").unwrap()["init"].as_bool(), Some(true));
        assert_eq!(
            setting("budgets.log_tail=2MiB").unwrap()["budgets"]["log_tail"].as_str(),
            Some("2MiB")
        );
        assert!(setting("io").is_err() && setting("=3").is_err());
        assert_eq!(volume_and_size("demo:1GiB"), Ok(("demo".into(), ByteSize(1 << 30))));
        for text in ["demo", "demo:", "De mo:1GiB", ":1GiB", "demo:1", "demo:0"] {
            assert!(volume_and_size(text).is_err(), "{text}");
        }
    }
}
