//! Messages that contradict what a member knows. raft-rs relies on the honesty of peers: it would
//! follow a second leader of a term, or count acknowledgements of entries that it never sent.

use raft::eraftpb::{Message, MessageType};

use crate::planted::planted;
use crate::replica::raft_adapter::RaftAdapter;
use crate::types::MemberId;

/// With an election a second, a group needs a hundred years for this many terms. A member follows
/// every higher term: without a bound, one message could take it to the last one.
const TERMS_AHEAD_MAX: u64 = 1 << 32;

/// Why no honest member can have sent this, as far as this member knows. A heartbeat that commits
/// what is not here is no contradiction: this log has lost something, and raft-rs faults the
/// member.
pub fn contradiction(raft: &RaftAdapter, message: &Message) -> Option<&'static str> {
    if planted!(PeersAreBelieved) {
        return None;
    }
    if message.term > raft.term().saturating_add(TERMS_AHEAD_MAX) {
        return Some("its term is out of reach");
    }
    if message.term != raft.term() {
        return None;
    }
    let others = raft.leader().is_some_and(|leader| leader != MemberId(message.from));
    match message.get_msg_type() {
        MessageType::MsgAppend | MessageType::MsgHeartbeat if others => {
            Some("its term has another leader")
        }
        MessageType::MsgAppendResponse
            if raft.is_leader() && !message.reject && message.index > raft.last_index() =>
        {
            Some("it acknowledges an entry that was never sent")
        }
        _ => None,
    }
}
