//! A device of the kernel's NBD client, and the task that keeps it connected with its relay.

use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::UnixStream as Pair;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use tokio::net::UnixStream;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::attach::fuse::{FuseError, is_used, loops_of};
use crate::attach::kernel::calls::{CallError, call};
use crate::attach::kernel::netlink::{Ask, Connect};
use crate::attach::kernel::{KernelError, Owner, failed, sysfs};
use crate::attach::relay::hello::Export;
use crate::attach::relay::run::{LineError, Relay};
use crate::attach::thread::within;
use crate::control::catalog::chain;

/// See the module above.
pub const LOOK_MS: u32 = 5_000;
/// Requests wait so long for a process that was killed.
const DEAD_CONNECTION_TIMEOUT_S: u64 = 600;
/// What the engine stores as one piece.
const BLOCK_SIZE_BYTES: u64 = 4096;
const SECTOR_BYTES: u64 = 512;
/// Before another socket is handed in. Doubles while sockets end at once, which they do when the
/// kernel has one that lives.
const PAUSE: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);
const AT_ONCE: Duration = Duration::from_secs(2);
/// Tries to find an index that nobody takes meanwhile.
const TRIES_MAX: u32 = 8;
/// Longest wait for the kernel's table to show that a device is gone.
const GONE_WITHIN: Duration = Duration::from_secs(20);
/// Longest wait for the kernel, which may wait for requests.
const ASK_WITHIN: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The indexes of this boot: they ascend, so that a path which somebody remembers is never that of
/// another volume. Also keeps other processes away from the kernel's devices.
pub struct Indexes {
    /// Locked. Has the highest index, in digits.
    file: File,
    path: PathBuf,
    highest: Option<u32>,
}

impl Indexes {
    /// `path` is in a directory that a reboot empties.
    pub fn begin(path: &Path) -> Result<Indexes, KernelError> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(failed("create", directory))?;
        }
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path);
        let mut file = file.map_err(failed("open", path))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(KernelError::Locked(path.to_owned())),
            Err(error) => return Err(failed("lock", path)(error.into())),
        }
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(failed("read", path))?;
        let highest = text.trim().parse().ok();
        Ok(Indexes { file, path: path.to_owned(), highest })
    }

    /// Takes the next index. `shown`: the highest that the kernel shows.
    fn take(&mut self, shown: Option<u32>) -> Result<u32, KernelError> {
        let index = self.highest.max(shown).map_or(0, |highest| highest.saturating_add(1));
        let written = self.file.rewind().and_then(|()| self.file.set_len(0));
        let written = written.and_then(|()| write!(self.file, "{index}"));
        written.map_err(failed("write", &self.path))?;
        self.highest = Some(index);
        Ok(index)
    }
}

/// A device that is there until it is closed, also when this value is dropped.
pub struct KernelDevice {
    index: u32,
    owner: Owner,
    path: PathBuf,
    link: Arc<Link>,
    keeper: JoinHandle<()>,
}

impl Drop for KernelDevice {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

/// What the device and its keeper share.
#[derive(Default)]
struct Link {
    /// Locked while the kernel is asked to change the connection. True: the device is gone.
    is_gone: Mutex<bool>,
    is_live: watch::Sender<bool>,
}

impl KernelDevice {
    /// Makes a device of what the relay carries.
    pub async fn make(
        indexes: &Mutex<Indexes>,
        owner: Owner,
        relay: &Relay,
        export: Export,
    ) -> Result<KernelDevice, KernelError> {
        for _ in 0..TRIES_MAX {
            let (shown, _) = sysfs::look().map_err(failed("read", Path::new("/sys/block")))?;
            let index = indexes.lock().await.take(shown)?;
            let connect = |socket| {
                Ask::Connect(Connect {
                    index,
                    size_bytes: export.size_bytes,
                    block_size_bytes: block_size_bytes(export.size_bytes),
                    flags: export.flags,
                    timeout_s: 0,
                    dead_connection_timeout_s: DEAD_CONNECTION_TIMEOUT_S,
                    identifier: owner.to_string(),
                    socket,
                })
            };
            match hand_in(relay, connect).await {
                Ok(carried) => {
                    let set = within(ASK_WITHIN, move || sysfs::set_look_ms(index, LOOK_MS)).await;
                    // Then it stays 30 s, which costs time only.
                    if let Err(error) = set.and_then(|done| done) {
                        tracing::warn!("nbd{index}: a restart will cost 30 s: {error}");
                    }
                    return Ok(KernelDevice::new(index, owner, relay, Some(carried)));
                }
                // Another program took the index.
                Err(error) if error.is_taken() => {}
                Err(source) => {
                    let doing = "make a device of the kernel's NBD client";
                    return Err(KernelError::Call { doing, source });
                }
            }
        }
        Err(KernelError::NoIndex)
    }

    /// A device that an earlier process has made.
    pub fn adopt(index: u32, owner: Owner, relay: &Relay) -> KernelDevice {
        KernelDevice::new(index, owner, relay, None)
    }

