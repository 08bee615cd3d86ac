//! Structures and constants of the NBD protocol, with their codec. No I/O. Everything is
//! big-endian.
//!
//! Handshake ("Fixed newstyle negotiation"):
//! ```text
//! server  "NBDMAGIC" u64 | "IHAVEOPT" u64 | handshake flags u16
//! client  client flags u32
//! client  "IHAVEOPT" u64 | option u32 | length u32 | data                      (repeated)
//! server  0x0003e889045565a9 u64 | option u32 | reply type u32 | length u32 | data
//! server  size u64 | transmission flags u16 | 124 zeroes                   (EXPORT_NAME only)
//! ```
//! Transmission ("Request message", "Simple reply message", "Structured reply chunk message"):
//! ```text
//! client  0x25609513 u32 | flags u16 | type u16 | cookie u64 | offset u64 | length u32 | data
//! server  0x67446698 u32 | error u32 | cookie u64 | data
//! server  0x668e33ef u32 | flags u16 | type u16 | cookie u64 | length u32 | payload
//! ```

use bytes::{BufMut, BytesMut};

use crate::fields::{FieldError, Fields, value};
use crate::front::nbd::error::Errno;

pub const MAGIC: u64 = 0x4e42_444d_4147_4943;
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// Handshake flags of the server, and client flags.
pub const FLAG_FIXED_NEWSTYLE: u16 = 1 << 0;
pub const FLAG_NO_ZEROES: u16 = 1 << 1;
pub const CLIENT_FLAG_FIXED_NEWSTYLE: u32 = 1 << 0;
pub const CLIENT_FLAG_NO_ZEROES: u32 = 1 << 1;

/// Options ("Option types").
pub mod option {
    pub const EXPORT_NAME: u32 = 1;
    pub const ABORT: u32 = 2;
    pub const LIST: u32 = 3;
    pub const STARTTLS: u32 = 5;
    pub const INFO: u32 = 6;
    pub const GO: u32 = 7;
    pub const STRUCTURED_REPLY: u32 = 8;
    pub const LIST_META_CONTEXT: u32 = 9;
    pub const SET_META_CONTEXT: u32 = 10;
}

/// Option replies ("Option reply types").
pub mod reply {
    pub const ACK: u32 = 1;
    pub const SERVER: u32 = 2;
    pub const INFO: u32 = 3;
    pub const META_CONTEXT: u32 = 4;
    pub const ERR_UNSUP: u32 = (1 << 31) | 1;
    pub const ERR_POLICY: u32 = (1 << 31) | 2;
    pub const ERR_INVALID: u32 = (1 << 31) | 3;
    pub const ERR_TLS_REQD: u32 = (1 << 31) | 5;
    pub const ERR_UNKNOWN: u32 = (1 << 31) | 6;
    pub const ERR_SHUTDOWN: u32 = (1 << 31) | 7;
    pub const ERR_TOO_BIG: u32 = (1 << 31) | 9;
}

