//! Metrics of the data path. The worker counts requests and stages as they happen, and sets all
//! others once a second. Only its thread writes them, but for `disks`, which are added at start.

use std::array::from_fn;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::telemetry::metrics::list;
use crate::telemetry::metrics::numbers::{Histogram, Number};
use crate::telemetry::metrics::{Samples, Source};

/// Defines an enum whose values are places in an array, with the word for each in a label.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($value:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($value),+ }

        impl $name {
            pub const WORDS: &'static [&'static str] = &[$($word),+];
        }
    };
}

words!(
    /// What an NBD client asks for.
    Operation {
        Read = "read",
        Write = "write",
        Zero = "zero",
        Trim = "trim",
        Flush = "flush",
        Status = "status",
    }
);

words!(
    /// What it is answered.
    Outcome {
        Ok = "ok",
        Fenced = "fenced",
        OutOfRange = "out_of_range",
        ReadOnly = "read_only",
        NoSpace = "no_space",
        MediaFault = "media_fault",
        NoSuchVolume = "no_such_volume",
        Invalid = "invalid",
        TimedOut = "timed_out",
        Retry = "retry",
    }
);

words!(
    /// A stage of a write at the leader; see the metric.
    WriteStage {
        Queued = "queued",
        Logged = "logged",
        Committed = "committed",
        Answered = "answered",
    }
);

words!(
    /// A stage of a read at the leader; see the metric.
    ReadStage { Leased = "leased", Asked = "asked", Stored = "stored", Answered = "answered" }
);

words!(
    /// What a queue is bounded by.
    Budget { Connection = "connection", Volume = "volume", Shard = "shard", Link = "link" }
);

words!(
    /// The state of a replica.
    Replica {
        Leader = "leader",
        Follower = "follower",
        Resyncing = "resyncing",
        Faulted = "faulted",
        Orphan = "orphan",
    }
);

words!(
    /// What a link is for.
    LinkPurpose { Data = "data", Resync = "resync" }
);

/// A number for each word.
type By<const WORDS: usize> = [Number; WORDS];

/// Requests of NBD clients.
pub struct Nbd {
    pub connections: Number,
    requests: [By<{ Outcome::WORDS.len() }>; Operation::WORDS.len()],
    durations: [Histogram; Operation::WORDS.len()],
    pub read_bytes: Number,
    pub written_bytes: Number,
}

impl Nbd {
    pub fn answered(&self, operation: Operation, outcome: Outcome, took: std::time::Duration) {
        self.requests[operation as usize][outcome as usize].add(1);
        self.durations[operation as usize].record(took, 1);
    }
}

/// The queues of one budget.
#[derive(Default)]
pub struct Queues {
    pub bytes: Number,
    pub fullest_bytes: Number,
    pub limit_bytes: Number,
}

/// The links of one purpose.
#[derive(Default)]
pub struct Links {
    pub up: Number,
    pub down: Number,
    pub ups: Number,
    pub losses: Number,
}

/// One disk. A disk that could not be opened has only its place.
#[derive(Default)]
pub struct Disk {
    pub disk: String,
    pub path: String,
    /// 0 or 1.
    pub up: Number,
    pub capacity_bytes: Number,
    pub used_bytes: Number,
    pub log_bytes: Number,
    pub log_used_bytes: Number,
    pub dirty_bytes: Number,
    pub overlay_bytes: Number,
    pub log_writes: Histogram,
    pub read_overlay_bytes: Number,
    pub read_slot_bytes: Number,
    pub checksum_errors: Number,
    pub replicas: By<{ Replica::WORDS.len() }>,
    pub resyncs_begun: Number,
}

/// All metrics of one worker.
pub struct DataPath {
    /// Rounds made; the watchdog looks at them too.
    pub rounds: Arc<AtomicU64>,
    pub nbd: Nbd,
    pub write_stages: [Histogram; WriteStage::WORDS.len()],
    pub read_stages: [Histogram; ReadStage::WORDS.len()],
    pub forwarded: Histogram,
    pub volume_requests: Number,
    pub replica_requests: Number,
    pub forwarded_requests: Number,
    pub queues: [Queues; Budget::WORDS.len()],
    pub buffer_bytes: Number,
    pub read_repaired: Number,
    pub read_repairs_failed: Number,
    pub read_repairs_running: Number,
    pub term_changes: Number,
    pub elections_won: Number,
    pub lease_lapses: Number,
    pub resyncs_running: Number,
    pub resyncs_done: Number,
    pub resyncs_failed: Number,
    pub resync_pending_bytes: Number,
    pub resync_fetched_bytes: Number,
    pub links: [Links; LinkPurpose::WORDS.len()],
    pub link_errors: Number,
    pub view_revision: Number,
    disks: Mutex<Vec<Arc<Disk>>>,
}

