//! The simulated kernel below the workers: virtual time, disks that a crash tears, sockets that
//! delay and break. One kernel serves every pod; [`SimDriver`] is the interface of one pod to it.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::net::IpAddr;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rustc_hash::FxHashMap;

use crate::io::driver::{
    Address, Buffers, Completion, Disk, Done, Driver, FileId, Op, RecvBufs, SocketId, Token, Waker,
};
use crate::io::file::ExclusiveFile;
use crate::sim::disk::{DiskObserver, FileEvent, Loss, SimDisk, SimFile};
use crate::sim::names::{DiskNumber, Host};
use crate::sim::rng::Rng;
use crate::sim::trace::Trace;
use crate::slab::Slab;
use crate::store::messages::LaneFile;
use crate::types::{BLOCK_BYTES, Mono};

/// One direction of a connection.
#[derive(Default)]
struct Pipe {
    arrived: VecDeque<Bytes>,
    /// The pending receive.
    waiting: Option<(Token, RecvBufs)>,
    /// Time of the newest arrival. Later bytes never arrive before it: bytes stay in order.
    last_arrival: Mono,
    ended: bool,
    /// A bad path: everything arrives this much later, or (`mute`) never.
    lag: Duration,
    mute: bool,
    /// The other end crashed. Of the bytes still in flight, only a part of the first piece arrives.
    broken: bool,
}

struct Socket {
    host: Host,
    /// The socket at the other end, and its host.
    peer: SocketId,
    peer_host: Host,
    inbound: Pipe,
    closed: bool,
}

/// An event at a moment of virtual time.
enum Event {
    /// An operation of a host ends. Ignored if the host has crashed since.
    Complete {
        host: Host,
        life: u64,
        completion: Completion,
    },
    FileEnds {
        host: Host,
        life: u64,
        token: Token,
        op: Op,
    },
    /// `count`: total bytes of `pieces`.
    Arrive {
        socket: SocketId,
        pieces: Vec<Bytes>,
        count: usize,
    },
    HangUp {
        socket: SocketId,
    },
    /// An alarm that the world has set.
    World(u64),
}

/// An event that the kernel hands to the world.
pub enum Due {
    /// The host has completions, or its alarm rang.
    Host(Host),
    World(u64),
}

/// Time of an event, its number (events of one moment happen in the order of scheduling) and its
/// key in [`Kernel::events`].
type Queued = Reverse<(Mono, u64, u64)>;

/// See the module.
pub struct Kernel {
    pub now: Mono,
    pub rng: Rng,
    queue: BinaryHeap<Queued>,
    events: Slab<Event>,
    next_event: u64,
    pub disks: Vec<SimDisk>,
    /// Each with the part of the lane's file that it has.
    open: FxHashMap<(Host, FileId), (DiskNumber, LaneFile, Range<u64>)>,
    next_id: u32,
    sockets: FxHashMap<SocketId, Socket>,
    listeners: BTreeMap<SocketId, (Host, Address, VecDeque<SocketId>, Option<Token>)>,
    hosts: Vec<HostState>,
    /// The latest wake-up time of each host, and the sequence number of that request.
    alarms: Vec<(Mono, u64)>,
    /// (from, to): nothing that is sent this way arrives.
    pub cut: Vec<(Host, Host)>,
    /// Until these times the host's connections break, and its links are slow.
    pub resets_until: BTreeMap<Host, Mono>,
    pub slow_until: BTreeMap<Host, Mono>,
    /// How fast the links between pods are; `None`: only their delay counts.
    pub wire: Option<Wire>,
    /// When everything that was sent from the first host to the second has left.
    left_at: BTreeMap<(Host, Host), Mono>,
    pub trace: Trace,
    observer: Rc<RefCell<dyn DiskObserver>>,
}

/// The links between pods. All connections from one pod to another share the bandwidth of that
/// direction, first come first served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wire {
    /// Hosts below this number are pods.
    pub pods: Host,
    pub bytes_per_s: u64,
    /// A send ends when no more than this many bytes of the direction have still to leave.
    pub send_buffer_bytes: u64,
}

impl Wire {
    /// The time that so many bytes take.
    pub fn takes(&self, bytes: u64) -> Duration {
        Duration::from_nanos(bytes * 1_000_000_000 / self.bytes_per_s)
    }
}

