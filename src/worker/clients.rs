//! NBD connections: sockets and sessions on one side, routers on the other.
//! - Owns: the connections.
//! - May call: the routers and the driver.
//! - Is told: ends of operations, answers of routers, deleted volumes, and ticks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rustc_hash::FxHashMap;

use crate::front::nbd::{
    CloseReason, Encryption, Export, Exports, Opened, Session, SessionHandle, SessionOutput,
};
use crate::io::buffer::Pool;
use crate::io::driver::{Buffers, Completion, Done, Driver, Op, SocketId};
use crate::planted::planted;
use crate::security::channel::TlsError;
use crate::security::subject::Role;
use crate::slab::Slab;
use crate::telemetry::metrics::data_path::{DataPath as Meters, Operation, Outcome};
use crate::types::{AccessMode, AttachmentId, BlockError, BlockReply, Mono, Uuid, VolumeId};
use crate::view::{AttachmentView, VolumeChange, VolumeView};
use crate::volume::{ConnId as VolumeConn, Volume};
use crate::worker::WorkerConfig;
use crate::worker::control_plane::{ControlPlane, Question, Resolution};
use crate::worker::handshakes::Handshakes;
use crate::worker::requests::RouterKey;
use crate::worker::routers::Routers;
use crate::worker::stream::Stream;
use crate::worker::tls::WorkerTls;
use crate::worker::token::{ConnKey, Target};
use crate::worker::words::{operation_of, outcome_of, transferred_bytes};

struct Client {
    stream: Stream,
    session: Session,
    /// It has no export yet.
    is_new: bool,
    /// Closes when all output is sent.
    closing: bool,
    touched: bool,
    /// Arrived input is unparsed: the router has enough requests, also from this connection. The
    /// next answer lets parsing go on. Until then nothing is received: whole requests would wait
    /// behind a receive that brings nothing.
    unparsed: bool,
    /// Nothing is received although more may have come. By the time it is parsed it may be old,
    /// and the client may have hung up.
    held_back: bool,
    /// Its requests that are not answered.
    begun: Slab<Begun>,
    /// The name of an export about which the control plane was asked, and its answer.
    asked: Option<Asked>,
}

/// A question of a client's session.
struct Asked {
    question: Question,
    answer: Option<Resolution>,
}

/// A request that is not answered.
struct Begun {
    handle: SessionHandle,
    operation: Operation,
    bytes: u64,
    since: Mono,
}

impl Client {
    /// False while the router has enough requests from this connection.
    fn may_ask(&self, conn: ConnKey, routers: &Routers) -> bool {
        if planted!(VolumesShareBudget) && !routers.all.values().all(Volume::has_room) {
            return false;
        }
        let router = self.session.export().and_then(|export| routers.all.get(&key_of(export)));
        router.is_none_or(|router| router.wants_requests(VolumeConn(u64::from(conn))))
    }
}

impl Client {
    /// Parses what has arrived, and is allowed to.
    fn feed(
        &mut self,
        exported: &Exported,
        outputs: &mut Vec<SessionOutput>,
    ) -> Result<(), TlsError> {
        loop {
            let opened = self.stream.open()?;
            let (reader, peer) = self.stream.reader_and_peer();
            let role = peer.map(|holder| &holder.subject.role);
            let exports = Known { exported, asked: self.asked.as_ref(), role };
            self.session.feed(reader, &exports, outputs);
            // An answer is for the options that came with the one that asked: later it may be
            // another.
            self.asked.take_if(|asked| asked.answer.is_some());
            if !opened {
                return Ok(());
            }
        }
    }
}

/// What this pod knows, and what it was told for one connection.
struct Known<'a> {
    exported: &'a Exported,
    asked: Option<&'a Asked>,
    /// Of the client's certificate; `None`: it needs none here.
    role: Option<&'a Role>,
}

impl Known<'_> {
    /// The answer about a name.
    fn answer(&self, name: &str) -> Option<Resolution> {
        self.asked.filter(|asked| asked.question.name == name)?.answer
    }
}

