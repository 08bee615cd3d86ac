//! As much of NBD's fixed newstyle protocol as a benchmark needs: one export, whole-block writes.

use std::io::{self, Read, Write};
use std::net::TcpStream;

pub const REQUEST_BYTES: usize = 28;
pub const REPLY_BYTES: usize = 16;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const OPTION_ABORT: u32 = 2;
const OPTION_INFO: u32 = 6;
const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const REPLY_UNSUPPORTED: u32 = 1 << 31 | 1;
/// HAS_FLAGS: the export takes reads and writes, and nothing else.
const EXPORT_FLAGS: u16 = 1;
/// The size that clients see. Only the log is written, so there is nothing behind it.
const EXPORT_BYTES: u64 = 4 << 30;
const OPTION_BYTES_MAX: usize = 64 << 10;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;

/// A request of the transmission phase.
pub enum Request {
    Write { cookie: [u8; 8], bytes: usize },
    Disconnect,
}

/// Negotiates with a new client; false when it leaves without a transmission phase.
pub fn negotiate(client: &mut TcpStream) -> io::Result<bool> {
    client.write_all(b"NBDMAGICIHAVEOPT\x00\x03")?;
    let mut flags = [0; 4];
    client.read_exact(&mut flags)?;
    loop {
        let mut head = [0; 16];
        client.read_exact(&mut head)?;
        let word = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().expect("4 bytes"));
        let (option, length) = (word(8), word(12) as usize);
        if head[..8] != OPTION_MAGIC.to_be_bytes() || length > OPTION_BYTES_MAX {
            return Err(io::Error::other("the client sends no option"));
        }
        client.read_exact(&mut vec![0; length])?;
        match option {
            OPTION_GO | OPTION_INFO => {
                let mut info = vec![0, 0];
                info.extend(EXPORT_BYTES.to_be_bytes());
                info.extend(EXPORT_FLAGS.to_be_bytes());
                answer(client, option, REPLY_INFO, &info)?;
                answer(client, option, REPLY_ACK, &[])?;
                if option == OPTION_GO {
                    return Ok(true);
                }
            }
            OPTION_ABORT => {
                answer(client, option, REPLY_ACK, &[])?;
                return Ok(false);
            }
            _ => answer(client, option, REPLY_UNSUPPORTED, &[])?,
        }
    }
}

fn answer(client: &mut TcpStream, option: u32, kind: u32, data: &[u8]) -> io::Result<()> {
    let mut message = OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
    for word in [option, kind, data.len() as u32] {
        message.extend(word.to_be_bytes());
    }
    message.extend(data);
    client.write_all(&message)
}

/// Reads the header of a request.
pub fn request(head: &[u8; REQUEST_BYTES]) -> io::Result<Request> {
    let kind = u16::from_be_bytes([head[6], head[7]]);
    let bytes = u32::from_be_bytes(head[24..].try_into().expect("4 bytes")) as usize;
    if head[..4] != REQUEST_MAGIC.to_be_bytes() {
        return Err(io::Error::other("the client sends no request"));
    }
    match kind {
        WRITE if bytes.is_multiple_of(4096) && (1..=64 << 10).contains(&bytes) => {
            Ok(Request::Write { cookie: head[8..16].try_into().expect("8 bytes"), bytes })
        }
        DISCONNECT => Ok(Request::Disconnect),
        _ => Err(io::Error::other(format!(
            "a request of kind {kind} for {bytes} bytes: only writes of 1 to 16 blocks are taken"
        ))),
    }
}

/// The answer to a write that was done.
pub fn reply(cookie: [u8; 8]) -> [u8; REPLY_BYTES] {
    let mut reply = [0; REPLY_BYTES];
    reply[..4].copy_from_slice(&REPLY_MAGIC.to_be_bytes());
    reply[8..].copy_from_slice(&cookie);
    reply
}