/// The kernel's state of one host.
#[derive(Default)]
struct HostState {
    /// Grows with every crash. Operations of an earlier life never complete.
    life: u64,
    clock: Clock,
    ready: Vec<Completion>,
    /// Sends that have ended. The host gets them with its other completions, but no later than at
    /// `hears_at`.
    sent: Vec<Completion>,
    hears_at: Mono,
}

/// The host does not want to be woken.
const NO_ALARM: (Mono, u64) = (Mono(u64::MAX), u64::MAX);

/// An otherwise idle host learns within this time that a send has ended.
const SENT_HEARD_AFTER: Duration = Duration::from_millis(1);

/// Virtual time at the start of every world.
const START: Mono = Mono(1_000_000_000);

/// The clock of a host: its reading at the moment `since`, and its drift since then.
#[derive(Clone, Copy)]
struct Clock {
    ppm: i64,
    since: Mono,
    showed: Mono,
}

impl Default for Clock {
    fn default() -> Clock {
        Clock { ppm: 0, since: START, showed: START }
    }
}

impl Kernel {
    /// `observer` sees every event of the disks.
    pub fn new(seed: u64, observer: Rc<RefCell<dyn DiskObserver>>) -> Kernel {
        Kernel {
            now: START,
            rng: Rng::new(seed),
            queue: BinaryHeap::new(),
            events: Slab::default(),
            next_event: 0,
            disks: Vec::new(),
            open: FxHashMap::default(),
            next_id: 0,
            sockets: FxHashMap::default(),
            listeners: BTreeMap::new(),
            hosts: Vec::new(),
            alarms: Vec::new(),
            cut: Vec::new(),
            resets_until: BTreeMap::new(),
            slow_until: BTreeMap::new(),
            wire: None,
            left_at: BTreeMap::new(),
            trace: Trace::default(),
            observer,
        }
    }

    /// Adds the host if there is none with this number.
    pub fn add_host(&mut self, host: Host) {
        let hosts = self.hosts.len().max(host + 1);
        self.hosts.resize_with(hosts, HostState::default);
        self.alarms.resize(hosts, NO_ALARM);
    }

    /// The time as a host's clock shows it.
    pub fn local_time(&self, host: Host) -> Mono {
        let clock = self.hosts.get(host).map_or(Clock::default(), |state| state.clock);
        if clock.ppm == 0 {
            return clock.showed + Duration::from_nanos(self.now.0 - clock.since.0);
        }
        let passed = i128::from(self.now.0 - clock.since.0);
        Mono(clock.showed.0 + (passed + passed * i128::from(clock.ppm) / 1_000_000) as u64)
    }

    /// From now on the clock of the host runs fast by `ppm` parts per million.
    pub fn drift(&mut self, host: Host, ppm: i64) {
        self.hosts[host].clock = Clock { ppm, since: self.now, showed: self.local_time(host) };
    }

    fn schedule(&mut self, after: Duration, event: Event) {
        self.schedule_at(self.now + after, event);
    }

    fn schedule_at(&mut self, at: Mono, event: Event) {
        self.next_event += 1;
        let key = self.events.insert(event);
        self.queue.push(Reverse((at, self.next_event, key)));
    }

    /// Hands `what` to the world after this time.
    pub fn alarm(&mut self, after: Duration, what: u64) {
        self.schedule(after, Event::World(what));
    }

    /// Returns a new number for an index job.
    pub fn next_job(&mut self) -> u64 {
        self.next_event + 1
    }

    /// Wakes the host after this time, instead of at its earlier chosen time.
    pub fn wake(&mut self, host: Host, after: Duration) {
        self.next_event += 1;
        self.alarms[host] = (self.now + after, self.next_event);
    }

    /// Advances time to the next event that concerns a host or the world.
    pub fn step(&mut self) -> Option<Due> {
        loop {
            let alarm = self.alarms.iter().zip(0..).min();
            let event = self.queue.peek().map(|Reverse((at, number, _))| (*at, *number));
            if let Some((alarm, host)) = alarm
                && *alarm < event.unwrap_or(NO_ALARM)
            {
                self.now = self.now.max(alarm.0);
                self.alarms[host] = NO_ALARM;
                return Some(Due::Host(host));
            }
            let Reverse((at, _, key)) = self.queue.pop()?;
            let event = self.events.remove(key).expect("queued once");
            self.now = self.now.max(at);
            if let Some(due) = self.happen(event) {
                return Some(due);
            }
        }
    }

