//! The contract of `io::driver::Driver`, run against the io_uring driver (durable writes in the
//! ring and in threads) and the epoll driver. Machines without io_uring skip its half, and print
//! that.

mod support;

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc;
use std::time::Duration;

use bytes::Bytes;
use holdfast::io::buffer::{AlignedBuf, Pool};
use holdfast::io::driver::{
    Address, Buffers, Completion, Disk, Done, Driver, FileId, Op, RecvBufs, SocketId, Token,
};
use holdfast::io::file::{ExclusiveFile, FileError, OpenFile};
use holdfast::io::{DriverError, DriverKind, DurableWrites, driver, driver_with};
use support::hanging::HangingDisk;
use tempfile::TempDir;

macro_rules! contract {
    ($($name:ident,)*) => {
        mod io_uring {
            $(#[test] fn $name() {
                super::Rig::run(super::driver(super::DriverKind::IoUring), super::$name);
            })*
        }
        mod io_uring_with_threads {
            $(#[test] fn $name() {
                let driver = super::driver_with(
                    super::DriverKind::IoUring,
                    super::DurableWrites::Threads,
                );
                super::Rig::run(driver, super::$name);
            })*
        }
        mod epoll {
            $(#[test] fn $name() {
                super::Rig::run(super::driver(super::DriverKind::Epoll), super::$name);
            })*
        }
    };
}

contract!(
    what_was_written_is_read_back,
    a_write_of_more_parts_than_a_call_takes_is_whole,
    a_read_beyond_the_end_is_short,
    a_write_that_fails_says_so,
    a_file_that_something_else_holds_is_not_opened,
    unknown_ids_are_errors_and_buffers_come_back,
    more_operations_than_any_queue_holds_all_complete,
    an_empty_write_completes,
    a_connection_carries_bytes_both_ways,
    a_disk_that_never_answers_leaves_others_at_work,
    a_full_socket_delays_no_other,
    a_large_send_survives_a_slow_reader,
    a_send_of_many_parts_arrives_in_order,
    a_receive_fills_landing_then_staging,
    a_peer_that_closes_is_zero_bytes,
    a_hang_up_shows_before_the_last_words_are_received,
    a_refused_connection_is_an_error,
    what_was_sent_before_a_close_arrives,
    a_close_ends_a_receive_and_gives_its_buffers_back,
    a_close_ends_a_blocked_send,
    a_close_ends_an_accept,
    a_socket_id_is_used_again_only_after_its_close,
    a_stale_socket_file_is_replaced_but_not_a_live_one,
    several_accepts_take_one_connection_each,
    a_wake_ends_a_wait,
    a_wake_before_the_wait_is_not_lost,
    a_wait_ends_by_itself,
    polling_without_waiting_sees_everything,
    a_driver_can_be_dropped_with_everything_in_flight,
);

/// A driver with the helpers of a test.
struct Rig {
    driver: Box<dyn Driver>,
    pool: Pool,
    directory: TempDir,
    next_token: u64,
    /// Completions that arrived while the test waited for another one.
    early: HashMap<Token, Completion>,
}

impl Rig {
    fn run(made: Result<Box<dyn Driver>, DriverError>, test: fn(Rig)) {
        let made = match made {
            Err(error @ (DriverError::Forbidden(_) | DriverError::Missing(_))) => {
                eprintln!("skipped: {error}");
                return;
            }
            made => made.unwrap(),
        };
        // A hanging test ends the process, so that no run waits for ever.
        let (alive, watchdog) = mpsc::channel::<()>();
        std::thread::spawn(move || {
            if watchdog.recv_timeout(Duration::from_secs(60))
                == Err(mpsc::RecvTimeoutError::Timeout)
            {
                eprintln!("a test of the driver contract hangs");
                std::process::abort();
            }
        });
        test(Rig {
            driver: made,
            pool: Pool::default(),
            directory: tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap(),
            next_token: 0,
            early: HashMap::new(),
        });
        drop(alive);
    }

    fn submit(&mut self, op: Op) -> Token {
        self.next_token += 1;
        let token = Token(self.next_token);
        self.driver.submit(token, op);
        token
    }

