//! The load: one thread per connection, each with its share of the requests in flight.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, anyhow};
use hdrhistogram::Histogram;

use crate::cli::bench::nbd::{Connection, Target};
use crate::cli::bench::pattern::{Pattern, Requests};
use crate::cli::output;
use crate::types::mix64;

/// How long to wait for answers after the last request.
const DRAIN: Duration = Duration::from_secs(10);
/// How often an idle thread checks whether it has to stop.
const LOOK: Duration = Duration::from_millis(100);
/// Most bytes of queued requests, so that the memory for large ones is bounded.
const QUEUE_BYTES: usize = 1 << 20;

/// The load to put on a volume.
#[derive(Clone, Debug)]
pub struct Workload {
    pub target: Target,
    pub export: String,
    pub pattern: Pattern,
    pub read_percent: u32,
    pub block_bytes: u32,
    pub depth: u32,
    pub connections: u32,
    pub time: Duration,
}

/// The results of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Latencies of successful answers, in nanoseconds.
    pub reads: Histogram<u64>,
    pub writes: Histogram<u64>,
    pub block_bytes: u32,
    /// From the first request to the last answer.
    pub took: Duration,
    /// Requests answered with an error.
    pub errors: u64,
    /// Requests without an answer: their connection broke, or the run ended first.
    pub unanswered: u64,
    /// Connections that were made again.
    pub reconnects: u64,
}

impl Outcome {
    pub fn new(block_bytes: u32) -> Outcome {
        let histogram = || Histogram::new(3).expect("three digits are supported");
        Outcome {
            reads: histogram(),
            writes: histogram(),
            block_bytes,
            took: Duration::ZERO,
            errors: 0,
            unanswered: 0,
            reconnects: 0,
        }
    }

    fn add(&mut self, other: &Outcome) {
        for (all, part) in [(&mut self.reads, &other.reads), (&mut self.writes, &other.writes)] {
            all.add(part).expect("these histograms grow as needed");
        }
        self.took = self.took.max(other.took);
        self.errors += other.errors;
        self.unanswered += other.unanswered;
        self.reconnects += other.reconnects;
    }
}

impl Workload {
    /// Runs until the time is up or `stop` is set. Fails when the volume cannot be reached at the
    /// start. Later failures are counted, and the connection is made again.
    pub fn run(&self, stop: &AtomicBool) -> anyhow::Result<Outcome> {
        let connect = |_| Connection::open(&self.target, &self.export);
        let connections: Vec<Connection> =
            (0..self.connections).map(connect).collect::<Result<_, _>>()?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let seed = now.as_nanos() as u64;
        let start = Instant::now();
        let mut threads = Vec::new();
        for (number, connection) in (0..).zip(connections) {
            let size = (connection.size_bytes, self.block_bytes);
            let place = (number, self.connections);
            let requests = Requests::new(self.pattern, self.read_percent, size, place, seed)
                .with_context(|| format!("volume {} needs a block per connection", self.export))?;
            // The first connections get one more each.
            let surplus = u32::from(number < self.depth % self.connections);
            let share = self.depth / self.connections + surplus;
            threads.push(Thread::new(self, connection, requests, share, start));
        }
        let mut all = Outcome::new(self.block_bytes);
        thread::scope(|scope| {
            let running: Vec<_> =
                threads.into_iter().map(|thread| scope.spawn(|| thread.run(stop))).collect();
            for thread in running {
                all.add(&thread.join().map_err(|_| anyhow!("a thread panicked"))?);
            }
            anyhow::Ok(())
        })?;
        Ok(all)
    }
}

/// A request in flight.
#[derive(Clone, Copy)]
struct Pending {
    since: Instant,
    is_write: bool,
}

struct Thread<'a> {
    load: &'a Workload,
    /// `None`: it broke and will be made again.
    connection: Option<Connection>,
    requests: Requests,
    /// Indexed by cookie; `free` lists the free ones.
    pending: Vec<Option<Pending>>,
    free: Vec<u64>,
    noise: Vec<u8>,
    start: Instant,
    outcome: Outcome,
}

