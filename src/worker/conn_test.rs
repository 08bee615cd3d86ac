//! Two ends of a link under TLS, with nothing but bytes between them.

use std::net::IpAddr;
use std::time::Duration;

use crate::io::buffer::Pool;
use crate::io::driver::{
    Address, Completion, Disk, Driver, FileId, Op, RecvBufs, SocketId, Token, Waker,
};
use crate::io::file::ExclusiveFile;
use crate::level::Levels;
use crate::net::handshake::{Identity, Purpose};
use crate::net::incarnations::Incarnations;
use crate::net::link::{Link, LinkEvent, Target};
use crate::net::message::PeerMessage;
use crate::planted::{Mistake, assert_found};
use crate::security::channel::Channel;
use crate::security::credentials::Tls;
use crate::testing::stream_fixture::land;
use crate::testing::tls_fixture::Cluster;
use crate::types::{BLOCK_BYTES, Mono, PodId, Uuid};
use crate::worker::conn::{Conn, ReceiveError};
use crate::worker::owed::Owed;
use crate::worker::tls::WorkerTls;

/// Keeps what is submitted.
#[derive(Default)]
struct Wire {
    sent: Vec<u8>,
    receiving: Option<RecvBufs>,
}

impl Driver for Wire {
    fn submit(&mut self, _token: Token, op: Op) {
        match op {
            Op::Send { bufs, .. } => self.sent.extend(bufs.concat()),
            Op::Recv { bufs, .. } => self.receiving = Some(bufs),
            other => panic!("a connection does not submit {other:?}"),
        }
    }

    fn now(&self) -> Mono {
        Mono::default()
    }

    fn add_file(&mut self, _file: ExclusiveFile, _disk: Disk) -> std::io::Result<FileId> {
        unreachable!("there are no files")
    }

    fn size_bytes(&self, _file: FileId) -> std::io::Result<u64> {
        unreachable!("there are no files")
    }

    fn listen(&mut self, _address: &Address) -> std::io::Result<(SocketId, Address)> {
        unreachable!("nobody listens")
    }

    fn enter(&mut self, _wait: Option<Duration>, _: &mut Vec<Completion>) -> std::io::Result<()> {
        unreachable!("nothing runs")
    }

    fn source(&self, _socket: SocketId) -> Option<IpAddr> {
        None
    }

    fn has_hung_up(&self, _socket: SocketId) -> bool {
        false
    }

    fn waker(&self) -> Waker {
        unreachable!("nobody waits")
    }

    fn name(&self) -> &'static str {
        "wire"
    }
}

struct End {
    conn: Conn,
    wire: Wire,
    seen: Incarnations,
    events: Vec<LinkEvent>,
    failed: Option<ReceiveError>,
}

impl End {
    fn new(link: Link, channel: Channel, pods: &[Identity]) -> End {
        let (stream, pair, touched, owed) = (None, None, false, Owed::default());
        let mut conn = Conn { stream, link, pair, touched, heard: Mono::default(), owed };
        conn.connected(SocketId(1), Pool::default(), Some(channel));
        let mut seen = Incarnations::default();
        pods.iter().for_each(|identity| seen.place(identity.disk, identity.pod));
        let (wire, events) = (Wire::default(), Vec::new());
        End { conn, wire, seen, events, failed: None }
    }

    /// What it sends now.
    fn send(&mut self) -> Vec<u8> {
        let stream = self.conn.stream.as_mut().expect("it is connected");
        if !stream.has_output() {
            stream.queue(self.conn.link.take_output());
        }
        stream.send(&mut self.wire, Token(0));
        stream.sent();
        stream.receive(&mut self.wire, Token(1));
        std::mem::take(&mut self.wire.sent)
    }

    fn receive(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && self.failed.is_none() {
            let stream = self.conn.stream.as_mut().expect("it is connected");
            stream.receive(&mut self.wire, Token(1));
            let mut bufs = self.wire.receiving.take().expect("it receives");
            let count = land(&mut bufs, bytes, 20_000);
            bytes = &bytes[count..];
            stream.received(bufs, count);
            self.failed = self.conn.feed(&mut self.seen, &mut self.events).err();
        }
    }

