//! Disks whose power can be cut at any point, in hindsight. An NBD server records every write and
//! flush in the order of execution, and makes the image that a power cut leaves.
//!
//! A disk's promise: all writes that were answered before a flush began are durable once the flush
//! is answered. Any sector of another write may be there or not. The server carries out a disk's
//! requests one after the other, so a flush covers exactly the writes recorded before it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

use holdfast::sim::rng::Rng;
use rustix::fs::{FallocateFlags, fallocate};

use super::PODS;
use super::nbd::{
    DISCONNECT, EINVAL, FLUSH, INIT_MAGIC, OPTION_ABORT, OPTION_GO, OPTION_MAGIC,
    OPTION_REPLY_MAGIC, READ, REPLY_ACK, REPLY_ERR_UNSUP, REPLY_INFO, REQUEST_MAGIC,
    SIMPLE_REPLY_MAGIC, WRITE,
};
use super::tools::{run, text};

/// Handshake flags: fixed newstyle, no zeroes.
const HANDSHAKE_FLAGS: u16 = 3;
/// Transmission flags: has flags, takes flushes. Nothing else, and one connection only.
const EXPORT_FLAGS: u16 = 1 | 1 << 2;
/// Files of a file system are written in pages.
const PAGE: usize = 4096;
const SECTOR: usize = 512;

/// An action of a disk.
enum Event {
    /// Place of the payload in the file of payloads; `None` when it is all zeroes.
    Write {
        at: u64,
        len: usize,
        payload: Option<u64>,
    },
    Flush,
}

/// The actions of several disks, in one order.
pub struct Log {
    /// Each with the number of its disk, from 1.
    events: Mutex<Vec<(usize, Event)>>,
    payloads: File,
    payload_bytes: AtomicU64,
}

/// The fate of writes that no completed flush covers.
#[derive(Clone, Copy, Debug)]
pub enum Unflushed {
    Lost,
    /// Each is kept, lost or torn, as drawn from this seed.
    Drawn(u64),
}

impl Unflushed {
    pub fn drawn(random: &mut Rng) -> Unflushed {
        Unflushed::Drawn(random.next() >> 8)
    }
}

/// The writes in a crash image that no completed flush covers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Left {
    pub unflushed: usize,
    pub lost: usize,
    pub torn: usize,
}

impl Log {
    /// Payloads go to an unnamed file in `dir`.
    pub fn new(dir: &Path) -> Arc<Log> {
        let payloads = tempfile::tempfile_in(dir).unwrap();
        Arc::new(Log { events: Mutex::default(), payloads, payload_bytes: AtomicU64::new(0) })
    }

    fn events(&self) -> MutexGuard<'_, Vec<(usize, Event)>> {
        self.events.lock().unwrap()
    }

    /// The number of events so far.
    pub fn position(&self) -> usize {
        self.events().len()
    }

    /// Positions of the flushes before `end`.
    pub fn flushes(&self, end: usize) -> Vec<usize> {
        let events = self.events();
        (0..end).filter(|at| matches!(events[*at].1, Event::Flush)).collect()
    }

    /// For each position up to `end`, the number of writes that each disk may lose.
    pub fn unflushed(&self, end: usize) -> Vec<[usize; PODS]> {
        let mut counts = vec![[0; PODS]];
        for (disk, event) in &self.events()[..end] {
            let mut now = *counts.last().expect("not empty");
            now[*disk - 1] = if is_write(event) { now[*disk - 1] + 1 } else { 0 };
            counts.push(now);
        }
        counts
    }

    fn add_write(&self, disk: usize, at: u64, payload: &[u8]) -> io::Result<()> {
        let len = payload.len();
        let kept = match payload.iter().all(|byte| *byte == 0) {
            true => None,
            false => {
                let place = self.payload_bytes.fetch_add(len as u64, Ordering::Relaxed);
                self.payloads.write_all_at(payload, place)?;
                Some(place)
            }
        };
        self.events().push((disk, Event::Write { at, len, payload: kept }));
        Ok(())
    }

    /// The image of a disk after a power cut behind the first `cut` events. `initial` is its
    /// content at the start of the log.
    pub fn crash_image(
        &self,
        disk: usize,
        cut: usize,
        unflushed: Unflushed,
        initial: &Path,
        image: &Path,
    ) -> Left {
        run("cp", &["--sparse=always", text(initial), text(image)]);
        let image = File::options().write(true).open(image).unwrap();
        let events = self.events();
        let events = &events[..cut];
        let is_flush = |event: &(usize, Event)| event.0 == disk && matches!(event.1, Event::Flush);
        let durable = events.iter().rposition(is_flush).unwrap_or(0);
        let mut left = Left::default();
        let mut random = match unflushed {
            Unflushed::Lost => None,
            Unflushed::Drawn(seed) => Some(Rng::new(seed)),
        };
        // Disks tear at sectors, many of them only at pages. Some images keep all writes.
        let unit = random.as_mut().map_or(PAGE, |random| [PAGE, SECTOR][random.index(2)]);
        let spared = random.as_mut().is_some_and(|random| random.index(5) == 0);
        for (position, (of, event)) in (0..).zip(events) {
            let Event::Write { at, len, payload } = *event else { continue };
            if *of != disk {
                continue;
            }
            if position < durable || spared {
                self.apply(&image, at, len, payload);
                left.unflushed += usize::from(position >= durable);
                continue;
            }
            left.unflushed += 1;
            match random.as_mut().map(|random| (random.index(3), random)) {
                None | Some((0, _)) => left.lost += 1,
                // An ext4 whose own first page is torn cannot be mounted.
                Some((1, random)) if at >= PAGE as u64 => {
                    left.torn += 1;
                    for start in (0..len).step_by(unit).filter(|_| random.index(2) == 0) {
                        let payload = payload.map(|place| place + start as u64);
                        self.apply(&image, at + start as u64, unit.min(len - start), payload);
                    }
                }
                Some(_) => self.apply(&image, at, len, payload),
            }
        }
        left
    }

    fn apply(&self, image: &File, at: u64, len: usize, payload: Option<u64>) {
        match payload {
            None => {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                fallocate(image, flags, at, len as u64).unwrap();
            }
            Some(place) => {
                let mut bytes = vec![0; len];
                self.payloads.read_exact_at(&mut bytes, place).unwrap();
                image.write_all_at(&bytes, at).unwrap();
            }
        }
    }
}