impl Exports for Known<'_> {
    fn list(&self) -> Vec<String> {
        if opens_names(self.role) { self.exported.list() } else { Vec::new() }
    }

    fn only(&self) -> Option<String> {
        match self.answer("").filter(|_| opens_names(self.role)) {
            Some(Resolution::Found(volume)) => self.exported.open_volume(volume).map(|it| it.0),
            _ => None,
        }
    }

    fn open(&self, name: &str) -> Opened {
        // Nobody is asked about what this client may not open.
        if !opens_names(self.role) && name.parse::<Uuid>().is_err() {
            return Opened::Unknown;
        }
        let found = match (name, self.answer(name)) {
            ("", Some(Resolution::Found(volume))) => {
                self.exported.open_volume(volume).map(|it| it.1)
            }
            // The pod may know one of several open volumes.
            ("", _) => None,
            _ => self.exported.named(name, self.role),
        };
        match (found, self.answer(name)) {
            (Some(export), _) => Opened::Export(export),
            (None, None) => Opened::Later,
            (None, Some(Resolution::OutOfReach)) => Opened::OutOfReach,
            (None, Some(Resolution::Found(_) | Resolution::Unknown)) => Opened::Unknown,
        }
    }
}

/// The NBD connections of a worker.
#[derive(Default)]
pub struct Clients {
    pool: Pool,
    tls: Option<WorkerTls>,
    /// Handshakes were going on when the connections were compared with whom this pod trusts.
    shaking: bool,
    /// Bytes of requests that are taken from one connection at a time.
    bytes_max: usize,
    /// Connections with an export.
    served_max: usize,
    handshakes: Handshakes,
    clients: FxHashMap<ConnKey, Client>,
    touched: Vec<ConnKey>,
    next: ConnKey,
    outputs: Vec<SessionOutput>,
    /// Connections that wait for the answer to a question.
    asking: BTreeMap<u64, ConnKey>,
    next_question: u64,
    /// Questions that the control plane did not take; at most one of each connection.
    not_taken: Vec<u64>,
    /// The connections of each volume that clients use.
    uses: BTreeMap<VolumeId, usize>,
    has_new_uses: bool,
    /// Requests for deleted volumes.
    abandoned: Vec<(ConnKey, u64)>,
    meters: Arc<Meters>,
}

impl Clients {
    pub fn new(config: &WorkerConfig, pool: Pool, meters: Arc<Meters>) -> Clients {
        Clients {
            meters,
            pool,
            bytes_max: config.budgets.connection_bytes,
            served_max: config.sockets.clients,
            handshakes: Handshakes::new(config.sockets),
            ..Clients::default()
        }
    }

    /// Connections, also those without an export.
    pub fn len(&self) -> usize {
        self.clients.len()
    }

    /// Bytes in flight of each connection.
    pub fn queues(&self) -> impl Iterator<Item = usize> {
        self.clients.values().map(|client| client.session.bytes_in_flight())
    }

    /// The router of each connection.
    pub fn routers(&self) -> impl Iterator<Item = RouterKey> {
        self.clients.values().filter_map(|client| client.session.export()).map(key_of)
    }

    /// Clients of listeners that are added later may ask for TLS.
    pub fn use_tls(&mut self, tls: WorkerTls) {
        self.tls = Some(tls);
    }

    pub fn tls(&self) -> Option<&WorkerTls> {
        self.tls.as_ref()
    }

    /// The volumes that clients use, if these have changed.
    pub fn new_uses(&mut self) -> Option<BTreeSet<VolumeId>> {
        let is_new = std::mem::take(&mut self.has_new_uses);
        is_new.then(|| self.uses.keys().copied().collect())
    }

    fn begin_use(&mut self, volume: VolumeId) {
        let uses = self.uses.entry(volume).or_default();
        *uses += 1;
        self.has_new_uses |= *uses == 1;
    }

    fn end_use(&mut self, volume: VolumeId) {
        let uses = self.uses.get_mut(&volume).expect("a use that ends has begun");
        *uses -= 1;
        if *uses == 0 {
            self.uses.remove(&volume);
            self.has_new_uses = true;
        }
    }

    fn touch(&mut self, conn: ConnKey) {
        if let Some(client) = self.clients.get_mut(&conn)
            && !client.touched
        {
            client.touched = true;
            self.touched.push(conn);
        }
    }
}

/// The router that carries out the requests of an export's clients.
fn key_of(export: &Export) -> RouterKey {
    (export.volume, export.attachment)
}

