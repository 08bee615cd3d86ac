//! Every metric. To add one: define it here, add it to [`SECTIONS`], put its samples in a source,
//! and write `docs/metrics.md` anew (`tests/metrics_page.rs` says how).
//!
//! Names are without the endings that the text has: the unit, and `_total` for counters.

use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

/// The type of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows while the process runs.
    Counter,
    Gauge,
    /// Of times, with the bounds of [`super::numbers::BOUNDS_US`].
    Histogram,
    /// Always 1; the labels say something.
    Info,
}

/// The definition of a metric.
#[derive(Debug)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    pub unit: Option<Unit>,
    pub labels: &'static [&'static str],
    pub help: &'static str,
}

impl Kind {
    pub(super) fn metric_type(self) -> MetricType {
        match self {
            Kind::Counter => MetricType::Counter,
            Kind::Gauge => MetricType::Gauge,
            Kind::Histogram => MetricType::Histogram,
            Kind::Info => MetricType::Info,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
            Kind::Info => "info",
        }
    }
}

impl Metric {
    /// The name of its samples in the text. Those of a histogram have endings of their own.
    pub fn full_name(&self) -> String {
        let unit = self.unit.as_ref().map_or(String::new(), |unit| format!("_{}", unit.as_str()));
        let ending = match self.kind {
            Kind::Counter => "_total",
            Kind::Info => "_info",
            Kind::Gauge | Kind::Histogram => "",
        };
        format!("{}{unit}{ending}", self.name)
    }
}

// The process.

pub static BUILD: Metric = Metric {
    name: "holdfast_build",
    kind: Kind::Info,
    unit: None,
    labels: &["version"],
    help: "The version of the program.",
};

pub static UPTIME: Metric = Metric {
    name: "holdfast_uptime",
    kind: Kind::Gauge,
    unit: Some(Unit::Seconds),
    labels: &[],
    help: "Time since the process started.",
};

pub static PROCESS_CPU: Metric = Metric {
    name: "process_cpu",
    kind: Kind::Counter,
    unit: Some(Unit::Seconds),
    labels: &[],
    help: "CPU time of the process, in user and in system mode.",
};

pub static PROCESS_RESIDENT_MEMORY: Metric = Metric {
    name: "process_resident_memory",
    kind: Kind::Gauge,
    unit: Some(Unit::Bytes),
    labels: &[],
    help: "Memory of the process that is in RAM.",
};

pub static PROCESS_VIRTUAL_MEMORY: Metric = Metric {
    name: "process_virtual_memory",
    kind: Kind::Gauge,
    unit: Some(Unit::Bytes),
    labels: &[],
    help: "Address space of the process.",
};

pub static PROCESS_OPEN_FDS: Metric = Metric {
    name: "process_open_fds",
    kind: Kind::Gauge,
    unit: None,
    labels: &[],
    help: "Open file descriptors.",
};

pub static PROCESS_MAX_FDS: Metric = Metric {
    name: "process_max_fds",
    kind: Kind::Gauge,
    unit: None,
    labels: &[],
    help: "File descriptors that the process may open.",
};

pub static PROCESS_START_TIME: Metric = Metric {
    name: "process_start_time",
    kind: Kind::Gauge,
    unit: Some(Unit::Seconds),
    labels: &[],
    help: "When the process started, in seconds since 1970.",
};

pub static PROCESS_THREADS: Metric = Metric {
    name: "process_threads",
    kind: Kind::Gauge,
    unit: None,
    labels: &[],
    help: "Threads of the process.",
};

pub static BUFFERS: Metric = Metric {
    name: "holdfast_buffers",
    kind: Kind::Gauge,
    unit: Some(Unit::Bytes),
    labels: &[],
    help: "Memory of payloads in use, from the pool of aligned buffers.",
};

pub static ROUNDS: Metric = Metric {
    name: "holdfast_data_path_rounds",
    kind: Kind::Counter,
    unit: None,
    labels: &[],
    help: "Rounds of the data path's loop. It makes at least ten a second.",
};

