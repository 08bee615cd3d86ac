//! Requests that no well-behaved NBD client sends. The answer must be the protocol's (an error, or
//! the end of the connection), and other connections must not be affected.

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use support::nbd::{
    Client, DISCONNECT, EINVAL, ENOSPC, EOVERFLOW, FLUSH, NbdError, Negotiation, OPTION_ABORT,
    OPTION_EXPORT_NAME, OPTION_GO, OPTION_LIST, OPTION_MAGIC, READ, REPLY_ACK, REPLY_ERR_INVALID,
    REPLY_ERR_UNKNOWN, REPLY_ERR_UNSUP, TRIM, WRITE, WRITE_ZEROES, closes,
};
use support::tools::noise;
use support::{Cluster, Setup};

const SIZE: u64 = 64 << 20;

fn start(name: &'static str) -> Cluster {
    Setup::new(name).volume("demo", "64MiB").start()
}

/// A connection that must never be affected.
struct Bystander {
    client: Client,
    rounds: u64,
}

impl Bystander {
    fn new(cluster: &Cluster) -> Bystander {
        Bystander { client: cluster.connect(1, "demo"), rounds: 0 }
    }

    fn goes_on(&mut self) {
        self.rounds += 1;
        let (offset, data) = (SIZE / 2, noise(self.rounds, 5000));
        self.client.write(offset, &data).unwrap();
        assert!(self.client.read(offset, data.len()).unwrap() == data);
    }
}

fn negotiate(address: SocketAddr) -> Negotiation {
    Negotiation::start(address, 3).unwrap()
}

fn raw_option(option: u32, len: u32) -> Vec<u8> {
    [&OPTION_MAGIC[..], &option.to_be_bytes(), &len.to_be_bytes()].concat()
}

#[test]
fn nonsense_while_negotiating_ends_that_connection_only() {
    let cluster = start("nonsense");
    let address = cluster.nbd_address(1);
    let mut bystander = Bystander::new(&cluster);
    let after_greeting: Vec<(&str, Vec<u8>)> = vec![
        ("HTTP", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec()),
        ("zeroes", vec![0; 4096]),
        ("ones", vec![0xff; 100_000]),
        ("noise", noise(1, 100_000)),
        ("unknown client flags", 0xffff_fffcu32.to_be_bytes().to_vec()),
        ("no option magic", [&3u32.to_be_bytes()[..], &[b'x'; 64]].concat()),
        (
            "an export that does not exist",
            [&3u32.to_be_bytes()[..], &raw_option(OPTION_EXPORT_NAME, 7), b"missing"].concat(),
        ),
    ];
    for (what, bytes) in after_greeting {
        eprintln!("{what}");
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        // The server may have closed before all of it was sent.
        let _ = stream.write_all(&bytes);
        assert!(closes(&mut stream), "{what}: still open");
        bystander.goes_on();
    }
}

#[test]
fn options_that_make_no_sense_are_refused_and_negotiation_goes_on() {
    let cluster = start("options");
    let address = cluster.nbd_address(1);
    let mut bystander = Bystander::new(&cluster);
    let mut negotiation = negotiate(address);
    let mut refused = |option: u32, data: &[u8], expected: u32| {
        negotiation.send_option(option, data).unwrap();
        let (reply, _) = negotiation.reply(option).unwrap();
        assert_eq!(reply, expected, "option {option} with {data:?}");
        bystander.goes_on();
    };
    let go = |name: &[u8], info_count: u16, rest: &[u8]| {
        let len = (name.len() as u32).to_be_bytes();
        [&len[..], name, &info_count.to_be_bytes(), rest].concat()
    };
    refused(12345, b"", REPLY_ERR_UNSUP);
    refused(12345, &[7; 3000], REPLY_ERR_UNSUP);
    refused(OPTION_LIST, b"no data allowed", REPLY_ERR_INVALID);
    refused(OPTION_GO, b"", REPLY_ERR_INVALID);
    refused(OPTION_GO, &[0xff; 6], REPLY_ERR_INVALID);
    refused(OPTION_GO, &go(b"demo", 5, &[0, 0]), REPLY_ERR_INVALID);
    refused(OPTION_GO, &go(b"demo", 0, b"trailing"), REPLY_ERR_INVALID);
    refused(OPTION_GO, &go(b"missing", 0, &[]), REPLY_ERR_UNKNOWN);
    refused(OPTION_GO, &go(b"../../etc", 0, &[]), REPLY_ERR_UNKNOWN);
    // The connection still works after all of that.
    let mut client = negotiation.go("demo").unwrap();
    client.write(0, b"fine").unwrap();
    assert_eq!(client.read(0, 4).unwrap(), b"fine");

    let mut negotiation = negotiate(address);
    negotiation.send_option(OPTION_ABORT, b"").unwrap();
    assert_eq!(negotiation.reply(OPTION_ABORT).unwrap().0, REPLY_ACK);
    assert!(closes(&mut negotiation.stream));
}

#[test]
fn a_length_that_cannot_be_true_takes_no_memory() {
    let cluster = start("lengths");
    let address = cluster.nbd_address(1);
    let mut bystander = Bystander::new(&cluster);
    let before = resident_bytes(&cluster);
    let mut held = Vec::new();
    for _ in 0..50 {
        // Announces 4 GiB and sends a little of it. The server may wait, refuse or close.
        let mut negotiation = negotiate(address);
        negotiation.stream.write_all(&raw_option(OPTION_GO, u32::MAX)).unwrap();
        let _ = negotiation.stream.write_all(&[0; 1000]);
        held.push(negotiation.stream);
        let mut client = cluster.connect(1, "demo");
        client.send(WRITE, 0, 0, u32::MAX, &[0; 1000]).unwrap();
        held.push(client.stream);
    }
    bystander.goes_on();
    let grown = resident_bytes(&cluster).saturating_sub(before);
    assert!(grown < 256 << 20, "{grown} bytes more than before");
    drop(held);
    bystander.goes_on();
}

