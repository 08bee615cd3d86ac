//! One run of a fuzzer over what is inside a log entry or a Raft message: bytes from a peer or a
//! disk, behind checksums.

use bytes::Bytes;
use raft::eraftpb::{Entry, Message, MessageType};

use crate::replica::command::{self, EntryCommand};
use crate::replica::meta::Meta;
use crate::replica::raft_message;
use crate::testing::fuzz::Seeds;
use crate::types::{
    AccessMode, AccessSet, AttachmentId, BLOCK_BYTES, Block, BlockRange, Generation, Grant,
    MemberId, Origin, PodId, Session,
};

/// Reads `input`: its first byte chooses what the rest is: 0 the command of an entry, 1 a group's
/// metadata, 2 the header of a Raft message. Panics when something is wrong with the reader.
pub fn fuzz_one(input: &[u8]) {
    let Some((mode, rest)) = input.split_first() else {
        return;
    };
    match mode % 3 {
        0 => {
            if let Ok((origin, found)) = command::decode(rest) {
                assert_eq!(&command::encode(origin, &found)[..], rest, "one encoding each");
            }
        }
        1 => {
            if let Ok(meta) = Meta::decode(rest) {
                let again = Meta::decode(&meta.encode());
                assert!(again.is_ok_and(|again| again == meta));
            }
        }
        _ => {
            // Payloads of one block: what a header may say of them is up to the input.
            let payloads = vec![Bytes::from(vec![0; BLOCK_BYTES])];
            for payloads in [Vec::new(), payloads] {
                if let Ok(found) = raft_message::join(rest, payloads) {
                    let (header, payloads) = raft_message::split(found.clone());
                    let again = raft_message::join(&header, payloads);
                    assert!(again.is_ok_and(|again| again == found));
                    // It judges without a panic, and says of every entry what it changes.
                    if let Ok(ranges) = raft_message::check(&found, found.to, 1 << 20) {
                        assert_eq!(ranges.len(), found.entries.len());
                    }
                }
            }
        }
    }
}

/// Good inputs by name, for a fuzzer to start from.
pub fn fuzz_seeds() -> Seeds {
    let session = Session { counter: 3, pod: PodId(2) };
    let origin = Origin { attachment: AttachmentId(1), session };
    let mode = AccessMode::ReadWrite;
    let grants = vec![Grant { attachment: origin.attachment, mode }];
    let set = AccessSet { generation: Generation(4), open: true, grants };
    let range = BlockRange { first: Block(7), count: 2 };
    let entry = |command: &EntryCommand| [&[0], &command::encode(origin, command)[..]].concat();
    let mut meta = Meta::born(&[MemberId(1), MemberId(2), MemberId(3)], 1 << 20, &set);
    let others = Origin { attachment: AttachmentId::NONE, ..origin };
    for origin in [origin, others] {
        meta.access.touch(origin, false).expect("both may use it");
    }
    let mut append = Message::default();
    append.set_msg_type(MessageType::MsgAppend);
    append.term = 9;
    append.entries = vec![
        Entry { index: 1, data: Bytes::from(vec![0; BLOCK_BYTES]), ..Entry::default() },
        Entry { index: 2, context: Bytes::from_static(b"x"), ..Entry::default() },
    ]
    .into();
    vec![
        ("write", entry(&EntryCommand::Write { range, crcs: vec![1, 2] })),
        ("trim", entry(&EntryCommand::Zero { range, trim: true })),
        ("touch", entry(&EntryCommand::Touch { renews: false })),
        ("access", entry(&EntryCommand::SetAccess(set))),
        ("meta", [&[1], &meta.encode()[..]].concat()),
        ("append", [&[2], &raft_message::split(append).0[..]].concat()),
    ]
}
