//! The leader of one shard, as known to this front end, and the pieces that wait for it.
//!
//! A leader is known together with its term. Every request names that term, and any other member
//! refuses it. Without a known leader, one member at a time is probed, the local one first. A
//! *probe* is a status query of one block under term 0, which only a leader answers. A few hints in
//! a row are followed. After that, and after every useless answer, nothing is sent for a short
//! pause, which doubles up to a bound.

use std::collections::VecDeque;
use std::time::Duration;

use crate::planted::planted;
use crate::types::{MemberId, Mono, PodId, ShardId};
use crate::view::{MemberView, ShardView};
use crate::volume::session::ShardSession;

const PAUSE_MIN: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(100);
/// Bytes that one shard may have in flight; further pieces wait here.
const WINDOW_BYTES_MAX: usize = 32 << 20;
/// The window after the shard was busy.
const WINDOW_BYTES_MIN: usize = 64 << 10;
/// Hints followed without a pause between them.
const HOPS_MAX: u8 = 3;

/// The route to one shard.
#[derive(Debug)]
pub(super) struct ShardRoute {
    pub shard: ShardId,
    /// Unsent pieces, oldest first.
    pub waiting: VecDeque<u64>,
    /// Bytes of sent and unanswered pieces.
    pub in_flight_bytes: usize,
    /// Limit of `in_flight_bytes`. It shrinks when the shard is busy, so that refused pieces are
    /// not sent over and over, and doubles with every success.
    window_bytes: usize,
    /// The probe in flight.
    pub probe: Option<u64>,
    pub session: ShardSession,
    /// Rounds that wait to be sent, oldest first.
    pub rounds: VecDeque<u64>,
    /// A request timed out here: the shard is to record a new session, whether something waits or
    /// not.
    pub owes_session: bool,
    /// Since when something has been asked for all the time without any answer.
    pub asked_since: Option<Mono>,
    /// The shard is in the list of shards that have something to send.
    pub active: bool,
    members: Vec<MemberView>,
    leader: Option<MemberView>,
    /// The highest term that is known to have a leader. The term of a member without a leader does
    /// not count: perhaps it was never elected in it, and nobody else ever hears of it.
    term: u64,
    /// Index of the next member to probe.
    candidate: usize,
    hops: u8,
    pause: Duration,
    /// Nothing is sent before this time.
    resume_at: Mono,
}

impl ShardRoute {
    pub fn new(view: &ShardView, me: PodId) -> ShardRoute {
        let local = view.members.iter().position(|member| member.pod == me);
        ShardRoute {
            shard: view.shard,
            waiting: VecDeque::new(),
            in_flight_bytes: 0,
            window_bytes: WINDOW_BYTES_MAX,
            probe: None,
            session: ShardSession::default(),
            rounds: VecDeque::new(),
            owes_session: false,
            asked_since: None,
            active: false,
            members: view.members.clone(),
            leader: None,
            term: 0,
            candidate: local.unwrap_or(0),
            hops: 0,
            pause: PAUSE_MIN,
            resume_at: Mono(0),
        }
    }

    /// Something waits to be sent.
    pub fn has_work(&self) -> bool {
        !self.waiting.is_empty() || !self.rounds.is_empty() || self.owes_session
    }

    fn asks(&self) -> bool {
        self.in_flight_bytes > 0 || self.has_work()
    }

    /// The shard has answered something.
    pub fn answered(&mut self, now: Mono) {
        self.asked_since = self.asks().then_some(now);
    }

    /// Something that was asked for has ended.
    pub fn note_rest(&mut self) {
        if !self.asks() {
            self.asked_since = None;
        }
    }

    /// The members have changed.
    pub fn update(&mut self, view: &ShardView) {
        assert_eq!(self.shard, view.shard, "a shard keeps its place in the volume");
        self.members.clone_from(&view.members);
        let leader = self.leader.map(|leader| leader.member);
        self.leader = leader.and_then(|leader| self.member(leader));
    }

    /// The leader and the term to name.
    pub fn leader(&self) -> Option<(MemberView, u64)> {
        self.leader.map(|leader| (leader, self.term))
    }