/// Resident memory of the serving pod, from /proc.
fn resident_bytes(cluster: &Cluster) -> u64 {
    let pid = cluster.pid(1).unwrap().as_raw_nonzero();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));
    kib.unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
fn requests_that_make_no_sense_get_the_prescribed_error_and_change_nothing() {
    let cluster = start("requests");
    let mut bystander = Bystander::new(&cluster);
    let mut client = cluster.connect(1, "demo");
    let last = noise(9, 4096);
    client.write(SIZE - 4096, &last).unwrap();
    let payload = vec![0xee; 8192];
    let full = &payload[..];
    // Command, flags, offset, length, payload, and the allowed errors.
    let requests: &[(u16, u16, u64, u32, &[u8], &[u32])] = &[
        (READ, 0, SIZE, 4096, &[], &[EINVAL]),
        (READ, 0, SIZE - 4096, 8192, &[], &[EINVAL]),
        (READ, 0, u64::MAX - 100, 4096, &[], &[EINVAL]),
        (READ, 0, 0, u32::MAX, &[], &[EINVAL, EOVERFLOW]),
        (WRITE, 0, SIZE, 8192, full, &[ENOSPC, EINVAL]),
        (WRITE, 0, SIZE - 4096, 8192, full, &[ENOSPC, EINVAL]),
        (WRITE, 0, u64::MAX - 4095, 8192, full, &[ENOSPC, EINVAL]),
        (WRITE, 0x8000, SIZE - 8192, 8192, full, &[EINVAL]),
        (WRITE_ZEROES, 0, SIZE - 4096, 8192, &[], &[ENOSPC, EINVAL]),
        (TRIM, 0, SIZE - 4096, 8192, &[], &[EINVAL, ENOSPC]),
        (TRIM, 0, u64::MAX, u32::MAX, &[], &[EINVAL, ENOSPC]),
        (READ, 0x4000, 0, 4096, &[], &[EINVAL]),
        (FLUSH, 0x4000, 0, 0, &[], &[EINVAL]),
        (99, 0, 0, 0, &[], &[EINVAL]),
        (0xffff, 0, 0, 4096, &[], &[EINVAL]),
    ];
    for (command, flags, offset, len, payload, errors) in requests {
        let what = format!("command {command} flags {flags:#x} offset {offset} length {len}");
        let cookie = client.send(*command, *flags, *offset, *len, payload).unwrap();
        let (answered, error) = client.receive().unwrap();
        assert_eq!(answered, cookie, "{what}");
        assert!(errors.contains(&error), "{what}: error {error}");
        // The payload of a refused write was skipped: the next request is understood.
        assert!(client.read(SIZE - 4096, 4096).unwrap() == last, "{what}");
        bystander.goes_on();
    }
}

#[test]
fn a_request_of_no_length_is_answered() {
    let cluster = start("empty");
    let mut client = cluster.connect(1, "demo");
    for command in [READ, WRITE, TRIM, WRITE_ZEROES] {
        let cookie = client.send(command, 0, 4096, 0, &[]).unwrap();
        let (answered, error) = client.receive().unwrap();
        assert_eq!(answered, cookie);
        // The protocol leaves open whether it succeeds.
        assert!([0, EINVAL, ENOSPC].contains(&error), "command {command}: error {error}");
    }
    client.write(0, b"goes on").unwrap();
}

#[test]
fn bytes_that_are_no_request_end_that_connection_only() {
    let cluster = start("no_request");
    let mut bystander = Bystander::new(&cluster);
    for seed in 0..5 {
        let mut client = cluster.connect(1, "demo");
        let _ = client.stream.write_all(&noise(seed, 50_000));
        assert!(client.is_closed(), "still open after noise {seed}");
        bystander.goes_on();
    }
}

#[test]
fn a_write_whose_client_went_away_half_way_changes_nothing() {
    let cluster = start("half_write");
    let mut bystander = Bystander::new(&cluster);
    let before = noise(5, 1 << 20);
    let mut client = cluster.connect(1, "demo");
    client.write(0, &before).unwrap();
    for sent in [0, 1, 4095, 4096, 100_000, (1 << 20) - 1] {
        let mut gone = cluster.connect(1, "demo");
        gone.send(WRITE, 0, 0, 1 << 20, &vec![0xdd; sent]).unwrap();
        gone.stream.shutdown(Shutdown::Write).unwrap();
        assert!(gone.is_closed(), "after {sent} bytes");
        assert!(client.read(0, 1 << 20).unwrap() == before, "after {sent} bytes");
        bystander.goes_on();
    }
}

#[test]
fn a_disconnect_is_obeyed_after_what_came_before() {
    let cluster = start("disconnect");
    let mut client = cluster.connect(1, "demo");
    let written = client.send(WRITE, 0, 0, 4096, &[1; 4096]).unwrap();
    client.send(DISCONNECT, 0, 0, 0, &[]).unwrap();
    assert_eq!(client.receive().unwrap(), (written, 0));
    let mut rest = Vec::new();
    client.stream.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty());
    let mut next = cluster.connect(2, "demo");
    assert_eq!(next.read(0, 4096).unwrap(), [1; 4096]);
    let beyond = next.read(next.size_bytes, 1);
    assert!(matches!(beyond, Err(NbdError::Server(EINVAL))));
}
