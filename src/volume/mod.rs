//! A volume of a front end: splits requests into operations on shards, orders overlapping writes,
//! finds leaders, retries, and verifies reads. Pure.
//!
//! All connections of a volume at one pod share one [`Volume`], and live on the worker that owns
//! it. The order of overlapping writes holds across them (rule `overlapping-writes-in-order`).
//!
//! Driving: give inputs as they happen, call [`Volume::tick`] about every 100 ms, and
//! [`Volume::poll`] once per round after the inputs (and at [`Volume::deadline`]). Each `Send` gets
//! at most one [`Volume::shard_result`]; late results are dropped. Answer `NotLeader { hint: None,
//! term: 0 }` if the operation could not be handed over (no link), and `Unknown` if its outcome can
//! no longer be learned. [`Volume::pod_down`] does that for all of a pod. A member that is not open
//! on its pod answers `NotLeader`.
//!
//! Retries: a request without a leader waits, however long, and gets no error, unless the volume
//! has an `io_timeout` (see `overdue.rs`). Each shard has a
//! session of its own, which a *touch* has recorded before the first request (see `session.rs`). A
//! write with an unknown outcome is sent again under a higher session, so that the shard refuses
//! the first one if it still arrives. Later overlapping writes wait until the second one is
//! answered. See `route.rs` for terms and probes.
//!
//! A shard may have recorded a session of another front end. Before clients rely on this one there,
//! it goes on in a session above. Later, another front end has taken over, and clients may have
//! written something newer there (rule `outdone-hangs-up`).
//!
//! Invariant: depends neither on `replica` nor on `net` nor on `store`. It has no clock.

pub mod access;
pub mod layout;
mod messages;
pub mod order;
mod overdue;
pub mod read;
mod request;
mod route;
pub mod session;

use std::collections::{BTreeMap, BTreeSet};

use crate::limits::{CONNECTION_IN_FLIGHT_BYTES_MIN, VOLUME_IN_FLIGHT_BYTES_MAX};
use crate::planted::planted;
use crate::types::{
    AccessSet, AttachmentId, Block, BlockError, BlockOp, BlockRange, BlockReply, MemberId, Mono,
    Origin, PodId, Session, ShardId, ShardOp, ShardReply, VolumeId,
};
use crate::view::{MemberView, VolumeView};
use crate::volume::access::{Ended, Next, RoundId, Rounds};
use crate::volume::layout::Layout;
pub use crate::volume::messages::{Ticket, VolumeOutput};
use crate::volume::order::WriteOrder;
use crate::volume::overdue::Overdue;
pub use crate::volume::request::ConnId;
use crate::volume::request::{Attempt, PieceInFlight, Purpose, Request, Work};
use crate::volume::route::ShardRoute;
pub use crate::volume::session::FrontEnd;

/// A volume of a front end. See the module.
pub struct Volume {
    front_end: FrontEnd,
    /// The attachment of all requests.
    attachment: AttachmentId,
    layout: Layout,
    /// The volume is deleted, or being deleted.
    gone: bool,
    /// It is deleted and kept: no client may use it. Access sets still go to its shards.
    withheld: bool,
    /// Connections that have sent something.
    conns: BTreeSet<ConnId>,
    /// All connections are to end.
    hanging_up: bool,
    rounds: Rounds,
    overdue: Overdue,
    /// Sessions that were recorded, by shard, and are not used before the clients are checked.
    unchecked: Vec<(usize, Session)>,
    /// Bytes of requests in flight, beyond which connections only get their minimum.
    bytes_max: usize,
    work: Work,
    order: WriteOrder,
    routes: Vec<ShardRoute>,
    route_of: BTreeMap<ShardId, usize>,
    /// Shards that may have something to send.
    active: Vec<usize>,
    replies: Vec<VolumeOutput>,
}

impl Volume {
    /// The volume as used under one attachment.
    pub fn new(view: &VolumeView, attachment: AttachmentId, front_end: FrontEnd) -> Volume {
        let mut volume = Volume {
            front_end,
            attachment,
            layout: Layout::new(view),
            gone: false,
            withheld: false,
            conns: BTreeSet::new(),
            hanging_up: false,
            rounds: Rounds::default(),
            overdue: Overdue::default(),
            unchecked: Vec::new(),
            bytes_max: VOLUME_IN_FLIGHT_BYTES_MAX,
            work: Work::default(),
            order: WriteOrder::default(),
            routes: Vec::new(),
            route_of: BTreeMap::new(),
            active: Vec::new(),
            replies: Vec::new(),
        };
        volume.update_view(view);
        volume
    }