pub static TASK_RESTARTS: Metric = Metric {
    name: "holdfast_task_restarts",
    kind: Kind::Counter,
    unit: None,
    labels: &["task"],
    help: "Background tasks of the control plane that panicked and were started again.",
};

// Clients over NBD.

pub static NBD_CONNECTIONS: Metric = Metric {
    name: "holdfast_nbd_connections",
    kind: Kind::Gauge,
    unit: None,
    labels: &[],
    help: "Connections of NBD clients, handshakes included.",
};

pub static NBD_REQUESTS: Metric = Metric {
    name: "holdfast_nbd_requests",
    kind: Kind::Counter,
    unit: None,
    labels: &["operation", "outcome"],
    help: "Requests of NBD clients that were answered, by the answer. Malformed ones are not \
        counted.",
};

pub static NBD_REQUEST_DURATION: Metric = Metric {
    name: "holdfast_nbd_request_duration",
    kind: Kind::Histogram,
    unit: Some(Unit::Seconds),
    labels: &["operation"],
    help: "Time from the arrival of a whole request to its answer, whatever the answer.",
};

pub static NBD_TRANSFERRED: Metric = Metric {
    name: "holdfast_nbd_transferred",
    kind: Kind::Counter,
    unit: Some(Unit::Bytes),
    labels: &["direction"],
    help: "Bytes that NBD clients read and wrote, of requests that succeeded.",
};

// Stages of reads and writes.

pub static WRITE_STAGES: Metric = Metric {
    name: "holdfast_write_stage_duration",
    kind: Kind::Histogram,
    unit: Some(Unit::Seconds),
    labels: &["stage"],
    help: "Writes at the leader of their shard. queued: from their arrival until they go to the \
        log and to the followers; logged: from then until the leader's own log has them; \
        committed: until a majority of logs has them and they are applied; answered: from arrival \
        to answer.",
};

pub static READ_STAGES: Metric = Metric {
    name: "holdfast_read_stage_duration",
    kind: Kind::Histogram,
    unit: Some(Unit::Seconds),
    labels: &["stage"],
    help: "Reads at the leader of their shard. leased: from their arrival until the leader knows \
        that it leads, under a lease; asked: the same without a lease, so it asked a majority; \
        stored: from then until the blocks are read and checked; answered: from arrival to \
        answer.",
};

pub static FORWARDED: Metric = Metric {
    name: "holdfast_forwarded_request_duration",
    kind: Kind::Histogram,
    unit: Some(Unit::Seconds),
    labels: &[],
    help: "Requests of clients of this pod that another pod carried out: from sending to the \
        answer.",
};

pub static IN_FLIGHT: Metric = Metric {
    name: "holdfast_requests_in_flight",
    kind: Kind::Gauge,
    unit: None,
    labels: &["at"],
    help: "Unanswered requests. volume: of clients, at the volumes of this pod that they use; \
        replica: at the leaders on this pod; other_pod: forwarded to other pods.",
};

pub static QUEUE: Metric = Metric {
    name: "holdfast_queue",
    kind: Kind::Gauge,
    unit: Some(Unit::Bytes),
    labels: &["budget"],
    help: "What the queues hold, by the budget that bounds them, all queues of a kind together.",
};

pub static QUEUE_FULLEST: Metric = Metric {
    name: "holdfast_queue_fullest",
    kind: Kind::Gauge,
    unit: Some(Unit::Bytes),
    labels: &["budget"],
    help: "The same of the connection, volume, shard or link that holds the most.",
};

pub static QUEUE_LIMIT: Metric = Metric {
    name: "holdfast_queue_limit",
    kind: Kind::Gauge,
    unit: Some(Unit::Bytes),
    labels: &["budget"],
    help: "The most that one connection, volume, shard or link may hold.",
};

// Disks.

