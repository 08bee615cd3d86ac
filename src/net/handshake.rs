//! The first messages on a connection between two lanes. The connecting side (dialer) sends a
//! hello. The called side (acceptor) answers with a welcome or a refusal.
//!
//! All numbers are little endian. All messages of all versions have the same envelope:
//!
//! ```text
//!  0  magic       8 bytes   "HOLDPEER"
//!  8  kind        u16       1 hello, 2 welcome, 3 refusal
//! 10  body_bytes  u16       at most BODY_BYTES_MAX
//! 12  body        body_bytes
//!     crc         u32       CRC-32 of everything before
//! ```
//!
//! ```text
//! hello     version_min u16, version_max u16, identity, to_disk 16 bytes, to_lane u16,
//!           purpose u8 (1 data, 2 resync), nonce u64, levels
//! welcome   version u16, identity, nonce u64, levels
//! refusal   code u16, text (UTF-8, the rest of the body)
//! identity  cluster 16 bytes, pod u64, disk 16 bytes, lane u16, incarnation u64
//! levels    feature level of the cluster u32, newest level of the program u32
//! ```
//!
//! A reader ignores bytes after the fields that it knows, so that later versions can add fields.

use bytes::{BufMut, Bytes, BytesMut};

use crate::fields::{FieldError, Fields, value};
use crate::level::{Level, Levels};
use crate::types::{PodId, Uuid, mix64};

/// The oldest protocol version of this program.
pub const PROTOCOL_MIN: u16 = 1;
/// The newest protocol version of this program.
pub const PROTOCOL_MAX: u16 = 1;

const MAGIC: &[u8; 8] = b"HOLDPEER";
const ENVELOPE_BYTES: usize = 12;
const CRC_BYTES: usize = 4;
/// Longest body, much longer than version 1 needs.
const BODY_BYTES_MAX: usize = 1024;
/// Longest text of a refusal.
const REASON_BYTES_MAX: usize = 512;

/// The identity of one end: a lane of a disk in its `incarnation`th opening.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    pub cluster: Uuid,
    pub pod: PodId,
    pub disk: Uuid,
    pub lane: u16,
    pub incarnation: u64,
}

/// The purpose of a connection. Resyncs have their own connections, so that they do not delay
/// client data in a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Purpose {
    Data,
    Resync,
}

impl std::fmt::Display for Purpose {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Purpose::Data => "data",
            Purpose::Resync => "resync",
        })
    }
}

/// Opens a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    pub version_min: u16,
    pub version_max: u16,
    pub from: Identity,
    pub to_disk: Uuid,
    pub to_lane: u16,
    pub purpose: Purpose,
    /// A new random number for every connection.
    pub nonce: u64,
    pub levels: Levels,
}

/// Accepts a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    pub version: u16,
    pub from: Identity,
    /// A new random number for every connection.
    pub nonce: u64,
    pub levels: Levels,
}

/// The reason of a refusal, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RefusalCode {
    /// The two sides belong to different clusters.
    OtherCluster,
    /// The two sides have no protocol version in common.
    NoCommonVersion,
    /// A newer incarnation of the disk was seen: the caller is a leftover process or a copy.
    StaleIncarnation,
    /// The disk lives on another pod: the caller's is a copy (rule `disk-copies-are-refused`).
    DuplicateDisk,
    /// The called lane is not on this pod.
    NoSuchLane,
    /// More different disks have called than any cluster has.
    TooManyDisks,
    /// One side does not support the feature level of the other's cluster.
    FeatureLevel,
    /// A code that this version does not know.
    Other(u16),
}

/// Refuses a connection. `text` tells people the reason and the remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Refusal {
    pub code: RefusalCode,
    pub text: String,
}

/// A message of the handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Greeting {
    Hello(Hello),
    Welcome(Welcome),
    Refusal(Refusal),
}

/// Why bytes cannot be decoded as a greeting.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GreetingError {
    #[error("the other side does not speak Holdfast's peer protocol")]
    Magic,
    #[error("a greeting announces {0} bytes, more than is allowed")]
    TooLong(usize),
    #[error("the checksum of a greeting is wrong")]
    Checksum,
    #[error("a greeting is malformed")]
    Malformed {
        #[source]
        source: FieldError,
    },
}

