//! A follower: what it receives, it writes to its log, and says when that is durable.

use std::io;
use std::net::TcpStream;
use std::os::fd::AsRawFd;

use crate::log::{HEAD_BYTES, Log, leak};
use crate::ring::Ring;
use crate::stream::Stream;

const LEADER: u32 = 1;
const RECEIVE: u64 = 1 << 32;
const SEND: u64 = 2 << 32;

/// Runs until the leader closes the connection.
pub fn run(address: &str, mut log: Log) -> io::Result<()> {
    let leader = TcpStream::connect(address)?;
    leader.set_nodelay(true)?;
    let mut ring = Ring::new(&[log.fd(), leader.as_raw_fd()])?;
    let mut stream = Stream::new();
    let answer = leak(size_of::<u64>()).as_mut_ptr();
    let (mut answered, mut sending) = (0, false);
    let mut ended = Vec::new();
    loop {
        take(&mut stream, &mut log);
        if log.durable > answered && !sending {
            (answered, sending) = (log.durable, true);
            // SAFETY: the memory has eight bytes, lives for ever, and no send is in flight.
            let bytes = unsafe {
                let bytes = std::slice::from_raw_parts_mut(answer, size_of::<u64>());
                bytes.copy_from_slice(&answered.to_le_bytes());
                &*bytes
            };
            ring.send(SEND, LEADER, bytes);
        }
        if let Some(memory) = stream.arm() {
            ring.recv(RECEIVE, LEADER, memory);
        }
        if let Some(batch) = log.close(1) {
            log.write(&mut ring, batch);
        }
        ring.round(&mut ended)?;
        for end in ended.drain(..) {
            match (end.name, end.result) {
                // A leader that was killed has its connections reset.
                (RECEIVE, Ok(0) | Err(_)) => return Ok(()),
                (RECEIVE, Ok(count)) => stream.received(count),
                (SEND, result) => {
                    result?;
                    sending = false;
                }
                (batch, result) => log.written(batch as usize, result)?,
            }
        }
    }
}

/// Moves whole messages into the open batch.
fn take(stream: &mut Stream, log: &mut Log) {
    while let Some((head, rest)) = stream.bytes().split_first_chunk::<HEAD_BYTES>() {
        let number = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().expect("8 bytes"));
        let length = number(0) as usize;
        if rest.len() < length || !log.add(&rest[..length], number(8)) {
            return;
        }
        stream.take(HEAD_BYTES + length);
    }
}
