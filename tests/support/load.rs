//! A client that writes, and reads again what it wrote, until it is stopped. It connects again
//! when its connection ends, and repeats what had no answer. An error as the answer fails the test.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use holdfast::types::mix64;

use super::fleet::Front;
use super::nbd::{Client, NbdError};
use super::tools::noise;
use super::wait_until;

/// What is written at a time.
const PIECE: usize = 16 << 10;

/// The seed of the content of each piece that was acknowledged.
pub type Written = BTreeMap<u64, u64>;

/// What a load has done.
#[derive(Debug)]
pub struct Done {
    pub written: Written,
    /// Connections after the first one.
    pub reconnects: u64,
    pub longest_pause: Duration,
}

/// A running load.
pub struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    thread: JoinHandle<Done>,
}

impl Load {
    /// Uses the first `len_bytes` of an export. Nobody else may write there.
    pub fn start(front: Front, export: &str, len_bytes: u64) -> Load {
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut worker = Worker {
            client: front.connect_soon(export),
            front,
            export: export.to_owned(),
            pieces: len_bytes / PIECE as u64,
            stop: stop.clone(),
            acknowledged: acknowledged.clone(),
            done: Done { written: Written::new(), reconnects: 0, longest_pause: Duration::ZERO },
        };
        let thread = thread::spawn(move || {
            worker.work();
            worker.done
        });
        Load { stop, acknowledged, thread }
    }

    /// Waits until writes that were sent from now on are acknowledged.
    pub fn wait_progress(&self) {
        let before = self.acknowledged.load(Ordering::SeqCst);
        wait_until("writes go on", || {
            assert!(!self.thread.is_finished(), "a client saw an error");
            self.acknowledged.load(Ordering::SeqCst) > before + 1
        });
    }

    pub fn end(self) -> Done {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().expect("no request fails, and no data is lost")
    }
}

struct Worker {
    client: Client,
    front: Front,
    export: String,
    pieces: u64,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    done: Done,
}

impl Worker {
    fn work(&mut self) {
        let mut number = 0;
        while !self.stop.load(Ordering::SeqCst) {
            number += 1;
            let piece = mix64(number) % self.pieces;
            let content = noise(number, PIECE);
            self.until_done(|client| client.write(piece * PIECE as u64, &content));
            self.done.written.insert(piece, number);
            self.acknowledged.fetch_add(1, Ordering::SeqCst);
            let looked_at = mix64(number ^ 1 << 63) % self.pieces;
            if let Some(seed) = self.done.written.get(&looked_at).copied() {
                let read = self.until_done(|client| client.read(looked_at * PIECE as u64, PIECE));
                assert!(read == noise(seed, PIECE), "piece {looked_at} is not what was written");
            }
        }
    }

    /// Repeats a request until it has an answer.
    fn until_done<T>(&mut self, mut ask: impl FnMut(&mut Client) -> Result<T, NbdError>) -> T {
        let began = Instant::now();
        loop {
            match ask(&mut self.client) {
                Ok(answer) => {
                    self.done.longest_pause = self.done.longest_pause.max(began.elapsed());
                    return answer;
                }
                Err(NbdError::Server(error)) => panic!("a request failed with error {error}"),
                Err(NbdError::Connection(_)) => {
                    self.client = self.front.connect_soon(&self.export);
                    self.done.reconnects += 1;
                }
            }
        }
    }
}

/// Checks that a volume has all that was acknowledged.
pub fn verify(client: &mut Client, written: &Written) {
    for (piece, seed) in written {
        let read = client.read(piece * PIECE as u64, PIECE).expect("a read succeeds");
        assert!(read == noise(*seed, PIECE), "piece {piece} is not what was acknowledged");
    }
}
