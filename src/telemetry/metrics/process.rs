//! Metrics of the process as the system sees it, and of the build.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

use crate::telemetry::metrics::list;
use crate::telemetry::metrics::{Samples, Source, Value};

/// The process that it is made in.
pub struct Process {
    since: Instant,
    started: SystemTime,
}

impl Default for Process {
    fn default() -> Process {
        Process { since: Instant::now(), started: SystemTime::now() }
    }
}

impl Source for Process {
    fn collect(&self, into: &mut Samples) {
        into.count(&list::BUILD, &[env!("CARGO_PKG_VERSION")], 1);
        let uptime = self.since.elapsed().as_secs_f64();
        into.put(&list::UPTIME, &[], Value::Seconds(uptime));
        let started = self.started.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        into.put(&list::PROCESS_START_TIME, &[], Value::Seconds(started));
        if let Some(limit) = getrlimit(Resource::Nofile).current {
            into.count(&list::PROCESS_MAX_FDS, &[], limit);
        }
        if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
            // One of them is for reading the folder.
            into.count(&list::PROCESS_OPEN_FDS, &[], (open.count() as u64).saturating_sub(1));
        }
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        let cpu_seconds = cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9;
        into.put(&list::PROCESS_CPU, &[], Value::Seconds(cpu_seconds));
        let Ok(status) = std::fs::read_to_string("/proc/self/status") else { return };
        for (metric, key, unit) in [
            (&list::PROCESS_THREADS, "Threads:", 1),
            (&list::PROCESS_VIRTUAL_MEMORY, "VmSize:", 1024),
            (&list::PROCESS_RESIDENT_MEMORY, "VmRSS:", 1024),
        ] {
            if let Some(value) = field(&status, key) {
                into.count(metric, &[], value * unit);
            }
        }
    }
}

/// A number in `/proc/self/status` (proc_pid_status(5)).
fn field(status: &str, key: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_says_what_is_asked() {
        let status = "Name:\tVmRSS: 7\nVmRSS:\t   1234 kB\nThreads:\t9\n";
        assert_eq!(field(status, "VmRSS:"), Some(1234));
        assert_eq!(field(status, "Threads:"), Some(9));
        assert_eq!(field(status, "VmSize:"), None);
        let own = std::fs::read_to_string("/proc/self/status").unwrap();
        assert!(["Threads:", "VmSize:", "VmRSS:"].iter().all(|key| field(&own, key).is_some()));
    }
}
