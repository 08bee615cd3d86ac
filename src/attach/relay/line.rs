//! One connection of a device and its way to a pod. Pure: bytes in, bytes out.
//!
//! Both sides speak simple replies. Requests go on as they came, with their cookies. A reply goes
//! on when it is there as a whole: after a part of one, its request could not be sent again.

use std::collections::{BTreeMap, VecDeque};

use bytes::{Buf, Bytes, BytesMut};
use rustc_hash::FxHashMap;

use crate::fields::FieldError;
use crate::front::nbd::wire::{
    REQUEST_HEADER_BYTES, REQUEST_MAGIC, RequestHeader, SIMPLE_REPLY_BYTES, SIMPLE_REPLY_MAGIC,
    SimpleReply, command, put_simple_reply,
};
use crate::limits::{CONNECTION_BYTES_MAX, REQUEST_BYTES_MAX};
use crate::planted::planted;

/// Unanswered requests of one connection. The Linux kernel sends 128.
const PENDING_MAX: usize = 4096;

/// EPERM in replies: the attachment has ended, or only reads.
pub const DENIED: u32 = 1;

/// Why a connection of the device ends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrontError {
    #[error("the client sent something that is no request")]
    Magic,
    #[error("a request of {0} bytes is longer than {REQUEST_BYTES_MAX}")]
    Length(u32),
    #[error("cookie {0} is used by two requests at once")]
    Cookie(u64),
}

/// Why a connection to a pod ends. The requests are sent again over another one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PodError {
    #[error("the pod sent something that is no simple reply")]
    Magic,
    #[error("the pod answers request {0}, which was not asked")]
    Cookie(u64),
}

/// What has not been answered.
#[derive(Debug)]
struct Request {
    cookie: u64,
    /// As it came, with its data.
    bytes: Bytes,
    /// Data of a successful reply.
    reply_bytes: usize,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Line {
    to_front: VecDeque<Bytes>,
    to_front_bytes: usize,
    to_pod: VecDeque<Bytes>,
    /// By their order.
    pending: BTreeMap<u64, Request>,
    by_cookie: FxHashMap<u64, u64>,
    next: u64,
    /// Of all that is pending: data of requests and of their replies.
    pending_bytes: usize,
    has_pod: bool,
    /// The pod in use has answered that something is not permitted.
    is_denied: bool,
    /// The client has said that it goes.
    is_over: bool,
}

impl Line {
    /// False while enough waits for an answer: the client is not read then.
    pub fn wants_front(&self) -> bool {
        let has_room =
            self.pending.len() < PENDING_MAX && self.pending_bytes < CONNECTION_BYTES_MAX;
        has_room && !self.is_over
    }

    /// False while the client has enough answers that it does not take: the pod is not read then.
    pub fn wants_pod(&self) -> bool {
        self.to_front_bytes < CONNECTION_BYTES_MAX
    }

    /// The client goes, and nothing is left to do.
    pub fn is_over(&self) -> bool {
        self.is_over && self.pending.is_empty() && self.to_front.is_empty()
    }

    /// The pod in use has answered [`DENIED`]: to a write of a reader, or because the attachment
    /// has ended.
    pub fn is_denied(&self) -> bool {
        self.is_denied
    }

    /// Requests without an answer.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Takes the whole requests off the front of the client's bytes.
    pub fn front_came(&mut self, bytes: &mut BytesMut) -> Result<(), FrontError> {
        while self.wants_front() {
            let header = match RequestHeader::decode(bytes) {
                Err(FieldError::Short) => return Ok(()),
                Err(_) => return Err(FrontError::Magic),
                Ok(header) if header.magic != REQUEST_MAGIC => return Err(FrontError::Magic),
                Ok(header) => header,
            };
            if header.command == command::DISC {
                self.is_over = true;
                return Ok(());
            }
            let carries = |of: u16| if header.command == of { header.length as usize } else { 0 };
            let (data_bytes, reply_bytes) = (carries(command::WRITE), carries(command::READ));
            if data_bytes.max(reply_bytes) > REQUEST_BYTES_MAX {
                return Err(FrontError::Length(header.length));
            }
            let whole_bytes = REQUEST_HEADER_BYTES + data_bytes;
            if bytes.len() < whole_bytes {
                bytes.reserve(whole_bytes - bytes.len());
                return Ok(());
            }
            let bytes = bytes.split_to(whole_bytes).freeze();
            self.keep(Request { cookie: header.cookie, bytes, reply_bytes })?;
        }
        Ok(())
    }