impl Default for DataPath {
    fn default() -> DataPath {
        let nbd = Nbd {
            connections: Number::default(),
            requests: from_fn(|_| from_fn(|_| Number::default())),
            durations: from_fn(|_| Histogram::default()),
            read_bytes: Number::default(),
            written_bytes: Number::default(),
        };
        DataPath {
            rounds: Arc::default(),
            nbd,
            write_stages: from_fn(|_| Histogram::default()),
            read_stages: from_fn(|_| Histogram::default()),
            forwarded: Histogram::default(),
            volume_requests: Number::default(),
            replica_requests: Number::default(),
            forwarded_requests: Number::default(),
            queues: from_fn(|_| Queues::default()),
            buffer_bytes: Number::default(),
            read_repaired: Number::default(),
            read_repairs_failed: Number::default(),
            read_repairs_running: Number::default(),
            term_changes: Number::default(),
            elections_won: Number::default(),
            lease_lapses: Number::default(),
            resyncs_running: Number::default(),
            resyncs_done: Number::default(),
            resyncs_failed: Number::default(),
            resync_pending_bytes: Number::default(),
            resync_fetched_bytes: Number::default(),
            links: from_fn(|_| Links::default()),
            link_errors: Number::default(),
            view_revision: Number::default(),
            disks: Mutex::default(),
        }
    }
}

impl DataPath {
    /// Why the replicas of this pod are not in step with the others, in words. Replicas that catch
    /// up from the log of their leader are not seen here.
    pub fn out_of_step(&self) -> Vec<String> {
        let mut lags = Vec::new();
        let mut lag = |count: u64, what: &str| {
            if count > 0 {
                lags.push(format!("{count} {what}"));
            }
        };
        let disks = self.disks.lock().unwrap_or_else(PoisonError::into_inner);
        let of_state = |state: Replica| -> u64 {
            disks.iter().map(|disk| disk.replicas[state as usize].get()).sum()
        };
        lag(disks.iter().filter(|disk| disk.up.get() == 0).count() as u64, "disks are not used");
        lag(of_state(Replica::Faulted), "replicas gave up");
        lag(of_state(Replica::Resyncing), "replicas are resynced");
        let down = self.links.iter().map(|links| links.down.get()).sum();
        lag(down, "disks of other pods are not reached");
        lags
    }

