//! Links to other pods: the connections that must exist, and those that do.
//! - Owns: the links and their promised answers, and the free space that other lanes announced.
//! - May call: the driver; routers and members, when a request is answered or a link ends.
//! - Is told: views, ends of operations, and messages to send, by all other components.

use std::net::SocketAddr;

use raft::eraftpb::Message;
use rustc_hash::{FxHashMap, FxHashSet};

use crate::io::buffer::Pool;
use crate::io::driver::{Address, Buffers, Completion, Done, Driver, Op, SocketId};
use crate::level::{Level, Levels};
use crate::limits::EXTENT_ASKS_MAX;
use crate::net::backoff::reconnect_pause;
use crate::net::handshake::{Identity, Purpose};
use crate::net::incarnations::Incarnations;
use crate::net::link::{Established, Link, LinkEvent, SendError, Target as LaneTarget};
use crate::net::message::{CallId, PeerMessage};
use crate::planted::planted;
use crate::replica::messages::{ReqId, Rest};
use crate::replica::raft_message;
use crate::types::{BlockError, EXTENT_BYTES, MemberId, Mono, PodId, Uuid, mix64};
use crate::view::{ClusterView, DiskView, MemberView, PodView, VolumeChange};
use crate::worker::WorkerConfig;
use crate::worker::complaints::Complaints;
use crate::worker::conn::{Conn, EndReason, Pair, ReceiveError, SILENCE};
use crate::worker::fronts::{self, front_of, is_front};
use crate::worker::handshakes::Handshakes;
use crate::worker::members::Members;
use crate::worker::owed::{ExtentAsk, Owed};
use crate::worker::requests::{Answer, Asker, Waiter, Waiting};
use crate::worker::routers::{Forwarded, Routers};
use crate::worker::tls::WorkerTls;
use crate::worker::token::{ConnKey, Target};
use crate::worker::words::link_purpose;

/// A connection that must exist.
struct Wanted {
    pod: PodId,
    address: SocketAddr,
    /// Of the two lanes, the one with the smaller identity makes the connection.
    dials: bool,
    attempt: u32,
    next_attempt: Mono,
    /// The connection, also while it is being made.
    conn: Option<ConnKey>,
    up: bool,
}

/// Every link of a worker.
#[derive(Default)]
pub struct Peers {
    pool: Pool,
    tls: Option<WorkerTls>,
    seed: u64,
    own: PodId,
    levels: Levels,
    /// Limit of the frames that wait on one link, in bytes.
    link_bytes_max: usize,
    locals: Vec<Identity>,
    seen: Incarnations,
    wanted: FxHashMap<Pair, Wanted>,
    conns: FxHashMap<ConnKey, Conn>,
    touched: Vec<ConnKey>,
    /// The way to each member that a link reaches: (our lane, their lane).
    routes: FxHashMap<MemberId, (Uuid, Uuid)>,
    /// Bytes that lanes of other pods can still allocate, as last announced.
    free_bytes: FxHashMap<Uuid, u64>,
    /// Pods and disks as of the newest view; `None`: the routes are not those of a view.
    places: Option<(Vec<PodView>, Vec<DiskView>)>,
    /// Connections that no view wants any more, to be closed.
    unwanted: Vec<ConnKey>,
    next_conn: ConnKey,
    next_call: u64,
    complaints: Complaints,
    handshakes: Handshakes,
}

impl Peers {
    pub fn new(config: &WorkerConfig, pool: Pool) -> Peers {
        Peers {
            pool,
            seed: config.seed,
            own: config.pod,
            levels: config.levels,
            link_bytes_max: config.budgets.link_bytes,
            handshakes: Handshakes::new(config.sockets),
            ..Peers::default()
        }
    }

    /// All links are under TLS from now on.
    pub fn use_tls(&mut self, tls: WorkerTls) {
        self.tls = Some(tls);
    }

