//! A world for one worker in tests: a kernel, a disk and an index in memory, and NBD clients.
//! Everything ends at once and in order, but for log writes, which a test may hold back. A second
//! has a thousand rounds.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use raft::eraftpb::Message;

use crate::front::nbd::wire;
use crate::io::buffer::Pool;
use crate::io::driver::{
    Address, Buffers, Completion, Disk as IoDisk, Done, Driver, FileId, Op, RecvBufs, SocketId,
    Token, Wake, Waker,
};
use crate::io::file::ExclusiveFile;
use crate::io::stream::StreamReader;
use crate::level::Levels;
use crate::limits::{Budgets, LISTING_EXTENTS_MAX, OVERLAY_BYTES_MAX, SocketLimits, TICK};
use crate::net::handshake::{Identity, Purpose};
use crate::net::incarnations::Incarnations;
use crate::net::link::{Link, LinkEvent, Target};
use crate::net::message::{CallId, PeerMessage};
use crate::replica::messages::ReadMode;
use crate::replica::raft_message;
use crate::store::index::memory::MemoryIndex;
use crate::store::lane::{LaneConfig, LaneFiles as _};
use crate::store::messages::{IndexJob, LaneFile, OpId};
use crate::store::open::{LaneFormat, data_files, format_lane};
use crate::testing::crash_disk::Disk;
use crate::testing::stream_fixture::{land, receive};
use crate::types::{
    AccessSet, AttachmentId, EXTENT_BYTES, Generation, MemberId, Mono, Origin, PodId, Session,
    ShardId, ShardOp, Uuid, VolumeId,
};
use crate::view::{
    ClusterView, DiskView, MemberState, MemberView, PodReport, PodView, ShardView, VolumeView,
};
use crate::worker::members::MemberRuntime;
use crate::worker::requests::Waiter;
use crate::worker::token::ConnKey;
use crate::worker::{
    AccessAnswer, ControlPlane, DiskPlace, IndexRunner, LaneRuntime, OpenFiles, Question,
    Resolution, Sender, Worker, WorkerCommand, WorkerConfig, execute, mailbox, open_lane,
};

const CLUSTER: Uuid = Uuid([7; 16]);
const POD: PodId = PodId(1);
pub const DISK: Uuid = Uuid([1; 16]);
pub const VOLUME_BYTES: u64 = 16 << 20;
const WAL_BYTES: u64 = 16 << 20;
const DATA_BYTES: u64 = 1024 * EXTENT_BYTES as u64;
const DATA_FILE_BYTES: u64 = 5 * EXTENT_BYTES as u64;
/// Rounds until a test gives up waiting.
const ROUNDS_MAX: u32 = 20_000;

/// A connection as the kernel sees it.
#[derive(Default)]
struct Socket {
    to_pod: VecDeque<u8>,
    to_client: Vec<u8>,
    recv: Option<(Token, RecvBufs)>,
    hung_up: bool,
}

/// What is outside of the worker.
#[derive(Default)]
struct Kernel {
    /// What the control plane was asked and told.
    asked: Vec<Question>,
    uses: BTreeSet<VolumeId>,
    now: Mono,
    disk: Disk,
    sockets: BTreeMap<SocketId, Socket>,
    /// Those of peers.
    links: BTreeSet<SocketId>,
    next_socket: u32,
    /// Connections, with the listeners that they are for, and accepts that wait for one.
    to_accept: VecDeque<(SocketId, SocketId)>,
    accepts: BTreeMap<SocketId, Token>,
    /// Accepts fail, and how many have.
    fails_accepts: bool,
    failed_accepts: u32,
    submitted: VecDeque<(Token, Op)>,
    /// Sends do not end, but for those to clients.
    holds_links: bool,
    /// Writes of the log do not end.
    holds_log: bool,
    held: Vec<(Token, Op)>,
}

const FOR_NBD: SocketId = SocketId(u32::MAX);
const FOR_PEERS: SocketId = SocketId(u32::MAX - 1);
/// The address on which the pod waits for peers.
const PEERS: &str = "peers";

const LOG: FileId = FileId(LaneFile::Wal as u32);
const DATA: u32 = LaneFile::Data as u32;

