//! `holdfast kubernetes manifests`: prints what is applied to a cluster.

use std::path::PathBuf;

use anyhow::Context;

use crate::kubernetes::manifests::{Choice, DEFAULT_NAMESPACE, namespace, render};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    chosen: Chosen,
    /// Print the namespace, which is a file of its own, and nothing else
    #[arg(long)]
    only_namespace: bool,
}

/// What manifests are made of.
#[derive(Debug, clap::Args)]
pub struct Chosen {
    /// File with values, as of the Helm chart; may be repeated, and later files win
    #[arg(long, value_name = "FILE")]
    values: Vec<PathBuf>,
    /// One value, as in csi.failOver=off; may be repeated, and wins over files
    #[arg(long, value_name = "NAME=VALUE")]
    set: Vec<String>,
    /// Namespace of everything that has one
    #[arg(long, value_name = "NAME", default_value = DEFAULT_NAMESPACE)]
    pub namespace: String,
}

impl Chosen {
    /// Reads the files.
    pub fn choice(&self) -> anyhow::Result<Choice> {
        let mut choice = Choice::of_defaults(&self.namespace)?;
        for path in &self.values {
            let text = std::fs::read_to_string(path);
            let text = text.with_context(|| format!("could not read {}", path.display()))?;
            let merged = choice.merge(&text);
            merged.with_context(|| format!("could not use the values of {}", path.display()))?;
        }
        for assignment in &self.set {
            choice.assign(assignment).with_context(|| format!("could not set {assignment}"))?;
        }
        Ok(choice)
    }
}

/// Returns the YAML.
pub fn run(args: &Args) -> anyhow::Result<String> {
    let choice = args.chosen.choice()?;
    match args.only_namespace {
        true => Ok(namespace(&choice)),
        false => Ok(render(&choice)?),
    }
}
