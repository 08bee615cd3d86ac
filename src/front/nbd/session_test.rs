//! Handshake, options and requests against tables; each case at once and byte by byte.

use bytes::Bytes;
use proptest::prelude::*;

use super::session::*;
use super::wire::{self, chunk, command, command_flag, info, option, reply};
use crate::front::nbd::fuzz_one;
use crate::io::buffer::Pool;
use crate::io::stream::{STAGING_BYTES, StreamReader};
use crate::limits::{CONNECTION_BYTES_MAX, CONNECTION_REQUESTS_MAX, REQUEST_BYTES_MAX};
use crate::types::{BLOCK_BYTES, BlockError, BlockOp, BlockReply, Segment, VolumeId};

const SIZE_BYTES: u64 = 5 << 30;
/// Flags of a writable export without structured replies.
const FLAGS: u16 = 0x0d6d;
const FLAG_DF: u16 = 0x80;
const ERR: u32 = 1 << 31;

struct Table(&'static [&'static str]);

impl Exports for Table {
    fn list(&self) -> Vec<String> {
        self.0.iter().map(|name| (*name).to_owned()).collect()
    }

    fn open(&self, name: &str) -> Option<Export> {
        let place = match name {
            "" if self.0.len() == 1 => Some(0),
            _ => self.0.iter().position(|known| *known == name),
        };
        place.map(|place| Export {
            volume: VolumeId(place as u64),
            size_bytes: SIZE_BYTES,
            read_only: self.0[place] == "frozen",
        })
    }
}

const EXPORTS: Table = Table(&["a", "frozen"]);

/// A client and its session; requests are kept, or answered at once.
struct Client {
    pool: Pool,
    reader: StreamReader,
    session: Session,
    out: Vec<SessionOutput>,
    sent: Vec<u8>,
    requests: Vec<(SessionHandle, BlockOp)>,
    closed: Option<CloseReason>,
}

impl Client {
    fn new() -> Client {
        let pool = Pool::default();
        let mut client = Client {
            reader: StreamReader::new(pool.clone()),
            pool,
            session: Session::new(),
            out: Vec::new(),
            sent: Vec::new(),
            requests: Vec::new(),
            closed: None,
        };
        client
            .session
            .feed(&mut client.reader, &EXPORTS, &mut client.out);
        client.collect(true);
        client
    }

    /// A client that has opened "a" and has read all replies to that.
    fn open(structured: bool) -> Client {
        let mut client = Client::new();
        client.receive(&handshake(structured, "a"), usize::MAX);
        assert!(client.session.export().is_some());
        client.sent.clear();
        client
    }

    /// Sends `stream` in pieces; stops when the session wants no more. What is left of it.
    fn receive<'a>(&mut self, mut stream: &'a [u8], piece_bytes: usize) -> &'a [u8] {
        while !stream.is_empty() && self.session.wants_input() {
            let mut bufs = self.reader.lend();
            let from = bufs.landing_from;
            let landing_room = bufs.landing.as_ref().map_or(0, |buf| buf.len() - from);
            let staging_room = bufs.staging.len() - bufs.staging_from;
            let count = piece_bytes
                .min(stream.len())
                .min(landing_room + staging_room);
            let landed = count.min(landing_room);
            if let Some(landing) = &mut bufs.landing {
                landing[from..from + landed].copy_from_slice(&stream[..landed]);
            }
            let staging_from = bufs.staging_from;
            bufs.staging[staging_from..staging_from + count - landed]
                .copy_from_slice(&stream[landed..count]);
            self.reader.received(bufs, count);
            stream = &stream[count..];
            self.session.feed(&mut self.reader, &EXPORTS, &mut self.out);
            self.collect(true);
        }
        stream
    }

    fn collect(&mut self, sent: bool) {
        for output in self.out.drain(..) {
            assert_eq!(self.closed, None, "nothing follows the end");
            match output {
                SessionOutput::Send(bytes) => {
                    self.sent.extend_from_slice(&bytes);
                    if sent {
                        self.session.sent(bytes.len());
                    }
                }
                SessionOutput::Request { handle, op } => self.requests.push((handle, op)),
                SessionOutput::Close { reason } => self.closed = Some(reason),
            }
        }
    }

    fn reply(&mut self, handle: SessionHandle, result: Result<BlockReply, BlockError>) {
        self.session.reply(handle, result, &mut self.out);
        self.collect(true);
    }

    fn only_request(&mut self) -> (SessionHandle, BlockOp) {
        assert_eq!(self.requests.len(), 1);
        self.requests.remove(0)
    }

    fn take_sent(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.sent)
    }
}