/// The lane's file, and where in it this file begins: the data is in several files.
fn lane_file(file: FileId) -> (LaneFile, u64) {
    match file.0 {
        0 => (LaneFile::Superblock, 0),
        1 => (LaneFile::Wal, 0),
        _ => (LaneFile::Data, u64::from(file.0 - DATA) * DATA_FILE_BYTES),
    }
}

impl Kernel {
    fn carry_out(&mut self, token: Token, op: Op, out: &mut Vec<Completion>) {
        let mut buffers = Buffers::None;
        let result = match op {
            Op::Write { file: LOG, .. } if self.holds_log => {
                self.held.push((token, op));
                return;
            }
            Op::Write { file, offset, bufs, .. } => {
                let bytes = bufs.concat();
                let (file, start) = lane_file(file);
                self.disk.file(file).write(start + offset, &bytes, true);
                Ok(Done::Bytes(bytes.len()))
            }
            Op::Read { file, offset, mut buf } => {
                let (file, start) = lane_file(file);
                let (at, len) = ((start + offset) as usize, buf.len());
                buf.copy_from_slice(&self.disk.file(file).now[at..at + len]);
                buffers = Buffers::Read(buf);
                Ok(Done::Bytes(len))
            }
            Op::Sync { .. } => Ok(Done::Bytes(0)),
            Op::Send { socket, .. } if self.holds_links && self.links.contains(&socket) => {
                self.held.push((token, op));
                return;
            }
            Op::Send { socket, bufs } => {
                let bytes = bufs.concat();
                if let Some(socket) = self.sockets.get_mut(&socket) {
                    socket.to_client.extend_from_slice(&bytes);
                }
                Ok(Done::Bytes(bytes.len()))
            }
            Op::Recv { socket, bufs } => {
                let socket = self.sockets.get_mut(&socket).expect("an open socket");
                socket.recv = Some((token, bufs));
                return;
            }
            Op::Accept { .. } if self.fails_accepts => {
                self.failed_accepts += 1;
                Err(std::io::Error::from_raw_os_error(libc::EMFILE))
            }
            Op::Accept { listener } => {
                self.accepts.insert(listener, token);
                return;
            }
            Op::Connect { .. } => Err(std::io::ErrorKind::ConnectionRefused.into()),
            Op::Close { socket } => {
                self.sockets.remove(&socket);
                Ok(Done::Bytes(0))
            }
        };
        out.push(Completion { token, result, buffers });
    }

    /// Ends what waited for a client.
    fn arrive(&mut self, out: &mut Vec<Completion>) {
        if let Some((listener, socket)) = self.to_accept.front().copied()
            && let Some(token) = self.accepts.remove(&listener)
        {
            self.to_accept.pop_front();
            let result = Ok(Done::Accepted(socket));
            out.push(Completion { token, result, buffers: Buffers::None });
        }
        for socket in self.sockets.values_mut() {
            if socket.to_pod.is_empty() && !socket.hung_up {
                continue;
            }
            let Some((token, mut bufs)) = socket.recv.take() else { continue };
            let count = land(&mut bufs, socket.to_pod.make_contiguous(), usize::MAX);
            socket.to_pod.drain(..count);
            let (result, buffers) = (Ok(Done::Bytes(count)), Buffers::Recv(bufs));
            out.push(Completion { token, result, buffers });
        }
    }
}

/// The kernel, as the worker's driver.
#[derive(Clone)]
struct Fixture(Rc<RefCell<Kernel>>);

impl Wake for () {
    fn wake(&self) {}
}

impl Driver for Fixture {
    fn now(&self) -> Mono {
        self.0.borrow().now
    }

    fn add_file(&mut self, file: ExclusiveFile, _: IoDisk) -> std::io::Result<FileId> {
        panic!("{file:?}: the fixture opens the files itself")
    }

    fn size_bytes(&self, file: FileId) -> std::io::Result<u64> {
        self.0.borrow_mut().disk.size_bytes(lane_file(file).0)
    }

    fn listen(&mut self, address: &Address) -> std::io::Result<(SocketId, Address)> {
        let listener = if *address == Address::Unix(PEERS.into()) { FOR_PEERS } else { FOR_NBD };
        Ok((listener, address.clone()))
    }

    fn source(&self, _: SocketId) -> Option<IpAddr> {
        None
    }

    fn submit(&mut self, token: Token, op: Op) {
        self.0.borrow_mut().submitted.push_back((token, op));
    }

