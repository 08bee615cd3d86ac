//! The configuration of one pod: a TOML file, read once at start. Unknown keys are refused.
//! [`Config::validate`] checks relations between keys.
//!
//! ```toml
//! data = "/var/lib/holdfast"          # identity and catalog of this pod
//! init = true                         # first pod of a cluster; the others have
//! # join = ["pod-1.example:7400"]     # addresses of pods of the cluster
//!
//! [[disk]]
//! path = "/mnt/nvme0"
//! size = "3TiB"                       # default: the free space, less a reserve
//!
//! [api]
//! listen = "0.0.0.0:7400"
//! advertise = "192.0.2.1:7400"        # needed if others cannot connect to `listen`
//! ```

pub mod http;
pub mod kubernetes;
pub mod size;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use http::Http;
use size::ByteSize;

use crate::limits;

/// Smallest log ring of a disk.
const WAL_BYTES_MIN: u64 = 64 << 20;
/// With a lower limit, a busy machine looks hung.
const HANG_LIMIT_SECONDS_MIN: u32 = 2;
const HANG_LIMIT_SECONDS_MAX: u32 = 3600;
/// Smallest data file of a disk.
const DATA_BYTES_MIN: u64 = 256 << 20;

/// The configuration of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Directory with this pod's identity and its part of the catalog.
    pub data: PathBuf,
    /// Creates a new cluster if this pod does not belong to one yet.
    #[serde(default)]
    pub init: bool,
    /// `host:port` of API servers of the cluster to join, if this pod does not belong to one yet.
    /// Also asked first when its peers have moved.
    #[serde(default)]
    pub join: Vec<String>,
    #[serde(default)]
    pub io: IoMethod,
    #[serde(default)]
    pub durable_writes: DurableWriteMethod,
    /// Writes large writes once, to their slots, and not to the log first (WAL bypass).
    #[serde(default = "yes")]
    pub wal_bypass: bool,
    /// Moves the leadership of a shard to the pod that sends its requests.
    #[serde(default = "yes")]
    pub leaders_follow_clients: bool,
    /// How a leader makes sure that it still leads when it serves a read.
    #[serde(default)]
    pub reads: ReadMethod,
    /// Ends the process, for a restart, if its data path makes no progress for this long. 0: never.
    #[serde(default = "default_hang_limit_seconds")]
    pub hang_limit_seconds: u32,
    /// Written (with the process id) once the pod serves, and removed when it stops.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid_file: Option<PathBuf>,
    #[serde(default)]
    pub node: Node,
    /// Lets a pod without a certificate listen on addresses that others can reach. Anybody there
    /// can then do everything.
    #[serde(default)]
    pub insecure: bool,
    #[serde(default)]
    pub api: Api,
    #[serde(default = "Listen::peer")]
    pub peer: Listen,
    #[serde(default)]
    pub nbd: Nbd,
    #[serde(default)]
    pub http: Http,
    #[serde(default)]
    pub budgets: Budgets,
    #[serde(default)]
    pub log: Log,
    #[serde(default, skip_serializing_if = "kubernetes::Kubernetes::is_default")]
    pub kubernetes: kubernetes::Kubernetes,
    #[serde(default, rename = "disk")]
    pub disks: Vec<Disk>,
}

/// The machine of this pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Default: the host name. In Kubernetes it is the name of the node. Replicas of a volume are
    /// kept on different nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What placement and people choose by, such as `zone = "a"`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// A directory for one disk's files, on its own file system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    pub path: PathBuf,
    /// Limit of the disk's data. Default: the free space at the first use, less a reserve. Stored
    /// on the disk at the first use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<ByteSize>,
    /// Length of the write-ahead log. Stored on the disk at the first use.
    #[serde(default = "default_wal_size")]
    pub wal_size: ByteSize,
}

/// A TCP listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listen {
    pub listen: SocketAddr,
    /// The address given to others. Default: `listen`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advertise: Option<SocketAddr>,
}

/// The listener of the API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Api {
    pub listen: SocketAddr,
    /// The address given to others. Default: `listen`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advertise: Option<SocketAddr>,
    /// Takes plain connections beside those under TLS, as an administrator's. Loopback only.
    pub plaintext: bool,
}

