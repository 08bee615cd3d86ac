//! `holdfast sim`: simulated clusters from seeds, in virtual time.

use std::time::Duration;

use crate::sim::{Options, run as run_seed};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// First seed
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Number of seeds, from the first on
    #[arg(long, default_value_t = 1)]
    count: u64,
    /// Virtual seconds with faults, for each seed
    #[arg(long, default_value_t = 20)]
    seconds: u64,
}

/// Runs the seeds; the first violation ends it, with the command that shows it again.
pub fn run(args: &Args) -> anyhow::Result<()> {
    for seed in args.seed..args.seed.saturating_add(args.count) {
        let options = Options { seed, faults_for: Duration::from_secs(args.seconds) };
        let outcome = run_seed(options).map_err(|violation| {
            let again = format!("holdfast sim --seed {seed} --seconds {}", args.seconds);
            anyhow::anyhow!("{violation}; again with: {again}")
        })?;
        println!(
            "seed {seed}: {} operations, {} crashes, {} virtual ms",
            outcome.operations, outcome.crashes, outcome.virtual_ms
        );
    }
    Ok(())
}
