//! `holdfast sim`: simulates clusters from seeds, in virtual time.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::cli::output;
use crate::cli::time::{io_timeout, io_timeout_text};
use crate::config::{Log, LogFormat};
use crate::sim::{Options, Outcome, Plan, Seen, Violation, run as run_seed, shrink};
use crate::telemetry::logs;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// First seed
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Number of consecutive seeds
    #[arg(long, default_value_t = 1, conflicts_with = "minutes")]
    count: u64,
    /// Instead of a number of seeds: run seeds for this many minutes
    #[arg(long)]
    minutes: Option<u64>,
    /// Seeds that run at the same time
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Virtual seconds with faults, for each seed
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Of the faults that the seed draws, only these numbers
    #[arg(long, value_delimiter = ',', num_args = 0..)]
    only: Option<Vec<usize>>,
    /// Number of client requests while there are faults; then clients send no more
    #[arg(long)]
    requests: Option<u64>,
    /// Requests of clients fail when they have waited for so long, as in 2s; 0: they wait
    #[arg(long, default_value = "0", value_name = "TIME", value_parser = io_timeout)]
    io_timeout: u64,
    /// Kind of faults
    #[arg(long, value_enum, default_value_t = PlanName::Mixed)]
    plan: PlanName,
    /// Print a line for every event; what the pods log goes to standard error
    #[arg(long)]
    trace: bool,
    /// When a seed fails, look for a smaller set of faults that still fails
    #[arg(long)]
    shrink: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum PlanName {
    /// Faults drawn from the seed; at most one disk may lose its data
    Mixed,
    /// Only bits that flip repeatedly in the slots of one disk
    Rot,
    /// Only clocks that stop repeatedly
    Clocks,
    /// Faults drawn from the seed; any disk may lose its data
    Unbounded,
    /// A load that does not end, and one fault at a time
    Load,
}

impl From<PlanName> for Plan {
    fn from(name: PlanName) -> Plan {
        match name {
            PlanName::Mixed => Plan::Mixed,
            PlanName::Rot => Plan::Rot,
            PlanName::Clocks => Plan::Clocks,
            PlanName::Unbounded => Plan::Unbounded,
            PlanName::Load => Plan::Load,
        }
    }
}

/// Runs the seeds. Stops at the first violation and prints the command that repeats it.
pub fn run(args: &Args) -> anyhow::Result<()> {
    if args.trace {
        logs::start(&Log { level: "holdfast=debug".to_owned(), format: LogFormat::Text })?;
    }
    let start = Instant::now();
    let until = args.minutes.map(|minutes| start + Duration::from_secs(60 * minutes));
    let (next, total) = (AtomicU64::new(0), Mutex::new(Total::default()));
    let (stop, failed) = (AtomicBool::new(false), Mutex::new(None));
    let work = || {
        while !stop.load(Ordering::Relaxed) && until.is_none_or(|until| Instant::now() < until) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if until.is_none() && number >= args.count {
                return;
            }
            match one(args, args.seed.saturating_add(number)) {
                Ok(outcome) => {
                    total.lock().unwrap_or_else(|error| error.into_inner()).add(&outcome);
                }
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
    let total = total.into_inner().unwrap_or_else(|error| error.into_inner());
    Ok(output::print(&total.text(start.elapsed().as_secs_f64()))?)
}

/// Totals over all seeds.
#[derive(Default)]
struct Total {
    seeds: u64,
    requests: u64,
    virtual_ms: u64,
    /// Runs in which a majority had to answer without one of the pods.
    spared: u64,
    seen: Seen,
}

impl Total {
    fn add(&mut self, outcome: &Outcome) {
        self.seeds += 1;
        self.requests += outcome.requests;
        self.virtual_ms += outcome.virtual_ms;
        self.spared += u64::from(outcome.spared);
        self.seen += outcome.seen;
    }

    fn text(&self, took_s: f64) -> String {
        let virtual_s = self.virtual_ms as f64 / 1e3;
        format!(
            "seen: {}; {} of {} ended without a pod\n\
             {} seeds, {} requests, {:.2} virtual hours, {:.0} seeds a minute, \
             {:.0} times real time\n",
            self.seen,
            self.spared,
            self.seeds,
            self.seeds,
            self.requests,
            virtual_s / 3600.0,
            self.seeds as f64 * 60.0 / took_s,
            virtual_s / took_s
        )
    }
}

fn one(args: &Args, seed: u64) -> anyhow::Result<Outcome> {
    let options = Options {
        only: args.only.clone(),
        requests: args.requests,
        plan: args.plan.into(),
        io_timeout: (args.io_timeout > 0).then(|| Duration::from_millis(args.io_timeout)),
        prints: args.trace,
        ..Options::new(seed, Duration::from_secs(args.seconds))
    };
    let outcome = run_seed(&options).map_err(|violation| failure(args, options, violation))?;
    output::line(&format!(
        "seed {seed}: {} requests, {} faults, {} virtual ms, trace {:016x}",
        outcome.requests, outcome.faults, outcome.virtual_ms, outcome.trace
    ))?;
    Ok(outcome)
}

fn failure(args: &Args, options: Options, violation: Violation) -> anyhow::Error {
    let quiet = Options { prints: false, ..options };
    let found = args.shrink.then(|| shrink(&quiet)).flatten();
    let (smallest, violation) = found.unwrap_or((quiet, violation));
    for (number, fault) in smallest.faults() {
        // The violation counts, also when nobody reads the list.
        let _unread = output::line(&format!("fault {number}: {fault}"));
    }
    let mut again = format!("holdfast sim --seed {} --seconds {}", smallest.seed, args.seconds);
    if let Some(only) = &smallest.only {
        let only: Vec<String> = only.iter().map(usize::to_string).collect();
        again += &format!(" --only {}", only.join(","));
    }
    if let Some(requests) = smallest.requests {
        again += &format!(" --requests {requests}");
    }
    if args.io_timeout > 0 {
        again += &format!(" --io-timeout {}", io_timeout_text(args.io_timeout));
    }
    if let Some(plan) = clap::ValueEnum::to_possible_value(&args.plan) {
        again += &format!(" --plan {}", plan.get_name());
    }
    anyhow::anyhow!("{violation}; again with: {again}")
}