pub static DISK: Metric = Metric {
    name: "holdfast_disk",
    kind: Kind::Info,
    unit: None,
    labels: &["disk", "path"],
    help: "The disks of this pod, with their directories.",
};

pub static DISK_UP: Metric = Metric {
    name: "holdfast_disk_up",
    kind: Kind::Gauge,
    unit: None,
    labels: &["disk"],
    help: "1: the disk is used; 0: it failed, or could not be opened.",
};

pub static DISK_CAPACITY: Metric = Metric {
    name: "holdfast_disk_capacity",
    kind: Kind::Gauge,
    unit: Some(Unit::Bytes),
    labels: &["disk"],
    help: "Data that the disk can hold.",
};

pub static DISK_USED: Metric = Metric {
    name: "holdfast_disk_used",
    kind: Kind::Gauge,
    unit: Some(Unit::Bytes),
    labels: &["disk"],
    help: "Data that the disk holds.",
};

pub static LOG_SIZE: Metric = Metric {
    name: "holdfast_log_size",
    kind: Kind::Gauge,
    unit: Some(Unit::Bytes),
    labels: &["disk"],
    help: "Length of the write-ahead log.",
};

pub static LOG_USED: Metric = Metric {
    name: "holdfast_log_used",
    kind: Kind::Gauge,
    unit: Some(Unit::Bytes),
    labels: &["disk"],
    help: "Part of the log that must not be overwritten yet.",
};

pub static LOG_WRITES: Metric = Metric {
    name: "holdfast_log_write_duration",
    kind: Kind::Histogram,
    unit: Some(Unit::Seconds),
    labels: &["disk"],
    help: "Durable writes that appends wait for: of the log, and of slots with the WAL bypass.",
};

pub static DIRTY: Metric = Metric {
    name: "holdfast_dirty",
    kind: Kind::Gauge,
    unit: Some(Unit::Bytes),
    labels: &["disk"],
    help: "Dirty blocks: in the log, and not written back yet.",
};

pub static OVERLAY: Metric = Metric {
    name: "holdfast_overlay_memory",
    kind: Kind::Gauge,
    unit: Some(Unit::Bytes),
    labels: &["disk"],
    help: "Memory of the index over the log, without payloads.",
};

pub static DISK_READ: Metric = Metric {
    name: "holdfast_disk_read",
    kind: Kind::Counter,
    unit: Some(Unit::Bytes),
    labels: &["disk", "source"],
    help: "Blocks that clients read from this disk, without holes. overlay: dirty blocks, from \
        memory or from the log; slot: all others.",
};

pub static CHECKSUM_ERRORS: Metric = Metric {
    name: "holdfast_checksum_errors",
    kind: Kind::Counter,
    unit: None,
    labels: &["disk"],
    help: "Reads that found no intact copy of a block on this disk.",
};

pub static READ_REPAIRS: Metric = Metric {
    name: "holdfast_read_repairs",
    kind: Kind::Counter,
    unit: None,
    labels: &["outcome"],
    help: "Extents without an intact copy here for which the other replicas were asked. repaired: \
        one had a copy; failed: none had.",
};

pub static READ_REPAIRS_RUNNING: Metric = Metric {
    name: "holdfast_read_repairs_running",
    kind: Kind::Gauge,
    unit: None,
    labels: &[],
    help: "Extents that are being repaired.",
};

// Replicas.

pub static REPLICAS: Metric = Metric {
    name: "holdfast_replicas",
    kind: Kind::Gauge,
    unit: None,
    labels: &["disk", "state"],
    help: "Replicas on this disk by their state.",
};

pub static TERM_CHANGES: Metric = Metric {
    name: "holdfast_raft_term_changes",
    kind: Kind::Counter,
    unit: None,
    labels: &[],
    help: "Times that a replica here heard of a higher term: there was an election.",
};

pub static ELECTIONS_WON: Metric = Metric {
    name: "holdfast_raft_elections_won",
    kind: Kind::Counter,
    unit: None,
    labels: &[],
    help: "Times that a replica here became leader.",
};

