//! Links to other pods: which ones ought to exist, and their connections.
//!
//! [`Peers`] owns the links and what they owe. Calls: the driver. Told: views, ends of operations,
//! and what is to be sent. Whoever closes one tells the others of it: see `delivery`.

use std::net::SocketAddr;
use std::time::Duration;

use rustc_hash::FxHashMap;

use crate::io::buffer::Pool;
use crate::io::driver::{Address, Buffers, Completion, Done, Driver, Op, SocketId};
use crate::net::backoff::reconnect_pause;
use crate::net::handshake::{Identity, Purpose};
use crate::net::incarnations::Incarnations;
use crate::net::link::{Established, Link, LinkError, LinkEvent, SendError, Target as LaneTarget};
use crate::net::message::{CallId, PeerMessage};
use crate::planted::{Mistake, planted};
use crate::types::{EXTENT_BYTES, MemberId, Mono, PodId, Uuid, mix64};
use crate::view::{ClusterView, MemberView};
use crate::worker::config::WorkerConfig;
use crate::worker::owed::{ExtentAsk, Owed};
use crate::worker::stream::Stream;
use crate::worker::token::{ConnId, Target};

/// A connection on which nothing came for this long is dead.
const SILENCE: Duration = Duration::from_secs(5);

/// A pair of lanes, ours first, and what the connection is for.
type Pair = (Uuid, Uuid, Purpose);

/// A connection that ought to exist.
struct Wanted {
    pod: PodId,
    address: SocketAddr,
    /// Of the two lanes, the one with the smaller identity makes the connection.
    dials: bool,
    attempt: u32,
    next_attempt: Mono,
    /// The connection, also while it is being made.
    conn: Option<ConnId>,
    up: bool,
}

struct Conn {
    /// Absent while it is being made.
    stream: Option<Stream>,
    link: Link,
    pair: Option<Pair>,
    dirty: bool,
    /// When something last arrived.
    heard: Mono,
    owed: Owed,
}

/// Why nothing more comes over a connection.
pub enum ReceiveError {
    Closed,
    /// What came is not what a pod says; the link may still have to say so.
    Link(LinkError),
}

/// Every link of a worker.
pub struct Peers {
    pool: Pool,
    seed: u64,
    own: PodId,
    /// Frames that may wait to leave on one link.
    link_bytes_max: usize,
    locals: Vec<Identity>,
    seen: Incarnations,
    wanted: FxHashMap<Pair, Wanted>,
    conns: FxHashMap<ConnId, Conn>,
    dirty: Vec<ConnId>,
    /// Where members live that are reached by a link: (our lane, their lane).
    routes: FxHashMap<MemberId, (Uuid, Uuid)>,
    /// What lanes of other pods can still allocate, as they last said.
    free_bytes: FxHashMap<Uuid, u64>,
    next_conn: ConnId,
    next_call: u64,
}

impl Peers {
    pub fn new(config: &WorkerConfig, pool: Pool) -> Peers {
        Peers {
            pool,
            seed: config.seed,
            own: config.pod,
            link_bytes_max: config.budgets.link_bytes,
            locals: Vec::new(),
            seen: Incarnations::default(),
            wanted: FxHashMap::default(),
            conns: FxHashMap::default(),
            dirty: Vec::new(),
            routes: FxHashMap::default(),
            free_bytes: FxHashMap::default(),
            next_conn: 0,
            next_call: 0,
        }
    }

