//! One connection between two lanes, without its socket: the handshake, then messages both ways.
//!
//! States: `Calling` (hello sent, waiting for the welcome), `Called` (waiting for a hello), `Up`,
//! `Ended`. Bytes come in through [`Link::feed`] and leave through [`Link::take_output`].
//!
//! Order: messages arrive in the order of sending, but for *light* ones, which overtake all others
//! (rule `heartbeats-go-first`). Light are answers without data, signs of life, announcements of
//! space, and what [`Link::send_first`] was given. Raft messages without payloads leave together,
//! as one [`PeerMessage::RaftBatch`].
//!
//! Bounds: the send queue has at most [`LINK_QUEUE_BYTES_MAX`]. Requests get half of it and Raft
//! messages with entries three quarters, so clients cannot fill it. Raft messages that do not fit
//! are dropped and counted; Raft sends them again.

use bytes::Bytes;

use crate::fields::FieldError;
use crate::io::stream::StreamReader;
use crate::level::{Level, Levels, TooOld};
use crate::limits::LINK_QUEUE_BYTES_MAX;
use crate::net::codec::{EncodeError, Encoded, decode, encode, pieces};
use crate::net::frame::{FrameError, FrameReader, HEAD_BYTES};
use crate::net::handshake::{
    Greeting, GreetingError, Hello, Identity, PROTOCOL_MAX, PROTOCOL_MIN, Purpose, Refusal,
    RefusalCode, Welcome, choose_version, format, frame_seeds, parse,
};
use crate::net::incarnations::Incarnations;
use crate::net::message::PeerMessage;
use crate::net::output::{BATCH_BYTES_MAX, Lane, Output};
use crate::types::{PodId, Uuid};

/// A longer answer does not leave before data.
const LIGHT_BYTES_MAX: usize = 4 << 10;

/// The lane that a dialer calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    pub pod: PodId,
    pub disk: Uuid,
    pub lane: u16,
}

/// An action of the other side.
#[derive(Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// The handshake is complete. The first event, exactly once.
    Up(Established),
    Message(PeerMessage),
}

/// The result of the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Established {
    /// The newest feature level that the peer supports.
    pub newest: Level,
    /// Our lane: the called or the calling one.
    pub local: Identity,
    pub peer: Identity,
    pub purpose: Purpose,
    pub version: u16,
}

/// Why a link ended. Send the rest of [`Link::take_output`] (a refusal), then close the connection.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    #[error("cannot decode the greeting of the other side")]
    Greeting {
        #[source]
        source: GreetingError,
    },
    #[error("received a {0} at the wrong point of the handshake")]
    OutOfPlace(&'static str),
    /// The other side refused our connection.
    #[error("the other pod refused the connection: {refusal}")]
    RefusedByPeer { refusal: Refusal },
    /// We refused the other side's connection.
    #[error("refused the other pod's connection: {refusal}")]
    RefusedByUs { refusal: Refusal },
    #[error("cannot decode a frame of the connection")]
    Frame {
        #[source]
        source: FrameError,
    },
    #[error("cannot decode a message")]
    Message {
        #[source]
        source: FieldError,
    },
    #[error("the link has already ended")]
    Ended,
}

/// Why a message was not queued.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    #[error("the link is not up")]
    NotUp,
    /// A Raft message did not fit. Tell the member that its peer is unreachable.
    #[error("the link's queue is full; a Raft message was dropped")]
    Dropped,
    /// A request did not fit. The client's router tries again.
    #[error("the link's queue is full")]
    Busy,
    /// An answer did not fit: the other side asks but does not read. Close the connection.
    #[error("the other pod does not read its answers")]
    Overflow,
    #[error("the message cannot be sent")]
    Encode {
        #[source]
        source: EncodeError,
    },
}

/// Counters for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkCounters {
    pub frames_sent: u64,
    pub frames_received: u64,
    /// Raft messages dropped because the queue was full.
    pub raft_dropped: u64,
    pub requests_refused: u64,
}

enum LinkState {
    Calling { local: Identity, target: Target, purpose: Purpose, nonce: u64 },
    Called { locals: Vec<Identity>, nonce: u64 },
    Up { established: Established, receive_seed: u32, send_seed: u32 },
    Ended,
}

/// One connection between two lanes. See the module.
pub struct Link {
    /// Of this pod.
    levels: Levels,
    state: LinkState,
    frames: FrameReader,
    output: Output,
    /// Limit of the queued bytes.
    queue_bytes_max: usize,
    counters: LinkCounters,
}