impl<'a> Thread<'a> {
    fn new(
        load: &'a Workload,
        connection: Connection,
        requests: Requests,
        depth: u32,
        start: Instant,
    ) -> Thread<'a> {
        let words = (0..u64::from(load.block_bytes) / 8).flat_map(|at| mix64(at).to_le_bytes());
        Thread {
            load,
            connection: Some(connection),
            requests,
            pending: vec![None; depth as usize],
            free: (0..u64::from(depth)).collect(),
            noise: words.collect(),
            start,
            outcome: Outcome::new(load.block_bytes),
        }
    }

    fn run(mut self, stop: &AtomicBool) -> Outcome {
        let until = self.start + self.load.time;
        let mut answers = Vec::new();
        let mut drain_until = None;
        loop {
            let now = Instant::now();
            let ending = now >= until || stop.load(Ordering::Relaxed);
            if ending {
                let is_idle = self.free.len() == self.pending.len();
                let drain_until = *drain_until.get_or_insert(now + DRAIN);
                if is_idle || self.connection.is_none() || now >= drain_until {
                    break;
                }
            }
            let Some(connection) = &mut self.connection else {
                self.connect();
                continue;
            };
            if !ending {
                while connection.queued() < QUEUE_BYTES
                    && let Some(cookie) = self.free.pop()
                {
                    let next = self.requests.next().expect("the sequence is endless");
                    let pending = Pending { since: Instant::now(), is_write: next.is_write };
                    self.pending[cookie as usize] = Some(pending);
                    // Every block differs, so that neither compression nor deduplication helps.
                    self.noise[..8].copy_from_slice(&mix64(next.offset ^ cookie).to_le_bytes());
                    match next.is_write {
                        true => connection.write(cookie, next.offset, &self.noise),
                        false => connection.read(cookie, next.offset, self.load.block_bytes),
                    }
                }
            }
            let length = self.load.block_bytes as usize;
            let pending = &self.pending;
            let read_bytes = |cookie: u64| {
                let found = pending.get(usize::try_from(cookie).ok()?)?.as_ref()?;
                Some(if found.is_write { 0 } else { length })
            };
            let result =
                connection.wait(LOOK).and_then(|()| connection.receive(read_bytes, &mut answers));
            for answer in answers.drain(..) {
                self.answered(answer.cookie, answer.error);
            }
            if let Err(error) = result {
                output::note(&format!("a connection to {} broke: {error:#}", self.load.target));
                self.broken();
            }
        }
        self.outcome.unanswered += (self.pending.len() - self.free.len()) as u64;
        self.outcome
    }

    fn answered(&mut self, cookie: u64, error: u32) {
        let now = Instant::now();
        let pending = self.pending[cookie as usize].take().expect("the connection has looked");
        self.free.push(cookie);
        self.outcome.took = now - self.start;
        if error != 0 {
            self.outcome.errors += 1;
            return;
        }
        let nanos = u64::try_from((now - pending.since).as_nanos()).unwrap_or(u64::MAX);
        match pending.is_write {
            true => self.outcome.writes.saturating_record(nanos.max(1)),
            false => self.outcome.reads.saturating_record(nanos.max(1)),
        }
    }

    /// Counts the requests in flight of a broken connection: their outcome is unknown.
    fn broken(&mut self) {
        self.connection = None;
        self.outcome.unanswered += (self.pending.len() - self.free.len()) as u64;
        self.pending.fill(None);
        self.free = (0..self.pending.len() as u64).collect();
    }

    fn connect(&mut self) {
        match Connection::open(&self.load.target, &self.load.export) {
            Ok(connection) => {
                self.connection = Some(connection);
                self.outcome.reconnects += 1;
            }
            Err(_) => thread::sleep(LOOK),
        }
    }
}