    fn enter(&mut self, _: Option<Duration>, out: &mut Vec<Completion>) -> std::io::Result<()> {
        let mut kernel = self.0.borrow_mut();
        kernel.now = kernel.now + Duration::from_millis(1);
        while let Some((token, op)) = kernel.submitted.pop_front() {
            kernel.carry_out(token, op, out);
        }
        kernel.arrive(out);
        Ok(())
    }

    fn has_hung_up(&self, socket: SocketId) -> bool {
        self.0.borrow().sockets.get(&socket).is_some_and(|socket| socket.hung_up)
    }

    fn waker(&self) -> Waker {
        Arc::new(())
    }

    fn name(&self) -> &'static str {
        "fixture"
    }
}

struct Index {
    store: Rc<RefCell<MemoryIndex>>,
    inbox: Sender<WorkerCommand>,
}

impl IndexRunner for Index {
    fn submit(&mut self, op: OpId, job: IndexJob) {
        let done = execute(&mut *self.store.borrow_mut(), job);
        assert!(
            self.inbox.send(WorkerCommand::Index { lane: 0, op, done }).is_ok(),
            "there is room"
        );
    }

    fn pump(&mut self) {}
}

/// One pod with one disk.
pub struct Pod {
    worker: Worker,
    fixture: Fixture,
    index: Rc<RefCell<MemoryIndex>>,
    budgets: Budgets,
    starts: u32,
}

impl Pod {
    /// A new pod in a cluster without volumes.
    pub fn new(budgets: Budgets) -> Pod {
        let disk = Disk::new(WAL_BYTES, DATA_BYTES);
        let mut kernel = Kernel { now: Mono(1), disk, ..Kernel::default() };
        let format = LaneFormat {
            cluster: CLUSTER,
            disk: DISK,
            seed: 9,
            wal_bytes: WAL_BYTES,
            data_bytes_max: DATA_BYTES,
            data_file_bytes: DATA_FILE_BYTES,
        };
        format_lane(&mut kernel.disk, &format).expect("a new disk");
        let mut fixture = Fixture(Rc::new(RefCell::new(kernel)));
        let index = Rc::default();
        let worker = start(&mut fixture, &index, budgets, 1);
        Pod { worker, fixture, index, budgets, starts: 1 }
    }

    /// The process ends and another one starts on the same disk. Nothing was on its way.
    pub fn restart(&mut self) {
        let mut kernel = self.fixture.0.borrow_mut();
        assert!(kernel.held.is_empty());
        kernel.sockets.clear();
        kernel.submitted.clear();
        drop(kernel);
        self.starts += 1;
        self.worker = start(&mut self.fixture, &self.index, self.budgets, self.starts);
    }

    /// The catalog has this to say.
    pub fn view(&mut self, view: ClusterView) {
        self.worker.view_changed(Arc::new(view));
    }

    /// What the pod has asked its control plane, the newest first.
    pub fn asked(&mut self) -> Option<Question> {
        self.fixture.0.borrow_mut().asked.pop()
    }

    pub fn resolved(&mut self, question: u64, answer: Resolution) {
        self.worker.client_handler().resolved(question, answer);
    }

    /// The volumes that clients use, as the control plane was told.
    pub fn uses(&self) -> BTreeSet<VolumeId> {
        self.fixture.0.borrow().uses.clone()
    }

    pub fn round(&mut self) {
        self.worker.round().expect("the fixture's kernel does not fail");
    }

    /// Rounds until something is true.
    pub fn run_until(&mut self, what: &str, mut done: impl FnMut(&mut Pod) -> bool) {
        let mut rounds = 0;
        while !done(self) {
            self.round();
            rounds += 1;
            assert!(rounds < ROUNDS_MAX, "in vain: {what}");
        }
    }

    /// True when the next tick is nearly a whole one away.
    pub fn is_after_tick(&self) -> bool {
        self.worker.next_tick.since(self.worker.now) > TICK * 9 / 10
    }

    /// Requests that the router of a volume has.
    pub fn requests_in_flight(&self, volume: u64) -> usize {
        self.worker.routers.all[&(VolumeId(volume), AttachmentId::NONE)].requests_in_flight()
    }

    /// Some time passes.
    pub fn run(&mut self, time: Duration) {
        (0..time.as_millis()).for_each(|_| self.round());
    }