impl Link {
    /// A link over a connection that this side opened. Its hello is in [`Link::take_output`].
    /// `nonce` is a new random number for every connection, `levels` are this pod's.
    pub fn dial(
        local: Identity,
        levels: Levels,
        target: Target,
        purpose: Purpose,
        nonce: u64,
    ) -> Link {
        let mut link = Link::new(levels, LinkState::Calling { local, target, purpose, nonce });
        link.greet(&Greeting::Hello(Hello {
            version_min: PROTOCOL_MIN,
            version_max: PROTOCOL_MAX,
            from: local,
            to_disk: target.disk,
            to_lane: target.lane,
            purpose,
            nonce,
            levels,
        }));
        link
    }

    /// A link over an accepted connection. `locals` are the lanes that may be called.
    pub fn accept(locals: Vec<Identity>, levels: Levels, nonce: u64) -> Link {
        Link::new(levels, LinkState::Called { locals, nonce })
    }

    fn new(levels: Levels, state: LinkState) -> Link {
        Link {
            levels,
            state,
            frames: FrameReader::default(),
            output: Output::default(),
            queue_bytes_max: LINK_QUEUE_BYTES_MAX,
            counters: LinkCounters::default(),
        }
    }

    /// Sets another limit of the queued bytes.
    pub fn with_queue_bytes_max(mut self, queue_bytes_max: usize) -> Link {
        self.queue_bytes_max = queue_bytes_max;
        self
    }

    /// Takes received bytes. `out` gets the events, also those before an error. After an error the
    /// link has ended: see [`LinkError`].
    pub fn feed(
        &mut self,
        reader: &mut StreamReader,
        seen: &mut Incarnations,
        out: &mut Vec<LinkEvent>,
    ) -> Result<(), LinkError> {
        let result = self.advance(reader, seen, out);
        if result.is_err() {
            self.state = LinkState::Ended;
        }
        result
    }

    fn advance(
        &mut self,
        reader: &mut StreamReader,
        seen: &mut Incarnations,
        out: &mut Vec<LinkEvent>,
    ) -> Result<(), LinkError> {
        if let LinkState::Ended = self.state {
            return Err(LinkError::Ended);
        }
        if !matches!(self.state, LinkState::Up { .. }) {
            let Some(greeting) = next_greeting(reader)? else {
                return Ok(());
            };
            let established = self.on_greeting(greeting, seen)?;
            out.push(LinkEvent::Up(established));
        }
        let LinkState::Up { receive_seed, .. } = self.state else {
            return Err(LinkError::Ended);
        };
        let frame_error = |source| LinkError::Frame { source };
        while let Some(frame) =
            self.frames.next(reader, receive_seed, pieces).map_err(frame_error)?
        {
            self.counters.frames_received += 1;
            let message = decode(frame).map_err(|source| LinkError::Message { source })?;
            out.push(LinkEvent::Message(message));
        }
        Ok(())
    }

    fn on_greeting(
        &mut self,
        greeting: Greeting,
        seen: &mut Incarnations,
    ) -> Result<Established, LinkError> {
        let state = std::mem::replace(&mut self.state, LinkState::Ended);
        match (state, greeting) {
            (LinkState::Called { locals, nonce }, Greeting::Hello(hello)) => {
                self.on_hello(&locals, nonce, &hello, seen)
            }
            (LinkState::Calling { local, target, purpose, nonce }, Greeting::Welcome(welcome)) => {
                check_levels(self.levels, welcome.levels)
                    .and_then(|()| check_welcome(&local, &target, &welcome, seen))
                    .map_err(|refusal| LinkError::RefusedByUs { refusal })?;
                let (peer, newest) = (welcome.from, welcome.levels.newest);
                let established =
                    Established { newest, local, peer, purpose, version: welcome.version };
                let (send_seed, receive_seed) = frame_seeds(nonce, welcome.nonce);
                self.state = LinkState::Up { established, receive_seed, send_seed };
                Ok(established)
            }
            (LinkState::Calling { .. }, Greeting::Refusal(refusal)) => {
                Err(LinkError::RefusedByPeer { refusal })
            }
            (LinkState::Ended | LinkState::Up { .. }, _) => Err(LinkError::Ended),
            (_, Greeting::Hello(_)) => Err(LinkError::OutOfPlace("hello")),
            (_, Greeting::Welcome(_)) => Err(LinkError::OutOfPlace("welcome")),
            (_, Greeting::Refusal(_)) => Err(LinkError::OutOfPlace("refusal")),
        }
    }