/// What clients may open: open volumes by their names, and attachments by their uids.
#[derive(Default)]
pub struct Exported {
    open: BTreeMap<String, Export>,
    attachments: BTreeMap<Uuid, Attached>,
}

/// An attachment, as its export.
struct Attached {
    node: String,
    export: Export,
}

impl Exported {
    pub fn update<'a>(&mut self, changes: impl Iterator<Item = &'a VolumeChange> + Clone) {
        for before in changes.clone().filter_map(|change| change.before.as_ref()) {
            let is_it = |export: &Export| export.volume == before.volume;
            if self.open.get(&before.name).is_some_and(is_it) {
                self.open.remove(&before.name);
            }
            for attachment in &before.attachments {
                self.attachments.remove(&attachment.uid);
            }
        }
        let exported = changes.filter_map(|change| change.now.as_ref());
        for volume in exported.filter(|volume| !volume.deleting && !volume.withheld) {
            let VolumeView { volume: id, name, size_bytes, .. } = &**volume;
            let (volume_id, size_bytes) = (*id, *size_bytes);
            let (attachment, read_only) = (AttachmentId::NONE, false);
            let export = Export { volume: volume_id, attachment, size_bytes, read_only };
            if volume.open {
                self.open.insert(name.clone(), export.clone());
            }
            for AttachmentView { id, uid, node, mode, .. } in &volume.attachments {
                let read_only = *mode == AccessMode::ReadOnly;
                let export = Export { attachment: *id, read_only, ..export.clone() };
                self.attachments.insert(*uid, Attached { node: node.clone(), export });
            }
        }
    }
}

impl Exported {
    /// The open volumes.
    pub fn list(&self) -> Vec<String> {
        self.open.keys().cloned().collect()
    }

    /// The export of this name, for a client with this role; `None`: it needs no certificate.
    pub fn named(&self, name: &str, role: Option<&Role>) -> Option<Export> {
        let attached = name.parse().ok().and_then(|uid: Uuid| self.attachments.get(&uid));
        if let Some(Attached { node, export }) = attached {
            let is_its = role.is_none_or(|role| role.acts_for(node)) || planted!(AnyNodeOpens);
            return is_its.then(|| export.clone());
        }
        self.open.get(name).filter(|_| opens_names(role)).cloned()
    }

    /// The export of an open volume, and its name.
    fn open_volume(&self, volume: VolumeId) -> Option<(String, Export)> {
        let mut open = self.open.iter();
        let found = open.find(|(_, export)| export.volume == volume);
        found.map(|(name, export)| (name.clone(), export.clone()))
    }
}

/// A node's certificate is for its attachments, and a name is none (rule
/// `nodes-open-what-is-theirs`).
fn opens_names(role: Option<&Role>) -> bool {
    !matches!(role, Some(Role::CsiNode(_)))
}

fn count(meters: &Meters, begun: &Begun, outcome: Outcome, now: Mono) {
    let Begun { operation, bytes, since, .. } = *begun;
    meters.nbd.answered(operation, outcome, now.since(since));
    match (operation, outcome) {
        (Operation::Read, Outcome::Ok) => meters.nbd.read_bytes.add(bytes),
        (Operation::Write, Outcome::Ok) => meters.nbd.written_bytes.add(bytes),
        _ => {}
    }
}

/// The connections, and the parts that they call.
pub struct ClientHandler<'a> {
    pub now: Mono,
    pub clients: &'a mut Clients,
    pub driver: &'a mut dyn Driver,
    pub routers: &'a mut Routers,
    pub exported: &'a Exported,
    pub control: &'a dyn ControlPlane,
}