    fn happen(&mut self, event: Event) -> Option<Due> {
        match event {
            Event::World(what) => Some(Due::World(what)),
            Event::Complete { host, life, completion } => {
                if life != self.hosts[host].life {
                    return None;
                }
                self.hosts[host].ready.push(completion);
                Some(Due::Host(host))
            }
            Event::FileEnds { host, life, token, op } => {
                if life != self.hosts[host].life {
                    return None;
                }
                let completion = self.file_ends(host, token, op);
                self.hosts[host].ready.push(completion);
                Some(Due::Host(host))
            }
            Event::Arrive { socket, pieces, count } => {
                let part = self.rng.below(count as u64 + 1) as usize;
                let pipe = &mut self.sockets.get_mut(&socket)?.inbound;
                match (pipe.broken, pipe.ended) {
                    (_, true) => return None,
                    (true, false) => {
                        pipe.ended = true;
                        let mut left = part;
                        for piece in pieces {
                            let taken = left.min(piece.len());
                            left -= taken;
                            pipe.arrived.push_back(piece.slice(..taken));
                        }
                    }
                    (false, false) => pipe.arrived.extend(pieces),
                }
                self.deliver(socket)
            }
            Event::HangUp { socket } => {
                self.sockets.get_mut(&socket)?.inbound.ended = true;
                self.deliver(socket)
            }
        }
    }

    fn file_ends(&mut self, host: Host, token: Token, op: Op) -> Completion {
        let (Op::Read { file, .. } | Op::Write { file, .. } | Op::Sync { file }) = &op else {
            panic!("not an operation on a file: {op:?}");
        };
        let (number, name, part) = self.open.get(&(host, *file)).expect("an open file").clone();
        let (now, disk) = (self.now, &mut self.disks[number]);
        let happens = |fault: &mut Option<LaneFile>| fault.take_if(|of| *of == name).is_some();
        let fails = happens(&mut disk.sick.fails) || disk.sick.dead_until > now;
        disk.failures += u64::from(fails);
        let lies = disk.sick.lies.is_some_and(|(of, until)| of == name && until > now);
        let (count, buffers) = match op {
            Op::Read { mut offset, mut buf, .. } => {
                if happens(&mut disk.sick.misreads) {
                    offset = some_page(disk.file(name), &mut self.rng);
                }
                disk.file(name).read(offset, &mut buf);
                (buf.len(), Buffers::Read(buf))
            }
            Op::Write { mut offset, bufs, durable, .. } => {
                let count = bufs.iter().map(Bytes::len).sum();
                if happens(&mut disk.sick.misdirects) {
                    offset = some_page(disk.file(name), &mut self.rng);
                }
                let lost = happens(&mut disk.sick.loses);
                if fails {
                    disk.file(name).tear(now, offset, &bufs.concat(), &mut self.rng);
                } else if !lost {
                    disk.file(name).write_all(now, offset, &bufs, durable && !lies);
                }
                let ended = FileEvent::WriteEnds { token, is_durable: durable && !fails };
                self.observer.borrow_mut().observe(disk, name, ended);
                self.trace.note(now, &[1, number as u64, offset, count as u64], || {
                    format!("pod {host} wrote disk {number} {name:?} {offset}+{count}")
                });
                (count, Buffers::None)
            }
            _ => {
                if !fails && !lies {
                    disk.file(name).sync(part);
                }
                let ended = FileEvent::SyncEnds;
                self.observer.borrow_mut().observe(disk, name, ended);
                (0, Buffers::None)
            }
        };
        let result = match fails {
            true => Err(std::io::Error::from_raw_os_error(5)),
            false => Ok(Done::Bytes(count)),
        };
        Completion { token, result, buffers }
    }

    /// Hands the bytes that have arrived to the pending receive.
    fn deliver(&mut self, socket: SocketId) -> Option<Due> {
        let state = self.sockets.get_mut(&socket)?;
        let host = state.host;
        let pipe = &mut state.inbound;
        if pipe.arrived.is_empty() && !pipe.ended {
            return None;
        }
        let (token, mut bufs) = pipe.waiting.take()?;
        let mut count = 0;
        while let Some(piece) = pipe.arrived.front_mut() {
            let taken = fill(&mut bufs, count, piece);
            count += taken;
            bytes::Buf::advance(piece, taken);
            if !piece.is_empty() {
                break;
            }
            pipe.arrived.pop_front();
        }
        let buffers = Buffers::Recv(bufs);
        let completion = Completion { token, result: Ok(Done::Bytes(count)), buffers };
        self.hosts[host].ready.push(completion);
        Some(Due::Host(host))
    }

