//! The devices of this node.
//!
//! Invariant: one attachment has one device at most, and a device is in the table from before it is
//! made until after it is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::attach::backend::{Backend, BackendError};
use crate::attach::fuse::take_down;
use crate::attach::kernel::device::{Indexes, KernelDevice};
use crate::attach::kernel::sysfs::Found;
use crate::attach::kernel::{self, KernelError, Owner, sysfs};
use crate::attach::relay::blank::BlankError;
use crate::attach::relay::hello::Export;
use crate::attach::relay::pods::{OpenError, Opener, PodAddress};
use crate::attach::relay::run::{GrowError, Relay};
use crate::attach::relay::welcome::passed_on;
use crate::attach::thread::within;
use crate::control::catalog::chain;
use crate::front::nbd::wire::export_flag;
use crate::security::credentials::Tls;
use crate::security::files::{FilesError, make_private_directory};
use crate::types::Uuid;

/// An attachment belongs to a node, and a node has one `holdfast attach` at a time: a later one
/// takes the places of the lines that an earlier one has left in pods.
const FIRST_LINE: u64 = 0;
/// Longest wait for devices that are being made or taken away, when all are listed.
const LIST_WITHIN: Duration = Duration::from_secs(10);
/// Longest wait for a pod that opens an attachment.
const OPEN_WITHIN: Duration = Duration::from_secs(20);
/// As many as a node has volumes.
const DEVICES_MAX: usize = 128;
/// Interval at which the table is compared with the kernel's.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Longest wait for the kernel's words about one device.
const LOOK_WITHIN: Duration = Duration::from_secs(2);
/// In the directory, which outlives the process and ends with the boot.
const INDEXES: &str = ".nbd-index";

/// What devices are made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// The kernel's NBD client where it can be used, otherwise nbdfuse.
    #[default]
    Auto,
    Kernel,
    Fuse,
}

