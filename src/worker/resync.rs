//! Resync: brings a member that is behind the log up to date from its leader, extent by extent.
//!
//! Steps of the member: set the resyncing flag durably -> rounds (own list; the source's list chunk
//! by chunk; fetch what differs, delete what is not listed) -> make all durable as of the start of
//! the last round -> step the Raft snapshot -> apply the log until the newest fetched content is
//! covered -> clear the flag. Every round lists everything. A round that moved little is the last
//! one: the source's log must reach back to its start, and is kept for that long, within bounds. So
//! is a round that moved hardly less than the one before: clients write that much meanwhile, and
//! another would find no less. When the log does not reach back, all of it begins again.
//!
//! While the flag is set, the store is as of what is applied here, or newer. The newer content was
//! applied by some source, so it was committed. An elected member with the flag is whole once it
//! has applied an entry of its own term: its log has all that was committed before. Until then it
//! can be a source, whose copies become whole no sooner (ADR 7).
//! - Owns: the resyncs into members of this worker.
//! - May call: lanes, members, peers and reports.
//! - Is told: offers and answers of sources, questions of peers, ends of reads, durable records.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use rustc_hash::FxHashMap;

use crate::limits::RESYNCS_INTO_LANE_MAX;
use crate::net::message::{CallId, PeerMessage};
use crate::planted::planted;
use crate::replica::messages::Input;
use crate::store::messages::ReadId;
use crate::types::{
    BlockError, EXTENT_BYTES, Extent, ExtentContent, ManifestChunk, ManifestEntry, MemberId, Mono,
    PodId, Unappended,
};
use crate::worker::intake::{Breach, check_content, check_manifest};
use crate::worker::lanes::Lanes;
use crate::worker::members::{MemberRuntime, Members};
use crate::worker::offers::{Offer, Offers};
use crate::worker::owed::ExtentAsk;
use crate::worker::peers::PeerHandler;
use crate::worker::reads::{PeerAsk, ReadTarget};
use crate::worker::reports::Reports;
use crate::worker::token::ConnKey;

/// Most extents that are asked for, or have arrived and are not being installed.
const FETCHES_MAX: usize = 32;
/// Arrived extents that are installed together.
const INSTALL_EXTENTS: usize = 16;
/// A round that fetched no more than this part of a listing is the last one.
const LAST_ROUND_PART: u64 = 64;
/// A resync that hears nothing for this long is given up; the leader offers another.
const SILENCE: Duration = Duration::from_secs(10);

/// After a resync that failed, before the member asks for another.
const RESUME_AFTER: Duration = Duration::from_secs(1);

/// A resync into one member of this worker.
pub struct Resync {
    source: MemberId,
    step: Step,
    pub(super) round: Round,
    /// Newest applied index that copies may reflect. A source with the flag cannot tell its own.
    reflects: u64,
    /// The term of the leader that offered it. What the source had is in the log before the entries
    /// of that term, or counts in `reflects`.
    term: u64,
    heard: Mono,
    /// Extents that the round before fetched.
    fetched_before: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The resyncing flag becomes durable.
    SettingFlag,
    /// The own list is read.
    ListingOwn,
    /// Chunks of the source's list are asked for and copied.
    Copying,
    /// The copy becomes durable.
    Finishing,
    /// The log is applied up to the newest copied content.
    CatchingUp,
    /// The flag is cleared.
    Clearing,
}

impl Resync {
    /// `reflects` comes from an earlier attempt, or is 0.
    pub(super) fn new(source: MemberId, term: u64, reflects: u64, now: Mono) -> Resync {
        let (step, round) = (Step::SettingFlag, Round::default());
        Resync { source, step, round, reflects, term, heard: now, fetched_before: None }
    }

    /// Takes a chunk of the source's list, with the metadata as of it.
    pub(super) fn listed(&mut self, chunk: &ManifestChunk, meta: Bytes) {
        self.reflects = self.reflects.max(chunk.applied_index);
        self.round.as_of = chunk.applied_index;
        if planted!(ResyncMissesWrites) {
            self.round.since = None;
        }
        self.round.since.get_or_insert((chunk.applied_index, chunk.applied_term, meta));
        self.round.compare(chunk);
    }