    /// Adds a disk, before the worker runs.
    pub fn add_disk(&self, disk: String, path: String) -> Arc<Disk> {
        let disk = Arc::new(Disk { disk, path, ..Disk::default() });
        self.disks.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&disk));
        disk
    }

    pub fn write_stage(&self, stage: WriteStage) -> &Histogram {
        &self.write_stages[stage as usize]
    }

    pub fn read_stage(&self, stage: ReadStage) -> &Histogram {
        &self.read_stages[stage as usize]
    }

    fn collect_clients(&self, into: &mut Samples) {
        let nbd = &self.nbd;
        into.count(&list::NBD_CONNECTIONS, &[], nbd.connections.get());
        for (operation, outcomes) in Operation::WORDS.iter().zip(&nbd.requests) {
            for (outcome, count) in Outcome::WORDS.iter().zip(outcomes) {
                let count = count.get();
                // Most errors never happen.
                if count > 0 || *outcome == "ok" {
                    into.count(&list::NBD_REQUESTS, &[operation, outcome], count);
                }
            }
        }
        for (operation, times) in Operation::WORDS.iter().zip(&nbd.durations) {
            into.histogram(&list::NBD_REQUEST_DURATION, &[operation], times.value());
        }
        into.count(&list::NBD_TRANSFERRED, &["read"], nbd.read_bytes.get());
        into.count(&list::NBD_TRANSFERRED, &["written"], nbd.written_bytes.get());
    }

    fn collect_stages(&self, into: &mut Samples) {
        for (stage, times) in WriteStage::WORDS.iter().zip(&self.write_stages) {
            into.histogram(&list::WRITE_STAGES, &[stage], times.value());
        }
        for (stage, times) in ReadStage::WORDS.iter().zip(&self.read_stages) {
            into.histogram(&list::READ_STAGES, &[stage], times.value());
        }
        into.histogram(&list::FORWARDED, &[], self.forwarded.value());
        for (at, count) in [
            ("volume", &self.volume_requests),
            ("replica", &self.replica_requests),
            ("other_pod", &self.forwarded_requests),
        ] {
            into.count(&list::IN_FLIGHT, &[at], count.get());
        }
        for (budget, queues) in Budget::WORDS.iter().zip(&self.queues) {
            into.count(&list::QUEUE, &[budget], queues.bytes.get());
            into.count(&list::QUEUE_FULLEST, &[budget], queues.fullest_bytes.get());
            into.count(&list::QUEUE_LIMIT, &[budget], queues.limit_bytes.get());
        }
        into.count(&list::BUFFERS, &[], self.buffer_bytes.get());
    }

    fn collect_replicas(&self, into: &mut Samples) {
        for (metric, value) in [
            (&list::READ_REPAIRS_RUNNING, &self.read_repairs_running),
            (&list::TERM_CHANGES, &self.term_changes),
            (&list::ELECTIONS_WON, &self.elections_won),
            (&list::LEASE_LAPSES, &self.lease_lapses),
            (&list::RESYNCS_RUNNING, &self.resyncs_running),
            (&list::RESYNC_PENDING, &self.resync_pending_bytes),
            (&list::RESYNC_FETCHED, &self.resync_fetched_bytes),
            (&list::LINK_ERRORS, &self.link_errors),
            (&list::VIEW_REVISION, &self.view_revision),
        ] {
            into.count(metric, &[], value.get());
        }
        into.count(&list::READ_REPAIRS, &["repaired"], self.read_repaired.get());
        into.count(&list::READ_REPAIRS, &["failed"], self.read_repairs_failed.get());
        into.count(&list::RESYNCS_ENDED, &["done"], self.resyncs_done.get());
        into.count(&list::RESYNCS_ENDED, &["failed"], self.resyncs_failed.get());
        for (purpose, links) in LinkPurpose::WORDS.iter().zip(&self.links) {
            into.count(&list::LINKS, &[purpose, "up"], links.up.get());
            into.count(&list::LINKS, &[purpose, "down"], links.down.get());
            into.count(&list::LINK_UPS, &[purpose], links.ups.get());
            into.count(&list::LINK_LOSSES, &[purpose], links.losses.get());
        }
    }
}

impl Source for DataPath {
    fn collect(&self, into: &mut Samples) {
        into.count(&list::ROUNDS, &[], self.rounds.load(Ordering::Relaxed));
        self.collect_clients(into);
        self.collect_stages(into);
        self.collect_replicas(into);
        for disk in self.disks.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            disk.collect(into);
        }
    }
}

impl Disk {
    fn collect(&self, into: &mut Samples) {
        let id: &str = &self.disk;
        into.count(&list::DISK, &[id, &self.path], 1);
        into.count(&list::DISK_UP, &[id], self.up.get());
        for (metric, value) in [
            (&list::DISK_CAPACITY, &self.capacity_bytes),
            (&list::DISK_USED, &self.used_bytes),
            (&list::LOG_SIZE, &self.log_bytes),
            (&list::LOG_USED, &self.log_used_bytes),
            (&list::DIRTY, &self.dirty_bytes),
            (&list::OVERLAY, &self.overlay_bytes),
            (&list::CHECKSUM_ERRORS, &self.checksum_errors),
            (&list::RESYNCS_BEGUN, &self.resyncs_begun),
        ] {
            into.count(metric, &[id], value.get());
        }
        into.histogram(&list::LOG_WRITES, &[id], self.log_writes.value());
        into.count(&list::DISK_READ, &[id, "overlay"], self.read_overlay_bytes.get());
        into.count(&list::DISK_READ, &[id, "slot"], self.read_slot_bytes.get());
        for (state, count) in Replica::WORDS.iter().zip(&self.replicas) {
            into.count(&list::REPLICAS, &[id, state], count.get());
        }
    }
}
