//! A hanging worker ends its process, which is then restarted. A process that was only stopped
//! continues as if nothing had happened.

mod support;

use std::fs;

use rustix::process::Pid;

use support::{Cluster, PODS, Setup, wait_until};

/// The thread of a pod's data path.
fn worker_of(pid: Pid) -> i32 {
    let tasks = fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero())).unwrap();
    let names = tasks.map(|task| task.unwrap().path());
    let mut workers = names.filter(|task| {
        fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim() == "worker")
    });
    let worker = workers.next().expect("a pod has a worker");
    worker.file_name().unwrap().to_str().unwrap().parse().unwrap()
}

/// A thread of another process, stopped as a debugger does it: its process sees it hang.
struct Hung(i32);

impl Hung {
    fn new(thread: i32) -> Hung {
        let none = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: these requests take no pointers; they act on the other process only.
        let done = unsafe {
            libc::ptrace(libc::PTRACE_SEIZE, thread, none, none) == 0
                && libc::ptrace(libc::PTRACE_INTERRUPT, thread, none, none) == 0
        };
        assert!(done, "stop a thread: {}", std::io::Error::last_os_error());
        Hung(thread)
    }

    /// Collects the end of the thread; before that, its process cannot end either.
    fn reap(&self) {
        let mut status = 0;
        let flags = libc::WNOHANG | libc::__WALL;
        // SAFETY: `status` is valid for the call. A thread that is not ours is an error without
        // effect.
        unsafe { libc::waitpid(self.0, &raw mut status, flags) };
    }
}

fn log_says(cluster: &Cluster, pod: usize, words: &str) -> bool {
    fs::read_to_string(cluster.pod_dir(pod).join("log")).is_ok_and(|log| log.contains(words))
}

#[test]
fn a_pod_whose_worker_hangs_ends_and_is_started_again() {
    let cluster =
        Setup::new("watchdog_hang").volume("demo", "64MiB").set("hang_limit_seconds=2").start();
    cluster.connect(1, "demo").write(0, b"before").unwrap();
    let before = cluster.pid(1).expect("the pod runs");
    assert!(!log_says(&cluster, 1, "has hung"));
    let hung = Hung::new(worker_of(before));
    wait_until("the pod that hung was started again", || {
        hung.reap();
        cluster.pid(1).is_some_and(|pid| pid != before)
    });
    assert!(log_says(&cluster, 1, "has hung"), "it says why it ended");
    cluster.wait_serving(1);
    assert_eq!(cluster.connect(1, "demo").read(0, 6).unwrap(), b"before");
    assert!((2..=PODS).all(|pod| !log_says(&cluster, pod, "has hung")), "the others were well");
}

#[test]
fn a_pod_that_was_stopped_and_continued_has_not_hung() {
    let cluster =
        Setup::new("watchdog_stop").volume("demo", "64MiB").set("hang_limit_seconds=2").start();
    let before = cluster.pid(2).expect("the pod runs");
    cluster.freeze(2);
    // Pods are unreachable after five seconds of silence: longer than the limit.
    wait_until("the others miss it", || !cluster.is_healthy());
    cluster.thaw(2);
    cluster.wait_healthy();
    assert_eq!(cluster.pid(2), Some(before), "it is the same process");
}
