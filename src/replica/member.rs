//! A member of a Raft group: turns inputs into outputs. See [`crate::replica::messages`].
//!
//! [`Member`] is the shell around the state machine of `running.rs`. A panic in there (raft-rs and
//! we assert invariants) or an entry that cannot be applied makes only this member *faulted*. It
//! then ignores all inputs, and the pod goes on.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use raft::eraftpb::Message;

use crate::replica::messages::{Input, MemberConfig, Output, ReqId, Rest, Role, Start};
use crate::replica::running::{Broken, Running};
use crate::types::{BlockError, Generation, MemberId, Mono, Unappended};

/// One member of one Raft group.
pub struct Member {
    member: MemberId,
    blocks: VolumeBlocks,
    state: Condition,
    /// Outputs that a faulted member still has to deliver.
    last_words: Vec<Output>,
    /// Stays valid after a fault.
    applied_index: u64,
}

/// The range of a volume's blocks in one shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VolumeBlocks {
    pub first: u64,
    pub count: u32,
}

enum Condition {
    Running(Box<Running>),
    Faulted,
}

impl Member {
    /// Starts from recovered state. `now` starts the time without votes (rule
    /// `no-vote-within-lease`).
    pub fn start(config: MemberConfig, start: Start, now: Mono) -> Member {
        let mut member = Member {
            member: config.member,
            blocks: VolumeBlocks { first: config.first_block_in_volume, count: config.blocks },
            state: Condition::Faulted,
            last_words: Vec::new(),
            applied_index: start.applied_index,
        };
        if start.faulted {
            member.fault("its log lost what this member had promised".to_string());
            return member;
        }
        match catch_unwind(AssertUnwindSafe(|| Running::start(config, start, now))) {
            Ok(Ok(running)) => member.state = Condition::Running(Box::new(running)),
            Ok(Err(broken)) => member.fault(reason_of(&broken)),
            Err(panic) => member.fault(panic_text(panic)),
        }
        member
    }

    /// Takes one event; [`Member::poll`] returns its effects. For a client's request, read `now`
    /// after the request was taken from its queue.
    pub fn handle(&mut self, now: Mono, input: Input) {
        let Condition::Running(running) = &mut self.state else {
            self.refuse(input);
            return;
        };
        match catch_unwind(AssertUnwindSafe(|| running.handle(now, input))) {
            Ok(Ok(())) => (),
            Ok(Err(broken)) => self.fault(reason_of(&broken)),
            Err(panic) => self.fault(panic_text(panic)),
        }
    }

    /// Call once per round, after all inputs. `now` is not before the time of any input.
    pub fn poll(&mut self, now: Mono, out: &mut Vec<Output>) {
        if let Condition::Running(running) = &mut self.state {
            let before = out.len();
            let failed = match catch_unwind(AssertUnwindSafe(|| running.poll(now, out))) {
                Ok(Ok(())) => None,
                Ok(Err(broken)) => Some(reason_of(&broken)),
                Err(panic) => Some(panic_text(panic)),
            };
            match failed {
                None => self.applied_index = running.applied_index(),
                Some(reason) => {
                    // Of a failed round only the replies leave.
                    let made = out.drain(before..);
                    let answers = made.filter(|made| matches!(made, Output::Reply { .. }));
                    self.last_words.extend(answers);
                    self.fault(reason);
                }
            }
        }
        out.append(&mut self.last_words);
    }

    /// The blocks of this member. Valid after a fault, too.
    pub fn blocks(&self) -> VolumeBlocks {
        self.blocks
    }

    pub fn role(&self) -> Role {
        match &self.state {
            Condition::Running(running) => running.role(),
            Condition::Faulted => Role::default(),
        }
    }

    /// On the leader: the log has a configuration change that is not applied yet.
    pub fn is_changing(&self) -> bool {
        match &self.state {
            Condition::Running(running) => running.is_changing(),
            Condition::Faulted => false,
        }
    }

    pub fn applied_index(&self) -> u64 {
        match &self.state {
            Condition::Running(running) => running.applied_index(),
            Condition::Faulted => self.applied_index,
        }
    }

    /// The term of the newest applied entry; 0: none.
    pub fn applied_term(&self) -> u64 {
        match &self.state {
            Condition::Running(running) => running.applied_term(),
            Condition::Faulted => 0,
        }
    }

