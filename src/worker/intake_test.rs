//! A pod whose peers send well-framed messages with hostile contents (rule
//! `peers-are-checked-on-arrival`).

use bytes::Bytes;
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use protobuf::ProtobufEnum as _;
use raft::eraftpb::{Entry, EntryType, Message, MessageType};

use super::pod_fixture::{Client, Peer, Pod, VOLUME_BYTES, view, volume};
use crate::io::buffer::Pool;
use crate::limits::{Budgets, RAFT_NUMBER_MAX};
use crate::net::handshake::Purpose;
use crate::net::message::{CallId, PeerMessage};
use crate::planted::{Mistake, assert_found};
use crate::replica::command::{EntryCommand, encode, encode_write};
use crate::replica::raft_message;
use crate::testing::peer_fixture;
use crate::types::{
    AttachmentId, BLOCK_BYTES, Block, BlockError, BlockRange, Extent, MemberId, Origin, PodId,
    Session, ShardId, ShardOp,
};
use crate::view::MemberState;

/// The pod's replica of a shared shard, the one that the test plays as its leader, and the third.
const HERE: u64 = 21;
const LEADER: u64 = 22;
const THIRD: u64 = 23;
const TERM: u64 = 2;
const BLOCKS: u32 = (VOLUME_BYTES / BLOCK_BYTES as u64) as u32;
/// Entries that are committed before the hostility begins.
const COMMITTED: u64 = 4;

fn origin(pod: u64) -> Origin {
    let session = Session { counter: 1, pod: PodId(pod) };
    Origin { attachment: AttachmentId::NONE, session }
}

/// The last session that there can be: nobody could follow it.
fn last_session() -> Origin {
    let session = Session { counter: u64::MAX, pod: PodId(2) };
    Origin { session, ..origin(2) }
}

fn message(kind: MessageType, from: u64) -> Message {
    let mut message = Message::default();
    message.set_msg_type(kind);
    (message.from, message.to, message.term) = (from, HERE, TERM);
    message
}

fn write(index: u64, term: u64) -> Entry {
    let range = BlockRange { first: Block(index as u32), count: 1 };
    let data = Pool::default().copy(&[7; BLOCK_BYTES]);
    Entry { index, term, data, context: encode_write(origin(2), range, &[0]), ..Entry::default() }
}

/// Entries of these indexes, as the leader sends them.
fn append(indexes: std::ops::Range<u64>) -> Message {
    let mut append = message(MessageType::MsgAppend, LEADER);
    append.index = indexes.start - 1;
    append.log_term = if append.index == 0 { 0 } else { TERM };
    append.set_entries(indexes.map(|index| write(index, TERM)).collect::<Vec<_>>().into());
    append
}

/// The next two entries, after `change` was made to them.
fn changed(change: impl FnOnce(&mut Message)) -> PeerMessage {
    let mut message = append(COMMITTED + 1..COMMITTED + 3);
    change(&mut message);
    raft(message)
}

/// The next two entries, after `change` was made to the second.
fn with_entry(change: impl FnOnce(&mut Entry)) -> PeerMessage {
    changed(|message| change(&mut message.mut_entries()[1]))
}

fn raft(message: Message) -> PeerMessage {
    let (header, payloads) = raft_message::split(message);
    PeerMessage::Raft { to: MemberId(HERE), header, payloads }
}

fn request(term: u64, origin: Origin) -> PeerMessage {
    let range = BlockRange { first: Block(0), count: 1 };
    let (shard, to, op) = (ShardId(2), MemberId(HERE), ShardOp::Zero { range, trim: true });
    PeerMessage::Request { call: CallId(1), shard, to, term, origin, op }
}

fn ask(extent: u32, layer: u32) -> PeerMessage {
    let source = MemberId(HERE);
    PeerMessage::ExtentRequest { call: CallId(1), source, extent: Extent(extent), layer }
}

/// A pod with a volume of its own and a replica of a shared one, which follows the test.
struct World {
    pod: Pod,
    client: Client,
    links: [Option<Peer>; 2],
}

impl World {
    fn new() -> World {
        let mut pod = Pod::new(Budgets::default());
        pod.view(view(1, vec![volume(1, "own", &[1]), volume(2, "shared", &[1, 2, 3])]));
        pod.run_until("the only replica leads", |pod| {
            pod.state_of(MemberId(11)) == Some(MemberState::Leader)
        });
        let client = pod.connect("own");
        let mut world = World { pod, client, links: [None, None] };
        world.write_and_read();
        world.send(2, raft(append(1..COMMITTED + 1)));
        let heartbeat = Message { commit: COMMITTED, ..append(COMMITTED + 1..COMMITTED + 1) };
        world.send(2, raft(heartbeat));
        let World { pod, .. } = &mut world;
        pod.run_until("they are applied", |pod| pod.applied(MemberId(HERE)) == COMMITTED);
        world
    }

