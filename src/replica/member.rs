//! A member: what turns inputs into outputs. See [`crate::replica::seam`].

use crate::replica::seam::{Input, MemberConfig, Output, Role, Start};
use crate::types::Mono;

/// One member of one Raft group.
pub struct Member {
    _private: (),
}

#[allow(unused_variables)]
impl Member {
    /// Starts from what the store recovered. `now` begins the time without votes (rule R14).
    pub fn start(config: MemberConfig, start: Start, now: Mono) -> Member {
        todo!()
    }

    /// Absorbs one event; its effects come out of [`Member::poll`].
    pub fn handle(&mut self, now: Mono, input: Input) {
        todo!()
    }

    /// Once per round, after every input of the round.
    pub fn poll(&mut self, now: Mono, out: &mut Vec<Output>) {
        todo!()
    }

    pub fn role(&self) -> Role {
        todo!()
    }

    pub fn applied_index(&self) -> u64 {
        todo!()
    }
}
