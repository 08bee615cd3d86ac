//! Directories and ports of a development cluster.
//!
//! Pod N, counted from 1, lives in `DIR/pod-N`: `holdfast.toml`, `pid`, `log`, `disk-1/`, and its
//! identity in `data/`. Its id in the cluster is N. Its ports are the defaults + 100 x (N - 1) +
//! the offset.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::time::{Instant, sleep};

use crate::config::http::Http;
use crate::config::size::ByteSize;
use crate::config::{Api, Config, Disk, IoMethod, Listen, Log, LogFormat, Nbd, Node, ports};

/// Time for killed pods to release their ports.
const PORTS_WITHIN: Duration = Duration::from_secs(3);
const PORTS_LOOK: Duration = Duration::from_millis(50);
/// Least size of a pod's disk.
const DISK_BYTES_MIN: u64 = 1 << 30;

#[derive(Debug)]
pub struct Layout {
    pub pods: Vec<PodLayout>,
}

#[derive(Debug)]
pub struct PodLayout {
    /// Counted from 1.
    pub number: u16,
    pub directory: PathBuf,
    pub config: Config,
}

impl PodLayout {
    pub fn config_file(&self) -> PathBuf {
        self.directory.join("holdfast.toml")
    }

    pub fn pid_file(&self) -> PathBuf {
        self.directory.join("pid")
    }

    pub fn log_file(&self) -> PathBuf {
        self.directory.join("log")
    }

    /// The purpose and address of every listener.
    fn listeners(&self) -> [(&'static str, SocketAddr); 4] {
        let config = &self.config;
        [
            ("API", config.api.listen),
            ("peer", config.peer.listen),
            ("NBD", config.nbd.listen),
            ("HTTP", config.http.listen),
        ]
    }
}

impl Layout {
    /// Plans a cluster in `root`. Existing disks keep their sizes.
    pub fn new(
        root: PathBuf,
        pods: u16,
        port_offset: u16,
        addresses: &[IpAddr],
        wal_size: ByteSize,
    ) -> anyhow::Result<Layout> {
        if !addresses.is_empty() && addresses.len() != usize::from(pods) {
            bail!("--addresses lists {} addresses for {pods} pods", addresses.len());
        }
        let surplus = root.join(format!("pod-{}", pods + 1));
        if surplus.exists() {
            bail!(
                "{} exists, but --pods is {pods}: start all pods of the cluster, or name another \
                 directory with --data",
                surplus.display()
            );
        }
        let size = Some(ByteSize(disk_bytes(&root, u64::from(pods), wal_size)?));
        let mut layout = Layout { pods: Vec::new() };
        for number in 1..=pods {
            let address = addresses.get(usize::from(number - 1)).copied();
            let listen = Listeners::new(
                address.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)),
                u32::from(port_offset) + 100 * u32::from(number - 1),
            )?;
            let directory = root.join(format!("pod-{number}"));
            let first = layout.pods.first().map(|pod: &PodLayout| pod.config.api.listen);
            let disk = Disk { path: directory.join("disk-1"), size, wal_size };
            let config = config(&directory, &listen, first, disk)?;
            config.validate()?;
            layout.pods.push(PodLayout { number, directory, config });
        }
        Ok(layout)
    }

    /// Sets keys of every pod's configuration. Other keys of the same table stay.
    pub fn set(&mut self, settings: &[toml::Table]) -> anyhow::Result<()> {
        for pod in &mut self.pods {
            let mut table =
                toml::Table::try_from(&pod.config).context("could not encode a configuration")?;
            for setting in settings {
                merge(&mut table, setting);
            }
            pod.config = table.try_into().context("a key given with --set cannot be used")?;
            pod.config.validate()?;
        }
        Ok(())
    }

    /// Waits until the ports are free: recently killed pods may still hold them. Fails before
    /// anything starts, and names the port, if one stays in use.
    pub async fn wait_for_ports(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + PORTS_WITHIN;
        loop {
            match self.check_ports() {
                Err(_) if Instant::now() < deadline => sleep(PORTS_LOOK).await,
                result => return result,
            }
        }
    }

    fn check_ports(&self) -> anyhow::Result<()> {
        for pod in &self.pods {
            for (purpose, listen) in pod.listeners() {
                TcpListener::bind(listen).with_context(|| {
                    format!(
                        "pod {} cannot listen on {listen} ({purpose}); free the port, or \
                         move all ports with --port-offset",
                        pod.number
                    )
                })?;
            }
        }
        Ok(())
    }

    /// Creates the directories and writes the configurations.
    pub fn write(&self) -> anyhow::Result<()> {
        for pod in &self.pods {
            for disk in &pod.config.disks {
                std::fs::create_dir_all(&disk.path)
                    .with_context(|| format!("could not create {}", disk.path.display()))?;
            }
            let path = pod.config_file();
            let text = format!(
                "# Pod {} of a development cluster. Written anew by every `holdfast dev`.\n{}",
                pod.number,
                toml::to_string(&pod.config).context("could not encode a configuration")?
            );
            std::fs::write(&path, text)
                .with_context(|| format!("could not write {}", path.display()))?;
        }
        Ok(())
    }
}

