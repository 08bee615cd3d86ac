//! A client of the simulated cluster. It speaks NBD to one pod over a simulated connection, keeps
//! several requests in flight, and tells the history its observations.
//!
//! A client without an attachment stays with one front end. Such clients of different front ends
//! write different blocks, and read all of them. More is not promised: a front end sends a write
//! with an unknown outcome again, and orders only its own writes. A client with an attachment goes
//! from pod to pod. When it is fenced, it goes on asking, and gets errors or no answers.
//!
//! Each block has two registers, at bytes 0 and 2048, so that partial writes of a half meet writes
//! of whole blocks (rule `whole-blocks-in-log`).

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::ops::Range;
use std::time::Duration;

use bytes::{Buf, Bytes};

use crate::io::buffer::Pool;
use crate::io::driver::{Address, Buffers, Completion, Done, Driver, Op, SocketId, Token};
use crate::io::stream::StreamReader;
use crate::sim::checks::history::{History, Value, WRITER_SHIFT};
use crate::sim::kernel::SimDriver;
use crate::sim::rng::Rng;
use crate::sim::shape::ClientLoad;
use crate::types::{BLOCK_BYTES, BLOCKS_PER_EXTENT, Mono};

const HALF_BYTES: usize = BLOCK_BYTES / 2;
/// Bytes of a request before its payload.
const HEAD_BYTES: usize = 28;
/// A waiting client looks again after this time.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Clients that rest for so long ask for next to nothing.
pub const RARELY: Duration = Duration::from_secs(60);
/// ENOSPC in the NBD protocol.
const NO_SPACE: u32 = 28;
/// EIO in the NBD protocol.
const IO_ERROR: u32 = 5;
/// EPERM in the NBD protocol.
const NOT_PERMITTED: u32 = 1;
/// Before a client that found no export looks again.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(200);
/// Of this many requests, one goes to other than the hot blocks, or moves them.
const COLD_ONE_IN: u64 = 16;
const HOT_MOVES_ONE_IN: u64 = 600;
/// One in this many blocks is hot.
const HOT_PART: u64 = 8;
/// Blocks of the longest request.
const BLOCKS_MAX: u64 = 5;
/// Blocks of the longest write of a sweep, and of the reads at its end.
const SWEEP_BLOCKS: u64 = 256;
const SWEEP_READS: u64 = 8;
/// In a sweep, one in this many requests is an ordinary one.
const SWEEP_BREAKS_ONE_IN: u64 = 6;

/// The kinds of completions, in the low bits of a token below the connection number.
const CONNECT: u64 = 1;
const RECEIVE: u64 = 2;
const SEND: u64 = 3;
const CLOSE: u64 = 4;
const KINDS: u64 = 8;

enum ClientState {
    Idle,
    Connecting,
    /// Waits for the greeting (18 bytes).
    Greeting,
    /// Waits for the export's size and flags (10 bytes).
    Exporting,
    Ready,
}

struct InFlight {
    first: u64,
    registers: u64,
    what: What,
    invoked: Mono,
    /// It carries out the first of the present steps.
    is_step: bool,
}

/// A request for a whole block that a client is told to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Read(u64),
    Write(u64),
}

/// The operation of a request, for every register.
enum What {
    Read,
    Write(Vec<Value>),
    /// The zeroing numbers of the history.
    Zero(Vec<usize>),
    Trim(Vec<usize>),
    Flush,
}

impl What {
    fn writes(&self) -> bool {
        !matches!(self, What::Read | What::Flush)
    }

    /// The NBD command.
    fn command(&self) -> u16 {
        match self {
            What::Read => 0,
            What::Write(_) => 1,
            What::Flush => 3,
            What::Trim(_) => 4,
            What::Zero(_) => 6,
        }
    }
}

/// The current plan of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    Mixed,
    /// Reads every register once, then ends.
    ReadAll {
        next_block: u64,
    },
    Done,
    /// It is told each request.
    Steps,
    /// It has no connection, until it is told otherwise.
    Closed,
}

/// The volume of a client, and the client's load.
#[derive(Clone, Debug)]
pub struct Target {
    /// Name of the volume.
    pub export: String,
    /// The history's number of the volume's first register.
    pub first_register: u64,
    /// The blocks that the client writes; it reads all of them.
    pub region: Range<u64>,
    pub blocks: u64,
    pub blocks_per_shard: u64,
    pub load: ClientLoad,
    /// The half of every block that it writes, if other clients write the other half.
    pub half: Option<u64>,
    /// Writes may end with ENOSPC.
    pub may_be_full: bool,
    /// Any request may end with EIO.
    pub may_be_lost: bool,
    /// Any request may end with EIO, because it has waited for too long.
    pub may_time_out: bool,
    /// Shards must refuse its writes.
    pub read_only: bool,
    /// Its connections are one line: what it sends over the next one takes place later (rule
    /// `a-line-has-one-connection`).
    pub is_one_line: bool,
}