    /// Sets another limit of the bytes of requests in flight.
    pub fn with_bytes_max(mut self, bytes_max: usize) -> Volume {
        self.bytes_max = bytes_max;
        self
    }

    pub fn volume(&self) -> VolumeId {
        self.layout.volume
    }

    /// The session of new requests to the shard at this place; `None`: it must be touched first.
    pub fn session(&self, shard: usize) -> Option<Session> {
        self.routes[shard].session.current()
    }

    /// Nobody uses it, and nothing is in flight.
    pub fn is_unused(&self) -> bool {
        let idle = self.work.requests.is_empty() && self.work.attempts.is_empty();
        idle && self.conns.is_empty() && self.rounds.is_empty()
    }

    /// Unanswered requests, including those of ended connections.
    pub fn requests_in_flight(&self) -> usize {
        self.work.requests.len()
    }

    /// Operations are sent and not answered, or requests may wait for too long.
    pub fn needs_ticks(&self) -> bool {
        let may_be_late = self.overdue.timeout.is_some() && !self.work.requests.is_empty();
        may_be_late || !self.work.attempts.is_empty()
    }

    /// Bytes of the unanswered requests.
    pub fn bytes(&self) -> usize {
        self.work.bytes
    }

    /// False: take no new requests from this connection until a request is answered.
    pub fn wants_requests(&self, conn: ConnId) -> bool {
        let own = self.work.bytes_of.get(&conn).copied().unwrap_or(0);
        self.has_room() || own < CONNECTION_IN_FLIGHT_BYTES_MIN.min(self.bytes_max)
    }

    /// False: connections only get their minimum.
    pub fn has_room(&self) -> bool {
        self.work.bytes < self.bytes_max
    }

    /// Takes a client's request; `handle` comes back with the answer. The caller checks first that
    /// the connection has not ended (rule `hang-up-before-execute`).
    pub fn request(&mut self, now: Mono, conn: ConnId, handle: u64, op: BlockOp) {
        if self.hanging_up {
            // Its connection ends, too.
            return;
        }
        self.conns.insert(conn);
        if let Some(result) = self.answer_at_once(&op) {
            self.replies.push(VolumeOutput::Reply { conn, handle, result });
            return;
        }
        let request = Request::new(now, conn, handle, op);
        self.work.bytes += request.charged_bytes;
        *self.work.bytes_of.entry(conn).or_default() += request.charged_bytes;
        let changed = request.changed.clone();
        let key = self.work.requests.insert(request);
        if changed.is_none_or(|blocks| self.order.begin(key, blocks)) {
            self.start(key);
        }
    }

    /// The connection has ended: drops its unsent pieces, and later the results of the others.
    pub fn close_connection(&mut self, conn: ConnId) {
        if self.conns.remove(&conn) && self.conns.is_empty() {
            self.routes.iter_mut().for_each(|route| route.session.is_relied_on = false);
            self.overdue.forget(&mut self.routes);
        }
        let of_conn = |request: &Request| request.conn == conn;
        let keys: Vec<u64> = (self.work.requests.iter())
            .filter_map(|(key, request)| of_conn(request).then_some(key))
            .collect();
        if planted!(ResentThroughSecondConnection) {
            // They stay, and others need not wait for them.
            let mut ready = Vec::new();
            keys.into_iter().for_each(|key| self.release_order(key, &mut ready));
            return ready.into_iter().for_each(|key| self.start(key));
        }
        for key in &keys {
            let request = self.work.requests.get_mut(*key).expect("just listed");
            request.abandoned = true;
        }
        let not_sent: Vec<u64> = (self.work.pieces.iter())
            .filter(|(_, piece)| !piece.sent)
            .filter_map(|(key, piece)| {
                let request = self.work.requests.get(piece.request)?;
                of_conn(request).then_some(key)
            })
            .collect();
        self.drop_pieces(not_sent, BlockError::Unknown);
        for key in keys {
            self.end_if_waiting(key);
        }
        self.work.bytes_of.remove(&conn);
    }

