//! NBD connections of a worker: sockets and sessions on one side, routers on the other.

use rustc_hash::FxHashMap;

use crate::front::nbd::{CloseReason, Export, Exports, Session, SessionHandle, SessionOutput};
use crate::io::buffer::Pool;
use crate::io::driver::{Address, Buffers, Completion, Done, Op, SocketId};
use crate::limits::CLIENTS_MAX;
use crate::planted::{Mistake, planted};
use crate::types::{BlockError, BlockReply, Mono, VolumeId};
use crate::view::ClusterView;
use crate::volume::{ConnId as VolumeConn, Volume, VolumeOutput};
use crate::worker::Worker;
use crate::worker::requests::Waiter;
use crate::worker::start::StartError;
use crate::worker::stream::Stream;
use crate::worker::token::{ConnId, Target};

/// What a listener takes connections for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Nbd,
    Peer,
}

struct Client {
    stream: Stream,
    session: Session,
    /// Close when everything was sent.
    closing: bool,
    dirty: bool,
    /// What has arrived was not looked at when it ought to have been, because the router had
    /// enough, also from this connection: the next answer to it is the moment to go on. Until
    /// then nothing is received; whole requests would wait behind a receive that brings nothing.
    unparsed: bool,
    /// Nothing is received although there may be more: what comes next may have been sent long
    /// before it is looked at, by a client that has hung up since.
    held_back: bool,
}

impl Client {
    /// False while the router has enough from this connection.
    fn may_ask(&self, conn: ConnId, volumes: &FxHashMap<VolumeId, Volume>) -> bool {
        if planted(Mistake::VolumesShareBudget) && !volumes.values().all(Volume::has_room) {
            return false;
        }
        let router = self.session.export().and_then(|export| volumes.get(&export.volume));
        router.is_none_or(|router| router.wants_requests(VolumeConn(u64::from(conn))))
    }
}

/// The connections and listeners of a worker.
pub struct Clients {
    pool: Pool,
    listeners: Vec<(SocketId, Purpose)>,
    /// Listeners that listen again at the next tick: an error (too many open files, say) stays.
    paused: Vec<u8>,
    clients: FxHashMap<ConnId, Client>,
    dirty: Vec<ConnId>,
    next: ConnId,
    outputs: Vec<SessionOutput>,
}

impl Clients {
    pub fn new(pool: Pool) -> Clients {
        Clients {
            pool,
            listeners: Vec::new(),
            paused: Vec::new(),
            clients: FxHashMap::default(),
            dirty: Vec::new(),
            next: 0,
            outputs: Vec::new(),
        }
    }

    fn mark(&mut self, conn: ConnId) {
        if let Some(client) = self.clients.get_mut(&conn)
            && !client.dirty
        {
            client.dirty = true;
            self.dirty.push(conn);
        }
    }
}

impl Exports for ClusterView {
    fn list(&self) -> Vec<String> {
        let exported = self.volumes.iter().filter(|volume| !volume.deleting);
        exported.map(|volume| volume.name.clone()).collect()
    }

    fn open(&self, name: &str) -> Option<Export> {
        let mut exported = self.volumes.iter().filter(|volume| !volume.deleting);
        let volume = match name {
            "" => exported.next().filter(|_| exported.next().is_none())?,
            name => exported.find(|volume| volume.name == name)?,
        };
        Some(Export { volume: volume.volume, size_bytes: volume.size_bytes, read_only: false })
    }
}

impl Worker {
    pub fn listen_nbd(&mut self, address: &Address) -> Result<Address, StartError> {
        self.listen(address, Purpose::Nbd)
    }

    pub fn listen_peers(&mut self, address: &Address) -> Result<Address, StartError> {
        self.listen(address, Purpose::Peer)
    }

    fn listen(&mut self, address: &Address, purpose: Purpose) -> Result<Address, StartError> {
        let (socket, bound) = self
            .driver
            .listen(address)
            .map_err(|source| StartError::Listen { address: address.clone(), source })?;
        let number = self.clients.listeners.len() as u8;
        self.clients.listeners.push((socket, purpose));
        self.accept(number);
        Ok(bound)
    }

    fn accept(&mut self, listener: u8) {
        let (socket, _) = self.clients.listeners[usize::from(listener)];
        self.driver.submit(Target::Accept { listener }.token(), Op::Accept { listener: socket });
    }