/// State that all clients of a run share.
#[derive(Default)]
pub struct Shared {
    pub history: History,
    /// The newest value.
    pub values: Value,
    /// Requests that clients may still send.
    pub requests_left: Option<u64>,
    pub requests: u64,
    /// Writes that were refused for lack of space.
    pub full: u64,
    /// Requests that were refused because the client is fenced.
    pub fenced: u64,
    /// Requests that have waited for too long.
    pub timed_out: u64,
}

/// See the module.
pub struct Client {
    driver: SimDriver,
    target: Target,
    pool: Pool,
    reader: StreamReader,
    state: ClientState,
    socket: Option<SocketId>,
    connection: u64,
    /// The pod's sockets of ended connections, while the pod may not know of the end.
    ended: Vec<SocketId>,
    /// The current line of the history: its writes take place in order.
    line: u64,
    sending: bool,
    out: Vec<Bytes>,
    requests: BTreeMap<u64, InFlight>,
    next_cookie: u64,
    /// The client rests until then.
    rests_until: Mono,
    /// The first hot block.
    hot: u64,
    /// Blocks that the sweep has written, and then also those that it has discarded.
    swept: u64,
    pub plan: Plan,
    /// What it was told and has not done, and the values of what it has done.
    steps: VecDeque<Step>,
    stepped: Vec<Value>,
    /// The values that steps have sent since this was taken.
    written: Vec<Value>,
    /// It was told that it is fenced, or that a step failed.
    pub is_refused: bool,
    pub has_failed: bool,
    /// Its attachment is leaving, or has left: any request may end with EPERM.
    pub may_be_fenced: bool,
    /// The volume has so many blocks by now; a pod may not know it yet.
    grows_to: Option<u64>,
    /// It connects no earlier.
    connects_at: Mono,
    /// NBD errors without an explanation.
    pub errors: u64,
    pub answers: u64,
    /// The longest time until an answer came, since this was last looked at.
    pub slowest: Duration,
}

impl Client {
    pub fn new(driver: SimDriver, target: Target, pool: Pool) -> Client {
        Client {
            driver,
            target,
            reader: StreamReader::new(pool.clone()),
            pool,
            state: ClientState::Idle,
            socket: None,
            connection: 0,
            ended: Vec::new(),
            line: 0,
            sending: false,
            out: Vec::new(),
            requests: BTreeMap::new(),
            next_cookie: 0,
            rests_until: Mono(0),
            hot: 0,
            swept: 0,
            plan: Plan::Mixed,
            steps: VecDeque::new(),
            stepped: Vec::new(),
            written: Vec::new(),
            is_refused: false,
            has_failed: false,
            may_be_fenced: false,
            grows_to: None,
            connects_at: Mono(0),
            errors: 0,
            answers: 0,
            slowest: Duration::ZERO,
        }
    }

    /// Runs until nothing is left to do now. `address`: the pod for new connections.
    pub fn run(&mut self, address: &Address, rng: &mut Rng, shared: &mut Shared) {
        let mut completions = Vec::new();
        loop {
            let timeout = match (self.plan, &self.state, self.requests.is_empty()) {
                (Plan::Done | Plan::Closed, ..) => None,
                (Plan::Steps, ..) if self.steps.is_empty() => None,
                (Plan::Mixed, ..) if shared.requests_left == Some(0) => Some(LOOK_EVERY),
                (Plan::Mixed, ClientState::Ready, true) => {
                    Some(self.rests_until.since(self.driver.now()))
                }
                _ => Some(LOOK_EVERY),
            };
            self.driver
                .enter(timeout, &mut completions)
                .expect("the simulated kernel takes everything");
            if completions.is_empty() {
                break;
            }
            for completion in completions.drain(..) {
                self.completed(completion, shared);
            }
        }
        match self.state {
            ClientState::Idle if matches!(self.plan, Plan::Done | Plan::Closed) => {}
            ClientState::Idle if self.driver.now() < self.connects_at => {}
            ClientState::Idle => {
                self.state = ClientState::Connecting;
                self.driver.submit(self.token(CONNECT), Op::Connect { address: address.clone() });
            }
            ClientState::Ready => self.invoke(rng, shared),
            _ => {}
        }
        self.flush();
    }

