//! The mirror on the pod's disk (`<data>/sync`): records of updates, each with its length and its
//! checksum (u32, little endian), the first one whole. A pod that starts serves by it.
//!
//! Appending is not synced. After a power cut the newest records may be missing or torn; the mirror
//! is then as of an earlier revision, and gets the rest from the catalog. The file is written anew
//! when it is much longer than what it says.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use crate::control::identity::write_atomically;
use crate::control::sync::mirror::Mirror;
use crate::control::sync::update::Update;

/// Bytes of differences before the file is written anew, beside twice the length of a whole.
const DIFFERENCES_BYTES_MIN: u64 = 1 << 20;
/// Updates that wait for the disk. After more of them the file is written anew.
const WAITING_MAX: usize = 64;
const HEAD_BYTES: usize = 8;

/// The file, open for appending. Used by one thread.
pub struct Kept {
    path: PathBuf,
    /// `None`: it must be written anew.
    file: Option<File>,
    whole_bytes: u64,
    bytes: u64,
}

impl Kept {
    /// Reads what is there. Damaged records, and what follows them, are left out.
    pub fn open(path: &Path) -> io::Result<(Kept, Mirror)> {
        let bytes = match std::fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            other => other?,
        };
        let mut mirror = Mirror::default();
        let mut rest = &bytes[..];
        let mut whole_bytes = 0;
        while let Some(update) = next_record(&mut rest) {
            if let Err(error) = mirror.take(&update) {
                tracing::warn!("{} cannot be followed to its end: {error}", path.display());
                rest = &bytes[..];
                break;
            }
            if whole_bytes == 0 {
                whole_bytes = (bytes.len() - rest.len()) as u64;
            }
        }
        // A torn end must not stand before new records.
        let is_clean = rest.is_empty() && !bytes.is_empty();
        let file = match is_clean {
            true => Some(OpenOptions::new().append(true).open(path)?),
            false => None,
        };
        let bytes = bytes.len() as u64;
        Ok((Kept { path: path.to_owned(), file, whole_bytes, bytes }, mirror))
    }

    /// Keeps an update that led to this mirror.
    pub fn keep(&mut self, update: &Update, mirror: &Mirror) -> io::Result<()> {
        let is_long = self.bytes > 2 * self.whole_bytes + DIFFERENCES_BYTES_MIN;
        let Some(file) = self.file.as_mut().filter(|_| !update.is_whole && !is_long) else {
            return self.rewrite(mirror);
        };
        let record = record(update);
        // Half a record would hide all later ones.
        if let Err(error) = file.write_all(&record) {
            self.file = None;
            return Err(error);
        }
        self.bytes += record.len() as u64;
        Ok(())
    }

    /// Writes the mirror as one record. Durable when it returns.
    pub fn rewrite(&mut self, mirror: &Mirror) -> io::Result<()> {
        self.file = None;
        let record = record(&mirror.whole());
        write_atomically(&self.path, &record)?;
        self.file = Some(OpenOptions::new().append(true).open(&self.path)?);
        self.whole_bytes = record.len() as u64;
        self.bytes = self.whole_bytes;
        Ok(())
    }
}

fn record(update: &Update) -> Vec<u8> {
    let payload = update.encode();
    let len = u32::try_from(payload.len()).expect("the rows of a pod are far below 4 GiB");
    let mut record = len.to_le_bytes().to_vec();
    record.extend_from_slice(&crc32fast::hash(&payload).to_le_bytes());
    record.extend_from_slice(&payload);
    record
}

/// Takes a record from the front; `None` at the end, and at one that is damaged.
fn next_record(bytes: &mut &[u8]) -> Option<Update> {
    let (head, rest) = bytes.split_first_chunk::<HEAD_BYTES>()?;
    let (len, crc) = head.split_first_chunk::<4>()?;
    let crc = u32::from_le_bytes(crc.try_into().ok()?);
    let (payload, rest) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
    if crc32fast::hash(payload) != crc {
        return None;
    }
    let update = Update::decode(payload).ok()?;
    *bytes = rest;
    Some(update)
}

/// Hands updates to the thread that keeps them. A disk that hangs makes nobody else wait.
#[derive(Debug)]
pub struct Keeper {
    updates: SyncSender<(Option<Update>, Mirror)>,
    /// An update was not handed over: the file is to be written anew.
    is_behind: bool,
}