    /// A connection came in.
    pub fn accepted(&mut self, listener: u8, completion: Completion) {
        let (_, purpose) = self.clients.listeners[usize::from(listener)];
        match completion.result {
            Ok(Done::Accepted(socket)) if purpose == Purpose::Peer => self.peer_accepted(socket),
            Ok(Done::Accepted(socket)) => self.client_accepted(socket),
            Ok(done) => panic!("an accept ended with {done:?}"),
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                return self.clients.paused.push(listener);
            }
        }
        self.accept(listener);
    }

    fn client_accepted(&mut self, socket: SocketId) {
        if self.clients.clients.len() >= CLIENTS_MAX {
            tracing::warn!("too many connections: one more is closed at once");
            self.driver.submit(Target::Closed.token(), Op::Close { socket });
            return;
        }
        self.clients.next += 1;
        let conn = self.clients.next;
        let stream = Stream::new(socket, self.clients.pool.clone());
        let session = Session::with_bytes_max(self.config.budgets.connection_bytes);
        let (closing, dirty, unparsed, held_back) = (false, false, false, false);
        let client = Client { stream, session, closing, dirty, unparsed, held_back };
        self.clients.clients.insert(conn, client);
        self.feed_client(conn);
    }

    pub fn client_received(&mut self, conn: ConnId, completion: Completion) {
        let Some(client) = self.clients.clients.get_mut(&conn) else { return };
        match (completion.result, completion.buffers) {
            (Ok(Done::Bytes(count)), Buffers::Recv(bufs)) if count > 0 => {
                client.stream.received(bufs, count);
                self.feed_client(conn);
            }
            _ => self.close_client(conn, CloseReason::Disconnected),
        }
    }

    pub fn client_sent(&mut self, conn: ConnId, completion: Completion) {
        let Some(client) = self.clients.clients.get_mut(&conn) else { return };
        client.stream.sent();
        match completion.result {
            Ok(Done::Bytes(count)) => {
                client.session.sent(count);
                self.feed_client(conn);
            }
            _ => self.close_client(conn, CloseReason::Disconnected),
        }
    }

    /// Parses what has arrived; also after an answer or a send, which may have made room.
    fn feed_client(&mut self, conn: ConnId) {
        if self.has_hung_up(conn) {
            return self.close_client(conn, CloseReason::Disconnected);
        }
        let mut outputs = std::mem::take(&mut self.clients.outputs);
        if let Some(client) = self.clients.clients.get_mut(&conn)
            && client.stream.wants_receive()
        {
            client.unparsed = !client.may_ask(conn, &self.volumes);
            if !client.unparsed {
                client.session.feed(&mut client.stream.reader, self.view.as_ref(), &mut outputs);
            }
        }
        self.session_outputs(conn, &mut outputs);
        self.clients.outputs = outputs;
        self.clients.mark(conn);
    }

    /// Rule R15: what a client sent while nothing was taken from it is executed only if it is still
    /// there. It may long have sent the same again over another connection, and then something
    /// newer, which must not be overwritten.
    fn has_hung_up(&mut self, conn: ConnId) -> bool {
        let Some(client) = self.clients.clients.get_mut(&conn) else { return false };
        if !client.held_back || !client.session.wants_input() {
            return false;
        }
        client.held_back = false;
        self.driver.has_hung_up(client.stream.socket) && !planted(Mistake::ProcessedAfterHangUp)
    }

    /// Connections from which nothing is received now and that have ended meanwhile: what they
    /// left behind in the routers is dropped. Paused listeners go on.
    pub fn tick_clients(&mut self) {
        for listener in std::mem::take(&mut self.clients.paused) {
            self.accept(listener);
        }
        let ended = |(conn, client): (&ConnId, &Client)| {
            let ended = client.held_back && self.driver.has_hung_up(client.stream.socket);
            (ended && !planted(Mistake::ProcessedAfterHangUp)).then_some(*conn)
        };
        let ended: Vec<ConnId> = self.clients.clients.iter().filter_map(ended).collect();
        for conn in ended {
            self.close_client(conn, CloseReason::Disconnected);
        }
    }

    fn session_outputs(&mut self, conn: ConnId, outputs: &mut Vec<SessionOutput>) {
        for output in outputs.drain(..) {
            let Some(client) = self.clients.clients.get_mut(&conn) else { continue };
            match output {
                SessionOutput::Send(bytes) => client.stream.queue([bytes]),
                SessionOutput::Close { reason } => {
                    tracing::debug!(conn, %reason, "an NBD connection ends");
                    client.closing = true;
                }
                SessionOutput::Request { handle, op } => {
                    let volume = client.session.export().expect("requests follow an export").volume;
                    match self.volumes.get_mut(&volume) {
                        Some(router) => {
                            router.request(VolumeConn(u64::from(conn)), handle.0, op);
                            self.touch_volume(volume);
                        }
                        None => self.orphans.push((conn, handle)),
                    }
                }
            }
        }
    }

    /// Answers requests for volumes that are gone.
    fn answer_orphans(&mut self) {
        while let Some((conn, handle)) = self.orphans.pop() {
            self.reply_client(conn, handle.0, Err(BlockError::NoSuchVolume));
        }
    }

    fn reply_client(&mut self, conn: ConnId, handle: u64, result: Result<BlockReply, BlockError>) {
        let mut outputs = std::mem::take(&mut self.clients.outputs);
        if let Some(client) = self.clients.clients.get_mut(&conn) {
            client.session.reply(SessionHandle(handle), result, &mut outputs);
        }
        self.session_outputs(conn, &mut outputs);
        self.clients.outputs = outputs;
        self.feed_client(conn);
    }

    fn close_client(&mut self, conn: ConnId, reason: CloseReason) {
        let Some(client) = self.clients.clients.remove(&conn) else { return };
        tracing::debug!(conn, %reason, "an NBD connection is closed");
        if let Some(export) = client.session.export()
            && let Some(router) = self.volumes.get_mut(&export.volume)
        {
            let volume = export.volume;
            router.close_connection(VolumeConn(u64::from(conn)));
            self.touch_volume(volume);
        }
        self.driver.submit(Target::Closed.token(), Op::Close { socket: client.stream.socket });
    }

    /// Starts sends and receives of every connection that changed.
    pub fn submit_clients(&mut self) {
        self.answer_orphans();
        let mut ended = Vec::new();
        for conn in std::mem::take(&mut self.clients.dirty) {
            let Some(client) = self.clients.clients.get_mut(&conn) else { continue };
            client.dirty = false;
            let driver = self.driver.as_mut();
            client.stream.send(driver, Target::ClientSend(conn).token());
            let wants_input = client.session.wants_input() && !client.unparsed;
            if client.closing && !client.stream.has_output() {
                ended.push(conn);
            } else if wants_input && client.may_ask(conn, &self.volumes) {
                client.stream.receive(driver, Target::ClientRecv(conn).token());
            } else {
                client.held_back = client.stream.wants_receive() && client.session.expects_input();
            }
        }
        for conn in ended {
            self.close_client(conn, CloseReason::Disconnected);
        }
    }

    /// Polls a router and carries out what it wants.
    pub fn poll_volume(&mut self, volume: VolumeId) {
        let mut outputs = std::mem::take(&mut self.scratch.routes);
        if let Some(router) = self.volumes.get_mut(&volume) {
            router.poll(self.now, &mut outputs);
            if router.deadline().is_some() && !self.waiting_volumes.contains(&volume) {
                self.waiting_volumes.push(volume);
            }
        }
        for output in outputs.drain(..) {
            match output {
                VolumeOutput::Reply { conn, handle, result } => {
                    self.reply_client(conn.0 as ConnId, handle, result);
                }
                VolumeOutput::Send { ticket, shard, to, term, origin, op } => {
                    let waiter = Waiter::Volume { volume, ticket };
                    if self.members.contains_key(&to.member) {
                        self.request(to.member, term, origin, op, waiter);
                    } else {
                        self.forward(volume, ticket, shard, to, term, origin, op);
                    }
                }
            }
        }
        self.scratch.routes = outputs;
    }

    pub fn tick_volumes(&mut self, now: Mono) {
        let volumes: Vec<VolumeId> = self.volumes.keys().copied().collect();
        for volume in volumes {
            if let Some(router) = self.volumes.get_mut(&volume) {
                router.tick(now);
            }
            self.touch_volume(volume);
        }
    }

    /// Routers that wait for a moment that has come are polled.
    pub fn wake_volumes(&mut self, now: Mono) {
        for volume in std::mem::take(&mut self.waiting_volumes) {
            let Some(router) = self.volumes.get(&volume) else { continue };
            match router.deadline() {
                Some(deadline) if deadline > now => self.waiting_volumes.push(volume),
                Some(_) => self.touch_volume(volume),
                None => {}
            }
        }
    }

    /// The volume is deleted: its connections end.
    pub fn close_volume(&mut self, volume: VolumeId) {
        if let Some(router) = self.volumes.get_mut(&volume) {
            router.remove();
        }
        self.poll_volume(volume);
        self.volumes.remove(&volume);
        let of = |(conn, client): (&ConnId, &Client)| {
            let export = client.session.export()?;
            (export.volume == volume).then_some(*conn)
        };
        let conns: Vec<ConnId> = self.clients.clients.iter().filter_map(of).collect();
        for conn in conns {
            self.close_client(conn, CloseReason::UnknownExport);
        }
    }
}