    /// From now on it obeys. Its requests in flight stay so, and are nobody's.
    pub fn tell(&mut self, steps: impl IntoIterator<Item = Step>) {
        self.plan = Plan::Steps;
        self.steps = steps.into_iter().collect();
        self.stepped.clear();
        self.has_failed = false;
        self.requests.values_mut().for_each(|request| request.is_step = false);
    }

    /// It asks for what it likes.
    pub fn work(&mut self) {
        self.plan = Plan::Mixed;
    }

    /// The values that were read and written, when it has done what it was told.
    pub fn told(&self) -> Option<&[Value]> {
        let is_done = self.plan == Plan::Steps && self.steps.is_empty() && self.is_quiet();
        is_done.then_some(&self.stepped)
    }

    pub fn take_written(&mut self) -> Vec<Value> {
        std::mem::take(&mut self.written)
    }

    /// Nothing is in flight.
    pub fn is_quiet(&self) -> bool {
        self.requests.is_empty()
    }

    /// Ends the connection. A new one begins when it is told something.
    pub fn close(&mut self) {
        self.plan = Plan::Closed;
        self.steps.clear();
        self.hang_up();
    }

    /// It may ask for what it likes.
    pub fn is_free(&self) -> bool {
        !matches!(self.plan, Plan::Steps | Plan::Closed)
    }

    /// From now on, reads everything once.
    pub fn read_all(&mut self) {
        if !self.is_free() {
            return;
        }
        if self.plan != Plan::Done || self.target.blocks > 0 {
            self.plan = Plan::ReadAll { next_block: self.target.region.start };
        }
    }

    /// The volume is gone: the client sends no more requests.
    pub fn retire(&mut self) {
        self.target.blocks = 0;
        self.plan = Plan::Done;
        self.hang_up();
    }

    /// The volume has more blocks. The client uses them over its next connections, as far as each
    /// pod says that they are there: one that has just started may not know of them yet.
    #[cfg(test)]
    pub fn grow(&mut self, blocks: u64) {
        if self.target.blocks > 0 {
            self.grows_to = Some(blocks);
            self.hang_up();
        }
    }

    /// Identifies it in the history.
    pub fn writer(&self) -> u64 {
        self.driver.host as u64
    }

    /// True when it is about to connect: to any pod, if it has an attachment.
    pub fn is_idle(&self) -> bool {
        matches!(self.state, ClientState::Idle)
    }

    /// The client asks for something all the time.
    pub fn is_busy(&self) -> bool {
        self.target.load.rest < RARELY && self.target.blocks > 0
    }

    /// True when a reading plan has ended.
    pub fn is_done(&self) -> bool {
        !self.is_free() || self.plan == Plan::Done && self.requests.is_empty()
    }

    fn completed(&mut self, completion: Completion, shared: &mut Shared) {
        if completion.token.0 / KINDS != self.connection {
            return;
        }
        match (completion.token.0 % KINDS, completion.result, completion.buffers) {
            (CONNECT, Ok(Done::Connected(socket)), _) => {
                self.socket = Some(socket);
                self.state = ClientState::Greeting;
                self.receive();
            }
            (CONNECT, ..) => self.state = ClientState::Idle,
            (CLOSE, ..) => {}
            (SEND, Ok(_), _) => self.sending = false,
            (RECEIVE, Ok(Done::Bytes(count)), Buffers::Recv(bufs)) if count > 0 => {
                self.reader.received(bufs, count);
                self.parse(shared);
                self.receive();
            }
            _ => self.hang_up(),
        }
    }

    /// The connection breaks: requests in flight stay open in the history.
    pub fn hang_up(&mut self) {
        if let Some(socket) = self.socket.take() {
            self.ended.extend(self.driver.peer_of(socket));
            self.driver.submit(self.token(CLOSE), Op::Close { socket });
        }
        if matches!(self.state, ClientState::Exporting) {
            self.connects_at = self.driver.now() + ASK_AGAIN_AFTER;
        }
        self.connection += 1;
        self.reader = StreamReader::new(self.pool.clone());
        self.requests.clear();
        self.out.clear();
        self.sending = false;
        self.state = ClientState::Idle;
        if let Plan::ReadAll { .. } = self.plan {
            // Reads everything again, including the requests without an answer.
            self.read_all();
        }
    }

    fn token(&self, kind: u64) -> Token {
        Token(self.connection * KINDS + kind)
    }