    /// What the pod tells of a member; `None` when it has none.
    pub fn state_of(&self, member: MemberId) -> Option<MemberState> {
        let report = self.worker.report();
        let members = &report.disks[0].members;
        members.iter().find(|found| found.member == member).map(|found| found.state)
    }

    /// A Raft message from another pod.
    pub fn raft(&mut self, message: Message) {
        let (to, message_from) = (MemberId(message.to), message.from);
        let (header, payloads) = raft_message::split(message);
        let pod = PodId(message_from % 10);
        self.worker.raft_message(pod, to, &header, payloads).expect("peers of tests are honest");
    }

    /// A request of a router in another pod. Nobody waits for the answer.
    pub fn request(&mut self, member: MemberId, op: ShardOp) {
        let shard = self.member(member).shard;
        self.request_for(shard, member, op);
    }

    /// Such a request for a shard.
    pub fn request_for(&mut self, shard: ShardId, member: MemberId, op: ShardOp) {
        let session = Session { counter: 1, pod: PodId(2) };
        let origin = Origin { attachment: AttachmentId::NONE, session };
        let waiter = Waiter::Peer { conn: ConnKey::MAX, call: CallId(1), owed_bytes: 0 };
        self.worker.request((Some(shard), member), 0, origin, op, waiter);
    }

    /// Has an access set committed in all shards of a volume. Returns the lowest generation.
    pub fn set_access(&mut self, volume: u64, set: AccessSet) -> Generation {
        let done = Arc::new(std::sync::Mutex::new(None));
        let sink = Arc::clone(&done);
        let answer = move |result| *sink.lock().expect("nobody panics") = Some(result);
        let answer = AccessAnswer(Box::new(answer));
        self.worker.routers.set_access(VolumeId(volume), set, answer);
        self.run_until("all shards answer", |_| done.lock().expect("nobody panics").is_some());
        let result = done.lock().expect("nobody panics").take().expect("just seen");
        result.expect("the volume is here").generation
    }

    fn member(&self, member: MemberId) -> &MemberRuntime {
        self.worker.members.get(member).expect("it is here")
    }

    pub fn has_entry(&self, member: MemberId, index: u64, term: u64) -> bool {
        self.member(member).member.has_entry(index, term)
    }

    pub fn applied(&self, member: MemberId) -> u64 {
        self.member(member).member.applied_index()
    }

    /// True when others may be resynced from this member.
    pub fn is_source(&self, member: MemberId) -> bool {
        self.worker.resyncs.source_lane(&self.worker.members, member).is_some()
    }

    /// Sets the durable flag that a resync begins with.
    pub fn set_resyncing_flag(&mut self, member: MemberId) {
        self.worker.lanes.at(0).begin_resync(member);
    }

    pub fn has_destroyed(&self, member: MemberId) -> bool {
        self.worker.report().disks[0].destroyed.contains(&member)
    }

    /// From now on writes of the log do not end.
    pub fn hold_log(&mut self) {
        self.fixture.0.borrow_mut().holds_log = true;
    }

    /// They end, those that were held back, too.
    pub fn release_log(&mut self) {
        let mut kernel = self.fixture.0.borrow_mut();
        kernel.holds_log = false;
        let held = std::mem::take(&mut kernel.held);
        kernel.submitted.extend(held);
    }

    /// Whether nobody reads from links.
    pub fn hold_links(&mut self, holds: bool) {
        let mut kernel = self.fixture.0.borrow_mut();
        kernel.holds_links = holds;
        if !holds {
            let held = std::mem::take(&mut kernel.held);
            kernel.submitted.extend(held);
        }
    }

    /// Whether there are no descriptors for more connections.
    pub fn fail_accepts(&mut self, fails: bool) {
        self.fixture.0.borrow_mut().fails_accepts = fails;
    }

    pub fn failed_accepts(&self) -> u32 {
        self.fixture.0.borrow().failed_accepts
    }

    fn open_socket(&mut self, listener: SocketId) -> SocketId {
        let mut kernel = self.fixture.0.borrow_mut();
        kernel.next_socket += 1;
        let socket = SocketId(kernel.next_socket);
        kernel.sockets.insert(socket, Socket::default());
        kernel.to_accept.push_back((listener, socket));
        if listener == FOR_PEERS {
            kernel.links.insert(socket);
        }
        socket
    }

