//! Channels with bytes between them: against each other, against rustls's own records, and against
//! bytes that nobody should send.

use std::io::{Read, Write};
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;

use crate::io::buffer::Pool;
use crate::io::stream::StreamReader;
use crate::security::channel::TlsError;
use crate::security::credentials::Tls;
use crate::security::record::RecordError;
use crate::security::verifier::Expected;
use crate::testing::tls_fixture::{Cluster, End, client, server, talk};

fn pair() -> (End, End) {
    let cluster = Cluster::new(1);
    let (one, other) = (cluster.credentials("pod/1"), cluster.credentials("pod/2"));
    let trust = cluster.trust();
    let dialer = End::new(client(&one, &trust, Expected::Member));
    (dialer, End::new(server(&other, &trust, Expected::Member)))
}

fn connected() -> (End, End) {
    let (mut one, mut other) = pair();
    talk(&mut one, &mut other, usize::MAX);
    assert!(one.channel.is_up() && other.channel.is_up());
    (one, other)
}

fn pattern(bytes: usize, seed: usize) -> Bytes {
    (0..bytes).map(|at| (at * 7 + at / 255 + seed) as u8).collect::<Vec<u8>>().into()
}

#[test]
fn bytes_survive_every_cut_in_both_directions() {
    for step in [1, 3, 100, 16_389, 70_000, usize::MAX] {
        let (mut one, mut other) = pair();
        // Said before the handshake is over: it waits, and follows the last of its messages.
        let sizes = [1, 40_000, 16 << 10, (16 << 10) + 1, 300_000, 7];
        let said: Vec<Bytes> =
            sizes.iter().enumerate().map(|(seed, size)| pattern(*size, seed)).collect();
        one.waiting.extend(said.iter().cloned());
        other.waiting.extend(said.iter().rev().cloned());
        talk(&mut one, &mut other, step);
        assert!(one.failed.is_none() && other.failed.is_none(), "{:?}", other.failed);
        assert!(other.read == said.concat(), "step {step}");
        let reversed: Vec<Bytes> = said.into_iter().rev().collect();
        assert!(one.read == reversed.concat(), "step {step}");
        let role = |end: &End| end.channel.peer().unwrap().subject.role.to_string();
        assert_eq!((role(&one), role(&other)), ("pod/2".to_owned(), "pod/1".to_owned()));
    }
}

/// A payload that the reader asked for lands where it is written to the disk from.
#[test]
fn large_payloads_land_aligned() {
    let (mut one, mut other) = connected();
    let payload = pattern(1 << 20, 3);
    one.waiting.extend([Bytes::from_static(b"head"), payload.clone(), Bytes::from_static(b"tail")]);
    let sent = one.send();
    let mut reader = StreamReader::new(Pool::default());
    let (mut at, mut got) = (0, None);
    while got.is_none() {
        let mut bufs = other.channel.lend();
        let count = (bufs.staging.len() - bufs.staging_from).min(sent.len() - at);
        bufs.staging[bufs.staging_from..bufs.staging_from + count]
            .copy_from_slice(&sent[at..at + count]);
        at += count;
        other.channel.received(bufs, count);
        loop {
            let opened = other.channel.open(&mut reader).unwrap();
            if reader.peek().starts_with(b"head") {
                reader.consume(4);
            }
            if got.is_none() {
                got = reader.payload(payload.len(), 512);
            }
            if !opened {
                break;
            }
        }
    }
    let got = got.unwrap();
    assert!(got == payload && got.as_ptr().addr() % 4096 == 512);
    assert_eq!(reader.peek(), b"tail");
}

/// Rustls's own connection at the other end: it renews its keys and asks us to renew ours.
#[test]
fn records_are_those_of_the_standard_also_under_renewed_keys() {
    let cluster = Cluster::new(1);
    let trust = cluster.trust();
    let tls = Tls::new(&cluster.credentials("pod/1"), trust.clone()).unwrap();
    let config = Arc::new(tls.client(Expected::Pod, false).unwrap());
    let name = std::net::IpAddr::from([0, 0, 0, 0]).into();
    let mut theirs = rustls::ClientConnection::new(config, name).unwrap();
    let mut ours = End::new(server(&cluster.credentials("pod/2"), &trust, Expected::Member));
    let mut heard = Vec::new();
    for round in 0..40usize {
        if !theirs.is_handshaking() {
            theirs.writer().write_all(&pattern(1000, round)).unwrap();
            if round % 5 == 0 {
                theirs.refresh_traffic_keys().unwrap();
            }
            ours.waiting.push(pattern(40_000, round));
        }
        let mut there = Vec::new();
        while theirs.wants_write() {
            theirs.write_tls(&mut there).unwrap();
        }
        ours.receive(&there, 777);
        assert!(ours.failed.is_none(), "{:?}", ours.failed);
        if round == 20 {
            ours.channel.renew_keys_after(3);
        }
        let back = ours.send();
        let mut back = &back[..];
        while !back.is_empty() {
            theirs.read_tls(&mut back).unwrap();
            theirs.process_new_packets().unwrap();
            let mut chunk = [0u8; 65_536];
            while let Ok(count @ 1..) = theirs.reader().read(&mut chunk) {
                heard.extend_from_slice(&chunk[..count]);
            }
        }
    }
    let first = (0..40).find(|round| heard.starts_with(&pattern(40_000, *round))).unwrap();
    let said: Vec<u8> = (first..40).flat_map(|round| pattern(40_000, round)).collect();
    assert!(heard == said, "{} bytes of {}", heard.len(), said.len());
    let said: Vec<u8> = (first..40).flat_map(|round| pattern(1000, round)).collect();
    assert!(ours.read == said);
}

