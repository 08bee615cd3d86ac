use std::process::ExitCode;

fn main() -> ExitCode {
    holdfast::cli::run(|_, _, _| anyhow::bail!("this build has no data path"))
}
