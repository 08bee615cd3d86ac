//! A Raft message on the wire: one header, and the payload of each entry separately, so that
//! payloads are sent and received in place.
//!
//! Header, little endian: u8 version (1), 3 zero bytes, u32 number of entries, one u32 per entry
//! with the length of its payload (0: it has none), then the protobuf encoding of the message
//! with empty `data` in every entry.

use bytes::{BufMut, Bytes};
use protobuf::Message as _;
use raft::eraftpb::{Message, MessageType};

use crate::fields::{FieldError, Fields, PutFields};
use crate::limits::{ENTRY_BYTES_MAX, FRAME_META_BYTES_MAX, FRAME_PAYLOAD_BYTES_MAX};

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

/// True for a message without entries. Light messages of many groups can share one frame.
pub fn is_light(message: &Message) -> bool {
    message.entries.is_empty() && message.get_msg_type() != MessageType::MsgSnapshot
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
    fn only_messages_without_entries_are_light() {
        assert!(is_light(&message(&[])));
        assert!(!is_light(&message(&[0])));
    }
}