#[test]
fn both_ends_renew_their_keys_and_nothing_is_lost() {
    let (mut one, mut other) = connected();
    one.channel.renew_keys_after(2);
    other.channel.renew_keys_after(1);
    for round in 0..50 {
        one.waiting.push(pattern(100_000, round));
        other.waiting.push(pattern(5, round));
        talk(&mut one, &mut other, 9999);
    }
    assert!(one.failed.is_none() && other.failed.is_none());
    assert_eq!((other.read.len(), one.read.len()), (50 * 100_000, 50 * 5));
}

#[test]
fn a_record_that_was_changed_cut_or_repeated_ends_the_connection() {
    for (at, bit) in (0..70).map(|number| (number * 61, number % 8)) {
        let (mut one, mut other) = connected();
        one.waiting.push(pattern(4000, 0));
        let mut sent = one.send();
        let at = at % sent.len();
        sent[at] ^= 1 << bit;
        other.receive(&sent, usize::MAX);
        // A longer length waits for bytes that never come.
        assert!(other.failed.is_some() || at == 3 || at == 4, "byte {at}");
        assert!(other.read.is_empty());
    }
    let (mut one, mut other) = connected();
    one.waiting.push(pattern(100, 0));
    let sent = one.send();
    other.receive(&sent, usize::MAX);
    other.receive(&sent, usize::MAX);
    assert!(matches!(other.failed, Some(TlsError::Record(RecordError::Unsealed))));
    assert_eq!(other.read, pattern(100, 0));
}

/// What a peer says that speaks plainly where TLS is expected.
#[test]
fn plain_bytes_are_refused_at_once() {
    for first in
        [&b"HOLDPEER\x01\x00\x40\x00"[..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"NBDMAGIC"]
    {
        let (_, mut other) = pair();
        other.receive(first, usize::MAX);
        assert!(other.failed.is_some());
        let (mut one, mut other) = connected();
        one.receive(first, 1);
        other.receive(first, usize::MAX);
        assert!(one.failed.is_some() && other.failed.is_some());
    }
}

/// Feeds bytes to a server's end, at each point of its life.
fn feed(end: &mut End, bytes: &[u8], step: usize) {
    end.receive(bytes, step);
    let _whatever_it_says = end.send();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_do_harm(
        bytes in prop::collection::vec(any::<u8>(), 0..2000),
        header in prop::option::of((20u8..26, any::<u16>())),
        step in 1usize..2000,
    ) {
        let header = header.map(|(typ, length)| {
            let [high, low] = length.to_be_bytes();
            vec![typ, 3, 3, high, low]
        });
        let bytes = [header.unwrap_or_default(), bytes].concat();
        let (mut one, mut other) = pair();
        let hello = one.send();
        feed(&mut other, &bytes, step);
        prop_assert!(other.read.is_empty());
        // In the middle of the handshake, and after it.
        let (mut one, mut other) = pair();
        feed(&mut other, &hello[..hello.len() / 2], step);
        feed(&mut other, &bytes, step);
        talk(&mut one, &mut other, step);
        prop_assert!(other.read.is_empty());
        let (mut one, mut other) = connected();
        feed(&mut other, &bytes, step);
        feed(&mut one, &bytes, step);
        prop_assert!(other.read.is_empty() && one.read.is_empty());
    }

    #[test]
    fn a_handshake_that_was_changed_fails_on_both_sides(
        at in any::<prop::sample::Index>(),
        bit in 0u8..8,
    ) {
        let (mut one, mut other) = pair();
        let mut hello = one.send();
        let at = at.index(hello.len());
        hello[at] ^= 1 << bit;
        other.receive(&hello, usize::MAX);
        talk(&mut one, &mut other, usize::MAX);
        one.waiting.push(pattern(10, 0));
        talk(&mut one, &mut other, usize::MAX);
        // The record's version is not part of what is signed.
        let is_signed = at != 1 && at != 2;
        prop_assert!(!is_signed || (other.read.is_empty() && !other.channel.is_up()));
    }
}

#[test]
fn an_end_without_memory_for_more_takes_no_more() {
    let (mut one, mut other) = connected();
    one.waiting.push(pattern(60_000, 0));
    let sent = one.send();
    let mut bufs = other.channel.lend();
    let count = sent.len().min(bufs.staging.len());
    bufs.staging[..count].copy_from_slice(&sent[..count]);
    other.channel.received(bufs, count);
    // The reader parses nothing: what does not fit stays sealed or waits.
    let mut reader = StreamReader::new(Pool::default());
    let fill = pattern(20_000, 9);
    assert_eq!(reader.push(&fill), fill.len());
    while other.channel.open(&mut reader).unwrap() {}
    assert_eq!(reader.peek().len(), 64 << 10);
    assert!(!other.channel.wants_receive());
    reader.consume(fill.len());
    while other.channel.open(&mut reader).unwrap() {}
    let read = reader.peek().to_vec();
    assert!(read == pattern(60_000, 0)[..read.len()] && read.len() > 48_000);
    assert!(other.channel.wants_receive());
}