fn is_write(event: &Event) -> bool {
    matches!(event, Event::Write { .. })
}

/// One disk.
struct Disk {
    number: usize,
    image: File,
    log: Arc<Log>,
}

/// Serves an image to one client until its connection ends. Returns the address.
pub fn serve(number: usize, image: &Path, log: &Arc<Log>) -> SocketAddr {
    let image = File::options().read(true).write(true).open(image).unwrap();
    let disk = Disk { number, image, log: Arc::clone(log) };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let result = listener.accept().and_then(|(stream, _)| disk.session(stream));
        if let Err(error) = result {
            // The client notices too: its file system fails.
            eprintln!("disk {number}: {error}");
        }
    });
    address
}

impl Disk {
    fn session(&self, mut stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        if self.negotiate(&mut stream)? {
            while self.serve_request(&mut stream)? {}
        }
        Ok(())
    }

    /// Answers `NBD_OPT_GO` with any name. False when the client disconnects.
    fn negotiate(&self, stream: &mut TcpStream) -> io::Result<bool> {
        let greeting = [&INIT_MAGIC[..], &OPTION_MAGIC[..], &HANDSHAKE_FLAGS.to_be_bytes()];
        stream.write_all(&greeting.concat())?;
        stream.read_exact(&mut [0; 4])?;
        loop {
            let mut head = [0; 16];
            stream.read_exact(&mut head)?;
            let option = u32::from_be_bytes(head[8..12].try_into().unwrap());
            let len = u32::from_be_bytes(head[12..].try_into().unwrap());
            stream.read_exact(&mut vec![0; len as usize])?;
            let mut reply = |kind: u32, data: &[u8]| {
                let mut bytes = OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
                for word in [option, kind, data.len() as u32] {
                    bytes.extend(word.to_be_bytes());
                }
                bytes.extend(data);
                stream.write_all(&bytes)
            };
            match option {
                OPTION_GO => {
                    let mut export = vec![0, 0];
                    export.extend(self.image.metadata()?.len().to_be_bytes());
                    export.extend(EXPORT_FLAGS.to_be_bytes());
                    reply(REPLY_INFO, &export)?;
                    reply(REPLY_ACK, &[])?;
                    return Ok(true);
                }
                OPTION_ABORT => return reply(REPLY_ACK, &[]).map(|()| false),
                _ => reply(REPLY_ERR_UNSUP, &[])?,
            }
        }
    }

    /// False when the client disconnects.
    fn serve_request(&self, stream: &mut TcpStream) -> io::Result<bool> {
        let mut head = [0; 28];
        match stream.read_exact(&mut head) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            result => result?,
        }
        if head[..4] != REQUEST_MAGIC.to_be_bytes() {
            return Err(io::Error::other("not a request"));
        }
        let command = u16::from_be_bytes(head[6..8].try_into().unwrap());
        let at = u64::from_be_bytes(head[16..24].try_into().unwrap());
        let len = u32::from_be_bytes(head[24..].try_into().unwrap()) as usize;
        let mut error = 0u32;
        let mut data = Vec::new();
        match command {
            READ => {
                data.resize(len, 0);
                self.image.read_exact_at(&mut data, at)?;
            }
            WRITE => {
                let mut payload = vec![0; len];
                stream.read_exact(&mut payload)?;
                self.image.write_all_at(&payload, at)?;
                self.log.add_write(self.number, at, &payload)?;
            }
            FLUSH => self.log.events().push((self.number, Event::Flush)),
            DISCONNECT => return Ok(false),
            _ => error = EINVAL,
        }
        let mut reply = SIMPLE_REPLY_MAGIC.to_be_bytes().to_vec();
        reply.extend(error.to_be_bytes());
        reply.extend(&head[8..16]);
        reply.extend(data);
        stream.write_all(&reply)?;
        Ok(true)
    }
}