fn join(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

fn client_option(code: u32, data: &[u8]) -> Vec<u8> {
    let len = data.len() as u32;
    let magic = wire::OPTION_MAGIC.to_be_bytes();
    join(&[&magic, &code.to_be_bytes(), &len.to_be_bytes(), data])
}

fn answer(code: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let len = data.len() as u32;
    let magic = wire::OPTION_REPLY_MAGIC.to_be_bytes();
    join(&[
        &magic,
        &code.to_be_bytes(),
        &kind.to_be_bytes(),
        &len.to_be_bytes(),
        data,
    ])
}

fn string(text: &str) -> Vec<u8> {
    join(&[&(text.len() as u32).to_be_bytes(), text.as_bytes()])
}

fn go_data(name: &str, infos: &[u16]) -> Vec<u8> {
    let infos: Vec<u8> = infos.iter().flat_map(|kind| kind.to_be_bytes()).collect();
    join(&[
        &string(name),
        &(infos.len() as u16 / 2).to_be_bytes(),
        &infos,
    ])
}

fn query_data(name: &str, queries: &[&str]) -> Vec<u8> {
    let strings: Vec<u8> = queries.iter().flat_map(|query| string(query)).collect();
    join(&[
        &string(name),
        &(queries.len() as u32).to_be_bytes(),
        &strings,
    ])
}

fn go_answer(code: u32, flags: u16) -> Vec<u8> {
    let size = SIZE_BYTES.to_be_bytes();
    let export = join(&[&info::EXPORT.to_be_bytes(), &size, &flags.to_be_bytes()]);
    let sizes = [1, BLOCK_BYTES as u32, REQUEST_BYTES_MAX as u32];
    let sizes: Vec<u8> = sizes.iter().flat_map(|size| size.to_be_bytes()).collect();
    let block_size = join(&[&info::BLOCK_SIZE.to_be_bytes(), &sizes]);
    join(&[
        &answer(code, reply::INFO, &export),
        &answer(code, reply::INFO, &block_size),
    ])
}

fn handshake(structured: bool, name: &str) -> Vec<u8> {
    let mut stream = 3u32.to_be_bytes().to_vec();
    if structured {
        stream.extend(client_option(option::STRUCTURED_REPLY, &[]));
        let data = query_data(name, &["base:allocation"]);
        stream.extend(client_option(option::SET_META_CONTEXT, &data));
    }
    stream.extend(client_option(option::GO, &go_data(name, &[])));
    stream
}

fn request(flags: u16, command: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let (flags, command) = (flags.to_be_bytes(), command.to_be_bytes());
    let (cookie, offset) = (cookie.to_be_bytes(), offset.to_be_bytes());
    let magic = wire::REQUEST_MAGIC.to_be_bytes();
    join(&[
        &magic,
        &flags,
        &command,
        &cookie,
        &offset,
        &length.to_be_bytes(),
    ])
}

fn simple(error: u32, cookie: u64) -> Vec<u8> {
    let magic = wire::SIMPLE_REPLY_MAGIC.to_be_bytes();
    join(&[&magic, &error.to_be_bytes(), &cookie.to_be_bytes()])
}

fn chunk_of(flags: u16, kind: u16, cookie: u64, payload: &[u8]) -> Vec<u8> {
    let magic = wire::STRUCTURED_REPLY_MAGIC.to_be_bytes();
    let (flags, kind, cookie) = (
        flags.to_be_bytes(),
        kind.to_be_bytes(),
        cookie.to_be_bytes(),
    );
    join(&[
        &magic,
        &flags,
        &kind,
        &cookie,
        &(payload.len() as u32).to_be_bytes(),
        payload,
    ])
}

/// A case of the handshake: what the client says, what it hears, and how it ends.
struct Case {
    name: &'static str,
    says: Vec<u8>,
    hears: Vec<u8>,
    ends: Option<CloseReason>,
}

fn case(name: &'static str, flags: u32, says: &[Vec<u8>], hears: &[Vec<u8>]) -> Case {
    Case {
        name,
        says: join(&[&flags.to_be_bytes(), &says.concat()]),
        hears: hears.concat(),
        ends: None,
    }
}

fn closes(mut case: Case, reason: CloseReason) -> Case {
    case.ends = Some(reason);
    case
}

fn opening_cases() -> Vec<Case> {
    let export = |zeroes: usize| {
        join(&[
            &SIZE_BYTES.to_be_bytes(),
            &FLAGS.to_be_bytes(),
            &vec![0; zeroes],
        ])
    };
    let structured = client_option(option::STRUCTURED_REPLY, &[]);
    let structured_ack = answer(option::STRUCTURED_REPLY, reply::ACK, &[]);
    let go = |name, infos: &[u16]| client_option(option::GO, &go_data(name, infos));
    let ack = |code| answer(code, reply::ACK, &[]);
    let name_info = join(&[&info::NAME.to_be_bytes(), b"a"]);
    vec![
        case(
            "export-name",
            3,
            &[client_option(option::EXPORT_NAME, b"a")],
            &[export(0)],
        ),
        case(
            "export-name-zeroes",
            1,
            &[client_option(option::EXPORT_NAME, b"a")],
            &[export(124)],
        ),
        case(
            "export-name-not-fixed",
            0,
            &[client_option(option::EXPORT_NAME, b"a")],
            &[export(124)],
        ),
        case(
            "go",
            3,
            &[go("a", &[])],
            &[go_answer(option::GO, FLAGS), ack(option::GO)],
        ),
        case(
            "go-with-infos",
            3,
            &[go("a", &[info::EXPORT, info::NAME, info::BLOCK_SIZE])],
            &[
                go_answer(option::GO, FLAGS),
                answer(option::GO, reply::INFO, &name_info),
                ack(option::GO),
            ],
        ),
        case(
            "go-read-only",
            3,
            &[go("frozen", &[])],
            &[go_answer(option::GO, FLAGS | 2), ack(option::GO)],
        ),
        case(
            "go-structured",
            3,
            &[structured, go("a", &[])],
            &[
                structured_ack,
                go_answer(option::GO, FLAGS | FLAG_DF),
                ack(option::GO),
            ],
        ),
        case(
            "info-then-unknown-then-go",
            3,
            &[
                client_option(option::INFO, &go_data("a", &[])),
                go("b", &[]),
                go("a", &[]),
            ],
            &[
                go_answer(option::INFO, FLAGS),
                ack(option::INFO),
                answer(option::GO, reply::ERR_UNKNOWN, &[]),
                go_answer(option::GO, FLAGS),
                ack(option::GO),
            ],
        ),
    ]
}

fn option_cases() -> Vec<Case> {
    let structured = client_option(option::STRUCTURED_REPLY, &[]);
    let structured_ack = answer(option::STRUCTURED_REPLY, reply::ACK, &[]);
    let query = |code, name, queries: &[&str]| client_option(code, &query_data(name, queries));
    let context = |code, id: u32| {
        answer(
            code,
            reply::META_CONTEXT,
            &join(&[&id.to_be_bytes(), b"base:allocation"]),
        )
    };
    let (list_meta, set_meta) = (option::LIST_META_CONTEXT, option::SET_META_CONTEXT);
    let ack = |code| answer(code, reply::ACK, &[]);
    let invalid = |code| answer(code, reply::ERR_INVALID, &[]);
    vec![
        case(
            "list",
            3,
            &[client_option(option::LIST, &[])],
            &[
                answer(option::LIST, reply::SERVER, &string("a")),
                answer(option::LIST, reply::SERVER, &string("frozen")),
                ack(option::LIST),
            ],
        ),
        case(
            "list-with-data",
            3,
            &[client_option(option::LIST, b"x")],
            &[invalid(option::LIST)],
        ),
        case(
            "starttls",
            3,
            &[client_option(5, &[])],
            &[answer(5, reply::ERR_UNSUP, &[])],
        ),
        case(
            "extended-headers",
            3,
            &[client_option(11, &[])],
            &[answer(11, ERR | 1, &[])],
        ),
        case(
            "unknown-option",
            3,
            &[client_option(77, b"data")],
            &[answer(77, ERR | 1, &[])],
        ),
        case(
            "structured-with-data",
            3,
            &[client_option(option::STRUCTURED_REPLY, b"x")],
            &[invalid(option::STRUCTURED_REPLY)],
        ),
        case(
            "meta-before-structured",
            3,
            &[
                query(list_meta, "a", &[]),
                query(set_meta, "a", &["base:allocation"]),
            ],
            &[invalid(list_meta), invalid(set_meta)],
        ),
        case(
            "list-meta",
            3,
            &[
                structured.clone(),
                query(list_meta, "a", &[]),
                query(list_meta, "a", &["base:"]),
                query(list_meta, "a", &["x:y", "base:allocation"]),
                query(list_meta, "a", &["x:y"]),
                query(list_meta, "b", &[]),
            ],
            &[
                structured_ack.clone(),
                context(list_meta, 0),
                ack(list_meta),
                context(list_meta, 0),
                ack(list_meta),
                context(list_meta, 0),
                ack(list_meta),
                ack(list_meta),
                answer(list_meta, reply::ERR_UNKNOWN, &[]),
            ],
        ),
        case(
            "set-meta",
            3,
            &[
                structured,
                query(set_meta, "a", &["base:allocation", "x:y"]),
                query(set_meta, "a", &[]),
                query(set_meta, "a", &["base:"]),
            ],
            &[
                structured_ack,
                context(set_meta, wire::BASE_ALLOCATION_ID),
                ack(set_meta),
                ack(set_meta),
                ack(set_meta),
            ],
        ),
    ]
}

fn refused_cases() -> Vec<Case> {
    let go = |data: &[u8]| client_option(option::GO, data);
    let invalid = answer(option::GO, reply::ERR_INVALID, &[]);
    let long_name = "n".repeat(wire::STRING_BYTES_MAX + 1);
    let too_long = vec![0; OPTION_BYTES_MAX + 1];
    let malformed = CloseReason::Malformed;
    let mut wrong_magic = client_option(option::LIST, &[]);
    wrong_magic[3] ^= 1;
    let mut endless = client_option(option::GO, &[]);
    endless[12..16].copy_from_slice(&u32::MAX.to_be_bytes());
    let abort = client_option(option::ABORT, &[]);
    let name = |data: &[u8]| client_option(option::EXPORT_NAME, data);
    vec![
        case(
            "go-malformed",
            3,
            &[
                go(&[]),
                go(&[0, 0, 0, 9, 97]),
                go(&[0, 0, 0, 1, 97, 0, 1]),
                go(&[0, 0, 0, 1, 97, 0, 0, 7]),
            ],
            &[
                invalid.clone(),
                invalid.clone(),
                invalid.clone(),
                invalid.clone(),
            ],
        ),
        case(
            "go-not-utf-8",
            3,
            &[go(&[0, 0, 0, 1, 0xff, 0, 0])],
            &[invalid.clone()],
        ),
        case(
            "go-name-too-long",
            3,
            &[go(&go_data(&long_name, &[]))],
            &[invalid],
        ),
        case(
            "option-too-long",
            3,
            &[client_option(77, &too_long), client_option(77, &[])],
            &[
                answer(77, reply::ERR_TOO_BIG, &[]),
                answer(77, reply::ERR_UNSUP, &[]),
            ],
        ),
        closes(case("option-endless", 3, &[endless], &[]), malformed),
        closes(
            case(
                "abort",
                3,
                &[abort],
                &[answer(option::ABORT, reply::ACK, &[])],
            ),
            CloseReason::Aborted,
        ),
        closes(case("unknown-client-flags", 4, &[], &[]), malformed),
        closes(
            case(
                "not-fixed-newstyle",
                0,
                &[client_option(option::LIST, &[])],
                &[],
            ),
            malformed,
        ),
        closes(case("option-magic", 3, &[wrong_magic], &[]), malformed),
        closes(
            case("export-name-unknown", 3, &[name(b"b")], &[]),
            CloseReason::UnknownExport,
        ),
        closes(
            case("export-name-ambiguous", 3, &[name(b"")], &[]),
            CloseReason::UnknownExport,
        ),
        closes(
            case("export-name-not-utf-8", 3, &[name(&[0xff])], &[]),
            malformed,
        ),
        closes(
            case(
                "export-name-too-long",
                3,
                &[name(long_name.as_bytes())],
                &[],
            ),
            malformed,
        ),
    ]
}

fn handshake_cases() -> Vec<Case> {
    let mut cases = opening_cases();
    cases.extend(option_cases());
    cases.extend(refused_cases());
    cases
}

#[test]
fn the_handshake_answers_as_the_specification_says() {
    let greeting = join(&[b"NBDMAGICIHAVEOPT", &[0, 3]]);
    for case in handshake_cases() {
        for piece_bytes in [usize::MAX, 1] {
            let mut client = Client::new();
            assert_eq!(client.take_sent(), greeting);
            let left = client.receive(&case.says, piece_bytes);
            assert_eq!(client.sent, case.hears, "{} by {piece_bytes}", case.name);
            assert_eq!(client.closed, case.ends, "{} by {piece_bytes}", case.name);
            assert!(left.is_empty() || case.ends.is_some());
            assert!(client.requests.is_empty());
        }
    }
}

#[test]
fn every_invalid_request_is_refused_before_it_is_executed() {
    use command::*;
    const EPERM: u32 = 1;
    const EINVAL: u32 = 22;
    const ENOSPC: u32 = 28;
    let beyond = REQUEST_BYTES_MAX as u32 + 1;
    // (export, flags, command, offset, length, error)
    let table: &[(&str, u16, u16, u64, u32, u32)] = &[
        ("a", 0, READ, SIZE_BYTES, 1, EINVAL),
        ("a", 0, READ, SIZE_BYTES - 1, 2, EINVAL),
        ("a", 0, READ, u64::MAX, 2, EINVAL),
        ("a", 0, READ, 0, 0, EINVAL),
        ("a", 0, READ, 0, beyond, EINVAL),
        ("a", 1 << 15, READ, 0, 1, EINVAL),
        ("a", command_flag::REQ_ONE, READ, 0, 1, EINVAL),
        ("a", 0, WRITE, SIZE_BYTES - 1, 2, ENOSPC),
        ("a", 0, WRITE, u64::MAX, 2, ENOSPC),
        ("a", 0, WRITE, 0, 0, EINVAL),
        ("a", 0, WRITE, 0, beyond, EINVAL),
        ("a", command_flag::DF, WRITE, 0, 5, EINVAL),
        ("frozen", 0, WRITE, 0, 100_000, EPERM),
        ("frozen", 0, TRIM, 0, 1, EPERM),
        ("frozen", 0, WRITE_ZEROES, 0, 1, EPERM),
        ("a", 0, TRIM, SIZE_BYTES - 1, 2, EINVAL),
        ("a", command_flag::NO_HOLE, TRIM, 0, 1, EINVAL),
        ("a", 0, WRITE_ZEROES, SIZE_BYTES - 1, 2, ENOSPC),
        ("a", 0, WRITE_ZEROES, 0, 0, EINVAL),
        ("a", 0, FLUSH, 1, 0, EINVAL),
        ("a", 0, FLUSH, 0, 1, EINVAL),
        ("a", 0, CACHE, SIZE_BYTES, 1, EINVAL),
        ("a", 0, BLOCK_STATUS, SIZE_BYTES, 1, EINVAL),
        ("a", 0, BLOCK_STATUS, 0, 0, EINVAL),
        ("a", 0, 8, 0, 1, EINVAL),
        ("a", 0, u16::MAX, 0, 1, EINVAL),
    ];
    for (row, (export, flags, command, offset, length, error)) in table.iter().enumerate() {
        for structured in [false, true] {
            let mut client = Client::new();
            client.receive(&handshake(structured, export), usize::MAX);
            client.sent.clear();
            let mut stream = request(*flags, *command, 7, *offset, *length);
            if *command == WRITE {
                stream.resize(stream.len() + *length as usize, 0xee);
            }
            // The connection goes on after it.
            stream.extend(request(0, FLUSH, 8, 0, 0));
            let in_use = client.pool.in_use_bytes();
            assert!(client.receive(&stream, usize::MAX).is_empty());
            let in_chunks = structured && matches!(*command, READ | BLOCK_STATUS);
            let expected = match in_chunks {
                true => {
                    let payload = join(&[&error.to_be_bytes(), &[0, 0]]);
                    chunk_of(chunk::FLAG_DONE, chunk::ERROR, 7, &payload)
                }
                false => simple(*error, 7),
            };
            assert_eq!(client.sent, expected, "row {row}, structured {structured}");
            assert_eq!(client.only_request().1, BlockOp::Flush, "row {row}");
            assert_eq!(
                client.pool.in_use_bytes(),
                in_use,
                "refused data is not kept"
            );
        }
    }
}

#[test]
fn status_and_df_need_their_negotiation() {
    let mut client = Client::open(false);
    client.receive(&request(0, command::BLOCK_STATUS, 1, 0, 4096), usize::MAX);
    client.receive(
        &request(command_flag::DF, command::READ, 2, 0, 4096),
        usize::MAX,
    );
    assert_eq!(client.sent, join(&[&simple(22, 1), &simple(22, 2)]));
    // Contexts of another export do not count.
    let mut client = Client::new();
    let mut stream = 3u32.to_be_bytes().to_vec();
    stream.extend(client_option(option::STRUCTURED_REPLY, &[]));
    let data = query_data("frozen", &["base:allocation"]);
    stream.extend(client_option(option::SET_META_CONTEXT, &data));
    stream.extend(client_option(option::GO, &go_data("a", &[])));
    stream.extend(request(0, command::BLOCK_STATUS, 1, 0, 4096));
    client.receive(&stream, usize::MAX);
    assert!(client.requests.is_empty() && client.session.export().is_some());
}

#[test]
fn valid_requests_become_operations() {
    use command::*;
    let zero = |len, trim| BlockOp::Zero {
        offset: 4096,
        len,
        trim,
    };
    let all = command_flag::FUA;
    let table: &[(u16, u16, u32, BlockOp)] = &[
        (
            all | command_flag::DF,
            READ,
            10,
            BlockOp::Read {
                offset: 4096,
                len: 10,
            },
        ),
        (all, TRIM, 1 << 31, zero(1 << 31, true)),
        (all | command_flag::NO_HOLE, WRITE_ZEROES, 5, zero(5, false)),
        (command_flag::FAST_ZERO, WRITE_ZEROES, 5, zero(5, false)),
        (
            all | command_flag::REQ_ONE,
            BLOCK_STATUS,
            5,
            BlockOp::Status {
                offset: 4096,
                len: 5,
            },
        ),
    ];
    for (flags, command, length, op) in table {
        let mut client = Client::open(true);
        client.receive(&request(*flags, *command, 1, 4096, *length), usize::MAX);
        assert_eq!(client.only_request().1, *op);
    }
    let mut client = Client::open(true);
    client.receive(&request(0, CACHE, 5, 0, 4096), usize::MAX);
    assert_eq!(client.take_sent(), simple(0, 5));
    for (offset, len) in [
        (4096u64, 4096usize),
        (100, 10_000),
        (SIZE_BYTES - 70_000, 70_000),
    ] {
        let data: Vec<u8> = (0..len).map(|index| index as u8).collect();
        let stream = join(&[&request(all, WRITE, 6, offset, len as u32), &data]);
        assert!(client.receive(&stream, usize::MAX).is_empty());
        let (handle, op) = client.only_request();
        let BlockOp::Write {
            offset: at,
            data: arrived,
        } = op
        else {
            panic!("a write");
        };
        assert_eq!((at, &arrived[..]), (offset, &data[..]));
        let skew = arrived.as_ptr().addr() % BLOCK_BYTES;
        assert_eq!(
            skew as u64,
            offset % BLOCK_BYTES as u64,
            "whole blocks are aligned"
        );
        client.reply(handle, Ok(BlockReply::Done));
        assert_eq!(client.take_sent(), simple(0, 6));
    }
}

#[test]
fn reads_are_answered_in_the_form_that_was_negotiated() {
    let segments = || {
        let data = |byte| Segment::Data(Bytes::from(vec![byte; 10]));
        vec![
            Segment::Zero(5),
            Segment::Zero(1),
            data(1),
            data(2),
            Segment::Zero(70_000),
        ]
    };
    let length = 70_026u32;
    let content = join(&[&[0; 6], &[1; 10], &[2; 10], &[0; 70_000]]);
    let offset = 1000u64.to_be_bytes();
    let ask = |client: &mut Client, flags, segments| {
        client.receive(&request(flags, command::READ, 3, 1000, length), usize::MAX);
        let (handle, _) = client.only_request();
        client.reply(handle, Ok(BlockReply::Data(segments)));
        client.take_sent()
    };
    let mut client = Client::open(false);
    assert_eq!(
        ask(&mut client, 0, segments()),
        join(&[&simple(0, 3), &content])
    );

    let mut client = Client::open(true);
    let hole = |at: u64, len: u32| join(&[&at.to_be_bytes(), &len.to_be_bytes()]);
    let data = join(&[&1006u64.to_be_bytes(), &[1; 10], &[2; 10]]);
    let chunks = join(&[
        &chunk_of(0, chunk::OFFSET_HOLE, 3, &hole(1000, 6)),
        &chunk_of(0, chunk::OFFSET_DATA, 3, &data),
        &chunk_of(chunk::FLAG_DONE, chunk::OFFSET_HOLE, 3, &hole(1026, 70_000)),
    ]);
    assert_eq!(ask(&mut client, 0, segments()), chunks);
    let whole = chunk_of(
        chunk::FLAG_DONE,
        chunk::OFFSET_DATA,
        3,
        &join(&[&offset, &content]),
    );
    assert_eq!(ask(&mut client, command_flag::DF, segments()), whole);
    let zeroes = vec![Segment::Zero(length as usize)];
    let only_hole = chunk_of(chunk::FLAG_DONE, chunk::OFFSET_HOLE, 3, &hole(1000, length));
    assert_eq!(ask(&mut client, command_flag::DF, zeroes), only_hole);
}

#[test]
fn status_is_merged_cut_and_limited() {
    let runs = vec![(4096, true), (4096, true), (100, false), (900_000, true)];
    let payload = |runs: &[(u32, u32)]| {
        let runs = runs
            .iter()
            .flat_map(|(len, state)| [len.to_be_bytes(), state.to_be_bytes()]);
        join(&[
            &wire::BASE_ALLOCATION_ID.to_be_bytes(),
            &runs.flatten().collect::<Vec<u8>>(),
        ])
    };
    let table: &[(u16, &[(u32, u32)])] = &[
        (0, &[(8192, 3), (100, 0), (1708, 3)]),
        (command_flag::REQ_ONE, &[(8192, 3)]),
    ];
    for (flags, expected) in table {
        let mut client = Client::open(true);
        client.receive(
            &request(*flags, command::BLOCK_STATUS, 4, 0, 10_000),
            usize::MAX,
        );
        let (handle, _) = client.only_request();
        client.reply(handle, Ok(BlockReply::Status(runs.clone())));
        let chunk = chunk_of(chunk::FLAG_DONE, chunk::BLOCK_STATUS, 4, &payload(expected));
        assert_eq!(client.sent, chunk);
    }
}

#[test]
fn requests_are_answered_as_they_complete_and_disconnect_waits_for_them() {
    let mut client = Client::open(false);
    for cookie in 1..=3 {
        client.receive(&request(0, command::TRIM, cookie, 0, 4096), usize::MAX);
    }
    let handles: Vec<SessionHandle> = client.requests.iter().map(|(handle, _)| *handle).collect();
    client.reply(handles[2], Err(BlockError::NoSpace));
    client.receive(&request(0, command::DISC, 9, 0, 0), usize::MAX);
    assert!(!client.session.wants_input() && client.closed.is_none());
    client.reply(handles[0], Ok(BlockReply::Done));
    assert_eq!(client.closed, None);
    client.reply(handles[1], Ok(BlockReply::Done));
    assert_eq!(
        client.sent,
        join(&[&simple(28, 3), &simple(0, 1), &simple(0, 2)])
    );
    assert_eq!(client.closed, Some(CloseReason::Disconnected));
}

#[test]
fn a_wrong_magic_or_endless_data_ends_the_connection() {
    let mut wrong = request(0, command::FLUSH, 1, 0, 0);
    wrong[0] ^= 1;
    for stream in [wrong, request(0, command::WRITE, 1, 0, u32::MAX)] {
        let mut client = Client::open(false);
        client.receive(&request(0, command::FLUSH, 1, 0, 0), usize::MAX);
        client.receive(&stream, usize::MAX);
        assert_eq!(client.closed, Some(CloseReason::Malformed));
        // The answer to an earlier request is not wanted any more.
        let (handle, _) = client.only_request();
        client.reply(handle, Ok(BlockReply::Done));
        assert!(client.sent.is_empty());
    }
}

#[test]
fn requests_under_way_are_bounded_in_number() {
    let mut client = Client::open(false);
    let flush = request(0, command::FLUSH, 1, 0, 0);
    let stream = flush.repeat(CONNECTION_REQUESTS_MAX + 500);
    client.receive(&stream, usize::MAX);
    assert_eq!(client.requests.len(), CONNECTION_REQUESTS_MAX);
    assert!(!client.session.wants_input());
    let (handle, _) = client.requests.remove(0);
    client.reply(handle, Ok(BlockReply::Done));
    assert!(client.session.wants_input());
    client
        .session
        .feed(&mut client.reader, &EXPORTS, &mut client.out);
    client.collect(true);
    assert_eq!(client.requests.len(), CONNECTION_REQUESTS_MAX);
}

#[test]
fn bytes_under_way_are_bounded_until_they_are_sent() {
    let mut client = Client::open(false);
    let half = (CONNECTION_BYTES_MAX / 2) as u32;
    for cookie in 0..3 {
        client.receive(&request(0, command::READ, cookie, 0, half), usize::MAX);
    }
    assert_eq!(client.requests.len(), 2);
    assert!(!client.session.wants_input());
    for (handle, _) in std::mem::take(&mut client.requests) {
        let zeroes = BlockReply::Data(vec![Segment::Zero(half as usize)]);
        client.session.reply(handle, Ok(zeroes), &mut client.out);
    }
    client.collect(false);
    assert!(
        !client.session.wants_input(),
        "answered, but nothing has left"
    );
    client.session.sent(half as usize + 32);
    assert!(client.session.wants_input());
    client
        .session
        .feed(&mut client.reader, &EXPORTS, &mut client.out);
    client.collect(false);
    assert_eq!(client.requests.len(), 1);
}

/// A stream that opens an export and then asks for all sorts of things.
fn any_stream() -> impl Strategy<Value = Vec<u8>> {
    let one = (
        0u16..9,
        0u16..32,
        prop_oneof![0u64..20_000, SIZE_BYTES - 9000..SIZE_BYTES + 10],
    );
    let requests = prop::collection::vec((one, 0u32..40_000), 0..20);
    (any::<bool>(), requests).prop_map(|(structured, requests)| {
        let mut stream = handshake(structured, "a");
        for (cookie, ((command, flags, offset), length)) in requests.into_iter().enumerate() {
            stream.extend(request(flags, command, cookie as u64, offset, length));
            if command == command::WRITE {
                stream.extend((0..length).map(|index| index as u8));
            }
        }
        stream
    })
}

/// Runs a stream cut into pieces; what the client hears and what would be executed.
fn run(stream: &[u8], cuts: &[usize]) -> (Vec<u8>, Vec<BlockOp>, Option<CloseReason>) {
    let mut client = Client::new();
    let mut left = stream;
    for cut in cuts.iter().cycle() {
        if left.is_empty() || !client.session.wants_input() {
            break;
        }
        let count = (*cut).min(left.len());
        let rest = client.receive(&left[..count], usize::MAX);
        left = &left[count - rest.len()..];
    }
    let ops = client.requests.into_iter().map(|(_, op)| op).collect();
    (client.sent, ops, client.closed)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_stream_cut_anywhere_means_the_same(
        stream in any_stream(),
        cuts in prop::collection::vec(1usize..30_000, 1..8),
    ) {
        prop_assert_eq!(run(&stream, &[usize::MAX]), run(&stream, &cuts));
    }

    #[test]
    fn damaged_streams_break_no_promise(
        stream in any_stream(),
        mode in any::<u8>(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
    ) {
        let mut input = vec![mode];
        input.extend(stream);
        for (place, byte) in damage {
            let place = place.index(input.len());
            input[place] = byte;
        }
        fuzz_one(&input);
    }

    #[test]
    fn arbitrary_bytes_break_no_promise(input in prop::collection::vec(any::<u8>(), 0..300)) {
        fuzz_one(&input);
    }
}

/// The fuzzer's corpus is made from the cases above; with HOLDFAST_BLESS set it is written anew.
#[test]
fn the_corpus_holds_the_cases() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus/nbd");
    let mut seeds: Vec<(String, Vec<u8>)> = Vec::new();
    for case in handshake_cases()
        .into_iter()
        .filter(|case| case.says.len() < 1000)
    {
        seeds.push((case.name.to_owned(), join(&[&[3], &case.says])));
    }
    for structured in [false, true] {
        let mut stream = vec![3 + 4];
        stream.extend(handshake(structured, "a"));
        for command in 0..9u16 {
            let command = [0, 1, 3, 4, 5, 6, 7, 8, 2][usize::from(command)];
            let (offset, length) = if command == command::FLUSH {
                (0, 0)
            } else {
                (4000, 200)
            };
            stream.extend(request(0, command, 1, offset, length));
            if command == command::WRITE {
                stream.extend([7; 200]);
            }
        }
        seeds.push((format!("commands-structured-{structured}"), stream));
    }
    for (name, bytes) in seeds {
        let path = format!("{folder}/{name}");
        if std::env::var_os("HOLDFAST_BLESS").is_some() {
            std::fs::create_dir_all(folder).expect("create the folder of the corpus");
            std::fs::write(&path, &bytes).expect("write a seed");
        }
        let found = std::fs::read(&path).expect("read a seed; HOLDFAST_BLESS=1 writes them");
        assert!(
            found == bytes,
            "{name} is out of date; HOLDFAST_BLESS=1 writes it anew"
        );
        assert!(bytes.len() < STAGING_BYTES);
    }
}