    /// Somebody connects as a client, and says nothing.
    pub fn connect_silently(&mut self) -> Client {
        Client { socket: self.open_socket(FOR_NBD) }
    }

    /// Somebody connects as a peer, and says nothing.
    pub fn dial_silently(&mut self) -> Client {
        Client { socket: self.open_socket(FOR_PEERS) }
    }

    /// Connections that the pod has not closed.
    pub fn open_connections(&self) -> usize {
        self.fixture.0.borrow().sockets.len()
    }

    /// Another pod of the cluster, with a link to this one.
    pub fn link_from(&mut self, pod: u64, purpose: Purpose) -> Peer {
        let disk = Uuid([pod as u8; 16]);
        let from = Identity { cluster: CLUSTER, pod: PodId(pod), disk, lane: 0, incarnation: 1 };
        let target = Target { pod: POD, disk: DISK, lane: 0 };
        let socket = self.open_socket(FOR_PEERS);
        let mut peer = Peer {
            socket,
            link: Link::dial(from, Levels::OWN, target, purpose, u64::from(socket.0)),
            reader: StreamReader::new(Pool::default()),
            seen: Incarnations::default(),
        };
        self.run_until("a link is up", |pod| {
            peer.messages(pod);
            peer.link.established().is_some()
        });
        peer
    }

    /// What this pod has of a member: roles, positions, and the end of its log.
    pub fn digest(&self, member: MemberId) -> String {
        let member = &self.member(member).member;
        let last = (0..100).rev().find(|index| {
            (0..10).any(|term| *index > member.applied_index() && member.has_entry(*index, term))
        });
        let (role, faulted) = (member.role(), member.is_faulted());
        let (applied, committed) = (member.applied_index(), member.committed());
        format!("{role:?} applied {applied} committed {committed} {last:?} faulted {faulted}")
    }

    /// A client that has opened a volume.
    pub fn connect(&mut self, volume: &str) -> Client {
        let client = self.ask_for(volume);
        self.opened(&client);
        client
    }

    /// A client that has asked for a volume.
    pub fn ask_for(&mut self, volume: &str) -> Client {
        let client = self.connect_silently();
        let flags = wire::CLIENT_FLAG_FIXED_NEWSTYLE | wire::CLIENT_FLAG_NO_ZEROES;
        let name = [&(volume.len() as u32).to_be_bytes(), volume.as_bytes(), &[0, 0]].concat();
        client.send(self, &flags.to_be_bytes());
        client.send(self, &wire::OPTION_MAGIC.to_be_bytes());
        client.send(self, &wire::option::GO.to_be_bytes());
        client.send(self, &(name.len() as u32).to_be_bytes());
        client.send(self, &name);
        client
    }

    /// Waits until the client has the volume that it asked for.
    pub fn opened(&mut self, client: &Client) {
        let end = [&wire::option::GO.to_be_bytes()[..], &wire::reply::ACK.to_be_bytes(), &[0; 4]];
        let end = end.concat();
        self.run_until("an export is opened", |pod| client.received(pod).ends_with(&end));
        client.take(self);
    }
}

fn start(
    fixture: &mut Fixture,
    index: &Rc<RefCell<MemoryIndex>>,
    budgets: Budgets,
    starts: u32,
) -> Worker {
    let config = LaneConfig {
        levels: Levels::OWN,
        data_bytes_max: DATA_BYTES,
        dirty_cache_bytes: 1 << 20,
        overlay_bytes_max: OVERLAY_BYTES_MAX,
        index_cache_bytes: 1 << 16,
        log_tail_bytes: 1 << 20,
        bypass_bytes_min: usize::MAX,
        listing_extents: LISTING_EXTENTS_MAX,
    };
    let pool = Pool::default();
    let (inbox, receiver) = mailbox(4096, Arc::new(|| ()));
    let opened =
        open_lane(config, &pool, &mut fixture.0.borrow_mut().disk, &mut *index.borrow_mut());
    let (lane, members) = opened.expect("what a pod wrote can be opened again");
    let file = |file: LaneFile| FileId(file as u32);
    let places = data_files(lane.superblock()).expect("a disk of the fixture");
    let files = OpenFiles {
        superblock: file(LaneFile::Superblock),
        wal: file(LaneFile::Wal),
        data: (DATA..).map(FileId).take(places.count()).collect(),
        places,
    };
    let place = DiskPlace { disk: DISK, path: "fixture".to_owned(), lock: None };
    let runner = Box::new(Index { store: Rc::clone(index), inbox });
    let runtime = LaneRuntime::new(0, lane, place, files, runner, pool.clone());
    let config = WorkerConfig {
        cluster: CLUSTER,
        pod: POD,
        levels: Levels::OWN,
        process: u64::from(starts),
        seed: 1,
        log_tail_bytes: 1 << 20,
        leaders_follow_clients: false,
        reads: ReadMode::Lease,
        budgets,
        sockets: SocketLimits::default(),
    };
    let driver = Box::new(fixture.clone());
    let mut worker = Worker::new(config, driver, pool, receiver, Box::new(fixture.clone()));
    worker.add_lane(runtime);
    for (record, start) in members {
        worker.start_member(0, &record, start, Vec::new());
    }
    worker.listen_nbd(&Address::Unix("fixture".into())).expect("it always listens");
    worker.listen_peers(&Address::Unix(PEERS.into())).expect("it always listens");
    worker
}