    /// Takes an extent, which may be newer than the list.
    pub(super) fn fetched(&mut self, content: ExtentContent) {
        self.reflects = self.reflects.max(content.last_changed);
        self.round.fetched += 1;
        self.round.arrived.push(content);
    }

    /// True while the store is not ahead of the log, and neither flag nor extents are in flight.
    fn may_stop(&self) -> bool {
        let copies = matches!(self.step, Step::ListingOwn | Step::Copying);
        copies && self.round.installing.is_none()
    }

    /// Notes a round that has fetched all that it found. True when the log can do the rest.
    fn is_last_round(&mut self, last_extents: u64) -> bool {
        let fetched = self.round.fetched;
        let before = self.fetched_before.replace(fetched);
        fetched <= last_extents || before.is_some_and(|before| fetched > before - before / 4)
    }

    /// True when all that copied content may reflect is applied: the store is as of one moment.
    pub(super) fn is_covered(&self, applied: u64, applied_term: u64) -> bool {
        let known = applied >= self.reflects || planted!(ResyncEndsEarly);
        known && applied_term >= self.term
    }
}

/// One pass over the source's list.
#[derive(Default)]
pub(super) struct Round {
    /// Applied index, term and metadata of the source when this round began.
    pub(super) since: Option<(u64, u64, Bytes)>,
    /// The own list from the next chunk on, and the index applied here when its listing began.
    pub(super) own: VecDeque<ManifestEntry>,
    own_as_of: Option<u64>,
    /// Applied index of the source at the newest chunk.
    pub(super) as_of: u64,
    /// The chunk asked for; answers to other calls are late and ignored.
    listing: Option<CallId>,
    /// Where the chunk after this one starts.
    pub(super) next: Option<Extent>,
    /// The extents asked for.
    fetching: Vec<(CallId, Extent)>,
    pub(super) to_fetch: VecDeque<(Extent, u32)>,
    pub(super) to_delete: Vec<(Extent, u32)>,
    pub(super) arrived: Vec<ExtentContent>,
    /// The installation in flight; ends of others belong to a resync that was given up.
    installing: Option<ReadId>,
    /// The read of our own list in flight; as above.
    listing_own: Option<ReadId>,
    fetched: u64,
}

impl Round {
    /// Compares a chunk of the source's list with ours: what to fetch, and what to delete.
    fn compare(&mut self, chunk: &ManifestChunk) {
        let key = |entry: &ManifestEntry| (entry.extent, entry.layer);
        for listed in &chunk.extents {
            while self.own.front().is_some_and(|own| key(own) < key(listed)) {
                self.to_delete.extend(self.own.pop_front().as_ref().map(key));
            }
            let same_place = self.own.front().is_some_and(|own| key(own) == key(listed));
            let own = if same_place { self.own.pop_front() } else { None };
            if own.as_ref() != Some(listed) {
                self.to_fetch.push_back(key(listed));
            }
        }
        let is_listed = |own: &ManifestEntry| chunk.next.is_none_or(|next| own.extent < next);
        while self.own.front().is_some_and(is_listed) {
            self.to_delete.extend(self.own.pop_front().as_ref().map(key));
        }
        self.next = chunk.next;
    }

    /// The extent that this call in flight asks for.
    fn asked(&self, call: CallId) -> Option<Extent> {
        self.fetching.iter().find(|(fetch, _)| *fetch == call).map(|(_, extent)| *extent)
    }

    /// True when this read of our own list is the one in flight, and not a late one.
    fn awaits_list(&self, read: ReadId) -> bool {
        self.listing_own == Some(read)
    }

    /// Notes the end of an installation. False: it is a late one.
    fn installed(&mut self, read: ReadId) -> bool {
        let awaited = self.installing == Some(read);
        if awaited {
            self.installing = None;
        }
        awaited
    }

    /// True when everything of the chunk is in place.
    fn chunk_is_done(&self) -> bool {
        self.listing.is_none()
            && self.fetching.is_empty()
            && self.to_fetch.is_empty()
            && self.to_delete.is_empty()
            && self.arrived.is_empty()
            && self.installing.is_none()
    }
}

