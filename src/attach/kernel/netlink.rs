//! Messages of the kernel's NBD client: the generic netlink family `nbd` (Linux,
//! `include/uapi/linux/nbd-netlink.h`). Pure.
//!
//! `LINK_DEAD` and `STATUS` are not used. The first carries only an index, and can be lost; the end
//! of the relay's half of the socket says the same of one connection. The second says less than
//! sysfs.

use std::os::fd::RawFd;

use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable, NLA_F_NESTED, NLM_F_ACK, NLM_F_REQUEST, NetlinkBuffer,
    NetlinkMessage, NetlinkPayload, NlaBuffer, NlasIterator, Parseable, ParseableParametrized,
};
use netlink_packet_generic::{GenlFamily, GenlHeader, GenlMessage};

/// Of the kernel's controller of families (`linux/genetlink.h`).
mod controller {
    pub const FAMILY: u16 = 16;
    pub const VERSION: u8 = 2;
    pub const GET_FAMILY: u8 = 3;
    pub const ATTRIBUTE_ID: u16 = 1;
    pub const ATTRIBUTE_NAME: u16 = 2;
}

const NAME: &str = "nbd";
const VERSION: u8 = 1;

mod command {
    pub const CONNECT: u8 = 1;
    pub const DISCONNECT: u8 = 2;
    pub const RECONFIGURE: u8 = 3;
}

mod attribute {
    pub const INDEX: u16 = 1;
    pub const SIZE_BYTES: u16 = 2;
    pub const BLOCK_SIZE_BYTES: u16 = 3;
    pub const TIMEOUT_S: u16 = 4;
    pub const SERVER_FLAGS: u16 = 5;
    pub const CLIENT_FLAGS: u16 = 6;
    pub const SOCKETS: u16 = 7;
    pub const DEAD_CONNECTION_TIMEOUT_S: u16 = 8;
    pub const BACKEND_IDENTIFIER: u16 = 10;
}

/// An item of `SOCKETS`, and the descriptor in it.
const SOCKET_ITEM: u16 = 1;
const SOCKET_DESCRIPTOR: u16 = 1;

/// `NBD_CFLAG_DESTROY_ON_DISCONNECT`: the device's node goes with its connection. The other flag,
/// "disconnect on close", is never given.
const DESTROY_ON_DISCONNECT: u64 = 1;

/// A device to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connect {
    pub index: u32,
    pub size_bytes: u64,
    pub block_size_bytes: u64,
    /// Transmission flags of the NBD protocol.
    pub flags: u16,
    /// 0: the kernel leaves no socket because an answer is late.
    pub timeout_s: u64,
    /// Requests wait so long for another socket.
    pub dead_connection_timeout_s: u64,
    pub identifier: String,
    /// Its requests go there. It is past its handshake.
    pub socket: RawFd,
}

/// What the kernel is asked to do with the device of an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    Connect(Connect),
    /// Take it away. What waits fails.
    Disconnect {
        index: u32,
    },
    /// Use this socket instead of a dead one. Nothing happens when all live.
    Replace {
        index: u32,
        identifier: String,
        socket: RawFd,
    },
    /// Tell users of another size.
    Resize {
        index: u32,
        identifier: String,
        size_bytes: u64,
    },
}

impl Ask {
    fn body(&self) -> Body {
        use attribute as is;
        let (command, attributes) = match self {
            Ask::Connect(it) => (
                command::CONNECT,
                vec![
                    narrow(is::INDEX, it.index),
                    wide(is::SIZE_BYTES, it.size_bytes),
                    wide(is::BLOCK_SIZE_BYTES, it.block_size_bytes),
                    wide(is::TIMEOUT_S, it.timeout_s),
                    wide(is::SERVER_FLAGS, u64::from(it.flags)),
                    wide(is::CLIENT_FLAGS, DESTROY_ON_DISCONNECT),
                    wide(is::DEAD_CONNECTION_TIMEOUT_S, it.dead_connection_timeout_s),
                    words(is::BACKEND_IDENTIFIER, &it.identifier),
                    sockets(it.socket),
                ],
            ),
            Ask::Disconnect { index } => (command::DISCONNECT, vec![narrow(is::INDEX, *index)]),
            Ask::Replace { index, identifier, socket } => {
                let (index, name) = (narrow(is::INDEX, *index), identifier);
                (
                    command::RECONFIGURE,
                    vec![index, words(is::BACKEND_IDENTIFIER, name), sockets(*socket)],
                )
            }
            Ask::Resize { index, identifier, size_bytes } => {
                let (index, size) = (narrow(is::INDEX, *index), wide(is::SIZE_BYTES, *size_bytes));
                let name = words(is::BACKEND_IDENTIFIER, identifier);
                (command::RECONFIGURE, vec![index, name, size])
            }
        };
        Body { command, version: VERSION, attributes }
    }
}