/// Decodes the greeting at the start of `bytes`, and returns its length, too. `None`: more bytes
/// are needed. Refuses wrong bytes as early as possible.
pub fn parse(bytes: &[u8]) -> Result<Option<(Greeting, usize)>, GreetingError> {
    let start = bytes.len().min(MAGIC.len());
    if bytes[..start] != MAGIC[..start] {
        return Err(GreetingError::Magic);
    }
    let Some(envelope) = bytes.first_chunk::<ENVELOPE_BYTES>() else {
        return Ok(None);
    };
    let kind = u16::from_le_bytes([envelope[8], envelope[9]]);
    let body_bytes = usize::from(u16::from_le_bytes([envelope[10], envelope[11]]));
    if body_bytes > BODY_BYTES_MAX {
        return Err(GreetingError::TooLong(body_bytes));
    }
    let crc_at = ENVELOPE_BYTES + body_bytes;
    let Some(crc) = bytes.get(crc_at..crc_at + CRC_BYTES) else {
        return Ok(None);
    };
    if crc != crc32fast::hash(&bytes[..crc_at]).to_le_bytes() {
        return Err(GreetingError::Checksum);
    }
    let body = Bytes::copy_from_slice(&bytes[ENVELOPE_BYTES..crc_at]);
    let greeting = parse_body(kind, body).map_err(|source| GreetingError::Malformed { source })?;
    Ok(Some((greeting, crc_at + CRC_BYTES)))
}

fn parse_body(kind: u16, body: Bytes) -> Result<Greeting, FieldError> {
    let mut fields = Fields::new(body);
    Ok(match kind {
        1 => Greeting::Hello(Hello {
            version_min: fields.u16()?,
            version_max: fields.u16()?,
            from: take_identity(&mut fields)?,
            to_disk: fields.uuid()?,
            to_lane: fields.u16()?,
            purpose: match fields.u8()? {
                1 => Purpose::Data,
                2 => Purpose::Resync,
                other => return Err(value("purpose", other)),
            },
            nonce: fields.u64()?,
            levels: take_levels(&mut fields)?,
        }),
        2 => Greeting::Welcome(Welcome {
            version: fields.u16()?,
            from: take_identity(&mut fields)?,
            nonce: fields.u64()?,
            levels: take_levels(&mut fields)?,
        }),
        3 => {
            let code = RefusalCode::from_number(fields.u16()?);
            let text = fields.bytes(fields.remaining_bytes())?;
            Greeting::Refusal(Refusal { code, text: String::from_utf8_lossy(&text).into_owned() })
        }
        other => return Err(value("kind of greeting", other)),
    })
}

fn take_identity(fields: &mut Fields) -> Result<Identity, FieldError> {
    Ok(Identity {
        cluster: fields.uuid()?,
        pod: PodId(fields.u64()?),
        disk: fields.uuid()?,
        lane: fields.u16()?,
        incarnation: fields.u64()?,
    })
}

fn take_levels(fields: &mut Fields) -> Result<Levels, FieldError> {
    Ok(Levels { cluster: Level(fields.u32()?), newest: Level(fields.u32()?) })
}

/// Encodes a greeting.
pub fn format(greeting: &Greeting) -> Bytes {
    let mut body = BytesMut::with_capacity(128);
    let kind = match greeting {
        Greeting::Hello(hello) => {
            body.put_u16_le(hello.version_min);
            body.put_u16_le(hello.version_max);
            put_identity(&mut body, &hello.from);
            body.put_slice(&hello.to_disk.0);
            body.put_u16_le(hello.to_lane);
            body.put_u8(match hello.purpose {
                Purpose::Data => 1,
                Purpose::Resync => 2,
            });
            body.put_u64_le(hello.nonce);
            put_levels(&mut body, hello.levels);
            1
        }
        Greeting::Welcome(welcome) => {
            body.put_u16_le(welcome.version);
            put_identity(&mut body, &welcome.from);
            body.put_u64_le(welcome.nonce);
            put_levels(&mut body, welcome.levels);
            2
        }
        Greeting::Refusal(refusal) => {
            body.put_u16_le(refusal.code.number());
            body.put_slice(&refusal.text.as_bytes()[..clip(&refusal.text)]);
            3
        }
    };
    let mut out = BytesMut::with_capacity(ENVELOPE_BYTES + body.len() + CRC_BYTES);
    out.put_slice(MAGIC);
    out.put_u16_le(kind);
    out.put_u16_le(body.len() as u16);
    out.put_slice(&body);
    let crc = crc32fast::hash(&out);
    out.put_u32_le(crc);
    out.freeze()
}

/// The length of the longest prefix of whole characters that fits into a refusal.
fn clip(text: &str) -> usize {
    let longest = text.len().min(REASON_BYTES_MAX);
    (0..=longest).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0)
}