    /// Sends over the link from this pod, and waits for the effects. True: the link was closed.
    fn send(&mut self, from: u64, message: PeerMessage) -> bool {
        let link = &mut self.links[from as usize - 2];
        let open = link.take().filter(|link| !link.is_closed(&self.pod));
        let peer = match open {
            Some(peer) => peer,
            None => self.pod.link_from(from, Purpose::Data),
        };
        let peer = link.insert(peer);
        peer.send(&mut self.pod, message);
        (0..4).for_each(|_| self.pod.round());
        peer.messages(&mut self.pod);
        peer.is_closed(&self.pod)
    }

    fn write_and_read(&mut self) {
        let World { pod, client, .. } = self;
        client.write(pod, 0, BLOCK_BYTES, b'x');
        pod.run_until("a write is answered", |pod| client.written(pod) == [0]);
        assert_eq!(client.read_byte(pod, 0), b'x');
    }
}

/// What no pod would send, by name.
fn breaches() -> Vec<(&'static str, PeerMessage)> {
    let mut list = vec![
        ("a gap between entries", with_entry(|entry| entry.index += 1)),
        ("an entry twice", with_entry(|entry| entry.index -= 1)),
        ("a gap before the entries", changed(|message| message.index -= 1)),
        ("entries behind the end", changed(|message| message.index += 7)),
        ("a term that decreases", with_entry(|entry| entry.term = 1)),
        ("an entry of a later term", with_entry(|entry| entry.term = TERM + 1)),
        (
            "entries behind the end, after nothing",
            changed(|message| {
                (message.index, message.log_term) = (6, 0);
                message.mut_entries()[0].index = 7;
                message.mut_entries()[1].index = 8;
            }),
        ),
        (
            "the last index",
            changed(|message| {
                message.index = u64::MAX - 2;
                message.mut_entries()[0].index = u64::MAX - 1;
                message.mut_entries()[1].index = u64::MAX;
            }),
        ),
        ("the last term", changed(|message| message.term = u64::MAX)),
        ("a term out of reach", changed(|message| message.term = RAFT_NUMBER_MAX)),
        ("the last commit", changed(|message| message.commit = u64::MAX)),
        ("a payload that is too short", with_entry(|entry| entry.data = Bytes::from("short"))),
        ("no payload", with_entry(|entry| entry.data = Bytes::new())),
        ("a payload without a command", with_entry(|entry| entry.context = Bytes::new())),
        ("a broken command", with_entry(|entry| entry.context.truncate(9))),
        (
            "a command of the catalog",
            with_entry(|entry| {
                entry.context = encode(origin(2), &EntryCommand::Opaque);
            }),
        ),
        (
            "a write beyond the end",
            with_entry(|entry| {
                let range = BlockRange { first: Block(BLOCKS), count: 1 };
                entry.context = encode_write(origin(2), range, &[0]);
            }),
        ),
        (
            "a trim of everything there can be",
            with_entry(|entry| {
                let range = BlockRange { first: Block(0), count: u32::MAX };
                entry.context = encode(origin(2), &EntryCommand::Zero { range, trim: true });
                entry.data = Bytes::new();
            }),
        ),
        ("a change of members", with_entry(|entry| entry.entry_type = EntryType::EntryConfChange)),
        (
            "entries in a vote",
            changed(|message| {
                message.set_msg_type(MessageType::MsgRequestVote);
            }),
        ),
        ("a message to another replica", changed(|message| message.to = 11)),
        ("a message from the replica itself", changed(|message| message.from = HERE)),
        (
            "a header of nonsense",
            PeerMessage::Raft {
                to: MemberId(HERE),
                header: Bytes::from_static(&[1, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]),
                payloads: Vec::new(),
            },
        ),
        (
            "nonsense in a batch",
            PeerMessage::RaftBatch {
                messages: vec![(MemberId(HERE), Bytes::from_static(b"nonsense"))],
            },
        ),
        ("another pod's requests", request(0, origin(3))),
        ("the last session", request(0, last_session())),
        ("a request of the last term", request(u64::MAX, origin(2))),
        ("an extent beyond the end", ask(BLOCKS / 16, 0)),
        ("the last extent", ask(u32::MAX, 0)),
        ("another layer", ask(0, 7)),
        (
            "a list from the last extent on",
            PeerMessage::ManifestRequest {
                call: CallId(1),
                source: MemberId(HERE),
                from: Extent(u32::MAX),
            },
        ),
        (
            "a leader of the last term",
            PeerMessage::Response {
                call: CallId(1),
                term: 1,
                result: Err(BlockError::NotLeader { hint: None, term: RAFT_NUMBER_MAX + 1 }),
            },
        ),
        (
            "a last session that was recorded",
            PeerMessage::Response {
                call: CallId(1),
                term: 1,
                result: Err(BlockError::StaleSession { recorded: last_session().session }),
            },
        ),
    ];
    for kind in [
        MessageType::MsgHup,
        MessageType::MsgBeat,
        MessageType::MsgPropose,
        MessageType::MsgSnapshot,
        MessageType::MsgUnreachable,
        MessageType::MsgSnapStatus,
        MessageType::MsgCheckQuorum,
        MessageType::MsgTransferLeader,
        MessageType::MsgReadIndex,
        MessageType::MsgReadIndexResp,
    ] {
        list.push(("a message that replicas do not send", raft(message(kind, LEADER))));
    }
    list
}