fn narrow(kind: u16, value: u32) -> DefaultNla {
    DefaultNla::new(kind, value.to_ne_bytes().to_vec())
}

fn wide(kind: u16, value: u64) -> DefaultNla {
    DefaultNla::new(kind, value.to_ne_bytes().to_vec())
}

fn words(kind: u16, text: &str) -> DefaultNla {
    DefaultNla::new(kind, [text.as_bytes(), &[0]].concat())
}

fn nested(kind: u16, inside: &DefaultNla) -> DefaultNla {
    let mut bytes = vec![0; inside.buffer_len()];
    inside.emit(&mut bytes);
    DefaultNla::new(kind | NLA_F_NESTED, bytes)
}

fn sockets(descriptor: RawFd) -> DefaultNla {
    let descriptor = DefaultNla::new(SOCKET_DESCRIPTOR, descriptor.to_ne_bytes().to_vec());
    nested(attribute::SOCKETS, &nested(SOCKET_ITEM, &descriptor))
}

/// A message of any family.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Body {
    command: u8,
    version: u8,
    attributes: Vec<DefaultNla>,
}

impl GenlFamily for Body {
    fn family_name() -> &'static str {
        NAME
    }

    fn command(&self) -> u8 {
        self.command
    }

    fn version(&self) -> u8 {
        self.version
    }
}

impl Emitable for Body {
    fn buffer_len(&self) -> usize {
        self.attributes.as_slice().buffer_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        self.attributes.as_slice().emit(buffer);
    }
}

impl ParseableParametrized<[u8], GenlHeader> for Body {
    fn parse_with_param(bytes: &[u8], header: GenlHeader) -> Result<Body, DecodeError> {
        let attributes = NlasIterator::new(bytes);
        let attributes = attributes.map(|one| DefaultNla::parse(&one?));
        let attributes = attributes.collect::<Result<_, _>>()?;
        Ok(Body { command: header.cmd, version: header.version, attributes })
    }
}

/// Asks for the number of the family.
pub fn find_family(sequence: u32) -> Vec<u8> {
    let attributes = vec![words(controller::ATTRIBUTE_NAME, NAME)];
    let (command, version) = (controller::GET_FAMILY, controller::VERSION);
    encode(controller::FAMILY, sequence, Body { command, version, attributes })
}

/// Asks the kernel's NBD client, whose family has this number.
pub fn ask(family: u16, sequence: u32, what: &Ask) -> Vec<u8> {
    encode(family, sequence, what.body())
}

fn encode(family: u16, sequence: u32, body: Body) -> Vec<u8> {
    let mut message = GenlMessage::from_payload(body);
    message.set_resolved_family_id(family);
    let mut message = NetlinkMessage::from(message);
    message.header.flags = NLM_F_REQUEST | NLM_F_ACK;
    message.header.sequence_number = sequence;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// What the kernel said about a question.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The number of the family, if that was asked.
    pub family: Option<u16>,
    /// How it ended; `Some(0)`: well. Otherwise an errno.
    pub ended: Option<i32>,
}

/// Reads one datagram of the kernel. Messages about other questions are left out.
pub fn read(mut bytes: &[u8], sequence: u32, answer: &mut Answer) -> Result<(), DecodeError> {
    while !bytes.is_empty() {
        let whole = NetlinkBuffer::new_checked(bytes)?.length() as usize;
        let message = NetlinkMessage::<GenlMessage<Body>>::deserialize(&bytes[..whole])?;
        // Each begins at a multiple of four.
        bytes = bytes.get(whole.next_multiple_of(4)..).unwrap_or_default();
        if message.header.sequence_number != sequence {
            continue;
        }
        match message.payload {
            NetlinkPayload::Error(error) => answer.ended = Some(error.raw_code().saturating_neg()),
            NetlinkPayload::InnerMessage(inner)
                if inner.resolved_family_id() == controller::FAMILY =>
            {
                answer.family = answer.family.or_else(|| family_of(&inner.payload));
            }
            _ => {}
        }
    }
    Ok(())
}