/// A control plane that answers when the test says so.
impl ControlPlane for Fixture {
    fn report(&self, _: PodReport) {}

    fn uses(&self, volumes: BTreeSet<VolumeId>) {
        self.0.borrow_mut().uses = volumes;
    }

    fn resolve(&self, question: Question) -> bool {
        self.0.borrow_mut().asked.push(question);
        true
    }
}

/// One connection of an NBD client; answers are simple replies.
pub struct Client {
    socket: SocketId,
}

impl Client {
    fn send(&self, pod: &mut Pod, bytes: &[u8]) {
        let mut kernel = pod.fixture.0.borrow_mut();
        kernel.sockets.get_mut(&self.socket).expect("it is connected").to_pod.extend(bytes);
    }

    /// Sends any bytes.
    pub fn say(&self, pod: &mut Pod, bytes: &[u8]) {
        self.send(pod, bytes);
    }

    fn received(&self, pod: &Pod) -> Vec<u8> {
        let kernel = pod.fixture.0.borrow();
        kernel.sockets.get(&self.socket).map_or(Vec::new(), |socket| socket.to_client.clone())
    }

    fn take(&self, pod: &mut Pod) {
        pod.fixture
            .0
            .borrow_mut()
            .sockets
            .get_mut(&self.socket)
            .expect("it is here")
            .to_client
            .clear();
    }

    /// Sends the header of a request. Its cookie is where it begins.
    fn ask(&self, pod: &mut Pod, command: u16, offset: u64, bytes: usize) {
        self.send(pod, &wire::REQUEST_MAGIC.to_be_bytes());
        self.send(pod, &0u16.to_be_bytes());
        self.send(pod, &command.to_be_bytes());
        self.send(pod, &offset.to_be_bytes());
        self.send(pod, &offset.to_be_bytes());
        self.send(pod, &(bytes as u32).to_be_bytes());
    }

    /// Writes one byte over and over.
    pub fn write(&self, pod: &mut Pod, offset: u64, bytes: usize, byte: u8) {
        self.ask(pod, wire::command::WRITE, offset, bytes);
        self.send(pod, &vec![byte; bytes]);
    }

    /// The offsets of the writes that were answered well, in order; forgets them.
    pub fn written(&self, pod: &mut Pod) -> Vec<u64> {
        let received = self.received(pod);
        self.take(pod);
        let good = [&wire::SIMPLE_REPLY_MAGIC.to_be_bytes()[..], &[0; 4]].concat();
        let replies = received.chunks(16).map(|reply| match reply.strip_prefix(&good[..]) {
            Some(cookie) => u64::from_be_bytes(cookie.try_into().expect("a whole reply")),
            None => panic!("not the answer to a write: {reply:?}"),
        });
        replies.collect()
    }

    /// The errors of all answers so far, which have no payload; forgets them.
    pub fn errors(&self, pod: &mut Pod) -> Vec<u32> {
        let received = self.received(pod);
        self.take(pod);
        let error =
            |reply: &[u8]| u32::from_be_bytes(reply[4..8].try_into().expect("a whole reply"));
        received.chunks(16).map(error).collect()
    }

