//! What a process needs that the node's writes go through. The kernel frees memory by writing dirty
//! pages to our devices: if this process waited for memory meanwhile, neither would go on.

use std::fs;
use std::io;

use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{Resource, Rlimit, configure_io_flusher_behavior, setrlimit};

use crate::control::catalog::chain;

/// The process that is killed last when memory runs out.
const LAST: &str = "-1000";

/// Asks the kernel for all of it, for this thread and those that it starts. A right that is missing
/// is said in the log: devices work without, while there is enough memory.
pub fn protect() {
    let asked = configure_io_flusher_behavior(true).map_err(io::Error::from);
    say("its writes to be free of the limits for dirty pages", asked);
    say("to be killed last when memory runs out", fs::write("/proc/self/oom_score_adj", LAST));
    say("its memory to stay", stay());
}

fn say(wish: &str, asked: io::Result<()>) {
    if let Err(error) = asked {
        tracing::warn!("the kernel does not allow {wish}: {}", chain(&error));
    }
}

/// Pages that were used once stay. Without the limit lifted, a later allocation could fail.
fn stay() -> io::Result<()> {
    setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None })?;
    Ok(mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT)?)
}