    fn on_hello(
        &mut self,
        locals: &[Identity],
        nonce: u64,
        hello: &Hello,
        seen: &mut Incarnations,
    ) -> Result<Established, LinkError> {
        let checked = check_levels(self.levels, hello.levels);
        let checked = checked.and_then(|()| check_hello(locals, hello, seen));
        let (local, version) = match checked {
            Ok(agreed) => agreed,
            Err(refusal) => {
                self.greet(&Greeting::Refusal(refusal.clone()));
                return Err(LinkError::RefusedByUs { refusal });
            }
        };
        self.greet(&Greeting::Welcome(Welcome {
            version,
            from: local,
            nonce,
            levels: self.levels,
        }));
        let (peer, purpose, newest) = (hello.from, hello.purpose, hello.levels.newest);
        let established = Established { newest, local, peer, purpose, version };
        let (receive_seed, send_seed) = frame_seeds(hello.nonce, nonce);
        self.state = LinkState::Up { established, receive_seed, send_seed };
        Ok(established)
    }

    /// The newest feature level that the peer supports, once it is up.
    pub fn peer_newest(&self) -> Option<Level> {
        match &self.state {
            LinkState::Up { established, .. } => Some(established.newest),
            _ => None,
        }
    }

    fn greet(&mut self, greeting: &Greeting) {
        self.output.push_greeting(format(greeting));
    }

    /// Queues a message. [`SendError`] tells how to handle a message that was not queued.
    pub fn send(&mut self, message: PeerMessage) -> Result<(), SendError> {
        self.queue(message, Lane::Data)
    }

    /// Queues a message that may overtake everything that waits (rule `heartbeats-go-first`). Only
    /// for messages without payload, whose order to others does not matter.
    pub fn send_first(&mut self, message: PeerMessage) -> Result<(), SendError> {
        self.queue(message, Lane::Light)
    }

    fn queue(&mut self, message: PeerMessage, lane: Lane) -> Result<(), SendError> {
        let LinkState::Up { send_seed, .. } = self.state else {
            return Err(SendError::NotUp);
        };
        let waiting_bytes = self.queue_bytes();
        if let PeerMessage::Raft { to, header, payloads } = &message
            && payloads.is_empty()
            && header.len() < BATCH_BYTES_MAX
        {
            if waiting_bytes + header.len() > self.queue_bytes_max {
                self.counters.raft_dropped += 1;
                return Err(SendError::Dropped);
            }
            self.output.push_light(send_seed, lane, *to, header.clone());
            return Ok(());
        }
        let (up_to_bytes, error) = admission(&message, self.queue_bytes_max);
        let is_first = goes_first(&message);
        let encoded = encode(message).map_err(|source| SendError::Encode { source })?;
        if waiting_bytes + HEAD_BYTES + encoded.bytes() > up_to_bytes {
            match error {
                SendError::Dropped => self.counters.raft_dropped += 1,
                SendError::Busy => self.counters.requests_refused += 1,
                _ => {}
            }
            return Err(error);
        }
        let lane = match lane {
            Lane::Data if is_first => Lane::Light,
            lane => lane,
        };
        let lane = if is_light(&encoded) { lane } else { Lane::Data };
        self.output.push_frame(send_seed, lane, encoded);
        Ok(())
    }

    /// The next bytes to send; empty: nothing is queued. Call it when no send is in flight: once
    /// per round, and again when a send has ended. It gives out little at a time, so that light
    /// messages need not wait for long.
    pub fn take_output(&mut self) -> Vec<Bytes> {
        let seed = match self.state {
            LinkState::Up { send_seed, .. } => Some(send_seed),
            _ => None,
        };
        self.output.take(seed)
    }

    /// Bytes queued for [`Link::take_output`].
    pub fn queue_bytes(&self) -> usize {
        self.output.bytes()
    }

    /// The result of the handshake, if the link is up.
    pub fn established(&self) -> Option<&Established> {
        match &self.state {
            LinkState::Up { established, .. } => Some(established),
            _ => None,
        }
    }

    pub fn counters(&self) -> LinkCounters {
        LinkCounters { frames_sent: self.output.frames_sent, ..self.counters }
    }
}

/// True for messages whose order to data does not matter.
fn goes_first(message: &PeerMessage) -> bool {
    matches!(
        message,
        PeerMessage::Response { .. }
            | PeerMessage::Rest { .. }
            | PeerMessage::Awake { .. }
            | PeerMessage::Beat
            | PeerMessage::Space { .. }
    )
}

/// True for what has no payload and is short.
fn is_light(encoded: &Encoded) -> bool {
    encoded.payload.is_empty() && encoded.meta.len() <= LIGHT_BYTES_MAX
}

/// Requests are refused beyond this many queued bytes.
fn requests_up_to_bytes(queue_bytes_max: usize) -> usize {
    queue_bytes_max / 2
}

