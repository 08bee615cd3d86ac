//! Requests that wait for too long (rule `timed-out-keeps-its-place`). A volume, or an attachment,
//! may have an `io_timeout`. A request that has waited for so long gets an error, so that the
//! client's machine can be shut down.
//!
//! What was handed over may still take place. It is given up as if its link were lost: the shard
//! must record a higher session before anything else is asked for there, and later writes of these
//! blocks wait until the attempt has ended. Until the session is recorded, the write is
//! *unsettled*, and flushes fail: nobody knows yet what they would find.
//!
//! A shard that gave no answer for so long, while something was asked for all the time, is
//! *silent*. Everything that is asked of it fails at once. Otherwise a client with a thousand
//! requests, which sends a few at a time, would wait for the timeout of each few of them. A silent
//! shard is asked for a new session by itself, which takes a majority. When it has recorded one,
//! requests wait again.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::planted::planted;
use crate::types::{BlockError, BlockOp, BlockReply, Mono};
use crate::view::VolumeView;
use crate::volume::Volume;
use crate::volume::request::{Purpose, Request};

/// Shards that owe an answer since a request timed out. Each must record a new session.
#[derive(Debug, Default)]
pub(super) struct Overdue {
    /// Here a write that timed out may still take place.
    unsettled: BTreeSet<usize>,
    /// These gave no answer for the whole timeout.
    silent: BTreeSet<usize>,
}

impl Overdue {
    fn of(&self, shard: usize) -> bool {
        self.unsettled.contains(&shard) || self.silent.contains(&shard)
    }
}

impl Volume {
    /// How long requests may wait; `None`: for ever.
    pub fn io_timeout(&self) -> Option<Duration> {
        self.io_timeout
    }

    pub(super) fn take_timeout(&mut self, view: &VolumeView) {
        self.io_timeout = view.io_timeout(self.attachment);
    }

    /// The answer of a request that needs nobody, or cannot succeed now.
    pub(super) fn answer_at_once(&self, op: &BlockOp) -> Option<Result<BlockReply, BlockError>> {
        let (offset, len) = match op {
            BlockOp::Flush if self.overdue.unsettled.is_empty() => {
                return Some(Ok(BlockReply::Done));
            }
            BlockOp::Flush => return Some(Err(BlockError::TimedOut)),
            BlockOp::Write { offset, data } => (*offset, data.len() as u64),
            BlockOp::Read { offset, len }
            | BlockOp::Status { offset, len }
            | BlockOp::Zero { offset, len, .. } => (*offset, u64::from(*len)),
        };
        if self.gone || self.withheld {
            return Some(Err(BlockError::NoSuchVolume));
        }
        if len == 0 {
            return Some(Err(BlockError::Invalid));
        }
        if !self.layout.contains(offset, len) {
            return Some(Err(BlockError::OutOfRange));
        }
        if self.overdue.silent.is_empty() {
            return None;
        }
        let (first, last) = (self.layout.locate(offset), self.layout.locate(offset + len - 1));
        let mut silent = self.overdue.silent.range(first.shard..=last.shard);
        silent.next().map(|_| Err(BlockError::TimedOut))
    }

    /// Answers the requests that have waited for too long.
    pub(super) fn time_out(&mut self, now: Mono) {
        let Some(timeout) = self.io_timeout else { return };
        let is_late = |request: &Request| !request.is_over() && now.since(request.since) >= timeout;
        let all = self.work.requests.iter();
        let late: Vec<u64> = all.filter(|it| is_late(it.1)).map(|it| it.0).collect();
        if late.is_empty() {
            return;
        }
        for key in &late {
            let request = self.work.requests.get_mut(*key).expect("just listed");
            request.timed_out = true;
            request.fail(BlockError::TimedOut);
        }
        let (sent, unsent) = self.late_pieces(now, timeout);
        match planted!(TimedOutForgotten) {
            true => self.forget_attempts(&sent),
            false => self.lose(now, |attempt| match attempt.purpose {
                Purpose::Piece(key) => sent.contains(&key),
                _ => false,
            }),
        }
        self.drop_pieces(unsent, BlockError::TimedOut);
        for key in late {
            // What waits for earlier writes has no pieces that could end.
            let waits = |request: &Request| request.op.is_some();
            if self.work.requests.get(key).is_some_and(waits) {
                self.start(key);
            }
        }
        let shards = self.overdue.unsettled.union(&self.overdue.silent);
        for shard in shards.copied().collect::<Vec<usize>>() {
            // A session that was recorded since has settled what was asked for in an earlier one.
            match self.routes[shard].session.current() {
                Some(_) => self.settled(shard),
                None => self.activate(shard),
            }
        }
    }

    /// The pieces of requests that have timed out: those in flight, and the others. Notes what
    /// their shards owe.
    fn late_pieces(&mut self, now: Mono, timeout: Duration) -> (BTreeSet<u64>, Vec<u64>) {
        let (mut sent, mut unsent) = (BTreeSet::new(), Vec::new());
        for (key, piece) in self.work.pieces.iter() {
            let request = self.work.requests.get(piece.request).expect("it has pieces");
            if !request.timed_out {
                continue;
            }
            match piece.sent {
                true => drop(sent.insert(key)),
                false => unsent.push(key),
            }
            let shard = piece.piece.shard;
            let route = &mut self.routes[shard];
            // An earlier attempt may have had an unknown outcome, too: then it has no session now.
            let is_open = piece.sent || route.session.current().is_none();
            if piece.piece.op.is_write() && is_open {
                self.overdue.unsettled.insert(shard);
            }
            if route.asked_since.is_some_and(|since| now.since(since) >= timeout) {
                self.overdue.silent.insert(shard);
                route.session.close();
            }
            route.owes_session = self.overdue.of(shard);
        }
        (sent, unsent)
    }

    /// The shard has recorded a new session, or this client may use it no more.
    pub(super) fn settled(&mut self, shard: usize) {
        self.overdue.unsettled.remove(&shard);
        self.overdue.silent.remove(&shard);
        self.routes[shard].owes_session = false;
    }

    /// Nobody waits for what shards owe.
    pub(super) fn forget_overdue(&mut self) {
        let Overdue { unsettled, silent } = std::mem::take(&mut self.overdue);
        unsettled.iter().chain(&silent).for_each(|shard| self.routes[*shard].owes_session = false);
    }

    /// What a mistake that tests plant does: the write is gone, as if it had never been sent.
    fn forget_attempts(&mut self, sent: &BTreeSet<u64>) {
        let all = self.work.attempts.iter();
        let of = |purpose| matches!(purpose, Purpose::Piece(key) if sent.contains(&key));
        let tickets: Vec<u64> = all.filter(|it| of(it.1.purpose)).map(|it| it.0).collect();
        for ticket in tickets {
            let attempt = self.work.attempts.remove(ticket).expect("just listed");
            let Purpose::Piece(key) = attempt.purpose else { continue };
            let piece = self.work.pieces.get_mut(key).expect("sent pieces stay");
            piece.sent = false;
            self.routes[attempt.shard].in_flight_bytes -= piece.bytes();
            self.end_piece(key, Err(BlockError::TimedOut));
        }
        (0..self.routes.len()).for_each(|shard| self.settled(shard));
    }
}