pub static LEASE_LAPSES: Metric = Metric {
    name: "holdfast_lease_lapses",
    kind: Kind::Counter,
    unit: None,
    labels: &[],
    help: "Times that a read found the lease of its leader ended and had to wait for a majority.",
};

pub static RESYNCS_RUNNING: Metric = Metric {
    name: "holdfast_resyncs_running",
    kind: Kind::Gauge,
    unit: None,
    labels: &[],
    help: "Resyncs into replicas of this pod.",
};

pub static RESYNCS_BEGUN: Metric = Metric {
    name: "holdfast_resyncs_begun",
    kind: Kind::Counter,
    unit: None,
    labels: &["disk"],
    help: "Resyncs into replicas of this disk that began.",
};

pub static RESYNCS_ENDED: Metric = Metric {
    name: "holdfast_resyncs_ended",
    kind: Kind::Counter,
    unit: None,
    labels: &["outcome"],
    help: "Resyncs that ended. done: the replica is whole; failed: another one follows.",
};

pub static RESYNC_PENDING: Metric = Metric {
    name: "holdfast_resync_pending",
    kind: Kind::Gauge,
    unit: Some(Unit::Bytes),
    labels: &[],
    help: "Extents that are known to differ and are not copied yet. More may be found: the source \
        lists its extents piece by piece.",
};

pub static RESYNC_FETCHED: Metric = Metric {
    name: "holdfast_resync_fetched",
    kind: Kind::Counter,
    unit: Some(Unit::Bytes),
    labels: &[],
    help: "Extents that resyncs fetched from other pods.",
};

// Links to other pods.

pub static LINKS: Metric = Metric {
    name: "holdfast_links",
    kind: Kind::Gauge,
    unit: None,
    labels: &["purpose", "state"],
    help: "Connections to disks of other pods that must exist. up: they do; down: they do not.",
};

pub static LINK_UPS: Metric = Metric {
    name: "holdfast_link_ups",
    kind: Kind::Counter,
    unit: None,
    labels: &["purpose"],
    help: "Connections that were made, also those that replaced a lost one.",
};

pub static LINK_LOSSES: Metric = Metric {
    name: "holdfast_link_losses",
    kind: Kind::Counter,
    unit: None,
    labels: &["purpose"],
    help: "Connections that were up and were lost or closed.",
};

pub static LINK_ERRORS: Metric = Metric {
    name: "holdfast_link_errors",
    kind: Kind::Counter,
    unit: None,
    labels: &[],
    help: "Connections that were closed because what came over them was wrong, checksums of \
        frames included.",
};

// Catalog and API.

pub static VIEW_REVISION: Metric = Metric {
    name: "holdfast_view_revision",
    kind: Kind::Gauge,
    unit: None,
    labels: &[],
    help: "Revision of the catalog by which the data path works.",
};

pub static CATALOG_REVISION: Metric = Metric {
    name: "holdfast_catalog_revision",
    kind: Kind::Gauge,
    unit: None,
    labels: &[],
    help: "Newest revision of the catalog that this pod knows.",
};

pub static CATALOG_APPLIED: Metric = Metric {
    name: "holdfast_catalog_applied_index",
    kind: Kind::Gauge,
    unit: None,
    labels: &[],
    help: "Index that this pod's member of the catalog has applied; 0 without a member.",
};

pub static CATALOG_TERM: Metric = Metric {
    name: "holdfast_catalog_term",
    kind: Kind::Gauge,
    unit: None,
    labels: &[],
    help: "Raft term of this pod's member of the catalog.",
};

pub static CATALOG_ROLE: Metric = Metric {
    name: "holdfast_catalog_role",
    kind: Kind::Gauge,
    unit: None,
    labels: &["role"],
    help: "1 for what this pod is in the catalog: leader, follower, none (no member here) or \
        stopped (its member failed).",
};