    /// The first byte that is stored there.
    pub fn read_byte(&self, pod: &mut Pod, offset: u64) -> u8 {
        self.ask(pod, wire::command::READ, offset, 1);
        let reply_bytes = 17;
        pod.run_until("a read is answered", |pod| self.received(pod).len() >= reply_bytes);
        let received = self.received(pod);
        self.take(pod);
        assert_eq!(received.len(), reply_bytes);
        received[16]
    }

    /// The client's end of the connection goes away; what it has sent still arrives.
    pub fn hang_up(&self, pod: &mut Pod) {
        let mut kernel = pod.fixture.0.borrow_mut();
        kernel.sockets.get_mut(&self.socket).expect("it is connected").hung_up = true;
    }

    /// True when the pod has let go of the connection.
    pub fn is_closed(&self, pod: &Pod) -> bool {
        !pod.fixture.0.borrow().sockets.contains_key(&self.socket)
    }
}

/// Another pod: its end of a link.
pub struct Peer {
    socket: SocketId,
    link: Link,
    reader: StreamReader,
    seen: Incarnations,
}

impl Peer {
    /// Sends a message, which need not be honest.
    pub fn send(&mut self, pod: &mut Pod, message: PeerMessage) {
        self.link.send(message).expect("it can be encoded");
        self.messages(pod);
    }

    /// Sends a Raft message.
    pub fn raft(&mut self, pod: &mut Pod, message: Message) {
        let to = MemberId(message.to);
        let (header, payloads) = raft_message::split(message);
        self.send(pod, PeerMessage::Raft { to, header, payloads });
    }

    /// Hands over what was sent, and takes what has come.
    pub fn messages(&mut self, pod: &mut Pod) -> Vec<PeerMessage> {
        let mut kernel = pod.fixture.0.borrow_mut();
        let Some(socket) = kernel.sockets.get_mut(&self.socket) else { return Vec::new() };
        let mut events = Vec::new();
        let received = std::mem::take(&mut socket.to_client);
        let mut feed = |link: &mut Link, reader: &mut StreamReader| {
            link.feed(reader, &mut self.seen, &mut events).expect("this pod is honest");
        };
        let mut left = &received[..];
        while !left.is_empty() {
            left = receive(&mut self.reader, left, usize::MAX);
            feed(&mut self.link, &mut self.reader);
        }
        loop {
            let output = self.link.take_output();
            if output.is_empty() {
                break;
            }
            socket.to_pod.extend(output.concat());
        }
        let messages = events.into_iter().filter_map(|event| match event {
            LinkEvent::Message(message) => Some(message),
            LinkEvent::Up(_) => None,
        });
        messages.collect()
    }

    /// True when the pod has closed the link.
    pub fn is_closed(&self, pod: &Pod) -> bool {
        !pod.fixture.0.borrow().sockets.contains_key(&self.socket)
    }
}

/// A cluster of three pods, of which the fixture has the first; the others never answer.
pub fn view(revision: u64, volumes: Vec<VolumeView>) -> ClusterView {
    let address = "127.0.0.1:1".parse().expect("an address");
    let pod = |pod| PodView { pod: PodId(pod), peer: address, api: address, nbd: None };
    let disk = |pod: u64| DiskView { disk: Uuid([pod as u8; 16]), pod: PodId(pod) };
    ClusterView {
        revision,
        cluster: CLUSTER,
        level: Levels::OWN.cluster,
        pods: (1..=3).map(pod).collect(),
        disks: (1..=3).map(disk).collect(),
        volumes: volumes.into_iter().map(Arc::new).collect(),
        destroyed: Vec::new(),
    }
}

/// A volume of one shard, with a replica on each of these pods. The member on pod P is `number` *
/// 10 + P.
pub fn volume(number: u64, name: &str, pods: &[u64]) -> VolumeView {
    let member = |pod: &u64| MemberView {
        member: MemberId(number * 10 + pod),
        disk: Uuid([*pod as u8; 16]),
        pod: PodId(*pod),
    };
    VolumeView {
        volume: VolumeId(number),
        name: name.to_owned(),
        size_bytes: VOLUME_BYTES,
        stripe_width: 1,
        stripe_bytes: VOLUME_BYTES,
        shards: vec![ShardView {
            shard: ShardId(number),
            members: pods.iter().map(member).collect(),
            birth: AccessSet::default(),
        }],
        withheld: false,
        deleting: false,
        open: true,
        io_timeout_ms: 0,
        attachments: Vec::new(),
    }
}
