//! Every message survives its encoding. No bytes make the decoder panic, or allocate more than they
//! justify.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::io::buffer::{Pool, is_aligned};
use crate::testing::peer_fixture::{cut, message};

/// The frame as it would arrive.
fn arrive(encoded: Encoded) -> Frame {
    cut(encoded.kind, encoded.meta.freeze(), &encoded.payload.concat())
}

proptest! {
    #[test]
    fn every_message_survives_its_encoding(sent in message()) {
        let frame = arrive(encode(sent.clone()).unwrap());
        let received = decode(frame).unwrap();
        if let PeerMessage::Raft { payloads, .. } = &received {
            let whole = payloads.iter().filter(|data| !is_inline(data.len()));
            prop_assert!(whole.clone().all(|data| is_aligned(data)));
        }
        prop_assert_eq!(received, sent);
    }

    #[test]
    fn arbitrary_bytes_never_panic(kind in 0u8..17, meta in vec(any::<u8>(), 0..200),
                                   payload in vec(any::<u8>(), 0..100)) {
        let frame = cut(kind, meta.into(), &payload);
        if let Ok(message) = decode(frame) {
            prop_assert!(encode(message).is_ok());
        }
    }

    #[test]
    fn a_message_cut_short_or_longer_is_refused(
        sent in message(), cut in any::<prop::sample::Index>(),
    ) {
        let whole = arrive(encode(sent).unwrap());
        prop_assume!(!whole.meta.is_empty());
        let cut = cut.index(whole.meta.len());
        let short = Frame { meta: whole.meta.slice(..cut), ..whole.clone() };
        prop_assert!(decode(short).is_err());
        let long = Frame { meta: [&whole.meta[..], &[0]].concat().into(), ..whole };
        prop_assert!(decode(long).is_err());
    }
}

#[test]
fn payloads_leave_without_a_copy() {
    let data = Pool::default().copy(&[1; 2 * BLOCK_BYTES]);
    let encoded = encode(PeerMessage::Raft {
        to: MemberId(1),
        header: Bytes::from_static(b"header"),
        payloads: vec![data.clone(), Bytes::from_static(b"catalog command"), data.clone()],
    })
    .unwrap();
    assert_eq!(encoded.payload.len(), 2);
    assert!(encoded.payload.iter().all(|sent| sent.as_ptr() == data.as_ptr()));
}

#[test]
fn a_small_entry_does_not_keep_a_large_buffer_alive() {
    let (small, large) = (Bytes::from(vec![1; BLOCK_BYTES]), Bytes::from(vec![2; 256 << 10]));
    let inline = Bytes::from_static(b"catalog command");
    let payloads = vec![small, inline, large];
    let to = MemberId(1);
    let sent = PeerMessage::Raft { to, header: Bytes::new(), payloads: payloads.clone() };
    let encoded = encode(sent).unwrap();
    let meta = encoded.meta.freeze();
    let bytes = encoded.payload.concat();
    assert_eq!(pieces(encoded.kind, &meta, bytes.len()), [BLOCK_BYTES, 256 << 10]);
    assert_eq!(pieces(encoded.kind, &meta, bytes.len() + 1), [bytes.len() + 1], "not understood");
    let received = decode(cut(encoded.kind, meta, &bytes)).unwrap();
    assert_eq!(received, PeerMessage::Raft { to, header: Bytes::new(), payloads });
}

#[test]
fn what_contradicts_itself_is_refused_before_it_is_sent() {
    let range = crate::types::BlockRange { first: crate::types::Block(u32::MAX), count: 1 };
    let request = |op| PeerMessage::Request {
        call: CallId(1),
        shard: ShardId(1),
        to: MemberId(1),
        term: 1,
        origin: crate::types::Origin::default(),
        op,
    };
    let refused = [
        request(crate::types::ShardOp::Read { range }),
        request(crate::types::ShardOp::WritePartial {
            block: crate::types::Block(0),
            offset_bytes: 4095,
            data: Bytes::from_static(b"ab"),
        }),
        PeerMessage::RaftBatch {
            messages: vec![(MemberId(1), Bytes::from(vec![0; FRAME_META_BYTES_MAX]))],
        },
    ];
    for message in refused {
        assert!(encode(message).is_err());
    }
}
