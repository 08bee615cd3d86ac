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
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::planted::planted;
use crate::slab::Slab;
use crate::types::{BlockError, Mono};
use crate::volume::request::{PieceInFlight, Request};
use crate::volume::route::ShardRoute;

/// How long requests may wait, and the shards that owe an answer since one has waited for too long.
/// Each of these must record a new session.
#[derive(Debug, Default)]
pub(super) struct Overdue {
    /// `None`: requests wait for ever.
    pub timeout: Option<Duration>,
    /// Here a write that timed out may still take place.
    unsettled: BTreeSet<usize>,
    /// These gave no answer for the whole timeout.
    silent: BTreeSet<usize>,
}

/// What has waited for too long: keys of requests and of their pieces.
#[derive(Debug, Default)]
pub(super) struct Late {
    pub requests: Vec<u64>,
    /// In flight.
    pub sent: BTreeSet<u64>,
    pub unsent: Vec<u64>,
}

impl Overdue {
    /// Requests may wait for another time from now on. Silent shards are waited for anew: the
    /// client may have more patience now.
    pub fn set_timeout(&mut self, timeout: Option<Duration>, routes: &mut [ShardRoute]) {
        if self.timeout == timeout {
            return;
        }
        self.timeout = timeout;
        for shard in std::mem::take(&mut self.silent) {
            routes[shard].owes_session = self.unsettled.contains(&shard);
        }
    }

    /// True when a flush may succeed: no write that has failed may still take place.
    pub fn is_settled(&self) -> bool {
        self.unsettled.is_empty()
    }

    /// True when a request to these shards fails at once.
    pub fn refuses(&self, shards: RangeInclusive<usize>) -> bool {
        self.silent.range(shards).next().is_some()
    }

    /// Finds and marks the requests that have waited for too long, and notes what their shards owe.
    pub fn late(
        &mut self,
        now: Mono,
        requests: &mut Slab<Request>,
        pieces: &Slab<PieceInFlight>,
        routes: &mut [ShardRoute],
    ) -> Late {
        let mut late = Late::default();
        let Some(timeout) = self.timeout else { return late };
        let is_late = |of: &Request| !of.is_over() && now.since(of.since) >= timeout;
        late.requests = requests.iter().filter(|it| is_late(it.1)).map(|it| it.0).collect();
        if late.requests.is_empty() {
            return late;
        }
        for key in &late.requests {
            let request = requests.get_mut(*key).expect("just listed");
            request.timed_out = true;
            request.fail(BlockError::TimedOut);
        }
        for (key, piece) in pieces.iter() {
            if !requests.get(piece.request).expect("it has pieces").timed_out {
                continue;
            }
            match piece.sent {
                true => drop(late.sent.insert(key)),
                false => late.unsent.push(key),
            }
            if !planted!(TimedOutForgotten) {
                self.note(now, timeout, piece, &mut routes[piece.piece.shard]);
            }
        }
        late
    }

    /// Notes what follows for the shard of a piece that has waited for too long.
    fn note(&mut self, now: Mono, timeout: Duration, late: &PieceInFlight, route: &mut ShardRoute) {
        let shard = late.piece.shard;
        // An earlier attempt may have had an unknown outcome, too: then it has no session now.
        let is_open = late.sent || route.session.current().is_none();
        if late.piece.op.is_write() && is_open {
            self.unsettled.insert(shard);
        }
        if route.asked_since.is_some_and(|since| now.since(since) >= timeout) {
            self.silent.insert(shard);
            route.session.close();
        }
        route.owes_session = self.unsettled.contains(&shard) || self.silent.contains(&shard);
    }

    /// The attempts at what is late have been given up. Returns the shards that are to be asked for
    /// a session. One that was recorded since has settled what was asked for in an earlier one.
    pub fn given_up(&mut self, routes: &mut [ShardRoute]) -> Vec<usize> {
        let mut owing: Vec<usize> = self.unsettled.union(&self.silent).copied().collect();
        owing.retain(|shard| {
            let is_settled = routes[*shard].session.current().is_some();
            if is_settled {
                self.settle(*shard, &mut routes[*shard]);
            }
            !is_settled
        });
        owing
    }

    /// The shard has recorded a new session, or this client may use it no more.
    pub fn settle(&mut self, shard: usize, route: &mut ShardRoute) {
        self.unsettled.remove(&shard);
        self.silent.remove(&shard);
        route.owes_session = false;
    }

    /// Nobody waits for what shards owe.
    pub fn forget(&mut self, routes: &mut [ShardRoute]) {
        let owing = self.unsettled.union(&self.silent);
        owing.for_each(|shard| routes[*shard].owes_session = false);
        self.unsettled.clear();
        self.silent.clear();
    }
}