struct Listeners {
    api: SocketAddr,
    peer: SocketAddr,
    http: SocketAddr,
    nbd: SocketAddr,
}

impl Listeners {
    fn new(address: IpAddr, offset: u32) -> anyhow::Result<Listeners> {
        let at = |port: u16| {
            let port = u16::try_from(u32::from(port) + offset)
                .with_context(|| format!("port {port} + {offset} is larger than 65535"))?;
            anyhow::Ok(SocketAddr::new(address, port))
        };
        Ok(Listeners {
            api: at(ports::API)?,
            peer: at(ports::PEER)?,
            // Without TLS, it is for this machine only.
            http: SocketAddr::new(Ipv4Addr::LOCALHOST.into(), at(ports::HTTP)?.port()),
            nbd: at(ports::NBD)?,
        })
    }
}

fn config(
    directory: &Path,
    listen: &Listeners,
    first: Option<SocketAddr>,
    disk: Disk,
) -> anyhow::Result<Config> {
    let file = directory.join("holdfast.toml");
    // One that cannot be read may name other disks than the usual one.
    let before = if file.exists() { Some(Config::load(&file)?) } else { None };
    let disks = before.map(|config| config.disks).filter(|disks| !disks.is_empty());
    Ok(Config {
        data: directory.join("data"),
        init: first.is_none(),
        join: first.iter().map(SocketAddr::to_string).collect(),
        io: IoMethod::Auto,
        durable_writes: Default::default(),
        wal_bypass: true,
        leaders_follow_clients: true,
        reads: Default::default(),
        hang_limit_seconds: 10,
        pid_file: Some(directory.join("pid")),
        // Each pod stands for a machine of its own.
        node: Node {
            name: directory.file_name().map(|name| name.to_string_lossy().into_owned()),
            ..Node::default()
        },
        insecure: false,
        api: Api { listen: listen.api, advertise: None, plaintext: listen.api.ip().is_loopback() },
        peer: Listen::at(listen.peer),
        nbd: Nbd { listen: listen.nbd, ..Nbd::default() },
        http: Http::at(listen.http),
        budgets: Default::default(),
        log: Log { level: "info".to_owned(), format: LogFormat::Json },
        kubernetes: Default::default(),
        disks: disks.unwrap_or_else(|| vec![disk]),
    })
}

fn merge(table: &mut toml::Table, setting: &toml::Table) {
    for (key, value) in setting {
        match (table.get_mut(key), value) {
            (Some(toml::Value::Table(inner)), toml::Value::Table(value)) => merge(inner, value),
            _ => drop(table.insert(key.clone(), value.clone())),
        }
    }
}