/// Addresses at which clients reach volumes over NBD.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nbd {
    #[serde(default = "default_nbd_listen")]
    pub listen: SocketAddr,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advertise: Option<SocketAddr>,
    /// An additional unix socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    /// Takes plain connections, too. Loopback only, and the default there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plaintext: Option<bool>,
}

/// The kernel interface for data-path I/O.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IoMethod {
    /// io_uring where it is allowed, otherwise epoll.
    #[default]
    Auto,
    IoUring,
    Epoll,
}

/// How log writes become durable with io_uring. (Epoll uses threads for all file I/O.)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DurableWriteMethod {
    /// Through the ring itself: the least work.
    #[default]
    Ring,
    /// Through a few threads, for machines on which the kernel's own workers start late.
    Threads,
}

/// How a leader makes sure that it still leads when it serves a read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReadMethod {
    /// By a lease. Requires clocks that do not stop.
    #[default]
    Lease,
    /// By asking a majority.
    Quorum,
}

/// Memory limits of the data path; [`ConfigError::BudgetRange`] tells their bounds. A pod may use
/// the sum of all applicable ones.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Budgets {
    /// Payloads kept in memory until they are written back, per disk. 512 MiB.
    pub dirty_cache: ByteSize,
    /// Cache of the index, per disk. 256 MiB.
    pub index_cache: ByteSize,
    /// Applied log entries kept for followers that lag a little, per replica. 1 MiB.
    pub log_tail: ByteSize,
    /// Requests in flight per client connection. A larger single request is taken, too. 64 MiB.
    pub connection: ByteSize,
    /// Requests in flight per volume through this pod. Beyond it, every connection still has 1 MiB.
    /// 256 MiB.
    pub volume: ByteSize,
    /// Writes in flight per shard that this pod leads. 64 MiB.
    pub shard: ByteSize,
    /// Frames queued for one disk of another pod. 64 MiB.
    pub link: ByteSize,
}

/// Level and format of the logs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// A level (`info`) or directives (`info,holdfast::control=debug`).
    pub level: String,
    pub format: LogFormat,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// One JSON object per line.
    #[default]
    Json,
    Text,
}

