//! The server processes of a development cluster: starts, restarts and stops them.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, getppid, kill_process, set_parent_process_death_signal};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::cli::dev::layout::PodLayout;
use crate::cli::output;
use crate::control::identity::has_joined;

/// Interval of checks of the processes.
const LOOK: Duration = Duration::from_millis(50);
/// Time for a process to stop by itself.
const STOP_WITHIN: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartAfter {
    Time(Duration),
    Never,
}

pub struct Children {
    pods: Vec<Pod>,
    restart_after: RestartAfter,
}

struct Pod {
    number: u16,
    config_file: PathBuf,
    pid_file: PathBuf,
    log_file: PathBuf,
    /// Directory of its identity.
    data: PathBuf,
    /// It and all pods before it belong to the cluster.
    has_joined: bool,
    /// It has served at least once. Before that, its end is an error of the whole command.
    has_served: bool,
    state: ChildState,
}

enum ChildState {
    /// Not all pods before it have joined.
    New,
    Running(Child),
    /// The time of its next start.
    Waiting(Instant),
    Left,
}

impl Children {
    /// Starts no process yet; [`Children::tend`] does.
    pub fn new(pods: &[PodLayout], restart_after: RestartAfter) -> Children {
        let pods = pods
            .iter()
            .map(|pod| Pod {
                number: pod.number,
                config_file: pod.config_file(),
                pid_file: pod.pid_file(),
                log_file: pod.log_file(),
                data: pod.config.data.clone(),
                has_joined: false,
                has_served: false,
                state: ChildState::New,
            })
            .collect();
        Children { pods, restart_after }
    }

    /// Starts the pods that are due, and notices those that ended. Fails when a pod ended before it
    /// ever served.
    pub async fn tend(&mut self) -> anyhow::Result<()> {
        self.admit();
        for pod in &mut self.pods {
            pod.tend(self.restart_after)?;
        }
        sleep(LOOK).await;
        Ok(())
    }

    /// Lets pods begin. The cluster gives ids in the order in which pods join, so each one waits
    /// until all before it have joined. Then pod N has the id N.
    fn admit(&mut self) {
        let mut all_before = true;
        for pod in &mut self.pods {
            if all_before && matches!(pod.state, ChildState::New) {
                pod.state = ChildState::Waiting(Instant::now());
            }
            all_before = all_before && (pod.has_joined || has_joined(&pod.data));
            pod.has_joined = all_before;
        }
    }

    /// Asks all processes to stop, and kills those that do not.
    pub async fn stop(mut self) {
        for pod in &self.pods {
            if let ChildState::Running(child) = &pod.state {
                pod.signal(child, Signal::TERM);
            }
        }
        let deadline = Instant::now() + STOP_WITHIN;
        for pod in &mut self.pods {
            let number = pod.number;
            if let ChildState::Running(child) = &mut pod.state
                && timeout(deadline - Instant::now(), ended(child)).await.is_err()
            {
                output::note(&format!("pod {number} did not stop in time; killing it"));
                if let Err(error) = child.kill().and_then(|()| child.wait().map(drop)) {
                    output::note(&format!("could not kill pod {number}: {error}"));
                }
            }
        }
    }
}

async fn ended(child: &mut Child) {
    while matches!(child.try_wait(), Ok(None)) {
        sleep_until(Instant::now() + LOOK).await;
    }
}

impl Pod {
    fn tend(&mut self, restart_after: RestartAfter) -> anyhow::Result<()> {
        match &mut self.state {
            ChildState::New | ChildState::Left => Ok(()),
            ChildState::Waiting(until) if *until > Instant::now() => Ok(()),
            ChildState::Waiting(_) => {
                self.state = ChildState::Running(self.start()?);
                Ok(())
            }
            ChildState::Running(child) => {
                let ended = child
                    .try_wait()
                    .with_context(|| format!("could not check pod {}", self.number))?;
                let pid = child.id();
                self.has_served = self.has_served || serves(&self.pid_file, pid);
                match ended {
                    Some(status) => self.ended(status, restart_after),
                    None => Ok(()),
                }
            }
        }
    }

    fn ended(&mut self, status: ExitStatus, restart_after: RestartAfter) -> anyhow::Result<()> {
        let number = self.number;
        if !self.has_served {
            let log = self.log_file.display();
            let reason = last_error(&self.log_file).unwrap_or_else(|| status.to_string());
            bail!("pod {number} did not start: {reason} (its log is {log})");
        }
        match restart_after {
            RestartAfter::Never => {
                output::note(&format!("pod {number} ended ({status}) and is not restarted"));
                self.state = ChildState::Left;
            }
            RestartAfter::Time(time) => {
                output::note(&format!("pod {number} ended ({status}); it restarts after {time:?}"));
                self.state = ChildState::Waiting(Instant::now() + time);
            }
        }
        Ok(())
    }

