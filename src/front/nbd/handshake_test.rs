//! Handshake and options against a table; each case at once and byte by byte.

use super::messages::*;
use super::session::*;
use super::wire::{self, command, info, option, reply};
use crate::io::stream::STAGING_BYTES;
use crate::testing::nbd_fixture::*;
use crate::testing::stream_fixture::receive;

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

/// A case that ends the connection without a word.
fn closes(name: &'static str, flags: u32, says: Vec<u8>, reason: CloseReason) -> Case {
    let ends = Some(reason);
    Case { ends, ..case(name, flags, &[says], &[]) }
}

fn ack(code: u32) -> Vec<u8> {
    answer(code, reply::ACK, &[])
}

fn invalid(code: u32) -> Vec<u8> {
    answer(code, reply::ERR_INVALID, &[])
}

fn unsupported(code: u32) -> Vec<u8> {
    answer(code, reply::ERR_UNSUP, &[])
}

fn go(name: &str, infos: &[u16]) -> Vec<u8> {
    client_option(option::GO, &go_data(name, infos))
}

fn structured() -> Vec<u8> {
    client_option(option::STRUCTURED_REPLY, &[])
}

fn export_name_cases() -> Vec<Case> {
    let name = |name: &[u8]| client_option(option::EXPORT_NAME, name);
    let size = SIZE_BYTES.to_be_bytes();
    let export = |zeroes: usize| join(&[&size, &FLAGS.to_be_bytes(), &vec![0; zeroes]]);
    let long = [b'n'; wire::STRING_BYTES_MAX + 1];
    let (malformed, unknown) = (CloseReason::Malformed, CloseReason::UnknownExport);
    vec![
        case("export-name", 3, &[name(b"a")], &[export(0)]),
        case("export-name-zeroes", 1, &[name(b"a")], &[export(124)]),
        case("export-name-not-fixed", 0, &[name(b"a")], &[export(124)]),
        closes("export-name-unknown", 3, name(b"b"), unknown),
        closes("export-name-ambiguous", 3, name(b""), unknown),
        closes("export-name-not-utf-8", 3, name(&[0xff]), malformed),
        closes("export-name-too-long", 3, name(&long), malformed),
    ]
}

fn go_cases() -> Vec<Case> {
    let name_info = join(&[&info::NAME.to_be_bytes(), b"a"]);
    let info = client_option(option::INFO, &go_data("a", &[]));
    let opened = |flags| join(&[&go_answer(option::GO, flags), &ack(option::GO)]);
    let looked = join(&[&go_answer(option::INFO, FLAGS), &ack(option::INFO)]);
    let unknown = answer(option::GO, reply::ERR_UNKNOWN, &[]);
    let with_name = [
        go_answer(option::GO, FLAGS),
        answer(option::GO, reply::INFO, &name_info),
        ack(option::GO),
    ];
    let raw = |data: &[u8]| client_option(option::GO, data);
    let long_name = "n".repeat(wire::STRING_BYTES_MAX + 1);
    let malformed = [
        raw(&[]),
        raw(&[0, 0, 0, 9, 97]),
        raw(&[0, 0, 0, 1, 97, 0, 1]),
        raw(&[0, 0, 0, 1, 97, 0, 0, 7]),
        raw(&[0, 0, 0, 1, 0xff, 0, 0]),
        raw(&go_data(&long_name, &[])),
    ];
    let refused = vec![invalid(option::GO); malformed.len()];
    let with_df = [ack(option::STRUCTURED_REPLY), opened(FLAGS | FLAG_DF)];
    vec![
        case("go", 3, &[go("a", &[])], &[opened(FLAGS)]),
        case("go-with-infos", 3, &[go("a", &[0, 1, 3])], &with_name),
        case("go-read-only", 3, &[go("frozen", &[])], &[opened(FLAGS | 2)]),
        case("go-structured", 3, &[structured(), go("a", &[])], &with_df),
        case(
            "info-then-unknown-then-go",
            3,
            &[info, go("b", &[]), go("a", &[])],
            &[looked, unknown, opened(FLAGS)],
        ),
        case("go-malformed", 3, &malformed[..5], &refused[..5]),
        case("go-name-too-long", 3, &malformed[5..], &refused[5..]),
    ]
}