    /// True while the host's time in `until` lies in the future.
    pub fn lasts(&self, until: &BTreeMap<Host, Mono>, host: Host) -> bool {
        until.get(&host).is_some_and(|until| *until > self.now)
    }

    fn network_delay(&mut self, from: Host) -> Duration {
        let micros = match self.rng.below(50) {
            0 => self.rng.between(1_000, 40_000),
            _ => self.rng.between(10, 300),
        };
        let times = if self.lasts(&self.slow_until, from) { 100 } else { 1 };
        Duration::from_micros(micros * times)
    }

    fn disk_delay(&mut self, disk: DiskNumber, file: Option<LaneFile>) -> Duration {
        let micros = match self.rng.below(100) {
            0 => self.rng.between(1_000, 60_000),
            _ => self.rng.between(20, 400),
        };
        let sick = &self.disks[disk].sick;
        let is_slow = |(of, until): (LaneFile, Mono)| file == Some(of) && until > self.now;
        let slow = sick.slow_until > self.now || sick.slow_file.is_some_and(is_slow);
        let times = if slow { 100 } else { 1 };
        let file_until = file.map_or(Mono(0), |file| sick.stuck_files_until[file as usize]);
        let stuck_until = file_until.max(sick.stuck_until);
        Duration::from_micros(micros * times).max(stuck_until.since(self.now))
    }

    /// Schedules the end of index job `job`. The jobs of a disk end in order.
    pub fn index_job(&mut self, disk: DiskNumber, job: u64, flushes: bool) {
        let delay = match flushes {
            true => self.disk_delay(disk, None),
            false => Duration::from_micros(self.rng.between(20, 100)),
        };
        let ends = self.disks[disk].index_ends.max(self.now + delay);
        self.disks[disk].index_ends = ends;
        self.schedule_at(ends, Event::World(job));
    }

    /// Delays everything that current connections carry from `from` to `to`, and drops everything
    /// in the other direction. Both ends notice sooner or later, and close them.
    pub fn lag(&mut self, from: Host, to: Host, lag: Duration) {
        let hosts: BTreeMap<SocketId, Host> =
            self.sockets.iter().map(|(socket, state)| (*socket, state.host)).collect();
        for state in self.sockets.values_mut() {
            match (hosts.get(&state.peer), state.host) {
                (Some(peer), host) if (*peer, host) == (from, to) => state.inbound.lag = lag,
                (Some(peer), host) if (*peer, host) == (to, from) => state.inbound.mute = true,
                _ => {}
            }
        }
    }

    fn is_cut(&self, from: Host, to: Host) -> bool {
        self.cut.contains(&(from, to))
    }

    fn submit(&mut self, host: Host, token: Token, mut op: Op) {
        let life = self.hosts[host].life;
        match op {
            Op::Read { file, .. } | Op::Write { file, .. } | Op::Sync { file } => {
                let (disk, name, part) = self.open.get(&(host, file)).expect("an open file");
                let (disk, name) = (*disk, *name);
                // From here on it is an offset in the lane's file.
                if let Op::Read { offset, .. } | Op::Write { offset, .. } = &mut op {
                    *offset += part.start;
                    assert!(*offset < part.end, "a transfer is within its file");
                }
                if let Op::Write { offset, bufs, .. } = &op {
                    let begins = FileEvent::WriteBegins { token, offset: *offset, bufs };
                    self.observer.borrow_mut().observe(&self.disks[disk], name, begins);
                }
                let delay = self.disk_delay(disk, Some(name));
                self.schedule(delay, Event::FileEnds { host, life, token, op });
            }
            Op::Recv { socket, bufs } => match self.sockets.get_mut(&socket) {
                Some(state) if !state.closed => {
                    state.inbound.waiting = Some((token, bufs));
                    if self.deliver(socket).is_some() {
                        self.wake(host, Duration::ZERO);
                    }
                }
                _ => self.fail(host, token, Buffers::Recv(bufs)),
            },
            Op::Send { socket, bufs } => self.send(host, token, socket, bufs),
            Op::Accept { listener } => {
                let (_, _, waiting, accept) =
                    self.listeners.get_mut(&listener).expect("a listener of this host");
                match waiting.pop_front() {
                    Some(socket) => self.complete(host, token, Done::Accepted(socket)),
                    None => *accept = Some(token),
                }
            }
            Op::Connect { address } => self.connect(host, token, &address),
            Op::Close { socket } => {
                self.close(socket);
                self.complete(host, token, Done::Bytes(0));
            }
        }
    }