    /// Adds a lane of this worker, which can dial and be dialled.
    pub fn add_local(&mut self, identity: Identity) {
        self.seen.place(identity.disk, identity.pod);
        self.locals.push(identity);
    }

    pub fn next_call(&mut self) -> CallId {
        self.next_call += 1;
        CallId(self.next_call)
    }

    /// True when a data connection to the pod is up.
    pub fn is_up(&self, pod: PodId) -> bool {
        self.conn_to_pod(pod).is_some()
    }

    /// Finds the connections that must exist. Lanes that share a shard are connected, even lanes of
    /// one pod: a moved disk can bring a pod a second replica. For forwarded requests, the first
    /// disk of a pod (by id: both ends must agree) is connected to every disk of another pod. The
    /// view may name a disk here that has moved: no route begins at it if another of ours will do.
    pub fn update_view(&mut self, view: &ClusterView, changes: &[VolumeChange]) {
        if view.level > self.levels.cluster {
            self.levels.cluster = view.level;
            self.leave_older(view.level);
        }
        let places = (view.pods.clone(), view.disks.clone());
        let moved = self.places.as_ref() != Some(&places);
        if moved {
            self.places = None;
            view.disks.iter().for_each(|disk| self.seen.place(disk.disk, disk.pod));
            self.forget_unnamed(view);
        }
        let disks_of = |pod| view.disks.iter().filter(move |disk| disk.pod == pod);
        let first_of = |pod| disks_of(pod).map(|disk| disk.disk).min();
        let own = self.own;
        let front = self.locals.first().map(|local| local.disk).filter(|disk| is_front(*disk));
        let Some(first) = front.or_else(|| first_of(own)) else { return };
        let is_here = |disk| self.locals.iter().any(|local| local.disk == disk);
        let (mut gone, mut new) = (Vec::new(), Vec::new());
        match moved {
            true => {
                self.routes.clear();
                new.extend(&view.volumes);
            }
            false => {
                gone.extend(changes.iter().filter_map(|change| change.before.as_ref()));
                new.extend(changes.iter().filter_map(|change| change.now.as_ref()));
            }
        }
        for member in gone.iter().flat_map(|gone| &gone.shards).flat_map(|shard| &shard.members) {
            self.routes.remove(&member.member);
        }
        let mut pairs: FxHashSet<(Uuid, Uuid)> = FxHashSet::default();
        if moved {
            let mut firsts: FxHashMap<PodId, Uuid> = FxHashMap::default();
            for disk in &view.disks {
                let first = firsts.entry(disk.pod).or_insert(disk.disk);
                *first = disk.disk.min(*first);
            }
            for theirs in view.disks.iter().filter(|disk| disk.pod != own) {
                pairs.insert((first, theirs.disk));
                if firsts[&theirs.pod] == theirs.disk {
                    pairs.extend(disks_of(own).map(|ours| (ours.disk, theirs.disk)));
                }
            }
        }
        for shard in new.iter().flat_map(|volume| &volume.shards) {
            let ours = || shard.members.iter().filter(|member| member.pod == own);
            for member in &shard.members {
                let ours = || ours().map(|ours| ours.disk).filter(|disk| *disk != member.disk);
                pairs.extend(ours().map(|local| (local, member.disk)));
                let far = (member.pod != own).then_some(first);
                if let Some(local) = ours().find(|disk| is_here(*disk)).or(far) {
                    self.routes.insert(member.member, (local, member.disk));
                }
            }
        }
        if let Some(front) = front {
            pairs.clear();
            if moved {
                pairs.extend(fronts::pairs_of(front, own, view));
            }
        }
        for (local, remote) in pairs {
            let both = [Purpose::Data, Purpose::Resync];
            for purpose in both.into_iter().take(if front.is_some() { 1 } else { 2 }) {
                if moved || !self.wanted.contains_key(&(local, remote, purpose)) {
                    self.want(view, local, remote, purpose);
                }
            }
        }
        self.places = Some(places);
    }