/// Why a configuration cannot be used. Each error names the key.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("could not read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{path} is not a valid configuration")]
    Parse {
        path: PathBuf,
        #[source]
        source: Box<toml::de::Error>,
    },
    #[error("`data` must name a directory")]
    NoData,
    #[error("`init` and `join` exclude each other: set `init` on the first pod only")]
    InitAndJoin,
    #[error("`join` must list host:port, not {0:?}")]
    JoinAddress(String),
    #[error("disk {0} is listed twice")]
    DiskTwice(PathBuf),
    #[error(
        "the directory of disk {path} does not exist; mount its file system, or create the \
         directory if the disk is new"
    )]
    DiskMissing { path: PathBuf },
    #[error("the path of disk {path} is not a directory")]
    DiskNotDirectory { path: PathBuf },
    #[error("could not read the free space of disk {path}")]
    DiskStat {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("`{key}` of disk {path} is {size}; the least is {least}")]
    DiskTooSmall { path: PathBuf, key: &'static str, size: ByteSize, least: ByteSize },
    #[error(
        "the file system of disk {path} has {free} free, not enough for a log of {wal} and data; \
         free some space or set `wal_size`"
    )]
    DiskFull { path: PathBuf, free: ByteSize, wal: ByteSize },
    #[error(
        "the file system of disk {path} has {free} free, less than its `size` of {size} and a log \
         of {wal}: set a smaller `size`, or none, or free some space"
    )]
    DiskTooLarge { path: PathBuf, size: ByteSize, free: ByteSize, wal: ByteSize },
    #[error("`{key}.listen` needs a port")]
    NoPort { key: &'static str },
    #[error(
        "`{key}.listen` is {listen}, which others cannot connect to: set `{key}.advertise` to \
         the address of this machine"
    )]
    NeedsAdvertise { key: &'static str, listen: SocketAddr },
    #[error("`{key}.advertise` is {advertise}, which is not an address others can connect to")]
    BadAdvertise { key: &'static str, advertise: SocketAddr },
    #[error(
        "`{first}.listen` and `{second}.listen` are both {listen}: give each a port of its own"
    )]
    SameListen { first: &'static str, second: &'static str, listen: SocketAddr },
    #[error(
        "`{first}.listen` ({one}) and `{second}.listen` ({other}) take the same port of one \
         address: give each a port of its own"
    )]
    PortTaken { first: &'static str, second: &'static str, one: SocketAddr, other: SocketAddr },
    #[error(
        "`http.listen` is {listen}; it must be a loopback address such as 127.0.0.1, because \
         metrics are served without TLS, or `http.plaintext = true` has to say that this is meant"
    )]
    HttpNotLoopback { listen: SocketAddr },
    #[error(
        "`{key}.plaintext` is set, but `{key}.listen` is {listen}, which others can reach: plain \
         connections are for loopback addresses"
    )]
    PlaintextForOthers { key: &'static str, listen: SocketAddr },
    #[error(
        "this pod has no certificate, and `{key}.listen` is {listen}, which others can reach: give \
         it a certificate (see docs/security.md), or listen on a loopback address; or set \
         `insecure = true`, and anybody who reaches it can do everything"
    )]
    NoCertificate { key: &'static str, listen: SocketAddr },
    #[error(
        "`hang_limit_seconds` is {0}; it must be 0 (never) or from {HANG_LIMIT_SECONDS_MIN} to \
         {HANG_LIMIT_SECONDS_MAX}"
    )]
    HangLimit(u32),
    #[error(
        "`kubernetes.enrol` is set without `kubernetes.namespace`: name the namespace of the \
         service accounts holdfast-pod, holdfast-csi-node and so on"
    )]
    NoNamespace,
    #[error("`budgets.{key}` is {size}; it must be from {least} to {most}")]
    BudgetRange { key: &'static str, size: ByteSize, least: ByteSize, most: ByteSize },
}

