//! One connected socket of a worker: one receive and one send in flight at most, and a queue.

use bytes::Bytes;

use crate::io::buffer::Pool;
use crate::io::driver::{Driver, Op, RecvBufs, SocketId, Token};
use crate::io::stream::StreamReader;

/// Pieces that one send takes at most (below IOV_MAX).
const SEND_PIECES_MAX: usize = 512;

/// A connected socket and its queue of bytes to send.
pub struct Stream {
    pub socket: SocketId,
    pub reader: StreamReader,
    waiting: Vec<Bytes>,
    sending: bool,
    receiving: bool,
}

impl Stream {
    pub fn new(socket: SocketId, pool: Pool) -> Stream {
        Stream {
            socket,
            reader: StreamReader::new(pool),
            waiting: Vec::new(),
            sending: false,
            receiving: false,
        }
    }

    /// Queues bytes behind those that wait already.
    pub fn queue(&mut self, pieces: impl IntoIterator<Item = Bytes>) {
        self.waiting.extend(pieces.into_iter().filter(|piece| !piece.is_empty()));
    }

    /// Starts a send when none is in flight and something waits.
    pub fn send(&mut self, driver: &mut dyn Driver, token: Token) {
        if self.sending || self.waiting.is_empty() {
            return;
        }
        let bufs = if self.waiting.len() <= SEND_PIECES_MAX {
            std::mem::take(&mut self.waiting)
        } else {
            let rest = self.waiting.split_off(SEND_PIECES_MAX);
            std::mem::replace(&mut self.waiting, rest)
        };
        self.sending = true;
        driver.submit(token, Op::Send { socket: self.socket, bufs });
    }

    pub fn sent(&mut self) {
        self.sending = false;
    }

    /// True while a send is in flight or bytes wait for one.
    pub fn has_output(&self) -> bool {
        self.sending || !self.waiting.is_empty()
    }

    /// True when no receive is in flight.
    pub fn wants_receive(&self) -> bool {
        !self.receiving
    }

    /// Starts a receive unless one is in flight. All complete input must have been parsed.
    pub fn receive(&mut self, driver: &mut dyn Driver, token: Token) {
        if !self.receiving {
            self.receiving = true;
            let bufs = self.reader.lend();
            driver.submit(token, Op::Recv { socket: self.socket, bufs });
        }
    }

    /// A receive brought `count` bytes.
    pub fn received(&mut self, bufs: RecvBufs, count: usize) {
        self.receiving = false;
        self.reader.received(bufs, count);
    }
}
