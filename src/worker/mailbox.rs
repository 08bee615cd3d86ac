//! A bounded queue into a worker from any thread. The receiver is woken by a system call only
//! when it is parked; otherwise it finds the message at the end of its round.
//!
//! The dance that loses no wake-up: the sender pushes, then looks at `parked`; the receiver sets
//! `parked`, then looks at the queue. One of them sees the other. `tests` checks every
//! interleaving with loom, over this very file (`sync` is std's or loom's).

use std::collections::VecDeque;

use super::sync::{Arc, AtomicBool, Mutex, Ordering};

/// The queue was full; the message comes back.
#[derive(Debug, PartialEq, Eq)]
pub struct Full<T>(pub T);

struct Shared<T> {
    queue: Mutex<VecDeque<T>>,
    parked: AtomicBool,
    capacity: usize,
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
    let shared = Arc::new(Shared {
        queue: Mutex::new(VecDeque::new()),
        parked: AtomicBool::new(false),
        capacity,
    });
    (Sender { shared: Arc::clone(&shared), wake }, Receiver { shared })
}

impl<T> Sender<T> {
    /// Queues a message and wakes the receiver if it sleeps.
    pub fn send(&self, message: T) -> Result<(), Full<T>> {
        {
            // A panic while the lock was held leaves a whole queue behind: go on.
            let mut queue = match self.shared.queue.lock() {
                Ok(queue) => queue,
                Err(poisoned) => poisoned.into_inner(),
            };
            if queue.len() >= self.shared.capacity {
                return Err(Full(message));
            }
            queue.push_back(message);
        }
        if self.shared.parked.swap(false, Ordering::SeqCst) {
            (self.wake)();
        }
        Ok(())
    }
}

impl<T> Receiver<T> {
    /// The oldest message.
    pub fn receive(&self) -> Option<T> {
        match self.shared.queue.lock() {
            Ok(mut queue) => queue.pop_front(),
            Err(poisoned) => poisoned.into_inner().pop_front(),
        }
    }

    /// Announces that the receiver is about to wait. False: a message has come, do not wait.
    pub fn park(&self) -> bool {
        self.shared.parked.store(true, Ordering::SeqCst);
        let empty = match self.shared.queue.lock() {
            Ok(queue) => queue.is_empty(),
            Err(poisoned) => poisoned.into_inner().is_empty(),
        };
        if !empty {
            self.shared.parked.store(false, Ordering::SeqCst);
        }
        empty
    }

    /// The receiver is awake: senders need not wake it.
    pub fn unpark(&self) {
        self.shared.parked.store(false, Ordering::SeqCst);
    }
}