impl Config {
    /// Reads and validates a file. Paths in it are relative to its directory.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let mut config: Config = toml::from_str(&text).map_err(|source| ConfigError::Parse {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        let base = path.parent().unwrap_or(Path::new(""));
        config.data = base.join(&config.data);
        config.pid_file = config.pid_file.map(|file| base.join(file));
        config.nbd.socket = config.nbd.socket.map(|socket| base.join(socket));
        for disk in &mut config.disks {
            disk.path = base.join(&disk.path);
        }
        config.validate()?;
        Ok(config)
    }

    /// Checks everything that does not need the file system.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.data.as_os_str().is_empty() {
            return Err(ConfigError::NoData);
        }
        if self.init && !self.join.is_empty() {
            return Err(ConfigError::InitAndJoin);
        }
        for address in &self.join {
            check_host_port(address)?;
        }
        let hang_limit = self.hang_limit_seconds;
        if hang_limit != 0
            && !(HANG_LIMIT_SECONDS_MIN..=HANG_LIMIT_SECONDS_MAX).contains(&hang_limit)
        {
            return Err(ConfigError::HangLimit(hang_limit));
        }
        self.validate_listeners()?;
        if !self.http.is_meant() {
            return Err(ConfigError::HttpNotLoopback { listen: self.http.listen });
        }
        self.validate_plaintext()?;
        self.validate_disks()?;
        if self.kubernetes.lacks_namespace() {
            return Err(ConfigError::NoNamespace);
        }
        self.budgets.validate()
    }

    fn validate_listeners(&self) -> Result<(), ConfigError> {
        let all = [
            ("api", self.api.listen, self.api.advertise),
            ("peer", self.peer.listen, self.peer.advertise),
            ("nbd", self.nbd.listen, self.nbd.advertise),
            ("http", self.http.listen, None),
        ];
        for (index, (key, listen, advertise)) in all.into_iter().enumerate() {
            if listen.port() == 0 {
                return Err(ConfigError::NoPort { key });
            }
            // The address of HTTP is not given to others.
            if key != "http" && advertise.is_none() && listen.ip().is_unspecified() {
                return Err(ConfigError::NeedsAdvertise { key, listen });
            }
            if let Some(advertise) = advertise
                && (advertise.ip().is_unspecified() || advertise.port() == 0)
            {
                return Err(ConfigError::BadAdvertise { key, advertise });
            }
            let clash = all[..index].iter().find(|(_, other, _)| overlap(*other, listen));
            if let Some((first, one, _)) = clash {
                let (one, second) = (*one, key);
                return Err(match one == listen {
                    true => ConfigError::SameListen { first, second, listen },
                    false => ConfigError::PortTaken { first, second, one, other: listen },
                });
            }
        }
        Ok(())
    }

    fn validate_plaintext(&self) -> Result<(), ConfigError> {
        for (key, listen, plaintext) in [
            ("api", self.api.listen, self.api.plaintext),
            ("nbd", self.nbd.listen, self.nbd.plaintext == Some(true)),
        ] {
            if plaintext && !listen.ip().is_loopback() {
                return Err(ConfigError::PlaintextForOthers { key, listen });
            }
        }
        Ok(())
    }

    /// Checks the listeners of a pod without a certificate.
    pub fn check_without_certificate(&self) -> Result<(), ConfigError> {
        for (key, listen) in
            [("api", self.api.listen), ("peer", self.peer.listen), ("nbd", self.nbd.listen)]
        {
            if !self.insecure && !listen.ip().is_loopback() {
                return Err(ConfigError::NoCertificate { key, listen });
            }
        }
        Ok(())
    }

    fn validate_disks(&self) -> Result<(), ConfigError> {
        let mut seen = BTreeSet::new();
        for disk in &self.disks {
            if !seen.insert(&disk.path) {
                return Err(ConfigError::DiskTwice(disk.path.clone()));
            }
            let sizes = [
                ("size", disk.size, DATA_BYTES_MIN),
                ("wal_size", Some(disk.wal_size), WAL_BYTES_MIN),
            ];
            for (key, size, least) in sizes {
                if let Some(size) = size.filter(|size| size.0 < least) {
                    let (path, least) = (disk.path.clone(), ByteSize(least));
                    return Err(ConfigError::DiskTooSmall { path, key, size, least });
                }
            }
        }
        Ok(())
    }

    /// Checks that the directory of every new disk exists, and that no two disks share one. A disk
    /// that `is_known` and is not there is refused alone, later.
    pub fn check_disks(&self, is_known: impl Fn(&Path) -> bool) -> Result<(), ConfigError> {
        let mut seen = BTreeSet::new();
        for disk in &self.disks {
            let path = disk.path.clone();
            match std::fs::metadata(&path) {
                _ if is_known(&path) => {}
                Ok(meta) if !meta.is_dir() => return Err(ConfigError::DiskNotDirectory { path }),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    return Err(ConfigError::DiskMissing { path });
                }
                _ => {}
            }
            // Other errors are reported when the disk is opened, so that other disks can start.
            if path.canonicalize().is_ok_and(|real| !seen.insert(real)) {
                return Err(ConfigError::DiskTwice(path));
            }
        }
        Ok(())
    }

    /// Address of this pod's API for others.
    pub fn api_address(&self) -> SocketAddr {
        self.api.advertise.unwrap_or(self.api.listen)
    }

    /// Address of this pod's data path for peers.
    pub fn peer_address(&self) -> SocketAddr {
        self.peer.advertise.unwrap_or(self.peer.listen)
    }

    /// True when NBD clients need no TLS.
    pub fn nbd_takes_plaintext(&self) -> bool {
        self.nbd.plaintext.unwrap_or(self.nbd.listen.ip().is_loopback())
    }

    /// Address of the volumes for clients.
    pub fn nbd_address(&self) -> SocketAddr {
        self.nbd.advertise.unwrap_or(self.nbd.listen)
    }
}