    /// The result of an attempt. `from` answered in `term` (0: no member was asked).
    pub fn shard_result(
        &mut self,
        now: Mono,
        ticket: Ticket,
        from: MemberId,
        term: u64,
        result: Result<ShardReply, BlockError>,
    ) {
        let Some(attempt) = self.work.attempts.remove(ticket.0) else {
            // Given up before, because of a lost link or a timeout.
            return;
        };
        let route = &mut self.routes[attempt.shard];
        match &result {
            Err(BlockError::NotLeader { hint, term }) => route.refused(now, from, *hint, *term),
            Err(BlockError::Unknown) => route.lost(now, from),
            Err(BlockError::NoSuchVolume) => route.refused(now, from, None, term),
            Err(BlockError::Busy) => route.busy(now, from, term),
            Err(BlockError::NotYet) => {
                route.confirmed(from, term);
                route.pause(now);
            }
            _ => route.confirmed(from, term),
        }
        let is_answer = result.as_ref().err().is_none_or(BlockError::is_answer);
        self.end_attempt(ticket, attempt, result);
        self.activate(attempt.shard);
        if is_answer {
            self.routes[attempt.shard].answered(now);
        }
    }

    /// All links to this pod are lost, or it has restarted. The outcome of its attempts is unknown.
    pub fn pod_down(&mut self, now: Mono, pod: PodId) {
        self.lose(now, |attempt| attempt.pod == pod);
        for shard in 0..self.routes.len() {
            self.routes[shard].pod_down(now, pod);
        }
    }

    /// The link to the lane of one member is lost, but not to its whole pod.
    pub fn link_down(&mut self, now: Mono, member: MemberId) {
        self.lose(now, |attempt| attempt.member == member);
        for shard in 0..self.routes.len() {
            self.routes[shard].lost(now, member);
        }
    }

    /// The leader of a shard according to a member on this pod.
    pub fn role(&mut self, shard: ShardId, leader: Option<MemberId>, term: u64) {
        if let Some(index) = self.route_of.get(&shard).copied() {
            self.routes[index].role(leader, term);
            self.activate(index);
        }
    }

    /// Size, shards or members have changed. A volume never shrinks: the caller does not follow
    /// such a view. Requests in flight go on.
    pub fn update_view(&mut self, view: &VolumeView) {
        assert_eq!(view.volume, self.layout.volume);
        assert!(view.shards.len() >= self.routes.len(), "a volume does not lose shards");
        assert!(view.size_bytes >= self.layout.size_bytes, "a volume does not shrink");
        self.withheld = view.withheld;
        // An attachment that ends is not shown any more, and its I/O may hang by then.
        if view.knows(self.attachment) {
            self.overdue.set_timeout(view.io_timeout(self.attachment), &mut self.routes);
        }
        self.layout = Layout::new(view);
        for (index, shard) in view.shards.iter().enumerate() {
            if let Some(route) = self.routes.get_mut(index) {
                route.update(shard);
                continue;
            }
            self.route_of.insert(shard.shard, index);
            self.routes.push(ShardRoute::new(shard, self.front_end.pod));
            for round in self.rounds.join(index) {
                self.queue_round(round, index);
            }
        }
        if view.deleting {
            self.remove();
        }
    }

    /// The volume is deleted: ends all unsent pieces.
    pub fn remove(&mut self) {
        self.gone = true;
        self.overdue.forget(&mut self.routes);
        self.rounds.end_all().into_iter().for_each(|ended| self.end_round(ended));
        let keys: Vec<u64> = (self.work.pieces.iter())
            .filter_map(|(key, piece)| (!piece.sent).then_some(key))
            .collect();
        self.drop_pieces(keys, BlockError::NoSuchVolume);
    }

    /// Gives up attempts that were not answered for too long, and requests that have waited for
    /// too long.
    pub fn tick(&mut self, now: Mono) {
        let io_timeout = self.overdue.timeout;
        self.lose(now, |attempt| {
            now.since(attempt.sent_at) >= attempt.purpose.patience(io_timeout)
        });
        self.time_out(now);
    }