/// Size for each pod's disk on a shared file system: four fifths of the free space in all.
fn disk_bytes(root: &Path, pods: u64, wal_size: ByteSize) -> anyhow::Result<u64> {
    let space = rustix::fs::statvfs(root).context("could not get the space of the file system")?;
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    let each = (free / 5 * 4 / pods).saturating_sub(wal_size.0);
    Ok((each >> 30 << 30).max(DISK_BYTES_MIN))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAL: ByteSize = ByteSize(256 << 20);

    #[test]
    fn keys_of_the_configuration_can_be_set() {
        let root = tempfile::tempdir().unwrap();
        let mut layout = Layout::new(root.path().to_owned(), 2, 0, &[], WAL).unwrap();
        let before = layout.pods[1].config.clone();
        let text = "io = 'epoll'\nbudgets.log_tail = '2MiB'";
        layout.set(&[text.parse().unwrap()]).unwrap();
        let config = &layout.pods[1].config;
        assert_eq!((config.io, config.budgets.log_tail), (IoMethod::Epoll, ByteSize(2 << 20)));
        assert_eq!(config.budgets.index_cache, before.budgets.index_cache);
        assert_eq!(config.nbd, before.nbd);
        let unknown = layout.set(&["colour = 'blue'".parse().unwrap()]).unwrap_err();
        assert!(format!("{unknown:#}").contains("colour"), "{unknown:#}");
        assert!(layout.set(&["budgets.log_tail = 0".parse().unwrap()]).is_err());
    }

    #[test]
    fn ports_are_the_documented_ones() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path().to_owned(), 3, 0, &[], WAL).unwrap();
        let nbd: Vec<String> =
            layout.pods.iter().map(|pod| pod.config.nbd.listen.to_string()).collect();
        assert_eq!(nbd, ["127.0.0.1:10809", "127.0.0.1:10909", "127.0.0.1:11009"]);
        assert!(layout.pods[0].config.init);
        assert_eq!(layout.pods[2].config.join, ["127.0.0.1:7400"]);

        let addresses = ["127.0.0.2".parse().unwrap(), "127.0.0.3".parse().unwrap()];
        let layout = Layout::new(root.path().to_owned(), 2, 1000, &addresses, WAL).unwrap();
        assert_eq!(layout.pods[1].config.api.listen.to_string(), "127.0.0.3:8500");
        assert_eq!(layout.pods[1].config.join, ["127.0.0.2:8400"]);
    }

    #[test]
    fn what_is_written_is_a_normal_configuration_and_keeps_its_disks() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path().to_owned(), 2, 0, &[], WAL).unwrap();
        layout.write().unwrap();
        for pod in &layout.pods {
            assert_eq!(Config::load(&pod.config_file()).unwrap(), pod.config);
            pod.config.check_disks(|_| false).unwrap();
        }
        let mut moved = layout.pods[0].config.clone();
        moved.disks[0].size = Some(ByteSize(5 << 30));
        std::fs::write(layout.pods[0].config_file(), toml::to_string(&moved).unwrap()).unwrap();
        let again = Layout::new(root.path().to_owned(), 2, 100, &[], WAL).unwrap();
        assert_eq!(again.pods[0].config.disks, moved.disks);
        assert_eq!(again.pods[0].config.api.listen.port(), 7500);
    }

    #[test]
    fn what_cannot_work_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().to_owned();
        let one = ["127.0.0.1".parse().unwrap()];
        assert!(Layout::new(path.clone(), 2, 0, &one, WAL).is_err());
        assert!(Layout::new(path.clone(), 1, 60000, &[], WAL).is_err());
        std::fs::create_dir(path.join("pod-2")).unwrap();
        let error = Layout::new(path.clone(), 1, 0, &[], WAL).unwrap_err().to_string();
        assert!(error.contains("pod-2 exists"), "{error}");
    }

    #[test]
    fn a_port_in_use_is_named() {
        let root = tempfile::tempdir().unwrap();
        let mut layout = Layout::new(root.path().to_owned(), 1, 0, &[], WAL).unwrap();
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let config = &mut layout.pods[0].config;
        config.nbd.listen = taken.local_addr().unwrap();
        // Ports that the system picks are free.
        config.api.listen.set_port(0);
        config.peer.listen.set_port(0);
        let error = layout.check_ports().unwrap_err().to_string();
        assert!(error.contains(&config_port(&layout)) && error.contains("NBD"), "{error}");
    }

    fn config_port(layout: &Layout) -> String {
        layout.pods[0].config.nbd.listen.port().to_string()
    }
}
