//! Requests and replies against tables, bounds, and streams cut or damaged anywhere.

use bytes::Bytes;
use proptest::prelude::*;

use super::messages::*;
use super::wire::{self, chunk, command, command_flag, option};
use crate::limits::{CONNECTION_BYTES_MAX, CONNECTION_REQUESTS_MAX, REQUEST_BYTES_MAX};
use crate::testing::fuzz::nbd::fuzz_one;
use crate::testing::nbd_fixture::*;
use crate::types::{BLOCK_BYTES, BlockError, BlockOp, BlockReply, Segment, ZeroHow};

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
            assert_eq!(client.pool.in_use_bytes(), in_use, "refused data is not kept");
        }
    }
}

#[test]
fn status_and_df_need_their_negotiation() {
    let mut client = Client::open(false);
    client.receive(&request(0, command::BLOCK_STATUS, 1, 0, 4096), usize::MAX);
    client.receive(&request(command_flag::DF, command::READ, 2, 0, 4096), usize::MAX);
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
    let zero = |len, how| BlockOp::Zero { offset: 4096, len, how };
    let all = command_flag::FUA;
    let table: &[(u16, u16, u32, BlockOp)] = &[
        (all | command_flag::DF, READ, 10, BlockOp::Read { offset: 4096, len: 10 }),
        (all, TRIM, 1 << 31, zero(1 << 31, ZeroHow::Trim)),
        (all | command_flag::NO_HOLE, WRITE_ZEROES, 5, zero(5, ZeroHow::Keep)),
        (command_flag::FAST_ZERO, WRITE_ZEROES, 5, zero(5, ZeroHow::Free)),
        (all | command_flag::REQ_ONE, BLOCK_STATUS, 5, BlockOp::Status { offset: 4096, len: 5 }),
    ];
    for (flags, command, length, op) in table {
        let mut client = Client::open(true);
        client.receive(&request(*flags, *command, 1, 4096, *length), usize::MAX);
        assert_eq!(client.only_request().1, *op);
    }
    let mut client = Client::open(true);
    client.receive(&request(0, CACHE, 5, 0, 4096), usize::MAX);
    assert_eq!(client.take_sent(), simple(0, 5));
    for (offset, len) in [(4096u64, 4096usize), (100, 10_000), (SIZE_BYTES - 70_000, 70_000)] {
        let data: Vec<u8> = (0..len).map(|index| index as u8).collect();
        let stream = join(&[&request(all, WRITE, 6, offset, len as u32), &data]);
        assert!(client.receive(&stream, usize::MAX).is_empty());
        let (handle, op) = client.only_request();
        let BlockOp::Write { offset: at, data: arrived } = op else {
            panic!("a write");
        };
        assert_eq!((at, &arrived[..]), (offset, &data[..]));
        let skew = arrived.as_ptr().addr() % BLOCK_BYTES;
        assert_eq!(skew as u64, offset % BLOCK_BYTES as u64, "whole blocks are aligned");
        client.reply(handle, Ok(BlockReply::Done));
        assert_eq!(client.take_sent(), simple(0, 6));
    }
}