fn hostile_contents_end_the_link_and_change_nothing() {
    let mut world = World::new();
    let before = world.pod.digest(MemberId(HERE));
    for (name, breach) in breaches() {
        // Without it, the replica would look for another leader.
        let heartbeat = message(MessageType::MsgHeartbeat, LEADER);
        assert!(!world.send(2, raft(Message { commit: COMMITTED, ..heartbeat })));
        assert!(world.send(2, breach), "the link stays open: {name}");
        assert_eq!(world.pod.digest(MemberId(HERE)), before, "{name}");
    }
    let second = message(MessageType::MsgHeartbeat, THIRD);
    assert!(world.send(3, raft(second)), "a second leader of one term");
    assert_eq!(world.pod.digest(MemberId(HERE)), before);
    // Early or late: no reason to close a link.
    let strangers = [
        raft(message(MessageType::MsgHeartbeat, 99)),
        raft(message(MessageType::MsgHeartbeat, THIRD)),
        PeerMessage::ResyncOffer { to: MemberId(HERE), source: MemberId(99) },
        PeerMessage::ResyncDone { to: MemberId(HERE), member: MemberId(THIRD), ok: true },
        PeerMessage::Response { call: CallId(77), term: 1, result: Err(BlockError::Unknown) },
    ];
    for stranger in strangers {
        assert!(!world.send(2, stranger.clone()), "the link is closed: {stranger:?}");
        assert_eq!(world.pod.digest(MemberId(HERE)), before, "{stranger:?}");
    }
    world.write_and_read();
    let next = Message { commit: COMMITTED + 2, ..append(COMMITTED + 1..COMMITTED + 3) };
    world.send(2, raft(next));
    world.pod.run_until("honest entries are still taken", |pod| {
        pod.applied(MemberId(HERE)) == COMMITTED + 2
    });
}

#[test]
fn hostile_contents_end_a_link_and_nothing_else() {
    hostile_contents_end_the_link_and_change_nothing();
    assert_found(Mistake::PeersAreBelieved, hostile_contents_end_the_link_and_change_nothing);
}

/// Terms and indexes around those in use, and around the ends.
fn number() -> impl Strategy<Value = u64> {
    const ENDS: &[u64] = &[0, RAFT_NUMBER_MAX, RAFT_NUMBER_MAX + 1, u64::MAX - 1, u64::MAX];
    prop_oneof![4 => 0u64..9, 1 => prop::sample::select(ENDS)]
}

fn replica() -> impl Strategy<Value = u64> {
    prop_oneof![6 => 21u64..24, 1 => Just(11), 1 => any::<u64>()]
}