    /// Answers the requests that have waited for too long.
    fn time_out(&mut self, now: Mono) {
        let Work { requests, pieces, .. } = &mut self.work;
        let late = self.overdue.late(now, requests, pieces, &mut self.routes);
        if late.requests.is_empty() {
            return;
        }
        self.lose(now, |of| of.purpose.piece().is_some_and(|key| late.sent.contains(&key)));
        self.drop_pieces(late.unsent, BlockError::TimedOut);
        for key in late.requests {
            self.end_if_waiting(key);
        }
        for shard in self.overdue.given_up(&mut self.routes) {
            self.activate(shard);
        }
    }

    /// The time at which `poll` has work even without inputs.
    pub fn deadline(&self) -> Option<Mono> {
        let waits = |route: &&ShardRoute| route.has_work() && route.probe.is_none();
        let routes = self.active.iter().map(|shard| &self.routes[*shard]);
        routes.filter(waits).filter_map(ShardRoute::resumes_at).min()
    }

    /// Appends all operations to send and all answers.
    pub fn poll(&mut self, now: Mono, out: &mut Vec<VolumeOutput>) {
        if std::mem::take(&mut self.hanging_up) {
            out.push(VolumeOutput::HangUp);
        }
        if !self.unchecked.is_empty() {
            out.push(VolumeOutput::WhoIsThere);
        }
        let mut active = std::mem::take(&mut self.active);
        active.retain(|shard| {
            self.send_waiting(now, *shard, out);
            let more = self.routes[*shard].has_work();
            self.routes[*shard].active = more;
            more
        });
        assert!(self.active.is_empty(), "sending activates nothing");
        self.active = active;
        out.append(&mut self.replies);
    }

    fn answer_at_once(&self, op: &BlockOp) -> Option<Result<BlockReply, BlockError>> {
        match self.layout.shards_of(op) {
            None if self.overdue.is_settled() => Some(Ok(BlockReply::Done)),
            None => Some(Err(BlockError::TimedOut)),
            Some(_) if self.gone || self.withheld => Some(Err(BlockError::NoSuchVolume)),
            Some(Err(error)) => Some(Err(error)),
            Some(Ok(shards)) => self.overdue.refuses(shards).then_some(Err(BlockError::TimedOut)),
        }
    }

    /// Ends a request that is over, and waits for earlier writes: it has no pieces that could end.
    fn end_if_waiting(&mut self, key: u64) {
        let waits = |request: &Request| request.op.is_some();
        if self.work.requests.get(key).is_some_and(waits) {
            self.start(key);
        }
    }

    /// Starts requests whose turn has come, and the requests that this unblocks.
    fn start(&mut self, key: u64) {
        let mut next = Some(key);
        let mut ready = Vec::new();
        while let Some(key) = next {
            let request = self.work.requests.get_mut(key).expect("it has not ended");
            if request.is_over() || self.gone {
                request.fail(BlockError::NoSuchVolume);
                self.end_request(key, &mut ready);
            } else {
                self.queue_pieces(key, &mut ready);
            }
            next = ready.pop();
        }
    }

    fn queue_pieces(&mut self, key: u64, ready: &mut Vec<u64>) {
        let request = self.work.requests.get_mut(key).expect("it has not ended");
        let op = request.op.take().expect("a request starts once");
        let mut cut = std::mem::take(&mut self.work.cut);
        self.layout.cut(&op, &mut cut);
        request.expect_pieces(cut.len());
        if cut.is_empty() {
            self.end_request(key, ready);
        }
        for (place, piece) in cut.drain(..).enumerate() {
            let shard = piece.shard;
            let piece = self.work.pieces.insert(PieceInFlight {
                request: key,
                place,
                piece,
                sent: false,
                was_bad: false,
            });
            self.routes[shard].waiting.push_back(piece);
            self.activate(shard);
        }
        self.work.cut = cut;
    }

    fn activate(&mut self, shard: usize) {
        let route = &mut self.routes[shard];
        if !route.active && route.has_work() {
            route.active = true;
            self.active.push(shard);
        }
        route.note_rest();
    }