impl ClientHandler<'_> {
    pub fn accepted(&mut self, socket: SocketId, encryption: Encryption) {
        let served = self.clients.clients.len() - self.clients.handshakes.len();
        if served >= self.clients.served_max {
            tracing::warn!("a new NBD connection is closed: the pod has as many as it can serve");
            self.driver.submit(Target::Closed.token(), Op::Close { socket });
            return;
        }
        self.clients.next += 1;
        let conn = self.clients.next;
        let stream = Stream::new(socket, self.clients.pool.clone());
        let session = Session::with_bytes_max(self.clients.bytes_max);
        let session = session.with_encryption(encryption);
        let (closing, touched, unparsed, held_back) = (false, false, false, false);
        let (is_new, begun, asked) = (true, Slab::default(), None);
        let client =
            Client { stream, session, is_new, closing, touched, unparsed, held_back, begun, asked };
        self.clients.clients.insert(conn, client);
        let source = self.driver.source(socket);
        if let Some(oldest) = self.clients.handshakes.begin(self.now, conn, source) {
            tracing::debug!(conn = oldest, "a handshake is given up: too many are unfinished");
            self.close(oldest, CloseReason::Disconnected);
        }
        self.feed(conn);
    }

    pub fn received(&mut self, conn: ConnKey, completion: Completion) {
        let Some(client) = self.clients.clients.get_mut(&conn) else { return };
        match (completion.result, completion.buffers) {
            (Ok(Done::Bytes(count)), Buffers::Recv(bufs)) if count > 0 => {
                client.stream.received(bufs, count);
                self.feed(conn);
            }
            _ => self.close(conn, CloseReason::Disconnected),
        }
    }

    pub fn sent(&mut self, conn: ConnKey, completion: Completion) {
        let Some(client) = self.clients.clients.get_mut(&conn) else { return };
        let count = client.stream.sent();
        match completion.result {
            Ok(Done::Bytes(_)) => {
                client.session.sent(count);
                self.feed(conn);
            }
            _ => self.close(conn, CloseReason::Disconnected),
        }
    }

    /// Parses arrived input, also after an answer or a send: both may have made room.
    fn feed(&mut self, conn: ConnKey) {
        if self.has_hung_up(conn) {
            return self.close(conn, CloseReason::Disconnected);
        }
        let Clients { clients, outputs, handshakes, .. } = &mut *self.clients;
        let mut begun = None;
        if let Some(client) = clients.get_mut(&conn)
            && client.stream.wants_receive()
        {
            client.unparsed = !client.may_ask(conn, self.routers);
            if !client.unparsed {
                if let Err(error) = client.feed(self.exported, outputs) {
                    tracing::debug!(conn, "TLS of an NBD connection: {error}");
                    // The alert, as far as it leaves at once.
                    client.stream.send(self.driver, Target::ClientSend(conn).token());
                    outputs.clear();
                    return self.close(conn, CloseReason::Disconnected);
                }
                if let Some(export) = client.session.export().filter(|_| client.is_new) {
                    self.routers.open(key_of(export));
                    client.is_new = false;
                    handshakes.end(conn);
                    begun = Some(export.volume);
                }
            }
        }
        if let Some(volume) = begun {
            self.clients.begin_use(volume);
            self.replace_line(conn);
        }
        self.session_outputs(conn);
        self.clients.touch(conn);
        self.ask(conn);
    }

    /// Asks the control plane for the export that a session waits for.
    fn ask(&mut self, conn: ConnKey) {
        let Clients { clients, asking, next_question, .. } = &mut *self.clients;
        let Some(client) = clients.get_mut(&conn).filter(|client| client.asked.is_none()) else {
            return;
        };
        let Some(name) = client.session.awaits() else { return };
        *next_question += 1;
        let question = Question { id: *next_question, name: name.to_owned() };
        client.asked = Some(Asked { question: question.clone(), answer: None });
        asking.insert(question.id, conn);
        let id = question.id;
        if !self.control.resolve(question) {
            self.clients.not_taken.push(id);
        }
    }

    /// Questions that were not taken are answered with the next tick. At once, a client with many
    /// names would go through all of them within one call.
    fn answer_not_taken(&mut self) {
        for question in std::mem::take(&mut self.clients.not_taken) {
            self.resolved(question, Resolution::OutOfReach);
        }
    }

    /// A question was answered.
    pub fn resolved(&mut self, question: u64, answer: Resolution) {
        let Some(conn) = self.clients.asking.remove(&question) else { return };
        let Some(client) = self.clients.clients.get_mut(&conn) else { return };
        let Some(asked) = &mut client.asked else { return };
        asked.answer = Some(answer);
        // What came behind the option may be old by now (rule `hang-up-before-execute`).
        if self.driver.has_hung_up(client.stream.socket) {
            return self.close(conn, CloseReason::Disconnected);
        }
        self.feed(conn);
    }

    /// Rule `hang-up-before-execute`: held-back input is executed only if its client is still
    /// connected. The client may have sent it again over another connection, followed by something
    /// newer, which must not be overwritten.
    fn has_hung_up(&mut self, conn: ConnKey) -> bool {
        let Some(client) = self.clients.clients.get_mut(&conn) else { return false };
        if !client.held_back || !client.session.wants_input() {
            return false;
        }
        client.held_back = false;
        self.driver.has_hung_up(client.stream.socket) && !planted!(ProcessedAfterHangUp)
    }

    /// Closes connections whose handshake lasts too long. Closes held-back connections whose client
    /// has hung up, and drops their requests in routers.
    pub fn tick(&mut self) {
        self.answer_not_taken();
        for conn in self.clients.handshakes.overdue(self.now) {
            self.close(conn, CloseReason::Disconnected);
        }
        let ended = |(conn, client): (&ConnKey, &Client)| {
            let ended = client.held_back && self.driver.has_hung_up(client.stream.socket);
            (ended && !planted!(ProcessedAfterHangUp)).then_some(*conn)
        };
        let ended: Vec<ConnKey> = self.clients.clients.iter().filter_map(ended).collect();
        for conn in ended {
            self.close(conn, CloseReason::Disconnected);
        }
        self.cut_void();
    }

    /// Ends the connections of clients whose certificates are void by now.
    fn cut_void(&mut self) {
        let Some(tls) = &mut self.clients.tls else { return };
        if !tls.has_new_trust() && !self.clients.shaking {
            return;
        }
        let trust = tls.trust();
        let is_void = |stream: &Stream| {
            stream.peer().is_some_and(|held| trust.check_while_connected(held).is_err())
        };
        // Handshakes that go on are looked at again: they may have begun with what was known
        // before.
        let is_shaking = |stream: &Stream| stream.has_tls() && stream.peer().is_none();
        self.clients.shaking = self.clients.clients.values().any(|it| is_shaking(&it.stream));
        let void = self.clients.clients.iter().filter(|(_, client)| is_void(&client.stream));
        let void: Vec<ConnKey> = void.map(|(conn, _)| *conn).collect();
        for conn in void {
            tracing::warn!(conn, "a client's connection is closed: its certificate is void");
            self.close(conn, CloseReason::Disconnected);
        }
    }

    fn session_outputs(&mut self, conn: ConnKey) {
        let Clients { clients, outputs, abandoned, tls, pool, .. } = &mut *self.clients;
        for output in outputs.drain(..) {
            let Some(client) = clients.get_mut(&conn) else { continue };
            match output {
                SessionOutput::Send(bytes) => client.stream.queue([bytes]),
                SessionOutput::StartTls => match tls {
                    Some(tls) if client.stream.reader.peek().is_empty() => {
                        client.stream.start_tls(tls.client(pool.clone()));
                    }
                    // What came behind the option came from nobody in particular.
                    _ => client.closing = true,
                },
                SessionOutput::Close { reason } => {
                    tracing::debug!(conn, %reason, "an NBD connection ends");
                    client.closing = true;
                }
                SessionOutput::Request { handle, op } => {
                    let export = client.session.export().expect("requests follow an export");
                    let key = key_of(export);
                    if !self.routers.all.contains_key(&key) {
                        // It was forgotten while nobody asked for anything.
                        self.routers.open(key);
                    }
                    let (operation, bytes) = (operation_of(&op), transferred_bytes(&op));
                    let begun = Begun { handle, operation, bytes, since: self.now };
                    let begun = client.begun.insert(begun);
                    match self.routers.at(key) {
                        Some(router) => {
                            router.request(self.now, VolumeConn(u64::from(conn)), begun, op)
                        }
                        None => abandoned.push((conn, begun)),
                    }
                }
            }
        }
    }

    fn answer_abandoned(&mut self) {
        while let Some((conn, begun)) = self.clients.abandoned.pop() {
            self.reply(conn, begun, Err(BlockError::NoSuchVolume));
        }
    }

    pub fn reply(&mut self, conn: ConnKey, begun: u64, result: Result<BlockReply, BlockError>) {
        let Clients { clients, outputs, meters, .. } = &mut *self.clients;
        if let Some(client) = clients.get_mut(&conn) {
            let begun = client.begun.remove(begun).expect("a request is answered once");
            count(meters, &begun, outcome_of(&result), self.now);
            client.session.reply(begun.handle, result, outputs);
        }
        self.session_outputs(conn);
        self.feed(conn);
    }

    fn close(&mut self, conn: ConnKey, reason: CloseReason) {
        let Some(client) = self.clients.clients.remove(&conn) else { return };
        tracing::debug!(conn, %reason, "an NBD connection is closed");
        self.clients.handshakes.end(conn);
        if let Some(asked) = &client.asked {
            self.clients.asking.remove(&asked.question.id);
        }
        if let Some(export) = client.session.export().filter(|_| !client.is_new) {
            self.clients.end_use(export.volume);
        }
        if let Some(key) = client.session.export().map(key_of)
            && let Some(router) = self.routers.at(key)
        {
            router.close_connection(VolumeConn(u64::from(conn)));
            self.routers.retire(key);
        }
        self.driver.submit(Target::Closed.token(), Op::Close { socket: client.stream.socket });
    }

    /// A volume has grown: its clients may use the new size.
    pub fn grow(&mut self, volume: VolumeId, size_bytes: u64) {
        for client in self.clients.clients.values_mut() {
            if client.session.export().is_some_and(|export| export.volume == volume) {
                client.session.grow(size_bytes);
            }
        }
    }

    /// Ends the connections of a volume.
    pub fn close_volume(&mut self, volume: VolumeId, reason: CloseReason) {
        self.close_all(reason, |export| export.volume == volume);
    }

    /// Ends the connections that use a volume under one attachment.
    pub fn close_use(&mut self, key: RouterKey, reason: CloseReason) {
        self.close_all(reason, |export| key_of(export) == key);
    }

    /// Ends the connections of a use whose clients have hung up (rule `hang-up-before-execute`).
    pub fn close_hung_up(&mut self, key: RouterKey) {
        let of = |(conn, client): (&ConnKey, &Client)| {
            let is_it = client.session.export().is_some_and(|export| key_of(export) == key);
            (is_it && self.driver.has_hung_up(client.stream.socket)).then_some(*conn)
        };
        let gone: Vec<ConnKey> = self.clients.clients.iter().filter_map(of).collect();
        for conn in gone {
            self.close(conn, CloseReason::Disconnected);
        }
    }

    /// Ends the older connection of a line, before anything is done for the new one (rule
    /// `a-line-has-one-connection`).
    fn replace_line(&mut self, new: ConnKey) {
        let line =
            |client: &Client| Some((key_of(client.session.export()?), client.session.line()?));
        let Some(wanted) = self.clients.clients.get(&new).and_then(line) else { return };
        let is_old = |(conn, client): (&ConnKey, &Client)| {
            (*conn != new && line(client) == Some(wanted)).then_some(*conn)
        };
        let old: Vec<ConnKey> = self.clients.clients.iter().filter_map(is_old).collect();
        for conn in old.into_iter().filter(|_| !planted!(OldLineGoesOn)) {
            tracing::info!(conn, new, "a client has opened its line anew: the old connection ends");
            self.close(conn, CloseReason::Replaced);
        }
    }

    fn close_all(&mut self, reason: CloseReason, of: impl Fn(&Export) -> bool) {
        let of = |(conn, client): (&ConnKey, &Client)| {
            client.session.export().is_some_and(&of).then_some(*conn)
        };
        let conns: Vec<ConnKey> = self.clients.clients.iter().filter_map(of).collect();
        for conn in conns {
            self.close(conn, reason);
        }
    }

    /// Starts sends and receives of every connection that changed.
    pub fn submit(&mut self) {
        self.answer_abandoned();
        let mut ended = Vec::new();
        for conn in std::mem::take(&mut self.clients.touched) {
            let Some(client) = self.clients.clients.get_mut(&conn) else { continue };
            client.touched = false;
            client.stream.send(self.driver, Target::ClientSend(conn).token());
            let wants_input = client.session.wants_input() && !client.unparsed;
            if client.closing && !client.stream.has_output() {
                ended.push(conn);
            } else if wants_input && client.may_ask(conn, self.routers) {
                client.stream.receive(self.driver, Target::ClientRecv(conn).token());
            } else {
                client.held_back = client.stream.wants_receive() && client.session.expects_input();
            }
        }
        for conn in ended {
            self.close(conn, CloseReason::Disconnected);
        }
    }
}
