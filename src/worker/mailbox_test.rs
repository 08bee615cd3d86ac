//! Every interleaving of the mailbox, with loom's primitives in place of std's.

mod sync {
    pub use loom::sync::{Arc, Mutex, MutexGuard};
}

#[path = "mailbox.rs"]
mod checked;

use checked::{Full, mailbox};
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::sync::{Arc, Notify};

/// Every interleaving with at most three forced switches: what loom's authors found enough.
fn bounded(test: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(test);
}

#[test]
fn no_message_is_left_with_a_sleeping_receiver() {
    bounded(|| {
        let event = Arc::new(Notify::new());
        let wake = Arc::clone(&event);
        let (sender, receiver) = mailbox(4, std::sync::Arc::new(move || wake.notify()));
        let sent = Arc::new(AtomicUsize::new(0));
        let senders: Vec<_> = (0..2)
            .map(|number| {
                let (sender, sent) = (sender.clone(), Arc::clone(&sent));
                loom::thread::spawn(move || {
                    sender.send(number).unwrap();
                    sent.fetch_add(1, Ordering::SeqCst);
                })
            })
            .collect();
        let mut got = Vec::new();
        while got.len() < 2 {
            got.extend(receiver.receive());
            if got.len() < 2 && receiver.park() {
                event.wait();
                receiver.unpark();
            }
        }
        got.sort_unstable();
        assert_eq!(got, [0, 1]);
        for sender in senders {
            sender.join().unwrap();
        }
    });
}

#[test]
fn a_full_mailbox_gives_the_message_back() {
    bounded(|| {
        let (sender, receiver) = mailbox(1, std::sync::Arc::new(|| {}));
        sender.send(1).unwrap();
        assert_eq!(sender.send(2), Err(Full(2)));
        assert_eq!(receiver.receive(), Some(1));
        sender.send(3).unwrap();
    });
}