    fn start(&self) -> anyhow::Result<Child> {
        // A file left behind by a killed process must not count for the new one.
        if let Err(error) = std::fs::remove_file(&self.pid_file)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            return Err(error).context(format!("could not remove {}", self.pid_file.display()));
        }
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log_file)
            .with_context(|| format!("could not open {}", self.log_file.display()))?;
        let program = std::env::current_exe().context("could not find this program")?;
        let parent = rustix::process::getpid();
        let mut command = Command::new(program);
        command
            .arg("serve")
            .arg("--config")
            .arg(&self.config_file)
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("could not share the log")?)
            .stderr(log)
            // Ctrl-C in a terminal must reach only this process, which stops the pods in order.
            .process_group(0);
        // SAFETY: between fork and exec the closure makes only system calls, without allocation.
        unsafe {
            command.pre_exec(move || end_with_parent(parent));
        }
        command.spawn().with_context(|| format!("could not start pod {}", self.number))
    }

    fn signal(&self, child: &Child, signal: Signal) {
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let sent = pid.map(|pid| kill_process(pid, signal));
        if let Some(Err(error)) = sent {
            output::note(&format!("could not signal pod {}: {error}", self.number));
        }
    }
}

/// Runs in the child: it is killed when its parent ends in any way.
fn end_with_parent(parent: Pid) -> std::io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    if getppid() != Some(parent) {
        return Err(std::io::ErrorKind::NotConnected.into());
    }
    Ok(())
}

/// True when the file shows that the process `pid` serves.
pub fn serves(pid_file: &Path, pid: u32) -> bool {
    std::fs::read_to_string(pid_file)
        .is_ok_and(|text| text.trim().parse::<u32>().is_ok_and(|found| found == pid))
}

/// Message of the last error in a log; the last line if that is no log line.
fn last_error(log: &Path) -> Option<String> {
    let file = std::fs::File::open(log).ok()?;
    let mut last = None;
    for line in BufReader::new(file).lines() {
        let Ok(line) = line else { break };
        match serde_json::from_str::<serde_json::Value>(&line) {
            Ok(event) if event["level"] == "ERROR" => {
                last = event["message"].as_str().map(str::to_owned);
            }
            Ok(_) => {}
            Err(_) => last = Some(line),
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::dev::layout::Layout;
    use crate::config::size::ByteSize;
    use crate::control::identity::{Identity, PodDirectory};
    use crate::types::{PodId, Uuid};

    #[test]
    fn a_pod_starts_when_all_before_it_have_joined() {
        let root = tempfile::tempdir().unwrap();
        let wal = ByteSize(256 << 20);
        let layout = Layout::new(root.path().to_owned(), 3, 0, &[], wal).unwrap();
        let mut children = Children::new(&layout.pods, RestartAfter::Never);
        let mut may_start = || {
            children.admit();
            let new = |pod: &&Pod| matches!(pod.state, ChildState::New);
            3 - children.pods.iter().filter(new).count()
        };
        let join = |pod: usize| {
            let mut directory = PodDirectory::open(&layout.pods[pod].config.data).unwrap();
            let identity = Identity { cluster: Uuid([1; 16]), pod: PodId(pod as u64 + 1) };
            directory.set_identity(identity).unwrap();
        };
        assert_eq!(may_start(), 1);
        join(0);
        assert_eq!(may_start(), 2);
        // It has a directory, and no identity yet.
        PodDirectory::open(&layout.pods[1].config.data).unwrap();
        assert_eq!(may_start(), 2);
        join(1);
        assert_eq!(may_start(), 3);
        join(2);
        let mut resumed = Children::new(&layout.pods, RestartAfter::Never);
        resumed.admit();
        let waits = |pod: &Pod| matches!(pod.state, ChildState::Waiting(_));
        assert!(resumed.pods.iter().all(waits), "a cluster that is resumed starts at once");
    }

    #[test]
    fn the_reason_comes_from_the_log() {
        let root = tempfile::tempdir().unwrap();
        let log = root.path().join("log");
        assert_eq!(last_error(&log), None);
        let lines = "{\"level\":\"ERROR\",\"message\":\"first\"}\n\
                     {\"level\":\"ERROR\",\"message\":\"the disk is gone\"}\n\
                     {\"level\":\"INFO\",\"message\":\"stopping\"}\n";
        std::fs::write(&log, lines).unwrap();
        assert_eq!(last_error(&log).as_deref(), Some("the disk is gone"));
        std::fs::write(&log, "error: no such key\n").unwrap();
        assert_eq!(last_error(&log).as_deref(), Some("error: no such key"));
    }
}