    /// Leaves pods whose programs do not support this feature level, such as those on nodes that
    /// were declared lost (rule `level-after-all-pods`).
    fn leave_older(&mut self, level: Level) {
        let is_older = |conn: &Conn| conn.link.peer_newest().is_some_and(|newest| newest < level);
        let older = self.conns.iter().filter(|(_, conn)| is_older(conn));
        self.unwanted.extend(older.map(|(key, _)| *key));
    }

    /// Forgets disks that the view does not name any more, and the connections to them.
    fn forget_unnamed(&mut self, view: &ClusterView) {
        let fronts = view.pods.iter().map(|pod| front_of(pod.pod));
        let named = view.disks.iter().map(|disk| disk.disk).chain(fronts);
        let named: FxHashSet<Uuid> = named.collect();
        self.free_bytes.retain(|disk, _| named.contains(disk));
        let unwanted = &mut self.unwanted;
        self.wanted.retain(|(local, remote, _), wanted| {
            let stays = named.contains(local) && named.contains(remote);
            unwanted.extend(wanted.conn.filter(|_| !stays));
            stays
        });
    }

    fn want(&mut self, view: &ClusterView, local: Uuid, remote: Uuid, purpose: Purpose) {
        let Some(disk) = view.disks.iter().find(|disk| disk.disk == remote) else { return };
        let Some(pod) = view.pods.iter().find(|pod| pod.pod == disk.pod) else { return };
        let wanted = self.wanted.entry((local, remote, purpose)).or_insert(Wanted {
            pod: pod.pod,
            address: pod.peer,
            dials: local < remote || is_front(local),
            attempt: 0,
            next_attempt: Mono::default(),
            conn: None,
            up: false,
        });
        wanted.pod = pod.pod;
        wanted.address = pod.peer;
    }

    /// Takes a pod without lanes that has called, until the connection ends.
    fn admit_front(&mut self, (local, remote, purpose): Pair) {
        let Some((pods, _)) = &self.places else { return };
        let Some(PodView { pod, peer, .. }) = fronts::caller(pods, remote, purpose) else { return };
        self.wanted.entry((local, remote, purpose)).or_insert(Wanted {
            pod: *pod,
            address: *peer,
            dials: false,
            attempt: 0,
            next_attempt: Mono::default(),
            conn: None,
            up: false,
        });
    }

    fn nonce(&mut self, now: Mono) -> u64 {
        self.next_call += 1;
        mix64(now.0 ^ mix64(self.seed ^ self.next_call))
    }

    /// Bytes in the queue of each link.
    pub fn queues(&self) -> impl Iterator<Item = usize> {
        self.conns.values().map(|conn| conn.link.queue_bytes())
    }

    /// The connections that must exist, and whether they are up.
    pub fn links(&self) -> impl Iterator<Item = (Purpose, bool)> {
        self.wanted.iter().map(|((_, _, purpose), wanted)| (*purpose, wanted.up))
    }

    /// Promised answers of all links, in bytes, and questions that wait.
    pub fn owed(&self) -> (usize, usize) {
        let owed = self.conns.values().map(|conn| &conn.owed);
        owed.fold((0, 0), |(bytes, asks), owed| (bytes + owed.bytes(), asks + owed.waiting.len()))
    }

    /// Bytes that this lane of another pod can still allocate; `None` when it never said.
    pub fn free_bytes(&self, disk: Uuid) -> Option<u64> {
        self.free_bytes.get(&disk).copied()
    }

    /// The pod at the other end of a connection.
    pub fn pod_of(&self, conn: ConnKey) -> Option<PodId> {
        let pair = self.conns.get(&conn)?.pair?;
        self.wanted.get(&pair).map(|wanted| wanted.pod)
    }

