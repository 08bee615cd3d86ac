//! Feeds bytes to a reader as a socket would. For tests and for the fuzzer.

use bytes::Bytes;

use crate::io::buffer::Pool;
use crate::io::stream::StreamReader;
use crate::net::codec::pieces;
use crate::net::frame::Frame;
use crate::testing::stream_fixture::receive;

/// A frame as it arrives: the payload part in aligned pieces.
pub fn cut(kind: u8, meta: Bytes, mut payload: &[u8]) -> Frame {
    let sizes = pieces(kind, &meta, payload.len());
    let mut take = |size| payload.split_off(..size).expect("the sum of the pieces");
    let payload = sizes.into_iter().map(|size| Pool::default().copy(take(size))).collect();
    Frame { kind, meta, payload }
}

/// Hands `stream` to `reader` in pieces of at most `step` bytes (at least 1) and calls `parse`
/// before the first and after every piece, until it fails.
pub fn pour<E>(
    reader: &mut StreamReader,
    mut stream: &[u8],
    step: usize,
    mut parse: impl FnMut(&mut StreamReader) -> Result<(), E>,
) -> Result<(), E> {
    parse(reader)?;
    while !stream.is_empty() {
        stream = receive(reader, stream, step);
        parse(reader)?;
    }
    Ok(())
}

#[cfg(test)]
pub use strategies::{greeting, message};

/// Every message that may be sent, for property tests.
#[cfg(test)]
mod strategies {
    use bytes::Bytes;
    use proptest::collection::vec;
    use proptest::option;
    use proptest::prelude::*;

    use crate::level::{Level, Levels};
    use crate::net::handshake::{
        Greeting, Hello, Identity, Purpose, Refusal, RefusalCode, Welcome,
    };
    use crate::net::message::{CallId, PeerMessage};
    use crate::types::{
        AccessMode, AccessSet, AttachmentId, BLOCK_BYTES, Block, BlockError, BlockRange, Extent,
        ExtentContent, Generation, Grant, ManifestChunk, ManifestEntry, MemberId, Origin, PodId,
        Segment, Session, ShardId, ShardOp, ShardReply, StatusRun, Uuid,
    };

    fn blocks(count: impl Into<prop::collection::SizeRange>) -> impl Strategy<Value = Bytes> {
        vec(any::<u8>(), count).prop_map(|fills| {
            let data: Vec<u8> = fills.iter().flat_map(|fill| [*fill; BLOCK_BYTES]).collect();
            Bytes::from(data)
        })
    }

    fn string() -> impl Strategy<Value = Bytes> {
        vec(any::<u8>(), 0..60).prop_map(Bytes::from)
    }

    fn call() -> impl Strategy<Value = CallId> {
        any::<u64>().prop_map(CallId)
    }

    fn member() -> impl Strategy<Value = MemberId> {
        any::<u64>().prop_map(MemberId)
    }

    fn range(count_max: u32) -> impl Strategy<Value = BlockRange> {
        (0..u32::MAX - 256, 1..=count_max)
            .prop_map(|(first, count)| BlockRange { first: Block(first), count })
    }

    fn op() -> impl Strategy<Value = ShardOp> {
        let write = (any::<u32>(), vec(any::<u32>(), 1..8)).prop_flat_map(|(first, crcs)| {
            blocks(crcs.len()).prop_map(move |data| ShardOp::Write {
                range: BlockRange { first: Block(first / 2), count: crcs.len() as u32 },
                data,
                crcs: crcs.clone(),
            })
        });
        let partial = (0..u32::MAX, 0..4000u32, vec(any::<u8>(), 1..96)).prop_map(
            |(block, offset_bytes, data)| ShardOp::WritePartial {
                block: Block(block),
                offset_bytes,
                data: data.into(),
            },
        );
        prop_oneof![
            range(256).prop_map(|range| ShardOp::Read { range }),
            write,
            partial,
            (range(256), any::<bool>()).prop_map(|(range, trim)| ShardOp::Zero { range, trim }),
            range(256).prop_map(|range| ShardOp::Status { range }),
            any::<bool>().prop_map(|renews| ShardOp::Touch { renews }),
            access_set().prop_map(ShardOp::SetAccess),
        ]
    }

