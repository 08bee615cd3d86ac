//! `holdfast sim`: simulated clusters from seeds, in virtual time.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::config::{Log, LogFormat};
use crate::sim::{Options, Outcome, Violation, run as run_seed, shrink};
use crate::telemetry::logs;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// First seed
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Number of seeds, from the first on
    #[arg(long, default_value_t = 1, conflicts_with = "minutes")]
    count: u64,
    /// Instead of a number: seeds for so many minutes
    #[arg(long)]
    minutes: Option<u64>,
    /// Seeds that run at the same time
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Virtual seconds with faults, for each seed
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Only these of the faults that the seed draws, by their numbers
    #[arg(long, value_delimiter = ',', num_args = 0..)]
    only: Option<Vec<usize>>,
    /// A line for everything that happens; what the pods log, on standard error
    #[arg(long)]
    trace: bool,
    /// When a seed fails, look for fewer faults that make it fail
    #[arg(long)]
    shrink: bool,
}

/// Runs the seeds; the first violation ends it, with the command that shows it again.
pub fn run(args: &Args) -> anyhow::Result<()> {
    if args.trace {
        logs::start(&Log { level: "holdfast=debug".to_owned(), format: LogFormat::Text })?;
    }
    let start = Instant::now();
    let until = args.minutes.map(|minutes| start + Duration::from_secs(60 * minutes));
    let (next, virtual_ms) = (AtomicU64::new(0), AtomicU64::new(0));
    let (stop, failed) = (AtomicBool::new(false), Mutex::new(None));
    let work = || {
        while !stop.load(Ordering::Relaxed) && until.is_none_or(|until| Instant::now() < until) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if until.is_none() && number >= args.count {
                return;
            }
            match one(args, args.seed.saturating_add(number)) {
                Ok(outcome) => drop(virtual_ms.fetch_add(outcome.virtual_ms, Ordering::Relaxed)),
                Err(error) => {
                    stop.store(true, Ordering::Relaxed);
                    let mut failed = failed.lock().unwrap_or_else(|error| error.into_inner());
                    failed.get_or_insert(error);
                }
            }
        }
    };
    std::thread::scope(|scope| (0..args.threads.max(1)).for_each(|_| drop(scope.spawn(work))));
    if let Some(error) = failed.into_inner().unwrap_or_else(|error| error.into_inner()) {
        return Err(error);
    }
    let virtual_s = virtual_ms.into_inner() as f64 / 1e3;
    let took = start.elapsed().as_secs_f64();
    println!("{:.2} virtual hours, {:.0} times real time", virtual_s / 3600.0, virtual_s / took);
    Ok(())
}

fn one(args: &Args, seed: u64) -> anyhow::Result<Outcome> {
    let options = Options {
        only: args.only.clone(),
        prints: args.trace,
        ..Options::new(seed, Duration::from_secs(args.seconds))
    };
    let outcome = run_seed(&options).map_err(|violation| failure(args, options, violation))?;
    println!(
        "seed {seed}: {} operations, {} faults, {} virtual ms, trace {:016x}",
        outcome.operations, outcome.faults, outcome.virtual_ms, outcome.trace
    );
    Ok(outcome)
}

fn failure(args: &Args, options: Options, violation: Violation) -> anyhow::Error {
    let quiet = Options { prints: false, ..options };
    let found = args.shrink.then(|| shrink(&quiet)).flatten();
    let (smallest, violation) = found.unwrap_or((quiet, violation));
    for (number, fault) in smallest.faults() {
        println!("fault {number}: {fault}");
    }
    let mut again = format!("holdfast sim --seed {} --seconds {}", smallest.seed, args.seconds);
    if let Some(only) = &smallest.only {
        let only: Vec<String> = only.iter().map(usize::to_string).collect();
        again += &format!(" --only {}", only.join(","));
    }
    anyhow::anyhow!("{violation}; again with: {again}")
}