fn family_of(body: &Body) -> Option<u16> {
    let id = body.attributes.iter().find_map(|attribute| {
        let mut bytes = vec![0; attribute.buffer_len()];
        attribute.emit(&mut bytes);
        let bytes = NlaBuffer::new_checked(&bytes[..]).ok()?;
        let is_it = bytes.kind() == controller::ATTRIBUTE_ID;
        is_it.then(|| bytes.value().try_into().ok()).flatten()
    });
    id.map(u16::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::Nla;
    use proptest::prelude::*;

    use super::*;

    fn connect() -> Ask {
        Ask::Connect(Connect {
            index: 7,
            size_bytes: 1 << 30,
            block_size_bytes: 4096,
            flags: 0x25,
            timeout_s: 0,
            dead_connection_timeout_s: 600,
            identifier: "ab".to_owned(),
            socket: 9,
        })
    }

    /// As strace shows it of other programs.
    #[cfg(target_endian = "little")]
    #[test]
    fn a_message_has_the_bytes_that_the_kernel_reads() {
        let replace = Ask::Replace { index: 7, identifier: "ab".to_owned(), socket: 9 };
        let header = [52, 0, 0, 0, 0x21, 0, 5, 0, 3, 0, 0, 0, 0, 0, 0, 0, 3, 1, 0, 0];
        let index = [8, 0, 1, 0, 7, 0, 0, 0];
        let identifier = [7, 0, 10, 0, b'a', b'b', 0, 0];
        let sockets = [16, 0, 7, 0x80, 12, 0, 1, 0x80, 8, 0, 1, 0, 9, 0, 0, 0];
        let all = [&header[..], &index, &identifier, &sockets].concat();
        assert_eq!(ask(0x21, 3, &replace), all);
    }

    #[test]
    fn a_new_device_is_told_everything() {
        let kinds =
            |ask: Ask| -> Vec<u16> { ask.body().attributes.iter().map(Nla::kind).collect() };
        assert_eq!(kinds(connect()), [1, 2, 3, 4, 5, 6, 8, 10, 7 | NLA_F_NESTED]);
        let resize = Ask::Resize { index: 1, identifier: String::new(), size_bytes: 1 };
        assert_eq!(kinds(resize), [1, 10, 2], "a size goes without sockets");
    }

    fn acknowledged(sequence: u32, code: i32) -> Vec<u8> {
        let mut bytes = vec![36, 0, 0, 0, 2, 0, 0, 0];
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(code.to_ne_bytes());
        bytes.extend([0; 16]);
        bytes
    }

    #[test]
    fn answers_are_found_among_others() {
        let mut answer = Answer::default();
        let attributes = vec![DefaultNla::new(controller::ATTRIBUTE_ID, vec![0x21, 0])];
        let found = encode(controller::FAMILY, 5, Body { command: 1, version: 2, attributes });
        let bytes = [acknowledged(4, -22), found, acknowledged(5, 0)].concat();
        read(&bytes, 5, &mut answer).unwrap();
        assert_eq!(answer, Answer { family: Some(0x21), ended: Some(0) });
        read(&acknowledged(6, -16), 6, &mut answer).unwrap();
        assert_eq!(answer.ended, Some(16));
    }

    proptest! {
        #[test]
        fn no_bytes_harm(mut bytes in prop::collection::vec(any::<u8>(), 0..120)) {
            let _read = read(&bytes, 0, &mut Answer::default());
            // With a length that fits, so that the inside is read.
            let length = bytes.len() as u32;
            if let Some(head) = bytes.get_mut(..4) {
                head.copy_from_slice(&length.to_ne_bytes());
            }
            let _read = read(&bytes, 0, &mut Answer::default());
        }
    }
}
