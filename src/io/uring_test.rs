//! Cases that need small queues, few registered files or older flags. The contract itself is tested
//! in `tests/driver_contract.rs`.

use std::io::Write;
use std::net::{TcpListener, TcpStream};

use bytes::Bytes;

use super::*;
use crate::io::buffer::Pool;
use crate::io::driver::{Buffers, RecvBufs};

/// A ring, or `None` where io_uring is not permitted.
fn ring(sizes: Sizes, first_flag_set: u32) -> Option<Uring> {
    match Uring::with(sizes, first_flag_set) {
        Err(error @ (DriverError::Forbidden(_) | DriverError::Missing(_))) => {
            eprintln!("skipped: {error}");
            None
        }
        made => Some(made.unwrap()),
    }
}

fn small() -> Sizes {
    Sizes { submission_entries: 4, completion_entries: 8, registered_max: 3 }
}

/// Connections of the driver, and their other ends.
fn connections(uring: &mut Uring, count: usize) -> Vec<(SocketId, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = Address::Tcp(listener.local_addr().unwrap());
    let mut connections = Vec::new();
    for number in 0..count {
        let address = address.clone();
        uring.submit(Token(number as u64), Op::Connect { address });
        let mut out = Vec::new();
        while out.is_empty() {
            uring.enter(None, &mut out).unwrap();
        }
        let Ok(Done::Connected(socket)) = out[0].result else {
            panic!("{out:?}");
        };
        connections.push((socket, listener.accept().unwrap().0));
    }
    connections
}

fn recv(pool: &Pool, socket: SocketId) -> Op {
    let bufs =
        RecvBufs { landing: None, landing_from: 0, staging: pool.take(4096), staging_from: 0 };
    Op::Recv { socket, bufs }
}

#[test]
fn a_completion_queue_that_overflows_loses_nothing() {
    const COUNT: usize = 100;
    let Some(mut uring) = ring(small(), 0) else {
        return;
    };
    let pool = Pool::default();
    let mut connections = connections(&mut uring, COUNT);
    for (number, (socket, _)) in connections.iter().enumerate() {
        uring.submit(Token(number as u64), recv(&pool, *socket));
    }
    let mut out = Vec::new();
    uring.enter(Some(Duration::ZERO), &mut out).unwrap();
    assert!(out.is_empty());
    for (number, (_, peer)) in connections.iter_mut().enumerate() {
        peer.write_all(&[number as u8]).unwrap();
    }
    let mut seen = [false; COUNT];
    while seen.contains(&false) {
        uring.enter(None, &mut out).unwrap();
        for completion in out.drain(..) {
            assert_eq!(completion.result.unwrap(), Done::Bytes(1));
            let Buffers::Recv(bufs) = completion.buffers else {
                panic!("a receive gives its buffers back");
            };
            assert_eq!(u64::from(bufs.staging[0]), completion.token.0);
            assert!(!std::mem::replace(&mut seen[completion.token.0 as usize], true));
        }
    }
    assert_eq!(uring.slots.in_flight(), 0);
    assert!(
        uring.handles.get(COUNT as u32 - 1).is_some(),
        "most sockets are beyond the registered ones"
    );
}

#[test]
fn every_set_of_flags_works() {
    for first_flag_set in 0..FLAG_SETS {
        let Some(mut uring) = ring(small(), first_flag_set) else {
            return;
        };
        let pool = Pool::default();
        let mut connections = connections(&mut uring, 2);
        let (closed, _) = connections[0];
        let (socket, peer) = &mut connections[1];
        uring.submit(Token(1), recv(&pool, closed));
        uring.submit(Token(2), recv(&pool, *socket));
        let mut out = Vec::new();
        uring.enter(Some(Duration::ZERO), &mut out).unwrap();
        uring.enter(Some(Duration::from_millis(1)), &mut out).unwrap();
        assert!(out.is_empty());
        uring.submit(Token(3), Op::Close { socket: closed });
        let bufs = vec![Bytes::from_static(b"x")];
        let socket = *socket;
        uring.submit(Token(4), Op::Send { socket, bufs });
        peer.write_all(b"y").unwrap();
        // Polling alone makes all of them complete.
        while out.len() < 4 {
            uring.enter(Some(Duration::ZERO), &mut out).unwrap();
        }
        out.sort_by_key(|completion| completion.token);
        assert!(out[0].result.is_err());
        let rest: Vec<Done> = out.drain(1..).map(|c| c.result.unwrap()).collect();
        assert_eq!(rest, [Done::Bytes(1), Done::Bytes(0), Done::Bytes(1)]);
        uring.waker().wake();
        uring.enter(None, &mut Vec::new()).unwrap();
    }
}

#[test]
fn a_poll_that_skips_the_kernel_still_sees_a_wake() {
    let Some(mut uring) = ring(Sizes::default(), 0) else {
        return;
    };
    let mut out = Vec::new();
    // The first call submits the read of the eventfd.
    uring.enter(Some(Duration::ZERO), &mut out).unwrap();
    assert!(uring.wake_armed && !uring.has_unsubmitted());
    uring.enter(Some(Duration::ZERO), &mut out).unwrap();
    uring.waker().wake();
    while !uring.woken {
        uring.cross(Wait::No).unwrap();
        uring.reap(&mut out);
    }
    assert!(!uring.wake_armed && out.is_empty());
}