    fn send_waiting(&mut self, now: Mono, shard: usize, out: &mut Vec<VolumeOutput>) {
        loop {
            let route = &mut self.routes[shard];
            if !route.has_work() {
                return route.note_rest();
            }
            route.asked_since.get_or_insert(now);
            if !route.may_send(now) {
                return;
            }
            let Some(leader) = route.leader() else {
                return self.probe(now, shard, out);
            };
            if let Some(round) = route.rounds.pop_front() {
                let Some(op) = self.rounds.op(round) else { continue };
                out.push(self.send(
                    now,
                    Purpose::Access(round),
                    shard,
                    leader,
                    self.no_session(),
                    op,
                ));
                continue;
            }
            let untouched = || planted!(FirstRequestUntouched).then(|| self.front_end.above(0));
            let Some(session) = route.session.current().or_else(untouched) else {
                return self.touch(now, shard, leader, out);
            };
            // Otherwise only the session was owed.
            let Some(key) = route.waiting.front().copied() else { return };
            let piece = self.work.pieces.get_mut(key).expect("what waits is there");
            let bytes = piece.bytes();
            if !route.has_room(bytes) {
                return;
            }
            route.waiting.pop_front();
            route.in_flight_bytes += bytes;
            piece.sent = true;
            let op = piece.piece.op.clone();
            out.push(self.send(now, Purpose::Piece(key), shard, leader, session, op));
        }
    }

    /// Stands for a session where none is asked for.
    fn no_session(&self) -> Session {
        Session { counter: 0, pod: self.front_end.pod }
    }

    /// Asks one member whether it leads, unless a probe is in flight.
    fn probe(&mut self, now: Mono, shard: usize, out: &mut Vec<VolumeOutput>) {
        let route = &mut self.routes[shard];
        if route.probe.is_some() {
            return;
        }
        let Some(to) = route.next_candidate() else {
            return;
        };
        let range = BlockRange { first: Block(0), count: 1 };
        let op = ShardOp::Status { range };
        // Only a leader judges a session: its refusal is as good.
        out.push(self.send(now, Purpose::Probe, shard, (to, 0), self.no_session(), op));
    }

    fn send(
        &mut self,
        now: Mono,
        purpose: Purpose,
        shard: usize,
        (to, term): (MemberView, u64),
        session: Session,
        op: ShardOp,
    ) -> VolumeOutput {
        let ticket = self.work.attempts.insert(Attempt {
            purpose,
            shard,
            pod: to.pod,
            member: to.member,
            session,
            sent_at: now,
        });
        let route = &mut self.routes[shard];
        match purpose {
            Purpose::Probe => route.probe = Some(ticket),
            Purpose::Touch => route.session.touch = Some(ticket),
            Purpose::Piece(_) | Purpose::Access(_) => {}
        }
        VolumeOutput::Send {
            ticket: Ticket(ticket),
            shard: route.shard,
            to,
            term,
            origin: Origin { attachment: self.attachment, session },
            op,
        }
    }

    /// Gives up attempts; their outcome is unknown.
    fn lose(&mut self, now: Mono, lost: impl Fn(&Attempt) -> bool) {
        let tickets: Vec<u64> = (self.work.attempts.iter())
            .filter_map(|(ticket, attempt)| lost(attempt).then_some(ticket))
            .collect();
        for ticket in tickets {
            let attempt = self.work.attempts.remove(ticket).expect("just listed");
            self.routes[attempt.shard].lost(now, attempt.member);
            self.end_attempt(Ticket(ticket), attempt, Err(BlockError::Unknown));
            self.activate(attempt.shard);
        }
    }

    fn end_attempt(
        &mut self,
        ticket: Ticket,
        attempt: Attempt,
        result: Result<ShardReply, BlockError>,
    ) {
        match attempt.purpose {
            Purpose::Piece(key) => self.end_piece_attempt(key, attempt, result),
            Purpose::Touch => self.touched(ticket, attempt, &result),
            Purpose::Access(round) => match self.rounds.answered(round, attempt.shard, result) {
                Next::Wait => {}
                Next::Again => self.queue_round(round, attempt.shard),
                Next::End(ended) => self.end_round(ended),
            },
            Purpose::Probe => {
                let probe = &mut self.routes[attempt.shard].probe;
                probe.take_if(|probe| *probe == ticket.0);
            }
        }
    }