impl Disk {
    /// Limit of a new disk's data in bytes. With `size`: that, if the file system has it free now.
    /// Otherwise: the free space, less the log and a reserve (a tenth, for the index and its
    /// compaction).
    pub fn data_bytes_max(&self) -> Result<u64, ConfigError> {
        let space = rustix::fs::statvfs(&self.path).map_err(|error| ConfigError::DiskStat {
            path: self.path.clone(),
            source: error.into(),
        })?;
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        if let Some(size) = self.size {
            // The file is sparse: too large a size would only show on a full file system.
            if size.0.saturating_add(self.wal_size.0) > free {
                let (path, wal) = (self.path.clone(), self.wal_size);
                return Err(ConfigError::DiskTooLarge { path, size, free: ByteSize(free), wal });
            }
            return Ok(size.0);
        }
        let usable = (free - free / 10).saturating_sub(self.wal_size.0);
        if usable < DATA_BYTES_MIN {
            let path = self.path.clone();
            return Err(ConfigError::DiskFull { path, free: ByteSize(free), wal: self.wal_size });
        }
        Ok(usable >> 20 << 20)
    }
}

impl Listen {
    /// Listens at this address and advertises it.
    pub fn at(listen: SocketAddr) -> Listen {
        Listen { listen, advertise: None }
    }

    fn peer() -> Listen {
        Listen::at(loopback(ports::PEER))
    }
}

/// Default ports.
pub mod ports {
    pub const API: u16 = 7400;
    pub const PEER: u16 = 7401;
    pub const HTTP: u16 = super::http::PORT;
    pub const NBD: u16 = 10809;
}

impl Default for Api {
    fn default() -> Api {
        Api { listen: loopback(ports::API), advertise: None, plaintext: false }
    }
}

impl Default for Nbd {
    fn default() -> Nbd {
        Nbd { listen: default_nbd_listen(), advertise: None, socket: None, plaintext: None }
    }
}

impl Default for Budgets {
    fn default() -> Budgets {
        let bounds = limits::Budgets::default();
        Budgets {
            dirty_cache: ByteSize(512 << 20),
            index_cache: ByteSize(256 << 20),
            log_tail: ByteSize(1 << 20),
            connection: bytes(bounds.connection_bytes),
            volume: bytes(bounds.volume_bytes),
            shard: bytes(bounds.shard_bytes),
            link: bytes(bounds.link_bytes),
        }
    }
}

impl Budgets {
    fn validate(&self) -> Result<(), ConfigError> {
        let least = limits::Budgets::LEAST;
        let (gib, tib) = (ByteSize(1 << 30), ByteSize(1 << 40));
        for (key, size, least, most) in [
            ("dirty_cache", self.dirty_cache, ByteSize(1 << 20), tib),
            ("index_cache", self.index_cache, ByteSize(1 << 20), tib),
            ("log_tail", self.log_tail, ByteSize(4 << 10), gib),
            ("connection", self.connection, bytes(least.connection_bytes), tib),
            ("volume", self.volume, bytes(least.volume_bytes), tib),
            ("shard", self.shard, bytes(least.shard_bytes), gib),
            ("link", self.link, bytes(least.link_bytes), gib),
        ] {
            if size.0 < least.0 || size.0 > most.0 {
                return Err(ConfigError::BudgetRange { key, size, least, most });
            }
        }
        Ok(())
    }
}

fn bytes(count: usize) -> ByteSize {
    ByteSize(count as u64)
}

impl Default for Log {
    fn default() -> Log {
        Log { level: "info".to_owned(), format: LogFormat::Json }
    }
}

fn yes() -> bool {
    true
}

fn default_hang_limit_seconds() -> u32 {
    10
}

fn default_wal_size() -> ByteSize {
    ByteSize(1 << 30)
}

fn default_nbd_listen() -> SocketAddr {
    loopback(ports::NBD)
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// True when two listeners cannot have both addresses: 0.0.0.0 covers every address of IPv4, and
/// [::] covers these, too.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let covers = |all: SocketAddr, one: SocketAddr| {
        all.ip().is_unspecified() && (all.is_ipv6() || one.is_ipv4())
    };
    let same = one.ip() == other.ip() || covers(one, other) || covers(other, one);
    one.port() == other.port() && same
}