/// Kinds of information for INFO and GO.
pub mod info {
    pub const EXPORT: u16 = 0;
    pub const NAME: u16 = 1;
    pub const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags of an export ("Transmission flags").
pub mod export_flag {
    pub const HAS_FLAGS: u16 = 1 << 0;
    pub const READ_ONLY: u16 = 1 << 1;
    pub const SEND_FLUSH: u16 = 1 << 2;
    pub const SEND_FUA: u16 = 1 << 3;
    pub const SEND_TRIM: u16 = 1 << 5;
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub const SEND_DF: u16 = 1 << 7;
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    pub const SEND_CACHE: u16 = 1 << 10;
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Commands ("Request types").
pub mod command {
    pub const READ: u16 = 0;
    pub const WRITE: u16 = 1;
    pub const DISC: u16 = 2;
    pub const FLUSH: u16 = 3;
    pub const TRIM: u16 = 4;
    pub const CACHE: u16 = 5;
    pub const WRITE_ZEROES: u16 = 6;
    pub const BLOCK_STATUS: u16 = 7;
}

/// Command flags ("Command flags").
pub mod command_flag {
    pub const FUA: u16 = 1 << 0;
    pub const NO_HOLE: u16 = 1 << 1;
    pub const DF: u16 = 1 << 2;
    pub const REQ_ONE: u16 = 1 << 3;
    pub const FAST_ZERO: u16 = 1 << 4;
}

/// Chunks of structured replies ("Structured reply types").
pub mod chunk {
    pub const FLAG_DONE: u16 = 1 << 0;
    pub const NONE: u16 = 0;
    pub const OFFSET_DATA: u16 = 1;
    pub const OFFSET_HOLE: u16 = 2;
    pub const BLOCK_STATUS: u16 = 5;
    pub const ERROR: u16 = (1 << 15) | 1;
}

/// State of `base:allocation`: holes always read as zeroes.
pub const STATE_HOLE_ZERO: u32 = 1 | 2;
/// The only metadata context.
pub const BASE_ALLOCATION: &str = "base:allocation";
/// Its id in replies.
pub const BASE_ALLOCATION_ID: u32 = 1;

/// Longest name and longest query ("Values": strings are at most 4096 bytes).
pub const STRING_BYTES_MAX: usize = 4096;

pub const CLIENT_FLAGS_BYTES: usize = 4;
pub const OPTION_HEADER_BYTES: usize = 16;
pub const REQUEST_HEADER_BYTES: usize = 28;
pub const GREETING_BYTES: usize = 18;
pub const OPTION_REPLY_HEADER_BYTES: usize = 20;
pub const SIMPLE_REPLY_BYTES: usize = 16;
/// Bytes of an OFFSET_DATA chunk without its data, and of a whole OFFSET_HOLE chunk.
pub const DATA_CHUNK_BYTES: usize = 28;
pub const HOLE_CHUNK_BYTES: usize = 32;

/// The head of an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionHeader {
    pub magic: u64,
    pub option: u32,
    pub data_bytes: u32,
}

impl OptionHeader {
    /// [`FieldError::Short`] until the whole head has arrived.
    pub fn decode(bytes: &[u8]) -> Result<OptionHeader, FieldError> {
        let mut fields = Fields::new(bytes);
        Ok(OptionHeader {
            magic: fields.u64_be()?,
            option: fields.u32_be()?,
            data_bytes: fields.u32_be()?,
        })
    }
}

/// The head of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestHeader {
    pub magic: u32,
    pub flags: u16,
    pub command: u16,
    pub cookie: u64,
    pub offset: u64,
    pub length: u32,
}

impl RequestHeader {
    /// [`FieldError::Short`] until the whole head has arrived.
    pub fn decode(bytes: &[u8]) -> Result<RequestHeader, FieldError> {
        let mut fields = Fields::new(bytes);
        Ok(RequestHeader {
            magic: fields.u32_be()?,
            flags: fields.u16_be()?,
            command: fields.u16_be()?,
            cookie: fields.u64_be()?,
            offset: fields.u64_be()?,
            length: fields.u32_be()?,
        })
    }
}

/// The head of a reply to an option, as a client reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionReplyHeader {
    pub magic: u64,
    pub option: u32,
    pub kind: u32,
    pub data_bytes: u32,
}

impl OptionReplyHeader {
    /// [`FieldError::Short`] until the whole head has arrived.
    pub fn decode(bytes: &[u8]) -> Result<OptionReplyHeader, FieldError> {
        let mut fields = Fields::new(bytes);
        Ok(OptionReplyHeader {
            magic: fields.u64_be()?,
            option: fields.u32_be()?,
            kind: fields.u32_be()?,
            data_bytes: fields.u32_be()?,
        })
    }
}

/// A simple reply, as a client reads it. The data of a successful read follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SimpleReply {
    pub magic: u32,
    pub error: u32,
    pub cookie: u64,
}

impl SimpleReply {
    /// [`FieldError::Short`] until the whole head has arrived.
    pub fn decode(bytes: &[u8]) -> Result<SimpleReply, FieldError> {
        let mut fields = Fields::new(bytes);
        Ok(SimpleReply {
            magic: fields.u32_be()?,
            error: fields.u32_be()?,
            cookie: fields.u64_be()?,
        })
    }
}

/// Takes a length of 32 bits and that many bytes of UTF-8, at most [`STRING_BYTES_MAX`].
pub fn take_string<'a>(fields: &mut Fields<&'a [u8]>) -> Result<&'a str, FieldError> {
    let len = fields.u32_be()?;
    if len as usize > STRING_BYTES_MAX {
        return Err(value("length of a string", len));
    }
    let not_text = |_| value("length of a string that is not UTF-8", len);
    std::str::from_utf8(fields.slice(len as usize)?).map_err(not_text)
}

/// The server's greeting.
pub fn put_greeting(out: &mut BytesMut) {
    out.put_u64(MAGIC);
    out.put_u64(OPTION_MAGIC);
    out.put_u16(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES);
}