    /// Has an access set committed in every shard; [`VolumeOutput::AccessSet`] is its end. A newer
    /// set, or the same again, ends it with `Busy`.
    pub fn set_access(&mut self, set: AccessSet) -> RoundId {
        if set.is_valid() {
            let over = self.rounds.outdated(set.generation);
            over.into_iter().for_each(|ended| self.end_round(ended));
        }
        let (round, begun) = self.rounds.begin(set, self.routes.len());
        match begun {
            Err(error) => self.end_round((round, Err(error))),
            Ok(()) if self.gone => {
                self.rounds.end_all().into_iter().for_each(|ended| self.end_round(ended));
            }
            Ok(()) => (0..self.routes.len()).for_each(|shard| self.queue_round(round.0, shard)),
        }
        round
    }

    fn queue_round(&mut self, round: u64, shard: usize) {
        self.routes[shard].rounds.push_back(round);
        self.activate(shard);
    }

    fn end_round(&mut self, (round, result): Ended) {
        self.replies.push(VolumeOutput::AccessSet { round, result });
    }

    /// Has a session recorded, unless that is in flight.
    fn touch(
        &mut self,
        now: Mono,
        shard: usize,
        leader: (MemberView, u64),
        out: &mut Vec<VolumeOutput>,
    ) {
        let session = &mut self.routes[shard].session;
        if session.touch.is_some() {
            return;
        }
        let (next, renews) = (session.next(self.front_end), session.is_relied_on);
        let op = ShardOp::Touch { renews };
        out.push(self.send(now, Purpose::Touch, shard, leader, next, op));
    }

    /// A touch was answered.
    fn touched(
        &mut self,
        ticket: Ticket,
        attempt: Attempt,
        result: &Result<ShardReply, BlockError>,
    ) {
        if result.is_err() {
            let touch = &mut self.routes[attempt.shard].session.touch;
            touch.take_if(|touch| *touch == ticket.0);
        }
        match result {
            Ok(_) => self.unchecked.push((attempt.shard, attempt.session)),
            Err(BlockError::StaleSession { recorded }) => {
                if self.is_outdone(attempt, *recorded) {
                    self.hang_up();
                } else if !self.front_end.is_of(*recorded) {
                    // What timed out here cannot take place any more. Clients may have gone on
                    // through the other front end: it is not outdone for nothing.
                    self.overdue.settle(attempt.shard, &mut self.routes[attempt.shard]);
                }
            }
            // The shard will never carry out what waits: this client is fenced.
            Err(error) if !error.is_retryable() && *error != BlockError::NoSuchVolume => {
                let waiting = self.routes[attempt.shard].waiting.iter().copied().collect();
                self.overdue.settle(attempt.shard, &mut self.routes[attempt.shard]);
                self.drop_pieces(waiting, error.clone());
            }
            Err(_) => {}
        }
    }

    /// The connections of clients that have hung up are closed.
    pub fn clients_checked(&mut self) {
        let is_used = !self.conns.is_empty();
        for (shard, recorded) in std::mem::take(&mut self.unchecked) {
            self.routes[shard].session.recorded(recorded, is_used);
            self.overdue.settle(shard, &mut self.routes[shard]);
            self.activate(shard);
        }
    }

    /// A session was refused. True: clients rely on a session that is another front end's by now.
    fn is_outdone(&mut self, attempt: Attempt, recorded: Session) -> bool {
        let session = &mut self.routes[attempt.shard].session;
        let is_other = session.refused(self.front_end, attempt.session, recorded);
        is_other && session.is_relied_on && !planted!(OutdoneGoesOn)
    }

    /// Ends an attempt at a piece. The piece ends, too, or waits for the next attempt.
    fn end_piece_attempt(
        &mut self,
        key: u64,
        attempt: Attempt,
        result: Result<ShardReply, BlockError>,
    ) {
        let route = &mut self.routes[attempt.shard];
        let piece = self.work.pieces.get_mut(key).expect("sent pieces stay");
        route.in_flight_bytes -= piece.bytes();
        piece.sent = false;
        let (request, writes) = (piece.request, piece.piece.op.is_write());
        let result = self.judge(key, result);
        let request = self.work.requests.get(request).expect("it has pieces");
        let (abandoned, is_over) = (request.abandoned, request.is_over());
        let session = &mut self.routes[attempt.shard].session;
        session.is_relied_on |= result.is_ok() && !abandoned;
        let again = match &result {
            Ok(_) => false,
            Err(BlockError::NoSuchVolume) => !self.gone,
            Err(error) => error.is_retryable(),
        };
        if !again {
            return self.end_piece(key, result);
        }
        // The change under this session may still arrive, or its session was refused. From now on
        // everything uses a higher session.
        match &result {
            _ if planted!(RetryUnderOldSession) => {}
            _ if is_over && planted!(TimedOutForgotten) => {}
            Err(BlockError::Unknown) if writes => session.lost(attempt.session),
            Err(BlockError::NotTouched) => session.lost(attempt.session),
            Err(BlockError::StaleSession { recorded }) if self.is_outdone(attempt, *recorded) => {
                // Ends this piece, too.
                return self.hang_up();
            }
            _ => {}
        }
        if is_over || self.gone {
            return self.end_piece(key, Err(BlockError::NoSuchVolume));
        }
        self.routes[attempt.shard].waiting.push_front(key);
    }