    fn receive(&mut self) {
        if let Some(socket) = self.socket {
            let bufs = self.reader.lend();
            self.driver.submit(self.token(RECEIVE), Op::Recv { socket, bufs });
        }
    }

    fn flush(&mut self) {
        if let (Some(socket), false, false) = (self.socket, self.sending, self.out.is_empty()) {
            self.sending = true;
            let bufs = std::mem::take(&mut self.out);
            self.driver.submit(self.token(SEND), Op::Send { socket, bufs });
        }
    }

    fn parse(&mut self, shared: &mut Shared) {
        loop {
            let arrived = self.reader.peek().len();
            match self.state {
                ClientState::Greeting if arrived >= 18 => {
                    self.reader.consume(18);
                    // Fixed newstyle without zeroes; then EXPORT_NAME.
                    let mut bytes = 3u32.to_be_bytes().to_vec();
                    bytes.extend(b"IHAVEOPT");
                    bytes.extend(1u32.to_be_bytes());
                    bytes.extend((self.target.export.len() as u32).to_be_bytes());
                    bytes.extend(self.target.export.as_bytes());
                    self.out.push(bytes.into());
                    self.state = ClientState::Exporting;
                }
                ClientState::Exporting if arrived >= 10 => {
                    let size_bytes = (&self.reader.peek()[..8]).get_u64();
                    if let Some(blocks) = self.grows_to {
                        self.target.blocks = blocks.min(size_bytes / BLOCK_BYTES as u64);
                        self.target.region = 0..self.target.blocks;
                    }
                    self.reader.consume(10);
                    self.state = ClientState::Ready;
                }
                ClientState::Ready if arrived >= 16 => {
                    if !self.reply(shared) {
                        return;
                    }
                }
                _ => return,
            }
        }
    }

    /// Takes one simple reply; false until its payload has arrived.
    fn reply(&mut self, shared: &mut Shared) -> bool {
        let mut head = &self.reader.peek()[..16];
        assert_eq!(head.get_u32(), 0x6744_6698, "a simple reply");
        let (error, cookie) = (head.get_u32(), head.get_u64());
        let request = self.requests.get(&cookie).expect("an answer to a request in flight");
        let payload_bytes = match (&request.what, error) {
            (What::Read, 0) => request.registers as usize * HALF_BYTES,
            _ => 0,
        };
        if self.reader.peek().len() < 16 + payload_bytes {
            return false;
        }
        let request = self.requests.remove(&cookie).expect("just found");
        self.answers += 1;
        let now = self.driver.now();
        self.slowest = self.slowest.max(now.since(request.invoked));
        self.ended(request, error, now, shared);
        self.reader.consume(16 + payload_bytes);
        true
    }

    /// A request has ended; the payload of a read follows the head of the reply.
    fn ended(&mut self, request: InFlight, error: u32, now: Mono, shared: &mut Shared) {
        if error != 0 {
            self.is_refused |= error == NOT_PERMITTED;
            if request.is_step {
                self.has_failed = true;
                self.steps.clear();
            }
            let full = self.target.may_be_full && error == NO_SPACE;
            let full = full && request.what.writes();
            shared.full += u64::from(full);
            let lost = self.target.may_be_lost && error == IO_ERROR;
            let refused = self.target.read_only && request.what.writes();
            let fenced = (self.may_be_fenced || refused) && error == NOT_PERMITTED;
            shared.fenced += u64::from(fenced && self.may_be_fenced);
            let timed_out = self.target.may_time_out && error == IO_ERROR;
            shared.timed_out += u64::from(timed_out);
            self.errors += u64::from(!full && !lost && !fenced && !timed_out);
            if let (true, Plan::ReadAll { .. }) = (timed_out, self.plan) {
                // It is asked for again, like everything else.
                self.read_all();
            }
            return;
        }
        if !matches!(request.what, What::Flush) {
            shared.history.succeeded(self.writer(), request.invoked);
        }
        // A read-only client has written something.
        self.errors += u64::from(self.target.read_only && request.what.writes());
        let first = self.target.first_register + request.first;
        let history = &mut shared.history;
        if request.is_step {
            self.steps.pop_front();
            self.stepped.push(match &request.what {
                What::Write(values) => values[0],
                _ => (&self.reader.peek()[16..]).get_u64(),
            });
        }
        match request.what {
            What::Write(values) => {
                for (register, value) in (first..).zip(values) {
                    history.acknowledged(register, value, now);
                }
            }
            What::Zero(numbers) | What::Trim(numbers) => {
                for (register, number) in (first..).zip(numbers) {
                    history.zeroed(register, number, now);
                }
            }
            What::Flush => {}
            What::Read => {
                let halves = self.reader.peek()[16..].chunks(HALF_BYTES);
                let registers = first..first + request.registers;
                for (register, mut half) in registers.zip(halves) {
                    history.read(register, half.get_u64(), request.invoked, now);
                }
            }
        }
    }