/// Why there is no device, or still one.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error("no pod opens attachment {0} now")]
    NoPod(Uuid),
    #[error("attachment {0} has a device, which is not read-only as asked, or is")]
    OtherMode(Uuid),
    #[error("this node has {DEVICES_MAX} devices, and no more")]
    Full,
    #[error("the relay cannot be set up")]
    Relay(#[from] OpenError),
    #[error("could not {doing} {}", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("another `holdfast attach` has the devices in {}", .0.display())]
    Locked(PathBuf),
    #[error("the device of attachment {attachment} is broken, close it first: {why}")]
    Broken { attachment: Uuid, why: String },
    #[error("attachment {0} has no device here")]
    NoDevice(Uuid),
    #[error("the device of attachment {0} cannot be looked at now")]
    Busy(Uuid),
    #[error("it is not known whether anything is allocated")]
    Blank(#[from] BlankError),
    #[error(transparent)]
    Directory(#[from] FilesError),
    #[error("the device does not grow")]
    Grow(#[from] GrowError),
    #[error(transparent)]
    Backend(#[from] BackendError),
}

impl From<KernelError> for DeviceError {
    fn from(error: KernelError) -> DeviceError {
        DeviceError::Backend(error.into())
    }
}

/// What a device is made for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub attachment: Uuid,
    pub read_only: bool,
    /// Shown in lists; nothing else depends on it.
    pub volume: String,
}

/// A device as others see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    pub attachment: Uuid,
    pub path: PathBuf,
    pub size_bytes: u64,
    pub read_only: bool,
    pub kind: &'static str,
    /// As its opener called it.
    pub volume: String,
    /// `None`: no pod can be reached, and requests wait.
    pub pod: Option<PodAddress>,
    /// Why it cannot be used any more.
    pub broken: Option<String>,
}

/// See the module.
pub struct Devices {
    directory: PathBuf,
    tls: Option<Tls>,
    pods: watch::Receiver<Vec<PodAddress>>,
    /// Locked, so that no other process has devices there.
    _lock: File,
    /// `None`: the kernel has no devices of ours, and gets none.
    kernel: Option<Kernel>,
    /// Each with a lock of its own: one that hangs holds up nobody else.
    table: Mutex<BTreeMap<Uuid, Slot>>,
    /// What an earlier process has left, and somebody has used since.
    left: Mutex<BTreeSet<Uuid>>,
    /// The kernel has devices of these attachments, and they could not be taken over yet.
    unknown: Mutex<BTreeSet<Uuid>>,
}

/// The kernel's NBD client.
struct Kernel {
    indexes: Mutex<Indexes>,
    /// New devices are made of it.
    is_chosen: bool,
}

/// `None`: it is being made, or was taken away.
type Slot = Arc<Mutex<Option<Device>>>;

struct Device {
    relay: Relay,
    backend: Backend,
    volume: String,
    size_bytes: u64,
    read_only: bool,
}

impl Devices {
    /// Devices below `directory`, and those that the kernel has kept of an earlier process. Takes
    /// away the devices of its nbdfuse that nobody uses.
    pub async fn begin(
        directory: &Path,
        tls: Option<Tls>,
        pods: watch::Receiver<Vec<PodAddress>>,
        choice: Choice,
    ) -> Result<Devices, DeviceError> {
        if !directory.exists() {
            make_private_directory(directory)?;
        }
        let directory = directory.canonicalize().map_err(failed("find", directory))?;
        let lock = lock(&directory)?;
        let left = take_rest(&directory).await?;
        let kernel = client(choice, &directory).await?;
        let (table, left, unknown) = (Mutex::default(), Mutex::new(left), Mutex::default());
        let devices = Devices { directory, tls, pods, _lock: lock, kernel, table, left, unknown };
        devices.adopt().await?;
        Ok(devices)
    }

    /// Takes away what an earlier process has left, once nobody uses it any more.
    async fn sweep(&self) {
        let left: Vec<Uuid> = self.left.lock().await.iter().copied().collect();
        for attachment in left {
            let Ok(slot) = self.slot(attachment).await else { return };
            let place = slot.lock().await;
            // A new device has taken its place.
            let is_gone = place.is_some()
                || take_down(&self.directory.join(attachment.to_string())).await.is_ok();
            drop(place);
            self.forget(attachment, &slot).await;
            if is_gone {
                self.left.lock().await.remove(&attachment);
            }
        }
    }

    /// Compares the table with the kernel's, for ever: the kernel may have made a device after its
    /// maker had given up. And takes away what is left, once nobody uses it.
    pub async fn keep(&self) {
        loop {
            sleep(LOOK_EVERY).await;
            self.sweep().await;
            self.tidy().await;
            if let Err(error) = self.adopt().await {
                tracing::warn!("the kernel's devices are not known: {}", chain(&error));
            }
        }
    }

    /// Takes the kernel's devices over that are not in the table.
    async fn adopt(&self) -> Result<(), DeviceError> {
        if self.kernel.is_none() {
            return Ok(());
        }
        let (_, all) = sysfs::look().map_err(failed("read", Path::new("/sys/block")))?;
        let shown: BTreeSet<Uuid> = all.iter().map(|found| found.owner.attachment).collect();
        self.unknown.lock().await.retain(|attachment| shown.contains(attachment));
        for found in all {
            let (index, attachment) = (found.index, found.owner.attachment);
            // Makers of a device, and those who take it away, have its slot.
            let mut table = self.table.lock().await;
            if table.contains_key(&attachment) {
                continue;
            }
            let slot: Slot = Slot::default();
            let mut place = slot.clone().try_lock_owned().expect("nobody else has it");
            table.insert(attachment, slot.clone());
            drop(table);
            match self.adopted(found).await {
                Ok(device) => {
                    tracing::info!("nbd{index} of attachment {attachment} is taken over");
                    *place = Some(device);
                    self.unknown.lock().await.remove(&attachment);
                }
                Err(error) => {
                    tracing::warn!("nbd{index} is not known: {}", chain(&error));
                    self.unknown.lock().await.insert(attachment);
                }
            }
            drop(place);
            self.forget(attachment, &slot).await;
        }
        Ok(())
    }

    async fn adopted(&self, found: Found) -> Result<Device, DeviceError> {
        let Found { index, owner } = found;
        let known = match within(LOOK_WITHIN, move || sysfs::export_of(index)).await {
            // Who changes a setting of the queue waits for requests, and they wait for us. Pods of
            // one version offer the same: what their export has is not compared then.
            Err(late) if late.kind() == io::ErrorKind::TimedOut => {
                tracing::warn!("nbd{index}: its queue cannot be looked at now");
                sysfs::export_without_queue(index)
            }
            known => known.and_then(|known| known),
        };
        let export = known.map_err(failed("read of the device in", Path::new("/sys/block")))?;
        let opener = Opener::new(&owner.attachment.to_string(), self.tls.as_ref())?.knows(export);
        let relay = Relay::start(opener, self.pods.clone(), FIRST_LINE);
        let volume = owner.volume.clone();
        let backend = Backend::Kernel(KernelDevice::adopt(index, owner, &relay));
        Ok(Device::new(relay, backend, volume, export))
    }

    /// The device of an attachment, made if it is not there.
    pub async fn open(&self, wanted: Wanted) -> Result<Shown, DeviceError> {
        let Wanted { attachment, read_only, .. } = wanted;
        let slot = self.slot(attachment).await?;
        let mut place = slot.lock().await;
        if place.is_none() && self.unknown.lock().await.contains(&attachment) {
            // A second device of a volume would destroy what is on the first one.
            return Err(DeviceError::Busy(attachment));
        }
        if place.is_none() {
            match self.make(&wanted).await {
                Ok(device) => *place = Some(device),
                Err(error) => {
                    drop(place);
                    self.forget(attachment, &slot).await;
                    return Err(error);
                }
            }
        }
        let device = place.as_mut().expect("it was just made");
        let shown = device.shown(attachment);
        match shown.broken {
            // Its path may be another's by now.
            Some(why) => Err(DeviceError::Broken { attachment, why }),
            None if device.read_only != read_only => Err(DeviceError::OtherMode(attachment)),
            None => Ok(shown),
        }
    }

    /// True when nothing is allocated in the volume of a device, as a pod says.
    pub async fn is_blank(&self, attachment: Uuid) -> Result<bool, DeviceError> {
        let slot = self.table.lock().await.get(&attachment).cloned();
        let slot = slot.ok_or(DeviceError::NoDevice(attachment))?;
        let relay = slot.lock().await.as_ref().map(|device| device.relay.clone());
        Ok(relay.ok_or(DeviceError::NoDevice(attachment))?.is_blank().await?)
    }

    /// Takes the device of an attachment away, if there is one.
    pub async fn close(&self, attachment: Uuid) -> Result<(), DeviceError> {
        let slot = self.slot(attachment).await?;
        let mut place = slot.lock().await;
        let closed = match place.as_mut() {
            Some(device) => device.backend.take_away().await,
            // An earlier process may have left one.
            None => {
                take_down(&self.directory.join(attachment.to_string())).await.map_err(Into::into)
            }
        };
        if closed.is_ok() {
            *place = None;
        }
        drop(place);
        self.forget(attachment, &slot).await;
        Ok(closed?)
    }

    /// Lets the device of an attachment show all that its volume has by now, `wanted` bytes at
    /// least.
    pub async fn grow(&self, attachment: Uuid, wanted: u64) -> Result<Shown, DeviceError> {
        let slot = self.table.lock().await.get(&attachment).cloned();
        let slot = slot.ok_or(DeviceError::NoDevice(attachment))?;
        let mut place = slot.lock().await;
        let device = place.as_mut().ok_or(DeviceError::NoDevice(attachment))?;
        if let Some(why) = device.backend.broken() {
            return Err(DeviceError::Broken { attachment, why });
        }
        let size_bytes = device.relay.grow(wanted).await?;
        if size_bytes > device.size_bytes {
            device.backend.grow(size_bytes).await?;
            device.size_bytes = size_bytes;
        }
        Ok(device.shown(attachment))
    }

    /// All devices, ordered by attachment; of `volume` alone, if it is one. Refused while a device
    /// cannot be looked at: a caller that takes it for gone would do harm.
    pub async fn list(&self, volume: &str) -> Result<Vec<Shown>, DeviceError> {
        let attachments: Vec<Uuid> = self.table.lock().await.keys().copied().collect();
        let until = Instant::now() + LIST_WITHIN;
        let mut all = Vec::new();
        for attachment in attachments {
            let slot = self.table.lock().await.get(&attachment).cloned();
            let Some(slot) = slot else { continue };
            let place = timeout_at(until, slot.lock()).await;
            let mut place = place.map_err(|_| DeviceError::Busy(attachment))?;
            let is_meant = |device: &&mut Device| volume.is_empty() || device.volume == volume;
            let device = place.as_mut().filter(is_meant);
            all.extend(device.map(|device| device.shown(attachment)));
        }
        // Last: one of those above may just have failed to be taken over.
        match self.unknown.lock().await.first() {
            Some(attachment) => Err(DeviceError::Busy(*attachment)),
            None => Ok(all),
        }
    }

    /// Forgets slots in which nothing is and that nobody has.
    async fn tidy(&self) {
        let is_used = |slot: &Slot| {
            Arc::strong_count(slot) > 1 || slot.try_lock().is_ok_and(|place| place.is_some())
        };
        self.table.lock().await.retain(|_, slot| is_used(slot));
    }

    async fn slot(&self, attachment: Uuid) -> Result<Slot, DeviceError> {
        let mut table = self.table.lock().await;
        let count = table.len();
        match table.entry(attachment) {
            std::collections::btree_map::Entry::Occupied(known) => Ok(known.get().clone()),
            std::collections::btree_map::Entry::Vacant(_) if count >= DEVICES_MAX => {
                Err(DeviceError::Full)
            }
            std::collections::btree_map::Entry::Vacant(free) => {
                Ok(free.insert(Slot::default()).clone())
            }
        }
    }

    /// Removes a slot in which nothing is, unless somebody has begun to use it.
    async fn forget(&self, attachment: Uuid, slot: &Slot) {
        let mut table = self.table.lock().await;
        let is_it = table.get(&attachment).is_some_and(|known| Arc::ptr_eq(known, slot));
        // The table and the caller have it.
        if is_it && Arc::strong_count(slot) == 2 && slot.try_lock().is_ok_and(|it| it.is_none()) {
            table.remove(&attachment);
        }
    }

    async fn make(&self, wanted: &Wanted) -> Result<Device, DeviceError> {
        let Wanted { attachment, read_only, ref volume } = *wanted;
        let owner = Owner::new(attachment, volume)?;
        let opener = Opener::new(&attachment.to_string(), self.tls.as_ref())?;
        let relay = Relay::start(opener, self.pods.clone(), FIRST_LINE);
        let export = timeout(OPEN_WITHIN, relay.export()).await.ok().flatten();
        let mut export = passed_on(export.ok_or(DeviceError::NoPod(attachment))?);
        if read_only {
            export.flags |= export_flag::READ_ONLY;
        }
        let backend = match &self.kernel {
            Some(Kernel { indexes, is_chosen: true }) => {
                Backend::kernel(indexes, owner, &relay, export).await?
            }
            Some(_) | None => {
                let directory = self.directory.join(attachment.to_string());
                Backend::fuse(&directory, &relay, export.size_bytes, read_only).await?
            }
        };
        Ok(Device { read_only, ..Device::new(relay, backend, volume.clone(), export) })
    }
}

impl Device {
    fn new(relay: Relay, backend: Backend, volume: String, export: Export) -> Device {
        let read_only = export.flags & export_flag::READ_ONLY != 0;
        Device { relay, backend, volume, size_bytes: export.size_bytes, read_only }
    }

    fn shown(&mut self, attachment: Uuid) -> Shown {
        let course = self.relay.course().borrow().clone();
        let refused = || "the volume was taken from this node".to_owned();
        Shown {
            attachment,
            path: self.backend.path().to_owned(),
            size_bytes: self.size_bytes,
            read_only: self.read_only,
            kind: self.backend.kind(),
            volume: self.volume.clone(),
            pod: course.pod,
            broken: self.backend.broken().or_else(|| course.is_refused.then(refused)),
        }
    }
}

/// Takes away the devices that an earlier process has left in its directory. Returns those that
/// somebody uses.
async fn take_rest(directory: &Path) -> Result<BTreeSet<Uuid>, DeviceError> {
    let mut left = BTreeSet::new();
    for entry in fs::read_dir(directory).map_err(failed("read", directory))? {
        let entry = entry.map_err(failed("read", directory))?;
        // Other names are not ours.
        let name = entry.file_name();
        let Some(attachment) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let path = entry.path();
        match take_down(&path).await {
            Ok(()) => tracing::info!("removed {}, which was left", path.display()),
            Err(error) => {
                let (path, error) = (path.display(), chain(&error));
                tracing::warn!("{path} was left by an earlier process, and stays: {error}");
                left.insert(attachment);
            }
        }
    }
    Ok(left)
}

/// The kernel's NBD client, if it has or gets devices of ours.
async fn client(choice: Choice, directory: &Path) -> Result<Option<Kernel>, DeviceError> {
    let is_chosen = match choice {
        Choice::Fuse => false,
        Choice::Kernel => kernel::prepare().await.map(|()| true)?,
        Choice::Auto => match kernel::prepare().await {
            Ok(()) => true,
            Err(error) => {
                let why = chain(&error);
                tracing::warn!("devices take the slow path, nbdfuse and loop: {why}");
                false
            }
        },
    };
    let (_, known) = sysfs::look().map_err(failed("read", Path::new("/sys/block")))?;
    if !is_chosen && known.is_empty() {
        return Ok(None);
    }
    let indexes = Mutex::new(Indexes::begin(&directory.join(INDEXES))?);
    Ok(Some(Kernel { indexes, is_chosen }))
}

/// Keeps other processes away from the devices in a directory.
fn lock(directory: &Path) -> Result<File, DeviceError> {
    let path = directory.join(".lock");
    let file = File::create(&path).map_err(failed("create", &path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => Err(DeviceError::Locked(directory.to_owned())),
        Err(error) => Err(failed("lock", &path)(error.into())),
    }
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DeviceError {
    let path = path.to_owned();
    move |source| DeviceError::Io { doing, path, source }
}