    /// The end of the pause, during a pause.
    pub fn resumes_at(&self) -> Option<Mono> {
        (self.resume_at > Mono(0)).then_some(self.resume_at)
    }

    /// False during a pause. Ends an elapsed pause.
    pub fn may_send(&mut self, now: Mono) -> bool {
        if self.resume_at > now {
            return false;
        }
        self.resume_at = Mono(0);
        true
    }

    /// The next member to probe.
    pub fn next_candidate(&mut self) -> Option<MemberView> {
        let count = self.members.len();
        let member = *self.members.get(self.candidate % count.max(1))?;
        self.candidate = (self.candidate + 1) % count;
        Some(member)
    }

    /// This member answered as the leader of this term.
    pub fn confirmed(&mut self, leader: MemberId, term: u64) {
        if term < self.term || term == 0 {
            return;
        }
        let Some(leader) = self.member(leader) else {
            return;
        };
        self.term = term;
        self.leader = Some(leader);
        self.hops = 0;
        self.pause = PAUSE_MIN;
        self.window_bytes = (2 * self.window_bytes).min(WINDOW_BYTES_MAX);
    }

    /// The leader refused a request because it is busy.
    pub fn busy(&mut self, now: Mono, leader: MemberId, term: u64) {
        if self.leader.is_none() && term >= self.term && term > 0 {
            self.term = term;
            self.leader = self.member(leader);
        }
        self.window_bytes = WINDOW_BYTES_MIN;
        self.pause(now);
    }

    /// True when this many bytes may be sent now. One piece always may.
    pub fn has_room(&self, bytes: usize) -> bool {
        self.in_flight_bytes == 0 || self.in_flight_bytes + bytes <= self.window_bytes
    }

    /// This member does not lead. It may know the leader of `term`.
    pub fn refused(&mut self, now: Mono, from: MemberId, hint: Option<MemberId>, term: u64) {
        let current = self.leader.map(|leader| leader.member);
        let news = term > self.term || current.is_none() || current == Some(from);
        if !news {
            // This answers a request from before the present leader was known.
            return;
        }
        let hint = hint.filter(|_| term >= self.term && term > 0);
        if hint.is_some() || planted!(TermWithoutLeader) {
            self.term = self.term.max(term);
        }
        self.leader = hint.and_then(|hint| self.member(hint));
        self.hops = self.hops.saturating_add(1);
        if self.leader.is_none() || self.hops > HOPS_MAX {
            self.pause(now);
        }
    }

    /// This member is unreachable, or the outcome of a request at it is unknown.
    pub fn lost(&mut self, now: Mono, from: MemberId) {
        if self.leader.is_some_and(|leader| leader.member == from) {
            self.leader = None;
            self.pause(now);
        }
    }

    /// The pod is unreachable. If it had the leader, another one must be found.
    pub fn pod_down(&mut self, now: Mono, pod: PodId) {
        if let Some(leader) = self.leader.filter(|leader| leader.pod == pod) {
            self.lost(now, leader.member);
        }
    }

    /// The leader and term according to a member on this pod.
    pub fn role(&mut self, leader: Option<MemberId>, term: u64) {
        let newer = term > self.term;
        let completes = term == self.term && self.leader.is_none() && leader.is_some();
        if newer && leader.is_none() && !planted!(TermWithoutLeader) {
            self.leader = None;
        } else if newer || completes {
            self.term = term;
            self.leader = leader.and_then(|leader| self.member(leader));
        }
        if self.leader.is_some() && (newer || completes) {
            self.hops = 0;
            self.pause = PAUSE_MIN;
            self.resume_at = Mono(0);
        }
    }

    /// Sends nothing for a while. Answers during a pause do not extend it.
    pub fn pause(&mut self, now: Mono) {
        if self.resume_at > now {
            return;
        }
        self.resume_at = now + self.pause;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        self.hops = 0;
    }

    fn member(&self, member: MemberId) -> Option<MemberView> {
        self.members.iter().copied().find(|view| view.member == member)
    }
}