    fn wait(&mut self, token: Token) -> Completion {
        loop {
            if let Some(completion) = self.early.remove(&token) {
                return completion;
            }
            self.enter(None);
        }
    }

    fn enter(&mut self, timeout: Option<Duration>) {
        let mut out = Vec::new();
        self.driver.enter(timeout, &mut out).unwrap();
        for completion in out {
            let before = self.early.insert(completion.token, completion);
            assert!(before.is_none(), "an operation completed twice: {before:?}");
        }
    }

    fn run_op(&mut self, op: Op) -> Completion {
        let token = self.submit(op);
        self.wait(token)
    }

    /// The bytes an operation moved.
    fn count(&mut self, op: Op) -> usize {
        count(&self.run_op(op))
    }

    fn open(&mut self, name: &str) -> FileId {
        let path = self.directory.path().join(name);
        self.add(&OpenFile { path, create: true }, Disk(0)).unwrap()
    }

    fn add(&mut self, file: &OpenFile, disk: Disk) -> Result<FileId, FileError> {
        let file = ExclusiveFile::open(file)?;
        Ok(self.driver.add_file(file, disk).unwrap())
    }

    fn block(&self, seed: usize) -> Bytes {
        self.blocks(seed, 1)
    }

    fn blocks(&self, seed: usize, count: usize) -> Bytes {
        self.pool.copy(&pattern(seed, count * 4096))
    }

    fn read(&mut self, file: FileId, offset: u64, len: usize) -> Vec<u8> {
        let buf = self.pool.take(len);
        let completion = self.run_op(Op::Read { file, offset, buf });
        let count = count(&completion);
        let Buffers::Read(buf) = completion.buffers else {
            panic!("a read gives its buffer back");
        };
        assert_eq!(buf.len(), len);
        buf[..count].to_vec()
    }

    fn recv(&mut self, socket: SocketId) -> Vec<u8> {
        let bufs = staging(&self.pool, 65536);
        let completion = self.run_op(Op::Recv { socket, bufs });
        let count = count(&completion);
        let Buffers::Recv(bufs) = completion.buffers else {
            panic!("a receive gives its buffers back");
        };
        bufs.staging[..count].to_vec()
    }

    fn recv_all(&mut self, socket: SocketId, len: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while all.len() < len {
            let more = self.recv(socket);
            assert!(!more.is_empty(), "closed after {} bytes", all.len());
            all.extend(more);
        }
        assert_eq!(all.len(), len);
        all
    }

    fn listen_tcp(&mut self) -> (SocketId, SocketAddr) {
        let any = Address::Tcp("127.0.0.1:0".parse().unwrap());
        let (listener, Address::Tcp(bound)) = self.driver.listen(&any).unwrap() else {
            panic!("bound to TCP");
        };
        assert_ne!(bound.port(), 0);
        (listener, bound)
    }

    fn connect(&mut self, address: Address) -> SocketId {
        match self.run_op(Op::Connect { address }).result.unwrap() {
            Done::Connected(socket) => socket,
            other => panic!("{other:?}"),
        }
    }

    /// A connection of the driver whose other end is an ordinary socket.
    fn connected_to_std(&mut self) -> (SocketId, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = self.connect(Address::Tcp(listener.local_addr().unwrap()));
        (socket, listener.accept().unwrap().0)
    }
}

fn count(completion: &Completion) -> usize {
    match &completion.result {
        Ok(Done::Bytes(count)) => *count,
        other => panic!("{other:?}"),
    }
}

fn accepted(completion: Completion) -> SocketId {
    match completion.result.unwrap() {
        Done::Accepted(socket) => socket,
        other => panic!("{other:?}"),
    }
}

fn staging(pool: &Pool, len: usize) -> RecvBufs {
    RecvBufs { landing: None, landing_from: 0, staging: pool.take(len), staging_from: 0 }
}

/// Bytes that differ by seed and position.
fn pattern(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|at| ((at / 4096 + seed) * 31 + at * 7) as u8).collect()
}