    fn complete(&mut self, host: Host, token: Token, done: Done) {
        let completion = Completion { token, result: Ok(done), buffers: Buffers::None };
        self.end(host, Duration::from_micros(5), completion);
    }

    fn fail(&mut self, host: Host, token: Token, buffers: Buffers) {
        let result = Err(std::io::ErrorKind::ConnectionReset.into());
        self.end(host, Duration::from_micros(5), Completion { token, result, buffers });
    }

    fn end(&mut self, host: Host, after: Duration, completion: Completion) {
        let life = self.hosts[host].life;
        self.schedule(after, Event::Complete { host, life, completion });
    }

    fn send(&mut self, host: Host, token: Token, socket: SocketId, bufs: Vec<Bytes>) {
        let count = bufs.iter().map(Bytes::len).sum();
        let delay = self.network_delay(host);
        let Some(state) = self.sockets.get(&socket).filter(|state| !state.closed) else {
            return self.fail(host, token, Buffers::None);
        };
        let peer = state.peer;
        let to = self.sockets.get(&peer).map(|peer| peer.host);
        // The head of a frame (with the checksums of the rest), or a whole small message.
        let head = bufs.first().map_or(&[][..], |first| &first[..first.len().min(128)]);
        let crc = u64::from(crc32fast::hash(head));
        self.trace.note(self.now, &[2, host as u64, count as u64, crc], || match to {
            Some(to) => format!("host {host} sends {count} bytes to {to}"),
            None => format!("host {host} sends {count} bytes to nobody"),
        });
        let peer_host = state.peer_host;
        let resets = self.lasts(&self.resets_until, host) && self.rng.one_in(20);
        let (left_at, taken_at) = self.leaves(host, peer_host, count as u64);
        // Bytes that are sent across a cut are lost, and the connection breaks sooner or later.
        if to.is_some_and(|to| self.is_cut(host, to)) {
            let hang = Duration::from_millis(self.rng.between(50, 3_000));
            self.schedule(hang, Event::HangUp { socket });
        } else if let Some(other) = self.sockets.get_mut(&peer).filter(|peer| !peer.inbound.mute) {
            let at = (left_at + delay + other.inbound.lag).max(other.inbound.last_arrival);
            other.inbound.last_arrival = at;
            other.inbound.broken |= resets;
            self.schedule_at(at, Event::Arrive { socket: peer, pieces: bufs, count });
            if resets {
                self.schedule_at(at, Event::HangUp { socket });
            }
        } else if to.is_none() && self.listens(peer_host) {
            // The host has restarted and does not know this connection.
            self.schedule(delay, Event::HangUp { socket });
        }
        let result = Ok(Done::Bytes(count));
        let completion = Completion { token, result, buffers: Buffers::None };
        if taken_at > self.now {
            return self.end(host, taken_at.since(self.now), completion);
        }
        let state = &mut self.hosts[host];
        if state.sent.is_empty() {
            state.hears_at = self.now + SENT_HEARD_AFTER;
        }
        state.sent.push(completion);
    }

    /// Puts bytes on the way from a host to another one. Returns when the last of them has left,
    /// and when the kernel has taken all of them from the sender.
    fn leaves(&mut self, from: Host, to: Host, bytes: u64) -> (Mono, Mono) {
        let Some(wire) = self.wire.filter(|wire| from.max(to) < wire.pods) else {
            return (self.now, self.now);
        };
        let left_at = self.left_at.entry((from, to)).or_default();
        *left_at = (*left_at).max(self.now) + wire.takes(bytes);
        let buffered = wire.takes(wire.send_buffer_bytes);
        let taken_at = self.now + left_at.since(self.now).saturating_sub(buffered);
        (*left_at, taken_at)
    }