/// A whole reply to an option.
pub fn put_option_reply(out: &mut BytesMut, option: u32, kind: u32, data: &[u8]) {
    out.put_u64(OPTION_REPLY_MAGIC);
    out.put_u32(option);
    out.put_u32(kind);
    out.put_u32(u32::try_from(data.len()).expect("our own replies are short"));
    out.put_slice(data);
}

/// The answer to EXPORT_NAME.
pub fn put_export(out: &mut BytesMut, size_bytes: u64, flags: u16, zeroes: bool) {
    out.put_u64(size_bytes);
    out.put_u16(flags);
    if zeroes {
        out.put_bytes(0, 124);
    }
}

/// A simple reply, or the head of one with data. `error` 0: success.
pub fn put_simple_reply(out: &mut BytesMut, cookie: u64, error: u32) {
    out.put_u32(SIMPLE_REPLY_MAGIC);
    out.put_u32(error);
    out.put_u64(cookie);
}

/// The head of a chunk; `payload_bytes` follow it.
pub fn put_chunk(out: &mut BytesMut, cookie: u64, kind: u16, done: bool, payload_bytes: usize) {
    out.put_u32(STRUCTURED_REPLY_MAGIC);
    out.put_u16(if done { chunk::FLAG_DONE } else { 0 });
    out.put_u16(kind);
    out.put_u64(cookie);
    out.put_u32(u32::try_from(payload_bytes).expect("a request is at most 32 MiB"));
}

/// A whole error chunk, which is the last chunk of its reply.
pub fn put_error_chunk(out: &mut BytesMut, cookie: u64, error: Errno) {
    put_chunk(out, cookie, chunk::ERROR, true, 6);
    out.put_u32(error as u32);
    out.put_u16(0);
}

/// A whole option of a client.
pub fn put_option(out: &mut Vec<u8>, option: u32, data: &[u8]) {
    out.put_u64(OPTION_MAGIC);
    out.put_u32(option);
    out.put_u32(u32::try_from(data.len()).expect("options are short"));
    out.put_slice(data);
}

/// The data of GO and INFO: a name, without requests for information.
pub fn export_query(name: &str) -> Vec<u8> {
    let mut data = Vec::with_capacity(name.len() + 6);
    data.put_u32(u32::try_from(name.len()).expect("names are short"));
    data.put_slice(name.as_bytes());
    data.put_u16(0);
    data
}

/// The head of a client's request; the data of a write follows.
pub fn put_request(out: &mut Vec<u8>, request: &RequestHeader) {
    out.put_u32(request.magic);
    out.put_u16(request.flags);
    out.put_u16(request.command);
    out.put_u64(request.cookie);
    out.put_u64(request.offset);
    out.put_u32(request.length);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_writes_the_server_reads_and_the_other_way_round() {
        let request = RequestHeader {
            magic: REQUEST_MAGIC,
            flags: command_flag::FUA,
            command: command::WRITE,
            cookie: 0x0102_0304_0506_0708,
            offset: 1 << 40,
            length: 4096,
        };
        let mut bytes = Vec::new();
        put_request(&mut bytes, &request);
        assert_eq!(bytes.len(), REQUEST_HEADER_BYTES);
        assert_eq!(RequestHeader::decode(&bytes), Ok(request));
        assert_eq!(RequestHeader::decode(&bytes[1..]), Err(FieldError::Short));

        let mut bytes = Vec::new();
        put_option(&mut bytes, option::GO, &export_query("demo"));
        let header = OptionHeader::decode(&bytes).unwrap();
        assert_eq!((header.magic, header.option, header.data_bytes), (OPTION_MAGIC, 7, 10));
        assert_eq!(take_string(&mut Fields::new(&bytes[OPTION_HEADER_BYTES..])), Ok("demo"));

        let mut out = BytesMut::new();
        put_option_reply(&mut out, option::GO, reply::ACK, b"abc");
        let header = OptionReplyHeader::decode(&out).unwrap();
        assert_eq!(header.magic, OPTION_REPLY_MAGIC);
        assert_eq!((header.option, header.kind, header.data_bytes), (7, reply::ACK, 3));
        assert_eq!(out.len(), OPTION_REPLY_HEADER_BYTES + 3);

        let mut out = BytesMut::new();
        put_simple_reply(&mut out, 9, 28);
        let (magic, error, cookie) = (SIMPLE_REPLY_MAGIC, 28, 9);
        assert_eq!(SimpleReply::decode(&out), Ok(SimpleReply { magic, error, cookie }));
        let mut out = BytesMut::new();
        put_greeting(&mut out);
        assert_eq!(out.len(), GREETING_BYTES);
    }
}