fn is_covered(runtime: &MemberRuntime, resync: &Resync) -> bool {
    resync.is_covered(runtime.member.applied_index(), runtime.member.applied_term())
}

/// The resyncs into members of this worker.
#[derive(Default)]
pub struct Resyncs {
    running: FxHashMap<MemberId, Resync>,
    /// When each member with the durable resyncing flag asks for a resync by itself, unless one
    /// runs. The leader may not offer one: the member's log may reach far enough again.
    resume_at: FxHashMap<MemberId, Mono>,
    /// Offers, by member and source, for which the member's lane has no room yet.
    waiting: VecDeque<(MemberId, MemberId)>,
    /// Offers of members here to their followers.
    pub offers: Offers,
    /// Resyncs that began since the start, per lane.
    begun: FxHashMap<u8, u64>,
}

impl Resyncs {
    /// A member with the resyncing flag and without a resync: it asks for one, from `at` on.
    pub fn resume(&mut self, member: MemberId, at: Mono) {
        self.resume_at.insert(member, at);
    }

    pub fn len(&self) -> usize {
        self.running.len()
    }

    /// Extents that are known to differ, and are not in place.
    pub fn pending_extents(&self) -> u64 {
        let rounds = self.running.values().map(|resync| &resync.round);
        let pending = |of: &Round| of.to_fetch.len() + of.fetching.len() + of.arrived.len();
        rounds.map(|round| pending(round) as u64).sum()
    }

    /// Resyncs into replicas of a lane that began since the start of the pod.
    pub fn begun(&self, lane: u8) -> u64 {
        self.begun.get(&lane).copied().unwrap_or(0)
    }

    /// True when another resync may copy into this lane.
    fn has_room(&self, members: &Members, lane: u8) -> bool {
        let copies = self.running.iter().filter(|(member, resync)| {
            !matches!(resync.step, Step::CatchingUp | Step::Clearing)
                && members.lane_of(**member) == Some(lane)
        });
        copies.count() < RESYNCS_INTO_LANE_MAX
    }

    /// Ends the resync of a faulted member, which keeps the flag.
    pub fn stop(&mut self, member: MemberId) {
        self.running.remove(&member);
    }

    /// Forgets a destroyed member.
    pub fn forget(&mut self, member: MemberId) {
        self.waiting.retain(|(waiting, _)| *waiting != member);
        self.running.remove(&member);
        self.resume_at.remove(&member);
    }

    /// True from the start of a resync to its end, also between attempts: the member is not whole.
    pub fn is_resyncing(&self, member: MemberId) -> bool {
        self.running.contains_key(&member) || self.resume_at.contains_key(&member)
    }

    /// True while nothing may be appended to this member's log: its store goes ahead of the log,
    /// not yet durably, or the flag waits for write-back, which would not end under a steady load.
    pub fn refuses_entries(&self, member: MemberId) -> bool {
        let resync = self.running.get(&member);
        resync.is_some_and(|resync| matches!(resync.step, Step::SettingFlag | Step::Finishing))
    }

    /// The lane of a member that may be a source. It need not serve: it applies what is committed.
    /// A leader that waits for followers must be able to resync them, even with the flag itself.
    pub fn source_lane(&self, members: &Members, source: MemberId) -> Option<u8> {
        let runtime = members.get(source)?;
        // The flag is set from the start of a resync to its end, with pauses after failures.
        let has_resyncing_flag = self.resume_at.contains_key(&source) && !planted!(ResyncingSource);
        let flagged = self.running.contains_key(&source) || has_resyncing_flag;
        let leads = runtime.role.leader == Some(source) && !planted!(ResyncingLeaderIsNoSource);
        (runtime.faulted.is_none() && (!flagged || leads)).then_some(runtime.lane)
    }

    /// The resync that awaits an answer to a call. Its source is heard now.
    fn heard(&mut self, now: Mono, of: impl Fn(&Round) -> bool) -> Option<(MemberId, &mut Resync)> {
        let (member, resync) = self.running.iter_mut().find(|(_, resync)| of(&resync.round))?;
        resync.heard = now;
        Some((*member, resync))
    }
}