    fn invoke(&mut self, rng: &mut Rng, shared: &mut Shared) {
        let rest_ns = self.target.load.rest.as_nanos() as u64;
        if self.plan == Plan::Mixed && rest_ns > 0 {
            let now = self.driver.now();
            if now < self.rests_until {
                return;
            }
            self.rests_until = now + Duration::from_nanos(rng.below(2 * rest_ns));
        }
        while self.requests.len() < self.target.load.depth {
            match self.plan {
                Plan::Done | Plan::Closed => return,
                Plan::Steps => {
                    let Some(step) = self.steps.front().filter(|_| self.is_quiet()) else { return };
                    match *step {
                        Step::Read(block) => self.request(block * 2, 2, What::Read),
                        Step::Write(block) => {
                            self.write(block * 2, 2, shared);
                            // The first of the two that it has just sent.
                            self.written.push(shared.values - 1);
                        }
                    }
                    let sent = self.requests.get_mut(&self.next_cookie);
                    sent.expect("just sent").is_step = true;
                }
                Plan::ReadAll { next_block } => {
                    let blocks = if self.target.load.sweeps { SWEEP_READS } else { 1 };
                    let end = self.target.region.end.min(next_block + blocks);
                    self.request(next_block * 2, (end - next_block) * 2, What::Read);
                    self.plan = match end < self.target.region.end {
                        true => Plan::ReadAll { next_block: end },
                        false => Plan::Done,
                    };
                }
                Plan::Mixed if shared.requests_left == Some(0) => return,
                Plan::Mixed => {
                    shared.requests += 1;
                    shared.requests_left = shared.requests_left.map(|left| left - 1);
                    self.invoke_random(rng, shared);
                }
            }
        }
    }

    fn invoke_random(&mut self, rng: &mut Rng, shared: &mut Shared) {
        let Target { blocks, load, half, .. } = self.target;
        if load.sweeps && !rng.one_in(SWEEP_BREAKS_ONE_IN) {
            return self.sweep(shared);
        }
        let is_read = !rng.one_in(load.writes_one_in);
        let region = self.target.region.clone();
        let region = if is_read { 0..blocks } else { region };
        let block = self.some_block(rng, region.clone());
        if let (false, Some(half)) = (is_read, half) {
            return self.write(block * 2 + half, 1, shared);
        }
        let kind = if load.mostly_large && rng.one_in(2) { 2 } else { rng.below(8) };
        let (first, registers) = match kind {
            // One half of a block.
            0 | 1 => (block * 2 + rng.below(2), 1),
            // Whole extents, if there are any: these use a WAL bypass.
            2 if !is_read
                && let Some(whole) =
                    self.whole_extents(block, 1 + rng.below(load.large_extents)) =>
            {
                (whole.start * 2, (whole.end - whole.start) * 2)
            }
            _ => (block * 2, 2 * (1 + rng.below(BLOCKS_MAX.min(region.end - block)))),
        };
        if is_read {
            return self.request(first, registers, What::Read);
        }
        match rng.below(16) {
            0 => self.request(0, 0, What::Flush),
            1 | 2 => self.zero(rng, first, registers, &mut shared.history),
            _ => self.write(first, registers, shared),
        }
    }

    /// Writes everything, shard by shard, and then discards it, shard by shard.
    fn sweep(&mut self, shared: &mut Shared) {
        let Target { blocks, blocks_per_shard, .. } = self.target;
        if self.swept < blocks {
            let left = blocks_per_shard - self.swept % blocks_per_shard;
            let count = SWEEP_BLOCKS.min(left);
            self.write(self.swept * 2, count * 2, shared);
            self.swept += count;
            return;
        }
        let first = self.swept - blocks;
        self.discard(first * 2, blocks_per_shard * 2, &mut shared.history);
        self.swept += blocks_per_shard;
        if self.swept >= 2 * blocks {
            self.swept = 0;
        }
    }