/// Raft messages with entries are dropped beyond this many queued bytes.
fn entries_up_to_bytes(queue_bytes_max: usize) -> usize {
    queue_bytes_max / 4 * 3
}

/// The limit of the queue for this message, and the error beyond it.
fn admission(message: &PeerMessage, queue_bytes_max: usize) -> (usize, SendError) {
    match message {
        PeerMessage::Raft { .. } => (entries_up_to_bytes(queue_bytes_max), SendError::Dropped),
        PeerMessage::RaftBatch { .. } => (queue_bytes_max, SendError::Dropped),
        PeerMessage::Request { .. }
        | PeerMessage::ManifestRequest { .. }
        | PeerMessage::ExtentRequest { .. } => {
            (requests_up_to_bytes(queue_bytes_max), SendError::Busy)
        }
        PeerMessage::Response { .. }
        | PeerMessage::ResyncOffer { .. }
        | PeerMessage::ResyncDone { .. }
        | PeerMessage::Manifest { .. }
        | PeerMessage::Extent { .. }
        | PeerMessage::Rest { .. }
        | PeerMessage::Awake { .. }
        | PeerMessage::Beat
        | PeerMessage::Space { .. } => (queue_bytes_max, SendError::Overflow),
    }
}

fn next_greeting(reader: &mut StreamReader) -> Result<Option<Greeting>, LinkError> {
    match parse(reader.peek()).map_err(|source| LinkError::Greeting { source })? {
        Some((greeting, bytes)) => {
            reader.consume(bytes);
            Ok(Some(greeting))
        }
        None => Ok(None),
    }
}

/// Both sides refuse a program that is older than the other's cluster.
fn check_levels(ours: Levels, theirs: Levels) -> Result<(), Refusal> {
    let Err(TooOld { needed, newest }) = ours.meet(theirs) else { return Ok(()) };
    let text = format!(
        "one pod's cluster is at feature level {needed}, and the other's program supports levels \
         up to {newest}: upgrade the older of the two"
    );
    Err(Refusal { code: RefusalCode::FeatureLevel, text })
}

/// The acceptor's check of a hello: the called lane, and the version to use.
fn check_hello(
    locals: &[Identity],
    hello: &Hello,
    seen: &mut Incarnations,
) -> Result<(Identity, u16), Refusal> {
    let ours = (PROTOCOL_MIN, PROTOCOL_MAX);
    let theirs = (hello.version_min, hello.version_max);
    let version = choose_version(ours, theirs).ok_or_else(|| Refusal {
        code: RefusalCode::NoCommonVersion,
        text: format!(
            "this pod speaks protocol {} to {}, the caller {} to {}: upgrade the older of the two",
            ours.0, ours.1, theirs.0, theirs.1
        ),
    })?;
    if let Some(local) = locals.first() {
        check_cluster(local, &hello.from)?;
    }
    let local = locals
        .iter()
        .find(|local| (local.disk, local.lane) == (hello.to_disk, hello.to_lane))
        .ok_or_else(|| Refusal {
            code: RefusalCode::NoSuchLane,
            text: format!(
                "disk {} lane {} is not served by this pod",
                hello.to_disk, hello.to_lane
            ),
        })?;
    seen.admit(&hello.from)?;
    Ok((*local, version))
}

/// The dialer's check of a welcome.
fn check_welcome(
    local: &Identity,
    target: &Target,
    welcome: &Welcome,
    seen: &mut Incarnations,
) -> Result<(), Refusal> {
    if !(PROTOCOL_MIN..=PROTOCOL_MAX).contains(&welcome.version) {
        return Err(Refusal {
            code: RefusalCode::NoCommonVersion,
            text: format!("the other pod chose protocol {}", welcome.version),
        });
    }
    check_cluster(local, &welcome.from)?;
    let found = Target { pod: welcome.from.pod, disk: welcome.from.disk, lane: welcome.from.lane };
    if found != *target {
        return Err(Refusal {
            code: RefusalCode::NoSuchLane,
            text: format!("called {target:?} but reached {found:?}"),
        });
    }
    seen.admit(&welcome.from)
}

fn check_cluster(local: &Identity, peer: &Identity) -> Result<(), Refusal> {
    match local.cluster == peer.cluster {
        true => Ok(()),
        false => Err(Refusal {
            code: RefusalCode::OtherCluster,
            text: format!(
                "this pod belongs to cluster {}, the caller to {}: check the addresses of its \
                 configuration",
                local.cluster, peer.cluster
            ),
        }),
    }
}

#[cfg(test)]
#[path = "link_test.rs"]
mod tests;