    fn access_set() -> impl Strategy<Value = AccessSet> {
        let mode = prop::sample::select(vec![
            AccessMode::ReadWrite,
            AccessMode::ReadOnly,
            AccessMode::Raw,
        ]);
        let ids = prop::collection::btree_map(1u64..100, mode, 0..5);
        (100u64..1 << 60, any::<bool>(), ids).prop_map(|(generation, open, ids)| {
            let grant = |(id, mode)| Grant { attachment: AttachmentId(id), mode };
            let grants = ids.into_iter().map(grant).collect();
            AccessSet { generation: Generation(generation), open, grants }
        })
    }

    fn reply() -> impl Strategy<Value = ShardReply> {
        let segment = prop_oneof![
            blocks(1..4).prop_map(Segment::Data),
            (1usize..9).prop_map(|count| Segment::Zero(count * BLOCK_BYTES)),
        ];
        let data = vec(segment, 0..6).prop_map(|segments| {
            let bytes: usize = segments.iter().map(Segment::len_bytes).sum();
            let crcs = (0..(bytes / BLOCK_BYTES) as u32).collect();
            ShardReply::Data { segments, crcs }
        });
        let run = (1u32..1000, any::<bool>()).prop_map(|(count, hole)| StatusRun { count, hole });
        let access = any::<u64>()
            .prop_map(|generation| ShardReply::Access { generation: Generation(generation) });
        let status = vec(run, 1..20).prop_map(ShardReply::Status);
        prop_oneof![Just(ShardReply::Done), data, status, access]
    }

    fn error() -> impl Strategy<Value = BlockError> {
        prop_oneof![
            (option::of(member()), any::<u64>())
                .prop_map(|(hint, term)| BlockError::NotLeader { hint, term }),
            any::<[u64; 2]>().prop_map(|[counter, pod]| {
                let recorded = Session { counter, pod: PodId(pod) };
                BlockError::StaleSession { recorded }
            }),
            prop::sample::select(vec![
                BlockError::Busy,
                BlockError::Unknown,
                BlockError::Fenced,
                BlockError::NotTouched,
                BlockError::NotYet,
                BlockError::OutOfRange,
                BlockError::ReadOnly,
                BlockError::NoSpace,
                BlockError::MediaFault,
                BlockError::NoSuchVolume,
                BlockError::Invalid,
            ]),
        ]
    }

    fn result<T: std::fmt::Debug>(
        ok: impl Strategy<Value = T>,
    ) -> impl Strategy<Value = Result<T, BlockError>> {
        prop_oneof![ok.prop_map(Ok), error().prop_map(Err)]
    }

    fn manifest() -> impl Strategy<Value = (ManifestChunk, Bytes)> {
        let entry = (0u32..3, any::<u64>(), any::<u16>(), any::<u16>());
        let extents = prop::collection::btree_map(0u32..1000, entry, 0..20);
        (extents, option::of(1000u32..), any::<[u64; 2]>(), string()).prop_map(
            |(extents, next, [applied_index, applied_term], meta)| {
                let extents = extents
                    .into_iter()
                    .map(|(extent, (layer, last_changed, present, zero))| ManifestEntry {
                        extent: Extent(extent),
                        layer,
                        last_changed,
                        present,
                        zero: zero & !present,
                    })
                    .collect();
                let chunk =
                    ManifestChunk { extents, next: next.map(Extent), applied_index, applied_term };
                (chunk, meta)
            },
        )
    }

    fn extent() -> impl Strategy<Value = ExtentContent> {
        let fields = any::<(u32, u32, u64, u16, u16)>();
        fields.prop_flat_map(|(extent, layer, last_changed, present, zero)| {
            let count = present.count_ones() as usize;
            (blocks(count), vec(any::<u32>(), count)).prop_map(move |(data, crcs)| ExtentContent {
                extent: Extent(extent),
                layer,
                last_changed,
                present,
                zero: zero & !present,
                crcs,
                data,
            })
        })
    }

    fn raft() -> impl Strategy<Value = PeerMessage> {
        let payload = prop_oneof![3 => blocks(1..20), 1 => string()];
        (member(), string(), vec(payload, 0..5))
            .prop_map(|(to, header, payloads)| PeerMessage::Raft { to, header, payloads })
    }