fn entry() -> impl Strategy<Value = Entry> {
    let command = prop_oneof![
        (0u32..BLOCKS + 9).prop_map(|first| {
            let range = BlockRange { first: Block(first), count: 1 };
            encode_write(origin(2), range, &[0])
        }),
        any::<bool>().prop_map(|trim| {
            let range = BlockRange { first: Block(3), count: 40 };
            encode(origin(2), &EntryCommand::Zero { range, trim })
        }),
        Just(Bytes::new()),
        prop::collection::vec(any::<u8>(), 0..60).prop_map(Bytes::from),
    ];
    let bytes = prop::sample::select(&[0, BLOCK_BYTES, BLOCK_BYTES, 2 * BLOCK_BYTES, 9][..]);
    (number(), number(), command, bytes, 0..40u8).prop_map(|(index, term, context, bytes, kind)| {
        let data = Pool::default().copy(&vec![7; bytes]);
        let mut entry = Entry { index, term, context, data, ..Entry::default() };
        entry.entry_type = match kind {
            0 => EntryType::EntryConfChange,
            1 => EntryType::EntryConfChangeV2,
            _ => EntryType::EntryNormal,
        };
        entry
    })
}

/// Raft messages that may be anything, with entries that may even be in order.
fn raft_messages() -> impl Strategy<Value = Message> {
    let numbers = (number(), number(), number(), number(), number());
    let entries = prop_oneof![
        3 => prop::collection::vec(entry(), 0..4),
        2 => (1u64..9, 1usize..4, 1u64..5).prop_map(|(first, count, term)| {
            (first..).take(count).map(|index| write(index, term)).collect()
        }),
    ];
    let flags = (any::<bool>(), any::<bool>());
    (0..19i32, replica(), replica(), numbers, entries, flags).prop_map(
        |(kind, from, to, (term, log_term, index, commit, hint), entries, (reject, wants))| {
            let mut message = Message { from, to, term, log_term, index, ..Message::default() };
            message.set_msg_type(MessageType::from_i32(kind).unwrap_or_default());
            message.commit = match message.get_msg_type() {
                // A heartbeat that commits what is not here tells that this log lost something.
                MessageType::MsgHeartbeat => commit.min(COMMITTED),
                _ => commit,
            };
            (message.reject, message.reject_hint) = (reject, hint);
            message.request_snapshot = if wants { hint } else { 0 };
            message.context = Bytes::copy_from_slice(&commit.to_le_bytes());
            if let Some(first) = entries.first().filter(|_| !wants) {
                message.index = first.index.saturating_sub(1);
            }
            message.set_entries(entries.into());
            message
        },
    )
}

/// Other messages, for the members that there are.
fn other_messages() -> impl Strategy<Value = PeerMessage> {
    (peer_fixture::message(), replica(), number()).prop_map(|(mut message, here, number)| {
        let here = MemberId(here);
        match &mut message {
            PeerMessage::Request { shard, to, term, origin, .. } => {
                (*shard, *to, *term) = (ShardId(here.0 / 10), here, number);
                (origin.session.pod, origin.attachment) = (PodId(2), AttachmentId(number % 2));
            }
            PeerMessage::ResyncOffer { to, source } => {
                (*to, *source) = (here, MemberId(LEADER));
            }
            PeerMessage::ResyncDone { to, member, .. } => {
                (*to, *member) = (here, MemberId(LEADER));
            }
            PeerMessage::ManifestRequest { source, from, .. } => {
                (*source, *from) = (here, Extent(from.0 >> (number % 32)));
            }
            PeerMessage::ExtentRequest { source, extent, layer, .. } => {
                (*source, *extent) = (here, Extent(extent.0 >> (number % 32)));
                *layer = u32::from(number == 3);
            }
            _ => {}
        }
        message
    })
}

/// Whatever peers send, no panic leaves, no replica is faulted, and other volumes are served.
#[test]
fn random_messages_of_peers_break_nothing() {
    let messages = prop_oneof![
        3 => raft_messages().prop_map(|message| {
            let to = MemberId(message.to);
            let (header, payloads) = raft_message::split(message);
            PeerMessage::Raft { to, header, payloads }
        }),
        1 => other_messages(),
    ];
    let mut runner = TestRunner::deterministic();
    let mut world = World::new();
    let mut closed = 0;
    for round in 0..3000 {
        let message = messages.new_tree(&mut runner).expect("it has values").current();
        let told = format!("{message:?}");
        closed += u32::from(world.send(2 + round % 2, message));
        for member in [11, HERE] {
            let state = world.pod.state_of(MemberId(member));
            assert_ne!(state, Some(MemberState::Faulted), "{member} after {told:.2000}");
        }
        assert!(world.pod.applied(MemberId(HERE)) >= COMMITTED);
        if round % 500 == 0 {
            world.write_and_read();
        }
    }
    world.write_and_read();
    assert!((300..2900).contains(&closed), "{closed} were refused: both kinds are tested");
}