    /// Every connection of a lane of ours that is up.
    pub fn conns_of(&self, local: Uuid) -> Vec<ConnKey> {
        let of = |((ours, _, _), wanted): (&Pair, &Wanted)| {
            wanted.conn.filter(|_| wanted.up && *ours == local)
        };
        self.wanted.iter().filter_map(of).collect()
    }

    /// The connections of this pod's front, if it has one. Nothing else keeps them from silence.
    pub fn front_conns(&self) -> Vec<ConnKey> {
        let fronts = self.locals.iter().map(|local| local.disk).filter(|disk| is_front(*disk));
        fronts.flat_map(|front| self.conns_of(front)).collect()
    }

    fn conn_to(&self, member: MemberId, purpose: Purpose) -> Option<ConnKey> {
        let (local, remote) = *self.routes.get(&member)?;
        self.wanted.get(&(local, remote, purpose)).filter(|wanted| wanted.up)?.conn
    }

    /// True when the link to a member is up and at most half full. There is room for entries that
    /// are read back from the log, and they leave room for new ones.
    pub fn has_room_for(&self, member: MemberId) -> bool {
        let conn = self.conn_to(member, Purpose::Data);
        let state = conn.and_then(|conn| self.conns.get(&conn));
        state.is_some_and(|state| state.link.queue_bytes() <= self.link_bytes_max / 2)
    }

    /// The first data connection to a pod, of any lanes, in an order that is the same in every run.
    fn conn_to_pod(&self, pod: PodId) -> Option<ConnKey> {
        let leads_there = |((_, _, purpose), wanted): &(&Pair, &Wanted)| {
            wanted.up && wanted.pod == pod && *purpose == Purpose::Data
        };
        let mut there: Vec<_> = self.wanted.iter().filter(leads_there).collect();
        there.sort_unstable_by_key(|((local, remote, _), _)| (*local, *remote));
        there.first()?.1.conn
    }

    /// Promises an answer of this size on a connection. False: there is no room for it.
    pub fn promise(&mut self, conn: ConnKey, bytes: usize) -> bool {
        let Some(state) = self.conns.get_mut(&conn) else { return false };
        let has_room = state.owed.has_room(bytes, state.link.queue_bytes(), self.link_bytes_max);
        if has_room {
            state.owed.promise(bytes);
        }
        has_room
    }

    /// Ends a promise: the answer goes to the link now, or will never be.
    pub fn answered(&mut self, conn: ConnKey, bytes: usize) {
        if let Some(state) = self.conns.get_mut(&conn) {
            state.owed.answered(bytes);
        }
    }

    /// Queues a question for an extent whose answer has no room. False: too many wait.
    pub fn wait(&mut self, conn: ConnKey, ask: ExtentAsk) -> bool {
        let Some(state) = self.conns.get_mut(&conn) else { return true };
        let has_room = state.owed.waiting.len() < EXTENT_ASKS_MAX;
        if has_room {
            state.owed.waiting.push_back(ask);
        }
        has_room
    }

    /// The question that has waited longest, when there is room for its answer.
    pub fn next_ask(&mut self, conn: ConnKey) -> Option<ExtentAsk> {
        let state = self.conns.get_mut(&conn)?;
        let queued_bytes = state.link.queue_bytes();
        let has_room = state.owed.has_room(EXTENT_BYTES, queued_bytes, self.link_bytes_max);
        if has_room { state.owed.waiting.pop_front() } else { None }
    }

    fn touch(&mut self, conn: ConnKey) {
        if let Some(state) = self.conns.get_mut(&conn)
            && !state.touched
        {
            state.touched = true;
            self.touched.push(conn);
        }
    }

    fn add(
        &mut self,
        link: Link,
        socket: Option<SocketId>,
        pair: Option<Pair>,
        at: Mono,
    ) -> ConnKey {
        let link = link.with_queue_bytes_max(self.link_bytes_max);
        let (touched, owed) = (false, Owed::default());
        let mut conn = Conn { stream: None, link, pair, touched, heard: at, owed };
        if let Some(socket) = socket {
            let channel = self.tls.as_ref().map(|tls| tls.called(self.pool.clone()));
            conn.connected(socket, self.pool.clone(), channel);
        }
        self.next_conn += 1;
        self.conns.insert(self.next_conn, conn);
        self.next_conn
    }