fn meta_context_cases() -> Vec<Case> {
    let (list, set) = (option::LIST_META_CONTEXT, option::SET_META_CONTEXT);
    let query = |code, name, queries: &[&str]| client_option(code, &query_data(name, queries));
    let base = "base:allocation";
    let context = |code, id: u32| {
        let context = join(&[&id.to_be_bytes(), base.as_bytes()]);
        join(&[&answer(code, reply::META_CONTEXT, &context), &ack(code)])
    };
    let many = vec![base; 1000];
    let unknown = answer(list, reply::ERR_UNKNOWN, &[]);
    let start = ack(option::STRUCTURED_REPLY);
    let early = [query(list, "a", &[]), query(set, "a", &[base])];
    let lists = [
        structured(),
        query(list, "a", &[]),
        query(list, "a", &["base:"]),
        query(list, "a", &["x:y", base]),
        query(list, "a", &["x:y"]),
        query(list, "b", &[]),
    ];
    let all = context(list, 0);
    let listed = [start.clone(), all.clone(), all.clone(), all, ack(list), unknown];
    let sets = [
        structured(),
        query(set, "a", &[base, "x:y"]),
        query(set, "a", &[]),
        query(set, "a", &["base:"]),
    ];
    let chosen = [start.clone(), context(set, wire::BASE_ALLOCATION_ID), ack(set), ack(set)];
    let too_many = [structured(), query(set, "a", &many)];
    vec![
        case("meta-before-structured", 3, &early, &[invalid(list), invalid(set)]),
        case("list-meta", 3, &lists, &listed),
        case("set-meta", 3, &sets, &chosen),
        case("set-meta-too-many", 3, &too_many, &[start, invalid(set)]),
    ]
}

fn other_option_cases() -> Vec<Case> {
    let listed = [
        answer(option::LIST, reply::SERVER, &string("a")),
        answer(option::LIST, reply::SERVER, &string("frozen")),
        ack(option::LIST),
    ];
    let list = |data: &[u8]| client_option(option::LIST, data);
    let structured_with_data = client_option(option::STRUCTURED_REPLY, b"x");
    let too_long = client_option(77, &vec![0; OPTION_BYTES_MAX + 1]);
    let too_big = answer(77, reply::ERR_TOO_BIG, &[]);
    let mut wrong_magic = list(&[]);
    wrong_magic[3] ^= 1;
    let mut endless = go("a", &[]);
    endless[12..16].copy_from_slice(&u32::MAX.to_be_bytes());
    let aborted = case("abort", 3, &[client_option(option::ABORT, &[])], &[ack(option::ABORT)]);
    let (malformed, starttls, extended_headers) = (CloseReason::Malformed, 5, 11);
    vec![
        case("list", 3, &[list(&[])], &listed),
        case("list-with-data", 3, &[list(b"x")], &[invalid(option::LIST)]),
        case("starttls", 3, &[client_option(starttls, &[])], &[unsupported(starttls)]),
        case(
            "extended-headers",
            3,
            &[client_option(extended_headers, &[])],
            &[unsupported(extended_headers)],
        ),
        case("unknown-option", 3, &[client_option(77, b"data")], &[unsupported(77)]),
        case(
            "structured-with-data",
            3,
            &[structured_with_data],
            &[invalid(option::STRUCTURED_REPLY)],
        ),
        case("option-too-long", 3, &[too_long, list(&[])], &[too_big, listed.concat()]),
        Case { ends: Some(CloseReason::Aborted), ..aborted },
        closes("option-endless", 3, endless, malformed),
        closes("option-magic", 3, wrong_magic, malformed),
        closes("unknown-client-flags", 4, Vec::new(), malformed),
        closes("not-fixed-newstyle", 0, list(&[]), malformed),
    ]
}