    /// Why no honest member can have sent this; `None`: it may have.
    pub fn contradiction(&self, message: &Message) -> Option<&'static str> {
        match &self.state {
            Condition::Running(running) => running.contradiction(message),
            Condition::Faulted => None,
        }
    }

    /// True when exactly this entry is in the log, or its index is applied.
    pub fn has_entry(&self, index: u64, term: u64) -> bool {
        match &self.state {
            Condition::Running(running) => running.has_entry(index, term),
            Condition::Faulted => false,
        }
    }

    /// The newest index that this member knows to be committed; 0 after a fault.
    pub fn committed(&self) -> u64 {
        match &self.state {
            Condition::Running(running) => running.committed(),
            Condition::Faulted => 0,
        }
    }

    /// Accepted writes that no [`Output::Append`] contains yet.
    pub fn unappended(&self) -> Unappended {
        match &self.state {
            Condition::Running(running) => running.unappended(),
            Condition::Faulted => Unappended::default(),
        }
    }

    /// On a leader in whose group nothing happened for a while: the offer to all other voters.
    pub fn offers_rest(&self) -> Option<Rest> {
        match &self.state {
            Condition::Running(running) => running.offers_rest(),
            Condition::Faulted => None,
        }
    }

    /// True when this follower has everything that the offer names, and may rest.
    pub fn may_rest(&self, offer: &Rest) -> bool {
        match &self.state {
            Condition::Running(running) => running.may_rest(offer),
            Condition::Faulted => false,
        }
    }

    /// Extents that accepted changes zero which are not applied yet.
    pub fn unapplied_zeroes(&self) -> u64 {
        match &self.state {
            Condition::Running(running) => running.unapplied_zeroes(),
            Condition::Faulted => 0,
        }
    }

    /// Bytes of proposals in flight: payload and overhead.
    pub fn proposed_bytes(&self) -> usize {
        match &self.state {
            Condition::Running(running) => running.proposed_bytes(),
            Condition::Faulted => 0,
        }
    }

    /// Leases that ended before a read, since the start.
    pub fn lease_lapses(&self) -> u64 {
        match &self.state {
            Condition::Running(running) => running.reads.lapses,
            Condition::Faulted => 0,
        }
    }

    /// Shard metadata as of [`Member::applied_index`]; `None` when faulted.
    pub fn meta(&self) -> Option<bytes::Bytes> {
        match &self.state {
            Condition::Running(running) => Some(running.meta()),
            Condition::Faulted => None,
        }
    }

    /// The generation of the access set that is applied here; 0 when faulted.
    pub fn generation(&self) -> Generation {
        match &self.state {
            Condition::Running(running) => running.applier.meta.access.generation,
            Condition::Faulted => Generation(0),
        }
    }

    /// True when this member has stopped for good.
    pub fn is_faulted(&self) -> bool {
        matches!(self.state, Condition::Faulted)
    }

    fn fault(&mut self, reason: String) {
        tracing::error!(member = self.member.0, reason, "this replica is faulted and has stopped");
        if let Condition::Running(mut running) =
            std::mem::replace(&mut self.state, Condition::Faulted)
        {
            let unanswered = running.abandon();
            let replies = unanswered.into_iter().map(|(req, error)| refusal(req, error));
            self.last_words.extend(replies);
        }
        self.last_words.push(Output::Faulted { reason });
    }

    /// A faulted member drops every input, and tells clients to go elsewhere.
    fn refuse(&mut self, input: Input) {
        let (Input::Client { req, .. } | Input::Propose { req, .. } | Input::Barrier { req }) =
            input
        else {
            return;
        };
        let error = BlockError::NotLeader { hint: None, term: 0 };
        self.last_words.push(refusal(req, error));
    }
}

fn refusal(req: ReqId, error: BlockError) -> Output {
    Output::Reply { req, result: Err(error) }
}

/// The error and its whole chain of causes.
fn reason_of(broken: &Broken) -> String {
    let mut reason = broken.to_string();
    let mut cause = std::error::Error::source(broken);
    while let Some(error) = cause {
        reason.push_str(": ");
        reason.push_str(&error.to_string());
        cause = error.source();
    }
    reason
}

/// The text of a panic.
pub fn panic_text(panic: Box<dyn Any + Send>) -> String {
    if let Some(text) = panic.downcast_ref::<String>() {
        return text.clone();
    }
    let text = panic.downcast_ref::<&str>();
    text.unwrap_or(&"a panic without a text").to_string()
}