    fn new(index: u32, owner: Owner, relay: &Relay, carried: Option<Carried>) -> KernelDevice {
        let link = Arc::new(Link::default());
        let keeper =
            Keeper { index, owner: owner.clone(), relay: relay.clone(), link: link.clone() };
        let keeper = tokio::spawn(keeper.keep(carried));
        let path = Path::new("/dev").join(format!("nbd{index}"));
        KernelDevice { index, owner, path, link, keeper }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Why the device cannot be used any more, if it cannot. Its path may be another's then.
    pub fn broken(&self) -> Option<String> {
        match sysfs::is_there(self.index, &self.owner) {
            true => None,
            false => Some("somebody else has taken it away".to_owned()),
        }
    }

    /// Takes it away, unless something uses it.
    pub async fn take_away(&self) -> Result<(), KernelError> {
        let mut is_gone = self.link.is_gone.lock().await;
        if *is_gone || !sysfs::is_there(self.index, &self.owner) {
            *is_gone = true;
            return Ok(());
        }
        self.check_unused().await?;
        let index = self.index;
        let asked = call(None, |_| Ask::Disconnect { index }).await;
        asked.map_err(|source| KernelError::Call { doing: "take a device away", source })?;
        let until = Instant::now() + GONE_WITHIN;
        while sysfs::is_there(self.index, &self.owner) {
            if Instant::now() > until {
                return Err(KernelError::Stays { path: self.path.clone(), within: GONE_WITHIN });
            }
            sleep(LOOK_EVERY).await;
        }
        *is_gone = true;
        Ok(())
    }

    async fn check_unused(&self) -> Result<(), KernelError> {
        let path = self.path.clone();
        let looked =
            within(ASK_WITHIN, move || Ok(is_used(&path)? || !loops_of(&path)?.is_empty()));
        let looked = looked.await.map_err(failed("open", &self.path))?;
        match looked.map_err(|error: FuseError| KernelError::Look(Box::new(error)))? {
            true => Err(KernelError::InUse(self.path.clone())),
            false => Ok(()),
        }
    }

    /// Tells the kernel of a larger size. The caller knows that requests are answered: newer
    /// kernels wait for all in flight, and let nobody hand in a socket meanwhile.
    pub async fn grow(&self, size_bytes: u64) -> Result<(), KernelError> {
        let is_gone = self.link.is_gone.lock().await;
        if *is_gone || !*self.link.is_live.borrow() {
            return Err(KernelError::NotConnected(self.path.clone()));
        }
        let (index, identifier) = (self.index, self.owner.to_string());
        let asked = call(None, |_| Ask::Resize { index, identifier, size_bytes }).await;
        asked.map_err(|source| KernelError::Call { doing: "let a device grow", source })
    }
}

/// A volume of another size has no whole number of blocks.
fn block_size_bytes(size_bytes: u64) -> u64 {
    match size_bytes.is_multiple_of(BLOCK_SIZE_BYTES) {
        true => BLOCK_SIZE_BYTES,
        false => SECTOR_BYTES,
    }
}

/// A connection that the relay carries; ends with this.
struct Carried(JoinHandle<Result<(), LineError>>);

impl Drop for Carried {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Gives the kernel one of a pair of sockets, and the other to the relay.
async fn hand_in(relay: &Relay, ask: impl FnOnce(RawFd) -> Ask) -> Result<Carried, CallError> {
    let (ours, kernels) = Pair::pair()?;
    ours.set_nonblocking(true)?;
    let (ours, relay) = (UnixStream::from_std(ours)?, relay.clone());
    let carried = tokio::spawn(async move { relay.carry(ours, BytesMut::new()).await });
    let carried = Carried(carried);
    call(Some(OwnedFd::from(kernels)), ask).await?;
    Ok(carried)
}

/// Hands in a socket whenever the device has none that lives.
struct Keeper {
    index: u32,
    owner: Owner,
    relay: Relay,
    link: Arc<Link>,
}

impl Keeper {
    async fn keep(self, mut carried: Option<Carried>) {
        let mut pause = PAUSE;
        loop {
            if let Some(mut carried) = carried.take() {
                let began = Instant::now();
                self.link.is_live.send_replace(true);
                let ended = (&mut carried.0).await;
                self.link.is_live.send_replace(false);
                self.say(ended);
                pause = match began.elapsed() < AT_ONCE {
                    true => (pause * 2).min(PAUSE_MAX),
                    false => PAUSE,
                };
                sleep(pause).await;
            }
            let mut is_gone = self.link.is_gone.lock().await;
            if *is_gone || !sysfs::is_there(self.index, &self.owner) {
                *is_gone = true;
                return;
            }
            let (index, identifier) = (self.index, self.owner.to_string());
            match hand_in(&self.relay, |socket| Ask::Replace { index, identifier, socket }).await {
                Ok(handed) => carried = Some(handed),
                Err(error) => {
                    drop(is_gone);
                    tracing::warn!("nbd{index} gets no socket now: {}", chain(&error));
                    sleep(PAUSE_MAX).await;
                }
            }
        }
    }

    fn say(&self, ended: Result<Result<(), LineError>, tokio::task::JoinError>) {
        let index = self.index;
        match ended {
            Ok(Ok(())) => tracing::info!("nbd{index}: the kernel has left a socket"),
            Ok(Err(error)) => tracing::warn!("nbd{index}: a socket is left: {}", chain(&error)),
            Err(error) => tracing::error!("nbd{index}: a socket is left: {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_ascend_through_restarts_and_belong_to_one_process() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("index");
        let mut indexes = Indexes::begin(&path).unwrap();
        assert!(matches!(Indexes::begin(&path), Err(KernelError::Locked(_))));
        let taken = [None, None, Some(15), Some(3)].map(|shown| indexes.take(shown).unwrap());
        assert_eq!(taken, [0, 1, 16, 17]);
        drop(indexes);
        assert_eq!(Indexes::begin(&path).unwrap().take(Some(2)).unwrap(), 18);
    }

    #[test]
    fn a_volume_without_whole_blocks_has_sectors() {
        assert_eq!([4096, 1 << 30, 4608].map(block_size_bytes), [4096, 4096, 512]);
    }
}