impl Keeper {
    /// Starts the thread. It ends with the keeper.
    pub fn start(mut kept: Kept) -> Keeper {
        let (updates, waiting) = sync_channel(WAITING_MAX);
        std::thread::Builder::new()
            .name("sync-keeper".to_owned())
            .spawn(move || keep_all(&mut kept, &waiting))
            .expect("the system has room for a thread");
        Keeper { updates, is_behind: false }
    }

    /// Keeps an update that led to this mirror, or says that the disk is busy by keeping the whole
    /// mirror next time.
    pub fn keep(&mut self, update: Update, mirror: &Mirror) {
        let update = Some(update).filter(|_| !self.is_behind);
        let sent = self.updates.try_send((update, mirror.clone()));
        self.is_behind = matches!(sent, Err(TrySendError::Full(_)));
    }
}

fn keep_all(kept: &mut Kept, waiting: &Receiver<(Option<Update>, Mirror)>) {
    while let Ok((update, mirror)) = waiting.recv() {
        let done = match &update {
            Some(update) => kept.keep(update, &mirror),
            None => kept.rewrite(&mirror),
        };
        if let Err(error) = done {
            let path = kept.path.display();
            tracing::warn!("could not keep what this pod knows of the cluster in {path}: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::state::CatalogState;
    use crate::control::sync::follower::{Follower, Idle};
    use crate::testing::catalog_fixture::{cluster, create_on};
    use crate::types::{PodId, VolumeId};

    /// Makes a volume, and keeps the difference.
    fn go_on(kept: &mut Kept, mirror: &mut Mirror, state: &mut CatalogState, number: usize) {
        let create = create_on(&format!("volume-{number}"), &[1, 2, 3]);
        state.apply(1, create).outcome.unwrap();
        // A pod that wants the volume, and has no disk of it.
        let wants = (1..=number as u64 + 1).map(VolumeId).collect();
        let (at, told) = (mirror.position(), mirror.volumes());
        let update = Follower::new(PodId(9), at, told, wants).next(state, Idle::Now).unwrap();
        mirror.take(&update).unwrap();
        kept.keep(&update, mirror).unwrap();
    }

    fn reopened(path: &Path, mirror: &Mirror) -> Kept {
        let (kept, read) = Kept::open(path).unwrap();
        assert_eq!(read.position(), mirror.position());
        assert_eq!(read.view(), mirror.view());
        assert_eq!(read.wants(), mirror.wants());
        kept
    }

    #[test]
    fn a_mirror_survives_a_restart_and_its_file_does_not_grow_for_ever() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("sync");
        let (mut kept, mut mirror) = Kept::open(&path).unwrap();
        assert_eq!(mirror.position().revision, 0);
        let mut state = cluster(3);
        for number in 0..5 {
            go_on(&mut kept, &mut mirror, &mut state, number);
            kept = reopened(&path, &mirror);
        }
        kept.bytes = 2 * kept.whole_bytes + DIFFERENCES_BYTES_MIN + 1;
        go_on(&mut kept, &mut mirror, &mut state, 5);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), kept.whole_bytes);
        reopened(&path, &mirror);
    }

    #[test]
    fn a_torn_or_rotten_end_is_left_out_and_written_over() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("sync");
        let (mut kept, mut mirror) = Kept::open(&path).unwrap();
        let mut state = cluster(3);
        go_on(&mut kept, &mut mirror, &mut state, 0);
        let before = mirror.clone();
        go_on(&mut kept, &mut mirror, &mut state, 1);
        let whole = std::fs::read(&path).unwrap();
        for cut in kept.whole_bytes as usize + 1..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            reopened(&path, &before);
        }
        let mut rotten = whole.clone();
        *rotten.last_mut().unwrap() ^= 1;
        std::fs::write(&path, &rotten).unwrap();
        let mut kept = reopened(&path, &before);
        let mut mirror = before;
        go_on(&mut kept, &mut mirror, &mut state, 2);
        reopened(&path, &mirror);
        rotten.truncate(0);
        std::fs::write(&path, &rotten).unwrap();
        assert_eq!(Kept::open(&path).unwrap().1.position().revision, 0);
    }
}