fn check_host_port(address: &str) -> Result<(), ConfigError> {
    let valid = address
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|p| p > 0));
    match valid {
        true => Ok(()),
        false => Err(ConfigError::JoinAddress(address.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        let config: Config = toml::from_str(text).map_err(|error| error.to_string())?;
        config.validate().map_err(|error| error.to_string())?;
        Ok(config)
    }

    #[test]
    fn the_smallest_configuration_has_the_documented_defaults() {
        let config = parse("data = '/d'\ninit = true\n[[disk]]\npath = '/d/1'").unwrap();
        assert_eq!(config.api_address().to_string(), "127.0.0.1:7400");
        assert_eq!(config.peer_address().to_string(), "127.0.0.1:7401");
        assert_eq!(config.nbd_address().to_string(), "127.0.0.1:10809");
        assert_eq!(config.disks[0].wal_size, ByteSize(1 << 30));
        assert_eq!(config.io, IoMethod::Auto);
        assert_eq!(config.hang_limit_seconds, 10);
        assert_eq!(config.durable_writes, DurableWriteMethod::Ring);
        assert!(config.wal_bypass);
        let budgets = &config.budgets;
        assert_eq!([budgets.connection, budgets.shard, budgets.link], [ByteSize(64 << 20); 3]);
        assert_eq!(budgets.dirty_cache, ByteSize(512 << 20));
        assert_eq!([budgets.index_cache, budgets.volume], [ByteSize(256 << 20); 2]);
        assert_eq!(budgets.log_tail, ByteSize(1 << 20));
        parse("data = '/d'\nhang_limit_seconds = 0").unwrap();
    }

    #[test]
    fn what_is_written_reads_back() {
        let config = parse("data = '/d'\njoin = ['a:1']\n[[disk]]\npath = '/d/1'").unwrap();
        assert_eq!(parse(&toml::to_string(&config).unwrap()).unwrap(), config);
    }

    #[test]
    fn one_port_on_two_addresses_is_no_clash() {
        parse("data = '/d'\n[api]\nlisten = '127.0.0.2:7401'").unwrap();
        parse("data = '/d'\n[http]\nlisten = '[::1]:7401'").unwrap();
        let api = "[api]\nlisten = '0.0.0.0:7400'\nadvertise = '192.0.2.1:7400'";
        parse(&format!("data = '/d'\n{api}\n[http]\nlisten = '[::1]:7400'")).unwrap();
        parse("data = '/d'\n[http]\nlisten = '0.0.0.0:7480'\nplaintext = true").unwrap();
    }

    #[test]
    fn mistakes_are_named() {
        for (text, says) in [
            ("data = '/d'\nsize = 3", "unknown field"),
            ("data = ''", "`data` must name"),
            ("data = '/d'\ninit = true\njoin = ['a:1']", "exclude each other"),
            ("data = '/d'\njoin = ['a']", "host:port"),
            ("data = '/d'\njoin = ['a:0']", "host:port"),
            ("data = '/d'\n[[disk]]\npath = 'a'\n[[disk]]\npath = 'a'", "listed twice"),
            ("data = '/d'\n[[disk]]\npath = 'a'\nsize = '1MiB'", "the least is 256MiB"),
            ("data = '/d'\n[[disk]]\npath = 'a'\nsize = '1GB'", "unknown unit"),
            ("data = '/d'\n[api]\nlisten = '0.0.0.0:7400'", "api.advertise"),
            ("data = '/d'\n[api]\nlisten = '127.0.0.1:7401'", "are both 127.0.0.1:7401"),
            (
                "data = '/d'\n[api]\nlisten = '0.0.0.0:7401'\nadvertise = '192.0.2.1:7401'",
                "`api.listen` (0.0.0.0:7401) and `peer.listen` (127.0.0.1:7401) take the same",
            ),
            (
                "data = '/d'\n[nbd]\nlisten = '[::]:7401'\nadvertise = '192.0.2.1:7401'",
                "`peer.listen` (127.0.0.1:7401) and `nbd.listen` ([::]:7401) take the same",
            ),
            ("data = '/d'\n[http]\nlisten = '0.0.0.0:7480'", "must be a loopback address"),
            ("data = '/d'\n[http]\nlisten = '192.0.2.1:7480'", "served without TLS"),
            ("data = '/d'\n[nbd]\nlisten = '127.0.0.1:0'", "nbd.listen` needs a port"),
            ("data = '/d'\nhang_limit_seconds = 1", "hang_limit_seconds"),
            ("data = '/d'\nhang_limit_seconds = 3601", "hang_limit_seconds"),
            ("data = '/d'\nhang_limit_seconds = -1", "hang_limit_seconds"),
            (
                "data = '/d'\n[budgets]\nlog_tail = 0",
                "budgets.log_tail` is 0B; it must be from 4KiB",
            ),
            ("data = '/d'\n[budgets]\nlog_tail = '2GiB'", "to 1GiB"),
            ("data = '/d'\n[budgets]\ndirty_cache = 0", "budgets.dirty_cache` is 0B"),
            ("data = '/d'\n[budgets]\nindex_cache = '1KiB'", "index_cache"),
            ("data = '/d'\n[budgets]\nconnection = '512KiB'", "from 1MiB to"),
            ("data = '/d'\n[budgets]\nvolume = '2TiB'", "budgets.volume"),
            ("data = '/d'\n[budgets]\nshard = '7MiB'", "from 8MiB to"),
            ("data = '/d'\n[budgets]\nlink = '15MiB'", "from 16MiB to"),
            ("data = '/d'\n[budgets]\nmemory = '1GiB'", "unknown field"),
            ("data = '/d'\ndurable_writes = 'never'", "never"),
            ("data = '/d'\n[api]\nlisten = '192.0.2.1:7400'\nplaintext = true", "api.plaintext"),
            ("data = '/d'\n[nbd]\nlisten = '192.0.2.1:1'\nplaintext = true", "nbd.plaintext"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(says), "{text:?}: {error}");
        }
    }

    #[test]
    fn without_a_certificate_only_this_machine_is_listened_to() {
        parse("data = '/d'").unwrap().check_without_certificate().unwrap();
        let open = "[peer]\nlisten = '192.0.2.1:7401'";
        let error = parse(&format!("data = '/d'\n{open}")).unwrap().check_without_certificate();
        assert!(matches!(error, Err(ConfigError::NoCertificate { key: "peer", .. })));
        let insecure = parse(&format!("data = '/d'\ninsecure = true\n{open}")).unwrap();
        insecure.check_without_certificate().unwrap();
        assert!(insecure.nbd_takes_plaintext());
        let nbd = parse("data = '/d'\n[nbd]\nlisten = '192.0.2.1:10809'").unwrap();
        assert!(!nbd.nbd_takes_plaintext());
    }

    #[test]
    fn directories_are_checked_before_anything_starts() {
        let root = tempfile::tempdir().unwrap();
        let mut config = parse("data = '/d'\n[[disk]]\npath = 'a'\n[[disk]]\npath = 'b'").unwrap();
        config.disks[0].path = root.path().join("a");
        config.disks[1].path = root.path().join("b");
        let check = |config: &Config| config.check_disks(|_| false);
        assert!(matches!(check(&config), Err(ConfigError::DiskMissing { .. })));
        assert!(config.check_disks(|_| true).is_ok(), "the pod had both, and goes on without");
        std::fs::create_dir(&config.disks[0].path).unwrap();
        std::os::unix::fs::symlink(&config.disks[0].path, &config.disks[1].path).unwrap();
        assert!(matches!(check(&config), Err(ConfigError::DiskTwice(_))));
        std::fs::remove_file(&config.disks[1].path).unwrap();
        std::fs::create_dir(&config.disks[1].path).unwrap();
        check(&config).unwrap();
    }

    #[test]
    fn a_size_that_the_file_system_does_not_have_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let mut disk = Disk { path: root.path().to_owned(), size: None, wal_size: ByteSize(0) };
        let usable = disk.data_bytes_max().unwrap();
        disk.size = Some(ByteSize(usable / 2));
        assert_eq!(disk.data_bytes_max().unwrap(), usable / 2);
        disk.wal_size = ByteSize(u64::MAX);
        let refused = disk.data_bytes_max().unwrap_err();
        assert!(matches!(refused, ConfigError::DiskTooLarge { .. }), "{refused}");
    }
}