fn put_identity(body: &mut BytesMut, identity: &Identity) {
    body.put_slice(&identity.cluster.0);
    body.put_u64_le(identity.pod.0);
    body.put_slice(&identity.disk.0);
    body.put_u16_le(identity.lane);
    body.put_u64_le(identity.incarnation);
}

fn put_levels(body: &mut BytesMut, levels: Levels) {
    body.put_u32_le(levels.cluster.0);
    body.put_u32_le(levels.newest.0);
}

impl RefusalCode {
    fn number(self) -> u16 {
        match self {
            RefusalCode::OtherCluster => 1,
            RefusalCode::NoCommonVersion => 2,
            RefusalCode::StaleIncarnation => 3,
            RefusalCode::DuplicateDisk => 4,
            RefusalCode::NoSuchLane => 5,
            RefusalCode::TooManyDisks => 6,
            RefusalCode::FeatureLevel => 7,
            RefusalCode::Other(number) => number,
        }
    }

    fn from_number(number: u16) -> RefusalCode {
        match number {
            1 => RefusalCode::OtherCluster,
            2 => RefusalCode::NoCommonVersion,
            3 => RefusalCode::StaleIncarnation,
            4 => RefusalCode::DuplicateDisk,
            5 => RefusalCode::NoSuchLane,
            6 => RefusalCode::TooManyDisks,
            7 => RefusalCode::FeatureLevel,
            other => RefusalCode::Other(other),
        }
    }
}

/// The newest version in both ranges.
pub fn choose_version(ours: (u16, u16), theirs: (u16, u16)) -> Option<u16> {
    let newest = ours.1.min(theirs.1);
    (newest >= ours.0.max(theirs.0)).then_some(newest)
}

/// The seeds of the frame checksums: (dialer to acceptor, acceptor to dialer).
pub fn frame_seeds(dialer_nonce: u64, acceptor_nonce: u64) -> (u32, u32) {
    let mixed = mix64(dialer_nonce ^ mix64(acceptor_nonce));
    (mixed as u32, (mixed >> 32) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::peer_fixture::greeting;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_greeting_survives_and_every_prefix_waits(sent in greeting()) {
            let bytes = format(&sent);
            for cut in 0..bytes.len() {
                prop_assert_eq!(parse(&bytes[..cut]), Ok(None));
            }
            prop_assert_eq!(parse(&bytes), Ok(Some((sent, bytes.len()))));
        }

        #[test]
        fn a_flipped_bit_is_found(sent in greeting(), bit in any::<prop::sample::Index>()) {
            let mut bytes = format(&sent).to_vec();
            let bit = bit.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(!matches!(parse(&bytes), Ok(Some(_))));
        }
    }

    #[test]
    fn fields_that_a_later_version_adds_are_ignored() {
        let sent = Greeting::Welcome(Welcome {
            version: 1,
            from: Identity {
                cluster: Uuid([1; 16]),
                pod: PodId(2),
                disk: Uuid([3; 16]),
                lane: 0,
                incarnation: 4,
            },
            nonce: 5,
            levels: Levels { cluster: Level(6), newest: Level(7) },
        });
        let mut bytes = format(&sent).to_vec();
        bytes.truncate(bytes.len() - CRC_BYTES);
        bytes.extend(*b"later");
        let body_bytes = (bytes.len() - ENVELOPE_BYTES) as u16;
        bytes[10..12].copy_from_slice(&body_bytes.to_le_bytes());
        bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
        assert_eq!(parse(&bytes), Ok(Some((sent, bytes.len()))));
    }

    #[test]
    fn another_protocol_is_refused_at_its_first_byte() {
        assert_eq!(parse(b"GET / HTTP/1.1"), Err(GreetingError::Magic));
        assert_eq!(parse(b"G"), Err(GreetingError::Magic));
    }

    #[test]
    fn the_newest_common_version_is_chosen() {
        assert_eq!(choose_version((1, 3), (2, 5)), Some(3));
        assert_eq!(choose_version((4, 4), (2, 5)), Some(4));
        assert_eq!(choose_version((1, 1), (2, 5)), None);
        assert_eq!(choose_version((6, 7), (2, 5)), None);
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let text = "é".repeat(REASON_BYTES_MAX);
        let refusal = Greeting::Refusal(Refusal { code: RefusalCode::OtherCluster, text });
        let Ok(Some((Greeting::Refusal(read), _))) = parse(&format(&refusal)) else {
            panic!("a refusal is readable");
        };
        assert_eq!(read.text, "é".repeat(REASON_BYTES_MAX / 2));
    }
}
