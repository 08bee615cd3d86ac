//! A bounded queue into a worker from any thread. The receiver is woken by a system call only when
//! it is parked; otherwise it finds the message at the end of its round.
//!
//! One lock guards both the queue and the parked flag. So a sender either comes before the receiver
//! looks, or sees it parked. `mailbox_test` checks every interleaving of this file with loom.

use std::collections::VecDeque;

use super::sync::{Arc, Mutex, MutexGuard};

/// The queue was full; the message comes back.
#[derive(Debug, PartialEq, Eq)]
pub struct Full<T>(pub T);

struct Shared<T> {
    state: Mutex<Queue<T>>,
    capacity: usize,
}

struct Queue<T> {
    queue: VecDeque<T>,
    /// The receiver waits, or is about to.
    parked: bool,
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, Queue<T>> {
        // A panic while the lock was held leaves an intact queue behind: go on.
        match self.state.lock() {
            Ok(state) => state,
            Err(poisoned) => poisoned.into_inner(),
        }
    }
}

/// Wakes the receiver's thread.
pub type Wake = std::sync::Arc<dyn Fn() + Send + Sync>;

/// The sending end. Clones share the queue.
pub struct Sender<T> {
    shared: Arc<Shared<T>>,
    wake: Wake,
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Sender { shared: Arc::clone(&self.shared), wake: Wake::clone(&self.wake) }
    }
}

/// The receiving end, owned by the worker.
pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
}

/// A mailbox of at most `capacity` messages whose receiver is woken by `wake`.
pub fn mailbox<T>(capacity: usize, wake: Wake) -> (Sender<T>, Receiver<T>) {
    let state = Mutex::new(Queue { queue: VecDeque::new(), parked: false });
    let shared = Arc::new(Shared { state, capacity });
    (Sender { shared: Arc::clone(&shared), wake }, Receiver { shared })
}

impl<T> Sender<T> {
    /// Queues a message and wakes the receiver if it sleeps.
    pub fn send(&self, message: T) -> Result<(), Full<T>> {
        let was_parked = {
            let mut state = self.shared.lock();
            if state.queue.len() >= self.shared.capacity {
                return Err(Full(message));
            }
            state.queue.push_back(message);
            std::mem::take(&mut state.parked)
        };
        if was_parked {
            (self.wake)();
        }
        Ok(())
    }
}

impl<T> Receiver<T> {
    /// The oldest message.
    pub fn receive(&self) -> Option<T> {
        self.shared.lock().queue.pop_front()
    }

    /// Announces that the receiver is about to wait. False: a message has come, do not wait.
    pub fn park(&self) -> bool {
        let mut state = self.shared.lock();
        state.parked = state.queue.is_empty();
        state.parked
    }

    /// The receiver is awake: senders need not wake it. Returns how many messages there are.
    pub fn unpark(&self) -> usize {
        let mut state = self.shared.lock();
        state.parked = false;
        state.queue.len()
    }
}
