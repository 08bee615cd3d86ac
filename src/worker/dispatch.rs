//! Joins the components of a worker: an output of one becomes an input of others, at once and in
//! order. Owns nothing: each handler borrows the parts that it may call.

use std::sync::Arc;

use bytes::Bytes;

use crate::front::nbd::CloseReason;
use crate::io::driver::Completion;
use crate::net::link::LinkEvent;
use crate::net::message::PeerMessage;
use crate::replica::messages::{Input, NotFetched, Output, Rest, Role, Start};
use crate::store::messages::{Event, MemberRecord, ReadBlocks, ReadId};
use crate::telemetry::metrics::data_path::ReadStage;
use crate::types::{
    BlockError, BlockRange, MemberId, Origin, PodId, Segment, ShardId, ShardOp, ShardReply,
    VolumeId,
};
use crate::view::{ClusterView, MemberView, VolumeChange, VolumeView};
use crate::volume::VolumeOutput;
use crate::worker::Worker;
use crate::worker::admission::Admission;
use crate::worker::clients::ClientHandler;
use crate::worker::intake::{Breach, Intake};
use crate::worker::listeners::Purpose;
use crate::worker::owed::ExtentAsk;
use crate::worker::peers::PeerHandler;
use crate::worker::read_repair::RepairHandler;
use crate::worker::reads::{BlockRead, PeerAsk, ReadTarget, Reader};
use crate::worker::reconcile::{Pending, ReconcileHandler};
use crate::worker::requests::{Kind, RouterKey, Waiter, Waiting};
use crate::worker::resync::ResyncHandler;
use crate::worker::token::ConnKey;

