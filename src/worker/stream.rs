//! One connected socket of a worker: one receive and one send in flight at most, a queue, and
//! TLS if it has any. Whoever reads and writes it sees plain bytes.

use bytes::Bytes;

use crate::io::buffer::Pool;
use crate::io::driver::{Driver, Op, RecvBufs, SocketId, Token};
use crate::io::stream::StreamReader;
use crate::security::certificate::Certificate;
use crate::security::channel::{Channel, TlsError};

/// Pieces that one send takes at most (below IOV_MAX).
const SEND_PIECES_MAX: usize = 512;

/// A connected socket and its queue of bytes to send.
pub struct Stream {
    pub socket: SocketId,
    pub reader: StreamReader,
    waiting: Vec<Bytes>,
    tls: Option<Box<Channel>>,
    /// Queued before TLS began: leaves as it is.
    plain: Vec<Bytes>,
    sending: bool,
    /// Plain bytes of the send in flight.
    sending_bytes: usize,
    receiving: bool,
}

impl Stream {
    pub fn new(socket: SocketId, pool: Pool) -> Stream {
        Stream {
            socket,
            reader: StreamReader::new(pool),
            waiting: Vec::new(),
            tls: None,
            plain: Vec::new(),
            sending: false,
            sending_bytes: 0,
            receiving: false,
        }
    }

    /// Goes on under TLS: what is queued from now on is sealed. No receive may be in flight, and
    /// nothing plain may have come that was not read.
    pub fn start_tls(&mut self, channel: Channel) {
        assert!(!self.receiving && self.reader.peek().is_empty(), "TLS begins at its first byte");
        self.plain = std::mem::take(&mut self.waiting);
        self.tls = Some(Box::new(channel));
    }

    pub fn has_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// The holder of the certificate that the other side presented; `None` without TLS, and before
    /// its handshake is over.
    pub fn peer(&self) -> Option<&Certificate> {
        self.tls.as_ref()?.peer()
    }

    /// What has arrived, and [`Stream::peer`].
    pub fn reader_and_peer(&mut self) -> (&mut StreamReader, Option<&Certificate>) {
        (&mut self.reader, self.tls.as_ref().and_then(|tls| tls.peer()))
    }

    /// Queues bytes behind those that wait already.
    pub fn queue(&mut self, pieces: impl IntoIterator<Item = Bytes>) {
        self.waiting.extend(pieces.into_iter().filter(|piece| !piece.is_empty()));
    }

    /// Starts a send when none is in flight and something waits.
    pub fn send(&mut self, driver: &mut dyn Driver, token: Token) {
        if self.sending || !self.has_output() {
            return;
        }
        let (bufs, plain_bytes) = match &mut self.tls {
            None => take_pieces(&mut self.waiting),
            Some(_) if !self.plain.is_empty() => take_pieces(&mut self.plain),
            Some(tls) => {
                let mut bufs = Vec::new();
                let plain_bytes = tls.seal(&mut self.waiting, SEND_PIECES_MAX, &mut bufs);
                (bufs, plain_bytes)
            }
        };
        if !bufs.is_empty() {
            (self.sending, self.sending_bytes) = (true, plain_bytes);
            driver.submit(token, Op::Send { socket: self.socket, bufs });
        }
    }

    /// A send ended. Returns the number of queued bytes that were in it.
    pub fn sent(&mut self) -> usize {
        self.sending = false;
        std::mem::take(&mut self.sending_bytes)
    }

    /// True while a send is in flight or bytes wait for one.
    pub fn has_output(&self) -> bool {
        let tls_has_output = self.tls.as_ref().is_some_and(|tls| tls.has_output());
        self.sending || tls_has_output || !self.waiting.is_empty() || !self.plain.is_empty()
    }

    /// True when no receive is in flight.
    pub fn wants_receive(&self) -> bool {
        !self.receiving
    }

    /// Starts a receive unless one is in flight. All complete input must have been parsed.
    pub fn receive(&mut self, driver: &mut dyn Driver, token: Token) {
        let bufs = match &mut self.tls {
            _ if self.receiving => return,
            Some(tls) if !tls.wants_receive() => return,
            Some(tls) => tls.lend(),
            None => self.reader.lend(),
        };
        self.receiving = true;
        driver.submit(token, Op::Recv { socket: self.socket, bufs });
    }

    /// A receive brought `count` bytes. [`Stream::open`] them.
    pub fn received(&mut self, bufs: RecvBufs, count: usize) {
        self.receiving = false;
        match &mut self.tls {
            Some(tls) => tls.received(bufs, count),
            None => self.reader.received(bufs, count),
        }
    }

    /// Gives what has arrived to `reader`, as far as it has room. True: parse, and open again.
    pub fn open(&mut self) -> Result<bool, TlsError> {
        match &mut self.tls {
            Some(tls) => tls.open(&mut self.reader),
            None => Ok(false),
        }
    }
}

/// Takes as many pieces as one send may have, and their length.
fn take_pieces(waiting: &mut Vec<Bytes>) -> (Vec<Bytes>, usize) {
    let rest = match waiting.len() > SEND_PIECES_MAX {
        true => waiting.split_off(SEND_PIECES_MAX),
        false => Vec::new(),
    };
    let pieces = std::mem::replace(waiting, rest);
    let bytes = pieces.iter().map(Bytes::len).sum();
    (pieces, bytes)
}