fn what_was_written_is_read_back(mut rig: Rig) {
    let file = rig.open("file");
    for (round, durable) in [(0usize, true), (1, false)] {
        let offset = round as u64 * 4096;
        let bufs = vec![rig.block(1 + round), rig.blocks(2 + round, 40), rig.block(3)];
        let expected: Vec<u8> = bufs.concat();
        let written = rig.count(Op::Write { file, offset, bufs, durable });
        assert_eq!(written, expected.len());
        assert!(rig.read(file, offset, expected.len()) == expected);
    }
    assert_eq!(rig.count(Op::Sync { file }), 0);
    assert_eq!(rig.driver.size_bytes(file).unwrap(), 43 * 4096);
    let on_disk = std::fs::read(rig.directory.path().join("file")).unwrap();
    assert!(on_disk[..4096] == pattern(1, 4096)[..]);
    assert!(on_disk[4096..8192] == pattern(2, 4096)[..]);
}

fn a_write_of_more_parts_than_a_call_takes_is_whole(mut rig: Rig) {
    let file = rig.open("file");
    let all: Vec<Bytes> = (0..5000).map(|seed| rig.block(seed)).collect();
    // Every second one, so that parts adjacent in memory are not adjacent in the file.
    let bufs: Vec<Bytes> = all.iter().step_by(2).cloned().collect();
    let expected = bufs.concat();
    let written = rig.count(Op::Write { file, offset: 8192, bufs, durable: true });
    assert_eq!(written, expected.len());
    assert!(rig.read(file, 8192, expected.len()) == expected);
}

fn a_read_beyond_the_end_is_short(mut rig: Rig) {
    let file = rig.open("file");
    let bufs = vec![rig.blocks(5, 2)];
    rig.count(Op::Write { file, offset: 0, bufs, durable: true });
    assert!(rig.read(file, 4096, 4 * 4096) == pattern(5, 8192)[4096..]);
    assert!(rig.read(file, 8192, 4096).is_empty());
    assert!(rig.read(file, 1 << 20, 4096).is_empty());
}