    fn is_up(&self) -> bool {
        self.conn.link.established().is_some() && self.failed.is_none()
    }
}

fn identity(cluster: &Cluster, pod: u64) -> Identity {
    let disk = Uuid([pod as u8; 16]);
    Identity { cluster: cluster.uuid, pod: PodId(pod), disk, lane: 0, incarnation: 1 }
}

/// Pod 1 calls pod 2, with these certificates.
fn call(caller: &str, called: &str) -> (End, End) {
    let cluster = Cluster::new(1);
    let pods = [1, 2].map(|pod| identity(&cluster, pod));
    let tls = |role: &str| {
        let tls = Tls::new(&cluster.credentials(role), cluster.trust()).unwrap();
        WorkerTls::new(&tls, false).unwrap()
    };
    let target = Target { pod: PodId(2), disk: pods[1].disk, lane: 0 };
    let dialled = Link::dial(pods[0], Levels::OWN, target, Purpose::Data, 1);
    let accepted = Link::accept(vec![pods[1]], Levels::OWN, 2);
    let mut one = End::new(dialled, tls(caller).dial(Pool::default()), &pods);
    let mut other = End::new(accepted, tls(called).called(Pool::default()), &pods);
    talk(&mut one, &mut other);
    (one, other)
}

fn talk(one: &mut End, other: &mut End) {
    loop {
        let (there, back) = (one.send(), other.send());
        if there.is_empty() && back.is_empty() {
            return;
        }
        other.receive(&there);
        one.receive(&back);
    }
}

#[test]
fn messages_pass_under_tls_and_large_payloads_land_aligned() {
    let (mut one, mut other) = call("pod/1", "pod/2");
    assert!(one.is_up() && other.is_up(), "{:?} {:?}", one.failed, other.failed);
    other.events.clear();
    let payload: Vec<u8> = (0..300_000 / BLOCK_BYTES * BLOCK_BYTES).map(|at| at as u8).collect();
    let payload = bytes::Bytes::from(payload);
    let header = bytes::Bytes::from_static(b"header");
    let to = crate::types::MemberId(7);
    let message = PeerMessage::Raft { to, header, payloads: vec![payload] };
    one.conn.link.send(PeerMessage::Beat).unwrap();
    one.conn.link.send(message.clone()).unwrap();
    talk(&mut one, &mut other);
    assert_eq!(other.events[0], LinkEvent::Message(PeerMessage::Beat));
    let LinkEvent::Message(received) = other.events.pop().unwrap() else { panic!("a message") };
    assert_eq!(received, message);
    let PeerMessage::Raft { payloads, .. } = received else { panic!("of Raft") };
    assert!(payloads.iter().all(|payload| payload.as_ptr().addr() % BLOCK_BYTES == 0));
    assert_eq!(other.events.len(), 1);
}

fn a_pod_speaks_for_itself_only() {
    let (one, other) = call("pod/3", "pod/2");
    assert!(matches!(other.failed, Some(ReceiveError::OtherPod(Identity { pod: PodId(1), .. }))));
    assert!(other.events.is_empty() && !one.is_up());
    let (one, other) = call("pod/1", "pod/3");
    assert!(matches!(one.failed, Some(ReceiveError::OtherPod(Identity { pod: PodId(2), .. }))));
    assert!(one.events.is_empty() && other.failed.is_none());
}

#[test]
fn a_certificate_is_that_of_the_pod_which_speaks() {
    a_pod_speaks_for_itself_only();
    assert_found(Mistake::LinkOfAnyPod, a_pod_speaks_for_itself_only);
}

#[test]
fn a_person_gets_no_link() {
    let (one, other) = call("admin/ada", "pod/2");
    assert!(matches!(other.failed, Some(ReceiveError::Tls(_))), "{:?}", other.failed);
    assert!(!one.is_up() && !other.is_up() && other.events.is_empty());
}