fn handshake_cases() -> Vec<Case> {
    let mut cases = export_name_cases();
    cases.extend(go_cases());
    cases.extend(meta_context_cases());
    cases.extend(other_option_cases());
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

/// The client asks for TLS and then starts anew, under it.
#[test]
fn tls_begins_where_it_is_offered_and_nothing_is_answered_before_where_it_is_required() {
    let starttls = client_option(option::STARTTLS, &[]);
    let required = |code: u32| answer(code, reply::ERR_TLS_REQD, &[]);
    for piece_bytes in [usize::MAX, 1] {
        let mut client = Client::of(Encryption::Required);
        client.take_sent();
        let early = [
            vec![0, 0, 0, 3],
            client_option(option::LIST, &[]),
            structured(),
            go("a", &[]),
            go("no such export", &[]),
            client_option(option::STARTTLS, b"x"),
            client_option(77, &[]),
        ];
        client.receive(&early.concat(), piece_bytes);
        let answers = [
            required(option::LIST),
            required(option::STRUCTURED_REPLY),
            required(option::GO),
            required(option::GO),
            invalid(option::STARTTLS),
            required(77),
        ];
        assert_eq!(client.take_sent(), answers.concat());
        assert!(!client.tls_started && client.closed.is_none());
        client.receive(&starttls, piece_bytes);
        assert_eq!(client.take_sent(), ack(option::STARTTLS));
        assert!(client.tls_started);
        // Twice is once too often.
        client.receive(&[starttls.clone(), go("a", &[])].concat(), piece_bytes);
        let opened = join(&[&go_answer(option::GO, FLAGS), &ack(option::GO)]);
        assert_eq!(client.take_sent(), [invalid(option::STARTTLS), opened].concat());
    }
    // Choices of before do not count.
    let mut client = Client::of(Encryption::Offered);
    client.take_sent();
    client.receive(&[vec![0, 0, 0, 3], structured(), starttls].concat(), usize::MAX);
    assert_eq!(client.take_sent(), [ack(option::STRUCTURED_REPLY), ack(option::STARTTLS)].concat());
    client.receive(&go("a", &[]), usize::MAX);
    let opened = join(&[&go_answer(option::GO, FLAGS), &ack(option::GO)]);
    assert_eq!(client.take_sent(), opened);
    // It has no error reply.
    let mut client = Client::of(Encryption::Required);
    let early = [vec![0, 0, 0, 3], client_option(option::EXPORT_NAME, b"a")];
    client.receive(&early.concat(), usize::MAX);
    assert_eq!(client.closed, Some(CloseReason::NeedsTls));
    let mut client = Client::of(Encryption::Required);
    let aborts = [vec![0, 0, 0, 3], client_option(option::ABORT, &[])];
    client.receive(&aborts.concat(), usize::MAX);
    assert_eq!(client.closed, Some(CloseReason::Aborted));
}

/// The fuzzer's corpus is made from the cases above. With HOLDFAST_WRITE_CORPUS set it is written
/// anew.
/// Whatever is asked for is not known here: this becomes of it.
struct Elsewhere(Opened);

impl Exports for Elsewhere {
    fn list(&self) -> Vec<String> {
        Vec::new()
    }

    fn open(&self, _: &str) -> Opened {
        self.0.clone()
    }
}

#[test]
fn an_export_that_somebody_is_asked_for_is_waited_for() {
    let mut client = Client::new();
    client.receive(&1u32.to_be_bytes(), usize::MAX);
    let feed = |client: &mut Client, becomes: Opened| {
        let exports = Elsewhere(becomes);
        client.session.feed(&mut client.reader, &exports, &mut client.out);
        client.collect(true);
        std::mem::take(&mut client.sent)
    };
    client.sent.clear();
    let says = join(&[&go("far", &[]), &request(0, command::FLUSH, 1, 0, 0)]);
    receive(&mut client.reader, &says, usize::MAX);
    for _ in 0..2 {
        assert_eq!(feed(&mut client, Opened::Later), b"");
        assert_eq!(client.session.awaits(), Some("far"));
        assert!(!client.session.wants_input());
    }
    let refused = feed(&mut client, Opened::OutOfReach);
    let code = reply::ERR_SHUTDOWN.to_be_bytes();
    assert!(refused.windows(4).any(|bytes| bytes == code), "another try may succeed");
    assert_eq!(client.session.awaits(), None);

    // With an answer, the session goes on as if it had known.
    let mut client = Client::new();
    client.receive(&1u32.to_be_bytes(), usize::MAX);
    receive(&mut client.reader, &says, usize::MAX);
    feed(&mut client, Opened::Later);
    let export = EXPORTS.open("a");
    assert!(!feed(&mut client, export).is_empty());
    assert!(client.session.export().is_some());
    assert_eq!(client.requests.len(), 1, "what came behind it is carried out once");

    // The old option has no answer for errors.
    let mut client = Client::new();
    client.receive(&1u32.to_be_bytes(), usize::MAX);
    receive(&mut client.reader, &client_option(option::EXPORT_NAME, b"far"), usize::MAX);
    feed(&mut client, Opened::OutOfReach);
    assert_eq!(client.closed, Some(CloseReason::OutOfReach));
}

#[test]
fn the_corpus_holds_the_cases() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus/nbd");
    let mut seeds: Vec<(String, Vec<u8>)> = Vec::new();
    for case in handshake_cases().into_iter().filter(|case| case.says.len() < 1000) {
        seeds.push((case.name.to_owned(), join(&[&[3], &case.says])));
    }
    for structured in [false, true] {
        let mut stream = vec![3 + 4];
        stream.extend(handshake(structured, "a"));
        for command in 0..9u16 {
            let command = [0, 1, 3, 4, 5, 6, 7, 8, 2][usize::from(command)];
            let (offset, length) = if command == command::FLUSH { (0, 0) } else { (4000, 200) };
            stream.extend(request(0, command, 1, offset, length));
            if command == command::WRITE {
                stream.extend([7; 200]);
            }
        }
        seeds.push((format!("commands-structured-{structured}"), stream));
    }
    for (name, bytes) in seeds {
        let path = format!("{folder}/{name}");
        if std::env::var_os("HOLDFAST_WRITE_CORPUS").is_some() {
            std::fs::create_dir_all(folder).expect("create the folder of the corpus");
            std::fs::write(&path, &bytes).expect("write a seed");
        }
        let found = std::fs::read(&path).expect("read a seed; HOLDFAST_WRITE_CORPUS=1 writes them");
        assert!(found == bytes, "{name} is out of date; HOLDFAST_WRITE_CORPUS=1 writes it anew");
        assert!(bytes.len() < STAGING_BYTES);
    }
}