    fn keep(&mut self, request: Request) -> Result<(), FrontError> {
        let order = self.next;
        if self.by_cookie.insert(request.cookie, order).is_some() {
            return Err(FrontError::Cookie(request.cookie));
        }
        self.next += 1;
        self.pending_bytes += request.bytes.len() + request.reply_bytes;
        if self.has_pod {
            self.to_pod.push_back(request.bytes.clone());
        }
        self.pending.insert(order, request);
        Ok(())
    }

    /// Takes the whole replies off the front of the pod's bytes.
    pub fn pod_came(&mut self, bytes: &mut BytesMut) -> Result<(), PodError> {
        loop {
            let reply = match SimpleReply::decode(bytes) {
                Err(FieldError::Short) => return Ok(()),
                Err(_) => return Err(PodError::Magic),
                Ok(reply) if reply.magic != SIMPLE_REPLY_MAGIC => return Err(PodError::Magic),
                Ok(reply) => reply,
            };
            let order = self.by_cookie.get(&reply.cookie).copied();
            let order = order.ok_or(PodError::Cookie(reply.cookie))?;
            let data_bytes = if reply.error == 0 { self.pending[&order].reply_bytes } else { 0 };
            let whole_bytes = SIMPLE_REPLY_BYTES + data_bytes;
            if bytes.len() < whole_bytes {
                bytes.reserve(whole_bytes - bytes.len());
                return Ok(());
            }
            self.is_denied |= reply.error == DENIED;
            self.to_front.push_back(bytes.split_to(whole_bytes).freeze());
            self.to_front_bytes += whole_bytes;
            self.by_cookie.remove(&reply.cookie);
            let answered = self.pending.remove(&order).expect("its cookie named it");
            self.pending_bytes -= answered.bytes.len() + answered.reply_bytes;
        }
    }

    /// The connection to the pod has ended: the fate of unanswered requests is unknown. Its bytes
    /// that were not taken are void.
    pub fn pod_lost(&mut self) {
        self.has_pod = false;
        self.is_denied = false;
        self.to_pod.clear();
        if planted!(RelayForgets) {
            self.pending.clear();
            self.by_cookie.clear();
        }
    }

    /// There is a connection to a pod, whose export is open. All that waits goes there, in the
    /// order in which it came (rule `relay-loses-no-request`).
    pub fn pod_found(&mut self) {
        assert!(!self.has_pod && self.to_pod.is_empty(), "the last one has ended");
        self.has_pod = true;
        self.to_pod.extend(self.pending.values().map(|request| request.bytes.clone()));
    }

    /// No pod will answer any more: all that waits gets this error.
    pub fn refuse_all(&mut self, error: u32) {
        self.pod_lost();
        let pending = std::mem::take(&mut self.pending);
        self.by_cookie.clear();
        self.pending_bytes = 0;
        for request in pending.into_values() {
            let mut out = BytesMut::with_capacity(SIMPLE_REPLY_BYTES);
            put_simple_reply(&mut out, request.cookie, error);
            self.to_front_bytes += out.len();
            self.to_front.push_back(out.freeze());
        }
    }

    /// The next bytes for the client, in pieces.
    pub fn to_front(&self) -> impl Iterator<Item = &Bytes> {
        self.to_front.iter()
    }

    /// So many bytes of these were sent.
    pub fn front_sent(&mut self, count: usize) {
        self.to_front_bytes -= count;
        advance(&mut self.to_front, count);
    }

    /// The next bytes for the pod, in pieces.
    pub fn to_pod(&self) -> impl Iterator<Item = &Bytes> {
        self.to_pod.iter()
    }

    /// So many bytes of these were sent.
    pub fn pod_sent(&mut self, count: usize) {
        advance(&mut self.to_pod, count);
    }
}

/// Removes the first `count` bytes of a queue.
fn advance(queue: &mut VecDeque<Bytes>, mut count: usize) {
    while count > 0 {
        let first = queue.front_mut().expect("no more was sent than there was");
        let taken = first.len().min(count);
        first.advance(taken);
        count -= taken;
        if first.is_empty() {
            queue.pop_front();
        }
    }
}

#[cfg(test)]
#[path = "line_test.rs"]
mod tests;