    fn discard(&mut self, first: u64, registers: u64, history: &mut History) {
        let (line, now) = (self.writer() << WRITER_SHIFT, self.driver.now());
        let from = self.target.first_register + first;
        let zeroed = from..from + registers;
        let numbers = zeroed.map(|register| history.zeroing(register, line, now));
        let what = What::Trim(numbers.collect());
        self.request(first, registers, what);
    }

    fn some_block(&mut self, rng: &mut Rng, region: Range<u64>) -> u64 {
        if rng.one_in(HOT_MOVES_ONE_IN) {
            self.hot = rng.below(self.target.blocks);
        }
        let hot_len = (self.target.blocks / HOT_PART).max(1);
        let hot = self.hot.max(region.start)..(self.hot + hot_len).min(region.end);
        match self.target.load.is_hot && !hot.is_empty() && !rng.one_in(COLD_ONE_IN) {
            true => rng.between(hot.start, hot.end),
            false => rng.between(region.start, region.end),
        }
    }

    fn write(&mut self, first: u64, registers: u64, shared: &mut Shared) {
        let (line, now) = (self.line_id(), self.driver.now());
        let registers_written = self.target.first_register + first..;
        let written = registers_written.take(registers as usize).map(|register| {
            shared.values += 1;
            shared.history.writing(register, shared.values, line, now);
            shared.values
        });
        let what = What::Write(written.collect());
        self.request(first, registers, what);
    }

    fn zero(&mut self, rng: &mut Rng, first: u64, registers: u64, history: &mut History) {
        let (line, now) = (self.writer() << WRITER_SHIFT, self.driver.now());
        let from = self.target.first_register + first;
        let zeroed = from..from + registers;
        let numbers = zeroed.map(|register| history.zeroing(register, line, now)).collect();
        // Trims zero parts of blocks, too.
        let whole = first.is_multiple_of(2) && registers.is_multiple_of(2);
        let trims = if whole { rng.one_in(2) } else { first.is_multiple_of(3) };
        let what = match trims {
            true => What::Trim(numbers),
            false => What::Zero(numbers),
        };
        self.request(first, registers, what);
    }

    /// A line that no other client of the run has. It continues over a new connection if the pod
    /// knows that the earlier ones have ended.
    fn line_id(&mut self) -> u64 {
        let driver = &self.driver;
        if self.target.is_one_line {
            self.ended.clear();
        } else if self.ended.drain(..).any(|socket| !driver.has_hung_up(socket)) {
            self.line += 1;
        }
        ((driver.host as u64) << WRITER_SHIFT) | self.line
    }

    /// Up to this many whole extents around or before a block, within the writable region.
    fn whole_extents(&self, block: u64, extents: u64) -> Option<Range<u64>> {
        let extent = u64::from(BLOCKS_PER_EXTENT);
        let Target { region, blocks_per_shard, .. } = &self.target;
        let in_shard = block % blocks_per_shard;
        let first = block - in_shard % extent;
        let shard_end = block - in_shard + blocks_per_shard;
        let most = shard_end.min(region.end).saturating_sub(first) / extent;
        let end = first + extents.min(most) * extent;
        (first >= region.start && end > first).then_some(first..end)
    }

    fn request(&mut self, first: u64, registers: u64, what: What) {
        self.next_cookie += 1;
        let payload_bytes = match &what {
            What::Write(values) => values.len() * HALF_BYTES,
            _ => 0,
        };
        let mut bytes = Vec::with_capacity(HEAD_BYTES + payload_bytes);
        bytes.extend(0x2560_9513u32.to_be_bytes());
        bytes.extend(0u16.to_be_bytes());
        bytes.extend(what.command().to_be_bytes());
        bytes.extend(self.next_cookie.to_be_bytes());
        bytes.extend((first * HALF_BYTES as u64).to_be_bytes());
        bytes.extend((registers as u32 * HALF_BYTES as u32).to_be_bytes());
        if let What::Write(values) = &what {
            for value in values {
                bytes.extend(value.to_be_bytes());
                bytes.resize(bytes.len() + HALF_BYTES - 8, *value as u8);
            }
        }
        self.out.push(bytes.into());
        let invoked = self.driver.now();
        let is_step = false;
        let request = InFlight { first, registers, what, invoked, is_step };
        self.requests.insert(self.next_cookie, request);
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let connected = if matches!(self.state, ClientState::Ready) { "" } else { "not " };
        write!(f, "{connected}connected, {} requests in flight", self.requests.len())?;
        match self.requests.values().next() {
            None => Ok(()),
            Some(first) => write!(f, ", one of them of block {}", first.first / 2),
        }
    }
}
