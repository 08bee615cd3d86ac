//! Delivers what members and their helpers say: answers to whoever waits for them, messages to
//! other pods. Here, too, is the end of a link told to all that it concerns.
//!
//! Owns nothing. Calls: links, routers, members and the driver. Told: by all that have something to
//! say.

use raft::eraftpb::Message;

use crate::io::driver::Driver;
use crate::net::message::{CallId, PeerMessage};
use crate::replica::message;
use crate::replica::seam::ReqId;
use crate::types::{BlockError, MemberId, Mono, ShardReply, VolumeId};
use crate::view::MemberView;
use crate::volume::Ticket;
use crate::worker::members::Members;
use crate::worker::peers::Peers;
use crate::worker::requests::Waiter;
use crate::worker::routers::{Forwarded, Routers};
use crate::worker::token::ConnId;

/// See the module.
pub struct Delivery<'a> {
    pub now: Mono,
    pub driver: &'a mut dyn Driver,
    pub peers: &'a mut Peers,
    pub routers: &'a mut Routers,
    pub members: &'a mut Members,
}

impl Delivery<'_> {
    /// Sends to the lane of a member of another pod. Without a connection the message is dropped:
    /// Raft and resync ask again. False when there is none.
    pub fn send_to(&mut self, member: MemberId, message: PeerMessage) -> bool {
        let conn = self.peers.way_to(member, &message);
        if let Some(conn) = conn {
            self.send_on(conn, message);
        }
        conn.is_some()
    }

    /// Sends on a connection, if it is still there.
    pub fn send_on(&mut self, conn: ConnId, message: PeerMessage) {
        if let Err(error) = self.peers.send(conn, message) {
            tracing::warn!(%error, "a link to another pod is closed");
            self.close_link(conn);
        }
    }

    pub fn send_raft(&mut self, message: Message) {
        let to = MemberId(message.to);
        let (header, payloads) = message::split(message);
        self.send_to(to, PeerMessage::Raft { to, header, payloads });
    }

    /// Sends a router's request to the pod of a member.
    pub fn forward(
        &mut self,
        call: CallId,
        (volume, ticket): (VolumeId, Ticket),
        to: MemberView,
        request: PeerMessage,
    ) {
        let member = to.member;
        match self.peers.forward(to, request) {
            Some(conn) => {
                self.routers.forward(call, Forwarded { conn, volume, ticket, member });
            }
            None => {
                let refused = Err(BlockError::NotLeader { hint: None, term: 0 });
                self.routers.answered(self.now, (volume, ticket), member, 0, refused);
            }
        }
    }

    pub fn close_link(&mut self, conn: ConnId) {
        let unreachable = self.peers.close(self.now, self.driver, conn);
        self.routers.link_ended(self.now, conn);
        if let Some(disk) = unreachable {
            self.members.unreachable(self.now, disk);
        }
    }

    /// Closes what is silent and dials what ought to be up and is not.
    pub fn tick(&mut self) {
        for conn in self.peers.silent(self.now) {
            tracing::warn!("a link to another pod is silent and is closed");
            self.close_link(conn);
        }
        self.peers.dial_due(self.now, self.driver);
    }

    /// Answers a request once.
    pub fn answer(&mut self, req: ReqId, result: Result<ShardReply, BlockError>) {
        let Some((member, waiter)) = self.members.requests.take(req) else { return };
        let term = self.members.role_of(member).term;
        match waiter {
            Waiter::Volume { volume, ticket } => {
                self.routers.answered(self.now, (volume, ticket), member, term, result);
            }
            Waiter::Peer { conn, call, owed_bytes } => {
                self.peers.answered(conn, owed_bytes);
                self.send_on(conn, PeerMessage::Response { call, term, result });
            }
        }
    }

    /// Takes a member out of service; its open requests are answered as not known.
    pub fn stop_member(&mut self, member: MemberId, reason: String) {
        if let Some(runtime) = self.members.get_mut(member) {
            runtime.faulted = Some(reason);
            runtime.role = Default::default();
        }
        for req in self.members.requests.of_member(member) {
            self.answer(req, Err(BlockError::Unknown));
        }
    }
}