    fn connect(&mut self, host: Host, token: Token, address: &Address) {
        let found = self.listeners.iter().find(|(_, (_, bound, _, _))| bound == address);
        let listener = found.map(|(listener, state)| (*listener, state.0));
        match listener {
            Some((listener, to)) if !self.is_cut(host, to) && !self.is_cut(to, host) => {
                let (ours, theirs) = (self.new_id(), self.new_id());
                self.add_socket(SocketId(ours), host, SocketId(theirs), to);
                self.add_socket(SocketId(theirs), to, SocketId(ours), host);
                self.complete(host, token, Done::Connected(SocketId(ours)));
                let (_, _, waiting, accept) =
                    self.listeners.get_mut(&listener).expect("just found");
                match accept.take() {
                    Some(accept) => {
                        self.complete(to, accept, Done::Accepted(SocketId(theirs)));
                    }
                    None => waiting.push_back(SocketId(theirs)),
                }
            }
            // Nobody listens there. The refusal takes a moment, too.
            _ => {
                let result = Err(std::io::ErrorKind::ConnectionRefused.into());
                let completion = Completion { token, result, buffers: Buffers::None };
                let delay = Duration::from_micros(self.rng.between(1_000, 30_000));
                self.end(host, delay, completion);
            }
        }
    }

    fn add_socket(&mut self, socket: SocketId, host: Host, peer: SocketId, peer_host: Host) {
        let state = Socket { host, peer, peer_host, inbound: Pipe::default(), closed: false };
        self.sockets.insert(socket, state);
    }

    fn close(&mut self, socket: SocketId) {
        let Some(mut state) = self.sockets.remove(&socket) else { return };
        if let Some((token, bufs)) = state.inbound.waiting.take() {
            self.fail(state.host, token, Buffers::Recv(bufs));
        }
        let delay = self.network_delay(state.host);
        let at = self.sockets.get(&state.peer).map_or(self.now, |peer| peer.inbound.last_arrival);
        self.schedule_at(at.max(self.now + delay), Event::HangUp { socket: state.peer });
    }

    fn new_id(&mut self) -> u32 {
        self.next_id += 1;
        self.next_id
    }

    /// True for a running pod. Nobody connects to clients.
    fn listens(&self, host: Host) -> bool {
        self.listeners.values().any(|(of, ..)| *of == host)
    }

    /// The host loses its memory and its connections. Its disks keep all durable bytes. Of the
    /// others, all or some survive.
    pub fn crash(&mut self, host: Host, loss: Loss) {
        let life = self.hosts[host].life;
        let mut in_flight: Vec<Queued> = self.queue.iter().copied().collect();
        in_flight.sort_unstable_by(|one, other| other.cmp(one));
        for Reverse((_, _, key)) in in_flight {
            let Some(Event::FileEnds { host: of, life: then, op, .. }) = self.events.get(key)
            else {
                continue;
            };
            if let (true, Op::Write { file, offset, bufs, .. }) = ((*of, *then) == (host, life), op)
            {
                let (disk, name, _) = self.open.get(&(host, *file)).expect("an open file").clone();
                let target = self.disks[disk].file(name);
                let bytes = bufs.concat();
                match loss {
                    Loss::Power => target.tear(self.now, *offset, &bytes, &mut self.rng),
                    Loss::Process => target.leave(self.now, *offset, &bytes, &mut self.rng),
                }
            }
        }
        self.alarms[host] = NO_ALARM;
        self.hosts[host].ready.clear();
        self.hosts[host].sent.clear();
        self.left_at.retain(|(from, _), _| *from != host);
        self.listeners.retain(|_, (of, ..)| *of != host);
        let mine = self.sockets.iter().filter(|(_, state)| state.host == host);
        let mut mine: Vec<SocketId> = mine.map(|(id, _)| *id).collect();
        mine.sort_unstable();
        // A host without power sends nothing: pods notice when they send to its next life.
        let silent = loss == Loss::Power && self.rng.one_in(2);
        for socket in mine {
            let Some(Socket { peer, peer_host, .. }) = self.sockets.get(&socket) else { continue };
            let told = !silent || !self.listens(*peer_host);
            if let Some(peer) = self.sockets.get_mut(&{ *peer }) {
                peer.inbound.broken = true;
            }
            match told {
                true => self.close(socket),
                false => drop(self.sockets.remove(&socket)),
            }
        }
        self.hosts[host].life += 1;
        self.open.retain(|(of, _), _| *of != host);
        for disk in self.disks.iter_mut().filter(|disk| disk.host == host) {
            disk.index_ends = self.now;
            disk.crash(loss, &mut self.rng);
        }
    }
}