    fn request() -> impl Strategy<Value = PeerMessage> {
        (any::<[u64; 7]>(), op()).prop_map(|(numbers, op)| PeerMessage::Request {
            call: CallId(numbers[0]),
            shard: ShardId(numbers[1]),
            to: MemberId(numbers[2]),
            term: numbers[3],
            origin: Origin {
                attachment: AttachmentId(numbers[4]),
                session: Session { counter: numbers[6], pod: PodId(numbers[5]) },
            },
            op,
        })
    }

    pub fn message() -> impl Strategy<Value = PeerMessage> {
        prop_oneof![
            raft(),
            vec((member(), string()), 0..20)
                .prop_map(|messages| PeerMessage::RaftBatch { messages }),
            request(),
            (call(), any::<u64>(), result(reply()))
                .prop_map(|(call, term, result)| PeerMessage::Response { call, term, result }),
            (member(), member()).prop_map(|(to, source)| PeerMessage::ResyncOffer { to, source }),
            (member(), member(), any::<bool>())
                .prop_map(|(to, member, ok)| PeerMessage::ResyncDone { to, member, ok }),
            (call(), member(), any::<u32>()).prop_map(|(call, source, from)| {
                PeerMessage::ManifestRequest { call, source, from: Extent(from) }
            }),
            (call(), option::of(manifest()))
                .prop_map(|(call, answer)| PeerMessage::Manifest { call, answer }),
            (call(), member(), any::<u32>(), any::<u32>()).prop_map(
                |(call, source, extent, layer)| PeerMessage::ExtentRequest {
                    call,
                    source,
                    extent: Extent(extent),
                    layer,
                }
            ),
            (call(), result(extent()))
                .prop_map(|(call, result)| PeerMessage::Extent { call, result }),
            any::<u64>().prop_map(|free_bytes| PeerMessage::Space { free_bytes }),
            (member(), member(), any::<u64>(), any::<u64>())
                .prop_map(|(to, from, term, index)| PeerMessage::Rest { to, from, term, index }),
            (member(), member()).prop_map(|(to, from)| PeerMessage::Awake { to, from }),
            Just(PeerMessage::Beat),
        ]
    }

    fn identity() -> impl Strategy<Value = Identity> {
        any::<([u8; 16], u64, [u8; 16], u16, u64)>().prop_map(
            |(cluster, pod, disk, lane, incarnation)| Identity {
                cluster: Uuid(cluster),
                pod: PodId(pod),
                disk: Uuid(disk),
                lane,
                incarnation,
            },
        )
    }

    /// Every greeting, with texts that are not cut.
    pub fn greeting() -> impl Strategy<Value = Greeting> {
        let purpose = prop::sample::select(vec![Purpose::Data, Purpose::Resync]);
        let levels = || {
            let of = |(cluster, newest)| Levels { cluster: Level(cluster), newest: Level(newest) };
            any::<(u32, u32)>().prop_map(of)
        };
        let fields = any::<(u16, u16, [u8; 16], u16, u64)>();
        let hello = (identity(), fields, purpose, levels()).prop_map(
            |(from, (version_min, version_max, to_disk, to_lane, nonce), purpose, levels)| {
                Greeting::Hello(Hello {
                    version_min,
                    version_max,
                    from,
                    to_disk: Uuid(to_disk),
                    to_lane,
                    purpose,
                    nonce,
                    levels,
                })
            },
        );
        let welcome = (identity(), any::<u16>(), any::<u64>(), levels());
        let welcome = welcome.prop_map(|(from, version, nonce, levels)| {
            Greeting::Welcome(Welcome { version, from, nonce, levels })
        });
        let codes = vec![
            RefusalCode::OtherCluster,
            RefusalCode::NoCommonVersion,
            RefusalCode::StaleIncarnation,
            RefusalCode::DuplicateDisk,
            RefusalCode::NoSuchLane,
            RefusalCode::TooManyDisks,
            RefusalCode::Other(77),
        ];
        let refusal = (prop::sample::select(codes), "[a-zé ]{0,80}")
            .prop_map(|(code, text)| Greeting::Refusal(Refusal { code, text }));
        prop_oneof![hello, welcome, refusal]
    }
}