    /// Drops all that is not sent, and ends the connections. What comes over later ones is newer
    /// than what the other front end has done.
    fn hang_up(&mut self) {
        // Also what is left of connections that have ended before.
        let of_requests = self.work.requests.iter().map(|(_, request)| request.conn);
        let conns: BTreeSet<ConnId> = self.conns.iter().copied().chain(of_requests).collect();
        for conn in conns {
            self.close_connection(conn);
        }
        self.hanging_up = true;
    }

    /// Checks an answer against its operation. A read that fails its checksums is retried once.
    fn judge(
        &mut self,
        key: u64,
        result: Result<ShardReply, BlockError>,
    ) -> Result<ShardReply, BlockError> {
        let in_flight = self.work.pieces.get_mut(key).expect("the caller has seen it");
        let piece = &in_flight.piece;
        let intact = match &result {
            Err(_) => return result,
            Ok(reply) => read::fits(&self.layout, piece, reply),
        };
        if intact {
            return result;
        }
        if piece.op.is_write() {
            // The answer does not fit a write, so the outcome of the write is unknown.
            return Err(BlockError::Unknown);
        }
        if in_flight.was_bad {
            return Err(BlockError::MediaFault);
        }
        in_flight.was_bad = true;
        Err(BlockError::Busy)
    }

    /// Ends unsent pieces.
    fn drop_pieces(&mut self, keys: Vec<u64>, error: BlockError) {
        let mut shards: Vec<usize> = Vec::new();
        for key in keys {
            let piece = self.work.pieces.get(key).expect("just listed");
            if shards.last() != Some(&piece.piece.shard) {
                shards.push(piece.piece.shard);
            }
            self.end_piece(key, Err(error.clone()));
        }
        shards.sort_unstable();
        shards.dedup();
        for shard in shards {
            let pieces = &self.work.pieces;
            self.routes[shard].waiting.retain(|key| pieces.get(*key).is_some());
        }
    }

    fn end_piece(&mut self, key: u64, result: Result<ShardReply, BlockError>) {
        let piece = self.work.pieces.remove(key).expect("it has not ended");
        let request = self.work.requests.get_mut(piece.request).expect("it has pieces");
        if request.end_piece(piece.place, result) {
            let mut ready = Vec::new();
            self.end_request(piece.request, &mut ready);
            ready.into_iter().for_each(|key| self.start(key));
        }
    }

    /// Answers a request; `ready` gets the writes that waited for it.
    fn end_request(&mut self, key: u64, ready: &mut Vec<u64>) {
        self.release_order(key, ready);
        let request = self.work.requests.remove(key).expect("it has not ended");
        self.work.bytes -= request.charged_bytes;
        if let Some(bytes) = self.work.bytes_of.get_mut(&request.conn) {
            *bytes -= request.charged_bytes;
        }
        if !request.abandoned {
            self.replies.push(VolumeOutput::Reply {
                conn: request.conn,
                handle: request.handle,
                result: request.into_answer(),
            });
        }
    }

    /// Others need not wait for what this request changes; `ready` gets those that did.
    fn release_order(&mut self, key: u64, ready: &mut Vec<u64>) {
        let request = self.work.requests.get_mut(key).expect("it has not ended");
        if let Some(blocks) = request.changed.take() {
            self.order.finish(key, blocks, ready);
        }
    }
}

#[cfg(test)]
mod access_test;
#[cfg(test)]
mod overdue_test;
#[cfg(test)]
mod scenario_test;
#[cfg(test)]
mod volume_test;