    /// Notes the free space that another pod announces for one of its lanes.
    pub fn space_told(&mut self, conn: ConnKey, free_bytes: u64) {
        let pair = self.conns.get(&conn).and_then(|state| state.pair);
        // Behind the extents of a resync it may have waited for long.
        if let Some((_, remote, Purpose::Data)) = pair {
            self.free_bytes.insert(remote, free_bytes);
        }
    }

    fn flush(&mut self, driver: &mut dyn Driver, conn: ConnKey) {
        let Some(state) = self.conns.get_mut(&conn) else { return };
        state.touched = false;
        let Some(stream) = &mut state.stream else { return };
        if !stream.has_output() {
            stream.queue(state.link.take_output());
        }
        stream.send(driver, Target::PeerSend(conn).token());
        stream.receive(driver, Target::PeerRecv(conn).token());
    }

    /// Like [`Peers::submit`], for the first link that changed.
    pub fn submit_first(&mut self, driver: &mut dyn Driver) {
        if !self.touched.is_empty() {
            let conn = self.touched.remove(0);
            self.flush(driver, conn);
        }
    }

    /// Starts sends and receives of every link that changed.
    pub fn submit(&mut self, driver: &mut dyn Driver) {
        for conn in std::mem::take(&mut self.touched) {
            self.flush(driver, conn);
        }
    }
}

/// Resyncs have their own connections, so that client data does not wait behind extents.
fn purpose_of(message: &PeerMessage) -> Purpose {
    match message {
        PeerMessage::ManifestRequest { .. }
        | PeerMessage::Manifest { .. }
        | PeerMessage::ExtentRequest { .. }
        | PeerMessage::Extent { .. } => Purpose::Resync,
        _ => Purpose::Data,
    }
}

/// The links, and the parts that they call.
pub struct PeerHandler<'a> {
    pub now: Mono,
    pub driver: &'a mut dyn Driver,
    pub peers: &'a mut Peers,
    pub routers: &'a mut Routers,
    pub members: &'a mut Members,
}