pub static CATALOG_LAG: Metric = Metric {
    name: "holdfast_catalog_lag",
    kind: Kind::Gauge,
    unit: None,
    labels: &[],
    help: "On the leader: entries that the reachable member which is furthest behind has not \
        applied. Otherwise 0.",
};

pub static API_REQUESTS: Metric = Metric {
    name: "holdfast_api_requests",
    kind: Kind::Counter,
    unit: None,
    labels: &["rpc", "code"],
    help: "Requests to the API of this pod that ended, by the code of the answer.",
};

pub static API_REQUEST_DURATION: Metric = Metric {
    name: "holdfast_api_request_duration",
    kind: Kind::Histogram,
    unit: Some(Unit::Seconds),
    labels: &["rpc"],
    help: "Time of requests to the API until the answer begins.",
};

// The CSI driver.

pub static CSI_OPERATIONS: Metric = Metric {
    name: "csi_plugin_operations",
    kind: Kind::Histogram,
    unit: Some(Unit::Seconds),
    labels: &["driver_name", "method_name", "grpc_status_code"],
    help: "Time of requests to the driver until their answer, as other drivers' libraries name it. \
        Only processes of `holdfast csi` have it, with `--http-endpoint`.",
};

/// All metrics, under the headings of the page, in the order of the text.
pub static SECTIONS: &[(&str, &[&Metric])] = &[
    (
        "The process",
        &[
            &BUILD,
            &UPTIME,
            &PROCESS_CPU,
            &PROCESS_RESIDENT_MEMORY,
            &PROCESS_VIRTUAL_MEMORY,
            &PROCESS_OPEN_FDS,
            &PROCESS_MAX_FDS,
            &PROCESS_START_TIME,
            &PROCESS_THREADS,
            &BUFFERS,
            &ROUNDS,
            &TASK_RESTARTS,
        ],
    ),
    (
        "Clients over NBD",
        &[&NBD_CONNECTIONS, &NBD_REQUESTS, &NBD_REQUEST_DURATION, &NBD_TRANSFERRED],
    ),
    (
        "Stages of reads and writes",
        &[
            &WRITE_STAGES,
            &READ_STAGES,
            &FORWARDED,
            &IN_FLIGHT,
            &QUEUE,
            &QUEUE_FULLEST,
            &QUEUE_LIMIT,
        ],
    ),
    (
        "Disks",
        &[
            &DISK,
            &DISK_UP,
            &DISK_CAPACITY,
            &DISK_USED,
            &LOG_SIZE,
            &LOG_USED,
            &LOG_WRITES,
            &DIRTY,
            &OVERLAY,
            &DISK_READ,
            &CHECKSUM_ERRORS,
            &READ_REPAIRS,
            &READ_REPAIRS_RUNNING,
        ],
    ),
    (
        "Replicas",
        &[
            &REPLICAS,
            &TERM_CHANGES,
            &ELECTIONS_WON,
            &LEASE_LAPSES,
            &RESYNCS_RUNNING,
            &RESYNCS_BEGUN,
            &RESYNCS_ENDED,
            &RESYNC_PENDING,
            &RESYNC_FETCHED,
        ],
    ),
    ("Links to other pods", &[&LINKS, &LINK_UPS, &LINK_LOSSES, &LINK_ERRORS]),
    (
        "Catalog and API",
        &[
            &VIEW_REVISION,
            &CATALOG_REVISION,
            &CATALOG_APPLIED,
            &CATALOG_TERM,
            &CATALOG_ROLE,
            &CATALOG_LAG,
            &API_REQUESTS,
            &API_REQUEST_DURATION,
        ],
    ),
    ("The CSI driver", &[&CSI_OPERATIONS]),
];

/// All metrics, in the order of the text.
pub fn all() -> impl Iterator<Item = &'static Metric> {
    SECTIONS.iter().flat_map(|(_, metrics)| metrics.iter().copied())
}
