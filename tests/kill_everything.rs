//! `kill -9` of every process at once while clients write and clear small and large, aligned and
//! unaligned ranges. Afterwards every block holds its last acknowledged content; of a write in
//! flight, each block holds all or nothing.

mod support;

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use holdfast::sim::rng::Rng;
use support::nbd::{Client, NbdError};
use support::tools::noise;
use support::{Cluster, PODS, Setup, wait_until};

const WRITERS: u64 = 6;
const REGION: usize = 24 << 20;
const BLOCK: usize = 4096;
const EXTENT: usize = 64 << 10;
const ROUNDS: u64 = 4;
/// At least this many requests are answered before all processes are killed.
const ANSWERS: u64 = 300;

/// A client with its own part of the volume.
struct Writer {
    number: u64,
    random: Rng,
    /// Content of the part, by the answered requests.
    expected: Vec<u8>,
    /// The request without an answer: offset in the part, and bytes.
    in_flight: Option<(usize, Vec<u8>)>,
}

impl Writer {
    fn new(number: u64) -> Writer {
        let (expected, in_flight) = (vec![0; REGION], None);
        Writer { number, random: Rng::new(number), expected, in_flight }
    }

    fn offset(&self) -> u64 {
        self.number * REGION as u64
    }

    fn pod(&self, round: u64) -> usize {
        1 + ((self.number + round) % PODS as u64) as usize
    }

    /// Place of the next request. Large ones are whole extents, which bypass the WAL.
    fn next_range(&mut self) -> (usize, usize) {
        let (unit, units) = match self.random.index(4) {
            0 => (EXTENT, 4 + self.random.index(28)),
            1 => (512, 1 + self.random.index(40)),
            _ => (BLOCK, 1 + self.random.index(8)),
        };
        (self.random.index(REGION / unit - units) * unit, units * unit)
    }

    /// Writes until the connection ends.
    fn run(&mut self, mut client: Client, answers: &AtomicU64) {
        loop {
            let (at, len) = self.next_range();
            let zeroes = self.random.below(10) == 0;
            let bytes = if zeroes { vec![0; len] } else { noise(self.random.next(), len) };
            let offset = self.offset() + at as u64;
            let (_, sent) = self.in_flight.insert((at, bytes));
            let result = match zeroes {
                true => client.write_zeroes(offset, len as u32),
                false => client.write(offset, sent),
            };
            match result {
                Ok(()) => {
                    let (at, bytes) = self.in_flight.take().expect("just sent");
                    self.expected[at..at + len].copy_from_slice(&bytes);
                    answers.fetch_add(1, Ordering::Relaxed);
                }
                Err(NbdError::Server(error)) => panic!("a request was refused: {error}"),
                Err(_) => return,
            }
        }
    }

    /// Compares every block with its allowed contents, and remembers the one found.
    fn check(&mut self, client: &mut Client) {
        let mut other = self.expected.clone();
        if let Some((at, bytes)) = self.in_flight.take() {
            other[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        for start in (0..REGION).step_by(1 << 20) {
            let read = client.read(self.offset() + start as u64, 1 << 20).expect("read");
            for (position, block) in read.chunks(BLOCK).enumerate() {
                let at = start + position * BLOCK;
                let expected = &mut self.expected[at..at + BLOCK];
                let either = block == &*expected || block == &other[at..at + BLOCK];
                assert!(either, "writer {}, block at {at} of its part", self.number);
                expected.copy_from_slice(block);
            }
        }
    }
}

fn write_and_kill(cluster: &mut Cluster, writers: &mut [Writer], round: u64) {
    let answers = AtomicU64::new(0);
    thread::scope(|scope| {
        for writer in writers.iter_mut() {
            let client = cluster.connect(writer.pod(round), "demo");
            scope.spawn(|| writer.run(client, &answers));
        }
        let enough = ANSWERS * (1 + round % 2);
        wait_until("enough was answered", || answers.load(Ordering::Relaxed) >= enough);
        cluster.kill_everything();
    });
}

#[test]
fn what_was_acknowledged_is_there_after_everything_was_killed_at_once() {
    let mut cluster =
        Setup::new("kill_all").disk_sizes("1GiB", "64MiB").volume("demo", "256MiB").start();
    let mut writers: Vec<Writer> = (0..WRITERS).map(Writer::new).collect();
    for round in 0..ROUNDS {
        write_and_kill(&mut cluster, &mut writers, round);
        cluster.start_again();
        let pod = 1 + (round as usize) % PODS;
        cluster.wait_serving(pod);
        let mut client = cluster.connect(pod, "demo");
        for writer in &mut writers {
            writer.check(&mut client);
        }
        for pod in 1..=PODS {
            cluster.wait_serving(pod);
        }
    }
}