impl PeerHandler<'_> {
    /// Sends to a member of another pod. False: there is no connection, and the message is dropped.
    /// Raft and resync ask again.
    pub fn send_to(&mut self, member: MemberId, message: PeerMessage) -> bool {
        let conn = self.peers.conn_to(member, purpose_of(&message));
        if let Some(conn) = conn {
            self.send_on(conn, message);
        }
        conn.is_some()
    }

    pub fn send_raft(&mut self, message: Message) {
        let to = MemberId(message.to);
        let goes_first = raft_message::may_overtake(&message);
        let Some(conn) = self.peers.conn_to(to, Purpose::Data) else { return };
        let (header, payloads) = raft_message::split(message);
        let message = PeerMessage::Raft { to, header, payloads };
        match goes_first {
            true => self.send(conn, message, Link::send_first),
            false => self.send(conn, message, Link::send),
        }
    }

    /// Offers rest to all other voters of a leader here. Returns the connections to them; `None`:
    /// not all can be reached, and the leader stays awake.
    pub fn offer_rest(&mut self, offer: &Rest) -> Option<Vec<(ConnKey, MemberId)>> {
        let Rest { leader: from, term, index } = *offer;
        let peers = &self.members.get(from)?.peers;
        let conn_to = |peer: &MemberView| {
            Some((self.peers.conn_to(peer.member, Purpose::Data)?, peer.member))
        };
        let others = peers.iter().map(conn_to).collect::<Option<Vec<(ConnKey, MemberId)>>>()?;
        for (conn, to) in &others {
            self.send_on(*conn, PeerMessage::Rest { to: *to, from, term, index });
        }
        // Followers that took the offer hear no beat, and wake.
        let all_there = others.iter().all(|(conn, _)| self.peers.conns.contains_key(conn));
        all_there.then_some(others)
    }

    /// Sends on a connection, if it is still there.
    pub fn send_on(&mut self, conn: ConnKey, message: PeerMessage) {
        self.send(conn, message, Link::send);
    }

    fn send(
        &mut self,
        conn: ConnKey,
        message: PeerMessage,
        send: impl FnOnce(&mut Link, PeerMessage) -> Result<(), SendError>,
    ) {
        let Some(state) = self.peers.conns.get_mut(&conn) else { return };
        match send(&mut state.link, message) {
            Ok(()) | Err(SendError::Dropped) => self.peers.touch(conn),
            Err(SendError::NotUp | SendError::Busy) => {}
            Err(error) => {
                let pod = self.peers.pod_of(conn);
                self.peers.complaints.warn(self.now, pod, &error);
                self.close(conn);
            }
        }
    }

    /// Sends a router's request to the pod of a member.
    pub fn forward(&mut self, call: CallId, asker: Asker, to: MemberView, request: PeerMessage) {
        // The usual lane may be gone before the catalog knows; any lane there finds the member.
        let usual = self.peers.conn_to(to.member, Purpose::Data);
        let conn = usual.or_else(|| self.peers.conn_to_pod(to.pod));
        let state = conn.and_then(|conn| Some((conn, self.peers.conns.get_mut(&conn)?)));
        let sent = state.map(|(conn, state)| state.link.send(request).map(|()| conn));
        let refused = match sent {
            Some(Ok(conn)) => {
                let (member, since) = (to.member, self.now);
                let forwarded = Forwarded { conn, asker, member, since };
                self.routers.forwarded.insert(call, forwarded);
                return self.peers.touch(conn);
            }
            // The leader is as good as before; only the way to it is full.
            Some(Err(SendError::Busy)) if !planted!(CongestionIsNoLeader) => BlockError::Busy,
            _ => BlockError::NotLeader { hint: None, term: 0 },
        };
        self.routers.answered(self.now, asker, to.member, 0, Err(refused));
    }

    /// Answers a request once: to a router here, or to another pod.
    pub fn answer(&mut self, req: ReqId, result: Answer) {
        let Some(request) = self.members.requests.take(req) else { return };
        if result.is_ok() {
            self.members.note_done(self.now, &request);
        }
        let Waiting { member, waiter, .. } = request;
        let term = self.members.role_of(member).term;
        match waiter {
            Waiter::Volume(asker) => {
                self.routers.answered(self.now, asker, member, term, result);
            }
            Waiter::Peer { conn, call, owed_bytes } => {
                self.peers.answered(conn, owed_bytes);
                self.send_on(conn, PeerMessage::Response { call, term, result });
            }
        }
    }

    /// Takes a member out of service. Its open requests are answered with `Unknown`.
    pub fn stop_member(&mut self, member: MemberId, reason: String) {
        if let Some(runtime) = self.members.get_mut(member) {
            runtime.faulted = Some(reason);
            runtime.role = Default::default();
        }
        self.members.wake(self.now, member);
        for req in self.members.requests.of_member(member) {
            self.answer(req, Err(BlockError::Unknown));
        }
    }

    /// Closes silent links, and dials those that must exist and are not up.
    pub fn tick(&mut self) {
        let now = self.now;
        for conn in std::mem::take(&mut self.peers.unwanted) {
            tracing::info!("a link is closed: its disks are not part of the cluster any more");
            self.close(conn);
        }
        let silent = |(conn, state): (&ConnKey, &Conn)| {
            let kept = state.pair.is_some_and(|(_, _, purpose)| purpose == Purpose::Resync)
                && planted!(DeadResyncLinkKept);
            (!kept && now.since(state.heard) > SILENCE).then_some(*conn)
        };
        let silent: Vec<ConnKey> = self.peers.conns.iter().filter_map(silent).collect();
        for conn in silent {
            self.give_up(conn, EndReason::Silent);
        }
        for conn in self.peers.handshakes.overdue(now) {
            self.give_up(conn, EndReason::HandshakeLate);
        }
        self.cut_void();
        let is_due = |(_, wanted): &(&Pair, &Wanted)| {
            wanted.dials && wanted.conn.is_none() && now >= wanted.next_attempt
        };
        let due = self.peers.wanted.iter().filter(is_due);
        let due: Vec<Pair> = due.map(|(pair, _)| *pair).collect();
        due.into_iter().for_each(|pair| self.dial(pair));
    }

    /// Ends links whose certificates are void by now. Each is made anew if it may.
    fn cut_void(&mut self) {
        let Some(tls) = &mut self.peers.tls else { return };
        if !tls.has_new_trust() {
            return;
        }
        let void = self.peers.conns.iter();
        let void = void.filter_map(|(conn, state)| Some((*conn, state.void_by(tls.trust())?)));
        let void: Vec<_> = void.collect();
        for (conn, error) in void {
            self.give_up(conn, EndReason::CertificateVoid(error));
        }
    }

    fn dial(&mut self, pair: Pair) {
        let (local, remote, purpose) = pair;
        let nonce = self.peers.nonce(self.now);
        let Some(identity) = self.peers.locals.iter().find(|own| own.disk == local) else { return };
        let wanted = &self.peers.wanted[&pair];
        let target = LaneTarget { pod: wanted.pod, disk: remote, lane: 0 };
        let connect = Op::Connect { address: Address::Tcp(wanted.address) };
        let link = Link::dial(*identity, self.peers.levels, target, purpose, nonce);
        let conn = self.peers.add(link, None, Some(pair), self.now);
        // We open few: it counts for no cap.
        self.peers.handshakes.dialled(self.now, conn);
        self.peers.wanted.entry(pair).and_modify(|wanted| wanted.conn = Some(conn));
        self.driver.submit(Target::PeerConnect(conn).token(), connect);
    }

    pub fn connected(&mut self, conn: ConnKey, completion: Completion) {
        match (self.peers.conns.get_mut(&conn), completion.result) {
            (Some(state), Ok(Done::Connected(socket))) => {
                let channel = self.peers.tls.as_ref().map(|tls| tls.dial(self.peers.pool.clone()));
                state.connected(socket, self.peers.pool.clone(), channel);
                self.peers.touch(conn);
            }
            (None, Ok(Done::Connected(socket))) => {
                self.driver.submit(Target::Closed.token(), Op::Close { socket });
            }
            _ => self.close(conn),
        }
    }

    /// Another pod has dialled.
    pub fn accepted(&mut self, socket: SocketId) {
        let nonce = self.peers.nonce(self.now);
        let link = Link::accept(self.peers.locals.clone(), self.peers.levels, nonce);
        let conn = self.peers.add(link, Some(socket), None, self.now);
        self.peers.touch(conn);
        let source = self.driver.source(socket);
        if let Some(oldest) = self.peers.handshakes.begin(self.now, conn, source) {
            self.give_up(oldest, EndReason::HandshakesFull);
        }
    }

    /// Closes a connection that brings nothing.
    fn give_up(&mut self, conn: ConnKey, reason: EndReason) {
        let pod = self.peers.pod_of(conn);
        self.peers.complaints.warn(self.now, pod, &reason);
        self.close(conn);
    }

    /// A receive ended; its messages are in `events` now. After an error the caller ends the link.
    pub fn received(
        &mut self,
        conn: ConnKey,
        completion: Completion,
        events: &mut Vec<LinkEvent>,
    ) -> Result<(), ReceiveError> {
        let Some(state) = self.peers.conns.get_mut(&conn) else { return Ok(()) };
        let Some(stream) = &mut state.stream else { return Ok(()) };
        let (Ok(Done::Bytes(count @ 1..)), Buffers::Recv(bufs)) =
            (completion.result, completion.buffers)
        else {
            self.close(conn);
            return Ok(());
        };
        stream.received(bufs, count);
        state.heard = self.now;
        let fed = state.feed(&mut self.peers.seen, events);
        self.peers.touch(conn);
        fed
    }

    /// Ends a link that broke the protocol, and sends first what tells the other pod why.
    pub fn end(&mut self, conn: ConnKey, error: &dyn std::error::Error) {
        let pod = self.peers.pod_of(conn);
        self.members.meters.link_errors.add(1);
        self.peers.complaints.warn(self.now, pod, error);
        self.peers.flush(self.driver, conn);
        self.close(conn);
    }

    /// A handshake ended.
    pub fn up(&mut self, conn: ConnKey, established: &Established) {
        let Established { local, peer, purpose, .. } = established;
        let pair = (local.disk, peer.disk, *purpose);
        // It may have become void during the handshake.
        let trust = self.peers.tls.as_ref().map(WorkerTls::trust);
        let state = self.peers.conns.get(&conn);
        if let Some(error) = state.zip(trust).and_then(|(state, trust)| state.void_by(trust)) {
            return self.give_up(conn, EndReason::CertificateVoid(error));
        }
        self.peers.admit_front(pair);
        let Some(wanted) = self.peers.wanted.get_mut(&pair) else {
            // The view that names this pair is still to come; the dialer tries again.
            return self.close(conn);
        };
        tracing::info!(pod = %peer.pod, %purpose, "link up");
        self.members.meters.links[link_purpose(*purpose) as usize].ups.add(1);
        self.peers.handshakes.end(conn);
        wanted.attempt = 0;
        wanted.up = true;
        let older = wanted.conn.replace(conn).filter(|older| *older != conn);
        if let Some(state) = self.peers.conns.get_mut(&conn) {
            state.pair = Some(pair);
        }
        if let Some(older) = older {
            self.close(older);
        }
    }

    pub fn sent(&mut self, conn: ConnKey, completion: &Completion) {
        let Some(state) = self.peers.conns.get_mut(&conn) else { return };
        let Some(stream) = &mut state.stream else { return };
        stream.sent();
        match completion.result {
            Ok(_) => self.peers.touch(conn),
            Err(_) => self.close(conn),
        }
    }

    fn close(&mut self, conn: ConnKey) {
        let Some(state) = self.peers.conns.remove(&conn) else { return };
        self.peers.handshakes.end(conn);
        if let Some(stream) = state.stream {
            let close = Op::Close { socket: stream.socket };
            self.driver.submit(Target::Closed.token(), close);
        }
        let mut lost = None;
        if let Some(wanted) = state.pair.and_then(|pair| self.peers.wanted.get_mut(&pair))
            && wanted.conn == Some(conn)
        {
            wanted.conn = None;
            let seed = self.peers.seed ^ wanted.pod.0;
            wanted.next_attempt = self.now + reconnect_pause(seed, wanted.attempt);
            wanted.attempt = wanted.attempt.saturating_add(1);
            if std::mem::take(&mut wanted.up) {
                tracing::info!(pod = %wanted.pod, "link down");
                lost = state.pair;
            }
        }
        self.routers.link_ended(self.now, conn);
        self.members.wake_conn(self.now, conn);
        if let Some(pair @ (_, _, purpose)) = lost {
            if is_front(pair.1) {
                self.peers.wanted.remove(&pair);
            }
            self.members.meters.links[link_purpose(purpose) as usize].losses.add(1);
        }
        if let Some((_, remote, Purpose::Data)) = lost {
            self.members.unreachable(self.now, remote);
        }
    }
}

#[cfg(test)]
#[path = "peers_test.rs"]
mod tests;