fn a_file_that_something_else_holds_is_not_opened(mut rig: Rig) {
    let path = rig.directory.path().join("file");
    let other = std::fs::File::create(&path).unwrap();
    rustix::fs::flock(&other, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let open = OpenFile { path, create: false };
    let refused = rig.add(&open, Disk(0)).unwrap_err();
    assert!(matches!(refused, FileError::Busy { .. }), "{refused}");
    drop(other);
    let file = rig.add(&open, Disk(0)).unwrap();
    let bufs = vec![rig.block(1)];
    assert_eq!(rig.count(Op::Write { file, offset: 0, bufs, durable: true }), 4096);
    assert!(rig.add(&open, Disk(0)).is_err(), "it has it already");
}

fn a_write_that_fails_says_so(mut rig: Rig) {
    let file = rig.open("file");
    // No file system has files that long.
    let offset = i64::MAX as u64 / 4096 * 4096 - 4096;
    for durable in [false, true] {
        let bufs = vec![rig.block(1)];
        let completion = rig.run_op(Op::Write { file, offset, bufs, durable });
        assert!(completion.result.is_err(), "{completion:?}");
    }
    assert!(rig.read(file, 0, 4096).is_empty());
}

fn unknown_ids_are_errors_and_buffers_come_back(mut rig: Rig) {
    let (listener, _) = rig.listen_tcp();
    let file = rig.open("file");
    for wrong in [FileId(listener.0), FileId(7777), FileId(u32::MAX)] {
        let buf = rig.pool.take(4096);
        let completion = rig.run_op(Op::Read { file: wrong, offset: 0, buf });
        assert!(completion.result.is_err());
        assert!(matches!(completion.buffers, Buffers::Read(_)));
        let bufs = vec![rig.block(1)];
        let write = Op::Write { file: wrong, offset: 0, bufs, durable: true };
        assert!(rig.run_op(write).result.is_err());
        assert!(rig.run_op(Op::Sync { file: wrong }).result.is_err());
        assert!(rig.driver.size_bytes(wrong).is_err() || wrong == FileId(listener.0));
    }
    for wrong in [SocketId(file.0), SocketId(7777), SocketId(u32::MAX)] {
        let bufs = staging(&rig.pool, 4096);
        let completion = rig.run_op(Op::Recv { socket: wrong, bufs });
        assert!(completion.result.is_err());
        assert!(matches!(completion.buffers, Buffers::Recv(_)));
        assert!(rig.run_op(Op::Close { socket: wrong }).result.is_err());
        assert!(rig.run_op(Op::Accept { listener: wrong }).result.is_err());
    }
    assert!(rig.read(file, 0, 4096).is_empty(), "the file stayed open");
}

fn more_operations_than_any_queue_holds_all_complete(mut rig: Rig) {
    const COUNT: usize = 6000;
    let file = rig.open("file");
    let writes: Vec<Token> = (0..COUNT)
        .map(|seed| {
            let bufs = vec![rig.block(seed)];
            rig.submit(Op::Write { file, offset: seed as u64 * 4096, bufs, durable: false })
        })
        .collect();
    for token in writes {
        assert_eq!(count(&rig.wait(token)), 4096);
    }
    let reads: Vec<Token> = (0..COUNT)
        .map(|seed| {
            let buf = rig.pool.take(4096);
            rig.submit(Op::Read { file, offset: seed as u64 * 4096, buf })
        })
        .collect();
    for (seed, token) in reads.into_iter().enumerate() {
        let completion = rig.wait(token);
        assert_eq!(count(&completion), 4096);
        let Buffers::Read(buf) = completion.buffers else {
            panic!("a read gives its buffer back");
        };
        assert!(buf[..] == pattern(seed, 4096)[..], "block {seed}");
    }
}

fn an_empty_write_completes(mut rig: Rig) {
    let file = rig.open("file");
    let (socket, _peer) = rig.connected_to_std();
    for bufs in [Vec::new(), vec![Bytes::new()]] {
        let write = Op::Write { file, offset: 0, bufs: bufs.clone(), durable: true };
        assert_eq!(rig.count(write), 0);
        assert_eq!(rig.count(Op::Send { socket, bufs }), 0);
    }
}

fn a_connection_carries_bytes_both_ways(mut rig: Rig) {
    let unix = Address::Unix(rig.directory.path().join("socket"));
    let any = |ip: &str| Address::Tcp(SocketAddr::new(ip.parse().unwrap(), 0));
    for address in [any("127.0.0.1"), any("::1"), unix] {
        let (listener, bound) = match rig.driver.listen(&address) {
            Err(_) if address == any("::1") => continue, // a machine without IPv6
            listening => listening.unwrap(),
        };
        let accept = rig.submit(Op::Accept { listener });
        let here = rig.connect(bound);
        let there = accepted(rig.wait(accept));
        for (from, to) in [(here, there), (there, here)] {
            let bufs = vec![Bytes::from_static(b"hold"), Bytes::from_static(b"fast")];
            assert_eq!(rig.count(Op::Send { socket: from, bufs }), 8);
            assert_eq!(rig.recv_all(to, 8), b"holdfast");
        }
        for socket in [here, there, listener] {
            assert_eq!(rig.count(Op::Close { socket }), 0);
        }
    }
}

/// One disk has more in flight than any pool has threads; all operations on the other one go on.
fn a_disk_that_never_answers_leaves_others_at_work(mut rig: Rig) {
    const HELD: usize = 600;
    let name = rig.directory.path().file_name().unwrap().to_str().unwrap().to_owned();
    let hanging = HangingDisk::new(&format!("{name}-disk"));
    let open = OpenFile { path: hanging.path().join("file"), create: true };
    let stuck = rig.add(&open, Disk(1)).unwrap();
    let bufs = vec![rig.blocks(0, HELD)];
    rig.count(Op::Write { file: stuck, offset: 0, bufs, durable: true });
    let file = rig.open("file");
    let hang = hanging.hang();
    let held: Vec<Token> = (0..HELD)
        .map(|number| {
            let offset = number as u64 * 4096;
            let bufs = vec![rig.block(number)];
            rig.submit(match number % 4 {
                0 => Op::Write { file: stuck, offset, bufs, durable: true },
                1 => Op::Write { file: stuck, offset, bufs, durable: false },
                2 => Op::Read { file: stuck, offset, buf: rig.pool.take(4096) },
                _ => Op::Sync { file: stuck },
            })
        })
        .collect();
    rig.enter(Some(Duration::ZERO));
    for round in 0..100 {
        let offset = round as u64 * 4096;
        for durable in [true, false] {
            let bufs = vec![rig.block(round)];
            assert_eq!(rig.count(Op::Write { file, offset, bufs, durable }), 4096);
        }
        assert_eq!(rig.count(Op::Sync { file }), 0);
        assert!(rig.read(file, offset, 4096) == pattern(round, 4096));
    }
    assert!(rig.early.len() < HELD, "the disk hangs");
    drop(hang);
    for token in held {
        rig.wait(token).result.unwrap();
    }
    assert!(rig.read(stuck, 4 * 4096, 4096) == pattern(4, 4096));
    // The driver closes the file before its server ends.
    let Rig { driver, .. } = rig;
    drop(driver);
}

/// The buffer of one socket is full, and its reader sleeps. A small send waits there, and nothing
/// that another socket receives waits for it.
fn a_full_socket_delays_no_other(mut rig: Rig) {
    let listener = UnixListener::bind(rig.directory.path().join("socket")).unwrap();
    let address = Address::Unix(rig.directory.path().join("socket"));
    let connect = |rig: &mut Rig| {
        let socket = rig.connect(address.clone());
        (socket, listener.accept().unwrap().0)
    };
    let small = |rig: &Rig| vec![rig.blocks(1, 2)];
    // How many sends fit?
    let (probe, _asleep) = connect(&mut rig);
    let mut fit = 0;
    loop {
        let bufs = small(&rig);
        let token = rig.submit(Op::Send { socket: probe, bufs });
        rig.enter(Some(Duration::ZERO));
        if rig.early.remove(&token).is_none() {
            break;
        }
        fit += 1;
    }
    assert!(fit > 0);
    let (full, mut sleeper) = connect(&mut rig);
    for _ in 0..fit {
        let bufs = small(&rig);
        assert_eq!(rig.count(Op::Send { socket: full, bufs }), 8192);
    }
    let (other, mut peer) = connect(&mut rig);
    peer.write_all(b"ping").unwrap();
    let bufs = small(&rig);
    let waits = rig.submit(Op::Send { socket: full, bufs });
    let bufs = staging(&rig.pool, 4096);
    let received = rig.submit(Op::Recv { socket: other, bufs });
    // Longer than the watchdog of a test lets it wait.
    while !rig.early.contains_key(&received) {
        rig.enter(Some(Duration::from_secs(3600)));
    }
    assert!(!rig.early.contains_key(&waits));
    let mut all = vec![0; (fit + 1) * 8192];
    let reader = std::thread::spawn(move || {
        sleeper.read_exact(&mut all).unwrap();
        all
    });
    assert_eq!(count(&rig.wait(waits)), 8192);
    let all = reader.join().unwrap();
    assert!(all.chunks(8192).all(|piece| *piece == pattern(1, 8192)));
}

fn a_large_send_survives_a_slow_reader(mut rig: Rig) {
    const LEN: usize = 32 << 20;
    let (socket, mut peer) = rig.connected_to_std();
    let data = Bytes::from(pattern(9, LEN));
    let send = rig.submit(Op::Send { socket, bufs: vec![data.slice(..100), data.slice(100..)] });
    // The socket's buffer is full long before the peer reads.
    for _ in 0..10 {
        rig.enter(Some(Duration::from_millis(1)));
    }
    assert!(rig.early.is_empty());
    let reader = std::thread::spawn(move || {
        let mut all = Vec::with_capacity(LEN);
        let mut part = vec![0; 10_000];
        while all.len() < LEN {
            let count = peer.read(&mut part).unwrap();
            assert!(count > 0, "closed after {} bytes", all.len());
            all.extend_from_slice(&part[..count]);
            std::thread::yield_now();
        }
        all
    });
    assert_eq!(count(&rig.wait(send)), LEN);
    assert!(reader.join().unwrap() == data);
}

fn a_send_of_many_parts_arrives_in_order(mut rig: Rig) {
    let (socket, mut peer) = rig.connected_to_std();
    let data = Bytes::from(pattern(3, 3000 * 200));
    // 3000 parts with gaps between them.
    let bufs: Vec<Bytes> = (0..3000).map(|part| data.slice(part * 200..part * 200 + 199)).collect();
    let expected = bufs.concat();
    let send = rig.submit(Op::Send { socket, bufs });
    let len = expected.len();
    let reader = std::thread::spawn(move || {
        let mut all = vec![0; len];
        peer.read_exact(&mut all).unwrap();
        all
    });
    assert_eq!(count(&rig.wait(send)), len);
    assert!(reader.join().unwrap() == expected);
}

fn a_receive_fills_landing_then_staging(mut rig: Rig) {
    let (socket, mut peer) = rig.connected_to_std();
    let data = pattern(1, 5000);
    peer.write_all(&data).unwrap();
    let mut landing = rig.pool.take(8192);
    landing[..200].fill(0xee);
    let mut received = 0;
    let mut bufs = RecvBufs {
        landing: Some(landing),
        landing_from: 200,
        staging: rig.pool.take(65536),
        staging_from: 16,
    };
    bufs.landing.as_mut().unwrap().truncate(4200);
    while received < data.len() {
        let completion = rig.run_op(Op::Recv { socket, bufs });
        let count = count(&completion);
        assert!(count > 0);
        received += count;
        let Buffers::Recv(back) = completion.buffers else {
            panic!("a receive gives its buffers back");
        };
        bufs = back;
        // As a stream reader does it: fill the first buffer, then continue in the other.
        let room = 4200 - bufs.landing_from;
        bufs.landing_from += count.min(room);
        bufs.staging_from += count - count.min(room);
    }
    let landing: AlignedBuf = bufs.landing.unwrap();
    assert_eq!((landing.len(), bufs.staging_from), (4200, 16 + 1000));
    assert!(landing[..200].iter().all(|byte| *byte == 0xee));
    assert!(landing[200..] == data[..4000]);
    assert!(bufs.staging[16..1016] == data[4000..]);
}

fn a_peer_that_closes_is_zero_bytes(mut rig: Rig) {
    let (socket, mut peer) = rig.connected_to_std();
    peer.write_all(b"last words").unwrap();
    drop(peer);
    assert_eq!(rig.recv_all(socket, 10), b"last words");
    assert!(rig.recv(socket).is_empty());
    // The same while the receive waits.
    let (socket, peer) = rig.connected_to_std();
    let bufs = staging(&rig.pool, 4096);
    let recv = rig.submit(Op::Recv { socket, bufs });
    rig.enter(Some(Duration::ZERO));
    drop(peer);
    assert_eq!(count(&rig.wait(recv)), 0);
}

fn a_hang_up_shows_before_the_last_words_are_received(mut rig: Rig) {
    let (socket, mut peer) = rig.connected_to_std();
    peer.write_all(b"last words").unwrap();
    assert!(!rig.driver.has_hung_up(socket));
    // The peer has closed only its sending half, but no more data will come.
    peer.shutdown(std::net::Shutdown::Write).unwrap();
    while !rig.driver.has_hung_up(socket) {
        std::thread::yield_now();
    }
    assert_eq!(rig.recv_all(socket, 10), b"last words");
    rig.run_op(Op::Close { socket });
    assert!(!rig.driver.has_hung_up(socket), "nobody is there to hang up");
}

fn a_refused_connection_is_an_error(mut rig: Rig) {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for address in [
        Address::Tcp(nobody),
        Address::Unix(rig.directory.path().join("missing")),
        Address::Unix(rig.directory.path().join("x".repeat(500))),
    ] {
        let completion = rig.run_op(Op::Connect { address });
        assert!(completion.result.is_err(), "{completion:?}");
    }
}

fn what_was_sent_before_a_close_arrives(mut rig: Rig) {
    let (socket, mut peer) = rig.connected_to_std();
    let bufs = vec![Bytes::from_static(b"goodbye")];
    let send = rig.submit(Op::Send { socket, bufs });
    let close = rig.submit(Op::Close { socket });
    assert_eq!(count(&rig.wait(send)), 7);
    assert_eq!(count(&rig.wait(close)), 0);
    let mut all = Vec::new();
    peer.read_to_end(&mut all).unwrap();
    assert_eq!(all, b"goodbye");
}

fn a_close_ends_a_receive_and_gives_its_buffers_back(mut rig: Rig) {
    for entered in [true, false] {
        let (socket, mut peer) = rig.connected_to_std();
        let bufs = staging(&rig.pool, 4096);
        let recv = rig.submit(Op::Recv { socket, bufs });
        if entered {
            rig.enter(Some(Duration::ZERO));
        }
        let close = rig.submit(Op::Close { socket });
        let completion = rig.wait(recv);
        assert!(completion.result.is_err(), "{completion:?}");
        assert!(matches!(completion.buffers, Buffers::Recv(_)));
        assert_eq!(count(&rig.wait(close)), 0);
        assert_eq!(peer.read(&mut [0; 10]).unwrap(), 0, "the peer is told");
        let bufs = staging(&rig.pool, 4096);
        assert!(rig.run_op(Op::Recv { socket, bufs }).result.is_err());
    }
}

fn a_close_ends_a_blocked_send(mut rig: Rig) {
    let (socket, peer) = rig.connected_to_std();
    let bufs = vec![Bytes::from(vec![7; 32 << 20])];
    let send = rig.submit(Op::Send { socket, bufs });
    rig.enter(Some(Duration::from_millis(1)));
    let close = rig.submit(Op::Close { socket });
    let completion = rig.wait(send);
    assert!(completion.result.is_err(), "{completion:?}");
    assert_eq!(count(&rig.wait(close)), 0);
    drop(peer);
}

fn a_close_ends_an_accept(mut rig: Rig) {
    let path = rig.directory.path().join("socket");
    let (tcp, bound) = rig.listen_tcp();
    let (unix, _) = rig.driver.listen(&Address::Unix(path)).unwrap();
    for listener in [tcp, unix] {
        let accept = rig.submit(Op::Accept { listener });
        rig.enter(Some(Duration::ZERO));
        let close = rig.submit(Op::Close { socket: listener });
        assert!(rig.wait(accept).result.is_err());
        assert_eq!(count(&rig.wait(close)), 0);
    }
    assert!(TcpStream::connect(bound).is_err(), "nobody listens any more");
    // The port is free at once.
    rig.driver.listen(&Address::Tcp(bound)).unwrap();
}

fn a_socket_id_is_used_again_only_after_its_close(mut rig: Rig) {
    let (listener, bound) = rig.listen_tcp();
    let mut open = std::collections::HashSet::from([listener]);
    for _ in 0..50 {
        let accept = rig.submit(Op::Accept { listener });
        let here = rig.connect(Address::Tcp(bound));
        let there = accepted(rig.wait(accept));
        assert!(open.insert(here) && open.insert(there));
        // The close and the next connection in one round.
        let close = rig.submit(Op::Close { socket: here });
        let accept = rig.submit(Op::Accept { listener });
        let connect = rig.submit(Op::Connect { address: Address::Tcp(bound) });
        let mut order = Vec::new();
        while order.len() < 3 {
            let mut out = Vec::new();
            rig.driver.enter(None, &mut out).unwrap();
            order.extend(out);
        }
        for completion in order {
            match completion.result.unwrap() {
                Done::Bytes(0) if completion.token == close => assert!(open.remove(&here)),
                Done::Accepted(socket) if completion.token == accept => {
                    assert!(open.insert(socket));
                }
                Done::Connected(socket) if completion.token == connect => {
                    assert!(open.insert(socket));
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

fn a_stale_socket_file_is_replaced_but_not_a_live_one(mut rig: Rig) {
    let path = rig.directory.path().join("socket");
    let address = Address::Unix(path.clone());
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let (listener, _) = rig.driver.listen(&address).unwrap();
    let error = rig.driver.listen(&address).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    let peer = UnixStream::connect(&path).unwrap();
    // The second `listen` probes the first with a connection, which closes at once.
    let mut sockets = Vec::new();
    for _ in 0..2 {
        sockets.push(accepted(rig.run_op(Op::Accept { listener })));
    }
    drop(peer);
    let file = rig.directory.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    assert!(rig.driver.listen(&Address::Unix(file.clone())).is_err());
    assert_eq!(std::fs::read(file).unwrap(), b"precious");
}

fn several_accepts_take_one_connection_each(mut rig: Rig) {
    let (listener, bound) = rig.listen_tcp();
    let accepts: Vec<Token> = (0..3).map(|_| rig.submit(Op::Accept { listener })).collect();
    rig.enter(Some(Duration::ZERO));
    let peers: Vec<TcpStream> = (0..3).map(|_| TcpStream::connect(bound).unwrap()).collect();
    let mut seen = std::collections::HashSet::new();
    for accept in accepts {
        assert!(seen.insert(accepted(rig.wait(accept))));
    }
    drop(peers);
}

fn a_wake_ends_a_wait(mut rig: Rig) {
    for _ in 0..20 {
        let waker = rig.driver.waker();
        let (entering, entered) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            entered.recv().unwrap();
            waker.wake();
        });
        entering.send(()).unwrap();
        // Without the wake this would hang, and the watchdog would end it.
        rig.enter(None);
        thread.join().unwrap();
        assert!(rig.early.is_empty());
    }
}

fn a_wake_before_the_wait_is_not_lost(mut rig: Rig) {
    for wakes in 1..4 {
        let waker = rig.driver.waker();
        (0..wakes).for_each(|_| waker.wake());
        rig.enter(None);
        // One call takes all wake-ups.
        rig.enter(Some(Duration::ZERO));
        let before = rig.driver.now();
        rig.enter(Some(Duration::from_millis(20)));
        assert!(rig.driver.now().since(before) >= Duration::from_millis(19));
    }
}

fn a_wait_ends_by_itself(mut rig: Rig) {
    let (listener, _) = rig.listen_tcp();
    rig.submit(Op::Accept { listener });
    rig.enter(Some(Duration::ZERO));
    let before = rig.driver.now();
    rig.enter(Some(Duration::from_millis(20)));
    assert!(rig.driver.now().since(before) >= Duration::from_millis(19));
    assert!(rig.early.is_empty());
}

fn polling_without_waiting_sees_everything(mut rig: Rig) {
    let file = rig.open("file");
    let (socket, mut peer) = rig.connected_to_std();
    let bufs = staging(&rig.pool, 4096);
    let recv = rig.submit(Op::Recv { socket, bufs });
    let bufs = vec![rig.block(1)];
    let write = rig.submit(Op::Write { file, offset: 0, bufs, durable: true });
    let sync = rig.submit(Op::Sync { file });
    while !(rig.early.contains_key(&write) && rig.early.contains_key(&sync)) {
        rig.enter(Some(Duration::ZERO));
    }
    peer.write_all(b"x").unwrap();
    while !rig.early.contains_key(&recv) {
        rig.enter(Some(Duration::ZERO));
    }
    assert_eq!(count(&rig.wait(recv)), 1);
}

fn a_driver_can_be_dropped_with_everything_in_flight(mut rig: Rig) {
    let file = rig.open("file");
    let (listener, bound) = rig.listen_tcp();
    rig.submit(Op::Accept { listener });
    let accept = rig.submit(Op::Accept { listener });
    let (socket, mut peer) = rig.connected_to_std();
    let bufs = staging(&rig.pool, 65536);
    rig.submit(Op::Recv { socket, bufs });
    let bufs = vec![Bytes::from(vec![1; 32 << 20])];
    rig.submit(Op::Send { socket, bufs });
    rig.enter(Some(Duration::ZERO));
    for seed in 0..700 {
        let bufs = vec![rig.block(seed)];
        rig.submit(Op::Write { file, offset: seed as u64 * 4096, bufs, durable: true });
        let buf = rig.pool.take(4096);
        let offset = 0;
        rig.submit(Op::Read { file, offset, buf });
    }
    rig.submit(Op::Close { socket: listener });
    rig.enter(Some(Duration::ZERO));
    let _ = (accept, bound);
    let pool = rig.pool.clone();
    let waker = rig.driver.waker();
    drop(rig);
    waker.wake();
    assert_eq!(pool.in_use_bytes(), 0, "every buffer came back");
    let mut rest = Vec::new();
    // An end or a reset; either way the peer learns of it.
    let _ = peer.read_to_end(&mut rest);
}
