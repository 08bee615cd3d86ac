//! The leader: takes writes from a client, passes them on, and answers what is durable here and on
//! one follower.

use std::collections::VecDeque;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;

use crate::log::{BatchId, Log, leak};
use crate::nbd::{self, REPLY_BYTES, REQUEST_BYTES, Request};
use crate::ring::{Ended, Ring};
use crate::stream::Stream;

/// The places of the followers and of the client in the table of files, and the names of what is
/// in flight for each. The log's writes have the ids of batches as names.
const FOLLOWERS: [u32; 2] = [1, 2];
const CLIENT: u32 = 3;
const RECEIVE: u64 = 1 << 32;
const SEND: u64 = 2 << 32;
/// Room for answers that wait to be sent.
const REPLIES_MAX: usize = 1024;

struct Follower {
    stream: Stream,
    /// Batches that were not sent whole. The first is in flight.
    queue: VecDeque<BatchId>,
    sending: bool,
    durable: u64,
}

struct Leader {
    ring: Ring,
    log: Log,
    followers: [Follower; 2],
    /// The number of the last write taken.
    taken: u64,
    ended: Vec<Ended>,
}

/// What belongs to one client.
struct Client {
    stream: Stream,
    /// The cookies of the writes that were not answered, in order, and the number of the first.
    waiting: VecDeque<[u8; 8]>,
    first: u64,
    replies: *mut u8,
    sending: bool,
    leaving: bool,
}

/// Serves one client after another, for ever.
pub fn run(clients: &TcpListener, followers: [TcpStream; 2], log: Log) -> io::Result<()> {
    let files = [log.fd(), followers[0].as_raw_fd(), followers[1].as_raw_fd(), -1];
    let mut leader = Leader {
        ring: Ring::new(&files)?,
        log,
        followers: [Follower::new(), Follower::new()],
        taken: 0,
        ended: Vec::new(),
    };
    let replies = leak(REPLIES_MAX * REPLY_BYTES).as_mut_ptr();
    loop {
        let (mut client, _) = clients.accept()?;
        client.set_nodelay(true)?;
        // A probe that leaves in the middle is no reason to end.
        if nbd::negotiate(&mut client).unwrap_or(false) {
            leader.serve(&client, replies)?;
        }
    }
}

impl Follower {
    fn new() -> Follower {
        Follower { stream: Stream::new(), queue: VecDeque::new(), sending: false, durable: 0 }
    }

    /// Reads the numbers that the follower has sent.
    fn take(&mut self) {
        while let Some(number) = self.stream.bytes().first_chunk() {
            self.durable = u64::from_le_bytes(*number);
            self.stream.take(size_of::<u64>());
        }
    }
}

impl Leader {
    fn serve(&mut self, socket: &TcpStream, replies: *mut u8) -> io::Result<()> {
        self.ring.set_file(CLIENT, socket.as_raw_fd())?;
        let mut client = Client {
            stream: Stream::new(),
            waiting: VecDeque::new(),
            first: self.taken + 1,
            replies,
            sending: false,
            leaving: false,
        };
        while !client.leaving || !client.waiting.is_empty() || client.sending {
            if let Err(error) = client.take(&mut self.log, &mut self.taken) {
                eprintln!("holdfast-limit: the client is given up: {error}");
                client.leaving = true;
            }
            self.submit(&mut client);
            self.ring.round(&mut self.ended)?;
            let mut ended = std::mem::take(&mut self.ended);
            for end in ended.drain(..) {
                self.completed(end, &mut client)?;
            }
            self.ended = ended;
        }
        self.ring.set_file(CLIENT, -1)
    }

    /// Hands all to the ring: sends to followers, answers, and then the own log.
    fn submit(&mut self, client: &mut Client) {
        // Two messages, and the own log.
        let batch = self.log.close(3);
        for (follower, file) in self.followers.iter_mut().zip(FOLLOWERS) {
            follower.queue.extend(batch);
            if let Some(first) = follower.queue.front().filter(|_| !follower.sending) {
                follower.sending = true;
                let message = self.log.message(*first);
                self.ring.send(SEND | u64::from(file), file, message);
            }
            if let Some(memory) = follower.stream.arm() {
                self.ring.recv(RECEIVE | u64::from(file), file, memory);
            }
        }
        let acknowledged = self.followers.iter().map(|follower| follower.durable).max();
        let committed = acknowledged.unwrap_or(0).min(self.log.durable);
        client.reply(&mut self.ring, committed);
        if !client.leaving
            && let Some(memory) = client.stream.arm()
        {
            self.ring.recv(RECEIVE | u64::from(CLIENT), CLIENT, memory);
        }
        if let Some(batch) = batch {
            self.log.write(&mut self.ring, batch);
        }
    }

    fn completed(&mut self, end: Ended, client: &mut Client) -> io::Result<()> {
        let (kind, number) = (end.name >> 32 << 32, end.name as u32);
        let follower = FOLLOWERS.iter().position(|file| *file == number);
        match (kind, follower) {
            (RECEIVE, Some(follower)) => {
                let follower = &mut self.followers[follower];
                let count = end.result?;
                if count == 0 {
                    return Err(io::Error::other("a follower has ended"));
                }
                follower.stream.received(count);
                follower.take();
                Ok(())
            }
            (SEND, Some(follower)) => {
                let follower = &mut self.followers[follower];
                let batch = follower.queue.pop_front().expect("it was in flight");
                if end.result? != self.log.message(batch).len() {
                    return Err(io::Error::other("a short send to a follower"));
                }
                follower.sending = false;
                self.log.release(batch);
                Ok(())
            }
            (RECEIVE, None) => {
                // A client may leave in any way.
                let count = end.result.unwrap_or(0);
                client.leaving |= count == 0;
                client.stream.received(count);
                Ok(())
            }
            (SEND, None) => {
                client.sending = false;
                client.leaving |= end.result.is_err();
                Ok(())
            }
            (_, _) => self.log.written(end.name as usize, end.result),
        }
    }
}

impl Client {
    /// Moves whole requests into the open batch.
    fn take(&mut self, log: &mut Log, taken: &mut u64) -> io::Result<()> {
        while !self.leaving
            && let Some((head, rest)) = self.stream.bytes().split_first_chunk::<REQUEST_BYTES>()
        {
            match nbd::request(head)? {
                Request::Disconnect => {
                    self.leaving = true;
                    self.stream.take(REQUEST_BYTES);
                }
                Request::Write { cookie, bytes } => {
                    if rest.len() < bytes || !log.add(&rest[..bytes], *taken + 1) {
                        return Ok(());
                    }
                    *taken += 1;
                    self.waiting.push_back(cookie);
                    self.stream.take(REQUEST_BYTES + bytes);
                }
            }
        }
        Ok(())
    }

    /// Answers the writes up to this number, with one send.
    fn reply(&mut self, ring: &mut Ring, committed: u64) {
        if self.sending || committed < self.first || self.waiting.is_empty() {
            return;
        }
        let count = (committed - self.first + 1).min(REPLIES_MAX as u64) as usize;
        let bytes = count * REPLY_BYTES;
        // SAFETY: the memory is that long, lives for ever, and no send is in flight.
        let memory = unsafe { std::slice::from_raw_parts_mut(self.replies, bytes) };
        for (place, cookie) in memory.chunks_exact_mut(REPLY_BYTES).zip(self.waiting.drain(..count))
        {
            place.copy_from_slice(&nbd::reply(cookie));
        }
        self.first += count as u64;
        self.sending = true;
        ring.send(SEND | u64::from(CLIENT), CLIENT, memory);
    }
}