#[test]
fn reads_are_answered_in_the_form_that_was_negotiated() {
    let segments = || {
        let data = |byte| Segment::Data(Bytes::from(vec![byte; 10]));
        vec![Segment::Zero(5), Segment::Zero(1), data(1), data(2), Segment::Zero(70_000)]
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
    assert_eq!(ask(&mut client, 0, segments()), join(&[&simple(0, 3), &content]));

    let mut client = Client::open(true);
    let hole = |at: u64, len: u32| join(&[&at.to_be_bytes(), &len.to_be_bytes()]);
    let data = join(&[&1006u64.to_be_bytes(), &[1; 10], &[2; 10]]);
    let chunks = join(&[
        &chunk_of(0, chunk::OFFSET_HOLE, 3, &hole(1000, 6)),
        &chunk_of(0, chunk::OFFSET_DATA, 3, &data),
        &chunk_of(chunk::FLAG_DONE, chunk::OFFSET_HOLE, 3, &hole(1026, 70_000)),
    ]);
    assert_eq!(ask(&mut client, 0, segments()), chunks);
    let whole = chunk_of(chunk::FLAG_DONE, chunk::OFFSET_DATA, 3, &join(&[&offset, &content]));
    assert_eq!(ask(&mut client, command_flag::DF, segments()), whole);
    let zeroes = vec![Segment::Zero(length as usize)];
    let only_hole = chunk_of(chunk::FLAG_DONE, chunk::OFFSET_HOLE, 3, &hole(1000, length));
    assert_eq!(ask(&mut client, command_flag::DF, zeroes), only_hole);
}

#[test]
fn status_is_merged_cut_and_limited() {
    let runs = vec![(4096, true), (4096, true), (100, false), (900_000, true)];
    let payload = |runs: &[(u32, u32)]| {
        let runs = runs.iter().flat_map(|(len, state)| [len.to_be_bytes(), state.to_be_bytes()]);
        join(&[&wire::BASE_ALLOCATION_ID.to_be_bytes(), &runs.flatten().collect::<Vec<u8>>()])
    };
    let table: &[(u16, &[(u32, u32)])] =
        &[(0, &[(8192, 3), (100, 0), (1708, 3)]), (command_flag::REQ_ONE, &[(8192, 3)])];
    for (flags, expected) in table {
        let mut client = Client::open(true);
        client.receive(&request(*flags, command::BLOCK_STATUS, 4, 0, 10_000), usize::MAX);
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
    assert_eq!(client.sent, join(&[&simple(28, 3), &simple(0, 1), &simple(0, 2)]));
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
fn requests_in_flight_are_bounded_in_number() {
    let mut client = Client::open(false);
    let flush = request(0, command::FLUSH, 1, 0, 0);
    let stream = flush.repeat(CONNECTION_REQUESTS_MAX + 500);
    client.receive(&stream, usize::MAX);
    assert_eq!(client.requests.len(), CONNECTION_REQUESTS_MAX);
    assert!(!client.session.wants_input());
    let (handle, _) = client.requests.remove(0);
    client.reply(handle, Ok(BlockReply::Done));
    assert!(client.session.wants_input());
    client.session.feed(&mut client.reader, &EXPORTS, &mut client.out);
    client.collect(true);
    assert_eq!(client.requests.len(), CONNECTION_REQUESTS_MAX);
}

#[test]
fn bytes_in_flight_are_bounded_until_they_are_sent() {
    bytes_are_bounded(Client::open(false), CONNECTION_BYTES_MAX);
    bytes_are_bounded(Client::open_with(false, 1 << 20), 1 << 20);
}

fn bytes_are_bounded(mut client: Client, bytes_max: usize) {
    let half = (bytes_max / 2) as u32;
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
    assert!(!client.session.wants_input(), "answered, but nothing has left");
    client.session.sent(half as usize + 32);
    assert!(client.session.wants_input());
    client.session.feed(&mut client.reader, &EXPORTS, &mut client.out);
    client.collect(false);
    assert_eq!(client.requests.len(), 1);
}

/// A trim has no payload, and stores keep something of each of its extents.
#[test]
fn trims_in_flight_are_bounded_and_one_is_always_taken() {
    let mut client = Client::open_with(false, 1 << 20);
    client.receive(&request(0, command::TRIM, 0, 0, u32::MAX - 511), usize::MAX);
    assert_eq!(client.requests.len(), 1, "more than the bound, and alone");
    client.receive(&request(0, command::WRITE_ZEROES, 1, 0, 4096), usize::MAX);
    assert_eq!(client.requests.len(), 1);
    assert!(!client.session.wants_input());
    let (handle, _) = client.requests.pop().unwrap();
    client.session.reply(handle, Ok(BlockReply::Done), &mut client.out);
    client.collect(false);
    client.session.sent(16);
    client.session.feed(&mut client.reader, &EXPORTS, &mut client.out);
    client.collect(false);
    assert_eq!(client.requests.len(), 1);
}

/// A stream that opens an export and then asks for all sorts of things.
fn any_stream() -> impl Strategy<Value = Vec<u8>> {
    let one = (0u16..9, 0u16..32, prop_oneof![0u64..20_000, SIZE_BYTES - 9000..SIZE_BYTES + 10]);
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