impl Worker {
    pub(super) fn peer_handler(&mut self) -> PeerHandler<'_> {
        let Worker { now, driver, peers, routers, members, .. } = self;
        PeerHandler { now: *now, driver: driver.as_mut(), peers, routers, members }
    }

    pub(super) fn client_handler(&mut self) -> ClientHandler<'_> {
        let Worker { now, driver, clients, routers, exported, control, .. } = self;
        let (driver, control) = (driver.as_mut(), &**control);
        ClientHandler { now: *now, clients, driver, routers, exported, control }
    }

    pub(super) fn resync_handler(&mut self) -> ResyncHandler<'_> {
        let Worker { now, driver, peers, routers, members, resyncs, lanes, reports, .. } = self;
        let out = PeerHandler { now: *now, driver: driver.as_mut(), peers, routers, members };
        ResyncHandler { resyncs, lanes, reports, out }
    }

    pub(super) fn repair_handler(&mut self) -> RepairHandler<'_> {
        let Worker { now, driver, peers, routers, members, lanes, reports, .. } = self;
        let out = PeerHandler { now: *now, driver: driver.as_mut(), peers, routers, members };
        let resyncs = &mut self.resyncs;
        RepairHandler { read_repairs: &mut self.read_repairs, resyncs, lanes, reports, out }
    }

    fn reconcile_handler(&mut self) -> ReconcileHandler<'_> {
        let Worker { now, driver, peers, routers, members, reconciler, lanes, resyncs, .. } = self;
        let out = PeerHandler { now: *now, driver: driver.as_mut(), peers, routers, members };
        ReconcileHandler { reconciler, lanes, resyncs, out }
    }

    fn admission(&self) -> Admission<'_> {
        let Worker { lanes, peers, members, resyncs, .. } = self;
        Admission { lanes, peers, members, resyncs }
    }

    /// Takes a view of the cluster, unless it has a newer one.
    pub fn view_changed(&mut self, view: Arc<ClusterView>) {
        if view.revision < self.reconciler.view.revision {
            return;
        }
        self.meters.view_revision.set(view.revision);
        let changes = self.reconciler.take_view(Arc::clone(&view));
        self.peers.update_view(&view, &changes);
        self.lanes.all.iter_mut().for_each(|lane| lane.lane.raise_level(view.level));
        let is_refused = |now: &Arc<VolumeView>| self.routers.refuses(now);
        let followed = changes.iter().filter(|it| !it.now.as_ref().is_some_and(is_refused));
        self.exported.update(followed);
        for VolumeChange { before, now } in changes {
            match now {
                Some(volume) => self.reconcile(&volume),
                None => {
                    let before = before.expect("it was there before");
                    self.reconcile_handler().leaves(&before);
                    self.close_volume(before.volume);
                }
            }
        }
        self.reconcile_handler().destroy_doomed(&view);
        self.reports.due = true;
    }

    /// Makes members and router of one volume match the view.
    fn reconcile(&mut self, volume: &Arc<VolumeView>) {
        self.reconcile_handler().volume(volume);
        if volume.deleting {
            return self.close_volume(volume.volume);
        }
        self.routers.update_view(volume);
        match volume.withheld {
            // The router stays, for changes of access.
            true => self.client_handler().close_volume(volume.volume, CloseReason::UnknownExport),
            false => self.client_handler().grow(volume.volume, volume.size_bytes),
        }
    }

    /// Removes the routers of a volume that is deleted, or does not concern this pod any more, and
    /// ends its connections.
    fn close_volume(&mut self, volume: VolumeId) {
        for key in self.routers.of_volume(volume) {
            let Some(router) = self.routers.at(key) else { return };
            router.remove();
            self.poll_volume(key);
        }
        self.routers.forget(volume);
        self.client_handler().close_volume(volume, CloseReason::UnknownExport);
    }

    /// A record of a member became durable: created, destroyed, or a step of its resync.
    fn member_durable(&mut self, lane: u8, member: MemberId) {
        match self.reconciler.pending.remove(&member) {
            None => self.resync_handler().durable(member),
            Some(Pending::Destroying) => {
                self.reconciler.destroyed.insert((self.lanes.get(lane).place.disk, member));
                self.reports.due = true;
            }
            Some(Pending::Creating(record, peers)) => {
                let start = Start { meta: record.meta.clone(), ..Start::default() };
                let is_known = self.reconciler.volume(record.volume).is_some();
                let peers = if is_known { peers } else { Vec::new() };
                self.start_member(lane, &record, start, peers);
                self.reports.due = true;
                self.reconciler.created.insert(record.volume);
            }
        }
    }

    /// Members of these volumes were made. The view of a volume may be another one by now.
    fn members_created(&mut self) {
        let mut deletes = false;
        for volume in std::mem::take(&mut self.reconciler.created) {
            let Some(volume) = self.reconciler.volume(volume) else { continue };
            self.reconcile(&volume);
            deletes |= volume.deleting;
        }
        if deletes {
            let view = Arc::clone(&self.reconciler.view);
            self.reconcile_handler().destroy_doomed(&view);
        }
    }

    /// Starts a member; one with the resyncing flag asks for a resync.
    pub fn start_member(
        &mut self,
        lane: u8,
        record: &MemberRecord,
        start: Start,
        peers: Vec<MemberView>,
    ) {
        if start.resyncing {
            self.resyncs.resume(record.member, self.now);
        }
        self.members.start(self.now, lane, record, start, peers);
    }

    /// Polls a router and carries out its outputs.
    pub(super) fn poll_volume(&mut self, key: RouterKey) {
        let mut outputs = std::mem::take(&mut self.scratch.routes);
        self.routers.poll(self.now, key, &mut outputs);
        for output in outputs.drain(..) {
            match output {
                VolumeOutput::Reply { conn, handle, result } => {
                    self.client_handler().reply(conn.0 as ConnKey, handle, result);
                }
                VolumeOutput::HangUp => {
                    let (volume, attachment) = key;
                    tracing::warn!(
                        %volume, %attachment,
                        "another front end uses the volume under this attachment: closed"
                    );
                    self.client_handler().close_use(key, CloseReason::Outdone);
                }
                VolumeOutput::WhoIsThere => {
                    self.client_handler().close_hung_up(key);
                    if let Some(router) = self.routers.at(key) {
                        router.clients_checked();
                    }
                }
                VolumeOutput::AccessSet { round, result } => {
                    self.routers.access_set(key.0, round, result);
                }
                VolumeOutput::Send { ticket, shard, to, term, origin, op } => {
                    if self.members.get(to.member).is_some() {
                        let waiter = Waiter::Volume(self.routers.asker(key, ticket));
                        self.request((None, to.member), term, origin, op, waiter);
                    } else {
                        let (call, member) = (self.peers.next_call(), to.member);
                        let request =
                            PeerMessage::Request { call, shard, to: member, term, origin, op };
                        let asker = self.routers.asker(key, ticket);
                        self.peer_handler().forward(call, asker, to, request);
                    }
                }
            }
        }
        self.scratch.routes = outputs;
    }

    /// Gives a client's operation to a member; `waiter` gets the answer. A peer names the shard,
    /// and a member of another one refuses: a catalog restored from an old copy gives ids again.
    pub(super) fn request(
        &mut self,
        (shard, member): (Option<ShardId>, MemberId),
        term: u64,
        origin: Origin,
        op: ShardOp,
        waiter: Waiter,
    ) {
        let (kind, since) = (Kind::of(&op), self.now);
        let req = self.members.requests.add(Waiting { member, waiter, kind, since });
        let here = self.members.get(member).map(|runtime| runtime.shard);
        if here.is_some_and(|here| shard.is_some_and(|shard| shard != here)) {
            let refused = Err(BlockError::NotLeader { hint: None, term: 0 });
            return self.peer_handler().answer(req, refused);
        }
        let through = match waiter {
            Waiter::Volume(_) => Some(self.config.pod),
            Waiter::Peer { conn, .. } => self.peers.pod_of(conn),
        };
        if let (Some(runtime), Some(pod)) = (self.members.get_mut(member), through) {
            runtime.demand.note(pod);
            self.members.asked.insert(member);
        }
        match self.admission().refuse(member, &op) {
            Some(error) => self.peer_handler().answer(req, Err(error)),
            None => self.members.input(self.now, member, Input::Client { req, term, origin, op }),
        }
    }

    /// A Raft message of another pod.
    pub(super) fn raft_message(
        &mut self,
        pod: PodId,
        to: MemberId,
        header: &[u8],
        payloads: Vec<Bytes>,
    ) -> Result<(), Breach> {
        if let Some(message) = self.admission().raft_message(pod, to, header, payloads)? {
            self.members.input(self.now, to, Input::Peer(Box::new(message)));
        }
        Ok(())
    }

    /// Polls a member and carries out its outputs, in order.
    pub(super) fn poll_member(&mut self, member: MemberId) {
        let mut outputs = std::mem::take(&mut self.scratch.outputs);
        self.members.poll(self.now, member, &mut outputs);
        for output in outputs.drain(..) {
            if let Some(observer) = &mut self.members.observer {
                observer.output(member, &output);
            }
            self.carry_out(member, output);
        }
        self.scratch.outputs = outputs;
        if let Some(runtime) = self.members.get(member) {
            let unappended = runtime.member.unappended();
            let zeroes = runtime.member.unapplied_zeroes();
            let lane = &mut self.lanes.get_mut(runtime.lane).lane;
            lane.set_unappended(member, unappended);
            lane.set_unapplied_zeroes(member, zeroes);
        }
    }

    fn carry_out(&mut self, member: MemberId, output: Output) {
        let lane = self.members.lane_of(member).expect("it was polled");
        match output {
            Output::Send(message) => self.peer_handler().send_raft(*message),
            Output::Append(append) => {
                self.members.note_append(self.now, member, &append);
                self.lanes.at(lane).append(append);
            }
            Output::Apply(applied) => {
                self.members.note_apply(member, applied.index);
                self.lanes.at(lane).apply(member, applied);
            }
            Output::Read { req, range, status, leased } => {
                self.members.note_read(self.now, req, leased);
                let reader = Reader::Request(req);
                let target = match status {
                    true => ReadTarget::Status(req),
                    false => ReadTarget::Blocks(BlockRead::new(self.now, member, range, reader)),
                };
                self.lanes.read(lane, member, range, target);
            }
            Output::ReadBase { ticket, block } => {
                let range = BlockRange { first: block, count: 1 };
                let reader = Reader::Base { ticket };
                let read = BlockRead::new(self.now, member, range, reader);
                self.lanes.read(lane, member, range, ReadTarget::Blocks(read));
            }
            Output::Reply { req, result } => self.peer_handler().answer(req, result),
            Output::Barrier { .. } => {
                unreachable!("only the catalog's member is asked for barriers")
            }
            Output::Role(role) => self.role_changed(member, role),
            Output::FetchLog { to, low, high } => match self.peers.has_room_for(to) {
                true => self.lanes.at(lane).fetch_log(member, low, high),
                false => {
                    let result = Err(NotFetched::Busy);
                    self.members.input(self.now, member, Input::LogFetched { low, result });
                }
            },
            Output::NeedsResync { member: behind, reason } => {
                tracing::info!(%member, %behind, %reason, "a follower needs a resync");
                self.resync_handler().offer(member, behind);
            }
            Output::Faulted { reason } => {
                tracing::error!(%member, reason, "a replica is faulted: it takes no part any more");
                if let Some(runtime) = self.members.get_mut(member) {
                    runtime.faulted = Some(reason);
                }
                self.members.wake(self.now, member);
                self.reports.due = true;
            }
        }
    }

    fn role_changed(&mut self, member: MemberId, role: Role) {
        let Some(before) = self.members.set_role(member, role) else { return };
        let Some(runtime) = self.members.get(member) else { return };
        let (volume, shard) = (runtime.volume, runtime.shard);
        let Role { term, leader, serving } = role;
        let leads = leader.map(|leader| leader.0);
        tracing::info!(%member, %shard, term, leader = leads, serving, "role");
        // A leader that does not serve yet refuses requests.
        let leader = leader.filter(|leader| *leader != member || serving);
        for key in self.routers.of_volume(volume) {
            let Some(router) = self.routers.at(key) else { continue };
            // A replaced leader may be silent on an open connection.
            if let Some(old) = before.leader.filter(|old| leader.is_some_and(|new| new != *old)) {
                router.link_down(self.now, old);
            }
            router.role(shard, leader, term);
        }
        self.reports.due = true;
    }

    pub(super) fn poll_lane(&mut self, lane: u8) {
        let mut events = std::mem::take(&mut self.scratch.events);
        self.lanes.get_mut(lane).poll(self.now, &mut events);
        for event in events.drain(..) {
            self.lane_event(lane, event);
        }
        self.scratch.events = events;
        // Once for all that the lane has made: the look costs as much as the volume has shards.
        self.members_created();
    }

    fn lane_event(&mut self, lane: u8, event: Event) {
        match event {
            Event::Appended { member, number } => {
                self.members.note_logged(self.now, member, number);
                self.members.input(self.now, member, Input::Appended { number });
            }
            Event::MemberDurable { member } => self.member_durable(lane, member),
            Event::LogFetched { member, low, result } => {
                let result = result.map_err(NotFetched::Gone);
                self.members.input(self.now, member, Input::LogFetched { low, result });
            }
            Event::ResyncOvertaken { member } => self.resync_handler().overtaken(member),
            Event::PayloadLost { member, extent } => {
                self.repair_handler().repair((member, extent), true, None);
            }
            Event::Poisoned { reason } => self.lane_poisoned(lane, reason),
            Event::Read { read, result } => self.blocks_read(read, result),
            event => self.read_ended(event),
        }
    }

    /// Handles the end of any read of the store, other than of blocks.
    fn read_ended(&mut self, event: Event) {
        let mut take = |read| self.lanes.reads.take(read);
        match event {
            Event::Status { read, result } => match take(read) {
                ReadTarget::Status(req) => {
                    self.peer_handler().answer(req, result.map(ShardReply::Status));
                }
                target => panic!("a status answers {target:?}"),
            },
            Event::Manifest { read, chunk, meta } => match take(read) {
                ReadTarget::PeerManifest(ask) => {
                    self.resync_handler().answer_manifest(ask, (chunk, meta));
                }
                ReadTarget::OwnManifest(member) => {
                    self.resync_handler().own_manifest(member, read, chunk);
                }
                target => panic!("a manifest answers {target:?}"),
            },
            Event::Extent { read, result } => match take(read) {
                ReadTarget::PeerExtent(ask) => self.resync_handler().answer_extent(ask, result),
                ReadTarget::Check(place) => self.repair_handler().checked(place, result.is_ok()),
                target => panic!("an extent answers {target:?}"),
            },
            Event::Damaged { read, extent } => match take(read) {
                ReadTarget::PeerExtent(ask) => {
                    self.resync_handler().answer_extent(ask, Err(BlockError::MediaFault));
                    self.repair_handler().peer_read_damaged((ask.source, extent));
                }
                ReadTarget::Check(place) => self.repair_handler().checked(place, false),
                ReadTarget::Blocks(read) => self.repair_handler().read_damaged(read, extent),
                target => panic!("{target:?} reads no blocks"),
            },
            Event::Installed { read, refused } => match take(read) {
                ReadTarget::Installed(member) => {
                    self.resync_handler().installed(member, read, refused);
                }
                target => panic!("an installation answers {target:?}"),
            },
            event => unreachable!("{event:?} ends no read"),
        }
    }

    fn blocks_read(&mut self, read: ReadId, result: Result<ReadBlocks, BlockError>) {
        let ReadTarget::Blocks(BlockRead { member, reader, since, .. }) =
            self.lanes.reads.take(read)
        else {
            panic!("blocks answer something else")
        };
        match reader {
            Reader::Request(req) => {
                if result.is_ok() {
                    let took = self.now.since(since);
                    self.meters.read_stage(ReadStage::Stored).record(took, 1);
                }
                let reply = result.map(|blocks| ShardReply::Data {
                    segments: blocks.segments,
                    crcs: blocks.crcs,
                });
                self.peer_handler().answer(req, reply);
            }
            Reader::Base { ticket } => {
                let result = result.map(|blocks| match blocks.segments.into_iter().next() {
                    Some(Segment::Data(block)) => Some(block),
                    Some(Segment::Zero(_)) | None => None,
                });
                self.members.input(self.now, member, Input::Base { ticket, result });
            }
        }
    }

    /// The disk failed: its members stop for good and acknowledge nothing any more.
    fn lane_poisoned(&mut self, lane: u8, reason: String) {
        tracing::error!(disk = %self.lanes.get(lane).place.disk, reason,
            "the disk failed; its replicas stop. Replace the disk and start the pod again");
        let here = self.members.iter().filter(|(_, runtime)| runtime.lane == lane);
        let gone: Vec<MemberId> = here.map(|(member, _)| member).collect();
        for member in gone {
            self.peer_handler().stop_member(member, format!("its disk failed: {reason}"));
        }
        self.lanes.get_mut(lane).poisoned = Some(reason);
        self.reports.due = true;
    }

    pub(super) fn accepted(&mut self, listener: u8, completion: Completion) {
        let Some((purpose, socket)) = self.listeners.accepted(listener, completion) else { return };
        match purpose {
            Purpose::Peer => self.peer_handler().accepted(socket),
            Purpose::Nbd(encryption) => self.client_handler().accepted(socket, encryption),
        }
        self.listeners.accept(self.driver.as_mut(), listener);
    }

    pub(super) fn peer_received(&mut self, conn: ConnKey, completion: Completion) {
        let mut events = std::mem::take(&mut self.scratch.link_events);
        let received = self.peer_handler().received(conn, completion, &mut events);
        let mut taken = Ok(());
        for event in events.drain(..) {
            match event {
                LinkEvent::Up(established) => {
                    self.peer_handler().up(conn, &established);
                    if let Some(lane) = self.lanes.of_disk(established.local.disk) {
                        let free_bytes = self.lanes.get(lane).lane.space().free_bytes;
                        self.peer_handler().send_on(conn, PeerMessage::Space { free_bytes });
                    }
                }
                LinkEvent::Message(message) => taken = self.peer_message(conn, message),
            }
            if taken.is_err() {
                break;
            }
        }
        self.scratch.link_events = events;
        match (taken, received) {
            (Err(breach), _) => self.peer_handler().end(conn, &breach),
            (Ok(()), Err(error)) => self.peer_handler().end(conn, &error),
            (Ok(()), Ok(())) => {}
        }
    }

    pub(super) fn peer_sent(&mut self, conn: ConnKey, completion: &Completion) {
        self.peer_handler().sent(conn, completion);
        self.resync_handler().resume_asks(conn);
    }

    /// Takes a message, unless the check of its content fails (rule
    /// `peers-are-checked-on-arrival`).
    fn peer_message(&mut self, conn: ConnKey, message: PeerMessage) -> Result<(), Breach> {
        // A link that ended meanwhile has no pod.
        let Some(pod) = self.peers.pod_of(conn) else { return Ok(()) };
        let intake = Intake { members: &self.members, routers: &self.routers };
        if !intake.check(pod, conn, &message)? {
            return Ok(());
        }
        match message {
            PeerMessage::Raft { to, header, payloads } => {
                return self.raft_message(pod, to, &header, payloads);
            }
            PeerMessage::RaftBatch { messages } => {
                for (to, header) in messages {
                    self.raft_message(pod, to, &header, Vec::new())?;
                }
            }
            PeerMessage::Request { call, shard, to, term, origin, op } => {
                let owed_bytes = op.reply_bytes();
                if owed_bytes > 0 && !self.peers.promise(conn, owed_bytes) {
                    let result = Err(BlockError::Busy);
                    let response = PeerMessage::Response { call, term: 0, result };
                    self.peer_handler().send_on(conn, response);
                    return Ok(());
                }
                let waiter = Waiter::Peer { conn, call, owed_bytes };
                self.request((Some(shard), to), term, origin, op, waiter);
            }
            PeerMessage::Response { call, term, result } => {
                self.routers.response(self.now, call, term, result);
            }
            PeerMessage::ResyncOffer { to, source } => self.resync_handler().offered(to, source),
            PeerMessage::ResyncDone { to, member, ok } => {
                self.resync_handler().offer_ended(to, member);
                self.members.input(self.now, to, Input::ResyncEnded { member, ok });
            }
            PeerMessage::ManifestRequest { call, source, from } => {
                let ask = PeerAsk { conn, call, source };
                self.resync_handler().manifest_asked(ask, from);
            }
            PeerMessage::Manifest { call, answer } => {
                return self.resync_handler().manifest_arrived(pod, call, answer);
            }
            PeerMessage::ExtentRequest { call, source, extent, layer } => {
                let ask = ExtentAsk { call, source, extent, layer };
                return self.resync_handler().extent_asked(conn, ask);
            }
            PeerMessage::Extent { call, result } => match self.read_repairs.asks(call) {
                true => self.repair_handler().arrived(call, result),
                false => return self.resync_handler().extent_arrived(pod, call, result),
            },
            PeerMessage::Rest { to, from: leader, term, index } => {
                let offer = Rest { leader, term, index };
                if !self.members.rest_follower(self.now, to, conn, &offer) {
                    self.members.wake(self.now, to);
                    self.peer_handler().send_on(conn, PeerMessage::Awake { to: leader, from: to });
                }
            }
            PeerMessage::Awake { to, .. } => self.members.wake(self.now, to),
            PeerMessage::Beat => self.members.rests.heard(self.now, conn),
            PeerMessage::Space { free_bytes } => self.peers.space_told(conn, free_bytes),
        }
        Ok(())
    }
}
