//! Programs of the system, each with a deadline: what blocks in the kernel must not block us.

use std::ffi::OsStr;
use std::io;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

/// A program's words about an error are cut here.
const SAID_BYTES_MAX: usize = 1024;

/// Why a program failed.
#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    #[error("could not run {program}; is it installed?")]
    Run {
        program: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("{program} did not end within {} seconds", within.as_secs())]
    Late { program: &'static str, within: Duration },
    #[error("{program} failed{}: {said}", coded(*.code))]
    Failed { program: &'static str, code: Option<i32>, said: String },
}

fn coded(code: Option<i32>) -> String {
    code.map(|code| format!(" (exit code {code})")).unwrap_or_default()
}

/// Runs a program until it ends, and returns what it printed. One that is late is killed.
pub async fn run<A: AsRef<OsStr>>(
    program: &'static str,
    arguments: impl IntoIterator<Item = A>,
    within: Duration,
) -> Result<String, ChildError> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let output = match timeout(within, command.output()).await {
        Ok(output) => output.map_err(|source| ChildError::Run { program, source })?,
        Err(_) => return Err(ChildError::Late { program, within }),
    };
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        false => {
            // Some tell what is wrong on their standard output.
            let told = if output.stderr.is_empty() { &output.stdout } else { &output.stderr };
            let mut said = String::from_utf8_lossy(told).trim().to_owned();
            let cut = (0..=SAID_BYTES_MAX.min(said.len())).rev();
            said.truncate(cut.into_iter().find(|at| said.is_char_boundary(*at)).unwrap_or(0));
            Err(ChildError::Failed { program, code: output.status.code(), said })
        }
    }
}
