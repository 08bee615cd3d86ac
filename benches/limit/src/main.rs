//! The physical limit of a replicated write on this machine: three processes that move the same
//! bytes as Holdfast does for a write, and do nothing else. There is no Raft, no checksum, no index
//! and no recovery: **not a server for data**. `benches/compare.py` runs it beside Holdfast.
//!
//! The leader takes NBD writes from one client at a time. It sends each batch to two followers and
//! then writes it to its own log, in the order in which Holdfast's worker submits. A batch is one
//! block of header and the payloads: 8 KiB for one write of 4 KiB. All logs are prewritten files,
//! written with O_DIRECT and RWF_DSYNC. A write is answered when the leader and one follower are
//! durable. Each process is one thread with one io_uring.
//!
//!     holdfast-limit PORT LOG_MIB FILE FILE FILE
//!
//! The second and third file are the logs of the followers, which the leader starts as processes.

mod follower;
mod leader;
mod log;
mod nbd;
mod ring;
mod stream;

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, Command, ExitCode};

use crate::log::Log;

/// The first argument of a process that the leader starts.
const FOLLOWER: &str = "follower";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words[..] {
        ["--version"] => {
            println!("holdfast-limit {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
        [FOLLOWER, address, mib, file] => Log::open(file, mib)
            .and_then(|log| follower::run(address, log).map_err(|error| error.to_string())),
        [port, mib, own, first, second] => lead(port, mib, own, [first, second]),
        _ => Err("usage: holdfast-limit PORT LOG_MIB FILE FILE FILE".to_owned()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("holdfast-limit: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Starts the followers and serves clients until the process is ended. The followers end with it,
/// because their connections do.
fn lead(port: &str, mib: &str, own: &str, files: [&str; 2]) -> Result<(), String> {
    let port: u16 = port.parse().map_err(|error| format!("the port {port:?}: {error}"))?;
    let log = Log::open(own, mib)?;
    let start = || -> io::Result<()> {
        let peers = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let mut children = Vec::new();
        let mut followers = Vec::new();
        for file in files {
            children.push(start_follower(&peers.local_addr()?.to_string(), mib, file)?);
            let (follower, _) = peers.accept()?;
            follower.set_nodelay(true)?;
            followers.push(follower);
        }
        // Clients that come now find all logs prewritten: a follower connects when its log is.
        let clients = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
        let followers = followers.try_into().expect("one for each of two files");
        let result = leader::run(&clients, followers, log);
        for mut child in children {
            child.wait()?;
        }
        result
    };
    start().map_err(|error| error.to_string())
}

fn start_follower(address: &str, mib: &str, file: &str) -> io::Result<Child> {
    Command::new(std::env::current_exe()?).args([FOLLOWER, address, mib, file]).spawn()
}