/// Returns the offset of a random page of the file.
fn some_page(file: &SimFile, rng: &mut Rng) -> u64 {
    rng.below((file.bytes / BLOCK_BYTES as u64).max(1)) * BLOCK_BYTES as u64
}

/// Copies as much of `piece` as fits into `bufs`, behind the `count` bytes there already.
fn fill(bufs: &mut RecvBufs, count: usize, piece: &[u8]) -> usize {
    let landing_bytes = bufs.landing.as_ref().map_or(0, |buf| buf.len() - bufs.landing_from);
    let (from, room) = match (&mut bufs.landing, count < landing_bytes) {
        (Some(landing), true) => (bufs.landing_from + count, &mut landing[..]),
        _ => (bufs.staging_from + count - landing_bytes, &mut bufs.staging[..]),
    };
    let taken = piece.len().min(room.len() - from);
    room[from..from + taken].copy_from_slice(&piece[..taken]);
    taken
}

/// The driver of one host.
pub struct SimDriver {
    pub kernel: Rc<RefCell<Kernel>>,
    pub host: Host,
    /// The last `enter` found no completions: the host waits.
    pub waits: Rc<Cell<bool>>,
    /// Set by the waker. The world looks at it after the round.
    pub woken: Arc<AtomicBool>,
}

impl SimDriver {
    /// Opens this part of a lane's file, as a file of its own.
    pub fn open(&mut self, disk: DiskNumber, file: LaneFile, part: Range<u64>) -> FileId {
        let mut kernel = self.kernel.borrow_mut();
        let id = FileId(kernel.new_id());
        kernel.open.insert((self.host, id), (disk, file, part));
        id
    }

    /// The socket at the other end, while the connection exists.
    pub fn peer_of(&self, socket: SocketId) -> Option<SocketId> {
        self.kernel.borrow().sockets.get(&socket).map(|state| state.peer)
    }
}

struct SimWaker(Arc<AtomicBool>);

impl crate::io::driver::Wake for SimWaker {
    fn wake(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Driver for SimDriver {
    fn now(&self) -> Mono {
        self.kernel.borrow().local_time(self.host)
    }

    fn add_file(&mut self, file: ExclusiveFile, _: Disk) -> std::io::Result<FileId> {
        panic!("{file:?}: a simulated pod has simulated files only")
    }

    fn size_bytes(&self, file: FileId) -> std::io::Result<u64> {
        let mut kernel = self.kernel.borrow_mut();
        let found = kernel.open.get(&(self.host, file));
        let (disk, name, _) = found.expect("an open file").clone();
        Ok(kernel.disks[disk].file(name).bytes)
    }

    fn listen(&mut self, address: &Address) -> std::io::Result<(SocketId, Address)> {
        let mut kernel = self.kernel.borrow_mut();
        let id = SocketId(kernel.new_id());
        kernel.listeners.insert(id, (self.host, address.clone(), VecDeque::new(), None));
        Ok((id, address.clone()))
    }

    fn submit(&mut self, token: Token, op: Op) {
        self.kernel.borrow_mut().submit(self.host, token, op);
    }

    fn enter(
        &mut self,
        timeout: Option<Duration>,
        out: &mut Vec<Completion>,
    ) -> std::io::Result<()> {
        let mut kernel = self.kernel.borrow_mut();
        let now = kernel.now;
        let state = &mut kernel.hosts[self.host];
        out.append(&mut state.ready);
        if !out.is_empty() || state.hears_at <= now {
            out.append(&mut state.sent);
        }
        self.waits.set(out.is_empty());
        let hears = (!state.sent.is_empty()).then(|| state.hears_at.since(now));
        if let (true, Some(timeout)) = (out.is_empty(), timeout.into_iter().chain(hears).min()) {
            kernel.wake(self.host, timeout);
        }
        Ok(())
    }

    /// All simulated connections count as of one machine.
    fn source(&self, _: SocketId) -> Option<IpAddr> {
        None
    }

    fn has_hung_up(&self, socket: SocketId) -> bool {
        let kernel = self.kernel.borrow();
        kernel.sockets.get(&socket).is_none_or(|state| state.inbound.ended)
    }

    fn waker(&self) -> Waker {
        Arc::new(SimWaker(Arc::clone(&self.woken)))
    }

    fn name(&self) -> &'static str {
        "simulated"
    }
}