/// The resyncs, and the parts that they call.
pub struct ResyncHandler<'a> {
    pub resyncs: &'a mut Resyncs,
    pub lanes: &'a mut Lanes,
    pub reports: &'a mut Reports,
    pub out: PeerHandler<'a>,
}

impl ResyncHandler<'_> {
    /// The leader offers a resync to a member here. Offers of deposed leaders are ignored.
    pub fn offered(&mut self, member: MemberId, source: MemberId) {
        let Some(runtime) = self.out.members.get(member) else { return };
        let is_peer = runtime.peers.iter().any(|peer| peer.member == source);
        if runtime.faulted.is_some() || !is_peer || runtime.role.leader != Some(source) {
            return;
        }
        let reflects = match self.resyncs.running.get(&member) {
            None => 0,
            // The leader's log does not reach back to the copy any more: begin again.
            Some(resync) if resync.step == Step::CatchingUp && !is_covered(runtime, resync) => {
                resync.reflects
            }
            Some(_) => return,
        };
        if !self.resyncs.has_room(self.out.members, runtime.lane) {
            if !self.resyncs.waiting.contains(&(member, source)) {
                self.resyncs.waiting.push_back((member, source));
            }
            return;
        }
        *self.resyncs.begun.entry(runtime.lane).or_default() += 1;
        tracing::info!(%member, %source, "resync begins");
        let resync = Resync::new(source, runtime.role.term, reflects, self.out.now);
        self.resyncs.running.insert(member, resync);
        self.lanes.at(runtime.lane).begin_resync(member);
        self.reports.due = true;
    }

    /// Takes up offers that have waited for room. Those of deposed leaders are dropped.
    fn take_up_waiting(&mut self) {
        for (member, source) in std::mem::take(&mut self.resyncs.waiting) {
            self.offered(member, source);
        }
    }

    /// The store of a member here does not reach back to what a follower has.
    pub fn offer(&mut self, source: MemberId, to: MemberId) {
        let Some(lane) = self.out.members.lane_of(source) else { return };
        if self.resyncs.offers.add(self.out.now, Offer { lane, source, to }) {
            self.out.send_to(to, PeerMessage::ResyncOffer { to, source });
        }
    }

    /// A follower of a member here says that its resync ended.
    pub fn offer_ended(&mut self, source: MemberId, to: MemberId) {
        self.resyncs.offers.ended(source, to);
        self.offer_next();
    }

    fn offer_next(&mut self) {
        let members = &self.out.members;
        let leads = |source| members.role_of(source).leader == Some(source);
        for Offer { source, to, .. } in self.resyncs.offers.next(self.out.now, leads) {
            self.out.send_to(to, PeerMessage::ResyncOffer { to, source });
        }
    }

    /// A record of a member with a resync became durable.
    pub fn durable(&mut self, member: MemberId) {
        let Some(resync) = self.resync(member) else { return };
        match resync.step {
            Step::SettingFlag => {
                self.out.members.input(self.out.now, member, Input::Resyncing(true));
                self.begin_round(member);
            }
            Step::Finishing => {
                resync.step = Step::CatchingUp;
                let (index, term, meta) =
                    resync.round.since.clone().expect("a round has a beginning");
                let install = Input::InstallSnapshot { index, term, meta };
                self.out.members.input(self.out.now, member, install);
            }
            Step::Clearing => self.ended(member, true),
            step => panic!("nothing of {member} was to become durable while {step:?}"),
        }
    }

    /// The log went on before the store went ahead of it: another round compares them once more.
    pub fn overtaken(&mut self, member: MemberId) {
        if self.resync(member).is_some_and(|resync| resync.step == Step::Finishing) {
            tracing::info!(%member, "the log went on at the end of a resync: another round");
            self.begin_round(member);
        }
    }

    fn resync(&mut self, member: MemberId) -> Option<&mut Resync> {
        self.resyncs.running.get_mut(&member)
    }

    fn begin_round(&mut self, member: MemberId) {
        let Some(resync) = self.resync(member) else { return };
        resync.step = Step::ListingOwn;
        resync.round = Round::default();
        self.list_own(member, Extent(0));
    }

    fn list_own(&mut self, member: MemberId, from: Extent) {
        let Some(lane) = self.out.members.lane_of(member) else { return };
        let read = self.lanes.reads.add(ReadTarget::OwnManifest(member));
        if let Some(resync) = self.resync(member) {
            resync.round.listing_own = Some(read);
        }
        self.lanes.at(lane).manifest(read, member, from);
    }

    /// A chunk of our own list was read.
    pub fn own_manifest(&mut self, member: MemberId, read: ReadId, chunk: ManifestChunk) {
        let Some(resync) = self.resync(member) else { return };
        if !resync.round.awaits_list(read) {
            return;
        }
        resync.round.own_as_of.get_or_insert(chunk.applied_index);
        resync.round.own.extend(chunk.extents);
        match chunk.next {
            Some(next) => self.list_own(member, next),
            None => {
                resync.step = Step::Copying;
                self.list_source(member, Extent(0));
            }
        }
    }

    fn list_source(&mut self, member: MemberId, from: Extent) {
        let call = self.out.peers.next_call();
        let Some(resync) = self.resync(member) else { return };
        resync.round.listing = Some(call);
        let source = resync.source;
        self.out.send_to(source, PeerMessage::ManifestRequest { call, source, from });
    }

    /// A chunk of the source's list arrived.
    pub fn manifest_arrived(
        &mut self,
        pod: PodId,
        call: CallId,
        answer: Option<(ManifestChunk, Bytes)>,
    ) -> Result<(), Breach> {
        let is_of = |round: &Round| round.listing == Some(call);
        let Some((member, resync)) = self.resyncs.heard(self.out.now, is_of) else {
            return Ok(());
        };
        let Some(runtime) = self.out.members.get(member) else { return Ok(()) };
        if !runtime.is_peer(resync.source, pod) {
            return Err(Breach::OthersCall);
        }
        resync.round.listing = None;
        let Some((chunk, meta)) = answer else {
            self.ended(member, false);
            return Ok(());
        };
        if let Err(breach) = check_manifest(runtime.member.blocks().count, &chunk, &meta) {
            self.ended(member, false);
            return Err(breach);
        }
        resync.listed(&chunk, meta);
        self.copy(member);
        Ok(())
    }

    pub fn extent_arrived(
        &mut self,
        pod: PodId,
        call: CallId,
        result: Result<ExtentContent, BlockError>,
    ) -> Result<(), Breach> {
        let is_of = |round: &Round| round.asked(call).is_some();
        let Some((member, resync)) = self.resyncs.heard(self.out.now, is_of) else {
            return Ok(());
        };
        let Some(runtime) = self.out.members.get(member) else { return Ok(()) };
        let asked = resync.round.asked(call).expect("just seen");
        if !runtime.is_peer(resync.source, pod) {
            return Err(Breach::OthersCall);
        }
        resync.round.fetching.retain(|(fetch, _)| *fetch != call);
        match result {
            Ok(content) => {
                let blocks = runtime.member.blocks().count;
                if let Err(breach) = check_content(blocks, asked, &content) {
                    self.ended(member, false);
                    return Err(breach);
                }
                resync.fetched(content);
                self.out.members.meters.resync_fetched_bytes.add(EXTENT_BYTES as u64);
                self.copy(member);
            }
            Err(error) => {
                tracing::warn!(%member, %error, "the source of a resync cannot read an extent");
                self.ended(member, false);
            }
        }
        Ok(())
    }

    /// Extents are in place, except refused ones: damaged on the way, no space, or older than ours.
    pub fn installed(&mut self, member: MemberId, read: ReadId, refused: Vec<Extent>) {
        let now = self.out.now;
        let Some(resync) = self.resync(member) else { return };
        if !resync.round.installed(read) {
            return;
        }
        if !refused.is_empty() {
            let (count, first) = (refused.len(), refused[0].0);
            tracing::warn!(%member, count, first, "extents of a resync cannot be put in place");
            return self.ended(member, false);
        }
        resync.heard = now;
        self.copy(member);
    }

    /// Continues the chunk: fetches, installs, then takes the next chunk or ends the round.
    fn copy(&mut self, member: MemberId) {
        self.install_some(member);
        self.fetch_some(member);
        let Some(resync) = self.resync(member) else { return };
        if resync.step != Step::Copying || !resync.round.chunk_is_done() {
            return;
        }
        match resync.round.next {
            Some(next) => self.list_source(member, next),
            None => self.end_round(member),
        }
    }

    fn install_some(&mut self, member: MemberId) {
        let Some(lane) = self.out.members.lane_of(member) else { return };
        let Some(resync) = self.resyncs.running.get_mut(&member) else { return };
        let round = &mut resync.round;
        let enough = round.arrived.len() >= INSTALL_EXTENTS
            || (round.to_fetch.is_empty() && round.fetching.is_empty());
        if round.installing.is_some()
            || !enough
            || (round.arrived.is_empty() && round.to_delete.is_empty())
        {
            return;
        }
        let arrived = std::mem::take(&mut round.arrived);
        let delete = std::mem::take(&mut round.to_delete);
        let read = self.lanes.reads.add(ReadTarget::Installed(member));
        round.installing = Some(read);
        self.lanes.at(lane).install_extents(read, member, round.as_of, arrived, delete);
    }

    fn fetch_some(&mut self, member: MemberId) {
        loop {
            let call = self.out.peers.next_call();
            let Some(resync) = self.resync(member) else { return };
            let round = &mut resync.round;
            if round.fetching.len() + round.arrived.len() >= FETCHES_MAX {
                return;
            }
            let Some((extent, layer)) = round.to_fetch.pop_front() else { return };
            round.fetching.push((call, extent));
            let source = resync.source;
            self.out.send_to(source, PeerMessage::ExtentRequest { call, source, extent, layer });
        }
    }

    fn end_round(&mut self, member: MemberId) {
        let Some(runtime) = self.out.members.get(member) else { return };
        let (lane, applied) = (runtime.lane, runtime.member.applied_index());
        let appends = runtime.member.unappended() != Unappended::default();
        let last_extents = self.lanes.get(lane).lane.listing_extents() / LAST_ROUND_PART;
        let Some(resync) = self.resync(member) else { return };
        tracing::info!(%member, extents = resync.round.fetched, "a round of the resync ended");
        let (index, term, meta) = resync.round.since.clone().expect("a chunk has arrived");
        // No append may be in flight to a log that the store is about to go ahead of.
        if !resync.is_last_round(last_extents) || (appends && index > applied) {
            return self.begin_round(member);
        }
        // Neither list has an extent that the log wrote after ours and trimmed before the source's.
        // The store would jump over that trim (rule `no-jump-over-applied`).
        if index > applied && resync.round.own_as_of != Some(applied) {
            tracing::info!(%member, applied, index, "the log went on meanwhile: another round");
            return self.begin_round(member);
        }
        resync.step = Step::Finishing;
        self.lanes.at(lane).finish_resync(member, index, term, meta);
    }

    /// Once per tick: ends silent resyncs, and clears the flags of members that have caught up.
    pub fn tick(&mut self) {
        let now = self.out.now;
        self.resume();
        self.offer_next();
        self.take_up_waiting();
        let members = self.out.members.iter().map(|(member, _)| member);
        let members: Vec<MemberId> =
            members.filter(|member| self.resyncs.is_resyncing(*member)).collect();
        for member in members {
            let Some(runtime) = self.out.members.get(member) else { continue };
            let leads = runtime.role.leader == Some(member);
            match self.resyncs.running.get(&member) {
                Some(resync) if resync.step == Step::CatchingUp && is_covered(runtime, resync) => {
                    self.clear_resyncing_flag(member);
                }
                // A leader is a source for others. An installation in flight ends first: without
                // the flag, a crash must find no extent half overwritten.
                Some(resync) if leads && resync.may_stop() => self.ended(member, false),
                Some(resync)
                    if resync.step == Step::Copying && now.since(resync.heard) > SILENCE =>
                {
                    tracing::warn!(%member, "the source of a resync is silent");
                    self.ended(member, false);
                }
                None if leads && runtime.member.applied_term() == runtime.role.term => {
                    tracing::info!(%member, "a resyncing replica was elected, and is whole");
                    self.clear_resyncing_flag(member);
                }
                _ => {}
            }
        }
    }

    fn clear_resyncing_flag(&mut self, member: MemberId) {
        let Some(runtime) = self.out.members.get(member) else { return };
        let own = || Resync::new(member, runtime.role.term, 0, self.out.now);
        self.resyncs.running.entry(member).or_insert_with(own).step = Step::Clearing;
        self.lanes.at(runtime.lane).clear_resync(member);
    }

    /// Members with the flag and without a resync begin again, as soon as they know a leader.
    fn resume(&mut self) {
        let leader_of = |(member, runtime): (MemberId, &MemberRuntime)| {
            let at = self.resyncs.resume_at.get(&member)?;
            let wanted = self.out.now >= *at && !self.resyncs.running.contains_key(&member);
            Some((member, runtime.role.leader.filter(|_| wanted)?))
        };
        let flagged: Vec<(MemberId, MemberId)> =
            self.out.members.iter().filter_map(leader_of).collect();
        for (member, leader) in flagged {
            self.offered(member, leader);
        }
    }

    fn ended(&mut self, member: MemberId, ok: bool) {
        let Some(resync) = self.resyncs.running.remove(&member) else { return };
        tracing::info!(%member, ok, "resync ended");
        self.out.members.note_resync_end(ok);
        if ok {
            self.resyncs.resume_at.remove(&member);
            self.out.members.input(self.out.now, member, Input::Resyncing(false));
        } else {
            self.resyncs.resume(member, self.out.now + RESUME_AFTER);
        }
        if resync.source != member {
            let done = PeerMessage::ResyncDone { to: resync.source, member, ok };
            self.out.send_to(resync.source, done);
        }
        self.reports.due = true;
    }

    /// A peer asks for a chunk of our list.
    pub fn manifest_asked(&mut self, ask: PeerAsk, from: Extent) {
        let PeerAsk { conn, call, source } = ask;
        let Some(lane) = self.resyncs.source_lane(self.out.members, source) else {
            return self.out.send_on(conn, PeerMessage::Manifest { call, answer: None });
        };
        self.resyncs.offers.heard(self.out.now, source);
        let keep_log = Input::KeepLog { anew: from == Extent(0) };
        self.out.members.input(self.out.now, source, keep_log);
        let read = self.lanes.reads.add(ReadTarget::PeerManifest(ask));
        self.lanes.at(lane).manifest(read, source, from);
    }

    /// Sends our list, which was read, if this member is still a source.
    pub fn answer_manifest(&mut self, ask: PeerAsk, list: (ManifestChunk, Bytes)) {
        let is_source = self.resyncs.source_lane(self.out.members, ask.source).is_some();
        let (call, answer) = (ask.call, is_source.then_some(list));
        self.out.send_on(ask.conn, PeerMessage::Manifest { call, answer });
    }

    /// A peer asks for an extent. When the network is slower than our disk, the question waits.
    pub fn extent_asked(&mut self, conn: ConnKey, ask: ExtentAsk) -> Result<(), Breach> {
        let ExtentAsk { call, source, extent, layer } = ask;
        let Some(lane) = self.resyncs.source_lane(self.out.members, source) else {
            let result = Err(BlockError::NotLeader { hint: None, term: 0 });
            self.out.send_on(conn, PeerMessage::Extent { call, result });
            return Ok(());
        };
        if !self.out.peers.promise(conn, EXTENT_BYTES) {
            return match self.out.peers.wait(conn, ask) {
                true => Ok(()),
                false => Err(Breach::TooManyAsks),
            };
        }
        self.resyncs.offers.heard(self.out.now, source);
        self.out.members.input(self.out.now, source, Input::KeepLog { anew: false });
        let ask = PeerAsk { conn, call, source };
        let read = self.lanes.reads.add(ReadTarget::PeerExtent(ask));
        self.lanes.at(lane).fetch_extent(read, source, extent, layer);
        Ok(())
    }

    /// An extent that a peer asked for was read, or cannot be.
    pub fn answer_extent(&mut self, ask: PeerAsk, result: Result<ExtentContent, BlockError>) {
        let PeerAsk { conn, call, .. } = ask;
        self.out.peers.answered(conn, EXTENT_BYTES);
        self.out.send_on(conn, PeerMessage::Extent { call, result });
        self.resume_asks(conn);
    }

    /// Answers questions for extents that have waited for room.
    pub fn resume_asks(&mut self, conn: ConnKey) {
        while let Some(ask) = self.out.peers.next_ask(conn) {
            // It has left the queue, so that there is room for it.
            let asked = self.extent_asked(conn, ask);
            asked.expect("one question takes the place of another");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(extent: u32, last_changed: u64) -> ManifestEntry {
        ManifestEntry { extent: Extent(extent), layer: 0, last_changed, present: 1, zero: 0 }
    }

    fn chunk(entries: &[ManifestEntry], next: Option<u32>) -> ManifestChunk {
        ManifestChunk {
            extents: entries.to_vec(),
            next: next.map(Extent),
            applied_index: 9,
            applied_term: 1,
        }
    }

    #[test]
    fn what_differs_is_fetched_and_what_is_not_listed_is_deleted() {
        let own = [entry(0, 1), entry(1, 5), entry(2, 5), entry(5, 5), entry(9, 5)].into();
        let mut round = Round { own, ..Round::default() };
        round.compare(&chunk(&[entry(1, 5), entry(2, 6), entry(3, 6)], Some(6)));
        assert_eq!(round.to_fetch, [(Extent(2), 0), (Extent(3), 0)]);
        assert_eq!(round.to_delete, [(Extent(0), 0), (Extent(5), 0)]);
        assert_eq!(round.own, [entry(9, 5)]);
        round.compare(&chunk(&[], None));
        assert_eq!(round.to_delete.last(), Some(&(Extent(9), 0)));
    }

    /// Clients write all the time.
    #[test]
    fn rounds_end_when_another_would_find_no_less() {
        let mut resync = Resync::new(MemberId(1), 1, 0, Mono(0));
        let mut ends = |fetched| {
            resync.round = Round { fetched, ..Round::default() };
            resync.is_last_round(64)
        };
        assert_eq!([60_000, 3_000, 700, 600].map(&mut ends), [false, false, false, true]);
        assert!(ends(64), "the log has little to do");
    }

    #[test]
    fn late_answers_of_a_resync_that_was_given_up_do_not_count() {
        // The one before asked as 1; this one asks as 2.
        let mut round =
            Round { installing: Some(ReadId(2)), listing_own: Some(ReadId(2)), ..Round::default() };
        assert!(!round.awaits_list(ReadId(1)) && round.awaits_list(ReadId(2)));
        assert!(!round.installed(ReadId(1)));
        assert!(!round.chunk_is_done(), "its own installation is still in flight");
        assert!(round.installed(ReadId(2)) && round.chunk_is_done());
        assert!(!round.installed(ReadId(2)), "an end counts once");
        assert!(!Round::default().awaits_list(ReadId(2)));
    }

    /// A member that is elected clears its flag later. A crash must not find half of an extent
    /// then, nor a store ahead of its log.
    #[test]
    fn a_copy_does_not_stop_while_something_is_on_its_way() {
        let mut resync = Resync::new(MemberId(1), 1, 0, Mono(0));
        let stops_at = |resync: &mut Resync, step| {
            resync.step = step;
            resync.may_stop()
        };
        assert!(!resync.may_stop(), "the flag is on its way");
        for step in [Step::ListingOwn, Step::Copying] {
            assert!(stops_at(&mut resync, step));
        }
        for step in [Step::Finishing, Step::CatchingUp, Step::Clearing] {
            assert!(!stops_at(&mut resync, step));
        }
        resync.round.installing = Some(ReadId(1));
        assert!(!stops_at(&mut resync, Step::Copying), "an extent is on its way");
        assert!(resync.round.installed(ReadId(1)) && resync.may_stop());
    }
}