    /// A lane of this worker can be called and calls.
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
        self.wanted.iter().any(|((_, _, purpose), wanted)| {
            wanted.up && wanted.pod == pod && *purpose == Purpose::Data
        })
    }

    /// Which connections ought to exist: between lanes that share a shard, and from the first disk
    /// of a pod (by its id: both ends must agree) to every disk of another, for forwarded requests.
    /// A disk that was moved can bring a pod a second replica of a shard: their lanes are connected
    /// like those of different pods. The view may have a disk here that is elsewhere by now: no way
    /// to others begins at it while one of ours can take its place.
    pub fn update_view(&mut self, view: &ClusterView) {
        for disk in &view.disks {
            self.seen.place(disk.disk, disk.pod);
        }
        let disks_of = |pod| view.disks.iter().filter(move |disk| disk.pod == pod);
        let first_of = |pod| disks_of(pod).map(|disk| disk.disk).min();
        let own = self.own;
        let Some(first) = first_of(own) else { return };
        let is_here = |disk| self.locals.iter().any(|local| local.disk == disk);
        self.routes.clear();
        let mut pairs: Vec<(Uuid, Uuid)> = Vec::new();
        for theirs in view.disks.iter().filter(|disk| disk.pod != own) {
            pairs.push((first, theirs.disk));
            if first_of(theirs.pod) == Some(theirs.disk) {
                pairs.extend(disks_of(own).map(|ours| (ours.disk, theirs.disk)));
            }
        }
        for shard in view.volumes.iter().flat_map(|volume| &volume.shards) {
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
        for (local, remote) in pairs {
            for purpose in [Purpose::Data, Purpose::Resync] {
                self.want(view, local, remote, purpose);
            }
        }
    }

    fn want(&mut self, view: &ClusterView, local: Uuid, remote: Uuid, purpose: Purpose) {
        let Some(disk) = view.disks.iter().find(|disk| disk.disk == remote) else { return };
        let Some(pod) = view.pods.iter().find(|pod| pod.pod == disk.pod) else { return };
        let wanted = self.wanted.entry((local, remote, purpose)).or_insert(Wanted {
            pod: pod.pod,
            address: pod.peer,
            dials: local < remote,
            attempt: 0,
            next_attempt: Mono::default(),
            conn: None,
            up: false,
        });
        wanted.pod = pod.pod;
        wanted.address = pod.peer;
    }

    fn nonce(&mut self, now: Mono) -> u64 {
        self.next_call += 1;
        mix64(now.0 ^ mix64(self.seed ^ self.next_call))
    }

    /// What waits to leave on the link that has most of it.
    pub fn queue_bytes_max(&self) -> usize {
        self.conns.values().map(|conn| conn.link.queue_bytes()).max().unwrap_or(0)
    }

    /// What all links are owed, in bytes, and the questions that wait.
    pub fn owed(&self) -> (usize, usize) {
        let owed = self.conns.values().map(|conn| &conn.owed);
        owed.fold((0, 0), |(bytes, asks), owed| (bytes + owed.bytes(), asks + owed.waiting.len()))
    }

    /// What this lane of another pod can still allocate; `None` when it never said.
    pub fn free_bytes(&self, disk: Uuid) -> Option<u64> {
        self.free_bytes.get(&disk).copied()
    }

    /// The pod at the other end of a connection.
    pub fn pod_of(&self, conn: ConnId) -> Option<PodId> {
        let pair = self.conns.get(&conn)?.pair?;
        self.wanted.get(&pair).map(|wanted| wanted.pod)
    }

    /// Every connection of a lane of ours that is up.
    pub fn conns_of(&self, local: Uuid) -> Vec<ConnId> {
        let of = |((ours, _, _), wanted): (&Pair, &Wanted)| {
            wanted.conn.filter(|_| wanted.up && *ours == local)
        };
        self.wanted.iter().filter_map(of).collect()
    }

    fn conn_to(&self, member: MemberId, purpose: Purpose) -> Option<ConnId> {
        let (local, remote) = *self.routes.get(&member)?;
        self.conn_of((local, remote, purpose))
    }

    /// A data connection to a pod, whichever of its lanes and of ours it joins: the first, in an
    /// order that every run has.
    fn conn_to_pod(&self, pod: PodId) -> Option<ConnId> {
        let leads_there = |((_, _, purpose), wanted): &(&Pair, &Wanted)| {
            wanted.up && wanted.pod == pod && *purpose == Purpose::Data
        };
        let mut there: Vec<_> = self.wanted.iter().filter(leads_there).collect();
        there.sort_unstable_by_key(|((local, remote, _), _)| (*local, *remote));
        there.first()?.1.conn
    }

    fn conn_of(&self, pair: Pair) -> Option<ConnId> {
        self.wanted.get(&pair).filter(|wanted| wanted.up)?.conn
    }

    /// Promises an answer with so much data on a connection, if there is room for it.
    pub fn promise(&mut self, conn: ConnId, bytes: usize) -> bool {
        let Some(state) = self.conns.get_mut(&conn) else { return false };
        let has_room = state.owed.has_room(bytes, state.link.queue_bytes(), self.link_bytes_max);
        if has_room {
            state.owed.promise(bytes);
        }
        has_room
    }

    /// An answer that was promised is handed to the link now, or will never be.
    pub fn answered(&mut self, conn: ConnId, bytes: usize) {
        if let Some(state) = self.conns.get_mut(&conn) {
            state.owed.answered(bytes);
        }
    }

    /// A question for an extent that there is no room for.
    pub fn wait(&mut self, conn: ConnId, ask: ExtentAsk) {
        if let Some(state) = self.conns.get_mut(&conn) {
            state.owed.waiting.push_back(ask);
        }
    }

    /// The question that waits longest, when there is room for its answer.
    pub fn next_ask(&mut self, conn: ConnId) -> Option<ExtentAsk> {
        let state = self.conns.get_mut(&conn)?;
        let queued_bytes = state.link.queue_bytes();
        let has_room = state.owed.has_room(EXTENT_BYTES, queued_bytes, self.link_bytes_max);
        if has_room { state.owed.waiting.pop_front() } else { None }
    }

    fn mark(&mut self, conn: ConnId) {
        if let Some(state) = self.conns.get_mut(&conn)
            && !state.dirty
        {
            state.dirty = true;
            self.dirty.push(conn);
        }
    }

    /// The connection to the lane of a member of another pod that a message belongs on.
    pub fn way_to(&self, member: MemberId, message: &PeerMessage) -> Option<ConnId> {
        self.conn_to(member, purpose_of(message))
    }

    /// Sends on a connection, if it is still there. After an error it is to be closed.
    pub fn send(&mut self, conn: ConnId, message: PeerMessage) -> Result<(), SendError> {
        let Some(state) = self.conns.get_mut(&conn) else { return Ok(()) };
        match state.link.send(message) {
            Ok(()) | Err(SendError::Dropped) => self.mark(conn),
            Err(SendError::NotUp | SendError::Busy) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Sends a router's request to the pod of a member; the connection, if one takes it.
    pub fn forward(&mut self, to: MemberView, request: PeerMessage) -> Option<ConnId> {
        // The lane that the way begins at may be gone, and the catalog not know of it yet; whoever
        // is at the other end finds the member.
        let usual = self.conn_to(to.member, Purpose::Data);
        let conn = usual.or_else(|| self.conn_to_pod(to.pod))?;
        self.conns.get_mut(&conn)?.link.send(request).ok()?;
        self.mark(conn);
        Some(conn)
    }

    /// Connections that are dead.
    pub fn silent(&self, now: Mono) -> Vec<ConnId> {
        let silent = |(conn, state): (&ConnId, &Conn)| {
            let kept = state.pair.is_some_and(|(_, _, purpose)| purpose == Purpose::Resync)
                && planted(Mistake::DeadResyncLinkKept);
            (!kept && now.since(state.heard) > SILENCE).then_some(*conn)
        };
        self.conns.iter().filter_map(silent).collect()
    }

    /// Dials what ought to be up and is not.
    pub fn dial_due(&mut self, now: Mono, driver: &mut dyn Driver) {
        let due = |wanted: &Wanted| {
            wanted.dials && wanted.conn.is_none() && now >= wanted.next_attempt
        };
        let due: Vec<Pair> =
            self.wanted.iter().filter(|(_, wanted)| due(wanted)).map(|(pair, _)| *pair).collect();
        for pair in due {
            self.dial(now, driver, pair);
        }
    }

    fn dial(&mut self, now: Mono, driver: &mut dyn Driver, pair: Pair) {
        let (local, remote, purpose) = pair;
        let nonce = self.nonce(now);
        let Some(identity) = self.locals.iter().find(|own| own.disk == local) else { return };
        let Some(wanted) = self.wanted.get_mut(&pair) else { return };
        let target = LaneTarget { pod: wanted.pod, disk: remote, lane: 0 };
        let link = Link::dial(*identity, target, purpose, nonce);
        let connect = Op::Connect { address: Address::Tcp(wanted.address) };
        self.next_conn += 1;
        let conn = self.next_conn;
        wanted.conn = Some(conn);
        self.add(now, conn, link, None, Some(pair));
        driver.submit(Target::PeerConnect(conn).token(), connect);
    }

    fn add(
        &mut self,
        now: Mono,
        conn: ConnId,
        link: Link,
        socket: Option<SocketId>,
        pair: Option<Pair>,
    ) {
        let stream = socket.map(|socket| Stream::new(socket, self.pool.clone()));
        let link = link.with_queue_bytes_max(self.link_bytes_max);
        let owed = Owed::default();
        self.conns.insert(conn, Conn { stream, link, pair, dirty: false, heard: now, owed });
    }

    /// Another pod calls.
    pub fn accepted(&mut self, now: Mono, socket: SocketId) {
        let nonce = self.nonce(now);
        self.next_conn += 1;
        let conn = self.next_conn;
        let link = Link::accept(self.locals.clone(), nonce);
        self.add(now, conn, link, Some(socket), None);
        self.mark(conn);
    }

    /// A connection was made; false when it was not, and is to be closed.
    pub fn connected(
        &mut self,
        driver: &mut dyn Driver,
        conn: ConnId,
        completion: Completion,
    ) -> bool {
        let Ok(Done::Connected(socket)) = completion.result else { return false };
        match self.conns.get_mut(&conn) {
            Some(state) => {
                state.stream = Some(Stream::new(socket, self.pool.clone()));
                self.mark(conn);
            }
            None => driver.submit(Target::Closed.token(), Op::Close { socket }),
        }
        true
    }

    /// Something came. After an error, and after `events`, the connection is to be closed.
    pub fn received(
        &mut self,
        now: Mono,
        conn: ConnId,
        completion: Completion,
        events: &mut Vec<LinkEvent>,
    ) -> Result<(), ReceiveError> {
        let Some(state) = self.conns.get_mut(&conn) else { return Ok(()) };
        let Some(stream) = &mut state.stream else { return Ok(()) };
        let (Ok(Done::Bytes(count @ 1..)), Buffers::Recv(bufs)) =
            (completion.result, completion.buffers)
        else {
            return Err(ReceiveError::Closed);
        };
        stream.received(bufs, count);
        state.heard = now;
        let fed = state.link.feed(&mut stream.reader, &mut self.seen, events);
        self.mark(conn);
        fed.map_err(ReceiveError::Link)
    }

    /// A handshake ended. Gives the connection that is to be closed: the older one between these
    /// lanes, or this one.
    pub fn up(&mut self, conn: ConnId, established: &Established) -> Option<ConnId> {
        let Established { local, peer, purpose, .. } = established;
        let pair = (local.disk, peer.disk, *purpose);
        // The view that makes it wanted may still be on its way; the dialer tries again.
        let Some(wanted) = self.wanted.get_mut(&pair) else { return Some(conn) };
        tracing::info!(pod = %peer.pod, ?purpose, "link up");
        wanted.attempt = 0;
        wanted.up = true;
        let older = wanted.conn.replace(conn).filter(|older| *older != conn);
        if let Some(state) = self.conns.get_mut(&conn) {
            state.pair = Some(pair);
        }
        older
    }

    /// A send ended; false when it failed, and the connection is to be closed.
    pub fn sent(&mut self, conn: ConnId, completion: &Completion) -> bool {
        let state = self.conns.get_mut(&conn);
        let Some(stream) = state.and_then(|state| state.stream.as_mut()) else { return true };
        stream.sent();
        if completion.result.is_ok() {
            self.mark(conn);
        }
        completion.result.is_ok()
    }

    /// Ends a connection. Gives the other pod's disk when it was the data connection to it.
    pub fn close(&mut self, now: Mono, driver: &mut dyn Driver, conn: ConnId) -> Option<Uuid> {
        let state = self.conns.remove(&conn)?;
        if let Some(stream) = state.stream {
            driver.submit(Target::Closed.token(), Op::Close { socket: stream.socket });
        }
        let pair @ (_, remote, purpose) = state.pair?;
        let wanted = self.wanted.get_mut(&pair).filter(|wanted| wanted.conn == Some(conn))?;
        wanted.conn = None;
        let pause = reconnect_pause(self.seed ^ wanted.pod.0, wanted.attempt);
        wanted.next_attempt = now + pause;
        wanted.attempt = wanted.attempt.saturating_add(1);
        if !std::mem::take(&mut wanted.up) {
            return None;
        }
        tracing::info!(pod = %wanted.pod, "link down");
        (purpose == Purpose::Data).then_some(remote)
    }

    /// The other pod says how much one of its lanes can still allocate.
    pub fn space_told(&mut self, conn: ConnId, free_bytes: u64) {
        let pair = self.conns.get(&conn).and_then(|state| state.pair);
        // Among the extents of a resync it may have waited for long.
        if let Some((_, remote, Purpose::Data)) = pair {
            self.free_bytes.insert(remote, free_bytes);
        }
    }

    pub fn flush(&mut self, driver: &mut dyn Driver, conn: ConnId) {
        let Some(state) = self.conns.get_mut(&conn) else { return };
        state.dirty = false;
        let Some(stream) = &mut state.stream else { return };
        if !stream.has_output() {
            stream.queue(state.link.take_output());
        }
        stream.send(driver, Target::PeerSend(conn).token());
        stream.receive(driver, Target::PeerRecv(conn).token());
    }

    /// Starts sends and receives of every link that changed.
    pub fn submit(&mut self, driver: &mut dyn Driver) {
        for conn in std::mem::take(&mut self.dirty) {
            self.flush(driver, conn);
        }
    }
}

/// Resync has connections of its own, so that it does not stand before client data.
fn purpose_of(message: &PeerMessage) -> Purpose {
    match message {
        PeerMessage::ManifestRequest { .. }
        | PeerMessage::Manifest { .. }
        | PeerMessage::ExtentRequest { .. }
        | PeerMessage::Extent { .. } => Purpose::Resync,
        _ => Purpose::Data,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Budgets;
    use crate::replica::seam::ReadMode;
    use crate::types::{ShardId, VolumeId};
    use crate::view::{DiskView, PodView, ShardView, VolumeView};

    /// A pod that has the disks that the view says, but for one.
    fn peers_of(pod: u64, view: &ClusterView, gone: Option<Uuid>) -> Peers {
        let config = WorkerConfig {
            cluster: view.cluster,
            pod: PodId(pod),
            seed: pod,
            log_tail_bytes: 0,
            leaders_follow_clients: false,
            reads: ReadMode::Lease,
            budgets: Budgets::default(),
        };
        let mut peers = Peers::new(&config, Pool::default());
        let here = view.disks.iter().filter(|disk| disk.pod.0 == pod && Some(disk.disk) != gone);
        for disk in here {
            let DiskView { disk, pod } = *disk;
            peers.add_local(Identity { cluster: view.cluster, pod, disk, lane: 0, incarnation: 1 });
        }
        peers.update_view(view);
        peers
    }

    /// Disks are given by the pod they are in; every three of them in a row have a shard.
    fn view(pods_of_disks: &[u64]) -> ClusterView {
        let address: SocketAddr = "127.0.0.1:1".parse().expect("an address");
        let disk = |number: usize| Uuid([number as u8 + 1; 16]);
        let member = |shard: usize, replica: usize| {
            let at = (shard + replica) % pods_of_disks.len();
            let member = MemberId((shard * 3 + replica) as u64 + 1);
            MemberView { member, disk: disk(at), pod: PodId(pods_of_disks[at]) }
        };
        let shards = (0..pods_of_disks.len()).map(|shard| ShardView {
            shard: ShardId(shard as u64 + 1),
            members: (0..3).map(|replica| member(shard, replica)).collect(),
        });
        let volume = VolumeView {
            volume: VolumeId(1),
            name: "v".to_owned(),
            size_bytes: 0,
            stripe_width: 1,
            stripe_bytes: 0,
            shards: shards.collect(),
            deleting: false,
        };
        let pod = |pod| PodView { pod: PodId(pod), peer: address, api: address, nbd: None };
        let disks = pods_of_disks.iter().enumerate();
        ClusterView {
            revision: 1,
            cluster: Uuid([7; 16]),
            pods: (1..=4).map(pod).collect(),
            disks: disks
                .map(|(number, pod)| DiskView { disk: disk(number), pod: PodId(*pod) })
                .collect(),
            volumes: vec![volume],
            destroyed: Vec::new(),
        }
    }

    /// A connection that only one end wants is closed by the other, again and again.
    #[test]
    fn both_ends_want_the_same_connections_and_every_member_can_be_reached() {
        // One disk each; two each; moved together in every way, also two replicas of a shard.
        let layouts: [&[u64]; 5] =
            [&[1, 2, 3], &[1, 2, 3, 1, 2, 3], &[1, 1, 2, 2, 3, 4], &[1, 1, 1, 2, 3], &[4, 1, 1, 2]];
        for layout in layouts {
            let view = view(layout);
            let ends: Vec<Peers> = (1..=4).map(|pod| peers_of(pod, &view, None)).collect();
            let pod_of = |disk: &Uuid| {
                view.disks.iter().find(|known| known.disk == *disk).expect("it is known").pod
            };
            for peers in &ends {
                for (local, remote, purpose) in peers.wanted.keys() {
                    let other = &ends[pod_of(remote).0 as usize - 1];
                    let back = (*remote, *local, *purpose);
                    assert!(other.wanted.contains_key(&back), "{layout:?}: {local} {remote}");
                }
                if !layout.contains(&peers.own.0) {
                    continue;
                }
                for member in view.volumes[0].shards.iter().flat_map(|shard| &shard.members) {
                    let route = peers.routes.get(&member.member);
                    let there = route.map(|(local, remote)| (*local, *remote, Purpose::Data));
                    let wanted = there.is_some_and(|pair| peers.wanted.contains_key(&pair));
                    assert!(wanted || member.pod == peers.own, "{layout:?}: {member:?}");
                }
            }
        }
    }
    /// The first disk of pod 1 was moved, and its new pod cannot say so: the other replica that
    /// pod 1 has of the same shard talks to the third.
    #[test]
    fn no_way_begins_at_a_disk_that_is_not_here_any_more() {
        let view = view(&[1, 1, 2, 3]);
        let peers = peers_of(1, &view, Some(view.disks[0].disk));
        let third = view.volumes[0].shards[0].members[2];
        assert_eq!(peers.routes[&third.member], (view.disks[1].disk, third.disk));
    }
}
