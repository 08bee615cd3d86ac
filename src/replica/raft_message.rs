//! A Raft message on the wire: one header, and the payload of each entry separately, so that
//! payloads are sent and received in place.
//!
//! Header, little endian: u8 version (1), 3 zero bytes, u32 number of entries, one u32 per entry
//! with the length of its payload (0: it has none), then the protobuf encoding of the message
//! with empty `data` in every entry.

use bytes::{BufMut, Bytes};
use protobuf::Message as _;
use raft::eraftpb::{Entry, EntryType, Message, MessageType};

use crate::fields::{FieldError, Fields, PutFields};
use crate::limits::{
    ENTRY_BYTES_MAX, FRAME_META_BYTES_MAX, FRAME_PAYLOAD_BYTES_MAX, MESSAGE_ENTRIES_MAX,
    RAFT_NUMBER_MAX, ZERO_BYTES_MAX,
};
use crate::replica::command::{self, CommandError, EntryCommand};
use crate::types::BlockRange;

const VERSION: u8 = 1;
const PREFIX_BYTES: usize = 8;

/// Why bytes cannot be decoded as a Raft message.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    #[error("a Raft message header of {0} bytes is too long")]
    TooLong(usize),
    #[error("a Raft message header is cut: {0}")]
    Fields(#[from] FieldError),
    #[error("Raft message version {0} is not known")]
    Version(u8),
    #[error("a Raft message cannot be decoded")]
    Protobuf(#[from] protobuf::ProtobufError),
    #[error("a Raft message and its payloads do not fit together")]
    Payloads,
    #[error("replicas of shards send no {0:?}")]
    Kind(MessageType),
    #[error("it has {what} {number}, beyond every number that a group reaches")]
    Number { what: &'static str, number: u64 },
    #[error("it is for replica {0}")]
    Address(u64),
    #[error("entry {index} of term {term} does not follow entry {before} of term {term_before}")]
    Order { index: u64, term: u64, before: u64, term_before: u64 },
    #[error("entry {index} has a command that cannot be decoded")]
    Command {
        index: u64,
        #[source]
        source: CommandError,
    },
    #[error("entry {index} changes blocks beyond the end of the shard")]
    Range { index: u64 },
    #[error("entry {index} has a payload of {bytes} bytes, which does not fit its command")]
    Payload { index: u64, bytes: usize },
    #[error("entry {index} has a command that shards do not have")]
    NoShardCommand { index: u64 },
}

/// Splits a message into the header and the non-empty payloads of its entries, in order.
pub fn split(mut message: Message) -> (Bytes, Vec<Bytes>) {
    let count = message.entries.len();
    let mut payloads = Vec::with_capacity(count);
    let mut header = Vec::with_capacity(PREFIX_BYTES + count * 72 + 64);
    header.put_slice(&[VERSION, 0, 0, 0]);
    header.put_count(count);
    for entry in message.entries.iter_mut() {
        let payload = std::mem::take(&mut entry.data);
        header.put_count(payload.len());
        if !payload.is_empty() {
            payloads.push(payload);
        }
    }
    let written = message.write_to_vec(&mut header);
    assert!(written.is_ok(), "writing to memory: {written:?}");
    (Bytes::from(header), payloads)
}

/// Joins a split message. Copies the header once, so that small parts do not keep a receive buffer
/// alive. Does not copy payloads.
pub fn join(header: &[u8], payloads: Vec<Bytes>) -> Result<Message, MessageError> {
    if header.len() > FRAME_META_BYTES_MAX {
        return Err(MessageError::TooLong(header.len()));
    }
    let mut fields = Fields::new(header);
    let version = fields.u8()?;
    if version != VERSION {
        return Err(MessageError::Version(version));
    }
    fields.skip(3)?;
    let count = fields.count(4)?;
    if count > MESSAGE_ENTRIES_MAX {
        return Err(MessageError::TooLong(header.len()));
    }
    let mut lengths = Fields::new(fields.slice(count * 4)?);
    let body = Bytes::copy_from_slice(fields.rest());
    let mut message = Message::parse_from_carllerche_bytes(&body)?;
    if message.entries.len() != count {
        return Err(MessageError::Payloads);
    }
    let mut payloads = payloads.into_iter();
    let mut total = 0;
    for entry in message.entries.iter_mut() {
        let len = lengths.u32()? as usize;
        total += len;
        if !entry.data.is_empty() || len > ENTRY_BYTES_MAX || total > FRAME_PAYLOAD_BYTES_MAX {
            return Err(MessageError::Payloads);
        }
        if len > 0 {
            entry.data =
                payloads.next().filter(|data| data.len() == len).ok_or(MessageError::Payloads)?;
        }
    }
    if payloads.next().is_some() {
        return Err(MessageError::Payloads);
    }
    Ok(message)
}

/// True for a message that may overtake appends that were sent before it (rule
/// `heartbeats-go-first`). Raft allows it for all; but an append that overtakes the one before it
/// is rejected, and raft-rs sends everything again.
pub fn may_overtake(message: &Message) -> bool {
    let kind = message.get_msg_type();
    kind != MessageType::MsgAppend && kind != MessageType::MsgSnapshot
}

/// Checks that a member of a shard may have sent this message to `to`, a member with this many
/// blocks. raft-rs and the log rely on it. Returns the blocks that each entry changes.
pub fn check(
    message: &Message,
    to: u64,
    blocks: u32,
) -> Result<Vec<Option<BlockRange>>, MessageError> {
    let kind = message.get_msg_type();
    match kind {
        MessageType::MsgAppend => {}
        MessageType::MsgAppendResponse
        | MessageType::MsgHeartbeat
        | MessageType::MsgHeartbeatResponse
        | MessageType::MsgRequestVote
        | MessageType::MsgRequestVoteResponse
        | MessageType::MsgRequestPreVote
        | MessageType::MsgRequestPreVoteResponse
        | MessageType::MsgTimeoutNow
            if message.entries.is_empty() => {}
        kind => return Err(MessageError::Kind(kind)),
    }
    if message.to != to || message.from == to {
        return Err(MessageError::Address(message.to));
    }
    let numbers = [
        ("term", message.term),
        ("a log term of", message.log_term),
        ("index", message.index),
        ("commit index", message.commit),
        ("a commit term of", message.commit_term),
        ("a hint of", message.reject_hint),
    ];
    if let Some((what, number)) = numbers.into_iter().find(|(_, number)| *number > RAFT_NUMBER_MAX)
    {
        return Err(MessageError::Number { what, number });
    }
    // raft-rs gives entries behind the end of a log the term 0, and would find that they match.
    if kind == MessageType::MsgAppend && (message.index == 0) != (message.log_term == 0) {
        let (index, term) = (message.index, message.log_term);
        return Err(MessageError::Order { index, term, before: 0, term_before: 0 });
    }
    let (mut before, mut term_before) = (message.index, message.log_term.max(1));
    let mut ranges = Vec::with_capacity(message.entries.len());
    for entry in &message.entries {
        let Entry { index, term, .. } = *entry;
        if index != before + 1 || term < term_before || term > message.term {
            return Err(MessageError::Order { index, term, before, term_before });
        }
        (before, term_before) = (index, term);
        ranges.push(check_entry(entry, blocks)?);
    }
    Ok(ranges)
}

/// Checks an entry for a member of a shard. Returns the blocks that it changes.
fn check_entry(entry: &Entry, blocks: u32) -> Result<Option<BlockRange>, MessageError> {
    let (index, bytes) = (entry.index, entry.data.len());
    // The members of a shard do not change yet.
    if entry.entry_type != EntryType::EntryNormal {
        return Err(MessageError::NoShardCommand { index });
    }
    let command = match entry.context.is_empty() {
        true => EntryCommand::Touch { renews: false },
        false => {
            command::decode(&entry.context)
                .map_err(|source| MessageError::Command { index, source })?
                .1
        }
    };
    let (range, wanted_bytes) = match command {
        EntryCommand::Write { range, .. } => (Some(range), range.bytes()),
        EntryCommand::Zero { range, .. } => (Some(range), 0),
        EntryCommand::Touch { .. } | EntryCommand::SetAccess(_) => (None, 0),
        EntryCommand::Opaque => return Err(MessageError::NoShardCommand { index }),
    };
    let too_long = |range: BlockRange| wanted_bytes == 0 && range.bytes() > ZERO_BYTES_MAX;
    if range.is_some_and(|range| range.end() > blocks || too_long(range)) {
        return Err(MessageError::Range { index });
    }
    match bytes as u64 == wanted_bytes {
        true => Ok(range),
        false => Err(MessageError::Payload { index, bytes }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use raft::eraftpb::Entry;

    use super::*;

    fn message(lengths: &[usize]) -> Message {
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgAppend);
        message.to = 7;
        message.term = 9;
        message.context = Bytes::from_static(b"round");
        let entries = lengths.iter().enumerate().map(|(at, len)| Entry {
            index: at as u64 + 1,
            term: 3,
            data: Bytes::from(vec![at as u8; *len]),
            context: Bytes::from(vec![7; at % 5]),
            ..Entry::default()
        });
        message.set_entries(entries.collect::<Vec<_>>().into());
        message
    }

    proptest! {
        #[test]
        fn a_message_survives_its_encoding(
            lengths in prop::collection::vec(prop_oneof![Just(0usize), 1usize..5000], 0..8),
            cut in 0usize..64,
        ) {
            let whole = message(&lengths);
            let (header, payloads) = split(whole.clone());
            prop_assert_eq!(join(&header, payloads.clone()).unwrap(), whole);
            let _ = join(&header[..cut.min(header.len())], payloads.clone());
            if payloads.len() > 1 {
                prop_assert!(join(&header, payloads[1..].to_vec()).is_err());
            }
            let more = [payloads, vec![Bytes::from_static(b"x")]].concat();
            prop_assert!(join(&header, more).is_err());
        }

        #[test]
        fn arbitrary_bytes_are_judged_without_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let _ = join(&bytes, Vec::new());
        }

        #[test]
        fn damaged_headers_are_judged_without_panic(at in 0usize..80, value in any::<u8>()) {
            let (header, payloads) = split(message(&[10, 0, 20]));
            let mut damaged = header.to_vec();
            let at = at % damaged.len();
            damaged[at] = value;
            let _ = join(&damaged, payloads);
        }
    }

    #[test]
    fn appends_stay_in_order_with_or_without_entries() {
        let mut heartbeat = message(&[]);
        assert!(!may_overtake(&heartbeat) && !may_overtake(&message(&[0])));
        heartbeat.set_msg_type(MessageType::MsgHeartbeat);
        assert!(may_overtake(&heartbeat));
    }
}
