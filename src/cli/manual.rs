//! `holdfast completion SHELL` and `holdfast man DIR`: made from the definition of the commands.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::CommandFactory;

use crate::cli::Cli;

#[derive(Debug, clap::Args)]
pub struct CompletionArgs {
    shell: clap_complete::Shell,
}

#[derive(Debug, clap::Args)]
pub struct ManArgs {
    /// Directory for the pages, one for each command
    dir: PathBuf,
}

/// The script that completes command lines in a shell.
pub fn completion(args: &CompletionArgs) -> anyhow::Result<String> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "holdfast", &mut script);
    String::from_utf8(script).context("the script is no text")
}

/// Writes the manual pages.
pub fn man(args: &ManArgs) -> anyhow::Result<String> {
    let dir: &Path = &args.dir;
    std::fs::create_dir_all(dir).with_context(|| format!("could not create {}", dir.display()))?;
    clap_mangen::generate_to(Cli::command(), dir)
        .with_context(|| format!("could not write the pages to {}", dir.display()))?;
    Ok(format!("the pages are in {}\n", dir.display()))
}
